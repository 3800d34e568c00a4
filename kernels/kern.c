// The seam itself: opens a body, owns buffers and weights, and checks the shape of every op once
// for all bodies. Nothing here computes. A failed check is a bug of the caller, so it asserts.
#include "kernels/kern.h"

#include <stdlib.h>

#include "base/mem.h"
#include "base/noise.h"
#include "kernels/cuda_load.h"
#include "kernels/kern_impl.h"

enum status kern_open(enum kern_backend backend, const struct kern_config *config,
                      struct kern **kern_out, struct errmsg *err)
{
    switch (backend) {
    case KERN_CPU_REF:
    case KERN_CPU:
        return kern_cpu_open(backend, config, kern_out, err);
    case KERN_CUDA:
        return kern_cuda_open(config, kern_out, err);
    }
    return errmsg_set(err, STATUS_NO_DEVICE, "backend %d is unknown", (int)backend);
}

void kern_close(struct kern *k)
{
    if (k)
        k->device->close(k);
}

const char *kern_describe(const struct kern *k)
{
    return k->describe;
}

enum kern_backend kern_backend(const struct kern *k)
{
    return k->backend;
}

int kern_threads(const struct kern *k)
{
    return k->threads;
}

enum kern_dtype kern_act_dtype(const struct kern *k)
{
    return k->act;
}

enum kern_dtype kern_kv_dtype(const struct kern *k)
{
    return k->kv;
}

enum status kern_sync(struct kern *k)
{
    return k->device->sync(k);
}

// ---- replay

bool kern_replays(const struct kern *k)
{
    return k->device->replay_begin != NULL;
}

bool kern_replay_begin(struct kern *k, uint64_t key)
{
    return kern_replays(k) && k->device->replay_begin(k, key);
}

enum status kern_replay_end(struct kern *k)
{
    return kern_replays(k) ? k->device->replay_end(k) : STATUS_OK;
}

// ---- memory

enum { BUF_ELEMENTS_MAX_LOG2 = 44 }; // keeps every byte count and offset far from overflow

static void check_range(const struct kern_buf *b, size_t at, size_t n)
{
    assert(at <= b->n && n <= b->n - at);
}

static enum status buf_create(struct kern *k, enum kern_dtype dtype, size_t n,
                              enum status (*alloc)(struct kern_buf *), struct kern_buf **buf_out)
{
    assert(dtype != KERN_FP8 && dtype != KERN_INT8);
    if (n >> BUF_ELEMENTS_MAX_LOG2)
        return STATUS_NO_MEMORY;
    struct kern_buf *b = mem_zalloc(1, sizeof *b);
    *b = (struct kern_buf){.k = k, .dtype = dtype, .n = n};
    enum status s = alloc(b);
    if (s != STATUS_OK) {
        free(b);
        return s;
    }
    *buf_out = b;
    return STATUS_OK;
}

enum status kern_buf_create(struct kern *k, enum kern_dtype dtype, size_t n,
                            struct kern_buf **buf_out)
{
    return buf_create(k, dtype, n, k->device->buf_alloc, buf_out);
}

enum status kern_buf_create_shared(struct kern *k, enum kern_dtype dtype, size_t n,
                                   struct kern_buf **buf_out)
{
    return buf_create(k, dtype, n, k->device->buf_alloc_shared, buf_out);
}

const void *kern_buf_host(const struct kern_buf *b)
{
    assert(b->host);
    return b->host;
}

enum status kern_buf_wrap(struct kern *k, enum kern_dtype dtype, void *memory, size_t n,
                          struct kern_buf **buf_out)
{
    assert(((uintptr_t)memory & 3) == 0 && !(n >> BUF_ELEMENTS_MAX_LOG2));
    struct kern_buf *b = mem_zalloc(1, sizeof *b);
    *b = (struct kern_buf){.k = k, .dtype = dtype, .n = n, .p = memory, .borrowed = true};
    *buf_out = b;
    return STATUS_OK;
}

enum status kern_buf_window_create(struct kern_buf *of, struct kern_buf **window_out)
{
    struct kern_buf *b = mem_zalloc(1, sizeof *b);
    *b = (struct kern_buf){.k = of->k, .dtype = of->dtype, .p = of->p, .borrowed = true};
    *window_out = b;
    return STATUS_OK;
}

void kern_buf_window_move(struct kern_buf *window, struct kern_buf *of, size_t at, size_t n)
{
    check_range(of, at, n);
    assert(window->borrowed && window->k == of->k);
    window->dtype = of->dtype;
    window->p = (char *)of->p + at * kern_dtype_bytes(of->dtype);
    window->n = n;
}

void kern_buf_destroy(struct kern_buf *b)
{
    if (!b)
        return;
    if (!b->borrowed)
        b->k->device->buf_free(b);
    free(b);
}

size_t kern_buf_n(const struct kern_buf *b)
{
    return b->n;
}

enum kern_dtype kern_buf_dtype(const struct kern_buf *b)
{
    return b->dtype;
}

void *kern_buf_ptr(struct kern_buf *b)
{
    return b->p;
}

void kern_upload(struct kern_buf *dst, size_t at, const void *host, size_t n)
{
    check_range(dst, at, n);
    if (n)
        dst->k->device->upload(dst, at, host, n);
}

enum status kern_download(void *host, const struct kern_buf *src, size_t at, size_t n)
{
    check_range(src, at, n);
    return n ? src->k->device->download(host, src, at, n) : STATUS_OK;
}

void kern_zero(struct kern_buf *b, size_t at, size_t n)
{
    check_range(b, at, n);
    if (n)
        b->k->device->zero(b, at, n);
}

// ---- weights

enum status kern_weight_create(struct kern *k, const struct kern_weight_args *args,
                               struct kern_weight **weight_out)
{
    assert(args->stack && args->rows && args->cols && args->dtype != KERN_I32);
    bool scaled = args->dtype == KERN_FP8 || args->dtype == KERN_INT8;
    assert(args->kind != KERN_WEIGHT_TABLE || (args->stack == 1 && !scaled));
    size_t matrix, all;
    if (__builtin_mul_overflow(args->rows, args->cols, &matrix) ||
        __builtin_mul_overflow(matrix, args->stack, &all) || all >> BUF_ELEMENTS_MAX_LOG2)
        return STATUS_NO_MEMORY;
    struct kern_weight *w = mem_zalloc(1, sizeof *w);
    *w = (struct kern_weight){.k = k, .shape = *args, .held = args->dtype};
    enum status s = k->device->weight_alloc(w);
    if (s != STATUS_OK) {
        free(w);
        return s;
    }
    *weight_out = w;
    return STATUS_OK;
}

void kern_weight_destroy(struct kern_weight *w)
{
    if (!w)
        return;
    w->k->device->weight_free(w);
    free(w);
}

size_t kern_weight_bytes(const struct kern_weight *w)
{
    return w->bytes;
}

void kern_weight_fill(struct kern_weight *w, const struct kern_fill_args *args)
{
    struct kern_fill_args a = *args;
    assert(a.s < w->shape.stack && a.row0 <= w->shape.rows && a.rows <= w->shape.rows - a.row0);
    if (!a.row_stride && !a.col_stride) {
        a.row_stride = w->shape.cols;
        a.col_stride = 1;
    }
    if (a.rows)
        w->k->device->weight_fill(w, &a);
}

void kern_weight_fill_scales(struct kern_weight *w, const struct kern_scales_args *args)
{
    struct kern_scales_args a = *args;
    const struct kern_weight_args *shape = &w->shape;
    assert(a.s < shape->stack && a.row0 <= shape->rows && a.rows <= shape->rows - a.row0);
    assert(shape->dtype == KERN_FP8 || shape->dtype == KERN_INT8);
    if (shape->dtype == KERN_FP8) {
        size_t blocks = (shape->cols + KERN_SCALE_BLOCK - 1) / KERN_SCALE_BLOCK;
        assert(a.row0 % KERN_SCALE_BLOCK == 0);
        assert(a.rows % KERN_SCALE_BLOCK == 0 || a.row0 + a.rows == shape->rows);
        if (!a.row_stride)
            a.row_stride = blocks;
        assert(a.row_stride >= blocks);
    }
    if (a.rows)
        w->k->device->weight_fill_scales(w, &a);
}

static void check_rows(const struct kern_weight *w, size_t s, size_t row0, size_t rows)
{
    assert(s < w->shape.stack && row0 <= w->shape.rows && rows <= w->shape.rows - row0);
}

// One row of the stream in the form of dtype.
static void noise_row(enum kern_dtype dtype, const struct noise *s, size_t n, void *out)
{
    switch (dtype) {
    case KERN_F32:
        noise_f32(s, n, out);
        return;
    case KERN_BF16:
        noise_bf16(s, n, out);
        return;
    case KERN_FP8:
        noise_e4m3(s, n, out);
        return;
    case KERN_INT8:
        noise_int8(s, n, out);
        return;
    case KERN_F16:
    case KERN_I32:
        break;
    }
    assert(!"noise has no such dtype");
}

void kern_weight_fill_noise(struct kern_weight *w, const struct kern_noise_args *a)
{
    check_rows(w, a->s, a->row0, a->rows);
    if (w->k->device->weight_noise) {
        if (a->rows)
            w->k->device->weight_noise(w, a);
        return;
    }
    void *row = mem_alloc(w->shape.cols * kern_dtype_bytes(w->shape.dtype));
    for (size_t i = 0; i < a->rows; i++) {
        const struct noise n = {a->key, a->first + i, a->mean, a->amplitude};
        noise_row(w->shape.dtype, &n, w->shape.cols, row);
        kern_weight_fill(
            w, &(struct kern_fill_args){.s = a->s, .row0 = a->row0 + i, .rows = 1, .data = row});
    }
    free(row);
}

void kern_buf_fill_noise(struct kern_buf *b, const struct kern_buf_noise_args *a)
{
    check_range(b, a->at, a->n);
    if (!a->n)
        return;
    if (b->k->device->buf_noise) {
        b->k->device->buf_noise(b, a);
        return;
    }
    const struct noise n = {a->key, a->row, a->mean, a->amplitude};
    void *row = mem_alloc(a->n * kern_dtype_bytes(b->dtype));
    noise_row(b->dtype, &n, a->n, row);
    kern_upload(b, a->at, row, a->n);
    free(row);
}

// ---- stages

enum status kern_stage_create(struct kern *k, size_t bytes, struct kern_stage **stage_out)
{
    struct kern_stage *s = mem_zalloc(1, sizeof *s);
    *s = (struct kern_stage){.k = k, .bytes = bytes};
    enum status st = STATUS_OK;
    if (k->device->stage_alloc)
        st = k->device->stage_alloc(s);
    else
        s->p = mem_alloc(bytes);
    if (st != STATUS_OK) {
        free(s);
        return st;
    }
    *stage_out = s;
    return STATUS_OK;
}

void kern_stage_destroy(struct kern_stage *s)
{
    if (!s)
        return;
    if (s->k->device->stage_free)
        s->k->device->stage_free(s);
    else
        free(s->p);
    free(s);
}

void *kern_stage_memory(struct kern_stage *s)
{
    return s->p;
}

void kern_weight_fill_staged(struct kern_weight *w, const struct kern_fill_args *args,
                             struct kern_stage *s)
{
    struct kern_fill_args a = *args;
    check_rows(w, a.s, a.row0, a.rows);
    assert(w->k == s->k && a.rows * w->shape.cols * kern_dtype_bytes(w->shape.dtype) <= s->bytes);
    a.data = s->p;
    a.row_stride = w->shape.cols;
    a.col_stride = 1;
    if (!a.rows)
        return;
    if (w->k->device->stage_fill)
        w->k->device->stage_fill(w, &a, s);
    else
        w->k->device->weight_fill(w, &a);
}

void kern_stage_wait(struct kern_stage *s)
{
    if (s->k->device->stage_wait)
        s->k->device->stage_wait(s);
}

// ---- checks of operands

enum operand { ACT, F32, ANY };

static bool fits(const struct kern *k, const struct kern_buf *b, enum operand kind)
{
    return b && b->k == k &&
           ((b->dtype == KERN_F32 && kind != ACT) || (b->dtype == k->act && kind != F32));
}

// n rows of `width` elements lie inside the buffer.
static void check_view(const struct kern *k, const struct kern_view *v, enum operand kind, size_t n,
                       size_t width)
{
    assert(fits(k, v->buf, kind));
    assert(n == 1 || (v->stride && n - 1 <= v->buf->n / v->stride));
    size_t span = (n == 1 ? 0 : (n - 1) * v->stride) + width;
    check_range(v->buf, v->at, span);
}

static void check_optional(const struct kern *k, const struct kern_view *v, enum operand kind,
                           size_t n, size_t width)
{
    if (v->buf)
        check_view(k, v, kind, n, width);
}

static void check_vector(const struct kern *k, const struct kern_buf *b, enum kern_dtype dtype,
                         size_t n)
{
    assert(b && b->k == k && b->dtype == dtype && b->n >= n);
}

static void check_matrix(const struct kern *k, const struct kern_weight *w)
{
    assert(w && w->k == k && w->shape.kind == KERN_WEIGHT_MATRIX);
}

static void check_batch(const struct kern *k, const struct kern_batch *b, const struct kern_kv *kv)
{
    check_vector(k, b->seq, KERN_I32, b->n);
    check_vector(k, b->pos, KERN_I32, b->n);
    check_vector(k, b->tables, KERN_I32, b->seqs * b->table_stride);
    assert(kv->buf && kv->buf->k == k && kv->buf->dtype == k->kv);
    assert(kv->block_tokens && kv->width);
    assert(b->keys_max && (b->keys_max - 1) / kv->block_tokens < b->table_stride);
    size_t elements;
    assert(!__builtin_mul_overflow(kv->blocks, kv->block_tokens, &elements) &&
           !__builtin_mul_overflow(elements, kv->width, &elements));
    check_range(kv->buf, kv->at, elements);
}

// Width of a row that holds `heads` runs of `dim`, `stride` apart.
static size_t heads_width(size_t heads, size_t stride, size_t dim)
{
    assert(heads && (heads == 1 || stride >= dim));
    return (heads - 1) * stride + dim;
}

// ---- ops

void kern_embed(struct kern *k, const struct kern_embed_args *a)
{
    if (!a->n)
        return;
    assert(a->table && a->table->k == k && a->table->shape.kind == KERN_WEIGHT_TABLE);
    assert(a->ids && a->ids->k == k && a->ids->dtype == KERN_I32);
    check_range(a->ids, a->ids_at, a->n);
    check_view(k, &a->out, F32, a->n, a->table->shape.cols);
    k->compute->embed(k, a);
}

void kern_gather_rows(struct kern *k, const struct kern_gather_args *a)
{
    if (!a->n)
        return;
    assert(a->x_rows);
    check_view(k, &a->x, ANY, a->x_rows, a->dim);
    check_vector(k, a->rows, KERN_I32, a->n);
    check_view(k, &a->out, ANY, a->n, a->dim);
    assert(a->x.buf->dtype == a->out.buf->dtype);
    k->compute->gather_rows(k, a);
}

void kern_rmsnorm(struct kern *k, const struct kern_rmsnorm_args *args)
{
    struct kern_rmsnorm_args a = *args;
    if (!a.n)
        return;
    if (!a.heads)
        a.heads = 1;
    assert(a.dim);
    check_view(k, &a.x, ANY, a.n, heads_width(a.heads, a.x_head_stride, a.dim));
    check_view(k, &a.out, ANY, a.n, heads_width(a.heads, a.out_head_stride, a.dim));
    check_vector(k, a.gamma, KERN_F32, a.dim);
    k->compute->rmsnorm(k, &a);
}

void kern_linear(struct kern *k, const struct kern_linear_args *a)
{
    if (!a->n)
        return;
    check_matrix(k, a->w);
    assert(a->w->shape.stack == 1);
    check_view(k, &a->x, ACT, a->n, a->w->shape.cols);
    check_view(k, &a->out, ANY, a->n, a->w->shape.rows);
    check_optional(k, &a->add, F32, a->n, a->w->shape.rows);
    if (a->bias)
        check_vector(k, a->bias, KERN_F32, a->w->shape.rows);
    k->compute->linear(k, a);
}

void kern_linear_heads(struct kern *k, const struct kern_linear_heads_args *a)
{
    if (!a->n)
        return;
    check_matrix(k, a->w);
    const struct kern_weight_args *s = &a->w->shape;
    check_view(k, &a->x, ACT, a->n, heads_width(s->stack, a->x_head_stride, s->cols));
    check_view(k, &a->out, ACT, a->n, heads_width(s->stack, a->out_head_stride, s->rows));
    k->compute->linear_heads(k, a);
}

void kern_add(struct kern *k, const struct kern_add_args *a)
{
    if (!a->n)
        return;
    check_view(k, &a->a, F32, a->n, a->dim);
    check_view(k, &a->b, F32, a->n, a->dim);
    check_view(k, &a->out, F32, a->n, a->dim);
    k->compute->add(k, a);
}

void kern_silu_mul(struct kern *k, const struct kern_silu_mul_args *a)
{
    if (!a->n)
        return;
    check_view(k, &a->gate, ANY, a->n, a->dim);
    check_view(k, &a->up, ANY, a->n, a->dim);
    assert(a->gate.buf->dtype == a->up.buf->dtype);
    check_view(k, &a->out, ACT, a->n, a->dim);
    k->compute->silu_mul(k, a);
}

void kern_rope(struct kern *k, const struct kern_rope_args *a)
{
    if (!a->n)
        return;
    assert(a->dim && a->dim % 2 == 0 && a->positions);
    assert(a->positions <= ((size_t)1 << BUF_ELEMENTS_MAX_LOG2) / a->dim);
    check_view(k, &a->x, ANY, a->n, heads_width(a->heads, a->head_stride, a->dim));
    check_vector(k, a->table, KERN_F32, a->positions * a->dim);
    check_vector(k, a->pos, KERN_I32, a->n);
    k->compute->rope(k, a);
}

void kern_kv_write(struct kern *k, const struct kern_kv_write_args *a)
{
    if (!a->batch->n)
        return;
    assert(a->a_dim + a->b_dim == a->kv.width);
    check_batch(k, a->batch, &a->kv);
    check_view(k, &a->a, ACT, a->batch->n, a->a_dim);
    check_view(k, &a->b, ACT, a->batch->n, a->b_dim);
    k->compute->kv_write(k, a);
}

void kern_attn_mla(struct kern *k, const struct kern_attn_mla_args *a)
{
    size_t n = a->batch->n;
    if (!n)
        return;
    assert(a->kv.width == a->kv_lora + a->rope_dim && a->kv_lora && a->rope_dim);
    check_batch(k, a->batch, &a->kv);
    check_view(k, &a->q_latent, ACT, n, heads_width(a->heads, a->q_latent_head_stride, a->kv_lora));
    check_view(k, &a->q_rope, ACT, n, heads_width(a->heads, a->q_rope_head_stride, a->rope_dim));
    check_view(k, &a->out, ACT, n, a->heads * a->kv_lora);
    k->compute->attn_mla(k, a);
}

void kern_attn_gqa(struct kern *k, const struct kern_attn_gqa_args *a)
{
    size_t n = a->batch->n;
    if (!n)
        return;
    assert(a->kv_heads && a->head_dim && a->heads && a->heads % a->kv_heads == 0);
    assert(a->kv.width == 2 * a->kv_heads * a->head_dim);
    check_batch(k, a->batch, &a->kv);
    check_view(k, &a->q, ACT, n, a->heads * a->head_dim);
    check_view(k, &a->out, ACT, n, a->heads * a->head_dim);
    k->compute->attn_gqa(k, a);
}

static struct kern_router_args check_router(struct kern *k, const struct kern_router_args *args)
{
    struct kern_router_args a = *args;
    if (!a.groups)
        a.groups = 1;
    assert(a.topk && a.topk <= KERN_TOPK_MAX && a.topk <= a.experts &&
           a.experts <= KERN_EXPERTS_MAX);
    assert(a.experts % a.groups == 0);
    assert(a.groups == 1 || (a.topk_groups && a.topk_groups <= a.groups));
    check_view(k, &a.logits, F32, a.n, a.experts);
    assert(!a.bias || a.kind == KERN_ROUTER_SIGMOID);
    if (a.bias)
        check_vector(k, a.bias, KERN_F32, a.experts);
    assert(a.topk + a.always <= KERN_TOPK_MAX && a.experts + a.always <= KERN_EXPERTS_MAX);
    check_vector(k, a.ids, KERN_I32, a.n * (a.topk + a.always));
    check_vector(k, a.weights, KERN_F32, a.n * (a.topk + a.always));
    return a;
}

void kern_router(struct kern *k, const struct kern_router_args *args)
{
    if (!args->n)
        return;
    struct kern_router_args a = check_router(k, args);
    k->compute->router(k, &a);
}

void kern_moe_gate_up(struct kern *k, const struct kern_moe_gate_up_args *a)
{
    if (!a->n)
        return;
    check_matrix(k, a->gate);
    check_matrix(k, a->up);
    const struct kern_weight_args *g = &a->gate->shape, *u = &a->up->shape;
    assert(g->stack == u->stack && g->rows == u->rows && g->cols == u->cols);
    assert(g->dtype == u->dtype && a->topk && a->topk <= g->stack);
    assert(a->topk <= KERN_TOPK_MAX && g->stack <= KERN_EXPERTS_MAX);
    check_view(k, &a->x, ACT, a->n, g->cols);
    check_vector(k, a->ids, KERN_I32, a->n * a->topk);
    check_view(k, &a->out, ACT, a->n * a->topk, g->rows);
    k->compute->moe_gate_up(k, a);
}

void kern_moe_down(struct kern *k, const struct kern_moe_down_args *a)
{
    if (!a->n)
        return;
    check_matrix(k, a->down);
    const struct kern_weight_args *d = &a->down->shape;
    assert(a->topk && a->topk <= d->stack);
    assert(a->topk <= KERN_TOPK_MAX && d->stack <= KERN_EXPERTS_MAX);
    check_view(k, &a->h, ACT, a->n * a->topk, d->cols);
    check_vector(k, a->ids, KERN_I32, a->n * a->topk);
    check_vector(k, a->weights, KERN_F32, a->n * a->topk);
    check_optional(k, &a->shared, F32, a->n, d->rows);
    check_optional(k, &a->residual, F32, a->n, d->rows);
    check_view(k, &a->out, F32, a->n, d->rows);
    k->compute->moe_down(k, a);
}

// ---- fused ops

void kern_gated(struct kern *k, const struct kern_gated_args *a)
{
    if (!a->n)
        return;
    check_matrix(k, a->w);
    const struct kern_weight_args *w = &a->w->shape;
    assert(w->stack == 1 && w->rows % 2 == 0);
    check_view(k, &a->x, ACT, a->n, w->cols);
    check_view(k, &a->tmp, ACT, a->n, w->rows);
    check_view(k, &a->out, ACT, a->n, w->rows / 2);
    if (a->bias)
        check_vector(k, a->bias, KERN_F32, w->rows);
    k->compute->gated(k, a);
}

static void check_rope(const struct kern *k, const struct kern_rope_table *r)
{
    assert(r->dim && r->dim % 2 == 0 && r->positions);
    assert(r->positions <= ((size_t)1 << BUF_ELEMENTS_MAX_LOG2) / r->dim);
    check_vector(k, r->table, KERN_F32, r->positions * r->dim);
}

void kern_mla_prepare(struct kern *k, const struct kern_mla_prepare_args *a)
{
    const size_t n = a->batch->n;
    if (!n)
        return;
    assert(a->kv_lora && a->pool.width == a->kv_lora + a->rope.dim);
    check_batch(k, a->batch, &a->pool);
    check_rope(k, &a->rope);
    check_view(k, &a->kv, ACT, n, a->pool.width);
    check_vector(k, a->kv_norm, KERN_F32, a->kv_lora);
    if (a->q_norm) {
        check_view(k, &a->q, ACT, n, a->q_dim);
        check_vector(k, a->q_norm, KERN_F32, a->q_dim);
    } else {
        check_view(k, &a->q, ACT, n,
                   heads_width(a->heads, a->q_head_stride, a->q_rope_at + a->rope.dim));
    }
    k->compute->mla_prepare(k, a);
}

void kern_gqa_prepare(struct kern *k, const struct kern_gqa_prepare_args *a)
{
    const size_t n = a->batch->n;
    if (!n)
        return;
    assert(a->kv_heads && a->heads && a->pool.width == 2 * a->kv_heads * a->head_dim);
    assert(a->rope.dim == a->head_dim && !a->q_norm == !a->k_norm);
    check_batch(k, a->batch, &a->pool);
    check_rope(k, &a->rope);
    check_view(k, &a->qkv, ACT, n, (a->heads + 2 * a->kv_heads) * a->head_dim);
    if (a->q_norm) {
        check_vector(k, a->q_norm, KERN_F32, a->head_dim);
        check_vector(k, a->k_norm, KERN_F32, a->head_dim);
    }
    k->compute->gqa_prepare(k, a);
}

void kern_route(struct kern *k, const struct kern_route_args *args)
{
    struct kern_route_args a = *args;
    if (!a.router.n)
        return;
    a.router = check_router(k, &args->router);
    check_matrix(k, a.w);
    assert(a.dim && a.w->shape.stack == 1 && a.w->shape.rows == a.router.experts &&
           a.w->shape.cols == a.dim);
    check_view(k, &a.x, F32, a.router.n, a.dim);
    check_view(k, &a.h, ACT, a.router.n, a.dim);
    check_vector(k, a.gamma, KERN_F32, a.dim);
    k->compute->route(k, &a);
}

void kern_argmax(struct kern *k, const struct kern_argmax_args *a)
{
    if (!a->n)
        return;
    assert(a->dim && a->dim <= INT32_MAX);
    check_view(k, &a->x, F32, a->n, a->dim);
    check_vector(k, a->out, KERN_I32, a->n);
    k->compute->argmax(k, a);
}

static_assert(sizeof(struct kern_sample_row) == 16 * 4 && sizeof(struct kern_sample_out) == 44 * 4,
              "sizes that kern.h promises");

void kern_sample(struct kern *k, const struct kern_sample_args *a)
{
    if (!a->n)
        return;
    assert(a->vocab && a->vocab <= KERN_SAMPLE_VOCAB_MAX);
    check_view(k, &a->logits, F32, a->n, a->vocab);
    check_vector(k, a->rows, KERN_I32, a->n * 16);
    check_vector(k, a->history, KERN_I32, a->history_n);
    check_vector(k, a->out, KERN_I32, a->n * 44);
    k->compute->sample(k, a);
}
