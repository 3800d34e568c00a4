// Attention over paged KV: against the textbook reference on mixed batches and edge lengths (around
// chunks of 64 keys and around blocks), and bit-equal however a sequence is cut into steps.
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

// A call: `runs` pieces of sequences, each from pos0 on. The pool holds random tokens everywhere;
// blocks are handed out in a scrambled order.
struct piece {
    int32_t seq, pos0;
    size_t n;
};
struct attn_case {
    bool mla;
    size_t heads, kv_heads; // GQA
    size_t dim, rope_dim;   // head_dim or kv_lora; rope_dim for MLA
    size_t block_tokens;
    size_t pieces_n;
    struct piece pieces[6];
};

enum { SEQS = 4, TOKENS = 700 };

static size_t rows_of(const struct attn_case *c)
{
    size_t n = 0;
    for (size_t i = 0; i < c->pieces_n; i++)
        n += c->pieces[i].n;
    return n;
}

static size_t out_width(const struct attn_case *c)
{
    return c->heads * c->dim;
}

// Elements before the pool and the output and beyond a row: odd, or so many that GQA's fast kernels
// can take the shape.
static size_t margin(const struct attn_case *c)
{
    return !c->mla && c->dim % 64 == 0 ? 8 : 3;
}

// Random that depends on (sequence, position), so that a query is the same in any cut.
static struct kern_buf *queries(struct kern *k, const struct attn_case *c, uint64_t seed,
                                size_t width)
{
    float *v = mem_zalloc(rows_of(c) * width + 1, sizeof *v), *p = v;
    for (size_t i = 0; i < c->pieces_n; i++)
        for (size_t r = 0; r < c->pieces[i].n; r++)
            for (size_t x = 0; x < width; x++)
                *p++ = 3 * kt_random(seed + (uint64_t)c->pieces[i].seq * 1000 +
                                         (uint64_t)c->pieces[i].pos0 + r,
                                     x);
    struct kern_buf *b = kt_act_buf(k, v, rows_of(c) * width);
    free(v);
    return b;
}

struct batch_memory {
    struct kern_batch batch;
    struct kern_kv kv;
};

static struct batch_memory make_batch(struct kern *k, const struct attn_case *c)
{
    size_t n = rows_of(c), stride = (TOKENS + c->block_tokens - 1) / c->block_tokens;
    int32_t *seq = mem_zalloc(n + 1, 4), *pos = mem_zalloc(n + 1, 4);
    int32_t *tables = mem_zalloc(SEQS * stride, 4);
    size_t row = 0;
    for (size_t i = 0; i < c->pieces_n; i++)
        for (size_t r = 0; r < c->pieces[i].n; r++, row++) {
            seq[row] = c->pieces[i].seq;
            pos[row] = c->pieces[i].pos0 + (int32_t)r;
        }
    size_t blocks = SEQS * stride, step = 7;
    while (blocks % step == 0)
        step += 2;
    for (size_t i = 0; i < blocks; i++)
        tables[i] = (int32_t)(i * step % blocks);
    size_t width = c->mla ? c->dim + c->rope_dim : 2 * c->kv_heads * c->dim;
    struct batch_memory m = {
        .batch = {.n = n,
                  .keys_max = TOKENS,
                  .seq = kt_i32_buf(k, seq, n),
                  .pos = kt_i32_buf(k, pos, n),
                  .tables = kt_i32_buf(k, tables, SEQS * stride),
                  .seqs = SEQS,
                  .table_stride = stride},
        .kv = {.buf = kt_act_random_buf(k, 11, margin(c) + blocks * c->block_tokens * width),
               .at = margin(c),
               .blocks = blocks,
               .block_tokens = c->block_tokens,
               .width = width},
    };
    free(seq);
    free(pos);
    free(tables);
    return m;
}

static void free_batch(struct batch_memory *m)
{
    kern_buf_destroy(m->batch.seq);
    kern_buf_destroy(m->batch.pos);
    kern_buf_destroy(m->batch.tables);
    kern_buf_destroy(m->kv.buf);
}

static void run_attn(struct kern *k, const void *args, float *out, size_t n)
{
    const struct attn_case *c = args;
    struct batch_memory m = make_batch(k, c);
    size_t width = out_width(c), ld = width + margin(c), rope_ld = c->heads * (c->rope_dim + 2);
    struct kern_buf *q = queries(k, c, 1, width), *q_rope = queries(k, c, 2, rope_ld);
    struct kern_buf *y = kt_act_poison_buf(k, n);
    if (c->mla)
        kern_attn_mla(k, &(struct kern_attn_mla_args){.batch = &m.batch,
                                                      .kv = m.kv,
                                                      .heads = c->heads,
                                                      .kv_lora = c->dim,
                                                      .rope_dim = c->rope_dim,
                                                      .q_latent = {q, 0, width},
                                                      .q_latent_head_stride = c->dim,
                                                      .q_rope = {q_rope, 1, rope_ld},
                                                      .q_rope_head_stride = c->rope_dim + 2,
                                                      .out = {y, margin(c), ld},
                                                      .scale = 0.11f});
    else
        kern_attn_gqa(k, &(struct kern_attn_gqa_args){.batch = &m.batch,
                                                      .kv = m.kv,
                                                      .heads = c->heads,
                                                      .kv_heads = c->kv_heads,
                                                      .head_dim = c->dim,
                                                      .q = {q, 0, width},
                                                      .out = {y, margin(c), ld},
                                                      .scale = 0.3f});
    kt_download(out, y, n);
    kern_buf_destroy(q);
    kern_buf_destroy(q_rope);
    kern_buf_destroy(y);
    free_batch(&m);
}

static size_t out_n(const struct attn_case *c)
{
    return rows_of(c) * (out_width(c) + margin(c)) + margin(c);
}

#define MLA(h, d, r, b) .mla = true, .heads = h, .dim = d, .rope_dim = r, .block_tokens = b
#define GQA(h, g, d, b) .heads = h, .kv_heads = g, .dim = d, .block_tokens = b

static const struct attn_case cases[] = {
    {MLA(4, 64, 16, 16), .pieces_n = 0},
    {MLA(4, 64, 16, 16), .pieces_n = 1, .pieces = {{0, 0, 1}}},
    {MLA(4, 512, 64, 32), .pieces_n = 1, .pieces = {{2, 300, 1}}},
    {MLA(1, 13, 6, 5), .pieces_n = 1, .pieces = {{1, 126, 4}}},
    {MLA(3, 24, 8, 16), .pieces_n = 1, .pieces = {{1, 0, 140}}},
    {MLA(16, 40, 8, 7), .pieces_n = 2, .pieces = {{1, 255, 3}, {0, 383, 2}}},
    {MLA(2, 64, 16, 64), .pieces_n = 6,
     .pieces = {{0, 127, 1}, {1, 128, 1}, {2, 0, 33}, {3, 600, 1}, {0, 128, 1}, {1, 20, 9}}},
    {GQA(8, 2, 32, 16), .pieces_n = 1, .pieces = {{0, 0, 70}}},
    {GQA(4, 4, 20, 16), .pieces_n = 3, .pieces = {{0, 511, 1}, {1, 512, 1}, {2, 513, 1}}},
    {GQA(28, 4, 128, 16), .pieces_n = 1, .pieces = {{3, 640, 1}}},
    {GQA(28, 4, 128, 16), .pieces_n = 3, .pieces = {{3, 640, 1}, {1, 0, 1}, {0, 100, 140}}},
    {GQA(4, 1, 64, 64), .pieces_n = 2, .pieces = {{2, 60, 70}, {1, 255, 1}}},
    {GQA(6, 1, 3, 1), .pieces_n = 2, .pieces = {{3, 0, 2}, {2, 129, 2}}},
};

static void test_against_reference(void **state)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char what[32];
        snprintf(what, sizeof what, "attention case %zu", i);
        // Scores reach +-30 here, so their rounding alone moves a probability by 4e-6.
        kt_check(what, run_attn, &cases[i], out_n(&cases[i]), 1e-5);
    }
}

// Prefill of 300 tokens at once == in uneven chunks == token by token == in company of others.
static void check_cuts(const struct attn_case *shape)
{
    enum { N = 300 };
    size_t ld = out_width(shape) + margin(shape), first = margin(shape);
    struct attn_case whole = *shape;
    whole.pieces_n = 1;
    whole.pieces[0] = (struct piece){1, 0, N};
    float *want = mem_zalloc(out_n(&whole), sizeof *want);
    float *got = mem_zalloc(out_n(&whole) + 100 * ld, sizeof *got);
    for (int b = 1; b < kt_bodies_n; b++) {
        run_attn(kt_bodies[b], &whole, want, out_n(&whole));
        for (size_t at = 0, n; at < N; at += n) {
            n = at < 100 ? 37 : at < 200 ? 1 : 64;
            n = n < N - at ? n : N - at;
            struct attn_case cut = *shape;
            cut.pieces_n = 3;
            cut.pieces[0] = (struct piece){0, 450, at % 2 + 1};
            cut.pieces[1] = (struct piece){1, (int32_t)at, n};
            cut.pieces[2] = (struct piece){2, 7, 5};
            run_attn(kt_bodies[b], &cut, got, out_n(&cut));
            for (size_t r = 0; r < n; r++)
                assert_memory_equal(got + first + (at % 2 + 1 + r) * ld, want + first + (at + r) * ld,
                                    out_width(shape) * sizeof *got);
        }
    }
    free(want);
    free(got);
}

static void test_any_cut_gives_the_same_bits(void **state)
{
    check_cuts(&(struct attn_case){MLA(4, 64, 16, 16)});
    check_cuts(&(struct attn_case){MLA(5, 20, 6, 9)});
    check_cuts(&(struct attn_case){GQA(6, 2, 24, 16)});
    check_cuts(&(struct attn_case){GQA(8, 2, 128, 32)});
    check_cuts(&(struct attn_case){GQA(3, 1, 64, 16)});
}

static void run_kv_write(struct kern *k, const void *args, float *out, size_t n)
{
    const struct attn_case *c = args;
    struct batch_memory m = make_batch(k, c);
    kern_buf_destroy(m.kv.buf);
    m.kv.buf = kt_act_poison_buf(k, n);
    struct kern_buf *a = queries(k, c, 5, c->dim + 4), *b = queries(k, c, 6, c->rope_dim + 1);
    kern_kv_write(k, &(struct kern_kv_write_args){.batch = &m.batch,
                                                  .kv = m.kv,
                                                  .a_dim = c->dim,
                                                  .b_dim = c->rope_dim,
                                                  .a = {a, 4, c->dim + 4},
                                                  .b = {b, 0, c->rope_dim + 1}});
    kt_download(out, m.kv.buf, n);
    kern_buf_destroy(a);
    kern_buf_destroy(b);
    free_batch(&m);
}

static void test_kv_write(void **state)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct attn_case *c = &cases[i];
        if (!c->mla)
            continue;
        size_t stride = (TOKENS + c->block_tokens - 1) / c->block_tokens;
        size_t n = 3 + SEQS * stride * c->block_tokens * (c->dim + c->rope_dim);
        kt_check("kv_write", run_kv_write, c, n, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_any_cut_gives_the_same_bits),
        cmocka_unit_test(test_kv_write),
    };
    return cmocka_run_group_tests_name("kern/attn", tests, kt_setup, kt_teardown);
}
