// Elements of rows that are f32 or bf16: the branch is the same for all threads of a launch.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/cuda.h"

static __device__ __forceinline__ float from_bf16(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}
static __device__ __forceinline__ uint16_t to_bf16(float v)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
static __device__ __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    return (uint32_t)to_bf16(lo) | (uint32_t)to_bf16(hi) << 16;
}
static __device__ __forceinline__ float row_get(const struct cuda_rows &r, size_t row, size_t c)
{
    size_t at = row * r.stride + c;
    return r.bf16 ? from_bf16(((const uint16_t *)r.p)[at]) : ((const float *)r.p)[at];
}
static __device__ __forceinline__ void row_set(const struct cuda_rows &r, size_t row, size_t c,
                                               float v)
{
    size_t at = row * r.stride + c;
    if (r.bf16)
        ((uint16_t *)r.p)[at] = to_bf16(v);
    else
        ((float *)r.p)[at] = v;
}
