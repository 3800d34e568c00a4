// The queue of chunks, and the loader's threads that put them there and wait. The sources' side is
// in pull_peer.c.
#include "node/pull_int.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"

enum {
    WINDOW = 16, // chunks that one reader has under way
    WAIT_MS = 50,
    HEDGE_US =
        250000,   // a chunk asked so long ago, and four times the usual, is asked elsewhere too
    ASKS_MAX = 3, // sources that are asked for one chunk at a time
    HANG_MS = 10000,
    DISK_PATIENCE_US = 1500000, // a chunk asked so long ago is read from disk, if it is there
    DISK_US = 5000,             // until the first chunk was read from it
    SMALL_FILE_MAX = 64 << 20,
};

uint64_t pull_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void wait_changed(struct pull *p, int ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += ms * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&p->changed, &p->lock, &until);
}

static bool is_cancelled(const struct pull *p)
{
    return p->args.cancelled && p->args.cancelled(p->args.arg);
}

// ---- the queue, for sources

static void ask(struct pull_chunk *c, const struct pull_peer *peer)
{
    c->state = PULL_ASKED;
    c->holders |= 1u << peer->index;
    c->asks++;
    c->since_us = pull_now_us();
}

// Asked of others for too long.
static bool overdue(const struct pull *p, const struct pull_chunk *c, const struct pull_peer *peer,
                    uint64_t now)
{
    uint64_t usual = peer->mean_us * 4 > HEDGE_US ? peer->mean_us * 4 : HEDGE_US;
    const uint32_t mine = 1u << peer->index;
    return c->state == PULL_ASKED && !(c->holders & mine) && !(c->failed & mine) &&
           __builtin_popcount(c->holders) < ASKS_MAX && now - c->since_us > usual;
}

// The one that waits longest of those that this source may be asked for.
struct pull_chunk *pull_take(struct pull *p, struct pull_peer *peer)
{
    struct pull_chunk *oldest = NULL;
    const uint32_t mine = 1u << peer->index;
    for (int i = 0; i < PULL_CHUNKS && p->queued_n; i++) {
        struct pull_chunk *c = &p->chunks[i];
        if (c->state == PULL_QUEUED && !(c->failed & mine) &&
            (!oldest || c->since_us < oldest->since_us))
            oldest = c;
    }
    if (oldest) {
        p->queued_n--;
        ask(oldest, peer);
        return oldest;
    }
    const uint64_t now = pull_now_us();
    for (int i = 0; i < PULL_CHUNKS; i++)
        if (overdue(p, &p->chunks[i], peer, now)) {
            p->stats.again++;
            ask(&p->chunks[i], peer);
            return &p->chunks[i];
        }
    return NULL;
}

static void wake_peers(struct pull *p)
{
    for (uint32_t i = 0; i < p->peers_n; i++)
        if (p->peers[i].state == PEER_SERVING && p->peers[i].x)
            xport_wake(p->peers[i].x);
}

void pull_give_back(struct pull *p, struct pull_peer *peer, struct pull_chunk *c, bool failed)
{
    const uint32_t mine = 1u << peer->index;
    c->holders &= ~mine;
    c->failed |= failed ? mine : 0;
    if (c->state != PULL_ASKED || c->holders)
        return;
    c->state = PULL_QUEUED;
    c->since_us = pull_now_us();
    p->queued_n++;
    p->stats.again++;
    wake_peers(p);
    pthread_cond_broadcast(&p->changed); // it may be the disk's now
}

// ---- readers

struct reader {
    struct pull *p;
    const struct st_range *ranges;
    size_t n;
    size_t next;        // range that is not posted whole
    size_t posted;      // bytes of it
    uint64_t all, done; // bytes
    struct {
        struct pull_chunk *chunk; // NULL: none
        const struct st_range *of;
    } own[WINDOW];
    struct errmsg *e;
};

static struct pull_chunk *chunk_free(struct pull *p)
{
    for (int i = 0; i < PULL_CHUNKS; i++)
        if (p->chunks[i].state == PULL_FREE)
            return &p->chunks[i];
    return NULL;
}

static void post(struct reader *rd)
{
    struct pull *p = rd->p;
    bool any = false;
    for (int i = 0; i < WINDOW; i++) {
        while (rd->next < rd->n && rd->posted == rd->ranges[rd->next].bytes) {
            rd->next++;
            rd->posted = 0;
        }
        struct pull_chunk *c = rd->own[i].chunk || rd->next == rd->n ? NULL : chunk_free(p);
        if (!c)
            continue;
        const struct st_range *r = &rd->ranges[rd->next];
        size_t left = r->bytes - rd->posted;
        *c = (struct pull_chunk){.state = PULL_QUEUED,
                                 .generation = c->generation,
                                 .file = (uint32_t)r->file,
                                 .bytes = left < PULL_CHUNK ? (uint32_t)left : PULL_CHUNK,
                                 .at = r->at + rd->posted,
                                 .out = (char *)r->out + rd->posted,
                                 .since_us = pull_now_us()};
        rd->posted += c->bytes;
        rd->own[i].chunk = c;
        rd->own[i].of = r;
        p->queued_n++;
        any = true;
    }
    if (any)
        wake_peers(p);
}

static void chunk_forget(struct pull_chunk *c)
{
    c->state = PULL_FREE;
    c->generation++;
}

// Takes note of what is done.
static enum status collect(struct reader *rd)
{
    enum status s = STATUS_OK;
    for (int i = 0; i < WINDOW; i++) {
        struct pull_chunk *c = rd->own[i].chunk;
        if (!c || c->state != PULL_DONE)
            continue;
        if (c->status != STATUS_OK)
            s = c->status;
        rd->done += c->bytes;
        chunk_forget(c);
        rd->own[i].chunk = NULL;
    }
    return s;
}

static bool any_left(const struct pull *p, const struct pull_chunk *c)
{
    for (uint32_t i = 0; i < p->peers_n; i++)
        if (p->peers[i].state != PEER_LOST && !(c->failed & (1u << i)))
            return true;
    return false;
}

static bool hope(const struct pull *p)
{
    for (uint32_t i = 0; i < p->peers_n; i++)
        if (p->peers[i].state != PEER_LOST)
            return true;
    return false;
}

static enum status nobody_left(struct reader *rd)
{
    const struct pull *p = rd->p;
    char text[400] = "";
    for (uint32_t i = 0, n = 0; i < p->peers_n && n < sizeof text - 1; i++)
        n += (uint32_t)snprintf(
            text + n, sizeof text - n, "%snode %s: %.120s", i ? "; " : "", p->peers[i].name,
            p->peers[i].why.text[0] ? p->peers[i].why.text : "does not answer as it should");
    return errmsg_set(rd->e, STATUS_LINK_DOWN, "weights: no node is left to pull from: %s", text);
}

// The same bytes in this host's own files; NULL: not there.
static const struct st_tensor *on_disk(const struct reader *rd, const struct st_range *r)
{
    const struct st_tensor *t = r->tensor, *d;
    if (!rd->p->args.disk || !t)
        return NULL;
    d = safetensors_find(rd->p->args.disk, t->name);
    return d && d->bytes == t->bytes && d->dtype == t->dtype ? d : NULL;
}

static enum status read_disk(struct reader *rd, struct pull_chunk *c, const struct st_range *r,
                             const struct st_tensor *d)
{
    struct pull *p = rd->p;
    if (!p->stats.disk_bytes && !p->args.disk_helps)
        log_warn(
            "weights: not all come from other nodes in time: the model folder of this one helps");
    p->queued_n -= c->state == PULL_QUEUED;
    c->state = PULL_COPYING; // what sources answer from now on is dropped
    pthread_mutex_unlock(&p->lock);
    const uint64_t before = pull_now_us();
    enum status s =
        st_tensor_read(d, (size_t)(r->tensor_at + (c->at - r->at)), c->bytes, c->out, rd->e);
    const uint64_t us = pull_now_us() - before;
    pthread_mutex_lock(&p->lock);
    p->disk_us = (p->disk_us * 7 + us) / 8;
    p->stats.disk_bytes += s == STATUS_OK ? c->bytes : 0;
    c->state = PULL_DONE;
    c->status = s;
    return s;
}

// One chunk may be the disk's: when no source can give it; when a source was asked long ago; and,
// if the disk helps, when the sources have not come to it for as long as the disk would take.
static enum status help(struct reader *rd, bool *did)
{
    const uint64_t now = pull_now_us();
    *did = false;
    for (int i = 0; i < WINDOW; i++) {
        struct pull_chunk *c = rd->own[i].chunk;
        if (!c || (c->state != PULL_QUEUED && c->state != PULL_ASKED))
            continue;
        const struct st_tensor *d = on_disk(rd, rd->own[i].of);
        const uint64_t patience = c->state == PULL_ASKED   ? DISK_PATIENCE_US
                                  : rd->p->args.disk_helps ? rd->p->disk_us
                                                           : UINT64_MAX;
        const bool left = c->state == PULL_ASKED || any_left(rd->p, c);
        if (!left && !d && !hope(rd->p))
            return nobody_left(rd);
        if (!left && !d) { // who errs three times is given up: this ends
            c->failed = 0;
            wake_peers(rd->p);
            continue;
        }
        if (d && (!left || now - c->since_us >= patience)) {
            *did = true;
            return read_disk(rd, c, rd->own[i].of, d);
        }
    }
    return STATUS_OK;
}

// Nobody may write to the reader's memory any more.
static void retract(struct reader *rd)
{
    for (int i = 0; i < WINDOW; i++) {
        struct pull_chunk *c = rd->own[i].chunk;
        if (!c)
            continue;
        while (c->state == PULL_COPYING)
            wait_changed(rd->p, WAIT_MS);
        rd->p->queued_n -= c->state == PULL_QUEUED;
        chunk_forget(c);
    }
}

// False: all of the pool's chunks are other readers'.
static bool has_any(const struct reader *rd)
{
    for (int i = 0; i < WINDOW; i++)
        if (rd->own[i].chunk)
            return true;
    return false;
}

static enum status pull_read(void *arg, const struct st_range *ranges, size_t n, struct errmsg *e)
{
    struct pull *p = arg;
    struct reader rd = {.p = p, .ranges = ranges, .n = n, .e = e};
    for (size_t i = 0; i < n; i++)
        rd.all += ranges[i].bytes;
    enum status s = STATUS_OK;
    pthread_mutex_lock(&p->lock);
    while (s == STATUS_OK && rd.done < rd.all) {
        post(&rd);
        bool did = false;
        s = collect(&rd);
        if (s == STATUS_OK && rd.done < rd.all)
            s = help(&rd, &did);
        if (s == STATUS_OK && is_cancelled(p))
            s = errmsg_set(e, STATUS_CANCELLED, "weights: cancelled");
        if (s == STATUS_OK)
            s = collect(&rd);
        if (s == STATUS_OK && !did && rd.done < rd.all)
            wait_changed(p, p->args.disk_helps || !has_any(&rd) ? 2 : WAIT_MS);
    }
    retract(&rd);
    pthread_mutex_unlock(&p->lock);
    return s;
}

// ---- the listing

static bool name_is_plain(const char *name, uint32_t n)
{
    return n >= 2 && n <= 256 && memchr(name, 0, n) == name + n - 1 && name[0] != '.' &&
           !strchr(name, '/');
}

static void files_free(struct st_folder_file *files, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(files[i].name);
    free(files);
}

enum status pull_listing_set(struct pull *p, const uint8_t *bytes, size_t n, struct errmsg *e)
{
    struct st_folder_file *files = NULL;
    size_t files_n = 0, cap = 0, at = 0;
    while (at < n) {
        struct pull_entry x;
        const size_t head = sizeof x.bytes + sizeof x.name_n;
        if (n - at < head)
            break;
        memcpy(&x.bytes, bytes + at, sizeof x.bytes);
        memcpy(&x.name_n, bytes + at + sizeof x.bytes, sizeof x.name_n);
        at += head;
        if (x.name_n > n - at || x.bytes > INT64_MAX || files_n == PULL_FILES_MAX ||
            !name_is_plain((const char *)bytes + at, x.name_n)) {
            at = SIZE_MAX;
            break;
        }
        MEM_GROW(files, files_n, cap);
        files[files_n++] = (struct st_folder_file){mem_strdup((const char *)bytes + at), x.bytes};
        at += x.name_n;
    }
    if (at != n || !files_n) {
        files_free(files, files_n);
        return errmsg_set(e, STATUS_BAD_FILE, "its list of files makes no sense");
    }
    p->files = files;
    p->folder = (struct st_folder){.name = "(weights of other nodes)",
                                   .files_n = files_n,
                                   .files = files,
                                   .read = pull_read,
                                   .arg = p};
    p->listed = true;
    return STATUS_OK;
}

const struct st_folder *pull_folder(const struct pull *p)
{
    return &p->folder;
}

// Where a path must be: an anonymous file of this process.
enum status pull_file(struct pull *p, const char *name, char path_out[64], struct errmsg *e)
{
    for (size_t i = 0; i < p->folder.files_n; i++) {
        const struct st_folder_file *f = &p->files[i];
        if (strcmp(f->name, name))
            continue;
        if (f->bytes > SMALL_FILE_MAX || p->fds_n == (int)(sizeof p->fds / sizeof *p->fds))
            return errmsg_set(e, STATUS_TOO_LARGE, "weights: %s has %" PRIu64 " bytes", name,
                              f->bytes);
        int fd = memfd_create(name, MFD_CLOEXEC);
        if (fd < 0)
            return errmsg_set(e, STATUS_NO_MEMORY, "weights: no memory for %s", name);
        p->fds[p->fds_n++] = fd;
        char *bytes = mem_alloc(f->bytes ? (size_t)f->bytes : 1);
        const struct st_range all = {.file = i, .bytes = (size_t)f->bytes, .out = bytes};
        enum status s = pull_read(p, &all, 1, e);
        if (s == STATUS_OK && write(fd, bytes, (size_t)f->bytes) != (ssize_t)f->bytes)
            s = errmsg_set(e, STATUS_NO_MEMORY, "weights: no memory for %s", name);
        free(bytes);
        snprintf(path_out, 64, "/proc/self/fd/%d", fd);
        return s;
    }
    return errmsg_set(e, STATUS_BAD_MODEL, "weights: the other nodes have no %s", name);
}

// ---- start and stop

static void add_peer(struct pull *p, const struct weight_source *from)
{
    struct pull_peer *x = &p->peers[p->peers_n];
    const char *at[XPORT_KINDS] = {[XPORT_SHM] = from->addresses.shm,
                                   [XPORT_TCP] = from->addresses.tcp,
                                   [XPORT_VERBS] = from->addresses.verbs};
    *x = (struct pull_peer){.p = p, .index = p->peers_n};
    snprintf(x->name, sizeof x->name, "%s", from->name);
    for (int k = 0; k < XPORT_KINDS; k++)
        snprintf(x->addresses[k], LIMIT_ADDR, "%s", at[k] ? at[k] : "");
    x->started = pthread_create(&x->thread, NULL, pull_peer_main, x) == 0;
    x->state = x->started ? PEER_CONNECTING : PEER_LOST;
    if (x->started)
        pthread_setname_np(x->thread, "pull");
    else
        (void)errmsg_set(&x->why, STATUS_NO_MEMORY, "no thread for it");
    p->peers_n++;
}

static bool is_known(const struct pull *p, const struct weight_source *s)
{
    const char *at[XPORT_KINDS] = {[XPORT_SHM] = s->addresses.shm,
                                   [XPORT_TCP] = s->addresses.tcp,
                                   [XPORT_VERBS] = s->addresses.verbs};
    for (uint32_t i = 0; i < p->peers_n; i++) {
        const struct pull_peer *x = &p->peers[i];
        bool same = x->state != PEER_LOST && !strcmp(x->name, s->name);
        for (int k = 0; k < XPORT_KINDS && same; k++)
            same = !strcmp(x->addresses[k], at[k] ? at[k] : "");
        if (same)
            return true;
    }
    return false;
}

void pull_add(struct pull *p, const struct weight_source *sources, uint32_t n)
{
    pthread_mutex_lock(&p->lock); // their threads begin by taking it
    for (uint32_t i = 0; i < n && p->peers_n < PULL_SOURCES; i++)
        if (!is_known(p, &sources[i]))
            add_peer(p, &sources[i]);
    pthread_mutex_unlock(&p->lock);
}

static enum status await_listing(struct pull *p, struct errmsg *e)
{
    enum status s = STATUS_OK;
    pthread_mutex_lock(&p->lock);
    while (s == STATUS_OK && !p->listed) {
        if (!hope(p))
            s = nobody_left(&(struct reader){.p = p, .e = e});
        else if (is_cancelled(p))
            s = errmsg_set(e, STATUS_CANCELLED, "weights: cancelled");
        else
            wait_changed(p, WAIT_MS);
    }
    pthread_mutex_unlock(&p->lock);
    return s;
}

enum status pull_open(const struct pull_args *args, struct pull **out, struct errmsg *e)
{
    struct pull *p = mem_zalloc(1, sizeof *p);
    p->args = *args;
    p->bind = mem_strdup(args->bind ? args->bind : "127.0.0.1");
    p->hang_us = 1000ull * (args->hang_ms ? args->hang_ms : HANG_MS);
    p->disk_us = DISK_US;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, &attr);
    pthread_condattr_destroy(&attr);
    pull_add(p, args->sources, args->sources_n);
    enum status s = await_listing(p, e);
    if (s == STATUS_OK)
        *out = p;
    else
        pull_close(p);
    return s;
}

void pull_close(struct pull *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    for (uint32_t i = 0; i < p->peers_n; i++)
        if (p->peers[i].x)
            xport_wake(p->peers[i].x);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->peers_n; i++)
        if (p->peers[i].started)
            pthread_join(p->peers[i].thread, NULL);
    for (int i = 0; i < p->fds_n; i++)
        close(p->fds[i]);
    files_free(p->files, p->folder.files_n);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p->bind);
    free(p);
}

struct pull_stats pull_stats_get(struct pull *p)
{
    pthread_mutex_lock(&p->lock);
    struct pull_stats s = p->stats;
    pthread_mutex_unlock(&p->lock);
    return s;
}

void pull_describe(struct pull *p, char *buf, size_t n)
{
    size_t at = 0;
    buf[0] = 0;
    pthread_mutex_lock(&p->lock);
    for (uint32_t i = 0; i < p->peers_n && at < n; i++)
        at += (size_t)snprintf(buf + at, n - at, "%snode %s (%s) %" PRIu64 " MiB", i ? ", " : "",
                               p->peers[i].name, xport_kind_name(p->peers[i].kind),
                               p->peers[i].bytes >> 20);
    if (p->stats.disk_bytes && at < n)
        snprintf(buf + at, n - at, ", disk %" PRIu64 " MiB", p->stats.disk_bytes >> 20);
    pthread_mutex_unlock(&p->lock);
}
