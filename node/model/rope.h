// Tables of the rotary position embedding (Su et al. 2021) and its extensions: linear, YaRN (Peng
// et al. 2023, with DeepSeek's mscale), Llama 3's frequency scaling. Computed in float32, in the
// order of the Hugging Face reference, so that far positions agree with it.
#pragma once

#include "base/status.h"
#include "node/model/config.h"

// inv_freq [dim / 2].
void rope_inv_freq(const struct rope_config *c, float *inv_freq);

// out [positions][dim]: dim / 2 cosines of the angles position * inv_freq, then dim / 2 sines, all
// times attention_factor.
void rope_table(const struct rope_config *c, int positions, float *out);
