// Read-only views of the core for status, metrics and ctl; and coord_check, which asserts that the
// core's books agree with each other.
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "coordinator/core.h"

uint64_t coord_epoch(const struct coord *c)
{
    return c->epoch;
}

void coord_stats(const struct coord *c, struct coord_stats *out)
{
    *out = c->stats;
    const struct member *m;
    DL_FOREACH(c->members, m)
    {
        out->nodes += m->conn != 0;
        out->nodes_usable += m->state == COORD_NODE_FREE || m->state == COORD_NODE_IN_REPLICA;
    }
    out->nodes_wanted = scaling_nodes_wanted(c);
    for (uint32_t i = 0; i < c->replicas_n; i++)
        out->cached_blocks += c->replicas[i]->cache.named;
    for (uint32_t i = 0; i < c->pools_n; i++) {
        const struct pool *p = c->pools[i];
        out->replicas += p->wanted;
        out->replicas_ready += p->ready_n;
        out->credits += p->credits;
        out->credits_free += p->credits > p->load ? p->credits - p->load : 0;
        out->queued_moved += pool_waiting(p) - p->fair.fresh_n;
        out->queued += pool_waiting(p);
        out->queued_tokens += p->fair.fresh_tokens;
        if (p->max_context > out->max_context)
            out->max_context = p->max_context;
    }
    const struct pool *first = c->pools[0];
    if (first->load >= first->credits)
        out->eta_ms = (uint32_t)(notices_wait_us(first, 0, pool_waiting(first) + 1) / 1000);
    out->running = c->live_n - out->queued;
    out->retained = c->retained.n;
    out->transferring = c->transfers_n;
    out->retained_tokens = c->retained_tokens;
    out->closing = c->closing;
}

void coord_each_node(const struct coord *c, bool (*fn)(void *arg, const struct coord_node_view *),
                     void *arg)
{
    const struct member *m;
    DL_FOREACH(c->members, m)
    {
        struct coord_node_view v = {
            .name = m->name,
            .host = m->host,
            .backend = m->backend,
            .incarnation = m->incarnation,
            .conn = m->conn,
            .pid = m->pid,
            .state = m->state,
            .marked = m->mark != MARK_NONE,
            .drain_ordered = m->mark == MARK_DRAIN,
            .eject_ordered = m->mark == MARK_EJECT,
            .quarantine_ms = m->quarantine_timer.slot
                                 ? (uint32_t)((m->quarantine_timer.due_us - c->now_us) / 1000)
                                 : 0,
            .replica = m->replica ? m->replica->id : 0,
            .stage = m->replica ? m->rank / m->replica->pool->set.tensor : 0,
            .tensor = m->replica ? m->rank % m->replica->pool->set.tensor : 0,
            .heartbeat_age_us = c->now_us - m->heartbeat_us,
            .heartbeat = m->heartbeat,
            .gives_weights = m->weights.shm || m->weights.tcp || m->weights.verbs,
            .weights = m->loaded,
            .joins = m->joins,
            .faults = m->faults,
            .fault = m->fault ? m->fault : "",
            .fault_us = m->fault_us,
        };
        if (!fn(arg, &v))
            return;
    }
}

static uint32_t oldest_step_ms(const struct replica *r)
{
    uint32_t oldest = 0;
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        const struct member *m = r->ranks[i];
        if (m && m->heartbeat.epoch == r->epoch && m->heartbeat.step_age_ms > oldest)
            oldest = m->heartbeat.step_age_ms;
    }
    return oldest;
}

static uint64_t lead_steps(const struct replica *r)
{
    return r->ranks[0] ? r->ranks[0]->heartbeat.steps : 0;
}

void coord_each_replica(const struct coord *c,
                        bool (*fn)(void *arg, const struct coord_replica_view *), void *arg)
{
    const char **names = mem_zalloc(LIMIT_RANKS, sizeof *names);
    bool more = true;
    for (uint32_t i = 0; i < c->replicas_n && more; i++) {
        const struct replica *r = c->replicas[i];
        for (uint32_t k = 0; k < r->pool->ranks_n; k++)
            names[k] = r->ranks[k] ? r->ranks[k]->name : NULL;
        struct coord_replica_view v = {
            .id = r->id,
            .retired = r->retired,
            .epoch = r->epoch,
            .pool = r->pool->set.name,
            .model = r->pool->set.model,
            .version = r->pool->set.version,
            .state = r->state,
            .role = r->role,
            .serves = r->serves,
            .state_since_us = r->since_us,
            .stages = r->pool->set.stages,
            .tensor = r->pool->set.tensor,
            .nodes = names,
            .prepared_n = r->prepared_n,
            .formed_n = r->formed_n,
            .running = replica_load(r) - r->reserved_n,
            .reserved = r->reserved_n,
            .cached_blocks = r->cache.named,
            .cache_digest = r->cache.digest,
            .circuit = circuit_state_name(r->circuit.state),
            .slowness = (float)latency_factor(&r->latency, &r->pool->latency, c->now_us),
            .credits = r->state == COORD_REPLICA_READY ? r->max_seqs : 0,
            .max_context = r->max_context,
            .kv_blocks = r->kv_blocks,
            .kv_free = r->kv_free,
            .block_tokens = r->block_tokens,
            .transport = r->state == COORD_REPLICA_READY ? r->transport : TRANSPORT_AUTO,
            .waiting = r->waiting,
            .step_age_ms = oldest_step_ms(r),
            .steps = lead_steps(r),
            .fingerprint = r->fingerprint,
            .forms = r->forms,
            .fences = r->fences,
            .retry_at_us = r->state == COORD_REPLICA_VACANT && r->timer.slot ? r->timer.due_us : 0,
            .fault = r->fault ? r->fault : "",
            .suspect = r->suspect,
            .fault_us = r->fault_us,
        };
        more = fn(arg, &v);
    }
    free(names);
}

void coord_each_tenant(const struct coord *c,
                       bool (*fn)(void *arg, const struct coord_tenant_view *), void *arg)
{
    const struct tenant *t;
    DL_FOREACH(c->tenants.list, t)
    {
        struct coord_tenant_view v = {
            .name = t->name,
            .named = t->named,
            .weight = t->set.weight,
            .tokens_per_s = t->set.tokens_per_s,
            .live = t->live_n,
            .waiting = t->waiting_n,
            .quota_left = tenant_quota_left(t, c->now_us),
            .served = t->served,
            .submitted = t->submitted,
            .refused_quota = t->refused_quota,
            .tokens = t->tokens,
        };
        if (!fn(arg, &v))
            return;
    }
}

static struct coord_request_view request_view(const struct request *q)
{
    return (struct coord_request_view){
        .id = q->id,
        .state = q->state,
        .band = q->band,
        .lane_band = q->lane_band,
        .tenant = q->tenant ? q->tenant->name : "",
        .pool = q->pool->set.name,
        .model = q->pool->set.model,
        .preemptions = q->preemptions,
        .replica = q->replica ? q->replica->id : 0,
        .submitted_us = q->submitted_us,
        .first_token_us = q->first_token_us,
        .last_token_us = q->last_token_us,
        .done_us = q->done_us,
        .deadline_us = q->deadline_us,
        .session = q->session,
        .fingerprint = q->fingerprint,
        .stop_ids = q->stop_ids,
        .stop_ids_n = q->stop_ids_n,
        .sampling = q->sampling,
        .position = q->state == COORD_REQ_QUEUED ? q->position : 0,
        .attached = q->attached,
        .dispatches = q->dispatches,
        .pause_us = q->pause_us,
        .max_tokens = q->max_tokens,
        .cached_n = q->cached_n,
        .finish = q->finish,
        .status = q->status,
        .text = q->text ? q->text : "",
        .prompt = q->prompt,
        .tokens = q->emitted,
        .prompt_n = q->prompt_n,
        .tokens_n = q->emitted_n,
    };
}

void coord_each_request(const struct coord *c,
                        bool (*fn)(void *arg, const struct coord_request_view *), void *arg)
{
    const struct request *q, *next;
    DL_FOREACH_SAFE2(c->requests_by_time, q, next, after)
    {
        struct coord_request_view v = request_view(q);
        if (!fn(arg, &v))
            return;
    }
}

bool coord_request_find(const struct coord *c, uint64_t request, struct coord_request_view *out)
{
    const struct request *q = requests_find(c, request);
    if (!q)
        return false;
    *out = request_view(q);
    return true;
}

// ---- the books ----

static void check_list(const struct request_list *l)
{
    uint32_t n = 0;
    const struct request *q;
    DL_FOREACH(l->head, q)
    {
        assert(q->next || l->head->prev == q);
        n++;
    }
    assert(n == l->n);
}

static void check_lane(const struct coord *c, const struct pool *p, const struct lane *l, int band)
{
    const struct request *q;
    check_list(&l->waiting);
    assert(l->waiting.n && l == &l->tenant->shares[p->index]->lanes[band]);
    DL_FOREACH(l->waiting.head, q)
    {
        assert(q->state == COORD_REQ_QUEUED && q->class == QUEUE_FAIR && q->tenant == l->tenant);
        assert(q->pool == p);
        assert(q->lane_band == band && q->band <= band && q->prompt && !q->replica);
        assert(band == q->band || band <= c->cfg.ageing_band);
        assert(q->preempted == (q->dispatches > 0));
        assert(!q->next || q->order_us <= q->next->order_us);
    }
}

// Returns the number of requests that wait in lanes.
static uint32_t check_fair(const struct coord *c, const struct pool *p)
{
    const struct fair *f = &p->fair;
    uint32_t n = 0;
    for (int b = 0; b < QUEUE_BANDS; b++) {
        uint32_t band_n = 0;
        const struct lane *l;
        DL_FOREACH(f->bands[b], l)
        {
            check_lane(c, p, l, b);
            band_n += l->waiting.n;
        }
        assert(band_n == f->band_n[b]);
        n += band_n;
    }
    // A pool that ceases to take requests gives those that wait to others, whatever waits there.
    assert(n == f->n && f->fresh_n <= n);
    assert(f->fresh_n <= (c->cfg.queue_limit + 1) * c->pools_n);
    uint32_t waiting = 0;
    const struct tenant *t;
    DL_FOREACH(c->tenants.list, t)
    {
        waiting += t->shares[p->index] ? t->shares[p->index]->waiting_n : 0;
    }
    assert(waiting == n);
    return n;
}

static void check_tenants(const struct coord *c)
{
    uint32_t live = 0, waiting = 0, fair = 0;
    const struct tenant *t;
    DL_FOREACH(c->tenants.list, t)
    {
        live += t->live_n;
        waiting += t->waiting_n;
    }
    for (uint32_t i = 0; i < c->pools_n; i++)
        fair += c->pools[i]->fair.n;
    assert(live == c->live_n && waiting == fair);
}

static uint32_t check_queues(const struct coord *c, const struct pool *p)
{
    uint32_t total = 0;
    for (int k = 0; k < QUEUE_PLAIN; k++) {
        uint32_t n = 0;
        uint64_t tokens = 0;
        for (int b = 0; b < QUEUE_BANDS; b++) {
            check_list(&p->queues[k].bands[b]);
            const struct request *q;
            DL_FOREACH(p->queues[k].bands[b].head, q)
            {
                assert(q->state == COORD_REQ_QUEUED && (int)q->class == k && q->band == b);
                assert(!q->replica && q->prompt && q->pool == p);
                assert(q->dispatches > 0);
                tokens += q->prompt_n;
                n++;
            }
        }
        assert(n == p->queues[k].n && tokens == p->queues[k].tokens);
        total += n;
    }
    return total + check_fair(c, p);
}

static void check_places(const struct replica *r)
{
    const struct pool *p = r->pool;
    uint32_t moving = 0, suspects = 0, soft = 0, preempting = 0;
    uint64_t backlog = 0;
    const struct request *q;
    check_list(&r->running);
    check_list(&r->leaving);
    DL_FOREACH(r->running.head, q)
    {
        assert(q->state == COORD_REQ_RUNNING && q->replica == r && q->prompt && q->pool == p);
        assert(q->emitted_n < q->max_tokens);
        suspects += q->suspect;
        backlog += q->backlog;
        assert(!q->preempted);
    }
    for (int b = 0; b < QUEUE_BANDS; b++)
        soft += r->soft_n[b];
    assert(soft <= r->running.n);
    DL_FOREACH(r->leaving.head, q)
    {
        assert(q->state == COORD_REQ_MOVING || q->state == COORD_REQ_CLOSING);
        assert(q->replica == r && q->pool == p);
        moving += q->state == COORD_REQ_MOVING;
        preempting += q->preempted;
        backlog += q->backlog;
        suspects += q->suspect;
    }
    assert(backlog == r->backlog);
    assert(moving == r->moving_n && suspects == r->suspects && preempting == r->preempting_n);
    assert(preempting <= r->max_seqs); // the lead takes twice max_seqs
    assert(!r->leaving.n || r->cancel_timer.slot);
    assert(!r->reforming || (r->state == COORD_REPLICA_DRAINING && r->reform_timer.slot));
    assert(r->reforming || !r->reforms);
    assert(replica_load(r) <= r->max_seqs); // credits
}

static void check_ranks(const struct coord *c, const struct replica *r)
{
    uint32_t formed = 0, prepared = 0;
    for (uint32_t i = 0; i < r->pool->ranks_n; i++) {
        const struct member *m = r->ranks[i];
        assert((m == NULL) == (r->state == COORD_REPLICA_VACANT));
        assert(!m || (m->replica == r && m->rank == i && m->conn));
        formed += r->links[i].phase == RANK_FORMED;
        prepared += r->links[i].phase != RANK_LOADING;
    }
    assert(formed == r->formed_n && prepared == r->prepared_n);
    assert((r->epoch == 0) == (r->state == COORD_REPLICA_VACANT) && r->epoch <= c->epoch);
}

struct books { // of a pool's replicas, as counted
    uint32_t all, formed, ready, others, open, retrying, prefill, warm, credits, load, moving,
        draining, soft;
};

// Returns the number of placed requests that the client still waits for.
static void check_cache(const struct replica *r)
{
    const struct cache *k = &r->cache;
    uint32_t named = 0;
    assert(r->state != COORD_REPLICA_VACANT || (!k->names && !k->blocks));
    for (uint32_t i = 0; k->names && i < k->blocks; i++) {
        named += k->names[i] != 0;
    }
    assert(named == k->named);
}

static uint32_t check_replica(const struct coord *c, const struct replica *r, struct books *k)
{
    check_cache(r);
    check_ranks(c, r);
    check_places(r);
    bool ready = r->state == COORD_REPLICA_READY;
    bool serving = ready || r->state == COORD_REPLICA_DRAINING;
    assert(serving || (!r->running.n && !r->leaving.n));
    bool formed = serving || r->state == COORD_REPLICA_PROVING;
    assert(!formed || r->formed_n == r->pool->ranks_n);
    assert(!r->probe.request || (formed && r->probe.timer.slot));
    assert(!prober_on(r) || !ready || r->probe.timer.slot);
    k->all++;
    k->formed += r->state != COORD_REPLICA_VACANT;
    k->ready += ready;
    bool open = r->circuit.state == CIRCUIT_OPEN;
    assert(open == (r->circuit_timer.slot != 0));
    k->open += open;
    k->others += ready && r->role != COORD_ROLE_PREFILL && !open;
    for (const struct request *q = r->running.head; q; q = q->next)
        k->retrying += q->retrying;
    for (const struct request *q = r->leaving.head; q; q = q->next)
        k->retrying += q->retrying;
    k->prefill += r->role == COORD_ROLE_PREFILL;
    k->warm += r->serves;
    k->credits += r->serves ? r->max_seqs : 0;
    k->load += r->serves ? replica_load(r) : 0;
    k->draining += r->state == COORD_REPLICA_DRAINING;
    k->moving += r->moving_n;
    for (int b = 0; b < QUEUE_BANDS; b++)
        k->soft += r->serves ? r->soft_n[b] : 0;
    return r->running.n + r->moving_n;
}

static uint32_t check_replicas(const struct coord *c, const struct pool *p)
{
    uint32_t live = 0, soft = 0, wanted = 0;
    struct books k = {0};
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        assert(c->replicas[i]->id == i + 1);
        if (c->replicas[i]->pool == p)
            wanted += !c->replicas[i]->retired;
        if (c->replicas[i]->pool == p)
            live += check_replica(c, c->replicas[i], &k);
    }
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct replica *r = c->replicas[i];
        bool ready = r->state == COORD_REPLICA_READY;
        assert(r->pool != p || r->serves == (ready && ((r->role != COORD_ROLE_PREFILL &&
                                                        r->circuit.state != CIRCUIT_OPEN) ||
                                                       !k.others)));
    }
    assert(wanted == p->wanted && (!p->lender || p->wanted));
    assert(k.open == p->open_n && k.retrying == p->retrying_n);
    assert(k.ready == p->ready_n && k.prefill == p->prefill_n);
    assert(k.warm == p->warm_n && k.credits == p->credits && k.load == p->load);
    assert(k.moving == p->moving_n && k.draining == p->draining_n);
    assert(k.all == p->replicas_n && k.formed == p->formed_n);
    for (int b = 0; b < QUEUE_BANDS; b++)
        soft += p->soft_n[b];
    assert(soft == k.soft);
    assert(p->ring.n == (size_t)k.warm * RING_POINTS);
    return live;
}

static void check_members(const struct coord *c)
{
    uint32_t n = 0, free_n = 0;
    const struct member *m;
    DL_FOREACH(c->members, m)
    {
        n++;
        free_n += m->state == COORD_NODE_FREE;
        bool ranked = m->state == COORD_NODE_IN_REPLICA || m->state == COORD_NODE_DRAINING;
        assert(ranked == (m->replica != NULL));
        assert(!m->replica || m->replica->ranks[m->rank] == m);
        assert((m->conn == 0) == (m->state == COORD_NODE_LOST));
        assert(!m->drains || m->state == COORD_NODE_DRAINING);
        assert(m->timer.slot || (m->state == COORD_NODE_LOST && m->mark != MARK_NONE));
        assert(m->state != COORD_NODE_DRAINED || m->mark == MARK_DRAIN);
        assert(m->state != COORD_NODE_EJECTED || m->mark == MARK_EJECT ||
               m->mark == MARK_QUARANTINE);
        assert((m->mark == MARK_QUARANTINE) == (m->quarantine_timer.slot != 0));
        assert(m->state != COORD_NODE_FREE || m->mark == MARK_NONE);
    }
    assert(n == c->members_n && n == HASH_COUNT(c->members_by_name) && free_n == c->free_n);
    assert(n <= LIMIT_NODES);
}

void coord_check(const struct coord *c)
{
    check_members(c);
    transfers_check(c);
    check_tenants(c);
    uint32_t queued = 0, placed = 0, draining = 0;
    for (uint32_t i = 0; i < c->pools_n; i++) {
        const struct pool *p = c->pools[i];
        queued += check_queues(c, p);
        placed += check_replicas(c, p);
        draining += p->draining_n;
        // A free credit and a waiting request do not meet only when the request is a suspect.
        // A request that a replica refused may have to wait for another one.
        const struct request *q = queue_head(&p->queues[QUEUE_MOVED]);
        assert(!(p->fair.n || (q && !q->avoid && retry_may_go(c, p))) || p->load >= p->credits);
    }
    const struct shift *s = &c->shift;
    assert(s->state == ROLLOUT_IDLE ||
           (s->from != s->to && s->from->wanted + s->to->wanted == s->replicas));
    assert(s->state == ROLLOUT_IDLE || c->shift_timer.slot);
    assert(queued + placed == c->live_n && draining == c->draining_n);
    uint64_t tokens = 0;
    const struct request *q;
    check_list(&c->retained);
    DL_FOREACH(c->retained.head, q)
    {
        assert(q->state == COORD_REQ_DONE && q->life.slot && !q->replica && q->finish);
        tokens += q->emitted_n;
    }
    assert(tokens == c->retained_tokens && c->retained.n <= c->cfg.retain_limit);
    // Every request is in one of those lists: closing ones are the rest.
    uint32_t closing = 0;
    for (uint32_t i = 0; i < c->replicas_n; i++)
        closing += c->replicas[i]->leaving.n - c->replicas[i]->moving_n;
    assert(c->requests.n == c->live_n + closing + c->retained.n);
}
