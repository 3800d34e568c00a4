// Which replicas take requests. A replica of the role prefill computes long prompts for the others
// and hands them over (transfer.c); of ordinary requests it gets none while another is ready, and
// all of them while none is. Those that take requests are on the ring, and theirs are the credits
// to be given; this file alone lets a replica in and out of both.
#include <inttypes.h>

#include "coordinator/core.h"

const char *coord_role_name(enum coord_role role)
{
    static const char *const names[] = {
        [COORD_ROLE_ANY] = "any",
        [COORD_ROLE_PREFILL] = "prefill",
        [COORD_ROLE_DECODE] = "decode",
    };
    return role <= COORD_ROLE_DECODE ? names[role] : "unknown";
}

void role_init(struct replica *r, uint32_t index)
{
    uint32_t prefill = r->pool->set.prefill_replicas, decode = r->pool->set.decode_replicas;
    r->role = index < prefill            ? COORD_ROLE_PREFILL
              : index < prefill + decode ? COORD_ROLE_DECODE
                                         : COORD_ROLE_ANY;
    r->pool->prefill_n += r->role == COORD_ROLE_PREFILL;
}

void replica_serve(struct coord *c, struct replica *r, bool on)
{
    if (r->serves == on)
        return;
    struct pool *p = r->pool;
    uint32_t d = on ? 1 : -1u;
    transfers_leave_target(c, r);
    r->serves = on;
    if (on)
        ring_add(&p->ring, r->id);
    else
        ring_remove(&p->ring, r->id);
    p->warm_n += d;
    p->credits += d * r->max_seqs;
    p->load += d * replica_load(r);
    for (int b = 0; b < QUEUE_BANDS; b++)
        p->soft_n[b] += d * r->soft_n[b];
    if (on)
        p->credits_known = p->credits;
}

// Of its own it would serve: not while others compute prompts for it, nor while its circuit is open.
static bool able(const struct replica *r)
{
    return r->state == COORD_REPLICA_READY && r->role != COORD_ROLE_PREFILL &&
           r->circuit.state != CIRCUIT_OPEN;
}

static bool any_able(const struct coord *c, const struct pool *p)
{
    for (uint32_t i = 0; i < c->replicas_n; i++)
        if (c->replicas[i]->pool == p && able(c->replicas[i]))
            return true;
    return false;
}

static void settle_all(struct coord *c, const struct pool *p)
{
    bool any = any_able(c, p);
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        struct replica *r = c->replicas[i];
        if (r->pool == p)
            replica_serve(c, r, able(r) || (!any && r->state == COORD_REPLICA_READY));
    }
}

void roles_settle(struct coord *c, struct replica *r)
{
    struct pool *p = r->pool;
    bool all = p->prefill_n || p->open_n || p->exceptions;
    p->exceptions = p->prefill_n || p->open_n;
    if (all)
        settle_all(c, p);
    else
        replica_serve(c, r, r->state == COORD_REPLICA_READY);
}

// Its running requests are moved to those that serve.
bool replica_hands_over(const struct replica *r)
{
    return r->state == COORD_REPLICA_DRAINING || (r->state == COORD_REPLICA_READY && !r->serves);
}

void replica_set_role(struct coord *c, struct replica *r, enum coord_role role)
{
    if (r->role == role)
        return;
    core_trace(c, LOG_INFO, "replica %" PRIu64 " has the role %s now, it was %s", r->id,
               coord_role_name(role), coord_role_name(r->role));
    r->pool->prefill_n += (role == COORD_ROLE_PREFILL) - (r->role == COORD_ROLE_PREFILL);
    r->role = role;
    settle_all(c, r->pool);
}
