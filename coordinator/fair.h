// The order of new requests: the highest band first; in a band the tenant that was served least for
// its weight; of a tenant the earliest deadline. Requests that were preempted wait here too, as the
// first of their tenant.
//
// Ageing: for each ageing_ms of waiting a request moves up one band, but not into a band above
// ageing_band. So nothing waits without end below it, and what is above keeps its latency whatever
// waits.
#pragma once

#include "coordinator/arena.h"
#include "coordinator/tenants.h"

struct fair {
    uint32_t pool;                   // index of the pool that they wait for (tenants.h: shares)
    struct lane *bands[QUEUE_BANDS]; // lists of lanes that are not empty, by effective band
    uint32_t band_n[QUEUE_BANDS];    // requests, by effective band
    uint32_t base_n[QUEUE_BANDS];    // the same, by the band that the client named
    uint32_t n, fresh_n;             // fresh: never started
    uint64_t fresh_tokens;           // prompts of the fresh
    double served;                   // counter of the tenant that was served last
    double weights;                  // of the tenants that wait
};

// r->tenant, band, order_us (fair_order_us) and waits_us are set; r->lane_band becomes its band.
void fair_push(struct fair *f, struct request *r);
void fair_remove(struct fair *f, struct request *r);
struct request *fair_head(const struct fair *f); // NULL when empty
// Who is refused to make room for one of this band: of the lowest band below it the fresh request
// with the latest deadline. NULL: nobody.
struct request *fair_last(const struct fair *f, uint8_t band);
// How many would be served before a new request.
uint32_t fair_ahead(const struct fair *f, const struct tenant *t, uint8_t band);
// Moves up what has waited long enough.
void fair_age(struct fair *f, uint64_t now_us, uint64_t ageing_us, uint8_t ageing_band);
// All of them in the order in which they would be served if nothing more came, each answer taking
// `tokens`. Array of the arena.
struct request **fair_order(const struct fair *f, struct arena *a, double tokens);

// Place in a lane: the deadline, or what stands for it when there is none.
uint64_t fair_order_us(uint64_t deadline_us, uint64_t now_us);
