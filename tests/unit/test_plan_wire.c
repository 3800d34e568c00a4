// Plans and results over the wire: random ones survive the trip, cut and damaged ones are refused
// or decode to something that stays inside its bytes (the sanitizers watch).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/prng.h"
#include "node/plan_wire.h"

enum { SEQS = 6, TOKENS = 40, BLOCKS = 9 };

struct random_plan {
    struct step_plan plan;
    struct plan_open opens[SEQS];
    struct plan_entry entries[SEQS];
    uint32_t closes[SEQS];
    int32_t tokens[2 * SEQS][TOKENS];
    uint32_t blocks[SEQS][BLOCKS];
};

static uint32_t below(struct prng *r, uint32_t n)
{
    return (uint32_t)prng_below(r, n);
}

static void random_sampling(struct prng *r, struct sampling *s)
{
    *s = (struct sampling){
        .seed = prng_u64(r),
        .temperature = (float)prng_unit(r),
        .top_p = (float)prng_unit(r),
        .min_p = (float)prng_unit(r),
        .top_k = (int32_t)below(r, 100) - 1,
        .repetition_penalty = (float)prng_unit(r),
        .presence_penalty = -(float)prng_unit(r),
        .frequency_penalty = (float)prng_unit(r),
        .logprobs = below(r, 2) == 1,
        .top_logprobs = below(r, LIMIT_TOP_LOGPROBS + 1),
    };
}

static void random_plan(struct prng *r, struct random_plan *x)
{
    memset(x, 0, sizeof *x);
    for (int i = 0; i < 2 * SEQS; i++)
        for (int k = 0; k < TOKENS; k++)
            x->tokens[i][k] = (int32_t)prng_u64(r);
    for (int i = 0; i < SEQS; i++)
        for (int k = 0; k < BLOCKS; k++)
            x->blocks[i][k] = (uint32_t)prng_u64(r);
    x->plan = (struct step_plan){
        .step = prng_u64(r),
        .epoch = prng_u64(r),
        .opens = x->opens,
        .opens_n = below(r, SEQS + 1),
        .entries = x->entries,
        .entries_n = 1 + below(r, SEQS),
        .closes = x->closes,
        .closes_n = below(r, SEQS + 1),
    };
    for (uint32_t i = 0; i < SEQS; i++) {
        x->closes[i] = below(r, SEQS);
        x->opens[i] = (struct plan_open){.slot = below(r, SEQS),
                                         .index0 = below(r, 9),
                                         .tokens = x->tokens[i],
                                         .tokens_n = below(r, TOKENS + 1),
                                         .prompt_n = below(r, TOKENS)};
        random_sampling(r, &x->opens[i].sampling);
        x->entries[i] = (struct plan_entry){.slot = below(r, SEQS),
                                            .pos = below(r, 1000),
                                            .n = 1 + below(r, TOKENS),
                                            .sample = below(r, 2) == 1,
                                            .tokens = x->tokens[SEQS + i],
                                            .new_blocks = x->blocks[i],
                                            .new_blocks_n = below(r, BLOCKS + 1)};
        if (i < x->plan.entries_n)
            x->plan.rows += x->entries[i].n;
    }
}

static void assert_same_sampling(const struct sampling *a, const struct sampling *b)
{
    assert_true(a->seed == b->seed && a->temperature == b->temperature && a->top_p == b->top_p &&
                a->min_p == b->min_p && a->top_k == b->top_k &&
                a->repetition_penalty == b->repetition_penalty &&
                a->presence_penalty == b->presence_penalty &&
                a->frequency_penalty == b->frequency_penalty && a->logprobs == b->logprobs &&
                a->top_logprobs == b->top_logprobs);
}

static void assert_same_plan(const struct step_plan *a, const struct step_plan *b)
{
    assert_true(a->step == b->step && a->epoch == b->epoch && a->rows == b->rows);
    assert_true(a->opens_n == b->opens_n && a->entries_n == b->entries_n &&
                a->closes_n == b->closes_n);
    assert_memory_equal(a->closes, b->closes, a->closes_n * sizeof *a->closes);
    for (uint32_t i = 0; i < a->opens_n; i++) {
        const struct plan_open *x = &a->opens[i], *y = &b->opens[i];
        assert_true(x->slot == y->slot && x->index0 == y->index0 && x->prompt_n == y->prompt_n);
        assert_int_equal(x->tokens_n, y->tokens_n);
        assert_memory_equal(x->tokens, y->tokens, x->tokens_n * sizeof *x->tokens);
        assert_same_sampling(&x->sampling, &y->sampling);
    }
    for (uint32_t i = 0; i < a->entries_n; i++) {
        const struct plan_entry *x = &a->entries[i], *y = &b->entries[i];
        assert_true(x->slot == y->slot && x->pos == y->pos && x->n == y->n &&
                    x->sample == y->sample && x->new_blocks_n == y->new_blocks_n);
        assert_memory_equal(x->tokens, y->tokens, x->n * sizeof *x->tokens);
        assert_memory_equal(x->new_blocks, y->new_blocks, x->new_blocks_n * sizeof(uint32_t));
    }
}

// Memory of exactly n bytes, so that the sanitizers see the first byte behind.
static void *exact(const void *bytes, size_t n)
{
    void *v = mem_alloc(n > 0 ? n : 1);
    memcpy(v, bytes, n);
    return v;
}

static void plans_survive_the_trip(void **state)
{
    struct prng r;
    struct plan_decoder d = {0};
    struct strbuf b = {0};
    prng_seed(&r, 1);
    for (int i = 0; i < 500; i++) {
        struct random_plan x;
        struct step_plan got;
        struct errmsg e = {0};
        random_plan(&r, &x);
        strbuf_clear(&b);
        step_plan_encode(&x.plan, &b);
        void *bytes = exact(b.v, b.n);
        if (step_plan_decode(&d, bytes, b.n, &got, &e) != STATUS_OK)
            fail_msg("%s", e.text);
        assert_same_plan(&x.plan, &got);
        free(bytes);
    }
    strbuf_finish(&b);
    plan_decoder_finish(&d);
}

static void random_result(struct prng *r, struct step_sample *samples, struct step_result *x)
{
    *x = (struct step_result){.step = prng_u64(r),
                              .status = below(r, 2) ? STATUS_OK : STATUS_NODE_NAN,
                              .bad_stage = (int32_t)below(r, 4) - 1,
                              .bad_tensor = (int32_t)below(r, 4) - 1,
                              .samples = samples,
                              .samples_n = below(r, SEQS + 1)};
    for (int i = 0; i < SEQS; i++) {
        samples[i] = (struct step_sample){.slot = below(r, SEQS),
                                          .token = (int32_t)below(r, 1000),
                                          .logprob = -(float)prng_unit(r),
                                          .top_n = below(r, LIMIT_TOP_LOGPROBS + 1)};
        for (uint32_t k = 0; k < samples[i].top_n; k++)
            samples[i].top[k] = (struct logprob){(int32_t)below(r, 1000), -(float)prng_unit(r)};
    }
}

static void results_survive_the_trip(void **state)
{
    struct prng r;
    struct plan_decoder d = {0};
    struct strbuf b = {0};
    prng_seed(&r, 2);
    for (int i = 0; i < 500; i++) {
        struct step_sample samples[SEQS];
        struct step_result x, got;
        struct errmsg e = {0};
        random_result(&r, samples, &x);
        strbuf_clear(&b);
        step_result_encode(&x, &b);
        assert_true(b.n <= step_result_max_bytes(SEQS));
        void *bytes = exact(b.v, b.n);
        if (step_result_decode(&d, bytes, b.n, &got, &e) != STATUS_OK)
            fail_msg("%s", e.text);
        assert_true(got.step == x.step && got.status == x.status && got.bad_stage == x.bad_stage &&
                    got.bad_tensor == x.bad_tensor && got.samples_n == x.samples_n);
        for (uint32_t k = 0; k < x.samples_n; k++) {
            assert_true(got.samples[k].slot == samples[k].slot &&
                        got.samples[k].token == samples[k].token &&
                        got.samples[k].logprob == samples[k].logprob);
            assert_int_equal(got.samples[k].top_n, samples[k].top_n);
            assert_memory_equal(got.samples[k].top, samples[k].top,
                                samples[k].top_n * sizeof *samples[k].top);
        }
        free(bytes);
    }
    strbuf_finish(&b);
    plan_decoder_finish(&d);
}

// Reads all that a decoded plan points to.
static uint64_t touch_plan(const struct step_plan *p)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < p->closes_n; i++)
        sum += p->closes[i];
    for (uint32_t i = 0; i < p->opens_n; i++)
        for (uint32_t k = 0; k < p->opens[i].tokens_n; k++)
            sum += (uint64_t)p->opens[i].tokens[k];
    for (uint32_t i = 0; i < p->entries_n; i++) {
        for (uint32_t k = 0; k < p->entries[i].n; k++)
            sum += (uint64_t)p->entries[i].tokens[k];
        for (uint32_t k = 0; k < p->entries[i].new_blocks_n; k++)
            sum += p->entries[i].new_blocks[k];
    }
    return sum;
}

static uint64_t touch_result(const struct step_result *r)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < r->samples_n; i++)
        for (uint32_t k = 0; k < r->samples[i].top_n; k++)
            sum += (uint64_t)r->samples[i].top[k].token;
    return sum;
}

static void damage(struct prng *r, unsigned char *bytes, size_t n)
{
    static const uint32_t evil[] = {0,          1,          2,          UINT32_MAX, UINT32_MAX - 1,
                                    0x80000000, 0x40000000, 0x3fffffff, 0x15555556, 0x11111112};
    for (uint32_t i = 1 + below(r, 3); i > 0; i--) {
        size_t at = prng_below(r, n / 4) * 4;
        uint32_t w = below(r, 2) ? evil[below(r, 10)] : (uint32_t)prng_u64(r);
        if (below(r, 2))
            at %= 48; // the head, where the counts are
        memcpy(bytes + at, &w, 4);
    }
}

static void damaged_bytes_stay_inside(void **state)
{
    struct prng r;
    struct plan_decoder d = {0};
    struct strbuf b = {0};
    uint64_t refused = 0, sum = 0;
    prng_seed(&r, 3);
    for (int i = 0; i < 20000; i++) {
        struct random_plan x;
        struct step_sample samples[SEQS];
        struct step_result y;
        struct errmsg e = {0};
        bool plan = i % 2 == 0;
        strbuf_clear(&b);
        if (plan) {
            random_plan(&r, &x);
            step_plan_encode(&x.plan, &b);
        } else {
            random_result(&r, samples, &y);
            step_result_encode(&y, &b);
        }
        size_t n = below(&r, 4) == 0 ? below(&r, (uint32_t)b.n) : b.n;
        unsigned char *bytes = exact(b.v, n);
        if (n >= 48)
            damage(&r, bytes, n);
        enum status s = plan ? step_plan_decode(&d, bytes, n, &x.plan, &e)
                             : step_result_decode(&d, bytes, n, &y, &e);
        assert_true(s == STATUS_OK || s == STATUS_LINK_CORRUPT);
        assert_true((s == STATUS_OK) == (e.text[0] == 0));
        if (s == STATUS_OK)
            sum += plan ? touch_plan(&x.plan) : touch_result(&y);
        refused += s != STATUS_OK;
        free(bytes);
    }
    assert_true(refused > 5000 && refused < 20000 && sum != 0);
    strbuf_finish(&b);
    plan_decoder_finish(&d);
}

static void each_kind_of_damage_is_named(void **state)
{
    static const struct {
        size_t word;
        uint32_t value;
        const char *field;
    } cases[] = {
        {0, 1, "magic"},           {1, 3, "words"},      {6, 5, "rows"},
        {7, 1u << 30, "closes_n"}, {8, 9, "opens_n"},    {9, 0, "entries_n"},
        {23, 2, "open.logprobs"},  {24, 21, "open.top"}, {13, 4000, "open.tokens_n"},
        {27, 0, "entry.n"},        {28, 7, "sample"},    {29, 400, "new_blocks_n"},
        {29, 0, "left over"},
    };
    const int32_t tokens[] = {1, 2, 3};
    const uint32_t blocks[] = {4};
    const struct plan_open open = {.slot = 1, .tokens = tokens, .tokens_n = 3, .prompt_n = 3};
    const struct plan_entry entry = {.slot = 1,
                                     .n = 3,
                                     .sample = true,
                                     .tokens = tokens,
                                     .new_blocks = blocks,
                                     .new_blocks_n = 1};
    const struct step_plan plan = {.step = 1,
                                   .epoch = 1,
                                   .opens = &open,
                                   .opens_n = 1,
                                   .entries = &entry,
                                   .entries_n = 1,
                                   .rows = 3};
    struct plan_decoder d = {0};
    struct step_plan got;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct strbuf b = {0};
        struct errmsg e = {0};
        step_plan_encode(&plan, &b);
        memcpy(b.v + 4 * cases[i].word, &cases[i].value, 4);
        assert_int_equal(step_plan_decode(&d, b.v, b.n, &got, &e), STATUS_LINK_CORRUPT);
        if (strstr(e.text, cases[i].field) == NULL)
            fail_msg("case %zu: '%s' does not name %s", i, e.text, cases[i].field);
        strbuf_finish(&b);
    }
    plan_decoder_finish(&d);
}

static void damaged_results_are_named(void **state)
{
    static const struct {
        size_t word;
        uint32_t value;
        const char *field;
    } cases[] = {
        {0, 1, "magic"},   {1, 300, "words"}, {4, 1, "status"},     {7, 90, "samples_n"},
        {11, 21, "top_n"}, {11, 90, "top_n"}, {11, 1, "left over"}, {7, 0, "left over"},
    };
    struct step_sample samples[2] = {{.slot = 1, .top_n = 20}, {.slot = 2, .top_n = 20}};
    const struct step_result result = {.step = 1, .samples = samples, .samples_n = 2};
    struct plan_decoder d = {0};
    struct step_result got;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct strbuf b = {0};
        struct errmsg e = {0};
        step_result_encode(&result, &b);
        memcpy(b.v + 4 * cases[i].word, &cases[i].value, 4);
        assert_int_equal(step_result_decode(&d, b.v, b.n, &got, &e), STATUS_LINK_CORRUPT);
        if (strstr(e.text, cases[i].field) == NULL)
            fail_msg("case %zu: '%s' does not name %s", i, e.text, cases[i].field);
        strbuf_finish(&b);
    }
    plan_decoder_finish(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_survive_the_trip),    cmocka_unit_test(results_survive_the_trip),
        cmocka_unit_test(damaged_bytes_stay_inside), cmocka_unit_test(each_kind_of_damage_is_named),
        cmocka_unit_test(damaged_results_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
