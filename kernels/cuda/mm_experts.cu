// Around the products by expert (mm.h): sorting many (token, choice) pairs, and adding the products
// of a token's choices where the kernel that made them did not.
#include "kernels/cuda/mm.h"
#include "kernels/cuda/mm_launch.cuh"
#include "kernels/cuda/mm_ptx.cuh"

enum { PLAN_THREADS = 1024, COMBINE_THREADS = 128, COMBINE_COLS = 4 };

// ---- plan

struct plan_job {
    const int32_t *ids;
    int n, topk, always, experts;
    int32_t *first, *pairs;
};

// One block. Every thread owns one or two experts while rows are counted into first rows.
static __global__ void __launch_bounds__(PLAN_THREADS) plan_pairs(const plan_job p)
{
    __shared__ int at[2 * PLAN_THREADS], warp_sum[32];
    pdl_wait();
    if (threadIdx.x == 0)
        pdl_launch();
    const int t = threadIdx.x, all = p.experts + p.always, n = p.n * p.topk;
    const int choices = p.topk + p.always;
    at[2 * t] = at[2 * t + 1] = 0;
    __syncthreads();
    for (int i = t; i < n; i += PLAN_THREADS) {
        int e = p.ids[i];
        if ((unsigned)e < (unsigned)p.experts)
            atomicAdd(&at[e], 1);
    }
    __syncthreads();
    for (int e = p.experts + t; e < all; e += PLAN_THREADS)
        at[e] = p.n;
    __syncthreads();
    int a = at[2 * t], b = at[2 * t + 1], sum = a + b;
    for (int d = 1; d < 32; d *= 2) {
        int v = __shfl_up_sync(~0u, sum, d);
        sum += (t & 31) >= d ? v : 0;
    }
    if ((t & 31) == 31)
        warp_sum[t / 32] = sum;
    __syncthreads();
    int before = sum - a - b;
    for (int w = 0; w < t / 32; w++)
        before += warp_sum[w];
    at[2 * t] = before;
    at[2 * t + 1] = before + a;
    for (int h = 0; h < 2; h++)
        if (2 * t + h <= all)
            p.first[2 * t + h] = h ? before + a : before;
    __syncthreads();
    for (int i = t; i < n; i += PLAN_THREADS) {
        int e = p.ids[i];
        if ((unsigned)e < (unsigned)p.experts)
            p.pairs[atomicAdd(&at[e], 1)] = i / p.topk * choices + i % p.topk;
    }
    for (int i = t; i < p.n * p.always; i += PLAN_THREADS)
        p.pairs[at[p.experts + i / p.n] + i % p.n] = i % p.n * choices + p.topk + i / p.n;
}
static_assert(2 * PLAN_THREADS > CUDA_EXPERTS_MAX, "a thread owns two experts");

cudaError_t cuda_experts_plan(cudaStream_t s, const struct cuda_experts *e,
                              struct cuda_experts_rows *rows_out)
{
    if (!e->plan || e->n < 0 || e->n > CUDA_EXPERTS_TOKENS || e->topk < 1 || e->always < 0 ||
        e->experts + e->always > CUDA_EXPERTS_MAX || !e->ids)
        return cudaErrorInvalidValue;
    int32_t *first = (int32_t *)e->plan, *pairs = first + e->experts + e->always + 1;
    rows_out->first = first;
    rows_out->pairs = pairs;
    plan_job p = {e->ids, e->n, e->topk, e->always, e->experts, first, pairs};
    return mm_launch(s, {dim3(1), PLAN_THREADS, 0}, plan_pairs, p);
}

// ---- combine

struct combine_job {
    const int32_t *ids;
    const float *weights, *products, *shared, *residual;
    float *out;
    int topk, always, rows;
    size_t shared_ld, residual_ld, out_ld;
};

static __global__ void __launch_bounds__(COMBINE_THREADS) combine_choices(const combine_job c)
{
    __shared__ int order[64];
    __shared__ float weight[64];
    pdl_wait();
    if (threadIdx.x == 0)
        pdl_launch();
    const size_t token = blockIdx.y;
    const int choices = c.topk + c.always;
    const int32_t *ids = c.ids + token * c.topk;
    if ((int)threadIdx.x < choices) {
        int j = threadIdx.x, rank = j;
        float w = 1;
        if (j < c.topk) {
            rank = 0;
            w = c.weights[token * c.topk + j];
            for (int k = 0; k < c.topk; k++)
                rank += ids[k] < ids[j];
        }
        order[rank] = j;
        weight[rank] = w;
    }
    __syncthreads();
    for (int k = 0; k < COMBINE_COLS; k++) {
        int r = (blockIdx.x * COMBINE_COLS + k) * COMBINE_THREADS + threadIdx.x;
        if (r >= c.rows)
            break;
        float sum = 0;
        for (int j = 0; j < choices; j++)
            sum = fmaf(weight[j], c.products[(token * choices + order[j]) * c.rows + r], sum);
        if (c.shared)
            sum = __fadd_rn(sum, c.shared[token * c.shared_ld + r]);
        if (c.residual)
            sum = __fadd_rn(sum, c.residual[token * c.residual_ld + r]);
        c.out[token * c.out_ld + r] = sum;
    }
}

size_t cuda_experts_products_bytes(const struct cuda_experts_down *m)
{
    if (m->e.n <= CUDA_EXPERTS_FEW && !cuda_experts_take_many(&m->e))
        return 0;
    return (size_t)m->e.n * (m->e.topk + m->e.always) * m->w.rows * sizeof(float);
}

cudaError_t cuda_experts_combine(cudaStream_t s, const struct cuda_experts_down *m)
{
    const struct cuda_experts *e = &m->e;
    if (e->n == 0)
        return cudaSuccess;
    if (!m->products || !m->out || !e->ids || !e->weights || e->topk < 1 ||
        e->topk + e->always > 64 || e->n < 0)
        return cudaErrorInvalidValue;
    const int run = COMBINE_THREADS * COMBINE_COLS;
    combine_job c = {e->ids,  e->weights, m->products, m->shared,    m->residual,    m->out,
                     e->topk, e->always,  m->w.rows,   m->shared_ld, m->residual_ld, m->out_ld};
    for (int done = 0, n; done < e->n; done += n) { // the grid's y is limited
        n = e->n - done < 65535 ? e->n - done : 65535;
        dim3 blocks((unsigned)((m->w.rows + run - 1) / run), (unsigned)n);
        cudaError_t err = mm_launch(s, {blocks, COMBINE_THREADS, 0}, combine_choices, c);
        if (err != cudaSuccess)
            return err;
        c.ids += (size_t)n * e->topk;
        c.weights += (size_t)n * e->topk;
        c.products += (size_t)n * (e->topk + e->always) * m->w.rows;
        c.shared += c.shared ? n * c.shared_ld : 0;
        c.residual += c.residual ? n * c.residual_ld : 0;
        c.out += n * c.out_ld;
    }
    return cudaSuccess;
}
