// Pools: replicas that serve the same purpose, and which pool a new request is for. A pool has its
// own ring, credits, queues and estimates, because what waits for one model does not care how busy
// another is; nodes, tenants and their shares are the cluster's.
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "coordinator/core.h"

// ---- coming and going ----

static bool model_name_ok(const char *name)
{
    size_t n = name ? strnlen(name, LIMIT_NAME) : 0;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] < ' ' || name[i] == 127)
            return false;
    return n > 0 && n < LIMIT_NAME;
}

const char *coord_pool_wrong(const struct coord_pool *set)
{
    return pool_nonsense(set);
}

const char *pool_nonsense(const struct coord_pool *set)
{
    if (!coord_tenant_name_ok(set->name))
        return "name: not 1..63 printable characters without spaces and quotes";
    if (!model_name_ok(set->model))
        return "model: not 1..63 bytes without control characters";
    if (!set->model_dir)
        return "model_dir: is missing";
    if (set->replicas > COORD_MAX_REPLICAS)
        return "replicas: too many";
    if (set->stages < 1 || set->stages > LIMIT_STAGES || set->tensor < 1 ||
        set->tensor > LIMIT_TENSOR || set->stages * set->tensor > LIMIT_RANKS)
        return "stages, tensor: none, or too many ranks";
    if ((uint64_t)set->prefill_replicas + set->decode_replicas > set->replicas)
        return "prefill, decode: more than there are replicas";
    if (set->prompt_max > LIMIT_CONTEXT || set->max_context > LIMIT_CONTEXT)
        return "prompt_max, max_context: above every context";
    if (set->probe_prompt_n > PROBE_PROMPT)
        return "probe_prompt: too long";
    return NULL;
}

static const char *copy_text(const char *s)
{
    return mem_strdup(s ? s : "");
}

static void copy_set(struct coord_pool *to, const struct coord_pool *from, uint32_t answer_n)
{
    *to = *from;
    to->name = copy_text(from->name);
    to->model = copy_text(from->model);
    to->version = copy_text(from->version);
    to->model_dir = copy_text(from->model_dir);
    to->fallback = from->fallback ? copy_text(from->fallback) : NULL;
    to->probe_prompt =
        mem_dup(from->probe_prompt, from->probe_prompt_n * sizeof *from->probe_prompt);
    to->probe_expect = from->probe_expect
                           ? mem_dup(from->probe_expect, answer_n * sizeof *to->probe_expect)
                           : NULL;
}

struct pool *pool_add(struct coord *c, const struct coord_pool *set)
{
    assert(!pool_nonsense(set) && !pool_find(c, set->name));
    if (c->pools_n == COORD_MAX_POOLS || set->replicas > COORD_MAX_REPLICAS - c->replicas_n)
        return NULL;
    struct pool *p = mem_zalloc(1, sizeof *p);
    p->index = p->fair.pool = c->pools_n;
    copy_set(&p->set, set, c->cfg.probe_tokens_n);
    p->ranks_n = set->stages * set->tensor;
    p->max_context = set->max_context;
    eta_init(&p->eta);
    if (set->probe_expect) {
        p->known_configured = true;
        p->known.n = c->cfg.probe_tokens_n;
        memcpy(p->known.tokens, set->probe_expect, p->known.n * sizeof *set->probe_expect);
    }
    p->wanted = set->replicas;
    p->score_milli = -1;
    c->pools[c->pools_n++] = p;
    for (uint32_t i = 0; i < set->replicas; i++)
        replica_add(c, p);
    c->place = true;
    return p;
}

static void free_set(struct coord_pool *set)
{
    free((char *)set->name);
    free((char *)set->model);
    free((char *)set->version);
    free((char *)set->model_dir);
    free((char *)set->fallback);
    free((int32_t *)set->probe_prompt);
    free((int32_t *)set->probe_expect);
}

void pool_become(struct coord *c, struct pool *p, const struct coord_pool *set)
{
    assert(!p->wanted && !p->formed_n && !pool_waiting(p));
    assert(!pool_nonsense(set) && !pool_find(c, set->name) && !set->probe_expect);
    struct coord_pool old = p->set;
    copy_set(&p->set, set, c->cfg.probe_tokens_n); // may borrow from the old one
    free_set(&old);
    p->max_context = set->max_context;
    p->known = (struct probe_answer){0};
    p->known_configured = false;
    p->known_fingerprint = p->fingerprint = 0;
    p->admitted = 0;
    p->elastic = (struct elastic){0};
    eta_init(&p->eta);
    for (struct member *m = c->members; m; m = m->next) { // what they hold is of the old one
        const struct replica *held = m->holds ? replicas_find(c, m->held_replica) : NULL;
        m->holds = held && held->pool != p;
    }
}

void pools_free(struct coord *c)
{
    free(c->sessions);
    for (uint32_t i = 0; i < c->pools_n; i++) {
        struct pool *p = c->pools[i];
        ring_finish(&p->ring);
        kvindex_finish(&p->caches);
        free_set(&p->set);
        free(p);
    }
}

struct pool *pool_find(const struct coord *c, const char *name)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        if (!strcmp(c->pools[i]->set.name, name))
            return c->pools[i];
    return NULL;
}

struct pool *pool_of_model(const struct coord *c, const char *model, uint64_t fingerprint)
{
    for (uint32_t i = 0; i < c->pools_n && fingerprint; i++)
        if (c->pools[i]->fingerprint == fingerprint && !strcmp(c->pools[i]->set.model, model))
            return c->pools[i];
    return NULL;
}

// ---- which one ----

// Weighted rendezvous hashing: the largest weight / -ln(u) wins. When a weight changes, only keys
// that the change concerns move.
static double score(const struct pool *p, uint64_t key)
{
    uint64_t h = hash_pair(key, hash_bytes(p->set.name, strlen(p->set.name), 0));
    double u = ((double)(h >> 11) + 0.5) / 9007199254740992.0; // 2^53
    return p->set.weight / -log(u);
}

static uint32_t context_of(const struct pool *p)
{
    return p->max_context ? p->max_context : LIMIT_CONTEXT;
}

// The class of a pool is the longest prompt that it takes; the narrowest that fits is the one.
static uint32_t class_of(const struct pool *p)
{
    return p->set.prompt_max ? p->set.prompt_max : UINT32_MAX;
}

static bool takes(const struct pool *p, const char *model, const struct coord_submit *s)
{
    return p->set.weight && !strcmp(p->set.model, model) && s->prompt_n <= class_of(p) &&
           s->prompt_n < context_of(p) && s->max_tokens <= context_of(p) - s->prompt_n;
}

// One that has replicas to serve goes before one that has none.
static bool better(const struct pool *p, const struct pool *than, uint64_t key)
{
    if (!than || class_of(p) != class_of(than))
        return !than || class_of(p) < class_of(than);
    if ((p->warm_n > 0) != (than->warm_n > 0))
        return p->warm_n > 0;
    return score(p, key) > score(than, key);
}

// Where sessions are, so that they stay with their version and their KV when weights change. A
// table without chains: who comes to the place of another takes it, and that one's next turn goes
// by its key.
enum { POOL_SESSIONS = 1 << 14 };
static const uint64_t SESSION_US = 600000000; // idle for longer: it may go elsewhere

struct session {
    uint64_t id, last_us;
    struct pool *pool;
};

static struct session *session_at(const struct coord *c, uint64_t id)
{
    return &c->sessions[hash_pair(id, POOL_SESSIONS) % POOL_SESSIONS];
}

void pool_note_session(struct coord *c, uint64_t session, struct pool *p)
{
    if (!session || c->pools_n < 2)
        return;
    if (!c->sessions)
        c->sessions = mem_zalloc(POOL_SESSIONS, sizeof *c->sessions);
    *session_at(c, session) = (struct session){session, c->now_us, p};
}

static struct pool *pool_of_session(const struct coord *c, uint64_t id)
{
    const struct session *s = id && c->sessions ? session_at(c, id) : NULL;
    return s && s->id == id && c->now_us - s->last_us < SESSION_US ? s->pool : NULL;
}

struct pool *pool_choose(struct coord *c, const struct coord_submit *s, const char **why_out)
{
    struct pool *named = s->pool && *s->pool ? pool_find(c, s->pool) : NULL;
    const char *model = s->model && *s->model ? s->model : c->pools[0]->set.model;
    if (named && !strcmp(named->set.model, model))
        return named;
    struct pool *before = pool_of_session(c, s->session);
    if (before && before->warm_n && takes(before, model, s))
        return before;
    uint64_t key = s->session ? s->session : s->request;
    struct pool *best = NULL, *widest = NULL;
    for (uint32_t i = 0; i < c->pools_n; i++) {
        struct pool *p = c->pools[i];
        if (takes(p, model, s) && better(p, best, key))
            best = p;
        if (!strcmp(p->set.model, model) && (!widest || context_of(p) > context_of(widest)))
            widest = p;
    }
    if (!widest)
        *why_out = arena_printf(&c->arena, "no pool serves the model '%.63s'", model);
    return best ? best : widest; // the widest tells in its refusal what there is room for
}

// ---- fallbacks ----

// Whether it can be expected to serve such a request in time.
static bool is_well(const struct coord *c, const struct pool *p, uint8_t band, uint32_t prompt_n,
                    uint32_t deadline_ms)
{
    if (!p->set.weight || !p->warm_n || prompt_n >= context_of(p) || prompt_n > class_of(p))
        return false;
    if (p->load < p->credits && !p->fair.n)
        return true;
    uint64_t wait_us = notices_wait_us(p, band, pool_waiting(p) + 1) + eta_first_us(&p->eta);
    bool late = deadline_ms && eta_trusted(&p->eta) && wait_us > 1000ull * deadline_ms;
    return !late && p->fair.fresh_n < c->cfg.queue_limit &&
           p->fair.fresh_tokens + prompt_n <= c->cfg.queue_tokens_limit;
}

static bool model_is_well(const struct coord *c, const char *model, uint8_t band, uint32_t prompt_n,
                          uint32_t deadline_ms)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        if (!strcmp(c->pools[i]->set.model, model) &&
            is_well(c, c->pools[i], band, prompt_n, deadline_ms))
            return true;
    return false;
}

static const char *fallback_of(const struct coord *c, const char *model)
{
    for (uint32_t i = 0; i < c->pools_n; i++)
        if (!strcmp(c->pools[i]->set.model, model) && c->pools[i]->set.fallback)
            return c->pools[i]->set.fallback;
    return NULL;
}

const char *coord_fallback(const struct coord *c, const char *model, uint8_t band,
                           uint32_t prompt_n, uint32_t deadline_ms)
{
    if (!fallback_of(c, model) || c->closing ||
        (!breakers_fall_back(c) && model_is_well(c, model, band, prompt_n, deadline_ms)))
        return NULL;
    const char *to = model;
    for (uint32_t hops = 0; hops < c->pools_n && (to = fallback_of(c, to)); hops++)
        if (model_is_well(c, to, band, prompt_n, deadline_ms))
            return to;
    return NULL;
}

// ---- views ----

void coord_each_pool(const struct coord *c, bool (*fn)(void *arg, const struct coord_pool_view *),
                     void *arg)
{
    for (uint32_t i = 0; i < c->pools_n; i++) {
        const struct pool *p = c->pools[i];
        const struct coord_pool_view v = {
            .name = p->set.name,
            .model = p->set.model,
            .version = p->set.version,
            .model_dir = p->set.model_dir,
            .replicas = p->wanted,
            .fingerprint = p->fingerprint,
            .bound = pool_bound(c, p),
            .score_milli = p->score_milli,
            .replicas_ready = p->ready_n,
            .stages = p->set.stages,
            .tensor = p->set.tensor,
            .weight = p->set.weight,
            .prompt_max = p->set.prompt_max,
            .credits = p->credits,
            .credits_free = p->credits > p->load ? p->credits - p->load : 0,
            .queued = pool_waiting(p),
            .max_context = p->max_context,
            .eta_ms = p->load < p->credits
                          ? 0
                          : (uint32_t)(notices_wait_us(p, 0, pool_waiting(p) + 1) / 1000),
            .admitted = p->admitted,
            .retry_budget = (int64_t)retry_budget(c, p),
            .retrying = p->retrying_n,
        };
        if (!fn(arg, &v))
            return;
    }
}
