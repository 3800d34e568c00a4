// A golden probe: a short prompt, computed greedily through all shards of a replica like any
// request, whose answer is known: its tokens, and the log-probabilities of them as a fingerprint of
// the logits. Pure: answers in, verdict out.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"

enum { PROBE_TOKENS = 32, PROBE_PROMPT = 256 };

struct probe_answer {
    uint32_t n;
    int32_t tokens[PROBE_TOKENS];
    float logprobs[PROBE_TOKENS];
};

enum probe_verdict {
    PROBE_RIGHT,
    PROBE_WRONG_TOKEN, // another token where the known answer has one
    PROBE_DRIFTED, // its tokens, but the logits are off by more than the tolerance, or no number
};

// *at is the first token that differs. tolerance 0: log-probabilities are not looked at.
enum probe_verdict probe_judge(const struct probe_answer *known, const struct probe_answer *got,
                               float tolerance, uint32_t *at);
