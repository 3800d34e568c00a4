// Transfers: their table of states, the messages, the lease. Which request is moved where, and when,
// is decided in handover.c.
#include "coordinator/transfer.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "coordinator/core.h"

#define OVER (SM_TO(COORD_TRANSFER_ENDED))
static const struct sm_state transfer_states[] = {
    [COORD_TRANSFER_OFFERED] = {"offered", OVER | SM_TO(COORD_TRANSFER_SENDING) |
                                               SM_TO(COORD_TRANSFER_LANDED)},
    [COORD_TRANSFER_SENDING] = {"sending", OVER | SM_TO(COORD_TRANSFER_LANDED)},
    [COORD_TRANSFER_LANDED] = {"landed", OVER},
    [COORD_TRANSFER_ENDED] = {"ended", 0},
};
const struct sm transfer_sm = {"transfer", transfer_states, COORD_TRANSFER_ENDED + 1};

enum { ID_BITS = 20 }; // transfers of one epoch's worth of time

const char *coord_transfer_state_name(enum coord_transfer_state s)
{
    return sm_name(&transfer_sm, s);
}

const char *coord_transfer_end_name(enum coord_transfer_end e)
{
    static const char *const names[] = {
        [COORD_TRANSFER_MOVED] = "moved",           [COORD_TRANSFER_REFUSED] = "refused",
        [COORD_TRANSFER_SOURCE] = "source_failed",  [COORD_TRANSFER_TARGET] = "target_failed",
        [COORD_TRANSFER_LEASE] = "lease_over",      [COORD_TRANSFER_REPLICA] = "replica_gone",
        [COORD_TRANSFER_REQUEST] = "request_gone",
    };
    return e < COORD_TRANSFER_ENDS ? names[e] : "unknown";
}

// ---- what is said to the two leads ----

static bool has_movers(const struct replica *r)
{
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
        if (!r->links[i].has_mover)
            return false;
    return true;
}

static struct kv_peer peer_of(const struct replica *r)
{
    return (struct kv_peer){
        .replica = r->id,
        .epoch = r->epoch,
        .stages = r->pool->set.stages,
        .tensor = r->pool->set.tensor,
        .fingerprint = r->fingerprint,
        .block_tokens = r->block_tokens,
    };
}

// With the addresses of its ranks' movers, in the step's arena.
static struct kv_peer reachable_peer_of(struct coord *c, const struct replica *r)
{
    struct kv_peer peer = peer_of(r);
    struct link_member *all = arena_alloc(&c->arena, r->pool->ranks_n, sizeof *all);
    for (uint32_t i = 0; i < r->pool->ranks_n; i++)
        all[i] = (struct link_member){
            .name = r->ranks[i]->name,
            .host = r->ranks[i]->host,
            .addresses = {.shm = r->links[i].mover_shm,
                          .tcp = r->links[i].mover_tcp,
                          .verbs = r->links[i].mover_verbs},
        };
    peer.members = all;
    peer.members_n = r->pool->ranks_n;
    return peer;
}

// The first tokens_n of prompt and answer.
static const int32_t *chain_of(struct coord *c, const struct request *q, uint32_t tokens_n)
{
    uint32_t head = tokens_n < q->prompt_n ? tokens_n : q->prompt_n;
    int32_t *chain = arena_alloc(&c->arena, tokens_n, sizeof *chain);
    memcpy(chain, q->prompt, head * sizeof *chain);
    if (tokens_n > head)
        memcpy(chain + head, q->emitted, (tokens_n - head) * sizeof *chain);
    return chain;
}

static uint32_t lease_left_ms(const struct coord *c, const struct transfer *t)
{
    uint64_t left = t->timer.due_us > c->now_us ? (t->timer.due_us - c->now_us) / 1000 : 0;
    return left > 0 ? (uint32_t)left : 1;
}

static void send_receive(struct coord *c, const struct transfer *t)
{
    core_send(c, t->target->ranks[0]->conn,
              (struct msg){.kind = MSG_KV_RECEIVE,
                           .kv_receive = {
                               .replica = t->target->id,
                               .epoch = t->target->epoch,
                               .transfer = t->id,
                               .tokens = chain_of(c, t->q, t->tokens_n),
                               .tokens_n = t->tokens_n,
                               .lease_ms = lease_left_ms(c, t),
                               .source = peer_of(t->source),
                           }});
}

static void send_send(struct coord *c, const struct transfer *t)
{
    core_send(c, t->source->ranks[0]->conn,
              (struct msg){.kind = MSG_KV_SEND,
                           .kv_send = {
                               .replica = t->source->id,
                               .epoch = t->source->epoch,
                               .transfer = t->id,
                               .request = t->q->id,
                               .tokens = chain_of(c, t->q, t->tokens_n),
                               .tokens_n = t->tokens_n,
                               .first_block = t->have,
                               .lease_ms = lease_left_ms(c, t),
                               .target = reachable_peer_of(c, t->target),
                           }});
}

// A fenced replica is told nothing: its nodes drop what is of an older epoch.
static void send_cancel(struct coord *c, const struct replica *r, uint64_t epoch, uint64_t id)
{
    if (r->epoch != epoch || !r->ranks[0] || !r->ranks[0]->conn)
        return;
    core_send(c, r->ranks[0]->conn,
              (struct msg){.kind = MSG_KV_CANCEL, .kv_cancel = {r->id, r->epoch, id}});
}

// ---- begin and end ----

bool transfer_worthwhile(const struct coord *c, const struct request *q,
                         const struct replica *source)
{
    uint32_t tokens = q->prompt_n + q->emitted_n;
    return c->cfg.kv_move && source->block_tokens > 0 && tokens > source->block_tokens &&
           tokens >= c->cfg.kv_min_tokens && q->strikes_fault < 2 && has_movers(source);
}

bool transfer_fits(const struct coord *c, const struct request *q, const struct replica *source,
                   const struct replica *target)
{
    return source != target && target->serves && source->pool == target->pool &&
           source->fingerprint == target->fingerprint &&
           source->block_tokens == target->block_tokens && has_movers(target) &&
           transfer_worthwhile(c, q, source);
}

static void enter(struct transfer *t, enum coord_transfer_state to)
{
    t->state = sm_move(&transfer_sm, t->state, to);
}

// Enough for a prompt that is still to be computed, four times over.
static uint64_t lease_us(const struct coord *c, const struct transfer *t)
{
    static const uint64_t longest_us = 600000000;
    uint64_t us = 1000ull * c->cfg.kv_lease_ms;
    if (!t->computed)
        us += 4 * kvrate_compute_us(&t->source->pool->kvrate, t->tokens_n);
    return us < longest_us ? us : longest_us;
}

void transfer_begin(struct coord *c, struct request *q, struct replica *target)
{
    assert(q->state == COORD_REQ_RUNNING && !q->transfer);
    assert(transfer_fits(c, q, q->replica, target) && replica_load(target) < target->max_seqs);
    struct transfer *t = mem_zalloc(1, sizeof *t);
    t->id = (c->cfg.first_epoch << ID_BITS) + ++c->transfers_begun;
    t->q = q;
    q->transfer = t;
    t->source = q->replica;
    t->target = target;
    t->source_epoch = t->source->epoch;
    t->target_epoch = target->epoch;
    t->begun_us = c->now_us;
    t->computed = q->emitted_n > q->dispatch_index;
    // The last token of the history is never read from the cache: a row is left to sample from.
    uint32_t tokens = q->prompt_n + q->emitted_n - 1;
    t->tokens_n = tokens - tokens % target->block_tokens;
    target->reserved_n++;
    target->pool->load++; // target serves
    t->source->sending_n++;
    DL_APPEND(c->transfers, t);
    c->transfers_n++;
    core_arm(c, &t->timer, TIMER_TRANSFER, c->now_us + lease_us(c, t));
    core_trace(c, LOG_DEBUG,
               "transfer %" PRIu64 ": KV of request %" PRIu64 ", %u tokens, replica %" PRIu64
               " -> %" PRIu64,
               t->id, q->id, t->tokens_n, t->source->id, target->id);
    send_receive(c, t);
}

// What both hold, they hold no longer. A target holds what has landed until a request uses it.
static void tell_ended(struct coord *c, const struct transfer *t, enum coord_transfer_end why)
{
    if (why == COORD_TRANSFER_MOVED)
        return;
    send_cancel(c, t->target, t->target_epoch, t->id);
    if (t->state == COORD_TRANSFER_SENDING)
        send_cancel(c, t->source, t->source_epoch, t->id);
}

void transfer_end(struct coord *c, struct transfer *t, enum coord_transfer_end why)
{
    if (!t)
        return;
    struct request *q = t->q;
    bool moved = why == COORD_TRANSFER_MOVED;
    c->stats.transfers[why]++;
    core_trace(c, moved || why == COORD_TRANSFER_REQUEST ? LOG_DEBUG : LOG_INFO,
               "transfer %" PRIu64 " of request %" PRIu64 ", replica %" PRIu64 " -> %" PRIu64
               ": %s",
               t->id, q->id, t->source->id, t->target->id, coord_transfer_end_name(why));
    tell_ended(c, t, why);
    t->source->pool->landed_n -= t->state == COORD_TRANSFER_LANDED;
    enter(t, COORD_TRANSFER_ENDED);
    t->target->reserved_n--;
    t->target->pool->load -= t->target->serves;
    t->source->sending_n--;
    core_disarm(c, &t->timer);
    q->transfer = NULL;
    // Where it was going, there may be some of it: it goes there when its replica breaks.
    q->prefer = t->target->serves ? t->target->id : 0;
    if (!moved && why != COORD_TRANSFER_REQUEST) {
        q->kv_tries++;
        q->kv_after_us = c->now_us + 1000ull * c->cfg.kv_retry_ms;
    }
    DL_DELETE(c->transfers, t);
    c->transfers_n--;
    free(t);
}

struct replica *transfer_landed(struct coord *c, struct request *q)
{
    struct transfer *t = q->transfer;
    if (!t)
        return NULL;
    assert(t->state == COORD_TRANSFER_LANDED);
    struct replica *to = t->target;
    transfer_end(c, t, COORD_TRANSFER_MOVED);
    return to;
}

void transfers_leave_target(struct coord *c, struct replica *r)
{
    struct transfer *t, *next;
    DL_FOREACH_SAFE(c->transfers, t, next)
    {
        if (t->target == r)
            transfer_end(c, t, COORD_TRANSFER_REPLICA);
    }
}

void transfers_leave_source(struct coord *c, struct replica *r)
{
    struct transfer *t, *next;
    DL_FOREACH_SAFE(c->transfers, t, next)
    {
        if (t->source == r)
            transfer_end(c, t, COORD_TRANSFER_REPLICA);
    }
}

// ---- what the two leads say ----

// NULL when it is over, or when r is not the side that it says it is.
static struct transfer *find(struct coord *c, const struct replica *r, uint64_t id, bool target)
{
    struct transfer *t;
    DL_FOREACH(c->transfers, t)
    {
        if (t->id == id && (target ? t->target : t->source) == r)
            return t;
    }
    c->stats.stale_dropped++;
    return NULL;
}

void transfer_on_ready(struct coord *c, struct replica *r, const struct msg_kv_ready *m)
{
    struct transfer *t = find(c, r, m->transfer, true);
    if (!t)
        return;
    if (t->state != COORD_TRANSFER_OFFERED) {
        c->stats.duplicate_dropped++;
        return;
    }
    t->blocks = m->blocks;
    t->have = m->have;
    t->sent_us = c->now_us;
    enter(t, COORD_TRANSFER_SENDING);
    send_send(c, t);
}

static void land(struct coord *c, struct transfer *t, const struct msg_kv_done *m)
{
    uint32_t tokens = m->tokens_n < t->tokens_n ? m->tokens_n : t->tokens_n;
    uint64_t us = t->sent_us ? c->now_us - t->sent_us : 0;
    if (t->computed && t->sent_us)
        kvrate_moved(&t->source->pool->kvrate, tokens, us);
    c->stats.kv_tokens += tokens;
    c->stats.kv_bytes += m->bytes;
    c->stats.kv_us += us;
    enter(t, COORD_TRANSFER_LANDED);
    t->source->pool->landed_n++;
    core_disarm(c, &t->timer); // CANCEL has a timer of its own
    core_trace(c, LOG_DEBUG,
               "transfer %" PRIu64 " landed: %u tokens, %" PRIu64 " bytes, %" PRIu64 " ms", t->id,
               tokens, m->bytes, us / 1000);
    request_leave(c, t->q, COORD_REQ_MOVING);
}

void transfer_on_done(struct coord *c, struct replica *r, const struct msg_kv_done *m)
{
    bool target = m->role == KV_ROLE_TARGET;
    struct transfer *t = find(c, r, m->transfer, target);
    if (!t)
        return;
    if (t->state == COORD_TRANSFER_LANDED) { // of the source, late; or a target's second
        c->stats.duplicate_dropped += target;
        return;
    }
    if (m->status < 0 || (m->status > 0 && !target)) {
        core_trace(c, LOG_INFO, "transfer %" PRIu64 ": node %s: %s: %.200s", t->id,
                   r->ranks[0]->name, status_name(m->status), m->text ? m->text : "");
        transfer_end(c, t, target ? COORD_TRANSFER_TARGET : COORD_TRANSFER_SOURCE);
    } else if (m->status > 0) {
        transfer_end(c, t, COORD_TRANSFER_REFUSED);
    } else if (target) {
        land(c, t, m);
    } // the source is done: the target says when all of it is there
}

void transfer_timer(struct coord *c, struct transfer *t)
{
    transfer_end(c, t, COORD_TRANSFER_LEASE);
}

// ---- views ----

void coord_each_transfer(const struct coord *c,
                         bool (*fn)(void *arg, const struct coord_transfer_view *), void *arg)
{
    const struct transfer *t;
    DL_FOREACH(c->transfers, t)
    {
        struct coord_transfer_view v = {
            .id = t->id,
            .request = t->q->id,
            .state = t->state,
            .source = t->source->id,
            .target = t->target->id,
            .tokens_n = t->tokens_n,
            .blocks = t->blocks,
            .have = t->have,
            .begun_us = t->begun_us,
            .lease_ms = t->timer.slot ? lease_left_ms(c, t) : 0,
        };
        if (!fn(arg, &v))
            return;
    }
}

void transfers_free(struct coord *c)
{
    struct transfer *t, *next;
    DL_FOREACH_SAFE(c->transfers, t, next)
    {
        core_disarm(c, &t->timer);
        DL_DELETE(c->transfers, t);
        free(t);
    }
}

void transfers_check(const struct coord *c)
{
    uint32_t n = 0, landed = 0, reserved = 0, sending = 0;
    uint64_t ended = 0;
    const struct transfer *t;
    DL_FOREACH(c->transfers, t)
    {
        n++;
        landed += t->state == COORD_TRANSFER_LANDED;
        assert(t->q->transfer == t && t->q->replica == t->source && t->source != t->target);
        assert(t->source->epoch == t->source_epoch && t->target->epoch == t->target_epoch);
        assert(t->target->serves && t->tokens_n % t->target->block_tokens == 0);
        assert(t->q->state == (t->state == COORD_TRANSFER_LANDED ? COORD_REQ_MOVING
                                                                 : COORD_REQ_RUNNING));
        assert((t->timer.slot != 0) == (t->state != COORD_TRANSFER_LANDED));
        assert(!t->timer.slot || t->timer.due_us > c->now_us); // no lease outlives its deadline
    }
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        reserved += c->replicas[i]->reserved_n;
        sending += c->replicas[i]->sending_n;
    }
    for (int i = 0; i < COORD_TRANSFER_ENDS; i++)
        ended += c->stats.transfers[i];
    assert(ended + n == c->transfers_begun); // each ends once
    for (uint32_t i = 0; i < c->pools_n; i++)
        landed -= c->pools[i]->landed_n;
    assert(n == c->transfers_n && landed == 0 && reserved == n && sending == n);
}
