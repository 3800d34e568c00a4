// The simulated world: one coordinator core, many node cores with mock engines, and the network
// between them, all on one virtual clock. It is a second shell for the same cores that run in
// production. Everything that is random comes from one generator, so a seed replays a run.
//
//   world.c    clock, event queue, trace
//   shells.c   the shells of coordinator and nodes; invariants
//   network.c  connections: delay, order, break, half-open, partition
//   clients.c  who asks, stops, leaves and comes back; checks every token
//   rollout.c  several versions of the model
//   policy.c   quotas, shares, deadlines
//   standby.c  copies, and another coordinator's taking over
//   faults.c   what goes wrong
//   swarm.c    sizes and faults drawn from a seed; the run; liveness
//   apart.c    a measured run: prefill and decode apart
//   overload.c a measured run with more than the cluster can do
//   golden.c   named scenarios whose traces in words are kept in traces/
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/prng.h"
#include "base/strbuf.h"
#include "coordinator/copier.h"
#include "coordinator/coord.h"
#include "coordinator/follower.h"
#include "coordinator/guests.h"
#include "node/engine_mock.h"
#include "node/node.h"
#include "proto/wire.h"

enum { SIM_NODES = 48, SIM_SAID = 8, SIM_REPLICAS = 256, SIM_VERSIONS = 5 };
#define SIM_MS(x) ((uint64_t)(x)*1000)
#define SIM_S(x)  ((uint64_t)(x)*1000000)

enum sim_kind {
    SIM_TO_COORD,   // msg arrives on conn
    SIM_TO_NODE,    // msg arrives on conn
    SIM_COORD_DOWN, // the coordinator's side of conn notices that it broke
    SIM_NODE_DOWN,  // the node's side
    SIM_CONNECT,    // node tries to connect
    SIM_PULSE,      // node's heartbeat thread
    SIM_ENGINE,     // node's engine may have something
    SIM_NODE_TIMER,
    SIM_COORD_TIMER,
    SIM_COPY,   // a record for the standby: bytes
    SIM_ACK,    // the standby has records up to `conn`
    SIM_ASK,    // what a follower says to the leader: bytes
    SIM_CLIENT, // client does what it planned
    SIM_CALL,   // a fault or a scripted line: fn(world, arg)
};

struct world;

struct sim_event {
    uint64_t at_us, order;
    enum sim_kind kind;
    int node;     // index; -1 = none
    uint64_t gen; // of what it belongs to; another one now = void
    uint64_t conn;
    struct msg *msg; // owned
    char *bytes;     // owned
    size_t bytes_n;
    uint32_t client;
    void (*fn)(struct world *w, int arg);
    int arg;
};

struct sim_conn {
    int node;
    uint64_t incarnation; // of the process that opened it
    bool pulse;
    bool coord_open, node_open;
    bool broken;                      // what is under way may be lost
    uint64_t to_coord_us, to_node_us; // last arrival: keeps the order of TCP
};

struct sim_inbox { // events that wait: the process stands still, or the network does not deliver
    struct sim_event *v;
    size_t n, cap;
};

struct sim_node {
    char name[16], host[16];
    bool alive;
    bool stopped;              // SIGSTOP: nothing of it runs
    bool stuck;                // its loop does not turn, its heartbeat thread does
    bool partitioned;          // no packet in or out
    uint64_t mute_since_us;    // the coordinator cannot hear it since; UINT64_MAX = it can
    uint64_t incarnation, gen; // gen: of its engine and timers
    uint64_t conn, pulse_conn; // 0 = none
    struct node *core;
    struct engine *engine;
    uint64_t engine_due_us; // as scheduled
    uint64_t engine_gen, timer_gen;
    bool woken;
    struct msg *said[SIM_SAID]; // owned ring: some of what it said to the coordinator
    uint32_t said_n;
    uint64_t lies_us;         // since then; 0 = it does not
    uint64_t steps, steps_us; // a lead's count of steps, and when it last grew or was idle
    struct sim_inbox waiting; // while stopped or stuck
    struct sim_inbox held;    // while partitioned
};

enum client_stage { CLIENT_NEW, CLIENT_LIVE, CLIENT_REFUSED, CLIENT_FINISHED, CLIENT_FORGOTTEN };

struct sim_client {
    uint64_t id;
    enum client_stage stage;
    struct coord_submit submit;
    int32_t *prompt; // owned
    uint64_t submit_us;
    // Of each version what it would answer, and which of them it may still be: it must be one.
    struct mock_stream expected[SIM_VERSIONS];
    uint32_t may_be;
    int32_t *seen; // owned
    uint32_t seen_n;
    size_t seen_cap;
    uint32_t stop_at; // finds a stop string when it has so many tokens; 0 = never
    uint64_t leave_us, return_us, cancel_us; // 0 = never
    bool attached, asked_stop, asked_cancel;
    bool told;  // it has seen something of its request
    bool moved; // must find its request at the new coordinator
    bool via;   // it is a client of the follower
    uint64_t away_since_us;
    uint64_t first_us, last_us, done_us, longest_gap_us;
    enum finish_reason finish;
    enum coord_refusal refused_for;
    // Where it is placed, as told by the coordinator's DISPATCH.
    uint64_t place_replica, place_epoch;
    uint64_t from_replica; // where its tokens come from
    uint32_t lies;         // wrong tokens that it got from a replica that lied
};

struct sim_options {
    uint32_t replicas, stages, tensor, nodes, hosts;
    struct mock_config mock;
    struct coord_config coord;
    uint64_t delay_min_us, delay_max_us; // one way, per message
    bool pulse_channel;                  // heartbeats on a connection of their own
    bool long_prompts;                   // many, and replicas that compute them for others
    bool standby;                        // of the coordinator: a follower
    bool follower_clients;               // some clients are its
    enum copy_mode copy_mode;
    bool lose_reports; // of prefix caches, some
    bool late; // closed connections still deliver some of what was sent
};

// A tenant's quota, counted a second time.
enum { SIM_TENANTS = 3, SIM_OTHER_NAMES = 4 };
struct sim_bucket {
    double rate, burst, level; // tokens
    uint64_t level_us;
};

struct world {
    uint64_t seed; // 0 = a named scenario
    const char *scenario;
    struct prng prng;
    struct sim_options opt;
    uint64_t now_us, order;
    struct sim_event *heap; // owned
    size_t heap_n, heap_cap;
    struct coord *coord; // NULL: killed, its standby has not taken over yet
    bool copying;        // a standby is connected
    struct copier copier;
    struct follower follower;
    bool follower_there;  // as a process; else nobody has gone there yet
    struct guests guests; // the follower's clients, at the leader
    uint64_t ask_last_us;
    struct wire_arena copy_arena;
    uint64_t copy_gen, copy_last_us;
    uint64_t attached_us; // the standby knows all that was under way then, and all since
    bool restoring, moving; // while a successor is told of requests; while clients are
    uint64_t takeovers, restored;
    uint64_t coord_timer_gen;
    struct mock_fabric *fabric;
    struct sim_node nodes[SIM_NODES];
    struct sim_conn *conns; // id - 1
    size_t conns_n, conns_cap;
    struct sim_client *clients; // id - 1
    size_t clients_n, clients_cap;
    struct sim_bucket buckets[1 + SIM_TENANTS]; // of those without a name, then of the named
    uint64_t epochs[SIM_REPLICAS]; // of the replicas (by id), as the coordinator sees them
    uint32_t max_seqs[SIM_REPLICAS];
    bool lied[SIM_REPLICAS];          // a rank of the replica lies, or did in this epoch
    uint64_t lied_us;       // the last time that any did; 0 = never
    uint64_t lied_step[SIM_REPLICAS]; // the step in which it was fenced, when it did
    bool was_draining[SIM_REPLICAS];
    uint64_t proving_us[SIM_REPLICAS]; // since when it proves itself; 0 = it does not
    uint64_t ready_us[SIM_REPLICAS];  // READY since; UINT64_MAX = is not
    uint32_t lies_n;        // nodes that lie
    uint64_t admin_sent, admin_done;
    uint64_t stale_offered; // messages of an old epoch or connection given to the coordinator
    uint64_t sources_named; // nodes that FORM named for reading weights
    uint64_t steps, tokens;
    uint64_t gaps_of, *gaps; // owned: between tokens, of the first so many clients
    size_t gaps_n, gaps_cap;

    // Trace in words: the last lines are kept; all are printed when `print`, and scenarios collect.
    bool print, messages;
    bool sparse;            // checks only now and then: for long runs with thousands of clients
    bool tell_all;          // the golden trace has what is told at LOG_DEBUG too
    struct strbuf *collect; // scenario: the lines that go into the golden trace
    char *lines[256];       // owned ring
    uint64_t lines_n;
};

// ---- world.c ----
void world_start(struct world *w); // opt, seed and prng are set
void world_finish(struct world *w);
bool world_step(struct world *w, uint64_t until_us); // one event; false: nothing before until
void world_push(struct world *w, struct sim_event ev);
void world_call(struct world *w, uint64_t at_us, void (*fn)(struct world *, int), int arg);
void world_trace(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// A line that belongs to the golden trace too.
void world_tell(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
_Noreturn void world_fail(struct world *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void world_dump(const struct world *w); // seed and last lines to stderr; safe in a signal handler
uint64_t world_between(struct world *w, uint64_t lo, uint64_t hi);
bool world_chance(struct world *w, double p);

// ---- shells.c ----
void world_coord(struct world *w, struct coord_event *ev); // steps the coordinator
void world_watch(struct world *w, int arg); // comes back by itself: do working leads make steps?
void shell_to_coord(struct world *w, struct sim_event *ev);
void shell_to_node(struct world *w, struct sim_event *ev);
void shell_node_down(struct world *w, struct sim_event *ev);
void node_event(struct world *w, int i, struct node_event *ev);
void node_poll(struct world *w, int i);
void node_pulse_tick(struct world *w, int i, uint64_t gen);
bool node_defers(struct world *w, struct sim_event *ev); // it stands still; the event waits
void node_free(struct world *w, struct sim_node *n);
void inbox_clear(struct sim_inbox *b);
void node_start(struct world *w, int i);
void node_crash(struct world *w, int i, bool silent); // silent: the host died, no FIN is sent
void node_stop(struct world *w, int i, bool stopped);
void node_stick(struct world *w, int i, bool stuck);
void node_lie(struct world *w, int i, bool lies);
void node_note_mute(struct world *w, int i);  // after any change of alive, stopped, partitioned
void node_reschedule(struct world *w, int i); // engine's due time may have changed

// ---- network.c ----
void net_connect(struct world *w, int i);
void net_send_coord(struct world *w, uint64_t conn, const struct msg *m); // from the node
void net_send_node(struct world *w, uint64_t conn, const struct msg *m);
void net_break(struct world *w, uint64_t conn);
void net_half_open(struct world *w, uint64_t conn, bool coord_notices);
void net_closed_by_coord(struct world *w, uint64_t conn);
void net_process_gone(struct world *w, uint64_t conn, bool silent);
void net_partition(struct world *w, int i, bool on);
// True: the event was kept back or dropped.
bool net_intercept(struct world *w, struct sim_event *ev);

// ---- clients.c ----
uint32_t client_add(struct world *w, const struct coord_submit *s, const int32_t *prompt);
void client_run(struct world *w, uint32_t client); // SIM_CLIENT
void client_action(struct world *w, const struct coord_action *a);
void client_follower_action(struct world *w, const struct coord_action *a); // at the follower
void client_dispatched(struct world *w, const struct msg_dispatch *d);
void client_released(struct world *w, const struct msg *m);
void clients_check(struct world *w);
bool clients_finished(const struct world *w); // every accepted request ended
void clients_free(struct world *w);

// ---- faults.c ----
enum fault_class {
    FAULT_CRASH,
    FAULT_HOST, // crash without a FIN
    FAULT_STOP,
    FAULT_STICK,
    FAULT_SLOW,
    FAULT_LIE,    // wrong tokens
    FAULT_STEP,   // a step fails (NaN)
    FAULT_ENGINE, // a rank hangs in a collective
    FAULT_CUT,    // link between two nodes
    FAULT_BREAK,
    FAULT_HALF,
    FAULT_PARTITION,
    FAULT_REPLAY, // something that a node said long ago arrives again
    FAULT_DRAIN,
    FAULT_FAILOVER,
    FAULT_EJECT,
    FAULT_ROLE,  // a replica gets another role
    FAULT_COORD, // the coordinator is killed; its standby takes over, or the two lose each other
    FAULT_ROLLOUT, // an operator rolls a version out, or takes it back, or scales
    FAULT_CLASSES,
};
void fault_inject(struct world *w, enum fault_class f);
void faults_heal(struct world *w); // everything works again, nodes come back
void admin_send(struct world *w, enum coord_admin_op op, const char *target, uint64_t replica);

// ---- rollout.c ----
void rollout_draw(struct world *w, uint64_t until_us); // versions of the model, good and bad
void rollout_send(struct world *w, const struct coord_admin *a, int version);
void rollout_order(struct world *w);
void rollout_end(struct world *w); // whatever is under way comes to its end
bool rollout_is_over(const struct world *w);

// ---- policy.c ----
void policy_start(struct world *w); // a new core: its buckets are full
void policy_check(struct world *w, const struct coord_event *ev, const struct coord_actions *out);

// ---- standby.c ----
void standby_start(struct world *w);
void standby_submitted(struct world *w, uint64_t id);
void standby_state(struct world *w, const struct coord_action *a);
bool standby_holds(struct world *w, const struct coord_action *a); // clients do not see it yet
void standby_told(struct world *w, const struct coord_action *a);
void standby_record(struct world *w, struct sim_event *ev);
void standby_acked(struct world *w, const struct sim_event *ev);
void standby_asked(struct world *w, const struct sim_event *ev);
void standby_submit(struct world *w, const struct coord_submit *s); // of a client of the follower
void standby_word(struct world *w, enum coord_event_kind kind, uint64_t request); // the same
void standby_cut(struct world *w); // the connection of the two breaks, and comes back
void standby_kill_leader(struct world *w, uint32_t pause_ms);
void clients_moved(struct world *w); // another coordinator has what was copied

// ---- swarm.c, golden.c ----
struct swarm_report {
    uint64_t steps, tokens, requests, moves, preemptions, probes, quarantines, lies, takeovers,
        restored, fences, stale, sources, virtual_us, transfers, kv_moved, apart, rollouts, rollouts_done, rollouts_reverted, loans, scaled;
};
void swarm_run(uint64_t seed, bool print, uint64_t until_us, struct swarm_report *sum);
// 0 = all traces are as kept; else the number that differ. bless: write them anew.
int golden_run(const char *dir, bool bless);
bool golden_print(const char *name);
// ---- overload.c ----
// ---- apart.c ----
bool apart_run(void); // the same
bool overload_run(void);            // prints a table; false: a promise is broken
extern struct world *world_current; // for the handler of SIGABRT
