// The CPU reference body: plain loops over row-major weights that define what each op means. Sums
// run over the rising index in float32; matrix products are fused multiply-add chains, which the
// fast body reproduces bit for bit. exp is libm's; the fast body's own exp stays within 2 ulp of
// it.
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/router.h"

static float weight_at(const struct kern_weight *w, size_t s, size_t row, size_t col)
{
    const char *matrix = (const char *)w->p + s * w->stack_bytes;
    return cpu_to_f32(w->held, matrix + (row * w->shape.cols + col) * kern_dtype_bytes(w->held));
}

static float weight_dot(const struct kern_weight *w, size_t s, size_t row, const float *x)
{
    float sum = 0;
    for (size_t c = 0; c < w->shape.cols; c++)
        sum = fmaf(x[c], weight_at(w, s, row, c), sum);
    return sum;
}

static float dot(const float *a, const float *b, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum = fmaf(a[i], b[i], sum);
    return sum;
}

static float silu(float x)
{
    return x / (1 + expf(-x));
}

static void ref_embed(struct kern *k, const struct kern_embed_args *a)
{
    for (size_t i = 0; i < a->n; i++) {
        int32_t id = kern_i32(a->ids)[a->ids_at + i];
        assert(id >= 0 && (size_t)id < a->table->shape.rows);
        for (size_t c = 0; c < a->table->shape.cols; c++)
            kern_row(&a->out, i)[c] = weight_at(a->table, 0, (size_t)id, c);
    }
}

static void ref_gather_rows(struct kern *k, const struct kern_gather_args *a)
{
    for (size_t i = 0; i < a->n; i++) {
        int32_t row = kern_i32(a->rows)[i];
        assert(row >= 0 && (size_t)row < a->x_rows);
        memcpy(kern_row(&a->out, i), kern_row(&a->x, (size_t)row), a->dim * sizeof(float));
    }
}

static void ref_rmsnorm(struct kern *k, const struct kern_rmsnorm_args *a)
{
    const float *gamma = a->gamma->p;
    for (size_t i = 0; i < a->n; i++)
        for (size_t h = 0; h < a->heads; h++) {
            const float *x = kern_row(&a->x, i) + h * a->x_head_stride;
            float *out = kern_row(&a->out, i) + h * a->out_head_stride;
            float r = 1 / sqrtf(dot(x, x, a->dim) / (float)a->dim + a->eps);
            for (size_t c = 0; c < a->dim; c++)
                out[c] = x[c] * r * gamma[c];
        }
}

static void ref_linear(struct kern *k, const struct kern_linear_args *a)
{
    const float *bias = a->bias ? a->bias->p : NULL;
    for (size_t i = 0; i < a->n; i++)
        for (size_t r = 0; r < a->w->shape.rows; r++) {
            float y = weight_dot(a->w, 0, r, kern_row(&a->x, i));
            if (bias)
                y += bias[r];
            if (a->add.buf)
                y += kern_row(&a->add, i)[r];
            kern_row(&a->out, i)[r] = y;
        }
}

static void ref_linear_heads(struct kern *k, const struct kern_linear_heads_args *a)
{
    for (size_t i = 0; i < a->n; i++)
        for (size_t h = 0; h < a->w->shape.stack; h++)
            for (size_t r = 0; r < a->w->shape.rows; r++)
                kern_row(&a->out, i)[h * a->out_head_stride + r] =
                    weight_dot(a->w, h, r, kern_row(&a->x, i) + h * a->x_head_stride);
}

static void ref_add(struct kern *k, const struct kern_add_args *a)
{
    for (size_t i = 0; i < a->n; i++)
        for (size_t c = 0; c < a->dim; c++)
            kern_row(&a->out, i)[c] = kern_row(&a->a, i)[c] + kern_row(&a->b, i)[c];
}

static void ref_silu_mul(struct kern *k, const struct kern_silu_mul_args *a)
{
    for (size_t i = 0; i < a->n; i++)
        for (size_t c = 0; c < a->dim; c++)
            kern_row(&a->out, i)[c] = silu(kern_row(&a->gate, i)[c]) * kern_row(&a->up, i)[c];
}

static void ref_rope(struct kern *k, const struct kern_rope_args *a)
{
    size_t half = a->dim / 2;
    bool pairs = a->style == KERN_ROPE_PAIRS;
    for (size_t i = 0; i < a->n; i++) {
        int32_t pos = kern_i32(a->pos)[i];
        assert(pos >= 0 && (size_t)pos < a->positions);
        const float *cos = (const float *)a->table->p + (size_t)pos * a->dim, *sin = cos + half;
        for (size_t h = 0; h < a->heads; h++)
            for (size_t p = 0; p < half; p++) {
                float *x = kern_row(&a->x, i) + h * a->head_stride;
                float *first = x + (pairs ? 2 * p : p), *second = first + (pairs ? 1 : half);
                float u = *first, v = *second;
                *first = u * cos[p] - v * sin[p];
                *second = v * cos[p] + u * sin[p];
            }
    }
}

static void ref_kv_write(struct kern *k, const struct kern_kv_write_args *a)
{
    for (size_t i = 0; i < a->batch->n; i++) {
        const int32_t *table = cpu_row_table(a->batch, i);
        float *token = cpu_kv_row(&a->kv, table, (size_t)kern_i32(a->batch->pos)[i]);
        memcpy(token, kern_row(&a->a, i), a->a_dim * sizeof(float));
        memcpy(token + a->a_dim, kern_row(&a->b, i), a->b_dim * sizeof(float));
    }
}

// ---- attention: one query over tokens 0 .. pos, the textbook way

struct ref_query {
    const float *q, *q_rope; // q_rope NULL: none
    size_t dim, rope_dim;
    size_t k_at, v_at, v_dim; // where key and value lie in a token's row; rope key follows the key
    float scale;
};

static void ref_attend(struct kern *k, const struct kern_batch *b, const struct kern_kv *kv,
                       size_t i, const struct ref_query *q, float *out)
{
    const int32_t *table = cpu_row_table(b, i);
    size_t tokens = (size_t)kern_i32(b->pos)[i] + 1;
    float *s = cpu_scratch(k, CPU_ARENA_THREADS, tokens * sizeof *s), max = -INFINITY, sum = 0;
    for (size_t t = 0; t < tokens; t++) {
        const float *key = cpu_kv_row(kv, table, t) + q->k_at;
        s[t] = dot(q->q, key, q->dim);
        if (q->q_rope)
            s[t] += dot(q->q_rope, key + q->dim, q->rope_dim);
        s[t] *= q->scale;
        max = fmaxf(max, s[t]);
    }
    for (size_t c = 0; c < q->v_dim; c++)
        out[c] = 0;
    for (size_t t = 0; t < tokens; t++) {
        float p = expf(s[t] - max);
        const float *value = cpu_kv_row(kv, table, t) + q->v_at;
        for (size_t c = 0; c < q->v_dim; c++)
            out[c] = fmaf(p, value[c], out[c]);
        sum += p;
    }
    for (size_t c = 0; c < q->v_dim; c++)
        out[c] /= sum;
}

static void ref_attn_mla(struct kern *k, const struct kern_attn_mla_args *a)
{
    for (size_t i = 0; i < a->batch->n; i++)
        for (size_t h = 0; h < a->heads; h++) {
            struct ref_query q = {
                .q = kern_row(&a->q_latent, i) + h * a->q_latent_head_stride,
                .q_rope = kern_row(&a->q_rope, i) + h * a->q_rope_head_stride,
                .dim = a->kv_lora,
                .rope_dim = a->rope_dim,
                .v_dim = a->kv_lora,
                .scale = a->scale,
            };
            ref_attend(k, a->batch, &a->kv, i, &q, kern_row(&a->out, i) + h * a->kv_lora);
        }
}

static void ref_attn_gqa(struct kern *k, const struct kern_attn_gqa_args *a)
{
    for (size_t i = 0; i < a->batch->n; i++)
        for (size_t h = 0; h < a->heads; h++) {
            size_t kvh = h / (a->heads / a->kv_heads);
            struct ref_query q = {
                .q = kern_row(&a->q, i) + h * a->head_dim,
                .dim = a->head_dim,
                .k_at = kvh * a->head_dim,
                .v_at = (a->kv_heads + kvh) * a->head_dim,
                .v_dim = a->head_dim,
                .scale = a->scale,
            };
            ref_attend(k, a->batch, &a->kv, i, &q, kern_row(&a->out, i) + h * a->head_dim);
        }
}

// ---- router and experts

static void ref_router(struct kern *k, const struct kern_router_args *a)
{
    float score[KERN_EXPERTS_MAX];
    for (size_t i = 0; i < a->n; i++) {
        const float *logit = kern_row(&a->logits, i);
        float max = -INFINITY, sum = 0;
        for (size_t e = 0; e < a->experts; e++)
            max = fmaxf(max, logit[e]);
        for (size_t e = 0; e < a->experts; e++)
            sum += expf(logit[e] - max);
        for (size_t e = 0; e < a->experts; e++)
            score[e] = a->kind == KERN_ROUTER_SIGMOID ? 1 / (1 + expf(-logit[e]))
                                                      : expf(logit[e] - max) / sum;
        router_select(a, score, (int32_t *)a->ids->p + i * (a->topk + a->always),
                      (float *)a->weights->p + i * (a->topk + a->always));
    }
}

static size_t expert_at(const struct kern_buf *ids, size_t at, size_t experts)
{
    int32_t e = kern_i32(ids)[at];
    assert(e >= 0 && (size_t)e < experts);
    return (size_t)e;
}

static void ref_moe_gate_up(struct kern *k, const struct kern_moe_gate_up_args *a)
{
    for (size_t j = 0; j < a->n * a->topk; j++) {
        size_t e = expert_at(a->ids, j, a->gate->shape.stack);
        const float *x = kern_row(&a->x, j / a->topk);
        for (size_t r = 0; r < a->gate->shape.rows; r++)
            kern_row(&a->out, j)[r] =
                silu(weight_dot(a->gate, e, r, x)) * weight_dot(a->up, e, r, x);
    }
}

static void ref_moe_down(struct kern *k, const struct kern_moe_down_args *a)
{
    const float *weights = a->weights->p;
    for (size_t i = 0; i < a->n; i++)
        for (size_t r = 0; r < a->down->shape.rows; r++) {
            float sum = 0;
            for (size_t e = 0; e < a->down->shape.stack; e++)
                for (size_t j = i * a->topk; j < (i + 1) * a->topk; j++)
                    if (expert_at(a->ids, j, a->down->shape.stack) == e)
                        sum = fmaf(weights[j], weight_dot(a->down, e, r, kern_row(&a->h, j)), sum);
            if (a->shared.buf)
                sum += kern_row(&a->shared, i)[r];
            if (a->residual.buf)
                sum += kern_row(&a->residual, i)[r];
            kern_row(&a->out, i)[r] = sum;
        }
}

static void ref_argmax(struct kern *k, const struct kern_argmax_args *a)
{
    for (size_t i = 0; i < a->n; i++) {
        const float *x = kern_row(&a->x, i);
        int32_t best = 0;
        for (size_t c = 0; c < a->dim && best >= 0; c++)
            best = !isfinite(x[c]) ? -1 : x[c] > x[best] ? (int32_t)c : best;
        ((int32_t *)a->out->p)[i] = best;
    }
}

const struct kern_compute cpu_compute_ref = {
    .embed = ref_embed,
    .gather_rows = ref_gather_rows,
    .rmsnorm = ref_rmsnorm,
    .linear = ref_linear,
    .linear_heads = ref_linear_heads,
    .add = ref_add,
    .silu_mul = ref_silu_mul,
    .rope = ref_rope,
    .kv_write = ref_kv_write,
    .attn_mla = ref_attn_mla,
    .attn_gqa = ref_attn_gqa,
    .router = ref_router,
    .moe_gate_up = ref_moe_gate_up,
    .moe_down = ref_moe_down,
    .gated = kern_composed_gated,
    .mla_prepare = kern_composed_mla_prepare,
    .gqa_prepare = kern_composed_gqa_prepare,
    .route = kern_composed_route,
    .argmax = ref_argmax,
    .sample = cpu_sample,
};
