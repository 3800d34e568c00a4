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

#include "node/kvpool.h"
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

// The request `batch_add` took leaves after its next token, as if it had ended.
void batch_prefill_only(struct batch *b, uint64_t request);

// ---- leases: blocks held for a transfer (batch_kv.c). The caller owns time and protocol.

// Filled in and owned by the batch; read only outside.
struct batch_lease {
    struct batch_lease *prev, *next;
    uint64_t transfer;
    enum kv_role role;
    uint64_t request;      // source
    int32_t *tokens;       // [total * block_tokens]
    uint32_t total;        // blocks of the chain
    uint32_t *blocks;      // [total]
    uint32_t blocks_n;     // held, from the first of the chain on. Target: all
    uint32_t named;        // of them are in the prefix cache. Source: all
    struct kv_chain chain; // at `named`
};

struct batch_lease_args {
    uint64_t transfer, request;
    const int32_t *tokens;
    uint32_t tokens_n;
};
// BAD_REQUEST: no whole block, or more than a context; FULL: not enough blocks (target). The
// target's first blocks may be in its prefix cache already: `named`.
enum status batch_lease_target(struct batch *b, const struct batch_lease_args *args,
                               struct batch_lease **out, struct errmsg *e);
enum status batch_lease_source(struct batch *b, const struct batch_lease_args *args,
                               struct batch_lease **out, struct errmsg *e);
// Source: takes hold of what the prefix cache has of the chain by now. False: no more will come.
bool batch_lease_fill(struct batch *b, struct batch_lease *l);
// Target: blocks before place `n` hold what they should: names them.
void batch_lease_publish(struct batch *b, struct batch_lease *l, uint32_t n);
// Target: gives back what has no name.
void batch_lease_trim(struct batch *b, struct batch_lease *l);
// Some sequence uses the last named block as well.
bool batch_lease_used(const struct batch *b, const struct batch_lease *l);
// Gives all blocks back.
void batch_lease_close(struct batch *b, struct batch_lease *l);
// Since the last call, a sequence that nothing else stands in the way of could not get a block
// while leases hold some.
bool batch_starved(struct batch *b);

// What changed in the prefix cache (kvpool.h).
uint32_t batch_kv_changes(struct batch *b, struct kv_change *out, uint32_t max);
uint32_t batch_kv_changes_n(const struct batch *b);
void batch_kv_tell_all(struct batch *b);
uint64_t batch_kv_digest(const struct batch *b);

struct batch_load {
    uint32_t running, waiting, under_way; // sequences, sequences, plans
    uint32_t kv_blocks, kv_free;
    uint32_t leases;
    uint64_t preemptions, prefix_tokens; // since create
};
struct batch_load batch_load(const struct batch *b);
bool batch_has(const struct batch *b, uint64_t request);
// Asserts every invariant; O(blocks + table entries).
void batch_check(const struct batch *b);
