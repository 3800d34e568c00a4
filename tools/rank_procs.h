// Ranks as processes on one host, for benchmarks and tests of what joins them: forked, with a few
// shared pages to meet in. Fork before the parent has touched a GPU: a CUDA context does not
// survive it.
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum { RANK_PROCS_MAX = 16, RANK_NOTE_BYTES = 512, RANK_WAIT_S = 60 };

struct rank_procs; // in shared memory

// One rank; its exit status is what it returns.
typedef int rank_procs_body(struct rank_procs *p, int rank, void *arg);

// Runs n ranks. `dies`: bits of ranks that are expected to be killed. 0 when all others returned 0.
// When one fails the rest are killed.
int rank_procs_run(int n, unsigned dies, rank_procs_body *body, void *arg);

int rank_procs_size(const struct rank_procs *p);
// Waits until all ranks are here; false: one is gone, or RANK_WAIT_S are over.
bool rank_procs_barrier(struct rank_procs *p);
// Everybody's note [n][bytes] (at most RANK_NOTE_BYTES each) to everybody.
bool rank_procs_exchange(struct rank_procs *p, int rank, const void *mine, size_t bytes, void *all);
