// A coordinator that follows the leader and serves clients all the same. Pure: records of the leader
// and wishes of clients in; frames for the leader and what clients may see out.
//
// Its clients' requests go up as ASK and come back as records, like everybody's, so that the shadow
// (shadow.h) is what its clients are served from: any of the leader's requests can be read here. The
// core that decides is the leader's; this is what makes its loss harmless for clients here:
//
//   - a request is kept (`asks`) until a record of it comes back, and asked again of the next leader;
//   - what the last leader's records told stays (`before`) until the next one has told what it has; a
//     request that has a client here and that the next one does not know is asked again with its
//     journal;
//   - which requests have a client here (`reads`) is told to each leader anew.
//
// When this one leads itself, follower_inherit gives out all of that for a core of its own.
#pragma once

#include "coordinator/shadow.h"

struct follower_read {
    uint64_t request;
    uint32_t n;  // clients here
    bool cancel; // one of them wants no more of it
    UT_hash_handle hh;
};

struct follower {
    struct shadow shadow;   // of this leader
    struct shadow before;   // of the one before, while this one has not told all
    struct shadow asks;     // of clients here, no record came back yet; deadlines are absolute
    struct follower_read *reads; // hash
    bool up;                // a leader is connected
    bool offer_all;         // this one led: what nobody reads here either, the next one must know
    // A frame for the leader; while `up`. Borrowed until it returns.
    void (*say)(void *arg, const struct copy *c);
    void *arg;
};

void follower_finish(struct follower *f);
void follower_up(struct follower *f);   // connected, HELLO is said
void follower_down(struct follower *f); // the leader is gone; f->shadow is the best there is
// All is here that the leader had: what is not, is nowhere.
bool follower_synced(const struct follower *f);

// A record came. *out: what clients here may see of it, its strings and tokens borrowed from the
// record. False: nothing. LINK_PROTOCOL: close the connection.
STATUS_MUST_USE enum status follower_take(struct follower *f, const struct copy_record *r,
                                          uint64_t now_us, bool *seen, struct coord_action *out,
                                          struct errmsg *err);

// A client's request, a SUBMIT of which deadline_us (0 = none named) is meant to be told; its client
// counts as reading it.
void follower_submit(struct follower *f, const struct copy_record *submit, uint64_t deadline_us,
                     uint64_t now_us);
// The request as it is known here, finished or not; NULL: not known, or not told yet that it was
// admitted. Valid until the next call.
const struct shadow_request *follower_find(const struct follower *f, uint64_t request);
void follower_attach(struct follower *f, uint64_t request);
void follower_detach(struct follower *f, uint64_t request);
void follower_cancel(struct follower *f, uint64_t request);
// One of `asks` whose deadline has passed while there was no leader; it is forgotten. 0 = none.
uint64_t follower_overdue(struct follower *f, uint64_t now_us);

// This one leads now. Gives all requests that another leader had (SUBMIT is what is known, with
// its journal), then those that none has heard of (`fresh`), then who reads what. All is forgotten
// then; borrowed until the call returns.
const char *follower_state(const struct follower *f); // as the leader told it; NULL = not
struct follower_heir {
    void (*mark)(void *arg, const struct shadow_mark *m);
    void (*request)(void *arg, const struct shadow_request *q, bool fresh);
    void (*reads)(void *arg, uint64_t request, uint32_t clients, bool cancel);
    void *arg;
};
void follower_inherit(struct follower *f, const struct follower_heir *h);
