// A worker's table of sequence slots: what the step plans of an epoch have told about each sequence
// (block table, token history, sampling). Applying a plan checks it against the table and lays out
// the batch that the forward pass wants. Every rank of a replica applies every plan, so that all
// tables agree without being sent.
#pragma once

#include "node/model/forward.h"
#include "node/plan.h"

struct slots;

struct slots_config {
    uint32_t max_seqs, max_rows, max_context;
    uint32_t kv_blocks, block_tokens;
    uint32_t vocab;
};

struct slots *slots_create(const struct slots_config *config);
void slots_destroy(struct slots *s); // NULL is fine

// The batch of the plan applied last; all arrays belong to the table, valid until the next apply.
// batch.hidden is left NULL.
struct slots_batch {
    struct forward_batch batch;
    const uint32_t *sample_entries; // logits_n indexes into the plan's entries
};

// Checks the whole plan, then takes it over: closes, opens, new blocks, tokens. LINK_PROTOCOL with
// nothing changed when it contradicts the table or the limits; *e says how.
STATUS_MUST_USE enum status slots_apply(struct slots *s, const struct step_plan *plan,
                                        struct slots_batch *out, struct errmsg *e);

// What the sampler needs for the next token of a slot, given that all its known tokens were
// computed.
struct slots_history {
    const struct sampling *sampling;
    const int32_t *tokens;
    uint32_t tokens_n, prompt_n;
    uint64_t index;
};
struct slots_history slots_history(const struct slots *s, uint32_t slot);
