// rmsnorm: whole rows of the residual stream to bf16 in one pass; every other form (heads, bf16
// rows, odd widths) by a plain kernel, a block per run. Which runs depends on the shape alone.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/norm.cuh"

struct row_norm {
    struct cuda_rows x, out;
    const float *gamma;
    int dim;
    float eps;
};

static __global__ void __launch_bounds__(NORM_THREADS) norm_row(const __grid_constant__ row_norm a)
{
    __shared__ float sums[NORM_WARPS];
    float4 v[NORM_FOURS], g[NORM_FOURS];
    int fours = (a.dim / 4 - (int)threadIdx.x + NORM_THREADS - 1) / NORM_THREADS;
    const float4 *gamma = (const float4 *)a.gamma + threadIdx.x;
#pragma unroll
    for (int i = 0; i < NORM_FOURS; i++)
        if (i < fours)
            g[i] = gamma[i * NORM_THREADS];
    pdl_take_over();
    const float4 *x =
        (const float4 *)((const float *)a.x.p + blockIdx.x * a.x.stride) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < NORM_FOURS; i++)
        if (i < fours)
            v[i] = x[i * NORM_THREADS];
    float sum = norm_warp_sum(v, fours);
    if (threadIdx.x % 32 == 0)
        sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float r = norm_factor(sums, 1, a.dim, a.eps);
    uint2 *out = (uint2 *)((uint16_t *)a.out.p + blockIdx.x * a.out.stride) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < NORM_FOURS; i++)
        if (i < fours)
            out[i * NORM_THREADS] = make_uint2(pack_bf16(v[i].x * r * g[i].x, v[i].y * r * g[i].y),
                                               pack_bf16(v[i].z * r * g[i].z, v[i].w * r * g[i].w));
}

// ---- any form

static __device__ float block_sum(float v)
{
    __shared__ float part[32];
    for (int d = 16; d; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : 0;
    for (int d = 16; d; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    __syncthreads(); // part may be written again
    return v;
}

struct norm_runs {
    size_t n, dim, x_head, out_head;
    struct cuda_rows x, out;
    const float *gamma;
    float eps;
};
static __global__ void norm_any(const __grid_constant__ norm_runs a)
{
    size_t h = blockIdx.x;
    pdl_take_over();
    for (size_t i = blockIdx.y; i < a.n; i += gridDim.y) {
        float sum = 0;
        for (size_t c = threadIdx.x; c < a.dim; c += blockDim.x) {
            float x = row_get(a.x, i, h * a.x_head + c);
            sum = fmaf(x, x, sum);
        }
        float r = 1 / sqrtf(block_sum(sum) / (float)a.dim + a.eps);
        for (size_t c = threadIdx.x; c < a.dim; c += blockDim.x)
            row_set(a.out, i, h * a.out_head + c,
                    row_get(a.x, i, h * a.x_head + c) * r * a.gamma[c]);
    }
}

extern "C" void cuda_rmsnorm(struct kern *k, const struct kern_rmsnorm_args *a)
{
    struct cuda *c = cuda_of(k);
    struct cuda_rows x = cuda_rows(&a->x), out = cuda_rows(&a->out);
    const float *gamma = (const float *)a->gamma->p;
    if (a->heads == 1 && norm_is_fast(x, out, a->dim) && ((uintptr_t)gamma & 15) == 0) {
        row_norm s = {x, out, gamma, (int)a->dim, a->eps};
        cuda_launch(c, "rmsnorm", norm_row, dim3((unsigned)a->n), NORM_THREADS, 0, s);
        return;
    }
    norm_runs s = {a->n, a->dim, a->x_head_stride, a->out_head_stride, x, out, gamma, a->eps};
    unsigned threads = a->dim <= 128 ? 64 : a->dim <= 1024 ? 256 : 1024;
    dim3 grid((unsigned)a->heads, (unsigned)(a->n < 65535 ? a->n : 65535));
    cuda_launch(c, "rmsnorm", norm_any, grid, threads, 0, s);
}
