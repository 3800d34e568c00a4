// A table of tenants by name, and their token buckets. A bucket may go below zero, because the
// length of an answer is not known when it is admitted: who is in debt is refused until the rate
// has paid it off.
#include "coordinator/tenants.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/mem.h"

static double burst_of(const struct coord_tenant *s)
{
    enum { BURST_S = 10 }; // of the rate, when the configuration says nothing
    return s->burst_tokens ? s->burst_tokens : (double)BURST_S * s->tokens_per_s;
}

static struct tenant *tenant_add(struct tenants *ts, const char *name,
                                 const struct coord_tenant *set, bool named)
{
    struct tenant *t = mem_zalloc(1, sizeof *t);
    size_t n = strnlen(name, LIMIT_NAME - 1);
    memcpy(t->name, name, n);
    t->set = *set;
    t->set.name = NULL;
    t->set.weight = set->weight ? set->weight : 1;
    t->named = named;
    t->level = burst_of(set);
    HASH_ADD_STR(ts->by_name, name, t);
    DL_APPEND(ts->list, t);
    ts->n += !named;
    return t;
}

struct share *tenant_share(struct tenant *t, uint32_t pool)
{
    assert(pool < COORD_MAX_POOLS);
    if (!t->shares[pool]) {
        t->shares[pool] = mem_zalloc(1, sizeof *t->shares[pool]);
        for (int b = 0; b < QUEUE_BANDS; b++)
            t->shares[pool]->lanes[b].tenant = t;
    }
    return t->shares[pool];
}

static struct tenant *find(const struct tenants *ts, const char *name)
{
    struct tenant *t;
    HASH_FIND_STR(ts->by_name, name, t);
    return t;
}

void tenants_init(struct tenants *ts, const struct coord_tenant *v, uint32_t n,
                  const struct coord_tenant *other, uint32_t limit)
{
    *ts = (struct tenants){.other = *other, .limit = limit};
    ts->anonymous = tenant_add(ts, "default", other, true);
    for (uint32_t i = 0; i < n; i++) {
        assert(!find(ts, v[i].name));
        tenant_add(ts, v[i].name, &v[i], true);
    }
}

double tenant_quota_left(const struct tenant *t, uint64_t now_us)
{
    double burst = burst_of(&t->set), level = t->level;
    if (!t->set.tokens_per_s)
        return 0;
    if (now_us > t->level_us)
        level += (double)(now_us - t->level_us) * t->set.tokens_per_s / 1e6;
    return level < burst ? level : burst;
}

static void refill(struct tenant *t, uint64_t now_us)
{
    t->level = tenant_quota_left(t, now_us);
    t->level_us = now_us;
}

static void drop(struct tenants *ts, struct tenant *t)
{
    ts->n -= !t->named;
    HASH_DEL(ts->by_name, t);
    DL_DELETE(ts->list, t);
    for (int i = 0; i < COORD_MAX_POOLS; i++)
        free(t->shares[i]);
    free(t);
}

void tenants_finish(struct tenants *ts)
{
    while (ts->list)
        drop(ts, ts->list);
}

// Room for one more name: forgets the oldest unnamed one that has no requests and owes nothing.
static bool make_room(struct tenants *ts, uint64_t now_us)
{
    if (ts->n < ts->limit)
        return true;
    struct tenant *t;
    DL_FOREACH(ts->list, t)
    {
        if (t->named || t->live_n)
            continue;
        refill(t, now_us);
        if (t->set.tokens_per_s && t->level < burst_of(&t->set))
            continue;
        drop(ts, t);
        return true;
    }
    return false;
}

struct tenant *tenants_get(struct tenants *ts, const char *name, uint64_t now_us)
{
    if (!name || !*name)
        return ts->anonymous;
    struct tenant *t = find(ts, name);
    if (!t && make_room(ts, now_us)) {
        t = tenant_add(ts, name, &ts->other, false);
        t->level_us = now_us;
    }
    return t ? t : ts->anonymous;
}

void tenant_charge(struct tenant *t, uint64_t now_us, uint32_t tokens)
{
    t->tokens += tokens;
    if (!t->set.tokens_per_s)
        return;
    refill(t, now_us);
    t->level -= tokens;
}

void tenant_refund(struct tenant *t, uint32_t tokens)
{
    t->tokens -= tokens;
    if (t->set.tokens_per_s)
        t->level += tokens;
}

void tenant_serve(struct tenant *t, uint32_t tokens)
{
    t->served += (double)tokens / t->set.weight;
}

uint32_t tenant_quota_wait_ms(struct tenant *t, uint64_t now_us)
{
    if (!t->set.tokens_per_s)
        return 0;
    refill(t, now_us);
    if (t->level > 0)
        return 0;
    double ms = (1 - t->level) * 1000 / t->set.tokens_per_s;
    return ms < 1 ? 1 : ms > 3600e3 ? 3600000 : (uint32_t)ms;
}
