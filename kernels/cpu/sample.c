// The host's sampler. Owns scratch arrays of the vocabulary's size. A full sort of 128K candidates
// per token would cost more than the forward pass of a small model, so candidates are sorted band
// by band, from the most likely down (logits within 3 temperatures of the best, then within 6,
// ...), and only as far as top-k, top-p or the draw need. The concatenation of the bands is the
// full order, so the result does not depend on where the bands end.
#include "kernels/sample.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/same_math.h"
#include "kernels/cpu/cpu.h"

struct candidate {
    float logit;
    int32_t id;
};

struct sample_memory {
    uint32_t vocab;
    float *logits;            // [vocab] penalised
    uint32_t *counts;         // [vocab] all 0 between calls
    struct candidate *sorted; // [vocab]
};

// The sorted candidates so far: all with a logit of at least `floor`.
struct order {
    const struct sample_memory *m;
    const float *logits;
    uint32_t n;
    float best, temperature, inverse;
    float least; // min-p: candidates with less weight do not exist
    float floor;
    int bands;
    bool complete;
};

struct sample_memory *sample_memory_create(uint32_t vocab)
{
    assert(vocab > 0);
    struct sample_memory *m = mem_zalloc(1, sizeof *m);
    m->vocab = vocab;
    m->logits = mem_zalloc(vocab, sizeof *m->logits);
    m->counts = mem_zalloc(vocab, sizeof *m->counts);
    m->sorted = mem_zalloc(vocab, sizeof *m->sorted);
    return m;
}

void sample_memory_destroy(struct sample_memory *m)
{
    if (!m)
        return;
    free(m->logits);
    free(m->counts);
    free(m->sorted);
    free(m);
}

static bool all_finite(const float *v, uint32_t n)
{
    // x - x is 0 for finite x and NaN otherwise; NaN survives the sum.
    float bad = 0;
    for (uint32_t i = 0; i < n; i++)
        bad += v[i] - v[i];
    return bad == 0;
}

static uint32_t argmax(const float *v, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (v[i] > v[best])
            best = i;
    return best;
}

// Calls for each token of the history once, with its number of occurrences in the output: SEEN
// marks that a token is in the history, the other bits count.
#define SEEN 0x80000000u

static void penalise(struct sample_memory *m, const struct kern_sample_row *r,
                     const int32_t *history)
{
    for (uint32_t i = 0; i < r->history_n; i++)
        if ((uint32_t)history[i] < m->vocab) {
            uint32_t *c = &m->counts[history[i]];
            *c = (*c + (i >= r->history_prompt)) | SEEN;
        }
    for (uint32_t i = 0; i < r->history_n; i++) {
        uint32_t id = (uint32_t)history[i];
        if (id >= m->vocab || !m->counts[id])
            continue;
        uint32_t count = m->counts[id] & ~SEEN;
        float *l = &m->logits[id];
        *l = *l > 0 ? *l / r->repetition : *l * r->repetition;
        *l -= r->frequency * (float)count;
        *l -= count ? r->presence : 0;
        m->counts[id] = 0;
    }
}

static int by_logit(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static float probability(const struct order *o, float logit)
{
    return same_exp((logit - o->best) * o->inverse);
}

static uint64_t weight(float w)
{
    return (uint64_t)(w * (float)(1ull << KERN_SAMPLE_WEIGHT_BITS));
}

// Appends the next band of candidates. false when there are no more.
static bool order_extend(struct order *o)
{
    while (!o->complete) {
        float top = o->floor, floor = o->best - 3 * o->temperature * (float)++o->bands;
        if (o->bands > 11) { // weights are 0 further down
            floor = -INFINITY;
            o->complete = true;
        }
        uint32_t first = o->n;
        for (uint32_t i = 0; i < o->m->vocab; i++) {
            float l = o->logits[i];
            if (l < top && l >= floor && probability(o, l) >= o->least)
                o->m->sorted[o->n++] = (struct candidate){l, (int32_t)i};
        }
        qsort(o->m->sorted + first, o->n - first, sizeof(struct candidate), by_logit);
        o->floor = floor;
        if (o->n > first)
            return true;
    }
    return false;
}

static const struct candidate *order_at(struct order *o, uint32_t i)
{
    while (i >= o->n)
        if (!order_extend(o))
            return NULL;
    return &o->m->sorted[i];
}

// The sum of the candidates before the first that top-k cuts off, and how many they are.
static uint64_t apply_top_k(struct order *o, int32_t top_k, uint32_t *n_out)
{
    const uint32_t vocab = o->m->vocab;
    uint64_t mass = 0;
    *n_out = vocab;
    if (top_k <= 0 || (uint32_t)top_k >= vocab) {
        for (uint32_t i = 0; i < vocab; i++) {
            float w = probability(o, o->logits[i]);
            mass += w >= o->least ? weight(w) : 0;
        }
        return mass;
    }
    const struct candidate *c;
    for (*n_out = 0; *n_out < (uint32_t)top_k && (c = order_at(o, *n_out)); (*n_out)++)
        mass += weight(probability(o, c->logit));
    return mass;
}

static uint64_t apply_top_p(struct order *o, float top_p, uint64_t mass, uint32_t *n)
{
    if (!(top_p < 1))
        return mass;
    uint64_t kept = 0;
    const struct candidate *c;
    for (uint32_t i = 0; i < *n && (c = order_at(o, i)); i++) {
        if (i > 0 && (double)kept >= (double)top_p * (double)mass) {
            *n = i;
            return kept;
        }
        kept += weight(probability(o, c->logit));
    }
    return kept;
}

static int32_t draw(struct order *o, uint64_t mass, uint32_t n, float unit)
{
    double target = (double)unit * (double)mass;
    uint64_t cumulative = 0;
    const struct candidate *c;
    for (uint32_t i = 0; i < n && (c = order_at(o, i)); i++) {
        cumulative += weight(probability(o, c->logit));
        if ((double)cumulative > target)
            return c->id;
    }
    return -1;
}

static int32_t sample(struct sample_memory *m, const float *logits, const struct kern_sample_row *r)
{
    uint32_t best = argmax(logits, m->vocab);
    struct order o = {.m = m,
                      .logits = logits,
                      .best = logits[best],
                      .temperature = r->temperature,
                      .inverse = 1 / r->temperature,
                      .least = fminf(fmaxf(r->min_p, 0), 1),
                      .floor = INFINITY};
    uint32_t n;
    uint64_t mass = apply_top_k(&o, r->top_k, &n);
    mass = apply_top_p(&o, r->top_p, mass, &n);
    int32_t token = draw(&o, mass, n, r->unit);
    return token < 0 ? (int32_t)best : token;
}

static double log_sum_exp(const float *v, uint32_t n)
{
    float max = v[argmax(v, n)];
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += weight(same_exp(v[i] - max));
    const double one = (double)(1ull << KERN_SAMPLE_WEIGHT_BITS);
    return (double)max + same_log((double)sum / one);
}

// Never -0: the sign of a logit of 0 must not show.
static float log_probability(float logit, double lse)
{
    return (float)((double)logit - lse) + 0.0f;
}

// Insertion into a list of at most KERN_SAMPLE_TOP_MAX, most likely first, ids ascending among
// equals.
static void top_logprobs(const float *logits, uint32_t vocab, uint32_t want, double lse,
                         struct kern_sample_out *out)
{
    uint32_t n = 0;
    want = want < vocab ? want : vocab;
    for (uint32_t i = 0; want && i < vocab; i++) {
        if (n == want && logits[i] <= out->top[n - 1].logprob)
            continue;
        uint32_t at = n < want ? n++ : n - 1;
        for (; at > 0 && out->top[at - 1].logprob < logits[i]; at--)
            out->top[at] = out->top[at - 1];
        out->top[at].token = (int32_t)i;
        out->top[at].logprob = logits[i];
    }
    for (uint32_t i = 0; i < n; i++)
        out->top[i].logprob = log_probability(out->top[i].logprob, lse);
    out->top_n = n;
}

void sample_row(struct sample_memory *m, const float *logits, const struct kern_sample_row *r,
                const int32_t *history, struct kern_sample_out *out)
{
    assert(r->history_prompt <= r->history_n && r->top_n <= KERN_SAMPLE_TOP_MAX);
    *out = (struct kern_sample_out){.token = -1};
    if (!all_finite(logits, m->vocab))
        return;
    const float *row = logits;
    if (kern_sample_penalised(r)) {
        memcpy(m->logits, logits, sizeof(float) * m->vocab);
        row = m->logits;
        penalise(m, r, history);
    }
    bool greedy = !(r->temperature >= KERN_SAMPLE_GREEDY_BELOW);
    out->token = greedy ? (int32_t)argmax(row, m->vocab) : sample(m, row, r);
    if (r->logprob || r->top_n) {
        double lse = log_sum_exp(logits, m->vocab);
        out->logprob = r->logprob ? log_probability(logits[out->token], lse) : 0;
        top_logprobs(logits, m->vocab, r->top_n, lse, out);
    }
}

void cpu_sample(struct kern *k, const struct kern_sample_args *a)
{
    struct cpu *c = cpu_of(k);
    if (c->sampling_vocab != a->vocab) {
        sample_memory_destroy(c->sampling);
        c->sampling = sample_memory_create((uint32_t)a->vocab);
        c->sampling_vocab = a->vocab;
    }
    const struct kern_sample_row *rows = a->rows->p;
    struct kern_sample_out *out = a->out->p;
    for (size_t i = 0; i < a->n; i++) {
        const struct kern_sample_row *r = &rows[i];
        assert(!kern_sample_penalised(r) ||
               (r->history_at <= a->history_n && r->history_n <= a->history_n - r->history_at));
        sample_row(c->sampling, kern_row(&a->logits, i), r, kern_i32(a->history) + r->history_at,
                   &out[i]);
    }
}
