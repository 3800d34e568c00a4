// One rank's part of a model, ready to compute: config, weights, KV pool, and every buffer that a
// step needs, all sized at open. It outlives the replicas that it serves in. forward.h runs it.
#pragma once

#include <stdint.h>

#include "base/status.h"
#include "kernels/kern.h"
#include "node/comm.h"
#include "node/model/config.h"
#include "node/model/weights.h"

enum { MODEL_BLOCK_TOKENS = 32 }; // default tokens of a KV block

struct model_shard_args {
    struct model_source source;
    uint64_t fingerprint; // that the model must have before a weight is read; 0 = any
    struct model_rank rank;
    struct kern *kern; // borrowed until model_shard_close
    int max_context;   // positions of a sequence; 0 = the model's, never more than that
    int max_rows;      // of one batch
    int max_seqs;      // of one batch
    int max_logits;    // rows of one batch whose logits are computed; 0 = max_seqs
    int block_tokens;  // 0 = MODEL_BLOCK_TOKENS
    int kv_blocks;     // of the pool
    struct model_progress progress;
};

// Device buffers of a step; [n] is up to max_rows, [m] up to max_logits. Rows of a gathered buffer
// are wider than the tensor when its size is no multiple of T (weights.h), hence x_stride etc.
// What products read (h, qkv, q, q_latent, ctx, attn, gate_up, act, expert_act) is of
// kern_act_dtype; the others are f32.
struct model_buffers {
    struct kern_buf *x;   // [n][hidden] residual stream
    struct kern_buf *x_m; // [m][hidden] the rows that go on after the last layer's keys are stored
    struct kern_buf *h;   // [n][hidden] normalised
    struct kern_buf *qkv; // [n][qkv_rows] queries (or q_a), then what the cache stores
    struct kern_buf *qkv_m;        // [m][qkv_rows]
    struct kern_buf *q;            // [n][heads_l * head_dim]; MLA with q_lora
    struct kern_buf *q_latent;     // [n][heads_l][kv_lora]; MLA
    struct kern_buf *ctx;          // [n][heads_l][kv_lora]; MLA: attended latents
    struct kern_buf *attn;         // [n][heads * v_dim], gathered
    struct kern_buf *gate_up;      // [n][2 * inter_l]
    struct kern_buf *act;          // [n][inter], gathered
    struct kern_buf *router;       // [n][experts]
    struct kern_buf *expert_ids;   // [n][per_token + shared] i32
    struct kern_buf *expert_gates; // [n][per_token + shared]
    struct kern_buf *expert_act;   // [n * (per_token + shared)][expert inter], gathered
    struct kern_buf *logits;       // [m][vocab], gathered
    struct kern_buf *best;         // [m] i32, shared: of the largest logit; NULL on CPUs
    struct kern_buf *inputs;       // i32: all that a step uploads (inputs.h)
    // Windows of it: [n] tokens, sequence and position of the rows, [m] the same of those that go
    // on, [seqs][blocks of a sequence].
    struct kern_buf *ids, *seq, *pos, *rows, *seq_m, *pos_m, *tables;
};

struct model_shard {
    struct model_config config;
    struct model_rank rank;
    struct model_plan plan;
    struct model_weights weights;
    struct kern *kern;
    struct comm *comm; // borrowed; NULL until model_shard_attach
    size_t attached;   // how often; steps recorded with another comm are not replayed
    int max_context, max_rows, max_seqs, max_logits, block_tokens, kv_blocks;
    struct kern_buf **kv;  // [layers_n] pools [blocks][block_tokens][kv_width] of kern_kv_dtype
    struct kern_buf *rope; // [max_context][rope.dim] cos, sin
    struct model_buffers b;
    int32_t *host; // [inputs_size()] what goes into b.inputs
    uint64_t fingerprint;
};

STATUS_MUST_USE enum status model_shard_open(const struct model_shard_args *args,
                                             struct model_shard **out, struct errmsg *e);
void model_shard_close(struct model_shard *s); // NULL is fine
// A KV pool of another size; what it held is lost. NO_MEMORY: it holds one block now.
STATUS_MUST_USE enum status model_shard_resize_kv(struct model_shard *s, int kv_blocks,
                                                  struct errmsg *e);
// The collectives of the epoch that begins: size and rank must be those of args.rank. Borrowed
// until the next attach; NULL detaches. Until then the shard cannot run.
void model_shard_attach(struct model_shard *s, struct comm *comm);
