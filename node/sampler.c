// The sampler. Owns scratch arrays of the vocabulary's size. A full sort of 128K candidates per
// token would cost more than the forward pass of a small model, so candidates are sorted band by
// band, from the most likely down (weights of at least 1/16 of the best, then 1/256, ...), and only
// as far as top-k, top-p or the draw need. The concatenation of the bands is the full order, so the
// result does not depend on where the bands end.
#include "node/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/prng.h"

#define GREEDY_BELOW 1e-5f

struct candidate {
    float weight; // exp((logit - max) / temperature): 1 for the best
    int32_t id;
};

struct sampler {
    uint32_t vocab;
    float *logits;            // [vocab] penalised
    float *weights;           // [vocab]
    uint32_t *counts;         // [vocab] all 0 between calls
    struct candidate *sorted; // [vocab]
};

// The sorted candidates so far: all with a weight of at least `floor`.
struct order {
    const struct sampler *s;
    uint32_t n;
    float floor; // 2 = nothing yet
    float least; // min-p: candidates below do not exist
    bool complete;
};

struct sampler *sampler_create(uint32_t vocab)
{
    assert(vocab > 0);
    struct sampler *s = mem_zalloc(1, sizeof *s);
    s->vocab = vocab;
    s->logits = mem_zalloc(vocab, sizeof *s->logits);
    s->weights = mem_zalloc(vocab, sizeof *s->weights);
    s->counts = mem_zalloc(vocab, sizeof *s->counts);
    s->sorted = mem_zalloc(vocab, sizeof *s->sorted);
    return s;
}

void sampler_destroy(struct sampler *s)
{
    if (!s)
        return;
    free(s->logits);
    free(s->weights);
    free(s->counts);
    free(s->sorted);
    free(s);
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

static bool penalised(const struct sampling *p)
{
    return p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

// Calls for each token of the history once, with its number of occurrences in the output: SEEN
// marks that a token is in the history, the other bits count.
#define SEEN 0x80000000u

static void penalise(struct sampler *s, const struct sampler_input *in)
{
    const struct sampling *p = in->sampling;
    for (uint32_t i = 0; i < in->tokens_n; i++)
        if ((uint32_t)in->tokens[i] < s->vocab) {
            uint32_t *c = &s->counts[in->tokens[i]];
            *c = (*c + (i >= in->prompt_n)) | SEEN;
        }
    for (uint32_t i = 0; i < in->tokens_n; i++) {
        uint32_t id = (uint32_t)in->tokens[i];
        if (id >= s->vocab || !s->counts[id])
            continue;
        uint32_t count = s->counts[id] & ~SEEN;
        float *l = &s->logits[id];
        *l = *l > 0 ? *l / p->repetition_penalty : *l * p->repetition_penalty;
        *l -= p->frequency_penalty * (float)count;
        *l -= count ? p->presence_penalty : 0;
        s->counts[id] = 0;
    }
}

static int by_weight(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

// Appends the next band of candidates. false when there are no more.
static bool order_extend(struct order *o)
{
    while (!o->complete) {
        float top = o->floor, floor = top > 1 ? 1.0f / 16 : top / 16;
        if (floor < 1e-12f)
            floor = 0;
        if (floor <= o->least) {
            floor = o->least;
            o->complete = true;
        }
        uint32_t first = o->n;
        const float *w = o->s->weights;
        for (uint32_t i = 0; i < o->s->vocab; i++)
            if (w[i] < top && w[i] >= floor)
                o->s->sorted[o->n++] = (struct candidate){w[i], (int32_t)i};
        qsort(o->s->sorted + first, o->n - first, sizeof(struct candidate), by_weight);
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
    return &o->s->sorted[i];
}

// The sum of the candidates before the first that top-k cuts off, and how many they are.
static double apply_top_k(struct order *o, int32_t top_k, uint32_t *n_out)
{
    const struct sampler *s = o->s;
    double mass = 0;
    *n_out = s->vocab;
    if (top_k <= 0 || (uint32_t)top_k >= s->vocab) {
        for (uint32_t i = 0; i < s->vocab; i++)
            mass += s->weights[i] >= o->least ? s->weights[i] : 0;
        return mass;
    }
    const struct candidate *c;
    for (*n_out = 0; *n_out < (uint32_t)top_k && (c = order_at(o, *n_out)); (*n_out)++)
        mass += c->weight;
    return mass;
}

static double apply_top_p(struct order *o, float top_p, double mass, uint32_t *n)
{
    if (!(top_p < 1))
        return mass;
    double kept = 0;
    const struct candidate *c;
    for (uint32_t i = 0; i < *n && (c = order_at(o, i)); i++) {
        if (i > 0 && kept >= (double)top_p * mass) {
            *n = i;
            return kept;
        }
        kept += c->weight;
    }
    return kept;
}

static int32_t draw(struct order *o, double mass, uint32_t n, float unit)
{
    double target = (double)unit * mass, cumulative = 0;
    const struct candidate *c = NULL, *last = NULL;
    for (uint32_t i = 0; i < n && (c = order_at(o, i)); i++) {
        if (c->weight <= 0)
            break;
        last = c;
        cumulative += c->weight;
        if (cumulative > target)
            break;
    }
    assert(last); // the best candidate has weight 1
    return last->id;
}

static int32_t sample(struct sampler *s, const struct sampler_input *in)
{
    const struct sampling *p = in->sampling;
    float max = s->logits[argmax(s->logits, s->vocab)];
    for (uint32_t i = 0; i < s->vocab; i++)
        s->weights[i] = expf((s->logits[i] - max) / p->temperature);
    struct order o = {.s = s, .floor = 2, .least = fminf(fmaxf(p->min_p, 0), 1)};
    uint32_t n;
    double mass = apply_top_k(&o, p->top_k, &n);
    mass = apply_top_p(&o, p->top_p, mass, &n);
    return draw(&o, mass, n, philox_unit(p->seed, in->index));
}

static double log_sum_exp(const float *v, uint32_t n)
{
    float max = v[argmax(v, n)];
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += expf(v[i] - max);
    return max + log(sum);
}

// Insertion into a list of at most LIMIT_TOP_LOGPROBS, most likely first, ids ascending among
// equals.
static void top_logprobs(const float *logits, uint32_t vocab, double lse, struct step_sample *out)
{
    uint32_t n = 0, want = out->top_n < vocab ? out->top_n : vocab;
    for (uint32_t i = 0; want && i < vocab; i++) {
        if (n == want && logits[i] <= out->top[n - 1].value)
            continue;
        uint32_t at = n < want ? n++ : n - 1;
        for (; at > 0 && out->top[at - 1].value < logits[i]; at--)
            out->top[at] = out->top[at - 1];
        out->top[at] = (struct logprob){(int32_t)i, logits[i]};
    }
    for (uint32_t i = 0; i < n; i++)
        out->top[i].value = (float)(out->top[i].value - lse);
    out->top_n = n;
}

static bool is_greedy(const struct sampling *p)
{
    return !(p->temperature >= GREEDY_BELOW);
}

bool sampler_is_argmax(const struct sampling *p)
{
    return is_greedy(p) && !penalised(p) && !p->logprobs && !p->top_logprobs;
}

enum status sampler_pick(struct sampler *s, const struct sampler_input *in, struct step_sample *out)
{
    const struct sampling *p = in->sampling;
    assert(in->prompt_n <= in->tokens_n && p->top_logprobs <= LIMIT_TOP_LOGPROBS);
    if (!all_finite(in->logits, s->vocab))
        return STATUS_NODE_NAN;
    const float *row = in->logits;
    bool greedy = is_greedy(p);
    if (!greedy || penalised(p)) {
        memcpy(s->logits, in->logits, sizeof(float) * s->vocab);
        row = s->logits;
    }
    if (penalised(p))
        penalise(s, in);
    out->token = greedy ? (int32_t)argmax(row, s->vocab) : sample(s, in);
    out->logprob = 0;
    out->top_n = p->top_logprobs;
    if (p->logprobs || p->top_logprobs) {
        double lse = log_sum_exp(in->logits, s->vocab);
        out->logprob = p->logprobs ? (float)(in->logits[out->token] - lse) : 0;
        top_logprobs(in->logits, s->vocab, lse, out);
    }
    return STATUS_OK;
}
