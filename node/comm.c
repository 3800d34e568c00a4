// What all collectives do alike, and the comm of a stage that is not split.
#include "node/comm.h"

#include <assert.h>
#include <stdlib.h>
#include <time.h>

#include "base/mem.h"
#include "node/comm_body.h"

int comm_size(const struct comm *c)
{
    return c->size;
}

int comm_rank(const struct comm *c)
{
    return c->rank;
}

struct comm_progress *comm_progress(struct comm *c)
{
    return &c->progress;
}

static void progress_tick(struct comm_progress *p)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    uint64_t us = (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
    atomic_fetch_add_explicit(&p->collective, 1, memory_order_relaxed);
    atomic_store_explicit(&p->changed_us, us, memory_order_relaxed);
}

enum status comm_all_gather(struct comm *c, float *buf, size_t rows, size_t part)
{
    if (atomic_load_explicit(&c->aborted, memory_order_relaxed))
        return STATUS_ABORTED;
    progress_tick(&c->progress);
    return c->size == 1 || rows == 0 || part == 0 ? STATUS_OK
                                                  : c->body->all_gather(c, buf, rows, part);
}

void comm_abort(struct comm *c)
{
    atomic_store(&c->aborted, true);
    c->body->wake(c);
}

void comm_destroy(struct comm *c)
{
    if (c)
        c->body->destroy(c);
}

static enum status single_all_gather(struct comm *c, float *buf, size_t rows, size_t part)
{
    return STATUS_OK;
}

static void single_wake(struct comm *c)
{
}

static void single_destroy(struct comm *c)
{
    free(c);
}

struct comm *comm_create_single(void)
{
    static const struct comm_body body = {single_all_gather, single_wake, single_destroy};
    struct comm *c = mem_zalloc(1, sizeof *c);
    c->body = &body;
    c->size = 1;
    return c;
}
