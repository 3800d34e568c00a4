// The lead's batch scheduler: continuous batching over a paged KV pool. Journals in, step plans
// out; results in, tokens out. Pure: no clock, no I/O, and it never calls the engine.
//
// How a plan is filled (batch_plan):
//  1. Admission, highest band first, then oldest; nobody overtakes the head of the line. It takes
//     all blocks of what is known so far, less what the prefix cache has; a hit never covers the
//     last token, so that a row is left to sample from. A head of a higher band preempts.
//  2. Decode rows first. Decoding sequences are dealt out evenly over `pipeline` plans, so that
//     micro-batches follow each other through the stages; the one longest not computed goes first.
//  3. Prompt rows up to the row budget; while others decode, or stages overlap, up to
//     prefill_chunk. Chunks of one prompt may follow each other in plans under way; a decode step
//     never overlaps another of its sequence. The histories that a plan opens add up to
//     max_context tokens at most: that bounds its size (step_plan_max_bytes).
//
// When a decode row needs a block and none is left, the sequence of the lowest band and youngest
// age that is not under way is preempted: its blocks are given back and it waits, to be computed
// again from prompt + emitted. The highest and oldest is never preempted, so the batch always moves
// on; a sequence that could not fit alone is refused, or ends by LENGTH at the longest context that
// fits (batch_context).
//
// Memory is taken at create and once per dispatched request; nothing per step or token.
#pragma once

#include "node/plan.h"

struct batch;

enum { BATCH_PROBES = 2 };

struct batch_config {
    uint64_t epoch;
    uint32_t max_seqs, max_rows, pipeline, max_context, kv_blocks, block_tokens;
    uint32_t vocab;         // ids outside are refused; 0 = not checked
    uint32_t prefill_chunk; // see above; >= 1
};

// NULL when the numbers make no sense (a zero, or beyond limits.h); *e says which.
struct batch *batch_create(const struct batch_config *config, struct errmsg *e);
void batch_destroy(struct batch *b); // NULL is fine

// Longest history that fits: the smaller of max_context and the pool.
uint32_t batch_context(const struct batch *b);
// Sequences computed at once: max_seqs, less where max_rows is smaller.
uint32_t batch_slots(const struct batch *b);

// OK: taken. EXISTS: this request is here already. Else refused, *e says why: BAD_REQUEST, FULL
// (twice batch_slots and BATCH_PROBES are here: each place may be changing hands, and one golden
// probe may have been given up for another), TOO_LARGE: prompt + emitted leave no room for a token.
enum status batch_add(struct batch *b, const struct journal *j, struct errmsg *e);
// OK: gone at once. PENDING: its step is under way; batch_step.cancelled will name it.
// NOT_FOUND.
enum status batch_cancel(struct batch *b, uint64_t request);

// The next plan, or NULL: `pipeline` plans are under way, or there is nothing to do. Counts as
// submitted. Valid until the next batch_result, and over later batch_plan calls before that.
const struct step_plan *batch_plan(struct batch *b);

// What came of one step. Valid until the next call of batch_result.
struct batch_step {
    const struct token_out *tokens; // of all sequences that sampled and are not cancelled
    uint32_t tokens_n;
    const uint64_t *cancelled; // requests whose cancel was PENDING
    uint32_t cancelled_n;
};
// Steps come back in the order of their plans. A result that does not fit its plan is
// STATUS_INTERNAL (*e says why): the batch is unusable then.
enum status batch_result(struct batch *b, const struct step_result *r, struct batch_step *out,
                         struct errmsg *e);

struct batch_load {
    uint32_t running, waiting, under_way; // sequences, sequences, plans
    uint32_t kv_blocks, kv_free;
    uint64_t preemptions, prefix_tokens; // since create
};
struct batch_load batch_load(const struct batch *b);
bool batch_has(const struct batch *b, uint64_t request);
// Asserts every invariant; O(blocks + table entries).
void batch_check(const struct batch *b);
