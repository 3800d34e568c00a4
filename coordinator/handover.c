// Requests that run, and shall go on elsewhere: those of a replica that drains, or that computes
// long prompts for others. Two ways: by KV (transfer.h), while the source computes on, or plainly,
// by CANCEL and a DISPATCH of the journal, whose tokens are computed again. Also the choice of the
// replica that computes a long prompt for the one that shall stream its answer.
#include <inttypes.h>

#include "coordinator/core.h"

enum {
    TRIES = 2,   // of moving by KV, since the last dispatch
    AT_ONCE = 4, // transfers from a replica: the first ones arrive sooner than when all go together
};

// Free credits elsewhere that nobody else has a claim on yet.
static uint32_t spare_credits(const struct pool *p)
{
    uint32_t free_n = p->credits - (p->load < p->credits ? p->load : p->credits);
    uint32_t claimed = p->moving_n - p->landed_n + p->queues[QUEUE_SUSPECT].n +
                       p->queues[QUEUE_MOVED].n;
    return free_n > claimed ? free_n - claimed : 0;
}

// True: it left, or is on its way.
static bool move(struct coord *c, struct request *q)
{
    bool again = q->kv_tries < TRIES && transfer_worthwhile(c, q, q->replica);
    if (again && (q->replica->sending_n >= AT_ONCE || q->kv_after_us > c->now_us))
        return false; // its turn comes
    struct replica *to = again ? route(c, q) : NULL;
    if (to && transfer_fits(c, q, q->replica, to) && kvrate_move_pays(&q->pool->kvrate)) {
        transfer_begin(c, q, to);
        return true;
    }
    if (!retry_may_go(c, q->pool))
        return false;
    c->stats.handed_plain++;
    request_leave(c, q, COORD_REQ_MOVING);
    return true;
}

static void hand_over(struct coord *c, struct replica *r, uint32_t *spare)
{
    struct request *q, *next;
    for (q = r->running.head; q && *spare; q = next) {
        next = q->next;
        if (!q->transfer && move(c, q))
            --*spare;
    }
}

static void pump_pool(struct coord *c, struct pool *p)
{
    if (!p->draining_n && !p->prefill_n && !p->open_n)
        return;
    uint32_t spare = spare_credits(p);
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        struct replica *r = c->replicas[i];
        if (r->pool != p || !replica_hands_over(r))
            continue;
        hand_over(c, r, &spare);
        if (r->state == COORD_REPLICA_DRAINING && !r->running.n && !r->leaving.n)
            replica_fence(c, r, &(struct fence){FENCE_EMPTY, NULL, "drained"});
    }
}

void handover_pump(struct coord *c)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        pump_pool(c, c->pools[i]);
}

static bool can_take_kv(const struct coord *c, const struct replica *r)
{
    const struct request *q = r->running.head;
    for (uint32_t i = 0; q && i < c->replicas_n; i++)
        if (transfer_fits(c, q, r, c->replicas[i]))
            return true;
    return false;
}

bool handover_reform(struct coord *c, struct replica *r, uint64_t tag)
{
    if (!r->reforming && (r->state != COORD_REPLICA_READY || !can_take_kv(c, r)))
        return false;
    if (!waiter_add(&r->reforms, tag))
        return false;
    if (r->reforming)
        return true;
    core_trace(c, LOG_INFO, "failover of replica %" PRIu64 ": it hands over %u request%s", r->id,
               r->running.n, r->running.n == 1 ? "" : "s");
    r->reforming = true;
    core_arm(c, &r->reform_timer, TIMER_REFORM, c->now_us + 1000ull * c->cfg.kv_lease_ms);
    replica_drain(c, r);
    return true;
}

void handover_reform_timer(struct coord *c, struct replica *r)
{
    replica_fence(c, r, &(struct fence){FENCE_ORDER, NULL, "failover took too long"});
}

// ---- prompts ----

static bool takes_prompt(const struct coord *c, const struct request *q, const struct replica *r,
                         const struct replica *target)
{
    return r->role == COORD_ROLE_PREFILL && r->state == COORD_REPLICA_READY && !r->serves &&
           replica_load(r) < r->max_seqs && transfer_fits(c, q, r, target);
}

struct replica *handover_pair(struct coord *c, const struct request *q,
                              const struct replica *target)
{
    struct replica *best = NULL;
    uint64_t least = UINT64_MAX;
    uint32_t tokens = q->prompt_n + q->emitted_n;
    if (!q->pool->prefill_n || q->kv_tries || q->class == QUEUE_SUSPECT ||
        tokens - q->hint_n < c->cfg.long_prompt_tokens || q->prefer == target->id)
        return NULL;
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        struct replica *r = c->replicas[i];
        if (!takes_prompt(c, q, r, target))
            continue;
        uint64_t todo = r->backlog + tokens - routing_cached(c, q, r);
        if (todo < least) {
            least = todo;
            best = r;
        }
    }
    return best;
}

// The target holds blocks from now on: not for prompts that wait behind others. Those have their
// turn in handover_pump.
void handover_offer(struct coord *c, struct request *q, struct replica *target)
{
    if (q->replica->sending_n < AT_ONCE)
        transfer_begin(c, q, target);
}

// ---- what the leads have to compute ----

void backlog_add(struct request *q)
{
    q->backlog = q->prompt_n + q->emitted_n;
    q->replica->backlog += q->backlog;
}

void backlog_clear(struct request *q)
{
    q->replica->backlog -= q->backlog;
    q->backlog = 0;
}

void backlog_measure(struct coord *c, const struct request *q, const struct token_out *first)
{
    if (q->backlog && first->cached_tokens < q->prompt_n)
        kvrate_computed(&q->pool->kvrate, q->backlog - first->cached_tokens, c->now_us - q->placed_us);
}
