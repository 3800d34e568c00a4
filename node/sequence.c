// A sequence in one allocation: record, history, block table, all at the size they can reach.
#include "node/sequence.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sm.h"

static const struct sm_state states[] = {
    [SEQUENCE_WAITING] = {"WAITING", SM_TO(SEQUENCE_PREFILL)},
    [SEQUENCE_PREFILL] = {"PREFILL", SM_TO(SEQUENCE_DECODE) | SM_TO(SEQUENCE_WAITING)},
    [SEQUENCE_DECODE] = {"DECODE", SM_TO(SEQUENCE_WAITING)},
};
static const struct sm sequence_sm = {"sequence", states, sizeof states / sizeof *states};

static uint32_t longest(const struct journal *j, uint32_t context)
{
    uint64_t n = (uint64_t)j->prompt_n + j->max_tokens;
    return n < context ? (uint32_t)n : context;
}

static void copy_journal(struct sequence *s, const struct journal *j)
{
    s->request = j->request;
    s->band = j->band;
    s->sampling = j->sampling;
    s->stop_ids_n = j->stop_ids_n;
    memcpy(s->stop_ids, j->stop_ids, j->stop_ids_n * sizeof *j->stop_ids);
    s->prompt_n = j->prompt_n;
    s->first_index = j->emitted_n;
    s->max_tokens = j->max_tokens;
    memcpy(s->tokens, j->prompt, j->prompt_n * sizeof *j->prompt);
    if (j->emitted_n > 0)
        memcpy(s->tokens + j->prompt_n, j->emitted, j->emitted_n * sizeof *j->emitted);
    s->tokens_n = j->prompt_n + j->emitted_n;
}

struct sequence *sequence_create(const struct journal *j, const struct sequence_limits *limits)
{
    uint32_t cap = longest(j, limits->max_context);
    uint32_t blocks = (cap + limits->block_tokens - 1) / limits->block_tokens;
    assert(j->prompt_n + j->emitted_n < cap || cap == limits->max_context);
    size_t bytes = sizeof(struct sequence) + ((size_t)cap + blocks) * sizeof(uint32_t);
    struct sequence *s = mem_alloc(bytes);
    memset(s, 0, sizeof *s);
    s->tokens = (int32_t *)(s + 1);
    s->tokens_cap = cap;
    s->blocks = (uint32_t *)(s->tokens + cap);
    copy_journal(s, j);
    return s;
}

void sequence_destroy(struct sequence *s)
{
    assert(s == NULL || s->blocks_n == 0);
    free(s);
}

void sequence_enter(struct sequence *s, enum sequence_state to)
{
    s->state = sm_move(&sequence_sm, s->state, to);
}

uint32_t sequence_index(const struct sequence *s)
{
    return s->tokens_n - s->prompt_n;
}

uint32_t sequence_todo(const struct sequence *s)
{
    return s->tokens_n - s->pos_sent;
}

static bool stops_at(const struct sequence *s, int32_t token)
{
    for (uint32_t i = 0; i < s->stop_ids_n; i++)
        if (s->stop_ids[i] == token)
            return true;
    return false;
}

enum finish_reason sequence_append(struct sequence *s, int32_t token, uint32_t context)
{
    assert(s->tokens_n < s->tokens_cap);
    s->tokens[s->tokens_n++] = token;
    if (stops_at(s, token))
        return FINISH_STOP;
    if (sequence_index(s) >= s->max_tokens || s->tokens_n >= context)
        return FINISH_LENGTH;
    return FINISH_NONE;
}

bool sequence_before(const struct sequence *a, const struct sequence *b)
{
    return a->band != b->band ? a->band > b->band : a->arrival < b->arrival;
}
