#include "base/noise.h"

#include <math.h>
#include <string.h>

#include "base/minifloat.h"
#include "base/prng.h"

enum { GROUP = 8 };

// u of columns [8g, 8g + 8).
static void group(const struct noise *s, size_t g, float u[GROUP])
{
    uint32_t w[4];
    philox4x32(s->key, g, s->row, w);
    for (int i = 0; i < GROUP; i++)
        u[i] = ((float)(w[i / 2] >> 16 * (i % 2) & 0xffff) - 32767.5f) * 0x1p-15f;
}

#define EACH(s, n, u)                                                                              \
    float u[GROUP];                                                                                \
    for (size_t i = 0; i < (n) && (i % GROUP || (group(s, i / GROUP, u), 1)); i++)

void noise_f32(const struct noise *s, size_t n, float *out)
{
    EACH(s, n, u)
    out[i] = fmaf(s->amplitude, u[i % GROUP], s->mean);
}

void noise_bf16(const struct noise *s, size_t n, void *out)
{
    EACH(s, n, u)
    {
        uint16_t v = bf16_from_f32(fmaf(s->amplitude, u[i % GROUP], s->mean));
        memcpy((char *)out + 2 * i, &v, sizeof v);
    }
}

void noise_e4m3(const struct noise *s, size_t n, uint8_t *out)
{
    EACH(s, n, u)
    out[i] = e4m3_from_f32(E4M3_MAX * u[i % GROUP]);
}

void noise_int8(const struct noise *s, size_t n, int8_t *out)
{
    EACH(s, n, u)
    out[i] = (int8_t)lrintf(127 * u[i % GROUP]);
}
