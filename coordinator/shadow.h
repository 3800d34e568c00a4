// The standby's side of copies: every request of the leader with its journal, kept until it is to
// go on here. Pure: records in, requests out.
#pragma once

#include <uthash.h>

#include "coordinator/coord.h"
#include "proto/copy.h"

struct shadow_request {
    struct coord_restore restore; // its arrays are owned
    struct copy_head head;        // owned too
    struct token_out *tokens;     // owned, as `restore.emitted`, with log-probabilities
    size_t tokens_cap, emitted_cap;
    UT_hash_handle hh; // by restore.submit.request
};

struct shadow {
    struct shadow_request *requests; // hash, in the order of their submission
    uint32_t n;
    uint64_t seq;   // of the last record; 0 = none yet
    uint64_t epoch; // highest that the leader used
    bool synced;    // it has all that the leader had
};

// LINK_PROTOCOL: it does not fit what came before, and *err says why; the copy is of no use then.
STATUS_MUST_USE enum status shadow_take(struct shadow *s, const struct copy_record *r,
                                        struct errmsg *err);
void shadow_clear(struct shadow *s);
