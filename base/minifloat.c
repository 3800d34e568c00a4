#include "base/minifloat.h"

#include <math.h>
#include <string.h>

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float bf16_to_f32(uint16_t v)
{
    return of_bits((uint32_t)v << 16);
}

uint16_t bf16_from_f32(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40); // quiet, whatever its payload
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float f16_to_f32(uint16_t v)
{
    const uint32_t sign = (uint32_t)(v >> 15) << 31, exponent = v >> 10 & 31, mantissa = v & 1023;
    if (exponent == 0) { // zero and subnormal: mantissa * 2^-24 is exact
        float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    return of_bits(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
}

float e4m3_to_f32(uint8_t v)
{
    const uint32_t sign = (uint32_t)(v >> 7) << 31, exponent = v >> 3 & 15, mantissa = v & 7;
    if ((v & 0x7f) == 0x7f)
        return of_bits(sign | 0x7fc00000u);
    if (exponent == 0) {
        float f = (float)mantissa * 0x1p-9f;
        return sign ? -f : f;
    }
    return of_bits(sign | (exponent + 120) << 23 | mantissa << 20);
}

uint8_t e4m3_from_f32(float f)
{
    const uint32_t u = bits_of(f), sign = u >> 24 & 0x80, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint8_t)(sign | 0x7f);
    if (a >= bits_of(464.0f)) // halfway from 448 to what would be 480; a tie goes to the even 480
        return (uint8_t)(sign | 0x7e);
    if (a < bits_of(0x1p-6f)) { // subnormal: multiples of 2^-9; 8 of them are the least normal
        return (uint8_t)(sign | (uint32_t)lrintf(of_bits(a) * 0x1p9f));
    }
    uint32_t rounded = a + 0x7ffff + (a >> 20 & 1); // to 3 bits of mantissa, may carry upwards
    uint32_t code = (rounded >> 20) - (120u << 3);
    return (uint8_t)(sign | (code > 0x7e ? 0x7e : code));
}
