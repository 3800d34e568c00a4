// The way from the queues to the replicas: who is next, and where it goes. Runs at the end of every
// step, and does something only when there are both a waiting request and a free credit.
#include <assert.h>
#include <inttypes.h>

#include "coordinator/core.h"

// ---- queue ----

void request_enqueue(struct coord *c, struct request *q)
{
    assert(q->state == COORD_REQ_QUEUED && !q->replica);
    q->class = q->dispatches == 0 || q->preempted ? QUEUE_FAIR : QUEUE_MOVED;
    if (q->strikes_fault >= 2)
        q->class = QUEUE_SUSPECT;
    q->position = 0;
    q->waits_us = c->now_us;
    if (q->class == QUEUE_FAIR) {
        q->order_us = q->preempted ? 0 : fair_order_us(q->deadline_us, c->now_us);
        fair_push(&q->pool->fair, q);
    } else {
        queue_push(&q->pool->queues[q->class], q);
    }
    notices_arm(c);
}

void request_dequeue(struct coord *c, struct request *q)
{
    assert(q->state == COORD_REQ_QUEUED);
    if (q->class == QUEUE_FAIR)
        fair_remove(&q->pool->fair, q);
    else
        queue_remove(&q->pool->queues[q->class], q);
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
    r->pool->load += r->serves;
    q->preempted = false;
    q->placed_us = c->now_us;
    if (q->class != QUEUE_FAIR)
        q->lane_band = q->band;
    preempt_note(c, q, true);
    backlog_add(q);
    retry_begin(c, q);
}

void request_unplace(struct coord *c, struct request *q)
{
    struct replica *r = q->replica;
    bool gave_way = q->state != COORD_REQ_RUNNING && q->preempted;
    transfer_end(c, q->transfer, COORD_TRANSFER_REQUEST);
    backlog_clear(q);
    retry_end(q);
    if (q->state == COORD_REQ_RUNNING) {
        preempt_note(c, q, false);
        request_list_remove(&r->running, q);
    } else {
        request_list_remove(&r->leaving, q);
    }
    r->moving_n -= q->state == COORD_REQ_MOVING;
    q->pool->moving_n -= q->state == COORD_REQ_MOVING;
    r->suspects -= q->suspect;
    r->preempting_n -= gave_way;
    r->pool->load -= r->serves && !gave_way;
    q->suspect = false;
    q->replica = NULL;
}

void request_leave(struct coord *c, struct request *q, enum coord_request_state to)
{
    struct replica *r = q->replica;
    if (q->transfer && !(q->transfer->state == COORD_TRANSFER_LANDED && to == COORD_REQ_MOVING))
        transfer_end(c, q->transfer, COORD_TRANSFER_REQUEST);
    if (q->state == COORD_REQ_RUNNING) {
        preempt_note(c, q, false);
        request_list_remove(&r->running, q);
        request_list_append(&r->leaving, q);
        q->leaving_us = c->now_us;
        r->preempting_n += q->preempted;
        r->pool->load -= r->serves && q->preempted;
        if (!r->cancel_timer.slot)
            core_arm(c, &r->cancel_timer, TIMER_CANCEL,
                     c->now_us + 1000ull * c->cfg.cancel_timeout_ms);
        core_send(c, r->ranks[0]->conn,
                  (struct msg){.kind = MSG_CANCEL, .cancel = {r->id, r->epoch, q->id}});
    }
    int moving = (to == COORD_REQ_MOVING) - (q->state == COORD_REQ_MOVING);
    r->moving_n += (uint32_t)moving;
    q->pool->moving_n += (uint32_t)moving;
    request_move(q, to);
}

// ---- routing ----

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
    if (q->emitted_n && q->fingerprint && q->fingerprint != r->fingerprint)
        return false;
    q->fingerprint = r->fingerprint;
    return true;
}

bool dispatch_to(struct coord *c, struct request *q, struct replica *r)
{
    if (!request_is_of(q, r)) {
        request_end(c, q, FINISH_ERROR, STATUS_BAD_MODEL,
                    "the model was changed while it was being answered");
        return false;
    }
    if (!request_fits(q, r)) {
        const char *text =
            arena_printf(&c->arena, "%u tokens of prompt and %u to come exceed the context of %u",
                         q->prompt_n, q->max_tokens, r->max_context);
        request_end(c, q, FINISH_ERROR, STATUS_TOO_LARGE, text);
        return false;
    }
    if (q->emitted_n >= q->max_tokens) { // restored; its end was not
        request_end(c, q, FINISH_LENGTH, STATUS_OK, "");
        return false;
    }
    request_dequeue(c, q);
    request_place(c, q, r);
    c->stats.dispatches++;
    c->stats.routed[q->routed]++;
    c->stats.moves += q->dispatches > 0;
    if (q->dispatches++ == 0) {
        q->started_us = c->now_us;
        tenant_serve(q->tenant, q->prompt_n);
    }
    q->dispatch_index = q->emitted_n;
    q->kv_tries = 0;
    q->kv_after_us = q->prefer = 0;
    core_trace(c, LOG_DEBUG, "request %" PRIu64 " -> replica %" PRIu64 " at token %u", q->id, r->id,
               q->emitted_n);
    core_send(c, r->ranks[0]->conn,
              (struct msg){.kind = MSG_DISPATCH,
                           .dispatch = {
                               .replica = r->id,
                               .epoch = r->epoch,
                               .journal = request_journal(q),
                           }});
    return true;
}

// To the replica that streams it; a long prompt by way of one that computes it for that one.
static void dispatch(struct coord *c, struct request *q, struct replica *r)
{
    struct replica *first = handover_pair(c, q, r);
    if (!first) {
        dispatch_to(c, q, r);
    } else if (dispatch_to(c, q, first)) {
        c->stats.prompts_apart++;
        handover_offer(c, q, r);
    }
}

static void pump_pool(struct coord *c, struct pool *p)
{
    struct request *q;
    struct replica *r;
    for (int k = 0; k < QUEUE_PLAIN; k++)
        while (retry_may_go(c, p) && (q = queue_head(&p->queues[k])) && (r = route(c, q)))
            dispatch(c, q, r);
    while ((q = fair_head(&p->fair)) && (r = route(c, q)))
        dispatch(c, q, r);
    preempt_pump(c, p);
}

void dispatch_pump(struct coord *c)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        pump_pool(c, c->pools[i]);
}
