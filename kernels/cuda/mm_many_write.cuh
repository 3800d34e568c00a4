// Of the many-row products (mm_many.cuh): from accumulators to rows in memory.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/mm_many_tiles.cuh"
#include "kernels/cuda/mm_shared.cuh"

namespace many
{

__device__ __forceinline__ uint32_t pack(float a, float b)
{
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *(const uint32_t *)&v;
}

__device__ __forceinline__ float as_float(float v)
{
    return v;
}
__device__ __forceinline__ float as_float(int bits)
{
    return __int_as_float(bits);
}
__device__ __forceinline__ void set_float(float &v, float to)
{
    v = to;
}
__device__ __forceinline__ void set_float(int &bits, float to)
{
    bits = __float_as_int(to);
}

// In place: int8's sums become floats (as bits) by their scales; bias is added.
template <class C, class T>
__device__ __forceinline__ void settle(const args &a, const tile &t, int row0, T *acc)
{
    const int lane = threadIdx.x % 32;
    float xs[2] = {1, 1};
    if (C::KIND == hopper::S8) {
        for (int i = 0; i < 2; i++) {
            const int r = t.x0 + min(row0 + lane / 4 + 8 * i, t.n - 1);
            xs[i] = a.xs[C::GATHER ? a.pairs[r] / a.x_div : r];
        }
    }
#pragma unroll
    for (int i = 0; i < C::BN / 2; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int r = i * 2 + lane % 4 * 2 + e; // row of B
            const bool up = C::GATED && r >= C::BN / 2;
            const int o = min(t.o0 + (up ? r - C::BN / 2 : r), a.rows - 1);
            const float bias = a.bias ? __ldg((up ? a.bias_up : a.bias) + o) : 0;
            if (C::KIND == hopper::S8) {
                const float ws = __ldg((up ? a.ws_up : a.ws) + t.s * a.ws_stack + o);
                const float v0 = acc[i + e] * (xs[0] * ws), v1 = acc[i + e + 2] * (xs[1] * ws);
                set_float(acc[i + e], a.bias ? v0 + bias : v0);
                set_float(acc[i + e + 2], a.bias ? v1 + bias : v1);
            } else {
                set_float(acc[i + e], as_float(acc[i + e]) + bias);
                set_float(acc[i + e + 2], as_float(acc[i + e + 2]) + bias);
            }
        }
    }
}

// `n` elements of each of the 16 staged rows that lanes 0 .. 15 say are valid, to where they say.
template <int SIZE>
__device__ __forceinline__ void write_elements(char *to, uint32_t stage, bool valid, int n)
{
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int r = 0; r < 16; r++) {
        char *row = (char *)__shfl_sync(~0u, (unsigned long long)to, r);
        if (!__shfl_sync(~0u, valid, r))
            continue;
#pragma unroll 1
        for (int i = lane; i < n; i += 32) {
            if (SIZE == 4) {
                uint32_t v;
                asm volatile("ld.shared.u32 %0, [%1];"
                             : "=r"(v)
                             : "r"(stage + r * OUT_PITCH + i * 4)
                             : "memory");
                ((uint32_t *)row)[i] = v;
            } else {
                uint16_t v;
                asm volatile("ld.shared.u16 %0, [%1];"
                             : "=h"(v)
                             : "r"(stage + r * OUT_PITCH + i * 2)
                             : "memory");
                ((uint16_t *)row)[i] = v;
            }
        }
    }
}

// A warp's 16 rows, 256 bytes of each at a time, through shared memory. Lane i < 16 copies row i
// out, and the copies run on while the warp goes on; where the alignment does not allow that, the
// warp stores element by element.
template <class C, bool F32, class F>
__device__ __forceinline__ void write_rows(const args &a, const tile &t, int row0, uint32_t stage,
                                           F value)
{
    constexpr int SIZE = F32 ? 4 : 2, WIDTH = OUT_BYTES / SIZE;
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int r = row0 + lane;
    const bool mine = lane < 16 && r < t.n;
    char *to = (char *)a.out + (t.o0 + (C::GATHER ? 0 : t.s * a.out_head)) * SIZE;
    if (mine)
        to += (size_t)(C::GATHER ? a.pairs[t.x0 + r] : t.x0 + r) * a.out_ld * SIZE;
    const bool added = F32 && a.add && !a.reduce;
#pragma unroll
    for (int c = 0; c < C::OUTS; c += WIDTH) {
        constexpr int LAST = C::OUTS % WIDTH ? C::OUTS % WIDTH : WIDTH;
        const int width = c + WIDTH < C::OUTS ? WIDTH : LAST, left = a.rows - t.o0 - c;
        if (left <= 0)
            break;
        hopper::bulk_wait_read();
        __syncwarp();
        if constexpr (!F32) {
            const uint32_t p = stage + (lane / 8 % 2 * 8 + lane % 8) * OUT_PITCH + lane / 16 * 16;
#pragma unroll
            for (int j = 0; j < width / 16; j++) {
                const int i = (c / 8 + 2 * j) * 4; // first of eight values
                asm volatile(
                    "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                        p + j * 32),
                    "r"(pack(value(i), value(i + 1))), "r"(pack(value(i + 2), value(i + 3))),
                    "r"(pack(value(i + 4), value(i + 5))), "r"(pack(value(i + 6), value(i + 7)))
                    : "memory");
            }
        } else {
            const uint32_t p = stage + g * OUT_PITCH + q * 8;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = row0 + g + 8 * h, o = t.o0 + c + 2 * q;
                const float *from = a.add + (t.x0 + row) * a.add_ld + o;
#pragma unroll
                for (int j = 0; j < width / 8; j++) {
                    const int i = (c / 8 + j) * 4 + 2 * h;
                    float v0 = value(i), v1 = value(i + 1);
                    if (added && row < t.n && o + 8 * j < a.rows)
                        v0 += from[8 * j], v1 += from[8 * j + 1];
                    asm volatile(
                        "st.shared.v2.f32 [%0], {%1, %2};" ::"r"(p + h * 8 * OUT_PITCH + j * 32),
                        "f"(v0), "f"(v1)
                        : "memory");
                }
            }
        }
        if (!a.vector) {
            __syncwarp();
            write_elements<SIZE>(to + c * SIZE, stage, mine, min(width, left));
            __syncwarp();
            continue;
        }
        hopper::fence_async();
        __syncwarp();
        if (mine) {
            const uint32_t from = stage + lane * OUT_PITCH, bytes = min(width, left) * SIZE;
            if (F32 && a.reduce)
                hopper::bulk_add(to + c * SIZE, from, bytes);
            else
                hopper::bulk_store(to + c * SIZE, from, bytes);
        }
        hopper::bulk_commit();
    }
}

template <class C, class T>
__device__ __forceinline__ void write(const args &a, const tile &t, int wg, uint32_t stage, T *acc)
{
    const int row0 = wg * 64 + threadIdx.x % 128 / 32 * 16;
    if (C::KIND == hopper::S8 || a.bias)
        settle<C>(a, t, row0, acc);
    auto value = [&](int i) -> float {
        const float v = as_float(acc[i]);
        return C::GATED ? mm_gated(v, as_float(acc[i + C::BN / 4])) : v;
    };
    if (a.out_f32)
        write_rows<C, true>(a, t, row0, stage, value);
    else
        write_rows<C, false>(a, t, row0, stage, value);
}

} // namespace many
