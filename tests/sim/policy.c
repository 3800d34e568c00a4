// Promises of the policy that no single token shows: quotas are counted to the token, deadlines end
// the wait, and in a band the tenant that was served least goes first.
//
// The quotas are counted here a second time, from what the coordinator tells its clients, with the
// formula of the manual and none of its code: a bucket that fills at the tenant's rate, from which
// prompts are taken at admission and answers as they come, and which may go below zero.
#include <inttypes.h>
#include <string.h>

#include "tests/sim/world.h"

static void bucket_init(struct sim_bucket *b, const struct coord_tenant *t)
{
    enum { BURST_S = 10 };
    *b = (struct sim_bucket){.rate = t->tokens_per_s};
    b->burst = t->burst_tokens ? t->burst_tokens : (double)BURST_S * t->tokens_per_s;
    b->level = b->burst;
}

void policy_start(struct world *w)
{
    const struct coord_config *k = &w->opt.coord;
    for (uint32_t i = 0; i < k->tenants_n && i < SIM_TENANTS; i++)
        bucket_init(&w->buckets[i + 1], &k->tenants[i]);
    bucket_init(&w->buckets[0], &k->other_tenants);
}

// NULL: of a tenant without a quota, or of a name that shares its bucket with others.
static struct sim_bucket *bucket_of(struct world *w, uint64_t request)
{
    const struct coord_config *k = &w->opt.coord;
    if (request < 1 || request > w->clients_n)
        return NULL;
    const char *name = w->clients[request - 1].submit.tenant;
    // Without room for other names they are all counted with those who give none; with some room it
    // depends on who came when.
    struct sim_bucket *b = k->tenants_limit ? NULL : &w->buckets[0];
    for (uint32_t i = 0; i < k->tenants_n && i < SIM_TENANTS; i++)
        if (name && !strcmp(name, k->tenants[i].name))
            b = &w->buckets[i + 1];
    return b && b->rate ? b : NULL;
}

static void refill(const struct world *w, struct sim_bucket *b)
{
    b->level += (double)(w->now_us - b->level_us) * b->rate / 1e6;
    b->level = b->level < b->burst ? b->level : b->burst;
    b->level_us = w->now_us;
}

static void take(struct world *w, uint64_t request, uint32_t tokens)
{
    struct sim_bucket *b = bucket_of(w, request);
    if (!b)
        return;
    refill(w, b);
    b->level -= tokens;
}

// The answer to a SUBMIT: let in, or refused for `reason`.
static void judge_quota(struct world *w, uint64_t request, enum coord_refusal reason)
{
    const double grain = 0.01; // tokens: sums of fractions differ a little
    struct sim_bucket *b = bucket_of(w, request);
    if (!b)
        return;
    refill(w, b);
    if (reason == COORD_REFUSE_QUOTA && b->level > grain)
        world_fail(w, "request %" PRIu64 " is refused for its quota, of which %.2f tokens are left",
                   request, b->level);
    if (reason == COORD_REFUSE_NONE && b->level < -grain)
        world_fail(w, "request %" PRIu64 " is let in, and its tenant owes %.2f tokens", request,
                   -b->level);
    if (reason == COORD_REFUSE_NONE)
        b->level -= w->clients[request - 1].submit.prompt_n;
}

static void follow_quotas(struct world *w, const struct coord_event *ev,
                          const struct coord_actions *out)
{
    uint64_t asked = ev->kind == COORD_SUBMIT ? ev->submit.request : 0;
    enum coord_refusal reason = COORD_REFUSE_NONE;
    for (size_t i = 0; i < out->n; i++) {
        const struct coord_action *a = &out->v[i];
        if (a->kind == COORD_TOKENS)
            take(w, a->tokens.request, a->tokens.tokens_n);
        if (a->kind != COORD_REFUSED)
            continue;
        struct sim_bucket *b = bucket_of(w, a->refused.request);
        if (a->refused.request == asked)
            reason = a->refused.reason;
        else if (b && (!w->restoring || asked)) // a RESTORE was never charged
            b->level += w->clients[a->refused.request - 1].submit.prompt_n;
    }
    if (asked)
        judge_quota(w, asked, reason);
}

static bool judge_level(void *arg, const struct coord_tenant_view *t)
{
    struct world *w = arg;
    const struct coord_config *k = &w->opt.coord;
    const double grain = 0.01;
    struct sim_bucket *b = !k->tenants_limit && !strcmp(t->name, "default") ? &w->buckets[0] : NULL;
    for (uint32_t i = 0; i < k->tenants_n && i < SIM_TENANTS; i++)
        if (!strcmp(t->name, k->tenants[i].name))
            b = &w->buckets[i + 1];
    if (!b || !b->rate)
        return true;
    refill(w, b);
    if (t->quota_left > b->level + grain || t->quota_left < b->level - grain)
        world_fail(w, "tenant '%s' has %.2f tokens left of its quota, %.2f should be", t->name,
                   t->quota_left, b->level);
    return true;
}

// ---- share ----

struct least {
    const char *of;                                   // tenant of the request that starts
    double own, other;                                // what they were served
    const char *name;                                 // of the other
    const char *names[SIM_TENANTS + SIM_OTHER_NAMES]; // that wait in its band
    uint32_t names_n;
};

static bool note_served(void *arg, const struct coord_tenant_view *t)
{
    struct least *l = arg;
    if (!strcmp(t->name, l->of))
        l->own = t->served;
    for (uint32_t i = 0; i < l->names_n; i++)
        if (!strcmp(t->name, l->names[i]) && (!l->name || t->served < l->other)) {
            l->other = t->served;
            l->name = t->name;
        }
    return true;
}

struct waiting {
    struct least *least;
    uint8_t band;
    const char *pool;
};

static bool note_waiting(void *arg, const struct coord_request_view *v)
{
    struct waiting *q = arg;
    struct least *l = q->least;
    bool counts = v->state == COORD_REQ_QUEUED && !v->dispatches && v->lane_band == q->band &&
                  !strcmp(v->pool, q->pool);
    for (uint32_t i = 0; i < l->names_n && counts; i++)
        counts = strcmp(l->names[i], v->tenant) != 0;
    if (counts && l->names_n < SIM_TENANTS + SIM_OTHER_NAMES)
        l->names[l->names_n++] = v->tenant;
    return true;
}

// The one request that this step started is of the tenant that was served least, of those that wait
// in its band.
static void judge_share(struct world *w, const struct coord_actions *out)
{
    const struct msg_dispatch *one = NULL;
    uint32_t n = 0;
    for (size_t i = 0; i < out->n; i++)
        if (out->v[i].kind == COORD_SEND && out->v[i].send.msg->kind == MSG_DISPATCH) {
            one = &out->v[i].send.msg->dispatch;
            n += one->journal.band != MSG_BAND_PROBE;
        }
    struct coord_request_view v;
    if (n != 1 || one->journal.band == MSG_BAND_PROBE ||
        !coord_request_find(w->coord, one->journal.request, &v) || v.dispatches != 1 ||
        v.preemptions || v.state != COORD_REQ_RUNNING)
        return;
    struct least l = {.of = v.tenant};
    coord_each_request(w->coord, note_waiting, &(struct waiting){&l, v.lane_band, v.pool});
    coord_each_tenant(w->coord, note_served, &l);
    // Its own prompt is counted already; the weight is at least 1.
    if (l.name && strcmp(l.name, l.of) != 0 && l.own - v.prompt_n > l.other + 1e-6)
        world_fail(w,
                   "request %" PRIu64 " of tenant '%s', served %.1f, starts before '%s', served "
                   "%.1f, in band %u",
                   v.id, l.of, l.own, l.name, l.other, v.lane_band);
}

// ---- deadlines ----

static bool judge_wait(void *arg, const struct coord_request_view *v)
{
    struct world *w = arg;
    const uint64_t grain_us = 1000;
    if (v->state == COORD_REQ_QUEUED && !v->dispatches && v->deadline_us &&
        w->now_us > v->deadline_us + grain_us)
        world_fail(w, "request %" PRIu64 " still waits, %" PRIu64 " ms after its deadline", v->id,
                   (w->now_us - v->deadline_us) / 1000);
    return true;
}

// ---- quarantine ----

// It doubles with each one of a node, six times at most, and then it ends.
static bool judge_quarantine(void *arg, const struct coord_node_view *v)
{
    struct world *w = arg;
    if (v->quarantine_ms > 64ull * w->opt.coord.quarantine_ms)
        world_fail(w, "node %s is to be kept out for %u ms more", v->name, v->quarantine_ms);
    return true;
}

void policy_check(struct world *w, const struct coord_event *ev, const struct coord_actions *out)
{
    follow_quotas(w, ev, out);
    if (w->sparse)
        return;
    coord_each_tenant(w->coord, judge_level, w);
    judge_share(w, out);
    coord_each_request(w->coord, judge_wait, w);
    coord_each_node(w->coord, judge_quarantine, w);
}
