// Replicas: which nodes are their ranks, at which epoch, and the fence between two epochs. A
// replica's epoch is a new highest number of the whole cluster each time it is formed; fencing
// makes it 0, so that nothing of the old epoch matches any more.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "coordinator/core.h"
#include "coordinator/health.h"
#include "coordinator/placement.h"

enum { MAX_SEQS = 65536 }; // more from a lead is nonsense
// For so long a node that was blamed is taken only when there is no other.
static const uint64_t FAULT_MEMORY_US = 300000000;

static const struct sm_state replica_states[] = {
    [COORD_REPLICA_VACANT] = {"vacant", SM_TO(COORD_REPLICA_FORMING)},
    [COORD_REPLICA_FORMING] = {"forming", SM_TO(COORD_REPLICA_READY) | SM_TO(COORD_REPLICA_VACANT)},
    [COORD_REPLICA_READY] = {"ready", SM_TO(COORD_REPLICA_DRAINING) | SM_TO(COORD_REPLICA_VACANT)},
    [COORD_REPLICA_DRAINING] = {"draining",
                                SM_TO(COORD_REPLICA_READY) | SM_TO(COORD_REPLICA_VACANT)},
};
const struct sm replica_sm = {"replica", replica_states, COORD_REPLICA_DRAINING + 1};

const char *coord_replica_state_name(enum coord_replica_state s)
{
    return sm_name(&replica_sm, s);
}

static void links_clear(struct coord *c, struct replica *r)
{
    for (uint32_t i = 0; i < c->ranks_n; i++) {
        free(r->links[i].shm);
        free(r->links[i].tcp);
        free(r->links[i].verbs);
        r->links[i] = (struct rank_link){0};
    }
    r->prepared_n = r->formed_n = 0;
}

void replicas_init(struct coord *c)
{
    c->replicas = mem_zalloc(c->cfg.replicas, sizeof *c->replicas);
    for (uint32_t i = 0; i < c->cfg.replicas; i++) {
        struct replica *r = &c->replicas[i];
        r->id = i + 1;
        r->ranks = mem_zalloc(c->ranks_n, sizeof *r->ranks);
        r->links = mem_zalloc(c->ranks_n, sizeof *r->links);
    }
}

void replicas_free(struct coord *c)
{
    for (uint32_t i = 0; i < c->cfg.replicas; i++) {
        struct replica *r = &c->replicas[i];
        core_disarm(c, &r->timer);
        core_disarm(c, &r->cancel_timer);
        links_clear(c, r);
        free(r->links);
        free(r->ranks);
        free(r->fault);
    }
    free(c->replicas);
}

struct replica *replicas_find(const struct coord *c, uint64_t id)
{
    return id >= 1 && id <= c->cfg.replicas ? &c->replicas[id - 1] : NULL;
}

// Only READY replicas are on the ring, and only theirs are the credits to be given.
static void replica_move(struct coord *c, struct replica *r, enum coord_replica_state to)
{
    if (r->state == COORD_REPLICA_READY) {
        ring_remove(&c->ring, r->id);
        c->warm_n--;
        c->credits -= r->max_seqs;
        c->load -= replica_load(r);
    }
    c->draining_n -= r->state == COORD_REPLICA_DRAINING;
    r->state = sm_move(&replica_sm, r->state, to);
    r->since_us = c->now_us;
    c->draining_n += r->state == COORD_REPLICA_DRAINING;
    if (r->state == COORD_REPLICA_READY) {
        ring_add(&c->ring, r->id);
        c->warm_n++;
        c->credits += r->max_seqs;
        c->load += replica_load(r);
        c->credits_known = c->credits;
    }
}

// ---- forming ----

// Usable nodes as candidates; *nodes_out and the members at the same index are of the step's arena.
static size_t candidates(struct coord *c, struct placement_node **nodes_out,
                         struct member ***members_out)
{
    struct placement_node *nodes = arena_alloc(&c->arena, c->free_n, sizeof *nodes);
    struct member **members = arena_alloc(&c->arena, c->free_n, sizeof *members);
    size_t n = 0;
    struct member *m;
    DL_FOREACH(c->members, m)
    {
        if (!member_usable(c, m))
            continue;
        nodes[n] = (struct placement_node){
            .host = m->host_hash,
            .holds = m->holds,
            .held_replica = m->held_replica,
            .stage = m->held_rank / c->cfg.tensor,
            .tensor = m->held_rank % c->cfg.tensor,
            .faults = c->now_us - m->fault_us < FAULT_MEMORY_US ? m->faults : 0,
        };
        members[n++] = m;
    }
    *nodes_out = nodes;
    *members_out = members;
    return n;
}

static void send_forms(struct coord *c, const struct replica *r)
{
    for (uint32_t i = 0; i < c->ranks_n; i++) {
        core_send(c, r->ranks[i]->conn,
                  (struct msg){.kind = MSG_FORM,
                               .form = {
                                   .replica = r->id,
                                   .epoch = r->epoch,
                                   .model_dir = c->model_dir,
                                   .stages = c->cfg.stages,
                                   .tensor = c->cfg.tensor,
                                   .my_stage = i / c->cfg.tensor,
                                   .my_tensor = i % c->cfg.tensor,
                                   .transport = c->cfg.transport,
                               }});
    }
}

static void send_links(struct coord *c, const struct replica *r)
{
    struct link_member *all = arena_alloc(&c->arena, c->ranks_n, sizeof *all);
    for (uint32_t i = 0; i < c->ranks_n; i++) {
        const struct rank_link *l = &r->links[i];
        all[i] = (struct link_member){
            .name = r->ranks[i]->name,
            .host = r->ranks[i]->host,
            .addresses = {.shm = l->shm, .tcp = l->tcp, .verbs = l->verbs},
        };
    }
    for (uint32_t i = 0; i < c->ranks_n; i++)
        core_send(c, r->ranks[i]->conn,
                  (struct msg){.kind = MSG_LINK, .link = {r->id, r->epoch, all, c->ranks_n}});
}

static const char *rank_names(struct coord *c, const struct replica *r)
{
    const char *names = "";
    for (uint32_t i = 0; i < c->ranks_n; i++)
        if (r->ranks[i])
            names = arena_printf(&c->arena, "%s%s%s", names, *names ? ", " : "", r->ranks[i]->name);
    return names;
}

// Ranks that have their weights in memory need no warm-up.
static uint32_t reload_ms(const struct coord *c)
{
    return c->cfg.reload_timeout_ms < c->cfg.warmup_timeout_ms ? c->cfg.reload_timeout_ms
                                                               : c->cfg.warmup_timeout_ms;
}

static bool replica_form(struct coord *c, struct replica *r)
{
    struct placement_node *nodes;
    struct member **members;
    size_t n = candidates(c, &nodes, &members);
    uint32_t *chosen = arena_alloc(&c->arena, c->ranks_n, sizeof *chosen);
    struct placement_want want = {r->id, c->cfg.stages, c->cfg.tensor};
    if (!placement_assign(&want, nodes, n, chosen))
        return false;
    r->epoch = ++c->epoch;
    r->forms++;
    c->stats.forms++;
    replica_move(c, r, COORD_REPLICA_FORMING);
    for (uint32_t i = 0; i < c->ranks_n; i++) {
        struct member *m = members[chosen[i]];
        r->ranks[i] = m;
        m->replica = r;
        m->rank = i;
        member_move(c, m, COORD_NODE_IN_REPLICA);
        member_watch(c, m);
    }
    core_trace(c, LOG_INFO, "form replica %" PRIu64 " of %s", r->id, rank_names(c, r));
    send_forms(c, r);
    core_arm(c, &r->timer, TIMER_REPLICA, c->now_us + 1000ull * reload_ms(c));
    return true;
}

void replicas_place(struct coord *c)
{
    if (!c->place)
        return;
    c->place = false;
    for (uint32_t i = 0; i < c->cfg.replicas && c->free_n >= c->ranks_n; i++) {
        struct replica *r = &c->replicas[i];
        if (r->state == COORD_REPLICA_VACANT && !r->timer.slot && !replica_form(c, r))
            break;
    }
}

static void replica_ready(struct coord *c, struct replica *r)
{
    core_disarm(c, &r->timer);
    replica_move(c, r, COORD_REPLICA_READY);
    c->max_context = r->max_context;
    for (uint32_t i = 0; i < c->ranks_n; i++)
        member_watch(c, r->ranks[i]);
    core_trace(c, LOG_INFO, "replica %" PRIu64 " is ready", r->id);
}

__attribute__((format(printf, 4, 5))) static void
form_failed(struct coord *c, struct replica *r, struct member *suspect, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const char *text = arena_vprintf(&c->arena, fmt, ap);
    va_end(ap);
    c->stats.forms_failed++;
    replica_fence(c, r, &(struct fence){FENCE_FORM, suspect, text});
}

static bool lead_makes_sense(const struct msg_formed *f)
{
    return f->max_seqs >= 1 && f->max_seqs <= MAX_SEQS && f->max_context >= 2 &&
           f->max_context <= LIMIT_CONTEXT;
}

void replica_prepared(struct coord *c, struct member *m, const struct msg_prepared *p)
{
    struct replica *r = m->replica;
    struct rank_link *l = &r->links[m->rank];
    if (r->state != COORD_REPLICA_FORMING || l->phase != RANK_LOADING) {
        c->stats.protocol_errors++;
        return;
    }
    l->phase = RANK_PREPARED;
    l->shm = mem_strdup(p->addresses.shm ? p->addresses.shm : "");
    l->tcp = mem_strdup(p->addresses.tcp ? p->addresses.tcp : "");
    l->verbs = mem_strdup(p->addresses.verbs ? p->addresses.verbs : "");
    if (++r->prepared_n == c->ranks_n)
        send_links(c, r);
}

void replica_formed(struct coord *c, struct member *m, const struct msg_formed *f)
{
    struct replica *r = m->replica;
    struct rank_link *l = &r->links[m->rank];
    if (r->state != COORD_REPLICA_FORMING || l->phase == RANK_FORMED ||
        (f->status == STATUS_OK && r->prepared_n < c->ranks_n)) {
        c->stats.protocol_errors++;
        return;
    }
    if (f->status != STATUS_OK) {
        form_failed(c, r, m, "node %s could not be formed: %s: %.300s", m->name,
                    status_name(f->status), f->text ? f->text : "");
        return;
    }
    if (m->rank == 0 && !lead_makes_sense(f)) {
        form_failed(c, r, m, "node %s offers %u sequences of %u tokens", m->name, f->max_seqs,
                    f->max_context);
        return;
    }
    if (r->formed_n && f->fingerprint != r->fingerprint) {
        form_failed(c, r, NULL,
                    "node %s has another model: its fingerprint is %016" PRIx64
                    ", the other ranks' %016" PRIx64,
                    m->name, f->fingerprint, r->fingerprint);
        return;
    }
    m->holds = true;
    m->held_replica = r->id;
    m->held_rank = m->rank;
    r->fingerprint = f->fingerprint;
    if (m->rank == 0) {
        r->max_seqs = f->max_seqs;
        r->max_context = f->max_context;
        r->kv_blocks = r->kv_free = f->kv_blocks;
        r->block_tokens = f->block_tokens;
    }
    l->phase = RANK_FORMED;
    if (++r->formed_n == c->ranks_n)
        replica_ready(c, r);
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
    if (f->suspect->state != COORD_NODE_LOST) // the loss is noted already
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
    for (uint32_t i = 0; i < c->ranks_n; i++) {
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
    bool stable =
        r->state != COORD_REPLICA_FORMING && c->now_us - r->since_us >= 1000ull * c->cfg.stable_ms;
    trace_fence(c, r, f, r->running.n + r->moving_n);
    c->stats.fences++;
    r->fences++;
    note_fault(c, r, f);
    replica_move(c, r, COORD_REPLICA_VACANT);
    dissolve(c, r, f);
    r->epoch = 0;
    links_clear(c, r);
    core_disarm(c, &r->timer);
    core_disarm(c, &r->cancel_timer);
    move_requests(c, r, f->kind);
    assert(!replica_load(r) && !r->moving_n && !r->suspects);
    r->max_seqs = r->kv_free = r->waiting = 0;
    uint64_t pause = back_off_us(c, r, f->kind, stable);
    if (pause)
        core_arm(c, &r->timer, TIMER_REPLICA, c->now_us + pause);
    c->place = true;
}

void replica_drain(struct coord *c, struct replica *r)
{
    if (r->state == COORD_REPLICA_READY)
        replica_move(c, r, COORD_REPLICA_DRAINING);
}

void replica_undrain(struct coord *c, struct replica *r)
{
    for (uint32_t i = 0; i < c->ranks_n; i++)
        if (r->ranks[i]->state == COORD_NODE_DRAINING)
            return;
    if (r->state == COORD_REPLICA_DRAINING)
        replica_move(c, r, COORD_REPLICA_READY);
}

// The first rank that should be ready by now: after the reload time those that hold their weights,
// after the warm-up time all. NULL: none is late.
static struct member *late_rank(const struct coord *c, const struct replica *r, bool all)
{
    for (uint32_t i = 0; i < c->ranks_n; i++) {
        const struct rank_link *l = &r->links[i];
        bool held = r->ranks[i]->holds && r->ranks[i]->held_rank == i;
        if (all ? l->phase != RANK_FORMED : held && l->phase == RANK_LOADING)
            return r->ranks[i];
    }
    return NULL;
}

void replica_timer(struct coord *c, struct replica *r)
{
    if (r->state == COORD_REPLICA_VACANT) { // the back-off is over
        c->place = true;
        return;
    }
    assert(r->state == COORD_REPLICA_FORMING);
    uint64_t end_us = r->since_us + 1000ull * c->cfg.warmup_timeout_ms;
    struct member *late = late_rank(c, r, c->now_us >= end_us);
    if (!late) {
        core_arm(c, &r->timer, TIMER_REPLICA, end_us);
        return;
    }
    form_failed(c, r, late, "node %s did not get ready within %" PRIu64 " ms", late->name,
                (c->now_us - r->since_us) / 1000);
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
    struct health_rank *ranks = arena_alloc(&c->arena, c->ranks_n, sizeof *ranks);
    for (uint32_t i = 0; i < c->ranks_n; i++) {
        const struct member *m = r->ranks[i];
        ranks[i].silent_us = c->now_us - m->heartbeat_us;
        if (m->heartbeat.epoch != r->epoch)
            continue;
        ranks[i].progress = m->heartbeat.progress;
        ranks[i].step_age_ms = m->heartbeat.step_age_ms;
        ranks[i].loop_age_ms = m->heartbeat.loop_age_ms;
    }
    struct health_limits lim = {c->cfg.hang_ms, c->cfg.heartbeat_ms};
    struct health_verdict v = health_judge(&lim, ranks, c->ranks_n);
    if (!v.hung)
        return;
    struct member *m = r->ranks[v.suspect];
    const struct rank_progress *p = &ranks[v.suspect].progress;
    const char *why = arena_printf(&c->arena,
                                   "node %s hangs: %s (stage %u, tensor %u; step %" PRIu64
                                   ", layer %u, collective %u)",
                                   m->name, v.why, v.suspect / c->cfg.tensor,
                                   v.suspect % c->cfg.tensor, p->step, p->layer, p->collective);
    replica_fence(c, r, &(struct fence){FENCE_LOST, m, why});
}
