// A request from admission to oblivion: what is let in, how tokens enter the journal, how it ends,
// how long it is kept. Where it runs is decided in dispatch.c.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "coordinator/core.h"

struct request *requests_find(const struct coord *c, uint64_t id)
{
    return idmap_find(&c->requests, id);
}

static void requests_add(struct coord *c, struct request *q)
{
    idmap_add(&c->requests, q->id, q);
    DL_APPEND2(c->requests_by_time, q, before, after);
}

static void requests_remove(struct coord *c, struct request *q)
{
    idmap_remove(&c->requests, q->id);
    DL_DELETE2(c->requests_by_time, q, before, after);
}

// ---- admission ----

const char *coord_refusal_name(enum coord_refusal r)
{
    static const char *const names[] = {
        [COORD_REFUSE_NONE] = "none",
        [COORD_REFUSE_QUEUE_FULL] = "queue_full",
        [COORD_REFUSE_NO_CAPACITY] = "no_capacity",
        [COORD_REFUSE_DEADLINE] = "deadline",
        [COORD_REFUSE_QUOTA] = "quota",
        [COORD_REFUSE_BREAKER] = "breaker",
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
    for (uint32_t i = 0; s->prompt && i < s->prompt_n && s->prompt_n <= LIMIT_CONTEXT; i++)
        if (s->prompt[i] < 0 || s->prompt[i] >= LIMIT_VOCAB)
            return "prompt: token id out of range";
    return NULL;
}

// Retrying helps once a part of the queue is gone; never less than a second.
static uint32_t retry_after_ms(const struct pool *p)
{
    uint64_t eta = notices_wait_us(p, 0, p->fair.n / 2 + 1) / 1000;
    return eta < 1000 ? 1000 : eta > 60000 ? 60000 : (uint32_t)eta;
}

// What is wrong with the request itself.
static struct refusal judge_shape(struct coord *c, const struct coord_submit *s, struct pool **out)
{
    const char *text = nonsense(c, s);
    if (!text)
        *out = pool_choose(c, s, &text);
    if (text)
        return (struct refusal){COORD_REFUSE_BAD_REQUEST, 0, text};
    uint32_t context = (*out)->max_context ? (*out)->max_context : LIMIT_CONTEXT;
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

static struct refusal judge_quota(struct coord *c, struct tenant *t)
{
    uint32_t wait_ms = tenant_quota_wait_ms(t, c->now_us);
    if (!wait_ms)
        return (struct refusal){0};
    t->refused_quota++;
    return (struct refusal){COORD_REFUSE_QUOTA, wait_ms,
                            arena_printf(&c->arena,
                                         "the quota of %u tokens a second of '%s' is used up",
                                         t->set.tokens_per_s, t->name)};
}

static bool queue_is_full(const struct coord *c, const struct pool *p, const struct coord_submit *s)
{
    const struct fair *f = &p->fair;
    return f->fresh_n >= c->cfg.queue_limit ||
           f->fresh_tokens + s->prompt_n > c->cfg.queue_tokens_limit;
}

static void refuse_waiting(struct coord *c, struct request *q, const struct refusal *f);

// Whether there is room for it; a higher band takes the place of a lower one.
static struct refusal judge_room(struct coord *c, struct pool *p, const struct coord_submit *s,
                                 uint8_t band)
{
    struct request *last;
    while (queue_is_full(c, p, s) && (last = fair_last(&p->fair, band))) {
        c->stats.displaced++;
        refuse_waiting(c, last,
                       &(struct refusal){COORD_REFUSE_QUEUE_FULL, retry_after_ms(p),
                                         "the queue is full, and more urgent requests came"});
    }
    if (!queue_is_full(c, p, s))
        return (struct refusal){0};
    return (struct refusal){COORD_REFUSE_QUEUE_FULL, retry_after_ms(p),
                            arena_printf(&c->arena, "%u requests are waiting", p->fair.fresh_n)};
}

// Whether its first token can come in time: the wait for a place, then its prefill.
static struct refusal judge_deadline(struct coord *c, const struct pool *p, const struct tenant *t,
                                     uint8_t band, uint64_t deadline_us, bool waits)
{
    uint32_t ahead =
        p->queues[QUEUE_SUSPECT].n + p->queues[QUEUE_MOVED].n + fair_ahead(&p->fair, t, band);
    uint64_t wait_us = 0;
    if (waits && p->credits && eta_trusted(&p->eta))
        wait_us = notices_wait_us(p, band, ahead + 1) + eta_first_us(&p->eta);
    if (!deadline_us || (deadline_us > c->now_us && deadline_us - c->now_us >= wait_us))
        return (struct refusal){0};
    return (struct refusal){
        COORD_REFUSE_DEADLINE, retry_after_ms(p),
        arena_printf(&c->arena, "the first token would come in %" PRIu64 " ms, after the deadline",
                     wait_us / 1000)};
}

static struct refusal judge(struct coord *c, struct pool *p, const struct coord_submit *s,
                            struct tenant *t, uint8_t band, uint64_t deadline_us)
{
    if (c->closing)
        return (struct refusal){COORD_REFUSE_DRAINING, 1000, "the coordinator is shutting down"};
    uint32_t retry_ms;
    const char *open = breakers_refuse(c, band, &retry_ms);
    if (open)
        return (struct refusal){COORD_REFUSE_BREAKER, retry_ms, open};
    struct refusal f = judge_quota(c, t);
    bool waits = p->fair.n || p->load >= p->credits;
    if (!f.reason)
        f = judge_deadline(c, p, t, band, deadline_us, waits);
    if (!f.reason && waits)
        f = judge_room(c, p, s, band);
    return f;
}

static uint64_t submit_deadline_us(const struct coord *c, const struct coord_submit *s,
                                   uint8_t band)
{
    if (s->deadline_us)
        return s->deadline_us;
    uint32_t ms = c->cfg.band_deadline_ms[band];
    if (!ms)
        ms = c->cfg.default_deadline_ms;
    return ms ? c->now_us + 1000ull * ms : 0;
}

// When it must be dispatched for its first token to come in time.
static uint64_t start_by_us(const struct coord *c, const struct pool *p, uint64_t deadline_us)
{
    uint64_t first_us = eta_first_us(&p->eta), left_us = deadline_us - c->now_us;
    return deadline_us - (first_us < left_us / 2 ? first_us : left_us / 2);
}

static void admit(struct coord *c, struct pool *p, const struct coord_submit *s, struct tenant *t,
                  uint8_t band, uint64_t deadline_us)
{
    struct request *q = request_create(s, c->now_us);
    q->pool = p;
    pool_note_session(c, s->session, p);
    p->admitted++;
    requests_add(c, q);
    c->live_n++;
    q->band = q->lane_band = band;
    q->max_tokens = breakers_cap(c, q->max_tokens);
    q->tenant = t;
    t->live_n++;
    tenant_charge(t, c->now_us, q->prompt_n);
    q->deadline_us = deadline_us;
    q->tight = s->deadline_us || c->cfg.band_deadline_ms[band];
    if (deadline_us)
        core_arm(c, &q->wait, TIMER_WAIT, start_by_us(c, p, deadline_us));
    request_enqueue(c, q);
}

void requests_submit(struct coord *c, const struct coord_submit *s)
{
    c->stats.submitted++;
    struct pool *p = NULL;
    struct refusal f = judge_shape(c, s, &p);
    if (f.reason) {
        refuse(c, s->request, &f);
        return;
    }
    struct tenant *t = tenants_get(&c->tenants, s->tenant, c->now_us);
    uint8_t band = s->band < t->set.max_band ? s->band : t->set.max_band;
    uint64_t deadline_us = submit_deadline_us(c, s, band);
    t->submitted++;
    f = judge(c, p, s, t, band, deadline_us);
    if (f.reason)
        refuse(c, s->request, &f);
    else
        admit(c, p, s, t, band, deadline_us);
}

// ---- the end ----

static void forget(struct coord *c, struct request *q)
{
    core_disarm(c, &q->life);
    requests_remove(c, q);
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

static void release_tenant(struct coord *c, struct request *q)
{
    c->live_n--;
    q->tenant->live_n--;
    q->tenant = NULL;
}

// The client's end of it: DONE is told. What is placed stays placed until the replica lets go.
// May free q.
void request_end(struct coord *c, struct request *q, enum finish_reason finish, enum status s,
                 const char *text)
{
    assert(request_is_live(q));
    c->stats.finished[finish]++;
    versions_note_end(c, q, finish);
    core_trace(c, finish == FINISH_ERROR ? LOG_WARN : LOG_DEBUG,
               "request %" PRIu64 " finished: %s at token %u%s%s", q->id,
               finish_reason_name(finish), q->emitted_n, *text ? ": " : "", text);
    if (q->started_us && (finish == FINISH_STOP || finish == FINISH_LENGTH))
        eta_observe(&q->pool->eta, c->now_us - q->started_us, q->emitted_n);
    q->finish = finish;
    q->status = s;
    q->text = *text ? mem_strdup(text) : NULL;
    q->done_us = c->now_us;
    core_disarm(c, &q->life);
    tell_done(c, q);
    if (q->state == COORD_REQ_QUEUED)
        request_dequeue(c, q);
    release_tenant(c, q);
    free(q->prompt);
    q->prompt = NULL;
    if (q->replica)
        request_leave(c, q, COORD_REQ_CLOSING);
    else
        request_retain(c, q);
}

// Its deadline passed, or its place was needed.
static void refuse_waiting(struct coord *c, struct request *q, const struct refusal *f)
{
    assert(q->state == COORD_REQ_QUEUED && q->dispatches == 0);
    refuse(c, q->id, f);
    request_dequeue(c, q);
    tenant_refund(q->tenant, q->prompt_n);
    release_tenant(c, q);
    forget(c, q);
}

void requests_wait_timer(struct coord *c, struct request *q)
{
    struct refusal f = {COORD_REFUSE_DEADLINE, retry_after_ms(q->pool),
                        "the deadline passed while the request waited"};
    if (!q->pool->credits) {
        f.reason = COORD_REFUSE_NO_CAPACITY;
        f.text = "no replica was ready before the deadline";
    }
    refuse_waiting(c, q, &f);
}

// ---- from another coordinator ----

static bool ends_with_stop(const struct request *q)
{
    for (uint32_t i = 0; q->emitted_n && i < q->stop_ids_n; i++)
        if (q->emitted[q->emitted_n - 1] == q->stop_ids[i])
            return true;
    return false;
}

void requests_restore(struct coord *c, const struct coord_restore *s)
{
    const char *text = nonsense(c, &s->submit);
    if (!text && !s->submit.prompt && s->finish == FINISH_NONE)
        text = "prompt: is absent, and the request is not finished";
    struct pool *p = text ? NULL : pool_choose(c, &s->submit, &text);
    if (text) {
        refuse(c, s->submit.request, &(struct refusal){COORD_REFUSE_BAD_REQUEST, 0, text});
        return;
    }
    struct pool *began = pool_of_model(c, p->set.model, s->emitted_n ? s->fingerprint : 0);
    if (began) // it may have been moved to another version before its first token
        p = began;
    struct request *q = request_create(&s->submit, c->now_us);
    q->pool = p;
    pool_note_session(c, s->submit.session, p);
    requests_add(c, q);
    c->live_n++;
    q->lane_band = q->band;
    q->tenant = tenants_get(&c->tenants, s->submit.tenant, c->now_us);
    q->tenant->live_n++;
    q->attached = 0;
    q->restored = true;
    q->dispatches = 1; // it waits with those whose replica broke
    q->started_us = s->finish == FINISH_NONE ? c->now_us : 0;
    q->fingerprint = s->fingerprint;
    q->cached_n = s->cached_n < q->prompt_n ? s->cached_n : q->prompt_n;
    for (uint32_t i = 0; i < s->emitted_n; i++)
        request_append(q, s->emitted[i]);
    q->dispatch_index = q->emitted_n;
    request_enqueue(c, q);
    if (s->finish != FINISH_NONE)
        request_end(c, q, s->finish, s->status, s->text ? s->text : "");
    else if (ends_with_stop(q))
        request_end(c, q, FINISH_STOP, STATUS_OK, "");
    else
        core_arm(c, &q->life, TIMER_LIFE, c->now_us + 1000ull * c->cfg.grace_ms);
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
    DL_FOREACH_SAFE2(c->requests_by_time, q, next, after)
    {
        core_disarm(c, &q->wait);
        core_disarm(c, &q->life);
        q->replica = NULL;
        requests_remove(c, q);
        request_destroy(q);
    }
    idmap_finish(&c->requests);
}
