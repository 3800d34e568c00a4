// Two generators. `prng` (xoshiro256**, Blackman & Vigna 2018) for everything that needs a stream
// of random numbers from a seed: the simulator, jitter, load arrival times. `philox`
// (Philox4x32-10, Salmon et al., SC'11) for sampling tokens: a pure function of key and counter, so
// that any replica continues a request identically from (seed, index).
#pragma once

#include <stdint.h>

struct prng {
    uint64_t s[4];
};

void prng_seed(struct prng *p, uint64_t seed);
uint64_t prng_u64(struct prng *p);
// Uniform in [0, n), n > 0, without modulo bias.
uint64_t prng_below(struct prng *p, uint64_t n);
// Uniform in [0, 1) with 53 bits.
double prng_unit(struct prng *p);
// Exponentially distributed with the given mean (> 0).
double prng_exp(struct prng *p, double mean);

// Four 32-bit words of Philox4x32-10 at `counter` (128 bits, lo first) under `key`.
void philox4x32(uint64_t key, uint64_t counter_lo, uint64_t counter_hi, uint32_t out[4]);
// Uniform in [0, 1) with 24 bits for the index-th token of a request with this seed; float32 so
// that every backend can reproduce it exactly.
float philox_unit(uint64_t seed, uint64_t index);
