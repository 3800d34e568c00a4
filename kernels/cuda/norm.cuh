// The order in which CUDA sums a row's squares, shared by all kernels that normalise whole rows:
// 256 threads take four neighbouring elements each, 1024 apart; a thread adds its own in order, a
// warp by halves, and the eight warps in order. It depends on the row's width alone.
#pragma once

#include "kernels/cuda/rows.cuh"

enum { NORM_THREADS = 256, NORM_WARPS = NORM_THREADS / 32, NORM_DIM_MAX = 8192 };
enum { NORM_FOURS = NORM_DIM_MAX / NORM_THREADS / 4 }; // of a thread, at most

// Rows that the kernels below take: 16-byte loads, everything in registers.
static inline bool norm_is_fast(const struct cuda_rows &x, const struct cuda_rows &out, size_t dim)
{
    return !x.bf16 && out.bf16 && dim % 4 == 0 && dim <= NORM_DIM_MAX && x.stride % 4 == 0 &&
           out.stride % 4 == 0 && ((uintptr_t)x.p & 15) == 0 && ((uintptr_t)out.p & 7) == 0;
}

// Sum of squares of the elements that this thread holds, added over the warp.
static __device__ __forceinline__ float norm_warp_sum(const float4 *v, int fours)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < NORM_FOURS; i++)
        if (i < fours) {
            sum = fmaf(v[i].x, v[i].x, sum);
            sum = fmaf(v[i].y, v[i].y, sum);
            sum = fmaf(v[i].z, v[i].z, sum);
            sum = fmaf(v[i].w, v[i].w, sum);
        }
#pragma unroll
    for (int d = 16; d; d /= 2)
        sum += __shfl_xor_sync(~0u, sum, d);
    return sum;
}

// What every element is multiplied with, from the sums of the warps.
static __device__ __forceinline__ float norm_factor(const float *warp_sums, int stride, int dim,
                                                    float eps)
{
    float sum = 0;
#pragma unroll
    for (int w = 0; w < NORM_WARPS; w++)
        sum += warp_sums[w * stride];
    return 1 / sqrtf(sum / (float)dim + eps);
}
