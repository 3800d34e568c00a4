// Histories go to the device only for rows with penalties, one after another in one buffer: the
// others are drawn from logits and parameters alone.
#include "node/step_sampler.h"

#include <assert.h>
#include <stdlib.h>

#include "base/mem.h"
#include "node/model/shard.h"

enum {
    ROW_WORDS = sizeof(struct kern_sample_row) / sizeof(int32_t),
    OUT_WORDS = sizeof(struct kern_sample_out) / sizeof(int32_t)
};

static enum status grow(struct kern *k, struct kern_buf **b, size_t n)
{
    if (*b && kern_buf_n(*b) >= n)
        return STATUS_OK;
    kern_buf_destroy(*b);
    *b = NULL;
    return kern_buf_create(k, KERN_I32, n + n / 2, b);
}

static enum status ensure(struct step_sampler *s, struct kern *k, size_t n, size_t history_n)
{
    assert(!s->kern || s->kern == k);
    s->kern = k;
    enum status st = grow(k, &s->rows, n * ROW_WORDS);
    st = st == STATUS_OK ? grow(k, &s->out, n * OUT_WORDS) : st;
    st = st == STATUS_OK ? grow(k, &s->history, history_n + 1) : st;
    if (st == STATUS_OK && n > s->cap) {
        s->cap = n;
        s->host_rows = mem_realloc(s->host_rows, n, sizeof *s->host_rows);
        s->host_out = mem_realloc(s->host_out, n, sizeof *s->host_out);
    }
    return st;
}

// Where the step itself has found the largest logits and nothing more is asked for.
static bool take_best(const struct model_shard *shard, const struct sampler_input *in, size_t n,
                      struct step_sample *out, enum status *st)
{
    for (size_t i = 0; i < n; i++)
        if (!sampler_is_argmax(in[i].sampling) || !forward_best(shard, i, &out[i].token))
            return false;
    *st = STATUS_OK;
    for (size_t i = 0; i < n; i++) {
        out[i].logprob = 0;
        out[i].top_n = 0;
        *st = out[i].token < 0 ? STATUS_NODE_NAN : *st;
    }
    return true;
}

enum status step_sampler_run(struct step_sampler *s, struct model_shard *shard,
                             const struct sampler_input *in, size_t n, struct step_sample *out)
{
    enum status st;
    if (take_best(shard, in, n, out, &st))
        return st;
    size_t history_n = 0;
    for (size_t i = 0; i < n; i++)
        history_n += in[i].tokens_n;
    struct kern *k = shard->kern;
    st = ensure(s, k, n, history_n);
    if (st != STATUS_OK)
        return st;
    history_n = 0;
    for (size_t i = 0; i < n; i++) {
        struct kern_sample_row *r = &s->host_rows[i];
        *r = sampler_row(&in[i]);
        r->history_at = (uint32_t)history_n;
        if (!kern_sample_penalised(r)) {
            r->history_n = r->history_prompt = 0;
            continue;
        }
        kern_upload(s->history, history_n, in[i].tokens, in[i].tokens_n);
        history_n += in[i].tokens_n;
    }
    kern_upload(s->rows, 0, s->host_rows, n * ROW_WORDS);
    kern_sample(k, &(struct kern_sample_args){.n = n,
                                              .vocab = (size_t)shard->config.vocab,
                                              .logits = forward_logits_view(shard),
                                              .rows = s->rows,
                                              .history = s->history,
                                              .history_n = history_n,
                                              .out = s->out});
    st = kern_download(s->host_out, s->out, 0, n * OUT_WORDS);
    for (size_t i = 0; i < n && st == STATUS_OK; i++)
        st = sampler_result(&s->host_out[i], &out[i]);
    return st;
}

void step_sampler_finish(struct step_sampler *s)
{
    kern_buf_destroy(s->rows);
    kern_buf_destroy(s->history);
    kern_buf_destroy(s->out);
    free(s->host_rows);
    free(s->host_out);
    *s = (struct step_sampler){0};
}
