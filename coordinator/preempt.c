// Preemption: when no credit is free and a request of a higher band waits, the lowest running one
// gives way. Its lead is told CANCEL; when that is answered, after the step under way, it waits
// again with its journal, and goes on at its next token wherever there is room. Nothing of it
// is lost but the work of reading its tokens again, so what was dispatched last gives way first,
// and nobody more than preempt_limit times.
#include <assert.h>
#include <inttypes.h>
#include <utlist.h>

#include "coordinator/core.h"

// Not one that was admitted because its first token can come in time, before it came.
static bool is_soft(const struct coord *c, const struct request *q)
{
    return q->preemptions < c->cfg.preempt_limit && (q->first_token_us || !q->tight);
}

void preempt_first_token(struct coord *c, struct request *q)
{
    bool runs = q->state == COORD_REQ_RUNNING;
    if (runs)
        preempt_note(c, q, false);
    q->first_token_us = c->now_us;
    if (runs)
        preempt_note(c, q, true);
}

void preempt_note(struct coord *c, struct request *q, bool runs)
{
    if (!is_soft(c, q))
        return;
    uint32_t d = runs ? 1 : -1u;
    q->replica->soft_n[q->lane_band] += d;
    if (q->replica->serves)
        q->pool->soft_n[q->lane_band] += d;
}

uint32_t preempt_soft(const struct pool *p, uint8_t band)
{
    uint32_t n = 0;
    for (int b = 0; b < band; b++)
        n += p->soft_n[b];
    return n;
}

// The lowest band that runs anywhere in the pool and may be preempted; QUEUE_BANDS: none.
static int lowest_soft(const struct pool *p)
{
    int b = 0;
    while (b < QUEUE_BANDS && !p->soft_n[b])
        b++;
    return b;
}

static struct request *victim_on(const struct coord *c, const struct replica *r, int band)
{
    struct request *q = r->running.head ? r->running.head->prev : NULL;
    while (q && !(q->lane_band == band && is_soft(c, q)))
        q = q == r->running.head ? NULL : q->prev;
    return q;
}

// Of all replicas the one dispatched last.
static struct request *victim(const struct coord *c, const struct pool *p, int band)
{
    struct request *last = NULL;
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct replica *r = c->replicas[i];
        if (r->pool != p || !r->serves || !r->soft_n[band] || r->preempting_n >= r->max_seqs)
            continue;
        struct request *q = victim_on(c, r, band);
        if (q && (!last || q->placed_us > last->placed_us))
            last = q;
    }
    return last;
}

static void give_way(struct coord *c, struct request *q, const struct request *to)
{
    core_trace(c, LOG_DEBUG,
               "request %" PRIu64 " of band %u gives way to %" PRIu64 " of band %u at token %u",
               q->id, q->lane_band, to->id, to->band, q->emitted_n);
    c->stats.preemptions++;
    q->preempted = true;
    request_leave(c, q, COORD_REQ_MOVING);
    q->preemptions++; // after it has left the count of those that may be preempted
}

// The place is given at once: CANCEL and DISPATCH travel together, and the lead changes the one for
// the other at the boundary that the new one would have waited for anyhow.
void preempt_pump(struct coord *c, struct pool *p)
{
    struct request *q, *v;
    while ((q = fair_head(&p->fair)) && lowest_soft(p) < q->band &&
           (v = victim(c, p, lowest_soft(p)))) {
        struct replica *r = v->replica;
        give_way(c, v, q);
        q->routed = ROUTED_GIVEN;
        dispatch_to(c, q, r);
    }
}
