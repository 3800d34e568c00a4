// How long a waiting request will wait. By Little's law a cluster with `slots` places, whose
// requests stay for a mean time s, frees a place every s / slots; the p-th in the queue waits p
// times that. s is an exponentially weighted mean of what finished lately.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct eta {
    double service_us; // mean time on a replica
    double tokens;     // mean length of an answer
    uint32_t samples;
    double first_us; // mean time from the dispatch to the first token
    uint32_t first_samples;
};

enum { ETA_TRUSTED = 16 }; // samples after which the estimate may refuse a request

void eta_init(struct eta *e);
void eta_observe(struct eta *e, uint64_t service_us, uint32_t tokens);
void eta_observe_first(struct eta *e, uint64_t first_us);
uint64_t eta_wait_us(const struct eta *e, uint32_t position, uint32_t slots);
bool eta_trusted(const struct eta *e);
uint64_t eta_first_us(const struct eta *e); // 0 until it can be trusted
