// Who leads, and what happens when that changes. A follower that is to lead makes a core of its own
// and puts into it all that it was told of. A leader that learns that another one leads, or that it
// cannot know any more, becomes a follower: what it has goes to the next leader as any follower's
// requests do.
#include "coordinator/copy_shell.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "coordinator/copy_inside.h"
#include "coordinator/far.h"

enum {
    WATCH_MS = 100,
    ALONE_MS = 6 * 1000, // without a leader for longer, clients are sent away
    NODELESS_MS = 2500,  // no node here, and nodes elsewhere, for so long
    KNOCK_AGAIN_MS = 1000, // more than once
    KNOCK_GAP_MS = 5000, // a node tries each coordinator in turn, for 2 s
};

bool copies_leading(const struct shell *s)
{
    return !s->copies || s->copies->role == COPY_LEADER;
}

bool copies_serving(const struct shell *s)
{
    return copies_leading(s) || s->cfg->copies != COPY_OFF;
}

bool copies_unsure(const struct shell *s)
{
    if (copies_leading(s))
        return s->copies && far_unsure(s->copies);
    return !follower_synced(&s->copies->follower);
}

bool copies_elsewhere(const struct shell *s)
{
    return !copies_leading(s) && s->cfg->datacenters_n;
}

const char *copies_leader_http(struct shell *s)
{
    return s->copies && !copies_leading(s) ? s->copies->view.leader.http : "";
}

void copies_state(const struct shell *s, uint32_t *replicas, uint32_t *replicas_ready)
{
    struct coord_stats st;
    coord_stats(s->core, &st);
    *replicas = st.replicas;
    *replicas_ready = st.replicas_ready;
    if (!copies_leading(s))
        *replicas_ready = copies_unsure(s) ? 0 : s->copies->state.replicas_ready;
}

bool copies_relieved(const struct shell *s)
{
    const struct copies *c = s->copies;
    for (uint32_t i = 0; c && c->role == COPY_LEADER && i < c->copier.peers_n; i++)
        if (c->copier.peers[i].synced && !c->copier.peers[i].far)
            return true;
    return c && c->role == COPY_FOLLOWER;
}

// ---- clients of a follower ----------------------------------------------------------------------

bool copies_submit(struct shell *s, const struct live *l, uint64_t deadline_us)
{
    if (!s->copies)
        return false;
    const struct coord_submit *q = &l->submit;
    struct copy_record r = {
        .what = COPY_SUBMIT,
        .request = l->request,
        .tenant = q->tenant,
        .model = q->model,
        .pool = q->pool,
        .session = q->session,
        .journal = {.request = l->request,
                    .prompt = q->prompt,
                    .prompt_n = q->prompt_n,
                    .max_tokens = q->max_tokens,
                    .stop_ids_n = q->stop_ids_n,
                    .band = q->band,
                    .sampling = q->sampling},
        .head = {.api = l->head.kind,
                 .created = l->head.created,
                 .include_usage = l->head.include_usage,
                 .stop = l->stop,
                 .stop_n = l->stop_n},
    };
    memcpy(r.journal.stop_ids, q->stop_ids, sizeof r.journal.stop_ids);
    if (copies_leading(s))
        return far_submit(s->copies, &r, deadline_us);
    struct follower *f = &s->copies->follower;
    uint64_t alone_us = s->copies->alone_us, now_us = shell_now_us();
    if (alone_us && now_us - alone_us > ALONE_MS * 1000ull) {
        shell_act_seen(s, &(struct coord_action){
                              .kind = COORD_REFUSED,
                              .refused = {l->request, COORD_REFUSE_NO_CAPACITY, 2000,
                                          "no coordinator leads, or it does not answer this one"}});
        return true;
    }
    if (f->asks.n >= s->cfg->core.queue_limit) {
        shell_act_seen(s, &(struct coord_action){
                              .kind = COORD_REFUSED,
                              .refused = {l->request, COORD_REFUSE_QUEUE_FULL, 2000,
                                          "too many requests wait for a coordinator to lead"}});
        return true;
    }
    follower_submit(f, &r, deadline_us, now_us);
    return true;
}

bool copies_request(struct shell *s, enum coord_event_kind kind, uint64_t request)
{
    if (copies_leading(s))
        return s->copies && far_word(s->copies, kind, request);
    struct follower *f = &s->copies->follower;
    if (kind == COORD_ATTACH)
        follower_attach(f, request);
    else if (kind == COORD_DETACH)
        follower_detach(f, request);
    else if (kind == COORD_CANCEL)
        follower_cancel(f, request);
    return true; // a stop string the leader finds itself
}

const struct shadow_request *copies_find(struct shell *s, uint64_t request)
{
    if (copies_leading(s))
        return s->copies ? far_find(s->copies, request) : NULL;
    return follower_find(&s->copies->follower, request);
}

bool copies_knows(const struct shell *s, uint64_t request)
{
    struct coord_request_view v;
    if (copies_leading(s))
        return coord_request_find(s->core, request, &v) ||
               (s->copies && far_knows(s->copies, request));
    const struct follower *f = &s->copies->follower;
    return follower_find(f, request) || shadow_find(&f->asks, request);
}

// ---- connections --------------------------------------------------------------------------------

void copies_frame(struct shell *s, struct rpc_conn *conn, const struct wire_frame *f)
{
    struct copies *c = s->copies;
    if (!c || c->role != COPY_LEADER || s->cfg->copies == COPY_OFF)
        rpc_conn_close(conn, c && c->role == COPY_FOLLOWER ? NULL : "no copies are made here");
    else
        lead_frame(c, conn, f);
}

void copies_knocked(struct shell *s)
{
    if (s->copies && s->copies->role == COPY_FOLLOWER)
        follow_knock(s->copies);
}

void copies_conn_down(struct shell *s, const struct rpc_conn *conn)
{
    if (s->copies && s->copies->role == COPY_LEADER)
        lead_conn_down(s->copies, conn->id);
}

// ---- succession ---------------------------------------------------------------------------------

static void take_mark(void *arg, const struct shadow_mark *m)
{
    struct copies *c = arg;
    shell_step(c->shell,
               &(struct coord_event){
                   .kind = COORD_RESTORE_MARK,
                   .admin = {.op = m->mark == COPY_MARK_DRAIN ? COORD_DRAIN : COORD_EJECT,
                             .target = m->node}});
}

static void take_request(void *arg, const struct shadow_request *q, bool fresh)
{
    struct copies *c = arg;
    uint64_t id = q->restore.submit.request;
    shell_restore(c->shell, q, fresh);
    if (fresh) // those who read it are told next
        shell_step(c->shell, &(struct coord_event){.kind = COORD_DETACH, .req = {id, 0}});
}

static void take_reads(void *arg, uint64_t request, uint32_t clients, bool cancel)
{
    struct copies *c = arg;
    for (uint32_t i = 0; i < clients; i++)
        shell_step(c->shell, &(struct coord_event){.kind = COORD_ATTACH, .req = {request, 0}});
    if (cancel)
        shell_step(c->shell, &(struct coord_event){.kind = COORD_CANCEL, .req = {request, 0}});
}

static void lead(struct copies *c)
{
    struct errmsg err = {0};
    uint64_t epoch = c->follower.shadow.epoch > c->follower.before.epoch
                         ? c->follower.shadow.epoch
                         : c->follower.before.epoch;
    follow_drop(c, "this one leads now");
    c->role = COPY_LEADER;
    c->alone_us = 0;
    c->takeovers++;
    log_info("coordinator: %s leads now, with %u requests of the one before",
             c->shell->cfg->name, c->follower.shadow.n + c->follower.before.n);
    char *kept = store_saved(c->store); // the newer of what the store and the leader before told
    const char *told = follower_state(&c->follower);
    const char *state = coord_state_revision(kept) > coord_state_revision(told) ? kept : told;
    if (shell_new_core(c->shell, epoch, state, &err)) { // it was made from the same settings at the start
        log_error("coordinator: %s", err.text);
        abort();
    }
    free(kept);
    const struct follower_heir heir = {take_mark, take_request, take_reads, c};
    follower_inherit(&c->follower, &heir);
    shell_end_unknown(c->shell);
}

static bool keep_request(void *arg, const struct coord_request_view *v)
{
    struct copies *c = arg;
    const struct live *l = shell_find_live(c->shell, v->id);
    if (!l || shadow_find(&c->follower.shadow, v->id))
        return true;
    struct copy_record r = lead_submit_record(v, l);
    struct token_out *tokens = NULL;
    struct shadow_request *q = shadow_request_create(&r);
    r = lead_tokens_record(v, l, &tokens);
    shadow_request_tokens(q, &r);
    free(tokens);
    q->restore.finish = v->finish;
    q->restore.status = v->status;
    shadow_put(&c->follower.shadow, q);
    return true;
}

// The core goes; its nodes look for who leads now, and so does this one. What clients here read, and
// what nobody reads at the moment, is asked of the next leader, should that one not know it.
static void follow(struct copies *c, const char *why)
{
    struct errmsg err = {0};
    struct shell *s = c->shell;
    log_error("coordinator: %s: this one follows", why);
    uint64_t epoch = coord_epoch(s->core);
    shadow_clear(&c->follower.shadow);
    coord_each_request(s->core, keep_request, c);
    c->follower.shadow.synced = true;
    c->follower.shadow.epoch = epoch;
    c->follower.offer_all = true;
    far_end(c);
    lead_end(c);
    c->role = COPY_FOLLOWER;
    c->state = (struct copy_state){0};
    shell_each_read(s, follower_attach, &c->follower);
    rpc_close_nodes(s->rpc);
    if (shell_new_core(s, epoch, NULL, &err)) {
        log_error("coordinator: %s", err.text);
        abort();
    }
    follow_try(c);
}

// The lease has run out as far as this leader can know, and the store cannot be asked. Is one of
// those that might lead now out of its sight? One that follows does not lead.
static const char *out_of_sight(const struct copies *c)
{
    const struct copier_peer *peer;
    for (uint32_t i = 0; i < c->view.members_n; i++) {
        const char *name = c->view.members[i].name;
        bool seen = !strcmp(name, c->shell->cfg->name);
        for (uint32_t k = 0; k < c->peers_n && !seen; k++)
            seen = !strcmp(c->peers[k].name, name) &&
                   (peer = copier_peer(&c->copier, c->peers[k].conn)) && peer->synced;
        if (!seen)
            return name;
    }
    return NULL;
}

static void check_lease(struct copies *c)
{
    char why[LIMIT_NAME + 120];
    const char *name = c->view.lapsed ? out_of_sight(c) : NULL;
    if (!name)
        return;
    snprintf(why, sizeof why, "the lease has run out, the store cannot be reached, and %s may lead",
             name);
    store_yield(c->store);
    c->view.leads = false;
    follow(c, why);
}

// Nodes that cannot reach the leader look for it at the others; with none at all it is of no use.
static void check_nodes(struct copies *c, uint64_t now_us)
{
    struct coord_stats st;
    coord_stats(c->shell->core, &st);
    bool sought = c->knocked_us && now_us - c->knocked_us < KNOCK_GAP_MS * 1000ull;
    if (st.nodes || !sought || !c->store)
        c->knocks_us = 0;
    else if (!c->knocks_us)
        c->knocks_us = now_us;
    else if (now_us - c->knocks_us > NODELESS_MS * 1000ull &&
             c->knocked_us > c->knocks_us + KNOCK_AGAIN_MS * 1000ull) {
        c->knocks_us = c->knocked_us = 0;
        store_yield(c->store);
        c->view.leads = false;
        follow(c, "no node reaches this coordinator, and nodes look for one elsewhere");
    }
}

static void on_news(uv_async_t *a)
{
    struct copies *c = a->data;
    store_look(c->store, &c->view);
    if (c->view.leads && c->role == COPY_FOLLOWER) {
        lead(c);
    } else if (!c->view.leads && c->role == COPY_LEADER) {
        char why[LIMIT_NAME + 20];
        snprintf(why, sizeof why, "%s leads now",
                 *c->view.leader.name ? c->view.leader.name : "another one");
        follow(c, why);
    } else if (c->role == COPY_FOLLOWER) {
        follow_try(c);
    }
}

static void on_store(void *arg)
{
    struct copies *c = arg;
    uv_async_send(&c->news);
}

static void on_watch(uv_timer_t *t)
{
    struct copies *c = t->data;
    uint64_t now_us = shell_now_us();
    if (c->role == COPY_LEADER) {
        lead_tick(c, now_us);
        far_tick(c, now_us);
        check_lease(c);
        if (c->role == COPY_LEADER)
            check_nodes(c, now_us);
    } else {
        follow_tick(c, now_us);
        if (follower_synced(&c->follower))
            c->alone_us = 0;
        else if (!c->alone_us)
            c->alone_us = now_us;
        if (c->alone_us && now_us - c->alone_us > ALONE_MS * 1000ull && !c->shed) {
            log_warn("coordinator: no leader answers: clients may try another coordinator");
            shell_shed(c->shell);
            c->shed = true;
        }
        c->shed = c->shed && c->alone_us;
    }
}

enum status copies_open(struct shell *s, struct errmsg *err)
{
    const struct coordinator_config *cfg = s->cfg;
    if (!cfg->store && !cfg->datacenters_n)
        return STATUS_OK;
    struct copies *c = mem_zalloc(1, sizeof *c);
    c->shell = s;
    c->role = cfg->store ? COPY_FOLLOWER : COPY_LEADER; // without one it is alone in its datacenter
    c->copier.mode = cfg->copies;
    uv_async_init(&s->loop, &c->news, on_news);
    uv_timer_init(&s->loop, &c->watch);
    c->news.data = c->watch.data = c;
    follow_open(c);
    far_open(c);
    uv_timer_start(&c->watch, on_watch, WATCH_MS, WATCH_MS);
    s->copies = c;
    if (!cfg->store)
        return STATUS_OK;
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
    far_close(c);
    lead_end(c);
    follower_finish(&c->follower);
    wire_arena_finish(&c->arena);
    strbuf_finish(&c->frame);
    c->shell->copies = NULL;
    free(c); // its handles go with the process
}

// ---- views --------------------------------------------------------------------------------------

static void put_one(struct strbuf *out, const char *name, const char *http, const char *rpc,
                    const char *role)
{
    strbuf_puts(out, out->v[out->n - 1] == '[' ? "{\"name\":" : ",{\"name\":");
    strbuf_json(out, name, strlen(name));
    strbuf_puts(out, ",\"http\":");
    strbuf_json(out, http, strlen(http));
    strbuf_puts(out, ",\"rpc\":");
    strbuf_json(out, rpc, strlen(rpc));
    strbuf_printf(out, ",\"role\":\"%s\"", role);
}

void copies_json(struct shell *s, struct strbuf *out)
{
    const struct copies *c = s->copies;
    char http[COPY_ADDRESS], rpc[COPY_ADDRESS];
    shell_own_address(s, http, sizeof http, rpc, sizeof rpc);
    strbuf_puts(out, "{\"coordinators\":[");
    put_one(out, s->cfg->name, http, rpc,
            copies_leading(s)  ? "leader"
            : copies_unsure(s) ? "looks for the leader"
                               : "follower");
    strbuf_printf(out, ",\"this\":true,\"takeovers\":%llu}",
                  (unsigned long long)(c ? c->takeovers : 0));
    for (uint32_t i = 0; c && c->role == COPY_LEADER && i < c->peers_n; i++) {
        const struct copies_peer *p = &c->peers[i];
        const struct copier_peer *k = copier_peer(&c->copier, p->conn);
        put_one(out, p->name, p->http, p->rpc, *p->datacenter ? "copies only" : "follower");
        strbuf_printf(out, ",\"this\":false,\"synced\":%s,\"behind\":%llu}",
                      k && k->synced ? "true" : "false",
                      (unsigned long long)(k ? c->copier.seq - k->acked : 0));
    }
    strbuf_puts(out, "]");
    if (c)
        far_json(c, out);
    strbuf_puts(out, "}\n");
}

void copies_metrics(struct shell *s, struct strbuf *out)
{
    const struct copies *c = s->copies;
    strbuf_printf(out,
                  "# HELP hadal_coordinator_leads This coordinator leads.\n"
                  "# TYPE hadal_coordinator_leads gauge\nhadal_coordinator_leads %d\n",
                  copies_leading(s));
    if (!c)
        return;
    uint64_t behind = 0;
    for (uint32_t i = 0; i < c->copier.peers_n; i++)
        if (c->copier.seq - c->copier.peers[i].acked > behind)
            behind = c->copier.seq - c->copier.peers[i].acked;
    strbuf_printf(out,
                  "# HELP hadal_coordinator_followers Coordinators that follow this one.\n"
                  "# TYPE hadal_coordinator_followers gauge\nhadal_coordinator_followers %u\n"
                  "# HELP hadal_copies_behind Records that the slowest follower has not "
                  "acknowledged.\n"
                  "# TYPE hadal_copies_behind gauge\nhadal_copies_behind %llu\n"
                  "# HELP hadal_copies_held Actions that wait for followers.\n"
                  "# TYPE hadal_copies_held gauge\nhadal_copies_held %u\n"
                  "# HELP hadal_coordinator_takeovers_total Times that this one began to lead.\n"
                  "# TYPE hadal_coordinator_takeovers_total counter\n"
                  "hadal_coordinator_takeovers_total %llu\n"
                  "# HELP hadal_store_reachable The store answers.\n"
                  "# TYPE hadal_store_reachable gauge\nhadal_store_reachable %d\n",
                  c->peers_n, (unsigned long long)behind, c->copier.held_n,
                  (unsigned long long)c->takeovers, !c->store || c->view.reachable);
    far_metrics(c, out);
}
