// A writer of words over a strbuf, and a reader that hands out spans of words only while there are
// enough left. Counts are 32-bit and checked against the words left before anything is sized by
// them, so no product can overflow.
#include "node/plan_wire.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are copied as they lie");

enum {
    PLAN_MAGIC = 0x4e4c5048,   // "HPLN"
    RESULT_MAGIC = 0x53455248, // "HRES"
    PLAN_HEAD = 10,
    OPEN_WORDS = 15,
    ENTRY_WORDS = 5,
    RESULT_HEAD = 8,
    SAMPLE_WORDS = 4,
    TOP_WORDS = 2,
};

// ---- writing ----

static void put_words(struct strbuf *b, const void *words, size_t n)
{
    if (n > 0)
        strbuf_add(b, words, n * 4);
}

static uint32_t low(uint64_t v)
{
    return (uint32_t)v;
}

static uint32_t high(uint64_t v)
{
    return (uint32_t)(v >> 32);
}

static uint32_t bits(float v)
{
    uint32_t w;
    memcpy(&w, &v, 4);
    return w;
}

static void put_total(struct strbuf *b, size_t start)
{
    size_t words = (b->n - start) / 4;
    assert(words <= UINT32_MAX);
    uint32_t w = (uint32_t)words;
    memcpy(b->v + start + 4, &w, 4);
}

static void put_open(struct strbuf *b, const struct plan_open *o)
{
    const struct sampling *s = &o->sampling;
    const uint32_t words[OPEN_WORDS] = {
        o->slot,
        o->index0,
        o->prompt_n,
        o->tokens_n,
        low(s->seed),
        high(s->seed),
        bits(s->temperature),
        bits(s->top_p),
        bits(s->min_p),
        (uint32_t)s->top_k,
        bits(s->repetition_penalty),
        bits(s->presence_penalty),
        bits(s->frequency_penalty),
        s->logprobs,
        s->top_logprobs,
    };
    put_words(b, words, OPEN_WORDS);
}

static void put_entry(struct strbuf *b, const struct plan_entry *p)
{
    const uint32_t words[ENTRY_WORDS] = {p->slot, p->pos, p->n, p->sample, p->new_blocks_n};
    put_words(b, words, ENTRY_WORDS);
}

void step_plan_encode(const struct step_plan *p, struct strbuf *out)
{
    size_t start = out->n;
    const uint32_t head[PLAN_HEAD] = {
        PLAN_MAGIC,     0,       low(p->step), high(p->step), low(p->epoch),
        high(p->epoch), p->rows, p->closes_n,  p->opens_n,    p->entries_n,
    };
    put_words(out, head, PLAN_HEAD);
    put_words(out, p->closes, p->closes_n);
    for (uint32_t i = 0; i < p->opens_n; i++)
        put_open(out, &p->opens[i]);
    for (uint32_t i = 0; i < p->entries_n; i++)
        put_entry(out, &p->entries[i]);
    for (uint32_t i = 0; i < p->opens_n; i++)
        put_words(out, p->opens[i].tokens, p->opens[i].tokens_n);
    for (uint32_t i = 0; i < p->entries_n; i++)
        put_words(out, p->entries[i].tokens, p->entries[i].n);
    for (uint32_t i = 0; i < p->entries_n; i++)
        put_words(out, p->entries[i].new_blocks, p->entries[i].new_blocks_n);
    put_total(out, start);
}

void step_result_encode(const struct step_result *r, struct strbuf *out)
{
    size_t start = out->n;
    const uint32_t head[RESULT_HEAD] = {
        RESULT_MAGIC,
        0,
        low(r->step),
        high(r->step),
        (uint32_t)r->status,
        (uint32_t)r->bad_stage,
        (uint32_t)r->bad_tensor,
        r->samples_n,
    };
    put_words(out, head, RESULT_HEAD);
    for (uint32_t i = 0; i < r->samples_n; i++) {
        const struct step_sample *s = &r->samples[i];
        const uint32_t words[SAMPLE_WORDS] = {s->slot, (uint32_t)s->token, bits(s->logprob),
                                              s->top_n};
        put_words(out, words, SAMPLE_WORDS);
    }
    for (uint32_t i = 0; i < r->samples_n; i++)
        put_words(out, r->samples[i].top, (size_t)r->samples[i].top_n * TOP_WORDS);
    put_total(out, start);
}

size_t step_plan_max_bytes(const struct step_plan_limits *l)
{
    size_t per_seq = 1 + OPEN_WORDS + ENTRY_WORDS + 2; // a block begun, one more to grow into
    size_t history = (size_t)l->max_context + l->max_context / l->block_tokens;
    return 4 * (PLAN_HEAD + l->max_seqs * per_seq + history + l->max_rows);
}

size_t step_result_max_bytes(uint32_t max_seqs)
{
    return 4 * (RESULT_HEAD + (size_t)max_seqs * (SAMPLE_WORDS + TOP_WORDS * LIMIT_TOP_LOGPROBS));
}

// ---- reading ----

struct reader {
    const uint32_t *at;
    size_t left; // words
    struct errmsg *e;
};

static enum status corrupt(struct reader *r, const char *field, uint64_t value)
{
    return errmsg_set(r->e, STATUS_LINK_CORRUPT, "%s = %llu does not fit the message", field,
                      (unsigned long long)value);
}

// n items of `each` words, or NULL when there are not so many.
static const uint32_t *span(struct reader *r, size_t n, size_t each)
{
    if (n > r->left / each)
        return NULL;
    const uint32_t *at = r->at;
    r->at += n * each;
    r->left -= n * each;
    return at;
}

static enum status read_head(struct reader *r, const void *bytes, size_t n, uint32_t magic,
                             size_t head_words, const uint32_t **head_out)
{
    assert((uintptr_t)bytes % 4 == 0);
    *r = (struct reader){.at = bytes, .left = n / 4, .e = r->e};
    const uint32_t *head = span(r, 1, head_words);
    if (head == NULL || n % 4 != 0)
        return corrupt(r, "bytes", n);
    if (head[0] != magic)
        return corrupt(r, "magic", head[0]);
    if (head[1] != n / 4)
        return corrupt(r, "words", head[1]);
    *head_out = head;
    return STATUS_OK;
}

static uint64_t u64(const uint32_t *w)
{
    return (uint64_t)w[1] << 32 | w[0];
}

static float f32(uint32_t w)
{
    float v;
    memcpy(&v, &w, 4);
    return v;
}

static void *reserve(void *v, size_t *cap, size_t n, size_t size)
{
    if (n <= *cap)
        return v;
    *cap = n;
    return mem_realloc(v, n, size);
}

static enum status read_opens(struct reader *r, struct plan_decoder *d, uint32_t n)
{
    const uint32_t *w = span(r, n, OPEN_WORDS);
    if (w == NULL)
        return corrupt(r, "opens_n", n);
    d->opens = reserve(d->opens, &d->opens_cap, n, sizeof *d->opens);
    for (uint32_t i = 0; i < n; i++, w += OPEN_WORDS) {
        if (w[13] > 1)
            return corrupt(r, "open.logprobs", w[13]);
        if (w[14] > LIMIT_TOP_LOGPROBS)
            return corrupt(r, "open.top_logprobs", w[14]);
        d->opens[i] = (struct plan_open){
            .slot = w[0],
            .index0 = w[1],
            .prompt_n = w[2],
            .tokens_n = w[3],
            .sampling = {.seed = u64(w + 4),
                         .temperature = f32(w[6]),
                         .top_p = f32(w[7]),
                         .min_p = f32(w[8]),
                         .top_k = (int32_t)w[9],
                         .repetition_penalty = f32(w[10]),
                         .presence_penalty = f32(w[11]),
                         .frequency_penalty = f32(w[12]),
                         .logprobs = w[13] == 1,
                         .top_logprobs = w[14]},
        };
    }
    return STATUS_OK;
}

static enum status read_entries(struct reader *r, struct plan_decoder *d, uint32_t n, uint32_t rows)
{
    const uint32_t *w = span(r, n, ENTRY_WORDS);
    uint64_t sum = 0;
    if (w == NULL || n == 0)
        return corrupt(r, "entries_n", n);
    d->entries = reserve(d->entries, &d->entries_cap, n, sizeof *d->entries);
    for (uint32_t i = 0; i < n; i++, w += ENTRY_WORDS) {
        if (w[2] == 0 || w[1] > LIMIT_CONTEXT || w[2] > LIMIT_CONTEXT)
            return corrupt(r, "entry.n", w[2]);
        if (w[3] > 1)
            return corrupt(r, "entry.sample", w[3]);
        d->entries[i] = (struct plan_entry){
            .slot = w[0], .pos = w[1], .n = w[2], .sample = w[3] == 1, .new_blocks_n = w[4]};
        sum += w[2];
    }
    return sum == rows ? STATUS_OK : corrupt(r, "rows", rows);
}

// The lists that opens and entries have told the lengths of.
static enum status read_lists(struct reader *r, struct plan_decoder *d, const struct step_plan *p)
{
    for (uint32_t i = 0; i < p->opens_n; i++) {
        d->opens[i].tokens = (const int32_t *)span(r, d->opens[i].tokens_n, 1);
        if (d->opens[i].tokens == NULL)
            return corrupt(r, "open.tokens_n", d->opens[i].tokens_n);
    }
    for (uint32_t i = 0; i < p->entries_n; i++) {
        d->entries[i].tokens = (const int32_t *)span(r, d->entries[i].n, 1);
        if (d->entries[i].tokens == NULL)
            return corrupt(r, "entry.n", d->entries[i].n);
    }
    for (uint32_t i = 0; i < p->entries_n; i++) {
        d->entries[i].new_blocks = span(r, d->entries[i].new_blocks_n, 1);
        if (d->entries[i].new_blocks == NULL)
            return corrupt(r, "entry.new_blocks_n", d->entries[i].new_blocks_n);
    }
    return r->left == 0 ? STATUS_OK : corrupt(r, "words left over", r->left);
}

enum status step_plan_decode(struct plan_decoder *d, const void *bytes, size_t n,
                             struct step_plan *plan_out, struct errmsg *e)
{
    struct reader r = {.e = e};
    const uint32_t *head;
    enum status s = read_head(&r, bytes, n, PLAN_MAGIC, PLAN_HEAD, &head);
    if (s < 0)
        return s;
    struct step_plan p = {
        .step = u64(head + 2),
        .epoch = u64(head + 4),
        .rows = head[6],
        .closes_n = head[7],
        .opens_n = head[8],
        .entries_n = head[9],
    };
    p.closes = span(&r, p.closes_n, 1);
    if (p.closes == NULL)
        return corrupt(&r, "closes_n", p.closes_n);
    if ((s = read_opens(&r, d, p.opens_n)) < 0 ||
        (s = read_entries(&r, d, p.entries_n, p.rows)) < 0 || (s = read_lists(&r, d, &p)) < 0)
        return s;
    p.opens = d->opens;
    p.entries = d->entries;
    *plan_out = p;
    return STATUS_OK;
}

static enum status read_top(struct reader *r, struct step_sample *s)
{
    const uint32_t *w = span(r, s->top_n, TOP_WORDS);
    if (s->top_n > LIMIT_TOP_LOGPROBS || w == NULL)
        return corrupt(r, "sample.top_n", s->top_n);
    for (uint32_t k = 0; k < s->top_n; k++)
        s->top[k] = (struct logprob){.token = (int32_t)w[TOP_WORDS * k],
                                     .value = f32(w[TOP_WORDS * k + 1])};
    return STATUS_OK;
}

static enum status read_samples(struct reader *r, struct plan_decoder *d, uint32_t n)
{
    const uint32_t *w = span(r, n, SAMPLE_WORDS);
    if (w == NULL)
        return corrupt(r, "samples_n", n);
    d->samples = reserve(d->samples, &d->samples_cap, n, sizeof *d->samples);
    for (uint32_t i = 0; i < n; i++, w += SAMPLE_WORDS) {
        struct step_sample *s = &d->samples[i];
        s->slot = w[0];
        s->token = (int32_t)w[1];
        s->logprob = f32(w[2]);
        s->top_n = w[3];
    }
    for (uint32_t i = 0; i < n; i++) {
        enum status s = read_top(r, &d->samples[i]);
        if (s < 0)
            return s;
    }
    return r->left == 0 ? STATUS_OK : corrupt(r, "words left over", r->left);
}

enum status step_result_decode(struct plan_decoder *d, const void *bytes, size_t n,
                               struct step_result *result_out, struct errmsg *e)
{
    struct reader r = {.e = e};
    const uint32_t *head;
    enum status s = read_head(&r, bytes, n, RESULT_MAGIC, RESULT_HEAD, &head);
    if (s < 0)
        return s;
    int32_t status = (int32_t)head[4];
    if (status > 0)
        return corrupt(&r, "status", head[4]);
    s = read_samples(&r, d, head[7]);
    if (s < 0)
        return s;
    *result_out = (struct step_result){
        .step = u64(head + 2),
        .status = (enum status)status,
        .bad_stage = (int32_t)head[5],
        .bad_tensor = (int32_t)head[6],
        .samples = d->samples,
        .samples_n = head[7],
    };
    return STATUS_OK;
}

void plan_decoder_finish(struct plan_decoder *d)
{
    free(d->opens);
    free(d->entries);
    free(d->samples);
    memset(d, 0, sizeof *d);
}
