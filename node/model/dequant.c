// Conversions at load. Every bf16, f16 and e4m3 value is a float32, so nothing is rounded but the
// product with an fp8 scale, which is one float32 multiplication as in the reference.
#include "node/model/dequant.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static float from_bf16(uint16_t v)
{
    uint32_t u = (uint32_t)v << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float from_f16(uint16_t v)
{
    int exponent = v >> 10 & 31, mantissa = v & 1023;
    float f;
    if (exponent == 31)
        f = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        f = ldexpf((float)mantissa, -24);
    else
        f = ldexpf((float)(1024 + mantissa), exponent - 25);
    return v >> 15 ? -f : f;
}

// E4M3FN: bias 7, no infinities, one NaN of each sign.
static float from_e4m3(uint8_t v)
{
    int exponent = v >> 3 & 15, mantissa = v & 7;
    float f;
    if (exponent == 15 && mantissa == 7)
        f = NAN;
    else if (exponent == 0)
        f = ldexpf((float)mantissa, -9);
    else
        f = ldexpf((float)(8 + mantissa), exponent - 10);
    return v >> 7 ? -f : f;
}

static void row16(float (*from)(uint16_t), const void *src, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, (const uint8_t *)src + 2 * i, sizeof v);
        out[i] = from(v);
    }
}

void dequant_row(enum st_dtype dtype, const void *src, size_t n, float *out)
{
    assert(dtype == ST_F32 || dtype == ST_BF16 || dtype == ST_F16 || dtype == ST_F8_E4M3);
    if (dtype == ST_F32)
        memcpy(out, src, n * sizeof *out);
    else if (dtype == ST_BF16)
        row16(from_bf16, src, n, out);
    else if (dtype == ST_F16)
        row16(from_f16, src, n, out);
    else
        for (size_t i = 0; i < n; i++)
            out[i] = from_e4m3(((const uint8_t *)src)[i]);
}

void dequant_fp8_row(const uint8_t *src, size_t n, const float *scales, size_t block_cols,
                     float *out)
{
    float table[256]; // worth it: rows have hundreds of elements
    for (int v = 0; v < 256; v++)
        table[v] = from_e4m3((uint8_t)v);
    for (size_t i = 0; i < n; i++)
        out[i] = table[src[i]] * scales[i / block_cols];
}
