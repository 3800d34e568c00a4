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

static size_t element_bytes(const struct kern_buf *b)
{
    enum kern_dtype d = kern_buf_dtype(b);
    return d == KERN_F32 || d == KERN_I32 ? 4 : 2;
}

// By way of host memory.
static enum status gather_staged(struct comm *c, struct kern_buf *buf, size_t rows, size_t part)
{
    size_t e = element_bytes(buf), n = rows * part * (size_t)c->size;
    if (c->staged_bytes < n * e) {
        c->staged = mem_realloc(c->staged, n, e);
        c->staged_bytes = n * e;
    }
    enum status s = kern_download(c->staged, buf, 0, n);
    if (s == STATUS_OK)
        s = comm_all_gather(c, c->staged, rows, part * e / sizeof(float));
    if (s == STATUS_OK)
        kern_upload(buf, 0, c->staged, n);
    return s;
}

enum status comm_gather(struct comm *c, struct kern *k, struct kern_buf *buf, size_t rows,
                        size_t part)
{
    if (atomic_load_explicit(&c->aborted, memory_order_relaxed))
        return STATUS_ABORTED;
    if (c->size == 1 || rows == 0 || part == 0)
        return STATUS_OK;
    if (part * element_bytes(buf) % sizeof(float))
        return STATUS_UNSUPPORTED;
    if (c->body->gather)
        return c->body->gather(c, buf, rows, part);
    if (kern_backend(k) == KERN_CUDA)
        return gather_staged(c, buf, rows, part);
    enum status s = kern_sync(k);
    return s == STATUS_OK
               ? comm_all_gather(c, kern_buf_ptr(buf), rows, part * element_bytes(buf) / 4)
               : s;
}

bool comm_enqueues(const struct comm *c)
{
    return c->size == 1 || c->body->gather;
}

enum status comm_sync(struct comm *c, struct kern *k)
{
    return c->body->sync ? c->body->sync(c, k) : kern_sync(k);
}

int comm_suspect(const struct comm *c)
{
    return c->blamed - 1;
}

void comm_progress_refresh(struct comm *c, uint64_t now_us)
{
    if (c->body->refresh)
        c->body->refresh(c, now_us);
}

void comm_abort(struct comm *c)
{
    atomic_store(&c->aborted, true);
    c->body->wake(c);
}

void comm_destroy(struct comm *c)
{
    if (!c)
        return;
    free(c->staged);
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
    static const struct comm_body body = {
        .all_gather = single_all_gather, .wake = single_wake, .destroy = single_destroy};
    struct comm *c = mem_zalloc(1, sizeof *c);
    c->body = &body;
    c->size = 1;
    return c;
}
