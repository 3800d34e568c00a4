// router, moe_gate_up and moe_down: selection on hand-made scores (ties, groups, masks), and the
// expert products against the reference with few and many tokens per expert.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "tests/kern/kt.h"

enum { E = 8 };

struct choice_case {
    const char *what;
    struct kern_router_args args; // sizes and modes only
    float logits[E], bias[E];
    int32_t want_ids[E];
    float want_weights[E]; // before scale where a sum is 1
};

// sigmoid(ln 3) = 0.75, sigmoid(0) = 0.5, sigmoid(-ln 3) = 0.25.
#define LN3     1.0986123f
#define SIGMOID .experts = E, .kind = KERN_ROUTER_SIGMOID, .n = 1
#define SOFTMAX .experts = E, .kind = KERN_ROUTER_SOFTMAX, .n = 1

static const struct choice_case choices[] = {
    {"ties go to the lower index",
     {SIGMOID, .topk = 3, .scale = 1},
     {0, LN3, 0, LN3, 0, 0, 0, 0},
     {0},
     {1, 3, 0},
     {0.75f, 0.75f, 0.5f}},
    {"the bias chooses but does not weigh",
     {SIGMOID, .topk = 2, .scale = 2, .norm = true},
     {LN3, 0, 0, 0, 0, 0, 0, -LN3},
     {0, 0, 0, 0, 0, 0, 0, 5},
     {7, 0},
     {0.5f, 1.5f}},
    {"groups rank by their two best",
     // group 0: 0.75 + 0.25; group 1: 0.5 + 0.5 + tie; group 2: 0.75 + 0.5; group 3: 0.25 + 0.25
     {SIGMOID, .topk = 2, .scale = 1, .groups = 4, .topk_groups = 1},
     {LN3, -LN3, 0, 0, LN3, 0, -LN3, -LN3},
     {0},
     {4, 5},
     {0.75f, 0.5f}},
    {"a masked expert never beats a negative choice of a kept group",
     // group 1 wins; one of its choices is below 0, where masked experts would stand if they were
     // masked by 0. The sample model's reference logits need it so.
     {SIGMOID, .topk = 2, .scale = 1, .groups = 4, .topk_groups = 1},
     {-LN3, -LN3, LN3, -LN3, -LN3, -LN3, -LN3, -LN3},
     {-9, -9, 9, -1, -9, -9, -9, -9},
     {2, 3},
     {0.75f, 0.25f}},
    {"softmax, greedy, scaled",
     {SOFTMAX, .topk = 2, .scale = 10},
     {0, 0, LN3, 0, 0, LN3, 0, 0},
     {0},
     {2, 5},
     {2.5f, 2.5f}},
    {"softmax, normalised instead of scaled",
     {SOFTMAX, .topk = 2, .scale = 10, .norm = true},
     {0, 0, LN3, 0, 0, LN3, 0, 0},
     {0},
     {2, 5},
     {0.5f, 0.5f}},
    {"softmax groups rank by their best; outside weighs 0.0",
     {SOFTMAX, .topk = 3, .scale = 12, .groups = 4, .topk_groups = 1},
     {0, 0, 0, 0, 0, 0, LN3, LN3},
     {0},
     {6, 7, 0},
     {3, 3, 0}},
    {"shared experts follow the chosen ones, unscaled",
     {SIGMOID, .topk = 2, .always = 3, .scale = 2},
     {0, LN3, 0, LN3, 0, 0, 0, 0},
     {0},
     {1, 3, 8, 9, 10},
     {1.5f, 1.5f, 1, 1, 1}},
};

static void test_choices(void **state)
{
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
        for (int b = 0; b < kt_bodies_n; b++) {
            const struct choice_case *c = &choices[i];
            struct kern *k = kt_bodies[b];
            struct kern_router_args a = c->args;
            struct kern_buf *logits = kt_f32_buf(k, c->logits, E),
                            *bias = kt_f32_buf(k, c->bias, E);
            int32_t ids[E] = {0};
            float weights[E] = {0};
            a.logits = (struct kern_view){logits, 0, E};
            a.bias = a.kind == KERN_ROUTER_SIGMOID ? bias : NULL;
            const size_t all = a.topk + a.always;
            a.ids = kt_i32_buf(k, ids, all);
            a.weights = kt_f32_buf(k, weights, all);
            kern_router(k, &a);
            assert_int_equal(kern_download(ids, a.ids, 0, all), STATUS_OK);
            assert_int_equal(kern_download(weights, a.weights, 0, all), STATUS_OK);
            for (size_t j = 0; j < all; j++)
                if (ids[j] != c->want_ids[j] || fabsf(weights[j] - c->want_weights[j]) > 1e-5f)
                    fail_msg("%s (%s): choice %zu is expert %d, weight %g", c->what,
                             kern_describe(k), j, ids[j], weights[j]);
            kern_buf_destroy(logits);
            kern_buf_destroy(bias);
            kern_buf_destroy(a.ids);
            kern_buf_destroy(a.weights);
        }
}

struct moe_case {
    size_t n, experts, topk, d, i;
    enum kern_dtype dtype;
    bool shared, residual;
    bool crowd;   // all tokens choose experts 0 .. topk-1
    bool aligned; // operands lie as those of a model do
};

// Distance of two rows of `width`.
static size_t stride(const struct moe_case *c, size_t width, size_t odd)
{
    return width + (c->aligned ? 8 : odd);
}

// Different experts per token, in no order.
static int32_t *routing(const struct moe_case *c)
{
    int32_t *ids = mem_zalloc(c->n * c->topk + 1, 4);
    for (size_t t = 0; t < c->n; t++) {
        size_t first = c->crowd ? 0 : (size_t)((kt_random(5, t) + 1) * 1000);
        for (size_t j = 0; j < c->topk; j++)
            ids[t * c->topk + j] = (int32_t)((first + c->topk - 1 - j) % c->experts);
    }
    return ids;
}

static struct kern_weight *experts(struct kern *k, uint64_t seed, const struct moe_case *c,
                                   size_t rows, size_t cols)
{
    struct kern_weight_args a = {KERN_WEIGHT_MATRIX, c->dtype, c->experts, rows, cols};
    return kt_weight(k, seed, &a);
}

static void run_gate_up(struct kern *k, const void *args, float *out, size_t n)
{
    const struct moe_case *c = args;
    int32_t *host_ids = routing(c);
    struct kern_buf *ids = kt_i32_buf(k, host_ids, c->n * c->topk);
    struct kern_buf *x = kt_act_random_buf(k, 3, c->n * stride(c, c->d, 1));
    struct kern_buf *h = kt_act_poison_buf(k, n);
    struct kern_weight *gate = experts(k, 1, c, c->i, c->d), *up = experts(k, 2, c, c->i, c->d);
    kern_moe_gate_up(k, &(struct kern_moe_gate_up_args){.n = c->n,
                                                        .topk = c->topk,
                                                        .gate = gate,
                                                        .up = up,
                                                        .x = {x, 0, stride(c, c->d, 1)},
                                                        .ids = ids,
                                                        .out = {h, 2, stride(c, c->i, 3)}});
    kt_download(out, h, n);
    kern_weight_destroy(gate);
    kern_weight_destroy(up);
    kern_buf_destroy(ids);
    kern_buf_destroy(x);
    kern_buf_destroy(h);
    free(host_ids);
}

static void run_down(struct kern *k, const void *args, float *out, size_t n)
{
    const struct moe_case *c = args;
    int32_t *host_ids = routing(c);
    size_t pairs = c->n * c->topk, ld = stride(c, c->d, 3);
    struct kern_buf *ids = kt_i32_buf(k, host_ids, pairs), *weights = kt_random_buf(k, 4, pairs);
    struct kern_buf *h = kt_act_random_buf(k, 3, pairs * stride(c, c->i, 1));
    struct kern_buf *shared = kt_random_buf(k, 6, n), *residual = kt_random_buf(k, 7, n);
    struct kern_buf *y = kt_poison_buf(k, n);
    struct kern_weight *down = experts(k, 1, c, c->d, c->i);
    if (c->n) { // a body may keep what it worked out of the ids
        struct kern_buf *x = kt_act_random_buf(k, 3, c->n * c->i),
                        *g = kt_act_poison_buf(k, pairs * c->i);
        struct kern_weight *gate = experts(k, 2, c, c->i, c->i);
        kern_moe_gate_up(k, &(struct kern_moe_gate_up_args){.n = c->n,
                                                            .topk = c->topk,
                                                            .gate = gate,
                                                            .up = gate,
                                                            .x = {x, 0, c->i},
                                                            .ids = ids,
                                                            .out = {g, 0, c->i}});
        kern_weight_destroy(gate);
        kern_buf_destroy(x);
        kern_buf_destroy(g);
    }
    kern_moe_down(k, &(struct kern_moe_down_args){
                         .n = c->n,
                         .topk = c->topk,
                         .down = down,
                         .h = {h, 0, stride(c, c->i, 1)},
                         .ids = ids,
                         .weights = weights,
                         .shared = c->shared ? (struct kern_view){shared, c->aligned ? 2 : 1, ld}
                                             : (struct kern_view){0},
                         .residual = c->residual ? (struct kern_view){residual, 0, ld}
                                                 : (struct kern_view){0},
                         .out = {y, 2, ld},
                     });
    assert_int_equal(kern_download(out, y, 0, n), STATUS_OK);
    kern_weight_destroy(down);
    kern_buf_destroy(ids);
    kern_buf_destroy(weights);
    kern_buf_destroy(h);
    kern_buf_destroy(shared);
    kern_buf_destroy(residual);
    kern_buf_destroy(y);
    free(host_ids);
}

static const struct moe_case cases[] = {
    {0, 4, 2, 16, 16, KERN_F32, true, true, false, false},
    {1, 16, 4, 256, 128, KERN_BF16, true, true, false, false},
    {1, 1, 1, 5, 3, KERN_F16, false, false, false, false},
    {7, 16, 4, 33, 17, KERN_BF16, false, true, false, false},
    {120, 8, 3, 40, 24, KERN_BF16, true, false, false, false},
    {130, 6, 2, 19, 70, KERN_F32, true, true, true, false},
    {520, 64, 6, 16, 8, KERN_F16, false, false, false, false}, // more than one block of tokens
    {9, 300, 8, 12, 10, KERN_BF16, false, true, false, false},
    {1, 16, 4, 256, 128, KERN_BF16, true, true, false, true},
    {2, 8, 2, 128, 64, KERN_BF16, false, true, false, true},
    {96, 8, 2, 128, 64, KERN_BF16, true, true, false, true},
    {132, 16, 4, 256, 128, KERN_BF16, true, true, false, true},
    {132, 17, 5, 256, 128, KERN_BF16, false, true, true, true},
    {600, 9, 3, 128, 64, KERN_BF16, false, true, false, true},
    {1100, 64, 6, 64, 32, KERN_BF16, false, true, false, true},
};

static void test_experts(void **state)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct moe_case *c = &cases[i];
        kt_check("moe_gate_up", run_gate_up, c, c->n * c->topk * stride(c, c->i, 3) + 2, 1e-6);
        kt_check("moe_down, f32", run_down, c, c->n * stride(c, c->d, 3) + 2, 0);
    }
}

// Token t's output with all tokens, and with the first few only.
static void check_company(const struct moe_case *all)
{
    size_t h_ld = stride(all, all->i, 3), y_ld = stride(all, all->d, 3);
    size_t h_n = all->n * all->topk * h_ld + 2, y_n = all->n * y_ld + 2;
    float *h[2] = {mem_zalloc(h_n, 4), mem_zalloc(h_n, 4)};
    float *y[2] = {mem_zalloc(y_n, 4), mem_zalloc(y_n, 4)};
    for (int b = 1; b < kt_bodies_n; b++) {
        run_gate_up(kt_bodies[b], all, h[0], h_n);
        run_down(kt_bodies[b], all, y[0], y_n);
        for (size_t n = 1; n < 20; n += 3) {
            struct moe_case few = *all;
            few.n = n;
            run_gate_up(kt_bodies[b], &few, h[1], n * few.topk * h_ld);
            run_down(kt_bodies[b], &few, y[1], n * y_ld);
            for (size_t j = 0; j < n * few.topk; j++)
                assert_memory_equal(h[1] + 2 + j * h_ld, h[0] + 2 + j * h_ld, 4 * few.i);
            for (size_t j = 0; j < n; j++)
                assert_memory_equal(y[1] + 2 + j * y_ld, y[0] + 2 + j * y_ld, 4 * few.d - 8);
        }
    }
    for (int i = 0; i < 2; i++) {
        free(h[i]);
        free(y[i]);
    }
}

static void test_company_changes_nothing(void **state)
{
    static const struct moe_case shapes[] = {
        {97, 8, 3, 64, 48, KERN_BF16, true, true, false, false},
        {97, 8, 3, 64, 48, KERN_BF16, true, true, false, true},
        {132, 16, 4, 256, 128, KERN_BF16, false, true, false, true},
        {300, 16, 4, 256, 128, KERN_BF16, false, true, false, true},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_company(&shapes[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_company_changes_nothing),
    };
    return cmocka_run_group_tests_name("kern/moe", tests, kt_setup, kt_teardown);
}
