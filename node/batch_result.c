// What came of a plan: histories grow, full blocks get their names, finished and cancelled
// sequences leave.
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "node/batch_int.h"

static enum status sample_check(const struct batch *b, const struct plan_entry *entry,
                                const struct step_sample *s, struct errmsg *e)
{
    if (s->slot != entry->slot)
        return errmsg_set(e, STATUS_INTERNAL, "sample of slot %u where slot %u was asked", s->slot,
                          entry->slot);
    if (s->token < 0 || (b->config.vocab > 0 && (uint32_t)s->token >= b->config.vocab))
        return errmsg_set(e, STATUS_INTERNAL, "slot %u sampled token %d of %u", s->slot, s->token,
                          b->config.vocab);
    if (s->top_n > LIMIT_TOP_LOGPROBS)
        return errmsg_set(e, STATUS_INTERNAL, "slot %u has %u alternatives", s->slot, s->top_n);
    return STATUS_OK;
}

static enum status result_check(const struct batch *b, const struct step_result *r,
                                struct errmsg *e)
{
    if (b->flights_n == 0)
        return errmsg_set(e, STATUS_INTERNAL, "result of step %" PRIu64 ", none under way",
                          r->step);
    const struct step_plan *p = &b->flights[b->flights_first].plan;
    if (r->step != p->step)
        return errmsg_set(e, STATUS_INTERNAL, "result of step %" PRIu64 ", want %" PRIu64, r->step,
                          p->step);
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->entries_n; i++) {
        if (!p->entries[i].sample)
            continue;
        if (n == r->samples_n)
            return errmsg_set(e, STATUS_INTERNAL, "step %" PRIu64 " gave only %u samples", r->step,
                              n);
        enum status s = sample_check(b, &p->entries[i], &r->samples[n++], e);
        if (s < 0)
            return s;
    }
    if (n != r->samples_n)
        return errmsg_set(e, STATUS_INTERNAL, "step %" PRIu64 " gave %u samples, want %u", r->step,
                          r->samples_n, n);
    return STATUS_OK;
}

static void rows_done(struct batch *b, struct sequence *s, const struct plan_entry *entry)
{
    uint32_t bt = b->config.block_tokens;
    s->under_way--;
    s->pos_done = entry->pos + entry->n;
    for (; (s->published + 1) * bt <= s->pos_done; s->published++)
        kvpool_publish(b->pool, &s->chain, s->tokens + (size_t)s->published * bt,
                       s->blocks[s->published]);
}

static const struct logprob *keep_top(struct batch *b, uint32_t at, const struct step_sample *from)
{
    struct logprob *top = b->tops + (size_t)at * LIMIT_TOP_LOGPROBS;
    memcpy(top, from->top, from->top_n * sizeof *top);
    return top;
}

// True when the sequence leaves with this token.
static bool emit(struct batch *b, struct sequence *s, const struct step_sample *from,
                 struct batch_step *out)
{
    uint32_t index = sequence_index(s);
    enum finish_reason finish = sequence_append(s, from->token, b->context);
    b->tokens[out->tokens_n] = (struct token_out){
        .request = s->request,
        .index = index,
        .token = from->token,
        .finish = (uint8_t)finish,
        .logprob = s->sampling.logprobs ? from->logprob : 0,
        .top_n = from->top_n,
        .top = from->top_n > 0 ? keep_top(b, out->tokens_n, from) : NULL,
        .cached_tokens = index == s->first_index ? s->cached : 0,
    };
    out->tokens_n++;
    if (s->state == SEQUENCE_PREFILL)
        sequence_enter(s, SEQUENCE_DECODE);
    return finish != FINISH_NONE || s->prefill_only;
}

static void entry_done(struct batch *b, struct sequence *s, const struct plan_entry *entry,
                       const struct step_sample *sample, struct batch_step *out)
{
    rows_done(b, s, entry);
    if (s->cancelled) {
        if (s->under_way > 0)
            return;
        b->cancelled[out->cancelled_n++] = s->request;
        batch_remove(b, s);
    } else if (sample != NULL && emit(b, s, sample, out)) {
        batch_remove(b, s);
    }
}

enum status batch_result(struct batch *b, const struct step_result *r, struct batch_step *out,
                         struct errmsg *e)
{
    assert(r->status == STATUS_OK);
    enum status st = result_check(b, r, e);
    if (st < 0)
        return st;
    struct flight *f = &b->flights[b->flights_first];
    struct batch_step step = {.tokens = b->tokens, .cancelled = b->cancelled};
    uint32_t n = 0;
    b->flights_first = (b->flights_first + 1) % b->config.pipeline;
    b->flights_n--;
    for (uint32_t i = 0; i < f->plan.entries_n; i++) {
        const struct plan_entry *entry = &f->entries[i];
        entry_done(b, f->seqs[i], entry, entry->sample ? &r->samples[n++] : NULL, &step);
    }
    *out = step;
    return STATUS_OK;
}
