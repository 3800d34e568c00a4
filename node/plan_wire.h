// Step plans and results as flat bytes, for the lanes between ranks. Little-endian 32-bit words
// (64-bit numbers: low word first), so tokens and blocks are used where they lie:
//
//   plan:   magic, words in all, step (2), epoch (2), rows, closes, opens, entries; then the slots
//           to close; per open 15 words (slot, index0, prompt_n, tokens_n, sampling); per entry 5
//           (slot, pos, n, sample, new_blocks_n); the tokens of all opens, of all entries; the new
//           blocks of all entries
//   result: magic, words in all, step (2), status, bad_stage, bad_tensor, samples; then per sample
//           (slot, token, logprob, top_n); the alternatives of all samples (token, value)
//
// Decoding believes nothing: every count is checked against the bytes that are there, and all of
// them must be used up. What slots, positions and blocks mean is checked by who applies the plan.
#pragma once

#include <stddef.h>

#include "base/strbuf.h"
#include "node/plan.h"

// Appends to `out`; a strbuf that is cleared and used again stops allocating.
void step_plan_encode(const struct step_plan *plan, struct strbuf *out);
void step_result_encode(const struct step_result *result, struct strbuf *out);

// Bound on an encoded plan of the batch scheduler (batch.h bounds what a plan opens).
struct step_plan_limits {
    uint32_t max_seqs, max_rows, max_context, block_tokens;
};
size_t step_plan_max_bytes(const struct step_plan_limits *limits);
size_t step_result_max_bytes(uint32_t max_seqs);

// Memory of decoded arrays; grows to the largest seen. Zero-initialise.
struct plan_decoder {
    struct plan_open *opens;
    struct plan_entry *entries;
    struct step_sample *samples;
    size_t opens_cap, entries_cap, samples_cap;
};
void plan_decoder_finish(struct plan_decoder *d);

// `bytes` is 4-byte aligned. LINK_CORRUPT: it does not fit, *e names the field. Arrays of the
// result are the decoder's until its next use, or point into `bytes` and are borrowed with it.
STATUS_MUST_USE enum status step_plan_decode(struct plan_decoder *d, const void *bytes, size_t n,
                                             struct step_plan *plan_out, struct errmsg *e);
STATUS_MUST_USE enum status step_result_decode(struct plan_decoder *d, const void *bytes, size_t n,
                                               struct step_result *result_out, struct errmsg *e);
