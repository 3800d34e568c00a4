// The pool. One 64-bit ticket holds (generation, next item); claiming is a compare-and-swap on it.
// Between two jobs the ticket passes through a closed generation, during which the job's fields are
// rewritten: a helper that saw the old or the closed generation fails its claim, whatever mixture
// of fields it read. A helper that claims has read the fields after they were published.
#include "kernels/cpu/pool.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"

enum { SPIN_NS = 30000, SPIN_BATCH = 64, SPIN_BATCHES_MAX = 4096 };

struct helper {
    struct cpu_pool *pool;
    pthread_t thread;
    int index;
};

struct cpu_pool {
    // Written by the caller, read by helpers.
    _Alignas(64) _Atomic uint64_t ticket; // generation << 32 | next item
    _Atomic uint32_t bell;                // futex: grows with every job and at stop
    _Atomic bool stop;
    _Atomic(cpu_item_fn *) fn;
    _Atomic(void *) ctx;
    _Atomic uint32_t n;
    // Written by helpers.
    _Alignas(64) _Atomic uint32_t done;
    _Atomic uint32_t sleepers;
    _Atomic uint32_t caller_sleeps;
    int helpers_n;
    struct helper *helpers;
};

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// True when *word left `seen` within the spin time.
static bool spin_until_changed(_Atomic uint32_t *word, uint32_t seen)
{
    uint64_t end = now_ns() + SPIN_NS;
    for (int batch = 0; batch < SPIN_BATCHES_MAX; batch++) {
        for (int i = 0; i < SPIN_BATCH; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != seen)
                return true;
            cpu_relax();
        }
        if (now_ns() >= end)
            break;
    }
    return false;
}

// Claims and runs items of the job that `generation` names until none is left.
static void work(struct cpu_pool *p, uint32_t generation, int thread)
{
    cpu_item_fn *fn = atomic_load_explicit(&p->fn, memory_order_acquire);
    void *ctx = atomic_load_explicit(&p->ctx, memory_order_acquire);
    uint32_t n = atomic_load_explicit(&p->n, memory_order_acquire);
    uint64_t t = atomic_load_explicit(&p->ticket, memory_order_acquire);
    while ((uint32_t)(t >> 32) == generation && (uint32_t)t < n) {
        if (!atomic_compare_exchange_weak_explicit(&p->ticket, &t, t + 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        fn(ctx, (uint32_t)t, thread);
        if (atomic_fetch_add(&p->done, 1) + 1 == n && thread && atomic_load(&p->caller_sleeps))
            futex_wake(&p->done, 1);
        t = atomic_load_explicit(&p->ticket, memory_order_acquire);
    }
}

static void sleep_until_rung(struct cpu_pool *p, uint32_t seen)
{
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->bell) == seen)
        futex_wait(&p->bell, seen);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    struct cpu_pool *p = h->pool;
    uint32_t seen = 0;
    while (!atomic_load_explicit(&p->stop, memory_order_acquire)) {
        if (!spin_until_changed(&p->bell, seen))
            sleep_until_rung(p, seen);
        seen = atomic_load_explicit(&p->bell, memory_order_acquire);
        uint64_t t = atomic_load_explicit(&p->ticket, memory_order_acquire);
        work(p, (uint32_t)(t >> 32), h->index);
    }
    return NULL;
}

struct cpu_pool *cpu_pool_create(int threads)
{
    struct cpu_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p)
        abort();
    memset(p, 0, sizeof *p);
    p->helpers = mem_zalloc((size_t)threads, sizeof *p->helpers);
    for (int i = 0; i < threads - 1; i++) {
        struct helper *h = &p->helpers[i];
        *h = (struct helper){.pool = p, .index = i + 1};
        int err = pthread_create(&h->thread, NULL, helper_main, h);
        if (err) {
            log_warn("kern: only %d of %d threads started: %s", i + 1, threads, strerror(err));
            break;
        }
        p->helpers_n++;
    }
    return p;
}

static void ring(struct cpu_pool *p)
{
    atomic_fetch_add(&p->bell, 1);
    if (atomic_load(&p->sleepers))
        futex_wake(&p->bell, INT_MAX);
}

void cpu_pool_destroy(struct cpu_pool *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, true);
    ring(p);
    for (int i = 0; i < p->helpers_n; i++)
        pthread_join(p->helpers[i].thread, NULL);
    free(p->helpers);
    free(p);
}

// The items that helpers claimed last are still running: spin, then sleep until they are done.
static void wait_done(struct cpu_pool *p, uint32_t n)
{
    uint32_t done;
    while ((done = atomic_load_explicit(&p->done, memory_order_acquire)) < n) {
        if (spin_until_changed(&p->done, done))
            continue;
        atomic_store(&p->caller_sleeps, 1);
        if ((done = atomic_load(&p->done)) < n)
            futex_wait(&p->done, done);
        atomic_store(&p->caller_sleeps, 0);
    }
}

void cpu_pool_run(struct cpu_pool *p, size_t n, cpu_item_fn *fn, void *ctx)
{
    if (!p->helpers_n || n == 1) {
        for (size_t i = 0; i < n; i++)
            fn(ctx, i, 0);
        return;
    }
    assert(n < UINT32_MAX);
    uint64_t old = atomic_load_explicit(&p->ticket, memory_order_relaxed);
    uint32_t closed = (uint32_t)(old >> 32) + 1, generation = closed + 1;
    atomic_store_explicit(&p->ticket, (uint64_t)closed << 32 | UINT32_MAX, memory_order_release);
    atomic_store_explicit(&p->fn, fn, memory_order_release);
    atomic_store_explicit(&p->ctx, ctx, memory_order_release);
    atomic_store_explicit(&p->n, (uint32_t)n, memory_order_release);
    atomic_store_explicit(&p->done, 0, memory_order_release);
    atomic_store_explicit(&p->ticket, (uint64_t)generation << 32, memory_order_release);
    ring(p);
    work(p, generation, 0);
    wait_done(p, (uint32_t)n);
}
