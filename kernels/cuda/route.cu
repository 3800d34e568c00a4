// A row's way to its experts in one launch: rmsnorm, the router's product, and the choice.
//
// A block makes 16 experts' logits for 8 rows. Its eight warps each take a run of columns, as
// fixed by the width alone, and are added in order; a normalised element goes into the tensor cores
// as two bf16 (its rounding, and what that left), so the logits are as good as from float32. The
// block that finishes last for its rows chooses, a warp per row, everything in registers. The rows'
// normalised values are written by all blocks, a part each.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/norm.cuh"

enum { EXPERTS = 16, ROWS = 8, STEP = 16, LANE_EXPERTS = 8, EXPERTS_MAX = 32 * LANE_EXPERTS };
enum { GROUPS_MAX = 32 };

struct route {
    const float *x, *gamma;
    uint16_t *h;
    size_t x_stride, h_stride;
    const uint16_t *w;
    size_t ld;
    float *logits;
    size_t logits_stride;
    const float *bias;
    int32_t *ids;
    float *weights;
    int *done; // [groups of rows] blocks that have finished; zero before and after
    int n, dim, experts, topk, always, groups, topk_groups;
    bool sigmoid, norm;
    float eps, scale;
};

// ---- the choice: lane l holds experts l, l + 32, ...

// Whether (v, i) is before (w, j): the larger, a number before NaN, then the lower index.
static __device__ __forceinline__ bool before(float v, int i, float w, int j)
{
    if (isnan(v) != isnan(w))
        return isnan(w);
    return v != w && !isnan(v) ? v > w : i < j;
}

// The best over the warp of each lane's (v, i); i INT32_MAX: none.
static __device__ __forceinline__ int warp_best(float v, int i)
{
#pragma unroll
    for (int d = 16; d; d /= 2) {
        float w = __shfl_xor_sync(~0u, v, d);
        int j = __shfl_xor_sync(~0u, i, d);
        if (j != INT32_MAX && (i == INT32_MAX || before(w, j, v, i))) {
            v = w;
            i = j;
        }
    }
    return i;
}

// Rank of a group by its best choice, and for sigmoid gates the second best added.
static __device__ __forceinline__ float group_rank(const float *choice, int size, bool sigmoid)
{
    float first = -INFINITY, second = -INFINITY;
    for (int i = 0; i < size; i++)
        if (choice[i] > first) {
            second = first;
            first = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    return sigmoid && size > 1 ? first + second : first;
}

// Choices of groups that are not kept become what can never (sigmoid) or only last (softmax) win.
static __device__ void mask_groups(const route &a, float choice[LANE_EXPERTS], float *shared)
{
    int lane = threadIdx.x % 32, size = a.experts / a.groups;
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; i++)
        shared[lane + 32 * i] = choice[i];
    __syncwarp();
    float rank = lane < a.groups ? group_rank(shared + lane * size, size, a.sigmoid) : 0;
    unsigned kept = 0;
    for (int k = 0; k < a.topk_groups; k++) {
        bool here = lane < a.groups && !(kept >> lane & 1);
        kept |= 1u << warp_best(rank, here ? lane : INT32_MAX);
    }
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; i++) {
        int e = lane + 32 * i;
        if (e < a.experts && !(kept >> e / size & 1))
            choice[i] = a.sigmoid ? -INFINITY : 0;
    }
}

static __device__ void choose(const route &a, size_t row, float *shared)
{
    int lane = threadIdx.x % 32;
    float score[LANE_EXPERTS], choice[LANE_EXPERTS], max = -INFINITY, sum = 0;
    const float *logits = a.logits + row * a.logits_stride;
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; i++) {
        int e = lane + 32 * i;
        score[i] = e < a.experts ? __ldcg(logits + e) : -INFINITY;
        max = fmaxf(max, score[i]);
    }
#pragma unroll
    for (int d = 16; d; d /= 2)
        max = fmaxf(max, __shfl_xor_sync(~0u, max, d));
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; i++) {
        score[i] = a.sigmoid ? 1 / (1 + expf(-score[i])) : expf(score[i] - max);
        sum += lane + 32 * i < a.experts ? score[i] : 0;
    }
#pragma unroll
    for (int d = 16; d; d /= 2)
        sum += __shfl_xor_sync(~0u, sum, d);
    unsigned taken = 0;
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; i++) {
        int e = lane + 32 * i;
        if (!a.sigmoid)
            score[i] /= sum;
        choice[i] = a.bias && e < a.experts ? score[i] + a.bias[e] : score[i];
        taken |= (unsigned)(e >= a.experts) << i;
    }
    if (a.groups > 1)
        mask_groups(a, choice, shared);
    const size_t at_row = row * (a.topk + a.always);
    float mine = 0; // lane j keeps the weight of choice j
    sum = 0;
    for (int j = 0; j < a.topk; j++) {
        float v = NAN;
        int at = -1;
#pragma unroll
        for (int i = 0; i < LANE_EXPERTS; i++)
            if (!(taken >> i & 1) && (at < 0 || before(choice[i], i, v, at))) {
                at = i;
                v = choice[i];
            }
        int best = warp_best(v, at < 0 ? INT32_MAX : lane + 32 * at);
        float weight = 0;
#pragma unroll
        for (int i = 0; i < LANE_EXPERTS; i++)
            if (best == lane + 32 * i) {
                taken |= 1u << i;
                weight = a.sigmoid ? score[i] : choice[i];
            }
        weight = __shfl_sync(~0u, weight, best % 32);
        sum += weight;
        if (lane == j)
            mine = weight;
        if (lane == 0)
            a.ids[at_row + j] = best;
    }
    if (a.norm)
        mine /= sum + 1e-20f;
    if (a.sigmoid || !a.norm)
        mine *= a.scale;
    if (lane < a.topk) {
        a.weights[at_row + lane] = mine;
    } else if (lane < a.topk + a.always) {
        a.ids[at_row + lane] = a.experts + lane - a.topk;
        a.weights[at_row + lane] = 1;
    }
}

// ---- the product

// rmsnorm of `n` rows from row0 on: the factors; this block's part of the values to h.
static __device__ __forceinline__ void normalise(const route &a, size_t row0, int n, float *sums,
                                                 float *factor)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int fours = (a.dim / 4 - (int)threadIdx.x + NORM_THREADS - 1) / NORM_THREADS;
    for (int i = 0; i < n; i++) {
        const float4 *x = (const float4 *)(a.x + (row0 + i) * a.x_stride) + threadIdx.x;
        float4 v[NORM_FOURS];
#pragma unroll
        for (int j = 0; j < NORM_FOURS; j++)
            if (j < fours)
                v[j] = x[j * NORM_THREADS];
        float sum = norm_warp_sum(v, fours);
        if (lane == 0)
            sums[warp * ROWS + i] = sum;
    }
    __syncthreads();
    if (threadIdx.x < n)
        factor[threadIdx.x] = norm_factor(sums + threadIdx.x, ROWS, a.dim, a.eps);
    __syncthreads();
    int quads = a.dim / 4, part = (quads + gridDim.x - 1) / gridDim.x, from = blockIdx.x * part;
    int to = min(quads, from + part);
    for (int i = 0; i < n; i++)
        for (int c = from + threadIdx.x; c < to; c += NORM_THREADS) {
            float4 v = ((const float4 *)(a.x + (row0 + i) * a.x_stride))[c];
            float4 g = ((const float4 *)a.gamma)[c];
            float r = factor[i];
            ((uint2 *)(a.h + (row0 + i) * a.h_stride))[c] = make_uint2(
                pack_bf16(v.x * r * g.x, v.y * r * g.y), pack_bf16(v.z * r * g.z, v.w * r * g.w));
        }
}

static __device__ __forceinline__ void split(float a, float b, uint32_t *hi, uint32_t *lo)
{
    *hi = pack_bf16(a, b);
    *lo = pack_bf16(a - __uint_as_float(*hi << 16), b - __uint_as_float(*hi & 0xffff0000));
}

// Logits of 16 experts for 8 rows over this warp's columns.
static __device__ __forceinline__ void multiply(const route &a, size_t row0, int n,
                                                const float *factor, int from, int to, float c[4])
{
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int e = blockIdx.x * EXPERTS + g;
    const uint16_t *w0 = a.w + (size_t)min(e, a.experts - 1) * a.ld;
    const uint16_t *w1 = a.w + (size_t)min(e + 8, a.experts - 1) * a.ld;
    const float *x = a.x + (row0 + min(g, n - 1)) * a.x_stride;
    float r = g < n ? factor[g] : 0;
#pragma unroll 4
    for (int k = from + 4 * t; k < to; k += STEP) { // dim is a multiple of 16
        uint2 lo = *(const uint2 *)(w0 + k), hi = *(const uint2 *)(w1 + k);
        uint4 w = make_uint4(lo.x, hi.x, lo.y, hi.y);
        float4 v = *(const float4 *)(x + k), gamma = *(const float4 *)(a.gamma + k);
        uint2 top, rest;
        split(v.x * r * gamma.x, v.y * r * gamma.y, &top.x, &rest.x);
        split(v.z * r * gamma.z, v.w * r * gamma.w, &top.y, &rest.y);
        mma_bf16(c, w, top.x, top.y);
        mma_bf16(c, w, rest.x, rest.y);
    }
}

// This block's weights on their way to L2 while the kernel before still runs: nobody read them since
// the step before.
static __device__ __forceinline__ void fetch_weights(const route &a)
{
    const int lines = (a.dim * 2 + 127) / 128;
    for (int i = threadIdx.x; i < EXPERTS * lines; i += NORM_THREADS) {
        int e = min((int)blockIdx.x * EXPERTS + i / lines, a.experts - 1);
        const uint16_t *p = a.w + (size_t)e * a.ld + i % lines * 64;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
    }
}

static __global__ void __launch_bounds__(NORM_THREADS) route_rows(const __grid_constant__ route a)
{
    __shared__ float sums[NORM_WARPS * ROWS], factor[ROWS];
    __shared__ float part[NORM_WARPS][EXPERTS * ROWS];
    __shared__ float scratch[NORM_WARPS][EXPERTS_MAX];
    __shared__ bool last;
    size_t row0 = blockIdx.y * (size_t)ROWS;
    int n = min((int)ROWS, a.n - (int)row0), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (blockIdx.y == 0)
        fetch_weights(a);
    pdl_take_over();
    normalise(a, row0, n, sums, factor);
    int run = (a.dim / STEP + NORM_WARPS - 1) / NORM_WARPS * STEP;
    float c[4] = {};
    multiply(a, row0, n, factor, warp * run, min(a.dim, (warp + 1) * run), c);
#pragma unroll
    for (int i = 0; i < 4; i++)
        part[warp][(2 * (lane % 4) + i % 2) * EXPERTS + lane / 4 + 8 * (i / 2)] = c[i];
    __syncthreads();
    int i = threadIdx.x / EXPERTS, e = blockIdx.x * EXPERTS + threadIdx.x % EXPERTS;
    if (i < n && e < a.experts) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < NORM_WARPS; w++)
            sum += part[w][threadIdx.x];
        a.logits[(row0 + i) * a.logits_stride + e] = sum;
        __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicAdd(&a.done[blockIdx.y], 1) == (int)gridDim.x - 1;
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    if (threadIdx.x == 0)
        a.done[blockIdx.y] = 0;
    if (warp < n)
        choose(a, row0 + warp, scratch[warp]);
}

extern "C" void cuda_route(struct kern *k, const struct kern_route_args *args)
{
    struct cuda *c = cuda_of(k);
    const struct kern_router_args *r = &args->router;
    struct cuda_rows x = cuda_rows(&args->x), h = cuda_rows(&args->h);
    bool fast = norm_is_fast(x, h, args->dim) && args->dim % STEP == 0 &&
                args->w->shape.dtype == KERN_BF16 && r->experts <= EXPERTS_MAX &&
                r->topk + r->always <= 32 && r->groups <= GROUPS_MAX && r->n <= CUDA_ROUTE_ROWS &&
                ((uintptr_t)args->gamma->p & 15) == 0;
    if (!fast) {
        kern_composed_route(k, args);
        return;
    }
    struct cuda_rows logits = cuda_rows(&r->logits);
    route s = {};
    s.x = (const float *)x.p;
    s.gamma = (const float *)args->gamma->p;
    s.h = (uint16_t *)h.p;
    s.x_stride = x.stride;
    s.h_stride = h.stride;
    s.w = (const uint16_t *)args->w->p;
    s.ld = args->w->ld;
    s.logits = (float *)logits.p;
    s.logits_stride = logits.stride;
    s.bias = r->bias ? (const float *)r->bias->p : NULL;
    s.ids = (int32_t *)r->ids->p;
    s.weights = (float *)r->weights->p;
    s.done = c->zeros;
    s.n = (int)r->n;
    s.dim = (int)args->dim;
    s.experts = (int)r->experts;
    s.topk = (int)r->topk;
    s.always = (int)r->always;
    s.groups = (int)r->groups;
    s.topk_groups = (int)r->topk_groups;
    s.sigmoid = r->kind == KERN_ROUTER_SIGMOID;
    s.norm = r->norm;
    s.eps = args->eps;
    s.scale = r->scale;
    dim3 grid((unsigned)((r->experts + EXPERTS - 1) / EXPERTS),
              (unsigned)((r->n + ROWS - 1) / ROWS));
    cuda_launch(c, "route", route_rows, grid, NORM_THREADS, 0, s);
}
