// Sampling one token from a row of logits: the definition that the host's sampler and the GPU's
// keep bit for bit, and the host's implementation.
//
// 1. A row with a NaN or an infinity has no token (-1).
// 2. Penalties, on a copy: for every token of the history (ids outside the vocabulary are ignored)
//    l = l > 0 ? l / repetition : l * repetition; then for `count` occurrences in the output
//    l -= frequency * count; l -= count ? presence : 0.
// 3. temperature < 1e-5 (or NaN): the largest, the lowest id among equals. Else:
// 4. w = same_exp((l - largest) * (1 / temperature)); candidates have w >= min_p and are ordered by
//    falling l, then rising id. Their weight is the integer floor(w * 2^43): sums of integers do
//    not depend on their order.
// 5. top_k > 0 keeps the first top_k. mass = sum of the weights kept.
// 6. top_p < 1 keeps the shortest start, of at least one, whose sum >= top_p * mass (in double);
//    that sum is the new mass.
// 7. The first candidate at which the running sum exceeds unit * mass (in double); the best when
//    there is none.
// Log-probabilities are those of the raw logits: (float)(l - (largest + log(sum of weights))), the
// weights as above with temperature 1.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    KERN_SAMPLE_TOP_MAX = 20,
    KERN_SAMPLE_WEIGHT_BITS = 43, // a sum over the largest vocabulary fits 64 bits
    KERN_SAMPLE_VOCAB_MAX = 1 << 20,
};
#define KERN_SAMPLE_GREEDY_BELOW 1e-5f

// What to do with one row. 64 bytes of plain data: rows of them are uploaded.
struct kern_sample_row {
    float unit;                            // in [0, 1): philox_unit(seed, index)
    float temperature, top_p, min_p;       // 1 = off for top_p, 0 for min_p
    float repetition, frequency, presence; // 1, 0, 0 = off
    int32_t top_k;                         // <= 0: off
    uint32_t logprob, top_n;               // report the token's, and that of the best top_n
    uint32_t history_at, history_n, history_prompt; // tokens of the sequence: prompt, then output
    uint32_t reserved[3];
};

struct kern_sample_out {
    int32_t token; // -1: a logit is NaN or infinite
    float logprob; // 0 unless asked for
    uint32_t top_n;
    uint32_t reserved;
    struct {
        int32_t token;
        float logprob;
    } top[KERN_SAMPLE_TOP_MAX]; // most likely first, the lowest id among equals
};

static inline bool kern_sample_penalised(const struct kern_sample_row *r)
{
    return r->repetition != 1 || r->frequency != 0 || r->presence != 0;
}

// ---- on the host

struct sample_memory; // for one vocabulary size, used by one thread at a time

struct sample_memory *sample_memory_create(uint32_t vocab);
void sample_memory_destroy(struct sample_memory *m); // NULL is fine
// history: this row's, history_n of them (history_at is not looked at). logits are not changed.
void sample_row(struct sample_memory *m, const float *logits, const struct kern_sample_row *r,
                const int32_t *history, struct kern_sample_out *out);

#ifdef __cplusplus
}
#endif
