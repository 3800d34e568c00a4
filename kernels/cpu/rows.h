// Ops that treat rows one by one: a few rows per item, so that small batches stay on the caller.
#pragma once

#include "kernels/cpu/simd.h"

struct rows_job {
    const void *args;
    size_t n, grain;
    void (*row)(const void *args, size_t row);
};

static inline void rows_item(void *ctx, size_t item, int thread)
{
    const struct rows_job *j = ctx;
    size_t end = (item + 1) * j->grain;
    for (size_t i = item * j->grain; i < end && i < j->n; i++)
        j->row(j->args, i);
}

// row_cost: elements touched by one row.
INLINE void rows_run(struct kern *k, size_t n, size_t row_cost, const void *args,
                     void (*row)(const void *, size_t))
{
    size_t grain = 8192 / (row_cost + 1) + 1;
    struct rows_job j = {args, n, grain, row};
    cpu_run(k, (n + grain - 1) / grain, n * row_cost, rows_item, &j);
}
