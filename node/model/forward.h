// The forward pass of one shard over one batch: rows of any mix of prefill chunks and decode steps
// of several sequences. The same row gives the same bits in any batch, chunking and layout.
//
// Forward owns no policy: the caller says in which KV blocks a sequence lives and which rows want
// logits. All ranks of a stage call forward_run with the same batch.
#pragma once

#include "node/model/shard.h"

struct forward_seq {
    const uint32_t *blocks; // KV blocks of positions [0, blocks_n * block_tokens)
    size_t blocks_n;
};

// Everything is borrowed until return.
struct forward_batch {
    uint64_t step;         // for progress reports
    size_t rows;           // 1 .. max_rows
    const int32_t *tokens; // [rows], first stage
    const float *hidden;   // [rows][hidden], later stages: what the stage before gave out
    bool hidden_there;     // it is in the shard's b.x already
    const int32_t *seq;    // [rows] index into seqs
    const int32_t *pos;    // [rows]
    const struct forward_seq *seqs;
    size_t seqs_n;             // 1 .. max_seqs
    const int32_t *logit_rows; // [logits_n] rows whose logits the last stage computes
    size_t logits_n;           // 0 .. max_logits
};

// Computes the batch: keys and values of all rows are in the KV pool afterwards, and the outcome
// can be fetched below until the next run. BAD_REQUEST (nothing done): an id, position or block out
// of range. LINK_DOWN, ABORTED: from the collectives.
STATUS_MUST_USE enum status forward_run(struct model_shard *s, const struct forward_batch *b,
                                        struct errmsg *e);

// Not the last stage: the rows' hidden states, out [rows][hidden].
STATUS_MUST_USE enum status forward_hidden(struct model_shard *s, size_t rows, float *out);
// Last stage: logits of logit_rows[i], out [vocab]. All ranks of the stage have them.
STATUS_MUST_USE enum status forward_logits(struct model_shard *s, size_t i, float *out);
// The id of the largest of those logits, the lowest on ties, -1 when one is not finite; found on
// the device within the step. False: this backend leaves that to the caller.
bool forward_best(const struct model_shard *s, size_t i, int32_t *id_out);
// All of them where they lie, f32 [logits_n][vocab]; kern_sample may change them.
struct kern_view forward_logits_view(const struct model_shard *s);
