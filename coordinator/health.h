// Is a replica stuck, and which of its ranks is to blame? Pure: what the ranks said last in, a
// verdict out.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"

struct health_rank {
    struct rank_progress progress; // of this epoch; all 0 when it said nothing yet
    uint32_t step_age_ms, loop_age_ms;
    uint64_t silent_us; // since its last heartbeat
};

struct health_limits {
    uint32_t hang_ms;      // without progress for longer = stuck
    uint32_t heartbeat_ms; // three times this without a heartbeat = silent
};

struct health_verdict {
    bool hung;
    uint32_t suspect; // index of the rank; valid when hung
    const char *why;  // static
};

// A replica hangs when a rank's loop stopped turning, or when a step is older than hang_ms and the
// rank that is furthest behind has not moved for that long either: a big step that goes on layer by
// layer is slow, not stuck. The rank furthest behind is the one that the others wait for: the
// silent one, else the lowest (step, layer, collective) among those that compute, else the lead.
struct health_verdict health_judge(const struct health_limits *lim, const struct health_rank *ranks,
                                   uint32_t ranks_n);
