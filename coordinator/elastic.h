// How many replicas a pool should have, from what its queue and its places look like. Pure: figures
// in, number out.
//
// Up: the step with the longest estimate of the wait that is reached says how many are added, once
// it was reached for up_window_ms; while the wait grows the least of what was recommended counts,
// so that a spike of one look changes nothing. Down: once fewer would do for down_window_ms, to the
// most that was needed in that time. The same two windows as Kubernetes' HPA calls stabilisation.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum { ELASTIC_STEPS = 8 };

struct elastic_step {
    uint32_t wait_ms; // of who would come now
    uint32_t add;
};

struct elastic_config {
    uint32_t min, max;                     // replicas; max 0 = off
    struct elastic_step up[ELASTIC_STEPS]; // by wait_ms, growing
    uint32_t up_n;
    uint32_t up_window_ms, down_window_ms;
    uint32_t down_percent; // fewer will do when what runs fills no more than this of their places
    uint32_t hold_ms;      // after a change, while it is not there yet, nothing is added
};
void elastic_config_default(struct elastic_config *c); // off
STATUS_MUST_USE enum status elastic_config_check(const struct elastic_config *c,
                                                 struct errmsg *err);

struct elastic_look {
    uint32_t wanted, ready; // replicas
    uint32_t places, load;  // of those that are ready; what is placed or waits
    uint32_t queued;        // requests that wait
    uint32_t wait_ms;       // of who would come now
};

struct elastic {
    uint64_t up_since_us, down_since_us; // 0 = not the case
    uint32_t up_least, down_most;        // recommended meanwhile
    uint64_t changed_us;                 // 0 = never
};

// The number of replicas that should be wanted now: look->wanted when nothing is to change.
uint32_t elastic_step(const struct elastic_config *c, struct elastic *e, uint64_t now_us,
                      const struct elastic_look *look);
