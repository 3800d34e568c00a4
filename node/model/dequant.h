// Checkpoint numbers to float32 and back to what a kern holds.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/kern.h"
#include "node/model/safetensors.h"

// n elements of BF16, F16, F32, F8_E4M3 or I8 (both without scale) as float32, exactly; src may be
// unaligned.
void dequant_row(enum st_dtype dtype, const void *src, size_t n, float *out);

// One row of a quantized matrix, expanded in place: x[i] *= scales[i / block_cols], one float32
// multiplication as in the reference. block_cols 0: one scale for the row.
void dequant_scale_row(float *x, size_t n, const float *scales, size_t block_cols);

// n float32 to f32 or bf16 (to nearest even) elements, `step` elements apart.
void dequant_store(enum kern_dtype dtype, const float *x, size_t n, void *out, size_t step);
