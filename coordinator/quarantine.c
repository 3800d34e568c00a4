// Who is kept out for giving wrong answers, being slow, or failing again and again; for how long;
// and which rank of a replica it was.
//
// One rank: it is the one. Several: all are doubted together. They are formed anew with what else
// is free. A rank whose next replica passes its probe is cleared, and when a single one of those
// doubted together is left, it is the one; so is the only doubted one of the next that fails. Until
// it is found nothing wrong is served, because no replica serves before it has passed its probe.
//
// A quarantine ends by itself, each of a node twice as long as the one before; then the node is on
// trial: its replica gets a part of its credits for a while. Not more than a share of the nodes is
// kept out at once: a mistake here must not take the service down.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "coordinator/core.h"

// ---- in and out ----

static bool room_for_one(const struct coord *c)
{
    uint32_t connected = 0, kept_out = 0;
    const struct member *m;
    DL_FOREACH(c->members, m)
    {
        connected += m->conn != 0;
        kept_out += m->mark == MARK_QUARANTINE;
    }
    uint32_t cap = connected * c->cfg.quarantine_percent / 100;
    return kept_out < (cap ? cap : connected > 1);
}

static uint64_t period_us(struct coord *c, struct member *m)
{
    uint64_t base_us = 1000ull * c->cfg.quarantine_ms;
    if (m->quarantine_end_us && c->now_us > m->quarantine_end_us + 10 * base_us)
        m->quarantines = 0; // it was good for long
    uint32_t doublings = m->quarantines++;
    return base_us << (doublings < 6 ? doublings : 6);
}

void quarantine_member(struct coord *c, struct member *m, const char *why)
{
    if (m->mark != MARK_NONE)
        return;
    if (!room_for_one(c)) {
        core_trace(c, LOG_WARN, "node %s is not ejected: too many are already", m->name);
        return;
    }
    uint64_t us = period_us(c, m);
    core_trace(c, LOG_WARN, "eject node %s for %" PRIu64 " ms: %s", m->name, us / 1000, why);
    c->stats.quarantines++;
    m->mark = MARK_QUARANTINE;
    m->doubt = 0;
    if (!m->faults || c->now_us != m->fault_us)
        member_blame(c, m, why);
    core_arm(c, &m->quarantine_timer, TIMER_QUARANTINE, c->now_us + us);
    if (m->replica)
        replica_fence(c, m->replica, &(struct fence){FENCE_FAULT, m, why});
    else if (m->state != COORD_NODE_LOST && m->state != COORD_NODE_EJECTED)
        member_move(c, m, COORD_NODE_EJECTED);
}

void quarantine_timer(struct coord *c, struct member *m)
{
    assert(m->mark == MARK_QUARANTINE);
    m->mark = MARK_NONE;
    m->quarantine_end_us = c->now_us;
    m->on_trial = true;
    if (m->state == COORD_NODE_EJECTED)
        member_move(c, m, COORD_NODE_FREE);
    else if (m->state == COORD_NODE_LOST) // unmarked again, it may be forgotten
        core_arm(c, &m->timer, TIMER_MEMBER, c->now_us + 1000ull * c->cfg.lost_keep_ms);
    core_trace(c, LOG_INFO, "node %s may be used again, on trial", m->name);
}

// ---- whose fault it was ----

static void doubt_all(struct replica *r, bool slow)
{
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        struct member *m = r->ranks[i];
        m->doubt = r->epoch;
        m->doubt_slow = slow;
    }
}

// It is the only rank, or the only one that was doubted before.
static struct member *culprit(const struct replica *r)
{
    struct member *found = NULL;
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        struct member *m = r->ranks[i];
        if (r->pool->ranks_n > 1 && !m->doubt)
            continue;
        if (found)
            return NULL;
        found = m;
    }
    return found;
}

// It explains the failures of all those that it was doubted with.
static void clear_companions(struct coord *c, const struct member *one, const struct replica *r)
{
    struct member *m;
    DL_FOREACH(c->members, m)
    {
        if (one->doubt && m->doubt == one->doubt)
            m->doubt = 0;
    }
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
        r->ranks[i]->doubt = 0;
}

void quarantine_replica(struct coord *c, struct replica *r, const char *what, bool slow)
{
    if (versions_doubt(c, r)) { // more likely the new version than a node that was good before
        const char *text = arena_printf(&c->arena, "version %s: %s", r->pool->set.version, what);
        replica_fence(c, r, &(struct fence){FENCE_FAULT, NULL, text});
        return;
    }
    struct member *only = culprit(r);
    const char *why = only ? arena_printf(&c->arena, "node %s: %s", only->name, what)
                           : arena_printf(&c->arena, "one of %s: %s", replica_names(c, r), what);
    if (only)
        clear_companions(c, only, r);
    else
        doubt_all(r, slow);
    replica_fence(c, r, &(struct fence){FENCE_FAULT, only, why});
    if (only)
        quarantine_member(c, only, what);
}

// The last one left of those doubted together.
static struct member *left_over(const struct coord *c, uint64_t doubt)
{
    struct member *m, *found = NULL;
    DL_FOREACH(c->members, m)
    {
        if (m->doubt != doubt)
            continue;
        if (found)
            return NULL;
        found = m;
    }
    return found;
}

void quarantine_acquit(struct coord *c, struct replica *r)
{
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        struct member *m = r->ranks[i];
        uint64_t doubt = m->doubt;
        bool slow = m->doubt_slow;
        if (!doubt)
            continue;
        m->doubt = 0;
        struct member *one = left_over(c, doubt);
        if (one && one->replica != r)
            quarantine_member(c, one,
                              slow ? "the only one left of a replica that was slow"
                                   : "the only one left of a replica that failed its golden probe");
    }
}

bool quarantine_slow_doubt(const struct replica *r)
{
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
        if (r->ranks[i]->doubt && r->ranks[i]->doubt_slow)
            return true;
    return false;
}

// ---- flapping ----

void quarantine_note_fault(struct coord *c, struct member *m, const char *why)
{
    enum { WINDOW_US = 60000000 };
    if (!c->cfg.flap_limit)
        return;
    if (!m->flaps || c->now_us - m->flap_us > WINDOW_US) {
        m->flaps = 0;
        m->flap_us = c->now_us;
    }
    if (++m->flaps < c->cfg.flap_limit)
        return;
    m->flaps = 0;
    quarantine_member(
        c, m,
        arena_printf(&c->arena, "%u faults within a minute, the last: %s", c->cfg.flap_limit, why));
}

// ---- stragglers ----

enum { RECENT_US = 1000000, ACQUITTED_US = 60000000, FORGET_US = 30000000 };

// Not the slowest, though it computes. A suspect that has just nothing to do (requests avoid slow
// ones) is cleared only by time.
static bool is_cleared(const struct coord *c, const struct replica *r, bool slowest)
{
    uint64_t idle_us = c->now_us - r->pace.last_us;
    return idle_us > FORGET_US || (!slowest && idle_us <= RECENT_US);
}

// Those of one pool do the same work. True: one was fenced.
static bool judge_pool(struct coord *c, const struct pool *p)
{
    const struct pace **v = arena_alloc(&c->arena, p->replicas_n, sizeof *v);
    struct replica **of = arena_alloc(&c->arena, p->replicas_n, sizeof *of);
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        if (c->replicas[i]->pool != p || c->replicas[i]->state != COORD_REPLICA_READY)
            continue;
        of[n] = c->replicas[i];
        v[n++] = &c->replicas[i]->pace;
    }
    uint32_t slowest = pace_outlier(v, n, c->cfg.slow_factor, c->now_us, RECENT_US);
    for (uint32_t i = 0; i < n; i++) {
        struct replica *r = of[i];
        bool acquitted = r->slow_acquitted_us && c->now_us < r->slow_acquitted_us + ACQUITTED_US;
        if (acquitted || is_cleared(c, r, i == slowest))
            r->slow_since_us = 0;
        else if (i != slowest)
            continue;
        else if (!r->slow_since_us)
            r->slow_since_us = c->now_us;
        else if (c->now_us - r->slow_since_us >= 1000ull * c->cfg.slow_ms && room_for_one(c)) {
            doubt_all(r, true);
            r->slow_acquitted_us = c->now_us; // not suspected again at once if the probe clears it
            const char *why = arena_printf(
                &c->arena, "%s %s slow: %.1f ms a step, more than %.1fx that of its peers",
                replica_names(c, r), p->ranks_n > 1 ? "are" : "is", r->pace.step_us / 1e3,
                (double)c->cfg.slow_factor);
            replica_fence(c, r, &(struct fence){FENCE_FAULT, NULL, why});
            return true;
        }
    }
    return false;
}

void quarantine_pace_timer(struct coord *c)
{
    enum { PERIOD_US = 500000 };
    core_arm(c, &c->pace_timer, TIMER_PACE, c->now_us + PERIOD_US);
    for (uint32_t i = 0; i < c->pools_n; i++)
        if (judge_pool(c, c->pools[i]))
            return;
}

void quarantine_pace(struct coord *c, struct replica *r, const struct msg_tokens *t)
{
    bool busy = r->busy_us != 0;
    if (busy && t->step > r->busy_step && t->tokens_n) {
        uint64_t us = (c->now_us - r->busy_us) / (t->step - r->busy_step);
        pace_step(&r->pace, us, t->tokens_n, c->now_us);
        routing_step(c, r, us);
    }
    r->busy_us = t->running ? c->now_us : 0;
    r->busy_step = t->step;
}

// ---- trial ----

static bool on_trial(const struct replica *r)
{
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
        if (r->ranks[i]->on_trial)
            return true;
    return false;
}

bool quarantine_on_trial(const struct coord *c, const struct replica *r)
{
    return c->cfg.trial_ms && on_trial(r);
}

void quarantine_trial(struct coord *c, struct replica *r)
{
    r->full_seqs = r->max_seqs;
    if (!c->cfg.trial_ms || !on_trial(r))
        return;
    r->max_seqs = (r->full_seqs + 3) / 4;
    core_trace(c, LOG_INFO, "replica %" PRIu64 " is on trial with %u of %u places", r->id,
               r->max_seqs, r->full_seqs);
    core_arm(c, &r->timer, TIMER_REPLICA, c->now_us + 1000ull * c->cfg.trial_ms);
}

void quarantine_trial_over(struct coord *c, struct replica *r)
{
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
        r->ranks[i]->on_trial = false;
    if (r->circuit.state == CIRCUIT_CLOSED) {
        if (r->serves)
            r->pool->credits += r->full_seqs - r->max_seqs;
        r->max_seqs = r->full_seqs;
    }
    core_trace(c, LOG_INFO, "replica %" PRIu64 " has stood its trial", r->id);
}
