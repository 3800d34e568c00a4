// router: scores with the body's own exp; the choice itself is router_select.c.
#include "kernels/cpu/router.h"

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

static void sigmoid_scores(const float *logit, float *score, size_t n)
{
    for (size_t e = 0; e < n; e += 8) {
        size_t some = n - e < 8 ? n - e : 8;
        v8 x = v8_load_n(logit + e, some), one = v8_set(1.0f);
        v8_store_n(score + e, one / (one + v8_exp(-x)), some);
    }
}

static void softmax_scores(const float *logit, float *score, size_t n)
{
    float max = logit[0];
    for (size_t e = 1; e < n; e++)
        max = logit[e] > max ? logit[e] : max;
    v8 sum = {0};
    for (size_t e = 0; e < n; e += 8) {
        size_t some = n - e < 8 ? n - e : 8;
        v8 p = v8_exp(v8_load_n(logit + e, some) - v8_set(max));
        v8_store_n(score + e, p, some);
        sum += v8_load_n(score + e, some);
    }
    float total = v8_sum(sum);
    for (size_t e = 0; e < n; e++)
        score[e] /= total;
}

static void router_row(const void *args, size_t i)
{
    const struct kern_router_args *a = args;
    float score[KERN_EXPERTS_MAX];
    if (a->kind == KERN_ROUTER_SIGMOID)
        sigmoid_scores(kern_row(&a->logits, i), score, a->experts);
    else
        softmax_scores(kern_row(&a->logits, i), score, a->experts);
    router_select(a, score, (int32_t *)a->ids->p + i * (a->topk + a->always),
                  (float *)a->weights->p + i * (a->topk + a->always));
}

void ISA(router)(struct kern *k, const struct kern_router_args *a)
{
    rows_run(k, a->n, a->experts * (a->topk + 8), a, router_row);
}
