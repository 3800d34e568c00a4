// The hub: linking up a group, routing notices by region, and the few words that hubs exchange with
// each other through the control region: READY (lanes stand, this epoch), STALE (you are of another
// epoch), LOST (that rank is lost to me) and the credits of lanes. A word is a write without bytes;
// its offset says which.
#include "node/lane_hub.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "node/lane.h"

enum {
    HUB_MAGIC = 0x4c4e4448, // "HDNL"
    RETRY_MS = 10,
    EVENTS = 64,
    WORD_READY = 0,
    WORD_STALE = 1,
    WORD_LOST = 2,
    WORD_CREDIT = LANE_WORD_CREDIT,
    WORD_END = 128,
};

struct hub_hello {
    uint32_t magic, rank, ranks, zero;
    uint64_t epoch;
};

struct hub_peer {
    const char *address; // borrowed until lane_hub_connect returns
    struct xlink *link;
    bool wanted, up, ready;
    enum status lost; // OK while it stands
    bool told;        // of the group's fault
    enum status last; // why the last attempt to connect failed
    uint64_t retry_us;
};

struct hub_route {
    uint32_t region;
    struct lane_receiver receiver;
};

struct lane_hub {
    struct xport *x;
    struct lane_group group; // epoch 0: none yet
    struct hub_peer *peers;  // [ranks]
    struct hub_route *routes;
    size_t routes_n, routes_cap;
    struct lane **lanes; // owned
    size_t lanes_n, lanes_cap;
    bool connecting;
    uint64_t newer; // epoch of a peer that refused us as stale, low 32 bits; 0 = none
    uint32_t newer_rank;
    uint32_t fault_rank;
    enum status fault;
    _Atomic uint64_t abort_epoch; // this one and older are aborted
};

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

enum status lane_hub_open(const struct lane_hub_config *config, struct lane_hub **hub_out,
                          struct errmsg *e)
{
    struct xport_config xc = {.kind = config->kind,
                              .bind_host = config->bind_host,
                              .max_links =
                                  config->max_links ? config->max_links : LIMIT_TENSOR + 64,
                              .spin_us = config->spin_us,
                              .wire = config->wire};
    struct lane_hub *h = mem_zalloc(1, sizeof *h);
    enum status s = xport_open(&xc, &h->x, e);
    if (s != STATUS_OK) {
        free(h);
        return s;
    }
    *hub_out = h;
    return STATUS_OK;
}

static void group_end(struct lane_hub *h)
{
    for (uint32_t r = 0; r < h->group.ranks; r++)
        if (h->peers[r].link)
            xlink_close(h->peers[r].link);
    // Their writes end here; links of strangers that turn up meanwhile are not of this group.
    struct xport_event ev[EVENTS];
    int n;
    while ((n = xport_poll(h->x, ev, EVENTS)) > 0)
        for (int i = 0; i < n; i++)
            if (ev[i].kind == XPORT_LINK_UP)
                xlink_close(ev[i].link);
    for (size_t i = 0; i < h->lanes_n; i++)
        lane_free(h->lanes[i]);
    for (size_t i = 0; i < h->routes_n; i++)
        xport_region_destroy(h->x, h->routes[i].region);
    h->lanes_n = h->routes_n = 0;
    free(h->peers);
    h->peers = NULL;
    h->group = (struct lane_group){0};
}

void lane_hub_close(struct lane_hub *h)
{
    if (!h)
        return;
    group_end(h);
    xport_close(h->x);
    free(h->lanes);
    free(h->routes);
    free(h);
}

const char *lane_hub_address(const struct lane_hub *h)
{
    return xport_address(h->x);
}

uint32_t lane_hub_rank(const struct lane_hub *h)
{
    return h->group.rank;
}

uint32_t lane_hub_ranks(const struct lane_hub *h)
{
    return h->group.ranks;
}

// --- regions and routes ---

// 12 bits of the epoch, 6 of the channel, 10 of the sender: no frame of the epoch before can name a
// region of this one.
_Static_assert(LIMIT_RANKS <= 1 << 10, "ranks fit a region's name");
static uint32_t region_name(uint64_t epoch, uint32_t channel, uint32_t sender)
{
    return (uint32_t)(epoch & 0xfff) << 16 | channel << 10 | sender;
}

uint32_t lane_hub_region(const struct lane_hub *h, uint32_t channel, uint32_t sender)
{
    return region_name(h->group.epoch, channel, sender);
}

enum status lane_hub_receive(struct lane_hub *h, uint32_t region, size_t bytes,
                             const struct lane_receiver *receiver, void **base_out,
                             struct errmsg *e)
{
    enum status s = xport_region_create(h->x, region, bytes, base_out, e);
    if (s != STATUS_OK)
        return s;
    MEM_GROW(h->routes, h->routes_n, h->routes_cap);
    h->routes[h->routes_n++] = (struct hub_route){region, *receiver};
    return STATUS_OK;
}

void lane_hub_forget(struct lane_hub *h, void *ctx)
{
    for (size_t i = 0; i < h->routes_n; i++)
        if (h->routes[i].receiver.ctx == ctx)
            h->routes[i].receiver.notice = NULL;
}

void lane_hub_adopt(struct lane_hub *h, struct lane *l)
{
    MEM_GROW(h->lanes, h->lanes_n, h->lanes_cap);
    h->lanes[h->lanes_n++] = l;
}

static void fault_note(struct lane_hub *h, uint32_t rank, enum status why)
{
    if (h->fault != STATUS_OK)
        return;
    h->fault = why;
    h->fault_rank = rank;
}

// `from` lost a rank that may well stand for us. When it is this one, the link between us is dead
// at its end and will be at ours.
static enum status on_lost(struct lane_hub *h, uint32_t from, uint32_t rank)
{
    if (rank >= h->group.ranks || rank == from)
        return STATUS_LINK_PROTOCOL;
    bool own = rank == h->group.rank;
    if (h->fault == STATUS_OK && !own)
        log_warn("rank %u of epoch %llu: rank %u lost rank %u", h->group.rank,
                 (unsigned long long)h->group.epoch, from, rank);
    if (own)
        return STATUS_LINK_DOWN;
    fault_note(h, rank, STATUS_LINK_DOWN);
    return STATUS_OK;
}

static enum status on_word(void *ctx, uint32_t from, const struct xport_event *ev)
{
    struct lane_hub *h = ctx;
    enum status s = STATUS_OK;
    if (ev->bytes != 0)
        s = STATUS_LINK_PROTOCOL;
    else if (ev->offset == WORD_READY && ev->notice == (uint32_t)h->group.epoch) {
        h->peers[from].ready = true;
    } else if (ev->offset == WORD_STALE) {
        h->newer = ev->notice;
        h->newer_rank = from;
    } else if (ev->offset == WORD_LOST) {
        s = on_lost(h, from, ev->notice);
    } else if (ev->offset >= WORD_CREDIT && ev->offset < WORD_CREDIT + LANE_CHANNELS) {
        uint32_t channel = (uint32_t)ev->offset - WORD_CREDIT;
        for (size_t i = 0; i < h->lanes_n && s == STATUS_OK; i++)
            s = lane_credit(h->lanes[i], from, channel, ev->notice);
    } else {
        s = STATUS_LINK_PROTOCOL;
    }
    return s;
}

enum status lane_hub_begin(struct lane_hub *h, const struct lane_group *group, struct errmsg *e)
{
    assert(group->epoch > 0 && group->rank < group->ranks && group->ranks <= LIMIT_RANKS);
    group_end(h);
    h->group = *group;
    h->peers = mem_zalloc(group->ranks, sizeof *h->peers);
    h->newer = 0;
    h->fault = STATUS_OK;
    void *base;
    struct lane_receiver words = {on_word, h};
    return lane_hub_receive(h, lane_hub_region(h, LANE_CHANNEL_HUB, 0), WORD_END, &words, &base, e);
}

// --- links ---

static void peer_lost(struct lane_hub *h, uint32_t rank, enum status why)
{
    struct hub_peer *p = &h->peers[rank];
    bool stood = p->up && p->ready;
    p->link = NULL;
    p->up = p->ready = false;
    p->last = why;
    p->retry_us = now_us() + RETRY_MS * 1000;
    if (h->connecting && !stood)
        return; // to be tried again
    p->lost = why;
    fault_note(h, rank, why);
    log_warn("rank %u of epoch %llu lost rank %u: %s", h->group.rank,
             (unsigned long long)h->group.epoch, rank, status_text(why));
}

void lane_hub_drop(struct lane_hub *h, uint32_t rank, enum status why)
{
    if (!h->peers[rank].link)
        return;
    xlink_close(h->peers[rank].link);
    peer_lost(h, rank, why);
}

static bool peer_of(const struct lane_hub *h, const struct xlink *l, uint32_t *rank_out)
{
    for (uint32_t r = 0; r < h->group.ranks; r++) {
        if (h->peers[r].link == l) {
            *rank_out = r;
            return true;
        }
    }
    return false;
}

static void say(struct lane_hub *h, struct xlink *l, uint64_t epoch, uint64_t word, uint32_t value)
{
    const struct xwrite w = {
        .region = region_name(epoch, LANE_CHANNEL_HUB, 0), .offset = word, .notice = value};
    enum status s = xlink_write(l, &w); // the first words on a fresh link: it has room, or is dead
    if (s != STATUS_OK && s != STATUS_LINK_DOWN)
        log_warn("rank %u: a fresh link takes no word: %s", h->group.rank, status_text(s));
}

static void peer_up(struct lane_hub *h, uint32_t rank, struct xlink *l)
{
    h->peers[rank].link = l;
    h->peers[rank].up = true;
    say(h, l, h->group.epoch, WORD_READY, (uint32_t)h->group.epoch);
}

static void caller_refuse(struct lane_hub *h, const struct xport_event *ev, const char *why)
{
    struct hub_hello hello = {0};
    if (ev->hello_n == sizeof hello)
        memcpy(&hello, ev->hello, sizeof hello);
    log_warn("rank %u at epoch %llu refuses a caller (rank %u, epoch %llu): %s", h->group.rank,
             (unsigned long long)h->group.epoch, hello.rank, (unsigned long long)hello.epoch, why);
    if (hello.magic == HUB_MAGIC && hello.epoch < h->group.epoch)
        say(h, ev->link, hello.epoch, WORD_STALE, (uint32_t)h->group.epoch);
    xlink_close(ev->link);
}

static void on_caller(struct lane_hub *h, const struct xport_event *ev)
{
    struct hub_hello hello;
    if (ev->hello_n != sizeof hello) {
        caller_refuse(h, ev, "its hello is malformed");
        return;
    }
    memcpy(&hello, ev->hello, sizeof hello);
    if (hello.magic != HUB_MAGIC || hello.zero != 0)
        caller_refuse(h, ev, "its hello is malformed");
    else if (hello.epoch != h->group.epoch)
        caller_refuse(h, ev, "another epoch");
    else if (hello.ranks != h->group.ranks || hello.rank >= h->group.rank)
        caller_refuse(h, ev, "no such rank, or not the one to call");
    else if (!h->connecting || !h->peers[hello.rank].wanted || h->peers[hello.rank].ready)
        caller_refuse(h, ev, "it is not expected");
    else {
        if (h->peers[hello.rank].link) // it gave up on that one
            xlink_close(h->peers[hello.rank].link);
        peer_up(h, hello.rank, ev->link);
    }
}

static void on_notice(struct lane_hub *h, uint32_t from, const struct xport_event *ev)
{
    enum status s = STATUS_LINK_PROTOCOL;
    for (size_t i = 0; i < h->routes_n; i++) {
        const struct lane_receiver *r = &h->routes[i].receiver;
        if (h->routes[i].region == ev->region) {
            s = r->notice ? r->notice(r->ctx, from, ev) : STATUS_OK;
            break;
        }
    }
    if (s == STATUS_LINK_DOWN) {
        lane_hub_drop(h, from, s);
    } else if (s != STATUS_OK) {
        log_error("rank %u: rank %u sent what does not fit (region %x, offset %llu, %llu bytes, "
                  "notice %u): %s",
                  h->group.rank, from, ev->region, (unsigned long long)ev->offset,
                  (unsigned long long)ev->bytes, ev->notice, status_text(s));
        lane_hub_drop(h, from, s);
    }
}

static void on_event(struct lane_hub *h, const struct xport_event *ev)
{
    uint32_t rank;
    bool known = peer_of(h, ev->link, &rank);
    if (ev->kind == XPORT_LINK_UP && !known)
        on_caller(h, ev);
    else if (ev->kind == XPORT_LINK_UP)
        peer_up(h, rank, ev->link);
    else if (known && ev->kind == XPORT_LINK_DOWN)
        peer_lost(h, rank, ev->status);
    else if (known && ev->kind == XPORT_NOTICE)
        on_notice(h, rank, ev);
    // WRITE_DONE: the source is kept until a credit or the next collective frees it.
}

// Whoever waits for a rank that still stands must hear of the one that it waits for in vain: a rank
// that noticed sends nothing more.
static void tell_fault(struct lane_hub *h)
{
    for (uint32_t r = 0; r < h->group.ranks; r++) {
        struct hub_peer *p = &h->peers[r];
        const struct xwrite w = {.region = lane_hub_region(h, LANE_CHANNEL_HUB, 0),
                                 .offset = WORD_LOST,
                                 .notice = h->fault_rank};
        if (p->up && p->ready && !p->told && r != h->fault_rank)
            p->told = xlink_write(p->link, &w) == STATUS_OK; // full: with the next poll
    }
}

enum status lane_hub_poll(struct lane_hub *h)
{
    if (lane_hub_aborted(h))
        return STATUS_ABORTED;
    struct xport_event ev[EVENTS];
    int n = xport_poll(h->x, ev, EVENTS);
    for (int i = 0; i < n; i++)
        on_event(h, &ev[i]);
    for (size_t i = 0; i < h->lanes_n; i++)
        lane_flush(h->lanes[i]);
    if (h->fault != STATUS_OK)
        tell_fault(h);
    return n > 0 ? STATUS_OK : STATUS_AGAIN;
}

enum status lane_hub_wait(struct lane_hub *h, int timeout_ms)
{
    enum status s = lane_hub_poll(h);
    if (s != STATUS_AGAIN)
        return s;
    xport_wait(h->x, timeout_ms);
    return lane_hub_poll(h);
}

enum status lane_hub_peer(const struct lane_hub *h, uint32_t rank)
{
    assert(rank < h->group.ranks);
    const struct hub_peer *p = &h->peers[rank];
    if (p->lost != STATUS_OK)
        return p->lost;
    return p->up && p->ready ? STATUS_OK : STATUS_AGAIN;
}

enum status lane_hub_fault(const struct lane_hub *h, uint32_t *rank_out)
{
    if (h->fault != STATUS_OK)
        *rank_out = h->fault_rank;
    return h->fault;
}

enum status lane_hub_write(struct lane_hub *h, uint32_t rank, const struct xwrite *w)
{
    enum status s = lane_hub_peer(h, rank);
    return s == STATUS_OK ? xlink_write(h->peers[rank].link, w) : s;
}

void lane_hub_wake(struct lane_hub *h)
{
    xport_wake(h->x);
}

void lane_hub_abort(struct lane_hub *h, uint64_t epoch)
{
    uint64_t old = atomic_load(&h->abort_epoch);
    while (old < epoch && !atomic_compare_exchange_weak(&h->abort_epoch, &old, epoch))
        ;
    xport_wake(h->x);
}

bool lane_hub_aborted(const struct lane_hub *h)
{
    return h->group.epoch > 0 && atomic_load(&h->abort_epoch) >= h->group.epoch;
}

// --- linking up ---

static enum status call(struct lane_hub *h, uint32_t rank, struct errmsg *e)
{
    struct hub_peer *p = &h->peers[rank];
    const struct hub_hello hello = {.magic = HUB_MAGIC,
                                    .rank = h->group.rank,
                                    .ranks = h->group.ranks,
                                    .epoch = h->group.epoch};
    enum status s = xport_connect(h->x, p->address, &hello, sizeof hello, NULL, &p->link, e);
    p->retry_us = now_us() + RETRY_MS * 1000;
    return s > 0 ? STATUS_OK : s; // AGAIN, FULL: later
}

static enum status call_all(struct lane_hub *h, struct errmsg *e)
{
    for (uint32_t r = h->group.rank + 1; r < h->group.ranks; r++) {
        struct hub_peer *p = &h->peers[r];
        if (!p->wanted || p->link || p->retry_us > now_us())
            continue;
        enum status s = call(h, r, e);
        if (s != STATUS_OK)
            return s;
    }
    return STATUS_OK;
}

static bool all_ready(const struct lane_hub *h)
{
    for (uint32_t r = 0; r < h->group.ranks; r++)
        if (h->peers[r].wanted && !h->peers[r].ready)
            return false;
    return true;
}

static enum status missing(const struct lane_hub *h, uint32_t timeout_ms, struct errmsg *e)
{
    struct strbuf b = {0};
    for (uint32_t r = 0; r < h->group.ranks; r++) {
        const struct hub_peer *p = &h->peers[r];
        if (!p->wanted || p->ready)
            continue;
        const char *why = p->up                  ? "linked, but not ready"
                          : p->last != STATUS_OK ? status_text(p->last)
                          : r < h->group.rank    ? "did not call"
                                                 : "no answer";
        int shown = (int)strcspn(p->address, "#"); // the token is nobody's business
        strbuf_printf(&b, "%srank %u (%.*s): %s", b.n ? "; " : "", r, shown, p->address, why);
    }
    errmsg_set(e, STATUS_LINK_TIMEOUT, "rank %u, epoch %llu: missing after %u ms: %s",
               h->group.rank, (unsigned long long)h->group.epoch, timeout_ms, b.v);
    strbuf_finish(&b);
    return STATUS_LINK_TIMEOUT;
}

static enum status link_up(struct lane_hub *h, uint32_t timeout_ms, struct errmsg *e)
{
    uint64_t deadline = now_us() + (uint64_t)timeout_ms * 1000;
    while (!all_ready(h)) {
        enum status s = call_all(h, e);
        if (s == STATUS_OK)
            s = lane_hub_wait(h, RETRY_MS);
        if (s == STATUS_ABORTED)
            return errmsg_set(e, s, "rank %u, epoch %llu: aborted while linking up", h->group.rank,
                              (unsigned long long)h->group.epoch);
        if (s < 0)
            return s;
        if (h->newer > (uint32_t)h->group.epoch)
            return errmsg_set(e, STATUS_STALE_EPOCH, "rank %u is at epoch %llu: %u is at %llu",
                              h->group.rank, (unsigned long long)h->group.epoch, h->newer_rank,
                              (unsigned long long)h->newer);
        if (h->fault != STATUS_OK)
            return errmsg_set(e, h->fault, "rank %u, epoch %llu: rank %u was lost while linking up",
                              h->group.rank, (unsigned long long)h->group.epoch, h->fault_rank);
        if (now_us() >= deadline && !all_ready(h))
            return missing(h, timeout_ms, e);
    }
    return STATUS_OK;
}

enum status lane_hub_connect(struct lane_hub *h, const char *const *addresses, uint32_t timeout_ms,
                             struct errmsg *e)
{
    for (uint32_t r = 0; r < h->group.ranks; r++) {
        h->peers[r].wanted = r != h->group.rank && addresses[r];
        h->peers[r].address = addresses[r];
    }
    h->connecting = true;
    enum status s = link_up(h, timeout_ms, e);
    h->connecting = false;
    for (uint32_t r = 0; r < h->group.ranks; r++) {
        h->peers[r].address = NULL;
        if (h->peers[r].link && !h->peers[r].ready) { // given up
            xlink_close(h->peers[r].link);
            h->peers[r].link = NULL;
            h->peers[r].up = false;
        }
    }
    return s;
}
