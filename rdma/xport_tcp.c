// TCP body. A write is one frame: a 32-byte header, then the bytes, which the receiver reads from
// the socket straight into the region once the header is checked. Only what arrives in one read
// together with a header goes through a small buffer.
//
// No keep-alive or user timeout: a hung or vanished host is the heartbeat's to notice (a slow
// receiver with a closed window must not look dead).
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/mem.h"
#include "rdma/xport_body.h"

enum {
    RX_BYTES = 16384,
    TX_FRAMES = 16,           // frames handed to one sendmsg
    RX_BUDGET = 4 << 20,      // bytes read from one link before others have their turn
    FRAME_MAGIC = 0x4d524658, // "XFRM"
    FRAME_BYTES = sizeof(struct xframe),
};

struct tcp_link {
    struct xlink base;
    uint8_t *rx; // read, not yet parsed: rx[rx_from .. rx_from + rx_n)
    size_t rx_from, rx_n;
    bool in_payload;
    struct xframe frame; // whose payload is being received
    uint8_t *dst;
    size_t left;
    bool more; // stopped receiving for want of room or budget
};

static struct tcp_link *tcp_of(struct xlink *l)
{
    return (struct tcp_link *)l;
}

static enum status resolve(const char *host, const char *port, struct sockaddr_storage *sa_out,
                           socklen_t *n_out, struct errmsg *e)
{
    char *end;
    unsigned long number = strtoul(port, &end, 10); // getaddrinfo takes it modulo 2^16
    if (*port < '0' || *port > '9' || *end || number > 65535)
        return errmsg_set(e, STATUS_BAD_CONFIG, "xport tcp: '%.16s' is no port", port);
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *ai;
    int rc = getaddrinfo(host, port, &hints, &ai);
    if (rc)
        return errmsg_set(e, STATUS_BAD_CONFIG, "xport tcp: host '%.64s' port '%.16s': %s", host,
                          port, gai_strerror(rc));
    memcpy(sa_out, ai->ai_addr, ai->ai_addrlen);
    *n_out = ai->ai_addrlen;
    freeaddrinfo(ai);
    return STATUS_OK;
}

static bool is_wildcard(const struct sockaddr_storage *sa)
{
    if (sa->ss_family == AF_INET)
        return ((const struct sockaddr_in *)sa)->sin_addr.s_addr == INADDR_ANY;
    return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

static enum status tcp_open(struct xport *x, const struct xport_config *config, struct errmsg *e)
{
    const char *host = config->bind_host ? config->bind_host : "127.0.0.1";
    struct sockaddr_storage sa;
    socklen_t n;
    enum status s = resolve(host, "0", &sa, &n, e);
    if (s != STATUS_OK)
        return s;
    if (is_wildcard(&sa))
        return errmsg_set(e, STATUS_BAD_CONFIG,
                          "xport tcp: bind_host '%s' is not an address that peers can reach", host);
    x->listen_fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (x->listen_fd < 0 || bind(x->listen_fd, (struct sockaddr *)&sa, n) < 0 ||
        listen(x->listen_fd, SOMAXCONN) < 0 ||
        getsockname(x->listen_fd, (struct sockaddr *)&sa, &n) < 0)
        return errmsg_set(e, status_from_errno(errno), "xport tcp: cannot listen on %s: %s", host,
                          strerror(errno));
    bool v6 = sa.ss_family == AF_INET6;
    int port =
        ntohs(v6 ? ((struct sockaddr_in6 *)&sa)->sin6_port : ((struct sockaddr_in *)&sa)->sin_port);
    snprintf(x->address, sizeof x->address, v6 ? "tcp:[%s]:%d#%016llx" : "tcp:%s:%d#%016llx", host,
             port, (unsigned long long)x->token);
    return STATUS_OK;
}

static enum status tcp_region_create(struct xport *x, struct xregion *r, struct errmsg *e)
{
    r->base = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (r->base == MAP_FAILED)
        return errmsg_set(e, STATUS_NO_MEMORY, "xport region %u: cannot map %zu bytes: %s", r->id,
                          r->bytes, strerror(errno));
    return STATUS_OK;
}

static void tcp_region_free(struct xregion *r)
{
    munmap(r->base, r->bytes);
}

// HOST:PORT or [HOST]:PORT.
static enum status tcp_dial(struct xlink *l, const char *where, struct errmsg *e)
{
    char host[LIMIT_ADDR];
    snprintf(host, sizeof host, "%s", where[0] == '[' ? where + 1 : where);
    char *colon = strrchr(host, ':');
    if (!colon || (where[0] == '[' && (colon == host || colon[-1] != ']')))
        return errmsg_set(e, STATUS_BAD_CONFIG, "xport tcp: '%.100s' is not HOST:PORT", where);
    *colon = 0;
    if (where[0] == '[')
        colon[-1] = 0;
    struct sockaddr_storage sa;
    socklen_t n;
    enum status s = resolve(host, colon + 1, &sa, &n, e);
    if (s != STATUS_OK)
        return s;
    l->fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0)
        return errmsg_set(e, status_from_errno(errno), "xport tcp: socket: %s", strerror(errno));
    if (connect(l->fd, (struct sockaddr *)&sa, n) < 0 && errno != EINPROGRESS)
        return errmsg_set(e, STATUS_LINK_DOWN, "xport tcp: connect %s: %s", where, strerror(errno));
    xsock_watch(l, EPOLLOUT);
    return STATUS_OK;
}

static enum status tcp_greet(struct xlink *l, struct xgreeting *g)
{
    // The first bytes on a fresh socket always fit its buffer.
    return send(l->fd, g, sizeof *g, MSG_NOSIGNAL) == sizeof *g ? STATUS_OK : STATUS_LINK_DOWN;
}

static enum status tcp_greeted(struct xlink *l)
{
    // Not a byte more than the greeting: frames may follow it.
    ssize_t n =
        recv(l->fd, (uint8_t *)&l->greeting + l->greeting_n, sizeof l->greeting - l->greeting_n, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return STATUS_PENDING;
    if (n <= 0)
        return STATUS_LINK_DOWN;
    l->greeting_n += (size_t)n;
    return l->greeting_n == sizeof l->greeting ? STATUS_OK : STATUS_PENDING;
}

static enum status tcp_start(struct xlink *l)
{
    int one = 1;
    setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    tcp_of(l)->rx = mem_alloc(RX_BYTES);
    l->readable = true; // frames may have come with the greeting
    return STATUS_OK;
}

static void tcp_stop(struct xlink *l)
{
    free(tcp_of(l)->rx);
}

// --- sending ---

static size_t work_bytes(const struct xwork *w)
{
    return FRAME_BYTES + w->frame.bytes;
}

static int work_iov(const struct xwork *w, struct iovec *iov)
{
    int n = 0;
    size_t body = 0;
    if (w->sent < FRAME_BYTES)
        iov[n++] = (struct iovec){(uint8_t *)&w->frame + w->sent, FRAME_BYTES - w->sent};
    else
        body = w->sent - FRAME_BYTES;
    if (w->frame.bytes > body)
        iov[n++] = (struct iovec){(uint8_t *)(uintptr_t)(w->src + body), w->frame.bytes - body};
    return n;
}

static struct xwork *work_at(struct xlink *l, uint32_t i)
{
    return &l->wq[(l->wq_head + i) % l->x->depth];
}

static void count_sent(struct xlink *l, size_t bytes)
{
    while (bytes > 0) {
        struct xwork *w = work_at(l, l->wq_over);
        size_t left = work_bytes(w) - w->sent;
        size_t took = bytes < left ? bytes : left;
        w->sent += took;
        bytes -= took;
        l->wq_over += took == left;
    }
}

static void flush(struct xlink *l)
{
    while (l->wq_over < l->wq_n) {
        struct iovec iov[2 * TX_FRAMES];
        int n = 0;
        for (uint32_t i = l->wq_over; i < l->wq_n && i < l->wq_over + TX_FRAMES; i++)
            n += work_iov(work_at(l, i), iov + n);
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n};
        ssize_t sent = sendmsg(l->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN) {
            xsock_watch(l, EPOLLIN | EPOLLOUT);
            return;
        }
        if (sent < 0) {
            l->readable = true; // what the peer sent before it went
            xlink_fail(l, STATUS_LINK_DOWN, true);
            return;
        }
        count_sent(l, (size_t)sent);
    }
    xsock_watch(l, EPOLLIN);
}

static enum status tcp_write(struct xlink *l, const struct xwrite *w)
{
    bool idle = l->wq_over == l->wq_n;
    struct xwork *work = xlink_work_add(l, w->user);
    work->frame = (struct xframe){.magic = FRAME_MAGIC,
                                  .region = w->region,
                                  .notice = w->notice,
                                  .offset = w->offset,
                                  .bytes = w->bytes};
    work->src = w->src;
    work->sent = 0;
    if (idle)
        flush(l);
    return STATUS_OK;
}

// --- receiving ---

static bool read_some(struct tcp_link *t)
{
    assert(t->rx_n == 0);
    struct iovec iov[2] = {{t->dst, t->left}, {t->rx, RX_BYTES}};
    bool payload = t->in_payload && t->left > 0;
    ssize_t n = readv(t->base.fd, payload ? iov : iov + 1, payload ? 2 : 1);
    if (n < 0 && errno == EINTR)
        return true;
    if (n < 0 && errno == EAGAIN) {
        t->base.readable = false;
        return false;
    }
    if (n <= 0) {
        xlink_fail(&t->base, STATUS_LINK_DOWN, false);
        t->base.rx_over = true;
        return false;
    }
    // A short read emptied the socket; epoll tells when there is more, or the end.
    if ((size_t)n < RX_BYTES + (payload ? t->left : 0))
        t->base.readable = false;
    size_t direct = !payload ? 0 : (size_t)n < t->left ? (size_t)n : t->left;
    t->dst += direct;
    t->left -= direct;
    t->rx_from = 0;
    t->rx_n = (size_t)n - direct;
    return true;
}

static const uint8_t *take(struct tcp_link *t, size_t n)
{
    const uint8_t *p = t->rx + t->rx_from;
    t->rx_from += n;
    t->rx_n -= n;
    return p;
}

static bool parse_header(struct tcp_link *t)
{
    memcpy(&t->frame, take(t, FRAME_BYTES), FRAME_BYTES);
    t->dst = xport_target(t->base.x, &t->frame);
    t->left = t->frame.bytes;
    t->in_payload = true;
    if (t->frame.magic == FRAME_MAGIC && t->frame.zero == 0 && t->dst)
        return true;
    xlink_fail(&t->base, STATUS_LINK_PROTOCOL, false);
    t->base.rx_over = true;
    return false;
}

static void take_payload(struct tcp_link *t)
{
    size_t n = t->rx_n < t->left ? t->rx_n : t->left;
    memcpy(t->dst, take(t, n), n);
    t->dst += n;
    t->left -= n;
}

// A header cut by the end of the buffer moves to its front and is completed.
static bool read_rest_of_header(struct tcp_link *t)
{
    memmove(t->rx, t->rx + t->rx_from, t->rx_n);
    t->rx_from = 0;
    ssize_t n = recv(t->base.fd, t->rx + t->rx_n, RX_BYTES - t->rx_n, 0);
    if (n > 0) {
        t->rx_n += (size_t)n;
        return true;
    }
    if (n < 0 && errno == EINTR)
        return true;
    if (n < 0 && errno == EAGAIN) {
        t->base.readable = false;
        return false;
    }
    xlink_fail(&t->base, STATUS_LINK_DOWN, false);
    t->base.rx_over = true;
    return false;
}

static int tcp_receive(struct xlink *l, struct xport_event *events, int max)
{
    struct tcp_link *t = tcp_of(l);
    int n = 0;
    size_t budget = RX_BUDGET;
    bool go = true;
    t->more = false;
    while (go) {
        if (t->in_payload && t->left == 0) {
            xlink_notice(l, &t->frame, &events[n++]);
            t->in_payload = false;
            if (n == max) {
                t->more = true;
                break;
            }
        } else if (t->in_payload && t->rx_n > 0) {
            take_payload(t);
        } else if (!t->in_payload && t->rx_n >= FRAME_BYTES) {
            go = parse_header(t);
        } else if (!l->readable) {
            break;
        } else if (budget == 0) {
            t->more = true;
            break;
        } else {
            size_t left = t->left;
            go = t->rx_n ? read_rest_of_header(t) : read_some(t);
            size_t got = t->rx_n + (t->in_payload ? left - t->left : 0);
            budget -= got < budget ? got : budget;
        }
    }
    if (l->state == XLINK_FAILED && !l->readable)
        l->rx_over = true;
    return n;
}

static bool tcp_ready(struct xlink *l)
{
    const struct tcp_link *t = tcp_of(l);
    return t->more || l->readable;
}

static void tcp_service(struct xlink *l, uint32_t events)
{
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        l->readable = true;
    if (events & EPOLLOUT)
        flush(l);
}

const struct xport_body xport_tcp_body = {
    .name = "tcp",
    .link_bytes = sizeof(struct tcp_link),
    .memory_polled = false,
    .open = tcp_open,
    .arrive = xsock_accept,
    .region_create = tcp_region_create,
    .region_free = tcp_region_free,
    .dial = tcp_dial,
    .greet = tcp_greet,
    .greeted = tcp_greeted,
    .start = tcp_start,
    .write = tcp_write,
    .service = tcp_service,
    .receive = tcp_receive,
    .ready = tcp_ready,
    .stop = tcp_stop,
};
