// The talk of coordinators, to and from protobuf; the same shape as wire_msg.c.
#include "proto/wire_pb.h"

static char *str(const char *s)
{
    return (char *)(s ? s : "");
}

// ---- writing ----

static bool write_tokens(struct wire_arena *a, const struct copy_record *r, Hadal__CopyRecord *p)
{
    Hadal__TokenOut **list = wire_arena_alloc(a, r->tokens_n * sizeof *list);
    Hadal__TokenOut *pbs = wire_arena_alloc(a, r->tokens_n * sizeof *pbs);
    if (!list || !pbs)
        return false;
    for (uint32_t i = 0; i < r->tokens_n; i++) {
        const struct token_out *t = &r->tokens[i];
        hadal__token_out__init(&pbs[i]);
        pbs[i].index = t->index;
        pbs[i].token = t->token;
        pbs[i].finish = t->finish;
        pbs[i].logprob = t->logprob;
        pbs[i].cached_tokens = t->cached_tokens;
        pbs[i].n_top = t->top_n;
        pbs[i].top = wire_write_top(a, t->top, t->top_n);
        if (t->top_n && !pbs[i].top)
            return false;
        list[i] = &pbs[i];
    }
    p->tokens = list;
    p->n_tokens = r->tokens_n;
    return true;
}

static bool write_journal(struct wire_arena *a, const struct copy_record *r, Hadal__CopyRecord *p)
{
    const struct journal *j = &r->journal;
    Hadal__Journal *pb = wire_arena_alloc(a, sizeof *pb);
    Hadal__Sampling *sampling = wire_arena_alloc(a, sizeof *sampling);
    ProtobufCBinaryData *stop = wire_arena_alloc(a, r->head.stop_n * sizeof *stop);
    if (!pb || !sampling || !stop)
        return false;
    hadal__journal__init(pb);
    wire_write_sampling(&j->sampling, sampling);
    pb->request = j->request;
    pb->prompt = (int32_t *)j->prompt;
    pb->n_prompt = j->prompt_n;
    pb->emitted = (int32_t *)j->emitted;
    pb->n_emitted = j->emitted_n;
    pb->max_tokens = j->max_tokens;
    pb->stop_ids = (int32_t *)j->stop_ids;
    pb->n_stop_ids = j->stop_ids_n;
    pb->band = j->band;
    pb->sampling = sampling;
    for (uint32_t i = 0; i < r->head.stop_n; i++)
        stop[i] =
            (ProtobufCBinaryData){.len = r->head.stop[i].n, .data = (uint8_t *)r->head.stop[i].v};
    p->journal = pb;
    p->tenant = str(r->tenant);
    p->model = str(r->model);
    p->pool = str(r->pool);
    p->session = r->session;
    p->api = r->head.api;
    p->created = r->head.created;
    p->include_usage = r->head.include_usage;
    p->stop = stop;
    p->n_stop = r->head.stop_n;
    return true;
}

static enum status encode_record(struct wire_arena *a, enum copy_kind kind,
                                 const struct copy_record *r, struct strbuf *out)
{
    Hadal__CopyRecord p = HADAL__COPY_RECORD__INIT;
    p.what = r->what;
    p.seq = r->seq;
    p.epoch = r->epoch;
    p.request = r->request;
    p.fingerprint = r->fingerprint;
    p.first = r->first;
    p.finish = r->finish;
    p.status = r->status;
    p.text = str(r->text);
    p.emitted_n = r->emitted_n;
    p.cached_n = r->cached_n;
    p.tenant = p.model = p.pool = str("");
    p.prompt_n = r->prompt_n;
    p.deadline_ms = r->deadline_ms;
    p.reason = r->reason;
    p.retry_after_ms = r->retry_after_ms;
    p.position = r->position;
    p.eta_ms = r->eta_ms;
    p.node = str(r->node);
    p.mark = r->mark;
    if (!write_tokens(a, r, &p) || (r->what == COPY_SUBMIT && !write_journal(a, r, &p)))
        return STATUS_TOO_LARGE;
    return wire_pb_pack(kind, 0, &p.base, out);
}

enum status wire_encode_copy(struct wire_arena *a, const struct copy *c, struct strbuf *out)
{
    wire_arena_reset(a);
    if (c->kind == COPY_RECORD || c->kind == COPY_ASK)
        return encode_record(a, c->kind, &c->record, out);
    if (c->kind == COPY_WORD) {
        Hadal__CopyWord p = HADAL__COPY_WORD__INIT;
        p.request = c->word.request;
        p.word = c->word.word;
        return wire_pb_pack(COPY_WORD, 0, &p.base, out);
    }
    if (c->kind == COPY_KNOCK) {
        Hadal__CopyKnock p = HADAL__COPY_KNOCK__INIT;
        return wire_pb_pack(COPY_KNOCK, 0, &p.base, out);
    }
    if (c->kind == COPY_STATE) {
        Hadal__CopyState p = HADAL__COPY_STATE__INIT;
        p.replicas = c->state.replicas;
        p.replicas_ready = c->state.replicas_ready;
        p.max_context = c->state.max_context;
        p.credits_free = c->state.credits_free;
        p.eta_ms = c->state.eta_ms;
        return wire_pb_pack(COPY_STATE, 0, &p.base, out);
    }
    if (c->kind == COPY_ACK) {
        Hadal__CopyAck p = HADAL__COPY_ACK__INIT;
        p.seq = c->ack;
        return wire_pb_pack(COPY_ACK, 0, &p.base, out);
    }
    Hadal__CopyHello p = HADAL__COPY_HELLO__INIT;
    p.name = str(c->hello.name);
    p.datacenter = str(c->hello.datacenter);
    p.http = str(c->hello.http);
    p.rpc = str(c->hello.rpc);
    return wire_pb_pack(COPY_HELLO, 0, &p.base, out);
}

// ---- reading ----

static void read_journal(struct wire_check *c, const Hadal__CopyRecord *p, struct copy_record *r)
{
    const Hadal__Journal *j = p->journal;
    if (!j) {
        wire_fail(c, STATUS_LINK_PROTOCOL, "journal: absent");
        return;
    }
    wire_check_range(c, "journal.prompt", j->n_prompt, p->prompt_n ? 0 : 1, LIMIT_CONTEXT);
    wire_check_ids(c, "journal.prompt", j->prompt, j->n_prompt, LIMIT_CONTEXT);
    wire_check_ids(c, "journal.emitted", j->emitted, j->n_emitted, LIMIT_CONTEXT);
    wire_check_range(c, "journal.max_tokens", j->max_tokens, 0, LIMIT_CONTEXT);
    wire_check_ids(c, "journal.stop_ids", j->stop_ids, j->n_stop_ids, MSG_STOP_IDS);
    wire_check_range(c, "journal.band", j->band, 0, 9);
    wire_check_string(c, "tenant", p->tenant, LIMIT_NAME);
    wire_check_string(c, "model", p->model, LIMIT_NAME);
    wire_check_string(c, "pool", p->pool, LIMIT_NAME);
    wire_check_range(c, "api", p->api, 0, 1);
    wire_check_range(c, "stop", p->n_stop, 0, LIMIT_STOP_STRINGS);
    wire_read_sampling(c, j->sampling, &r->journal.sampling);
    if (c->status)
        return;
    struct rpc_text *stop = wire_alloc(c, p->n_stop, sizeof *stop);
    for (size_t i = 0; stop && i < p->n_stop; i++)
        stop[i] = wire_read_text(c, "stop", p->stop[i], LIMIT_STOP_BYTES);
    r->journal.request = p->request;
    r->journal.prompt = j->prompt;
    r->journal.prompt_n = (uint32_t)j->n_prompt;
    r->journal.emitted = j->emitted;
    r->journal.emitted_n = (uint32_t)j->n_emitted;
    r->journal.max_tokens = j->max_tokens;
    r->journal.band = (uint8_t)j->band;
    r->journal.stop_ids_n = (uint32_t)j->n_stop_ids;
    for (size_t i = 0; i < j->n_stop_ids; i++)
        r->journal.stop_ids[i] = j->stop_ids[i];
    r->tenant = p->tenant;
    r->model = p->model;
    r->pool = p->pool;
    r->session = p->session;
    r->head = (struct copy_head){.api = p->api,
                                 .created = p->created,
                                 .include_usage = p->include_usage,
                                 .stop = stop,
                                 .stop_n = (uint32_t)p->n_stop};
}

static void read_tokens(struct wire_check *c, const Hadal__CopyRecord *p, struct copy_record *r)
{
    wire_check_range(c, "tokens", p->n_tokens, 0, LIMIT_CONTEXT);
    wire_check_range(c, "first", p->first, 0, LIMIT_CONTEXT);
    struct token_out *list = c->status ? NULL : wire_alloc(c, p->n_tokens, sizeof *list);
    for (size_t i = 0; list && i < p->n_tokens && !c->status; i++) {
        const Hadal__TokenOut *t = p->tokens[i];
        wire_check_range(c, "tokens.index", t->index, p->first + i, p->first + i);
        wire_check_ids(c, "tokens.token", &t->token, 1, 1);
        wire_check_range(c, "tokens.finish", t->finish, 0, FINISH_ERROR);
        list[i] = (struct token_out){.request = p->request,
                                     .index = t->index,
                                     .token = t->token,
                                     .finish = (uint8_t)t->finish,
                                     .logprob = t->logprob,
                                     .top_n = (uint32_t)t->n_top,
                                     .top = wire_read_top(c, t->top, t->n_top),
                                     .cached_tokens = t->cached_tokens};
    }
    r->tokens = list;
    r->tokens_n = (uint32_t)p->n_tokens;
    r->first = p->first;
}

static void read_record(struct wire_check *c, const Hadal__CopyRecord *p, struct copy_record *r)
{
    bool of_none = p->what == COPY_SYNCED || p->what == COPY_MARK ||
                   p->what == COPY_ORDERS;
    wire_check_range(c, "what", p->what, 0, COPY_WHATS - 1);
    wire_check_range(c, "request", p->request, of_none ? 0 : 1, UINT64_MAX);
    wire_check_range(c, "prompt_n", p->prompt_n, 0, LIMIT_CONTEXT);
    wire_check_range(c, "mark", p->mark, 0, COPY_MARK_EJECT);
    if (p->what == COPY_MARK)
        wire_check_name(c, "node", p->node);
    wire_check_range(c, "finish", p->finish, 0, FINISH_ERROR);
    wire_check_status(c, "status", p->status);
    wire_check_string(c, "text", p->text, p->what == COPY_ORDERS ? COPY_ORDERS_BYTES : LIMIT_PATH);
    wire_check_range(c, "emitted_n", p->emitted_n, 0, LIMIT_CONTEXT);
    wire_check_range(c, "cached_n", p->cached_n, 0, LIMIT_CONTEXT);
    *r = (struct copy_record){.what = (enum copy_what)p->what,
                              .seq = p->seq,
                              .epoch = p->epoch,
                              .request = p->request,
                              .tenant = "",
                              .model = "",
                              .pool = "",
                              .fingerprint = p->fingerprint,
                              .finish = (enum finish_reason)p->finish,
                              .status = (enum status)p->status,
                              .text = p->text,
                              .emitted_n = p->emitted_n,
                              .cached_n = p->cached_n,
                              .prompt_n = p->prompt_n,
                              .deadline_ms = p->deadline_ms,
                              .reason = p->reason,
                              .retry_after_ms = p->retry_after_ms,
                              .position = p->position,
                              .eta_ms = p->eta_ms,
                              .node = p->node,
                              .mark = (enum copy_mark)p->mark};
    read_tokens(c, p, r);
    if (p->what == COPY_SUBMIT)
        read_journal(c, p, r);
}

static const ProtobufCMessageDescriptor *type_of(uint8_t kind)
{
    switch (kind) {
    case COPY_HELLO:
        return &hadal__copy_hello__descriptor;
    case COPY_ACK:
        return &hadal__copy_ack__descriptor;
    case COPY_RECORD:
    case COPY_ASK:
        return &hadal__copy_record__descriptor;
    case COPY_WORD:
        return &hadal__copy_word__descriptor;
    case COPY_KNOCK:
        return &hadal__copy_knock__descriptor;
    case COPY_STATE:
        return &hadal__copy_state__descriptor;
    default:
        return NULL;
    }
}

enum status wire_decode_copy(struct wire_arena *a, const struct wire_frame *f, struct copy *out,
                             struct errmsg *err)
{
    const ProtobufCMessageDescriptor *type = type_of(f->type);
    if (!type)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "frame: %u is no type of copies", f->type);
    wire_arena_reset(a);
    const ProtobufCMessage *pb = wire_pb_unpack(a, type, f);
    if (!pb)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "%s: malformed protobuf of %u bytes",
                          type->short_name, f->body_n);
    struct wire_check c = {.arena = a, .message = type->short_name, .err = err};
    struct copy r = {.kind = (enum copy_kind)f->type};
    if (f->type == COPY_RECORD || f->type == COPY_ASK) {
        read_record(&c, (const Hadal__CopyRecord *)pb, &r.record);
        if (f->type == COPY_ASK && r.record.what != COPY_SUBMIT)
            wire_fail(&c, STATUS_LINK_PROTOCOL, "what: only a request can be asked for");
    } else if (f->type == COPY_WORD) {
        const Hadal__CopyWord *p = (const Hadal__CopyWord *)pb;
        wire_check_range(&c, "word", p->word, 0, COPY_WORD_TAKEN);
        r.word = (struct copy_word){p->request, (enum copy_word_kind)p->word};
    } else if (f->type == COPY_KNOCK) {
        ; // its coming is all
    } else if (f->type == COPY_STATE) {
        const Hadal__CopyState *p = (const Hadal__CopyState *)pb;
        wire_check_range(&c, "max_context", p->max_context, 0, LIMIT_CONTEXT);
        r.state = (struct copy_state){p->replicas, p->replicas_ready, p->max_context,
                                      p->credits_free, p->eta_ms};
    } else if (f->type == COPY_ACK) {
        r.ack = ((const Hadal__CopyAck *)pb)->seq;
    } else {
        r.hello.name = ((const Hadal__CopyHello *)pb)->name;
        r.hello.datacenter = ((const Hadal__CopyHello *)pb)->datacenter;
        r.hello.http = ((const Hadal__CopyHello *)pb)->http;
        r.hello.rpc = ((const Hadal__CopyHello *)pb)->rpc;
        wire_check_name(&c, "name", r.hello.name);
        if (*r.hello.datacenter)
            wire_check_name(&c, "datacenter", r.hello.datacenter);
        wire_check_string(&c, "http", r.hello.http, COPY_ADDRESS);
        wire_check_string(&c, "rpc", r.hello.rpc, COPY_ADDRESS);
    }
    if (!c.status)
        *out = r;
    return c.status;
}
