// Top-k with groups, as the published DeepSeek V2 and V3 code does it (see kern.h, kern_router).
#include "kernels/cpu/router.h"

#include <math.h>

#include "kernels/cpu/cpu.h"

// Index of the largest of v[0..n) that is not taken, the lowest on ties; marks it taken.
// NaN never wins against a number, so a full list of NaN still yields valid indices.
static size_t take_best(const float *v, bool *taken, size_t n)
{
    size_t best = n;
    for (size_t i = 0; i < n; i++)
        if (!taken[i] && (best == n || v[i] > v[best] || (isnan(v[best]) && !isnan(v[i]))))
            best = i;
    taken[best] = true;
    return best;
}

// Rank of a group: its best choice, and for sigmoid gates the second best added.
static float group_rank(const struct kern_router_args *a, const float *choice, size_t size)
{
    float first = -INFINITY, second = -INFINITY;
    for (size_t i = 0; i < size; i++)
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    return a->kind == KERN_ROUTER_SIGMOID && size > 1 ? first + second : first;
}

static void mask_groups(const struct kern_router_args *a, float *choice)
{
    float rank[KERN_EXPERTS_MAX];
    bool kept[KERN_EXPERTS_MAX] = {false};
    size_t size = a->experts / a->groups;
    for (size_t g = 0; g < a->groups; g++)
        rank[g] = group_rank(a, choice + g * size, size);
    for (size_t i = 0; i < a->topk_groups; i++)
        take_best(rank, kept, a->groups);
    for (size_t e = 0; e < a->experts; e++)
        if (!kept[e / size])
            choice[e] = a->kind == KERN_ROUTER_SIGMOID ? -INFINITY : 0;
}

void router_select(const struct kern_router_args *a, const float *score, int32_t *ids,
                   float *weights)
{
    const float *bias = a->bias ? a->bias->p : NULL;
    float choice[KERN_EXPERTS_MAX], sum = 0;
    bool taken[KERN_EXPERTS_MAX] = {false};
    for (size_t e = 0; e < a->experts; e++)
        choice[e] = bias ? score[e] + bias[e] : score[e];
    if (a->groups > 1)
        mask_groups(a, choice);
    for (size_t j = 0; j < a->topk; j++) {
        size_t e = take_best(choice, taken, a->experts);
        ids[j] = (int32_t)e;
        weights[j] = a->kind == KERN_ROUTER_SIGMOID ? score[e] : choice[e];
        sum += weights[j];
    }
    bool scaled = a->kind == KERN_ROUTER_SIGMOID || !a->norm;
    for (size_t j = 0; j < a->topk; j++) {
        if (a->norm)
            weights[j] /= sum + 1e-20f;
        if (scaled)
            weights[j] *= a->scale;
    }
    for (size_t j = 0; j < a->always; j++) {
        ids[a->topk + j] = (int32_t)(a->experts + j);
        weights[a->topk + j] = 1;
    }
}
