// The way from the queues to the replicas: who is next, where it goes, and the hand-over from
// draining replicas. Runs at the end of every step, and does something only when there are both a
// waiting request and a free credit.
#include <assert.h>
#include <inttypes.h>

#include "coordinator/core.h"

// ---- queue ----

static uint32_t waiting_n(const struct coord *c)
{
    return c->queues[QUEUE_SUSPECT].n + c->queues[QUEUE_MOVED].n + c->queues[QUEUE_FRESH].n;
}

void request_enqueue(struct coord *c, struct request *q)
{
    assert(q->state == COORD_REQ_QUEUED && !q->replica);
    q->class = q->dispatches == 0 ? QUEUE_FRESH : QUEUE_MOVED;
    if (q->strikes_fault >= 2)
        q->class = QUEUE_SUSPECT;
    q->position = 0;
    queue_push(&c->queues[q->class], q);
    if (!c->notice_timer.slot)
        core_arm(c, &c->notice_timer, TIMER_NOTICE, c->now_us + 1000ull * c->cfg.queued_notice_ms);
}

void request_dequeue(struct coord *c, struct request *q)
{
    assert(q->state == COORD_REQ_QUEUED);
    queue_remove(&c->queues[q->class], q);
    core_disarm(c, &q->wait);
}

// ---- places ----

static void request_place(struct coord *c, struct request *q, struct replica *r)
{
    q->replica = r;
    request_move(q, COORD_REQ_RUNNING);
    request_list_append(&r->running, q);
    q->suspect = q->class == QUEUE_SUSPECT;
    r->suspects += q->suspect;
    c->load++; // r is READY
}

void request_unplace(struct coord *c, struct request *q)
{
    struct replica *r = q->replica;
    if (q->state == COORD_REQ_RUNNING)
        request_list_remove(&r->running, q);
    else
        request_list_remove(&r->leaving, q);
    r->moving_n -= q->state == COORD_REQ_MOVING;
    c->moving_n -= q->state == COORD_REQ_MOVING;
    r->suspects -= q->suspect;
    c->load -= r->state == COORD_REPLICA_READY;
    q->suspect = false;
    q->replica = NULL;
}

void request_leave(struct coord *c, struct request *q, enum coord_request_state to)
{
    struct replica *r = q->replica;
    if (q->state == COORD_REQ_RUNNING) {
        request_list_remove(&r->running, q);
        request_list_append(&r->leaving, q);
        q->leaving_us = c->now_us;
        if (!r->cancel_timer.slot)
            core_arm(c, &r->cancel_timer, TIMER_CANCEL,
                     c->now_us + 1000ull * c->cfg.cancel_timeout_ms);
        core_send(c, r->ranks[0]->conn,
                  (struct msg){.kind = MSG_CANCEL, .cancel = {r->id, r->epoch, q->id}});
    }
    int moving = (to == COORD_REQ_MOVING) - (q->state == COORD_REQ_MOVING);
    r->moving_n += (uint32_t)moving;
    c->moving_n += (uint32_t)moving;
    request_move(q, to);
}

// ---- routing ----

struct routing {
    const struct coord *c;
    const struct request *q;
    uint32_t cap;
};

static bool replica_takes(const struct routing *w, const struct replica *r)
{
    return replica_load(r) < r->max_seqs && !(w->q->class == QUEUE_SUSPECT && r->suspects);
}

static bool fits_cap(void *arg, uint64_t id)
{
    const struct routing *w = arg;
    const struct replica *r = replicas_find(w->c, id);
    return replica_takes(w, r) && replica_load(r) < w->cap;
}

static bool fits(void *arg, uint64_t id)
{
    const struct routing *w = arg;
    return replica_takes(w, replicas_find(w->c, id));
}

// The key's replica, or the next on the ring that is under the cap; when those that are have no
// credit (replicas of different sizes), whoever has one. NULL: nobody.
static struct replica *route(const struct coord *c, const struct request *q)
{
    if (c->load >= c->credits)
        return NULL;
    struct routing w = {c, q, ring_cap(c->load, c->warm_n)};
    uint64_t id = ring_pick(&c->ring, q->key, fits_cap, &w);
    if (!id)
        id = ring_pick(&c->ring, q->key, fits, &w);
    return id ? replicas_find(c, id) : NULL;
}

// The context of the replica decides what a request that names no max_tokens may have.
static bool request_fits(struct request *q, const struct replica *r)
{
    if (q->prompt_n >= r->max_context)
        return false;
    uint32_t room = r->max_context - q->prompt_n;
    if (q->max_tokens == 0)
        q->max_tokens = room;
    return q->max_tokens <= room;
}

// Another model would go on with another answer.
static bool request_is_of(struct request *q, const struct replica *r)
{
    if (q->emitted_n && q->fingerprint != r->fingerprint)
        return false;
    q->fingerprint = r->fingerprint;
    return true;
}

static void dispatch(struct coord *c, struct request *q, struct replica *r)
{
    if (!request_is_of(q, r)) {
        request_end(c, q, FINISH_ERROR, STATUS_BAD_MODEL,
                    "the model was changed while it was being answered");
        return;
    }
    if (!request_fits(q, r)) {
        const char *text =
            arena_printf(&c->arena, "%u tokens of prompt and %u to come exceed the context of %u",
                         q->prompt_n, q->max_tokens, r->max_context);
        request_end(c, q, FINISH_ERROR, STATUS_TOO_LARGE, text);
        return;
    }
    request_dequeue(c, q);
    request_place(c, q, r);
    c->stats.dispatches++;
    c->stats.moves += q->dispatches > 0;
    if (q->dispatches++ == 0)
        q->started_us = c->now_us;
    q->dispatch_index = q->emitted_n;
    core_trace(c, LOG_DEBUG, "request %" PRIu64 " -> replica %" PRIu64 " at token %u", q->id, r->id,
               q->emitted_n);
    core_send(c, r->ranks[0]->conn,
              (struct msg){.kind = MSG_DISPATCH,
                           .dispatch = {
                               .replica = r->id,
                               .epoch = r->epoch,
                               .journal = request_journal(q),
                           }});
}

void dispatch_pump(struct coord *c)
{
    for (int k = 0; k < QUEUE_CLASSES; k++) {
        struct request *q;
        struct replica *r;
        while ((q = queue_head(&c->queues[k])) && (r = route(c, q)))
            dispatch(c, q, r);
    }
}

// ---- hand-over ----

// Free credits elsewhere that nobody else has a claim on yet.
static uint32_t spare_credits(const struct coord *c)
{
    uint32_t free_n = c->credits - (c->load < c->credits ? c->load : c->credits);
    uint32_t claimed = c->moving_n + c->queues[QUEUE_SUSPECT].n + c->queues[QUEUE_MOVED].n;
    return free_n > claimed ? free_n - claimed : 0;
}

void dispatch_hand_over(struct coord *c)
{
    if (!c->draining_n)
        return;
    uint32_t spare = spare_credits(c);
    for (uint32_t i = 0; i < c->cfg.replicas; i++) {
        struct replica *r = &c->replicas[i];
        if (r->state != COORD_REPLICA_DRAINING)
            continue;
        for (; spare && r->running.head; spare--)
            request_leave(c, r->running.head, COORD_REQ_MOVING);
        if (!replica_load(r))
            replica_fence(c, r, &(struct fence){FENCE_EMPTY, NULL, "drained"});
    }
}

// ---- notices ----

uint32_t dispatch_eta_ms(const struct coord *c, uint32_t position)
{
    uint64_t us = eta_wait_us(&c->eta, position, c->credits ? c->credits : c->credits_known);
    return us / 1000 < UINT32_MAX ? (uint32_t)(us / 1000) : UINT32_MAX;
}

static void tell_place(struct coord *c, struct request *q, uint32_t position)
{
    uint32_t eta_ms = dispatch_eta_ms(c, position);
    uint32_t apart = eta_ms > q->eta_ms ? eta_ms - q->eta_ms : q->eta_ms - eta_ms;
    if (position == q->position && apart < 1000)
        return;
    q->position = position;
    q->eta_ms = eta_ms;
    struct coord_action *a = core_emit(c, COORD_QUEUED);
    a->queued.request = q->id;
    a->queued.position = position;
    a->queued.eta_ms = eta_ms;
}

void dispatch_notice(struct coord *c, uint64_t id)
{
    struct request *q = requests_find(c, id);
    if (q && q->state == COORD_REQ_QUEUED && !q->position)
        tell_place(c, q,
                   c->queues[QUEUE_SUSPECT].n + c->queues[QUEUE_MOVED].n +
                       queue_ahead(&c->queues[QUEUE_FRESH], q->band));
}

void dispatch_notices(struct coord *c)
{
    uint32_t position = 0;
    for (int k = 0; k < QUEUE_CLASSES; k++)
        for (struct request *q = queue_head(&c->queues[k]); q; q = queue_next(&c->queues[k], q))
            tell_place(c, q, ++position);
    if (waiting_n(c))
        core_arm(c, &c->notice_timer, TIMER_NOTICE, c->now_us + 1000ull * c->cfg.queued_notice_ms);
}
