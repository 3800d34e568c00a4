// What goes wrong, and how it is made good again. Each fault picks its victim at random and plans
// its own end; faults_heal ends all of them.
#include <stdio.h>
#include <string.h>

#include "tests/sim/world.h"

void admin_send(struct world *w, enum coord_admin_op op, const char *target, uint64_t replica)
{
    if (!w->coord)
        return;
    w->admin_sent++;
    if (op == COORD_ROLE)
        world_tell(w, "operator > replica %llu gets the role %s", (unsigned long long)replica,
                   target);
    else if (target)
        world_tell(w, "operator > %s node %s", coord_admin_op_name(op), target);
    else
        world_tell(w, "operator > %s replica %llu", coord_admin_op_name(op),
                   (unsigned long long)replica);
    world_coord(
        w, &(struct coord_event){
               .kind = COORD_ADMIN,
               .admin = {.op = op, .target = target, .replica = replica, .tag = w->admin_sent}});
}

static void end_crash(struct world *w, int i)
{
    if (w->nodes[i].alive)
        return;
    world_trace(w, "node %s > starts again", w->nodes[i].name);
    node_start(w, i);
}

static void end_stop(struct world *w, int i)
{
    world_trace(w, "node %s > goes on", w->nodes[i].name);
    node_stop(w, i, false);
}

static void end_stick(struct world *w, int i)
{
    world_trace(w, "node %s > its loop turns again", w->nodes[i].name);
    node_stick(w, i, false);
}

static void end_slow(struct world *w, int i)
{
    if (w->nodes[i].alive)
        engine_mock_slow(w->nodes[i].engine, 1.0);
}

static void end_lie(struct world *w, int i)
{
    if (w->nodes[i].lies_us)
        world_trace(w, "node %s > tells the truth again", w->nodes[i].name);
    node_lie(w, i, false);
}

static void end_hang(struct world *w, int i)
{
    if (!w->nodes[i].alive || w->nodes[i].stopped)
        return;
    engine_mock_hang(w->nodes[i].engine, false);
    w->nodes[i].woken = true;
}

static void cut(struct world *w, int a, int b, bool on)
{
    if (a == b || !w->nodes[a].alive || !w->nodes[b].alive)
        return;
    engine_mock_cut(w->nodes[a].engine, w->nodes[b].engine, on);
    w->nodes[a].woken = w->nodes[b].woken = true;
}

static void end_cut(struct world *w, int pair)
{
    cut(w, pair / SIM_NODES, pair % SIM_NODES, false);
}

static void end_partition(struct world *w, int i)
{
    world_trace(w, "network > node %s is reachable again", w->nodes[i].name);
    net_partition(w, i, false);
}

static void end_drain(struct world *w, int i)
{
    admin_send(w, COORD_UNDRAIN, w->nodes[i].name, 0);
}

static int any_node(struct world *w)
{
    return (int)prng_below(&w->prng, w->opt.nodes);
}

static int any_lead(struct world *w)
{
    int at = any_node(w);
    for (uint32_t k = 0; k < w->opt.nodes; k++, at = (at + 1) % (int)w->opt.nodes)
        if (w->nodes[at].alive && node_is_lead(w->nodes[at].core) &&
            node_state(w->nodes[at].core) == NODE_READY)
            return at;
    return -1;
}

static void later(struct world *w, uint64_t lo_ms, uint64_t hi_ms, void (*fn)(struct world *, int),
                  int arg)
{
    world_call(w, w->now_us + world_between(w, SIM_MS(lo_ms), SIM_MS(hi_ms)), fn, arg);
}

static void fail_step(struct world *w)
{
    int i = any_lead(w);
    if (i < 0)
        return;
    world_trace(w, "node %s > its next step gives NaN", w->nodes[i].name);
    engine_mock_fail_step(w->nodes[i].engine, 0, STATUS_NODE_NAN);
}

static void break_conn(struct world *w, int i, bool half)
{
    struct sim_node *n = &w->nodes[i];
    uint64_t conn = n->pulse_conn && world_chance(w, 0.3) ? n->pulse_conn : n->conn;
    if (!n->alive || !conn)
        return;
    world_trace(w, "network > connection of node %s breaks%s", n->name, half ? " on one side" : "");
    if (half)
        net_half_open(w, conn, world_chance(w, 0.5));
    else
        net_break(w, conn);
}

static uint64_t msg_epoch(const struct msg *m, uint64_t *replica)
{
    switch (m->kind) {
    case MSG_PREPARED:
        *replica = m->prepared.replica;
        return m->prepared.epoch;
    case MSG_FORMED:
        *replica = m->formed.replica;
        return m->formed.epoch;
    case MSG_CANCELLED:
        *replica = m->cancelled.replica;
        return m->cancelled.epoch;
    case MSG_FAULT:
        *replica = m->fault.replica;
        return m->fault.epoch;
    default:
        *replica = m->tokens.replica;
        return m->tokens.epoch;
    }
}

// Tokens may come twice at any time; answers only from an epoch that is over, because TCP does not
// repeat them.
static void replay(struct world *w, int i)
{
    struct sim_node *n = &w->nodes[i];
    const struct msg *m = n->said[prng_below(&w->prng, SIM_SAID)];
    uint64_t replica;
    if (!w->coord || !m || !n->conn || !w->conns[n->conn - 1].coord_open)
        return;
    if (m->kind != MSG_TOKENS && msg_epoch(m, &replica) == w->epochs[replica])
        return;
    world_trace(w, "network > something old of node %s arrives again", n->name);
    world_coord(w, &(struct coord_event){.kind = COORD_NODE_MSG, .node = {n->conn, m}});
}

static void hit_process(struct world *w, enum fault_class f, int i)
{
    struct sim_node *n = &w->nodes[i];
    if (!n->alive)
        return;
    switch (f) {
    case FAULT_CRASH:
    case FAULT_HOST:
        world_trace(w, "node %s > %s", n->name, f == FAULT_CRASH ? "killed" : "its host dies");
        node_crash(w, i, f == FAULT_HOST);
        later(w, 50, 4000, end_crash, i);
        break;
    case FAULT_STOP:
        world_trace(w, "node %s > stands still", n->name);
        node_stop(w, i, true);
        later(w, 200, 6000, end_stop, i);
        break;
    case FAULT_STICK:
        world_trace(w, "node %s > its loop hangs", n->name);
        node_stick(w, i, true);
        later(w, 200, 6000, end_stick, i);
        break;
    case FAULT_SLOW:
        world_trace(w, "node %s > slow", n->name);
        engine_mock_slow(n->engine, 2.0 + 6.0 * prng_unit(&w->prng));
        later(w, 500, 5000, end_slow, i);
        break;
    case FAULT_LIE:
        world_trace(w, "node %s > lies", n->name);
        node_lie(w, i, true);
        later(w, 500, 12000, end_lie, i);
        break;
    default: // FAULT_ENGINE
        world_trace(w, "node %s > its engine hangs", n->name);
        engine_mock_hang(n->engine, true);
        n->woken = true;
        later(w, 500, 8000, end_hang, i);
        break;
    }
}

static void hit_network(struct world *w, enum fault_class f, int i)
{
    int other = any_node(w);
    switch (f) {
    case FAULT_REPLAY:
        replay(w, i);
        break;
    case FAULT_CUT:
        world_trace(w, "network > link between nodes %s and %s is cut", w->nodes[i].name,
                    w->nodes[other].name);
        cut(w, i, other, true);
        later(w, 200, 5000, end_cut, i * SIM_NODES + other);
        break;
    case FAULT_PARTITION:
        world_trace(w, "network > node %s is cut off from the coordinator", w->nodes[i].name);
        net_partition(w, i, true);
        later(w, 100, 6000, end_partition, i);
        break;
    default:
        break_conn(w, i, f == FAULT_HALF);
        break;
    }
}

static void hit_order(struct world *w, enum fault_class f, int i)
{
    if (f == FAULT_FAILOVER) {
        admin_send(w, COORD_FAILOVER, NULL, world_between(w, 1, w->opt.replicas));
        return;
    }
    if (f == FAULT_ROLLOUT) {
        rollout_order(w);
        return;
    }
    if (f == FAULT_ROLE) {
        enum coord_role role = (enum coord_role)world_between(w, 0, COORD_ROLE_DECODE);
        admin_send(w, COORD_ROLE, coord_role_name(role), world_between(w, 1, w->opt.replicas));
        return;
    }
    admin_send(w, f == FAULT_DRAIN ? COORD_DRAIN : COORD_EJECT, w->nodes[i].name, 0);
    later(w, 100, 5000, end_drain, i);
}

void fault_inject(struct world *w, enum fault_class f)
{
    int i = any_node(w);
    if (f == FAULT_COORD && w->opt.follower_clients && world_chance(w, 0.4))
        standby_cut(w);
    else if (f == FAULT_COORD)
        standby_kill_leader(w, (uint32_t)world_between(w, 50, 3000));
    else if (f == FAULT_STEP)
        fail_step(w);
    else if (f <= FAULT_LIE || f == FAULT_ENGINE)
        hit_process(w, f, i);
    else if (f <= FAULT_REPLAY)
        hit_network(w, f, i);
    else
        hit_order(w, f, i);
}

void faults_heal(struct world *w)
{
    world_trace(w, "-- all faults end --");
    for (int i = 0; i < (int)w->opt.nodes; i++) {
        if (w->nodes[i].partitioned)
            net_partition(w, i, false);
        node_stop(w, i, false);
        node_stick(w, i, false);
        end_slow(w, i);
        end_lie(w, i);
        end_hang(w, i);
        for (int k = 0; k < i; k++)
            cut(w, i, k, false);
        end_crash(w, i);
        admin_send(w, COORD_UNDRAIN, w->nodes[i].name, 0);
    }
    rollout_end(w);
}
