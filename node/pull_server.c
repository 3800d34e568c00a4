// One thread and one xport for each transport. A turn of the thread: take what came, send at most
// one chunk, of the links in turn, so that no target waits for another's whole queue.
//
// A chunk is read from its file into a piece of staging memory, hashed, and written into the
// target's slot; the staging is free again when the write is done. A link holds at most half of it.
#include "node/pull_server.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "node/pull_wire.h"

enum {
    STAGINGS = 4,
    STAGINGS_PER_LINK = STAGINGS / 2,
    EVENTS = 32,
    NICE = 10, // about a tenth of a core that steps want as well
    PATIENCE_MS = 10000,
    BURST_US = 4000,
    WAIT_MS = 500,
    IDLE_MS = 10000, // nobody pulls
};

enum staging_state { STAGING_FREE, STAGING_FULL, STAGING_FLYING };
struct staging {
    enum staging_state state;
    struct pull_answer *memory; // header, then the bytes; of the staging region
    struct target *target;      // NULL: gone
    uint32_t slot;
    uint64_t since_us;
};

struct target {
    struct xlink *link; // NULL: free
    struct pull_files *files;
    struct pull_welcome welcome;
    bool welcomed;
    uint64_t heard_us;
    uint32_t queue[PULL_SLOTS]; // slots with requests, oldest first
    uint32_t queue_n;
    uint32_t staged;
};

struct service {
    struct pull_server *server;
    enum xport_kind kind;
    struct xport *x; // NULL: not offered
    pthread_t thread;
    struct pull_request *requests; // [PULL_LINKS][PULL_SLOTS], written by targets
    struct target targets[PULL_LINKS];
    struct staging stagings[STAGINGS];
    uint32_t turn;
    uint64_t refused; // links and requests that made no sense
};

struct pull_server {
    char *bind;
    uint32_t mib_per_s, patience_ms;
    pthread_mutex_t lock;
    struct pull_files *files; // published
    uint64_t pace_us;         // when the next chunk may be sent, of all services
    atomic_bool quit;
    atomic_uint_least64_t sent;
    struct service services[XPORT_KINDS];
};

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

// ---- targets

static struct target *target_of(struct service *v, const struct xlink *l)
{
    for (int i = 0; i < PULL_LINKS; i++)
        if (v->targets[i].link == l)
            return &v->targets[i];
    return NULL;
}

static void target_forget(struct service *v, struct target *t)
{
    for (int i = 0; i < STAGINGS; i++) {
        struct staging *s = &v->stagings[i];
        if (s->target != t)
            continue;
        s->target = NULL;
        if (s->state == STAGING_FULL) // never accepted: no event follows
            s->state = STAGING_FREE;
    }
    pull_files_unref(t->files);
    *t = (struct target){0};
}

static void target_drop(struct service *v, struct target *t, const char *why)
{
    log_warn("weights over %s: a node that pulls is let go: %s", xport_kind_name(v->kind), why);
    xlink_close(t->link);
    target_forget(v, t);
}

static void target_welcome(struct service *v, struct target *t)
{
    const struct xwrite w = {.region = PULL_REGION_ANSWERS,
                             .offset = PULL_AT_WELCOME,
                             .src = &t->welcome,
                             .bytes = sizeof t->welcome,
                             .notice = PULL_NOTICE_WELCOME};
    enum status s = xlink_write(t->link, &w);
    if (s < 0)
        target_drop(v, t, status_text(s));
    else
        t->welcomed = s == STATUS_OK;
}

static void on_caller(struct service *v, const struct xport_event *ev)
{
    struct pull_hello hello;
    struct target *t = target_of(v, NULL);
    if (ev->hello_n == sizeof hello)
        memcpy(&hello, ev->hello, sizeof hello);
    if (ev->hello_n != sizeof hello || hello.magic != PULL_MAGIC || !t) {
        v->refused++;
        xlink_close(ev->link);
        return;
    }
    *t = (struct target){.link = ev->link, .heard_us = now_us()};
    t->welcome = (struct pull_welcome){.magic = PULL_MAGIC, .link = (uint32_t)(t - v->targets)};
    pthread_mutex_lock(&v->server->lock);
    struct pull_files *f = v->server->files;
    if (hello.version != PULL_VERSION)
        t->welcome.status = STATUS_LINK_VERSION;
    else if (!f || pull_files_fingerprint(f) != hello.fingerprint)
        t->welcome.status = STATUS_NOT_FOUND;
    else
        t->files = pull_files_ref(f);
    pthread_mutex_unlock(&v->server->lock);
    if (t->files) {
        size_t n;
        const uint8_t *listing = pull_files_listing(t->files, &n);
        t->welcome.listing_bytes = (uint32_t)n;
        t->welcome.listing_hash = hash_bytes(listing, n, 0);
    }
    target_welcome(v, t);
}

// The slot must be one of the link's own.
static void on_request(struct service *v, struct target *t, const struct xport_event *ev)
{
    const uint64_t size = sizeof(struct pull_request);
    const uint64_t first = t->welcome.link * PULL_SLOTS * size;
    if (!t->files || ev->region != PULL_REGION_REQUESTS || ev->bytes != size ||
        ev->offset < first || ev->offset >= first + PULL_SLOTS * size || ev->offset % size ||
        ev->notice != (ev->offset - first) / size || t->queue_n == PULL_SLOTS) {
        v->refused++;
        target_drop(v, t, "a request that fits no slot");
        return;
    }
    for (uint32_t i = 0; i < t->queue_n; i++)
        if (t->queue[i] == ev->notice) {
            v->refused++;
            target_drop(v, t, "two requests in one slot");
            return;
        }
    t->heard_us = now_us();
    t->queue[t->queue_n++] = ev->notice;
}

static void on_event(struct service *v, const struct xport_event *ev)
{
    if (ev->kind == XPORT_WRITE_DONE) {
        struct staging *s = ev->user;
        if (!s) // a welcome
            return;
        s->state = STAGING_FREE;
        if (s->target)
            s->target->staged--;
        s->target = NULL;
        return;
    }
    struct target *t = target_of(v, ev->link);
    if (ev->kind == XPORT_LINK_UP)
        on_caller(v, ev);
    else if (t && ev->kind == XPORT_LINK_DOWN)
        target_forget(v, t);
    else if (t && ev->kind == XPORT_NOTICE)
        on_request(v, t, ev);
}

// ---- chunks

static void send_staged(struct service *v, struct staging *s)
{
    const size_t n = s->memory->status == STATUS_OK ? s->memory->bytes : 0;
    const struct xwrite w = {.region = PULL_REGION_ANSWERS,
                             .offset = (uint64_t)s->slot * PULL_SLOT_BYTES,
                             .src = s->memory,
                             .bytes = sizeof *s->memory + n,
                             .notice = s->slot,
                             .user = s};
    enum status st = xlink_write(s->target->link, &w);
    if (st > 0) // tried again in the next turn
        return;
    if (st < 0) {
        target_drop(v, s->target, status_text(st));
        return;
    }
    s->state = STAGING_FLYING;
    atomic_fetch_add_explicit(&v->server->sent, n, memory_order_relaxed);
}

static void fill(struct service *v, struct target *t, struct staging *s)
{
    s->slot = t->queue[0];
    memmove(t->queue, t->queue + 1, --t->queue_n * sizeof *t->queue);
    struct pull_request q = v->requests[t->welcome.link * PULL_SLOTS + s->slot];
    struct pull_answer *a = s->memory;
    *a = (struct pull_answer){
        .at = q.at, .file = q.file, .bytes = q.bytes, .number = q.number, .status = STATUS_OK};
    if (q.bytes > PULL_CHUNK)
        a->status = STATUS_BAD_REQUEST;
    else
        a->status = pull_files_read(t->files, q.file, q.at, q.bytes, a + 1);
    if (a->status == STATUS_OK)
        a->hash = hash_bytes(a + 1, q.bytes, q.at);
    else
        log_warn("weights: %u bytes of file %u were not read: %s", q.bytes, q.file,
                 status_text((enum status)a->status));
    s->state = STAGING_FULL;
    s->target = t;
    s->since_us = now_us();
    t->staged++;
}

static struct staging *staging_free(struct service *v)
{
    for (int i = 0; i < STAGINGS; i++)
        if (v->stagings[i].state == STAGING_FREE)
            return &v->stagings[i];
    return NULL;
}

// The next target in turn that has a request and is not ahead of the others.
static struct target *next_target(struct service *v)
{
    for (uint32_t i = 0; i < PULL_LINKS; i++) {
        struct target *t = &v->targets[(v->turn + i) % PULL_LINKS];
        if (!t->link || !t->queue_n || t->staged >= STAGINGS_PER_LINK)
            continue;
        v->turn = (uint32_t)(t - v->targets) + 1;
        return t;
    }
    return NULL;
}

// 0: the next chunk may go now; else microseconds until it may.
static uint64_t pace_wait(struct pull_server *s)
{
    const uint64_t now = now_us();
    pthread_mutex_lock(&s->lock);
    const uint64_t wait = s->pace_us > now ? s->pace_us - now : 0;
    pthread_mutex_unlock(&s->lock);
    return wait;
}

// What was not used is lost, but for a few milliseconds: bursts are short, and a thread that was
// woken late catches up.
static void pace_note(struct pull_server *s, uint32_t bytes)
{
    if (!s->mib_per_s)
        return;
    const uint64_t now = now_us(), cost = ((uint64_t)bytes * 1000000 / s->mib_per_s) >> 20;
    pthread_mutex_lock(&s->lock);
    if (s->pace_us + BURST_US < now)
        s->pace_us = now - BURST_US;
    s->pace_us += cost;
    pthread_mutex_unlock(&s->lock);
}

static bool anybody(const struct service *v)
{
    for (int i = 0; i < PULL_LINKS; i++)
        if (v->targets[i].link)
            return true;
    return false;
}

// How long there is nothing to do but to wait for events; -1: something was done.
static int serve(struct service *v)
{
    bool waiting = false;
    for (int i = 0; i < STAGINGS; i++)
        if (v->stagings[i].state == STAGING_FULL) {
            send_staged(v, &v->stagings[i]);
            waiting |= v->stagings[i].state == STAGING_FULL;
        }
    struct staging *s = staging_free(v);
    struct target *t = s ? next_target(v) : NULL;
    if (!t)
        return waiting ? 1 : anybody(v) ? WAIT_MS : IDLE_MS;
    uint64_t wait = pace_wait(v->server);
    if (wait)
        return (int)(wait / 1000) + 1;
    fill(v, t, s);
    pace_note(v->server, s->memory->status == STATUS_OK ? s->memory->bytes : 0);
    send_staged(v, s);
    return -1;
}

// Targets that stopped reading hold staging memory, those that are gone without a word a place.
static void expire(struct service *v, uint64_t now)
{
    const uint64_t patience = 1000ull * v->server->patience_ms;
    for (int i = 0; i < STAGINGS; i++) {
        struct staging *s = &v->stagings[i];
        if (s->state != STAGING_FREE && s->target && now - s->since_us > patience)
            target_drop(v, s->target, "it takes nothing");
    }
    for (int i = 0; i < PULL_LINKS; i++) {
        struct target *t = &v->targets[i];
        if (t->link && !t->welcomed)
            target_welcome(v, t);
        if (t->link && !t->staged && !t->queue_n && now - t->heard_us > 6 * patience)
            target_drop(v, t, "it has not asked for anything for a minute");
    }
}

static void *service_main(void *arg)
{
    struct service *v = arg;
    // Of this thread alone, on Linux. Not permitted: it competes as an equal.
    (void)!setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
    uint64_t looked = 0;
    while (!atomic_load(&v->server->quit)) {
        struct xport_event ev[EVENTS];
        int n = xport_poll(v->x, ev, EVENTS);
        for (int i = 0; i < n; i++)
            on_event(v, &ev[i]);
        int wait_ms = serve(v);
        uint64_t now = now_us();
        if (now - looked > 100000) {
            expire(v, now);
            looked = now;
        }
        if (!n && wait_ms >= 0)
            xport_wait(v->x, wait_ms);
    }
    return NULL;
}

// ---- start and stop

static enum status service_open(struct service *v, struct errmsg *e)
{
    const struct xport_config config = {.kind = v->kind,
                                        .bind_host = v->server->bind,
                                        .max_links = PULL_LINKS,
                                        .link_depth = 2 * PULL_SLOTS};
    void *requests = NULL, *memory = NULL;
    enum status s = xport_open(&config, &v->x, e);
    if (s != STATUS_OK) {
        v->x = NULL;
        return s;
    }
    s = xport_region_create(v->x, PULL_REGION_REQUESTS, PULL_REQUESTS_BYTES, &requests, e);
    if (s == STATUS_OK)
        s = xport_region_create(v->x, PULL_REGION_STAGING, STAGINGS * (size_t)PULL_SLOT_BYTES,
                                &memory, e);
    v->requests = requests;
    for (int i = 0; i < STAGINGS && s == STATUS_OK; i++)
        v->stagings[i].memory = (void *)((char *)memory + (size_t)i * PULL_SLOT_BYTES);
    if (s == STATUS_OK) {
        int err = pthread_create(&v->thread, NULL, service_main, v);
        if (err)
            s = errmsg_set(e, status_from_errno(err), "thread: %s", strerror(err));
    }
    if (s == STATUS_OK) {
        pthread_setname_np(v->thread, "weights");
        return s;
    }
    xport_close(v->x);
    v->x = NULL;
    return s;
}

struct pull_server *pull_server_open(const struct pull_server_config *config)
{
    struct pull_server *s = mem_zalloc(1, sizeof *s);
    s->bind = mem_strdup(config->bind ? config->bind : "127.0.0.1");
    s->mib_per_s = config->mib_per_s;
    s->patience_ms = config->patience_ms ? config->patience_ms : PATIENCE_MS;
    pthread_mutex_init(&s->lock, NULL);
    for (int k = 0; k < XPORT_KINDS; k++) {
        struct service *v = &s->services[k];
        *v = (struct service){.server = s, .kind = (enum xport_kind)k};
        struct errmsg why = {0};
        if (service_open(v, &why) != STATUS_OK)
            log_debug("weights are not served over %s: %s", xport_kind_name(v->kind), why.text);
    }
    return s;
}

void pull_server_close(struct pull_server *s)
{
    if (!s)
        return;
    atomic_store(&s->quit, true);
    for (int k = 0; k < XPORT_KINDS; k++) {
        struct service *v = &s->services[k];
        if (!v->x)
            continue;
        xport_wake(v->x);
        pthread_join(v->thread, NULL);
        xport_close(v->x);
        for (int i = 0; i < PULL_LINKS; i++)
            pull_files_unref(v->targets[i].files);
    }
    pull_files_unref(s->files);
    pthread_mutex_destroy(&s->lock);
    free(s->bind);
    free(s);
}

void pull_server_publish(struct pull_server *s, struct pull_files *files)
{
    pthread_mutex_lock(&s->lock);
    struct pull_files *old = s->files;
    s->files = files;
    pthread_mutex_unlock(&s->lock);
    pull_files_unref(old);
}

struct rank_addresses pull_server_addresses(const struct pull_server *s)
{
    const char *at[XPORT_KINDS];
    for (int k = 0; k < XPORT_KINDS; k++)
        at[k] = s->files && s->services[k].x ? xport_address(s->services[k].x) : "";
    return (struct rank_addresses){
        .shm = at[XPORT_SHM], .tcp = at[XPORT_TCP], .verbs = at[XPORT_VERBS]};
}

uint64_t pull_server_sent(const struct pull_server *s)
{
    return atomic_load_explicit(&s->sent, memory_order_relaxed);
}
