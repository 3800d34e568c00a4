// The forward pass, told in kern calls. Read it top-down from forward_run: upload the batch, embed,
// the layers, norm and logits.
//
// Whatever is split over the tensor ranks is split by output rows: a rank computes its slice of a
// row, all-gathers the row (gather), and the next product reads whole rows. So there are three
// gathers per dense layer (attention values, residual, MLP activations) plus the residual again.
#include "node/model/forward.h"

#include <assert.h>
#include <time.h>

// Where a run is.
struct pass {
    struct model_shard *s;
    struct kern *k;
    struct kern_batch batch; // batch.n rows are being computed
    struct kern_buf *x;      // [n][hidden] residual stream
    struct kern_buf *qkv;    // [n][qkv_rows]
    size_t logits_n;
    int layer; // of this shard
};

static struct kern_view dense(struct kern_buf *buf, size_t at, size_t stride)
{
    return (struct kern_view){buf, at, stride};
}

// This rank's slice of gathered rows, and the whole rows.
static struct kern_view slice(const struct pass *p, struct kern_buf *buf, size_t part)
{
    return dense(buf, (size_t)p->s->rank.tensor * part, (size_t)p->s->rank.tensors * part);
}

static struct kern_view whole(const struct pass *p, struct kern_buf *buf, size_t part)
{
    return dense(buf, 0, (size_t)p->s->rank.tensors * part);
}

static struct kern_view x_slice(const struct pass *p)
{
    return slice(p, p->x, (size_t)p->s->plan.hidden.part);
}

// So that a stuck rank can be named; collectives report themselves.
static void report_layer(const struct pass *p)
{
    struct comm_progress *g = comm_progress(p->s->comm);
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint32_t layer = (uint32_t)(p->s->plan.layer_first + p->layer);
    atomic_store_explicit(&g->layer, layer, memory_order_relaxed);
    atomic_store_explicit(&g->changed_us, (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000,
                          memory_order_relaxed);
}

static void report_step(const struct pass *p, uint64_t step)
{
    struct comm_progress *g = comm_progress(p->s->comm);
    atomic_store_explicit(&g->collective, 0, memory_order_relaxed);
    atomic_store_explicit(&g->step, step, memory_order_relaxed);
}

static enum status gather(struct pass *p, struct kern_buf *buf, size_t rows, size_t part)
{
    if (p->s->rank.tensors == 1 || rows == 0)
        return STATUS_OK;
    return comm_gather(p->s->comm, p->k, buf, rows, part);
}

static void norm(struct pass *p, struct kern_buf *gamma, struct kern_view x, struct kern_view out,
                 size_t dim)
{
    kern_rmsnorm(p->k, &(struct kern_rmsnorm_args){.n = p->batch.n,
                                                   .dim = dim,
                                                   .x = x,
                                                   .out = out,
                                                   .gamma = gamma,
                                                   .eps = (float)p->s->config.eps});
}

// x normalised into h.
static struct kern_view norm_x(struct pass *p, struct kern_buf *gamma)
{
    struct kern_view h = dense(p->s->b.h, 0, (size_t)p->s->config.hidden);
    norm(p, gamma, whole(p, p->x, (size_t)p->s->plan.hidden.part), h, (size_t)p->s->config.hidden);
    return h;
}

static void rope(struct pass *p, struct kern_view x, size_t heads, size_t head_stride)
{
    const struct model_shard *s = p->s;
    kern_rope(p->k,
              &(struct kern_rope_args){.n = p->batch.n,
                                       .heads = heads,
                                       .head_stride = head_stride,
                                       .dim = (size_t)s->config.rope.dim,
                                       .style = s->config.mla ? KERN_ROPE_PAIRS : KERN_ROPE_HALVES,
                                       .x = x,
                                       .table = s->rope,
                                       .positions = (size_t)s->max_context,
                                       .pos = p->batch.pos});
}

static struct kern_kv layer_kv(const struct pass *p)
{
    const struct model_shard *s = p->s;
    return (struct kern_kv){.buf = s->kv[p->layer],
                            .blocks = (size_t)s->kv_blocks,
                            .block_tokens = (size_t)s->block_tokens,
                            .width = (size_t)s->plan.kv_width};
}

static void kv_write(struct pass *p, size_t a_dim, size_t b_dim)
{
    const size_t stride = (size_t)p->s->plan.qkv_rows, at = (size_t)p->s->plan.q_rows;
    kern_kv_write(p->k, &(struct kern_kv_write_args){.batch = &p->batch,
                                                     .kv = layer_kv(p),
                                                     .a_dim = a_dim,
                                                     .b_dim = b_dim,
                                                     .a = dense(p->qkv, at, stride),
                                                     .b = dense(p->qkv, at + a_dim, stride)});
}

// Once the last layer has stored its keys and values, only rows whose logits are wanted matter.
static void narrow(struct pass *p)
{
    struct model_shard *s = p->s;
    const size_t x = (size_t)s->rank.tensors * (size_t)s->plan.hidden.part;
    const size_t qkv = (size_t)s->plan.qkv_rows;
    if (!s->plan.last_stage || p->layer + 1 < s->plan.layers_n || p->logits_n == p->batch.n)
        return;
    struct kern_gather_args g = {.n = p->logits_n,
                                 .dim = x,
                                 .x_rows = p->batch.n,
                                 .x = dense(p->x, 0, x),
                                 .rows = s->b.rows,
                                 .out = dense(s->b.x_m, 0, x)};
    kern_gather_rows(p->k, &g);
    g.dim = qkv;
    g.x = dense(p->qkv, 0, qkv);
    g.out = dense(s->b.qkv_m, 0, qkv);
    kern_gather_rows(p->k, &g);
    p->x = s->b.x_m;
    p->qkv = s->b.qkv_m;
    p->batch.n = p->logits_n;
    p->batch.seq = s->b.seq_m;
    p->batch.pos = s->b.pos_m;
}

// Multi-head latent attention, absorbed (DeepSeek-V2, section 2.1): the cache holds [latent | rope
// key], queries are taken into the latent space (uk), attended latents out of it (uv).
static void attention_mla(struct pass *p, const struct layer_weights *w)
{
    const struct model_shard *s = p->s;
    const struct model_config *c = &s->config;
    const struct model_plan *plan = &s->plan;
    const size_t rows = (size_t)plan->qkv_rows, q_at = (size_t)plan->q_rows;
    const size_t latent = (size_t)c->kv_lora, hd = (size_t)c->head_dim;
    const size_t heads = (size_t)plan->heads.n, nope = (size_t)c->nope_dim, v = (size_t)c->v_dim;

    struct kern_view kv = dense(p->qkv, q_at, rows); // [n][kv_lora | rope_dim]
    norm(p, w->kv_a_norm, kv, kv, latent);
    rope(p, dense(p->qkv, q_at + latent, rows), 1, (size_t)c->rope_dim);
    kv_write(p, latent, (size_t)c->rope_dim);
    narrow(p);

    const size_t n = p->batch.n;
    struct kern_view q = dense(p->qkv, 0, rows); // [n][heads_l][nope | rope], or q_a [n][q_lora]
    if (c->q_lora) {
        norm(p, w->q_a_norm, q, q, (size_t)c->q_lora);
        struct kern_view out = dense(s->b.q, 0, heads * hd);
        kern_linear(p->k, &(struct kern_linear_args){.n = n, .w = w->q_b, .x = q, .out = out});
        q = out;
    }
    struct kern_view q_rope = dense(q.buf, q.at + nope, q.stride);
    struct kern_view q_latent = dense(s->b.q_latent, 0, heads * latent);
    struct kern_view ctx = dense(s->b.ctx, 0, heads * latent);
    rope(p, q_rope, heads, hd);
    kern_linear_heads(p->k, &(struct kern_linear_heads_args){.n = n,
                                                             .w = w->uk,
                                                             .x = q,
                                                             .x_head_stride = hd,
                                                             .out = q_latent,
                                                             .out_head_stride = latent});
    kern_attn_mla(p->k, &(struct kern_attn_mla_args){.batch = &p->batch,
                                                     .kv = layer_kv(p),
                                                     .heads = heads,
                                                     .kv_lora = latent,
                                                     .rope_dim = (size_t)c->rope_dim,
                                                     .q_latent = q_latent,
                                                     .q_latent_head_stride = latent,
                                                     .q_rope = q_rope,
                                                     .q_rope_head_stride = hd,
                                                     .out = ctx,
                                                     .scale = (float)c->softmax_scale});
    kern_linear_heads(p->k, &(struct kern_linear_heads_args){
                                .n = n,
                                .w = w->uv,
                                .x = ctx,
                                .x_head_stride = latent,
                                .out = slice(p, s->b.attn, (size_t)plan->heads.part * v),
                                .out_head_stride = v});
}

static void norm_heads(struct pass *p, struct kern_buf *gamma, struct kern_view x, size_t heads)
{
    const size_t hd = (size_t)p->s->config.head_dim;
    kern_rmsnorm(p->k, &(struct kern_rmsnorm_args){.n = p->batch.n,
                                                   .dim = hd,
                                                   .heads = heads,
                                                   .x_head_stride = hd,
                                                   .out_head_stride = hd,
                                                   .x = x,
                                                   .out = x,
                                                   .gamma = gamma,
                                                   .eps = (float)p->s->config.eps});
}

// Grouped-query attention; the cache holds [K | V] of the local kv heads.
static void attention_gqa(struct pass *p, const struct layer_weights *w)
{
    const struct model_shard *s = p->s;
    const struct model_config *c = &s->config;
    const struct model_plan *plan = &s->plan;
    const size_t rows = (size_t)plan->qkv_rows, hd = (size_t)c->head_dim;
    const size_t heads = (size_t)plan->heads.n, kv_heads = (size_t)plan->kv_heads.n;

    struct kern_view key = dense(p->qkv, (size_t)plan->q_rows, rows); // [n][kv_heads_l][hd]
    if (c->qk_norm)
        norm_heads(p, w->k_norm, key, kv_heads);
    rope(p, key, kv_heads, hd);
    kv_write(p, kv_heads * hd, kv_heads * hd);
    narrow(p);

    struct kern_view q = dense(p->qkv, 0, rows); // [n][heads_l][hd]
    if (c->qk_norm)
        norm_heads(p, w->q_norm, q, heads);
    rope(p, q, heads, hd);
    kern_attn_gqa(p->k, &(struct kern_attn_gqa_args){
                            .batch = &p->batch,
                            .kv = layer_kv(p),
                            .heads = heads,
                            .kv_heads = kv_heads,
                            .head_dim = hd,
                            .q = q,
                            .out = slice(p, s->b.attn, (size_t)plan->heads.part * hd),
                            .scale = (float)c->softmax_scale});
}

// x += o(attention(norm(x))), gathered.
static enum status attention(struct pass *p, const struct layer_weights *w)
{
    const struct model_shard *s = p->s;
    struct kern_view h = norm_x(p, w->attn_norm);
    kern_linear(p->k,
                &(struct kern_linear_args){.n = p->batch.n,
                                           .w = w->qkv,
                                           .x = h,
                                           .bias = w->qkv_bias,
                                           .out = dense(p->qkv, 0, (size_t)s->plan.qkv_rows)});
    if (s->config.mla)
        attention_mla(p, w);
    else
        attention_gqa(p, w);
    const size_t part = (size_t)s->plan.heads.part * (size_t)s->config.v_dim, n = p->batch.n;
    enum status st = gather(p, s->b.attn, n, part);
    if (st != STATUS_OK)
        return st;
    kern_linear(p->k, &(struct kern_linear_args){.n = n,
                                                 .w = w->o,
                                                 .x = whole(p, s->b.attn, part),
                                                 .bias = w->o_bias,
                                                 .out = x_slice(p),
                                                 .add = x_slice(p)});
    return gather(p, p->x, n, (size_t)s->plan.hidden.part);
}

// out = down(silu(gate(h)) * up(h)) [+ add]: this rank's rows of the output, not gathered.
static enum status mlp(struct pass *p, const struct mlp_weights *w, const struct model_split *inter,
                       struct kern_view h, struct kern_view out, struct kern_view add)
{
    const struct model_shard *s = p->s;
    const size_t n = p->batch.n, own = (size_t)inter->n, part = (size_t)inter->part;
    kern_linear(p->k, &(struct kern_linear_args){.n = n,
                                                 .w = w->gate_up,
                                                 .x = h,
                                                 .bias = w->gate_up_bias,
                                                 .out = dense(s->b.gate_up, 0, 2 * own)});
    kern_silu_mul(p->k, &(struct kern_silu_mul_args){.n = n,
                                                     .dim = own,
                                                     .gate = dense(s->b.gate_up, 0, 2 * own),
                                                     .up = dense(s->b.gate_up, own, 2 * own),
                                                     .out = slice(p, s->b.act, part)});
    enum status st = gather(p, s->b.act, n, part);
    if (st != STATUS_OK)
        return st;
    kern_linear(p->k, &(struct kern_linear_args){.n = n,
                                                 .w = w->down,
                                                 .x = whole(p, s->b.act, part),
                                                 .bias = w->down_bias,
                                                 .out = out,
                                                 .add = add});
    return STATUS_OK;
}

static void route(struct pass *p, const struct layer_weights *w, struct kern_view h)
{
    const struct model_shard *s = p->s;
    const struct moe_config *m = &s->config.moe;
    struct kern_view logits = dense(s->b.router, 0, (size_t)m->experts);
    kern_linear(p->k,
                &(struct kern_linear_args){.n = p->batch.n, .w = w->router, .x = h, .out = logits});
    kern_router(p->k,
                &(struct kern_router_args){.n = p->batch.n,
                                           .experts = (size_t)m->experts,
                                           .topk = (size_t)m->per_token,
                                           .kind = m->scoring == MOE_SIGMOID ? KERN_ROUTER_SIGMOID
                                                                             : KERN_ROUTER_SOFTMAX,
                                           .groups = (size_t)m->groups,
                                           .topk_groups = (size_t)m->groups_per_token,
                                           .norm = m->normalize,
                                           .scale = (float)m->routed_scale,
                                           .logits = logits,
                                           .bias = w->router_bias,
                                           .ids = s->b.expert_ids,
                                           .weights = s->b.expert_gates});
}

// x += chosen experts(h) + shared experts(h): this rank's rows.
static enum status experts(struct pass *p, const struct layer_weights *w, struct kern_view h)
{
    const struct model_shard *s = p->s;
    const size_t n = p->batch.n, topk = (size_t)s->config.moe.per_token;
    const size_t part = (size_t)s->plan.expert_inter.part;
    struct kern_view shared = {0}, none = {0};
    enum status st = STATUS_OK;
    route(p, w, h);
    kern_moe_gate_up(p->k, &(struct kern_moe_gate_up_args){.n = n,
                                                           .topk = topk,
                                                           .gate = w->gate,
                                                           .up = w->up,
                                                           .x = h,
                                                           .ids = s->b.expert_ids,
                                                           .out = slice(p, s->b.expert_act, part)});
    if (s->config.moe.shared) {
        shared = dense(s->b.shared, 0, (size_t)s->plan.hidden.n);
        st = mlp(p, &w->mlp, &s->plan.shared_inter, h, shared, none);
    }
    if (st == STATUS_OK)
        st = gather(p, s->b.expert_act, n * topk, part);
    if (st != STATUS_OK)
        return st;
    kern_moe_down(p->k, &(struct kern_moe_down_args){.n = n,
                                                     .topk = topk,
                                                     .down = w->down,
                                                     .h = whole(p, s->b.expert_act, part),
                                                     .ids = s->b.expert_ids,
                                                     .weights = s->b.expert_gates,
                                                     .shared = shared,
                                                     .residual = x_slice(p),
                                                     .out = x_slice(p)});
    return STATUS_OK;
}

static enum status layer(struct pass *p)
{
    const struct model_shard *s = p->s;
    const struct layer_weights *w = &s->weights.layers[p->layer];
    report_layer(p);
    enum status st = attention(p, w);
    if (st != STATUS_OK)
        return st;
    struct kern_view h = norm_x(p, w->mlp_norm);
    st = w->router ? experts(p, w, h) : mlp(p, &w->mlp, &s->plan.inter, h, x_slice(p), x_slice(p));
    return st == STATUS_OK ? gather(p, p->x, p->batch.n, (size_t)s->plan.hidden.part) : st;
}

static enum status logits(struct pass *p)
{
    const struct model_shard *s = p->s;
    const size_t part = (size_t)s->plan.vocab.part;
    struct kern_view h = norm_x(p, s->weights.norm);
    kern_linear(p->k, &(struct kern_linear_args){.n = p->batch.n,
                                                 .w = s->weights.lm_head,
                                                 .x = h,
                                                 .out = slice(p, s->b.logits, part)});
    return gather(p, s->b.logits, p->batch.n, part);
}

static enum status check_seqs(const struct model_shard *s, const struct forward_batch *b,
                              struct errmsg *e)
{
    const size_t max =
        ((size_t)s->max_context + (size_t)s->block_tokens - 1) / (size_t)s->block_tokens;
    for (size_t i = 0; i < b->seqs_n; i++) {
        if (b->seqs[i].blocks_n > max)
            return errmsg_set(e, STATUS_BAD_REQUEST, "sequence %zu: %zu blocks, at most %zu", i,
                              b->seqs[i].blocks_n, max);
        for (size_t j = 0; j < b->seqs[i].blocks_n; j++)
            if (b->seqs[i].blocks[j] >= (uint32_t)s->kv_blocks)
                return errmsg_set(e, STATUS_BAD_REQUEST,
                                  "sequence %zu: no block %u in a pool of %d", i,
                                  b->seqs[i].blocks[j], s->kv_blocks);
    }
    return STATUS_OK;
}

static enum status check_row(const struct model_shard *s, const struct forward_batch *b, size_t i,
                             struct errmsg *e)
{
    if (b->seq[i] < 0 || (size_t)b->seq[i] >= b->seqs_n)
        return errmsg_set(e, STATUS_BAD_REQUEST, "row %zu: no sequence %d in this batch", i,
                          b->seq[i]);
    size_t room = b->seqs[b->seq[i]].blocks_n * (size_t)s->block_tokens;
    if (b->pos[i] < 0 || b->pos[i] >= s->max_context || (size_t)b->pos[i] >= room)
        return errmsg_set(e, STATUS_BAD_REQUEST,
                          "row %zu: position %d, context is %d, blocks hold %zu", i, b->pos[i],
                          s->max_context, room);
    if (s->plan.first_stage && (b->tokens[i] < 0 || b->tokens[i] >= s->config.vocab))
        return errmsg_set(e, STATUS_BAD_REQUEST, "row %zu: token %d is not in a vocabulary of %d",
                          i, b->tokens[i], s->config.vocab);
    return STATUS_OK;
}

static enum status check_batch(const struct model_shard *s, const struct forward_batch *b,
                               struct errmsg *e)
{
    if (b->rows < 1 || b->rows > (size_t)s->max_rows || b->seqs_n > (size_t)s->max_seqs)
        return errmsg_set(e, STATUS_BAD_REQUEST, "%zu rows of %zu sequences, at most %d of %d",
                          b->rows, b->seqs_n, s->max_rows, s->max_seqs);
    if (b->logits_n > (size_t)s->max_logits)
        return errmsg_set(e, STATUS_BAD_REQUEST, "%zu rows of logits, at most %d", b->logits_n,
                          s->max_logits);
    enum status st = check_seqs(s, b, e);
    for (size_t i = 0; i < b->rows && st == STATUS_OK; i++)
        st = check_row(s, b, i, e);
    for (size_t i = 0; i < b->logits_n && st == STATUS_OK; i++)
        if (b->logit_rows[i] < 0 || (size_t)b->logit_rows[i] >= b->rows ||
            (i && b->logit_rows[i] <= b->logit_rows[i - 1]))
            st = errmsg_set(e, STATUS_BAD_REQUEST, "logit_rows[%zu] = %d: must rise and be < %zu",
                            i, b->logit_rows[i], b->rows);
    return st;
}

static void upload_tables(struct model_shard *s, const struct forward_batch *b,
                          struct kern_batch *out)
{
    size_t stride = 1;
    for (size_t i = 0; i < b->seqs_n; i++)
        stride = b->seqs[i].blocks_n > stride ? b->seqs[i].blocks_n : stride;
    for (size_t i = 0; i < b->seqs_n; i++)
        for (size_t j = 0; j < stride; j++)
            s->host[i * stride + j] = j < b->seqs[i].blocks_n ? (int32_t)b->seqs[i].blocks[j] : 0;
    kern_upload(s->b.tables, 0, s->host, b->seqs_n * stride);
    out->tables = s->b.tables;
    out->seqs = b->seqs_n;
    out->table_stride = stride;
}

static void upload_logit_rows(struct model_shard *s, const struct forward_batch *b)
{
    if (!s->plan.last_stage)
        return;
    kern_upload(s->b.rows, 0, b->logit_rows, b->logits_n);
    for (size_t i = 0; i < b->logits_n; i++)
        s->host[i] = b->seq[b->logit_rows[i]];
    kern_upload(s->b.seq_m, 0, s->host, b->logits_n);
    for (size_t i = 0; i < b->logits_n; i++)
        s->host[i] = b->pos[b->logit_rows[i]];
    kern_upload(s->b.pos_m, 0, s->host, b->logits_n);
}

// The residual stream's first value: embeddings, or the hidden states of the stage before.
static void enter(struct pass *p, const struct forward_batch *b)
{
    struct model_shard *s = p->s;
    const size_t stride = (size_t)s->rank.tensors * (size_t)s->plan.hidden.part;
    const size_t hidden = (size_t)s->config.hidden;
    if (s->plan.first_stage) {
        kern_upload(s->b.ids, 0, b->tokens, b->rows);
        kern_embed(p->k, &(struct kern_embed_args){.n = b->rows,
                                                   .table = s->weights.embed,
                                                   .ids = s->b.ids,
                                                   .out = dense(p->x, 0, stride)});
        return;
    }
    if (b->hidden_there)
        return;
    if (stride == hidden)
        kern_upload(p->x, 0, b->hidden, b->rows * hidden);
    else
        for (size_t i = 0; i < b->rows; i++)
            kern_upload(p->x, i * stride, b->hidden + i * hidden, hidden);
}

enum status forward_run(struct model_shard *s, const struct forward_batch *b, struct errmsg *e)
{
    assert(s->comm);
    enum status st = check_batch(s, b, e);
    if (st != STATUS_OK)
        return st;
    struct pass p = {.s = s,
                     .k = s->kern,
                     .x = s->b.x,
                     .qkv = s->b.qkv,
                     .logits_n = b->logits_n,
                     .batch = {.n = b->rows, .seq = s->b.seq, .pos = s->b.pos}};
    report_step(&p, b->step);
    for (size_t i = 0; i < b->rows; i++)
        if ((size_t)b->pos[i] >= p.batch.keys_max)
            p.batch.keys_max = (size_t)b->pos[i] + 1;
    kern_upload(s->b.seq, 0, b->seq, b->rows);
    kern_upload(s->b.pos, 0, b->pos, b->rows);
    upload_tables(s, b, &p.batch);
    upload_logit_rows(s, b);
    enter(&p, b);
    for (; p.layer < s->plan.layers_n && st == STATUS_OK; p.layer++)
        st = layer(&p);
    if (st == STATUS_OK && s->plan.last_stage)
        st = logits(&p);
    // Also after a failure: peers and device may be in the middle of what was enqueued.
    enum status synced = comm_sync(s->comm, p.k);
    st = st == STATUS_OK ? synced : st;
    report_step(&p, 0);
    return st == STATUS_OK
               ? st
               : errmsg_set(e, st, "step %llu, layer %d: %s", (unsigned long long)b->step,
                            s->plan.layer_first + p.layer, status_text(st));
}

enum status forward_hidden(struct model_shard *s, size_t rows, float *out)
{
    const size_t stride = (size_t)s->rank.tensors * (size_t)s->plan.hidden.part;
    const size_t hidden = (size_t)s->config.hidden;
    assert(!s->plan.last_stage && rows <= (size_t)s->max_rows);
    if (stride == hidden)
        return kern_download(out, s->b.x, 0, rows * hidden);
    enum status st = STATUS_OK;
    for (size_t i = 0; i < rows && st == STATUS_OK; i++)
        st = kern_download(out + i * hidden, s->b.x, i * stride, hidden);
    return st;
}

enum status forward_logits(struct model_shard *s, size_t i, float *out)
{
    const size_t stride = (size_t)s->rank.tensors * (size_t)s->plan.vocab.part;
    assert(s->plan.last_stage && i < (size_t)s->max_logits);
    return kern_download(out, s->b.logits, i * stride, (size_t)s->config.vocab);
}
