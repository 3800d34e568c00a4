// What coordinators of one cluster say to each other. One leads: nodes are connected to it, and its
// core decides. The others follow it: each connects to the leader's RPC port, says HELLO, and gets
// a RECORD for everything that must outlive the leader; it answers with ACK. What its own clients
// ask goes up as ASK and WORD; what comes of it are records again.
//
//   follower                             leader
//   HELLO            ----------------->
//                    <-----------------  RECORD MARK*, SUBMIT, TOKENS, DONE ... (all that is there;
//                                        their seq is 0), RECORD SYNCED
//   ACK of SYNCED    ----------------->  from here on clients see what is acknowledged
//   ASK, WORD        ----------------->
//                    <-----------------  RECORD SUBMIT, QUEUED, TOKENS, DONE, FORGET ...; STATE
//   ACK of the last  ----------------->
//
// Ownership: as in proto/msg.h, a struct borrows every array and string in it.
#pragma once

#include "proto/msg.h"
#include "proto/rpc.h"

enum copy_kind {
    COPY_HELLO = 128, // follower -> leader
    COPY_ACK,         // follower -> leader
    COPY_ASK,         // follower -> leader: a request of its client, as a record SUBMIT
    COPY_WORD,        // follower -> leader: a word about a request
    COPY_KNOCK,       // follower -> leader: a node looked for the leader there
    COPY_RECORD = 160,
    COPY_STATE, // leader -> follower: how it is, every second and when it changes
};

enum copy_what {
    COPY_SUBMIT,  // a request with its journal so far
    COPY_TOKENS,  // more of its answer
    COPY_DONE,    // it is finished, and kept for re-attaching clients
    COPY_FORGET,  // it is not kept any longer
    COPY_SYNCED,  // all that there was has been said
    COPY_REFUSED, // it was not admitted, or lost its place; known no more
    COPY_QUEUED,  // its place in the queue; nothing to keep
    COPY_MARK,    // what an operator decided about a node
    COPY_ORDERS,  // what operators made of the configuration: `text`, whole
};
enum { COPY_WHATS = COPY_ORDERS + 1 };

enum copy_mark { COPY_MARK_NONE, COPY_MARK_DRAIN, COPY_MARK_EJECT };

enum { COPY_ORDERS_BYTES = 32 << 10 };

struct copy_hello {
    const char *name;       // of the follower
    const char *datacenter; // of another one: nobody waits for its copies; "" = of this one
    const char *http, *rpc; // its addresses, for operators
};

enum copy_word_kind {
    COPY_WORD_ATTACH, // a client of the follower reads it (an ASK counts as the first)
    COPY_WORD_DETACH, // none does any more
    COPY_WORD_CANCEL,
    COPY_WORD_TAKEN, // by another datacenter: it goes on there, and only there
};

struct copy_word {
    uint64_t request;
    enum copy_word_kind word;
};

struct copy_state {
    uint32_t replicas, replicas_ready, max_context;
    uint32_t credits_free, eta_ms; // of a request that came now
};

enum { COPY_ADDRESS = 300 };

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
    uint64_t seq;     // grows by one; 0: before SYNCED
    uint64_t epoch;   // highest that was used for a replica
    uint64_t request; // 0: SYNCED, MARK, ORDERS
    // SUBMIT. journal.request is `request`; max_tokens 0 = as many as fit. One that is finished may
    // come without its prompt: then prompt_n says how long that was.
    struct journal journal;
    uint32_t prompt_n;
    const char *tenant, *model, *pool; // model as clients call it; where it waits or runs
    uint64_t session;
    struct copy_head head;
    uint32_t deadline_ms; // ASK: what is left to its first token; 0 = none was named
    // TOKENS, and the emitted ones of SUBMIT
    uint64_t fingerprint; // of the model that made them
    uint32_t first;
    const struct token_out *tokens; // their `request` is not sent
    uint32_t tokens_n;
    // DONE; `text` REFUSED too, and ORDERS, then at most COPY_ORDERS_BYTES
    enum finish_reason finish;
    enum status status;
    const char *text;
    uint32_t emitted_n; // tokens that count
    uint32_t cached_n;
    // REFUSED
    uint32_t reason; // enum coord_refusal
    uint32_t retry_after_ms;
    // QUEUED
    uint32_t position, eta_ms;
    // MARK
    const char *node;
    enum copy_mark mark;
};

struct copy {
    enum copy_kind kind;
    union {
        struct copy_hello hello;
        struct copy_record record; // and ASK
        uint64_t ack;              // all records up to this seq are kept
        struct copy_word word;
        struct copy_state state;
    };
};
