#include "node/model/encode.h"

#include <math.h>

#include "base/minifloat.h"

enum { BLOCK = 128 };

// A NaN, once met, stays.
static float largest(const float *x, size_t n, float so_far)
{
    for (size_t i = 0; i < n; i++) {
        const float a = fabsf(x[i]);
        so_far = a <= so_far || isnan(so_far) ? so_far : a;
    }
    return so_far;
}

bool encode_fp8(const float *x, size_t n, size_t cols, uint8_t *out, float *scales)
{
    for (size_t b = 0; b * BLOCK < cols; b++) {
        const size_t at = b * BLOCK, width = cols - at < BLOCK ? cols - at : BLOCK;
        float top = 0;
        for (size_t i = 0; i < n; i++)
            top = largest(x + i * cols + at, width, top);
        if (!isfinite(top))
            return false;
        const float scale = top > 0 ? top / E4M3_MAX : 1;
        scales[b] = scale;
        for (size_t i = 0; i < n; i++)
            for (size_t j = at; j < at + width; j++)
                out[i * cols + j] = e4m3_from_f32(x[i * cols + j] / scale);
    }
    return true;
}

bool encode_int8(const float *x, size_t cols, int8_t *out, float *scale_out)
{
    const float top = largest(x, cols, 0);
    if (!isfinite(top))
        return false;
    const float scale = top > 0 ? top / 127 : 1;
    *scale_out = scale;
    for (size_t j = 0; j < cols; j++) {
        float q = rintf(x[j] / scale); // a tiny scale (subnormal) rounds coarsely
        out[j] = (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
    }
    return true;
}
