// A follower's copies: every request of the leader with its journal, kept until it is to go on here,
// or until a client here wants to read it. Pure: records in, requests out.
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

// A node that an operator drained or ejected.
struct shadow_mark {
    char node[LIMIT_NAME];
    enum copy_mark mark;
    UT_hash_handle hh; // by node
};

struct shadow {
    struct shadow_request *requests; // hash, in the order of their submission
    struct shadow_mark *marks;       // hash
    uint32_t n;
    uint64_t seq;   // of the last record; 0 = none yet
    uint64_t epoch; // highest that the leader used
    bool synced;    // it has all that the leader had
    char *state;    // owned; what operators changed. NULL = nothing
};

// LINK_PROTOCOL: it does not fit what came before, and *err says why; the copy is of no use then.
STATUS_MUST_USE enum status shadow_take(struct shadow *s, const struct copy_record *r,
                                        struct errmsg *err);
void shadow_clear(struct shadow *s);
struct shadow_request *shadow_find(const struct shadow *s, uint64_t request); // NULL = none
// Takes it out of the shadow, for shadow_request_free or shadow_put.
void shadow_remove(struct shadow *s, struct shadow_request *q);
void shadow_put(struct shadow *s, struct shadow_request *q); // owned from now on

// A deep copy of SUBMIT, in no shadow.
struct shadow_request *shadow_request_create(const struct copy_record *submit);
void shadow_request_free(struct shadow_request *q);
void shadow_request_tokens(struct shadow_request *q, const struct copy_record *tokens); // appends
// As a SUBMIT, borrowing everything; tokens come without log-probabilities.
struct copy_record shadow_request_record(const struct shadow_request *q);
