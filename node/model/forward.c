// The forward pass, told in kern calls. Read it top-down from forward_run: upload the batch, embed,
// the layers, norm and logits.
//
// Whatever is split over the tensor ranks is split by output rows: a rank computes its slice of a
// row, all-gathers the row (gather), and the next product reads whole rows. So there are three
// gathers per dense layer (attention values, residual, MLP activations) plus the residual again.
#include "node/model/forward.h"

#include <assert.h>
#include <time.h>

#include "node/model/inputs.h"

// Where a run is.
struct pass {
    struct model_shard *s;
    struct kern *k;
    struct kern_batch batch;       // batch.n rows are being computed
    const struct kern_batch *some; // the rows that narrow() leaves
    struct kern_buf *x;            // [n][hidden] residual stream
    struct kern_buf *qkv;          // [n][qkv_rows]
    bool attended;                 // these rows have been through a layer's attention
    int layer;                     // of this shard
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

static struct kern_rope_table rope_table_of(const struct model_shard *s)
{
    return (struct kern_rope_table){.table = s->rope,
                                    .positions = (size_t)s->max_context,
                                    .dim = (size_t)s->config.rope.dim,
                                    .style = s->config.mla ? KERN_ROPE_PAIRS : KERN_ROPE_HALVES};
}

static void rope(struct pass *p, struct kern_view x, size_t heads, size_t head_stride)
{
    const struct kern_rope_table r = rope_table_of(p->s);
    kern_rope(p->k, &(struct kern_rope_args){.n = p->batch.n,
                                             .heads = heads,
                                             .head_stride = head_stride,
                                             .dim = r.dim,
                                             .style = r.style,
                                             .x = x,
                                             .table = r.table,
                                             .positions = r.positions,
                                             .pos = p->batch.pos});
}

static struct kern_kv layer_kv(const struct pass *p)
{
    const struct model_shard *s = p->s;
    return (struct kern_kv){.buf = s->kv[p->layer],
                            .blocks = (size_t)s->kv_blocks + inputs_spare_blocks(s->kern),
                            .block_tokens = (size_t)s->block_tokens,
                            .width = (size_t)s->plan.kv_width};
}

// Once the last layer has stored its keys and values, only rows whose logits are wanted matter.
static void narrow(struct pass *p)
{
    struct model_shard *s = p->s;
    const size_t x = (size_t)s->rank.tensors * (size_t)s->plan.hidden.part;
    const size_t qkv = (size_t)s->plan.qkv_rows;
    if (!s->plan.last_stage || p->layer + 1 < s->plan.layers_n || p->some->n == p->batch.n)
        return;
    struct kern_gather_args g = {.n = p->some->n,
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
    p->batch = *p->some;
    p->attended = false;
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

    kern_mla_prepare(p->k, &(struct kern_mla_prepare_args){.batch = &p->batch,
                                                           .pool = layer_kv(p),
                                                           .kv_lora = latent,
                                                           .rope = rope_table_of(s),
                                                           .eps = (float)c->eps,
                                                           .kv = dense(p->qkv, q_at, rows),
                                                           .kv_norm = w->kv_a_norm,
                                                           .q = dense(p->qkv, 0, rows),
                                                           .q_norm = w->q_a_norm,
                                                           .q_dim = (size_t)c->q_lora,
                                                           .heads = heads,
                                                           .q_head_stride = hd,
                                                           .q_rope_at = nope});
    narrow(p);

    const size_t n = p->batch.n;
    struct kern_view q = dense(p->qkv, 0, rows); // [n][heads_l][nope | rope], or q_a [n][q_lora]
    if (c->q_lora) {
        struct kern_view out = dense(s->b.q, 0, heads * hd);
        kern_linear(p->k, &(struct kern_linear_args){.n = n, .w = w->q_b, .x = q, .out = out});
        q = out;
    }
    struct kern_view q_rope = dense(q.buf, q.at + nope, q.stride);
    struct kern_view q_latent = dense(s->b.q_latent, 0, heads * latent);
    struct kern_view ctx = dense(s->b.ctx, 0, heads * latent);
    if (c->q_lora)
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
                                                     .scale = (float)c->softmax_scale,
                                                     .same_rows = p->attended});
    p->attended = true;
    kern_linear_heads(p->k, &(struct kern_linear_heads_args){
                                .n = n,
                                .w = w->uv,
                                .x = ctx,
                                .x_head_stride = latent,
                                .out = slice(p, s->b.attn, (size_t)plan->heads.part * v),
                                .out_head_stride = v});
}

// Grouped-query attention; the cache holds [K | V] of the local kv heads.
static void attention_gqa(struct pass *p, const struct layer_weights *w)
{
    const struct model_shard *s = p->s;
    const struct model_config *c = &s->config;
    const struct model_plan *plan = &s->plan;
    const size_t rows = (size_t)plan->qkv_rows, hd = (size_t)c->head_dim;
    const size_t heads = (size_t)plan->heads.n, kv_heads = (size_t)plan->kv_heads.n;

    kern_gqa_prepare(p->k, &(struct kern_gqa_prepare_args){.batch = &p->batch,
                                                           .pool = layer_kv(p),
                                                           .heads = heads,
                                                           .kv_heads = kv_heads,
                                                           .head_dim = hd,
                                                           .rope = rope_table_of(s),
                                                           .qkv = dense(p->qkv, 0, rows),
                                                           .q_norm = w->q_norm,
                                                           .k_norm = w->k_norm,
                                                           .eps = (float)c->eps});
    narrow(p);
    kern_attn_gqa(p->k, &(struct kern_attn_gqa_args){
                            .batch = &p->batch,
                            .kv = layer_kv(p),
                            .heads = heads,
                            .kv_heads = kv_heads,
                            .head_dim = hd,
                            .q = dense(p->qkv, 0, rows), // [n][heads_l][hd]
                            .out = slice(p, s->b.attn, (size_t)plan->heads.part * hd),
                            .scale = (float)c->softmax_scale,
                            .same_rows = p->attended});
    p->attended = true;
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

// x += down(silu(gate(norm(x))) * up(norm(x))): this rank's rows.
static enum status mlp(struct pass *p, const struct layer_weights *l)
{
    const struct model_shard *s = p->s;
    const struct mlp_weights *w = &l->mlp;
    const struct model_split *inter = &s->plan.inter;
    const size_t n = p->batch.n, own = (size_t)inter->n, part = (size_t)inter->part;
    kern_gated(p->k, &(struct kern_gated_args){.n = n,
                                               .w = w->gate_up,
                                               .x = norm_x(p, l->mlp_norm),
                                               .bias = w->gate_up_bias,
                                               .tmp = dense(s->b.gate_up, 0, 2 * own),
                                               .out = slice(p, s->b.act, part)});
    enum status st = gather(p, s->b.act, n, part);
    if (st != STATUS_OK)
        return st;
    kern_linear(p->k, &(struct kern_linear_args){.n = n,
                                                 .w = w->down,
                                                 .x = whole(p, s->b.act, part),
                                                 .bias = w->down_bias,
                                                 .out = x_slice(p),
                                                 .add = x_slice(p)});
    return STATUS_OK;
}

// h = norm(x), and the experts that each row goes to.
static struct kern_view route(struct pass *p, const struct layer_weights *w)
{
    const struct model_shard *s = p->s;
    const struct moe_config *m = &s->config.moe;
    const size_t hidden = (size_t)s->config.hidden;
    struct kern_view h = dense(s->b.h, 0, hidden);
    kern_route(p->k, &(struct kern_route_args){
                         .x = whole(p, p->x, (size_t)s->plan.hidden.part),
                         .h = h,
                         .dim = hidden,
                         .gamma = w->mlp_norm,
                         .eps = (float)s->config.eps,
                         .w = w->router,
                         .router = {.n = p->batch.n,
                                    .experts = (size_t)m->experts,
                                    .topk = (size_t)m->per_token,
                                    .always = (size_t)m->shared,
                                    .kind = m->scoring == MOE_SIGMOID ? KERN_ROUTER_SIGMOID
                                                                      : KERN_ROUTER_SOFTMAX,
                                    .groups = (size_t)m->groups,
                                    .topk_groups = (size_t)m->groups_per_token,
                                    .norm = m->normalize,
                                    .scale = (float)m->routed_scale,
                                    .logits = dense(s->b.router, 0, (size_t)m->experts),
                                    .bias = w->router_bias,
                                    .ids = s->b.expert_ids,
                                    .weights = s->b.expert_gates}});
    return h;
}

// x += chosen and shared experts(norm(x)): this rank's rows.
static enum status experts(struct pass *p, const struct layer_weights *w)
{
    const struct model_shard *s = p->s;
    const struct moe_config *m = &s->config.moe;
    const size_t n = p->batch.n, topk = (size_t)(m->per_token + m->shared);
    const size_t part = (size_t)s->plan.expert_inter.part;
    struct kern_view h = route(p, w);
    kern_moe_gate_up(p->k, &(struct kern_moe_gate_up_args){.n = n,
                                                           .topk = topk,
                                                           .gate = w->gate,
                                                           .up = w->up,
                                                           .x = h,
                                                           .ids = s->b.expert_ids,
                                                           .out = slice(p, s->b.expert_act, part)});
    enum status st = gather(p, s->b.expert_act, n * topk, part);
    if (st != STATUS_OK)
        return st;
    kern_moe_down(p->k, &(struct kern_moe_down_args){.n = n,
                                                     .topk = topk,
                                                     .down = w->down,
                                                     .h = whole(p, s->b.expert_act, part),
                                                     .ids = s->b.expert_ids,
                                                     .weights = s->b.expert_gates,
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
    st = w->router ? experts(p, w) : mlp(p, w);
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
    enum status st = gather(p, s->b.logits, p->batch.n, part);
    if (st == STATUS_OK && s->b.best)
        kern_argmax(p->k, &(struct kern_argmax_args){.n = p->batch.n,
                                                     .dim = (size_t)s->config.vocab,
                                                     .x = whole(p, s->b.logits, part),
                                                     .out = s->b.best});
    return st;
}

// Later stages: the residual stream as the stage before left it.
static void send_hidden(struct model_shard *s, const struct forward_batch *b)
{
    const size_t stride = (size_t)s->rank.tensors * (size_t)s->plan.hidden.part;
    const size_t hidden = (size_t)s->config.hidden;
    if (b->hidden_there)
        return;
    if (stride == hidden)
        kern_upload(s->b.x, 0, b->hidden, b->rows * hidden);
    else
        for (size_t i = 0; i < b->rows; i++)
            kern_upload(s->b.x, i * stride, b->hidden + i * hidden, hidden);
}

static enum status all_layers(struct pass *p)
{
    struct model_shard *s = p->s;
    enum status st = STATUS_OK;
    if (s->plan.first_stage)
        kern_embed(p->k, &(struct kern_embed_args){
                             .n = p->batch.n,
                             .table = s->weights.embed,
                             .ids = s->b.ids,
                             .out = dense(p->x, 0,
                                          (size_t)s->rank.tensors * (size_t)s->plan.hidden.part)});
    for (; p->layer < s->plan.layers_n && st == STATUS_OK; p->layer++)
        st = layer(p);
    return st == STATUS_OK && s->plan.last_stage ? logits(p) : st;
}

enum status forward_run(struct model_shard *s, const struct forward_batch *b, struct errmsg *e)
{
    assert(s->comm);
    enum status st = inputs_check(s, b, e);
    if (st != STATUS_OK)
        return st;
    const struct inputs in = inputs_send(s, b);
    if (!s->plan.first_stage)
        send_hidden(s, b);
    struct pass p = {
        .s = s, .k = s->kern, .x = s->b.x, .qkv = s->b.qkv, .batch = in.all, .some = &in.some};
    report_step(&p, b->step);
    if (!kern_replay_begin(p.k, in.replay))
        st = all_layers(&p);
    enum status ended = kern_replay_end(p.k);
    st = st == STATUS_OK ? ended : st;
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

bool forward_best(const struct model_shard *s, size_t i, int32_t *id_out)
{
    assert(s->plan.last_stage && i < (size_t)s->max_logits);
    if (!s->b.best)
        return false;
    *id_out = ((const int32_t *)kern_buf_host(s->b.best))[i];
    return true;
}

struct kern_view forward_logits_view(const struct model_shard *s)
{
    assert(s->plan.last_stage);
    return (struct kern_view){s->b.logits, 0,
                              (size_t)s->rank.tensors * (size_t)s->plan.vocab.part};
}
