// The weights of one shard: what rank (stage, tensor) of a replica needs, and nothing else, in the
// packed form of its kern.
//
// Layers are dealt to the stages in order, by what must be read of them (stages.h). Inside a stage every matrix is
// split along its OUTPUT rows: rank t of T holds rows [t * part, t * part + n) with part =
// ceil(rows / T), so the last rank may hold fewer. Attention is split by heads, experts inside
// (each rank holds its rows of every expert). Replicated: norms, embedding, router, q_a and kv_a
// projections.
//
// Below, `l` marks sizes that are this rank's part: heads_l, inter_l, hidden_l, vocab_l.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/kern.h"
#include "node/model/config.h"
#include "node/model/source.h"
#include "node/model/tensor.h"

struct model_rank {
    int stage, stages, tensor, tensors; // stage of stages, tensor of tensors
};

// A run of items split over the tensor ranks: this rank's are [first, first + n); every rank's
// slice of a gathered row is `part` wide.
struct model_split {
    int part, first, n;
};

// Everything about this rank's share that follows from config and rank.
struct model_plan {
    int layer_first, layers_n; // of the model
    bool first_stage, last_stage;
    struct model_split hidden, vocab, inter, expert_inter;
    struct model_split heads;    // query heads
    struct model_split kv_heads; // GQA; ranks may share a kv head when T > kv_heads
    // Rows of the fused first projection: queries (q_lora, or heads_l * head_dim), then MLA:
    // kv_lora
    // + rope_dim; GQA: K and V of the local kv heads.
    int q_rows, qkv_rows;
    int kv_width; // floats of one token in one layer's cache
};

// BAD_CONFIG: the sizes cannot be split so; says which.
STATUS_MUST_USE enum status model_plan_make(const struct model_config *c,
                                            const struct model_rank *rank, struct model_plan *out,
                                            struct errmsg *e);

struct mlp_weights {
    struct kern_weight *gate_up;               // [2 * inter_l][hidden], gate above up
    struct kern_weight *down;                  // [hidden_l][inter]
    struct kern_buf *gate_up_bias, *down_bias; // NULL when the model has none
};

struct layer_weights {
    struct kern_buf *attn_norm, *mlp_norm; // [hidden]
    struct kern_weight *qkv;               // [qkv_rows][hidden]
    struct kern_buf *qkv_bias;             // [qkv_rows] or NULL
    struct kern_weight *o;                 // [hidden_l][heads * v_dim]
    struct kern_buf *o_bias;               // [hidden_l] or NULL
    struct kern_buf *q_norm, *k_norm;      // qwen3: [head_dim]
    // MLA
    struct kern_buf *q_a_norm;  // [q_lora]; NULL without q_lora
    struct kern_buf *kv_a_norm; // [kv_lora]
    struct kern_weight *q_b;    // [heads_l * head_dim][q_lora]; NULL without q_lora
    struct kern_weight *uk;     // heads_l x [kv_lora][nope_dim]: query -> latent query
    struct kern_weight *uv;     // heads_l x [v_dim][kv_lora]: latent context -> value
    struct mlp_weights mlp;     // of a dense layer; all NULL in others
    // Experts
    struct kern_weight *router;   // [experts][hidden]; NULL in a dense layer
    struct kern_buf *router_bias; // [experts] or NULL
    // Routed experts, then the shared ones, cut to the routed ones' size: (experts + shared) x
    // [inter_l][hidden], [hidden_l][inter].
    struct kern_weight *gate, *up, *down;
};

struct model_weights {
    struct kern_weight *embed;    // [vocab][hidden], first stage
    struct layer_weights *layers; // [plan.layers_n]
    struct kern_buf *norm;        // [hidden], last stage
    struct kern_weight *lm_head;  // [vocab_l][hidden], last stage
    size_t bytes;                 // of the checkpoint that this shard read
};

// Called from the loading thread, often.
struct model_progress {
    void (*report)(void *arg, size_t done, size_t total); // bytes of this shard; may be NULL
    bool (*cancelled)(void *arg); // true: the load ends, CANCELLED; from any thread; may be NULL
    void *arg;
};

struct model_weights_args {
    const struct model_source *source;
    const struct model_config *config; // of the source
    const struct model_plan *plan;
    const struct safetensors *files; // NULL: random weights
    struct kern *kern;
    struct model_progress progress;
};

// Looks at every tensor first and copies only when all are there with the right shape and dtype.
// BAD_MODEL names file and tensor.
STATUS_MUST_USE enum status model_weights_load(const struct model_weights_args *args,
                                               struct model_weights *out, struct errmsg *e);
// Tells of every tensor that the shard would read, without reading any; of some several times.
// scales: dtype etc. are set when t is quantized. Borrowed until return.
typedef void model_seen_fn(void *arg, const char *name, const struct tensor *t,
                           const struct tensor *scales);
STATUS_MUST_USE enum status model_weights_list(const struct model_weights_args *args,
                                               model_seen_fn *seen, void *arg, struct errmsg *e);
// Also of a zeroed or partly loaded struct.
void model_weights_unload(struct model_weights *w, const struct model_plan *plan);

// Changes when a file of the folder is written or replaced: cheap, nothing is opened. 0: cannot be
// read.
uint64_t model_folder_stamp(const char *dir);
