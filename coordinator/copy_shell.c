// The libuv side of several coordinators. A standby holds a connection to the leader and a shadow
// of its requests; once the store says that it leads, it makes a core of its own and puts the
// shadow into it. A leader that learns that another leads ends: it comes back as a standby.
#include "coordinator/copy_shell.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "coordinator/rpc_shell.h"

enum { RETRY_MS = 100, WATCH_MS = 100 };

// To the leader.
struct uplink {
    uv_tcp_t tcp;
    uv_connect_t connecting;
    uv_write_t write;
    struct copies *copies;
    struct wire_decoder in;
    struct secure *secure; // owned; NULL: in the clear
    struct strbuf wire;    // of `secure`: sealed, not written yet
    struct strbuf plain;   // of one read
    struct strbuf out, sending;
    bool up, writing, closing;
    char buffer[64 << 10];
};

struct copies {
    struct shell *shell;
    struct store *store;
    uv_async_t news; // from the store's thread
    uv_timer_t retry;
    enum copy_role role;
    bool deposed;
    struct store_view view;
    struct wire_arena arena;
    // standby
    struct shadow shadow;
    struct uplink *uplink; // NULL: between two tries
    bool fresh;            // the next record is the first of a new connection
    // leader
    struct copier copier;
    uint64_t standby; // its connection; 0 = none
    uv_timer_t watch; // whether it acknowledges
    struct strbuf frame;
};

bool copies_serving(const struct shell *s)
{
    return !s->copies || s->copies->role == COPY_LEADER;
}

bool copies_deposed(const struct shell *s)
{
    return s->copies && s->copies->deposed;
}

const char *copies_leader_http(struct shell *s)
{
    return s->copies ? s->copies->view.leader.http : "";
}

// ---- the leader's side --------------------------------------------------------------------------

static void send_record(struct copies *c, struct copy_record *r)
{
    struct copy copy = {.kind = COPY_RECORD, .record = *r};
    copy.record.seq = copier_stamp(&c->copier);
    copy.record.epoch = coord_epoch(c->shell->core);
    strbuf_clear(&c->frame);
    if (wire_encode_copy(&c->arena, &copy, &c->frame)) {
        log_error("coordinator: a record for the standby is too large; it is let go");
        rpc_close_conn(c->shell->rpc, c->standby, "a record is too large");
        return;
    }
    rpc_send_bytes(c->shell->rpc, c->standby, c->frame.v, c->frame.n);
}

static void submit_record(struct copy_record *r, const struct coord_request_view *v,
                          const struct live *l)
{
    *r = (struct copy_record){.what = COPY_SUBMIT,
                              .request = v->id,
                              .tenant = v->tenant,
                              .model = v->model,
                              .pool = v->pool,
                              .session = v->session,
                              .fingerprint = v->fingerprint,
                              .journal = {.request = v->id,
                                          .prompt = v->prompt,
                                          .prompt_n = v->prompt_n,
                                          .emitted = v->tokens,
                                          .emitted_n = v->tokens_n,
                                          .max_tokens = v->max_tokens,
                                          .stop_ids_n = v->stop_ids_n,
                                          .band = v->band,
                                          .sampling = v->sampling},
                              .head = {.api = l->head.kind,
                                       .created = l->head.created,
                                       .include_usage = l->head.include_usage,
                                       .stop = l->stop,
                                       .stop_n = l->stop_n}};
    memcpy(r->journal.stop_ids, v->stop_ids, v->stop_ids_n * sizeof *v->stop_ids);
}

static bool copying(const struct shell *s)
{
    return s->copies && s->copies->standby;
}

void copies_submitted(struct shell *s, uint64_t request)
{
    struct coord_request_view v;
    const struct live *l = shell_find_live(s, request);
    if (!copying(s) || !l || !coord_request_find(s->core, request, &v) || !v.prompt)
        return;
    struct copy_record r;
    submit_record(&r, &v, l);
    r.journal.emitted_n = 0; // its tokens follow
    send_record(s->copies, &r);
}

bool copies_hold_acceptance(struct shell *s, uint64_t request)
{
    return s->copies && s->copies->role == COPY_LEADER &&
           copier_hold(&s->copies->copier, &(struct coord_action){.kind = COORD_TOKENS,
                                                                  .tokens = {.request = request}});
}

bool copies_hold(struct shell *s, const struct coord_action *a)
{
    struct copy_record r;
    if (!s->copies || s->copies->role != COPY_LEADER)
        return false;
    if (copying(s) && copier_record(a, &r))
        send_record(s->copies, &r);
    return copier_hold(&s->copies->copier, a);
}

void copies_told(struct shell *s, const struct coord_action *a)
{
    struct copy_record r;
    if (copying(s) && copier_record_after(a, &r))
        send_record(s->copies, &r);
}

static void release(struct copies *c)
{
    const struct coord_action *a;
    while ((a = copier_next(&c->copier)))
        shell_act_seen(c->shell, a);
}

static bool snapshot(void *arg, const struct coord_request_view *v)
{
    struct copies *c = arg;
    const struct live *l = shell_find_live(c->shell, v->id);
    if (!l || !v->prompt || v->finish != FINISH_NONE) // what is only kept has no prompt any more
        return true;
    struct copy_record r;
    submit_record(&r, v, l);
    send_record(c, &r);
    return true;
}

// A standby that hangs must not hold the clients: it is let go, and comes back when it can.
static void on_watch(uv_timer_t *t)
{
    struct copies *c = t->data;
    uint32_t limit_ms = c->shell->cfg->core.heartbeat_timeout_ms;
    if (!copier_stuck(&c->copier, shell_now_us(), limit_ms))
        return;
    log_warn("coordinator: the standby has acknowledged nothing for %u ms", limit_ms);
    rpc_close_conn(c->shell->rpc, c->standby, "it acknowledges nothing");
}

static void standby_came(struct copies *c, struct rpc_conn *conn, const char *hello_name)
{
    char name[LIMIT_NAME];
    snprintf(name, sizeof name, "%s", hello_name); // it lies in the arena that records are made in
    if (c->standby) {
        rpc_conn_close(conn, "there is a standby already");
        return;
    }
    conn->role = RPC_CONN_COPY;
    c->standby = conn->id;
    coord_each_request(c->shell->core, snapshot, c);
    struct copy_record r = {.what = COPY_SYNCED};
    send_record(c, &r);
    copier_syncing(&c->copier, c->copier.seq);
    uv_timer_start(&c->watch, on_watch, WATCH_MS, WATCH_MS);
    log_info("coordinator: standby %s came, gets %llu records", name,
             (unsigned long long)c->copier.seq);
}

void copies_frame(struct shell *s, struct rpc_conn *conn, const struct wire_frame *f)
{
    struct copies *c = s->copies;
    struct errmsg err = {0};
    struct copy copy;
    if (!c || c->role != COPY_LEADER || c->shell->cfg->copies == COPY_OFF) {
        rpc_conn_close(conn, "no copies are made here");
        return;
    }
    if (wire_decode_copy(&c->arena, f, &copy, &err)) {
        rpc_conn_close(conn, err.text);
        return;
    }
    if (copy.kind == COPY_HELLO && conn->role == RPC_CONN_NEW) {
        standby_came(c, conn, copy.hello.name);
    } else if (copy.kind == COPY_ACK && conn->id == c->standby) {
        copier_ack(&c->copier, copy.ack);
        release(c);
    } else {
        rpc_conn_close(conn, "a frame of copies that is out of place");
    }
}

void copies_conn_down(struct shell *s, const struct rpc_conn *conn)
{
    struct copies *c = s->copies;
    if (!c || !c->standby || c->standby != conn->id)
        return;
    log_warn("coordinator: the standby is gone: until one comes, nothing is copied");
    c->standby = 0;
    uv_timer_stop(&c->watch);
    copier_lost(&c->copier);
    release(c);
}

// ---- the standby's side -------------------------------------------------------------------------

static void on_uplink_closed(uv_handle_t *h)
{
    struct uplink *u = h->data;
    wire_decoder_finish(&u->in);
    secure_close(u->secure);
    strbuf_finish(&u->wire);
    strbuf_finish(&u->plain);
    strbuf_finish(&u->out);
    strbuf_finish(&u->sending);
    free(u);
}

static void uplink_try(struct copies *c);

static void on_retry(uv_timer_t *t)
{
    uplink_try(t->data);
}

static void uplink_drop(struct uplink *u, const char *why)
{
    struct copies *c = u->copies;
    if (u->closing)
        return;
    u->closing = true;
    if (u->up)
        log_warn("coordinator: the leader's copies end: %s; %u requests are here", why,
                 c->shadow.n);
    c->uplink = NULL;
    uv_close((uv_handle_t *)&u->tcp, on_uplink_closed);
    if (c->role == COPY_STANDBY)
        uv_timer_start(&c->retry, on_retry, RETRY_MS, 0);
}

static void uplink_flush(struct uplink *u);

static void on_uplink_written(uv_write_t *w, int status)
{
    struct uplink *u = w->data;
    u->writing = false;
    if (status < 0)
        uplink_drop(u, uv_strerror(status));
    else
        uplink_flush(u);
}

static void uplink_flush(struct uplink *u)
{
    if (u->writing || u->closing)
        return;
    struct strbuf *next = &u->out;
    if (u->secure) {
        if (u->out.n && secure_seal(u->secure, u->out.v, u->out.n, &u->wire) == STATUS_OK)
            strbuf_clear(&u->out);
        next = &u->wire;
    }
    if (!next->n)
        return;
    struct strbuf swap = u->sending;
    u->sending = *next;
    *next = swap;
    strbuf_clear(next);
    uv_buf_t buf = uv_buf_init(u->sending.v, (unsigned)u->sending.n);
    u->write.data = u;
    u->writing = true;
    int rc = uv_write(&u->write, (uv_stream_t *)&u->tcp, &buf, 1, on_uplink_written);
    if (rc) {
        u->writing = false;
        uplink_drop(u, uv_strerror(rc));
    }
}

static void uplink_say(struct uplink *u, const struct copy *copy)
{
    if (wire_encode_copy(&u->copies->arena, copy, &u->out))
        log_error("coordinator: a word to the leader is too large");
    uplink_flush(u);
}

static enum status take(struct copies *c, const struct wire_frame *f, struct errmsg *err)
{
    struct copy copy;
    enum status st = wire_decode_copy(&c->arena, f, &copy, err);
    if (!st && copy.kind != COPY_RECORD)
        st = errmsg_set(err, STATUS_LINK_PROTOCOL, "a frame that leaders do not send");
    if (st)
        return st;
    if (c->fresh) // only now: until then the old one is the best there is
        shadow_clear(&c->shadow);
    c->fresh = false;
    return shadow_take(&c->shadow, &copy.record, err);
}

static void on_uplink_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct uplink *u = stream->data;
    struct copies *c = u->copies;
    struct errmsg err = {0};
    struct wire_frame f;
    if (n == 0 || u->closing)
        return;
    if (n < 0) {
        uplink_drop(u, uv_strerror((int)n));
        return;
    }
    uint64_t before = c->fresh ? 0 : c->shadow.seq;
    enum status st = STATUS_OK;
    if (u->secure) {
        strbuf_clear(&u->plain);
        st = secure_feed(u->secure, buf->base, (size_t)n, &u->plain, &u->wire, &err);
        uplink_flush(u);
        if (st != STATUS_OK) {
            log_warn("coordinator: the leader at %s: %s", c->view.leader.rpc, err.text);
            uplink_drop(u, err.text);
            return;
        }
        if (u->plain.n)
            wire_decoder_feed(&u->in, u->plain.v, u->plain.n);
    } else {
        wire_decoder_feed(&u->in, buf->base, (size_t)n);
    }
    while (!(st = wire_decoder_next(&u->in, &f, &err)) && !(st = take(c, &f, &err)))
        ;
    if (st != STATUS_AGAIN)
        uplink_drop(u, err.text);
    else if (!c->fresh && c->shadow.seq != before)
        uplink_say(u, &(struct copy){.kind = COPY_ACK, .ack = c->shadow.seq});
}

static void on_uplink_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
    struct uplink *u = h->data;
    *buf = uv_buf_init(u->buffer, sizeof u->buffer);
}

static void on_uplink_connected(uv_connect_t *req, int rc)
{
    struct uplink *u = req->data;
    if (u->closing)
        return;
    if (!rc)
        rc = uv_read_start((uv_stream_t *)&u->tcp, on_uplink_alloc, on_uplink_read);
    if (rc) {
        uplink_drop(u, uv_strerror(rc));
        return;
    }
    u->up = true;
    u->copies->fresh = true;
    uv_tcp_nodelay(&u->tcp, 1);
    log_info("coordinator: standby of %s", u->copies->view.leader.name);
    if (u->secure)
        secure_greet(u->secure, &u->wire);
    uplink_say(u, &(struct copy){.kind = COPY_HELLO, .hello = {u->copies->shell->cfg->name}});
}

static void uplink_try(struct copies *c)
{
    struct sockaddr_storage a;
    struct errmsg err = {0};
    if (c->role != COPY_STANDBY || c->uplink)
        return;
    if (!*c->view.leader.rpc ||
        shell_address("store: the leader's rpc", c->view.leader.rpc, &a, &err)) {
        if (err.text[0])
            log_warn("coordinator: %s", err.text);
        uv_timer_start(&c->retry, on_retry, RETRY_MS, 0);
        return;
    }
    struct uplink *u = mem_zalloc(1, sizeof *u);
    u->copies = c;
    wire_decoder_init(&u->in, 0);
    if (c->shell->domain)
        u->secure = secure_open(c->shell->domain, false);
    uv_tcp_init(&c->shell->loop, &u->tcp);
    u->tcp.data = u->connecting.data = u;
    c->uplink = u;
    int rc = uv_tcp_connect(&u->connecting, &u->tcp, (struct sockaddr *)&a, on_uplink_connected);
    if (rc)
        uplink_drop(u, uv_strerror(rc));
}

// ---- succession ---------------------------------------------------------------------------------

static void restore(struct copies *c)
{
    struct shadow_request *q, *next;
    HASH_ITER(hh, c->shadow.requests, q, next)
    shell_restore(c->shell, q);
}

static void lead(struct copies *c)
{
    struct errmsg err = {0};
    c->role = COPY_LEADER;
    uv_timer_stop(&c->retry);
    if (c->uplink)
        uplink_drop(c->uplink, "this one leads now");
    log_info("coordinator: %s leads now, with %u requests of the one before", c->view.leader.name,
             c->shadow.n);
    if (shell_new_core(c->shell, c->shadow.epoch, &err)) {
        log_error("coordinator: %s", err.text);
        c->deposed = true;
        return;
    }
    restore(c);
    shadow_clear(&c->shadow);
}

static void on_news(uv_async_t *a)
{
    struct copies *c = a->data;
    store_look(c->store, &c->view);
    if (c->view.leads && c->role == COPY_STANDBY) {
        lead(c);
    } else if (!c->view.leads && c->role == COPY_LEADER && !c->deposed) {
        log_error("coordinator: %s leads now: this one ends",
                  *c->view.leader.name ? c->view.leader.name : "another one");
        c->deposed = true;
    } else if (c->role == COPY_STANDBY) {
        uplink_try(c);
    }
    if (c->deposed)
        uv_stop(&c->shell->loop);
}

static void on_store(void *arg)
{
    struct copies *c = arg;
    uv_async_send(&c->news);
}

enum status copies_open(struct shell *s, struct errmsg *err)
{
    const struct coordinator_config *cfg = s->cfg;
    if (!cfg->store)
        return STATUS_OK;
    struct copies *c = mem_zalloc(1, sizeof *c);
    c->shell = s;
    c->role = COPY_STANDBY;
    c->copier.mode = cfg->copies;
    uv_async_init(&s->loop, &c->news, on_news);
    uv_timer_init(&s->loop, &c->retry);
    uv_timer_init(&s->loop, &c->watch);
    c->news.data = c->retry.data = c->watch.data = c;
    s->copies = c;
    struct store_args args = {.url = cfg->store,
                              .cluster = cfg->cluster,
                              .lease_ms = cfg->lease_ms,
                              .changed = on_store,
                              .arg = c};
    snprintf(args.me.name, sizeof args.me.name, "%s", cfg->name);
    shell_own_address(s, args.me.http, sizeof args.me.http, args.me.rpc, sizeof args.me.rpc);
    return store_open(&args, &c->store, err);
}

void copies_close(struct copies *c)
{
    if (!c)
        return;
    store_close(c->store);
    copier_finish(&c->copier);
    shadow_clear(&c->shadow);
    wire_arena_finish(&c->arena);
    strbuf_finish(&c->frame);
    free(c); // its handles go with the process
}
