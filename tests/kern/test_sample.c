// kern_sample: every field of every result, bit for bit, as sample_row on the host gives it, on
// random logits and parameters: peaked, coarse (ties), flat (more candidates than a GPU's block can
// hold), all equal; penalties, NaN and infinities; vocabularies from 1 to the size of Qwen's.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "base/prng.h"
#include "tests/kern/kt.h"

enum { ROWS = 24, MARGIN = 5, HISTORY = 200, HISTORY_ALL = ROWS * HISTORY };
enum shape { PLAIN, PEAKED, COARSE, FLAT, EQUAL, SHAPES };

struct problem {
    size_t vocab, stride;
    float *logits;
    struct kern_sample_row rows[ROWS];
    int32_t history[HISTORY_ALL];
};

static void fill_logits(struct prng *r, float *v, size_t vocab, enum shape shape)
{
    float scale = (float)(1 + 8 * prng_unit(r));
    for (size_t i = 0; i < vocab; i++) {
        float x = (float)(prng_unit(r) + prng_unit(r) + prng_unit(r) - 1.5) * scale;
        v[i] = shape == EQUAL    ? -0.0f
               : shape == FLAT   ? x * 1e-3f
               : shape == COARSE ? floorf(x * 4) / 4
                                 : x;
    }
    for (int i = 0; shape == PEAKED && i < 5; i++)
        v[prng_below(r, vocab)] += (float)(15 * prng_unit(r));
    if (shape == EQUAL)
        v[prng_below(r, vocab)] = 0;
}

static struct kern_sample_row random_row(struct prng *r, int i)
{
    struct kern_sample_row p = {.unit = (float)prng_below(r, 1 << 24) * 0x1p-24f,
                                .temperature =
                                    prng_below(r, 5) ? (float)(0.2 + 2 * prng_unit(r)) : 0,
                                .top_p = prng_below(r, 2) ? (float)prng_unit(r) : 1,
                                .min_p = prng_below(r, 4) ? 0 : (float)(0.2 * prng_unit(r)),
                                .repetition = 1,
                                .top_k = prng_below(r, 3) ? 0 : (int32_t)prng_below(r, 200),
                                .logprob = (uint32_t)prng_below(r, 2)};
    if (prng_below(r, 16) == 0)
        p.top_k = 6000; // more than are sorted at once
    if (prng_below(r, 3) == 0)
        p.top_n = (uint32_t)prng_below(r, KERN_SAMPLE_TOP_MAX + 1);
    p.history_at = (uint32_t)(i * HISTORY);
    p.history_n = (uint32_t)prng_below(r, HISTORY + 1);
    p.history_prompt = (uint32_t)prng_below(r, p.history_n + 1);
    if (prng_below(r, 2)) {
        p.repetition = (float)(0.5 + 1.5 * prng_unit(r));
        p.frequency = (float)(2 * prng_unit(r) - 1);
        p.presence = (float)(2 * prng_unit(r) - 1);
    }
    return p;
}

static struct problem *make_problem(struct prng *r, size_t vocab)
{
    struct problem *p = mem_zalloc(1, sizeof *p);
    p->vocab = vocab;
    p->stride = vocab + prng_below(r, 4);
    p->logits = mem_zalloc(ROWS * p->stride + MARGIN, sizeof *p->logits);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < ROWS; i++) {
        float *row = p->logits + MARGIN + (size_t)i * p->stride;
        fill_logits(r, row, vocab, (enum shape)prng_below(r, SHAPES));
        if (prng_below(r, 16) == 0)
            row[prng_below(r, vocab)] = bad[prng_below(r, 3)];
        p->rows[i] = random_row(r, i);
    }
    for (int i = 0; i < HISTORY_ALL; i++)
        p->history[i] = (int32_t)prng_below(r, vocab + 3) - 1; // some outside the vocabulary
    return p;
}

static void check_body(struct kern *k, const struct problem *p)
{
    enum { ROW_WORDS = sizeof p->rows / 4, OUT_WORDS = ROWS * sizeof(struct kern_sample_out) / 4 };
    struct kern_buf *logits = kt_f32_buf(k, p->logits, MARGIN + ROWS * p->stride);
    struct kern_buf *rows = kt_i32_buf(k, (const int32_t *)p->rows, ROW_WORDS);
    struct kern_buf *history = kt_i32_buf(k, p->history, HISTORY_ALL);
    static const int32_t poison[OUT_WORDS] = {0x7f7f7f7f};
    struct kern_buf *out = kt_i32_buf(k, poison, OUT_WORDS);
    kern_sample(k, &(struct kern_sample_args){.n = ROWS,
                                              .vocab = p->vocab,
                                              .logits = {logits, MARGIN, p->stride},
                                              .rows = rows,
                                              .history = history,
                                              .history_n = HISTORY_ALL,
                                              .out = out});
    struct kern_sample_out got[ROWS], want;
    assert_int_equal(kern_download(got, out, 0, OUT_WORDS), STATUS_OK);
    struct sample_memory *m = sample_memory_create((uint32_t)p->vocab);
    for (int i = 0; i < ROWS; i++) {
        sample_row(m, p->logits + MARGIN + (size_t)i * p->stride, &p->rows[i],
                   p->history + p->rows[i].history_at, &want);
        assert_int_equal(got[i].token, want.token);
        assert_memory_equal(&got[i].logprob, &want.logprob, sizeof want.logprob);
        assert_int_equal(got[i].top_n, want.top_n);
        assert_memory_equal(got[i].top, want.top, want.top_n * sizeof *want.top);
    }
    sample_memory_destroy(m);
    kern_buf_destroy(logits);
    kern_buf_destroy(rows);
    kern_buf_destroy(history);
    kern_buf_destroy(out);
}

static void test_as_on_the_host(void **state)
{
    static const size_t vocabs[] = {1, 2, 17, 512, 5000, 32003, 151936};
    struct prng r;
    prng_seed(&r, 11);
    for (int round = 0; round < 14; round++) {
        struct problem *p = make_problem(&r, vocabs[round % 7]);
        for (int b = 0; b < kt_bodies_n; b++)
            check_body(kt_bodies[b], p);
        free(p->logits);
        free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_as_on_the_host)};
    return cmocka_run_group_tests_name("kern/sample", tests, kt_setup, kt_teardown);
}
