// Those who wait are told their place and an estimate: at once when they come, then whenever it
// changed. The same timer lets them age.
#include "coordinator/core.h"

void notices_arm(struct coord *c)
{
    if (!c->notice_timer.slot)
        core_arm(c, &c->notice_timer, TIMER_NOTICE, c->now_us + 1000ull * c->cfg.queued_notice_ms);
}

uint64_t notices_wait_us(const struct pool *p, uint8_t band, uint32_t position)
{
    uint32_t soft = preempt_soft(p, band);
    if (position <= soft)
        return 0;
    return eta_wait_us(&p->eta, position - soft, p->credits ? p->credits : p->credits_known);
}

static void tell_place(struct coord *c, struct request *q, uint32_t position)
{
    uint64_t eta = notices_wait_us(q->pool, q->band, position) / 1000;
    uint32_t eta_ms = eta < UINT32_MAX ? (uint32_t)eta : UINT32_MAX;
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

// It is in its lane already: it counts itself.
void notices_one(struct coord *c, uint64_t id)
{
    struct request *q = requests_find(c, id);
    if (!q || q->state != COORD_REQ_QUEUED || q->position)
        return;
    const struct pool *p = q->pool;
    uint32_t ahead = fair_ahead(&p->fair, q->tenant, q->lane_band);
    tell_place(c, q, p->queues[QUEUE_SUSPECT].n + p->queues[QUEUE_MOVED].n + (ahead ? ahead : 1));
}

static void tell_pool(struct coord *c, struct pool *p)
{
    uint32_t position = 0;
    fair_age(&p->fair, c->now_us, 1000ull * c->cfg.ageing_ms, c->cfg.ageing_band);
    for (int k = 0; k < QUEUE_PLAIN; k++)
        for (struct request *q = queue_head(&p->queues[k]); q; q = queue_next(&p->queues[k], q))
            tell_place(c, q, ++position);
    struct request **order = fair_order(&p->fair, &c->arena, p->eta.tokens);
    for (uint32_t i = 0; i < p->fair.n; i++)
        tell_place(c, order[i], ++position);
    if (pool_waiting(p))
        notices_arm(c);
}

void notices_all(struct coord *c)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        tell_pool(c, c->pools[i]);
}
