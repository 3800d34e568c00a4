// The control core of a node: one call from event to actions. It owns the node's membership (which
// rank of which replica, at which epoch) and, on a lead, the batch scheduler. It makes no call, has
// no clock, no I/O and no randomness; the libuv shell and the simulator are its two callers.
//
// What the caller ("the shell") does:
//  * connects to the coordinator, says HELLO, answers WELCOME, reconnects, sends heartbeats;
//  * turns what happens into events, in the order in which it happens: COORD_UP after HELLO was
//    written, MSG for each message, ENGINE for each engine_poll that gave something, COORD_DOWN
//    when the connection broke, TIMER when the time of the last TIMER action has come;
//  * does the actions of a step in their order before the next step. A status < 0 from
//    engine submit becomes an ENGINE_FAULT event of that epoch.
//
// Membership (node.c has the table):
//
//            FORM                 engine formed
//   IDLE ----------> FORMING ----------------------> READY
//    ^                |  ^                             |
//    |  form failed,  |  | FORM of a higher epoch,     | engine fault,
//    |  DISSOLVE      |  | from any state              | coordinator lost (lead)
//    +----------------+  +-----------------------------+
//    |                                                 v
//    +------------------------------------------------ VOID
//                       DISSOLVE
//
//  * FORMING takes two rounds (proto/msg.h): FORM -> engine form -> ENGINE_PREPARED -> PREPARED
//    sent; LINK -> engine link -> ENGINE_FORMED -> FORMED sent. A LINK whose members are not as
//    many as the ranks, an engine that fails or takes longer than form_timeout_us: FORMED with a
//    status < 0, back to IDLE. COORD_DOWN: VOID.
//  * An epoch is one number over all replicas of a cluster, and it grows. A FORM of a higher epoch
//    replaces whatever the node is in. A FORM that is not higher than any seen is answered by
//    FORMED with STALE_EPOCH (a repeated FORM of the current one is only counted); every other
//    message of another (replica, epoch) than the current is dropped and counted.
//  * VOID: still names its replica in heartbeats, but does no work and accepts none; only FORM and
//    DISSOLVE lead out. After a fault the engine is dissolved; after COORD_DOWN it stays linked up
//    (the coordinator forms anew after the next HELLO, and the shard stays loaded either way).
//  * A rank that is not the lead stays READY over a COORD_DOWN: it has no work of its own.
//  * Only the lead (0,0) takes DISPATCH and CANCEL, and only while READY.
//
// Answers that the coordinator relies on:
//  * Each step of the engine gives at most one TOKENS with all tokens of that step.
//  * A dispatch that cannot be served (prompt does not fit the context, bad journal, more than the
//    lead can hold) is answered by a TOKENS of step 0 with one entry: finish ERROR, or LENGTH when
//    the journal already fills the context, and token -1 = "no token". The reason is in `TRACE`.
//  * A finish ends the request here: no CANCEL is needed, its credit is free again.
//  * CANCEL is always answered by CANCELLED, also for a request not known (any more): at once, or
//    when the step that computes it has returned. No token of it follows.
//  * A request that is here already is not accepted twice: the second DISPATCH is dropped.
//  * A DISPATCH with prefill_only: the request is gone with its first token, whose `finish` is
//  NONE.
//  * Transfers of KV (proto/msg.h): a second KV_RECEIVE or KV_SEND of a transfer that is here is
//    dropped. Blocks held for transfers never keep a running sequence from going on: when it finds
//    no other, transfers are stopped with FULL, the youngest first.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "node/engine.h"
#include "proto/msg.h"

struct node;

struct node_config {
    uint32_t prefill_chunk;   // prompt rows in one step while others decode; 0 = 128
    uint64_t form_timeout_us; // an engine that takes longer to form counts as hung; 0 = 10 minutes
};

enum node_state { NODE_IDLE, NODE_FORMING, NODE_READY, NODE_VOID };

enum node_event_kind {
    NODE_EV_COORD_UP,
    NODE_EV_COORD_DOWN,
    NODE_EV_MSG,
    NODE_EV_ENGINE,
    NODE_EV_TIMER,
};

struct node_event {
    enum node_event_kind kind;
    uint64_t now_us; // monotonic, never goes back
    union {
        const struct msg *msg;             // borrowed until the actions are done
        const struct engine_event *engine; // the same
    };
};

enum node_action_kind {
    NODE_ACT_SEND,     // msg: to the coordinator; not sent while the connection is down
    NODE_ACT_FORM,     // form: engine_ops.form
    NODE_ACT_LINK,     // link: engine_ops.link
    NODE_ACT_DISSOLVE, // epoch: engine_ops.dissolve
    NODE_ACT_SUBMIT,   // plan: engine_ops.submit
    NODE_ACT_KV,       // kv: engine_ops.kv
    NODE_ACT_TIMER,    // at_us: replaces the timer set before; UINT64_MAX = none
    NODE_ACT_TRACE,    // text: one line for people, without time and name of the node
};

struct node_action {
    enum node_action_kind kind;
    union {
        struct msg msg;
        const struct msg_form *form; // borrowed from the event's message
        const struct msg_link *link; // the same
        uint64_t epoch;
        const struct step_plan *plan;
        struct kv_order kv; // its peer is borrowed from the event's message
        uint64_t at_us;
        const char *text;
    };
};

// Everything here is the core's, valid until the next step.
struct node_actions {
    const struct node_action *v;
    size_t n;
};

struct node *node_create(const struct node_config *config);
void node_destroy(struct node *n); // NULL is fine

void node_step(struct node *n, const struct node_event *ev, struct node_actions *out);

// For invariants, traces and `ctl`. Owner thread only.
enum node_state node_state(const struct node *n);
const char *node_state_name(enum node_state s);
bool node_is_lead(const struct node *n);
uint64_t node_replica(const struct node *n);   // 0 = in none
uint64_t node_epoch(const struct node *n);     // 0 = in none
uint32_t node_sequences(const struct node *n); // known to the scheduler, running and waiting
uint32_t node_transfers(const struct node *n); // with blocks held for them
// When the first of their leases runs out, of those that are not being stopped; UINT64_MAX = none.
uint64_t node_lease_us(const struct node *n);
bool node_has_request(const struct node *n, uint64_t request);
// Of the prefix cache of a working lead; 0 otherwise: for the simulator.
uint64_t node_cache_digest(const struct node *n);
uint32_t node_cache_untold(const struct node *n); // changes not reported yet
// Asserts every invariant of core, scheduler and KV pool (references add up, each sequence in one
// state). The simulator calls it after every step; costs O(blocks).
void node_check(const struct node *n);

struct node_counters {
    uint64_t stale_epoch; // messages and engine events of another epoch, dropped
    uint64_t unexpected;  // right epoch, wrong state or rank, or an unknown kind: dropped
    uint64_t duplicate;   // FORM or DISPATCH of what is here already
    uint64_t refused;     // DISPATCH answered with a finish and no token
    uint64_t steps, tokens, preemptions;
    uint64_t prefix_tokens;                     // prompt and journal tokens found in the KV cache
    uint64_t kv_transfers, kv_failed, kv_bytes; // ended OK, otherwise; moved by this side
};
struct node_counters node_counters(const struct node *n);

// The pulse: what the heartbeat thread reads. The core writes it at the end of each step; no lock.
// Lives as long as the node.
struct node_pulse;
struct node_pulse *node_pulse(struct node *n);
// The shell's loop says that it turned (at least every heartbeat interval): loop_age_ms counts from
// here. Owner thread.
void node_pulse_turn(struct node_pulse *p, uint64_t now_us);
// Fills a heartbeat, from any thread. `progress` comes from engine_ops.progress; rss_bytes is left
// 0 for the caller.
void node_heartbeat(const struct node_pulse *p, const struct rank_progress *progress,
                    uint64_t now_us, struct msg_heartbeat *out);
