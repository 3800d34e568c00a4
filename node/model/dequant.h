// Checkpoint numbers to float32, exactly.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "node/model/safetensors.h"

// n elements of BF16, F16, F32 or F8_E4M3 (without scale); src may be unaligned.
void dequant_row(enum st_dtype dtype, const void *src, size_t n, float *out);

// n elements of F8_E4M3 from column 0 of one row, each times the scale of its block of columns.
void dequant_fp8_row(const uint8_t *src, size_t n, const float *scales, size_t block_cols,
                     float *out);
