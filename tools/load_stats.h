// Samples of a load run and their percentiles.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct load_samples {
    uint32_t *us; // owned
    size_t n, cap;
};

struct load_summary {
    size_t n;
    double mean_ms, p50_ms, p90_ms, p99_ms, max_ms; // 0 when n is 0
};

void load_samples_add(struct load_samples *s, int64_t us); // clamped to 0..UINT32_MAX
void load_samples_finish(struct load_samples *s);
// Sorts the samples. The p-th percentile is the smallest sample that is not below p percent of
// them (nearest rank).
struct load_summary load_samples_summary(struct load_samples *s);
