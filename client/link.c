// Sockets of the client. Every wait is a poll with a limit.
#include "client/link.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    WRITE_MS = 10 * 1000,   // a peer that takes nothing for so long is gone
    SILENCE_MS = 30 * 1000, // then it is asked whether it is alive
    ANSWER_MS = 10 * 1000,  // and has so long to answer
};

uint64_t link_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool parse_address(const char *text, size_t n, struct link_address *out)
{
    const char *colon = memrchr(text, ':', n);
    if (!colon || colon == text)
        return false;
    size_t host_n = (size_t)(colon - text), port_n = n - host_n - 1;
    if (*text == '[' && text[host_n - 1] == ']') {
        text++;
        host_n -= 2;
    }
    if (host_n == 0 || host_n >= sizeof out->host || port_n == 0 || port_n >= sizeof out->port)
        return false;
    snprintf(out->host, sizeof out->host, "%.*s", (int)host_n, text);
    snprintf(out->port, sizeof out->port, "%.*s", (int)port_n, colon + 1);
    long port = strtol(out->port, NULL, 10);
    return strspn(out->port, "0123456789") == port_n && port >= 1 && port <= 65535;
}

// "key_file=PATH": both sides prove that they have it.
static enum status open_key(struct link *l, const char *query, struct errmsg *err)
{
    static const char name[] = "key_file=";
    if (strncmp(query, name, sizeof name - 1))
        return errmsg_set(err, STATUS_BAD_CONFIG, "url: '?%.100s' is not ?key_file=FILE", query);
    return secure_domain_client(query + sizeof name - 1, "key_file", &l->domain, err);
}

enum status link_init(struct link *l, const char *url, struct errmsg *err)
{
    static const char scheme[] = "hadal://";
    *l = (struct link){.fd = -1};
    wire_decoder_init(&l->in, 0);
    const char *at = strncmp(url, scheme, sizeof scheme - 1) ? url : url + sizeof scheme - 1;
    for (;;) {
        size_t n = strcspn(at, ",?");
        if (l->addresses_n == LINK_ADDRESSES)
            return errmsg_set(err, STATUS_BAD_CONFIG, "url: more than %d addresses",
                              LINK_ADDRESSES);
        if (!parse_address(at, n, &l->addresses[l->addresses_n++]))
            return errmsg_set(err, STATUS_BAD_CONFIG, "url: '%.*s' is not of the form host:port",
                              (int)(n < 200 ? n : 200), at);
        if (!at[n])
            return STATUS_OK;
        if (at[n] == '?')
            return open_key(l, at + n + 1, err);
        at += n + 1;
    }
}

void link_finish(struct link *l)
{
    link_down(l);
    wire_decoder_finish(&l->in);
    secure_domain_close(l->domain);
    strbuf_finish(&l->wire);
    strbuf_finish(&l->plain);
}

void link_down(struct link *l)
{
    if (l->fd < 0)
        return;
    close(l->fd);
    l->fd = -1;
    secure_close(l->secure);
    l->secure = NULL;
    strbuf_clear(&l->wire);
    wire_decoder_finish(&l->in);
    wire_decoder_init(&l->in, 0);
}

static bool wait_for(int fd, short events, uint64_t timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = events};
    int ms = timeout_ms > 3600 * 1000 ? 3600 * 1000 : (int)timeout_ms;
    int n;
    do
        n = poll(&p, 1, ms);
    while (n < 0 && errno == EINTR);
    return n > 0;
}

static int connect_to(const struct addrinfo *a, uint32_t timeout_ms)
{
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0)
        return -1;
    int on = 1, error = 0;
    socklen_t n = sizeof error;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
        goto fail;
    if (connect(fd, a->ai_addr, a->ai_addrlen)) {
        if (errno != EINPROGRESS)
            goto fail;
        errno = ETIMEDOUT;
        if (!wait_for(fd, POLLOUT, timeout_ms))
            goto fail;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n) || error) {
            errno = error;
            goto fail;
        }
    }
    return fd;
fail:
    error = errno;
    close(fd);
    errno = error;
    return -1;
}

static enum status shake_hands(struct link *l, uint32_t timeout_ms, struct errmsg *err);

enum status link_connect(struct link *l, uint32_t timeout_ms, struct errmsg *err)
{
    const struct link_address *to = &l->addresses[l->next];
    l->next = (l->next + 1) % l->addresses_n;
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct addrinfo *list;
    int rc = getaddrinfo(to->host, to->port, &hints, &list);
    if (rc)
        return errmsg_set(err, STATUS_LINK_DOWN, "%s: %s", to->host, gai_strerror(rc));
    for (const struct addrinfo *a = list; a && l->fd < 0; a = a->ai_next)
        l->fd = connect_to(a, timeout_ms);
    int error = errno;
    freeaddrinfo(list);
    if (l->fd < 0)
        return errmsg_set(err, error == ETIMEDOUT ? STATUS_LINK_TIMEOUT : STATUS_LINK_DOWN,
                          "%s:%s: %s", to->host, to->port, strerror(error));
    l->heard_ms = link_now_ms();
    l->asked_ms = 0;
    return l->domain ? shake_hands(l, timeout_ms, err) : STATUS_OK;
}

static enum status send_bytes(struct link *l, const void *bytes, size_t n)
{
    const char *at = bytes;
    while (n && l->fd >= 0) {
        ssize_t sent = send(l->fd, at, n, MSG_NOSIGNAL);
        if (sent > 0) {
            at += sent;
            n -= (size_t)sent;
        } else if (errno != EINTR && (errno != EAGAIN || !wait_for(l->fd, POLLOUT, WRITE_MS))) {
            link_down(l);
        }
    }
    return l->fd >= 0 ? STATUS_OK : STATUS_LINK_DOWN;
}

static enum status send_sealed(struct link *l)
{
    enum status s = send_bytes(l, l->wire.v, l->wire.n);
    strbuf_clear(&l->wire);
    return s;
}

enum status link_write(struct link *l, const void *bytes, size_t n)
{
    if (!l->secure)
        return send_bytes(l, bytes, n);
    if (secure_seal(l->secure, bytes, n, &l->wire)) {
        link_down(l);
        return STATUS_LINK_DOWN;
    }
    return send_sealed(l);
}

// What came, in the clear, goes to the decoder.
static enum status unseal(struct link *l, const char *bytes, size_t n, struct errmsg *err)
{
    strbuf_clear(&l->plain);
    enum status s = secure_feed(l->secure, bytes, n, &l->plain, &l->wire, err);
    if (l->wire.n && send_sealed(l) && !s)
        s = errmsg_set(err, STATUS_LINK_DOWN, "the connection broke");
    if (s)
        link_down(l);
    else if (l->plain.n)
        wire_decoder_feed(&l->in, l->plain.v, l->plain.n);
    return s;
}

// One read of what is there.
static enum status take_bytes(struct link *l, struct errmsg *err)
{
    char buf[16 << 10];
    ssize_t n = recv(l->fd, buf, sizeof buf, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return STATUS_AGAIN;
    if (n <= 0) {
        errmsg_set(err, STATUS_LINK_DOWN, "%s",
                   n ? strerror(errno) : "the coordinator closed the connection");
        link_down(l);
        return STATUS_LINK_DOWN;
    }
    l->heard_ms = link_now_ms();
    l->asked_ms = 0;
    if (l->secure)
        return unseal(l, buf, (size_t)n, err);
    wire_decoder_feed(&l->in, buf, (size_t)n);
    return STATUS_OK;
}

static enum status shake_hands(struct link *l, uint32_t timeout_ms, struct errmsg *err)
{
    uint64_t deadline = link_now_ms() + timeout_ms;
    l->secure = secure_open(l->domain, false);
    secure_greet(l->secure, &l->wire);
    enum status s = send_sealed(l);
    while (s >= 0 && l->fd >= 0 && !secure_is_up(l->secure)) {
        uint64_t now = link_now_ms();
        if (now >= deadline || !wait_for(l->fd, POLLIN, deadline - now)) {
            link_down(l);
            return errmsg_set(err, STATUS_LINK_TIMEOUT, "the coordinator does not shake hands");
        }
        s = take_bytes(l, err);
    }
    if (l->fd < 0)
        return s < 0 ? s : errmsg_set(err, STATUS_LINK_DOWN, "the connection broke");
    return STATUS_OK;
}

// A silent peer is asked, and given up when it does not answer.
static enum status check_alive(struct link *l, struct errmsg *err)
{
    uint64_t now = link_now_ms();
    if (l->asked_ms && now - l->asked_ms > ANSWER_MS) {
        link_down(l);
        return errmsg_set(err, STATUS_LINK_TIMEOUT, "the coordinator does not answer");
    }
    if (l->asked_ms || now - l->heard_ms < SILENCE_MS)
        return STATUS_OK;
    struct wire_arena a = {0};
    struct strbuf out = {0};
    l->asked_ms = now;
    enum status s = wire_encode_rpc(&a, 0, &(struct rpc){.kind = RPC_PING, .ping = {now}}, &out);
    if (!s)
        s = link_write(l, out.v, out.n);
    strbuf_finish(&out);
    wire_arena_finish(&a);
    return s;
}

enum status link_read(struct link *l, uint32_t timeout_ms, struct wire_frame *f, struct errmsg *err)
{
    uint64_t deadline = link_now_ms() + timeout_ms;
    for (bool last = false; l->fd >= 0;) {
        enum status s = wire_decoder_next(&l->in, f, err);
        if (s < 0)
            link_down(l);
        if (s != STATUS_AGAIN || last)
            return s;
        uint64_t now = link_now_ms(), left = deadline > now ? deadline - now : 0;
        last = left == 0; // one more look at what is there
        s = wait_for(l->fd, POLLIN, left < 1000 ? left : 1000) ? take_bytes(l, err)
                                                               : check_alive(l, err);
        if (s < 0)
            return s;
    }
    return STATUS_LINK_DOWN;
}
