// What every matrix product of the CUDA body must do by the same bits, whichever kernel it is in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <stdint.h>

static __device__ __forceinline__ float mm_silu(float x)
{
    return x / (1 + expf(-x));
}

static __device__ __forceinline__ float mm_gated(float gate, float up)
{
    return __fmul_rn(mm_silu(gate), up);
}

// Scale of a run of activations and the factor that quantizes it (mm.h, cuda_quantize).
struct mm_scale {
    float scale, factor;
};
static __device__ __forceinline__ mm_scale mm_scale_of(float amax, float most)
{
    // Runs of next to nothing would have an infinite factor: they count as zeros.
    mm_scale s = {0, 0};
    if (!(amax < 1e-30f))
        s = {__fdiv_rn(amax, most), __fdiv_rn(most, amax)};
    return s;
}
enum { MM_FP8_MOST = 448, MM_INT8_MOST = 127 };

static __device__ __forceinline__ uint16_t mm_to_fp8x2(float lo, float hi)
{
    return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
}

static __device__ __forceinline__ int8_t mm_to_int8(float x)
{
    return (int8_t)max(-127, min(127, __float2int_rn(x)));
}
