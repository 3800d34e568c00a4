// What a step's kernels read besides weights and KV: tokens, positions, block tables and which rows
// want logits, checked, laid out in one buffer and sent to the device by one upload.
#pragma once

#include "node/model/forward.h"

// The step as it is computed. Where the kern replays steps, a batch of decode rows is padded to one
// of few sizes: rows of token 0 at position 0 of a sequence that lives in a block of its own.
struct inputs {
    size_t rows, logits_n;  // computed, with padding
    struct kern_batch all;  // the rows; keys_max may be more than the longest needs
    struct kern_batch some; // of the rows whose logits are wanted
    uint64_t replay;        // key of kern_replay_begin; 0: not worth keeping
};

// BAD_REQUEST: an id, position or block out of range.
STATUS_MUST_USE enum status inputs_check(const struct model_shard *s, const struct forward_batch *b,
                                         struct errmsg *e);
// After inputs_check: sets s->b.ids, seq, pos, rows, seq_m, pos_m and tables.
struct inputs inputs_send(struct model_shard *s, const struct forward_batch *b);

// int32 elements that a shard's buffer for inputs must hold, and blocks that its KV pools have
// beyond kv_blocks.
size_t inputs_size(const struct model_shard *s);
size_t inputs_spare_blocks(const struct kern *k);
