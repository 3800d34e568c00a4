// Streams over the RPC, by libhadal: one client, many streams on one connection, which re-attach by
// themselves. Each token's id is compared, not only the text.
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/mem.h"
#include "client/hadal.h"
#include "tools/cmdline.h"
#include "tools/load_net_impl.h"

enum { MESSAGES_MAX = 256, SLICE_MS = 1 };

struct call {
    struct call *prev, *next; // list of the net
    struct load_stream *stream;
    struct hadal_stream *rpc;
    char failure[LOAD_TEXT_MAX]; // of a start that failed; told at the next turn
    int code;
};

struct rpc_net {
    struct load_net base;
    struct hadal_client *client;
    char *url;
    struct call *calls;
};

static struct rpc_net *of(struct load_net *base)
{
    return (struct rpc_net *)(void *)base;
}

// gRPC's codes as the HTTP codes that a load run knows.
static int http_code(const struct hadal_error *err)
{
    enum { INVALID_ARGUMENT = 3, NOT_FOUND = 5, RESOURCE_EXHAUSTED = 8, UNAVAILABLE = 14 };
    switch (err->code) {
    case INVALID_ARGUMENT:
        return 400;
    case NOT_FOUND:
        return 404;
    case RESOURCE_EXHAUSTED:
        return 429;
    case UNAVAILABLE:
        return 503;
    default:
        return 500;
    }
}

static void link_call(struct rpc_net *net, struct load_stream *s, struct call *c)
{
    c->stream = s;
    c->next = net->calls;
    if (c->next)
        c->next->prev = c;
    net->calls = c;
    s->net = c;
}

static void free_call(struct rpc_net *net, struct call *c)
{
    if (c->prev)
        c->prev->next = c->next;
    else
        net->calls = c->next;
    if (c->next)
        c->next->prev = c->prev;
    if (c->rpc)
        hadal_stream_close(c->rpc);
    c->stream->net = NULL;
    free(c);
}

static void keep_failure(struct call *c, const struct hadal_error *err)
{
    c->code = http_code(err);
    snprintf(c->failure, sizeof c->failure, "%.150s", err->text);
}

static size_t take_messages(const json_t *body, struct hadal_message *messages)
{
    size_t i, n = 0;
    json_t *m;
    json_array_foreach(json_object_get(body, "messages"), i, m)
    {
        const json_t *content = json_object_get(m, "content");
        if (n < MESSAGES_MAX)
            messages[n++] =
                (struct hadal_message){.role = json_string_value(json_object_get(m, "role")),
                                       .content = json_string_value(content),
                                       .content_n = json_string_length(content)};
    }
    return n;
}

static void rpc_start(struct load_net *base, struct load_stream *s, const char *body)
{
    struct rpc_net *net = of(base);
    struct hadal_message messages[MESSAGES_MAX];
    struct hadal_request q = HADAL_REQUEST_INIT;
    struct hadal_error err = {0};
    json_t *json = json_loads(body, 0, NULL);
    const json_t *temperature = json_object_get(json, "temperature");
    const json_t *seed = json_object_get(json, "seed");
    q.messages = messages;
    q.messages_n = take_messages(json, messages);
    q.max_tokens = (uint32_t)json_integer_value(json_object_get(json, "max_tokens"));
    if (temperature)
        q.temperature = (float)json_number_value(temperature);
    q.has_seed = seed != NULL;
    q.seed = (uint64_t)json_integer_value(seed);
    struct call *c = mem_zalloc(1, sizeof *c);
    c->rpc = hadal_generate(net->client, &q, &err);
    if (!c->rpc)
        keep_failure(c, &err);
    link_call(net, s, c);
    json_decref(json);
}

static void rpc_attach(struct load_net *base, struct load_stream *s)
{
    struct rpc_net *net = of(base);
    struct hadal_error err = {0};
    struct call *c = mem_zalloc(1, sizeof *c);
    uint32_t from = s->position > 0 ? (uint32_t)s->position : 0; // -1: no token came yet
    c->rpc = hadal_attach(net->client, strtoull(s->request, NULL, 16), from, &err);
    if (!c->rpc)
        keep_failure(c, &err);
    link_call(net, s, c);
}

static void rpc_cut(struct load_net *base, struct load_stream *s)
{
    if (s->net)
        free_call(of(base), s->net);
}

static void tell_closed(struct rpc_net *net, struct call *c, int code, const char *text)
{
    struct load_stream *s = c->stream;
    char copy[LOAD_TEXT_MAX];
    snprintf(copy, sizeof copy, "%.150s", text);
    free_call(net, c);
    net->base.handler.closed(net->base.handler.user, s,
                             &(struct load_end){.code = code, .text = copy});
}

// Text, token ids and counts of one event, into the stream; returns as load_stream_event does.
static int64_t take(struct load_stream *s, int64_t now_us, const struct hadal_event *ev)
{
    struct load_answer *a = &s->answer;
    int64_t gap_us = -1;
    s->heard_us = now_us;
    if (ev->kind == HADAL_ACCEPTED)
        snprintf(s->request, sizeof s->request, "%016" PRIx64, ev->request);
    if (ev->kind == HADAL_TOKENS && ev->tokens_n) {
        if (s->position < 0)
            s->position = 0;
        s->repeated += ev->first < s->position;
        if (ev->first > s->position)
            snprintf(s->error, sizeof s->error, "tokens %" PRId64 "..%u are missing", s->position,
                     ev->first);
        for (size_t i = 0; i < ev->tokens_n; i++)
            a->ids_hash = hash_pair(a->ids_hash, (uint64_t)(uint32_t)ev->tokens[i].id);
        s->position = (int64_t)ev->first + (int64_t)ev->tokens_n;
        snprintf(s->last_id, sizeof s->last_id, "%" PRId64, s->position);
        gap_us = load_stream_token(s, now_us);
    }
    if (ev->kind == HADAL_TOKENS || ev->kind == HADAL_DONE) {
        strbuf_add(&a->reasoning, ev->thoughts, ev->thoughts_n);
        strbuf_add(&a->content, ev->text, ev->text_n);
    }
    if (ev->kind == HADAL_DONE) {
        snprintf(a->finish, sizeof a->finish, "%s", ev->finish ? ev->finish : "");
        a->tokens = ev->completion_tokens;
        s->done = true;
    }
    return gap_us;
}

// Takes all that is there for one stream, waiting at most timeout_ms for the first of it. false:
// its call is gone.
static bool pump(struct rpc_net *net, struct call *c, int timeout_ms)
{
    struct hadal_error err = {0};
    struct hadal_event ev;
    if (!c->rpc) {
        tell_closed(net, c, c->code, c->failure);
        return false;
    }
    for (;; timeout_ms = 0) {
        switch (hadal_next(c->rpc, timeout_ms, &ev, &err)) {
        case HADAL_OK:
            net->base.handler.heard(net->base.handler.user, c->stream,
                                    take(c->stream, cmdline_now_us(), &ev));
            break;
        case HADAL_TIMEOUT:
            return true;
        case HADAL_END:
            tell_closed(net, c, 200, "");
            return false;
        default:
            tell_closed(net, c, http_code(&err), err.text);
            return false;
        }
    }
}

static void rpc_turn(struct load_net *base, int timeout_ms)
{
    struct rpc_net *net = of(base);
    struct call *next;
    int slice = timeout_ms < SLICE_MS ? timeout_ms : SLICE_MS;
    for (struct call *c = net->calls; c; c = next) {
        next = c->next;
        // Waiting for one stream moves the others on too; so only the first waits.
        pump(net, c, c == net->calls ? slice : 0);
    }
    if (!net->calls)
        usleep((useconds_t)slice * 1000);
}

// Closing the client, not its streams, is what a broken connection looks like from the other end.
static void rpc_cut_all(struct load_net *base)
{
    struct rpc_net *net = of(base);
    hadal_close(net->client);
    net->client = hadal_open(net->url, NULL, NULL); // the same URL was good before
    while (net->calls) {
        net->calls->rpc = NULL; // ended with its client
        free_call(net, net->calls);
    }
}

static void rpc_close(struct load_net *base)
{
    struct rpc_net *net = of(base);
    while (net->calls)
        free_call(net, net->calls);
    hadal_close(net->client);
    free(net->url);
    free(net);
}

static const struct load_net_ops rpc_ops = {
    .close = rpc_close,
    .start = rpc_start,
    .attach = rpc_attach,
    .cut = rpc_cut,
    .cut_all = rpc_cut_all,
    .turn = rpc_turn,
};

struct load_net *load_rpc_open(const char *url, const struct load_net_handler *handler,
                               struct errmsg *err)
{
    struct hadal_error why = {0};
    struct hadal_client *client = hadal_open(url, NULL, &why);
    if (!client) {
        errmsg_set(err, STATUS_BAD_CONFIG, "%s: %s", url, why.text);
        return NULL;
    }
    struct rpc_net *net = mem_zalloc(1, sizeof *net);
    net->base = (struct load_net){.ops = &rpc_ops, .handler = *handler};
    net->client = client;
    net->url = mem_strdup(url);
    return &net->base;
}
