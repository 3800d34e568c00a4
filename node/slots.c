// Plans come from another process, so every number is checked before the first one is believed. The
// one idea: a slot's history is the tokens told at OPEN, and each row beyond its end adds one; so a
// row inside the history must repeat the token that is there.
#include "node/slots.h"

#include <assert.h>
#include <stdlib.h>

#include "base/mem.h"

struct slot {
    bool open;
    uint32_t *blocks; // [blocks_max], owned
    uint32_t blocks_n;
    int32_t *tokens; // owned, grows
    size_t tokens_n, tokens_cap;
    uint32_t opened_n; // tokens told at OPEN
    uint32_t prompt_n, index0;
    struct sampling sampling;
};

struct slots {
    struct slots_config config;
    uint32_t blocks_max; // of one sequence
    struct slot *v;      // [max_seqs]
    uint64_t *seen;      // [max_seqs] step that named the slot last, against naming it twice
    uint64_t *closing;   // [max_seqs] step that closes it
    uint64_t *opening;   // [max_seqs] index + 1 of its OPEN while a plan is checked, else 0
    uint64_t stamp;
    // the batch
    int32_t *tokens, *seq, *pos, *logit_rows; // [max_rows]
    uint32_t *sample_entries;                 // [max_rows]
    struct forward_seq *seqs;                 // [max_seqs]
};

struct slots *slots_create(const struct slots_config *config)
{
    assert(config->max_seqs && config->max_rows && config->block_tokens && config->kv_blocks);
    struct slots *s = mem_zalloc(1, sizeof *s);
    s->config = *config;
    s->blocks_max = (config->max_context + config->block_tokens - 1) / config->block_tokens;
    s->v = mem_zalloc(config->max_seqs, sizeof *s->v);
    for (uint32_t i = 0; i < config->max_seqs; i++)
        s->v[i].blocks = mem_zalloc(s->blocks_max, sizeof *s->v[i].blocks);
    s->seen = mem_zalloc(config->max_seqs, sizeof *s->seen);
    s->closing = mem_zalloc(config->max_seqs, sizeof *s->closing);
    s->opening = mem_zalloc(config->max_seqs, sizeof *s->opening);
    s->tokens = mem_zalloc(config->max_rows, sizeof *s->tokens);
    s->seq = mem_zalloc(config->max_rows, sizeof *s->seq);
    s->pos = mem_zalloc(config->max_rows, sizeof *s->pos);
    s->logit_rows = mem_zalloc(config->max_rows, sizeof *s->logit_rows);
    s->sample_entries = mem_zalloc(config->max_rows, sizeof *s->sample_entries);
    s->seqs = mem_zalloc(config->max_seqs, sizeof *s->seqs);
    return s;
}

void slots_destroy(struct slots *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; i < s->config.max_seqs; i++) {
        free(s->v[i].blocks);
        free(s->v[i].tokens);
    }
    free(s->v);
    free(s->seen);
    free(s->closing);
    free(s->opening);
    free(s->tokens);
    free(s->seq);
    free(s->pos);
    free(s->logit_rows);
    free(s->sample_entries);
    free(s->seqs);
    free(s);
}

// ---- checks: nothing is changed but the stamps
// ----------------------------------------------------

static bool tokens_in_vocab(const struct slots *s, const int32_t *tokens, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= s->config.vocab)
            return false;
    return true;
}

static enum status check_closes(struct slots *s, const struct step_plan *p, struct errmsg *e)
{
    for (uint32_t i = 0; i < p->closes_n; i++) {
        uint32_t slot = p->closes[i];
        if (slot >= s->config.max_seqs || !s->v[slot].open || s->closing[slot] == s->stamp)
            return errmsg_set(e, STATUS_LINK_PROTOCOL, "closes[%u]: slot %u is not open", i, slot);
        s->closing[slot] = s->stamp;
    }
    return STATUS_OK;
}

static enum status check_opens(struct slots *s, const struct step_plan *p, struct errmsg *e)
{
    for (uint32_t i = 0; i < p->opens_n; i++) {
        const struct plan_open *o = &p->opens[i];
        if (o->slot >= s->config.max_seqs || s->opening[o->slot] ||
            (s->v[o->slot].open && s->closing[o->slot] != s->stamp))
            return errmsg_set(e, STATUS_LINK_PROTOCOL, "opens[%u]: slot %u is not free", i,
                              o->slot);
        if (!o->prompt_n || o->prompt_n > o->tokens_n || o->tokens_n >= s->config.max_context ||
            !tokens_in_vocab(s, o->tokens, o->tokens_n))
            return errmsg_set(e, STATUS_LINK_PROTOCOL,
                              "opens[%u]: %u tokens, %u of the prompt, are not a history", i,
                              o->tokens_n, o->prompt_n);
        s->opening[o->slot] = i + 1;
    }
    return STATUS_OK;
}

// What the slot will be once closes and opens of this plan are done.
struct slot_state {
    bool open;
    const int32_t *tokens;
    size_t tokens_n;
    uint32_t blocks_n;
};

static struct slot_state state_of(const struct slots *s, const struct step_plan *p, uint32_t slot)
{
    if (s->opening[slot]) {
        const struct plan_open *o = &p->opens[s->opening[slot] - 1];
        return (struct slot_state){true, o->tokens, o->tokens_n, 0};
    }
    const struct slot *v = &s->v[slot];
    return (struct slot_state){v->open && s->closing[slot] != s->stamp, v->tokens, v->tokens_n,
                               v->blocks_n};
}

static enum status check_entry(struct slots *s, const struct step_plan *p, uint32_t i,
                               struct errmsg *e)
{
    const struct plan_entry *x = &p->entries[i];
    if (x->slot >= s->config.max_seqs || s->seen[x->slot] == s->stamp)
        return errmsg_set(e, STATUS_LINK_PROTOCOL, "entries[%u]: slot %u is not there or twice", i,
                          x->slot);
    s->seen[x->slot] = s->stamp;
    struct slot_state v = state_of(s, p, x->slot);
    uint64_t end = (uint64_t)x->pos + x->n;
    if (!v.open || !x->n || x->pos > v.tokens_n || end > s->config.max_context ||
        !tokens_in_vocab(s, x->tokens, x->n))
        return errmsg_set(e, STATUS_LINK_PROTOCOL,
                          "entries[%u]: positions %u+%u of slot %u do not follow its %zu tokens", i,
                          x->pos, x->n, x->slot, v.tokens_n);
    if (x->sample && end < v.tokens_n)
        return errmsg_set(e, STATUS_LINK_PROTOCOL, "entries[%u]: samples inside the history", i);
    for (uint32_t k = 0; k < x->n && x->pos + k < v.tokens_n; k++)
        if (x->tokens[k] != v.tokens[x->pos + k])
            return errmsg_set(e, STATUS_LINK_PROTOCOL,
                              "entries[%u]: token %d at position %u, the history has %d", i,
                              x->tokens[k], x->pos + k, v.tokens[x->pos + k]);
    uint64_t blocks_n = (uint64_t)v.blocks_n + x->new_blocks_n;
    if (blocks_n > s->blocks_max || blocks_n * s->config.block_tokens < end)
        return errmsg_set(e, STATUS_LINK_PROTOCOL, "entries[%u]: %llu blocks for position %llu", i,
                          (unsigned long long)blocks_n, (unsigned long long)end - 1);
    for (uint32_t k = 0; k < x->new_blocks_n; k++)
        if (x->new_blocks[k] >= s->config.kv_blocks)
            return errmsg_set(e, STATUS_LINK_PROTOCOL, "entries[%u]: block %u of %u", i,
                              x->new_blocks[k], s->config.kv_blocks);
    return STATUS_OK;
}

static enum status check_plan(struct slots *s, const struct step_plan *p, struct errmsg *e)
{
    enum status rc = check_closes(s, p, e);
    if (rc == STATUS_OK)
        rc = check_opens(s, p, e);
    uint64_t rows = 0;
    for (uint32_t i = 0; i < p->entries_n && rc == STATUS_OK; i++) {
        rc = check_entry(s, p, i, e);
        rows += p->entries[i].n;
    }
    if (rc == STATUS_OK && (!p->entries_n || rows != p->rows || rows > s->config.max_rows))
        rc = errmsg_set(e, STATUS_LINK_PROTOCOL, "plan: %llu rows, it says %u, at most %u",
                        (unsigned long long)rows, p->rows, s->config.max_rows);
    for (uint32_t i = 0; i < p->opens_n; i++)
        if (p->opens[i].slot < s->config.max_seqs)
            s->opening[p->opens[i].slot] = 0;
    return rc;
}

// ---- taking over
// ----------------------------------------------------------------------------------

static void add_token(struct slot *v, int32_t token)
{
    MEM_GROW(v->tokens, v->tokens_n, v->tokens_cap);
    v->tokens[v->tokens_n++] = token;
}

static void open_slot(struct slot *v, const struct plan_open *o)
{
    v->open = true;
    v->blocks_n = 0;
    v->tokens_n = 0;
    for (uint32_t i = 0; i < o->tokens_n; i++)
        add_token(v, o->tokens[i]);
    v->opened_n = o->tokens_n;
    v->prompt_n = o->prompt_n;
    v->index0 = o->index0;
    v->sampling = o->sampling;
}

static void take_entry(struct slots *s, const struct plan_entry *x)
{
    struct slot *v = &s->v[x->slot];
    for (uint32_t k = 0; k < x->new_blocks_n; k++)
        v->blocks[v->blocks_n++] = x->new_blocks[k];
    for (uint32_t k = 0; k < x->n; k++)
        if (x->pos + k == v->tokens_n)
            add_token(v, x->tokens[k]);
}

static void lay_out(struct slots *s, const struct step_plan *p, struct slots_batch *out)
{
    size_t row = 0, logits_n = 0;
    for (uint32_t i = 0; i < p->entries_n; i++) {
        const struct plan_entry *x = &p->entries[i];
        const struct slot *v = &s->v[x->slot];
        s->seqs[i] = (struct forward_seq){v->blocks, v->blocks_n};
        for (uint32_t k = 0; k < x->n; k++, row++) {
            s->tokens[row] = x->tokens[k];
            s->seq[row] = (int32_t)i;
            s->pos[row] = (int32_t)(x->pos + k);
        }
        if (x->sample) {
            s->sample_entries[logits_n] = i;
            s->logit_rows[logits_n++] = (int32_t)row - 1;
        }
    }
    *out = (struct slots_batch){
        .batch = {.step = p->step,
                  .rows = row,
                  .tokens = s->tokens,
                  .seq = s->seq,
                  .pos = s->pos,
                  .seqs = s->seqs,
                  .seqs_n = p->entries_n,
                  .logit_rows = s->logit_rows,
                  .logits_n = logits_n},
        .sample_entries = s->sample_entries,
    };
}

enum status slots_apply(struct slots *s, const struct step_plan *plan, struct slots_batch *out,
                        struct errmsg *e)
{
    s->stamp++;
    enum status rc = check_plan(s, plan, e);
    if (rc != STATUS_OK)
        return rc;
    for (uint32_t i = 0; i < plan->closes_n; i++)
        s->v[plan->closes[i]].open = false;
    for (uint32_t i = 0; i < plan->opens_n; i++)
        open_slot(&s->v[plan->opens[i].slot], &plan->opens[i]);
    for (uint32_t i = 0; i < plan->entries_n; i++)
        take_entry(s, &plan->entries[i]);
    lay_out(s, plan, out);
    return STATUS_OK;
}

struct slots_history slots_history(const struct slots *s, uint32_t slot)
{
    const struct slot *v = &s->v[slot];
    assert(slot < s->config.max_seqs && v->open && v->tokens_n >= v->opened_n);
    return (struct slots_history){.sampling = &v->sampling,
                                  .tokens = v->tokens,
                                  .tokens_n = (uint32_t)v->tokens_n,
                                  .prompt_n = v->prompt_n,
                                  .index = v->index0 + (v->tokens_n - v->opened_n)};
}
