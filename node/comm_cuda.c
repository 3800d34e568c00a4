// Forms the group by three exchanges of notes over the host comm, then only enqueues. While the
// device computes, the owner thread waits in comm_sync, and there it looks after the links: a rank
// that died would keep the device waiting for its mark.
#include "node/comm_cuda.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "kernels/cuda_comm.h"
#include "node/comm_body.h"

enum {
    SPIN_US = 20000,       // looks at the device without a pause for so long: decode steps end here
    PAUSE_US = 20,         // then with one
    LINKS_EVERY_US = 1000, // and at the links
};

struct comm_cuda {
    struct comm base;
    struct comm *host; // owned once the group is formed
    const struct cuda_comm_ops *ops;
    struct cuda_comm *device;
    _Atomic uint64_t seen; // collectives, when progress was last refreshed
    bool broken;           // what ended it is in `why`
    enum status why;
};

static struct comm_cuda *ccomm_of(struct comm *c)
{
    return (struct comm_cuda *)c;
}

static enum status ccomm_all_gather(struct comm *c, float *buf, size_t rows, size_t part)
{
    return comm_all_gather(ccomm_of(c)->host, buf, rows, part);
}

static enum status ccomm_gather(struct comm *c, struct kern_buf *buf, size_t rows, size_t part)
{
    struct comm_cuda *m = ccomm_of(c);
    struct cuda_comm_gather g = {.buf = buf,
                                 .rows = rows,
                                 .part = part,
                                 .elem_bytes = kern_buf_dtype(buf) == KERN_F32 ? 4 : 2};
    return m->ops->all_gather(m->device, &g);
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

// Until the device is done, or a rank is lost: then the device is told not to wait for it.
static void wait_device(struct comm_cuda *m)
{
    uint64_t start = now_us(), links = start;
    while (!m->ops->idle(m->device)) {
        uint64_t now = now_us();
        if (now - links > LINKS_EVERY_US && m->host->body->poll && !m->broken) {
            links = now;
            m->why = m->host->body->poll(m->host);
            m->broken = m->why != STATUS_OK;
            if (m->broken)
                m->ops->abort(m->device);
        }
        if (now - start > SPIN_US) {
            struct timespec pause = {.tv_nsec = PAUSE_US * 1000};
            nanosleep(&pause, NULL);
        }
    }
}

static enum status ccomm_sync(struct comm *c, struct kern *k)
{
    struct comm_cuda *m = ccomm_of(c);
    wait_device(m);
    enum status s = kern_sync(k);
    struct cuda_comm_state state = m->ops->state(m->device);
    if (m->broken)
        return m->why;
    if (state.failure == CUDA_COMM_FINE)
        return s;
    c->blamed = state.waited_for + 1;
    if (state.failure != CUDA_COMM_ABORTED)
        log_error("collective %llu among GPUs: tensor rank %d did not come",
                  (unsigned long long)state.number, state.waited_for);
    return state.failure == CUDA_COMM_ABORTED   ? STATUS_ABORTED
           : state.failure == CUDA_COMM_TIMEOUT ? STATUS_LINK_TIMEOUT
                                                : STATUS_LINK_DOWN;
}

static void ccomm_refresh(struct comm *c, uint64_t at_us)
{
    struct comm_cuda *m = ccomm_of(c);
    uint64_t started = m->ops->state(m->device).started;
    atomic_store_explicit(&c->progress.collective, (uint32_t)started, memory_order_relaxed);
    if (atomic_exchange(&m->seen, started) != started)
        atomic_store_explicit(&c->progress.changed_us, at_us, memory_order_relaxed);
}

static void ccomm_wake(struct comm *c)
{
    struct comm_cuda *m = ccomm_of(c);
    m->ops->abort(m->device);
    comm_abort(m->host);
}

static void ccomm_destroy(struct comm *c)
{
    struct comm_cuda *m = ccomm_of(c);
    m->ops->destroy(m->device);
    comm_destroy(m->host);
    free(m);
}

static const struct comm_body ccomm_body = {.all_gather = ccomm_all_gather,
                                            .wake = ccomm_wake,
                                            .destroy = ccomm_destroy,
                                            .gather = ccomm_gather,
                                            .sync = ccomm_sync,
                                            .refresh = ccomm_refresh};

// Everybody's note to everybody: as one row of floats, which are only bytes here.
static enum status exchange(struct comm *host, const struct cuda_comm_note *own,
                            struct cuda_comm_note *all)
{
    memcpy(&all[comm_rank(host)], own, sizeof *own);
    return comm_all_gather(host, (float *)(void *)all, 1, sizeof *own / sizeof(float));
}

static enum status form(struct comm_cuda *m, struct errmsg *e)
{
    struct cuda_comm_note *all = mem_zalloc((size_t)m->base.size, sizeof *all), own;
    enum status s = STATUS_OK;
    for (int i = 0; i <= CUDA_COMM_ROUNDS && s == STATUS_OK; i++) {
        s = m->ops->round(m->device, i, i ? all : NULL, &own, e);
        if (s == STATUS_OK && i < CUDA_COMM_ROUNDS) {
            s = exchange(m->host, &own, all);
            if (s != STATUS_OK)
                (void)errmsg_set(e, s, "forming the group of GPUs: a rank was lost");
        }
    }
    free(all);
    return s;
}

enum status comm_create_cuda(const struct comm_cuda_config *config, struct comm **out,
                             struct errmsg *e)
{
    struct comm_cuda *m = mem_zalloc(1, sizeof *m);
    m->host = config->host;
    m->base.body = &ccomm_body;
    m->base.size = comm_size(config->host);
    m->base.rank = comm_rank(config->host);
    m->ops = kern_cuda_comm(e);
    struct cuda_comm_config c = {.size = m->base.size, .rank = m->base.rank};
    enum status s = m->ops ? m->ops->create(config->k, &c, &m->device, e) : STATUS_NO_DEVICE;
    if (s != STATUS_OK) {
        free(m);
        return s;
    }
    if (config->share)
        config->share(config->arg, &m->base);
    s = form(m, e);
    if (s == STATUS_OK) {
        log_info("tensor rank %d of %d: collectives over %s", m->base.rank, m->base.size,
                 m->ops->via(m->device) & CUDA_COMM_PEER ? "peer memory" : "NCCL");
        *out = &m->base;
        return s;
    }
    if (config->share)
        config->share(config->arg, NULL);
    m->ops->destroy(m->device);
    free(m);
    if (s != STATUS_UNSUPPORTED)
        return s;
    log_warn("%s: collectives go through host memory", e->text);
    *out = config->host; // all ranks came to the same conclusion
    return STATUS_OK;
}
