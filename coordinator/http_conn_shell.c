// HTTP connections: accepting them, and what they may hold. libh2o keeps the body of a request in
// memory until it is whole and on until it is answered, so clients that begin large requests and
// never end them would take all there is. What is unfinished has a limit, and whoever has the most
// of it is closed when it is reached; what is being answered has one too, and more is refused.
#include "coordinator/http_shell.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "coordinator/tcp_bytes.h"

enum {
    SOCKET_BYTES = 64 << 10,      // that the kernel takes ahead of a slow client
    UNFINISHED_BYTES = 256 << 20, // of requests that are not whole yet
    ANSWERED_BYTES = 256 << 20,   // of requests that are being answered
    WATCH_MS = 100,
};

// Tells that the client has hung up. Its own descriptor of the same socket, because libuv allows
// one watcher for each; it lives as long as the connection, for making one costs as much as a
// request.
struct hangup {
    uv_poll_t poll;
    int fd;
    struct http_conn *conn;
};

struct http_conn {
    uv_tcp_t tcp;          // first
    struct hangup *hangup; // NULL: not made yet
    bool gone;             // the client has hung up
    void (*on_gone)(void *arg);
    void *on_gone_arg; // NULL: nobody asks
    UT_hash_handle hh;
    h2o_socket_t *sock; // the key; libh2o's, not valid once it is closed
    struct http_server *server;
    size_t answered; // bytes of its requests that are being answered
    bool http2;
    unsigned open;  // HTTP/2: requests that are not whole
    uint64_t start; // HTTP/2: bytes received when there was none
    size_t unfinished;
    bool condemned;
};

static void on_conn_closed(uv_handle_t *handle)
{
    struct http_conn *c = (struct http_conn *)handle; // libh2o uses handle->data
    c->server->shell->counters.http_connections--;
    free(c);
}

// ---- hanging up ----

static void on_hangup_closed(uv_handle_t *h)
{
    free(h->data);
}

static void hangup_stop(struct http_conn *c)
{
    struct hangup *h = c->hangup;
    if (!h)
        return;
    c->hangup = NULL;
    uv_poll_stop(&h->poll);
    close(h->fd);
    uv_close((uv_handle_t *)&h->poll, on_hangup_closed);
}

static void on_hangup(uv_poll_t *p, int status, int events)
{
    struct http_conn *c = ((struct hangup *)p->data)->conn;
    if (status >= 0 && !(events & UV_DISCONNECT))
        return;
    uv_poll_stop(p);
    c->gone = true;
    if (c->on_gone_arg)
        c->on_gone(c->on_gone_arg);
}

static void hangup_start(struct http_conn *c, int socket)
{
    int fd = fcntl(socket, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return; // out of descriptors: the next write will tell
    struct hangup *h = mem_zalloc(1, sizeof *h);
    h->fd = fd;
    h->conn = c;
    h->poll.data = h;
    if (uv_poll_init(&c->server->shell->loop, &h->poll, fd)) {
        close(fd);
        free(h);
        return;
    }
    uv_poll_start(&h->poll, UV_DISCONNECT, on_hangup);
    c->hangup = h;
}

// libh2o frees its socket at once, libuv closes ours later.
static void on_sock_closed(void *arg)
{
    struct http_conn *c = arg;
    hangup_stop(c);
    HASH_DEL(c->server->conns, c);
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct http_server *h = listener->data;
    struct shell_counters *counters = &h->shell->counters;
    if (status < 0) {
        log_warn("coordinator: accept: %s", uv_strerror(status));
        return;
    }
    struct http_conn *c = mem_zalloc(1, sizeof *c);
    c->server = h;
    uv_tcp_init(&h->shell->loop, &c->tcp);
    counters->http_connections++;
    bool full = counters->http_connections > h->shell->cfg->http_connections;
    if (uv_accept(listener, (uv_stream_t *)&c->tcp) || full) {
        counters->http_refused += full;
        uv_close((uv_handle_t *)&c->tcp, on_conn_closed);
        return;
    }
    uv_tcp_nodelay(&c->tcp, 1);
    int bytes = SOCKET_BYTES;
    uv_send_buffer_size((uv_handle_t *)&c->tcp, &bytes);
    c->sock = h2o_uv_socket_create((uv_stream_t *)&c->tcp, on_conn_closed);
    c->sock->on_close.cb = on_sock_closed;
    c->sock->on_close.data = c;
    HASH_ADD_PTR(h->conns, sock, c);
    h2o_accept(&h->accept, c->sock);
}

static struct http_conn *find(const struct http_server *h, h2o_socket_t *sock)
{
    struct http_conn *c;
    HASH_FIND_PTR(h->conns, &sock, c);
    return c;
}

struct http_conn *http_conn_watch(struct http_server *h, const h2o_req_t *req,
                                  void (*gone)(void *arg), void *arg)
{
    struct http_conn *c = find(h, req->conn->callbacks->get_socket(req->conn));
    if (!c || req->version >= 0x200)
        return NULL;
    if (!c->hangup)
        hangup_start(c, h2o_socket_get_fd(c->sock));
    else if (c->gone) // its last request and its end came together
        uv_poll_start(&c->hangup->poll, UV_DISCONNECT, on_hangup);
    c->gone = false;
    c->on_gone = gone;
    c->on_gone_arg = arg;
    return c;
}

void http_conn_unwatch(struct http_conn *c, const void *arg)
{
    if (c && c->on_gone_arg == arg)
        c->on_gone_arg = NULL;
}

struct http_conn *http_conn_hold(struct http_server *h, const h2o_req_t *req)
{
    struct http_conn *c = find(h, req->conn->callbacks->get_socket(req->conn));
    if (!c || h->answered + req->entity.len > ANSWERED_BYTES)
        return NULL;
    c->answered += req->entity.len;
    h->answered += req->entity.len;
    return c;
}

void http_conn_release(struct http_conn *c, size_t bytes)
{
    c->answered -= bytes;
    c->server->answered -= bytes;
}

// ---- memory of those that wait ----

// libh2o keeps the buffer of at least 4 KiB that a request was read into until it is answered, and
// points into it. 5,000 open streams would hold 20 MB of it unused. A block that gets smaller stays
// where it is, with glibc; C does not promise it, so it is tried out first, and where it is not so
// (sanitizers) nothing is trimmed.
static bool blocks_shrink_in_place(void)
{
    char *p = mem_alloc(H2O_SOCKET_INITIAL_INPUT_BUFFER_SIZE);
    uintptr_t before = (uintptr_t)p;
    p = mem_realloc(p, 512, 1);
    bool stays = (uintptr_t)p == before;
    free(p);
    return stays;
}

void http_conn_trim(struct http_conn *c)
{
    enum { WORTH_IT = 1024 };
    if (!c->server->trims)
        return;
    h2o_buffer_t *b = c->sock->input;
    size_t used = b->bytes ? (size_t)(b->bytes - b->_buf) + b->size : 0;
    if (!used || b->_fd != -1 || b->capacity < used + WORTH_IT)
        return;
    uintptr_t before = (uintptr_t)b;
    b = mem_realloc(b, offsetof(h2o_buffer_t, _buf) + used, 1);
    assert((uintptr_t)b == before);
    b->capacity = used; // libh2o frees it as one that is not of its usual size
}

// ---- the limit on what is unfinished ------------------------------------------------------------

static int count_open(h2o_req_t *req, void *arg)
{
    struct http_conn *c = find(arg, req->conn->callbacks->get_socket(req->conn));
    if (!c)
        return 0;
    c->http2 = true;
    c->open += !req->processed_at.at.tv_sec;
    return 0;
}

// What libh2o has of HTTP/2 requests cannot be seen: all that came since there was none counts.
static size_t unfinished_http2(struct http_conn *c)
{
    uint64_t now = tcp_bytes_received(h2o_socket_get_fd(c->sock));
    if (!c->open || now < c->start)
        c->start = now;
    uint64_t most = (uint64_t)c->open * c->server->config.max_request_entity_size;
    return now - c->start < most ? now - c->start : most;
}

static size_t unfinished_http1(const struct http_conn *c)
{
    size_t n = c->sock->input->size;
    return n > c->answered ? n - c->answered : 0;
}

static size_t add_up(struct http_server *h)
{
    struct http_conn *c, *next;
    size_t sum = 0;
    HASH_ITER(hh, h->conns, c, next)
    c->open = 0;
    h->config.http2.callbacks.foreach_request(&h->context, count_open, h);
    HASH_ITER(hh, h->conns, c, next)
    {
        c->unfinished = c->condemned ? 0 : c->http2 ? unfinished_http2(c) : unfinished_http1(c);
        sum += c->unfinished;
    }
    return sum;
}

static struct http_conn *largest(const struct http_server *h)
{
    struct http_conn *c, *next, *most = h->conns;
    HASH_ITER(hh, h->conns, c, next)
    if (c->unfinished > most->unfinished)
        most = c;
    return most;
}

// Nothing more can be read: libh2o notices and closes it.
static void condemn(struct http_conn *c)
{
    log_warn("coordinator: closing an HTTP client with %zu bytes of unfinished requests; all "
             "clients together may have %d",
             c->unfinished, UNFINISHED_BYTES);
    c->condemned = true;
    c->unfinished = 0;
    c->server->shell->counters.http_refused++;
    shutdown(h2o_socket_get_fd(c->sock), SHUT_RDWR);
}

static void on_watch(uv_timer_t *t)
{
    struct http_server *h = t->data;
    size_t sum = add_up(h);
    while (sum > UNFINISHED_BYTES) {
        struct http_conn *c = largest(h);
        sum -= c->unfinished;
        condemn(c);
    }
}

enum status http_conns_open(struct http_server *h, uint16_t *port_out, struct errmsg *err)
{
    // Twice the size that is read at once, libh2o's choice, is never used by most.
    h2o_socket_buffer_prototype._initial_buf.capacity = H2O_SOCKET_INITIAL_INPUT_BUFFER_SIZE;
    h->trims = blocks_shrink_in_place();
    uv_timer_init(&h->shell->loop, &h->watch);
    h->watch.data = h;
    uv_timer_start(&h->watch, on_watch, WATCH_MS, WATCH_MS);
    uv_tcp_init(&h->shell->loop, &h->listener);
    h->listener.data = h;
    return shell_listen(h->shell, &h->listener, "http", h->shell->cfg->http, on_connection,
                        port_out, err);
}
