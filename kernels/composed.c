// The fused ops of kern.h as calls of the plain ones. Arguments were checked by kern.c, for the
// fused op as a whole, so the body's table is called directly.
#include "kernels/kern_impl.h"

void kern_composed_gated(struct kern *k, const struct kern_gated_args *a)
{
    const size_t inner = a->w->shape.rows / 2;
    struct kern_view up = a->tmp;
    up.at += inner;
    k->compute->linear(k, &(struct kern_linear_args){
                              .n = a->n, .w = a->w, .x = a->x, .out = a->tmp, .bias = a->bias});
    k->compute->silu_mul(k, &(struct kern_silu_mul_args){
                                .n = a->n, .dim = inner, .gate = a->tmp, .up = up, .out = a->out});
}

// A norm in place of `heads` runs of `dim`, side by side.
static void norm(struct kern *k, size_t n, size_t heads, size_t dim, struct kern_view x,
                 struct kern_buf *gamma, float eps)
{
    k->compute->rmsnorm(k, &(struct kern_rmsnorm_args){.n = n,
                                                       .dim = dim,
                                                       .heads = heads,
                                                       .x_head_stride = dim,
                                                       .out_head_stride = dim,
                                                       .x = x,
                                                       .out = x,
                                                       .gamma = gamma,
                                                       .eps = eps});
}

static void rope(struct kern *k, const struct kern_batch *batch, const struct kern_rope_table *r,
                 struct kern_view x, size_t heads, size_t head_stride)
{
    k->compute->rope(k, &(struct kern_rope_args){.n = batch->n,
                                                 .heads = heads,
                                                 .head_stride = head_stride,
                                                 .dim = r->dim,
                                                 .style = r->style,
                                                 .x = x,
                                                 .table = r->table,
                                                 .positions = r->positions,
                                                 .pos = batch->pos});
}

static void kv_write(struct kern *k, const struct kern_batch *batch, struct kern_kv pool,
                     struct kern_view row, size_t a_dim)
{
    struct kern_view b = row;
    b.at += a_dim;
    k->compute->kv_write(k, &(struct kern_kv_write_args){.batch = batch,
                                                         .kv = pool,
                                                         .a_dim = a_dim,
                                                         .b_dim = pool.width - a_dim,
                                                         .a = row,
                                                         .b = b});
}

void kern_composed_mla_prepare(struct kern *k, const struct kern_mla_prepare_args *a)
{
    struct kern_view key = a->kv, q_rope = a->q;
    key.at += a->kv_lora;
    q_rope.at += a->q_rope_at;
    norm(k, a->batch->n, 1, a->kv_lora, a->kv, a->kv_norm, a->eps);
    rope(k, a->batch, &a->rope, key, 1, a->rope.dim);
    kv_write(k, a->batch, a->pool, a->kv, a->kv_lora);
    if (a->q_norm)
        norm(k, a->batch->n, 1, a->q_dim, a->q, a->q_norm, a->eps);
    else
        rope(k, a->batch, &a->rope, q_rope, a->heads, a->q_head_stride);
}

void kern_composed_gqa_prepare(struct kern *k, const struct kern_gqa_prepare_args *a)
{
    const size_t dim = a->head_dim, kv = a->kv_heads * dim;
    struct kern_view key = a->qkv;
    key.at += a->heads * dim;
    if (a->q_norm) {
        norm(k, a->batch->n, a->kv_heads, dim, key, a->k_norm, a->eps);
        norm(k, a->batch->n, a->heads, dim, a->qkv, a->q_norm, a->eps);
    }
    rope(k, a->batch, &a->rope, key, a->kv_heads, dim);
    rope(k, a->batch, &a->rope, a->qkv, a->heads, dim);
    kv_write(k, a->batch, a->pool, key, kv);
}

void kern_composed_route(struct kern *k, const struct kern_route_args *a)
{
    const size_t n = a->router.n;
    k->compute->rmsnorm(k, &(struct kern_rmsnorm_args){.n = n,
                                                       .dim = a->dim,
                                                       .heads = 1,
                                                       .x = a->x,
                                                       .out = a->h,
                                                       .gamma = a->gamma,
                                                       .eps = a->eps});
    k->compute->linear(
        k, &(struct kern_linear_args){.n = n, .w = a->w, .x = a->h, .out = a->router.logits});
    k->compute->router(k, &a->router);
}
