// Stragglers: which of the replicas that do the same work is much slower than its peers? Pure.
//
// A replica is told by two figures, the time of a step and the time per token, and is an outlier
// only when both are above `factor` times the median of the others: a big batch makes steps longer
// and tokens cheaper, a small one the other way round.
#pragma once

#include <stdint.h>

struct pace {
    double step_us, token_us; // exponential means
    uint32_t samples;
    uint64_t last_us; // when the last step was counted; 0 = never
};

enum { PACE_TRUSTED = 16 };

void pace_step(struct pace *p, uint64_t step_us, uint32_t tokens, uint64_t now_us);
// Index of the slowest outlier among those that are trusted and were seen within recent_us; n when
// there is none, or fewer than two to compare.
uint32_t pace_outlier(const struct pace *const *v, uint32_t n, double factor, uint64_t now_us,
                      uint64_t recent_us);
