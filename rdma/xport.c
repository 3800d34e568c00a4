// What every transport does alike: the table of bodies, checks of what callers hand in, the life of
// a link, the order of its events, and waiting.
//
// Nothing is queued for the caller: xport_poll asks each link for events only as long as there is
// room for them, so a slow caller makes its peers wait (STATUS_FULL over there) and never grows
// memory. A link's struct outlives its last event until the next poll, so that the events of one
// batch may all be handled, in any order, with the pointers in them.
#include "rdma/xport.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/sm.h"
#include "rdma/xport_body.h"

enum { SERVE_EVERY_US = 50 };

static const char *const kind_names[XPORT_KINDS] = {"shm", "tcp", "verbs"};

static const struct xport_body *const bodies[XPORT_KINDS] = {
    [XPORT_SHM] = &xport_shm_body,
    [XPORT_TCP] = &xport_tcp_body,
    [XPORT_VERBS] = &xport_verbs_body,
};

static const struct sm_state link_states[] = {
    [XLINK_DIALING] = {"dialing", SM_TO(XLINK_GREETING) | SM_TO(XLINK_FAILED) |
                                      SM_TO(XLINK_CLOSED) | SM_TO(XLINK_DEAD)},
    [XLINK_GREETING] = {"greeting", SM_TO(XLINK_UP) | SM_TO(XLINK_FAILED) | SM_TO(XLINK_CLOSED) |
                                        SM_TO(XLINK_DEAD)},
    [XLINK_UP] = {"up", SM_TO(XLINK_FAILED) | SM_TO(XLINK_CLOSED)},
    [XLINK_FAILED] = {"failed", SM_TO(XLINK_CLOSED) | SM_TO(XLINK_DEAD)},
    [XLINK_CLOSED] = {"closed", SM_TO(XLINK_DEAD)},
    [XLINK_DEAD] = {"dead", 0},
};
static const struct sm link_sm = {"xlink", link_states, XLINK_DEAD + 1};

const char *xport_kind_name(enum xport_kind kind)
{
    return (unsigned)kind < XPORT_KINDS ? kind_names[kind] : "unknown";
}

enum status xport_kind_parse(const char *name, enum xport_kind *kind_out)
{
    for (int i = 0; i < XPORT_KINDS; i++) {
        if (!strcmp(name, kind_names[i])) {
            *kind_out = (enum xport_kind)i;
            return STATUS_OK;
        }
    }
    return STATUS_BAD_CONFIG;
}

enum status xport_wire_check(const struct xport_wire *w, struct errmsg *e)
{
    // Seven tries mean for ever to some devices, and a link must not hang.
    if (w->ack_timeout > 31)
        return errmsg_set(e, STATUS_BAD_CONFIG, "ack_timeout: %u is not in 0..31", w->ack_timeout);
    if (w->retries > 6)
        return errmsg_set(e, STATUS_BAD_CONFIG, "retries: %u is not in 0..6", w->retries);
    if (w->rnr_retries > 6)
        return errmsg_set(e, STATUS_BAD_CONFIG, "rnr_retries: %u is not in 0..6", w->rnr_retries);
    return STATUS_OK;
}

// --- opening and closing ---

static void watch_own(struct xport *x, int *fd)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = fd};
    int rc = epoll_ctl(x->epoll_fd, EPOLL_CTL_ADD, *fd, &ev);
    assert(rc == 0);
}

static enum status open_fds(struct xport *x, struct errmsg *e)
{
    x->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    x->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    // Given up for a moment to turn a caller away when the process is out of descriptors.
    x->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (x->epoll_fd < 0 || x->wake_fd < 0 || x->spare_fd < 0)
        return errmsg_set(e, status_from_errno(errno), "xport %s: cannot open descriptors: %s",
                          x->body->name, strerror(errno));
    if (getrandom(&x->token, sizeof x->token, 0) != sizeof x->token)
        return errmsg_set(e, STATUS_IO, "xport %s: getrandom: %s", x->body->name, strerror(errno));
    return STATUS_OK;
}

enum status xport_open(const struct xport_config *config, struct xport **xport_out,
                       struct errmsg *e)
{
    assert((unsigned)config->kind < XPORT_KINDS);
    if (config->link_depth > XPORT_DEPTH_MAX)
        return errmsg_set(e, STATUS_BAD_CONFIG, "xport: link_depth %u is above %d",
                          config->link_depth, XPORT_DEPTH_MAX);

    struct xport *x = mem_zalloc(1, sizeof *x);
    x->body = bodies[config->kind];
    x->kind = config->kind;
    x->max_links = config->max_links ? config->max_links : 64;
    x->depth = config->link_depth ? config->link_depth : 256;
    x->spin_us = config->spin_us;
    x->handshake_ms = config->handshake_ms ? config->handshake_ms : 5000;
    x->epoll_fd = x->wake_fd = x->spare_fd = x->listen_fd = -1;
    x->next_tick_us = x->body->tick ? 0 : UINT64_MAX;

    enum status s = open_fds(x, e);
    if (s == STATUS_OK)
        s = x->body->open(x, config, e);
    if (s != STATUS_OK) {
        xport_close(x);
        return s;
    }
    watch_own(x, &x->wake_fd);
    watch_own(x, &x->listen_fd);
    *xport_out = x;
    return STATUS_OK;
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

static void link_free(struct xlink *l)
{
    l->x->body->stop(l);
    xsock_close(l);
    free(l->wq);
    free(l);
}

void xport_close(struct xport *x)
{
    if (!x)
        return;
    for (size_t i = 0; i < x->links_n; i++)
        link_free(x->links[i]);
    free(x->links);
    for (uint32_t i = 0; i < x->regions_n; i++)
        x->body->region_free(&x->regions[i]);
    if (x->body->close)
        x->body->close(x);
    close_fd(x->listen_fd);
    close_fd(x->epoll_fd);
    close_fd(x->wake_fd);
    close_fd(x->spare_fd);
    free(x);
}

const char *xport_address(const struct xport *x)
{
    return x->address;
}

static struct xregion *region_find(struct xport *x, uint32_t id)
{
    for (uint32_t i = 0; i < x->regions_n; i++)
        if (x->regions[i].id == id)
            return &x->regions[i];
    return NULL;
}

enum status xport_region_create(struct xport *x, uint32_t region, size_t bytes, void **base_out,
                                struct errmsg *e)
{
    if (bytes == 0 || bytes > (size_t)1 << 44)
        return errmsg_set(e, STATUS_BAD_CONFIG, "xport region %u: bad size %zu", region, bytes);
    if (region_find(x, region))
        return errmsg_set(e, STATUS_EXISTS, "xport region %u exists already", region);
    if (x->regions_n == XPORT_REGIONS_MAX)
        return errmsg_set(e, STATUS_FULL, "xport region %u: there are %d already", region,
                          XPORT_REGIONS_MAX);

    struct xregion *r = &x->regions[x->regions_n];
    *r = (struct xregion){.id = region, .bytes = bytes, .fd = -1};
    enum status s = x->body->region_create(x, r, e);
    if (s != STATUS_OK)
        return s;
    x->regions_n++;
    *base_out = r->base;
    return STATUS_OK;
}

void xport_region_destroy(struct xport *x, uint32_t region)
{
    struct xregion *r = region_find(x, region);
    assert(r);
    x->body->region_free(r);
    *r = x->regions[--x->regions_n];
}

uint8_t *xport_target(struct xport *x, const struct xframe *f)
{
    const struct xregion *r = region_find(x, f->region);
    if (!r || f->bytes > r->bytes || f->offset > r->bytes - f->bytes)
        return NULL;
    return r->base + f->offset;
}

// --- the life of a link ---

static bool counts(const struct xlink *l, enum xlink_state state)
{
    bool half_open = l->incoming && state < XLINK_UP;
    return state != XLINK_DEAD && !half_open;
}

static bool greets(enum xlink_state state)
{
    return state == XLINK_DIALING || state == XLINK_GREETING;
}

static void count_state(struct xlink *l, enum xlink_state state, int sign)
{
    struct xport *x = l->x;
    x->slots_n += (uint32_t)(sign * counts(l, state));
    x->greets_n += (uint32_t)(sign * greets(state));
    x->half_n += (uint32_t)(sign * (l->incoming && greets(state)));
    x->dead_n += (uint32_t)(sign * (state == XLINK_DEAD));
}

struct xlink *xlink_create(struct xport *x, bool incoming)
{
    struct xlink *l = mem_zalloc(1, x->body->link_bytes);
    l->x = x;
    l->fd = -1;
    l->incoming = incoming;
    l->state = incoming ? XLINK_GREETING : XLINK_DIALING;
    l->deadline_us = xport_now_us() + (uint64_t)x->handshake_ms * 1000;
    MEM_GROW(x->links, x->links_n, x->links_cap);
    x->links[x->links_n++] = l;
    count_state(l, l->state, 1);
    return l;
}

void xlink_move(struct xlink *l, enum xlink_state to)
{
    count_state(l, l->state, -1);
    l->state = (enum xlink_state)sm_move(&link_sm, (int)l->state, (int)to);
    count_state(l, l->state, 1);
    if (to == XLINK_DEAD)
        xsock_close(l);
}

void xlink_established(struct xlink *l)
{
    l->wq = mem_zalloc(l->x->depth, sizeof *l->wq);
    l->up_due = true;
    xlink_move(l, XLINK_UP);
}

// Gives the works back that no device reads any more: of a lost link, all or none.
static void works_release(struct xlink *l)
{
    if (l->wq_over < l->wq_n && (!l->x->body->released || l->x->body->released(l)))
        l->wq_over = l->wq_n;
}

static void works_end(struct xlink *l, enum status s)
{
    for (uint32_t i = l->wq_over; i < l->wq_n; i++)
        l->wq[(l->wq_head + i) % l->x->depth].status = s;
    works_release(l);
}

void xlink_fail(struct xlink *l, enum status why, bool drain)
{
    if (l->state >= XLINK_FAILED)
        return;
    if (why == STATUS_LINK_PROTOCOL || why == STATUS_LINK_VERSION)
        l->x->stats.protocol_errors++;
    if (l->incoming && greets(l->state)) { // nobody was told of it
        xlink_move(l, XLINK_DEAD);
        return;
    }
    l->fail = why;
    l->rx_over = !drain || l->state != XLINK_UP;
    works_end(l, why);
    xlink_move(l, XLINK_FAILED);
    if (l->rx_over)
        xsock_close(l);
}

enum status xport_connect(struct xport *x, const char *address, const void *hello, size_t hello_n,
                          void *user, struct xlink **link_out, struct errmsg *e)
{
    assert(hello_n <= XPORT_HELLO_MAX);
    if (x->slots_n >= x->max_links)
        return errmsg_set(e, STATUS_FULL, "xport: connect %s: %u links are open already", address,
                          x->max_links);
    // Every address is KIND:WHERE#TOKEN.
    size_t name_n = strlen(x->body->name);
    const char *hash = strrchr(address, '#');
    unsigned long long token = 0;
    char end = 0;
    if (strncmp(address, x->body->name, name_n) || address[name_n] != ':' || !hash ||
        strlen(address) >= LIMIT_ADDR || sscanf(hash + 1, "%16llx%c", &token, &end) != 1)
        return errmsg_set(e, STATUS_BAD_CONFIG, "xport: '%.100s' is no address of kind %s", address,
                          x->body->name);

    struct xlink *l = xlink_create(x, false);
    l->user = user;
    l->greeting = (struct xgreeting){.token = token, .hello_n = (uint8_t)hello_n};
    if (hello_n)
        memcpy(l->greeting.hello, hello, hello_n);
    char where[LIMIT_ADDR];
    snprintf(where, sizeof where, "%.*s", (int)(hash - address - (long)name_n - 1),
             address + name_n + 1);
    enum status s = x->body->dial(l, where, e);
    if (s == STATUS_LINK_DOWN) {
        xlink_fail(l, s, false);
    } else if (s != STATUS_OK) {
        xlink_move(l, XLINK_DEAD);
        return s;
    }
    *link_out = l;
    return STATUS_OK;
}

void xlink_close(struct xlink *l)
{
    if (l->state >= XLINK_CLOSED)
        return;
    works_end(l, STATUS_CANCELLED);
    xsock_close(l);
    xlink_move(l, XLINK_CLOSED);
    if (l->x->body->hang_up && l->wq_over == l->wq_n)
        l->x->body->hang_up(l);
}

void *xlink_user(const struct xlink *l)
{
    return l->user;
}

void xlink_set_user(struct xlink *l, void *user)
{
    l->user = user;
}

// --- writing ---

enum status xlink_write(struct xlink *l, const struct xwrite *w)
{
    assert(w->bytes == 0 || w->src);
    struct xport *x = l->x;
    if (l->state != XLINK_UP)
        return greets(l->state) ? STATUS_AGAIN : STATUS_LINK_DOWN;
    enum status s = l->wq_n == x->depth ? STATUS_FULL : x->body->write(l, w);
    if (s == STATUS_FULL)
        x->stats.refused_full++;
    if (s != STATUS_OK)
        return s;
    x->stats.writes++;
    x->stats.write_bytes += w->bytes;
    return STATUS_OK;
}

struct xwork *xlink_work_add(struct xlink *l, void *user)
{
    assert(l->wq_n < l->x->depth);
    struct xwork *w = &l->wq[(l->wq_head + l->wq_n++) % l->x->depth];
    w->user = user;
    w->status = STATUS_OK;
    return w;
}

// --- events ---

void xlink_notice(struct xlink *l, const struct xframe *f, struct xport_event *event)
{
    event->kind = XPORT_NOTICE;
    event->link = l;
    event->status = STATUS_OK;
    event->user = NULL;
    event->region = f->region;
    event->notice = f->notice;
    event->offset = f->offset;
    event->bytes = f->bytes;
    event->hello_n = 0;
    l->x->stats.notices++;
}

static void event_up(struct xlink *l, struct xport_event *event)
{
    *event = (struct xport_event){.kind = XPORT_LINK_UP, .link = l, .status = STATUS_OK};
    if (l->incoming) {
        event->hello_n = l->greeting.hello_n;
        memcpy(event->hello, l->greeting.hello, event->hello_n);
    }
    l->up_due = false;
    l->x->stats.links_up++;
}

static void event_down(struct xlink *l, struct xport_event *event)
{
    *event = (struct xport_event){.kind = XPORT_LINK_DOWN, .link = l, .status = l->fail};
    l->x->stats.links_down++;
    xlink_move(l, XLINK_DEAD);
}

static int events_done(struct xlink *l, struct xport_event *events, int max)
{
    int n = 0;
    for (; l->wq_over > 0 && n < max; n++) {
        const struct xwork *w = &l->wq[l->wq_head];
        events[n].kind = XPORT_WRITE_DONE;
        events[n].link = l;
        events[n].status = w->status;
        events[n].user = w->user;
        events[n].hello_n = 0;
        l->wq_head = (l->wq_head + 1) % l->x->depth;
        l->wq_n--;
        l->wq_over--;
    }
    return n;
}

static int link_events(struct xlink *l, struct xport_event *events, int max)
{
    int n = 0;
    bool open = l->state == XLINK_UP || l->state == XLINK_FAILED;
    if (open && l->up_due && n < max)
        event_up(l, &events[n++]);
    if (open && !l->rx_over && n < max)
        n += l->x->body->receive(l, events + n, max - n);
    if (l->state == XLINK_FAILED || l->state == XLINK_CLOSED)
        works_release(l);
    n += events_done(l, events + n, max - n);
    if (l->state == XLINK_FAILED && l->rx_over && !l->up_due && l->wq_n == 0 && n < max)
        event_down(l, &events[n++]);
    if (l->state == XLINK_CLOSED && l->wq_n == 0)
        xlink_move(l, XLINK_DEAD);
    return n;
}

static bool link_ready(struct xlink *l)
{
    if (l->state == XLINK_UP)
        return l->up_due || l->wq_over > 0 || l->x->body->ready(l);
    return l->state == XLINK_FAILED || l->state == XLINK_CLOSED;
}

// Links whose last event was given by an earlier poll.
static void links_bury(struct xport *x)
{
    for (size_t i = 0; x->dead_n > 0 && i < x->links_n;) {
        if (x->links[i]->state != XLINK_DEAD) {
            i++;
            continue;
        }
        x->dead_n--;
        link_free(x->links[i]);
        x->links[i] = x->links[--x->links_n];
    }
}

static void serve(struct xport *x, const struct epoll_event *ev)
{
    if (ev->data.ptr == &x->wake_fd) {
        uint64_t count;
        ssize_t n = read(x->wake_fd, &count, sizeof count);
        (void)n; // the flag is what counts
    } else if (ev->data.ptr == &x->listen_fd) {
        x->body->arrive(x);
    } else {
        struct xlink *l = ev->data.ptr;
        if (greets(l->state))
            xsock_greet(l, ev->events);
        else if (l->state == XLINK_UP)
            x->body->service(l, ev->events);
        else if (l->state == XLINK_FAILED)
            l->readable = true;
    }
}

static void serve_sockets(struct xport *x)
{
    bool rare = x->body->memory_polled && x->greets_n == 0 && x->ready_n == 0;
    if (rare || x->greets_n > 0 || x->body->tick) {
        uint64_t now = xport_now_us();
        if (rare && now - x->served_us < SERVE_EVERY_US)
            return;
        x->served_us = now;
        if (now >= x->next_tick_us)
            x->next_tick_us = x->body->tick(x, now);
    }
    if (x->ready_n == 0) {
        int n = epoll_wait(x->epoll_fd, x->ready, XPORT_READY_MAX, 0);
        x->ready_n = n > 0 ? n : 0;
    }
    for (int i = 0; i < x->ready_n; i++)
        serve(x, &x->ready[i]);
    x->ready_n = 0;
    if (x->greets_n > 0)
        xsock_expire(x);
}

int xport_poll(struct xport *x, struct xport_event *events, int max)
{
    serve_sockets(x); // before the burial: `ready` may name the dead
    links_bury(x);
    int n = 0;
    size_t links_n = x->links_n;
    size_t first = links_n ? x->turn++ % links_n : 0;
    for (size_t i = 0; i < links_n && n < max; i++)
        n += link_events(x->links[(first + i) % links_n], events + n, max - n);
    return n;
}

// --- waiting ---

static bool any_ready(const struct xport *x)
{
    if (x->ready_n > 0)
        return true;
    for (size_t i = 0; i < x->links_n; i++)
        if (link_ready(x->links[i]))
            return true;
    return false;
}

static void fetch(struct xport *x, int timeout_ms)
{
    int n = epoll_wait(x->epoll_fd, x->ready, XPORT_READY_MAX, timeout_ms);
    x->ready_n = n > 0 ? n : 0;
}

static void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// True when there is something to do within spin_us.
static bool spin(struct xport *x, uint64_t until)
{
    do {
        if (atomic_load_explicit(&x->woken, memory_order_relaxed))
            return true;
        uint64_t now = xport_now_us();
        if (!x->body->memory_polled || now - x->served_us >= SERVE_EVERY_US) {
            x->served_us = now;
            fetch(x, 0);
        }
        if (any_ready(x))
            return true;
        cpu_pause();
        if (now >= until)
            return false;
    } while (true);
}

static void sleeping(struct xport *x, bool on)
{
    for (size_t i = 0; i < x->links_n && x->body->sleeping; i++)
        if (x->links[i]->state == XLINK_UP)
            x->body->sleeping(x->links[i], on);
}

// The earliest of the timeout, of the deadlines of greetings and of the body's tick.
static int sleep_ms(const struct xport *x, int timeout_ms)
{
    uint64_t first = x->links_n > 0 ? x->next_tick_us : UINT64_MAX;
    if (x->greets_n == 0 && first == UINT64_MAX)
        return timeout_ms;
    uint64_t now = xport_now_us();
    for (size_t i = 0; x->greets_n > 0 && i < x->links_n; i++)
        if (greets(x->links[i]->state) && x->links[i]->deadline_us < first)
            first = x->links[i]->deadline_us;
    int ms = first <= now ? 0 : (int)((first - now) / 1000 + 1);
    return timeout_ms < 0 || ms < timeout_ms ? ms : timeout_ms;
}

void xport_wait(struct xport *x, int timeout_ms)
{
    if (atomic_exchange(&x->woken, false) || any_ready(x))
        return;
    uint64_t spin_us = x->spin_us;
    if (timeout_ms >= 0 && (uint64_t)timeout_ms * 1000 < spin_us)
        spin_us = (uint64_t)timeout_ms * 1000;
    if (spin_us > 0 && spin(x, xport_now_us() + spin_us)) {
        atomic_store(&x->woken, false);
        return;
    }
    // Say so first, then look once more: a peer writes, then looks whether we sleep.
    sleeping(x, true);
    atomic_thread_fence(memory_order_seq_cst);
    if (!any_ready(x))
        fetch(x, sleep_ms(x, timeout_ms));
    sleeping(x, false);
    atomic_store(&x->woken, false);
}

void xport_wake(struct xport *x)
{
    if (!atomic_exchange(&x->woken, true)) {
        uint64_t one = 1;
        ssize_t n = write(x->wake_fd, &one, sizeof one);
        (void)n; // full: awake already
    }
}

struct xport_stats xport_stats_get(const struct xport *x)
{
    return x->stats;
}
