// A request from admission to oblivion: its journal, and which list and replica it is in.
#pragma once

#include "base/sm.h"
#include "coordinator/coord.h"
#include "coordinator/timers.h"

#define uthash_malloc(bytes) mem_alloc(bytes)
#include <uthash.h>

#include "base/mem.h"

struct replica;
struct pool;
struct tenant;

// Which of the three queues a waiting request is in; served in this order.
enum queue_class {
    QUEUE_SUSPECT, // replicas died under it more than once: one such request per replica at a time
    QUEUE_MOVED,   // its replica broke or drains; ahead of everything new
    QUEUE_PLAIN,   // so many are plain queues (queue.h)
    QUEUE_FAIR = QUEUE_PLAIN, // new, or preempted (fair.h)
};

//            credit                     last token, stop, cancel
//   QUEUED ---------> RUNNING ---------------------------------------------------> DONE -> (freed)
//     ^ ^               | |  \                                                      ^
//     | |  replica lost | |   \ stop, cancel: CANCEL sent                           |
//     | +---------------+ |    +----------------> CLOSING --------------------------+
//     |                   v drain or preempted:     ^     CANCELLED, last token, or replica lost
//     |                   | CANCEL sent             |
//     +---------------- MOVING ---------------------+  stop, cancel
//       CANCELLED, or replica lost; last token -> DONE
//
//   QUEUED -> DONE: cancelled, stopped, given up. QUEUED -> (freed): deadline passed.
extern const struct sm request_sm;

// What every token touches comes first: three lines of memory, of a request that is not in any
// cache when there are a hundred thousand.
struct request {
    uint64_t id;
    enum coord_request_state state;
    uint32_t emitted_n;
    struct replica *replica; // RUNNING, MOVING, CLOSING; else NULL
    int32_t *emitted;        // owned
    size_t emitted_cap;
    uint64_t last_token_us, first_token_us;
    uint64_t started_us;
    struct tenant *tenant; // until it is finished, then NULL
    struct pool *pool;     // that it was admitted to
    uint32_t max_tokens;   // 0 = as many as the context takes; set at the first dispatch
    uint32_t dispatches, dispatch_index; // emitted_n at the last dispatch
    uint32_t strikes_fault, strikes;     // replicas that died under it since its last token
    uint32_t prompt_n, cached_n, pause_us;
    uint64_t fingerprint; // of the model at the last dispatch
    bool suspect;         // counted in replica->suspects
    bool tight;           // deadline_us is its own or its band's, not the default
    bool restored;        // and not dispatched here yet
    bool retrying;        // it was moved, and has not answered since
    bool preempted;       // MOVING or QUEUED because of a higher band
    uint8_t band;
    uint8_t lane_band;      // band that it waits, or was last dispatched, in: `band` and ageing
    enum queue_class class; // while QUEUED
    uint32_t preemptions;   // so often
    enum routed routed;     // how its last replica was chosen
    uint32_t refusals;      // by leads, since it was served last
    uint64_t avoid;         // replica that refused it; 0 = none
    uint32_t hint_n;        // tokens that it seemed to have cached

    struct request *prev, *next;    // in the one list that the state names (core.h)
    struct request *before, *after; // among all, in the order of their arrival
    uint64_t key;                   // for routing
    uint64_t session;               // as submitted
    uint64_t order_us;              // place in its lane (fair.h)
    uint64_t waits_us;              // QUEUED since, for ageing

    int32_t *prompt; // owned; freed when finished
    int32_t stop_ids[MSG_STOP_IDS];
    uint32_t stop_ids_n;
    struct sampling sampling;

    struct timer wait;   // QUEUED: deadline of a request that never started
    struct timer life;   // nobody attached: end of the grace time; DONE: end of retention
    uint64_t leaving_us; // MOVING, CLOSING: when CANCEL was sent
    struct transfer *transfer; // its KV is on its way elsewhere; NULL = it is not
    uint64_t prefer;           // replica that has some of its KV; 0 = none is known
    uint32_t backlog;          // RUNNING: tokens to be computed before its first one from there
    uint32_t kv_tries;         // transfers that failed since the last dispatch
    uint64_t kv_after_us;      // no other one before this time
    uint32_t attached;
    uint64_t submitted_us, placed_us, done_us, deadline_us;
    uint32_t position, eta_ms; // as last told
    enum finish_reason finish;
    enum status status;
    char *text; // owned; NULL = ""
};

// Copies what the submit borrows. `now_us` is the time of admission.
struct request *request_create(const struct coord_submit *s, uint64_t now_us);
void request_destroy(struct request *r);
void request_move(struct request *r, enum coord_request_state to);

enum journal_verdict { JOURNAL_OK, JOURNAL_DUPLICATE, JOURNAL_GAP };
// Where a token with this index belongs.
enum journal_verdict request_judge(const struct request *r, uint32_t index);
void request_append(struct request *r, int32_t token);
// The journal, borrowing the request's arrays.
struct journal request_journal(const struct request *r);

// Routing key: the session, else the first blocks of the prompt, so that equal prefixes meet.
uint64_t request_key(const struct coord_submit *s);
