// Golden probes: a replica serves only once it has given the known answer, and is asked again from
// time to time, and at once when there is a suspicion. The probe is a request of the coordinator's
// own, above all bands, beside the credits.
//
// The known answer is configured, or learned: the first one, unless more replicas give another.
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/hash.h"
#include "coordinator/core.h"

bool prober_on(const struct replica *r)
{
    return r->pool->set.probe_prompt_n > 0;
}

static void arm(struct coord *c, struct replica *r, uint32_t ms)
{
    core_arm(c, &r->probe.timer, TIMER_PROBE, c->now_us + 1000ull * ms);
}

static uint64_t fresh_id(struct coord *c, const struct replica *r)
{
    uint64_t id;
    do
        id = hash_pair(r->epoch, ++c->probes_n);
    while (!id || requests_find(c, id));
    return id;
}

static void send_probe(struct coord *c, struct replica *r)
{
    struct prober *p = &r->probe;
    p->request = fresh_id(c, r);
    p->sent_us = c->now_us;
    p->got = (struct probe_answer){0};
    const struct journal j = {
        .request = p->request,
        .prompt = r->pool->set.probe_prompt,
        .prompt_n = r->pool->set.probe_prompt_n,
        .max_tokens = c->cfg.probe_tokens_n,
        .band = MSG_BAND_PROBE,
        .sampling = {.seed = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = true},
    };
    core_send(c, r->ranks[0]->conn,
              (struct msg){.kind = MSG_DISPATCH, .dispatch = {r->id, r->epoch, j}});
    arm(c, r, c->cfg.probe_timeout_ms);
}

void prober_reset(struct coord *c, struct replica *r)
{
    core_disarm(c, &r->probe.timer);
    r->probe.request = 0;
    r->probe.failures = 0;
    r->probe.again = false;
}

// ---- the known answer ----

// Of a configured answer no log-probabilities are known.
static float tolerance(const struct coord *c, const struct pool *p)
{
    return p->known_configured ? 0 : c->cfg.probe_tolerance;
}

static bool same(const struct coord *c, const struct pool *p, const struct probe_answer *a,
                 const struct probe_answer *b)
{
    uint32_t at;
    return probe_judge(a, b, tolerance(c, p), &at) == PROBE_RIGHT;
}

// Replicas, serving or not, whose last answer for this model is like this one.
static uint32_t votes(const struct coord *c, const struct pool *pool, const struct probe_answer *a)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct prober *p = &c->replicas[i]->probe;
        n += c->replicas[i]->pool == pool && p->last.n &&
             p->last_fingerprint == pool->known_fingerprint && same(c, pool, a, &p->last);
    }
    return n;
}

// An answer of r came: it may become the known one, or outvote it.
static void learn(struct coord *c, struct replica *r)
{
    struct pool *p = r->pool;
    r->probe.last = r->probe.got;
    r->probe.last_fingerprint = r->fingerprint;
    if (p->known_configured)
        return;
    if (!p->known.n || p->known_fingerprint != r->fingerprint) {
        p->known = r->probe.got;
        p->known_fingerprint = r->fingerprint;
        return;
    }
    if (same(c, p, &p->known, &r->probe.got) ||
        votes(c, p, &r->probe.got) <= votes(c, p, &p->known))
        return;
    core_trace(c, LOG_WARN, "more replicas agree on another answer to the golden probe: it counts");
    p->known = r->probe.got;
    for (uint32_t i = 0; i < c->replicas_n; i++) // those that gave the old one are asked at once
        if (c->replicas[i]->pool == p && c->replicas[i]->state == COORD_REPLICA_READY &&
            c->replicas[i] != r)
            prober_ask(c, c->replicas[i]);
}

// ---- verdicts ----

static const char *judge(struct coord *c, const struct replica *r)
{
    const struct probe_answer *k = &r->pool->known, *g = &r->probe.got;
    uint32_t at;
    enum probe_verdict v = probe_judge(k, g, tolerance(c, r->pool), &at);
    if (v == PROBE_RIGHT)
        return NULL;
    if (v == PROBE_DRIFTED)
        return arena_printf(&c->arena,
                            "its logits are off: token %u of the golden probe has a "
                            "log-probability of %.4f, not %.4f",
                            at, (double)g->logprobs[at], (double)k->logprobs[at]);
    return arena_printf(&c->arena, "it answers the golden probe wrongly: token %u is %d, not %d",
                        at, at < g->n ? g->tokens[at] : -1, k->tokens[at]);
}

static void failed(struct coord *c, struct replica *r, const char *what, bool slow)
{
    struct prober *p = &r->probe;
    c->stats.probes_failed++;
    p->failures++;
    core_trace(c, LOG_WARN, "replica %" PRIu64 ", probe %u of %u failed: %s", r->id, p->failures,
               c->cfg.probe_failures, what);
    if (r->state != COORD_REPLICA_PROVING && p->failures < c->cfg.probe_failures) {
        send_probe(c, r);
        return;
    }
    quarantine_replica(c, r, what, slow);
}

// A replica that was fenced for its pace must show that it is not slower than others were when they
// were asked while idle. The best of three counts, for one may be unlucky; half the factor is
// enough here, for nothing else runs, and it is suspected already.
static const char *judge_pace(struct coord *c, struct replica *r)
{
    struct prober *p = &r->probe;
    uint64_t best = 0;
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct prober *o = &c->replicas[i]->probe;
        if (c->replicas[i] != r && c->replicas[i]->pool == r->pool && o->idle_us &&
            (!best || o->idle_us < best))
            best = o->idle_us;
    }
    if (!best || (double)p->idle_us <= c->cfg.slow_factor / 2 * (double)best)
        return NULL;
    return arena_printf(&c->arena,
                        "it is slow: the golden probe takes %" PRIu64 " ms, %" PRIu64 " elsewhere",
                        p->idle_us / 1000, best / 1000);
}

static void proven(struct coord *c, struct replica *r, uint64_t took_us)
{
    enum { TRIES = 3 };
    struct prober *p = &r->probe;
    p->idle_us = p->tries && p->idle_us < took_us ? p->idle_us : took_us;
    bool doubted = quarantine_slow_doubt(r);
    if (doubted && ++p->tries < TRIES) {
        send_probe(c, r);
        return;
    }
    p->tries = 0;
    const char *slow = doubted ? judge_pace(c, r) : NULL;
    if (slow) {
        failed(c, r, slow, true);
        return;
    }
    quarantine_acquit(c, r);
    if (r->state == COORD_REPLICA_PROVING)
        replica_ready(c, r);
}

static void answered(struct coord *c, struct replica *r)
{
    struct prober *p = &r->probe;
    p->request = 0;
    c->stats.probes++;
    const char *what = "it cannot answer the golden probe";
    if (p->got.n == c->cfg.probe_tokens_n) {
        learn(c, r);
        what = judge(c, r);
    }
    if (what) {
        failed(c, r, what, false);
        return;
    }
    p->failures = 0;
    if (r->state == COORD_REPLICA_PROVING)
        proven(c, r, c->now_us - p->sent_us);
    else
        prober_watch(c, r);
}

// ---- calls ----

void prober_prove(struct coord *c, struct replica *r)
{
    if (!prober_on(r)) {
        quarantine_acquit(c, r);
        replica_ready(c, r);
        return;
    }
    replica_move(c, r, COORD_REPLICA_PROVING);
    r->probe.tries = 0;
    send_probe(c, r);
}

void prober_watch(struct coord *c, struct replica *r)
{
    if (!prober_on(r) || r->probe.request)
        return;
    arm(c, r, r->probe.again ? 0 : c->cfg.probe_interval_ms);
    r->probe.again = false;
}

void prober_ask(struct coord *c, struct replica *r)
{
    if (!prober_on(r) || r->state != COORD_REPLICA_READY)
        return;
    if (r->probe.request)
        r->probe.again = true; // the one under way may have begun before the suspicion
    else
        arm(c, r, 0);
}

bool prober_token(struct coord *c, struct replica *r, const struct token_out *t)
{
    struct prober *p = &r->probe;
    if (!p->request || t->request != p->request)
        return false;
    bool fits = t->token >= 0 && t->index == p->got.n && p->got.n < c->cfg.probe_tokens_n;
    if (fits) {
        p->got.tokens[p->got.n] = t->token;
        p->got.logprobs[p->got.n++] = t->logprob;
    }
    if (!fits || t->finish != FINISH_NONE || p->got.n == c->cfg.probe_tokens_n)
        answered(c, r);
    return true;
}

void prober_timer(struct coord *c, struct replica *r)
{
    struct prober *p = &r->probe;
    if (!p->request) {
        send_probe(c, r);
        return;
    }
    core_send(c, r->ranks[0]->conn,
              (struct msg){.kind = MSG_CANCEL, .cancel = {r->id, r->epoch, p->request}});
    p->request = 0;
    failed(c, r,
           arena_printf(&c->arena, "no answer to the golden probe within %u ms",
                        c->cfg.probe_timeout_ms),
           false);
}
