// At the leader: which requests have clients at one follower. The core counts a follower as one
// client of each; all of them leave with its connection.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct guest;

struct guests {
    struct guest *reads; // hash by request; owned
};

bool guests_attach(struct guests *g, uint64_t request); // true: it is new
bool guests_detach(struct guests *g, uint64_t request); // true: it was there
bool guests_has(const struct guests *g, uint64_t request);
// One of them, which is forgotten; 0 = none is left.
uint64_t guests_pop(struct guests *g);
