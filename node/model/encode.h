// float32 rows to quantized ones, the inverse of dequant.h. The scale is what the largest magnitude
// needs, so nothing saturates; all zeros get scale 1.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A row of blocks: n <= 128 rows of `cols`, one scale per 128 columns: scales [cols / 128 up],
// x = out * scale. false: a NaN or infinity is among them.
bool encode_fp8(const float *x, size_t n, size_t cols, uint8_t *out, float *scales);

// One row, one scale.
bool encode_int8(const float *x, size_t cols, int8_t *out, float *scale);
