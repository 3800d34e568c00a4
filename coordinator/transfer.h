// A transfer: the KV cache of one request on its way from the replica that computes it to the one
// that shall go on with it. The source computes on, and the client gets its tokens, until the
// target has the blocks; only then the request is handed over. So a transfer that fails costs
// nothing but itself: the request runs where it runs.
//
//   coordinator              target                 source
//     KV_RECEIVE  ---------->  takes blocks, under a lease
//                 <----------  KV_READY
//     KV_SEND     --------------------------------->  sends blocks, as they fill
//                 <----------  KV_DONE: in its prefix cache
//     CANCEL      --------------------------------->
//                 <---------------------------------  CANCELLED, after the step under way
//     DISPATCH    ---------->  finds the blocks, computes the rest
//
//           KV_READY              KV_DONE of the target        CANCELLED, DISPATCH
//   OFFERED ---------> SENDING ---------------------> LANDED ---------------------> ENDED
//      |   \______________|____________________________^ |
//      |     KV_DONE: it had all of them already         |
//      +------------------+------------------------------+--> ENDED, for a reason (coord.h)
//
// A transfer holds a credit of its target from the beginning, so that the hand-over cannot find the
// place taken. Both nodes hold their blocks under leases of their own, which run out by themselves;
// what is said here only frees them sooner.
#pragma once

#include "coordinator/coord.h"
#include "coordinator/timers.h"

struct coord;
struct replica;
struct request;

extern const struct sm transfer_sm;

struct transfer {
    uint64_t id; // never used again, also not by another coordinator
    enum coord_transfer_state state;
    struct request *q;               // whose it is; q->transfer points here
    struct replica *source, *target; // q runs on source
    uint64_t source_epoch, target_epoch;
    uint32_t tokens_n; // of the chain: whole blocks
    uint32_t blocks, have; // of the chain; of them, the target had before
    uint64_t begun_us, sent_us;
    bool computed; // the source had all of it when it began: `us` is the time of moving alone
    struct timer timer;
    struct transfer *prev, *next;
};

// Whether q's KV may be moved from there at all: it has enough of it, and there is a mover.
bool transfer_worthwhile(const struct coord *c, const struct request *q,
                         const struct replica *source);
// And to there.
bool transfer_fits(const struct coord *c, const struct request *q, const struct replica *source,
                   const struct replica *target);
// q runs on its replica; target serves and has a credit.
void transfer_begin(struct coord *c, struct request *q, struct replica *target);
// Ends it, tells those who hold blocks for it, gives the credit back. NULL is fine.
void transfer_end(struct coord *c, struct transfer *t, enum coord_transfer_end why);
// The source has let go of q (MOVING). Ends what has landed, and returns the replica that q goes on
// at; NULL: none, it waits like others.
struct replica *transfer_landed(struct coord *c, struct request *q);
// r takes no requests any more; r is fenced.
void transfers_leave_target(struct coord *c, struct replica *r);
void transfers_leave_source(struct coord *c, struct replica *r);

// From the lead of r, current.
void transfer_on_ready(struct coord *c, struct replica *r, const struct msg_kv_ready *m);
void transfer_on_done(struct coord *c, struct replica *r, const struct msg_kv_done *m);
void transfer_timer(struct coord *c, struct transfer *t);

void transfers_free(struct coord *c);
void transfers_check(const struct coord *c); // for coord_check
