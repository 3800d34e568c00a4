// Which replica a request goes to. The key's place on the ring names two candidates; those that
// hold most of its beginning are more. None may have more than its bounded share of the load
// (ring.h). Among them the cheapest is taken: what is left to compute there, times how slow it is
// now, times how full. So a follow-up goes to its KV unless that replica is too busy for it to be
// worth the while; and as each key has other candidates, a replica that looks fast is not run over
// by all.
#include <string.h>

#include "base/hash.h"
#include "coordinator/core.h"

const char *coord_routed_name(enum routed r)
{
    static const char *const names[] = {
        [ROUTED_RING] = "ring",       [ROUTED_SECOND] = "second", [ROUTED_PREFIX] = "prefix",
        [ROUTED_SPILLED] = "spilled", [ROUTED_GIVEN] = "given",
    };
    return r <= ROUTED_GIVEN ? names[r] : "unknown";
}

struct routing {
    const struct coord *c;
    const struct request *q;
    uint32_t cap;
    uint64_t not ; // this replica does not fit
};

static bool replica_takes(const struct routing *w, const struct replica *r)
{
    return replica_load(r) < r->max_seqs &&
           r->id != w->not &&(r->id != w->q->avoid || w->q->pool->warm_n < 2) &&
           !(w->q->class == QUEUE_SUSPECT && r->suspects);
}

static bool fits_cap(void *arg, uint64_t id)
{
    const struct routing *w = arg;
    const struct replica *r = replicas_find(w->c, id);
    return replica_takes(w, r) && replica_load(r) < w->cap;
}

static bool fits(void *arg, uint64_t id)
{
    const struct routing *w = arg;
    return replica_takes(w, replicas_find(w->c, id));
}

// ---- what is cached where ----

struct chain {
    uint64_t *names; // of the full blocks that a lead may find; of the step's arena
    uint32_t n, block_tokens;
};

// Prompt and journal, less the last token: it is computed in any case.
static struct chain chain_of(struct coord *c, const struct request *q)
{
    struct pool *p = q->pool;
    uint32_t bt = p->block_tokens, all = q->prompt_n + q->emitted_n;
    struct chain k = {.block_tokens = bt};
    if (!bt || !p->caches.n || all <= bt)
        return k;
    k.n = (all - 1) / bt;
    k.names = arena_alloc(&c->arena, k.n, sizeof *k.names);
    const int32_t *tokens = q->prompt;
    if (q->emitted_n) {
        int32_t *both = arena_alloc(&c->arena, all, sizeof *both);
        memcpy(both, q->prompt, q->prompt_n * sizeof *both);
        memcpy(both + q->prompt_n, q->emitted, q->emitted_n * sizeof *both);
        tokens = both;
    }
    uint64_t name = 0;
    for (uint32_t i = 0; i < k.n; i++)
        k.names[i] = name = hash_block(name, tokens + (size_t)i * bt, bt);
    return k;
}

// Leads evict the ends of chains before their beginnings, so who holds a block holds those before
// it: the depth is found by halving.
static uint32_t depth_of(const struct pool *p, const struct chain *k, const struct replica *r)
{
    uint32_t lo = 0, hi = k->n; // it holds lo blocks, not hi + 1
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo + 1) / 2;
        bool held = r ? kvindex_holds(&p->caches, k->names[mid - 1], (uint16_t)r->id)
                      : kvindex_find(&p->caches, k->names[mid - 1]) != NULL;
        if (held)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

uint32_t routing_cached(struct coord *c, const struct request *q, const struct replica *r)
{
    struct chain k = chain_of(c, q);
    return depth_of(q->pool, &k, r) * k.block_tokens;
}

// ---- the choice ----

// A key stays at its place unless another one is so much cheaper.
static const double SECOND_SLACK = 0.75, PREFIX_SLACK = 0.85;

struct choice {
    struct replica *r;
    double cost;
    enum routed how;
    uint32_t cached; // tokens that it has, as far as is known
};

static double cost_of(const struct coord *c, const struct request *q, const struct replica *r,
                      uint32_t cached)
{
    double left = (double)q->prompt_n + q->emitted_n - cached + LATENCY_BASE;
    double full = (double)replica_load(r) / r->max_seqs;
    return left * latency_factor(&r->latency, &r->pool->latency, c->now_us) * (1 + full);
}

// `slack`: how much dearer than the best so far it may seem, and still win.
static void consider(struct choice *best, const struct choice *other, double slack)
{
    if (!best->r || other->cost < best->cost * slack)
        *best = *other;
}

// Replicas that have the longest beginnings. When all of them are full, those of shorter ones.
static void consider_holders(struct routing *w, const struct chain *k, struct choice *best)
{
    enum { LOOKS = 8 };
    const struct pool *p = w->q->pool;
    uint32_t depth = depth_of(p, k, NULL);
    for (int look = 0; depth > 0 && look < LOOKS; look++) {
        const uint16_t *h = kvindex_find(&p->caches, k->names[depth - 1]);
        struct choice holder = {0};
        for (int i = 0; h && i < KVINDEX_HOLDERS && h[i]; i++) {
            struct replica *r = replicas_find(w->c, h[i]);
            if (!r->serves || !fits_cap(w, r->id))
                continue;
            uint32_t cached = depth * k->block_tokens;
            double cost = cost_of(w->c, w->q, r, cached);
            consider(&holder, &(struct choice){r, cost, ROUTED_PREFIX, cached}, 1);
        }
        if (holder.r) {
            consider(best, &holder, PREFIX_SLACK);
            return;
        }
        depth -= depth / LOOKS + 1;
    }
}

static struct choice on_ring(struct routing *w, const struct chain *k, enum routed how)
{
    struct choice none = {0};
    const struct pool *p = w->q->pool;
    uint64_t id = ring_pick(&p->ring, w->q->key, fits_cap, w);
    struct replica *r = id ? replicas_find(w->c, id) : NULL;
    if (!r)
        return none;
    uint32_t cached = k->n ? depth_of(p, k, r) * k->block_tokens : 0;
    double cost = cost_of(w->c, w->q, r, cached);
    return (struct choice){r, cost, cached ? ROUTED_PREFIX : how, cached};
}

struct replica *route(struct coord *c, struct request *q)
{
    const struct pool *p = q->pool;
    if (p->load >= p->credits)
        return NULL;
    struct routing w = {c, q, ring_cap(p->load, p->warm_n), 0};
    struct replica *near = q->prefer ? replicas_find(c, q->prefer) : NULL;
    if (near && near->serves && near->pool == p && replica_takes(&w, near)) {
        q->routed = ROUTED_GIVEN; // some of its KV was moved there
        return near;
    }
    struct chain k = chain_of(c, q);
    struct choice best = on_ring(&w, &k, ROUTED_RING);
    if (best.r && p->warm_n > 1) {
        w.not = best.r->id;
        struct choice second = on_ring(&w, &k, ROUTED_SECOND);
        if (second.r)
            consider(&best, &second, SECOND_SLACK);
        w.not = 0;
    }
    consider_holders(&w, &k, &best);
    if (!best.r) { // those under the cap have no credit: replicas of different sizes
        uint64_t id = ring_pick(&p->ring, q->key, fits, &w);
        best = (struct choice){id ? replicas_find(c, id) : NULL, 0, ROUTED_SPILLED, 0};
    }
    q->routed = best.how;
    q->hint_n = best.cached;
    return best.r;
}

// ---- what came of it ----

void routing_first_token(struct coord *c, struct request *q, const struct token_out *t)
{
    struct replica *r = q->replica;
    uint32_t all = q->prompt_n + q->dispatch_index;
    uint32_t cached = t->cached_tokens < all ? t->cached_tokens : all;
    uint64_t us = c->now_us - q->placed_us;
    latency_first(&r->latency, us, all - cached, 1 / 8.0, c->now_us);
    latency_first(&r->pool->latency, us, all - cached, 1 / 64.0, c->now_us);
    retry_served(c, r->pool, q->retrying ? 0 : all - cached);
    retry_end(q);
    circuit_served(c, q);
    c->stats.prefill_tokens += all;
    c->stats.prefix_hit_tokens += cached;
}

void routing_step(struct coord *c, struct replica *r, uint64_t us)
{
    latency_step(&r->latency, us, 1 / 16.0, c->now_us);
    latency_step(&r->pool->latency, us, 1 / 128.0, c->now_us);
}
