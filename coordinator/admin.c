// Operators' commands. Each is answered by one ADMIN_DONE: at once, or for DRAIN and CLOSE when it
// is done.
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "coordinator/core.h"

const char *coord_admin_op_name(enum coord_admin_op op)
{
    static const char *const names[] = {
        [COORD_DRAIN] = "drain",
        [COORD_UNDRAIN] = "undrain",
        [COORD_FAILOVER] = "failover",
        [COORD_EJECT] = "eject",
        [COORD_CLOSE] = "close",
        [COORD_ROLE] = "role",
        [COORD_SCALE] = "scale",
        [COORD_ROLLOUT_START] = "rollout start",
        [COORD_ROLLOUT_PAUSE] = "rollout pause",
        [COORD_ROLLOUT_RESUME] = "rollout resume",
        [COORD_ROLLOUT_PROMOTE] = "rollout promote",
        [COORD_ROLLOUT_ROLLBACK] = "rollout rollback",
        [COORD_ROLLOUT_SWITCH] = "rollout switch",
        [COORD_ROLLOUT_SCORE] = "rollout score",
    };
    return op <= COORD_CLOSE ? names[op] : "unknown";
}

void admin_answer(struct coord *c, uint64_t tag, enum status s, const char *text)
{
    struct coord_action *a = core_emit(c, COORD_ADMIN_DONE);
    a->admin_done.tag = tag;
    a->admin_done.status = s;
    a->admin_done.text = text;
}

static void drain_rank(struct coord *c, struct member *m, uint64_t tag)
{
    struct replica *r = m->replica;
    if (!waiter_add(&m->drains, tag)) {
        admin_answer(c, tag, STATUS_FULL, "too many commands wait for this node");
        return;
    }
    if (r->state == COORD_REPLICA_FORMING) { // it has no work yet
        const char *why = arena_printf(&c->arena, "drain node %s", m->name);
        replica_fence(c, r, &(struct fence){FENCE_ORDER, NULL, why});
        return;
    }
    if (m->state == COORD_NODE_IN_REPLICA)
        member_move(c, m, COORD_NODE_DRAINING);
    core_trace(c, LOG_INFO, "drain node %s: replica %" PRIu64 " hands over %u request%s", m->name,
               r->id, r->running.n, r->running.n == 1 ? "" : "s");
    replica_drain(c, r);
}

static void drain(struct coord *c, struct member *m, uint64_t tag)
{
    if (m->mark == MARK_NONE)
        m->mark = MARK_DRAIN;
    switch (m->state) {
    case COORD_NODE_IN_REPLICA:
    case COORD_NODE_DRAINING:
        drain_rank(c, m, tag);
        return;
    case COORD_NODE_FREE:
    case COORD_NODE_SUSPECT:
        member_move(c, m, COORD_NODE_DRAINED);
        break;
    case COORD_NODE_DRAINED:
    case COORD_NODE_EJECTED:
    case COORD_NODE_LOST:
        break;
    }
    admin_answer(c, tag, STATUS_OK,
                 m->state == COORD_NODE_LOST ? "the node is gone; it stays drained if it returns"
                                             : "the node is idle");
}

static void undrain(struct coord *c, struct member *m, uint64_t tag)
{
    m->mark = MARK_NONE;
    m->faults = m->quarantines = m->flaps = 0;
    m->doubt = 0;
    core_disarm(c, &m->quarantine_timer);
    waiters_answer(c, &m->drains, STATUS_CANCELLED, "undrained before it was idle");
    if (m->state == COORD_NODE_DRAINED || m->state == COORD_NODE_EJECTED)
        member_move(c, m, COORD_NODE_FREE);
    if (m->state == COORD_NODE_LOST && !m->timer.slot) // unmarked, it may be forgotten
        core_arm(c, &m->timer, TIMER_MEMBER, c->now_us + 1000ull * c->cfg.lost_keep_ms);
    if (m->state == COORD_NODE_DRAINING) {
        member_move(c, m, COORD_NODE_IN_REPLICA);
        replica_undrain(c, m->replica);
    }
    core_trace(c, LOG_INFO, "node %s may be used again", m->name);
    admin_answer(c, tag, STATUS_OK, "the node may be used");
}

void member_eject(struct coord *c, struct member *m, const char *why)
{
    core_disarm(c, &m->quarantine_timer);
    m->mark = MARK_EJECT;
    if (m->replica) {
        replica_fence(c, m->replica, &(struct fence){FENCE_ORDER, m, why});
    } else if (m->state != COORD_NODE_LOST && m->state != COORD_NODE_EJECTED) {
        core_trace(c, LOG_WARN, "%s", why);
        member_move(c, m, COORD_NODE_EJECTED);
    }
}

static void eject(struct coord *c, struct member *m, uint64_t tag)
{
    member_eject(c, m, arena_printf(&c->arena, "eject node %s", m->name));
    admin_answer(c, tag, STATUS_OK, "the node is quarantined");
}

static void failover(struct coord *c, uint64_t id, uint64_t tag)
{
    struct replica *r = replicas_find(c, id);
    if (!r) {
        admin_answer(c, tag, STATUS_NOT_FOUND,
                     arena_printf(&c->arena, "no replica %" PRIu64 "; there are 1 to %u", id,
                                  c->replicas_n));
        return;
    }
    if (r->state != COORD_REPLICA_READY && r->state != COORD_REPLICA_DRAINING) {
        admin_answer(c, tag, STATUS_AGAIN,
                     arena_printf(&c->arena, "replica %" PRIu64 " is %s", id,
                                  coord_replica_state_name(r->state)));
        return;
    }
    if (handover_reform(c, r, tag)) // answered when it is fenced
        return;
    replica_fence(c, r, &(struct fence){FENCE_ORDER, NULL, "failover was asked for"});
    admin_answer(c, tag, STATUS_OK, "fenced; its requests were moved");
}

// For the time that this coordinator leads; at its start the configuration's are set again.
static void set_role(struct coord *c, const struct coord_admin *a)
{
    struct replica *r = replicas_find(c, a->replica);
    int role = COORD_ROLE_ANY;
    while (role <= COORD_ROLE_DECODE && strcmp(a->target, coord_role_name((enum coord_role)role)))
        role++;
    if (!r || role > COORD_ROLE_DECODE) {
        admin_answer(c, a->tag, r ? STATUS_BAD_REQUEST : STATUS_NOT_FOUND,
                     r ? "roles are any, prefill and decode"
                       : arena_printf(&c->arena, "no replica %" PRIu64 "; there are 1 to %u",
                                      a->replica, c->replicas_n));
        return;
    }
    replica_set_role(c, r, (enum coord_role)role);
    admin_answer(c, a->tag, STATUS_OK,
                 r->role == COORD_ROLE_PREFILL && r->serves
                     ? "no other replica is ready: it takes all requests until one is"
                     : "");
}

static void close_admission(struct coord *c, uint64_t tag)
{
    c->closing = true;
    core_trace(c, LOG_INFO, "admission is closed, %u requests to finish", c->live_n);
    if (!waiter_add(&c->closes, tag)) // answered when the step is settled, or later
        admin_answer(c, tag, STATUS_FULL, "too many commands wait for this");
}

static struct member *target(struct coord *c, const struct coord_admin *a)
{
    struct member *m = a->target ? members_find(c, a->target) : NULL;
    if (!m)
        admin_answer(c, a->tag, STATUS_NOT_FOUND,
                     arena_printf(&c->arena, "no node named %.64s", a->target ? a->target : ""));
    return m;
}

void admin_do(struct coord *c, const struct coord_admin *a)
{
    struct member *m;
    switch (a->op) {
    case COORD_DRAIN:
        if ((m = target(c, a)))
            drain(c, m, a->tag);
        return;
    case COORD_UNDRAIN:
        if ((m = target(c, a)))
            undrain(c, m, a->tag);
        return;
    case COORD_EJECT:
        if ((m = target(c, a)))
            eject(c, m, a->tag);
        return;
    case COORD_FAILOVER:
        failover(c, a->replica, a->tag);
        return;
    case COORD_ROLE:
        set_role(c, a);
        return;
    case COORD_SCALE:
        scale_order(c, a);
        return;
    case COORD_ROLLOUT_START:
    case COORD_ROLLOUT_PAUSE:
    case COORD_ROLLOUT_RESUME:
    case COORD_ROLLOUT_PROMOTE:
    case COORD_ROLLOUT_ROLLBACK:
    case COORD_ROLLOUT_SWITCH:
    case COORD_ROLLOUT_SCORE:
        versions_order(c, a);
        return;
    case COORD_CLOSE:
        close_admission(c, a->tag);
        return;
    }
    admin_answer(c, a->tag, STATUS_UNSUPPORTED, "no such command");
}
