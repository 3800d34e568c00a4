// The products of kern.h put as mm.h's launchers take them: which kernel runs, quantized
// activations where weights are quantized, and memory for both. What mm.h does not take (f32 and
// f16 weights, odd places) goes to mm_any.cu. Which it is depends on shapes and places alone, never
// on the number of rows, so that a row's bits do not depend on its company.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mm.h"

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static size_t at_most(size_t n, size_t most)
{
    return n < most ? n : most;
}

// ---- operands

// False for what mm.h has no kernel for.
static bool matrix_of(const struct kern_weight *w, struct cuda_matrix *out)
{
    if (!cuda_of(w->k)->hopper)
        return false;
    const struct kern_weight_args *s = &w->shape;
    if (s->dtype != KERN_BF16 && s->dtype != KERN_FP8 && s->dtype != KERN_INT8)
        return false;
    *out = (struct cuda_matrix){.w = w->p,
                                .type = s->dtype == KERN_BF16  ? CUDA_W_BF16
                                        : s->dtype == KERN_FP8 ? CUDA_W_FP8
                                                               : CUDA_W_INT8,
                                .stack = (int)s->stack,
                                .rows = (int)s->rows,
                                .cols = (int)s->cols,
                                .ld = w->ld,
                                .stack_bytes = w->stack_bytes,
                                .scales = w->scales,
                                .scales_ld = w->scales_ld,
                                .stack_scales = w->scales_stack};
    return s->cols % 8 == 0;
}

static bool x_fits(const struct cuda_rows *x)
{
    return ((uintptr_t)x->p & 15) == 0 && x->stride % 8 == 0;
}

static bool out_fits(const struct cuda_rows *out)
{
    return ((uintptr_t)out->p & (out->bf16 ? 3 : 7)) == 0 && out->stride % 2 == 0;
}

// Rows of activations, as they are or quantized for the weights.
struct operand {
    const uint16_t *x;
    size_t ld;
    const void *q;
    size_t q_ld;
    const float *scales;
    size_t scales_ld;
};

static struct operand operand_of(struct cuda *c, const struct cuda_rows *x, size_t n,
                                 const struct cuda_matrix *w)
{
    struct operand o = {.x = x->p, .ld = x->stride};
    if (w->type == CUDA_W_BF16)
        return o;
    o.q_ld = round_up((size_t)w->cols, CUDA_MM_BLOCK);
    o.scales_ld = w->type == CUDA_W_FP8 ? round_up(o.q_ld / CUDA_MM_BLOCK, 4) : 1;
    char *memory = cuda_scratch(c, CUDA_ARENA_X, n * (o.q_ld + o.scales_ld * sizeof(float)));
    o.q = memory;
    o.scales = (const float *)(memory + n * o.q_ld);
    const struct cuda_quantize q = {.type = w->type,
                                    .x = x->p,
                                    .x_ld = x->stride,
                                    .n = (int)n,
                                    .cols = w->cols,
                                    .xq = memory,
                                    .xq_ld = o.q_ld,
                                    .xs = (float *)(memory + n * o.q_ld),
                                    .xs_ld = o.scales_ld};
    cuda_check(c, cuda_quantize(c->stream, &q), "quantize");
    return o;
}

// ---- dense and per head

static void matmul(struct cuda *c, struct cuda_matmul *m, const struct cuda_rows *x,
                   const struct cuda_rows *out, size_t n, const char *name)
{
    const struct operand o = operand_of(c, x, n, &m->w);
    const bool quantized = m->w.type != CUDA_W_BF16;
    m->x = quantized ? NULL : o.x;
    m->x_ld = o.ld;
    m->xq = o.q;
    m->xq_ld = o.q_ld;
    m->xs = o.scales;
    m->xs_ld = o.scales_ld;
    m->out = out->p;
    m->out_bf16 = out->bf16;
    m->out_ld = out->stride;
    m->n = (int)n;
    cuda_check(c, cuda_matmul(c->stream, m), name);
}

void cuda_linear(struct kern *k, const struct kern_linear_args *a)
{
    struct cuda *c = cuda_of(k);
    const struct cuda_rows x = cuda_rows(&a->x), out = cuda_rows(&a->out), add = cuda_rows(&a->add);
    const float *bias = a->bias ? a->bias->p : NULL;
    struct cuda_matmul m = {.heads = 1, .bias = bias, .add = add.p, .add_ld = add.stride};
    // The many-row kernels add to f32 only: then the few-row ones are not asked either.
    const bool add_fits = !add.p || (out_fits(&add) && !out.bf16);
    if (matrix_of(a->w, &m.w) && x_fits(&x) && out_fits(&out) && add_fits) {
        matmul(c, &m, &x, &out, a->n, "linear");
        return;
    }
    struct cuda_mm any = {.x = x, .out = out, .bias = bias, .add = add, .n = a->n};
    cuda_mm_set_weight(&any, a->w);
    cuda_mm(c, &any);
}

void cuda_linear_heads(struct kern *k, const struct kern_linear_heads_args *a)
{
    struct cuda *c = cuda_of(k);
    const struct cuda_rows x = cuda_rows(&a->x), out = cuda_rows(&a->out);
    const size_t heads = a->w->shape.stack;
    struct cuda_matmul m = {
        .heads = (int)heads, .x_head = a->x_head_stride, .out_head = a->out_head_stride};
    if (matrix_of(a->w, &m.w) && m.w.type == CUDA_W_BF16 && x_fits(&x) && out_fits(&out) &&
        a->x_head_stride % 8 == 0 && a->out_head_stride % 2 == 0) {
        matmul(c, &m, &x, &out, a->n, "linear_heads");
        return;
    }
    struct cuda_mm any = {
        .x = x, .out = out, .x_head = a->x_head_stride, .out_head = a->out_head_stride, .n = a->n};
    cuda_mm_set_weight(&any, a->w);
    any.heads = heads;
    cuda_mm(c, &any);
}

// Gate above up in one matrix, as two.
static bool halve(struct cuda_matmul *m)
{
    const size_t inner = (size_t)m->w.rows / 2;
    const size_t e = m->w.type == CUDA_W_BF16 ? 2 : 1;
    const bool fp8 = m->w.type == CUDA_W_FP8;
    m->w.rows = (int)inner;
    m->w_up = (const char *)m->w.w + inner * m->w.ld * e;
    if (m->w.scales)
        m->scales_up = m->w.scales + (fp8 ? inner / CUDA_MM_BLOCK * m->w.scales_ld : inner);
    const bool scales_fit = fp8 ? inner % CUDA_MM_BLOCK == 0 : ((uintptr_t)m->scales_up & 15) == 0;
    return m->w.type == CUDA_W_BF16 || scales_fit;
}

void cuda_gated(struct kern *k, const struct kern_gated_args *a)
{
    const struct cuda_rows x = cuda_rows(&a->x), out = cuda_rows(&a->out);
    const float *bias = a->bias ? a->bias->p : NULL;
    struct cuda_matmul m = {
        .heads = 1, .bias = bias, .bias_up = bias ? bias + a->w->shape.rows / 2 : NULL};
    if (matrix_of(a->w, &m.w) && halve(&m) && x_fits(&x) && out_fits(&out))
        matmul(cuda_of(k), &m, &x, &out, a->n, "gated");
    else
        kern_composed_gated(k, a);
}

// ---- experts

// How a step's tokens go through the experts; the same for gate_up and the down that follows.
enum { MANY_TOKENS = 4096, MANY_ROWS = 32 };
struct course {
    bool many;        // many rows per expert
    size_t at_once;   // tokens of one pass
    size_t plan_each; // bytes of a pass's plan; 0: none
};

static struct course course_of(const struct cuda_experts *e, size_t n)
{
    const size_t all = (size_t)(e->experts + e->always);
    struct course o = {.many = n > CUDA_EXPERTS_FEW || n * (size_t)e->topk > MANY_ROWS * all};
    o.at_once = at_most(n, o.many ? MANY_TOKENS : CUDA_EXPERTS_FEW);
    struct cuda_experts one = *e;
    one.n = (int)o.at_once;
    const size_t pairs = o.at_once * (size_t)(e->topk + e->always);
    const size_t bytes =
        o.many ? (all + 1 + pairs) * sizeof(int32_t) : cuda_experts_plan_bytes(&one);
    o.plan_each = round_up(bytes, 16);
    return o;
}

static struct cuda_experts experts_of(const struct kern_weight *w, size_t topk,
                                      const struct kern_buf *ids, const struct kern_buf *weights)
{
    return (struct cuda_experts){.topk = (int)topk,
                                 .experts = (int)w->shape.stack,
                                 .ids = ids->p,
                                 .weights = weights ? weights->p : NULL};
}

// Plans of all passes: gate_up makes them, down finds them where they were left.
static void *plans(struct cuda *c, const struct course *o, size_t n)
{
    const size_t passes = (n + o->at_once - 1) / o->at_once;
    return o->plan_each ? cuda_scratch(c, CUDA_ARENA_PLAN, passes * o->plan_each) : NULL;
}

static void next_tokens(struct cuda_experts *e, const struct course *o)
{
    e->ids += (size_t)e->n * (size_t)e->topk;
    e->weights += e->weights ? (size_t)e->n * (size_t)e->topk : 0;
    e->plan = e->plan ? (char *)e->plan + o->plan_each : NULL;
}

static bool experts_fit(const struct kern_weight *w, const struct cuda_rows *x,
                        const struct cuda_rows *out, struct cuda_matrix *m)
{
    return matrix_of(w, m) && x_fits(x) && out_fits(out);
}

void cuda_moe_gate_up(struct kern *k, const struct kern_moe_gate_up_args *a)
{
    struct cuda *c = cuda_of(k);
    const struct cuda_rows x = cuda_rows(&a->x), out = cuda_rows(&a->out);
    struct cuda_experts_gate_up m = {.e = experts_of(a->gate, a->topk, a->ids, NULL),
                                     .w_up = a->up->p,
                                     .scales_up = a->up->scales,
                                     .out = out.p,
                                     .out_ld = out.stride};
    if (!experts_fit(a->gate, &x, &out, &m.w)) {
        cuda_moe_gate_up_any(k, a);
        return;
    }
    const struct course o = course_of(&m.e, a->n);
    m.e.plan = plans(c, &o, a->n);
    const struct operand in = operand_of(c, &x, a->n, &m.w);
    m.e.ready = in.q && !m.e.plan; // the choice was made before what was quantized in between
    m.x = in.q ? NULL : in.x;
    m.x_ld = in.ld;
    m.xq = in.q;
    m.xq_ld = in.q_ld;
    m.xs = in.scales;
    m.xs_ld = in.scales_ld;
    for (size_t done = 0, n; done < a->n; done += n) {
        n = at_most(a->n - done, o.at_once);
        m.e.n = (int)n;
        struct cuda_experts_rows rows = {0};
        if (o.many || (m.e.plan && cuda_experts_plan_bytes(&m.e)))
            cuda_check(c, cuda_experts_plan(c->stream, &m.e, &rows), "experts' plan");
        cuda_check(c,
                   o.many ? cuda_experts_gate_up_many(c->stream, &m, &rows)
                          : cuda_experts_gate_up_few(c->stream, &m),
                   "moe_gate_up");
        next_tokens(&m.e, &o);
        m.x += m.x ? n * m.x_ld : 0;
        m.xq = m.xq ? (const char *)m.xq + n * m.xq_ld : NULL;
        m.xs += m.xs ? n * m.xs_ld : 0;
        m.out += n * a->topk * m.out_ld;
    }
}

static cudaError_t down_many(cudaStream_t s, const struct cuda_experts_down *m)
{
    // As cuda_experts_plan laid it out.
    struct cuda_experts_rows rows = {.first = m->e.plan};
    rows.pairs = rows.first + m->e.experts + m->e.always + 1;
    cudaError_t e = cuda_experts_down_many(s, m, &rows);
    return e == cudaSuccess ? cuda_experts_combine(s, m) : e;
}

void cuda_moe_down(struct kern *k, const struct kern_moe_down_args *a)
{
    struct cuda *c = cuda_of(k);
    const struct cuda_rows h = cuda_rows(&a->h), out = cuda_rows(&a->out);
    const struct cuda_rows shared = cuda_rows(&a->shared), residual = cuda_rows(&a->residual);
    struct cuda_experts_down m = {.e = experts_of(a->down, a->topk, a->ids, a->weights),
                                  .shared = shared.p,
                                  .residual = residual.p,
                                  .shared_ld = shared.stride,
                                  .residual_ld = residual.stride,
                                  .out = out.p,
                                  .out_ld = out.stride};
    const bool fits = (!shared.p || out_fits(&shared)) && (!residual.p || out_fits(&residual));
    if (!experts_fit(a->down, &h, &out, &m.w) || !fits) {
        cuda_moe_down_any(k, a);
        return;
    }
    const struct course o = course_of(&m.e, a->n);
    m.e.plan = plans(c, &o, a->n);
    m.e.ready = true;
    if (o.many)
        m.products = cuda_scratch(c, CUDA_ARENA_PARTIAL,
                                  o.at_once * a->topk * (size_t)m.w.rows * sizeof *m.products);
    const struct operand in = operand_of(c, &h, a->n * a->topk, &m.w);
    m.h = in.q ? NULL : in.x;
    m.h_ld = in.ld;
    m.hq = in.q;
    m.hq_ld = in.q_ld;
    m.hs = in.scales;
    m.hs_ld = in.scales_ld;
    for (size_t done = 0, n; done < a->n; done += n) {
        n = at_most(a->n - done, o.at_once);
        m.e.n = (int)n;
        cuda_check(c, o.many ? down_many(c->stream, &m) : cuda_experts_down_few(c->stream, &m),
                   "moe_down");
        next_tokens(&m.e, &o);
        m.h += m.h ? n * a->topk * m.h_ld : 0;
        m.hq = m.hq ? (const char *)m.hq + n * a->topk * m.hq_ld : NULL;
        m.hs += m.hs ? n * a->topk * m.hs_ld : 0;
        m.shared += m.shared ? n * m.shared_ld : 0;
        m.residual += m.residual ? n * m.residual_ld : 0;
        m.out += n * m.out_ld;
    }
}
