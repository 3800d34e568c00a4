// A lane's list is kept sorted by inserting from its end: deadlines are mostly `now` plus a
// constant, so a new one belongs there. Choosing looks at the lanes of one band only.
#include "coordinator/fair.h"

#include <assert.h>
#include <utlist.h>

static bool before(const struct request *a, const struct request *b)
{
    return a->order_us < b->order_us; // equal: who came first
}

uint64_t fair_order_us(uint64_t deadline_us, uint64_t now_us)
{
    const uint64_t patience_us = 300000000; // so that requests without a deadline move on as well
    return deadline_us ? deadline_us : now_us + patience_us;
}

// ---- coming and going ----

// The lowest counter among the tenants that wait; when none does, that of the last one served.
static double floor_of(const struct fair *f)
{
    double least = f->served;
    bool any = false;
    for (int b = 0; b < QUEUE_BANDS; b++) {
        const struct lane *l;
        DL_FOREACH(f->bands[b], l)
        {
            if (!any || l->tenant->served < least)
                least = l->tenant->served;
            any = true;
        }
    }
    return least;
}

static void lane_insert(struct lane *l, struct request *r)
{
    struct request *at = l->waiting.head ? l->waiting.head->prev : NULL;
    while (at && before(r, at))
        at = at == l->waiting.head ? NULL : at->prev;
    if (at) {
        DL_APPEND_ELEM(l->waiting.head, at, r);
    } else {
        DL_PREPEND(l->waiting.head, r);
    }
    l->waiting.n++;
}

static void lane_enter(struct fair *f, struct request *r, uint8_t band)
{
    struct lane *l = &tenant_share(r->tenant, f->pool)->lanes[band];
    if (!l->waiting.n)
        DL_APPEND(f->bands[band], l);
    lane_insert(l, r);
    r->lane_band = band;
    f->band_n[band]++;
}

static void lane_leave(struct fair *f, struct request *r)
{
    struct lane *l = &tenant_share(r->tenant, f->pool)->lanes[r->lane_band];
    request_list_remove(&l->waiting, r);
    if (!l->waiting.n)
        DL_DELETE(f->bands[r->lane_band], l);
    f->band_n[r->lane_band]--;
}

void fair_push(struct fair *f, struct request *r)
{
    struct tenant *t = r->tenant;
    assert(r->band < QUEUE_BANDS && t);
    t->waiting_n++;
    if (tenant_share(t, f->pool)->waiting_n++ == 0) {
        double least = floor_of(f);
        if (t->served < least)
            t->served = least;
        f->weights += t->set.weight;
    }
    lane_enter(f, r, r->band);
    f->base_n[r->band]++;
    f->n++;
    f->fresh_n += r->dispatches == 0;
    f->fresh_tokens += r->dispatches == 0 ? r->prompt_n : 0;
}

void fair_remove(struct fair *f, struct request *r)
{
    lane_leave(f, r);
    r->tenant->waiting_n--;
    if (--tenant_share(r->tenant, f->pool)->waiting_n == 0)
        f->weights -= r->tenant->set.weight;
    f->served = r->tenant->served;
    f->base_n[r->band]--;
    f->n--;
    f->fresh_n -= r->dispatches == 0;
    f->fresh_tokens -= r->dispatches == 0 ? r->prompt_n : 0;
}

void fair_age(struct fair *f, uint64_t now_us, uint64_t ageing_us, uint8_t ageing_band)
{
    for (int b = ageing_band - 1; ageing_us && b >= 0; b--) {
        struct lane *l, *next;
        DL_FOREACH_SAFE(f->bands[b], l, next)
        {
            struct request *r, *after;
            DL_FOREACH_SAFE(l->waiting.head, r, after)
            {
                uint64_t up = r->band + (now_us - r->waits_us) / ageing_us;
                uint8_t to = (uint8_t)(up < ageing_band ? up : ageing_band);
                if (to <= b)
                    continue;
                lane_leave(f, r);
                lane_enter(f, r, to);
            }
        }
    }
}

// ---- choosing ----

static int top_band(const struct fair *f)
{
    int b = QUEUE_BANDS - 1;
    while (b >= 0 && !f->bands[b])
        b--;
    return b;
}

struct request *fair_head(const struct fair *f)
{
    int b = top_band(f);
    if (b < 0)
        return NULL;
    const struct lane *l, *best = f->bands[b];
    DL_FOREACH(f->bands[b], l)
    {
        if (l->tenant->served < best->tenant->served)
            best = l;
    }
    return best->waiting.head;
}

struct request *fair_last(const struct fair *f, uint8_t band)
{
    struct request *last = NULL;
    for (int b = 0; b < band && !last; b++) {
        const struct lane *l;
        DL_FOREACH(f->bands[b], l)
        {
            struct request *r = l->waiting.head->prev;
            if (r->dispatches == 0 && (!last || before(last, r)))
                last = r;
        }
    }
    return last;
}

uint32_t fair_ahead(const struct fair *f, const struct tenant *t, uint8_t band)
{
    uint32_t above = 0, same = f->band_n[band];
    for (int b = band + 1; b < QUEUE_BANDS; b++)
        above += f->band_n[b];
    // Its turn comes once in weights / weight turns, whoever has how many requests.
    const struct share *share = t->shares[f->pool];
    double weights = f->weights + (share && share->waiting_n ? 0 : t->set.weight);
    double turns = ((share ? share->lanes[band].waiting.n : 0) + 1) * weights / t->set.weight;
    return above + (turns < same ? (uint32_t)turns : same);
}

// ---- the order told to those who wait ----

struct cursor {
    double served;
    const struct tenant *tenant;
    struct request *next;
};

static void sift(struct cursor *v, uint32_t n, uint32_t i)
{
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child + 1 < n && v[child + 1].served < v[child].served)
            child++;
        if (child >= n || v[i].served <= v[child].served)
            return;
        struct cursor keep = v[i];
        v[i] = v[child];
        v[child] = keep;
        i = child;
    }
}

static uint32_t order_band(const struct lane *lanes, struct cursor *v, struct request **out,
                           double tokens)
{
    uint32_t n = 0, done = 0;
    const struct lane *l;
    DL_FOREACH(lanes, l)
    {
        v[n++] = (struct cursor){l->tenant->served, l->tenant, l->waiting.head};
    }
    for (uint32_t i = n / 2; i-- > 0;)
        sift(v, n, i);
    while (n) {
        struct request *r = v[0].next;
        out[done++] = r;
        v[0].served += (r->prompt_n + tokens) / v[0].tenant->set.weight;
        v[0].next = r->next;
        if (!r->next)
            v[0] = v[--n];
        sift(v, n, 0);
    }
    return done;
}

struct request **fair_order(const struct fair *f, struct arena *a, double tokens)
{
    struct request **out = arena_alloc(a, f->n + 1, sizeof *out);
    uint32_t n = 0;
    for (int b = QUEUE_BANDS - 1; b >= 0; b--) {
        if (!f->bands[b])
            continue;
        uint32_t lanes = 0;
        const struct lane *l;
        DL_FOREACH(f->bands[b], l)
        {
            lanes++;
        }
        struct cursor *v = arena_alloc(a, lanes, sizeof *v);
        n += order_band(f->bands[b], v, out + n, tokens);
    }
    assert(n == f->n);
    return out;
}
