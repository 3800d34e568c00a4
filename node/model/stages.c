// The least pace is found by bisection over what a stage may hold; then layers are dealt out in
// order, each stage as near to its even share of what is left as the pace allows.
#include "node/model/stages.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/mem.h"

// Weights of a layer, in elements.
static double layer_weights(const struct model_config *c, int layer)
{
    const double hidden = c->hidden, heads = c->heads, q = heads * c->head_dim;
    double n = heads * c->v_dim * hidden;
    if (c->mla)
        n += (c->q_lora ? hidden * c->q_lora + c->q_lora * q : hidden * q) +
             hidden * (c->kv_lora + c->rope_dim) + heads * c->kv_lora * (c->nope_dim + c->v_dim);
    else
        n += hidden * (q + 2.0 * c->kv_heads * c->head_dim);
    if (model_layer_has_experts(c, layer))
        return n + hidden * c->moe.experts +
               3 * hidden * c->moe.intermediate * (c->moe.experts + c->moe.shared);
    return n + 3 * hidden * c->intermediate;
}

// Bytes that a step reads of each layer; of the last one with the head, which stays in 16 bits.
static double *layer_costs(const struct model_config *c)
{
    double *cost = mem_zalloc((size_t)c->layers, sizeof *cost);
    const double element = c->fp8_block[0] || c->int8 ? 1 : 2;
    for (int i = 0; i < c->layers; i++)
        cost[i] = element * layer_weights(c, i);
    cost[c->layers - 1] += 2.0 * c->vocab * c->hidden;
    return cost;
}

struct rest {
    const double *cost;
    int layers; // of the model
};

// Layers from `from` on fit into so many stages of at most `most`, one each at least.
static bool fits(const struct rest *r, int from, int stages, double most)
{
    if (r->layers - from < stages)
        return false;
    double sum = 0;
    int used = from < r->layers;
    for (int i = from; i < r->layers; i++) {
        if (r->cost[i] > most)
            return false;
        if (sum + r->cost[i] > most) {
            used++;
            sum = 0;
        }
        sum += r->cost[i];
    }
    return used <= stages;
}

static double least_pace(const struct rest *r, int stages)
{
    double low = 0, high = 0;
    for (int i = 0; i < r->layers; i++)
        high += r->cost[i];
    for (int i = 0; i < 64; i++) {
        double middle = low + (high - low) / 2;
        if (fits(r, 0, stages, middle))
            high = middle;
        else
            low = middle;
    }
    return high;
}

// How many layers the first of `stages` takes from `from` on.
static int take(const struct rest *r, int from, int stages, double pace)
{
    double left = 0, sum = r->cost[from];
    for (int i = from; i < r->layers; i++)
        left += r->cost[i];
    const double share = left / stages;
    int n = 1;
    while (r->layers - from - n > stages - 1 && sum + r->cost[from + n] <= pace) {
        double more = sum + r->cost[from + n];
        if (fits(r, from + n, stages - 1, pace) && fabs(more - share) > fabs(sum - share))
            break;
        sum = more;
        n++;
    }
    return n;
}

void model_stages(const struct model_config *c, int stages, int first[LIMIT_STAGES + 1])
{
    assert(stages >= 1 && stages <= LIMIT_STAGES && stages <= c->layers);
    double *cost = layer_costs(c);
    const struct rest r = {cost, c->layers};
    const double pace = least_pace(&r, stages);
    first[0] = 0;
    for (int s = 0; s < stages - 1; s++)
        first[s + 1] = first[s] + take(&r, first[s], stages - s, pace);
    first[stages] = c->layers;
    free(cost);
}
