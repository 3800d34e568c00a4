// Listening, connecting and greeting for the bodies that sit on sockets. A connection becomes a
// link only after a whole greeting with the right magic, version, kind and token; until then it is
// half-open: it costs one small struct, ends by itself after handshake_ms, and when as many as
// max_links are half-open the oldest makes room, so that silent callers cannot keep others out.
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "rdma/xport_body.h"

enum { ACCEPTS_PER_TURN = 64, HALF_OPEN_MIN = 16 };

void xsock_watch(struct xlink *l, uint32_t mask)
{
    if (mask == l->epoll_mask)
        return;
    struct epoll_event ev = {.events = mask, .data.ptr = l};
    int op = l->epoll_mask ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(l->x->epoll_fd, op, l->fd, &ev) < 0) {
        log_error("xport %s: epoll_ctl: errno %d", l->x->body->name, errno);
        xlink_fail(l, STATUS_IO, false);
        return;
    }
    l->epoll_mask = mask;
}

void xsock_close(struct xlink *l)
{
    if (l->fd < 0)
        return;
    // A forked child may hold the socket too: closing alone would neither end the connection nor
    // the watch.
    shutdown(l->fd, SHUT_RDWR);
    if (l->epoll_mask)
        epoll_ctl(l->x->epoll_fd, EPOLL_CTL_DEL, l->fd, NULL);
    close(l->fd);
    l->fd = -1;
    l->epoll_mask = 0;
}

void xsock_evict_oldest(struct xport *x)
{
    struct xlink *oldest = NULL;
    for (size_t i = 0; i < x->links_n; i++) {
        struct xlink *l = x->links[i];
        if (l->incoming && l->state == XLINK_GREETING &&
            (!oldest || l->deadline_us < oldest->deadline_us))
            oldest = l;
    }
    if (oldest)
        xlink_fail(oldest, STATUS_LINK_TIMEOUT, false);
}

// Out of descriptors, the caller would stay in the backlog and keep the listener readable for ever.
static void turn_away(struct xport *x)
{
    log_warn("xport %s: out of file descriptors, a caller is turned away", x->body->name);
    close(x->spare_fd);
    int fd = accept4(x->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        close(fd);
    x->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

uint32_t xsock_half_open_max(const struct xport *x)
{
    return x->max_links > HALF_OPEN_MIN ? x->max_links : HALF_OPEN_MIN;
}

void xsock_accept(struct xport *x)
{
    uint32_t half_max = xsock_half_open_max(x);
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(x->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE))
            turn_away(x);
        if (fd < 0)
            return;
        if (x->half_n >= half_max)
            xsock_evict_oldest(x);
        struct xlink *l = xlink_create(x, true);
        l->fd = fd;
        xsock_watch(l, EPOLLIN);
        if (l->state == XLINK_GREETING)
            xsock_greet(l, EPOLLIN); // most callers have spoken already
    }
}

static struct xgreeting greeting_of(const struct xlink *l, enum xgreet_code code)
{
    return (struct xgreeting){.magic = XPORT_MAGIC,
                              .version = XPORT_VERSION,
                              .kind = (uint8_t)l->x->kind,
                              .code = (uint8_t)code,
                              .depth = l->x->depth};
}

static bool is_connected(const struct xlink *l)
{
    int err = 0;
    socklen_t n = sizeof err;
    return getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &err, &n) == 0 && !err;
}

void xsock_introduce(struct xlink *l)
{
    struct xgreeting g = greeting_of(l, XGREET_OK);
    g.token = l->greeting.token;
    g.hello_n = l->greeting.hello_n;
    for (int i = 0; i < g.hello_n; i++)
        g.hello[i] = l->greeting.hello[i];
    xlink_move(l, XLINK_GREETING);
    if (l->x->body->greet(l, &g) != STATUS_OK)
        xlink_fail(l, STATUS_LINK_DOWN, false);
    else if (l->fd >= 0)
        xsock_watch(l, EPOLLIN);
}

static enum xgreet_code judge_caller(const struct xlink *l)
{
    const struct xgreeting *g = &l->greeting;
    if (g->magic != XPORT_MAGIC || g->kind != l->x->kind || g->code != XGREET_OK ||
        g->hello_n > XPORT_HELLO_MAX)
        return XGREET_BAD;
    if (g->version != XPORT_VERSION)
        return XGREET_VERSION;
    if (g->token != l->x->token)
        return XGREET_TOKEN;
    return l->x->slots_n < l->x->max_links ? XGREET_OK : XGREET_BUSY;
}

static void answer_caller(struct xlink *l)
{
    enum xgreet_code code = judge_caller(l);
    if (code == XGREET_OK && l->x->body->start(l) != STATUS_OK)
        code = XGREET_BAD;
    struct xgreeting answer = greeting_of(l, code);
    if (l->greeting.magic == XPORT_MAGIC && l->x->body->greet(l, &answer) != STATUS_OK)
        code = XGREET_BAD;
    if (code == XGREET_OK) {
        xlink_established(l);
        return;
    }
    if (code == XGREET_VERSION)
        log_warn("xport %s: a caller speaks version %u, this is %d", l->x->body->name,
                 l->greeting.version, XPORT_VERSION);
    else if (code == XGREET_BUSY)
        log_warn("xport %s: all %u links are taken, a caller is refused", l->x->body->name,
                 l->x->max_links);
    xlink_fail(l, code == XGREET_BUSY ? STATUS_LINK_DOWN : STATUS_LINK_PROTOCOL, false);
}

static enum status judge_answer(const struct xgreeting *g, uint8_t kind)
{
    if (g->magic != XPORT_MAGIC || g->kind != kind)
        return STATUS_LINK_PROTOCOL;
    if (g->version != XPORT_VERSION || g->code == XGREET_VERSION)
        return STATUS_LINK_VERSION;
    if (g->code == XGREET_BUSY || g->code == XGREET_TOKEN)
        return STATUS_REFUSED;
    return g->code == XGREET_OK ? STATUS_OK : STATUS_LINK_PROTOCOL;
}

static void take_answer(struct xlink *l)
{
    enum status s = judge_answer(&l->greeting, (uint8_t)l->x->kind);
    if (s == STATUS_OK)
        s = l->x->body->start(l);
    if (s == STATUS_OK)
        xlink_established(l);
    else
        xlink_fail(l, s, false);
}

void xsock_greet(struct xlink *l, uint32_t events)
{
    if (l->state == XLINK_DIALING) {
        if (is_connected(l))
            xsock_introduce(l);
        else
            xlink_fail(l, STATUS_LINK_DOWN, false);
        return;
    }
    enum status s = l->x->body->greeted(l);
    if (s == STATUS_PENDING)
        return;
    if (s != STATUS_OK)
        xlink_fail(l, s, false);
    else if (l->incoming)
        answer_caller(l);
    else
        take_answer(l);
}

void xsock_expire(struct xport *x)
{
    uint64_t now = xport_now_us();
    for (size_t i = 0; i < x->links_n; i++) {
        struct xlink *l = x->links[i];
        if (l->state <= XLINK_GREETING && l->deadline_us <= now)
            xlink_fail(l, STATUS_LINK_TIMEOUT, false);
    }
}
