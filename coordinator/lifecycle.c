// A request from admission to oblivion: what is let in, how tokens enter the journal, how it ends,
// how long it is kept. Where it runs is decided in dispatch.c.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/core.h"

struct request *requests_find(const struct coord *c, uint64_t id)
{
    struct request *q;
    HASH_FIND(hh, c->requests, &id, sizeof id, q);
    return q;
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
    if (s->request == 0 || requests_find(c, s->request))
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
    assert(request_is_live(q));
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
    struct request *q = requests_find(c, id);
    if (!q || !request_is_live(q))
        return;
    if (kept < q->emitted_n)
        q->emitted_n = kept;
    request_end(c, q, FINISH_STOP, STATUS_OK, "");
}

void requests_cancel(struct coord *c, uint64_t id)
{
    struct request *q = requests_find(c, id);
    if (q && request_is_live(q))
        request_end(c, q, FINISH_CANCELLED, STATUS_CANCELLED, "cancelled by the client");
}

void requests_attach(struct coord *c, uint64_t id, bool attach)
{
    struct request *q = requests_find(c, id);
    if (!q || (!attach && !q->attached))
        return;
    q->attached += attach ? 1 : -1u;
    if (!request_is_live(q))
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
