// What coordinators say to each other, so that one may die: a standby connects to the leader's RPC
// port, says HELLO, and gets a RECORD for everything that must outlive the leader; it answers with
// ACK. Frames are proto/wire.h's.
//
//   standby                              leader
//   HELLO            ----------------->
//                    <-----------------  RECORD SUBMIT* (all that is there), RECORD SYNCED
//   ACK of SYNCED    ----------------->  from here on clients see what is acknowledged
//                    <-----------------  RECORD SUBMIT, TOKENS, DONE, FORGET ...
//   ACK of the last  ----------------->
//
// Ownership: as in proto/msg.h, a struct borrows every array and string in it.
#pragma once

#include "proto/msg.h"
#include "proto/rpc.h"

enum copy_kind {
    COPY_HELLO = 128, // standby -> leader
    COPY_ACK,         // standby -> leader
    COPY_RECORD = 160,
};

enum copy_what {
    COPY_SUBMIT, // a request with its journal so far
    COPY_TOKENS, // more of its answer
    COPY_DONE,   // it is finished, and kept for re-attaching clients
    COPY_FORGET, // it is not kept any longer, or was refused
    COPY_SYNCED, // all that there was has been said
};

struct copy_hello {
    const char *name; // of the standby, for the log
};

// What a client's answer is rendered from, beyond the journal: the shell's, opaque to the core.
struct copy_head {
    uint32_t api; // enum openai_kind
    int64_t created;
    bool include_usage;
    const struct rpc_text *stop;
    uint32_t stop_n;
};

struct copy_record {
    enum copy_what what;
    uint64_t seq;     // grows by one
    uint64_t epoch;   // highest that was used for a replica
    uint64_t request; // 0: SYNCED
    // SUBMIT. journal.request is `request`; max_tokens 0 = as many as fit
    struct journal journal;
    const char *tenant, *model, *pool; // model as clients call it; where it waits or runs
    uint64_t session;
    struct copy_head head;
    // TOKENS, and the emitted ones of SUBMIT
    uint64_t fingerprint; // of the model that made them
    uint32_t first;
    const struct token_out *tokens; // their `request` is not sent
    uint32_t tokens_n;
    // DONE
    enum finish_reason finish;
    enum status status;
    const char *text;
    uint32_t emitted_n; // tokens that count
    uint32_t cached_n;
};

struct copy {
    enum copy_kind kind;
    union {
        struct copy_hello hello;
        struct copy_record record;
        uint64_t ack; // all records up to this seq are kept
    };
};
