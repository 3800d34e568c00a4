// The leader's side of copies: clients see an action only when the standby has what it stands on.
// Pure: actions of the core in, actions that clients may see out.
//
// Every record that is sent gets the next number; an action waits for the number of the last record
// before it. Order is kept: what could be seen waits behind what may not be yet.
#pragma once

#include "coordinator/coord.h"
#include "proto/copy.h"

enum copy_mode {
    COPY_OFF,   // no copies are sent
    COPY_ASYNC, // clients do not wait: what the standby lacks is computed again, to the same tokens
    COPY_SYNC,
};

struct held;

struct copier {
    enum copy_mode mode;
    bool synced;                  // a standby has everything up to `acked`
    uint64_t seq, acked;          // last record sent; last one acknowledged
    uint64_t synced_seq;          // of SYNCED, while it is not acknowledged; 0 = none
    uint64_t watched, watched_us; // acked when copier_stuck last saw it move, and that time
    struct held *first, *last;
    uint32_t held_n;
};

void copier_finish(struct copier *c);
uint64_t copier_stamp(struct copier *c); // the number of the next record
// SYNCED was sent with this number: from now on clients wait, first for its acknowledgement; what
// they saw before is in the records before it.
void copier_syncing(struct copier *c, uint64_t seq);
void copier_ack(struct copier *c, uint64_t seq);
void copier_lost(struct copier *c); // no standby any more: nobody waits
// Called every now and then while there is a standby. True: it owes an acknowledgement and has
// given none for limit_ms; clients must not wait for it any longer.
bool copier_stuck(struct copier *c, uint64_t now_us, uint32_t limit_ms);
// True: it is kept back (a copy of it); false: do it now.
bool copier_hold(struct copier *c, const struct coord_action *a);
// The next that clients may see; valid until the next call. NULL: none.
const struct coord_action *copier_next(struct copier *c);

// What the standby must know of an action; false: nothing. seq and epoch are left to the caller.
// Before it is held: what clients will see stands on it. The end of a request (FORGET, REFUSED) is
// told only after clients have seen it: copier_record_after.
bool copier_record(const struct coord_action *a, struct copy_record *out);
bool copier_record_after(const struct coord_action *a, struct copy_record *out);
