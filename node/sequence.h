// One sequence of the batch scheduler: a request on this replica, its history and its KV blocks.
//
//            admitted         prompt computed, first token      finish, cancel
//   WAITING ----------> PREFILL ------------------------> DECODE -----------> (removed)
//      ^                   |                                |
//      +-------------------+--------------------------------+
//          preempted: blocks given back, later computed again from prompt + emitted
#pragma once

#include "node/kvpool.h"
#include "proto/msg.h"

enum sequence_state { SEQUENCE_WAITING, SEQUENCE_PREFILL, SEQUENCE_DECODE };

struct sequence {
    struct sequence *prev, *next; // in the list of its state: waiting or running
    enum sequence_state state;
    uint64_t request;
    uint64_t arrival; // grows per dispatch: age among equals
    uint8_t band;
    bool cancelled; // CANCEL came while a step was under way
    bool prefill_only; // leaves after its next token
    struct sampling sampling;
    int32_t stop_ids[MSG_STOP_IDS];
    uint32_t stop_ids_n;

    int32_t *tokens; // prompt + emitted, owned; room for tokens_cap
    uint32_t tokens_n, tokens_cap;
    uint32_t prompt_n;
    uint32_t first_index; // of the first token of this dispatch
    uint32_t max_tokens;

    // While PREFILL or DECODE.
    uint32_t slot;
    bool opened;          // the workers know the slot
    uint32_t *blocks;     // table, owned; in the allocation of `tokens`
    uint32_t blocks_n;    // held
    uint32_t blocks_sent; // known to the workers
    uint32_t pos_sent;    // positions given to plans
    uint32_t pos_done;    // positions whose step has returned; their KV is valid
    uint32_t under_way;   // plans that compute it now
    uint64_t last_step;   // newest plan with a row of it
    struct kv_chain chain;
    uint32_t published; // blocks named, or passed by, in the prefix cache
    uint32_t cached;    // prompt tokens found in the cache at the first admission
    bool admitted;      // `cached` is set
};

struct sequence_limits {
    uint32_t max_context, block_tokens;
};
// Copies the journal, which must be valid (batch_add checks it).
struct sequence *sequence_create(const struct journal *j, const struct sequence_limits *limits);
void sequence_destroy(struct sequence *s); // NULL is fine; holds no blocks any more

// Moves by the diagram above.
void sequence_enter(struct sequence *s, enum sequence_state to);
// Index in the answer of the token sampled next.
uint32_t sequence_index(const struct sequence *s);
// Positions known but not yet given to a plan.
uint32_t sequence_todo(const struct sequence *s);
// Appends a sampled token and says whether it is the last one. `context` = longest history.
enum finish_reason sequence_append(struct sequence *s, int32_t token, uint32_t context);
// a goes before b: higher band, then older.
bool sequence_before(const struct sequence *a, const struct sequence *b);
