// A thread of one transport: it owns the xport and its links, and does nothing but move. Links look
// their transfer up each time they touch it, so they may outlive it.
#include <sys/resource.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/mover_int.h"

enum { EVENTS = 64, IDLE_MS = 1000, TAKEN_LINGER_MS = 10000, NICE = 5 };

struct mover_link {
    struct mover_link *prev, *next;
    struct xlink *x; // NULL: closed or down
    uint64_t transfer;
    bool source;
    uint32_t peer; // in the move's peers
    int region;    // -1 = none
    char *base;
    uint32_t slot_bytes;
    uint32_t writes; // under way
    // source
    bool granted, end_sent;
    uint32_t peer_region;
    uint32_t sent, acked;
    size_t pending; // bytes of slot `sent`, not accepted yet
    uint32_t place, piece;
    // target
    uint32_t notices[MOVER_SLOTS + 2]; // to be sent
    uint32_t notices_n;
    uint64_t taken_ms; // TAKEN was sent then; 0 = not
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static uint32_t notice(enum mover_notice kind, uint32_t value)
{
    return (uint32_t)kind << 24 | (value & 0xffffff);
}

static struct mover_link *link_new(struct mover_thread *t, uint64_t transfer, bool source)
{
    struct mover_link *l = mem_zalloc(1, sizeof *l);
    l->transfer = transfer;
    l->source = source;
    l->region = -1;
    DL_APPEND(t->links, l);
    return l;
}

static enum status link_region(struct mover_thread *t, struct mover_link *l, uint32_t slot_bytes)
{
    struct errmsg e = {0};
    void *base;
    int i = 0;
    while (i < MOVER_LINKS && t->regions[i])
        i++;
    if (i == MOVER_LINKS)
        return STATUS_FULL;
    enum status rc =
        xport_region_create(t->x, (uint32_t)i, (size_t)MOVER_SLOTS * slot_bytes, &base, &e);
    if (rc != STATUS_OK)
        return rc;
    t->regions[i] = true;
    l->region = i;
    l->base = base;
    l->slot_bytes = slot_bytes;
    return STATUS_OK;
}

static void link_close(struct mover_link *l)
{
    if (l->x)
        xlink_close(l->x);
    l->x = NULL;
}

// Once nothing of it is under way.
static void link_free(struct mover_thread *t, struct mover_link *l)
{
    if (l->region >= 0) {
        xport_region_destroy(t->x, (uint32_t)l->region);
        t->regions[l->region] = false;
    }
    DL_DELETE(t->links, l);
    free(l);
}

// ---- the transfer behind a link ----

static void fail_move(struct mover_thread *t, const struct mover_link *l, enum status status,
                      const char *text)
{
    struct mover *m = t->m;
    pthread_mutex_lock(&m->lock);
    struct mover_move *v = mover_find(m, l->transfer);
    if (v && v->source == l->source && !v->peers[l->peer].over)
        mover_fail(m, v, status, text);
    pthread_mutex_unlock(&m->lock);
}

static bool has_move(struct mover_thread *t, const struct mover_link *l)
{
    struct mover *m = t->m;
    pthread_mutex_lock(&m->lock);
    const struct mover_move *v = mover_find(m, l->transfer);
    bool has = v && v->source == l->source;
    pthread_mutex_unlock(&m->lock);
    return has;
}

// ---- source ----

// Under the lock. The next peer of a transfer of this thread that has no link yet.
static struct mover_move *unlinked(struct mover_thread *t, uint32_t *peer_out)
{
    struct mover_move *v;
    DL_FOREACH(t->m->moves, v)
    for (uint32_t i = 0; v->source && v->kind == t->kind && !v->failed && i < v->peers_n; i++)
        if (!v->peers[i].linked) {
            *peer_out = i;
            return v;
        }
    return NULL;
}

static bool link_next(struct mover_thread *t)
{
    struct mover *m = t->m;
    char address[LIMIT_ADDR];
    uint32_t peer;
    pthread_mutex_lock(&m->lock);
    struct mover_move *v = unlinked(t, &peer);
    if (!v) {
        pthread_mutex_unlock(&m->lock);
        return false;
    }
    v->peers[peer].linked = true;
    struct mover_hello hello = {.magic = MOVER_MAGIC,
                                .source_rank = m->rank.rank,
                                .target_rank = v->peers[peer].rank,
                                .slot_bytes = m->slot_bytes,
                                .elem_bytes = (uint32_t)m->layout.elem_bytes,
                                .backend = (uint32_t)kern_backend(m->rank.kern),
                                .transfer = v->transfer,
                                .source_epoch = m->rank.epoch,
                                .target_epoch = v->peer_epoch,
                                .fingerprint = m->rank.fingerprint};
    struct mover_link *l = link_new(t, v->transfer, true);
    l->peer = peer;
    l->place = v->first;
    snprintf(address, sizeof address, "%s", v->peers[peer].address);
    pthread_mutex_unlock(&m->lock);
    struct errmsg e = {0};
    enum status rc = link_region(t, l, hello.slot_bytes);
    hello.region = (uint32_t)l->region;
    if (rc == STATUS_OK)
        rc = xport_connect(t->x, address, &hello, sizeof hello, l, &l->x, &e);
    if (rc != STATUS_OK)
        fail_move(t, l, rc, e.text[0] ? e.text : "no staging for a link");
    return true;
}

// The end of the chain, once everything before it was sent.
static void send_end(struct mover_thread *t, struct mover_link *l)
{
    struct mover *m = t->m;
    pthread_mutex_lock(&m->lock);
    const struct mover_move *v = mover_find(m, l->transfer);
    bool at_end = v && v->source && v->last && l->place >= v->filled;
    uint32_t n = v ? v->filled : 0;
    pthread_mutex_unlock(&m->lock);
    if (!at_end)
        return;
    const struct xwrite w = {
        .region = l->peer_region, .src = l->base, .notice = notice(MOVER_END, n), .user = l};
    if (xlink_write(l->x, &w) == STATUS_OK) {
        l->writes++;
        l->end_sent = true;
    }
}

static void pump(struct mover_thread *t, struct mover_link *l)
{
    while (l->x && l->granted && !l->end_sent) {
        uint32_t slot = l->sent % MOVER_SLOTS;
        char *at = l->base + (size_t)slot * l->slot_bytes;
        if (!l->pending && l->sent - l->acked < MOVER_SLOTS)
            l->pending = mover_gather(t->m, l->transfer, l->peer, at, &l->place, &l->piece);
        if (!l->pending) {
            send_end(t, l);
            return;
        }
        const struct xwrite w = {.region = l->peer_region,
                                 .offset = (uint64_t)slot * l->slot_bytes,
                                 .src = at,
                                 .bytes = l->pending,
                                 .notice = notice(MOVER_DATA, slot),
                                 .user = l};
        if (xlink_write(l->x, &w) != STATUS_OK)
            return; // full: again after the next events; down: its event comes
        l->writes++;
        l->sent++;
        l->pending = 0;
    }
}

static void source_notice(struct mover_thread *t, struct mover_link *l, uint32_t value)
{
    struct mover *m = t->m;
    switch (value >> 24) {
    case MOVER_GRANT:
        l->granted = true;
        l->peer_region = value & 0xffffff;
        return;
    case MOVER_ACK:
        if (l->acked != l->sent)
            l->acked++;
        return;
    case MOVER_TAKEN:
        pthread_mutex_lock(&m->lock);
        struct mover_move *v = mover_find(m, l->transfer);
        if (v && v->source && l->end_sent) {
            v->peers[l->peer].over = true;
            mover_check_end(m, v);
        }
        pthread_mutex_unlock(&m->lock);
        return;
    default:
        fail_move(t, l, STATUS_LINK_PROTOCOL, "a notice that targets do not send");
        link_close(l);
    }
}

// ---- target ----

static void flush_notices(struct mover_link *l)
{
    uint32_t n = 0;
    while (l->x && n < l->notices_n) {
        const struct xwrite w = {
            .region = l->peer_region, .src = l->base, .notice = l->notices[n], .user = l};
        if (xlink_write(l->x, &w) != STATUS_OK)
            break;
        l->writes++;
        n++;
    }
    l->notices_n -= n;
    memmove(l->notices, l->notices + n, l->notices_n * sizeof *l->notices);
}

// A peer has at most one notice for each slot, GRANT and TAKEN due to it.
static void answer(struct mover_link *l, enum mover_notice kind, uint32_t value)
{
    if (l->notices_n < sizeof l->notices / sizeof *l->notices)
        l->notices[l->notices_n++] = notice(kind, value);
    flush_notices(l);
}

// Under the lock: which peer of which transfer has come; -1: nobody who is awaited.
static int awaited(const struct mover *m, const struct mover_hello *h, struct mover_move **out)
{
    struct mover_move *v = mover_find((struct mover *)m, h->transfer);
    if (!m->attached || h->magic != MOVER_MAGIC || !v || v->source || v->failed ||
        h->source_epoch != v->peer_epoch || h->target_epoch != m->rank.epoch ||
        h->target_rank != m->rank.rank || h->fingerprint != m->rank.fingerprint)
        return -1;
    if (h->elem_bytes != (uint32_t)m->layout.elem_bytes ||
        h->backend != (uint32_t)kern_backend(m->rank.kern) || h->slot_bytes < 4096 ||
        h->slot_bytes > MOVER_SLOT_MAX)
        return -1;
    for (uint32_t i = 0; i < v->peers_n; i++)
        if (v->peers[i].rank == h->source_rank && !v->peers[i].linked) {
            *out = v;
            return (int)i;
        }
    return -1;
}

static void incoming(struct mover_thread *t, const struct xport_event *ev)
{
    struct mover *m = t->m;
    struct mover_hello h;
    struct mover_move *v;
    int peer = -1;
    if (ev->hello_n == sizeof h) {
        memcpy(&h, ev->hello, sizeof h);
        pthread_mutex_lock(&m->lock);
        peer = awaited(m, &h, &v);
        if (peer >= 0)
            v->peers[peer].linked = true;
        else
            m->stats.refused++;
        pthread_mutex_unlock(&m->lock);
    }
    if (peer < 0) {
        xlink_close(ev->link);
        return;
    }
    struct mover_link *l = link_new(t, h.transfer, false);
    l->x = ev->link;
    l->peer = (uint32_t)peer;
    l->peer_region = h.region;
    xlink_set_user(ev->link, l);
    enum status rc = link_region(t, l, h.slot_bytes);
    if (rc != STATUS_OK) {
        fail_move(t, l, rc, "no staging for a link");
        link_close(l);
        return;
    }
    answer(l, MOVER_GRANT, (uint32_t)l->region);
}

// END was said and all its pieces are here?
static void check_taken(struct mover_thread *t, struct mover_link *l, const uint32_t *end)
{
    struct mover *m = t->m;
    bool taken = false;
    pthread_mutex_lock(&m->lock);
    struct mover_move *v = mover_find(m, l->transfer);
    if (v && !v->source && !v->failed) {
        struct mover_peer *p = &v->peers[l->peer];
        if (end)
            p->end = *end;
        uint64_t blocks = p->end - v->first;
        if (p->end < v->first || p->end > v->total || p->got != blocks * p->pieces_n) {
            mover_fail(m, v, STATUS_LINK_PROTOCOL, "the end came before its blocks");
        } else {
            p->over = taken = true;
            mover_check_end(m, v);
        }
    }
    pthread_mutex_unlock(&m->lock);
    if (taken) {
        l->taken_ms = now_ms();
        answer(l, MOVER_TAKEN, 0);
    }
}

static void target_notice(struct mover_thread *t, struct mover_link *l,
                          const struct xport_event *ev)
{
    uint32_t value = ev->notice & 0xffffff;
    if (ev->notice >> 24 == MOVER_END && !l->taken_ms) {
        check_taken(t, l, &value);
        return;
    }
    enum status rc = STATUS_LINK_PROTOCOL;
    if (ev->notice >> 24 == MOVER_DATA && value < MOVER_SLOTS && !l->taken_ms &&
        (int)ev->region == l->region && ev->offset == (uint64_t)value * l->slot_bytes &&
        ev->bytes <= l->slot_bytes)
        rc = mover_scatter(t->m, l->transfer, l->peer, l->base + ev->offset, ev->bytes);
    if (rc == STATUS_OK) {
        answer(l, MOVER_ACK, 0);
        return;
    }
    if (rc == STATUS_LINK_PROTOCOL)
        fail_move(t, l, rc, "pieces that were not awaited");
    link_close(l);
}

// ---- the thread ----

static void handle(struct mover_thread *t, const struct xport_event *ev)
{
    if (ev->kind == XPORT_WRITE_DONE) {
        ((struct mover_link *)ev->user)->writes--;
        return;
    }
    struct mover_link *l = xlink_user(ev->link);
    if (ev->kind == XPORT_LINK_UP && !l) {
        incoming(t, ev);
    } else if (ev->kind == XPORT_LINK_DOWN && l) {
        l->x = NULL;
        fail_move(t, l, ev->status < 0 ? ev->status : STATUS_LINK_DOWN,
                  l->source ? "a rank of the target was lost" : "a rank of the source was lost");
    } else if (ev->kind == XPORT_NOTICE && l && l->x) {
        if (l->source)
            source_notice(t, l, ev->notice);
        else
            target_notice(t, l, ev);
    }
}

static void tend(struct mover_thread *t)
{
    struct mover_link *l, *next;
    DL_FOREACH_SAFE(t->links, l, next)
    {
        if (l->x && !l->taken_ms && !has_move(t, l))
            link_close(l); // ended; a target that has all waits for its source to close
        if (l->x && l->taken_ms && now_ms() - l->taken_ms > TAKEN_LINGER_MS)
            link_close(l);
        if (l->source)
            pump(t, l);
        else
            flush_notices(l);
        if (!l->x && !l->writes)
            link_free(t, l);
    }
}

static bool quits(struct mover_thread *t)
{
    pthread_mutex_lock(&t->m->lock);
    bool quit = t->m->quit;
    pthread_mutex_unlock(&t->m->lock);
    return quit;
}

void *mover_thread_main(void *arg)
{
    struct mover_thread *t = arg;
    struct xport_event events[EVENTS];
    // Cores are for steps: on a crowded host blocks move in what is left.
    if (setpriority(PRIO_PROCESS, (id_t)gettid(), getpriority(PRIO_PROCESS, 0) + NICE))
        log_debug("the KV mover keeps its priority");
    while (!quits(t)) {
        int n = xport_poll(t->x, events, EVENTS);
        for (int i = 0; i < n; i++)
            handle(t, &events[i]);
        while (link_next(t))
            continue;
        tend(t);
        if (n == 0)
            xport_wait(t->x, IDLE_MS);
    }
    while (t->links) {
        struct mover_link *l = t->links;
        link_close(l);
        DL_DELETE(t->links, l); // regions go with the xport
        free(l);
    }
    return NULL;
}
