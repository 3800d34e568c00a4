// A request from admission to oblivion: what is let in, how tokens enter the journal, how it ends,
// how long it is kept. Where it runs is decided in dispatch.c.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/core.h"

static struct request *find(const struct coord *c, uint64_t id)
{
    struct request *q;
    HASH_FIND(hh, c->requests, &id, sizeof id, q);
    return q;
}

static bool is_live(const struct request *q)
{
    return q->state < COORD_REQ_CLOSING;
}

// ---- admission ----

const char *coord_refusal_name(enum coord_refusal r)
{
    static const char *const names[] = {
        [COORD_REFUSE_NONE] = "none",
        [COORD_REFUSE_QUEUE_FULL] = "queue_full",
        [COORD_REFUSE_NO_CAPACITY] = "no_capacity",
        [COORD_REFUSE_DEADLINE] = "deadline",
        [COORD_REFUSE_DRAINING] = "draining",
        [COORD_REFUSE_PROMPT_TOO_LONG] = "prompt_too_long",
        [COORD_REFUSE_BAD_MAX_TOKENS] = "bad_max_tokens",
        [COORD_REFUSE_BAD_REQUEST] = "bad_request",
    };
    return r <= COORD_REFUSE_BAD_REQUEST ? names[r] : "unknown";
}

struct refusal {
    enum coord_refusal reason;
    uint32_t retry_after_ms;
    const char *text;
};

static void refuse(struct coord *c, uint64_t id, const struct refusal *f)
{
    c->stats.refused[f->reason]++;
    struct coord_action *a = core_emit(c, COORD_REFUSED);
    a->refused.request = id;
    a->refused.reason = f->reason;
    a->refused.retry_after_ms = f->retry_after_ms;
    a->refused.text = f->text;
}

static const char *nonsense(const struct coord *c, const struct coord_submit *s)
{
    if (s->request == 0 || find(c, s->request))
        return "request: id is 0 or in use";
    if (s->prompt_n == 0)
        return "prompt: is empty";
    if (s->stop_ids_n > MSG_STOP_IDS)
        return "stop_ids: too many";
    if (s->band >= QUEUE_BANDS)
        return "band: not in 0..9";
    if (s->sampling.top_logprobs > LIMIT_TOP_LOGPROBS)
        return "top_logprobs: too many";
    for (uint32_t i = 0; i < s->prompt_n && s->prompt_n <= LIMIT_CONTEXT; i++)
        if (s->prompt[i] < 0 || s->prompt[i] >= LIMIT_VOCAB)
            return "prompt: token id out of range";
    return NULL;
}

// Retrying helps once a part of the queue is gone; never less than a second.
static uint32_t retry_after_ms(const struct coord *c)
{
    uint32_t eta = dispatch_eta_ms(c, c->queues[QUEUE_FRESH].n / 2 + 1);
    return eta < 1000 ? 1000 : eta > 60000 ? 60000 : eta;
}

// What is wrong with the request itself.
static struct refusal judge_shape(struct coord *c, const struct coord_submit *s)
{
    const char *text = nonsense(c, s);
    if (text)
        return (struct refusal){COORD_REFUSE_BAD_REQUEST, 0, text};
    uint32_t context = c->max_context ? c->max_context : LIMIT_CONTEXT;
    if (s->prompt_n >= context)
        return (struct refusal){COORD_REFUSE_PROMPT_TOO_LONG, 0,
                                arena_printf(&c->arena, "the prompt has %u tokens, the context %u",
                                             s->prompt_n, context)};
    if (s->max_tokens > context - s->prompt_n)
        return (struct refusal){
            COORD_REFUSE_BAD_MAX_TOKENS, 0,
            arena_printf(&c->arena,
                         "max_tokens %u and a prompt of %u tokens exceed the context of %u",
                         s->max_tokens, s->prompt_n, context)};
    return (struct refusal){0};
}

// Whether there is room for it now and time for it later.
static struct refusal judge_room(struct coord *c, const struct coord_submit *s,
                                 uint64_t deadline_us)
{
    if (c->closing)
        return (struct refusal){COORD_REFUSE_DRAINING, 1000, "the coordinator is shutting down"};
    const struct queue *fresh = &c->queues[QUEUE_FRESH];
    bool waits = fresh->n || c->load >= c->credits;
    if (waits &&
        (fresh->n >= c->cfg.queue_limit || fresh->tokens + s->prompt_n > c->cfg.queue_tokens_limit))
        return (struct refusal){COORD_REFUSE_QUEUE_FULL, retry_after_ms(c),
                                arena_printf(&c->arena, "%u requests are waiting", fresh->n)};
    uint32_t ahead = queue_ahead(fresh, s->band) + c->queues[QUEUE_MOVED].n;
    uint64_t wait_us = waits && c->credits && eta_trusted(&c->eta)
                           ? eta_wait_us(&c->eta, ahead + 1, c->credits)
                           : 0;
    if (deadline_us && (deadline_us <= c->now_us || deadline_us - c->now_us < wait_us))
        return (struct refusal){
            COORD_REFUSE_DEADLINE, retry_after_ms(c),
            arena_printf(&c->arena, "the wait would be %" PRIu64 " ms, beyond the deadline",
                         wait_us / 1000)};
    return (struct refusal){0};
}

static uint64_t submit_deadline_us(const struct coord *c, const struct coord_submit *s)
{
    if (s->deadline_us)
        return s->deadline_us;
    return c->cfg.default_deadline_ms ? c->now_us + 1000ull * c->cfg.default_deadline_ms : 0;
}

void requests_submit(struct coord *c, const struct coord_submit *s)
{
    c->stats.submitted++;
    uint64_t deadline_us = submit_deadline_us(c, s);
    struct refusal f = judge_shape(c, s);
    if (!f.reason)
        f = judge_room(c, s, deadline_us);
    if (f.reason) {
        refuse(c, s->request, &f);
        return;
    }
    struct request *q = request_create(s, c->now_us);
    HASH_ADD(hh, c->requests, id, sizeof q->id, q);
    c->live_n++;
    q->deadline_us = deadline_us;
    if (deadline_us)
        core_arm(c, &q->wait, TIMER_WAIT, deadline_us);
    request_enqueue(c, q);
}

// ---- the end ----

static void forget(struct coord *c, struct request *q)
{
    core_disarm(c, &q->life);
    HASH_DELETE(hh, c->requests, q);
    request_destroy(q);
}

static void forget_retained(struct coord *c, struct request *q)
{
    core_emit(c, COORD_FORGET)->forget.request = q->id;
    request_list_remove(&c->retained, q);
    c->retained_tokens -= q->emitted_n;
    forget(c, q);
}

// May free q, when the limits of what is kept are that small.
void request_retain(struct coord *c, struct request *q)
{
    request_move(q, COORD_REQ_DONE);
    request_list_append(&c->retained, q);
    c->retained_tokens += q->emitted_n;
    core_arm(c, &q->life, TIMER_LIFE, c->now_us + 1000ull * c->cfg.retention_ms);
    while (c->retained.n > c->cfg.retain_limit || c->retained_tokens > c->cfg.retain_tokens_limit)
        forget_retained(c, c->retained.head);
}

static void tell_done(struct coord *c, const struct request *q)
{
    struct coord_action *a = core_emit(c, COORD_DONE);
    a->done.request = q->id;
    a->done.finish = q->finish;
    a->done.status = q->status;
    a->done.text = q->text ? arena_dup(&c->arena, q->text, strlen(q->text) + 1, 1) : "";
    a->done.prompt_n = q->prompt_n;
    a->done.emitted_n = q->emitted_n;
    a->done.cached_n = q->cached_n;
}

// The client's end of it: DONE is told. What is placed stays placed until the replica lets go.
// May free q.
void request_end(struct coord *c, struct request *q, enum finish_reason finish, enum status s,
                 const char *text)
{
    assert(is_live(q));
    c->live_n--;
    c->stats.finished[finish]++;
    core_trace(c, finish == FINISH_ERROR ? LOG_WARN : LOG_DEBUG,
               "request %" PRIu64 " finished: %s at token %u%s%s", q->id,
               finish_reason_name(finish), q->emitted_n, *text ? ": " : "", text);
    if (q->started_us && (finish == FINISH_STOP || finish == FINISH_LENGTH))
        eta_observe(&c->eta, c->now_us - q->started_us);
    q->finish = finish;
    q->status = s;
    q->text = *text ? mem_strdup(text) : NULL;
    q->done_us = c->now_us;
    core_disarm(c, &q->life);
    tell_done(c, q);
    if (q->state == COORD_REQ_QUEUED)
        request_dequeue(c, q);
    free(q->prompt);
    q->prompt = NULL;
    if (q->replica)
        request_leave(c, q, COORD_REQ_CLOSING);
    else
        request_retain(c, q);
}

void requests_wait_timer(struct coord *c, struct request *q)
{
    assert(q->state == COORD_REQ_QUEUED && q->dispatches == 0);
    struct refusal f = {COORD_REFUSE_DEADLINE, retry_after_ms(c),
                        "the deadline passed while the request waited"};
    if (!c->credits) {
        f.reason = COORD_REFUSE_NO_CAPACITY;
        f.text = "no replica was ready before the deadline";
    }
    refuse(c, q->id, &f);
    request_dequeue(c, q);
    c->live_n--;
    forget(c, q);
}

void requests_life_timer(struct coord *c, struct request *q)
{
    if (q->state == COORD_REQ_DONE)
        forget_retained(c, q);
    else
        request_end(c, q, FINISH_CANCELLED, STATUS_CANCELLED, "nobody came back for it");
}

void requests_stop(struct coord *c, uint64_t id, uint32_t kept)
{
    struct request *q = find(c, id);
    if (!q || !is_live(q))
        return;
    if (kept < q->emitted_n)
        q->emitted_n = kept;
    request_end(c, q, FINISH_STOP, STATUS_OK, "");
}

void requests_cancel(struct coord *c, uint64_t id)
{
    struct request *q = find(c, id);
    if (q && is_live(q))
        request_end(c, q, FINISH_CANCELLED, STATUS_CANCELLED, "cancelled by the client");
}

void requests_attach(struct coord *c, uint64_t id, bool attach)
{
    struct request *q = find(c, id);
    if (!q || (!attach && !q->attached))
        return;
    q->attached += attach ? 1 : -1u;
    if (!is_live(q))
        return;
    if (q->attached)
        core_disarm(c, &q->life);
    else
        core_arm(c, &q->life, TIMER_LIFE, c->now_us + 1000ull * c->cfg.grace_ms);
}

void requests_free(struct coord *c)
{
    struct request *q, *next;
    HASH_ITER(hh, c->requests, q, next)
    {
        core_disarm(c, &q->wait);
        core_disarm(c, &q->life);
        q->replica = NULL;
        HASH_DELETE(hh, c->requests, q);
        request_destroy(q);
    }
}

// ---- tokens ----

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
}

static void note_time(struct coord *c, struct request *q)
{
    uint64_t since = q->last_token_us ? q->last_token_us : q->started_us;
    if (q->dispatches > 1 && q->emitted_n == q->dispatch_index && c->now_us - since > q->pause_us)
        q->pause_us = (uint32_t)(c->now_us - since);
    if (!q->first_token_us)
        q->first_token_us = c->now_us;
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
    clear_suspicion(q);
    if (t->index == 0)
        q->cached_n = t->cached_tokens < q->prompt_n ? t->cached_tokens : q->prompt_n;
    request_append(q, t->token);
    c->stats.tokens++;
    tell_token(c, q, t);
}

// The lead is done with it: the place is free.
static void finish_by_lead(struct coord *c, struct request *q, enum finish_reason finish)
{
    request_unplace(c, q);
    if (q->state == COORD_REQ_CLOSING)
        request_retain(c, q);
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
    if (!bad && v == JOURNAL_GAP && is_live(q))
        bad = arena_printf(&c->arena, "token %u came where %u was due", t->index, q->emitted_n);
    if (bad) {
        protocol_fault(c, r, q, bad);
        return false;
    }
    if (is_live(q) && v == JOURNAL_DUPLICATE) {
        c->stats.duplicate_dropped++;
        return true;
    }
    if (is_live(q) && t->token >= 0 && t->finish != FINISH_ERROR)
        grow_journal(c, q, t);
    if (t->finish != FINISH_NONE)
        finish_by_lead(c, q, t->finish);
    else if (is_live(q) && q->emitted_n >= q->max_tokens) // the lead overlooked its limit
        request_end(c, q, FINISH_LENGTH, STATUS_OK, "");
    return true;
}

void requests_tokens(struct coord *c, struct replica *r, const struct msg_tokens *t)
{
    r->kv_free = t->kv_free;
    r->waiting = t->waiting;
    for (uint32_t i = 0; i < t->tokens_n; i++) {
        struct request *q = find(c, t->tokens[i].request);
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
    struct request *q = find(c, id);
    if (!q || q->replica != r || q->state == COORD_REQ_RUNNING)
        return; // its last token crossed our CANCEL
    bool moving = q->state == COORD_REQ_MOVING;
    request_unplace(c, q);
    if (!moving) {
        request_retain(c, q);
        return;
    }
    request_move(q, COORD_REQ_QUEUED);
    request_enqueue(c, q);
}
