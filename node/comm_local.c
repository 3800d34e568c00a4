// All-gather among threads: every rank publishes the address of its buffer, waits for the others,
// copies their slices into its own buffer, and waits again before anybody may overwrite a slice.
// Waiting is on a condition variable: in these tools threads may outnumber cores.
#include "node/comm_local.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/mem.h"
#include "node/comm_body.h"

struct comm_local {
    pthread_mutex_t mutex;
    pthread_cond_t moved;
    int size;
    int arrived;         // ranks at the barrier
    uint64_t generation; // barriers passed
    bool aborted;
    float *bufs[LIMIT_TENSOR];
};

struct local_rank {
    struct comm comm; // first
    struct comm_local *l;
};

static enum status barrier(struct comm_local *l)
{
    pthread_mutex_lock(&l->mutex);
    uint64_t generation = l->generation;
    if (++l->arrived == l->size) {
        l->arrived = 0;
        l->generation++;
        pthread_cond_broadcast(&l->moved);
    }
    while (l->generation == generation && !l->aborted)
        pthread_cond_wait(&l->moved, &l->mutex);
    enum status s = l->aborted ? STATUS_ABORTED : STATUS_OK;
    pthread_mutex_unlock(&l->mutex);
    return s;
}

static enum status local_all_gather(struct comm *c, float *buf, size_t rows, size_t part)
{
    struct comm_local *l = ((struct local_rank *)c)->l;
    const size_t size = (size_t)c->size;
    l->bufs[c->rank] = buf;
    enum status s = barrier(l);
    for (size_t r = 0; r < size && s == STATUS_OK; r++)
        for (size_t i = 0; r != (size_t)c->rank && i < rows; i++) {
            size_t at = (i * size + r) * part;
            memcpy(buf + at, l->bufs[r] + at, part * sizeof *buf);
        }
    return s == STATUS_OK ? barrier(l) : s;
}

// One rank's abort is everybody's: the others would wait for it for ever.
static void local_wake(struct comm *c)
{
    struct comm_local *l = ((struct local_rank *)c)->l;
    pthread_mutex_lock(&l->mutex);
    l->aborted = true;
    pthread_cond_broadcast(&l->moved);
    pthread_mutex_unlock(&l->mutex);
}

static void local_destroy(struct comm *c)
{
    free(c);
}

struct comm_local *comm_local_create(int tensors)
{
    assert(tensors >= 1 && tensors <= LIMIT_TENSOR);
    struct comm_local *l = mem_zalloc(1, sizeof *l);
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->moved, NULL);
    l->size = tensors;
    return l;
}

void comm_local_destroy(struct comm_local *l)
{
    if (!l)
        return;
    pthread_mutex_destroy(&l->mutex);
    pthread_cond_destroy(&l->moved);
    free(l);
}

struct comm *comm_local_rank(struct comm_local *l, int rank)
{
    static const struct comm_body body = {
        .all_gather = local_all_gather, .wake = local_wake, .destroy = local_destroy};
    assert(rank >= 0 && rank < l->size);
    struct local_rank *r = mem_zalloc(1, sizeof *r);
    r->comm.body = &body;
    r->comm.size = l->size;
    r->comm.rank = rank;
    r->l = l;
    return &r->comm;
}
