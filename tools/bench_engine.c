#include "tools/bench_engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cuda_comm.h"
#include "node/comm_alone.h"
#include "node/comm_cuda.h"
#include "tools/local_replica.h"

static const float SPREAD = 1.7320508f; // uniform numbers of deviation 1

// Slices that other ranks would fill hold numbers of the right size, not zeros, which cost less
// power.
static void fill_gathered(struct bench_engine *b)
{
    const struct model_buffers *m = &b->shard->b;
    struct kern_buf *bufs[] = {m->attn, m->act, m->expert_act};
    for (size_t i = 0; i < sizeof bufs / sizeof *bufs; i++)
        if (bufs[i])
            kern_buf_fill_noise(bufs[i], &(struct kern_buf_noise_args){.n = kern_buf_n(bufs[i]),
                                                                       .key = i,
                                                                       .amplitude = SPREAD});
}

static int device_of(const struct bench_engine_args *a)
{
    struct errmsg e = {0}; // kern_open says what is wrong
    const struct cuda_comm_ops *cuda =
        a->group && !strcmp(a->backend, "cuda") ? kern_cuda_comm(&e) : NULL;
    int n = cuda ? cuda->devices() : 0;
    return n ? a->rank % n : 0;
}

// A rank that fails must not leave the others waiting.
static enum status open_comm(struct bench_engine *b, enum status so_far, struct errmsg *e)
{
    const struct bench_engine_args *a = &b->args;
    b->comm = a->group ? comm_local_rank(a->group, a->rank) : comm_create_alone(a->tensors, 0);
    enum status s = so_far;
    if (s == STATUS_OK && a->group && a->tensors > 1 && kern_backend(b->kern) == KERN_CUDA) {
        struct comm_cuda_config config = {.host = b->comm, .k = b->kern};
        s = comm_create_cuda(&config, &b->comm, e);
    }
    if (s != STATUS_OK)
        comm_abort(b->comm);
    return s;
}

static enum status open_shard(struct bench_engine *b, struct errmsg *e)
{
    const struct bench_engine_args *a = &b->args;
    struct model_shard_args args = {.source = a->source,
                                    .rank = {0, 1, a->rank, a->tensors},
                                    .kern = b->kern,
                                    .max_context = a->max_context,
                                    .max_rows = a->max_rows,
                                    .max_seqs = a->max_seqs,
                                    .max_logits = a->max_seqs,
                                    .kv_blocks = 1};
    double start = bench_now_s();
    enum status s = model_shard_open(&args, &b->shard, e);
    b->load_s = bench_now_s() - start;
    if (s != STATUS_OK)
        return s;
    if (b->shard->max_context < a->max_context)
        return errmsg_set(e, STATUS_TOO_LARGE, "%d tokens: the model's context is %d",
                          a->max_context, b->shard->max_context);
    model_shard_attach(b->shard, b->comm);
    fill_gathered(b);
    return STATUS_OK;
}

enum status bench_engine_open(const struct bench_engine_args *args, struct bench_engine *b,
                              struct errmsg *e)
{
    enum kern_backend backend;
    *b = (struct bench_engine){.args = *args};
    enum status s = local_replica_backend(args->backend, &backend, e);
    const struct kern_config config = {.threads = args->threads, .device = device_of(args)};
    if (s == STATUS_OK)
        s = kern_open(backend, &config, &b->kern, e);
    if (args->limits)
        b->limits = *args->limits;
    else if (s == STATUS_OK) // before the model takes the memory
        s = bench_limits_of(b->kern, &b->limits, e);
    s = open_comm(b, s, e);
    if (s == STATUS_OK)
        s = open_shard(b, e);
    if (s == STATUS_OK && kern_buf_create(b->kern, KERN_I32, (size_t)args->max_seqs, &b->picked))
        s = errmsg_set(e, STATUS_NO_MEMORY, "no memory for sampled tokens");
    if (s != STATUS_OK)
        return s;
    const size_t n = (size_t)args->max_rows;
    b->tokens = mem_zalloc(n, sizeof *b->tokens);
    b->seq = mem_zalloc(n, sizeof *b->seq);
    b->pos = mem_zalloc(n, sizeof *b->pos);
    b->rows = mem_zalloc(n, sizeof *b->rows);
    b->seqs = mem_zalloc((size_t)args->max_seqs, sizeof *b->seqs);
    return STATUS_OK;
}

void bench_engine_close(struct bench_engine *b)
{
    kern_buf_destroy(b->picked);
    model_shard_close(b->shard);
    comm_destroy(b->comm);
    kern_close(b->kern);
    free(b->tokens);
    free(b->seq);
    free(b->pos);
    free(b->rows);
    free(b->seqs);
    free(b->blocks);
    *b = (struct bench_engine){0};
}

// Any ids do: the work does not depend on them, but for the experts that they choose.
static int32_t some_token(const struct bench_engine *b, int64_t i)
{
    return (int32_t)(i * 7919 % b->shard->config.vocab);
}

enum status bench_engine_contexts(struct bench_engine *b, int64_t seqs, int64_t context,
                                  struct errmsg *e)
{
    struct model_shard *s = b->shard;
    const size_t per = (size_t)(context + s->block_tokens - 1) / (size_t)s->block_tokens;
    const size_t n = (size_t)seqs * per;
    if (n > INT32_MAX)
        return errmsg_set(e, STATUS_NO_MEMORY, "%zu KV blocks", n);
    enum status st = model_shard_resize_kv(s, (int)n, e);
    if (st != STATUS_OK)
        return st;
    for (int i = 0; i < s->plan.layers_n; i++)
        kern_buf_fill_noise(s->kv[i], &(struct kern_buf_noise_args){.n = kern_buf_n(s->kv[i]),
                                                                    .key = (uint64_t)i + 1,
                                                                    .amplitude = SPREAD});
    b->blocks = mem_realloc(b->blocks, n, sizeof *b->blocks);
    for (size_t i = 0; i < n; i++) // spread out, as in a pool that was used for a while
        b->blocks[i] = (uint32_t)(i % (size_t)seqs * per + i / (size_t)seqs);
    for (size_t i = 0; i < (size_t)seqs; i++) {
        b->seqs[i] = (struct forward_seq){b->blocks + i * per, per};
        b->tokens[i] = some_token(b, (int64_t)i);
    }
    b->seqs_n = (size_t)seqs;
    return kern_sync(b->kern);
}

static enum status run(struct bench_engine *b, size_t rows, size_t logits, struct errmsg *e)
{
    struct forward_batch batch = {.step = ++b->step,
                                  .rows = rows,
                                  .tokens = b->tokens,
                                  .seq = b->seq,
                                  .pos = b->pos,
                                  .seqs = b->seqs,
                                  .seqs_n = b->seqs_n,
                                  .logit_rows = b->rows,
                                  .logits_n = logits};
    return forward_run(b->shard, &batch, e);
}

// The largest logit of each row: as in serving, found within the step where the device does that.
static enum status pick_all(struct bench_engine *b, size_t n, struct errmsg *e)
{
    const struct model_shard *s = b->shard;
    const size_t stride = (size_t)s->rank.tensors * (size_t)s->plan.vocab.part;
    size_t found = 0;
    while (found < n && forward_best(s, found, &b->tokens[found]))
        found++;
    if (found == n)
        return STATUS_OK;
    kern_argmax(b->kern, &(struct kern_argmax_args){.n = n,
                                                    .dim = (size_t)s->config.vocab,
                                                    .x = {s->b.logits, 0, stride},
                                                    .out = b->picked});
    enum status st = kern_download(b->tokens, b->picked, 0, n);
    return st == STATUS_OK ? st : errmsg_set(e, st, "sampled tokens: %s", status_text(st));
}

enum status bench_engine_decode(struct bench_engine *b, int64_t context, struct errmsg *e)
{
    const size_t n = b->seqs_n;
    for (size_t i = 0; i < n; i++) {
        b->seq[i] = b->rows[i] = (int32_t)i;
        b->pos[i] = (int32_t)context - 1;
    }
    enum status st = run(b, n, n, e);
    if (st == STATUS_OK)
        st = pick_all(b, n, e);
    for (size_t i = 0; i < n && st == STATUS_OK; i++)
        if (b->tokens[i] < 0)
            return errmsg_set(e, STATUS_NODE_NAN, "sequence %zu: NaN among the logits", i);
    return st;
}

enum status bench_engine_prefill(struct bench_engine *b, int64_t from, int64_t n, struct errmsg *e)
{
    for (int64_t i = 0; i < n; i++) {
        b->tokens[i] = some_token(b, from + i);
        b->seq[i] = 0;
        b->pos[i] = (int32_t)(from + i);
    }
    b->rows[0] = (int32_t)n - 1;
    return run(b, (size_t)n, 1, e);
}

static int by_value(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

enum status bench_engine_experts(struct bench_engine *b, int64_t rows, double *out,
                                 struct errmsg *e)
{
    *out = 0;
    if (!b->shard->b.expert_ids)
        return STATUS_OK;
    const size_t n =
        (size_t)rows * (size_t)(b->shard->config.moe.per_token + b->shard->config.moe.shared);
    int32_t *ids = mem_zalloc(n, sizeof *ids);
    enum status s = kern_download(ids, b->shard->b.expert_ids, 0, n);
    if (s != STATUS_OK)
        errmsg_set(e, s, "experts: %s", status_text(s));
    qsort(ids, n, sizeof *ids, by_value);
    for (size_t i = 0; i < n; i++)
        *out += i == 0 || ids[i] != ids[i - 1];
    free(ids);
    return s;
}

// ---- cost

static double bytes_of(const struct kern_weight *w)
{
    return w ? (double)kern_weight_bytes(w) : 0;
}

static double weight_bytes(const struct bench_engine *b, double experts)
{
    const struct model_shard *s = b->shard;
    double n = bytes_of(s->weights.lm_head);
    for (int i = 0; i < s->plan.layers_n; i++) {
        const struct layer_weights *w = &s->weights.layers[i];
        n += bytes_of(w->qkv) + bytes_of(w->o) + bytes_of(w->q_b) + bytes_of(w->uk) +
             bytes_of(w->uv) + bytes_of(w->router) + bytes_of(w->mlp.gate_up) +
             bytes_of(w->mlp.down);
        if (w->router)
            n += (bytes_of(w->gate) + bytes_of(w->up) + bytes_of(w->down)) *
                 (experts > 0 ? experts / (s->config.moe.experts + s->config.moe.shared) : 1);
    }
    return n;
}

// Multiply-adds of one row: with matrices that may be quantized, and with those that are not.
struct row_work {
    double quant, plain, logits;
};

static struct row_work row_work(const struct model_shard *s)
{
    const struct model_config *c = &s->config;
    const struct model_plan *p = &s->plan;
    const double h = c->hidden, own = p->hidden.n, heads = p->heads.n;
    struct row_work w = {.logits = h * p->vocab.n};
    for (int i = 0; i < p->layers_n; i++) {
        const struct moe_config *m = &c->moe;
        w.quant += h * p->qkv_rows + own * c->heads * c->v_dim;
        if (c->q_lora)
            w.quant += heads * c->head_dim * c->q_lora;
        if (c->mla)
            w.plain += heads * c->kv_lora * (c->nope_dim + c->v_dim);
        if (!model_layer_has_experts(c, p->layer_first + i)) {
            w.quant += 2 * h * p->inter.n + own * c->intermediate;
            continue;
        }
        w.plain += h * m->experts;
        w.quant += (m->per_token + m->shared) * (2 * h * p->expert_inter.n + own * m->intermediate);
    }
    return w;
}

// Multiply-adds of one row and one key, all heads of this rank in all layers. Absorbed MLA works
// on latents, which saves memory in decoding; where keys can be expanded once for many rows, the
// heads' own sizes are what must be done.
static double key_work(const struct model_shard *s, bool prefill)
{
    const struct model_config *c = &s->config;
    double a_head = c->mla && !prefill ? 2.0 * c->kv_lora + c->rope_dim : c->head_dim + c->v_dim;
    return a_head * s->plan.heads.n * s->plan.layers_n;
}

struct bench_cost bench_engine_cost(const struct bench_engine *b, const struct bench_pass *p)
{
    const struct model_shard *s = b->shard;
    const struct row_work w = row_work(s);
    const bool quantized = s->config.fp8_block[0] || s->config.int8;
    const double element = kern_kv_dtype(b->kern) == KERN_F32 ? 4 : 2;
    const double token = element * s->plan.kv_width * s->plan.layers_n;
    struct bench_cost c = {
        .bytes = weight_bytes(b, p->experts) + token * (p->kv_read + p->rows),
        .flop = 2 * (p->rows * w.plain + p->logits * w.logits + p->keys * key_work(s, p->prefill)),
        .quant_flop = 2 * p->rows * w.quant,
    };
    if (!quantized || kern_backend(b->kern) != KERN_CUDA) { // CPUs expand them
        c.flop += c.quant_flop;
        c.quant_flop = 0;
    }
    return c;
}

double bench_engine_limit_s(const struct bench_engine *b, const struct bench_cost *c,
                            const char **name_out)
{
    const struct bench_limits *l = &b->limits;
    const double quant = b->shard->config.int8 ? l->int8_gflop_s : l->fp8_gflop_s;
    double memory = c->bytes / l->read_gb_s * 1e-9, compute = c->flop / l->gflop_s * 1e-9;
    if (c->quant_flop > 0)
        compute += c->quant_flop / (quant > 0 ? quant : l->gflop_s) * 1e-9;
    *name_out = memory > compute ? l->memory : l->compute;
    return memory > compute ? memory : compute;
}
