// Threads that share the items of one op. The caller takes part; helpers spin briefly after an op
// (the next one comes within microseconds), then sleep, so an idle worker process burns no CPU. A
// helper that is late or asleep never delays the caller: items are claimed one at a time and the
// caller finishes whatever nobody claimed.
#pragma once

#include <stddef.h>

struct cpu_pool;

typedef void cpu_item_fn(void *ctx, size_t item, int thread); // thread: 0 .. threads-1

// threads >= 1; 1 starts none. Fewer run when the system refuses threads (logged).
struct cpu_pool *cpu_pool_create(int threads);
void cpu_pool_destroy(struct cpu_pool *p); // joins; NULL is fine
// Runs fn for items 0 .. n-1 and returns when all are done. One caller at a time.
void cpu_pool_run(struct cpu_pool *p, size_t n, cpu_item_fn *fn, void *ctx);
