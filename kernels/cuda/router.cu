// router: a warp per row. Scores and choices lie in shared memory; every choice is an argmax over
// the warp, ties to the lower index and numbers before NaN, as kernels/cpu/router_select.c.
#include "kernels/cuda/launch.cuh"

struct router {
    size_t experts, topk, always, groups, topk_groups;
    bool sigmoid, norm;
    float scale;
    struct cuda_rows logits;
    const float *bias;
    int32_t *ids;
    float *weights;
};

static __device__ __forceinline__ bool wins(float v, int i, float other, int other_i)
{
    if (isnan(v) != isnan(other))
        return isnan(other);
    if (v != other && !isnan(v))
        return v > other;
    return i < other_i;
}

// Index of the best of v[0..n) that is not taken; marks it taken.
static __device__ int take_best(const float *v, bool *taken, int n)
{
    int best = INT32_MAX;
    float value = NAN;
    for (int i = threadIdx.x; i < n; i += 32)
        if (!taken[i] && (best == INT32_MAX || wins(v[i], i, value, best))) {
            best = i;
            value = v[i];
        }
    for (int d = 16; d; d /= 2) {
        float v2 = __shfl_xor_sync(~0u, value, d);
        int i2 = __shfl_xor_sync(~0u, best, d);
        if (i2 != INT32_MAX && (best == INT32_MAX || wins(v2, i2, value, best))) {
            best = i2;
            value = v2;
        }
    }
    __syncwarp();
    if (threadIdx.x == 0)
        taken[best] = true;
    __syncwarp();
    return best;
}

static __device__ float group_rank(const router &a, const float *choice, int size)
{
    float first = -INFINITY, second = -INFINITY;
    for (int i = 0; i < size; i++)
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    return a.sigmoid && size > 1 ? first + second : first;
}

static __device__ void mask_groups(const router &a, float *choice, float *rank, bool *kept)
{
    int size = a.experts / a.groups;
    for (int g = threadIdx.x; g < a.groups; g += 32) {
        rank[g] = group_rank(a, choice + g * size, size);
        kept[g] = false;
    }
    __syncwarp();
    for (int i = 0; i < a.topk_groups; i++)
        take_best(rank, kept, a.groups);
    for (int e = threadIdx.x; e < a.experts; e += 32)
        if (!kept[e / size])
            choice[e] = a.sigmoid ? -INFINITY : 0;
    __syncwarp();
}

static __device__ void scores(const router &a, const float *logit, float *score)
{
    float max = -INFINITY, sum = 0;
    for (int e = threadIdx.x; e < a.experts; e += 32)
        max = fmaxf(max, logit[e]);
    for (int d = 16; d; d /= 2)
        max = fmaxf(max, __shfl_xor_sync(~0u, max, d));
    for (int e = threadIdx.x; e < a.experts; e += 32) {
        score[e] = a.sigmoid ? 1 / (1 + expf(-logit[e])) : expf(logit[e] - max);
        sum += score[e];
    }
    for (int d = 16; d; d /= 2)
        sum += __shfl_xor_sync(~0u, sum, d);
    for (int e = threadIdx.x; e < a.experts && !a.sigmoid; e += 32)
        score[e] /= sum;
}

static __global__ void __launch_bounds__(32) router_row(const router a)
{
    __shared__ float score[KERN_EXPERTS_MAX], choice[KERN_EXPERTS_MAX], rank[KERN_EXPERTS_MAX];
    __shared__ bool taken[KERN_EXPERTS_MAX], kept[KERN_EXPERTS_MAX];
    size_t row = blockIdx.x;
    pdl_take_over();
    scores(a, (const float *)a.logits.p + row * a.logits.stride, score);
    for (int e = threadIdx.x; e < a.experts; e += 32) {
        choice[e] = a.bias ? score[e] + a.bias[e] : score[e];
        taken[e] = false;
    }
    __syncwarp();
    if (a.groups > 1)
        mask_groups(a, choice, rank, kept);
    int32_t *ids = a.ids + row * (a.topk + a.always);
    float *weights = a.weights + row * (a.topk + a.always), sum = 0;
    for (int j = 0; j < a.topk; j++) {
        int e = take_best(choice, taken, a.experts);
        float w = a.sigmoid ? score[e] : choice[e];
        sum += w;
        if (threadIdx.x == 0) {
            ids[j] = e;
            weights[j] = w;
        }
    }
    __syncwarp();
    for (int j = threadIdx.x; j < a.topk; j += 32) {
        float w = weights[j];
        if (a.norm)
            w /= sum + 1e-20f;
        if (a.sigmoid || !a.norm)
            w *= a.scale;
        weights[j] = w;
    }
    for (int j = threadIdx.x; j < a.always; j += 32) {
        ids[a.topk + j] = a.experts + j;
        weights[a.topk + j] = 1;
    }
}

void cuda_router(struct kern *k, const struct kern_router_args *a)
{
    struct router s = {a->experts,
                       a->topk,
                       a->always,
                       a->groups,
                       a->topk_groups,
                       a->kind == KERN_ROUTER_SIGMOID,
                       a->norm,
                       a->scale,
                       cuda_rows(&a->logits),
                       a->bias ? (const float *)a->bias->p : NULL,
                       (int32_t *)a->ids->p,
                       (float *)a->weights->p};
    cuda_launch(cuda_of(k), "router", router_row, (unsigned)a->n, 32, 0, s);
}
