// The leader's side of copies: clients see an action only when every follower has what it stands on,
// for any of them may be the next leader. Pure: actions of the core in, actions that clients may see
// out.
//
// Every record that is sent gets the next number; an action waits for the number of the last record
// before it. Order is kept: what could be seen waits behind what may not be yet. What a follower is
// told before SYNCED has no number: it is no news to the others.
#pragma once

#include "coordinator/coord.h"
#include "proto/copy.h"

enum copy_mode {
    COPY_OFF,   // no copies are sent
    COPY_ASYNC, // clients do not wait: what a follower lacks is computed again, to the same tokens
    COPY_SYNC,
};

struct held;

enum { COPIER_PEERS = 16 };

struct copier_peer {
    uint64_t id;                  // the caller's: its connection
    bool synced;                  // it has everything up to `acked`
    bool far;                     // nobody waits for it
    uint64_t acked;               // 0 = not even SYNCED
    uint64_t watched, watched_us; // acked when copier_stuck last saw it move, and that time
};

struct copier {
    enum copy_mode mode;
    uint64_t seq; // of the last record sent; 0 = none
    struct copier_peer peers[COPIER_PEERS];
    uint32_t peers_n;
    struct held *first, *last;
    uint32_t held_n;
};

void copier_finish(struct copier *c);
uint64_t copier_stamp(struct copier *c); // the number of the next record
// The follower gets SYNCED, with the number that is returned: from now on clients wait for it, first
// for its acknowledgement of that; what they saw before is in what it was told before. 0: there are
// too many.
uint64_t copier_syncing(struct copier *c, uint64_t peer, bool far);
void copier_ack(struct copier *c, uint64_t peer, uint64_t seq);
void copier_lost(struct copier *c, uint64_t peer); // nobody waits for it any more
const struct copier_peer *copier_peer(const struct copier *c, uint64_t peer); // NULL = none
// Called every now and then. A follower that owes an acknowledgement and has given none for
// limit_ms (one far away: ten times as long), so that clients must not wait for it; 0 = none.
uint64_t copier_stuck(struct copier *c, uint64_t now_us, uint32_t limit_ms);
// True: it is kept back (a copy of it); false: do it now.
bool copier_hold(struct copier *c, const struct coord_action *a);
// The next that clients may see; valid until the next call. NULL: none.
const struct coord_action *copier_next(struct copier *c);

// What followers must know of an action; false: nothing. seq and epoch are left to the caller.
// Before it is held: what clients will see stands on it. The end of a request (FORGET, REFUSED) is
// told only after clients have seen it: copier_record_after.
bool copier_record(const struct coord_action *a, struct copy_record *out);
// The SUBMIT of a request as it is known now, without what the shell adds (`head`); borrows from v.
struct copy_record copier_submit(const struct coord_request_view *v);
bool copier_record_after(const struct coord_action *a, struct copy_record *out);
