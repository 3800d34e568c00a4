// The mock engine's movement of KV blocks, in virtual time: the two ends of a transfer find each
// other in the fabric, and the target copies block by block what the source has. It is as unkind as
// real movers may be: a stopped transfer goes on writing until it says ENDED, an end that vanishes
// is noticed late, a rank that hangs holds everything up.
#pragma once

#include "node/mock_cache.h"
#include "node/mock_fabric.h"

struct mock_kv_end;

// Of one engine, embedded in it. Zero but for the first four.
struct mock_kv {
    struct mock_rank *rank;
    const struct mock_config *config;
    void (*wake)(void *ctx);
    void *wake_ctx;
    struct mock_kv *prev, *next; // in the fabric
    struct mock_cache *cache;    // of the lead that is linked, else NULL
    uint64_t replica, epoch;
    struct mock_kv_end *ends;
};

// As a lead, linked; leave: all its ends vanish.
void mock_kv_join(struct mock_kv *kv, struct mock_cache *cache, uint64_t replica, uint64_t epoch);
void mock_kv_leave(struct mock_kv *kv);
void mock_kv_order(struct mock_kv *kv, const struct kv_order *o);
uint64_t mock_kv_due(const struct mock_kv *kv); // UINT64_MAX = nothing, if nothing else happens
bool mock_kv_poll(struct mock_kv *kv, struct kv_report *out);
// A rank of this engine's group hung, went on, or lost a link.
void mock_kv_changed(struct mock_kv *kv);
