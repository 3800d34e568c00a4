// Shared by the files of the batch scheduler: batch.c (life, dispatch, cancel, checks),
// batch_plan.c (admission, preemption, plans), batch_result.c (what came of a plan) and batch_kv.c
// (blocks held for transfers).
#pragma once

#include "node/batch.h"
#include "node/kvpool.h"
#include "node/sequence.h"

// A plan under way, with the memory its arrays live in.
struct flight {
    struct step_plan plan;
    struct plan_open *opens;    // [slots]
    struct plan_entry *entries; // [slots]
    uint32_t *closes;           // [slots]
    struct sequence **seqs;     // [slots], of the entries
};

struct batch {
    struct batch_config config;
    uint32_t slots, context;
    struct kvpool *pool;
    uint64_t arrivals, steps;

    struct sequence *waiting; // admission order
    struct sequence *running; // the same order; PREFILL and DECODE
    uint32_t waiting_n, running_n;

    uint32_t *free_slots; // stack
    uint32_t free_slots_n;
    uint32_t *closes; // slots the workers still have open; told by the next plan
    uint32_t closes_n;

    struct flight *flights; // ring of `pipeline`
    uint32_t flights_first, flights_n;

    struct sequence **ready;  // [slots], scratch of batch_plan
    struct token_out *tokens; // [slots], of the last result
    struct logprob *tops;     // [slots][LIMIT_TOP_LOGPROBS]
    uint64_t *cancelled;      // [slots]

    struct batch_lease *leases;
    uint32_t leases_n;
    bool starved;

    uint32_t *refs; // [kv_blocks], scratch of batch_check
    uint64_t preemptions, prefix_tokens;
};

// Puts s into the list at its place in the order.
void batch_list_add(struct sequence **list, struct sequence *s);
// Gives back slot and blocks of a running sequence that is in no plan.
void batch_vacate(struct batch *b, struct sequence *s);
// Takes it out of the batch and frees it.
void batch_remove(struct batch *b, struct sequence *s);
struct sequence *batch_find(const struct batch *b, uint64_t request); // NULL: not here
// Blocks that admission leaves to those who run, so that it does not undo itself at once.
uint32_t batch_headroom(const struct batch *b);

// ---- batch_kv.c, for batch.c ----
void batch_leases_destroy(struct batch *b);
void batch_leases_check(struct batch *b); // adds their references to b->refs
