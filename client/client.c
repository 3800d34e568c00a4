// Streams of a client. Frames of all streams come by one link; each is checked and counted when it
// arrives and kept, as bytes, with its stream until the caller asks. When the link breaks, a new
// one is made and every unfinished stream attaches again after its last token.
//
//          GENERATE              ACCEPTED                 DONE | ERROR
//   (new) ----------> STARTING -----------> RUNNING -----------------> ENDED
//                      |  ^                  |  ^
//           link broke |  | GENERATE         |  | ATTACH from the next token
//                      +--+                  +--+
//
// GENERATE is sent again when the link broke before ACCEPTED: should the first one have arrived,
// its request is nobody's, and the coordinator's grace time ends it.
#include "client/hadal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <utlist.h>

#include "base/mem.h"
#include "client/link.h"
#include "proto/wire.h"

enum {
    CONNECT_MS = 2000,
    RETRY_MS = 30 * 1000,
    WINDOW = 256,
    BACKOFF_MS = 20, // the first pause between attempts to connect; doubles
    BACKOFF_MAX_MS = 1000,
};

// A frame that the caller has not taken yet.
struct kept {
    struct kept *next;
    struct wire_frame frame; // body: the bytes behind this struct
};

enum stream_state { STREAM_STARTING, STREAM_RUNNING, STREAM_ENDED };

struct hadal_stream {
    struct hadal_client *client;
    struct hadal_stream *prev, *next_stream;
    enum stream_state state;
    bool sent; // on this link
    bool cancel;
    uint32_t id;                // on this link
    struct strbuf generate;     // the frame; empty: attached
    uint64_t request;           // 0 until ACCEPTED
    bool told_accepted;         // to the caller
    uint32_t next;              // index of the next token to arrive
    uint32_t unread;            // tokens in `kept`
    uint32_t returned;          // tokens taken by the caller, not yet given back as credit
    struct kept *kept;          // list, oldest first
    struct wire_arena arena;    // what the caller was given last
    struct hadal_token *tokens; // the same
    struct hadal_error error;   // why it ended, when it failed
    bool failed, finished;      // ERROR, DONE was told to the caller
};

struct hadal_client {
    struct link link;
    struct hadal_options options;
    struct hadal_stream *streams;
    uint32_t last_id;
    uint64_t broken_ms; // when the link broke; 0 = it is up, or was never needed
    uint64_t try_ms;    // do not try to connect before
    uint32_t backoff_ms;
    struct wire_arena arena;
    struct strbuf out;
};

static void set_error(struct hadal_error *e, enum rpc_code code, const char *reason,
                      const char *fmt, ...) __attribute__((format(printf, 4, 5)));

static void set_error(struct hadal_error *e, enum rpc_code code, const char *reason,
                      const char *fmt, ...)
{
    if (!e)
        return;
    *e = (struct hadal_error){.code = (int)code};
    snprintf(e->reason, sizeof e->reason, "%s", reason);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
}

const char *hadal_code_name(int code)
{
    return rpc_code_name((enum rpc_code)code);
}

// ---- client -------------------------------------------------------------------------------------

struct hadal_client *hadal_open(const char *url, const struct hadal_options *options,
                                struct hadal_error *err)
{
    struct hadal_client *c = mem_zalloc(1, sizeof *c);
    struct errmsg why;
    if (link_init(&c->link, url, &why)) {
        set_error(err, RPC_CODE_INVALID_ARGUMENT, "url", "%s", why.text);
        free(c);
        return NULL;
    }
    if (options)
        c->options = *options;
    if (!c->options.connect_ms)
        c->options.connect_ms = CONNECT_MS;
    if (!c->options.retry_ms)
        c->options.retry_ms = RETRY_MS;
    if (!c->options.window)
        c->options.window = WINDOW;
    if (c->options.window > RPC_WINDOW)
        c->options.window = RPC_WINDOW;
    return c;
}

void hadal_close(struct hadal_client *c)
{
    if (!c)
        return;
    link_finish(&c->link); // first: what runs is left to the coordinator's grace time
    while (c->streams)
        hadal_stream_close(c->streams);
    wire_arena_finish(&c->arena);
    strbuf_finish(&c->out);
    free(c);
}

// ---- streams ------------------------------------------------------------------------------------

static void fail_stream(struct hadal_stream *s, enum rpc_code code, const char *reason,
                        const char *text)
{
    s->state = STREAM_ENDED;
    s->failed = true;
    set_error(&s->error, code, reason, "%s", text);
}

static enum status write_rpc(struct hadal_client *c, uint32_t id, const struct rpc *r)
{
    strbuf_clear(&c->out);
    enum status s = wire_encode_rpc(&c->arena, id, r, &c->out);
    return s ? s : link_write(&c->link, c->out.v, c->out.n);
}

static void put_stream_id(struct strbuf *frame, uint32_t id)
{
    for (int i = 0; i < 4; i++)
        frame->v[8 + i] = (char)(id >> 8 * i);
}

// GENERATE or ATTACH on the present link. Should it break here, the next link gets it.
static void introduce(struct hadal_stream *s)
{
    struct hadal_client *c = s->client;
    enum status st;
    s->id = ++c->last_id;
    s->returned = 0;
    if (s->state == STREAM_STARTING && s->generate.n) {
        put_stream_id(&s->generate, s->id);
        st = link_write(&c->link, s->generate.v, s->generate.n);
    } else {
        uint32_t window = c->options.window > s->unread ? c->options.window - s->unread : 1;
        st = write_rpc(c, s->id,
                       &(struct rpc){.kind = RPC_ATTACH, .attach = {s->request, s->next, window}});
    }
    if (!st && s->cancel)
        st = write_rpc(c, s->id, &(struct rpc){.kind = RPC_CANCEL});
    s->sent = st == STATUS_OK;
}

// The link is down: everything on it is void.
static void on_broken(struct hadal_client *c, const char *why)
{
    uint64_t now = link_now_ms();
    link_down(&c->link);
    c->last_id = 0;
    if (!c->broken_ms) { // the first time: try again at once
        c->broken_ms = now;
        c->try_ms = now;
        c->backoff_ms = BACKOFF_MS;
    } else {
        c->try_ms = now + c->backoff_ms;
        c->backoff_ms = c->backoff_ms * 2 < BACKOFF_MAX_MS ? c->backoff_ms * 2 : BACKOFF_MAX_MS;
    }
    struct hadal_stream *s;
    DL_FOREACH2(c->streams, s, next_stream)
    {
        s->sent = false;
        if (s->state != STREAM_ENDED && now - c->broken_ms > c->options.retry_ms)
            fail_stream(s, RPC_CODE_UNAVAILABLE, "unreachable", why);
    }
}

// Waits for the time of the next attempt, but no longer than `until_ms`. True when it has come.
static bool wait_to_try(const struct hadal_client *c, uint64_t until_ms)
{
    uint64_t now = link_now_ms(), till = c->try_ms < until_ms ? c->try_ms : until_ms;
    uint64_t ms = till > now ? till - now : 0;
    struct timespec t = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    if (ms)
        nanosleep(&t, NULL);
    return link_now_ms() >= c->try_ms;
}

// True when the link is up, with every stream introduced; waits no longer than `until_ms`.
static bool ensure_link(struct hadal_client *c, uint64_t until_ms)
{
    struct errmsg why = {{0}};
    struct hadal_stream *s;
    if (c->link.fd < 0) {
        if (!wait_to_try(c, until_ms))
            return false;
        if (link_connect(&c->link, c->options.connect_ms, &why)) {
            on_broken(c, why.text);
            return false;
        }
        c->last_id = 0;
        DL_FOREACH2(c->streams, s, next_stream)
        s->sent = false;
    }
    DL_FOREACH2(c->streams, s, next_stream)
    {
        if (!s->sent && s->state != STREAM_ENDED)
            introduce(s);
    }
    return c->link.fd >= 0;
}

static void keep(struct hadal_stream *s, const struct wire_frame *f)
{
    struct kept *k = mem_alloc(sizeof *k + f->body_n);
    k->frame = *f;
    k->frame.body = memcpy(k + 1, f->body, f->body_n);
    LL_APPEND(s->kept, k);
}

// Counts what arrives for a stream. False: the coordinator broke the protocol.
static bool arrive(struct hadal_stream *s, const struct wire_frame *f, const struct rpc *r)
{
    switch (r->kind) {
    case RPC_ACCEPTED:
        s->request = r->accepted.request;
        s->state = STREAM_RUNNING;
        s->client->broken_ms = 0; // it works again
        if (s->told_accepted)
            return true;
        s->told_accepted = true;
        break;
    case RPC_QUEUED:
        break;
    case RPC_TOKENS:
        if (r->tokens.first != s->next || s->state != STREAM_RUNNING)
            return false;
        s->next += r->tokens.tokens_n;
        s->unread += r->tokens.tokens_n;
        break;
    case RPC_DONE:
    case RPC_ERROR:
        s->state = STREAM_ENDED;
        s->client->broken_ms = 0;
        break;
    default:
        return false;
    }
    keep(s, f);
    return true;
}

static struct hadal_stream *find_stream(struct hadal_client *c, uint32_t id)
{
    struct hadal_stream *s;
    DL_FOREACH2(c->streams, s, next_stream)
    if (s->sent && s->id == id && s->state != STREAM_ENDED)
        return s;
    return NULL;
}

static void take_frame(struct hadal_client *c, const struct wire_frame *f)
{
    struct rpc r;
    struct errmsg why = {{0}};
    if (wire_decode_rpc(&c->arena, f, &r, &why)) {
        on_broken(c, why.text);
        return;
    }
    if (r.kind == RPC_PING) {
        (void)write_rpc(c, f->stream, &(struct rpc){.kind = RPC_PONG, .ping = r.ping});
        return;
    }
    if (r.kind == RPC_PONG)
        return;
    struct hadal_stream *s = find_stream(c, f->stream);
    if (!s && r.kind == RPC_ERROR && f->stream == 0)
        on_broken(c, r.error.text);
    else if (s && !arrive(s, f, &r))
        on_broken(c, "the coordinator sent tokens out of order");
}

// ---- what the caller sees -----------------------------------------------------------------------

static void give_credit(struct hadal_stream *s, uint32_t n)
{
    struct hadal_client *c = s->client;
    s->unread -= n;
    s->returned += n;
    if (s->returned < (c->options.window + 1) / 2 || s->state != STREAM_RUNNING || !s->sent)
        return;
    (void)write_rpc(c, s->id, &(struct rpc){.kind = RPC_CREDIT, .credit = {s->returned}});
    s->returned = 0;
}

static void show_tokens(struct hadal_stream *s, const struct rpc_tokens *t, struct hadal_event *ev)
{
    _Static_assert(sizeof(struct hadal_logprob) == sizeof(struct logprob) &&
                       offsetof(struct hadal_logprob, value) == offsetof(struct logprob, value),
                   "the two are one thing");
    free(s->tokens);
    s->tokens = mem_zalloc(t->tokens_n ? t->tokens_n : 1, sizeof *s->tokens);
    for (uint32_t i = 0; i < t->tokens_n; i++)
        s->tokens[i] = (struct hadal_token){.id = t->tokens[i].id,
                                            .logprob = t->tokens[i].logprob,
                                            .top = (const struct hadal_logprob *)t->tokens[i].top,
                                            .top_n = t->tokens[i].top_n};
    ev->kind = HADAL_TOKENS;
    ev->first = t->first;
    ev->tokens = s->tokens;
    ev->tokens_n = t->tokens_n;
    ev->text = t->text.v;
    ev->text_n = t->text.n;
    ev->thoughts = t->reasoning.v;
    ev->thoughts_n = t->reasoning.n;
    give_credit(s, t->tokens_n);
}

static void show_done(struct hadal_stream *s, const struct rpc_done *d, struct hadal_event *ev)
{
    s->finished = true;
    ev->kind = HADAL_DONE;
    ev->finish = finish_reason_name(d->finish);
    ev->prompt_tokens = d->prompt_tokens;
    ev->completion_tokens = d->completion_tokens;
    ev->cached_tokens = d->cached_tokens;
    ev->reasoning_tokens = d->reasoning_tokens;
    ev->text = d->text.v;
    ev->text_n = d->text.n;
    ev->thoughts = d->reasoning.v;
    ev->thoughts_n = d->reasoning.n;
}

static enum hadal_result show_error(struct hadal_stream *s, const struct rpc_error *e)
{
    s->failed = true;
    set_error(&s->error, e->code, e->reason, "%s", e->text);
    s->error.retry_after_ms = e->retry_after_ms;
    return HADAL_FAILED;
}

// The oldest frame kept, for the caller.
static enum hadal_result show(struct hadal_stream *s, struct hadal_event *ev)
{
    struct kept *k = s->kept;
    struct rpc r;
    LL_DELETE(s->kept, k);
    enum status st = wire_decode_rpc(&s->arena, &k->frame, &r, NULL);
    free(k);
    if (st) { // it was good when it arrived
        fail_stream(s, RPC_CODE_INTERNAL, "memory", "a frame cannot be read a second time");
        return HADAL_FAILED;
    }
    *ev = (struct hadal_event){.request = s->request, .text = "", .thoughts = "", .finish = ""};
    if (r.kind == RPC_ERROR)
        return show_error(s, &r.error);
    if (r.kind == RPC_ACCEPTED) {
        ev->kind = HADAL_ACCEPTED;
        ev->prompt_tokens = r.accepted.prompt_tokens;
    } else if (r.kind == RPC_QUEUED) {
        ev->kind = HADAL_QUEUED;
        ev->position = r.queued.position;
        ev->eta_ms = r.queued.eta_ms;
    } else if (r.kind == RPC_TOKENS) {
        show_tokens(s, &r.tokens, ev);
    } else {
        show_done(s, &r.done, ev);
    }
    return HADAL_OK;
}

// Reads what comes, for whichever stream, until `until_ms`.
static void turn(struct hadal_client *c, uint64_t until_ms)
{
    struct wire_frame f;
    struct errmsg why = {{0}};
    if (!ensure_link(c, until_ms))
        return;
    uint64_t now = link_now_ms();
    enum status st = link_read(&c->link, until_ms > now ? (uint32_t)(until_ms - now) : 0, &f, &why);
    if (st == STATUS_OK)
        take_frame(c, &f);
    else if (st < 0)
        on_broken(c, why.text);
}

enum hadal_result hadal_next(struct hadal_stream *s, int timeout_ms, struct hadal_event *ev,
                             struct hadal_error *err)
{
    const uint32_t slice_ms = 60 * 1000;
    uint64_t until = link_now_ms() + (timeout_ms < 0 ? 0 : (uint64_t)timeout_ms);
    for (;;) {
        if (s->kept && !s->failed) {
            enum hadal_result r = show(s, ev);
            if (r == HADAL_FAILED && err)
                *err = s->error;
            return r;
        }
        if (s->failed) {
            if (err)
                *err = s->error;
            return HADAL_FAILED;
        }
        if (s->finished)
            return HADAL_END;
        uint64_t now = link_now_ms();
        if (timeout_ms > 0 && now >= until)
            return HADAL_TIMEOUT;
        turn(s->client, timeout_ms < 0 ? now + slice_ms : until);
        if (timeout_ms == 0 && !s->kept && !s->failed && !s->finished)
            return HADAL_TIMEOUT;
    }
}

void hadal_cancel(struct hadal_stream *s)
{
    s->cancel = true; // should the link break now, the next one hears of it
    if (s->sent && s->state != STREAM_ENDED)
        (void)write_rpc(s->client, s->id, &(struct rpc){.kind = RPC_CANCEL});
}

void hadal_stream_close(struct hadal_stream *s)
{
    if (!s)
        return;
    if (s->client->link.fd >= 0)
        hadal_cancel(s);
    DL_DELETE2(s->client->streams, s, prev, next_stream);
    while (s->kept) {
        struct kept *k = s->kept;
        LL_DELETE(s->kept, k);
        free(k);
    }
    wire_arena_finish(&s->arena);
    strbuf_finish(&s->generate);
    free(s->tokens);
    free(s);
}

// ---- requests -----------------------------------------------------------------------------------

static struct hadal_stream *stream_new(struct hadal_client *c)
{
    struct hadal_stream *s = mem_zalloc(1, sizeof *s);
    s->client = c;
    DL_APPEND2(c->streams, s, prev, next_stream);
    return s;
}

static void take_float(float v, enum rpc_given given, float *out, uint32_t *mask)
{
    if (isnan(v))
        return;
    *out = v;
    *mask |= (uint32_t)given;
}

static float or_default(float v)
{
    return v < 0 ? NAN : v;
}

static void fill_sampling(const struct hadal_request *q, struct rpc_generate *g)
{
    struct sampling *s = &g->sampling;
    take_float(or_default(q->temperature), RPC_GIVEN_TEMPERATURE, &s->temperature, &g->given);
    take_float(or_default(q->top_p), RPC_GIVEN_TOP_P, &s->top_p, &g->given);
    take_float(or_default(q->min_p), RPC_GIVEN_MIN_P, &s->min_p, &g->given);
    take_float(or_default(q->repetition_penalty), RPC_GIVEN_REPETITION, &s->repetition_penalty,
               &g->given);
    take_float(q->presence_penalty, RPC_GIVEN_PRESENCE, &s->presence_penalty, &g->given);
    take_float(q->frequency_penalty, RPC_GIVEN_FREQUENCY, &s->frequency_penalty, &g->given);
    if (q->top_k >= 0) {
        s->top_k = q->top_k;
        g->given |= RPC_GIVEN_TOP_K;
    }
    if (q->has_seed) {
        s->seed = q->seed;
        g->given |= RPC_GIVEN_SEED;
    }
    s->logprobs = q->logprobs;
    s->top_logprobs = q->top_logprobs;
}

// The frame is made once and sent again as it is. Decoding it here finds every mistake that can be
// found without the model.
static bool encode_generate(struct hadal_stream *s, const struct rpc_generate *g,
                            struct hadal_error *err)
{
    struct hadal_client *c = s->client;
    struct errmsg why = {{0}};
    struct rpc r = {.kind = RPC_GENERATE, .generate = *g}, check;
    if (wire_encode_rpc(&c->arena, 0, &r, &s->generate)) {
        set_error(err, RPC_CODE_INVALID_ARGUMENT, "size", "the request is too large");
        return false;
    }
    struct wire_frame f = {.type = RPC_GENERATE,
                           .body = (const uint8_t *)s->generate.v + WIRE_HEADER_BYTES,
                           .body_n = (uint32_t)(s->generate.n - WIRE_HEADER_BYTES)};
    if (wire_decode_rpc(&c->arena, &f, &check, &why)) {
        set_error(err, RPC_CODE_INVALID_ARGUMENT, "request", "%s", why.text);
        return false;
    }
    return true;
}

struct hadal_stream *hadal_generate(struct hadal_client *c, const struct hadal_request *q,
                                    struct hadal_error *err)
{
    if (q->messages_n > RPC_MESSAGES || q->stop_n > LIMIT_STOP_STRINGS ||
        q->ids_n > LIMIT_CONTEXT) {
        set_error(err, RPC_CODE_INVALID_ARGUMENT, "size", "too many messages, ids or stop strings");
        return NULL;
    }
    struct rpc_message *messages = mem_zalloc(q->messages_n + 1, sizeof *messages);
    struct rpc_text stop[LIMIT_STOP_STRINGS];
    for (size_t i = 0; i < q->messages_n; i++)
        messages[i] = (struct rpc_message){q->messages[i].role,
                                           {q->messages[i].content, q->messages[i].content_n}};
    for (size_t i = 0; i < q->stop_n; i++)
        stop[i] = (struct rpc_text){q->stop[i].v, q->stop[i].n};
    struct rpc_generate g = {.model = q->model ? q->model : "",
                             .messages = messages,
                             .messages_n = (uint32_t)q->messages_n,
                             .text = {q->text, q->text_n},
                             .ids = q->ids,
                             .ids_n = (uint32_t)q->ids_n,
                             .max_tokens = q->max_tokens,
                             .stop = stop,
                             .stop_n = (uint32_t)q->stop_n,
                             .band = q->priority,
                             .session = q->session ? q->session : "",
                             .deadline_ms = q->deadline_ms,
                             .window = c->options.window,
                             .user = q->user ? q->user : "",
                             .key = q->key ? q->key : ""};
    fill_sampling(q, &g);
    struct hadal_stream *s = stream_new(c);
    bool ok = encode_generate(s, &g, err);
    free(messages);
    if (!ok) {
        hadal_stream_close(s);
        return NULL;
    }
    turn(c, 0); // on its way, if the link is up or comes up at once
    return s;
}

struct hadal_stream *hadal_attach(struct hadal_client *c, uint64_t request, uint32_t from,
                                  struct hadal_error *err)
{
    if (request == 0 || from > LIMIT_CONTEXT) {
        set_error(err, RPC_CODE_INVALID_ARGUMENT, "request", "no such request or token");
        return NULL;
    }
    struct hadal_stream *s = stream_new(c);
    s->request = request;
    s->next = from;
    turn(c, 0);
    return s;
}
