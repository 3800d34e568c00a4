// exp and log whose bits are the same on every backend: built of additions, multiplications and
// divisions that IEEE 754 rounds in one way only, none of them fused. So a CPU and a GPU that
// sample from the same logits choose the same token. C files that include this are compiled without
// contraction (-ffp-contract=off); CUDA names the rounding itself.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDA_ARCH__
#define SAME_MUL(a, b)  __fmul_rn(a, b)
#define SAME_ADD(a, b)  __fadd_rn(a, b)
#define SAME_DMUL(a, b) __dmul_rn(a, b)
#define SAME_DADD(a, b) __dadd_rn(a, b)
#define SAME_DDIV(a, b) __ddiv_rn(a, b)
#else
#define SAME_MUL(a, b)  ((a) * (b))
#define SAME_ADD(a, b)  ((a) + (b))
#define SAME_DMUL(a, b) ((a) * (b))
#define SAME_DADD(a, b) ((a) + (b))
#define SAME_DDIV(a, b) ((a) / (b))
#endif
#ifdef __CUDACC__
#define SAME_FUNCTION static __host__ __device__ __forceinline__
#else
#define SAME_FUNCTION static inline
#endif

// e^x for x <= 0, within 2 units of the last place; 0 for x < -32 and for NaN; 1 for 0.
SAME_FUNCTION float same_exp(float x)
{
    if (!(x >= -32.0f))
        return 0;
    const float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    float n = SAME_ADD(SAME_ADD(SAME_MUL(x, 1.44269504f), magic), -magic);
    // ln 2 in two parts; the first has so few bits that n times it is exact.
    float r = SAME_ADD(SAME_ADD(x, SAME_MUL(n, -0.693359375f)), SAME_MUL(n, 2.12194440e-4f));
    float p = 1.0f / 5040; // Taylor's series: r^8 / 8! is below half a unit
    p = SAME_ADD(SAME_MUL(p, r), 1.0f / 720);
    p = SAME_ADD(SAME_MUL(p, r), 1.0f / 120);
    p = SAME_ADD(SAME_MUL(p, r), 1.0f / 24);
    p = SAME_ADD(SAME_MUL(p, r), 1.0f / 6);
    p = SAME_ADD(SAME_MUL(p, r), 0.5f);
    p = SAME_ADD(SAME_MUL(p, r), 1.0f);
    p = SAME_ADD(SAME_MUL(p, r), 1.0f);
    uint32_t bits;
    memcpy(&bits, &p, sizeof bits);
    bits += (uint32_t)((int32_t)n * (1 << 23)); // times 2^n, n >= -46: no denormals
    memcpy(&p, &bits, sizeof bits);
    return p;
}

// Natural logarithm of a finite x >= 1.
SAME_FUNCTION double same_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t k = (int32_t)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    double m;
    memcpy(&m, &bits, sizeof bits);
    if (m > 1.4142135623730951) { // into [sqrt(1/2), sqrt(2)]
        m = SAME_DMUL(m, 0.5);
        k++;
    }
    // log m = 2 (s + s^3 / 3 + s^5 / 5 ...), s = (m - 1) / (m + 1)
    double s = SAME_DDIV(SAME_DADD(m, -1.0), SAME_DADD(m, 1.0)), z = SAME_DMUL(s, s);
    double p = 1.0 / 21;
    for (int i = 19; i > 0; i -= 2)
        p = SAME_DADD(SAME_DMUL(p, z), SAME_DDIV(1.0, (double)i));
    return SAME_DADD(SAME_DMUL((double)k, 0.69314718055994531), SAME_DMUL(2.0, SAME_DMUL(s, p)));
}
