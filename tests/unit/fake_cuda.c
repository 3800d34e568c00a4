#include "tests/unit/fake_cuda.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "kernels/cuda_comm.h"
#include "kernels/cuda_load.h"
#include "kernels/kern_impl.h"

#define PUBLIC __attribute__((visibility("default")))
enum { RANKS = 8, QUEUE = 64 };

static _Atomic int64_t values[FAKE_CUDA_VALUES];

PUBLIC void fake_cuda_set(enum fake_cuda_value which, int64_t v)
{
    values[which] = v;
}

PUBLIC int64_t fake_cuda_get(enum fake_cuda_value which)
{
    return values[which];
}

struct op {
    char *buf;
    size_t rows, part; // bytes
};

struct cuda_comm {
    int size, rank;
    struct cuda_comm *peers[RANKS];
    // What peers look at: a collective's buffer, and how many this rank has shown and read.
    _Atomic(char *) shown_buf;
    _Atomic uint64_t shown, read;
    atomic_bool stop;
    _Atomic uint32_t failure, waited_for;
    _Atomic uint64_t started;
    pthread_t thread;
    struct op queue[QUEUE];
    _Atomic uint64_t put, done;
    atomic_bool quit;
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void rest(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

// Until a peer's counter is there; false: given up.
static bool wait_for(struct cuda_comm *m, int peer, _Atomic uint64_t *counter, uint64_t v)
{
    uint64_t limit = values[FAKE_CUDA_TIMEOUT_MS] ? (uint64_t)values[FAKE_CUDA_TIMEOUT_MS] : 20000;
    uint64_t until = now_ms() + limit;
    while (atomic_load(counter) < v) {
        bool late = now_ms() > until;
        if (atomic_load(&m->stop) || late) {
            atomic_store(&m->waited_for, (uint32_t)peer);
            atomic_store(&m->failure, late ? CUDA_COMM_TIMEOUT : CUDA_COMM_ABORTED);
            return false;
        }
        rest();
    }
    return true;
}

static void gather(struct cuda_comm *m, const struct op *o)
{
    uint64_t n = atomic_load(&m->started) + 1;
    if (atomic_load(&m->failure))
        return;
    atomic_store(&m->started, n);
    atomic_store(&m->shown_buf, o->buf);
    atomic_store(&m->shown, n);
    for (int p = 0; p < m->size; p++) {
        if (p == m->rank)
            continue;
        if (!wait_for(m, p, &m->peers[p]->shown, n))
            return;
        const char *from = atomic_load(&m->peers[p]->shown_buf);
        for (size_t r = 0; r < o->rows; r++) {
            size_t at = (r * (size_t)m->size + (size_t)p) * o->part;
            memcpy(o->buf + at, from + at, o->part);
        }
    }
    atomic_store(&m->read, n);
    for (int p = 0; p < m->size; p++)
        if (p != m->rank && !wait_for(m, p, &m->peers[p]->read, n))
            return;
}

static void *stream_main(void *arg)
{
    struct cuda_comm *m = arg;
    while (!atomic_load(&m->quit)) {
        uint64_t i = atomic_load(&m->done);
        if (i == atomic_load(&m->put)) {
            rest();
            continue;
        }
        gather(m, &m->queue[i % QUEUE]);
        atomic_store(&m->done, i + 1);
    }
    return NULL;
}

static enum status create(struct kern *k, const struct cuda_comm_config *config,
                          struct cuda_comm **out, struct errmsg *e)
{
    struct cuda_comm *m = mem_zalloc(1, sizeof *m);
    m->size = config->size;
    m->rank = config->rank;
    if (pthread_create(&m->thread, NULL, stream_main, m)) {
        free(m);
        return errmsg_set(e, STATUS_NO_MEMORY, "no thread");
    }
    values[FAKE_CUDA_ALIVE]++;
    *out = m;
    return STATUS_OK;
}

static enum status one_round(struct cuda_comm *m, int round, const struct cuda_comm_note *all,
                             struct cuda_comm_note *own, struct errmsg *e)
{
    if (round < CUDA_COMM_ROUNDS)
        memset(own, 0, sizeof *own);
    if (round == 0)
        memcpy(own->v, &m, sizeof m);
    if (round == 1 && values[FAKE_CUDA_BAD_ROUND] == m->rank + 1)
        return errmsg_set(e, STATUS_LINK_PROTOCOL, "a bad note");
    for (int i = 0; round == 1 && i < m->size; i++)
        memcpy(&m->peers[i], all[i].v, sizeof m);
    if (round == 2 && values[FAKE_CUDA_NO_WAY])
        return errmsg_set(e, STATUS_UNSUPPORTED, "no way");
    return STATUS_OK;
}

static enum status all_gather(struct cuda_comm *m, const struct cuda_comm_gather *g)
{
    uint64_t i = atomic_load(&m->put);
    if (i - atomic_load(&m->done) == QUEUE)
        return STATUS_FULL;
    m->queue[i % QUEUE] = (struct op){.buf = (char *)g->buf->p + g->at * g->elem_bytes,
                                      .rows = g->rows,
                                      .part = g->part * g->elem_bytes};
    atomic_store(&m->put, i + 1);
    return STATUS_OK;
}

static unsigned via(const struct cuda_comm *m)
{
    return CUDA_COMM_PEER;
}

static bool idle(struct cuda_comm *m)
{
    return atomic_load(&m->put) == atomic_load(&m->done);
}

static void stop(struct cuda_comm *m)
{
    atomic_store(&m->stop, true);
}

static struct cuda_comm_state state(const struct cuda_comm *m)
{
    uint32_t failure = atomic_load(&m->failure);
    return (struct cuda_comm_state){.failure = failure                 ? failure
                                               : atomic_load(&m->stop) ? CUDA_COMM_ABORTED
                                                                       : CUDA_COMM_FINE,
                                    .waited_for = failure ? (int)atomic_load(&m->waited_for) : -1,
                                    .started = atomic_load(&m->started)};
}

static void destroy(struct cuda_comm *m)
{
    if (!m)
        return;
    stop(m);
    while (!idle(m))
        rest();
    atomic_store(&m->quit, true);
    pthread_join(m->thread, NULL);
    values[FAKE_CUDA_ALIVE]--;
    free(m);
}

static const struct cuda_comm_ops ops = {.abi = CUDA_COMM_ABI,
                                         .create = create,
                                         .round = one_round,
                                         .via = via,
                                         .all_gather = all_gather,
                                         .idle = idle,
                                         .abort = stop,
                                         .state = state,
                                         .destroy = destroy};

kern_cuda_comm_fn hadal_cuda_comm;
PUBLIC const struct cuda_comm_ops *hadal_cuda_comm(void)
{
    return &ops;
}

kern_cuda_open_fn hadal_cuda_open;
PUBLIC enum status hadal_cuda_open(int abi, const struct kern_config *config,
                                   struct kern **kern_out, struct errmsg *err)
{
    if (abi != KERN_CUDA_ABI)
        return errmsg_set(err, STATUS_NO_DEVICE, "another build");
    enum status s = kern_cpu_open(KERN_CPU, &(struct kern_config){.threads = 1}, kern_out, err);
    if (s == STATUS_OK)
        (*kern_out)->backend = KERN_CUDA;
    return s;
}

kern_cuda_limits_fn hadal_cuda_limits;
PUBLIC enum status hadal_cuda_limits(struct kern *k, struct kern_cuda_limits *out,
                                     struct errmsg *err)
{
    return errmsg_set(err, STATUS_UNSUPPORTED, "nothing to measure");
}

kern_cuda_uuid_fn hadal_cuda_uuid;
PUBLIC bool hadal_cuda_uuid(struct kern *k, char out[KERN_CUDA_UUID_BYTES])
{
    strcpy(out, "GPU-fake");
    return true;
}
