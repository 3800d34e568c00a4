// A follower's link to the leader: connects, says HELLO, feeds follower.h with what comes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/copy_inside.h"
#include "proto/secure.h"

enum {
    KNOCK_MS = 300, // at most so often
    RETRY_MS = 50,
    CONNECT_MS = 2000,
    SILENT_MS = 3500, // a leader says STATE every second
};

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
    uint64_t heard_us;
    bool up, writing, closing;
    char buffer[64 << 10];
};

static void on_closed(uv_handle_t *h)
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

static void on_retry(uv_timer_t *t)
{
    follow_try(t->data);
}

static void uplink_drop(struct uplink *u, const char *why)
{
    struct copies *c = u->copies;
    if (u->closing)
        return;
    u->closing = true;
    if (u->up)
        log_warn("coordinator: follows %s no more: %s; %u requests are here", c->following, why,
                 c->follower.shadow.n);
    c->uplink = NULL;
    follower_down(&c->follower);
    uv_close((uv_handle_t *)&u->tcp, on_closed);
    if (c->role == COPY_FOLLOWER)
        uv_timer_start(&c->retry, on_retry, RETRY_MS, 0);
}

void follow_drop(struct copies *c, const char *why)
{
    if (c->uplink)
        uplink_drop(c->uplink, why);
    uv_timer_stop(&c->retry);
}

// ---- writing ------------------------------------------------------------------------------------

static void uplink_flush(struct uplink *u);

static void on_written(uv_write_t *w, int status)
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
    int rc = uv_write(&u->write, (uv_stream_t *)&u->tcp, &buf, 1, on_written);
    if (rc) {
        u->writing = false;
        uplink_drop(u, uv_strerror(rc));
    }
}

static void say(void *arg, const struct copy *copy)
{
    struct copies *c = arg;
    if (!c->uplink)
        return;
    struct wire_arena arena = {0}; // what is said may stand on what came, in c->arena
    if (wire_encode_copy(&arena, copy, &c->uplink->out))
        log_error("coordinator: a word to the leader is too large");
    wire_arena_finish(&arena);
    uplink_flush(c->uplink);
}

// ---- reading ------------------------------------------------------------------------------------

static enum status take(struct copies *c, const struct wire_frame *f, struct errmsg *err)
{
    struct copy copy;
    struct coord_action seen;
    bool sees = false;
    enum status st = wire_decode_copy(&c->arena, f, &copy, err);
    if (st)
        return st;
    if (copy.kind == COPY_STATE) {
        c->state = copy.state;
        shell_check_ready(c->shell);
        return STATUS_OK;
    }
    if (copy.kind != COPY_RECORD)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "a frame that leaders do not send");
    st = follower_take(&c->follower, &copy.record, shell_now_us(), &sees, &seen, err);
    if (!st && sees)
        shell_act_seen(c->shell, &seen);
    if (!st && copy.record.what == COPY_SYNCED) {
        log_info("coordinator: follows %s, %u requests are here", c->following,
                 c->follower.shadow.n);
        shell_end_unknown(c->shell);
    }
    return st;
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
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
    uint64_t before = c->follower.shadow.seq;
    u->heard_us = shell_now_us();
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
    while (!u->closing && !(st = wire_decoder_next(&u->in, &f, &err)) && !(st = take(c, &f, &err)))
        ;
    if (u->closing)
        return;
    if (st != STATUS_AGAIN)
        uplink_drop(u, err.text);
    else if (c->follower.shadow.synced && c->follower.shadow.seq != before)
        say(c, &(struct copy){.kind = COPY_ACK, .ack = c->follower.shadow.seq});
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
    struct uplink *u = h->data;
    *buf = uv_buf_init(u->buffer, sizeof u->buffer);
}

// ---- connecting ---------------------------------------------------------------------------------

static void on_connected(uv_connect_t *req, int rc)
{
    struct uplink *u = req->data;
    struct copies *c = u->copies;
    if (u->closing)
        return;
    if (!rc)
        rc = uv_read_start((uv_stream_t *)&u->tcp, on_alloc, on_read);
    if (rc) {
        uplink_drop(u, uv_strerror(rc));
        return;
    }
    char http[COPY_ADDRESS], rpc[COPY_ADDRESS];
    u->up = true;
    u->heard_us = shell_now_us();
    uv_tcp_nodelay(&u->tcp, 1);
    shell_own_address(c->shell, http, sizeof http, rpc, sizeof rpc);
    if (u->secure)
        secure_greet(u->secure, &u->wire);
    say(c, &(struct copy){.kind = COPY_HELLO, .hello = {c->shell->cfg->name, http, rpc}});
    follower_up(&c->follower);
}

void follow_try(struct copies *c)
{
    struct sockaddr_storage a;
    struct errmsg err = {0};
    if (c->uplink && strcmp(c->following, c->view.leader.name))
        uplink_drop(c->uplink, "another one leads now");
    if (c->role != COPY_FOLLOWER || c->uplink || c->shell->cfg->copies == COPY_OFF)
        return;
    bool mine = !strcmp(c->view.leader.name, c->shell->cfg->name); // as it was known last
    if (mine || !*c->view.leader.rpc ||
        shell_address("store: the leader's rpc", c->view.leader.rpc, &a, &err)) {
        if (err.text[0])
            log_warn("coordinator: %s", err.text);
        uv_timer_start(&c->retry, on_retry, RETRY_MS, 0);
        return;
    }
    struct uplink *u = mem_zalloc(1, sizeof *u);
    u->copies = c;
    u->heard_us = shell_now_us();
    snprintf(c->following, sizeof c->following, "%s", c->view.leader.name);
    wire_decoder_init(&u->in, 0);
    if (c->shell->domain)
        u->secure = secure_open(c->shell->domain, false);
    uv_tcp_init(&c->shell->loop, &u->tcp);
    u->tcp.data = u->connecting.data = u;
    c->uplink = u;
    int rc = uv_tcp_connect(&u->connecting, &u->tcp, (struct sockaddr *)&a, on_connected);
    if (rc)
        uplink_drop(u, uv_strerror(rc));
}

void follow_knock(struct copies *c)
{
    uint64_t now_us = shell_now_us();
    if (!follower_synced(&c->follower) || now_us - c->knock_told_us < KNOCK_MS * 1000ull)
        return;
    c->knock_told_us = now_us;
    say(c, &(struct copy){.kind = COPY_KNOCK});
}

void follow_open(struct copies *c)
{
    uv_timer_init(&c->shell->loop, &c->retry);
    c->retry.data = c;
    c->follower.say = say;
    c->follower.arg = c;
}

void follow_tick(struct copies *c, uint64_t now_us)
{
    uint64_t id;
    struct uplink *u = c->uplink;
    if (u && now_us - u->heard_us > (u->up ? SILENT_MS : CONNECT_MS) * 1000ull)
        uplink_drop(u, "it says nothing");
    while ((id = follower_overdue(&c->follower, now_us)))
        shell_act_seen(c->shell,
                       &(struct coord_action){
                           .kind = COORD_REFUSED,
                           .refused = {id, COORD_REFUSE_NO_CAPACITY, 1000,
                                       "no coordinator led before the deadline"}});
}
