// Fills the cos/sin tables. Pure. Where the reference computes in float32 this does too: rounding
// of inv_freq is amplified by the position.
#include "node/model/rope.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "base/mem.h"

static float position_frequency(const struct rope_config *c, int i)
{
    return powf((float)c->theta, (float)(2 * i) / (float)c->dim);
}

// The dimension that turns `rotations` times over the original context.
static double correction_dim(const struct rope_config *c, double rotations)
{
    return c->dim * log(c->original_context / (rotations * 2 * M_PI)) / (2 * log(c->theta));
}

static void inv_freq_yarn(const struct rope_config *c, float *inv_freq)
{
    double low = correction_dim(c, c->beta_fast), high = correction_dim(c, c->beta_slow);
    if (c->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, c->dim - 1);
    if (low == high)
        high += 0.001;
    for (int i = 0; i < c->dim / 2; i++) {
        float f = position_frequency(c, i);
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1.0f - fminf(fmaxf(ramp, 0), 1);
        inv_freq[i] = 1.0f / ((float)c->factor * f) * (1.0f - keep) + 1.0f / f * keep;
    }
}

static void inv_freq_llama3(const struct rope_config *c, float *inv_freq)
{
    double original = c->original_context, lo = c->low_freq_factor, hi = c->high_freq_factor;
    for (int i = 0; i < c->dim / 2; i++) {
        float f = 1.0f / position_frequency(c, i);
        float wavelength = (float)(2 * M_PI) / f;
        float smooth = ((float)original / wavelength - (float)lo) / (float)(hi - lo);
        if (wavelength > original / lo)
            inv_freq[i] = f / (float)c->factor;
        else if (wavelength < original / hi)
            inv_freq[i] = f;
        else
            inv_freq[i] = (1.0f - smooth) * f / (float)c->factor + smooth * f;
    }
}

void rope_inv_freq(const struct rope_config *c, float *inv_freq)
{
    assert(c->dim >= 2 && c->dim % 2 == 0);
    if (c->type == ROPE_YARN) {
        inv_freq_yarn(c, inv_freq);
        return;
    }
    if (c->type == ROPE_LLAMA3) {
        inv_freq_llama3(c, inv_freq);
        return;
    }
    for (int i = 0; i < c->dim / 2; i++)
        inv_freq[i] = 1.0f / position_frequency(c, i) / (float)c->factor;
}

void rope_table(const struct rope_config *c, int positions, float *out)
{
    int half = c->dim / 2;
    float *inv_freq = mem_alloc(sizeof(float) * (size_t)half);
    rope_inv_freq(c, inv_freq);
    float scale = (float)c->attention_factor;
    for (int p = 0; p < positions; p++, out += c->dim)
        for (int i = 0; i < half; i++) {
            float angle = (float)p * inv_freq[i];
            out[i] = cosf(angle) * scale;
            out[half + i] = sinf(angle) * scale;
        }
    free(inv_freq);
}
