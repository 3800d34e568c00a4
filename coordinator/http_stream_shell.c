// Answers over HTTP: a JSON document once it is complete, or server-sent events as it grows. An SSE
// stream holds one buffer of bounded size; while the client takes it, the answer grows in its live
// request only, and what has grown is rendered when there is room again.
#include "coordinator/http_shell.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utlist.h>

#include "base/mem.h"
#include "coordinator/copy_shell.h"

enum {
    SEND_BYTES = 32 << 10,  // rendered ahead of the socket, about
    DELTA_TOKENS = 64,      // in one event, when a client catches up
    COMMENT_MS = 15 * 1000, // a quiet stream says that it is alive
};

struct http_stream {
    h2o_generator_t generator; // first: libh2o hands it back
    struct reader reader;
    struct http_server *server;
    h2o_req_t *req;
    struct text_ticket *ticket; // while the prompt is read; NULL otherwise
    struct http_conn *conn;     // that holds the body; NULL: none does
    size_t body_n;
    struct http_conn *watched; // NULL: nobody tells when its client hangs up
    bool sse;                  // else one document
    bool started;              // headers are out
    bool sending;              // libh2o has our buffer
    bool finished;             // the last byte was handed over
    int64_t last_id;           // of the last event sent; -1 = none
    uint32_t notices;          // of the place in the queue, told
    uint64_t sent_us;          // when the buffer was handed over
    struct strbuf out;
    struct http_stream *prev, *next;
};

static struct http_stream *of_reader(struct reader *r)
{
    return (struct http_stream *)((char *)r - offsetof(struct http_stream, reader));
}

// ---- hanging up ---------------------------------------------------------------------------------

static int socket_of(h2o_req_t *req)
{
    h2o_socket_t *sock = req->conn->callbacks->get_socket(req->conn);
    return sock ? h2o_socket_get_fd(sock) : -1;
}

// Nothing can be written any more: libh2o notices and disposes of the request.
static void break_connection(struct http_stream *st)
{
    int fd = socket_of(st->req);
    if (fd >= 0)
        shutdown(fd, SHUT_RDWR);
}

static void on_gone(void *arg)
{
    struct http_stream *st = arg;
    break_connection(st);
    if (st->sending || st->finished)
        return; // the write fails
    st->finished = true;
    shell_detach(st->server->shell, &st->reader);
    st->req->http1_is_persistent = 0;
    if (st->started)
        h2o_send(st->req, NULL, 0, H2O_SEND_STATE_ERROR);
    else
        h2o_send_inline(st->req, "", 0);
}

// ---- life ---------------------------------------------------------------------------------------

static void on_dispose(void *p)
{
    struct http_stream *st = p;
    DL_DELETE(st->server->streams, st);
    text_pool_cancel(st->ticket);
    http_conn_unwatch(st->watched, st);
    if (st->conn)
        http_conn_release(st->conn, st->body_n);
    shell_detach(st->server->shell, &st->reader);
    strbuf_finish(&st->out);
}

static void on_wake(struct reader *r);
static void on_proceed(h2o_generator_t *g, h2o_req_t *req);
static void on_stop(h2o_generator_t *g, h2o_req_t *req);

static struct http_stream *stream_create(struct http_server *h, h2o_req_t *req)
{
    struct http_stream *st = h2o_mem_alloc_shared(&req->pool, sizeof *st, on_dispose);
    *st = (struct http_stream){.generator = {on_proceed, on_stop},
                               .reader = {.wake = on_wake},
                               .server = h,
                               .req = req,
                               .last_id = -1};
    DL_APPEND(h->streams, st);
    st->watched = http_conn_watch(h, req, on_gone, st);
    return st;
}

static void fail(struct http_stream *st, const struct openai_error *e)
{
    const struct live *l = st->reader.live;
    st->finished = true;
    http_reply_error(st->server, st->req, l ? l->request : 0, e);
}

// ---- events -------------------------------------------------------------------------------------

static void start_events(struct http_stream *st)
{
    char id[20];
    snprintf(id, sizeof id, "%016llx", (unsigned long long)st->reader.live->request);
    st->started = true;
    st->req->res.status = 200;
    st->req->res.reason = "OK";
    http_header(st->req, "content-type", "text/event-stream; charset=utf-8");
    http_header(st->req, "cache-control", "no-cache");
    http_header(st->req, "x-accel-buffering", "no");
    http_header(st->req, "x-request-id", id);
    http_header(st->req, "x-hadal-model", st->reader.live->head.model);
    http_count(st->server, 200);
    h2o_start_response(st->req, &st->generator);
}

static void render_start(struct http_stream *st, const struct live *l)
{
    if (st->last_id < 0) {
        st->last_id = 0;
        if (l->head.kind == OPENAI_CHAT)
            openai_sse_role(&l->head, &st->out);
        else
            strbuf_puts(&st->out, ": accepted\n\n");
    }
    if (st->notices != l->notices && !l->answer.tokens_n && l->state == LIVE_OPEN) {
        st->notices = l->notices;
        strbuf_printf(&st->out, ": queued position=%u eta_ms=%u\n\n", l->position, l->eta_ms);
    }
}

static void render_tokens(struct http_stream *st, const struct live *l)
{
    uint32_t n = l->answer.tokens_n;
    while (st->last_id < n && st->out.n < SEND_BYTES) {
        uint32_t from = (uint32_t)st->last_id;
        uint32_t to = n - from < DELTA_TOKENS ? n : from + DELTA_TOKENS;
        openai_sse_delta(&l->head, &l->answer, from, to, &st->out);
        st->last_id = to;
    }
}

// True when the stream is complete.
static bool render_end(struct http_stream *st, const struct live *l)
{
    uint32_t n = l->answer.tokens_n;
    if ((l->state != LIVE_DONE && l->state != LIVE_REFUSED) || st->last_id < n)
        return false;
    struct openai_usage u = live_usage(l);
    if (st->last_id < (int64_t)n + 1) {
        if (l->error)
            openai_sse_error(n, l->error, &st->out);
        else
            openai_sse_finish(&l->head, &l->answer, l->finish, &st->out);
    }
    if (st->last_id < (int64_t)n + 2 && l->head.include_usage && !l->error)
        openai_sse_usage(&l->head, n, &u, &st->out);
    openai_sse_done(n, &st->out);
    st->last_id = (int64_t)n + 3;
    return true;
}

static void send_out(struct http_stream *st, h2o_send_state_t state)
{
    h2o_iovec_t buf = h2o_iovec_init(st->out.v, st->out.n);
    st->sending = true;
    st->sent_us = shell_now_us();
    h2o_send(st->req, &buf, 1, state);
}

static void pump_events(struct http_stream *st, const struct live *l)
{
    if (!st->started && l->state == LIVE_REFUSED) {
        fail(st, l->error);
        return;
    }
    strbuf_clear(&st->out);
    render_start(st, l);
    render_tokens(st, l);
    st->finished = render_end(st, l);
    if (!st->out.n)
        return;
    if (!st->started)
        start_events(st);
    send_out(st, st->finished ? H2O_SEND_STATE_FINAL : H2O_SEND_STATE_IN_PROGRESS);
}

static void send_document(struct http_stream *st, const struct live *l)
{
    if (l->state != LIVE_DONE && l->state != LIVE_REFUSED)
        return;
    if (l->error) {
        fail(st, l->error);
        return;
    }
    struct openai_usage u = live_usage(l);
    st->finished = true;
    openai_response(&l->head, &l->answer, l->finish, &u, &st->out);
    http_reply(st->server, st->req, &(struct http_reply){.status = 200, .request = l->request, .model = l->head.model},
               &st->out);
    strbuf_finish(&st->out);
}

static void pump(struct http_stream *st)
{
    const struct live *l = st->reader.live;
    if (!l || st->sending || st->finished || l->state == LIVE_NEW)
        return;
    if (st->sse)
        pump_events(st, l);
    else
        send_document(st, l);
}

static void on_wake(struct reader *r)
{
    pump(of_reader(r));
}

static void on_proceed(h2o_generator_t *g, h2o_req_t *req)
{
    struct http_stream *st = (struct http_stream *)g;
    st->sending = false;
    strbuf_finish(&st->out); // thousands wait for their next token: without a buffer each
    pump(st);
}

static void on_stop(h2o_generator_t *g, h2o_req_t *req)
{
    struct http_stream *st = (struct http_stream *)g;
    st->finished = true; // on_dispose follows
}

// ---- requests -----------------------------------------------------------------------------------

static struct rpc_text header_text(const h2o_req_t *req, const char *name)
{
    ssize_t at = h2o_find_header_by_str(&req->headers, name, strlen(name), -1);
    if (at < 0)
        return (struct rpc_text){"", 0};
    h2o_iovec_t v = req->headers.entries[at].value;
    return (struct rpc_text){v.base, v.len};
}

// A number in a header goes before the same in the body.
static bool header_number(const h2o_req_t *req, const char *name, uint32_t max, uint32_t *to,
                          struct openai_error *e)
{
    struct rpc_text t = header_text(req, name);
    if (!t.n)
        return true;
    size_t v = h2o_strtosize(t.v, t.n);
    if (v > max)
        return openai_fail(e, 400, name, "invalid_value", "The header %s is not in 0..%u.", name,
                           max);
    *to = (uint32_t)v;
    return true;
}

// What the headers say beyond the body: who asks, how urgent it is.
static bool take_headers(struct http_stream *st, struct text_job *job)
{
    const h2o_req_t *req = st->req;
    struct rpc_generate *g = &job->request.gen;
    struct rpc_text bearer = header_text(req, "authorization");
    const struct identity_claim claim = {
        .key = identity_bearer(bearer.v, bearer.n),
        .header = header_text(req, "x-hadal-tenant"),
        .user = {g->user, strlen(g->user)},
    };
    uint32_t band = g->band;
    if (!header_number(req, "x-hadal-priority", 9, &band, &job->error) ||
        !header_number(req, "x-hadal-deadline-ms", 24 * 3600 * 1000, &g->deadline_ms, &job->error))
        return false;
    g->band = (uint8_t)band;
    return identity_tenant(&st->server->shell->cfg->identity, &claim, job->tenant, &job->error);
}

static void on_prepared(void *arg, struct text_job *job)
{
    struct http_stream *st = arg;
    st->ticket = NULL;
    st->sse = job->request.stream;
    if (job->error.http || !take_headers(st, job) ||
        !shell_submit(st->server->shell, job, &st->reader))
        fail(st, &job->error);
    else if (st->watched) // HTTP/1
        http_conn_trim(st->watched);
}

void http_stream_generate(struct http_server *h, h2o_req_t *req, enum text_source source)
{
    struct http_stream *st = stream_create(h, req);
    st->conn = http_conn_hold(h, req);
    st->body_n = req->entity.len;
    if (!st->conn) {
        struct openai_error e;
        openai_fail(&e, 429, NULL, "queue_full", "Too many large requests are being answered.");
        e.retry_after_ms = 1000;
        fail(st, &e);
        return;
    }
    // The request may be answered, even disposed of, before this returns; then there is no ticket.
    struct text_ticket *t =
        text_pool_start(h->shell, source, req->entity.base, req->entity.len, on_prepared, st);
    if (t)
        st->ticket = t;
}

void http_stream_attach(struct http_server *h, h2o_req_t *req, uint64_t request, int64_t last_id)
{
    struct openai_error e;
    struct http_stream *st = stream_create(h, req);
    const struct live *l = shell_attach(h->shell, request, &st->reader);
    st->sse = true;
    st->last_id = last_id;
    if (!l && copies_unsure(h->shell)) {
        openai_fail(&e, 503, "id", "no_leader",
                    "No coordinator leads at the moment that could tell; ask again.");
        e.retry_after_ms = 300;
        fail(st, &e);
        return;
    }
    if (!l && copies_elsewhere(h->shell)) {
        st->finished = true;
        if (!http_redirect(h, req, &e))
            fail(st, &e);
        return;
    }
    if (!l) {
        openai_fail(&e, 404, "id", "not_found",
                    "No such stream, or it ended too long ago to be taken up again.");
        fail(st, &e);
        return;
    }
    bool ended = l->state == LIVE_DONE;
    int64_t end = (int64_t)l->answer.tokens_n + (ended ? 3 : 0);
    if (last_id > end && !(l->restored && !ended)) {
        openai_fail(&e, 400, "Last-Event-ID", "invalid_value",
                    "The stream has no event %lld; the last one is %lld.", (long long)last_id,
                    (long long)end);
        fail(st, &e);
    } else if (ended && last_id == end) { // nothing left: tells an EventSource to stop asking
        st->finished = true;
        http_reply(h, req, &(struct http_reply){.status = 204, .request = request},
                   &(struct strbuf){0});
    } else {
        pump(st);
    }
}

void http_server_shed(struct http_server *h)
{
    struct http_stream *st, *next;
    struct openai_error e;
    openai_fail(&e, 503, NULL, "no_leader", "This coordinator has lost the others; ask another.");
    e.retry_after_ms = 300;
    DL_FOREACH_SAFE(h->streams, st, next)
    {
        if (st->started)
            break_connection(st); // as if it had died: the stream goes on elsewhere
        else if (st->reader.live && !st->finished)
            fail(st, &e);
    }
}

static void tick_stream(struct http_stream *st, uint64_t now_us)
{
    struct shell *s = st->server->shell;
    uint64_t quiet_ms = now_us > st->sent_us ? (now_us - st->sent_us) / 1000 : 0;
    if (!st->started)
        return;
    if (st->sending && quiet_ms > s->cfg->write_stall_ms) {
        s->counters.stalled++;
        st->sent_us = now_us;
        break_connection(st);
    } else if (!st->sending && !st->finished && quiet_ms > COMMENT_MS) {
        strbuf_clear(&st->out);
        strbuf_puts(&st->out, ": waiting\n\n");
        send_out(st, H2O_SEND_STATE_IN_PROGRESS);
    }
}

void http_streams_tick(struct http_server *h, uint64_t now_us)
{
    struct http_stream *st, *next;
    DL_FOREACH_SAFE(h->streams, st, next)
    tick_stream(st, now_us);
}
