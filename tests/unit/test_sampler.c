// node/sampler: against a plain reference that sorts everything, against the expected distribution,
// and the guarantees: deterministic, NaN refused.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/prng.h"
#include "node/sampler.h"

enum { VOCAB_MAX = 5000 };

static const struct sampling plain = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = true};

static int32_t pick(struct sampler *s, const struct sampler_input *in)
{
    struct step_sample out = {0};
    assert_int_equal(sampler_pick(s, in, &out), STATUS_OK);
    return out.token;
}

struct entry {
    double p;
    int32_t id;
};

static int by_p(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->p != y->p)
        return x->p > y->p ? -1 : 1;
    return x->id - y->id;
}

static void slow_penalise(double *l, const struct sampler_input *in, uint32_t vocab)
{
    const struct sampling *p = in->sampling;
    for (int32_t id = 0; id < (int32_t)vocab; id++) {
        int seen = 0, out = 0;
        for (uint32_t i = 0; i < in->tokens_n; i++) {
            seen += in->tokens[i] == id;
            out += in->tokens[i] == id && i >= in->prompt_n;
        }
        if (seen)
            l[id] = l[id] > 0 ? l[id] / p->repetition_penalty : l[id] * p->repetition_penalty;
        l[id] -= p->frequency_penalty * out + (out ? p->presence_penalty : 0);
    }
}

// The order of steps of the header, in doubles, everything sorted. *slack: how far the draw was
// from the nearest boundary, so that rounding can be told from a mistake.
static int32_t slow_pick(const struct sampler_input *in, uint32_t vocab, double *slack)
{
    static double l[VOCAB_MAX];
    static struct entry e[VOCAB_MAX];
    const struct sampling *p = in->sampling;
    double max = -INFINITY, total = 0, kept = 0;
    for (uint32_t i = 0; i < vocab; i++)
        l[i] = in->logits[i];
    slow_penalise(l, in, vocab);
    for (uint32_t i = 0; i < vocab; i++)
        max = fmax(max, l[i]);
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        double w = exp((l[i] - max) / p->temperature);
        if (w >= p->min_p)
            e[n++] = (struct entry){w, (int32_t)i};
    }
    qsort(e, n, sizeof *e, by_p);
    if (p->top_k > 0 && (uint32_t)p->top_k < n)
        n = (uint32_t)p->top_k;
    for (uint32_t i = 0; i < n; i++)
        total += e[i].p;
    uint32_t m = 0;
    *slack = 1;
    while (m < n && (m == 0 || kept < p->top_p * total)) {
        kept += e[m++].p;
        if (p->top_p < 1)
            *slack = fmin(*slack, fabs(kept / total - p->top_p));
    }
    double target = philox_unit(p->seed, in->index) * kept, sum = 0;
    for (uint32_t i = 0; i < m; i++) {
        sum += e[i].p;
        *slack = fmin(*slack, fabs(sum - target) / total);
        if (sum > target)
            return e[i].id;
    }
    return e[m - 1].id;
}

static struct sampling random_sampling(struct prng *r)
{
    struct sampling p = plain;
    p.seed = prng_u64(r);
    p.temperature = (float)(0.2 + 2 * prng_unit(r));
    p.top_k = prng_below(r, 2) ? (int32_t)prng_below(r, 100) : 0;
    p.top_p = prng_below(r, 2) ? (float)prng_unit(r) : 1;
    p.min_p = prng_below(r, 3) ? 0 : (float)(0.2 * prng_unit(r));
    if (prng_below(r, 2)) {
        p.repetition_penalty = (float)(0.5 + prng_unit(r) * 1.5);
        p.frequency_penalty = (float)(prng_unit(r) * 2 - 1);
        p.presence_penalty = (float)(prng_unit(r) * 2 - 1);
    }
    return p;
}

static void test_against_reference(void **state)
{
    static const uint32_t vocabs[] = {1, 2, 17, 512, VOCAB_MAX};
    static float logits[VOCAB_MAX];
    struct prng r;
    prng_seed(&r, 7);
    int checked = 0;
    for (int round = 0; round < 1500; round++) {
        uint32_t vocab = vocabs[round % 5];
        struct sampler *s = sampler_create(vocab);
        // Coarse values make ties.
        double spread = 1 + 6 * prng_unit(&r);
        for (uint32_t i = 0; i < vocab; i++)
            logits[i] = (float)(floor((prng_unit(&r) * 2 - 1) * spread * 64) / 64);
        int32_t history[40];
        for (int i = 0; i < 40; i++)
            history[i] = (int32_t)prng_below(&r, vocab + 3) - 1; // some outside the vocabulary
        struct sampling p = random_sampling(&r);
        struct sampler_input in = {logits, &p, history, 40, 15, prng_below(&r, 1000)};
        double slack;
        int32_t want = slow_pick(&in, vocab, &slack), got = pick(s, &in);
        if (slack > 1e-5) {
            assert_int_equal(got, want);
            checked++;
        }
        assert_int_equal(pick(s, &in), got);
        sampler_destroy(s);
    }
    assert_true(checked > 1200);
}

// Draws with 40,000 indexes follow softmax(l / T): chi-square with 15 degrees of freedom, 99.9%.
static void test_distribution(void **state)
{
    enum { N = 16, DRAWS = 40000 };
    float logits[N];
    double w[N], total = 0, chi = 0;
    int seen[N] = {0};
    struct sampling p = plain;
    p.temperature = 1.7f;
    p.seed = 42;
    for (int i = 0; i < N; i++) {
        logits[i] = (float)(i * 5 % N) * 0.3f;
        total += w[i] = exp(logits[i] / 1.7);
    }
    struct sampler *s = sampler_create(N);
    for (uint64_t i = 0; i < DRAWS; i++)
        seen[pick(s, &(struct sampler_input){.logits = logits, .sampling = &p, .index = i})]++;
    for (int i = 0; i < N; i++) {
        double expected = w[i] / total * DRAWS;
        chi += (seen[i] - expected) * (seen[i] - expected) / expected;
    }
    assert_true(chi < 37.7);
    sampler_destroy(s);
}

static void test_greedy(void **state)
{
    float logits[6] = {1, 3, 3, -1, 2.5f, 0};
    struct sampling p = plain;
    struct sampler *s = sampler_create(6);
    struct sampler_input in = {.logits = logits, .sampling = &p};
    p.temperature = 0;
    assert_int_equal(pick(s, &in), 1); // the lower id of equals
    p.temperature = 1e-6f;
    assert_int_equal(pick(s, &in), 1);
    int32_t history[] = {1, 2, 2};
    in.tokens = history;
    in.tokens_n = 3;
    in.prompt_n = 2;
    p.frequency_penalty = 0.25f; // token 1 is prompt: not counted
    assert_int_equal(pick(s, &in), 1);
    p.repetition_penalty = 2; // 1.5, 1.5 - 0.25
    assert_int_equal(pick(s, &in), 4);
    assert_float_equal(logits[1], 3, 0);
    sampler_destroy(s);
}

static void test_logprobs(void **state)
{
    float logits[5] = {0, 1, 2, 1, -3};
    struct sampling p = plain;
    p.top_logprobs = 4;
    p.temperature = 0;
    struct sampler *s = sampler_create(5);
    struct sampler_input in = {.logits = logits, .sampling = &p};
    struct step_sample out = {.slot = 9};
    assert_int_equal(sampler_pick(s, &in, &out), STATUS_OK);
    double lse = log(exp(0) + exp(1) + exp(2) + exp(1) + exp(-3));
    const int32_t order[] = {2, 1, 3, 0};
    assert_int_equal(out.token, 2);
    assert_int_equal(out.slot, 9);
    assert_int_equal(out.top_n, 4);
    assert_float_equal(out.logprob, 2 - lse, 1e-5);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(out.top[i].token, order[i]);
        assert_float_equal(out.top[i].value, logits[order[i]] - lse, 1e-5);
    }
    p.top_logprobs = LIMIT_TOP_LOGPROBS; // more than the vocabulary has
    assert_int_equal(sampler_pick(s, &in, &out), STATUS_OK);
    assert_int_equal(out.top_n, 5);
    p.logprobs = false;
    p.top_logprobs = 0;
    assert_int_equal(sampler_pick(s, &in, &out), STATUS_OK);
    assert_float_equal(out.logprob, 0, 0);
    assert_int_equal(out.top_n, 0);
    sampler_destroy(s);
}

static void test_nan_refused(void **state)
{
    struct sampler *s = sampler_create(3);
    struct step_sample out;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float logits[3] = {0, 0, bad[i]};
        struct sampler_input in = {.logits = logits, .sampling = &plain};
        assert_int_equal(sampler_pick(s, &in, &out), STATUS_NODE_NAN);
    }
    // Finite, but far apart: no overflow on the way.
    float logits[3] = {3e38f, -3e38f, 0};
    struct sampler_input in = {.logits = logits, .sampling = &plain};
    assert_int_equal(pick(s, &in), 0);
    sampler_destroy(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_nan_refused),
    };
    return cmocka_run_group_tests_name("unit/sampler", tests, NULL, NULL);
}
