// A circuit breaker by rule: a figure above (or below) a threshold for a time opens it, the same
// time of good figures closes it. Pure.
#pragma once

#include "coordinator/coord.h"

struct breaker {
    struct coord_breaker rule;
    bool open;
    double value;      // last figure
    uint64_t since_us; // the figure disagrees with `open` since then; 0 = it agrees
    uint64_t opened;   // how often
};

// True: it opened, or closed.
bool breaker_feed(struct breaker *b, double value, uint64_t now_us);
