// Weights without a checkpoint: base/noise.h's numbers, made on the device. One thread makes the
// eight columns of a Philox block and stores them as one vector where the row allows it. The limit
// is memory: Philox is some 60 integer operations for 8 to 16 bytes.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/cuda.h"

enum { GROUP = 8, THREADS = 256 };

struct target {
    void *p; // row 0
    size_t rows, cols, row_bytes;
    uint64_t key, first;
    float mean, amplitude;
};

__device__ static void philox(uint64_t key, uint64_t lo, uint64_t hi, uint32_t c[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    c[0] = (uint32_t)lo, c[1] = (uint32_t)(lo >> 32);
    c[2] = (uint32_t)hi, c[3] = (uint32_t)(hi >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t l0 = 0xD2511F53u * c[0], h0 = __umulhi(0xD2511F53u, c[0]);
        uint32_t l1 = 0xCD9E8D57u * c[2], h1 = __umulhi(0xCD9E8D57u, c[2]);
        c[0] = h1 ^ c[1] ^ k0;
        c[2] = h0 ^ c[3] ^ k1;
        c[1] = l1;
        c[3] = l0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

template <typename T> __device__ static T make(const target &t, float u);
template <> __device__ float make(const target &t, float u)
{
    return __fmaf_rn(t.amplitude, u, t.mean);
}
template <> __device__ __nv_bfloat16 make(const target &t, float u)
{
    return __float2bfloat16_rn(__fmaf_rn(t.amplitude, u, t.mean));
}
template <> __device__ __nv_fp8_e4m3 make(const target &t, float u)
{
    return __nv_fp8_e4m3(__fmul_rn(448.0f, u)); // to nearest even, saturating
}
template <> __device__ int8_t make(const target &t, float u)
{
    return (int8_t)__float2int_rn(__fmul_rn(127.0f, u));
}

template <typename T> __global__ void __launch_bounds__(THREADS) noise(const target t)
{
    const size_t groups = (t.cols + GROUP - 1) / GROUP;
    const size_t all = groups * t.rows;
    for (size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x; at < all;
         at += (size_t)gridDim.x * THREADS) {
        const size_t row = at / groups, g = at % groups;
        uint32_t w[4];
        philox(t.key, g, t.first + row, w);
        alignas(8) T v[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            float h = (float)(w[i / 2] >> 16 * (i % 2) & 0xffff);
            v[i] = make<T>(t, __fmul_rn(__fadd_rn(h, -32767.5f), 0x1p-15f));
        }
        T *to = (T *)((char *)t.p + row * t.row_bytes) + g * GROUP;
        if ((g + 1) * GROUP <= t.cols && ((uintptr_t)to & 7) == 0) {
#pragma unroll
            for (int i = 0; i < (int)sizeof(T); i++)
                ((uint2 *)to)[i] = ((const uint2 *)v)[i];
        } else {
#pragma unroll
            for (int i = 0; i < GROUP; i++)
                if (g * GROUP + i < t.cols)
                    to[i] = v[i];
        }
    }
}

template <typename T> static void launch(struct cuda *c, const target &t)
{
    noise<T><<<c->sms * 8, THREADS, 0, c->stream>>>(t);
    cuda_launched(c, "noise");
}

void cuda_noise(struct cuda *c, const struct cuda_noise *n)
{
    const target t = {n->p,   n->rows,  n->cols, n->row_bytes,
                      n->key, n->first, n->mean, n->amplitude};
    switch (n->dtype) {
    case KERN_F32:
        return launch<float>(c, t);
    case KERN_BF16:
        return launch<__nv_bfloat16>(c, t);
    case KERN_FP8:
        return launch<__nv_fp8_e4m3>(c, t);
    case KERN_INT8:
        return launch<int8_t>(c, t);
    case KERN_F16:
    case KERN_I32:
        break;
    }
    assert(!"noise has no such dtype");
}
