// Clients of the framed RPC: a stream per request, each with a credit of tokens it may be sent. A
// stream is a reader of a live request, so what a client does not take stays in the request alone.
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/copy_shell.h"
#include "coordinator/rpc_shell.h"

enum {
    STREAMS_MAX = 1024, // of one connection
    TOKENS_MAX = 256,   // in one frame
};

struct rpc_stream {
    struct reader reader; // first: wake gets it
    UT_hash_handle hh;    // by id
    uint32_t id;
    struct rpc_conn *conn;
    struct text_ticket *ticket; // while the prompt is read; NULL otherwise
    bool accepted;              // ACCEPTED was sent
    uint32_t sent;              // tokens
    uint32_t credit;
    uint32_t notices; // of its place in the queue, told
};

static void send_error(struct rpc_conn *c, uint32_t stream, const struct openai_error *e)
{
    rpc_conn_send(c, stream,
                  &(struct rpc){.kind = RPC_ERROR,
                                .error = {.code = openai_error_rpc_code(e),
                                          .reason = e->code ? e->code : "",
                                          .retry_after_ms = e->retry_after_ms,
                                          .text = e->message}});
}

static void stream_free(struct rpc_stream *st)
{
    struct rpc_conn *c = st->conn;
    HASH_DEL(c->streams, st);
    c->streams_n--;
    text_pool_cancel(st->ticket);
    shell_detach(c->server->shell, &st->reader);
    free(st);
}

static void send_code(struct rpc_conn *c, uint32_t stream, enum rpc_code code, const char *reason,
                      const char *text)
{
    rpc_conn_send(
        c, stream,
        &(struct rpc){.kind = RPC_ERROR, .error = {.code = code, .reason = reason, .text = text}});
}

// ---- sending ------------------------------------------------------------------------------------

static struct rpc_text between(const struct strbuf *b, uint32_t from, uint32_t to)
{
    return (struct rpc_text){b->v + from, to - from};
}

static void send_tokens(struct rpc_stream *st, const struct answer *a, uint32_t to)
{
    struct rpc_token tokens[TOKENS_MAX];
    uint32_t n = to - st->sent;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = st->sent + i;
        tokens[i] = (struct rpc_token){.id = a->marks[at + 1].token};
        if (a->logprobs) {
            tokens[i].logprob = a->lp[at].value;
            tokens[i].top_n = a->lp[at].top_n;
            tokens[i].top = a->top + a->lp[at].top_at;
        }
    }
    struct answer_mark from = answer_mark(a, st->sent), end = answer_mark(a, to);
    rpc_conn_send(
        st->conn, st->id,
        &(struct rpc){.kind = RPC_TOKENS,
                      .tokens = {st->sent, tokens, n,
                                 between(&a->content, from.content_n, end.content_n),
                                 between(&a->thoughts, from.thoughts_n, end.thoughts_n)}});
    st->sent = to;
    st->credit -= n;
}

static void send_done(struct rpc_stream *st, const struct live *l)
{
    const struct answer *a = &l->answer;
    struct answer_mark last = answer_mark(a, a->tokens_n);
    struct openai_usage u = live_usage(l);
    if (l->finish == FINISH_ERROR) {
        send_error(st->conn, st->id, l->error);
        return;
    }
    rpc_conn_send(
        st->conn, st->id,
        &(struct rpc){.kind = RPC_DONE,
                      .done = {l->finish, u.prompt, u.completion, u.cached, u.reasoning,
                               between(&a->content, last.content_n, (uint32_t)a->content.n),
                               between(&a->thoughts, last.thoughts_n, (uint32_t)a->thoughts.n)}});
}

// Sends what the client may have. False: the stream has ended.
static bool pump(struct rpc_stream *st)
{
    const struct live *l = st->reader.live;
    if (!l || l->state == LIVE_NEW)
        return true;
    if (l->state == LIVE_REFUSED) {
        send_error(st->conn, st->id, l->error);
        return false;
    }
    if (!st->accepted)
        rpc_conn_send(st->conn, st->id,
                      &(struct rpc){.kind = RPC_ACCEPTED, .accepted = {l->request, l->prompt_n}});
    st->accepted = true;
    const struct answer *a = &l->answer;
    if (st->notices != l->notices && !a->tokens_n) {
        st->notices = l->notices;
        rpc_conn_send(st->conn, st->id,
                      &(struct rpc){.kind = RPC_QUEUED, .queued = {l->position, l->eta_ms}});
    }
    // It may have more than a restored answer: then the same tokens are computed again.
    while (st->sent < a->tokens_n && st->credit && !rpc_conn_congested(st->conn)) {
        uint32_t n = a->tokens_n - st->sent;
        n = n < st->credit ? n : st->credit;
        send_tokens(st, a, st->sent + (n < TOKENS_MAX ? n : TOKENS_MAX));
    }
    if (l->state != LIVE_DONE || st->sent < a->tokens_n)
        return true;
    send_done(st, l);
    return false;
}

static void pump_or_free(struct rpc_stream *st)
{
    if (!pump(st))
        stream_free(st);
}

static void on_wake(struct reader *r)
{
    pump_or_free((struct rpc_stream *)r);
}

void rpc_streams_pump(struct rpc_conn *c)
{
    struct rpc_stream *st, *next;
    HASH_ITER(hh, c->streams, st, next)
    pump_or_free(st);
}

void rpc_streams_drop(struct rpc_conn *c)
{
    struct rpc_stream *st, *next;
    HASH_ITER(hh, c->streams, st, next)
    stream_free(st);
}

// ---- what clients say ---------------------------------------------------------------------------

static struct rpc_stream *stream_find(struct rpc_conn *c, uint32_t id)
{
    struct rpc_stream *st;
    HASH_FIND(hh, c->streams, &id, sizeof id, st);
    return st;
}

// NULL: the client was told why not.
static struct rpc_stream *stream_open(struct rpc_conn *c, uint32_t id)
{
    if (id == 0 || stream_find(c, id)) {
        send_code(c, id, RPC_CODE_ALREADY_EXISTS, "stream", "the stream id is 0 or in use");
        return NULL;
    }
    if (c->streams_n == STREAMS_MAX) {
        send_code(c, id, RPC_CODE_RESOURCE_EXHAUSTED, "streams",
                  "too many streams on one connection");
        return NULL;
    }
    struct rpc_stream *st = mem_zalloc(1, sizeof *st);
    st->reader.wake = on_wake;
    st->conn = c;
    st->id = id;
    HASH_ADD(hh, c->streams, id, sizeof st->id, st);
    c->streams_n++;
    return st;
}

static void on_prepared(void *arg, struct text_job *job)
{
    struct rpc_stream *st = arg;
    struct shell *s = st->conn->server->shell;
    st->ticket = NULL;
    const struct rpc_generate *g = &job->request.gen;
    if (!job->error.http) {
        const struct identity_claim claim = {.key = {g->key, strlen(g->key)},
                                             .user = {g->user, strlen(g->user)}};
        identity_tenant(&s->cfg->identity, &claim, job->tenant, &job->error);
    }
    if (!job->error.http) {
        st->credit = job->request.gen.window;
        if (shell_submit(s, job, &st->reader))
            return;
    }
    send_error(st->conn, st->id, &job->error);
    stream_free(st);
}

static void on_generate(struct rpc_conn *c, const struct wire_frame *f)
{
    struct rpc_stream *st = stream_open(c, f->stream);
    if (!st)
        return;
    c->server->shell->counters.rpc_requests++;
    // on_prepared may free the stream before this returns, but then there is no ticket.
    struct text_ticket *t = text_pool_start(c->server->shell, TEXT_RPC, (const char *)f->body,
                                            f->body_n, on_prepared, st);
    if (t)
        st->ticket = t;
}

static void on_attach(struct rpc_conn *c, uint32_t stream, const struct rpc_attach *a)
{
    struct rpc_stream *st = stream_open(c, stream);
    if (!st)
        return;
    struct live *l = shell_attach(c->server->shell, a->request, &st->reader);
    if (!l && (copies_unsure(c->server->shell) || copies_elsewhere(c->server->shell))) { // another coordinator may know, or this one soon
        rpc_conn_close(c, NULL);
        return;
    }
    if (!l) {
        send_code(c, stream, RPC_CODE_NOT_FOUND, "not_found",
                  "no such request, or it ended too long ago");
        stream_free(st);
        return;
    }
    if (a->from > l->answer.tokens_n && !(l->restored && l->state == LIVE_OPEN)) {
        send_code(c, stream, RPC_CODE_OUT_OF_RANGE, "from", "the answer has not so many tokens");
        stream_free(st);
        return;
    }
    st->sent = a->from;
    st->credit = a->window;
    pump_or_free(st);
}

static void on_cancel(struct rpc_conn *c, uint32_t stream)
{
    struct rpc_stream *st = stream_find(c, stream);
    if (!st)
        return; // it has ended meanwhile
    if (st->reader.live) {
        shell_post_request(c->server->shell, COORD_CANCEL, st->reader.live->request);
        return;
    }
    send_code(c, stream, RPC_CODE_CANCELLED, "cancelled", "cancelled before it started");
    stream_free(st);
}

static void on_credit(struct rpc_conn *c, uint32_t stream, uint32_t tokens)
{
    struct rpc_stream *st = stream_find(c, stream);
    if (!st)
        return;
    st->credit = tokens > RPC_WINDOW - st->credit ? RPC_WINDOW : st->credit + tokens;
    pump_or_free(st);
}

void rpc_stream_frame(struct rpc_conn *c, const struct wire_frame *f)
{
    struct rpc_server *server = c->server;
    struct errmsg err = {0};
    struct rpc r;
    if (f->type == RPC_GENERATE) { // decoded where the prompt is read
        on_generate(c, f);
        return;
    }
    enum status s = wire_decode_rpc(&server->decode, f, &r, &err);
    if (!s && r.kind >= RPC_ACCEPTED && r.kind != RPC_PONG)
        s = errmsg_set(&err, STATUS_LINK_PROTOCOL, "%s is not for a client to say",
                       rpc_kind_name(r.kind));
    if (s) {
        server->shell->counters.rpc_protocol_errors++;
        rpc_conn_close(c, err.text);
        return;
    }
    if (r.kind == RPC_ATTACH)
        on_attach(c, f->stream, &r.attach);
    else if (r.kind == RPC_CANCEL)
        on_cancel(c, f->stream);
    else if (r.kind == RPC_CREDIT)
        on_credit(c, f->stream, r.credit.tokens);
    else if (r.kind == RPC_PING)
        rpc_conn_send(c, f->stream, &(struct rpc){.kind = RPC_PONG, .ping = r.ping});
}
