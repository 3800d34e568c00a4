// Deadlines in a binary heap. Timers are embedded in what they belong to; `kind` tells the owner
// which struct that is. Equal times fire in the order in which they were armed.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct timer {
    uint64_t due_us, order;
    size_t slot; // 1-based place in the heap; 0 = not armed
    int kind;    // the owner's
};

struct timers {
    struct timer **heap; // owned array, borrowed timers
    size_t n, cap;
    uint64_t order;
};

void timers_finish(struct timers *ts);
void timers_arm(struct timers *ts, struct timer *t, uint64_t due_us); // moves it when armed
void timers_disarm(struct timers *ts, struct timer *t);               // no harm when not armed
uint64_t timers_next(const struct timers *ts);                        // UINT64_MAX = none
// Takes off the earliest timer that is due; NULL when none is.
struct timer *timers_pop(struct timers *ts, uint64_t now_us);
