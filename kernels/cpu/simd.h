// The vector layer of the fast body's sources, which are compiled once per instruction set
// (KERN_ISA_NAME: portable, avx2, avx512). Two kinds of vectors: v8 is 8 floats everywhere, because
// sums that run across lanes are defined over 8 lanes; vt is as wide as the machine and is used
// only where lanes are independent outputs, so its width cannot show in a result. The compiler may
// not contract a*b+c by itself (-ffp-contract=off): fused multiply-adds are written out.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/cpu.h"

#define SIMD_JOIN2(a, b) a##_##b
#define SIMD_JOIN(a, b)  SIMD_JOIN2(a, b)
#define ISA(name)        SIMD_JOIN(name, KERN_ISA_NAME) // external names get the set as a suffix

// for (int i = 0; i < n; i++), unrolled: n is a constant once the function is inlined.
#if defined(__clang__)
#define UNROLL_FOR(i, n) _Pragma("clang loop unroll(full)") for (int i = 0; i < (n); i++)
#else
#define UNROLL_FOR(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));

INLINE v8 v8_load(const float *p)
{
    v8 v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void v8_store(float *p, v8 v)
{
    memcpy(p, &v, sizeof v);
}
// The first n < 8 elements, zeros after them.
INLINE v8 v8_load_n(const float *p, size_t n)
{
    v8 v = {0};
    memcpy(&v, p, n * sizeof *p);
    return v;
}
INLINE void v8_store_n(float *p, v8 v, size_t n)
{
    memcpy(p, &v, n * sizeof *p);
}
INLINE v8 v8_set(float f)
{
    return (v8){f, f, f, f, f, f, f, f};
}
INLINE v8 v8_fma(v8 a, v8 b, v8 c)
{
#if defined(__FMA__)
    return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    v8 r;
    for (int i = 0; i < 8; i++)
        r[i] = fmaf(a[i], b[i], c[i]);
    return r;
#endif
}
// a where mask is all ones, b where it is zero.
INLINE v8 v8_pick(v8i mask, v8 a, v8 b)
{
    return (v8)(((v8i)a & mask) | ((v8i)b & ~mask));
}
// The sum over lanes, always as ((0+4)+(2+6)) + ((1+5)+(3+7)).
INLINE float v8_sum(v8 v)
{
    float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
    return (a + c) + (b + d);
}
INLINE float v8_max(v8 v)
{
    float m = v[0];
    for (int i = 1; i < 8; i++)
        m = v[i] > m ? v[i] : m;
    return m;
}

// e^x for x clamped to [-87, 88]; within 2 ulp. Cody-Waite reduction by ln 2 in two parts, then the
// Taylor polynomial of degree 7 on [-ln2/2, ln2/2].
INLINE v8 v8_exp(v8 x)
{
    v8 lo = v8_set(-87.0f), hi = v8_set(88.0f);
    x = v8_pick(x < lo, lo, x);
    x = v8_pick(x > hi, hi, x);
    v8 magic = v8_set(12582912.0f); // 1.5 * 2^23: rounds to nearest integer, kept in the low bits
    v8 shifted = v8_fma(x, v8_set(1.44269504088896341f), magic);
    v8 n = shifted - magic;
    v8 r = v8_fma(n, v8_set(-0.693359375f), x);
    r = v8_fma(n, v8_set(2.12194440e-4f), r);
    v8 p = v8_set(1.0f / 5040);
    p = v8_fma(p, r, v8_set(1.0f / 720));
    p = v8_fma(p, r, v8_set(1.0f / 120));
    p = v8_fma(p, r, v8_set(1.0f / 24));
    p = v8_fma(p, r, v8_set(1.0f / 6));
    p = v8_fma(p, r, v8_set(0.5f));
    p = v8_fma(p, r, v8_set(1.0f));
    p = v8_fma(p, r, v8_set(1.0f));
    v8i exponent = (v8i)((v8i)shifted << 23);
    return (v8)((v8i)p + exponent);
}
// The same for one number: lane 0 of the same operations.
INLINE float f_exp(float x)
{
    return v8_exp(v8_set(x))[0];
}
INLINE v8 v8_silu(v8 x)
{
    return x / (v8_set(1.0f) + v8_exp(-x));
}

// sum of a[i] * b[i]: lane i % 8 is a chain over rising i, then v8_sum.
INLINE float f_dot(const float *a, const float *b, size_t n)
{
    v8 sum = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        sum = v8_fma(v8_load(a + i), v8_load(b + i), sum);
    if (i < n)
        sum = v8_fma(v8_load_n(a + i, n - i), v8_load_n(b + i, n - i), sum);
    return v8_sum(sum);
}

// ---- vt: 16 outputs of a weight tile are TV vectors

#if defined(__AVX512F__)
enum { VT = 16 };
typedef float vt __attribute__((vector_size(64)));
#else
enum { VT = 8 };
typedef v8 vt;
#endif
enum { TV = TILE / VT };

INLINE vt vt_set(float f)
{
#if defined(__AVX512F__)
    return (vt)_mm512_set1_ps(f);
#else
    return v8_set(f);
#endif
}
INLINE vt vt_fma(vt a, vt b, vt c)
{
#if defined(__AVX512F__)
    return (vt)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return v8_fma(a, b, c);
#endif
}

// 16 packed weights as float32, in packed order (see cpu_tile_slot): with 8-wide vectors lanes 0-7
// and 8-15; with 16-wide ones bf16 stays interleaved until tile_store.
INLINE void tile_load(enum kern_dtype dtype, const void *p, vt out[TV])
{
    if (dtype == KERN_F32) {
        memcpy(out, p, TILE * sizeof(float));
        return;
    }
#if defined(__AVX512F__)
    __m256i raw = _mm256_loadu_si256(p);
    out[0] = dtype == KERN_F16 ? (vt)_mm512_cvtph_ps(raw)
                               : (vt)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
#elif defined(__AVX2__)
    if (dtype == KERN_F16) {
        out[0] = (vt)_mm256_cvtph_ps(_mm_loadu_si128(p));
        out[1] = (vt)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1));
    } else {
        __m256i raw = _mm256_loadu_si256(p);
        out[0] = (vt)_mm256_slli_epi32(raw, 16);
        out[1] = (vt)_mm256_and_si256(raw, _mm256_set1_epi32((int)0xffff0000u));
    }
#else
    for (size_t lane = 0; lane < TILE; lane++)
        out[lane / 8][lane % 8] =
            cpu_to_f32(dtype, (const uint16_t *)p + cpu_tile_slot(dtype, lane));
#endif
}

// Sums of a tile in row order; tile_restore is the inverse.
INLINE void tile_store(enum kern_dtype dtype, float *p, const vt sum[TV])
{
#if defined(__AVX512F__)
    const __m512i even_odd = _mm512_set_epi32(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0);
    __m512 v = (__m512)sum[0];
    _mm512_storeu_ps(p, dtype == KERN_BF16 ? _mm512_permutexvar_ps(even_odd, v) : v);
#else
    memcpy(p, sum, TILE * sizeof(float));
#endif
}
INLINE void tile_restore(enum kern_dtype dtype, const float *p, vt sum[TV])
{
#if defined(__AVX512F__)
    const __m512i interleave =
        _mm512_set_epi32(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
    __m512 v = _mm512_loadu_ps(p);
    sum[0] = (vt)(dtype == KERN_BF16 ? _mm512_permutexvar_ps(interleave, v) : v);
#else
    memcpy(sum, p, TILE * sizeof(float));
#endif
}
