// What it costs to have the KV of a token at another replica: to compute it again, or to move it.
// Both are measured where it happens, as exponential means of time per token. Pure.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct kvrate {
    double compute_us, move_us; // of a token; 0 = not measured yet
};

enum { KVRATE_MIN_TOKENS = 32 }; // fewer tell nothing but the time of a message

// From the dispatch to the first token, with so many tokens not in the cache.
void kvrate_computed(struct kvrate *k, uint32_t tokens, uint64_t us);
void kvrate_moved(struct kvrate *k, uint32_t tokens, uint64_t us);
// Moving is thought to be sooner. What is not known is tried, and a bad opinion of moving fades
// with each time it is asked, so that it is tried again.
bool kvrate_move_pays(struct kvrate *k);
uint64_t kvrate_compute_us(const struct kvrate *k, uint32_t tokens);
