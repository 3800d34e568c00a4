// Forming a replica: which nodes become its ranks, and the two rounds until all of them are ready
// (proto/msg.h). What breaks on the way is handed to the fence in replicas.c.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <utlist.h>

#include "coordinator/core.h"
#include "coordinator/placement.h"

enum { MAX_SEQS = 65536 }; // more from a lead is nonsense
// For so long a node that was blamed is taken only when there is no other.
static const uint64_t EPOCH_LEAP = 1ull << 32;
static const uint64_t FAULT_MEMORY_US = 300000000;

// Usable nodes as candidates; *nodes_out and the members at the same index are of the step's arena.
static size_t candidates(struct coord *c, const struct pool *p, struct placement_node **nodes_out,
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
        const struct replica *held = m->holds ? replicas_find(c, m->held_replica) : NULL;
        nodes[n] = (struct placement_node){
            .host = m->host_hash,
            .holds = held && held->pool == p,
            .held_replica = m->held_replica,
            .stage = m->held_rank / p->set.tensor,
            .tensor = m->held_rank % p->set.tensor,
            .faults = (c->now_us - m->fault_us < FAULT_MEMORY_US ? m->faults : 0) + (m->doubt != 0),
        };
        members[n++] = m;
    }
    *nodes_out = nodes;
    *members_out = members;
    return n;
}

static void send_forms(struct coord *c, const struct replica *r)
{
    const struct sources sources = sources_find(c, r->pool);
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        struct msg m = {.kind = MSG_FORM,
                        .form = {
                            .replica = r->id,
                            .epoch = r->epoch,
                            .model_dir = r->pool->set.model_dir,
                            .stages = r->pool->set.stages,
                            .tensor = r->pool->set.tensor,
                            .my_stage = i / r->pool->set.tensor,
                            .my_tensor = i % r->pool->set.tensor,
                            .transport = c->cfg.transport,
                        }};
        sources_offer(c, &sources, r->ranks[i], r->id * r->pool->ranks_n + i, &m.form);
        core_send(c, r->ranks[i]->conn, m);
    }
}

static void send_links(struct coord *c, const struct replica *r)
{
    struct link_member *all = arena_alloc(&c->arena, r->pool->ranks_n, sizeof *all);
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        const struct rank_link *l = &r->links[i];
        all[i] = (struct link_member){
            .name = r->ranks[i]->name,
            .host = r->ranks[i]->host,
            .addresses = {.shm = l->shm, .tcp = l->tcp, .verbs = l->verbs},
        };
    }
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
        core_send(c, r->ranks[i]->conn,
                  (struct msg){.kind = MSG_LINK, .link = {r->id, r->epoch, all, r->pool->ranks_n}});
}

const char *replica_names(struct coord *c, const struct replica *r)
{
    const char *names = "";
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
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
    size_t n = candidates(c, r->pool, &nodes, &members);
    uint32_t *chosen = arena_alloc(&c->arena, r->pool->ranks_n, sizeof *chosen);
    struct placement_want want = {r->id, r->pool->set.stages, r->pool->set.tensor};
    if (!placement_assign(&want, nodes, n, chosen))
        return false;
    r->epoch = ++c->epoch;
    r->forms++;
    c->stats.forms++;
    replica_move(c, r, COORD_REPLICA_FORMING);
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        struct member *m = members[chosen[i]];
        r->ranks[i] = m;
        m->replica = r;
        m->rank = i;
        member_move(c, m, COORD_NODE_IN_REPLICA);
        member_watch(c, m);
    }
    core_trace(c, LOG_INFO, "form replica %" PRIu64 " of %s", r->id, replica_names(c, r));
    send_forms(c, r);
    core_arm(c, &r->timer, TIMER_REPLICA, c->now_us + 1000ull * reload_ms(c));
    return true;
}

// Pools are filled evenly: next is the one that has the smallest part of what it wants. Replicas
// whose pause is not over, or that could not be formed just now, wait.
static struct replica *next_to_form(const struct coord *c)
{
    struct replica *best = NULL;
    const struct pool *first = versions_first(c);
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        struct replica *r = c->replicas[i];
        const struct pool *p = r->pool, *b = best ? best->pool : NULL;
        if (r->state != COORD_REPLICA_VACANT || r->retired || r->timer.slot ||
            c->free_n < p->ranks_n)
            continue;
        if (p == first)
            return r;
        if (!b || (p != b &&
                   (uint64_t)p->formed_n * b->wanted < (uint64_t)b->formed_n * p->wanted))
            best = r;
    }
    return best;
}

void replicas_place(struct coord *c)
{
    if (!c->place)
        return;
    c->place = false;
    struct replica *r;
    while ((r = next_to_form(c)) && replica_form(c, r))
        ;
}

void replica_ready(struct coord *c, struct replica *r)
{
    core_disarm(c, &r->timer);
    r->form_fails = 0;
    quarantine_trial(c, r);
    replica_move(c, r, COORD_REPLICA_READY);
    circuit_ready(c, r);
    r->pool->max_context = r->max_context;
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
        member_watch(c, r->ranks[i]);
    core_trace(c, LOG_INFO, "replica %" PRIu64 " is ready", r->id);
    prober_watch(c, r);
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

// A replica that serves another model than r: requests may be moved between the replicas of a pool,
// so all of it that serve must agree. NULL: none.
static const struct replica *serves_another(const struct coord *c, const struct replica *r)
{
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct replica *o = c->replicas[i];
        bool serves = o->state == COORD_REPLICA_READY || o->state == COORD_REPLICA_DRAINING;
        if (o->pool == r->pool && serves && o->fingerprint != r->fingerprint)
            return o;
    }
    return NULL;
}

// All ranks are ready and hold one model.
static void replica_complete(struct coord *c, struct replica *r)
{
    const struct replica *o = serves_another(c, r);
    if (!o) {
        core_disarm(c, &r->timer);
        c->state_changed = c->state_changed || r->pool->fingerprint != r->fingerprint;
        r->pool->fingerprint = r->fingerprint;
        prober_prove(c, r);
        return;
    }
    form_failed(c, r, NULL,
                "replica %" PRIu64 " has another model than replica %" PRIu64
                ", which serves: its fingerprint is %016" PRIx64 ", not %016" PRIx64,
                r->id, o->id, r->fingerprint, o->fingerprint);
}

static bool lead_makes_sense(const struct msg_formed *f)
{
    return f->max_seqs >= 1 && f->max_seqs <= MAX_SEQS && f->max_context >= 2 &&
           f->max_context <= LIMIT_CONTEXT;
}

static char *copy_address(const char *a)
{
    return mem_strdup(a ? a : "");
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
    l->shm = copy_address(p->addresses.shm);
    l->tcp = copy_address(p->addresses.tcp);
    l->verbs = copy_address(p->addresses.verbs);
    l->mover_shm = copy_address(p->mover.shm);
    l->mover_tcp = copy_address(p->mover.tcp);
    l->mover_verbs = copy_address(p->mover.verbs);
    l->has_mover = *l->mover_shm || *l->mover_tcp || *l->mover_verbs;
    if (++r->prepared_n == r->pool->ranks_n)
        send_links(c, r);
}

void replica_formed(struct coord *c, struct member *m, const struct msg_formed *f)
{
    struct replica *r = m->replica;
    struct rank_link *l = &r->links[m->rank];
    if (r->state != COORD_REPLICA_FORMING || l->phase == RANK_FORMED ||
        (f->status == STATUS_OK && r->prepared_n < r->pool->ranks_n)) {
        c->stats.protocol_errors++;
        return;
    }
    // The node served a coordinator whose clock was ahead of ours: skip what it may have used.
    if (f->status == STATUS_STALE_EPOCH && c->epoch < UINT64_MAX / 2)
        c->epoch += EPOCH_LEAP;
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
    sources_note(m, f);
    r->fingerprint = f->fingerprint;
    if (m->rank == 0) {
        r->max_seqs = f->max_seqs;
        r->max_context = f->max_context;
        r->kv_blocks = r->kv_free = f->kv_blocks;
        r->block_tokens = f->block_tokens;
        r->transport = f->transport;
        cache_begin(c, r);
    }
    l->phase = RANK_FORMED;
    if (++r->formed_n == r->pool->ranks_n)
        replica_complete(c, r);
}

static bool holds_rank(const struct coord *c, const struct member *m, const struct replica *r,
                       uint32_t rank)
{
    const struct replica *held = m->holds ? replicas_find(c, m->held_replica) : NULL;
    return held && held->pool == r->pool && m->held_rank == rank;
}

// The first rank that should be ready by now: after the reload time those that hold their weights,
// after the warm-up time all. NULL: none is late.
static struct member *late_rank(const struct coord *c, const struct replica *r, bool all)
{
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        const struct rank_link *l = &r->links[i];
        bool held = holds_rank(c, r->ranks[i], r, i);
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
    if (r->state == COORD_REPLICA_READY || r->state == COORD_REPLICA_DRAINING) {
        quarantine_trial_over(c, r);
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
