// Replicas' circuit breakers (circuit.h), and requests that a lead refused. What counts as a
// failure of a replica: a fence for a fault while it served, and a request that it could not serve
// and another replica could; so a request that nobody can serve opens nothing. An open one takes
// nothing, hands over what it has (roles.c, handover.c), and is not honoured when no other replica
// serves.
#include <inttypes.h>

#include "coordinator/core.h"

static struct circuit_limits limits(const struct coord *c)
{
    const struct coord_config *k = &c->cfg;
    return (struct circuit_limits){.failures = k->circuit_failures,
                                   .window_us = 60000000,
                                   .open_us = 1000ull * k->circuit_open_ms,
                                   .open_max_us = 16000ull * k->circuit_open_ms,
                                   .successes = k->circuit_trials};
}

// How many requests it may have now.
static void set_seats(struct replica *r, uint32_t n)
{
    uint32_t load = replica_load(r);
    n = n > load ? n : load;
    if (r->serves)
        r->pool->credits += n - r->max_seqs;
    r->max_seqs = n;
}

// Half open it is tried by few at a time.
static void apply(struct coord *c, struct replica *r)
{
    if (r->state != COORD_REPLICA_READY)
        return;
    uint32_t all = quarantine_on_trial(c, r) ? (r->full_seqs + 3) / 4 : r->full_seqs;
    uint32_t few = c->cfg.circuit_trials < all ? c->cfg.circuit_trials : all;
    set_seats(r, r->circuit.state == CIRCUIT_HALF_OPEN ? few : all);
    roles_settle(c, r);
}

static void arm(struct coord *c, struct replica *r)
{
    if (r->circuit.state == CIRCUIT_OPEN)
        core_arm(c, &r->circuit_timer, TIMER_CIRCUIT, r->circuit.until_us);
    else
        core_disarm(c, &r->circuit_timer);
}

void circuit_note_failure(struct coord *c, struct replica *r, const char *why)
{
    struct circuit_limits lim = limits(c);
    bool was_open = r->circuit.state == CIRCUIT_OPEN;
    if (!circuit_failed(&r->circuit, &lim, c->now_us))
        return;
    r->pool->open_n += !was_open;
    c->stats.circuits_opened++;
    core_trace(c, LOG_WARN, "replica %" PRIu64 " gets no requests for %" PRIu64 " ms: %s", r->id,
               (r->circuit.until_us - c->now_us) / 1000, why);
    arm(c, r);
    apply(c, r);
}

void circuit_note_success(struct coord *c, struct replica *r)
{
    struct circuit_limits lim = limits(c);
    if (!circuit_succeeded(&r->circuit, &lim))
        return;
    core_trace(c, LOG_INFO, "replica %" PRIu64 " is trusted again", r->id);
    apply(c, r);
}

void circuit_timer(struct coord *c, struct replica *r)
{
    if (!circuit_tick(&r->circuit, c->now_us)) {
        arm(c, r);
        return;
    }
    r->pool->open_n--;
    core_trace(c, LOG_INFO, "replica %" PRIu64 " is tried by %u request%s at a time", r->id,
               c->cfg.circuit_trials, c->cfg.circuit_trials == 1 ? "" : "s");
    apply(c, r);
}

void circuit_ready(struct coord *c, struct replica *r)
{
    if (r->circuit.state != CIRCUIT_CLOSED)
        apply(c, r);
}

// ---- refusals ----

enum { REFUSALS = 3 }; // of one request, by different replicas

// True: it waits for another replica.
bool circuit_refused(struct coord *c, struct request *q, struct replica *r)
{
    if (q->refusals + 1 >= REFUSALS || r->pool->warm_n < 2)
        return false;
    q->refusals++;
    q->avoid = r->id;
    core_trace(c, LOG_WARN, "replica %" PRIu64 " cannot serve request %" PRIu64 ", another may",
               r->id, q->id);
    request_move(q, COORD_REQ_QUEUED);
    request_enqueue(c, q);
    return true;
}

// Somebody serves it: who refused it is to blame.
void circuit_served(struct coord *c, struct request *q)
{
    struct replica *r = q->avoid ? replicas_find(c, q->avoid) : NULL;
    q->avoid = 0;
    q->refusals = 0;
    circuit_note_success(c, q->replica);
    if (r && r != q->replica)
        circuit_note_failure(c, r,
                             arena_printf(&c->arena,
                                          "it refused request %" PRIu64 ", which replica %" PRIu64
                                          " serves",
                                          q->id, q->replica->id));
}

// ---- the retry budget ----

static struct retry_limits retry_limits(const struct coord *c)
{
    return (struct retry_limits){c->cfg.retry_percent, c->cfg.retry_burst_tokens};
}

bool retry_may_go(const struct coord *c, const struct pool *p)
{
    struct retry_limits lim = retry_limits(c);
    return retry_allows(&p->retry, &lim, p->retrying_n, p->warm_n);
}

void retry_begin(struct coord *c, struct request *q)
{
    struct retry_limits lim = retry_limits(c);
    uint32_t all = q->prompt_n + q->emitted_n;
    uint32_t tokens = q->hint_n < all ? all - q->hint_n : 0;
    bool first = q->restored; // another coordinator broke, no replica did
    q->restored = false;
    if (q->class == QUEUE_FAIR || first)
        return;
    q->retrying = true;
    q->pool->retrying_n++;
    c->stats.retry_tokens += tokens;
    retry_spend(&q->pool->retry, &lim, tokens);
}

void retry_end(struct request *q)
{
    q->pool->retrying_n -= q->retrying;
    q->retrying = false;
}

void retry_served(struct coord *c, struct pool *p, uint32_t tokens)
{
    struct retry_limits lim = retry_limits(c);
    retry_earn(&p->retry, &lim, tokens);
}

double retry_budget(const struct coord *c, const struct pool *p)
{
    struct retry_limits lim = retry_limits(c);
    return retry_left(&p->retry, &lim);
}
