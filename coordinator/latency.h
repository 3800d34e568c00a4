// How fast a replica answers, against the others of its pool. Pure.
//
// Two figures: the time to a first token, divided by the tokens that had to be computed for it, and
// the time of a step. Both contain what the replica has to do besides, so both are of now: means
// that forget within some seconds of work, and count for nothing when they are old.
#pragma once

#include <stdint.h>

struct latency {
    double first_us, step_us; // exponential means: per token to compute; of a step. 0 = none yet
    uint32_t firsts, steps;
    uint64_t last_us; // when the last of either came
};

enum { LATENCY_BASE = 64 }; // tokens that the constant cost of any request is worth

// `tokens`: of prompt and journal that were not cached. `weight`: of the new one, in (0, 1].
void latency_first(struct latency *l, uint64_t us, uint32_t tokens, double weight, uint64_t now_us);
void latency_step(struct latency *l, uint64_t us, double weight, uint64_t now_us);
// 1 = as the others, 2 = twice as slow; 0.25..4, and 1 while too little is known, or nothing new.
double latency_factor(const struct latency *l, const struct latency *all, uint64_t now_us);
