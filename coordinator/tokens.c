// How tokens enter the journals: each index once, in order; whatever else a lead sends is dropped
// or, when it cannot be explained by a failure, fenced.
#include <inttypes.h>

#include "coordinator/core.h"

static void protocol_fault(struct coord *c, struct replica *r, const struct request *q,
                           const char *what)
{
    c->stats.protocol_errors++;
    const char *why =
        arena_printf(&c->arena, "node %s, request %" PRIu64 ": %s", r->ranks[0]->name, q->id, what);
    replica_fence(c, r, &(struct fence){FENCE_FAULT, r->ranks[0], why});
}

static void tell_token(struct coord *c, const struct request *q, const struct token_out *t)
{
    struct token_out *copy = arena_dup(&c->arena, t, 1, sizeof *t);
    copy->top = arena_dup(&c->arena, t->top, t->top_n, sizeof *t->top);
    struct coord_action *a = core_emit(c, COORD_TOKENS);
    a->tokens.request = q->id;
    a->tokens.first_index = t->index;
    a->tokens.tokens = copy;
    a->tokens.tokens_n = 1;
    a->tokens.fingerprint = q->fingerprint;
}

static void note_time(struct coord *c, struct request *q)
{
    uint64_t since = q->last_token_us ? q->last_token_us : q->started_us;
    if (q->dispatches > 1 && q->emitted_n == q->dispatch_index && c->now_us - since > q->pause_us)
        q->pause_us = (uint32_t)(c->now_us - since);
    if (!q->first_token_us)
        preempt_first_token(c, q);
    q->last_token_us = c->now_us;
}

static void clear_suspicion(struct request *q)
{
    q->strikes = q->strikes_fault = 0;
    q->replica->suspects -= q->suspect;
    q->suspect = false;
}

static void grow_journal(struct coord *c, struct request *q, const struct token_out *t)
{
    note_time(c, q);
    if (q->emitted_n == q->dispatch_index) {
        routing_first_token(c, q, t);
        backlog_measure(c, q, t);
        backlog_clear(q);
    }
    clear_suspicion(q);
    tenant_charge(q->tenant, c->now_us, 1);
    tenant_serve(q->tenant, 1);
    if (t->index == 0)
        versions_note_first(c, q);
    if (t->index == 0 && q->dispatches == 1)
        eta_observe_first(&q->pool->eta, c->now_us - q->started_us);
    if (t->index == 0)
        q->cached_n = t->cached_tokens < q->prompt_n ? t->cached_tokens : q->prompt_n;
    request_append(q, t->token);
    c->stats.tokens++;
    retry_served(c, q->pool, 1);
    tell_token(c, q, t);
}

// The lead is done with it: the place is free.
static void finish_by_lead(struct coord *c, struct request *q, enum finish_reason finish)
{
    struct replica *r = q->replica;
    request_unplace(c, q);
    if (q->state == COORD_REQ_CLOSING)
        request_retain(c, q);
    else if (finish == FINISH_ERROR && circuit_refused(c, q, r))
        return;
    else if (finish == FINISH_ERROR)
        request_end(c, q, finish, STATUS_INTERNAL, "the replica cannot serve it");
    else
        request_end(c, q, finish, STATUS_OK, "");
}

static const char *token_nonsense(const struct token_out *t)
{
    if (t->finish > FINISH_ERROR || t->finish == FINISH_CANCELLED)
        return "a token with a finish that leads do not send";
    if (t->token < 0 && t->finish == FINISH_NONE)
        return "a token below 0";
    if (t->token >= LIMIT_VOCAB)
        return "a token beyond every vocabulary";
    if (t->top_n > LIMIT_TOP_LOGPROBS)
        return "too many alternatives of a token";
    return NULL;
}

// One token of a request that is placed on r. False: r had to be fenced.
static bool take_token(struct coord *c, struct replica *r, struct request *q,
                       const struct token_out *t)
{
    const char *bad = token_nonsense(t);
    // Token -1 is no token: the dispatch could not be served.
    enum journal_verdict v = t->token < 0 ? JOURNAL_OK : request_judge(q, t->index);
    if (!bad && v == JOURNAL_GAP && request_is_live(q))
        bad = arena_printf(&c->arena, "token %u came where %u was due", t->index, q->emitted_n);
    if (bad) {
        protocol_fault(c, r, q, bad);
        return false;
    }
    if (request_is_live(q) && v == JOURNAL_DUPLICATE) {
        c->stats.duplicate_dropped++;
        return true;
    }
    if (request_is_live(q) && t->token >= 0 && t->finish != FINISH_ERROR)
        grow_journal(c, q, t);
    if (t->finish != FINISH_NONE)
        finish_by_lead(c, q, t->finish);
    else if (request_is_live(q) && q->emitted_n >= q->max_tokens) // the lead overlooked its limit
        request_end(c, q, FINISH_LENGTH, STATUS_OK, "");
    return true;
}

// Requests are far from the processor when there are many: what will be needed soon is asked for
// now, first its slot, then the request itself, then the end of its journal.
enum { EXPECT_SLOT = 12, EXPECT = 6, EXPECT_JOURNAL = 3 };

static void expect_tokens(const struct coord *c, const struct msg_tokens *t)
{
    for (uint32_t i = 0; i < EXPECT_SLOT && i < t->tokens_n; i++)
        idmap_expect(&c->requests, t->tokens[i].request);
}

static void expect_token(const struct coord *c, const struct msg_tokens *t, uint32_t i)
{
    if (i + EXPECT_SLOT < t->tokens_n)
        idmap_expect(&c->requests, t->tokens[i + EXPECT_SLOT].request);
    const struct request *q;
    if (i + EXPECT < t->tokens_n && (q = requests_find(c, t->tokens[i + EXPECT].request))) {
        __builtin_prefetch(q);
        __builtin_prefetch((const char *)q + 64);
        __builtin_prefetch((const char *)q + 128);
    }
    if (i + EXPECT_JOURNAL < t->tokens_n &&
        (q = requests_find(c, t->tokens[i + EXPECT_JOURNAL].request)))
        __builtin_prefetch(q->emitted + q->emitted_n, 1);
}

void requests_tokens(struct coord *c, struct replica *r, const struct msg_tokens *t)
{
    r->kv_free = t->kv_free;
    r->waiting = t->waiting;
    quarantine_pace(c, r, t);
    uint64_t epoch = r->epoch;
    expect_tokens(c, t);
    for (uint32_t i = 0; i < t->tokens_n; i++) {
        expect_token(c, t, i);
        if (prober_token(c, r, &t->tokens[i])) {
            if (r->epoch != epoch)
                return; // it failed its probe, and is fenced
            continue;
        }
        struct request *q = requests_find(c, t->tokens[i].request);
        if (!q || q->replica != r) {
            c->stats.stale_dropped++;
            continue;
        }
        if (!take_token(c, r, q, &t->tokens[i]))
            return;
    }
}

void requests_cancelled(struct coord *c, struct replica *r, uint64_t id)
{
    struct request *q = requests_find(c, id);
    if (!q || q->replica != r || q->state == COORD_REQ_RUNNING)
        return; // its last token crossed our CANCEL
    bool moving = q->state == COORD_REQ_MOVING;
    struct replica *to = moving ? transfer_landed(c, q) : NULL;
    request_unplace(c, q);
    if (!moving) {
        request_retain(c, q);
        return;
    }
    request_move(q, COORD_REQ_QUEUED);
    request_enqueue(c, q);
    if (!to)
        return;
    q->hint_n = q->prompt_n + q->emitted_n;
    q->routed = ROUTED_GIVEN;
    dispatch_to(c, q, to);
}
