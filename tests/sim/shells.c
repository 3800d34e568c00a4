// The two shells: what the libuv shells of coordinator and node do in production is done here, and
// after every step the invariants are checked.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tests/sim/world.h"

// ---- the coordinator's shell ----

// Where the right answer is known, nobody serves who has not given it: no replica without a probe,
// and none with a rank that has lied since before the probe began.
static void check_proven(struct world *w, const struct coord_replica_view *v)
{
    const struct coord_config *k = &w->opt.coord;
    bool serves = v->state == COORD_REPLICA_READY && w->ready_us[v->id] == UINT64_MAX;
    uint64_t proving = w->proving_us[v->id];
    if (v->state == COORD_REPLICA_PROVING)
        w->proving_us[v->id] = v->state_since_us;
    else if (v->state != COORD_REPLICA_DRAINING)
        w->proving_us[v->id] = 0;
    if (!k->probe_prompt_n || !serves || w->was_draining[v->id])
        return;
    if (!proving)
        world_fail(w, "replica %" PRIu64 " serves without a golden probe", v->id);
    for (uint32_t i = 0; i < v->stages * v->tensor && k->probe_expect && w->lies_n; i++) {
        const struct sim_node *n = &w->nodes[atoi(v->nodes[i]) - 1];
        if (n->lies_us && n->lies_us <= proving)
            world_fail(w, "replica %" PRIu64 " serves, and node %s lies", v->id, n->name);
    }
}

static bool note_replica(void *arg, const struct coord_replica_view *v)
{
    struct world *w = arg;
    check_proven(w, v);
    w->was_draining[v->id] = v->state == COORD_REPLICA_DRAINING;
    if (w->epochs[v->id] != v->epoch) {
        w->lied_step[v->id] = w->lied[v->id] ? w->steps : 0; // its last words are being told
        w->lied[v->id] = false;
    }
    w->epochs[v->id] = v->epoch;
    for (uint32_t i = 0; i < v->stages * v->tensor && w->lies_n; i++)
        if (v->nodes[i] && w->nodes[atoi(v->nodes[i]) - 1].lies_us)
            w->lied[v->id] = true;
    if (w->lied[v->id])
        w->lied_us = w->now_us;
    w->max_seqs[v->id] = v->credits;
    w->ready_us[v->id] = v->state == COORD_REPLICA_READY ? v->state_since_us : UINT64_MAX;
    if (v->running > v->credits && v->credits)
        world_fail(w, "replica %" PRIu64 " has %u requests and %u credits", v->id, v->running,
                   v->credits);
    return true;
}

static void world_views(struct world *w)
{
    if (!w->coord)
        return;
    coord_each_replica(w->coord, note_replica, w);
}

// A node that cannot be heard must not count as serving for longer than the heartbeat timeout.
static bool check_heard(void *arg, const struct coord_node_view *v)
{
    struct world *w = arg;
    const struct sim_node *n = &w->nodes[atoi(v->name) - 1];
    if (!v->replica || n->mute_since_us == UINT64_MAX || w->ready_us[v->replica] == UINT64_MAX)
        return true;
    uint64_t ready = w->ready_us[v->replica];
    uint64_t since = n->mute_since_us > ready ? n->mute_since_us : ready;
    uint64_t slack = SIM_MS(150) + w->opt.delay_max_us;
    if (w->now_us > since + SIM_MS(w->opt.coord.heartbeat_timeout_ms) + slack)
        world_fail(w, "node %s is unheard of since %" PRIu64 " ms, and replica %" PRIu64 " serves",
                   v->name, n->mute_since_us / 1000, v->replica);
    return true;
}

// What FORM says of a node that weights may be read from is true as far as the coordinator can know:
// it is another node, connected, not under suspicion, and the address is that of its last process.
struct source_check {
    struct world *w;
    const struct msg_form *form;
    uint64_t conn; // whom it is told
};

static bool check_source(void *arg, const struct coord_node_view *v)
{
    struct source_check *k = arg;
    char address[64];
    snprintf(address, sizeof address, "%s:%" PRIu64, v->name, v->incarnation);
    for (uint32_t i = 0; i < k->form->sources_n; i++) {
        const struct weight_source *s = &k->form->sources[i];
        if (strcmp(s->name, v->name) != 0)
            continue;
        k->w->sources_named++;
        bool good = v->conn && v->conn != k->conn && v->state != COORD_NODE_LOST &&
                    v->state != COORD_NODE_EJECTED && v->state != COORD_NODE_SUSPECT;
        if (!good || strcmp(s->addresses.tcp, address) != 0)
            world_fail(k->w, "node %s (%s, %s) is named as a source of weights at %s", v->name,
                       coord_node_state_name(v->state), address, s->addresses.tcp);
    }
    return true;
}

static void check_sources(struct world *w, uint64_t conn, const struct msg_form *f)
{
    if (f->sources_n)
        coord_each_node(w->coord, check_source, &(struct source_check){w, f, conn});
}

static void coord_action(struct world *w, const struct coord_action *a)
{
    switch (a->kind) {
    case COORD_SEND:
        if (a->send.msg->kind == MSG_FORM)
            check_sources(w, a->send.conn, &a->send.msg->form);
        if (a->send.msg->kind == MSG_DISPATCH)
            client_dispatched(w, &a->send.msg->dispatch);
        net_send_node(w, a->send.conn, a->send.msg);
        break;
    case COORD_CLOSE_CONN:
        world_trace(w, "coord > close connection %" PRIu64 ": %s", a->close.conn, a->close.text);
        net_closed_by_coord(w, a->close.conn);
        break;
    case COORD_SET_TIMER:
        w->coord_timer_gen++;
        if (a->timer.at_us != UINT64_MAX)
            world_push(w, (struct sim_event){.at_us = a->timer.at_us,
                                             .kind = SIM_COORD_TIMER,
                                             .node = -1,
                                             .gen = w->coord_timer_gen});
        break;
    case COORD_STATE:
        standby_state(w, a);
        break;
    case COORD_NODES:
        break;
    case COORD_TRACE:
        if (a->trace.level >= LOG_INFO || w->tell_all)
            world_tell(w, "%s", a->trace.text);
        else
            world_trace(w, "%s", a->trace.text);
        break;
    case COORD_ADMIN_DONE:
        w->admin_done++;
        world_tell(w, "operator < %s: %s", status_name(a->admin_done.status), a->admin_done.text);
        break;
    case COORD_QUEUED:
    case COORD_TOKENS:
    case COORD_DONE:
    case COORD_REFUSED:
    case COORD_FORGET:
        if (standby_holds(w, a))
            break;
        client_action(w, a);
        standby_told(w, a);
        break;
    }
}

// Does this event carry work of an epoch or a connection that no longer counts?
static bool is_stale(struct world *w, const struct coord_event *ev)
{
    if (ev->kind != COORD_NODE_MSG)
        return false;
    const struct msg *m = ev->node.msg;
    if (!w->conns[ev->node.conn - 1].coord_open)
        return true;
    switch (m->kind) {
    case MSG_TOKENS:
        return w->epochs[m->tokens.replica] != m->tokens.epoch;
    case MSG_PREPARED:
        return w->epochs[m->prepared.replica] != m->prepared.epoch;
    case MSG_FORMED:
        return w->epochs[m->formed.replica] != m->formed.epoch;
    case MSG_CANCELLED:
        return w->epochs[m->cancelled.replica] != m->cancelled.epoch;
    case MSG_FAULT:
        return w->epochs[m->fault.replica] != m->fault.epoch;
    default:
        return false;
    }
}

static uint64_t stale_dropped(const struct world *w)
{
    struct coord_stats s;
    coord_stats(w->coord, &s);
    return s.stale_dropped;
}

// Whatever is stale must be dropped, and must have no effect.
static void check_stale(struct world *w, const struct coord_actions *out, uint64_t dropped)
{
    w->stale_offered++;
    if (stale_dropped(w) != dropped + 1)
        world_fail(w, "a message of an old epoch or connection was accepted");
    for (size_t i = 0; i < out->n; i++)
        if (out->v[i].kind != COORD_SET_TIMER)
            world_fail(w, "a message of an old epoch or connection had an effect");
}

void world_coord(struct world *w, struct coord_event *ev)
{
    struct coord_actions out;
    if (!w->coord)
        return;
    ev->now_us = w->now_us;
    bool stale = is_stale(w, ev);
    if (stale) // so that what timers do is not taken for its effect
        world_coord(w, &(struct coord_event){.kind = COORD_TIMER});
    uint64_t dropped = stale_dropped(w);
    coord_step(w->coord, ev, &out);
    w->steps++;
    policy_check(w, ev, &out);
    bool check = !w->sparse || w->steps % 1024 == 0;
    if (check)
        coord_check(w->coord);
    world_views(w);
    if (stale)
        check_stale(w, &out, dropped);
    else if (ev->kind == COORD_NODE_MSG)
        client_released(w, ev->node.msg);
    if (ev->kind == COORD_SUBMIT || ev->kind == COORD_RESTORE)
        standby_submitted(w, ev->submit.request);
    for (size_t i = 0; i < out.n; i++)
        coord_action(w, &out.v[i]);
    if (!check || w->restoring)
        return;
    clients_check(w);
    coord_each_node(w->coord, check_heard, w);
}

// ---- the nodes' shell ----

void node_note_mute(struct world *w, int i)
{
    struct sim_node *n = &w->nodes[i];
    bool mute = !n->alive || n->stopped || n->partitioned;
    if (!mute)
        n->mute_since_us = UINT64_MAX;
    else if (n->mute_since_us == UINT64_MAX)
        n->mute_since_us = w->now_us;
}

static void note_wake(void *ctx)
{
    *(bool *)ctx = true;
}

void node_reschedule(struct world *w, int i)
{
    struct sim_node *n = &w->nodes[i];
    n->woken = false;
    if (!n->alive)
        return;
    uint64_t due = engine_mock_next_due(n->engine);
    n->engine_gen++;
    if (due != UINT64_MAX)
        world_push(w, (struct sim_event){.at_us = due > w->now_us ? due : w->now_us,
                                         .kind = SIM_ENGINE,
                                         .node = i,
                                         .gen = n->engine_gen});
}

static void submit_plan(struct world *w, int i, const struct step_plan *plan)
{
    struct sim_node *n = &w->nodes[i];
    enum status s = n->engine->ops->submit(n->engine, plan);
    if (s > 0)
        world_fail(w, "node %s: the engine was full", n->name);
}

static void node_act(struct world *w, int i, const struct node_action *a)
{
    struct sim_node *n = &w->nodes[i];
    switch (a->kind) {
    case NODE_ACT_SEND:
        if (n->conn)
            net_send_coord(w, n->conn, &a->msg);
        break;
    case NODE_ACT_FORM:
        n->engine->ops->form(n->engine, a->form);
        break;
    case NODE_ACT_LINK:
        n->engine->ops->link(n->engine, a->link);
        break;
    case NODE_ACT_DISSOLVE:
        n->engine->ops->dissolve(n->engine, a->epoch);
        break;
    case NODE_ACT_SUBMIT:
        submit_plan(w, i, a->plan);
        break;
    case NODE_ACT_KV:
        n->engine->ops->kv(n->engine, &a->kv);
        break;
    case NODE_ACT_TIMER:
        n->timer_gen++;
        if (a->at_us != UINT64_MAX)
            world_push(
                w, (struct sim_event){
                       .at_us = a->at_us, .kind = SIM_NODE_TIMER, .node = i, .gen = n->timer_gen});
        break;
    case NODE_ACT_TRACE:
        world_trace(w, "node %s > %s", n->name, a->text);
        break;
    }
}

void node_event(struct world *w, int i, struct node_event *ev)
{
    struct sim_node *n = &w->nodes[i];
    struct node_actions out;
    ev->now_us = w->now_us;
    node_step(n->core, ev, &out);
    w->steps++;
    for (size_t k = 0; k < out.n; k++)
        node_act(w, i, &out.v[k]);
    node_check(n->core);
    node_pulse_turn(node_pulse(n->core), w->now_us);
    n->woken = true; // its engine may have got something to do
}

void node_poll(struct world *w, int i)
{
    struct sim_node *n = &w->nodes[i];
    struct engine_event ev;
    while (n->alive && n->engine->ops->poll(n->engine, &ev)) {
        // The mock looks at every plan and every block that it reads: a real engine would have
        // computed wrong tokens.
        if (ev.kind == ENGINE_STEP && ev.result.status == STATUS_INTERNAL)
            world_fail(w, "the engine of node %s was given nonsense", n->name);
        char address[64]; // every node gives its weights, under the name of its process
        snprintf(address, sizeof address, "%s:%" PRIu64, n->name, n->incarnation);
        ev.formed.weights = (struct rank_addresses){"", address, ""};
        node_event(w, i, &(struct node_event){.kind = NODE_EV_ENGINE, .engine = &ev});
    }
    n->woken = true;
}

void node_pulse_tick(struct world *w, int i, uint64_t gen)
{
    struct sim_node *n = &w->nodes[i];
    uint64_t conn = w->opt.pulse_channel ? n->pulse_conn : n->conn;
    if (!n->stopped) {
        if (!n->stuck)
            node_pulse_turn(node_pulse(n->core), w->now_us);
        struct rank_progress p = n->engine->ops->progress(n->engine, w->now_us);
        struct msg m = {.kind = MSG_HEARTBEAT};
        node_heartbeat(node_pulse(n->core), &p, w->now_us, &m.heartbeat);
        if (conn && (w->opt.pulse_channel || !n->stuck))
            net_send_coord(w, conn, &m);
    }
    world_push(w, (struct sim_event){.at_us = w->now_us + SIM_MS(w->opt.coord.heartbeat_ms),
                                     .kind = SIM_PULSE,
                                     .node = i,
                                     .gen = gen});
}

void node_start(struct world *w, int i)
{
    struct sim_node *n = &w->nodes[i];
    if (n->alive)
        return;
    n->alive = true;
    n->stopped = n->stuck = false;
    node_note_mute(w, i);
    n->incarnation++;
    n->gen++;
    n->conn = n->pulse_conn = 0;
    n->core = node_create(&(struct node_config){.form_timeout_us = SIM_S(60)});
    n->engine = engine_mock_create(&(struct engine_mock_args){
        .config = &w->opt.mock, .fabric = w->fabric, .wake = note_wake, .wake_ctx = &n->woken});
    world_push(
        w, (struct sim_event){.at_us = w->now_us, .kind = SIM_CONNECT, .node = i, .gen = n->gen});
    world_push(w, (struct sim_event){.at_us = w->now_us + world_between(w, 1000, 100000),
                                     .kind = SIM_PULSE,
                                     .node = i,
                                     .gen = n->gen});
}

void inbox_clear(struct sim_inbox *b)
{
    for (size_t i = 0; i < b->n; i++)
        msg_free(b->v[i].msg);
    b->n = 0;
}

void node_free(struct world *w, struct sim_node *n)
{
    if (!n->alive)
        return;
    node_lie(w, (int)(n - w->nodes), false);
    n->engine->ops->destroy(n->engine);
    node_destroy(n->core);
    n->alive = false;
    n->gen++;
    n->engine_gen++;
    n->timer_gen++;
    inbox_clear(&n->waiting);
}

void node_crash(struct world *w, int i, bool silent)
{
    struct sim_node *n = &w->nodes[i];
    if (!n->alive)
        return;
    node_free(w, n);
    node_note_mute(w, i);
    if (n->conn)
        net_process_gone(w, n->conn, silent);
    if (n->pulse_conn)
        net_process_gone(w, n->pulse_conn, silent);
    n->conn = n->pulse_conn = 0;
}

static void node_catch_up(struct world *w, struct sim_node *n)
{
    struct sim_inbox b = n->waiting;
    n->waiting = (struct sim_inbox){0};
    for (size_t k = 0; k < b.n; k++) {
        b.v[k].at_us = w->now_us;
        world_push(w, b.v[k]);
    }
    free(b.v);
}

void node_stop(struct world *w, int i, bool stopped)
{
    struct sim_node *n = &w->nodes[i];
    if (!n->alive || n->stopped == stopped)
        return;
    n->stopped = stopped;
    node_note_mute(w, i);
    engine_mock_hang(n->engine, stopped);
    n->woken = true;
    if (!stopped && !n->stuck)
        node_catch_up(w, n);
}

void node_stick(struct world *w, int i, bool stuck)
{
    struct sim_node *n = &w->nodes[i];
    if (!n->alive || n->stuck == stuck)
        return;
    n->stuck = stuck;
    n->woken = true;
    if (!stuck && !n->stopped)
        node_catch_up(w, n);
}

void node_lie(struct world *w, int i, bool lies)
{
    struct sim_node *n = &w->nodes[i];
    if (!n->alive || lies == (n->lies_us != 0))
        return;
    n->lies_us = lies ? w->now_us : 0;
    w->lies_n += lies ? 1 : -1u;
    engine_mock_lie(n->engine, lies);
    world_views(w);
}

// Events for a process that stands still wait until it goes on.
bool node_defers(struct world *w, struct sim_event *ev)
{
    if (ev->node < 0 || ev->kind == SIM_TO_COORD || ev->kind == SIM_COORD_DOWN ||
        ev->kind == SIM_PULSE)
        return false;
    struct sim_node *n = &w->nodes[ev->node];
    if (!n->alive || (!n->stopped && !n->stuck))
        return false;
    MEM_GROW(n->waiting.v, n->waiting.n, n->waiting.cap);
    n->waiting.v[n->waiting.n++] = *ev;
    ev->msg = NULL;
    return true;
}

// ---- arrivals ----

void shell_to_coord(struct world *w, struct sim_event *ev)
{
    if (!w->coord)
        return;
    struct coord_event e = {.kind = COORD_NODE_MSG, .node = {ev->conn, ev->msg}};
    if (ev->msg->kind == MSG_HELLO) {
        e.kind = COORD_NODE_UP;
        w->conns[ev->conn - 1].coord_open = true;
    }
    if (w->messages && ev->msg->kind != MSG_HEARTBEAT) {
        char text[200];
        msg_describe(ev->msg, text, sizeof text);
        world_trace(w, "coord < node %s: %s", w->nodes[ev->node].name, text);
    }
    world_coord(w, &e);
}

void shell_to_node(struct world *w, struct sim_event *ev)
{
    struct sim_node *n = &w->nodes[ev->node];
    if (ev->conn != n->conn)
        return; // a connection that the process has closed; or heartbeats, which nobody answers
    if (ev->msg->kind == MSG_WELCOME) {
        if (w->opt.pulse_channel && !n->pulse_conn)
            net_connect(w, ev->node);
        return;
    }
    if (w->messages) {
        char text[200];
        msg_describe(ev->msg, text, sizeof text);
        world_trace(w, "node %s < %s", n->name, text);
    }
    node_event(w, ev->node, &(struct node_event){.kind = NODE_EV_MSG, .msg = ev->msg});
}

void shell_node_down(struct world *w, struct sim_event *ev)
{
    struct sim_node *n = &w->nodes[ev->node];
    struct sim_conn *k = &w->conns[ev->conn - 1];
    k->node_open = false;
    if (n->pulse_conn == ev->conn)
        n->pulse_conn = 0;
    if (n->conn != ev->conn)
        return;
    n->conn = 0;
    if (n->pulse_conn) { // the shell closes its second connection with the first
        net_half_open(w, n->pulse_conn, true);
        n->pulse_conn = 0;
    }
    node_event(w, ev->node, &(struct node_event){.kind = NODE_EV_COORD_DOWN});
    world_push(w, (struct sim_event){.at_us = w->now_us + world_between(w, 20000, 200000),
                                     .kind = SIM_CONNECT,
                                     .node = ev->node,
                                     .gen = n->gen});
}

// ---- watching ----

// How long a replica may take for a golden probe, when a node is slow: eight times, at most.
static uint64_t probe_us(const struct world *w)
{
    const struct mock_config *m = &w->opt.mock;
    uint64_t stage_us = m->step_us + (uint64_t)m->max_rows * m->row_us;
    return 8 * w->opt.stages * stage_us * (w->opt.coord.probe_tokens_n + 2) +
           4 * w->opt.delay_max_us;
}

// A rank that lies must not count as serving for longer than the probes take to tell; a hang, which
// they would wait for, is noticed by itself.
static bool check_lies(void *arg, const struct coord_node_view *v)
{
    struct world *w = arg;
    const struct sim_node *n = &w->nodes[atoi(v->name) - 1];
    const struct coord_config *k = &w->opt.coord;
    if (!n->lies_us || !v->replica || w->ready_us[v->replica] == UINT64_MAX || !k->probe_expect)
        return true;
    uint64_t since = w->ready_us[v->replica] > n->lies_us ? w->ready_us[v->replica] : n->lies_us;
    uint64_t limit_us =
        SIM_MS(k->probe_interval_ms + k->hang_ms + 1500) + (k->probe_failures + 1) * probe_us(w);
    if (w->now_us > since + limit_us)
        world_fail(w, "node %s lies since %" PRIu64 " ms, and replica %" PRIu64 " serves", v->name,
                   n->lies_us / 1000, v->replica);
    return true;
}

// Nobody holds blocks for a transfer past its lease.
static void check_leases(struct world *w, const struct sim_node *n)
{
    bool runs = n->alive && !n->stopped && !n->stuck;
    uint64_t due = runs ? node_lease_us(n->core) : UINT64_MAX;
    if (due != UINT64_MAX && w->now_us > due + SIM_MS(20))
        world_fail(w, "node %s holds KV blocks under a lease that ran out at %" PRIu64 " ms",
                   n->name, due / 1000);
}

// A lead that has work and makes no step must not count as serving for much longer than hang_ms.
void world_watch(struct world *w, int arg)
{
    for (uint32_t i = 0; i < w->opt.nodes; i++) {
        struct sim_node *n = &w->nodes[i];
        check_leases(w, n);
        bool works = w->coord && n->alive && n->mute_since_us == UINT64_MAX && node_sequences(n->core) &&
                     w->epochs[node_replica(n->core)] == node_epoch(n->core) &&
                     w->ready_us[node_replica(n->core)] != UINT64_MAX;
        uint64_t steps = n->alive ? node_counters(n->core).steps : 0;
        if (!works || steps != n->steps)
            n->steps_us = w->now_us;
        n->steps = steps;
        if (w->now_us - n->steps_us > SIM_MS(w->opt.coord.hang_ms) + SIM_S(1))
            world_fail(w, "node %s makes no step since %" PRIu64 " ms, and its replica serves",
                       n->name, n->steps_us / 1000);
    }
    if (w->coord)
        coord_each_node(w->coord, check_lies, w);
    world_call(w, w->now_us + SIM_MS(200), world_watch, 0);
}
