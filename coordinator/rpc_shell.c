// The control port: nodes and clients of the RPC connect here and are told apart by their first
// frame. Owns connections and their buffers. What is read waits in the connection's decoder until
// the queue is drained; what is to be written gathers in `out` and leaves once per drain.
#include "coordinator/rpc_shell.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/copy_shell.h"

enum {
    HELLO_MS = 10 * 1000, // a connection without a whole frame for so long at first is closed
    CONGESTED_BYTES = 256 << 10, // unwritten bytes at which streams of a client pause
    NODE_OUT_BYTES = 64 << 20,   // unwritten bytes at which a node counts as lost
    COPY_OUT_BYTES = 512 << 20,  // the same for a follower: all that there is fits
    IN_BYTES = 256 << 20,        // read buffers of all connections together
    NODE_IN_BODY = LIMIT_FRAME_BYTES,
};

static void on_closed(uv_handle_t *h)
{
    struct rpc_conn *c = h->data;
    shell_post(c->server->shell, &(struct shell_event){.kind = SHELL_CONN_DOWN, .conn = c});
}

void rpc_conn_close(struct rpc_conn *c, const char *why)
{
    if (c->closing)
        return;
    c->closing = true;
    if (why)
        log_warn("coordinator: closing %s (%s): %s", c->peer,
                 c->role == RPC_CONN_NODE   ? "node"
                 : c->role == RPC_CONN_COPY ? "follower"
                                            : "client",
                 why);
    rpc_streams_drop(c);
    HASH_DEL(c->server->conns, c);
    c->server->in_bytes -= c->in.cap; // it is fed no more
    c->server->shell->counters.rpc_connections--;
    uv_close((uv_handle_t *)&c->tcp, on_closed);
}

void rpc_conn_free(struct rpc_conn *c)
{
    copies_conn_down(c->server->shell, c);
    assert(!c->flush_listed); // flushed, for the last time, in the drain that closed it
    wire_decoder_finish(&c->in);
    secure_close(c->secure);
    strbuf_finish(&c->wire);
    strbuf_finish(&c->out);
    strbuf_finish(&c->sending);
    free(c);
}

uint64_t rpc_conn_id(const struct rpc_conn *c)
{
    return c->id;
}

bool rpc_conn_is_node(const struct rpc_conn *c)
{
    return c->role == RPC_CONN_NODE;
}

// ---- writing ------------------------------------------------------------------------------------

static void flush_conn(struct rpc_conn *c);

static void on_written(uv_write_t *w, int status)
{
    struct rpc_conn *c = w->data;
    c->writing = false;
    if (c->closing)
        return;
    if (status < 0) {
        rpc_conn_close(c, c->role == RPC_CONN_NODE ? uv_strerror(status) : NULL);
        return;
    }
    rpc_streams_pump(c);
    flush_conn(c);
}

static void flush_conn(struct rpc_conn *c)
{
    if (c->closing || c->writing)
        return;
    if (!secure_take(c->secure, &c->out, &c->wire, &c->sending))
        return;
    uv_buf_t buf = uv_buf_init(c->sending.v, (unsigned)c->sending.n);
    c->write.data = c;
    c->writing = true;
    int rc = uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written);
    if (rc) {
        c->writing = false;
        rpc_conn_close(c, uv_strerror(rc));
    }
}

static void list_for_flush(struct rpc_conn *c)
{
    if (c->flush_listed)
        return;
    c->flush_listed = true;
    c->flush_next = c->server->flush;
    c->server->flush = c;
}

void rpc_server_flush(struct rpc_server *r)
{
    while (r->flush) {
        struct rpc_conn *c = r->flush;
        r->flush = c->flush_next;
        c->flush_listed = false;
        flush_conn(c);
    }
}

bool rpc_conn_congested(const struct rpc_conn *c)
{
    return c->out.n > CONGESTED_BYTES;
}

void rpc_conn_send(struct rpc_conn *c, uint32_t stream, const struct rpc *r)
{
    if (c->closing)
        return;
    if (wire_encode_rpc(&c->server->encode, stream, r, &c->out))
        log_error("coordinator: %s for %s is too large to send", rpc_kind_name(r->kind), c->peer);
    list_for_flush(c);
}

static struct rpc_conn *find_conn(struct rpc_server *r, uint64_t id)
{
    struct rpc_conn *c;
    HASH_FIND(hh, r->conns, &id, sizeof id, c);
    return c;
}

void rpc_send(struct rpc_server *r, uint64_t conn, const struct msg *m)
{
    struct rpc_conn *c = find_conn(r, conn);
    if (!c || c->closing)
        return;
    if (wire_encode_msg(&r->encode, m, &c->out))
        log_error("coordinator: %s for %s is too large to send", msg_kind_name(m->kind), c->peer);
    if (c->out.n + c->sending.n > NODE_OUT_BYTES)
        rpc_conn_close(c, "it does not read");
    else
        list_for_flush(c);
}

void rpc_send_bytes(struct rpc_server *r, uint64_t conn, const void *bytes, size_t n)
{
    struct rpc_conn *c = find_conn(r, conn);
    if (!c || c->closing)
        return;
    strbuf_add(&c->out, bytes, n);
    if (c->out.n + c->sending.n > COPY_OUT_BYTES)
        rpc_conn_close(c, "it does not read");
    else
        list_for_flush(c);
}

void rpc_close_conn(struct rpc_server *r, uint64_t conn, const char *why)
{
    struct rpc_conn *c = find_conn(r, conn);
    if (!c || c->closing)
        return;
    log_info("coordinator: closing %s: %s", c->peer, why && *why ? why : "the core says so");
    rpc_conn_close(c, NULL);
}

void rpc_close_clients(struct rpc_server *r)
{
    struct rpc_conn *c, *next;
    HASH_ITER(hh, r->conns, c, next)
    {
        if (c->role == RPC_CONN_CLIENT)
            rpc_conn_close(c, NULL);
    }
}

void rpc_close_nodes(struct rpc_server *r)
{
    struct rpc_conn *c, *next;
    HASH_ITER(hh, r->conns, c, next)
    {
        if (c->role == RPC_CONN_NODE)
            rpc_conn_close(c, NULL);
    }
}

// ---- reading ------------------------------------------------------------------------------------

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
    struct rpc_conn *c = h->data;
    *buf = uv_buf_init(c->server->read_buffer, sizeof c->server->read_buffer);
}

static bool goes_first(const struct rpc_conn *a, const struct rpc_conn *b)
{
    bool node = a->role == RPC_CONN_NODE;
    return node != (b->role == RPC_CONN_NODE) ? !node : a->in.cap > b->in.cap;
}

// Unfinished frames of all connections have a limit; who holds the most goes, nodes last.
static void make_room(struct rpc_server *r)
{
    while (r->in_bytes > IN_BYTES) {
        struct rpc_conn *c, *next, *most = r->conns;
        HASH_ITER(hh, r->conns, c, next)
        if (goes_first(c, most))
            most = c;
        rpc_conn_close(most, "too many bytes of unfinished frames");
    }
}

// With a cluster_key a connection that begins like TLS is one; clients come in the clear. False: it
// was closed.
static bool open_seal(struct rpc_conn *c, const char **bytes, size_t *n)
{
    struct rpc_server *r = c->server;
    bool first = c->role == RPC_CONN_NEW && !c->in.n && !c->secure;
    if (first && r->shell->domain && (*bytes)[0] == SECURE_FIRST)
        c->secure = secure_open(r->shell->domain, true);
    if (!c->secure)
        return true;
    struct errmsg err = {0};
    strbuf_clear(&r->plain);
    enum status s = secure_feed(c->secure, *bytes, *n, &r->plain, &c->wire, &err);
    flush_conn(c);
    if (s != STATUS_OK) {
        r->shell->counters.rpc_protocol_errors += s != STATUS_LINK_DOWN;
        rpc_conn_close(c, err.text);
        return false;
    }
    *bytes = r->plain.v;
    *n = r->plain.n;
    return true;
}

// Whether it may speak as one of the cluster.
static bool is_kin(const struct rpc_conn *c)
{
    return !c->server->shell->cfg->cluster_key || (c->secure && secure_is_kin(c->secure));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct rpc_conn *c = stream->data;
    if (n == 0 || c->closing)
        return;
    if (n < 0) {
        rpc_conn_close(c, c->role == RPC_CONN_NODE ? uv_strerror((int)n) : NULL);
        return;
    }
    const char *bytes = buf->base;
    size_t bytes_n = (size_t)n;
    if (!open_seal(c, &bytes, &bytes_n))
        return;
    size_t before = c->in.cap;
    if (bytes_n)
        wire_decoder_feed(&c->in, bytes, bytes_n);
    c->server->in_bytes += c->in.cap - before;
    c->heard_us = shell_now_us();
    c->asked_us = 0;
    make_room(c->server);
    if (c->closing || c->frames_posted)
        return;
    c->frames_posted = true;
    shell_post(c->server->shell, &(struct shell_event){.kind = SHELL_FRAMES, .conn = c});
}

static void broken(struct rpc_conn *c, enum status s, const struct errmsg *err)
{
    c->server->shell->counters.rpc_protocol_errors++;
    if (c->role != RPC_CONN_NODE) { // a word for whoever tries a client; best effort
        rpc_conn_send(
            c, 0,
            &(struct rpc){.kind = RPC_ERROR,
                          .error = {.code = s == STATUS_LINK_VERSION ? RPC_CODE_FAILED_PRECONDITION
                                                                     : RPC_CODE_INVALID_ARGUMENT,
                                    .reason = "protocol",
                                    .text = err->text}});
        uv_buf_t buf = uv_buf_init(c->out.v, (unsigned)c->out.n);
        if (!c->writing && !c->secure)
            (void)uv_try_write((uv_stream_t *)&c->tcp, &buf, 1);
    }
    rpc_conn_close(c, err->text);
}

static void node_frame(struct rpc_conn *c, const struct wire_frame *f)
{
    struct rpc_server *r = c->server;
    struct errmsg err = {0};
    struct msg m;
    enum status s = wire_decode_msg(&r->decode, f, &m, &err);
    if (!s && (c->role == RPC_CONN_NODE) == (m.kind == MSG_HELLO))
        s = errmsg_set(&err, STATUS_LINK_PROTOCOL, "%s is out of place", msg_kind_name(m.kind));
    if (!s && m.kind >= MSG_WELCOME)
        s = errmsg_set(&err, STATUS_LINK_PROTOCOL, "%s is not for a node to say",
                       msg_kind_name(m.kind));
    if (s) {
        broken(c, s, &err);
        return;
    }
    enum coord_event_kind kind = c->role == RPC_CONN_NODE ? COORD_NODE_MSG : COORD_NODE_UP;
    c->role = RPC_CONN_NODE;
    shell_step(r->shell, &(struct coord_event){.kind = kind, .node = {c->id, &m}});
}

void rpc_conn_frames(struct rpc_conn *c)
{
    c->frames_posted = false;
    struct errmsg err = {0};
    struct wire_frame f;
    while (!c->closing) {
        enum status s = wire_decoder_next(&c->in, &f, &err);
        if (s == STATUS_AGAIN)
            return;
        if (s) {
            broken(c, s, &err);
            return;
        }
        if (!is_kin(c) && (f.type >= COPY_HELLO || f.type < RPC_GENERATE)) {
            errmsg_set(&err, STATUS_LINK_PROTOCOL, "a node or coordinator without the cluster_key");
            broken(c, STATUS_LINK_PROTOCOL, &err);
            return;
        }
        if (f.type >= COPY_HELLO) {
            copies_frame(c->server->shell, c, &f);
            continue;
        }
        if (c->role == RPC_CONN_NEW && f.type >= RPC_GENERATE)
            c->role = RPC_CONN_CLIENT;
        const struct shell *shell = c->server->shell;
        if (c->role == RPC_CONN_CLIENT && shell->cfg->client_key && !c->secure) {
            errmsg_set(&err, STATUS_LINK_PROTOCOL, "a client without the client_key");
            broken(c, STATUS_LINK_PROTOCOL, &err);
            return;
        }
        if (c->role == RPC_CONN_CLIENT ? !copies_serving(shell) : !copies_leading(shell)) {
            if (c->role == RPC_CONN_NEW)
                copies_knocked(c->server->shell);
            rpc_conn_close(c, NULL); // they try the next one
            return;
        }
        if (c->role == RPC_CONN_CLIENT)
            rpc_stream_frame(c, &f);
        else
            node_frame(c, &f);
    }
}

// ---- connections --------------------------------------------------------------------------------

static void name_peer(struct rpc_conn *c)
{
    struct sockaddr_storage a;
    int n = sizeof a;
    char host[48] = "?";
    snprintf(c->peer, sizeof c->peer, "?");
    if (uv_tcp_getpeername(&c->tcp, (struct sockaddr *)&a, &n))
        return;
    if (a.ss_family == AF_INET6)
        uv_ip6_name((struct sockaddr_in6 *)&a, host, sizeof host);
    else
        uv_ip4_name((struct sockaddr_in *)&a, host, sizeof host);
    snprintf(c->peer, sizeof c->peer, "%s:%u", host,
             ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                           : ((struct sockaddr_in *)&a)->sin_port));
}

static void on_refused(uv_handle_t *h)
{
    free(h->data);
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct rpc_server *r = listener->data;
    struct shell_counters *counters = &r->shell->counters;
    if (status < 0) {
        log_warn("coordinator: accept: %s", uv_strerror(status));
        return;
    }
    struct rpc_conn *c = mem_zalloc(1, sizeof *c);
    uv_tcp_init(&r->shell->loop, &c->tcp);
    c->tcp.data = c;
    bool full = counters->rpc_connections >= r->shell->cfg->rpc_connections;
    if (uv_accept(listener, (uv_stream_t *)&c->tcp) || full) {
        counters->rpc_refused += full;
        uv_close((uv_handle_t *)&c->tcp, on_refused);
        return;
    }
    counters->rpc_connections++;
    c->server = r;
    c->id = ++r->next_id;
    c->since_us = c->heard_us = shell_now_us();
    wire_decoder_init(&c->in, NODE_IN_BODY);
    name_peer(c);
    uv_tcp_nodelay(&c->tcp, 1);
    HASH_ADD(hh, r->conns, id, sizeof c->id, c);
    uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
}

// Silent connections: strangers and idle clients are closed, clients with streams are asked first.
static void tick_conn(struct rpc_conn *c, uint64_t now_us)
{
    uint64_t silent_ms = now_us > c->heard_us ? (now_us - c->heard_us) / 1000 : 0;
    const struct coordinator_config *cfg = c->server->shell->cfg;
    if (c->role == RPC_CONN_NEW && now_us - c->since_us > HELLO_MS * 1000ull)
        rpc_conn_close(c, "it says nothing");
    if (c->role == RPC_CONN_NODE)
        rpc_send(c->server, c->id,
                 &(struct msg){.kind = MSG_WELCOME, .welcome = {cfg->core.heartbeat_ms}});
    if (c->role != RPC_CONN_CLIENT || silent_ms < cfg->keepalive_ms)
        return;
    if (c->asked_us && now_us - c->asked_us > (uint64_t)cfg->keepalive_ms * 1000) {
        rpc_conn_close(c, "it does not answer");
    } else if (!c->asked_us) {
        c->asked_us = now_us;
        rpc_conn_send(c, 0, &(struct rpc){.kind = RPC_PING, .ping = {now_us}});
    }
}

void rpc_server_tick(struct rpc_server *r, uint64_t now_us)
{
    struct rpc_conn *c, *next;
    HASH_ITER(hh, r->conns, c, next)
    tick_conn(c, now_us);
}

static bool is_loopback(const uv_tcp_t *tcp)
{
    struct sockaddr_storage a = {0};
    int n = sizeof a;
    uv_tcp_getsockname(tcp, (struct sockaddr *)&a, &n);
    if (a.ss_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((struct sockaddr_in6 *)&a)->sin6_addr);
    return ntohl(((struct sockaddr_in *)&a)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

enum status rpc_server_open(struct shell *s, uint16_t *port_out, struct errmsg *err)
{
    struct rpc_server *r = mem_zalloc(1, sizeof *r);
    r->shell = s;
    s->rpc = r;
    uv_tcp_init(&s->loop, &r->listener);
    r->listener.data = r;
    enum status st =
        shell_listen(s, &r->listener, "rpc", s->cfg->rpc, on_connection, port_out, err);
    if (st || s->cfg->cluster_key || is_loopback(&r->listener))
        return st;
    if (!s->cfg->trust_network)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "rpc: %s can be reached from other hosts, and without a cluster_key "
                          "whoever reaches it could join as a node and read every prompt; set "
                          "cluster_key, or, where the network keeps others out, trust_network: true",
                          s->cfg->rpc);
    log_warn("coordinator: rpc: %s can be reached from other hosts, and there is no cluster_key",
             s->cfg->rpc);
    return STATUS_OK;
}

void rpc_server_close(struct rpc_server *r)
{
    if (!r)
        return;
    struct rpc_conn *c, *next;
    HASH_ITER(hh, r->conns, c, next)
    {
        HASH_DEL(r->conns, c);
        rpc_streams_drop(c);
        rpc_conn_free(c);
    }
    wire_arena_finish(&r->decode);
    wire_arena_finish(&r->encode);
    strbuf_finish(&r->plain);
    free(r);
}
