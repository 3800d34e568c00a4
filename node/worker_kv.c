#include "node/worker_kv.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/kv_order.h"
#include "node/worker_state.h"

enum {
    ORDER_SLOTS = 4,
    ORDER_SLOT_BYTES = 16 << 10, // a longer order goes in several messages
    ORDER_BYTES = 8 << 20,       // no order is as long
    REPORT_SLOTS = 8,
};

struct posted {
    struct posted *next;
    struct strbuf bytes;
};

// A transfer as the lead adds it up over the ranks.
struct tally {
    struct tally *prev, *next;
    uint64_t transfer;
    uint32_t ready_n, ended_n;
    bool failed;
    struct kv_report ended;
};

struct worker_kv {
    struct worker *w;
    struct mover *mover;
    // Under the worker's lock.
    struct posted *posted, *posted_last;
    bool reports; // the mover has some

    // The worker's thread's.
    struct lane *order_tx[WORKER_KV_RANKS], *order_rx;
    struct lane *report_rx[WORKER_KV_RANKS], *report_tx;
    struct strbuf out[WORKER_KV_RANKS]; // orders as length and bytes, to be sent
    size_t out_at[WORKER_KV_RANKS];
    struct strbuf in;
    struct kv_order_memory memory;
    struct tally *tallies;
};

static uint32_t ranks_of(const struct worker_state *s)
{
    return s->form.stages * s->form.tensor;
}

static uint32_t rank_of(const struct worker_state *s)
{
    return s->form.my_stage * s->form.tensor + s->form.my_tensor;
}

// From the mover's threads.
static void mover_has_reports(void *arg)
{
    struct worker_kv *k = arg;
    struct worker *w = k->w;
    pthread_mutex_lock(&w->lock);
    k->reports = true;
    pthread_cond_signal(&w->posted);
    struct lane_hub *hub = w->hub;
    pthread_mutex_unlock(&w->lock);
    if (hub)
        lane_hub_wake(hub);
}

struct worker_kv *worker_kv_create(struct worker *w, const char *bind)
{
    struct worker_kv *k = mem_zalloc(1, sizeof *k);
    k->w = w;
    k->mover =
        mover_create(&(struct mover_config){.bind = bind, .wake = mover_has_reports, .arg = k});
    return k;
}

static void drop_posted(struct posted *p)
{
    while (p) {
        struct posted *next = p->next;
        strbuf_finish(&p->bytes);
        free(p);
        p = next;
    }
}

void worker_kv_destroy(struct worker_kv *k)
{
    if (!k)
        return;
    mover_destroy(k->mover);
    drop_posted(k->posted);
    free(k);
}

void worker_kv_post(struct worker_kv *k, const struct kv_order *o)
{
    struct posted *p = mem_zalloc(1, sizeof *p);
    kv_order_encode(o, &p->bytes);
    pthread_mutex_lock(&k->w->lock);
    if (k->posted_last)
        k->posted_last->next = p;
    else
        k->posted = p;
    k->posted_last = p;
    pthread_mutex_unlock(&k->w->lock);
}

bool worker_kv_waiting(const struct worker_kv *k)
{
    return k->posted || k->reports;
}

struct rank_addresses worker_kv_addresses(const struct worker_kv *k)
{
    return mover_addresses(k->mover);
}

bool worker_kv_moves(const struct worker *w)
{
    struct rank_addresses a = mover_addresses(w->kv->mover);
    return ranks_of(w->state) <= WORKER_KV_RANKS && (a.shm[0] || a.tcp[0] || a.verbs[0]);
}

// ---- joining a replica ----

// The same on every rank, whatever transports this host offers.
static bool has_lanes(const struct worker *w)
{
    return ranks_of(w->state) <= WORKER_KV_RANKS;
}

static enum status open_pair(struct worker *w, uint32_t r, struct errmsg *e)
{
    struct worker_state *s = w->state;
    struct worker_kv *k = w->kv;
    bool lead = rank_of(s) == 0;
    struct lane_config order = {.channel = CHANNEL_KV_ORDER,
                                .peer = lead ? r : 0,
                                .slots = ORDER_SLOTS,
                                .slot_bytes = ORDER_SLOT_BYTES};
    struct lane_config report = {.channel = CHANNEL_KV_REPORT,
                                 .peer = lead ? r : 0,
                                 .slots = REPORT_SLOTS,
                                 .slot_bytes = sizeof(struct kv_report)};
    enum status rc = lead ? lane_open_tx(s->hub, &order, &k->order_tx[r], e)
                          : lane_open_rx(s->hub, &order, &k->order_rx, e);
    if (rc == STATUS_OK)
        rc = lead ? lane_open_rx(s->hub, &report, &k->report_rx[r], e)
                  : lane_open_tx(s->hub, &report, &k->report_tx, e);
    return rc;
}

enum status worker_kv_open(struct worker *w, struct errmsg *e)
{
    uint32_t me = rank_of(w->state);
    enum status rc = STATUS_OK;
    if (!has_lanes(w))
        return STATUS_OK;
    for (uint32_t r = 1; r < ranks_of(w->state) && rc == STATUS_OK; r++)
        if (me == 0 || me == r)
            rc = open_pair(w, r, e);
    return rc;
}

enum status worker_kv_join(struct worker *w, const char *host, struct errmsg *e)
{
    const struct worker_state *s = w->state;
    const struct mover_rank rank = {
        .replica = s->form.replica,
        .epoch = s->form.epoch,
        .fingerprint = s->shard->fingerprint,
        .rank = rank_of(s),
        .shape = {s->form.stages, s->form.tensor},
        .choice = (enum transport_choice)s->form.transport,
        .host = host,
        .kern = s->kern,
        .kv = s->shard->kv,
        .config = &s->shard->config,
        .block_tokens = (uint32_t)s->shard->block_tokens,
        .kv_blocks = (uint32_t)s->shard->kv_blocks,
    };
    return mover_attach(w->kv->mover, &rank, e);
}

void worker_kv_leave(struct worker *w)
{
    struct worker_kv *k = w->kv;
    mover_detach(k->mover);
    for (uint32_t r = 0; r < WORKER_KV_RANKS; r++) {
        strbuf_finish(&k->out[r]);
        k->out_at[r] = 0;
        k->order_tx[r] = k->report_rx[r] = NULL;
    }
    k->order_rx = k->report_tx = NULL;
    strbuf_finish(&k->in);
    kv_order_memory_finish(&k->memory);
    struct tally *t, *next;
    DL_FOREACH_SAFE(k->tallies, t, next)
    free(t);
    k->tallies = NULL;
}

// ---- reports, at the lead ----

static struct tally *find(struct worker_kv *k, uint64_t transfer)
{
    struct tally *t;
    DL_FOREACH(k->tallies, t)
    if (t->transfer == transfer)
        return t;
    return NULL;
}

static void tell_owner(struct worker *w, const struct kv_report *r)
{
    struct worker_event *x = worker_event_new(w, ENGINE_KV);
    x->ev.kv = *r;
    worker_event_post(w, x);
}

static void add_ended(struct tally *t, const struct kv_report *r)
{
    if (t->ended_n++ == 0) {
        t->ended = *r;
        return;
    }
    if (r->blocks < t->ended.blocks)
        t->ended.blocks = r->blocks;
    t->ended.whole &= r->whole;
    t->ended.bytes += r->bytes;
}

static void add_report(struct worker *w, const struct kv_report *r)
{
    struct worker_kv *k = w->kv;
    struct tally *t = find(k, r->transfer);
    uint32_t ranks = ranks_of(w->state);
    if (!t)
        return;
    if (r->kind == KV_REPORT_READY && ++t->ready_n == ranks)
        tell_owner(w, r);
    if (r->kind == KV_REPORT_FAILED && !t->failed) {
        t->failed = true;
        tell_owner(w, r);
    }
    if (r->kind != KV_REPORT_ENDED)
        return;
    add_ended(t, r);
    if (t->ended_n < ranks)
        return;
    tell_owner(w, &t->ended);
    DL_DELETE(k->tallies, t);
    free(t);
}

static bool take_reports(struct worker *w, enum status *rc)
{
    struct worker_kv *k = w->kv;
    bool did = false;
    for (uint32_t r = 1; r < ranks_of(w->state) && *rc >= 0; r++) {
        const void *bytes;
        size_t n;
        while ((*rc = lane_recv(k->report_rx[r], &bytes, &n)) == STATUS_OK) {
            struct kv_report report;
            if (n != sizeof report) {
                *rc = STATUS_LINK_PROTOCOL;
                break;
            }
            memcpy(&report, bytes, sizeof report);
            report.text[sizeof report.text - 1] = 0;
            lane_release(k->report_rx[r]);
            add_report(w, &report);
            did = true;
        }
    }
    return did;
}

// ---- orders ----

static void send_on(struct worker_kv *k, uint32_t r, const struct strbuf *bytes)
{
    uint32_t n = (uint32_t)bytes->n;
    strbuf_add(&k->out[r], &n, sizeof n);
    strbuf_add(&k->out[r], bytes->v, bytes->n);
}

static bool flush(struct worker_kv *k, uint32_t r, enum status *rc)
{
    bool did = false;
    struct strbuf *out = &k->out[r];
    while (k->out_at[r] < out->n) {
        void *slot;
        size_t n = out->n - k->out_at[r];
        n = n < ORDER_SLOT_BYTES ? n : ORDER_SLOT_BYTES;
        enum status s = lane_reserve(k->order_tx[r], &slot);
        if (s == STATUS_OK) {
            memcpy(slot, out->v + k->out_at[r], n);
            s = lane_commit(k->order_tx[r], n);
        }
        if (s != STATUS_OK) {
            *rc = s < 0 ? s : *rc;
            return did;
        }
        k->out_at[r] += n;
        did = true;
    }
    strbuf_clear(out);
    k->out_at[r] = 0;
    return did;
}

static void obey(struct worker *w, const struct kv_order *o)
{
    struct worker_kv *k = w->kv;
    bool opens = o->kind == KV_ORDER_RECEIVE || o->kind == KV_ORDER_SEND;
    if (rank_of(w->state) == 0 && opens) {
        struct tally *t = mem_zalloc(1, sizeof *t);
        t->transfer = o->transfer;
        DL_APPEND(k->tallies, t);
    }
    mover_order(k->mover, o);
}

static bool take_posted(struct worker *w, enum status *rc)
{
    struct worker_kv *k = w->kv;
    pthread_mutex_lock(&w->lock);
    struct posted *list = k->posted;
    k->posted = k->posted_last = NULL;
    pthread_mutex_unlock(&w->lock);
    for (const struct posted *p = list; p; p = p->next) {
        struct kv_order o;
        enum status s = kv_order_decode(p->bytes.v, p->bytes.n, &k->memory, &o);
        assert(s == STATUS_OK); // our own
        if (o.epoch != w->state->form.epoch)
            continue;
        obey(w, &o);
        for (uint32_t r = 1; r < ranks_of(w->state); r++)
            send_on(k, r, &p->bytes);
    }
    drop_posted(list);
    bool did = list != NULL;
    for (uint32_t r = 1; r < ranks_of(w->state); r++)
        did |= flush(k, r, rc);
    return did;
}

// Orders that have come whole, from the lead.
static enum status obey_received(struct worker *w)
{
    struct worker_kv *k = w->kv;
    size_t at = 0;
    uint32_t n;
    while (k->in.n - at >= sizeof n) {
        memcpy(&n, k->in.v + at, sizeof n);
        if (n > ORDER_BYTES)
            return STATUS_LINK_PROTOCOL;
        if (k->in.n - at - sizeof n < n)
            break;
        struct kv_order o;
        enum status rc = kv_order_decode(k->in.v + at + sizeof n, n, &k->memory, &o);
        if (rc != STATUS_OK)
            return rc;
        obey(w, &o);
        at += sizeof n + n;
    }
    if (at == k->in.n) {
        strbuf_clear(&k->in);
    } else if (at) {
        memmove(k->in.v, k->in.v + at, k->in.n - at);
        k->in.n -= at;
    }
    return STATUS_OK;
}

static bool take_orders(struct worker *w, enum status *rc)
{
    struct worker_kv *k = w->kv;
    const void *bytes;
    size_t n;
    bool did = false;
    while ((*rc = lane_recv(k->order_rx, &bytes, &n)) == STATUS_OK) {
        strbuf_add(&k->in, bytes, n);
        lane_release(k->order_rx);
        *rc = obey_received(w);
        did = true;
        if (*rc < 0)
            break;
    }
    return did;
}

// Of the own mover: to the lead, as far as the lane takes them.
static bool pass_reports(struct worker *w, enum status *rc)
{
    struct worker_kv *k = w->kv;
    struct kv_report r;
    bool did = false;
    pthread_mutex_lock(&w->lock);
    k->reports = false;
    pthread_mutex_unlock(&w->lock);
    for (;;) {
        void *slot = NULL;
        enum status s = rank_of(w->state) == 0 ? STATUS_OK : lane_reserve(k->report_tx, &slot);
        if (s != STATUS_OK) {
            *rc = s < 0 ? s : *rc;
            return did;
        }
        if (!mover_poll(k->mover, &r))
            return did;
        did = true;
        if (!slot) {
            add_report(w, &r);
            continue;
        }
        memcpy(slot, &r, sizeof r);
        s = lane_commit(k->report_tx, sizeof r);
        *rc = s < 0 ? s : *rc;
    }
}

bool worker_kv_turn(struct worker *w, enum status *rc_out)
{
    enum status rc = STATUS_OK;
    bool did = false;
    if (!has_lanes(w))
        return false;
    if (rank_of(w->state) == 0)
        did = take_posted(w, &rc) | (rc < 0 ? false : take_reports(w, &rc));
    else
        did = take_orders(w, &rc);
    if (rc >= 0)
        did |= pass_reports(w, &rc);
    *rc_out = rc < 0 ? rc : STATUS_OK;
    return did;
}
