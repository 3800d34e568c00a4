// Connections between nodes and coordinator. Each direction keeps TCP's order; what a break leaves
// under way is lost, or comes late on a connection that does not count any more.
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tests/sim/world.h"

static uint64_t net_delay(struct world *w)
{
    return world_between(w, w->opt.delay_min_us, w->opt.delay_max_us);
}

static uint64_t conn_open(struct world *w, int i, bool pulse)
{
    MEM_GROW(w->conns, w->conns_n, w->conns_cap);
    w->conns[w->conns_n++] = (struct sim_conn){
        .node = i, .incarnation = w->nodes[i].incarnation, .pulse = pulse, .node_open = true};
    return w->conns_n;
}

static void say_hello(struct world *w, int i, uint64_t conn, bool pulse)
{
    const struct sim_node *n = &w->nodes[i];
    struct msg m = {.kind = MSG_HELLO,
                    .hello = {.version = MSG_VERSION,
                              .name = n->name,
                              .incarnation = n->incarnation,
                              .pid = (uint32_t)(1000 + n->incarnation),
                              .host = n->host,
                              .backend = "mock",
                              .heartbeat_channel = pulse}};
    net_send_coord(w, conn, &m);
}

// The control connection, or the one for heartbeats when that is there already.
void net_connect(struct world *w, int i)
{
    struct sim_node *n = &w->nodes[i];
    if (n->partitioned) {
        world_push(w, (struct sim_event){.at_us = w->now_us + SIM_MS(200),
                                         .kind = SIM_CONNECT,
                                         .node = i,
                                         .gen = n->gen});
        return;
    }
    bool pulse = n->conn != 0;
    uint64_t conn = conn_open(w, i, pulse);
    if (pulse)
        n->pulse_conn = conn;
    else
        n->conn = conn;
    say_hello(w, i, conn, pulse);
}

// Remembers some of what a node says, for FAULT_REPLAY.
static void remember(struct world *w, struct sim_node *n, const struct msg *m)
{
    if (m->kind == MSG_HEARTBEAT || m->kind == MSG_HELLO || !world_chance(w, 0.2))
        return;
    struct msg **slot = &n->said[n->said_n++ % SIM_SAID];
    msg_free(*slot);
    *slot = msg_clone(m);
}

void net_send_coord(struct world *w, uint64_t conn, const struct msg *m)
{
    struct sim_conn *k = &w->conns[conn - 1];
    remember(w, &w->nodes[k->node], m);
    if (m->kind == MSG_KV_CACHED && w->opt.lose_reports && world_chance(w, 0.1))
        return;
    uint64_t at = w->now_us + net_delay(w);
    if (at < k->to_coord_us)
        at = k->to_coord_us;
    k->to_coord_us = at;
    world_push(
        w,
        (struct sim_event){
            .at_us = at, .kind = SIM_TO_COORD, .node = k->node, .conn = conn, .msg = msg_clone(m)});
}

void net_send_node(struct world *w, uint64_t conn, const struct msg *m)
{
    struct sim_conn *k = &w->conns[conn - 1];
    if (!k->coord_open)
        world_fail(w, "the coordinator sends on connection %llu, which is closed",
                   (unsigned long long)conn);
    for (uint32_t i = 0; m->kind == MSG_LINK && i < m->link.members_n; i++)
        if (!m->link.members[i].addresses.shm)
            world_fail(w, "LINK was sent before all ranks were prepared");
    uint64_t at = w->now_us + net_delay(w);
    if (at < k->to_node_us)
        at = k->to_node_us;
    k->to_node_us = at;
    world_push(
        w,
        (struct sim_event){
            .at_us = at, .kind = SIM_TO_NODE, .node = k->node, .conn = conn, .msg = msg_clone(m)});
}

static void notice(struct world *w, uint64_t conn, enum sim_kind kind, uint64_t delay_us)
{
    world_push(w, (struct sim_event){.at_us = w->now_us + delay_us,
                                     .kind = kind,
                                     .node = w->conns[conn - 1].node,
                                     .conn = conn});
}

void net_break(struct world *w, uint64_t conn)
{
    w->conns[conn - 1].broken = true;
    notice(w, conn, SIM_COORD_DOWN, net_delay(w));
    notice(w, conn, SIM_NODE_DOWN, net_delay(w));
}

// One side thinks that all is well; it finds out after seconds.
void net_half_open(struct world *w, uint64_t conn, bool coord_notices)
{
    w->conns[conn - 1].broken = true;
    uint64_t late = world_between(w, SIM_MS(500), SIM_S(6));
    notice(w, conn, SIM_COORD_DOWN, coord_notices ? net_delay(w) : late);
    notice(w, conn, SIM_NODE_DOWN, coord_notices ? late : net_delay(w));
}

void net_closed_by_coord(struct world *w, uint64_t conn)
{
    struct sim_conn *k = &w->conns[conn - 1];
    k->coord_open = false;
    k->broken = true;
    notice(w, conn, SIM_NODE_DOWN, net_delay(w));
}

void net_process_gone(struct world *w, uint64_t conn, bool silent)
{
    struct sim_conn *k = &w->conns[conn - 1];
    k->node_open = false;
    if (!silent) // what was written before the end still arrives, then the FIN
        notice(w, conn, SIM_COORD_DOWN,
               k->to_coord_us > w->now_us ? k->to_coord_us - w->now_us : net_delay(w));
    else
        k->broken = true;
}

void net_partition(struct world *w, int i, bool on)
{
    struct sim_node *n = &w->nodes[i];
    n->partitioned = on;
    node_note_mute(w, i);
    if (on)
        return;
    if (n->mute_since_us != UINT64_MAX) // dead or stopped too, but old packets arrive now
        n->mute_since_us = w->now_us;
    struct sim_inbox b = n->held;
    n->held = (struct sim_inbox){0};
    for (size_t k = 0; k < b.n; k++) {
        b.v[k].at_us = w->now_us;
        world_push(w, b.v[k]);
    }
    free(b.v);
}

static bool is_packet(const struct sim_event *ev)
{
    return ev->kind == SIM_TO_COORD || ev->kind == SIM_TO_NODE || ev->kind == SIM_COORD_DOWN ||
           ev->kind == SIM_NODE_DOWN;
}

bool net_intercept(struct world *w, struct sim_event *ev)
{
    if (!is_packet(ev))
        return false;
    struct sim_node *n = &w->nodes[ev->node];
    if (n->partitioned) { // TCP sends it again until it gets through
        MEM_GROW(n->held.v, n->held.n, n->held.cap);
        n->held.v[n->held.n++] = *ev;
        ev->msg = NULL;
        return true;
    }
    const struct sim_conn *k = &w->conns[ev->conn - 1];
    if (ev->kind == SIM_COORD_DOWN)
        return !k->coord_open;
    if (ev->kind == SIM_TO_NODE)
        return k->broken || !k->node_open;
    if (ev->kind != SIM_TO_COORD)
        return false;
    bool closed = ev->msg->kind != MSG_HELLO && !k->coord_open;
    if (ev->msg->kind == MSG_HELLO)
        return k->broken;
    // A shell may have read what a connection brought just before it was closed.
    return (closed || k->broken) && !(w->opt.late && world_chance(w, 0.3));
}
