// A step plan: what every worker of a replica computes in one pass, made by the lead's batch
// scheduler; and the result of a step. Plans are delta-coded: workers keep a table of sequence
// slots (block table, sampling, token history); OPEN fills a slot, entries append blocks, CLOSE
// frees it. A plan belongs to one epoch; the tables start empty in each epoch.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"

// A sequence enters slot `slot`.
struct plan_open {
    uint32_t slot;
    uint32_t
        index0; // index in the answer of the first token to be sampled (emitted_n of the journal)
    struct sampling sampling;
    const int32_t *tokens; // prompt + emitted: the history that penalties look at
    uint32_t tokens_n;
    uint32_t prompt_n; // how many of them are prompt
};

// Compute n positions of one sequence, from `pos` on.
struct plan_entry {
    uint32_t slot;
    uint32_t pos;               // position of the first row
    uint32_t n;                 // rows, >= 1
    bool sample;                // the last row ends what is known: sample the next token from it
    const int32_t *tokens;      // n ids
    const uint32_t *new_blocks; // appended to the slot's block table before computing
    uint32_t new_blocks_n;
};

struct step_plan {
    uint64_t step; // 1, 2, 3 ... within the epoch
    uint64_t epoch;
    const struct plan_open *opens;
    uint32_t opens_n;
    const struct plan_entry *entries; // >= 1; each slot at most once
    uint32_t entries_n;
    const uint32_t *closes; // slots freed BEFORE opens and entries of this plan
    uint32_t closes_n;
    uint32_t rows; // sum of n
};

struct step_sample {
    uint32_t slot;
    int32_t token;
    float logprob;
    uint32_t top_n;
    struct logprob top[LIMIT_TOP_LOGPROBS];
};

struct step_result {
    uint64_t step;
    enum status status;            // NODE_NAN, LINK_DOWN, ABORTED ...: the epoch is over
    int32_t bad_stage, bad_tensor; // suspected rank when status < 0; -1 = unknown
    struct step_sample *samples;   // one per entry with `sample`, in plan order
    uint32_t samples_n;
};
