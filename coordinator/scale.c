// How many replicas a pool has while the cluster runs. A replica that is not wanted any more is
// retired: it hands its work over like a drained one, then it stays vacant, and its nodes are free.
// Its number is kept for when it is wanted again.
#include <assert.h>
#include <inttypes.h>
#include <utlist.h>

#include "coordinator/core.h"

uint32_t pool_bound(const struct coord *c, const struct pool *p)
{
    uint32_t n = pool_waiting(p) - p->fair.fresh_n + p->moving_n;
    if (!p->formed_n)
        return n;
    for (uint32_t i = 0; i < c->replicas_n; i++)
        if (c->replicas[i]->pool == p)
            n += c->replicas[i]->running.n;
    return n;
}

bool pool_all_there(const struct coord *c, const struct pool *p)
{
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct replica *r = c->replicas[i];
        bool starved = r->state == COORD_REPLICA_VACANT && !r->timer.slot && c->free_n < p->ranks_n;
        bool serves = r->state == COORD_REPLICA_READY || r->state == COORD_REPLICA_DRAINING;
        if (r->pool == p && !r->retired && !serves && !starved)
            return false;
    }
    return !p->wanted || p->warm_n;
}

bool pool_leaving(const struct coord *c, const struct pool *p)
{
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct replica *r = c->replicas[i];
        if (r->pool == p && r->retired && r->state != COORD_REPLICA_VACANT)
            return true;
    }
    return false;
}

// What is lost with it: nothing, a warm-up, some requests' places. Without spare nodes a vacant one
// is worth keeping: another pool waits for nodes, which only a living one can give.
static uint64_t cost(const struct coord *c, const struct replica *r)
{
    switch (r->state) {
    case COORD_REPLICA_VACANT:
        return c->free_n < r->pool->ranks_n && c->shift.state != ROLLOUT_IDLE ? UINT64_MAX - 1 : 0;
    case COORD_REPLICA_FORMING:
        return 1;
    case COORD_REPLICA_PROVING:
        return 2;
    case COORD_REPLICA_DRAINING:
        return 3;
    case COORD_REPLICA_READY:
        break;
    }
    return 4 + replica_load(r);
}

static void retire_one(struct coord *c, struct pool *p)
{
    struct replica *best = NULL;
    for (uint32_t i = 0; i < c->replicas_n; i++) { // of equals the youngest
        struct replica *r = c->replicas[i];
        if (r->pool == p && !r->retired && (!best || cost(c, r) <= cost(c, best)))
            best = r;
    }
    assert(best);
    best->retired = true;
    core_trace(c, LOG_INFO, "replica %" PRIu64 " of %s is not wanted any more", best->id,
               p->set.name);
    if (best->state == COORD_REPLICA_VACANT)
        core_disarm(c, &best->timer);
    else if (best->state == COORD_REPLICA_READY)
        replica_drain(c, best);
    else if (best->state != COORD_REPLICA_DRAINING)
        replica_fence(c, best, &(struct fence){FENCE_ORDER, NULL, "it is not wanted any more"});
}

static void want_one(struct coord *c, struct pool *p)
{
    struct replica *best = NULL;
    for (uint32_t i = 0; i < c->replicas_n; i++) { // one that is still there, else the first
        struct replica *r = c->replicas[i];
        if (r->pool == p && r->retired &&
            (!best || (best->state == COORD_REPLICA_VACANT && r->state != best->state)))
            best = r;
    }
    if (!best) {
        replica_add(c, p);
        return;
    }
    best->retired = false;
    best->fails = best->form_fails = 0;
    replica_undrain(c, best);
}

static uint32_t retired_n(const struct coord *c, const struct pool *p)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->replicas_n; i++)
        n += c->replicas[i]->pool == p && c->replicas[i]->retired;
    return n;
}

void pool_scale(struct coord *c, struct pool *p, uint32_t n)
{
    uint32_t room = COORD_MAX_REPLICAS - c->replicas_n + p->replicas_n;
    p->wanted = n < room ? n : room;
    while (p->replicas_n - retired_n(c, p) < p->wanted)
        want_one(c, p);
    while (p->replicas_n - retired_n(c, p) > p->wanted)
        retire_one(c, p);
    c->place = true;
    c->state_changed = true;
}

// ---- new requests of a pool that takes none ----

static struct pool *other_pool(struct coord *c, const struct request *q)
{
    const char *why;
    struct pool *to = pool_choose(c,
                                  &(struct coord_submit){.request = q->id,
                                                         .session = q->session,
                                                         .prompt_n = q->prompt_n,
                                                         .max_tokens = q->max_tokens,
                                                         .model = q->pool->set.model},
                                  &why);
    return to ? to : q->pool;
}

void pool_rebind(struct coord *c, struct request *q)
{
    struct pool *to = other_pool(c, q);
    assert(q->state == COORD_REQ_QUEUED && !q->emitted_n);
    if (to == q->pool)
        return;
    request_dequeue(c, q);
    q->pool = to;
    q->fingerprint = 0;
    request_enqueue(c, q);
}

static void reroute(struct coord *c, struct pool *p)
{
    struct request *q, *next;
    DL_FOREACH_SAFE2(c->requests_by_time, q, next, after)
    {
        if (q->pool != p || q->state != COORD_REQ_QUEUED || q->dispatches)
            continue;
        struct pool *to = other_pool(c, q);
        if (to == p)
            continue;
        fair_remove(&p->fair, q);
        q->pool = to;
        fair_push(&to->fair, q);
        q->position = 0;
    }
}

void pool_set_weight(struct coord *c, struct pool *p, uint32_t weight)
{
    bool closes = p->set.weight && !weight;
    p->set.weight = weight;
    if (closes && p->fair.fresh_n)
        reroute(c, p);
}
