// The client RPC, to and from protobuf; the same shape as wire_msg.c.
#include "proto/wire_pb.h"

union pb {
    ProtobufCMessage base;
    Hadal__RpcGenerate generate;
    Hadal__RpcAttach attach;
    Hadal__RpcCancel cancel;
    Hadal__RpcCredit credit;
    Hadal__RpcPing ping;
    Hadal__RpcAccepted accepted;
    Hadal__RpcQueued queued;
    Hadal__RpcTokens tokens;
    Hadal__RpcDone done;
    Hadal__RpcError error;
    Hadal__RpcPong pong;
};

static char *str(const char *s)
{
    return (char *)(s ? s : "");
}

static ProtobufCBinaryData bytes(struct rpc_text t)
{
    return (ProtobufCBinaryData){.len = t.n, .data = (uint8_t *)t.v};
}

static bool write_messages(struct wire_arena *a, const struct rpc_generate *g,
                           Hadal__RpcGenerate *pb)
{
    Hadal__ChatMessage **list = wire_arena_alloc(a, g->messages_n * sizeof *list);
    Hadal__ChatMessage *pbs = wire_arena_alloc(a, g->messages_n * sizeof *pbs);
    if (!list || !pbs)
        return false;
    for (uint32_t i = 0; i < g->messages_n; i++) {
        hadal__chat_message__init(&pbs[i]);
        pbs[i].role = str(g->messages[i].role);
        pbs[i].content = bytes(g->messages[i].content);
        list[i] = &pbs[i];
    }
    pb->messages = list;
    pb->n_messages = g->messages_n;
    return true;
}

static bool write_generate(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    const struct rpc_generate *g = &r->generate;
    u->generate = (Hadal__RpcGenerate)HADAL__RPC_GENERATE__INIT;
    Hadal__Sampling *sampling = wire_arena_alloc(a, sizeof *sampling);
    ProtobufCBinaryData *stop = wire_arena_alloc(a, g->stop_n * sizeof *stop);
    if (!sampling || !stop || !write_messages(a, g, &u->generate))
        return false;
    for (uint32_t i = 0; i < g->stop_n; i++)
        stop[i] = bytes(g->stop[i]);
    wire_write_sampling(&g->sampling, sampling);
    u->generate.model = str(g->model);
    u->generate.text = bytes(g->text);
    u->generate.ids = (int32_t *)g->ids;
    u->generate.n_ids = g->ids_n;
    u->generate.sampling = sampling;
    u->generate.given = g->given;
    u->generate.max_tokens = g->max_tokens;
    u->generate.stop = stop;
    u->generate.n_stop = g->stop_n;
    u->generate.band = g->band;
    u->generate.session = str(g->session);
    u->generate.deadline_ms = g->deadline_ms;
    u->generate.window = g->window;
    u->generate.user = str(g->user ? g->user : "");
    u->generate.key = str(g->key ? g->key : "");
    return true;
}

static const struct rpc_message *read_messages(struct wire_check *c, const Hadal__RpcGenerate *p)
{
    wire_check_range(c, "messages", p->n_messages, 0, RPC_MESSAGES);
    if (c->status)
        return NULL;
    struct rpc_message *list = wire_alloc(c, p->n_messages, sizeof *list);
    for (size_t i = 0; list && i < p->n_messages; i++) {
        wire_check_string(c, "messages.role", p->messages[i]->role, RPC_ROLE_BYTES);
        list[i].role = p->messages[i]->role;
        list[i].content =
            wire_read_text(c, "messages.content", p->messages[i]->content, RPC_TEXT_BYTES);
    }
    return list;
}

static const struct rpc_text *read_stop(struct wire_check *c, const Hadal__RpcGenerate *p)
{
    wire_check_range(c, "stop", p->n_stop, 0, LIMIT_STOP_STRINGS);
    if (c->status)
        return NULL;
    struct rpc_text *stop = wire_alloc(c, p->n_stop, sizeof *stop);
    for (size_t i = 0; stop && i < p->n_stop; i++) {
        wire_check_range(c, "stop", p->stop[i].len, 1, LIMIT_STOP_BYTES);
        stop[i] = wire_read_text(c, "stop", p->stop[i], LIMIT_STOP_BYTES);
    }
    return stop;
}

static void read_generate(struct wire_check *c, const union pb *u, struct rpc *r)
{
    const Hadal__RpcGenerate *p = &u->generate;
    if ((p->n_messages > 0) + (p->text.len > 0) + (p->n_ids > 0) != 1)
        wire_fail(c, STATUS_LINK_PROTOCOL, "messages, text, ids: give exactly one of them");
    wire_check_string(c, "model", p->model, LIMIT_NAME);
    wire_check_ids(c, "ids", p->ids, p->n_ids, LIMIT_CONTEXT);
    wire_check_range(c, "given", p->given, 0, RPC_GIVEN_ALL);
    wire_check_range(c, "max_tokens", p->max_tokens, 0, LIMIT_CONTEXT);
    wire_check_range(c, "band", p->band, 0, 9);
    wire_check_string(c, "session", p->session, RPC_SESSION_BYTES);
    wire_check_range(c, "window", p->window, 1, RPC_WINDOW);
    wire_check_string(c, "user", p->user, RPC_USER_BYTES);
    wire_check_string(c, "key", p->key, RPC_USER_BYTES);
    r->generate = (struct rpc_generate){.model = p->model,
                                        .messages = read_messages(c, p),
                                        .messages_n = (uint32_t)p->n_messages,
                                        .text = wire_read_text(c, "text", p->text, RPC_TEXT_BYTES),
                                        .ids = p->ids,
                                        .ids_n = (uint32_t)p->n_ids,
                                        .given = p->given,
                                        .max_tokens = p->max_tokens,
                                        .stop = read_stop(c, p),
                                        .stop_n = (uint32_t)p->n_stop,
                                        .band = (uint8_t)p->band,
                                        .session = p->session,
                                        .deadline_ms = p->deadline_ms,
                                        .window = p->window,
                                        .user = p->user,
                                        .key = p->key};
    wire_read_sampling(c, p->sampling, &r->generate.sampling);
}

static bool write_attach(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    u->attach = (Hadal__RpcAttach)HADAL__RPC_ATTACH__INIT;
    u->attach.request = r->attach.request;
    u->attach.from = r->attach.from;
    u->attach.window = r->attach.window;
    return true;
}

static void read_attach(struct wire_check *c, const union pb *u, struct rpc *r)
{
    wire_check_range(c, "request", u->attach.request, 1, UINT64_MAX);
    wire_check_range(c, "from", u->attach.from, 0, LIMIT_CONTEXT);
    wire_check_range(c, "window", u->attach.window, 1, RPC_WINDOW);
    r->attach = (struct rpc_attach){u->attach.request, u->attach.from, u->attach.window};
}

static bool write_cancel(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    u->cancel = (Hadal__RpcCancel)HADAL__RPC_CANCEL__INIT;
    return true;
}

static void read_cancel(struct wire_check *c, const union pb *u, struct rpc *r)
{
    // It has no fields: the stream id of the frame says all.
}

static bool write_credit(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    u->credit = (Hadal__RpcCredit)HADAL__RPC_CREDIT__INIT;
    u->credit.tokens = r->credit.tokens;
    return true;
}

static void read_credit(struct wire_check *c, const union pb *u, struct rpc *r)
{
    wire_check_range(c, "tokens", u->credit.tokens, 1, RPC_WINDOW);
    r->credit.tokens = u->credit.tokens;
}

static bool write_ping(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    u->ping = (Hadal__RpcPing)HADAL__RPC_PING__INIT;
    u->ping.value = r->ping.value;
    return true;
}

static void read_ping(struct wire_check *c, const union pb *u, struct rpc *r)
{
    r->ping.value = u->ping.value;
}

static bool write_pong(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    u->pong = (Hadal__RpcPong)HADAL__RPC_PONG__INIT;
    u->pong.value = r->ping.value;
    return true;
}

static void read_pong(struct wire_check *c, const union pb *u, struct rpc *r)
{
    r->ping.value = u->pong.value;
}

static bool write_accepted(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    u->accepted = (Hadal__RpcAccepted)HADAL__RPC_ACCEPTED__INIT;
    u->accepted.request = r->accepted.request;
    u->accepted.prompt_tokens = r->accepted.prompt_tokens;
    return true;
}

static void read_accepted(struct wire_check *c, const union pb *u, struct rpc *r)
{
    wire_check_range(c, "request", u->accepted.request, 1, UINT64_MAX);
    r->accepted = (struct rpc_accepted){u->accepted.request, u->accepted.prompt_tokens};
}

static bool write_queued(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    u->queued = (Hadal__RpcQueued)HADAL__RPC_QUEUED__INIT;
    u->queued.position = r->queued.position;
    u->queued.eta_ms = r->queued.eta_ms;
    return true;
}

static void read_queued(struct wire_check *c, const union pb *u, struct rpc *r)
{
    r->queued = (struct rpc_queued){u->queued.position, u->queued.eta_ms};
}

static bool write_tokens(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    const struct rpc_tokens *t = &r->tokens;
    Hadal__RpcToken **list = wire_arena_alloc(a, t->tokens_n * sizeof *list);
    Hadal__RpcToken *pbs = wire_arena_alloc(a, t->tokens_n * sizeof *pbs);
    if (!list || !pbs)
        return false;
    for (uint32_t i = 0; i < t->tokens_n; i++) {
        hadal__rpc_token__init(&pbs[i]);
        pbs[i].id = t->tokens[i].id;
        pbs[i].logprob = t->tokens[i].logprob;
        pbs[i].n_top = t->tokens[i].top_n;
        pbs[i].top = wire_write_top(a, t->tokens[i].top, t->tokens[i].top_n);
        if (t->tokens[i].top_n && !pbs[i].top)
            return false;
        list[i] = &pbs[i];
    }
    u->tokens = (Hadal__RpcTokens)HADAL__RPC_TOKENS__INIT;
    u->tokens.first = t->first;
    u->tokens.tokens = list;
    u->tokens.n_tokens = t->tokens_n;
    u->tokens.text = bytes(t->text);
    u->tokens.reasoning = bytes(t->reasoning);
    return true;
}

static void read_tokens(struct wire_check *c, const union pb *u, struct rpc *r)
{
    const Hadal__RpcTokens *p = &u->tokens;
    wire_check_range(c, "first", p->first, 0, LIMIT_CONTEXT);
    struct rpc_token *list = wire_alloc(c, p->n_tokens, sizeof *list);
    for (size_t i = 0; list && i < p->n_tokens && !c->status; i++) {
        const Hadal__RpcToken *t = p->tokens[i];
        wire_check_range(c, "tokens.id", (uint64_t)(int64_t)t->id, 0, LIMIT_VOCAB - 1);
        wire_check_float(c, "tokens.logprob", t->logprob, -INFINITY, 1);
        list[i] = (struct rpc_token){t->id, t->logprob, (uint32_t)t->n_top,
                                     wire_read_top(c, t->top, t->n_top)};
    }
    r->tokens = (struct rpc_tokens){
        .first = p->first,
        .tokens = list,
        .tokens_n = (uint32_t)p->n_tokens,
        .text = wire_read_text(c, "text", p->text, RPC_TEXT_BYTES),
        .reasoning = wire_read_text(c, "reasoning", p->reasoning, RPC_TEXT_BYTES),
    };
}

static bool write_done(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    const struct rpc_done *d = &r->done;
    u->done = (Hadal__RpcDone)HADAL__RPC_DONE__INIT;
    u->done.finish = d->finish;
    u->done.prompt_tokens = d->prompt_tokens;
    u->done.completion_tokens = d->completion_tokens;
    u->done.cached_tokens = d->cached_tokens;
    u->done.reasoning_tokens = d->reasoning_tokens;
    u->done.text = bytes(d->text);
    u->done.reasoning = bytes(d->reasoning);
    return true;
}

static void read_done(struct wire_check *c, const union pb *u, struct rpc *r)
{
    const Hadal__RpcDone *p = &u->done;
    wire_check_range(c, "finish", p->finish, FINISH_STOP, FINISH_ERROR);
    r->done = (struct rpc_done){.finish = (enum finish_reason)p->finish,
                                .prompt_tokens = p->prompt_tokens,
                                .completion_tokens = p->completion_tokens,
                                .cached_tokens = p->cached_tokens,
                                .reasoning_tokens = p->reasoning_tokens,
                                .text = wire_read_text(c, "text", p->text, RPC_TEXT_BYTES),
                                .reasoning =
                                    wire_read_text(c, "reasoning", p->reasoning, RPC_TEXT_BYTES)};
}

static bool write_error(struct wire_arena *a, const struct rpc *r, union pb *u)
{
    u->error = (Hadal__RpcError)HADAL__RPC_ERROR__INIT;
    u->error.code = r->error.code;
    u->error.reason = str(r->error.reason);
    u->error.retry_after_ms = r->error.retry_after_ms;
    u->error.text = str(r->error.text);
    return true;
}

static void read_error(struct wire_check *c, const union pb *u, struct rpc *r)
{
    const Hadal__RpcError *p = &u->error;
    wire_check_range(c, "code", p->code, RPC_CODE_CANCELLED, RPC_CODE_UNAUTHENTICATED);
    wire_check_string(c, "reason", p->reason, LIMIT_NAME);
    wire_check_string(c, "text", p->text, LIMIT_PATH);
    r->error = (struct rpc_error){(enum rpc_code)p->code, p->reason, p->retry_after_ms, p->text};
}

struct codec {
    const ProtobufCMessageDescriptor *type;
    bool (*write)(struct wire_arena *a, const struct rpc *r, union pb *u); // false: arena is full
    void (*read)(struct wire_check *c, const union pb *u, struct rpc *r);
};

static const struct codec *codec_of(uint8_t kind)
{
    static const struct codec codecs[] = {
        [RPC_GENERATE] = {&hadal__rpc_generate__descriptor, write_generate, read_generate},
        [RPC_ATTACH] = {&hadal__rpc_attach__descriptor, write_attach, read_attach},
        [RPC_CANCEL] = {&hadal__rpc_cancel__descriptor, write_cancel, read_cancel},
        [RPC_CREDIT] = {&hadal__rpc_credit__descriptor, write_credit, read_credit},
        [RPC_PING] = {&hadal__rpc_ping__descriptor, write_ping, read_ping},
        [RPC_ACCEPTED] = {&hadal__rpc_accepted__descriptor, write_accepted, read_accepted},
        [RPC_QUEUED] = {&hadal__rpc_queued__descriptor, write_queued, read_queued},
        [RPC_TOKENS] = {&hadal__rpc_tokens__descriptor, write_tokens, read_tokens},
        [RPC_DONE] = {&hadal__rpc_done__descriptor, write_done, read_done},
        [RPC_ERROR] = {&hadal__rpc_error__descriptor, write_error, read_error},
        [RPC_PONG] = {&hadal__rpc_pong__descriptor, write_pong, read_pong},
    };
    if (kind >= sizeof codecs / sizeof *codecs || !codecs[kind].type)
        return NULL;
    return &codecs[kind];
}

enum status wire_encode_rpc(struct wire_arena *a, uint32_t stream, const struct rpc *r,
                            struct strbuf *out)
{
    union pb u;
    wire_arena_reset(a);
    if (!codec_of((uint8_t)r->kind)->write(a, r, &u))
        return STATUS_TOO_LARGE;
    return wire_pb_pack((uint8_t)r->kind, stream, &u.base, out);
}

enum status wire_decode_rpc(struct wire_arena *a, const struct wire_frame *f, struct rpc *out,
                            struct errmsg *err)
{
    const struct codec *codec = codec_of(f->type);
    if (!codec)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "frame: %u is no type of client message",
                          f->type);
    wire_arena_reset(a);
    const ProtobufCMessage *pb = wire_pb_unpack(a, codec->type, f);
    if (!pb)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "%s: malformed protobuf of %u bytes",
                          codec->type->short_name, f->body_n);
    struct wire_check c = {.arena = a, .message = codec->type->short_name, .err = err};
    struct rpc r = {.kind = (enum rpc_kind)f->type};
    codec->read(&c, (const union pb *)pb, &r);
    if (!c.status)
        *out = r;
    return c.status;
}
