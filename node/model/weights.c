// Knows the names and shapes of every tensor of the five architectures, and which rows of which a
// rank needs. load_shard() runs twice: once to check everything, once to create the weights and say
// what is to be copied.
#include "node/model/weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "node/model/loader.h"

enum { NAME = 256, PART = 128 };

struct shard_loader {
    struct loader l;
    const struct model_config *c;
    const struct model_plan *p;
    int layer; // being loaded, number in the model
};

// "model.layers.N.PART" into buf.
static const char *name_of(const struct shard_loader *sl, char buf[NAME], const char *part)
{
    snprintf(buf, NAME, "model.layers.%d.%s", sl->layer, part);
    return buf;
}

// One tensor's share of a fused matrix.
struct part {
    const char *name; // whole name
    int64_t rows, first, n;
};

static bool starts_block(int64_t row)
{
    return row % KERN_SCALE_BLOCK == 0;
}

static enum loader_keep keep_of(bool plain, bool blocks)
{
    return plain ? LOADER_KEEP_NONE : blocks ? LOADER_KEEP_ALL : LOADER_KEEP_INT8;
}

// A matrix of `cols` columns made of the parts, one above the other. plain: never quantized.
static enum status load_stacked_as(struct shard_loader *sl, const struct part *parts, int parts_n,
                                   int64_t cols, bool plain, struct kern_weight **out)
{
    const char *names[4] = {0};
    size_t rows = 0;
    bool blocks = true;
    for (int i = 0; i < parts_n; i++) {
        names[i] = parts[i].name;
        // The next part begins at a block on every rank, or is taken not to on any.
        const bool last = i + 1 == parts_n;
        blocks &= starts_block(parts[i].first) && starts_block((int64_t)rows) &&
                  (last || starts_block(parts[i].rows));
        rows += (size_t)parts[i].n;
    }
    struct kern_weight_args args = {.stack = 1, .rows = rows, .cols = (size_t)cols};
    enum status s = loader_dtype(&sl->l, names, keep_of(plain, blocks), &args.dtype);
    if (s == STATUS_OK)
        s = loader_weight(&sl->l, &args, out);
    struct loader_dest d = {.w = *out, .dtype = args.dtype};
    for (int i = 0; i < parts_n && s == STATUS_OK; i++) {
        struct loader_rows r = {.name = parts[i].name,
                                .rows = parts[i].rows,
                                .cols = cols,
                                .first = parts[i].first,
                                .n = parts[i].n};
        s = loader_fill(&sl->l, &r, &d);
        d.row0 += (size_t)parts[i].n;
    }
    return s;
}

static enum status load_stacked(struct shard_loader *sl, const struct part *parts, int parts_n,
                                int64_t cols, struct kern_weight **out)
{
    return load_stacked_as(sl, parts, parts_n, cols, false, out);
}

static enum status load_vector(struct shard_loader *sl, const char *name, int64_t n,
                               struct kern_buf **out)
{
    enum status s = loader_buf(&sl->l, (size_t)n, out);
    struct loader_vector v = {name, n, 0, n};
    return s == STATUS_OK ? loader_vector_fill(&sl->l, &v, *out, 0) : s;
}

static enum status load_layer_vector(struct shard_loader *sl, const char *part, int64_t n,
                                     struct kern_buf **out)
{
    char name[NAME];
    return load_vector(sl, name_of(sl, name, part), n, out);
}

// The bias that goes with a stacked matrix: parts without a name (no bias) stay zero.
static enum status load_bias(struct shard_loader *sl, const struct part *parts, int parts_n,
                             struct kern_buf **out)
{
    size_t n = 0, at = 0;
    for (int i = 0; i < parts_n; i++)
        n += (size_t)parts[i].n;
    enum status s = loader_buf(&sl->l, n, out);
    for (int i = 0; i < parts_n && s == STATUS_OK; i++) {
        struct loader_vector v = {parts[i].name, parts[i].rows, parts[i].first, parts[i].n};
        if (v.name)
            s = loader_vector_fill(&sl->l, &v, *out, at);
        at += (size_t)parts[i].n;
    }
    return s;
}

static enum status load_gqa_qkv(struct shard_loader *sl, struct layer_weights *w)
{
    const struct model_config *c = sl->c;
    const struct model_plan *p = sl->p;
    const int64_t hd = c->head_dim;
    char q[NAME], k[NAME], v[NAME];
    struct part parts[] = {
        {name_of(sl, q, "self_attn.q_proj.weight"), c->heads * hd, p->heads.first * hd,
         p->heads.n * hd},
        {name_of(sl, k, "self_attn.k_proj.weight"), c->kv_heads * hd, p->kv_heads.first * hd,
         p->kv_heads.n * hd},
        {name_of(sl, v, "self_attn.v_proj.weight"), c->kv_heads * hd, p->kv_heads.first * hd,
         p->kv_heads.n * hd},
    };
    enum status s = load_stacked(sl, parts, 3, c->hidden, &w->qkv);
    if (s == STATUS_OK && c->qkv_bias) {
        parts[0].name = name_of(sl, q, "self_attn.q_proj.bias");
        parts[1].name = name_of(sl, k, "self_attn.k_proj.bias");
        parts[2].name = name_of(sl, v, "self_attn.v_proj.bias");
        s = load_bias(sl, parts, 3, &w->qkv_bias);
    }
    if (s == STATUS_OK && c->qk_norm)
        s = load_layer_vector(sl, "self_attn.q_norm.weight", hd, &w->q_norm);
    if (s == STATUS_OK && c->qk_norm)
        s = load_layer_vector(sl, "self_attn.k_norm.weight", hd, &w->k_norm);
    return s;
}

static enum status load_mla_qkv(struct shard_loader *sl, struct layer_weights *w)
{
    const struct model_config *c = sl->c;
    const struct model_plan *p = sl->p;
    char q[NAME], kv[NAME];
    const int64_t kv_rows = c->kv_lora + c->rope_dim, hd = c->head_dim;
    struct part parts[] = {
        {name_of(sl, q, "self_attn.q_a_proj.weight"), c->q_lora, 0, c->q_lora},
        {name_of(sl, kv, "self_attn.kv_a_proj_with_mqa.weight"), kv_rows, 0, kv_rows},
    };
    if (!c->q_lora)
        parts[0] = (struct part){name_of(sl, q, "self_attn.q_proj.weight"), c->heads * hd,
                                 p->heads.first * hd, p->heads.n * hd};
    enum status s = load_stacked(sl, parts, 2, c->hidden, &w->qkv);
    if (s != STATUS_OK || !c->qkv_bias)
        return s;
    // q_proj has no bias in any published form.
    parts[0].name = c->q_lora ? name_of(sl, q, "self_attn.q_a_proj.bias") : NULL;
    parts[1].name = name_of(sl, kv, "self_attn.kv_a_proj_with_mqa.bias");
    return load_bias(sl, parts, 2, &w->qkv_bias);
}

static enum status load_q_b(struct shard_loader *sl, struct layer_weights *w)
{
    const struct model_config *c = sl->c;
    const int64_t hd = c->head_dim;
    char name[NAME];
    struct part part = {name_of(sl, name, "self_attn.q_b_proj.weight"), c->heads * hd,
                        sl->p->heads.first * hd, sl->p->heads.n * hd};
    enum status s =
        load_layer_vector(sl, "self_attn.q_a_layernorm.weight", c->q_lora, &w->q_a_norm);
    return s == STATUS_OK ? load_stacked(sl, &part, 1, c->q_lora, &w->q_b) : s;
}

// kv_b_proj holds, for each head, nope_dim rows that make keys and v_dim rows that make values from
// the latent. Absorbed MLA multiplies the query by the first (transposed) and the attended latent
// by the second.
static enum status load_kv_b(struct shard_loader *sl, struct layer_weights *w)
{
    const struct model_config *c = sl->c;
    const int64_t per_head = c->nope_dim + c->v_dim;
    const size_t heads = (size_t)sl->p->heads.n, latent = (size_t)c->kv_lora;
    char name[NAME];
    const char *names[] = {name_of(sl, name, "self_attn.kv_b_proj.weight"), NULL};
    struct loader_dest uk = {.transposed = true}, uv = {0};
    enum status s = loader_dtype(&sl->l, names, LOADER_KEEP_NONE, &uk.dtype);
    uv.dtype = uk.dtype;
    struct kern_weight_args a = {
        .dtype = uk.dtype, .stack = heads, .rows = latent, .cols = (size_t)c->nope_dim};
    if (s == STATUS_OK)
        s = loader_weight(&sl->l, &a, &w->uk);
    a.rows = (size_t)c->v_dim;
    a.cols = latent;
    if (s == STATUS_OK)
        s = loader_weight(&sl->l, &a, &w->uv);
    uk.w = w->uk;
    uv.w = w->uv;
    for (size_t h = 0; h < heads && s == STATUS_OK; h++) {
        struct loader_rows r = {.name = names[0],
                                .rows = c->heads * per_head,
                                .cols = c->kv_lora,
                                .first = (sl->p->heads.first + (int64_t)h) * per_head,
                                .n = c->nope_dim};
        uk.s = uv.s = h;
        s = loader_fill(&sl->l, &r, &uk);
        r.first += c->nope_dim;
        r.n = c->v_dim;
        if (s == STATUS_OK)
            s = loader_fill(&sl->l, &r, &uv);
    }
    return s;
}

static enum status load_mla(struct shard_loader *sl, struct layer_weights *w)
{
    enum status s = load_mla_qkv(sl, w);
    if (s == STATUS_OK && sl->c->q_lora)
        s = load_q_b(sl, w);
    if (s == STATUS_OK)
        s = load_layer_vector(sl, "self_attn.kv_a_layernorm.weight", sl->c->kv_lora, &w->kv_a_norm);
    return s == STATUS_OK ? load_kv_b(sl, w) : s;
}

static enum status load_attention(struct shard_loader *sl, struct layer_weights *w)
{
    const struct model_config *c = sl->c;
    const struct model_plan *p = sl->p;
    char name[NAME];
    struct part o = {name_of(sl, name, "self_attn.o_proj.weight"), c->hidden, p->hidden.first,
                     p->hidden.n};
    enum status s = load_layer_vector(sl, "input_layernorm.weight", c->hidden, &w->attn_norm);
    if (s == STATUS_OK)
        s = c->mla ? load_mla(sl, w) : load_gqa_qkv(sl, w);
    if (s == STATUS_OK)
        s = load_stacked(sl, &o, 1, (int64_t)c->heads * c->v_dim, &w->o);
    if (s == STATUS_OK && c->o_bias) {
        o.name = name_of(sl, name, "self_attn.o_proj.bias");
        s = load_bias(sl, &o, 1, &w->o_bias);
    }
    return s == STATUS_OK
               ? load_layer_vector(sl, "post_attention_layernorm.weight", c->hidden, &w->mlp_norm)
               : s;
}

// PREFIX.gate_proj, PREFIX.up_proj, PREFIX.down_proj of an MLP of `inter` inner rows.
static enum status load_mlp(struct shard_loader *sl, const char *prefix, int inter,
                            const struct model_split *rows, struct mlp_weights *w)
{
    const struct model_config *c = sl->c;
    const struct model_split *h = &sl->p->hidden;
    char part[PART], name[3][NAME];
    const char *kinds[] = {"gate_proj", "up_proj", "down_proj"};
    enum status s = STATUS_OK;
    for (int bias = 0; bias <= (c->mlp_bias ? 1 : 0) && s == STATUS_OK; bias++) {
        for (int i = 0; i < 3; i++) {
            snprintf(part, PART, "%s.%s.%s", prefix, kinds[i], bias ? "bias" : "weight");
            name_of(sl, name[i], part);
        }
        struct part gate_up[] = {{name[0], inter, rows->first, rows->n},
                                 {name[1], inter, rows->first, rows->n}};
        struct part down = {name[2], c->hidden, h->first, h->n};
        s = bias ? load_bias(sl, gate_up, 2, &w->gate_up_bias)
                 : load_stacked(sl, gate_up, 2, c->hidden, &w->gate_up);
        if (s == STATUS_OK)
            s = bias ? load_bias(sl, &down, 1, &w->down_bias)
                     : load_stacked(sl, &down, 1, inter, &w->down);
    }
    return s;
}

// PREFIX.KIND_proj.weight of expert e; the shared ones, which come last, are all in one tensor.
static const char *expert_name(const struct shard_loader *sl, char buf[NAME], int e,
                               const char *kind)
{
    char part[PART];
    if (e < sl->c->moe.experts)
        snprintf(part, PART, "mlp.experts.%d.%s_proj.weight", e, kind);
    else
        snprintf(part, PART, "mlp.shared_experts.%s_proj.weight", kind);
    return name_of(sl, buf, part);
}

// The dtype that holds the named matrix of every expert without loss; of two kinds when `other` is
// not NULL, because the kern computes gate and up together.
static enum status stack_dtype(struct shard_loader *sl, const char *kind, const char *other,
                               bool blocks, enum kern_dtype *out)
{
    char name[2][NAME];
    for (int e = 0; e < sl->c->moe.experts + sl->c->moe.shared; e++) {
        const char *names[] = {expert_name(sl, name[0], e, kind),
                               expert_name(sl, name[1], e, other ? other : kind), NULL};
        enum kern_dtype dtype;
        enum status s = loader_dtype(&sl->l, names, keep_of(false, blocks), &dtype);
        if (s != STATUS_OK)
            return s;
        *out = e == 0 || dtype == *out ? dtype : KERN_F32;
    }
    return STATUS_OK;
}

// One of the three stacks. Expert e's matrix is rows [rows->first, + n) of its tensor; of the
// shared experts' tensor it is a cut: of rows for gate and up, of columns for down.
static enum status load_stack(struct shard_loader *sl, const char *kind, enum kern_dtype dtype,
                              const struct part *rows, int64_t cols, struct kern_weight **out)
{
    const struct moe_config *m = &sl->c->moe;
    const bool down = !strcmp(kind, "down");
    char name[NAME];
    const struct kern_weight_args a = {.dtype = dtype,
                                       .stack = (size_t)(m->experts + m->shared),
                                       .rows = (size_t)rows->n,
                                       .cols = (size_t)cols};
    enum status s = loader_weight(&sl->l, &a, out);
    struct loader_dest d = {.w = *out, .dtype = dtype};
    for (int e = 0; e < m->experts + m->shared && s == STATUS_OK; e++) {
        struct loader_rows r = {.name = expert_name(sl, name, e, kind),
                                .rows = rows->rows,
                                .cols = cols,
                                .first = rows->first,
                                .n = rows->n};
        if (e >= m->experts && down) {
            r.cols *= m->shared;
            r.first_col = (e - m->experts) * cols;
            r.cols_n = cols;
        } else if (e >= m->experts) {
            r.rows *= m->shared;
            r.first += (e - m->experts) * rows->rows;
        }
        d.s = (size_t)e;
        s = loader_fill(&sl->l, &r, &d);
    }
    return s;
}

static enum status load_stacks(struct shard_loader *sl, struct layer_weights *w)
{
    const struct model_config *c = sl->c;
    const struct moe_config *m = &c->moe;
    const struct model_split *own = &sl->p->expert_inter, *hidden = &sl->p->hidden;
    const struct part inner = {NULL, m->intermediate, own->first, own->n};
    const struct part outer = {NULL, c->hidden, hidden->first, hidden->n};
    const bool cuts_ok = m->shared < 2 || starts_block(m->intermediate); // of the shared experts
    enum kern_dtype in, out;
    enum status s = stack_dtype(sl, "gate", "up", cuts_ok && starts_block(own->first), &in);
    if (s == STATUS_OK)
        s = load_stack(sl, "gate", in, &inner, c->hidden, &w->gate);
    if (s == STATUS_OK)
        s = load_stack(sl, "up", in, &inner, c->hidden, &w->up);
    if (s == STATUS_OK)
        s = stack_dtype(sl, "down", NULL, cuts_ok && starts_block(hidden->first), &out);
    return s == STATUS_OK ? load_stack(sl, "down", out, &outer, m->intermediate, &w->down) : s;
}

static enum status load_experts(struct shard_loader *sl, struct layer_weights *w)
{
    const struct model_config *c = sl->c;
    const struct moe_config *m = &c->moe;
    char name[NAME];
    struct part router = {name_of(sl, name, "mlp.gate.weight"), m->experts, 0, m->experts};
    enum status s = load_stacked_as(sl, &router, 1, c->hidden, true, &w->router);
    if (s == STATUS_OK && m->topk == MOE_GROUP_TOP2_BIASED)
        s = load_layer_vector(sl, "mlp.gate.e_score_correction_bias", m->experts, &w->router_bias);
    if (s == STATUS_OK)
        s = load_stacks(sl, w);
    return s;
}

static enum status load_layer(struct shard_loader *sl, struct layer_weights *w)
{
    enum status s = load_attention(sl, w);
    if (s != STATUS_OK)
        return s;
    if (model_layer_has_experts(sl->c, sl->layer))
        return load_experts(sl, w);
    return load_mlp(sl, "mlp", sl->c->intermediate, &sl->p->inter, &w->mlp);
}

static enum status load_embed(struct shard_loader *sl, struct kern_weight **out)
{
    const char *names[] = {"model.embed_tokens.weight", NULL};
    const struct model_config *c = sl->c;
    struct kern_weight_args a = {
        .kind = KERN_WEIGHT_TABLE, .stack = 1, .rows = (size_t)c->vocab, .cols = (size_t)c->hidden};
    enum status s = loader_dtype(&sl->l, names, LOADER_KEEP_NONE, &a.dtype);
    if (s == STATUS_OK)
        s = loader_weight(&sl->l, &a, out);
    struct loader_rows r = {.name = names[0], .rows = c->vocab, .cols = c->hidden, .n = c->vocab};
    struct loader_dest d = {.w = *out, .dtype = a.dtype};
    return s == STATUS_OK ? loader_fill(&sl->l, &r, &d) : s;
}

static enum status load_head(struct shard_loader *sl, struct model_weights *w)
{
    const struct model_config *c = sl->c;
    struct part head = {c->tied ? "model.embed_tokens.weight" : "lm_head.weight", c->vocab,
                        sl->p->vocab.first, sl->p->vocab.n};
    enum status s = load_vector(sl, "model.norm.weight", c->hidden, &w->norm);
    return s == STATUS_OK ? load_stacked_as(sl, &head, 1, c->hidden, true, &w->lm_head) : s;
}

static enum status load_shard(struct shard_loader *sl, struct model_weights *w)
{
    enum status s = STATUS_OK;
    if (sl->p->first_stage)
        s = load_embed(sl, &w->embed);
    for (int i = 0; i < sl->p->layers_n && s == STATUS_OK; i++) {
        sl->layer = sl->p->layer_first + i;
        s = load_layer(sl, &w->layers[i]);
    }
    return s == STATUS_OK && sl->p->last_stage ? load_head(sl, w) : s;
}

enum status model_weights_list(const struct model_weights_args *args, model_seen_fn *seen,
                               void *arg, struct errmsg *e)
{
    struct shard_loader sl = {
        .l = {.source = args->source,
              .config = args->config,
              .files = args->files,
              .kern = args->kern,
              .e = e,
              .check_only = true,
              .seen = seen,
              .seen_arg = arg},
        .c = args->config,
        .p = args->plan,
    };
    struct model_weights w = {0};
    w.layers = mem_zalloc((size_t)args->plan->layers_n, sizeof *w.layers);
    enum status s = load_shard(&sl, &w);
    free(w.layers);
    return s;
}

enum status model_weights_load(const struct model_weights_args *args, struct model_weights *out,
                               struct errmsg *e)
{
    struct shard_loader sl = {
        .l = {.source = args->source,
              .config = args->config,
              .files = args->files,
              .kern = args->kern,
              .progress = args->progress,
              .e = e,
              .check_only = true},
        .c = args->config,
        .p = args->plan,
    };
    struct model_weights w = {0};
    w.layers = mem_zalloc((size_t)args->plan->layers_n, sizeof *w.layers);
    loader_start(&sl.l);
    enum status s = load_shard(&sl, &w);
    sl.l.check_only = false;
    if (s == STATUS_OK)
        s = load_shard(&sl, &w);
    if (s == STATUS_OK)
        s = loader_run(&sl.l);
    if (s == STATUS_OK) {
        s = kern_sync(args->kern);
        if (s != STATUS_OK)
            errmsg_set(e, s, "%s: loading the weights failed", kern_describe(args->kern));
    }
    w.bytes = sl.l.done;
    loader_finish(&sl.l);
    if (s == STATUS_OK)
        *out = w;
    else
        model_weights_unload(&w, args->plan);
    return s;
}

static void unload_mlp(struct mlp_weights *w)
{
    kern_weight_destroy(w->gate_up);
    kern_weight_destroy(w->down);
    kern_buf_destroy(w->gate_up_bias);
    kern_buf_destroy(w->down_bias);
}

static void unload_layer(struct layer_weights *w)
{
    struct kern_buf *bufs[] = {w->attn_norm, w->mlp_norm, w->qkv_bias,  w->o_bias,     w->q_norm,
                               w->k_norm,    w->q_a_norm, w->kv_a_norm, w->router_bias};
    struct kern_weight *weights[] = {w->qkv,    w->o,    w->q_b, w->uk,  w->uv,
                                     w->router, w->gate, w->up,  w->down};
    for (size_t i = 0; i < sizeof bufs / sizeof *bufs; i++)
        kern_buf_destroy(bufs[i]);
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        kern_weight_destroy(weights[i]);
    unload_mlp(&w->mlp);
}

void model_weights_unload(struct model_weights *w, const struct model_plan *plan)
{
    for (int i = 0; w->layers && i < plan->layers_n; i++)
        unload_layer(&w->layers[i]);
    free(w->layers);
    kern_weight_destroy(w->embed);
    kern_buf_destroy(w->norm);
    kern_weight_destroy(w->lm_head);
    *w = (struct model_weights){0};
}
