// Owns the loop, the control connection and the engine of a node process. One idea: libuv callbacks
// only turn what happened into an event of the core and carry out its actions at once; what is to
// be sent is gathered in one buffer and leaves at the end of the loop's turn in one write.
#include "node/node_shell.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "node/heartbeat.h"
#include "proto/secure.h"
#include "proto/wire.h"

enum {
    RETRY_MIN_MS = 50,
    RETRY_MAX_MS = 1000,
    SILENT_MS = 3500,           // a coordinator says WELCOME every second
    CONNECT_MS = 2000,          // or does not even answer
    RETRY_OTHER_MS = 100,       // while there is another coordinator to try
    TURN_MS = 50,               // the loop proves that it turns at least this often
    OUT_LIMIT_BYTES = 64 << 20, // a coordinator that does not read for so long loses us
    READ_BYTES = 256 << 10,
};

struct shell {
    const struct node_shell_config *config;
    char host[256], port[16]; // of the coordinator that is tried, or connected
    const char *next;         // in config->coordinator: the one to try after it
    uv_loop_t loop;
    uv_async_t engine_wake;
    uv_timer_t core_timer, retry_timer, turn_timer;
    uv_prepare_t flush;
    uv_signal_t sigint, sigterm;

    // The control connection. NULL between connections; a closing handle frees itself.
    struct conn *conn;
    uint32_t retry_ms;
    bool complained; // that the coordinator cannot be reached: once per outage
    bool stopping;

    struct node *core;
    struct engine *engine;
    struct gpu_watch *gpu;
    struct heartbeat *heartbeat;
    struct secure_domain *domain; // NULL: no cluster_key
    struct strbuf plain;          // of one read
    struct msg_hello hello;
    struct wire_arena encode_arena;
    char read_buf[READ_BYTES];
};

struct conn {
    struct shell *shell;
    uv_tcp_t tcp;
    uv_connect_t connecting;
    uv_getaddrinfo_t resolving;
    bool up;                   // HELLO was sent
    bool welcome;              // and answered
    uint64_t heard_us;         // last bytes from the coordinator; at first when it was tried
    bool unsendable;           // a message could not be encoded: drop at the end of the turn
    bool resolve_busy, closed; // freed when closed and the resolver has let go
    struct wire_decoder decoder;
    struct wire_arena arena;
    struct secure *secure; // NULL: in the clear
    struct strbuf wire;    // of `secure`: sealed, not written yet
    struct strbuf out;     // gathered in this turn, in the clear
    struct strbuf writing; // borrowed by libuv while `write_busy`
    bool write_busy;
    uv_write_t write;
};

static void shell_connect(struct shell *s);
static void shell_step(struct shell *s, struct node_event *ev);

static uint64_t shell_now_us(void)
{
    return uv_hrtime() / 1000;
}

// ---- the control connection ---------------------------------------------------------------------

static void conn_free(struct conn *c)
{
    wire_decoder_finish(&c->decoder);
    wire_arena_finish(&c->arena);
    secure_close(c->secure);
    strbuf_finish(&c->wire);
    strbuf_finish(&c->out);
    strbuf_finish(&c->writing);
    free(c);
}

static void on_conn_closed(uv_handle_t *handle)
{
    struct conn *c = handle->data;
    c->closed = true;
    if (!c->resolve_busy)
        conn_free(c);
}

static bool next_address(struct shell *s);

static void on_retry(uv_timer_t *timer)
{
    shell_connect(timer->data);
}

// Ends the connection, tells the core when it had been up, and comes back after a pause.
static void conn_drop(struct conn *c, const char *why)
{
    struct shell *s = c->shell;
    if (s->conn != c)
        return; // dropped before
    s->conn = NULL;
    bool was_up = c->up;
    if (!s->complained)
        log_warn("coordinator %s:%s: %s", s->host, s->port, why);
    s->complained = true;
    heartbeat_pause(s->heartbeat);
    uv_close((uv_handle_t *)&c->tcp, on_conn_closed);
    if (was_up)
        shell_step(s, &(struct node_event){.kind = NODE_EV_COORD_DOWN});
    if (s->stopping)
        return;
    uint32_t most = next_address(s) ? RETRY_OTHER_MS : RETRY_MAX_MS;
    uv_timer_start(&s->retry_timer, on_retry, s->retry_ms, 0);
    s->retry_ms = s->retry_ms * 2 > most ? most : s->retry_ms * 2;
}

// Only notes a failure: the caller may be in the middle of the core's actions.
static void conn_send(struct conn *c, const struct msg *m)
{
    enum status rc = wire_encode_msg(&c->shell->encode_arena, m, &c->out);
    if (rc != STATUS_OK) {
        log_error("cannot send %s: %s", msg_kind_name(m->kind), status_text(rc));
        c->unsendable = true;
    }
}

static void on_written(uv_write_t *write, int rc)
{
    struct conn *c = write->data;
    c->write_busy = false;
    if (rc < 0)
        conn_drop(c, uv_strerror(rc));
}

static void conn_flush(struct conn *c)
{
    if (c->unsendable) {
        conn_drop(c, "a message could not be encoded");
        return;
    }
    if (c->write_busy) {
        if (c->out.n > OUT_LIMIT_BYTES)
            conn_drop(c, "does not read what we send");
        return;
    }
    if (!secure_take(c->secure, &c->out, &c->wire, &c->writing))
        return;

    uv_buf_t buf = uv_buf_init(c->writing.v, (unsigned)c->writing.n);
    int n = uv_try_write((uv_stream_t *)&c->tcp, &buf, 1);
    if (n == (int)buf.len)
        return;
    if (n < 0 && n != UV_EAGAIN) {
        conn_drop(c, uv_strerror(n));
        return;
    }
    size_t done = n > 0 ? (size_t)n : 0;
    buf = uv_buf_init(c->writing.v + done, (unsigned)(c->writing.n - done));
    c->write.data = c;
    int rc = uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written);
    if (rc < 0)
        conn_drop(c, uv_strerror(rc));
    else
        c->write_busy = true;
}

static void on_msg(struct shell *s, const struct msg *m)
{
    if (m->kind == MSG_WELCOME && s->conn->welcome)
        return; // it is still there: conn_frames took note
    if (m->kind == MSG_WELCOME) {
        s->conn->welcome = true;
        s->retry_ms = RETRY_MIN_MS;
        s->complained = false;
        heartbeat_go(s->heartbeat, s->host, s->port, m->welcome.heartbeat_ms);
        log_info("joined the coordinator at %s:%s", s->host, s->port);
        return;
    }
    shell_step(s, &(struct node_event){.kind = NODE_EV_MSG, .msg = m});
}

static void conn_frames(struct conn *c)
{
    struct shell *s = c->shell;
    struct errmsg why = {0};
    while (s->conn == c) {
        struct wire_frame frame;
        struct msg m;
        enum status rc = wire_decoder_next(&c->decoder, &frame, &why);
        if (rc == STATUS_AGAIN)
            return;
        if (rc == STATUS_OK)
            rc = wire_decode_msg(&c->arena, &frame, &m, &why);
        if (rc != STATUS_OK) {
            conn_drop(c, why.text);
            return;
        }
        on_msg(s, &m);
    }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct conn *c = handle->data;
    *buf = uv_buf_init(c->shell->read_buf, READ_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct conn *c = stream->data;
    if (n < 0) {
        conn_drop(c, n == UV_EOF ? "closed the connection" : uv_strerror((int)n));
        return;
    }
    c->heard_us = shell_now_us();
    if (!c->secure) {
        wire_decoder_feed(&c->decoder, buf->base, (size_t)n);
        conn_frames(c);
        return;
    }
    struct strbuf *plain = &c->shell->plain;
    struct errmsg why = {0};
    strbuf_clear(plain);
    if (secure_feed(c->secure, buf->base, (size_t)n, plain, &c->wire, &why) != STATUS_OK) {
        conn_drop(c, why.text);
        return;
    }
    if (plain->n)
        wire_decoder_feed(&c->decoder, plain->v, plain->n);
    conn_frames(c);
}

static void on_connected(uv_connect_t *req, int rc)
{
    struct conn *c = req->data;
    struct shell *s = c->shell;
    if (rc < 0) {
        conn_drop(c, uv_strerror(rc));
        return;
    }
    uv_tcp_nodelay(&c->tcp, 1);
    rc = uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    if (rc < 0) {
        conn_drop(c, uv_strerror(rc));
        return;
    }
    c->up = true;
    if (s->domain) {
        c->secure = secure_open(s->domain, false);
        secure_greet(c->secure, &c->wire);
    }
    conn_send(c, &(struct msg){.kind = MSG_HELLO, .hello = s->hello});
    shell_step(s, &(struct node_event){.kind = NODE_EV_COORD_UP});
}

static void on_resolved(uv_getaddrinfo_t *req, int rc, struct addrinfo *list)
{
    struct conn *c = req->data;
    c->resolve_busy = false;
    if (uv_is_closing((uv_handle_t *)&c->tcp)) { // the shell is stopping
        uv_freeaddrinfo(list);
        if (c->closed)
            conn_free(c);
        return;
    }
    if (rc < 0) {
        conn_drop(c, uv_strerror(rc));
        return;
    }
    c->connecting.data = c;
    rc = uv_tcp_connect(&c->connecting, &c->tcp, list->ai_addr, on_connected);
    uv_freeaddrinfo(list);
    if (rc < 0)
        conn_drop(c, uv_strerror(rc));
}

static void shell_connect(struct shell *s)
{
    assert(!s->conn);
    struct conn *c = mem_zalloc(1, sizeof *c);
    c->shell = s;
    c->heard_us = shell_now_us();
    uv_tcp_init(&s->loop, &c->tcp);
    c->tcp.data = c;
    wire_decoder_init(&c->decoder, 0);
    s->conn = c;
    c->resolving.data = c;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    int rc = uv_getaddrinfo(&s->loop, &c->resolving, on_resolved, s->host, s->port, &hints);
    c->resolve_busy = rc == 0;
    if (rc < 0)
        conn_drop(c, uv_strerror(rc));
}

// ---- events in, actions out
// -----------------------------------------------------------------------

static void on_core_timer(uv_timer_t *timer)
{
    shell_step(timer->data, &(struct node_event){.kind = NODE_EV_TIMER});
}

static void set_core_timer(struct shell *s, uint64_t at_us)
{
    if (at_us == UINT64_MAX) {
        uv_timer_stop(&s->core_timer);
        return;
    }
    uint64_t now = shell_now_us();
    uv_update_time(&s->loop);
    uv_timer_start(&s->core_timer, on_core_timer, at_us > now ? (at_us - now + 999) / 1000 : 0, 0);
}

// A refused submit is a fault of the engine; it must reach the core after the step that submitted.
static enum status act(struct shell *s, const struct node_action *a)
{
    switch (a->kind) {
    case NODE_ACT_SEND:
        if (s->conn && s->conn->up)
            conn_send(s->conn, &a->msg);
        break;
    case NODE_ACT_FORM:
        s->engine->ops->form(s->engine, a->form);
        break;
    case NODE_ACT_LINK:
        s->engine->ops->link(s->engine, a->link);
        break;
    case NODE_ACT_DISSOLVE:
        s->engine->ops->dissolve(s->engine, a->epoch);
        break;
    case NODE_ACT_SUBMIT:
        return s->engine->ops->submit(s->engine, a->plan);
    case NODE_ACT_KV:
        s->engine->ops->kv(s->engine, &a->kv);
        break;
    case NODE_ACT_TIMER:
        set_core_timer(s, a->at_us);
        break;
    case NODE_ACT_TRACE:
        log_info("%s", a->text);
        break;
    }
    return STATUS_OK;
}

static void shell_step(struct shell *s, struct node_event *ev)
{
    struct node_actions actions;
    enum status broken = STATUS_OK;
    ev->now_us = shell_now_us();
    node_step(s->core, ev, &actions);
    for (size_t i = 0; i < actions.n; i++) {
        enum status rc = act(s, &actions.v[i]);
        if (rc != STATUS_OK && broken == STATUS_OK)
            broken = rc;
    }
    if (broken == STATUS_OK)
        return;
    log_error("the engine refused a step: %s", status_text(broken));
    struct engine_event fault = {
        .kind = ENGINE_FAULT, .replica = node_replica(s->core), .epoch = node_epoch(s->core)};
    fault.result.status = broken > 0 ? STATUS_INTERNAL : broken;
    fault.result.bad_stage = fault.result.bad_tensor = -1;
    shell_step(s, &(struct node_event){.kind = NODE_EV_ENGINE, .engine = &fault});
}

static void on_engine_wake(uv_async_t *async)
{
    struct shell *s = async->data;
    struct engine_event ev;
    while (s->engine->ops->poll(s->engine, &ev))
        shell_step(s, &(struct node_event){.kind = NODE_EV_ENGINE, .engine = &ev});
}

static void engine_wake(void *arg)
{
    struct shell *s = arg;
    uv_async_send(&s->engine_wake);
}

static void on_turn(uv_timer_t *timer)
{
    struct shell *s = timer->data;
    uint64_t now = shell_now_us();
    node_pulse_turn(node_pulse(s->core), now);
    // One that stands still keeps its connections: another may lead meanwhile.
    if (!s->conn || !strchr(s->config->coordinator, ','))
        return;
    uint64_t limit_ms = s->conn->welcome ? SILENT_MS : CONNECT_MS;
    if (now > s->conn->heard_us + limit_ms * 1000)
        conn_drop(s->conn, s->conn->welcome ? "silent for too long" : "does not answer");
}

// Runs right before the loop sleeps: everything said in this turn leaves in one write.
static void on_prepare(uv_prepare_t *prepare)
{
    struct shell *s = prepare->data;
    if (s->conn && s->conn->up)
        conn_flush(s->conn);
}

static void on_signal(uv_signal_t *signal, int number)
{
    struct shell *s = signal->data;
    log_info("signal %d: stopping", number);
    s->stopping = true;
    uv_stop(&s->loop);
}

// ---- start and stop
// -------------------------------------------------------------------------------

static enum status split_address(struct shell *s, const char *list, struct errmsg *e)
{
    char address[sizeof s->host + sizeof s->port];
    size_t n = strcspn(list, ",");
    snprintf(address, sizeof address, "%.*s", (int)(n < sizeof address ? n : 0), list);
    const char *colon = strrchr(address, ':');
    size_t host_n = colon ? (size_t)(colon - address) : 0;
    if (!host_n || host_n >= sizeof s->host || strlen(colon + 1) >= sizeof s->port || !colon[1])
        return errmsg_set(e, STATUS_BAD_CONFIG, "coordinator: '%s' is not HOST:PORT", list);
    bool bracketed = address[0] == '[' && colon[-1] == ']'; // [::1]:7000
    snprintf(s->host, sizeof s->host, "%.*s", (int)host_n - (bracketed ? 2 : 0),
             address + (bracketed ? 1 : 0));
    snprintf(s->port, sizeof s->port, "%s", colon + 1);
    s->next = list[n] ? list + n + 1 : s->config->coordinator;
    return STATUS_OK;
}

// All were checked at the start. False: there is only one.
static bool next_address(struct shell *s)
{
    bool several = strchr(s->config->coordinator, ',') != NULL;
    struct errmsg ignored;
    if (several)
        (void)!split_address(s, s->next, &ignored);
    return several;
}

static enum status check_addresses(struct shell *s, struct errmsg *e)
{
    const char *at = s->config->coordinator;
    enum status rc;
    do {
        rc = split_address(s, at, e);
        at = s->next;
    } while (rc == STATUS_OK && at != s->config->coordinator);
    return rc == STATUS_OK ? split_address(s, at, e) : rc;
}

static void fill_hello(struct shell *s)
{
    const struct node_shell_config *config = s->config;
    uint64_t start[3] = {(uint64_t)getpid(), uv_hrtime(), (uint64_t)time(NULL)};
    s->hello = (struct msg_hello){
        .version = MSG_VERSION,
        .name = config->name,
        .incarnation = hash_bytes(start, sizeof start, 0) | 1,
        .pid = (uint32_t)getpid(),
        .host = config->host,
        .backend = config->backend,
    };
}

static void init_handles(struct shell *s)
{
    uv_async_init(&s->loop, &s->engine_wake, on_engine_wake);
    uv_timer_init(&s->loop, &s->core_timer);
    uv_timer_init(&s->loop, &s->retry_timer);
    uv_timer_init(&s->loop, &s->turn_timer);
    uv_prepare_init(&s->loop, &s->flush);
    uv_signal_init(&s->loop, &s->sigint);
    uv_signal_init(&s->loop, &s->sigterm);
    s->engine_wake.data = s->core_timer.data = s->retry_timer.data = s->turn_timer.data = s;
    s->flush.data = s->sigint.data = s->sigterm.data = s;
    uv_timer_start(&s->turn_timer, on_turn, 0, TURN_MS);
    uv_prepare_start(&s->flush, on_prepare);
    uv_signal_start(&s->sigint, on_signal, SIGINT);
    uv_signal_start(&s->sigterm, on_signal, SIGTERM);
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    if (!uv_is_closing(handle))
        uv_close(handle, handle->type == UV_TCP ? on_conn_closed : NULL);
}

static void close_loop(struct shell *s)
{
    if (s->conn && !s->conn->up)
        uv_cancel((uv_req_t *)&s->conn->resolving); // fine when it is not under way
    s->conn = NULL;
    uv_walk(&s->loop, close_handle, NULL);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    int rc = uv_loop_close(&s->loop);
    assert(rc == 0);
}

enum status node_shell_run(const struct node_shell_config *config, struct errmsg *e)
{
    struct shell *s = mem_zalloc(1, sizeof *s);
    s->config = config;
    s->retry_ms = RETRY_MIN_MS;
    enum status rc = check_addresses(s, e);
    if (rc == STATUS_OK && config->cluster_key)
        rc = secure_domain_open(config->cluster_key, &s->domain, e);
    if (rc != STATUS_OK)
        goto free_shell;
    uv_loop_init(&s->loop);
    init_handles(s);
    fill_hello(s);
    s->core = node_create(&config->core);
    s->engine = config->engine.create(config->engine.user, engine_wake, s, e);
    if (!s->engine) {
        rc = STATUS_NO_DEVICE;
        goto destroy_core;
    }
    if (!strcmp(s->config->backend, "cuda"))
        s->gpu = gpu_watch_start(&(struct gpu_watch_args){.engine = s->engine});
    rc = heartbeat_start(&(struct heartbeat_args){.hello = s->hello,
                                                  .pulse = node_pulse(s->core),
                                                  .engine = s->engine,
                                                  .gpu = s->gpu,
                                                  .domain = s->domain},
                         &s->heartbeat, e);
    if (rc != STATUS_OK)
        goto stop_watch;

    shell_connect(s);
    uv_run(&s->loop, UV_RUN_DEFAULT);

    heartbeat_stop(s->heartbeat);
stop_watch:
    gpu_watch_stop(s->gpu);
    s->engine->ops->destroy(s->engine);
destroy_core:
    close_loop(s);
    node_destroy(s->core);
    wire_arena_finish(&s->encode_arena);
free_shell:
    secure_domain_close(s->domain);
    strbuf_finish(&s->plain);
    free(s);
    return rc;
}
