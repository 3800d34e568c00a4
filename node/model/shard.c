// Opens and closes a shard: reads the folder, loads the weights, makes the buffers. No memory is
// taken after that.
#include "node/model/shard.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/mem.h"
#include "node/model/inputs.h"
#include "node/model/rope.h"
#include "node/model/safetensors.h"

static enum status open_weights(struct model_shard *s, const struct model_shard_args *args,
                                struct errmsg *e)
{
    const struct model_source *source = &args->source;
    enum status st = model_source_config(source, &s->config, e);
    if (st == STATUS_OK)
        st = model_plan_make(&s->config, &s->rank, &s->plan, e);
    struct safetensors *files = NULL;
    if (st == STATUS_OK)
        st = model_source_open(source, &files, e);
    if (st == STATUS_OK)
        st = model_fingerprint(source, files, &s->fingerprint, e);
    if (st == STATUS_OK && args->fingerprint && s->fingerprint != args->fingerprint)
        st = errmsg_set(e, STATUS_BAD_MODEL,
                        "another model: its fingerprint is %016" PRIx64 ", not %016" PRIx64,
                        s->fingerprint, args->fingerprint);
    if (st == STATUS_OK) {
        struct model_weights_args w = {source, &s->config, &s->plan,
                                       files,  s->kern,    args->progress};
        st = model_weights_load(&w, &s->weights, e);
    }
    safetensors_close(files);
    return st;
}

// One row of the table of buffers to make.
struct want {
    struct kern_buf **out;
    enum kern_dtype dtype;
    size_t n; // elements; 0 = this shard does not use it
};

static enum status make_bufs(struct model_shard *s, const struct want *w, size_t n,
                             struct errmsg *e)
{
    for (size_t i = 0; i < n; i++) {
        if (!w[i].n)
            continue;
        enum status st = kern_buf_create(s->kern, w[i].dtype, w[i].n, w[i].out);
        if (st != STATUS_OK)
            return errmsg_set(e, st, "%s: no memory for a buffer of %zu elements",
                              kern_describe(s->kern), w[i].n);
    }
    return STATUS_OK;
}

static enum status make_step_bufs(struct model_shard *s, struct errmsg *e)
{
    const struct model_config *c = &s->config;
    const struct model_plan *p = &s->plan;
    struct model_buffers *b = &s->b;
    const size_t n = (size_t)s->max_rows, m = p->last_stage ? (size_t)s->max_logits : 0;
    const size_t t = (size_t)s->rank.tensors, topk = (size_t)(c->moe.per_token + c->moe.shared);
    const size_t x = t * (size_t)p->hidden.part, heads = (size_t)p->heads.n;
    const size_t inter = (size_t)p->inter.part;
    const size_t lat = c->mla ? heads * (size_t)c->kv_lora : 0;
    const size_t moe = p->expert_inter.part > 0;
    const enum kern_dtype act = kern_act_dtype(s->kern);
    const struct want wants[] = {
        {&b->x, KERN_F32, n * x},
        {&b->x_m, KERN_F32, m * x},
        {&b->h, act, n * (size_t)c->hidden},
        {&b->qkv, act, n * (size_t)p->qkv_rows},
        {&b->qkv_m, act, m * (size_t)p->qkv_rows},
        {&b->q, act, c->q_lora ? n * heads * (size_t)c->head_dim : 0},
        {&b->q_latent, act, n * lat},
        {&b->ctx, act, n * lat},
        {&b->attn, act, n * t * (size_t)p->heads.part * (size_t)c->v_dim},
        {&b->gate_up, act, n * 2 * inter},
        {&b->act, act, n * t * inter},
        {&b->router, KERN_F32, moe * n * (size_t)c->moe.experts},
        {&b->expert_ids, KERN_I32, moe * n * topk},
        {&b->expert_gates, KERN_F32, moe * n * topk},
        {&b->expert_act, act, n * topk * t * (size_t)p->expert_inter.part},
        {&b->logits, KERN_F32, m * t * (size_t)p->vocab.part},
        {&b->inputs, KERN_I32, inputs_size(s)},
    };
    s->host = mem_zalloc(inputs_size(s), sizeof *s->host);
    enum status st = make_bufs(s, wants, sizeof wants / sizeof *wants, e);
    struct kern_buf **windows[] = {&b->ids,   &b->seq,   &b->pos,   &b->rows,
                                   &b->seq_m, &b->pos_m, &b->tables};
    for (size_t i = 0; i < sizeof windows / sizeof *windows && st == STATUS_OK; i++)
        st = kern_buf_window_create(b->inputs, windows[i]);
    if (st == STATUS_OK && m && kern_backend(s->kern) == KERN_CUDA)
        st = kern_buf_create_shared(s->kern, KERN_I32, m, &b->best);
    return st;
}

static enum status make_kv(struct model_shard *s, struct errmsg *e)
{
    size_t blocks = (size_t)s->kv_blocks + inputs_spare_blocks(s->kern);
    size_t n = blocks * (size_t)s->block_tokens * (size_t)s->plan.kv_width;
    for (int i = 0; i < s->plan.layers_n; i++) {
        struct want w = {&s->kv[i], kern_kv_dtype(s->kern), n};
        enum status st = make_bufs(s, &w, 1, e);
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

static void free_kv(struct model_shard *s)
{
    for (int i = 0; s->kv && i < s->plan.layers_n; i++) {
        kern_buf_destroy(s->kv[i]);
        s->kv[i] = NULL;
    }
}

enum status model_shard_resize_kv(struct model_shard *s, int kv_blocks, struct errmsg *e)
{
    assert(kv_blocks > 0);
    free_kv(s);
    s->kv_blocks = kv_blocks;
    enum status st = make_kv(s, e);
    if (st == STATUS_OK)
        return st;
    struct errmsg ignored;
    free_kv(s);
    s->kv_blocks = 1;
    if (make_kv(s, &ignored) != STATUS_OK)
        abort(); // there was room for it when the shard was opened
    return st;
}

// The kern wants cos and sin of a position side by side.
static enum status make_rope(struct model_shard *s, struct errmsg *e)
{
    const size_t half = (size_t)s->config.rope.dim / 2, n = (size_t)s->max_context;
    struct want w = {&s->rope, KERN_F32, n * 2 * half};
    enum status st = make_bufs(s, &w, 1, e);
    if (st != STATUS_OK)
        return st;
    float *table = mem_alloc(n * 2 * half * sizeof *table);
    rope_table(&s->config.rope, s->max_context, table);
    kern_upload(s->rope, 0, table, n * 2 * half);
    free(table);
    return STATUS_OK;
}

static void set_sizes(struct model_shard *s, const struct model_shard_args *a)
{
    int context = s->config.context;
    s->max_context = a->max_context && a->max_context < context ? a->max_context : context;
    s->max_rows = a->max_rows;
    s->max_seqs = a->max_seqs;
    s->max_logits = a->max_logits ? a->max_logits : a->max_seqs;
    s->block_tokens = a->block_tokens ? a->block_tokens : MODEL_BLOCK_TOKENS;
    s->kv_blocks = a->kv_blocks;
}

enum status model_shard_open(const struct model_shard_args *args, struct model_shard **out,
                             struct errmsg *e)
{
    assert(args->max_rows > 0 && args->max_seqs > 0 && args->kv_blocks > 0);
    assert(args->max_context >= 0 && args->max_logits >= 0 && args->block_tokens >= 0);
    struct model_shard *s = mem_zalloc(1, sizeof *s);
    s->kern = args->kern;
    s->rank = args->rank;
    enum status st = open_weights(s, args, e);
    if (st == STATUS_OK) {
        set_sizes(s, args);
        st = make_rope(s, e);
    }
    s->kv = mem_zalloc(s->plan.layers_n ? (size_t)s->plan.layers_n : 1, sizeof *s->kv);
    if (st == STATUS_OK)
        st = make_kv(s, e);
    if (st == STATUS_OK)
        st = make_step_bufs(s, e);
    if (st == STATUS_OK)
        *out = s;
    else
        model_shard_close(s);
    return st;
}

void model_shard_attach(struct model_shard *s, struct comm *comm)
{
    assert(!comm || (comm_size(comm) == s->rank.tensors && comm_rank(comm) == s->rank.tensor));
    s->comm = comm;
    s->attached++;
}

void model_shard_close(struct model_shard *s)
{
    if (!s)
        return;
    model_weights_unload(&s->weights, &s->plan);
    free_kv(s);
    free(s->kv);
    kern_buf_destroy(s->rope);
    struct model_buffers *b = &s->b;
    struct kern_buf *bufs[] = {
        b->x,          b->x_m,          b->h,          b->qkv,     b->qkv_m,  b->q,
        b->q_latent,   b->ctx,          b->attn,       b->gate_up, b->act,    b->router,
        b->expert_ids, b->expert_gates, b->expert_act, b->logits,  b->ids,    b->seq,
        b->pos,        b->rows,         b->seq_m,      b->pos_m,   b->tables, b->inputs,
        b->best};
    for (size_t i = 0; i < sizeof bufs / sizeof *bufs; i++)
        kern_buf_destroy(bufs[i]);
    free(s->host);
    free(s);
}
