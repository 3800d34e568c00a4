// Shared by the files of the control core: node.c (life, the switch over events, views),
// node_form.c (which rank of which epoch this node is), node_work.c (what a lead does) and
// node_kv.c (KV blocks that a lead moves from or to other replicas).
#pragma once

#include "node/batch.h"
#include "node/node.h"
#include "node/pulse.h"

enum { NODE_TRACES = 16, NODE_TRACE_BYTES = 256 };

// The two rounds of FORMING. The timer runs while the engine has to answer.
enum form_phase { PHASE_PREPARING, PHASE_PREPARED, PHASE_LINKING };

// A transfer of KV blocks, on the lead of its source or its target.
//
//          KV_RECEIVE            ranks ready             all there
//   FREE --------------> OPENING -----------> MOVING -------------------> HELD (target)
//    |    KV_SEND            |                 ^ |                         |
//    +-----------------------|-----------------+ | ended (source)          | used, cancelled,
//                            |                   +------------> FREE       | deadline
//        failed, cancelled,  +----> STOPPING                               +------------> FREE
//        deadline, no room               |  no rank touches the blocks
//                                        +------------------------------> FREE
enum transfer_state {
    TRANSFER_FREE,
    TRANSFER_OPENING,
    TRANSFER_MOVING,
    TRANSFER_STOPPING,
    TRANSFER_HELD,
};
enum { NODE_TRANSFERS = 32 };

struct transfer {
    enum transfer_state state;
    struct batch_lease *lease; // NULL: FREE
    uint64_t began_us, deadline_us;
    uint32_t first;     // blocks of the chain before it do not move
    uint32_t ordered;   // source: the engine knows those before it
    bool last;          // source: and that no more follow
    enum status status; // STOPPING: why
    uint64_t stopping_us; // since then
    char text[160];
};

struct node {
    struct node_config config;
    enum node_state state;
    bool coord_up;
    uint64_t highest;        // epoch ever seen: fences everything that is not above it
    uint64_t replica, epoch; // 0, 0 in IDLE
    uint64_t engine_epoch;   // that the engine was told to form and not yet to dissolve; 0 = none
    uint32_t stage, tensor;  // of this rank
    uint32_t ranks;          // of the replica
    enum form_phase phase;   // FORMING only
    uint64_t deadline_us;    // of the timer; 0 = never set

    struct batch *batch; // READY lead only
    struct transfer transfers[NODE_TRANSFERS];
    uint32_t transfers_n;
    uint64_t fingerprint; // of the formed model
    uint32_t block_tokens;
    bool moves_kv;       // the engine does
    uint64_t *submit_us; // ring [pipeline]: when the plans under way were made
    uint32_t pipeline;   // of the ring
    uint64_t submitted, returned;

    // Reports of the prefix cache (node_cache.c).
    uint64_t cache_seq;    // of the last one in this epoch
    bool cache_reset;      // the next one starts anew
    uint32_t cache_silent; // steps since then
    bool cache_told;       // in this step of the core: the report borrows cache_changes
    struct kv_change cache_changes[MSG_KV_CHANGES];

    struct node_counters counters;
    struct node_pulse pulse;

    // Of the step under way.
    uint64_t now_us;
    struct node_action *actions;
    size_t actions_n, actions_cap;
    char traces[NODE_TRACES][NODE_TRACE_BYTES];
    size_t traces_n;
    char text[sizeof((struct errmsg *)0)->text]; // of the FORMED or FAULT being sent
    struct token_out refused;
};

// ---- node.c ----

struct node_action *node_act(struct node *n, enum node_action_kind kind);
void node_reserve_actions(struct node *n, size_t cap);
void node_trace(struct node *n, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// NULL while the connection is down: there is nobody to tell. Filled in by the caller.
struct msg *node_send(struct node *n, enum msg_kind kind);
void node_dissolve_engine(struct node *n); // unless it is not formed
void node_set_timer(struct node *n, uint64_t at_us);
// Moves, and drops what the new state does not have: timer, batch, membership.
void node_enter(struct node *n, enum node_state to);

// ---- node_form.c: messages and engine events that change the membership ----

void node_on_form(struct node *n, const struct msg_form *f);
void node_on_prepared(struct node *n, const struct engine_event *ev);
void node_on_link(struct node *n, const struct msg_link *l);
void node_on_formed(struct node *n, const struct engine_formed *f);
void node_form_failed(struct node *n, enum status status, const char *text);
void node_on_dissolve(struct node *n, const struct msg_dissolve *d);
// The epoch is over: tells the coordinator whom to suspect.
void node_fault(struct node *n, const struct step_result *r, const char *text);

// ---- node_work.c: a READY lead ----

void node_on_dispatch(struct node *n, const struct msg_dispatch *d);
void node_on_cancel(struct node *n, uint64_t request);
void node_on_step(struct node *n, const struct step_result *r);

// ---- node_cache.c: a READY lead's reports of its prefix cache

void node_cache_begin(struct node *n);   // a new batch, empty
void node_cache_stepped(struct node *n); // reports now and then
void node_on_kv_list(struct node *n, bool all);

// As many plans as the pipeline takes.
void node_pump(struct node *n);

// ---- node_kv.c: a READY lead ----

void node_on_kv_receive(struct node *n, const struct msg_kv_receive *m);
void node_on_kv_send(struct node *n, const struct msg_kv_send *m);
void node_on_kv_cancel(struct node *n, uint64_t transfer);
void node_on_kv_report(struct node *n, const struct kv_report *r);
// After every event: what became full is sent on, leases run out, the timer is set.
void node_kv_turn(struct node *n);
void node_kv_drop_all(struct node *n);
// When the engine was first asked to stop what it has not stopped yet; 0 = there is no such thing.
uint64_t node_kv_stopping_us(const struct node *n); // their leases went with the batch
void node_kv_check(const struct node *n);
