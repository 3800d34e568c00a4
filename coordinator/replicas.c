// Replicas: their table of states, the fence between two epochs, and the watch over their steps. A
// replica's epoch is a new highest number of the whole cluster each time it is formed; fencing
// makes it 0, so that nothing of the old epoch matches any more.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/core.h"
#include "coordinator/health.h"

static const struct sm_state replica_states[] = {
    [COORD_REPLICA_VACANT] = {"vacant", SM_TO(COORD_REPLICA_FORMING)},
    [COORD_REPLICA_FORMING] = {"forming", SM_TO(COORD_REPLICA_PROVING) |
                                              SM_TO(COORD_REPLICA_READY) |
                                              SM_TO(COORD_REPLICA_VACANT)},
    [COORD_REPLICA_PROVING] = {"proving", SM_TO(COORD_REPLICA_READY) | SM_TO(COORD_REPLICA_VACANT)},
    [COORD_REPLICA_READY] = {"ready", SM_TO(COORD_REPLICA_DRAINING) | SM_TO(COORD_REPLICA_VACANT)},
    [COORD_REPLICA_DRAINING] = {"draining",
                                SM_TO(COORD_REPLICA_READY) | SM_TO(COORD_REPLICA_VACANT)},
};
const struct sm replica_sm = {"replica", replica_states, COORD_REPLICA_DRAINING + 1};

const char *coord_replica_state_name(enum coord_replica_state s)
{
    return sm_name(&replica_sm, s);
}

void links_clear(struct replica *r)
{
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        free(r->links[i].shm);
        free(r->links[i].tcp);
        free(r->links[i].verbs);
        free(r->links[i].mover_shm);
        free(r->links[i].mover_tcp);
        free(r->links[i].mover_verbs);
        r->links[i] = (struct rank_link){0};
    }
    r->prepared_n = r->formed_n = 0;
}

struct replica *replica_add(struct coord *c, struct pool *p)
{
    assert(c->replicas_n < COORD_MAX_REPLICAS);
    struct replica *r = mem_zalloc(1, sizeof *r);
    MEM_GROW(c->replicas, c->replicas_n, c->replicas_cap);
    c->replicas[c->replicas_n++] = r;
    r->id = c->replicas_n;
    r->pool = p;
    r->ranks = mem_zalloc(p->ranks_n, sizeof *r->ranks);
    r->links = mem_zalloc(p->ranks_n, sizeof *r->links);
    role_init(r, p->replicas_n++);
    return r;
}

void replicas_free(struct coord *c)
{
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        struct replica *r = c->replicas[i];
        core_disarm(c, &r->timer);
        core_disarm(c, &r->cancel_timer);
        core_disarm(c, &r->reform_timer);
        core_disarm(c, &r->circuit_timer);
        core_disarm(c, &r->probe.timer);
        waiters_free(&r->reforms);
        links_clear(r);
        free(r->links);
        free(r->ranks);
        cache_drop(r);
        free(r->fault);
        free(r);
    }
    free(c->replicas);
}

struct replica *replicas_find(const struct coord *c, uint64_t id)
{
    return id >= 1 && id <= c->replicas_n ? c->replicas[id - 1] : NULL;
}

void replica_move(struct coord *c, struct replica *r, enum coord_replica_state to)
{
    struct pool *p = r->pool;
    replica_serve(c, r, false);
    c->draining_n -= r->state == COORD_REPLICA_DRAINING;
    p->draining_n -= r->state == COORD_REPLICA_DRAINING;
    p->ready_n -= r->state == COORD_REPLICA_READY;
    p->formed_n -= r->state != COORD_REPLICA_VACANT;
    r->state = sm_move(&replica_sm, r->state, to);
    r->since_us = c->now_us;
    c->draining_n += r->state == COORD_REPLICA_DRAINING;
    p->draining_n += r->state == COORD_REPLICA_DRAINING;
    p->ready_n += r->state == COORD_REPLICA_READY;
    p->formed_n += r->state != COORD_REPLICA_VACANT;
    roles_settle(c, r);
}

// ---- fencing ----

static void note_fault(struct coord *c, struct replica *r, const struct fence *f)
{
    if (f->kind == FENCE_ORDER || f->kind == FENCE_EMPTY)
        return;
    free(r->fault);
    r->fault = mem_strdup(f->why);
    r->fault_us = c->now_us;
    r->suspect[0] = 0;
    if (!f->suspect)
        return;
    memcpy(r->suspect, f->suspect->name, sizeof r->suspect);
    if (f->suspect->state == COORD_NODE_LOST) // the loss is noted already
        return;
    member_blame(c, f->suspect, f->why);
}

// The first failure after a good time is tried again at once, later ones after longer and longer
// pauses; one that forming itself brought on never at once.
static uint64_t back_off_us(struct coord *c, struct replica *r, enum fence_kind kind, bool stable)
{
    if (kind == FENCE_ORDER || kind == FENCE_EMPTY) {
        r->fails = 0;
        return 0;
    }
    r->fails = stable ? 1 : r->fails + 1;
    uint32_t doublings = r->fails - (kind != FENCE_FORM);
    if (doublings == 0)
        return 0;
    uint64_t ms = c->cfg.backoff_ms;
    while (--doublings && ms < c->cfg.backoff_max_ms)
        ms *= 2;
    return 1000ull * (ms < c->cfg.backoff_max_ms ? ms : c->cfg.backoff_max_ms);
}

// True when the request has killed so many replicas that it is not given another.
static bool poisoned(struct coord *c, struct request *q, enum fence_kind kind)
{
    q->strikes += kind == FENCE_LOST || kind == FENCE_FAULT;
    q->strikes_fault += kind == FENCE_FAULT;
    return q->strikes_fault > c->cfg.poison_faults || q->strikes > c->cfg.poison_losses;
}

static void move_request(struct coord *c, struct request *q, enum fence_kind kind)
{
    request_unplace(c, q);
    if (q->state == COORD_REQ_CLOSING) {
        request_retain(c, q);
        return;
    }
    if (poisoned(c, q, kind)) {
        request_end(c, q, FINISH_ERROR, STATUS_INTERNAL,
                    "given up: every replica that it ran on failed");
        return;
    }
    request_move(q, COORD_REQ_QUEUED);
    request_enqueue(c, q);
}

static void move_requests(struct coord *c, struct replica *r, enum fence_kind kind)
{
    while (r->running.head)
        move_request(c, r->running.head, kind);
    while (r->leaving.head)
        move_request(c, r->leaving.head, kind);
}

static void dissolve(struct coord *c, struct replica *r, const struct fence *f)
{
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        struct member *m = r->ranks[i];
        r->ranks[i] = NULL;
        if (!m)
            continue;
        core_send(c, m->conn, (struct msg){.kind = MSG_DISSOLVE, .dissolve = {r->id, r->epoch}});
        member_release(c, m, m == f->suspect && f->kind != FENCE_ORDER);
        member_watch(c, m);
    }
}

static void trace_fence(struct coord *c, const struct replica *r, const struct fence *f,
                        uint32_t moved)
{
    if (f->kind == FENCE_EMPTY) {
        core_trace(c, LOG_INFO, "replica %" PRIu64 " is drained -> dissolve it", r->id);
        return;
    }
    core_trace(c, LOG_WARN, "%s -> fence replica %" PRIu64 ", move %u request%s", f->why, r->id,
               moved, moved == 1 ? "" : "s");
}

void replica_fence(struct coord *c, struct replica *r, const struct fence *f)
{
    assert(r->state != COORD_REPLICA_VACANT);
    versions_note_fence(c, r, f->kind);
    r->form_fails += f->kind == FENCE_FORM;
    bool doubted = versions_doubt(c, r);
    bool proving = r->state == COORD_REPLICA_PROVING;
    bool served = r->state == COORD_REPLICA_READY || r->state == COORD_REPLICA_DRAINING;
    bool stable = served && c->now_us - r->since_us >= 1000ull * c->cfg.stable_ms;
    trace_fence(c, r, f, r->running.n + r->moving_n);
    c->stats.fences++;
    r->fences++;
    note_fault(c, r, f);
    replica_move(c, r, COORD_REPLICA_VACANT);
    dissolve(c, r, f);
    r->epoch = 0;
    links_clear(r);
    core_disarm(c, &r->timer);
    core_disarm(c, &r->reform_timer);
    r->reforming = false;
    waiters_answer(c, &r->reforms, STATUS_OK, "its requests were moved; it is formed anew");
    core_disarm(c, &r->cancel_timer);
    prober_reset(c, r);
    r->pace = (struct pace){0};
    r->latency = (struct latency){0};
    cache_drop(r);
    r->busy_us = r->slow_since_us = 0;
    transfers_leave_source(c, r);
    move_requests(c, r, f->kind);
    assert(!r->reserved_n && !r->sending_n && !r->backlog);
    assert(!r->running.n && !r->leaving.n && !r->moving_n && !r->suspects && !r->preempting_n);
    r->max_seqs = r->kv_free = r->waiting = 0;
    // One that does not give the right answer is not tried again at once.
    uint64_t pause =
        back_off_us(c, r, proving && f->kind == FENCE_FAULT ? FENCE_FORM : f->kind, stable);
    if (pause && !r->retired)
        core_arm(c, &r->timer, TIMER_REPLICA, c->now_us + pause);
    c->place = true;
    if (served && (f->kind == FENCE_LOST || f->kind == FENCE_FAULT))
        circuit_note_failure(c, r, f->why);
    bool live = f->suspect && f->suspect->conn && f->suspect->mark == MARK_NONE;
    if (live && !doubted && (f->kind == FENCE_LOST || f->kind == FENCE_FAULT))
        quarantine_note_fault(c, f->suspect, f->why);
}

void replica_drain(struct coord *c, struct replica *r)
{
    if (r->state == COORD_REPLICA_READY)
        replica_move(c, r, COORD_REPLICA_DRAINING);
}

void replica_undrain(struct coord *c, struct replica *r)
{
    if (r->state != COORD_REPLICA_DRAINING || r->retired)
        return;
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
        if (r->ranks[i]->state == COORD_NODE_DRAINING)
            return;
    if (r->state == COORD_REPLICA_DRAINING && !r->reforming)
        replica_move(c, r, COORD_REPLICA_READY);
}

void replica_cancel_timer(struct coord *c, struct replica *r)
{
    const struct request *q = r->leaving.head;
    if (!q)
        return;
    uint64_t due = q->leaving_us + 1000ull * c->cfg.cancel_timeout_ms;
    if (due > c->now_us) {
        core_arm(c, &r->cancel_timer, TIMER_CANCEL, due);
        return;
    }
    const char *why =
        arena_printf(&c->arena, "node %s did not answer CANCEL of request %" PRIu64 " in %u ms",
                     r->ranks[0]->name, q->id, c->cfg.cancel_timeout_ms);
    replica_fence(c, r, &(struct fence){FENCE_LOST, r->ranks[0], why});
}

// ---- health ----

void replica_watch(struct coord *c, struct replica *r)
{
    struct health_rank *ranks = arena_alloc(&c->arena, r->pool->ranks_n, sizeof *ranks);
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        const struct member *m = r->ranks[i];
        ranks[i].silent_us = c->now_us - m->heartbeat_us;
        if (m->heartbeat.epoch != r->epoch)
            continue;
        ranks[i].progress = m->heartbeat.progress;
        ranks[i].step_age_ms = m->heartbeat.step_age_ms;
        ranks[i].loop_age_ms = m->heartbeat.loop_age_ms;
    }
    struct health_limits lim = {c->cfg.hang_ms, c->cfg.heartbeat_ms};
    struct health_verdict v = health_judge(&lim, ranks, r->pool->ranks_n);
    if (!v.hung)
        return;
    struct member *m = r->ranks[v.suspect];
    const struct rank_progress *p = &ranks[v.suspect].progress;
    const char *why = arena_printf(
        &c->arena,
        "node %s hangs: %s (stage %u, tensor %u; step %" PRIu64 ", layer %u, collective %u)",
        m->name, v.why, v.suspect / r->pool->set.tensor, v.suspect % r->pool->set.tensor, p->step,
        p->layer, p->collective);
    replica_fence(c, r, &(struct fence){FENCE_LOST, m, why});
}
