// The leader's side of several coordinators: records for the followers, what they ask for their
// clients, and how long clients wait for their acknowledgements.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/copy_inside.h"
#include "coordinator/far.h"

enum { STATE_US = 1000 * 1000 };

static struct copies_peer *find_peer(struct copies *c, uint64_t conn)
{
    for (uint32_t i = 0; i < c->peers_n; i++)
        if (c->peers[i].conn == conn)
            return &c->peers[i];
    return NULL;
}

// ---- records ------------------------------------------------------------------------------------

static void send_copy(struct copies *c, uint64_t conn, const struct copy *copy)
{
    strbuf_clear(&c->frame);
    if (wire_encode_copy(&c->arena, copy, &c->frame)) {
        log_error("coordinator: a record for the followers is too large; they are let go");
        for (uint32_t i = 0; i < c->peers_n; i++)
            rpc_close_conn(c->shell->rpc, c->peers[i].conn, "a record is too large");
        return;
    }
    for (uint32_t i = 0; i < c->peers_n; i++)
        if (!conn || c->peers[i].conn == conn)
            rpc_send_bytes(c->shell->rpc, c->peers[i].conn, c->frame.v, c->frame.n);
}

// To all followers.
void lead_record(struct copies *c, const struct copy_record *r)
{
    if (!c->peers_n)
        return;
    struct copy copy = {.kind = COPY_RECORD, .record = *r};
    copy.record.seq = copier_stamp(&c->copier);
    copy.record.epoch = coord_epoch(c->shell->core);
    send_copy(c, 0, &copy);
}

struct copy_record lead_submit_record(const struct coord_request_view *v, const struct live *l)
{
    struct copy_record r = copier_submit(v);
    r.head.api = l->head.kind;
    r.head.created = l->head.created;
    r.head.include_usage = l->head.include_usage;
    r.head.stop = l->stop;
    r.head.stop_n = l->stop_n;
    return r;
}

struct copy_record lead_tokens_record(const struct coord_request_view *v, const struct live *l,
                                      struct token_out **tokens)
{
    const struct answer *a = &l->answer;
    struct token_out *t = mem_zalloc(v->tokens_n + 1, sizeof *t);
    for (uint32_t i = 0; i < v->tokens_n; i++) {
        t[i] = (struct token_out){.request = v->id, .index = i, .token = v->tokens[i]};
        if (i >= a->lp_n)
            continue; // none was asked for, or clients have not seen it yet
        t[i].logprob = a->lp[i].value;
        t[i].top = a->top + a->lp[i].top_at;
        t[i].top_n = a->lp[i].top_n;
    }
    *tokens = t;
    return (struct copy_record){.what = COPY_TOKENS,
                                .request = v->id,
                                .tokens = t,
                                .tokens_n = v->tokens_n,
                                .fingerprint = v->fingerprint};
}

void copies_submitted(struct shell *s, uint64_t request)
{
    struct coord_request_view v;
    const struct live *l = shell_find_live(s, request);
    if (!s->copies || !s->copies->peers_n || s->copies->quiet || !l || !coord_request_find(s->core, request, &v) ||
        !v.prompt)
        return;
    struct copy_record r = lead_submit_record(&v, l);
    struct token_out *tokens = NULL;
    lead_record(s->copies, &r);
    r = lead_tokens_record(&v, l, &tokens); // of a restored one; others' follow
    if (r.tokens_n)
        lead_record(s->copies, &r);
    free(tokens);
}

// What an operator decided about a node outlives the leader too.
static bool mark_record(const struct coord_node_view *v, struct copy_record *r)
{
    *r = (struct copy_record){.what = COPY_MARK,
                              .node = v->name,
                              .mark = v->drain_ordered   ? COPY_MARK_DRAIN
                                      : v->eject_ordered ? COPY_MARK_EJECT
                                                         : COPY_MARK_NONE};
    return r->mark != COPY_MARK_NONE;
}

struct mark_search {
    struct copies *copies;
    const char *node;
};

static bool send_mark(void *arg, const struct coord_node_view *v)
{
    const struct mark_search *m = arg;
    struct copy_record r;
    if (strcmp(v->name, m->node))
        return true;
    mark_record(v, &r);
    lead_record(m->copies, &r);
    return false;
}

void copies_ordered(struct shell *s, const char *node)
{
    struct mark_search m = {s->copies, node};
    if (s->copies && s->copies->role == COPY_LEADER && s->copies->peers_n)
        coord_each_node(s->core, send_mark, &m);
}

// ---- what clients may see -----------------------------------------------------------------------

bool copies_hold_acceptance(struct shell *s, uint64_t request)
{
    return s->copies && s->copies->role == COPY_LEADER &&
           copier_hold(&s->copies->copier, &(struct coord_action){.kind = COORD_TOKENS,
                                                                  .tokens = {.request = request}});
}

static bool has_guest(const struct copies *c, uint64_t request)
{
    for (uint32_t i = 0; i < c->peers_n; i++)
        if (guests_has(&c->peers[i].guests, request))
            return true;
    return false;
}

bool copies_hold(struct shell *s, const struct coord_action *a)
{
    struct copies *c = s->copies;
    struct copy_record r;
    if (!c || c->role != COPY_LEADER)
        return false;
    if (far_mutes(c, a))
        return true; // for good
    if (c->peers_n && copier_record(a, &r)) {
        lead_record(c, &r);
    } else if (a->kind == COORD_QUEUED && has_guest(c, a->queued.request)) {
        r = (struct copy_record){.what = COPY_QUEUED,
                                 .request = a->queued.request,
                                 .position = a->queued.position,
                                 .eta_ms = a->queued.eta_ms};
        lead_record(c, &r);
    }
    return copier_hold(&c->copier, a);
}

void copies_orders(struct shell *s, const struct coord_action *a)
{
    struct copy_record r;
    if (!s->copies || s->copies->role != COPY_LEADER)
        return;
    if (s->copies->store)
        store_save(s->copies->store, a->state.text);
    if (s->copies->peers_n && copier_record(a, &r))
        lead_record(s->copies, &r);
}

void copies_told(struct shell *s, const struct coord_action *a)
{
    struct copies *c = s->copies;
    struct copy_record r;
    if (!c || c->role != COPY_LEADER || !copier_record_after(a, &r))
        return;
    lead_record(c, &r);
    for (uint32_t i = 0; i < c->peers_n; i++)
        guests_detach(&c->peers[i].guests, r.request);
}

void lead_release(struct copies *c)
{
    const struct coord_action *a;
    while ((a = copier_next(&c->copier)))
        shell_act_seen(c->shell, a);
}

// ---- followers ----------------------------------------------------------------------------------

struct telling {
    struct copies *copies;
    uint64_t conn;
};

static void tell_record(const struct telling *t, struct copy_record *r)
{
    r->epoch = coord_epoch(t->copies->shell->core);
    send_copy(t->copies, t->conn, &(struct copy){.kind = COPY_RECORD, .record = *r});
}

static bool tell_mark(void *arg, const struct coord_node_view *v)
{
    struct copy_record r;
    if (mark_record(v, &r))
        tell_record(arg, &r);
    return true;
}

static bool tell_request(void *arg, const struct coord_request_view *v)
{
    const struct telling *t = arg;
    const struct live *l = shell_find_live(t->copies->shell, v->id);
    if (!l || far_yielded(t->copies, v->id))
        return true;
    struct copy_record r = lead_submit_record(v, l);
    struct token_out *tokens = NULL;
    tell_record(t, &r);
    r = lead_tokens_record(v, l, &tokens);
    if (r.tokens_n)
        tell_record(t, &r);
    free(tokens);
    if (v->finish == FINISH_NONE)
        return true;
    r = (struct copy_record){.what = COPY_DONE,
                             .request = v->id,
                             .finish = v->finish,
                             .status = v->status,
                             .text = v->text,
                             .emitted_n = v->tokens_n,
                             .cached_n = v->cached_n};
    tell_record(t, &r);
    return true;
}

// What runs in another datacenter, to a follower of this one.
static void tell_foreign(void *arg, const struct shadow_request *q, uint32_t told_n)
{
    struct copy_record r = shadow_request_record(q);
    if (r.journal.emitted_n > told_n)
        r.journal.emitted_n = told_n;
    tell_record(arg, &r);
}

static void follower_came(struct copies *c, struct rpc_conn *conn, const struct copy_hello *h)
{
    bool far = *h->datacenter;
    if (far && !far_is_datacenter(c, h->datacenter)) {
        rpc_conn_close(conn, "of a datacenter that is not configured here");
        return;
    }
    if (c->peers_n == COPIER_PEERS) {
        rpc_conn_close(conn, "there are enough followers already");
        return;
    }
    struct copies_peer *p = &c->peers[c->peers_n++];
    *p = (struct copies_peer){.conn = conn->id};
    snprintf(p->name, sizeof p->name, "%s", h->name);
    snprintf(p->datacenter, sizeof p->datacenter, "%s", h->datacenter);
    snprintf(p->http, sizeof p->http, "%s", h->http);
    snprintf(p->rpc, sizeof p->rpc, "%s", h->rpc);
    conn->role = RPC_CONN_COPY;
    struct telling t = {c, conn->id};
    struct copy_record r = {.what = COPY_SYNCED};
    tell_record(&t, &(struct copy_record){.what = COPY_ORDERS, .text = coord_state(c->shell->core)});
    coord_each_node(c->shell->core, tell_mark, &t);
    coord_each_request(c->shell->core, tell_request, &t);
    if (!far)
        far_each(c, tell_foreign, &t);
    r.seq = copier_syncing(&c->copier, conn->id, far);
    tell_record(&t, &r);
    c->told_us = 0; // it is told how things are at the next tick
    log_info("coordinator: %s%s %s came", far ? "datacenter " : "follower", p->datacenter, p->name);
}

// A word about a request, wherever it runs.
static void tell_core(struct copies *c, enum coord_event_kind kind, uint64_t request)
{
    if (!far_word(c, kind, request))
        shell_step(c->shell, &(struct coord_event){.kind = kind, .req = {request, 0}});
}

// A request of a follower's client. The core may know it: then its record is on its way.
static void on_ask(struct copies *c, struct copies_peer *p, const struct copy_record *r)
{
    struct shell *s = c->shell;
    struct coord_request_view v;
    uint64_t deadline_us = r->deadline_ms ? shell_now_us() + r->deadline_ms * 1000ull : 0;
    if (far_knows(c, r->request) || coord_request_find(s->core, r->request, &v)) {
        if (guests_attach(&p->guests, r->request))
            tell_core(c, COORD_ATTACH, r->request);
        return;
    }
    if (!p->datacenter[0] && far_submit(c, r, deadline_us)) {
        guests_attach(&p->guests, r->request);
        return;
    }
    struct shadow_request *q = shadow_request_create(r);
    bool fresh = !q->restore.emitted_n;
    q->restore.submit.deadline_us = fresh ? deadline_us : 0;
    guests_attach(&p->guests, r->request);
    shell_restore(s, q, fresh);
    // A fresh one counts its client itself; after a restored one nobody is attached.
    if (!fresh)
        shell_step(s, &(struct coord_event){.kind = COORD_ATTACH, .req = {r->request, 0}});
    shadow_request_free(q);
}

static void on_word(struct copies *c, struct copies_peer *p, const struct copy_word *w)
{
    enum coord_event_kind kind = COORD_CANCEL;
    if (w->word == COPY_WORD_TAKEN) {
        if (p->datacenter[0])
            far_taken(c, p->datacenter, w->request);
        return;
    }
    if (w->word == COPY_WORD_ATTACH) {
        kind = COORD_ATTACH;
        if (!guests_attach(&p->guests, w->request))
            return;
    } else if (w->word == COPY_WORD_DETACH) {
        kind = COORD_DETACH;
        if (!guests_detach(&p->guests, w->request))
            return;
    }
    tell_core(c, kind, w->request);
}

void lead_frame(struct copies *c, struct rpc_conn *conn, const struct wire_frame *f)
{
    struct errmsg err = {0};
    struct copy copy;
    struct wire_arena arena = {0}; // what is done makes records in the other one
    struct copies_peer *p = find_peer(c, conn->id);
    if (wire_decode_copy(&arena, f, &copy, &err))
        rpc_conn_close(conn, err.text);
    else if (copy.kind == COPY_HELLO && conn->role == RPC_CONN_NEW)
        follower_came(c, conn, &copy.hello);
    else if (p && copy.kind == COPY_ACK) {
        copier_ack(&c->copier, p->conn, copy.ack);
        lead_release(c);
    } else if (p && copy.kind == COPY_ASK)
        on_ask(c, p, &copy.record);
    else if (p && copy.kind == COPY_WORD)
        on_word(c, p, &copy.word);
    else if (p && copy.kind == COPY_KNOCK)
        c->knocked_us = shell_now_us();
    else
        rpc_conn_close(conn, "a frame of coordinators that is out of place");
    wire_arena_finish(&arena);
}

void lead_conn_down(struct copies *c, uint64_t conn)
{
    struct copies_peer *p = find_peer(c, conn);
    if (!p)
        return;
    log_warn("coordinator: follower %s is gone", p->name);
    struct guests guests = p->guests;
    *p = c->peers[--c->peers_n];
    copier_lost(&c->copier, conn);
    for (uint64_t id; (id = guests_pop(&guests));)
        tell_core(c, COORD_DETACH, id);
    lead_release(c);
}

void lead_end(struct copies *c)
{
    while (c->peers_n) {
        struct copies_peer *p = &c->peers[--c->peers_n];
        rpc_close_conn(c->shell->rpc, p->conn, "this coordinator leads no more");
        while (guests_pop(&p->guests))
            ;
    }
    enum copy_mode mode = c->copier.mode;
    copier_finish(&c->copier); // clients hear of it from who leads now
    c->copier = (struct copier){.mode = mode};
}

// A follower that hangs must not hold the clients: it is let go, and comes back when it can.
static void drop_stuck(struct copies *c, uint64_t now_us)
{
    uint32_t limit_ms = c->shell->cfg->core.heartbeat_timeout_ms;
    uint64_t conn = copier_stuck(&c->copier, now_us, limit_ms);
    struct copies_peer *p = find_peer(c, conn);
    if (!p)
        return;
    log_warn("coordinator: follower %s has acknowledged nothing for %u ms", p->name, limit_ms);
    rpc_close_conn(c->shell->rpc, conn, "it acknowledges nothing");
}

static void tell_state(struct copies *c, uint64_t now_us)
{
    struct coord_stats st;
    coord_stats(c->shell->core, &st);
    const struct copy_state now = {st.replicas, st.replicas_ready, st.max_context,
                                   st.credits_free, st.eta_ms};
    if (now_us - c->told_us < STATE_US && !memcmp(&now, &c->told, sizeof now))
        return;
    c->told = now;
    c->told_us = now_us;
    send_copy(c, 0, &(struct copy){.kind = COPY_STATE, .state = now});
}

void lead_tick(struct copies *c, uint64_t now_us)
{
    if (!c->peers_n)
        return;
    drop_stuck(c, now_us);
    tell_state(c, now_us);
}
