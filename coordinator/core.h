// What the core's files share: its state, and the calls between them. Private to coordinator/.
//
//   coord.c      the switch over events, timers, configuration
//   members.c    connections and nodes: hello, silence, loss, drain and eject marks
//   messages.c   what nodes say, and whether it still counts
//   pools.c      pools of replicas, and which one a request is for
//   scale.c      how many replicas a pool has
//   scaling.c    how many it should have
//   versions.c   rollouts: from one pool to another
//   state.c      what operators changed, as a text
//   forming.c    from free nodes to a ready replica
//   roles.c      which replicas take requests
//   sources.c    whose model files a forming node may read
//   replicas.c   the fence between two epochs; health
//   prober.c     golden probes
//   quarantine.c who is kept out, for how long; stragglers
//   lifecycle.c  admission, the end of a request, retention
//   tokens.c     how tokens enter the journals
//   transfer.c   KV on its way from one replica to another
//   handover.c   running requests go on elsewhere, with their KV or without
//   routing.c    which replica a request goes to
//   caches.c     what replicas told of their prefix caches
//   circuits.c   replicas that fail get a pause; the budget for computing again
//   dispatch.c   the queues' order
//   preempt.c    running requests give way to higher bands
//   breakers.c   rules of the configuration
//   notices.c    places and estimates told to those who wait
//   admin.c      operators' commands
//   views.c      read-only views and coord_check
// Leaves that decide without this state: arena, timers, queue, fair, tenants, ring, eta, placement,
// health, request, kvindex, latency, circuit, retry.
#pragma once

#include "base/sm.h"
#include "coordinator/arena.h"
#include "coordinator/coord.h"
#include "coordinator/breaker.h"
#include "coordinator/circuit.h"
#include "coordinator/eta.h"
#include "coordinator/fair.h"
#include "coordinator/kvrate.h"
#include "coordinator/idmap.h"
#include "coordinator/kvindex.h"
#include "coordinator/latency.h"
#include "coordinator/pace.h"
#include "coordinator/probe.h"
#include "coordinator/queue.h"
#include "coordinator/request.h"
#include "coordinator/retry.h"
#include "coordinator/ring.h"
#include "coordinator/timers.h"
#include "coordinator/transfer.h"

enum timer_kind {
    TIMER_MEMBER,  // silent for too long; lost: forget it
    TIMER_REPLICA, // forming: give up; vacant: back-off is over
    TIMER_CANCEL,  // a replica's oldest CANCEL is not answered
    TIMER_TRANSFER, // its lease
    TIMER_REFORM,   // a replica that hands over before it is formed anew took too long
    TIMER_WAIT,    // a request's deadline
    TIMER_LIFE,    // a request's grace or retention
    TIMER_NOTICE,  // tell waiting requests their places
    TIMER_PROBE,   // a replica's next probe, or the one under way took too long
    TIMER_QUARANTINE,
    TIMER_PACE,
    TIMER_BREAKERS,
    TIMER_SHIFT,
    TIMER_ELASTIC,
    TIMER_CIRCUIT, // a replica's circuit breaker may close again
};

// Drained and ejected by an operator: until undrain. Quarantine ends by itself.
enum member_mark { MARK_NONE, MARK_DRAIN, MARK_EJECT, MARK_QUARANTINE };

struct waiter { // an ADMIN command that is not done yet
    struct waiter *next;
    uint64_t tag;
};

//                 FORM              drain              replica is empty
//        FREE ----------> IN_REPLICA -----> DRAINING -----------------> DRAINED
//        ^ ^ ^                |  ^             |                          |
//        | | +----------------+  +-------------+ undrain                  |
//        | |   fenced         |                                           |
//        | |                  v named as stuck                            |
//        | +-------------- SUSPECT                                        |
//        |  shows progress                                                |
//        +----------------------------------------------------------------+ undrain
//   any state -> EJECTED (eject), -> LOST (connection or heartbeat lost)
//   EJECTED -> FREE (undrain, or its quarantine is over); LOST -> FREE, DRAINED, EJECTED (HELLO;
//   marks stay)
extern const struct sm member_sm;

struct member {
    // What a heartbeat touches, of thousands ten times a second each.
    enum coord_node_state state;
    uint32_t rank;           // stage * tensor_n + tensor
    struct replica *replica; // IN_REPLICA, DRAINING; else NULL
    uint64_t heartbeat_us;
    bool has_gpu; // it has told figures of one, now or before
    struct msg_heartbeat heartbeat;

    char name[LIMIT_NAME];
    char *host, *backend; // owned
    uint64_t host_hash;
    uint64_t incarnation, conn, pulse_conn; // conns: 0 = none
    uint32_t pid;
    enum member_mark mark;
    bool holds; // the weights of `held_rank`, loaded for held_replica
    uint64_t held_replica;
    uint32_t held_rank;
    uint64_t held_fingerprint; // of the model in its memory; 0 = not known
    struct {
        char *shm, *tcp, *verbs;   // owned; NULL = nowhere
    } weights;                     // where it gives the model's files
    struct weights_figures loaded; // how it came by them
    bool silent;                   // its time ran out; lost if the next look finds it silent still
    uint32_t joins, faults;
    char *fault; // owned; NULL = none
    uint64_t fault_us;
    struct timer timer;
    struct timer quarantine_timer;
    uint32_t quarantines;       // so far; forgotten after a good time
    uint64_t quarantine_end_us; // of the last one
    bool on_trial;              // since then
    uint64_t doubt;             // != 0: one of the ranks of that epoch fails, maybe this one
    bool doubt_slow;            // it is only slow
    uint32_t flaps;             // faults since flap_us
    uint64_t flap_us;
    struct waiter *drains; // DRAIN commands to answer
    struct member *prev, *next;
    UT_hash_handle hh; // by name
};

struct conn {
    uint64_t id;
    struct member *member;
    bool pulse; // carries heartbeats only
};

//           nodes suffice          all ranks FORMED           right answer
//   VACANT ---------------> FORMING ----------------> PROVING --------------> READY <--+ undrain
//     ^                        |                         |                     | |drain|
//     |                        |                         |                     | +-> DRAINING
//     +------------------------+-------------------------+---------------------+---------+
//       fenced: rank lost, hung, faulty, wrong, slow; forming failed; operator; empty after drain
//   Without golden probes FORMING leads to READY.
extern const struct sm replica_sm;

// How far a rank is with the two rounds of forming (proto/msg.h).
enum rank_phase { RANK_LOADING, RANK_PREPARED, RANK_FORMED };
struct rank_link {
    enum rank_phase phase;
    char *shm, *tcp, *verbs; // owned; where its peers reach it in this epoch; NULL before PREPARED
    char *mover_shm, *mover_tcp, *mover_verbs; // the same for its mover (transfer.h)
    bool has_mover;
};

// Its golden probe.
struct prober {
    uint64_t request; // under way; 0 = none
    uint64_t sent_us;
    struct probe_answer got;  // so far
    struct probe_answer last; // n 0 = never
    uint64_t last_fingerprint;
    uint64_t idle_us;  // how long it took while the replica had nothing else to do; 0 = not known
    uint32_t failures; // in a row
    uint32_t tries;    // of measuring idle_us
    bool again;        // ask once more at once
    struct timer timer;
};

// What it told of its prefix cache in this epoch (caches.c).
struct cache {
    uint64_t *names; // owned; by block, 0 = none; NULL: nothing was told yet
    uint32_t blocks; // that are followed
    uint32_t named;
    uint64_t digest, seq; // seq: of the last report
    bool asked;           // all of it is to come again
};

struct replica {
    uint64_t id, epoch; // epoch 0 = vacant
    struct pool *pool;  // never changes
    enum coord_replica_state state;
    enum coord_role role;
    bool serves;  // READY, and takes requests: on the ring (roles.c)
    bool retired; // not wanted any more (scale.c): drains, then stays VACANT
    uint64_t since_us;
    struct member **ranks;   // owned array of pool->ranks_n; NULLs while vacant
    struct rank_link *links; // owned array, per rank
    uint32_t kv_free, waiting;
    uint32_t prepared_n, formed_n;
    uint64_t fingerprint;
    uint32_t max_seqs, max_context, kv_blocks, block_tokens;
    uint32_t transport;           // enum transport_choice among its ranks; AUTO: one rank
    struct request_list running;  // RUNNING
    struct request_list leaving;  // MOVING and CLOSING, oldest CANCEL first
    uint32_t moving_n;            // of leaving
    uint32_t preempting_n;        // of leaving: their places are given to others already
    uint32_t soft_n[QUEUE_BANDS]; // running ones that may be preempted, by lane_band
    bool reforming;               // DRAINING because of a FAILOVER; formed anew when empty
    struct waiter *reforms;       // FAILOVER commands to answer
    struct timer reform_timer;
    uint32_t reserved_n;          // places held for requests whose KV is on its way here
    uint32_t sending_n;           // transfers from here
    uint64_t backlog;             // tokens of running requests that have no token yet
    uint32_t suspects;            // placed requests with `suspect`
    uint32_t fails;               // in a row
    uint32_t form_fails;          // could not be formed, so often since it was READY last
    uint64_t forms, fences;
    struct timer timer, cancel_timer;
    struct prober probe;
    struct pace pace;
    struct latency latency;
    struct cache cache;
    struct circuit circuit;
    struct timer circuit_timer;
    uint64_t busy_us, busy_step; // last step that left work; 0 = idle
    uint64_t slow_since_us, slow_acquitted_us;
    uint32_t full_seqs; // credits once its trial is over
    char *fault;        // owned; NULL = never
    char suspect[LIMIT_NAME];
    uint64_t fault_us;
};

// Replicas that serve the same purpose, with the requests that wait for one of them. What runs in a
// pool stays in it: all its replicas hold one model, others may hold another.
struct pool {
    uint32_t index;                            // in coord.pools
    struct coord_pool set;                     // its strings and tokens are owned
    uint32_t ranks_n;                          // of each replica: stages * tensor
    uint32_t replicas_n, formed_n, draining_n; // all; not VACANT; DRAINING
    uint32_t ready_n;                          // READY
    uint32_t warm_n;                           // of them those that serve: members of the ring
    uint32_t prefill_n;                        // replicas of that role
    uint32_t open_n; // replicas whose circuit is open
    bool exceptions; // at the last look there was one of either
    struct retry retry;
    uint32_t retrying_n; // requests that were moved and have not answered since
    struct ring ring;
    uint32_t credits, load; // of replicas that serve: allowed and placed
    uint32_t credits_known; // when there were last any
    struct queue queues[QUEUE_PLAIN];
    struct fair fair;
    uint32_t moving_n;            // MOVING
    uint32_t soft_n[QUEUE_BANDS]; // of replicas that serve
    struct eta eta;
    struct kvrate kvrate;
    uint32_t landed_n;         // transfers that wait for their source to let go
    struct kvindex caches;     // of its replicas' prefix caches
    uint32_t block_tokens;     // 0 = not known
    struct latency latency;    // of all its replicas
    uint32_t max_context;      // 0 = not known
    struct probe_answer known; // n 0 = not yet
    uint64_t known_fingerprint;
    bool known_configured;
    uint64_t admitted;              // requests
    uint32_t wanted;                // replicas that are not retired
    uint32_t serial;                // of a version that a rollout brought; 0 = of the configuration
    uint64_t fingerprint;           // of its replicas when one was last formed; 0 = not known
    int score_milli;                // of an eval; -1 = none
    struct rollout_figures figures; // since the last rollout from or to it began
    struct pool *lender;            // gave a replica for as long as requests are bound to this one
    struct elastic elastic;
};

// A rollout, or how the last one ended.
struct shift {
    enum rollout_state state;
    struct pool *from, *to; // NULL = there was none
    struct rollout_plan plan;
    uint32_t step;     // of plan.steps
    uint32_t replicas; // wanted of both together
    uint32_t weight;   // that `from` had among the pools of the model
    uint64_t since_us; // of the state
    char why[200];
};

enum { RATE_TOKENS, RATE_REFUSED, RATE_ERRORS, RATE_FENCES, RATE_PREFILL, RATE_HITS, BREAKER_RATES };

struct coord {
    struct coord_config cfg;
    uint64_t now_us;
    uint64_t epoch; // highest ever used

    struct arena arena; // of this step
    struct coord_action *actions;
    size_t actions_n, actions_cap;
    struct timers timers;
    uint64_t timer_set_us; // as last told to the shell
    struct timer notice_timer, pace_timer, breaker_timer, shift_timer, elastic_timer;
    struct shift shift;
    uint32_t versions_n; // serial of the last one
    bool state_changed;
    char *state;             // owned; as told last
    uint64_t state_revision; // its
    struct coord_nodes nodes_told;
    struct breaker *breakers; // owned
    double rates[BREAKER_RATES]; // per second (breakers.c)
    uint64_t rates_before[BREAKER_RATES];
    uint32_t breakers_n;
    uint64_t probes_n;

    struct idmap conns;
    struct member *members_by_name;      // LOST ones too
    struct member *members;              // in order of arrival
    uint32_t members_n, free_n;          // free_n: FREE
    struct pool *pools[COORD_MAX_POOLS]; // owned; the first is the default
    uint32_t pools_n;
    struct replica **replicas; // owned, by id - 1; of all pools
    uint32_t replicas_n, replicas_cap;
    bool place;          // something changed that placement looks at
    uint32_t draining_n; // replicas

    struct idmap requests;            // all that are known
    struct request *requests_by_time; // the same, in the order of their arrival
    struct tenants tenants;
    struct session *sessions; // owned table of POOL_SESSIONS (pools.c)
    struct request_list retained;
    uint64_t retained_tokens;
    uint32_t live_n;            // QUEUED, RUNNING, MOVING
    struct transfer *transfers; // under way
    uint32_t transfers_n;
    uint64_t transfers_begun;
    bool closing;
    struct waiter *closes;
    struct coord_stats stats; // the counters of it
};

#define CONTAINER_OF(p, type, member) ((type *)((char *)(p)-offsetof(type, member)))

// ---- coord.c ----
struct coord_action *core_emit(struct coord *c, enum coord_action_kind kind);
void core_send(struct coord *c, uint64_t conn, struct msg msg); // copies the struct, not its arrays
void core_trace(struct coord *c, enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void core_arm(struct coord *c, struct timer *t, enum timer_kind kind, uint64_t due_us);
void core_disarm(struct coord *c, struct timer *t);
bool waiter_add(struct waiter **list, uint64_t tag); // false: enough are waiting already
void waiters_answer(struct coord *c, struct waiter **list, enum status s, const char *text);
void waiters_free(struct waiter **list);

// ---- members.c ----
void members_up(struct coord *c, uint64_t conn, const struct msg *hello);
void members_down(struct coord *c, uint64_t conn);
void members_restore_mark(struct coord *c, const struct coord_admin *a);
void members_timer(struct coord *c, struct member *m);
struct member *members_find(const struct coord *c, const char *name); // NULL = none
void member_move(struct coord *c, struct member *m, enum coord_node_state to);
// Back from a replica, or fresh: FREE, unless marked or suspected.
void member_release(struct coord *c, struct member *m, bool suspect);
void member_blame(struct coord *c, struct member *m, const char *text);
void members_free(struct coord *c);
void member_watch(struct coord *c, struct member *m); // arm its heartbeat timeout

struct conn *conn_find(const struct coord *c, uint64_t id); // NULL = none
void member_lose(struct coord *c, struct member *m, enum status s, const char *why);
void protocol_error(struct coord *c, struct member *m, uint64_t conn, const char *text);

// ---- messages.c ----
void members_msg(struct coord *c, uint64_t conn, const struct msg *m);
bool member_usable(const struct coord *c, const struct member *m); // for a new replica

// ---- pools.c ----
// What is wrong with it, for the step's caller; NULL = nothing.
const char *pool_nonsense(const struct coord_pool *set);
// Adds it and `set->replicas` vacant replicas, also while the cluster runs. Copies `set`. NULL:
// there are COORD_MAX_POOLS, or COORD_MAX_REPLICAS, already.
struct pool *pool_add(struct coord *c, const struct coord_pool *set);
void pools_free(struct coord *c);
struct pool *pool_find(const struct coord *c, const char *name); // NULL = none
// The pool for a new request (or a restored one that has no tokens yet). NULL: no pool has the
// model; *why_out is a text then.
struct pool *pool_choose(struct coord *c, const struct coord_submit *s, const char **why_out);
// It is another version's from now on: nothing of the old one may be left.
void pool_become(struct coord *c, struct pool *p, const struct coord_pool *set);
struct pool *pool_of_model(const struct coord *c, const char *model, uint64_t fingerprint);
static inline uint32_t pool_waiting(const struct pool *p)
{
    return p->queues[QUEUE_SUSPECT].n + p->queues[QUEUE_MOVED].n + p->fair.n;
}

// ---- scale.c ----
void pool_scale(struct coord *c, struct pool *p, uint32_t n);
void pool_set_weight(struct coord *c, struct pool *p, uint32_t weight);
uint32_t pool_bound(const struct coord *c, const struct pool *p); // requests that go on only here
bool pool_all_there(const struct coord *c, const struct pool *p); // all that nodes suffice for
// A request without tokens goes on wherever new ones would.
void pool_rebind(struct coord *c, struct request *q);
bool pool_leaving(const struct coord *c, const struct pool *p); // retired ones still drain

// ---- scaling.c ----
void scaling_timer(struct coord *c);
void scaling_tell(struct coord *c);
uint32_t scaling_nodes_wanted(const struct coord *c);

// ---- state.c ----
void state_tell(struct coord *c);
STATUS_MUST_USE enum status state_restore(struct coord *c, const char *text, struct errmsg *err);

// The session of a request that was admitted to p: its next ones go there as well.
void pool_note_session(struct coord *c, uint64_t session, struct pool *p);

// ---- replicas.c ----
enum fence_kind {
    FENCE_LOST,  // a rank is gone, or hangs
    FENCE_FAULT, // a rank reported that the replica broke, or broke the protocol
    FENCE_FORM,  // could not be formed
    FENCE_ORDER, // an operator wants it
    FENCE_EMPTY, // drained
};
struct fence {
    enum fence_kind kind;
    struct member *suspect; // NULL = unknown
    const char *why;        // "node 2 heartbeat lost"
};
struct replica *replica_add(struct coord *c, struct pool *p);
void replicas_free(struct coord *c);
struct replica *replicas_find(const struct coord *c, uint64_t id); // NULL = none
void replica_move(struct coord *c, struct replica *r, enum coord_replica_state to);
void links_clear(struct replica *r);
void replica_fence(struct coord *c, struct replica *r, const struct fence *f);
void replica_drain(struct coord *c, struct replica *r);
void replica_undrain(struct coord *c, struct replica *r);
void replica_cancel_timer(struct coord *c, struct replica *r);
void replica_watch(struct coord *c, struct replica *r); // judge its health
// The credits in use. A lead takes twice as many dispatches (node/batch.h), so that a request that
// gives way and the one that takes its place can be on their way at once.
static inline uint32_t replica_load(const struct replica *r)
{
    return r->running.n + r->leaving.n - r->preempting_n + r->reserved_n;
}

// ---- roles.c ----
void role_init(struct replica *r, uint32_t index);     // in its pool
void roles_settle(struct coord *c, struct replica *r); // it became READY, or ceased to be
void replica_serve(struct coord *c, struct replica *r, bool on);
bool replica_hands_over(const struct replica *r);
void replica_set_role(struct coord *c, struct replica *r, enum coord_role role);

// ---- versions.c ----
void versions_order(struct coord *c, const struct coord_admin *a);
void scale_order(struct coord *c, const struct coord_admin *a);
void versions_turn(struct coord *c);
void versions_arm(struct coord *c);
// A failure of it speaks against its version, not against its nodes.
bool versions_doubt(const struct coord *c, const struct replica *r);
const struct pool *versions_first(const struct coord *c); // gets nodes before others; NULL = none
struct pool *version_add(struct coord *c, const struct pool *from, uint32_t serial,
                         const char *model_dir);
void versions_note_fence(struct coord *c, const struct replica *r, enum fence_kind kind);
void versions_note_first(struct coord *c, const struct request *q);
void versions_note_end(struct coord *c, const struct request *q, enum finish_reason finish);

// ---- prober.c ----
bool prober_on(const struct replica *r);
void prober_prove(struct coord *c, struct replica *r); // all ranks are formed
void prober_watch(struct coord *c, struct replica *r); // it is READY
void prober_ask(struct coord *c, struct replica *r);   // there is a suspicion
void prober_reset(struct coord *c, struct replica *r);
bool prober_token(struct coord *c, struct replica *r, const struct token_out *t); // was it its?
void prober_timer(struct coord *c, struct replica *r);

// ---- quarantine.c ----
// Fences it; `what` reads on after the name of a node.
void quarantine_replica(struct coord *c, struct replica *r, const char *what, bool slow);
void quarantine_member(struct coord *c, struct member *m, const char *why);
void quarantine_timer(struct coord *c, struct member *m);
void quarantine_note_fault(struct coord *c, struct member *m, const char *why);
void quarantine_acquit(struct coord *c, struct replica *r);
bool quarantine_slow_doubt(const struct replica *r);
void quarantine_pace(struct coord *c, struct replica *r, const struct msg_tokens *t);
void quarantine_pace_timer(struct coord *c);
void quarantine_trial(struct coord *c, struct replica *r); // it is about to serve
void quarantine_trial_over(struct coord *c, struct replica *r);
bool quarantine_on_trial(const struct coord *c, const struct replica *r);

// ---- forming.c ----
void replica_ready(struct coord *c, struct replica *r);
const char *replica_names(struct coord *c, const struct replica *r); // "3, 4"
void replicas_place(struct coord *c);
void replica_prepared(struct coord *c, struct member *m, const struct msg_prepared *p);
void replica_formed(struct coord *c, struct member *m, const struct msg_formed *f);
void replica_timer(struct coord *c, struct replica *r);

// ---- sources.c ----
struct sources {
    uint64_t fingerprint;    // 0: there are none
    struct member **members; // of the step's arena
    uint32_t n;
};
void sources_note(struct member *m, const struct msg_formed *f);
void sources_forget(struct member *m);
struct sources sources_find(struct coord *c, const struct pool *p);
// Fills in the fields of f; `turn`: who is named first.
void sources_offer(struct coord *c, const struct sources *s, const struct member *to, uint64_t turn,
                   struct msg_form *f);

// ---- lifecycle.c ----
void requests_submit(struct coord *c, const struct coord_submit *s);
void requests_restore(struct coord *c, const struct coord_restore *s);
void requests_stop(struct coord *c, uint64_t id, uint32_t kept);
void requests_attach(struct coord *c, uint64_t id, bool attach);
void requests_cancel(struct coord *c, uint64_t id);
void requests_wait_timer(struct coord *c, struct request *q);
void requests_life_timer(struct coord *c, struct request *q);
void request_end(struct coord *c, struct request *q, enum finish_reason finish, enum status s,
                 const char *text);
void request_retain(struct coord *c, struct request *q); // CLOSING whose replica let go -> DONE
void requests_free(struct coord *c);
struct request *requests_find(const struct coord *c, uint64_t id); // NULL = none
// The client still waits for more of it.
static inline bool request_is_live(const struct request *q)
{
    return q->state < COORD_REQ_CLOSING;
}

// ---- tokens.c ----
void requests_tokens(struct coord *c, struct replica *r, const struct msg_tokens *t);
void requests_cancelled(struct coord *c, struct replica *r, uint64_t id);

// ---- routing.c ----
struct replica *route(struct coord *c, struct request *q); // NULL: no place for it now
// Tokens of q that r seems to have in its prefix cache.
uint32_t routing_cached(struct coord *c, const struct request *q, const struct replica *r);
void routing_first_token(struct coord *c, struct request *q, const struct token_out *t);
void routing_step(struct coord *c, struct replica *r, uint64_t us);

// ---- circuits.c ----
void circuit_note_failure(struct coord *c, struct replica *r, const char *why);
void circuit_note_success(struct coord *c, struct replica *r);
void circuit_timer(struct coord *c, struct replica *r);
void circuit_ready(struct coord *c, struct replica *r);
// r's lead cannot serve q, which is off its lists. True: it waits for another replica.
bool circuit_refused(struct coord *c, struct request *q, struct replica *r);
void circuit_served(struct coord *c, struct request *q); // its first token since its dispatch came
bool retry_may_go(const struct coord *c, const struct pool *p);
void retry_begin(struct coord *c, struct request *q); // it is placed
void retry_end(struct request *q);
void retry_served(struct coord *c, struct pool *p, uint32_t tokens);
double retry_budget(const struct coord *c, const struct pool *p); // tokens

// ---- caches.c ----
void cache_begin(struct coord *c, struct replica *r); // a new epoch: all is empty
void cache_drop(struct replica *r);
void cache_report(struct coord *c, struct replica *r, const struct msg_kv_cached *m);

// ---- dispatch.c ----
void request_enqueue(struct coord *c, struct request *q);
void request_dequeue(struct coord *c, struct request *q);
void request_unplace(struct coord *c, struct request *q); // off its replica's lists
void request_leave(struct coord *c, struct request *q, enum coord_request_state to); // + CANCEL
void dispatch_pump(struct coord *c);
bool dispatch_to(struct coord *c, struct request *q, struct replica *r); // false: it ended q

// ---- handover.c ----
void handover_pump(struct coord *c);
// FAILOVER of a replica that lives and whose requests can take their KV along: it hands over, for the
// time of a lease at most, and is fenced then. False: there is nothing to be gained.
bool handover_reform(struct coord *c, struct replica *r, uint64_t tag);
void handover_reform_timer(struct coord *c, struct replica *r);
// The replica that computes q's prompt, when it is long, for the target; NULL: the target does.
struct replica *handover_pair(struct coord *c, const struct request *q,
                              const struct replica *target);
// q was given to the replica that computes it for `target`.
void handover_offer(struct coord *c, struct request *q, struct replica *target);
void backlog_add(struct request *q); // it was placed
void backlog_clear(struct request *q);
void backlog_measure(struct coord *c, const struct request *q, const struct token_out *first);

// ---- preempt.c ----
void preempt_note(struct coord *c, struct request *q, bool runs); // enters or leaves `running`
void preempt_first_token(struct coord *c, struct request *q);     // sets first_token_us
void preempt_pump(struct coord *c, struct pool *p);
uint32_t preempt_soft(const struct pool *p, uint8_t band); // places that a request may take

// ---- breakers.c ----
void breakers_timer(struct coord *c);
const char *breakers_refuse(struct coord *c, uint8_t band,
                            uint32_t *retry_ms); // NULL = it may come
uint32_t breakers_cap(const struct coord *c, uint32_t max_tokens);
bool breakers_fall_back(const struct coord *c);

// ---- notices.c ----
void notices_arm(struct coord *c);
void notices_all(struct coord *c);
void notices_one(struct coord *c, uint64_t id); // a request just submitted, when it waits
// Estimated wait of the request at a position (1 = next) of those that wait in the pool.
uint64_t notices_wait_us(const struct pool *p, uint8_t band, uint32_t position);

// ---- admin.c ----
void admin_do(struct coord *c, const struct coord_admin *a);
void admin_answer(struct coord *c, uint64_t tag, enum status s, const char *text);
// Quarantines it until UNDRAIN; its replica is fenced. `why` is a whole sentence's worth.
void member_eject(struct coord *c, struct member *m, const char *why);
