// The control messages between coordinator and nodes, as plain C structs. Both cores and the
// simulator speak these; proto/wire.c turns them into protobuf frames and back.
//
// Ownership: a `struct msg` borrows every array and string in it. From a core's action they are
// valid until the next step of that core; from wire_decode until the decoder's arena is reset; from
// msg_clone until msg_free.
//
// Order and loss: one control connection per node, TCP order. When the connection breaks, nothing
// on it counts any more: the node says HELLO again and is formed into replicas anew, with higher
// epochs.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

// Sampling of one request. Philox(seed, index of the token) makes the choice a pure function, so
// that every replica continues a request identically. Field meanings and defaults as in OpenAI's
// API and vLLM's extensions of it.
struct sampling {
    uint64_t seed;     // always set; drawn by the coordinator's shell when the client gave none
    float temperature; // 0 = greedy
    float top_p;       // 1 = off
    float min_p;       // 0 = off
    int32_t top_k;     // 0 = off
    float repetition_penalty; // 1 = off; prompt and output
    float presence_penalty;   // 0 = off; output
    float frequency_penalty;  // 0 = off; output
    bool logprobs;            // report the chosen token's log-probability
    uint32_t top_logprobs;    // and this many alternatives, <= LIMIT_TOP_LOGPROBS
};

enum finish_reason {
    FINISH_NONE,
    FINISH_STOP,      // end-of-sequence token, or a stop string (found by the coordinator)
    FINISH_LENGTH,    // max_tokens or the context is used up
    FINISH_CANCELLED, // the client asked, or stayed away longer than the grace time
    FINISH_ERROR,     // could not be served; the status says why
};
const char *
finish_reason_name(enum finish_reason r); // "stop", "length", "cancelled", "error", "none"

enum { MSG_STOP_IDS = 16 };   // end-of-sequence ids a request may carry
enum { MSG_BAND_PROBE = 10 }; // of the coordinator's own probes: above all requests

// All that is needed to start, or to go on with, a request anywhere: its journal.
struct journal {
    uint64_t request; // unique in the cluster, never 0
    const int32_t *prompt;
    uint32_t prompt_n; // >= 1
    const int32_t *emitted;
    uint32_t emitted_n;  // tokens already sampled; the next one has this index
    uint32_t max_tokens; // in all, emitted ones included; > emitted_n
    int32_t stop_ids[MSG_STOP_IDS];
    uint32_t stop_ids_n;
    uint8_t band; // priority, 9 = highest
    struct sampling sampling;
};

struct logprob {
    int32_t token;
    float value; // natural logarithm
};

// One sampled token of one request.
struct token_out {
    uint64_t request;
    uint32_t index; // of the token in the answer; the first is 0
    int32_t token;  // -1: none, the request just ends by `finish`
    uint8_t finish; // enum finish_reason; NONE = goes on
    float logprob;  // 0 when not asked for
    uint32_t top_n;
    const struct logprob *top; // top_n entries, most likely first
    uint32_t cached_tokens; // index == first of this dispatch: prompt tokens found in the KV cache
};

enum msg_kind {
    // node -> coordinator
    MSG_HELLO = 1, // first on a connection
    MSG_HEARTBEAT,
    MSG_FORMED,    // this rank is ready, or failed to get ready
    MSG_TOKENS,    // from the lead
    MSG_CANCELLED, // from the lead: answer to MSG_CANCEL, no more tokens of this request follow
    MSG_FAULT,     // this rank's replica broke: which rank is suspected, and why
    MSG_PREPARED,  // answer to FORM: where this rank's peers reach it in this epoch
    MSG_KV_CACHED, // from the lead: what changed in its prefix cache
    MSG_KV_READY,  // from the lead of a target: blocks are held, its ranks await writes
    MSG_KV_DONE,   // from either lead: its part of a transfer is over, well or not
    // coordinator -> node
    MSG_WELCOME = 32, // answer to HELLO; again every second: the coordinator is alive
    MSG_FORM,         // become rank (stage, tensor) of a replica, at this epoch: load the shard
    MSG_DISSOLVE,     // leave the replica; all its work is void
    MSG_DISPATCH,     // to the lead: start or continue a request
    MSG_CANCEL,       // to the lead
    MSG_LINK,         // all ranks are prepared: link up with them
    MSG_KV_LIST,      // to a lead: tell what the prefix cache holds
    MSG_KV_RECEIVE,   // to a lead: take in KV blocks from another replica
    MSG_KV_SEND,      // to a lead: send KV blocks to another replica
    MSG_KV_CANCEL,    // to either lead of a transfer
};
const char *msg_kind_name(enum msg_kind k);

enum { MSG_VERSION = 1 }; // of this protocol; a peer with another one is refused with LINK_VERSION

struct msg_hello {
    uint32_t version;
    const char *name; // unique in the cluster, [A-Za-z0-9._-]{1,63}; "1", "2", ... under `hadal up`
    uint64_t incarnation; // differs at each start of the process
    uint32_t pid;
    const char *host;       // ranks on one host may use shared memory
    const char *backend;    // "cpu", "cuda", "mock"
    bool heartbeat_channel; // a second connection that carries only heartbeats of the same
                            // incarnation
};

struct msg_welcome {
    uint32_t heartbeat_ms;
};

// Where a rank is in its work, for naming a stuck one.
struct rank_progress {
    uint64_t step; // id of the step being computed, 0 = idle
    uint32_t layer, collective;
    uint32_t age_ms; // since it last moved on
};

// What NVML says of the device that a worker computes on. Kept by value: a heartbeat outlives the
// message that it came in.
enum { GPU_REASON = 120 };
struct gpu_figures {
    bool present; // false: no GPU, or no NVML; all else is zero then
    char name[LIMIT_NAME];
    uint32_t utilization_percent; // of the last sample period
    uint64_t memory_used_bytes, memory_total_bytes;
    uint32_t temperature_c, power_mw, sm_mhz;
    uint64_t ecc_corrected, ecc_uncorrected; // since the driver was loaded; 0 where ECC is off
    uint32_t xid, xids;                      // last one, and how many since the node started
    bool suspect;                            // its results, or its next step, cannot be relied on
    char reason[GPU_REASON];                 // why; "" unless suspect
};

struct msg_heartbeat {
    uint64_t replica, epoch; // 0, 0 = in none
    uint64_t steps;          // finished since start
    uint32_t loop_age_ms;    // since the node's loop last turned
    uint32_t step_age_ms;    // of the oldest step under way; 0 = none
    struct rank_progress progress;
    uint32_t running, waiting; // sequences, lead only
    uint32_t kv_blocks, kv_free;
    uint64_t rss_bytes;
    struct gpu_figures gpu;
};

// Forming a replica takes two rounds, because memory that a stopped peer may still write into must
// not outlive its epoch: each epoch has transports, regions and addresses of its own.
//
//   coordinator        every rank
//     FORM      --->   load the shard (kept if loaded already), open transports
//               <---   PREPARED with addresses           (FORMED with a status < 0: it cannot)
//     LINK      --->   once all ranks are prepared: connect to each other
//               <---   FORMED                             (OK: ready)
enum transport_choice { TRANSPORT_AUTO, TRANSPORT_SHM, TRANSPORT_TCP, TRANSPORT_VERBS };
const char *transport_choice_name(enum transport_choice t); // "auto", "shm", "tcp", "verbs"

// "" = does not offer this transport. Printable; at most LIMIT_ADDR - 1 bytes, verbs
// LIMIT_RAIL_ADDRS - 1: one for each rail, with commas between them, "" for one that rests.
struct rank_addresses {
    const char *shm, *tcp, *verbs;
};

// A node whose model files can be read over xport (node/pull.h). addresses.shm is "" when it is on
// another host than the node that is told of it.
enum { MSG_WEIGHT_SOURCES = 8 };
struct weight_source {
    const char *name;
    struct rank_addresses addresses;
};

struct msg_form {
    uint64_t replica, epoch;
    const char *model_dir;
    uint32_t stages, tensor;      // of the replica
    uint32_t my_stage, my_tensor; // of this node
    uint32_t transport;           // enum transport_choice
    // Nodes that have the model with this fingerprint, and give it; the first ones first. 0: none.
    const struct weight_source *sources;
    uint32_t sources_n; // at most MSG_WEIGHT_SOURCES
    uint64_t fingerprint;
};

struct msg_prepared {
    uint64_t replica, epoch;
    struct rank_addresses addresses;
    struct rank_addresses mover; // where this rank takes KV blocks from other replicas; all "" =
                                 // it does not
};

struct link_member {
    const char *name, *host; // of the node
    struct rank_addresses addresses;
};

struct msg_link {
    uint64_t replica, epoch;
    const struct link_member *members; // stages * tensor of them, ordered by (stage, tensor)
    uint32_t members_n;
};

// How the weights in memory came there.
struct weights_figures {
    uint64_t peer_bytes, disk_bytes; // as in the files; 0, 0: random weights
    uint32_t ms;
    uint32_t again; // chunks asked of a second source, or of the same one again
    uint32_t bad;   // answers with a wrong checksum, size or place
    uint32_t lost;  // sources given up on the way
};

struct msg_formed {
    uint64_t replica, epoch;
    enum status status;   // OK = ready
    const char *text;     // why not
    uint64_t fingerprint; // of the model version; equal over all ranks of a replica
    // lead only
    uint32_t max_seqs;    // sequences it runs at once: the coordinator's credits
    uint32_t max_context; // tokens of one sequence
    uint32_t kv_blocks, block_tokens;
    uint32_t transport; // enum transport_choice that the ranks use; AUTO: there is one rank
    // every rank
    struct rank_addresses weights; // where other nodes may read the model's files; "" = nowhere
    struct weights_figures loaded;
};

struct msg_tokens {
    uint64_t replica, epoch, step;
    const struct token_out *tokens;
    uint32_t tokens_n;
    uint32_t running, waiting, kv_free; // load after this step
};

struct msg_cancelled {
    uint64_t replica, epoch, request;
};

struct msg_fault {
    uint64_t replica, epoch;
    enum status status;
    int32_t stage, tensor; // suspected rank, -1 = unknown
    const char *text;
};

struct msg_dissolve {
    uint64_t replica, epoch; // leave this epoch and every older one
};

struct msg_dispatch {
    uint64_t replica, epoch;
    struct journal journal;
    // Computes what is known and samples one token, then the request is gone here (no CANCEL is
    // needed); its full blocks stay as prefix cache, and under the lease of a KV_SEND. The token is
    // sampled where the prompt was computed, because its row is there: the client's first token
    // does not wait for the transfer.
    bool prefill_only;
};

struct msg_cancel {
    uint64_t replica, epoch, request;
};

// What a lead's prefix cache holds, for routing: a hint, no promise. A replica begins an epoch with
// nothing. The reports of an epoch are numbered 1, 2, ...; after a gap the coordinator knows
// nothing of it any more and asks with KV_LIST `all`. The next report then has `reset`, and it and
// those that follow name all that is there.
enum { MSG_KV_CHANGES = 1024 };
struct kv_change {
    uint32_t block; // below kv_blocks of FORMED
    uint64_t name;  // hash_block of its tokens and all before them (base/hash.h); 0 = none now
};

struct msg_kv_cached {
    uint64_t replica, epoch, seq;
    bool reset; // forget what was said before
    bool more;  // waits to be told; KV_LIST fetches it, or it comes with later steps
    const struct kv_change *changes; // at most MSG_KV_CHANGES, of different blocks
    uint32_t changes_n;
};

struct msg_kv_list {
    uint64_t replica, epoch;
    bool all; // from the beginning, with `reset`; else what is left to tell
};

// Moving KV: filling the prefix cache of another replica from afar. Only whole blocks move; they
// land as named blocks, as if the target had computed them, and the next DISPATCH finds them. A
// transfer that fails costs a computation and never an answer.
//
//   coordinator      target lead                source lead
//     KV_RECEIVE -->  takes blocks, tells its ranks
//               <--  KV_READY                     (KV_DONE that is not OK: it cannot)
//     KV_SEND   ---------------------------->  holds what it has, and sends it; what `request` is
//                                              still computing follows block by block
//               <----------------------------  KV_DONE source: all is written and taken
//               <--  KV_DONE target: in the prefix cache
//     DISPATCH  -->  the journal, its prefix hits
//
//  * Every KV_RECEIVE and KV_SEND that is not of a stale epoch gets exactly one KV_DONE of its
//    role: OK; FULL (no blocks to spare); BAD_REQUEST;
//    BAD_MODEL (other model or block size); NOT_FOUND (source: nothing to send);
//    UNSUPPORTED (no mover); DEADLINE; CANCELLED; LINK_*.
//  * Blocks are held by a lease of lease_ms from the receipt of the message. It ends with
//    KV_CANCEL, the deadline, the end of the epoch, or a failure; then the ranks stop, and only
//    when all of them said so the blocks are given back: a late write never meets another owner.
//    A rank that does not say so for a minute hangs: FAULT, the epoch is over.
//    What had arrived completely, from the first block on, stays as prefix cache: tokens_n of a
//    KV_DONE that is not OK says how much.
//  * After KV_DONE OK a target still holds the blocks until a request uses them, KV_CANCEL, or the
//    deadline. KV_CANCEL of a transfer that is not here (any more) is dropped.
struct kv_peer {
    uint64_t replica, epoch; // of the other side
    uint32_t stages, tensor;
    uint64_t fingerprint; // as in its FORMED; must be equal here
    uint32_t block_tokens;
    const struct link_member *members; // stages * tensor of them, by (stage, tensor); `addresses`
                                       // are those of the movers. KV_RECEIVE: none
    uint32_t members_n;
};

struct msg_kv_receive {
    uint64_t replica, epoch;
    uint64_t transfer;     // unique in the cluster, never 0
    const int32_t *tokens; // the chain: prompt + emitted so far; its full blocks are moved
    uint32_t tokens_n;     // at least one block of them
    uint32_t lease_ms;     // >= 1
    struct kv_peer source;
};

struct msg_kv_send {
    uint64_t replica, epoch, transfer;
    uint64_t request;      // whose blocks are sent as they fill; 0, or not here: what the cache has
    const int32_t *tokens; // the same as in KV_RECEIVE
    uint32_t tokens_n;
    uint32_t first_block; // the target has those before it: `have` of KV_READY
    uint32_t lease_ms;
    struct kv_peer target;
};

struct msg_kv_ready {
    uint64_t replica, epoch, transfer;
    uint32_t blocks; // of the chain
    uint32_t have;   // of them, were in the prefix cache; blocks == have: nothing to send, KV_DONE
                     // OK follows at once
};

enum kv_role { KV_ROLE_SOURCE, KV_ROLE_TARGET };
const char *kv_role_name(enum kv_role r); // "source", "target"

struct msg_kv_done {
    uint64_t replica, epoch, transfer;
    enum kv_role role;
    enum status status;
    const char *text;  // why not
    uint32_t tokens_n; // target: of the chain, now in its prefix cache. source: sent and taken,
                       // those before first_block included
    uint64_t bytes;    // that this side moved
    uint64_t us;       // since the message came
};

struct msg_kv_cancel {
    uint64_t replica, epoch, transfer;
};

struct msg {
    enum msg_kind kind;
    union {
        struct msg_hello hello;
        struct msg_welcome welcome;
        struct msg_heartbeat heartbeat;
        struct msg_form form;
        struct msg_formed formed;
        struct msg_dissolve dissolve;
        struct msg_dispatch dispatch;
        struct msg_cancel cancel;
        struct msg_tokens tokens;
        struct msg_cancelled cancelled;
        struct msg_fault fault;
        struct msg_prepared prepared;
        struct msg_kv_cached kv_cached;
        struct msg_kv_list kv_list;
        struct msg_link link;
        struct msg_kv_ready kv_ready;
        struct msg_kv_done kv_done;
        struct msg_kv_receive kv_receive;
        struct msg_kv_send kv_send;
        struct msg_kv_cancel kv_cancel;
    };
};

// Deep copy in one allocation; free with msg_free. For queues of messages (the simulator's
// network).
struct msg *msg_clone(const struct msg *m);
void msg_free(struct msg *m);

// One line for traces: "DISPATCH r1/e7 req 42 prompt 18 emitted 5".
void msg_describe(const struct msg *m, char *buf, size_t n);
