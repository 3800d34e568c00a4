// The thread of one source: connects to it over the best transport that works, keeps its slots full
// of requests, checks what comes back. It ends when the source is lost or the pull is over.
#include "node/pull_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"

enum { EVENTS = 32, WAIT_MS = 50, HANDSHAKE_MS = 3000, TRIES = 3 };

static bool quits(struct pull_peer *x)
{
    pthread_mutex_lock(&x->p->lock);
    bool q = x->p->quit;
    pthread_mutex_unlock(&x->p->lock);
    return q;
}

static void publish_xport(struct pull_peer *x, struct xport *xp)
{
    pthread_mutex_lock(&x->p->lock);
    x->x = xp;
    pthread_mutex_unlock(&x->p->lock);
}

// ---- answers

static struct pull_answer *answer_of(struct pull_peer *x, uint32_t slot)
{
    return (struct pull_answer *)(void *)(x->answers + (size_t)slot * PULL_SLOT_BYTES);
}

// Whether the slot's answer is that to its request, with the bytes that the source read. The
// header is copied first: the source may still write there.
static enum status check_answer(struct pull_peer *x, const struct pull_slot *s,
                                const struct xport_event *ev, const struct pull_answer *memory)
{
    const struct pull_answer a = *memory;
    const struct pull_request *q = &s->request;
    const uint64_t want = sizeof a + (a.status == STATUS_OK ? q->bytes : 0);
    if (ev->bytes != want || a.number != q->number || a.file != q->file || a.at != q->at ||
        a.bytes != q->bytes)
        return STATUS_LINK_PROTOCOL;
    if (a.status != STATUS_OK)
        return STATUS_NOT_FOUND;
    return hash_bytes(memory + 1, q->bytes, q->at) == a.hash ? STATUS_OK : STATUS_LINK_CORRUPT;
}

// Only the first good answer is copied, and only while its reader waits.
static void take_bytes(struct pull_peer *x, struct pull_slot *s, const void *bytes)
{
    struct pull *p = x->p;
    struct pull_chunk *c = s->chunk;
    pthread_mutex_lock(&p->lock);
    bool wanted = c->generation == s->generation && c->state == PULL_ASKED;
    if (c->generation == s->generation)
        c->holders &= ~(1u << x->index);
    if (wanted)
        c->state = PULL_COPYING;
    pthread_mutex_unlock(&p->lock);
    if (wanted)
        memcpy(c->out, bytes, s->request.bytes);
    const uint64_t us = pull_now_us() - s->asked_us;
    pthread_mutex_lock(&p->lock);
    x->mean_us = x->mean_us ? (x->mean_us * 7 + us) / 8 : us;
    if (wanted) {
        c->state = PULL_DONE;
        c->status = STATUS_OK;
        x->bytes += s->request.bytes;
        p->stats.peer_bytes += s->request.bytes;
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
}

static enum status on_bad_answer(struct pull_peer *x, struct pull_slot *s, enum status why)
{
    struct pull *p = x->p;
    pthread_mutex_lock(&p->lock);
    if (s->chunk->generation == s->generation)
        pull_give_back(p, x, s->chunk, true);
    p->stats.bad++;
    uint32_t bad = ++x->bad;
    pthread_mutex_unlock(&p->lock);
    log_warn("weights: node %s answered badly for %u bytes at %llu of file %u: %s; asked elsewhere",
             x->name, s->request.bytes, (unsigned long long)s->request.at, s->request.file,
             status_text(why));
    return bad >= PULL_ANSWERS_BAD_MAX ? why : STATUS_OK;
}

static enum status on_answer(struct pull_peer *x, const struct xport_event *ev)
{
    if (ev->region != PULL_REGION_ANSWERS || ev->notice >= PULL_SLOTS ||
        ev->offset != (uint64_t)ev->notice * PULL_SLOT_BYTES ||
        ev->bytes < sizeof(struct pull_answer))
        return STATUS_LINK_PROTOCOL;
    struct pull_slot *s = &x->slots[ev->notice];
    if (!s->chunk)
        return STATUS_LINK_PROTOCOL; // not asked
    struct pull_answer *a = answer_of(x, ev->notice);
    x->heard_us = pull_now_us();
    enum status st = check_answer(x, s, ev, a);
    if (st == STATUS_OK)
        take_bytes(x, s, a + 1);
    else
        st = on_bad_answer(x, s, st);
    s->chunk = NULL;
    return st;
}

static enum status on_event(struct pull_peer *x, const struct xport_event *ev)
{
    switch (ev->kind) {
    case XPORT_LINK_UP:
        if (ev->link != x->link) { // nobody is expected to call
            xlink_close(ev->link);
            return STATUS_OK;
        }
        x->up = true;
        return STATUS_OK;
    case XPORT_LINK_DOWN:
        if (ev->link != x->link)
            return STATUS_OK;
        x->link = NULL;
        return ev->status == STATUS_OK ? STATUS_LINK_DOWN : ev->status;
    case XPORT_WRITE_DONE:
        ((struct pull_slot *)ev->user)->written = true;
        return STATUS_OK;
    case XPORT_NOTICE:
        if (ev->link != x->link)
            return STATUS_OK;
        if (ev->notice != PULL_NOTICE_WELCOME)
            return on_answer(x, ev);
        if (x->welcomed || ev->offset != PULL_AT_WELCOME || ev->bytes != sizeof x->welcome)
            return STATUS_LINK_PROTOCOL;
        memcpy(&x->welcome, x->answers + PULL_AT_WELCOME, sizeof x->welcome);
        x->welcomed = true;
        return STATUS_OK;
    }
    return STATUS_OK;
}

static enum status poll_events(struct pull_peer *x, int *n_out)
{
    struct xport_event ev[EVENTS];
    enum status s = STATUS_OK;
    *n_out = xport_poll(x->x, ev, EVENTS);
    for (int i = 0; i < *n_out; i++) { // all of them: slots' memory is given back by events
        enum status one = on_event(x, &ev[i]);
        s = s == STATUS_OK ? one : s;
    }
    return s;
}

// ---- requests

static enum status send_request(struct pull_peer *x, struct pull_slot *s,
                                const struct pull_chunk *c)
{
    const uint64_t slot = (uint64_t)(s - x->slots);
    s->request = (struct pull_request){
        .at = c->at, .file = c->file, .bytes = c->bytes, .number = ++x->numbers};
    const struct xwrite w = {
        .region = PULL_REGION_REQUESTS,
        .offset = (x->welcome.link * PULL_SLOTS + slot) * sizeof s->request,
        .src = &s->request,
        .bytes = sizeof s->request,
        .notice = (uint32_t)slot,
        .user = s,
    };
    return xlink_write(x->link, &w);
}

static enum status fill_slots(struct pull_peer *x)
{
    struct pull *p = x->p;
    for (int i = 0; i < PULL_SLOTS; i++) {
        struct pull_slot *s = &x->slots[i];
        if (s->chunk || !s->written)
            continue;
        pthread_mutex_lock(&p->lock);
        struct pull_chunk *c = pull_take(p, x);
        struct pull_chunk copy = {0};
        if (c) {
            copy = *c;
            s->generation = c->generation;
        }
        pthread_mutex_unlock(&p->lock);
        if (!c)
            return STATUS_OK;
        enum status st = send_request(x, s, &copy);
        if (st == STATUS_OK) {
            s->chunk = c;
            s->written = false;
            s->asked_us = pull_now_us();
            continue;
        }
        pthread_mutex_lock(&p->lock);
        if (c->generation == s->generation)
            pull_give_back(p, x, c, false);
        pthread_mutex_unlock(&p->lock);
        return st > 0 ? STATUS_OK : st;
    }
    return STATUS_OK;
}

// The oldest request under way; 0: none.
static uint64_t oldest_us(const struct pull_peer *x)
{
    uint64_t oldest = 0;
    for (int i = 0; i < PULL_SLOTS; i++)
        if (x->slots[i].chunk && (!oldest || x->slots[i].asked_us < oldest))
            oldest = x->slots[i].asked_us;
    return oldest;
}

static bool hangs(const struct pull_peer *x)
{
    const uint64_t asked = oldest_us(x), since = asked > x->heard_us ? asked : x->heard_us;
    return asked && pull_now_us() - since > x->p->hang_us;
}

static enum status serve(struct pull_peer *x, struct errmsg *e)
{
    enum status s = STATUS_OK;
    while (!quits(x)) {
        int n = 0;
        s = poll_events(x, &n);
        if (s == STATUS_OK)
            s = fill_slots(x);
        if (s != STATUS_OK)
            return errmsg_set(e, s, "%s", status_text(s));
        if (hangs(x))
            return errmsg_set(e, STATUS_LINK_TIMEOUT, "answered nothing for %llu ms",
                              (unsigned long long)(x->p->hang_us / 1000));
        if (!n)
            xport_wait(x->x, WAIT_MS);
    }
    return STATUS_OK;
}

// ---- the beginning

// Until *flag, within `ms`.
static enum status await(struct pull_peer *x, const bool *flag, int ms, struct errmsg *e)
{
    const uint64_t end = pull_now_us() + 1000ull * (uint64_t)ms;
    while (!*flag) {
        int n = 0;
        enum status s = quits(x) ? STATUS_CANCELLED : poll_events(x, &n);
        if (s != STATUS_OK)
            return errmsg_set(e, s, "%s", status_text(s));
        if (pull_now_us() > end)
            return errmsg_set(e, STATUS_LINK_TIMEOUT, "does not answer");
        if (!n && !*flag)
            xport_wait(x->x, WAIT_MS);
    }
    return STATUS_OK;
}

// The listing comes in chunks like any file, one at a time, by a chunk that is in no queue.
static enum status fetch_listing(struct pull_peer *x, uint8_t *out, struct errmsg *e)
{
    struct pull_chunk c = {.file = PULL_LISTING};
    struct pull_slot *s = &x->slots[0];
    for (uint32_t at = 0; at < x->welcome.listing_bytes; at += c.bytes) {
        uint32_t left = x->welcome.listing_bytes - at;
        c = (struct pull_chunk){.state = PULL_ASKED,
                                .file = PULL_LISTING,
                                .at = at,
                                .bytes = left < PULL_CHUNK ? left : PULL_CHUNK,
                                .out = (char *)out + at,
                                .holders = 1u << x->index};
        s->chunk = &c;
        s->generation = 0;
        s->written = false;
        s->asked_us = pull_now_us();
        enum status st = send_request(x, s, &c);
        const uint64_t end = pull_now_us() + x->p->hang_us;
        while (st == STATUS_OK && (c.state != PULL_DONE || !s->written)) {
            int n = 0;
            st = quits(x) ? STATUS_CANCELLED : poll_events(x, &n);
            if (st == STATUS_OK && (pull_now_us() > end || c.state == PULL_QUEUED))
                st = STATUS_LINK_TIMEOUT;
            if (st == STATUS_OK && !n)
                xport_wait(x->x, WAIT_MS);
        }
        s->chunk = NULL;
        if (c.state == PULL_QUEUED) { // a bad answer put it there
            pthread_mutex_lock(&x->p->lock);
            x->p->queued_n--;
            pthread_mutex_unlock(&x->p->lock);
        }
        if (st != STATUS_OK)
            return errmsg_set(e, st, "its list of files: %s", status_text(st));
    }
    return STATUS_OK;
}

// The first source's listing counts; others must have the same.
static enum status agree(struct pull_peer *x, struct errmsg *e)
{
    struct pull *p = x->p;
    const struct pull_welcome *w = &x->welcome;
    if (w->magic != PULL_MAGIC || w->link >= PULL_LINKS || w->listing_bytes > PULL_LISTING_MAX)
        return errmsg_set(e, STATUS_LINK_PROTOCOL, "its welcome makes no sense");
    if (w->status != STATUS_OK)
        return errmsg_set(e, STATUS_NOT_FOUND, "does not have this model: %s",
                          status_text((enum status)w->status));
    uint8_t *listing = mem_alloc(w->listing_bytes ? w->listing_bytes : 1);
    enum status s = fetch_listing(x, listing, e);
    if (s == STATUS_OK && hash_bytes(listing, w->listing_bytes, 0) != w->listing_hash)
        s = errmsg_set(e, STATUS_LINK_CORRUPT, "its list of files is not the one it told of");
    pthread_mutex_lock(&p->lock);
    p->stats.peer_bytes -= s == STATUS_OK ? w->listing_bytes : 0; // no weights
    x->bytes -= s == STATUS_OK ? w->listing_bytes : 0;
    if (s == STATUS_OK && !p->listed) {
        s = pull_listing_set(p, listing, w->listing_bytes, e);
        p->listing_hash = w->listing_hash;
    } else if (s == STATUS_OK && p->listing_hash != w->listing_hash) {
        s = errmsg_set(e, STATUS_BAD_MODEL, "its model folder has other files");
    }
    if (s == STATUS_OK)
        x->state = PEER_SERVING;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    free(listing);
    return s;
}

static enum status connect_over(struct pull_peer *x, enum xport_kind kind, struct errmsg *e)
{
    const struct xport_config config = {.kind = kind,
                                        .bind_host = x->p->bind,
                                        .max_links = 2,
                                        .link_depth = 2 * PULL_SLOTS,
                                        .handshake_ms = HANDSHAKE_MS};
    const struct pull_hello hello = {PULL_MAGIC, PULL_VERSION, x->p->args.fingerprint};
    struct xport *xp = NULL;
    void *base = NULL;
    enum status s = xport_open(&config, &xp, e);
    if (s != STATUS_OK)
        return s;
    x->kind = kind;
    x->up = x->welcomed = false;
    x->heard_us = 0;
    for (int i = 0; i < PULL_SLOTS; i++)
        x->slots[i] = (struct pull_slot){.written = true};
    publish_xport(x, xp);
    s = xport_region_create(xp, PULL_REGION_ANSWERS, PULL_ANSWERS_BYTES, &base, e);
    x->answers = base;
    if (s == STATUS_OK)
        s = xport_connect(xp, x->addresses[kind], &hello, sizeof hello, NULL, &x->link, e);
    if (s == STATUS_OK)
        s = await(x, &x->up, HANDSHAKE_MS, e);
    if (s == STATUS_OK)
        s = await(x, &x->welcomed, HANDSHAKE_MS, e);
    return s;
}

// What it was asked is others' now.
static void disconnect(struct pull_peer *x)
{
    struct pull *p = x->p;
    pthread_mutex_lock(&p->lock);
    struct xport *xp = x->x;
    x->x = NULL;
    for (int i = 0; i < PULL_SLOTS; i++) {
        struct pull_slot *s = &x->slots[i];
        if (s->chunk && s->chunk->generation == s->generation)
            pull_give_back(p, x, s->chunk, false);
        s->chunk = NULL;
    }
    pthread_mutex_unlock(&p->lock);
    x->link = NULL;
    xport_close(xp);
}

// Shared memory where it is offered (the source is on this host then), else RDMA, else TCP.
static enum status run_once(struct pull_peer *x, struct errmsg *e)
{
    static const enum xport_kind order[] = {XPORT_SHM, XPORT_VERBS, XPORT_TCP};
    enum status s = errmsg_set(e, STATUS_NOT_FOUND, "gave no address");
    for (size_t i = 0; i < sizeof order / sizeof *order && !quits(x); i++) {
        if (!x->addresses[order[i]][0])
            continue;
        s = connect_over(x, order[i], e);
        if (s == STATUS_OK)
            break;
        disconnect(x);
    }
    if (s == STATUS_OK)
        s = agree(x, e);
    if (s == STATUS_OK) {
        log_info("pulling weights from node %s over %s", x->name, xport_kind_name(x->kind));
        s = serve(x, e);
    }
    disconnect(x);
    return s;
}

void *pull_peer_main(void *arg)
{
    struct pull_peer *x = arg;
    struct pull *p = x->p;
    struct errmsg e = {0};
    enum status s = STATUS_OK;
    // A link that broke may come up again; one that gave nothing in between is not worth it.
    for (int tries = 0; tries < TRIES && !quits(x); tries++) {
        const uint64_t before = x->bytes;
        s = run_once(x, &e);
        if (s != STATUS_LINK_DOWN || x->bytes == before)
            break;
    }
    pthread_mutex_lock(&p->lock);
    x->state = PEER_LOST;
    x->why = e;
    p->stats.lost += !p->quit;
    pthread_cond_broadcast(&p->changed);
    bool quit = p->quit;
    pthread_mutex_unlock(&p->lock);
    if (!quit)
        log_warn("weights: node %s is not pulled from any more: %s", x->name, e.text);
    return NULL;
}
