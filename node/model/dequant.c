// Conversions at load. Every bf16, f16, e4m3 and int8 value is a float32, so nothing is rounded but
// the product with a scale, and what is stored as bf16.
#include "node/model/dequant.h"

#include <assert.h>
#include <string.h>

#include "base/minifloat.h"

static void row16(float (*from)(uint16_t), const void *src, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, (const uint8_t *)src + 2 * i, sizeof v);
        out[i] = from(v);
    }
}

static void row_e4m3(const uint8_t *src, size_t n, float *out)
{
    float table[256]; // worth it: rows have hundreds of elements
    for (int v = 0; v < 256; v++)
        table[v] = e4m3_to_f32((uint8_t)v);
    for (size_t i = 0; i < n; i++)
        out[i] = table[src[i]];
}

void dequant_row(enum st_dtype dtype, const void *src, size_t n, float *out)
{
    switch (dtype) {
    case ST_F32:
        memcpy(out, src, n * sizeof *out);
        return;
    case ST_BF16:
        row16(bf16_to_f32, src, n, out);
        return;
    case ST_F16:
        row16(f16_to_f32, src, n, out);
        return;
    case ST_F8_E4M3:
        row_e4m3(src, n, out);
        return;
    case ST_I8:
        for (size_t i = 0; i < n; i++)
            out[i] = (float)((const int8_t *)src)[i];
        return;
    default:
        assert(!"weights have no such dtype");
    }
}

void dequant_scale_row(float *x, size_t n, const float *scales, size_t block_cols)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= scales[block_cols ? i / block_cols : 0];
}

void dequant_store(enum kern_dtype dtype, const float *x, size_t n, void *out, size_t step)
{
    assert(dtype == KERN_F32 || dtype == KERN_BF16);
    if (dtype == KERN_F32) {
        for (size_t i = 0; i < n; i++)
            ((float *)out)[i * step] = x[i];
    } else {
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)out)[i * step] = bf16_from_f32(x[i]);
    }
}
