// Numbers that look random and are a pure function of a key and a place: contents for models that
// have a shape but no checkpoint. Element (row, col) of stream `key`:
//   w[4] = Philox4x32-10(key, counter = {col / 8, row});  h = half-word col % 8 of w, low half
//   first u = (h - 32767.5) * 2^-15, uniform in (-1, 1) f32: mean + amplitude * u, one rounding;
//   bf16: that, rounded;  e4m3: 448 u, rounded; int8: 127 u, rounded
// Kernels make the same bytes (kernels/cuda/noise.cu).
#pragma once

#include <stddef.h>
#include <stdint.h>

struct noise {
    uint64_t key, row;
    float mean, amplitude;
};

// Columns [0, n) of one row. out may be unaligned.
void noise_f32(const struct noise *s, size_t n, float *out);
void noise_bf16(const struct noise *s, size_t n, void *out);
void noise_e4m3(const struct noise *s, size_t n, uint8_t *out);
void noise_int8(const struct noise *s, size_t n, int8_t *out);
