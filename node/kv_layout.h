// Which rank of one replica sends which part of a KV block to which rank of another, when the two
// need not be cut alike. Pure: both sides come to the same.
//
// A block's bytes at one rank are, per layer of its stage, rows [block_tokens][width]: MLA, the
// latent with its rope key, the same on every tensor rank; GQA, [K | V] of the rank's kv heads. The
// smallest thing that moves is a piece: one layer's rows of a run of heads (MLA: one "head", the
// whole row). It travels as [block_tokens][heads * dim] of K, then the same of V (MLA: rows once).
// The sender cuts; the receiver puts each piece where it belongs.
//
// What several source ranks have, one of them sends, so that the work is spread: of the tensor
// ranks that hold a head, target rank t is served by number (layer + t) mod their count.
#pragma once

#include "node/model/weights.h"

// One rank's share. `heads`: numbers in the model; MLA: one.
struct kv_share {
    int layer_first, layers_n;
    int head_first, heads_n;
};

struct kv_shape {
    uint32_t stages, tensor;
};

struct kv_layout {
    bool mla;
    int layers, heads; // of the model
    int dim;           // elements of a head in one strip: head_dim, or MLA: the whole row
    int strips;        // GQA: 2 (K, V); MLA: 1
    int block_tokens;
    int elem_bytes;
    struct model_config config;
};
void kv_layout_init(struct kv_layout *l, const struct model_config *config, int block_tokens,
                    int elem_bytes);
// BAD_CONFIG: the model cannot be cut like this.
STATUS_MUST_USE enum status kv_layout_share(const struct kv_layout *l, struct kv_shape shape,
                                            uint32_t rank, struct kv_share *out, struct errmsg *e);

// One layer's run of heads of every block of a transfer.
struct kv_piece {
    int layer;
    int head_first, heads_n;
};
size_t kv_piece_bytes(const struct kv_layout *l, const struct kv_piece *p);
// The pieces that rank `source` sends to rank `target`, for each block; at most layers * heads.
// Returns their number; *out is the caller's to free, NULL when there are none.
STATUS_MUST_USE enum status kv_layout_pieces(const struct kv_layout *l, struct kv_shape from,
                                             uint32_t source, struct kv_shape to, uint32_t target,
                                             struct kv_piece **out, uint32_t *n_out,
                                             struct errmsg *e);
