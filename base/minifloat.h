// Small floating-point formats: bfloat16 and e4m3 (OCP 8-bit floating point, the FN form: no
// infinities, one NaN of each sign, largest value 448). To float32 is exact; from float32 rounds to
// the nearest, ties to even, as the GPUs' conversions do.
#pragma once

#include <stdint.h>

#define E4M3_MAX 448.0f

float bf16_to_f32(uint16_t v);
uint16_t bf16_from_f32(float f); // NaN stays NaN
float f16_to_f32(uint16_t v);
float e4m3_to_f32(uint8_t v);
uint8_t e4m3_from_f32(float f); // beyond +-448: the largest value of that sign; NaN stays NaN
