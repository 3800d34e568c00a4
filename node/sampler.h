// Samples one token from a row of logits. A pure function of (logits, sampling, history, index):
// the random number is Philox(seed, index), candidates are ordered by probability, then by id, so
// every replica with the same logits makes the same choice. kernels/sample.h says it exactly; the
// same is offered on the device as kern_sample.
//
// Order of the steps and their meaning as in vLLM: repetition penalty on every token of the history
// (prompt and output), frequency and presence penalty on output tokens, temperature, min-p, top-k,
// top-p (on what top-k left, renormalised; the token that crosses p is kept), draw. Temperatures
// under 1e-5 are greedy: the largest penalised logit, the lowest id among equals. Reported
// log-probabilities are those of the raw logits.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/sample.h"
#include "node/plan.h"

struct sampler; // scratch memory for one vocabulary size, used by one thread at a time

struct sampler_input {
    const float *logits; // [vocab], not changed
    const struct sampling *sampling;
    const int32_t *tokens; // prompt, then output so far; ids outside the vocabulary are ignored
    uint32_t tokens_n, prompt_n;
    uint64_t index; // of the token to sample in the answer
};

// True when the choice is the largest logit and nothing is reported about it.
bool sampler_is_argmax(const struct sampling *sampling);

struct sampler *sampler_create(uint32_t vocab);
void sampler_destroy(struct sampler *s); // NULL is fine

// The two halves of it around the choice itself: a row of kern_sample's parameters (history_at is
// the caller's to set), and its result. in->logits is not looked at.
struct kern_sample_row sampler_row(const struct sampler_input *in);
STATUS_MUST_USE enum status sampler_result(const struct kern_sample_out *x,
                                           struct step_sample *out);

// Sets token, logprob (0 unless sampling.logprobs), top_n and top of *out; not its slot.
// NODE_NAN: a logit is NaN or infinite.
STATUS_MUST_USE enum status sampler_pick(struct sampler *s, const struct sampler_input *in,
                                         struct step_sample *out);
