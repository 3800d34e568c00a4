// The fused ops against the reference's plain ones (kern.h, "fused ops"): outputs, the pool's
// tokens, and what must not be touched.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "tests/kern/kt.h"

// ---- gated

struct gated_case {
    size_t n, inner, cols;
    enum kern_dtype dtype;
    bool bias;
};

static void run_gated(struct kern *k, const void *args, float *out, size_t n)
{
    const struct gated_case *c = args;
    struct kern_weight *w = kt_weight(
        k, 1, &(struct kern_weight_args){KERN_WEIGHT_MATRIX, c->dtype, 1, 2 * c->inner, c->cols});
    struct kern_buf *x = kt_act_random_buf(k, 2, c->n * c->cols + 8);
    struct kern_buf *bias = kt_random_buf(k, 3, 2 * c->inner);
    struct kern_buf *tmp = kt_act_poison_buf(k, c->n * 2 * c->inner);
    struct kern_buf *y = kt_act_poison_buf(k, n);
    kern_gated(k, &(struct kern_gated_args){.n = c->n,
                                            .w = w,
                                            .x = {x, 0, c->cols},
                                            .bias = c->bias ? bias : NULL,
                                            .tmp = {tmp, 0, 2 * c->inner},
                                            .out = {y, 0, c->inner + 8}});
    kt_download(out, y, n);
    kern_weight_destroy(w);
    kern_buf_destroy(x);
    kern_buf_destroy(bias);
    kern_buf_destroy(tmp);
    kern_buf_destroy(y);
}

static void test_gated(void **state)
{
    static const struct gated_case cases[] = {
        {1, 128, 256, KERN_BF16, false}, {5, 24, 40, KERN_BF16, true},
        {70, 96, 64, KERN_BF16, false},  {3, 7, 9, KERN_F16, true},
        {0, 8, 8, KERN_F32, false},      {9, 33, 130, KERN_F32, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        kt_check("gated", run_gated, &cases[i], cases[i].n * (cases[i].inner + 8), 1e-6);
}

// ---- prepare: rows of a few sequences, blocks in a scrambled order

enum { SEQS = 3, BLOCK = 8, STRIDE = 6, POSITIONS = BLOCK * STRIDE, POOL = SEQS * STRIDE };

struct prepare_case {
    size_t n, heads, kv_heads, dim; // kv_heads 0: MLA of kv_lora `dim`
    size_t rope, q_dim;             // MLA; q_dim > 0: queries are normalised, not rotated
    bool norm;                      // GQA
};

static struct kern_batch make_batch(struct kern *k, size_t n)
{
    int32_t *seq = mem_zalloc(n + 1, 4), *pos = mem_zalloc(n + 1, 4), tables[POOL];
    for (size_t i = 0; i < n; i++) { // every token once
        seq[i] = (int32_t)(i % SEQS);
        pos[i] = (int32_t)(i / SEQS);
    }
    for (size_t i = 0; i < POOL; i++)
        tables[i] = (int32_t)(i * 7 % POOL);
    struct kern_batch b = {.n = n,
                           .keys_max = POSITIONS,
                           .seq = kt_i32_buf(k, seq, n),
                           .pos = kt_i32_buf(k, pos, n),
                           .tables = kt_i32_buf(k, tables, POOL),
                           .seqs = SEQS,
                           .table_stride = STRIDE};
    free(seq);
    free(pos);
    return b;
}

static size_t pool_width(const struct prepare_case *c)
{
    return c->kv_heads ? 2 * c->kv_heads * c->dim : c->dim + c->rope;
}
static size_t q_width(const struct prepare_case *c)
{
    return c->q_dim ? c->q_dim : c->heads * (c->dim + (c->kv_heads ? 0 : c->rope));
}
static size_t pool_n(const struct prepare_case *c)
{
    return (size_t)POOL * BLOCK * pool_width(c);
}
static size_t row_stride(const struct prepare_case *c)
{
    return q_width(c) + pool_width(c) + 8;
}

// out: the pool, then the queries of all rows.
static void run_prepare(struct kern *k, const void *args, float *out, size_t n)
{
    const struct prepare_case *c = args;
    struct kern_batch batch = make_batch(k, c->n);
    size_t rows_n = c->n * row_stride(c), rope = c->kv_heads ? c->dim : c->rope;
    struct kern_buf *rows = kt_act_random_buf(k, 1, rows_n);
    struct kern_buf *pool = kt_act_poison_buf(k, pool_n(c));
    struct kern_buf *table = kt_random_buf(k, 2, POSITIONS * rope);
    struct kern_buf *norms[] = {kt_random_buf(k, 3, c->dim), kt_random_buf(k, 4, c->dim),
                                kt_random_buf(k, 5, c->q_dim + 1)};
    struct kern_kv kv = {
        .buf = pool, .blocks = POOL, .block_tokens = BLOCK, .width = pool_width(c)};
    struct kern_rope_table r = {table, POSITIONS, rope,
                                c->kv_heads ? KERN_ROPE_HALVES : KERN_ROPE_PAIRS};
    if (c->kv_heads)
        kern_gqa_prepare(k, &(struct kern_gqa_prepare_args){.batch = &batch,
                                                            .pool = kv,
                                                            .heads = c->heads,
                                                            .kv_heads = c->kv_heads,
                                                            .head_dim = c->dim,
                                                            .rope = r,
                                                            .qkv = {rows, 0, row_stride(c)},
                                                            .q_norm = c->norm ? norms[0] : NULL,
                                                            .k_norm = c->norm ? norms[1] : NULL,
                                                            .eps = 1e-5f});
    else
        kern_mla_prepare(k, &(struct kern_mla_prepare_args){.batch = &batch,
                                                            .pool = kv,
                                                            .kv_lora = c->dim,
                                                            .rope = r,
                                                            .eps = 1e-5f,
                                                            .kv = {rows, q_width(c), row_stride(c)},
                                                            .kv_norm = norms[0],
                                                            .q = {rows, 0, row_stride(c)},
                                                            .q_norm = c->q_dim ? norms[2] : NULL,
                                                            .q_dim = c->q_dim,
                                                            .heads = c->heads,
                                                            .q_head_stride = c->dim + c->rope,
                                                            .q_rope_at = c->dim});
    float *all = mem_zalloc(rows_n + 1, sizeof *all);
    kt_download(out, pool, pool_n(c));
    kt_download(all, rows, rows_n);
    for (size_t i = 0; i < c->n; i++)
        memcpy(out + pool_n(c) + i * q_width(c), all + i * row_stride(c), q_width(c) * 4);
    free(all);
    kern_buf_destroy(rows);
    kern_buf_destroy(pool);
    kern_buf_destroy(table);
    for (int i = 0; i < 3; i++)
        kern_buf_destroy(norms[i]);
    kern_buf_destroy(batch.seq);
    kern_buf_destroy(batch.pos);
    kern_buf_destroy(batch.tables);
}

static void test_prepare(void **state)
{
    static const struct prepare_case cases[] = {
        {.n = 1, .heads = 16, .dim = 512, .rope = 64},
        {.n = 40, .heads = 3, .dim = 24, .rope = 6},
        {.n = 7, .heads = 4, .dim = 64, .rope = 16, .q_dim = 1536},
        {.n = 5, .heads = 2, .dim = 13, .rope = 2, .q_dim = 7},
        {.n = 1, .heads = 32, .kv_heads = 8, .dim = 128},
        {.n = 21, .heads = 6, .kv_heads = 2, .dim = 128, .norm = true},
        {.n = 33, .heads = 4, .kv_heads = 1, .dim = 64, .norm = true},
        {.n = 9, .heads = 4, .kv_heads = 2, .dim = 20},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct prepare_case *c = &cases[i];
        kt_check("prepare", run_prepare, c, pool_n(c) + c->n * q_width(c), 1e-6);
    }
}

// ---- route

struct route_case {
    size_t n, dim, experts, topk, groups, topk_groups;
    enum kern_router_kind kind;
    bool norm;
    enum kern_dtype dtype;
};

// out: h, then weight by expert of every row (0: not chosen).
static void run_route(struct kern *k, const void *args, float *out, size_t n)
{
    const struct route_case *c = args;
    enum { ALWAYS = 2 };
    const size_t all = c->topk + ALWAYS;
    struct kern_weight *w = kt_weight(
        k, 1, &(struct kern_weight_args){KERN_WEIGHT_MATRIX, c->dtype, 1, c->experts, c->dim});
    struct kern_buf *x = kt_random_buf(k, 2, c->n * c->dim), *gamma = kt_random_buf(k, 3, c->dim);
    struct kern_buf *h = kt_act_poison_buf(k, c->n * c->dim);
    struct kern_buf *logits = kt_poison_buf(k, c->n * c->experts);
    struct kern_buf *bias = kt_random_buf(k, 4, c->experts);
    struct kern_buf *weights = kt_poison_buf(k, c->n * all), *ids;
    assert_int_equal(kern_buf_create(k, KERN_I32, c->n * all, &ids), STATUS_OK);
    bool sigmoid = c->kind == KERN_ROUTER_SIGMOID;
    kern_route(k, &(struct kern_route_args){.x = {x, 0, c->dim},
                                            .h = {h, 0, c->dim},
                                            .dim = c->dim,
                                            .gamma = gamma,
                                            .eps = 1e-6f,
                                            .w = w,
                                            .router = {.n = c->n,
                                                       .experts = c->experts,
                                                       .topk = c->topk,
                                                       .always = ALWAYS,
                                                       .kind = c->kind,
                                                       .groups = c->groups,
                                                       .topk_groups = c->topk_groups,
                                                       .norm = c->norm,
                                                       .scale = 2.5f,
                                                       .logits = {logits, 0, c->experts},
                                                       .bias = sigmoid ? bias : NULL,
                                                       .ids = ids,
                                                       .weights = weights}});
    int32_t *chosen = mem_zalloc(c->n * all, 4);
    float *value = mem_zalloc(c->n * all, 4), *to = out + c->n * c->dim;
    kt_download(out, h, c->n * c->dim);
    kt_download(value, weights, c->n * all);
    assert_int_equal(kern_download(chosen, ids, 0, c->n * all), STATUS_OK);
    memset(to, 0, c->n * c->experts * sizeof *to);
    for (size_t i = 0; i < c->n * all; i++) {
        if (i % all >= c->topk) {
            assert_int_equal(chosen[i], c->experts + i % all - c->topk);
            assert_true(value[i] == 1);
            continue;
        }
        assert_in_range(chosen[i], 0, c->experts - 1);
        to[i / all * c->experts + (size_t)chosen[i]] = value[i] + 0.01f; // seen even when 0
    }
    free(chosen);
    free(value);
    kern_weight_destroy(w);
    struct kern_buf *bufs[] = {x, gamma, h, logits, bias, weights, ids};
    for (size_t i = 0; i < sizeof bufs / sizeof *bufs; i++)
        kern_buf_destroy(bufs[i]);
}

static void test_route(void **state)
{
    static const struct route_case cases[] = {
        {1, 2048, 64, 6, 1, 0, KERN_ROUTER_SOFTMAX, false, KERN_BF16},
        {19, 256, 64, 6, 0, 0, KERN_ROUTER_SOFTMAX, true, KERN_BF16},
        {3, 7168, 256, 8, 8, 4, KERN_ROUTER_SIGMOID, true, KERN_BF16},
        {70, 512, 160, 6, 8, 3, KERN_ROUTER_SOFTMAX, false, KERN_BF16},
        {8, 64, 16, 4, 4, 2, KERN_ROUTER_SIGMOID, false, KERN_BF16},
        {5, 40, 12, 3, 1, 0, KERN_ROUTER_SIGMOID, true, KERN_F32},
        {4, 96, 300, 4, 1, 0, KERN_ROUTER_SOFTMAX, true, KERN_BF16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct route_case *c = &cases[i];
        kt_check("route", run_route, c, c->n * (c->dim + c->experts), 1e-5);
    }
}

// The choice of a row is the same alone and in company, and run again.
static void test_route_company(void **state)
{
    enum { N = 21, DIM = 256, EXPERTS = 64 };
    struct route_case all = {N, DIM, EXPERTS, 6, 1, 0, KERN_ROUTER_SOFTMAX, false, KERN_BF16};
    float *want = mem_zalloc(N * (DIM + EXPERTS), 4), *got = mem_zalloc(N * (DIM + EXPERTS), 4);
    for (int b = 1; b < kt_bodies_n; b++) {
        run_route(kt_bodies[b], &all, want, 0);
        for (size_t n = 1; n <= N; n += 4) {
            struct route_case few = all;
            few.n = n;
            run_route(kt_bodies[b], &few, got, 0);
            assert_memory_equal(got, want, n * DIM * 4);
            assert_memory_equal(got + n * DIM, want + N * DIM, n * EXPERTS * 4);
        }
    }
    free(want);
    free(got);
}

// ---- replay: a step recorded and replayed gives what it gives op by op

static void test_replay(void **state)
{
    enum { ROWS = 48, COLS = 64 };
    for (int b = 0; b < kt_bodies_n; b++) {
        struct kern *k = kt_bodies[b];
        struct kern_weight *w = kt_weight(
            k, 9, &(struct kern_weight_args){KERN_WEIGHT_MATRIX, KERN_BF16, 1, ROWS, COLS});
        struct kern_buf *x = kt_act_random_buf(k, 1, COLS), *y = kt_poison_buf(k, ROWS);
        struct kern_buf *window, *gamma = kt_random_buf(k, 4, ROWS),
                                 *z = kt_act_poison_buf(k, ROWS);
        assert_int_equal(kern_buf_window_create(y, &window), STATUS_OK);
        kern_buf_window_move(window, y, 0, ROWS);
        struct kern_buf *in[] = {kt_act_random_buf(k, 100, COLS), kt_act_random_buf(k, 101, COLS)};
        float want[2][ROWS], got[ROWS];
        void *bytes = mem_zalloc(COLS, 4);
        for (int step = 0; step < 8; step++) { // two inputs in turn
            assert_int_equal(kern_download(bytes, in[step % 2], 0, COLS), STATUS_OK);
            kern_upload(x, 0, bytes, COLS);
            if (step == 5) // freeing memory forgets what was recorded
                kern_buf_destroy(kt_poison_buf(k, 5));
            if (!kern_replay_begin(k, 7)) {
                kern_linear(k, &(struct kern_linear_args){
                                   .n = 1, .w = w, .x = {x, 0, COLS}, .out = {window, 0, ROWS}});
                kern_rmsnorm(k, &(struct kern_rmsnorm_args){.n = 1,
                                                            .dim = ROWS,
                                                            .x = {y, 0, ROWS},
                                                            .out = {z, 0, ROWS},
                                                            .gamma = gamma,
                                                            .eps = 1e-6f});
            }
            assert_int_equal(kern_replay_end(k), STATUS_OK);
            kt_download(got, z, ROWS);
            if (step < 2)
                memcpy(want[step], got, sizeof got);
            else
                assert_memory_equal(want[step % 2], got, sizeof got);
        }
        free(bytes);
        kern_buf_destroy(in[0]);
        kern_buf_destroy(in[1]);
        assert_memory_not_equal(want[0], want[1], sizeof got);
        kern_buf_destroy(window);
        kern_buf_destroy(x);
        kern_buf_destroy(y);
        kern_buf_destroy(z);
        kern_buf_destroy(gamma);
        kern_weight_destroy(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gated),  cmocka_unit_test(test_prepare),
        cmocka_unit_test(test_route),  cmocka_unit_test(test_route_company),
        cmocka_unit_test(test_replay),
    };
    return cmocka_run_group_tests_name("kern/fused", tests, kt_setup, kt_teardown);
}
