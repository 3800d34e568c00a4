// One communicator over the few functions of NCCL that we need. NVLink multicast (NVLS) stays off:
// it serves reductions, which the forward pass does not have, and holds a scarce switch resource.
#include "kernels/cuda/nccl_lib.h"

#include <assert.h>
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"

enum { INIT_TIMEOUT_MS = 30000, CALL_TIMEOUT_MS = 10000 };
static_assert(NCCL_ID_BYTES == NCCL_UNIQUE_ID_BYTES, "nccl.h");

#define FUNCTIONS(X)                                                                               \
    X(ncclGetVersion)                                                                              \
    X(ncclGetUniqueId)                                                                             \
    X(ncclCommInitRankConfig)                                                                      \
    X(ncclCommGetAsyncError)                                                                       \
    X(ncclCommAbort)                                                                               \
    X(ncclAllGather)                                                                               \
    X(ncclAllReduce)                                                                               \
    X(ncclGetErrorString)

static struct {
    pthread_once_t once;
    bool present;
#define POINTER(f) __typeof__(f) *f;
    FUNCTIONS(POINTER)
#undef POINTER
} lib = {.once = PTHREAD_ONCE_INIT};

// Aborting may take long and comes from threads that must not wait: each communicator has a thread
// that does nothing else.
struct nccl {
    pthread_mutex_t lock; // guards comm; held while it is aborted
    ncclComm_t comm;      // NULL once aborted
    cudaStream_t stream;
    int rank;
    pthread_t aborter;
    pthread_mutex_t wish_lock;
    pthread_cond_t wished;
    bool wish; // under wish_lock: to be aborted
};

static void load(void)
{
    const char *nvls = getenv("NCCL_NVLS_ENABLE");
    if (!nvls || strcmp(nvls, "0"))
        setenv("NCCL_NVLS_ENABLE", "0", 1);
    void *h = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!h) {
        log_info("no NCCL: %s", dlerror());
        return;
    }
#define FIND(f)                                                                                    \
    memcpy(&lib.f, &(void *){dlsym(h, #f)}, sizeof lib.f);                                         \
    if (!lib.f) {                                                                                  \
        log_warn("NCCL is not used: libnccl.so.2 has no %s", #f);                                  \
        return;                                                                                    \
    }
    FUNCTIONS(FIND)
#undef FIND
    int version = 0;
    lib.ncclGetVersion(&version);
    log_info("NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    lib.present = true;
}

bool nccl_present(void)
{
    pthread_once(&lib.once, load);
    return lib.present;
}

static bool fine(ncclResult_t r, const char *what)
{
    if (r == ncclSuccess || r == ncclInProgress)
        return true;
    log_error("%s: %s", what, lib.ncclGetErrorString(r));
    return false;
}

bool nccl_id(unsigned char id[NCCL_ID_BYTES])
{
    ncclUniqueId u;
    if (!nccl_present() || !fine(lib.ncclGetUniqueId(&u), "ncclGetUniqueId"))
        return false;
    memcpy(id, u.internal, NCCL_ID_BYTES);
    return true;
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

// One look at the call under way. PENDING: not done yet.
static enum status look(struct nccl *n, const char *what)
{
    ncclResult_t r = ncclInProgress;
    enum status s = STATUS_ABORTED;
    pthread_mutex_lock(&n->lock);
    if (n->comm)
        s = fine(lib.ncclCommGetAsyncError(n->comm, &r), what) && fine(r, what) ? STATUS_PENDING
                                                                                : STATUS_LINK_DOWN;
    pthread_mutex_unlock(&n->lock);
    return s == STATUS_PENDING && r == ncclSuccess ? STATUS_OK : s;
}

static enum status settle(struct nccl *n, const volatile uint32_t *stop, uint64_t limit_ms,
                          const char *what)
{
    uint64_t since = now_ms();
    enum status s;
    while ((s = look(n, what)) == STATUS_PENDING) {
        if (stop && *stop)
            return STATUS_ABORTED;
        if (now_ms() - since > limit_ms)
            return STATUS_LINK_TIMEOUT;
        struct timespec pause = {.tv_nsec = 20000};
        nanosleep(&pause, NULL);
    }
    return s;
}

static void *abort_main(void *arg)
{
    struct nccl *n = arg;
    pthread_mutex_lock(&n->wish_lock);
    while (!n->wish)
        pthread_cond_wait(&n->wished, &n->wish_lock);
    pthread_mutex_unlock(&n->wish_lock);
    pthread_mutex_lock(&n->lock);
    if (n->comm)
        (void)fine(lib.ncclCommAbort(n->comm), "ncclCommAbort");
    n->comm = NULL;
    pthread_mutex_unlock(&n->lock);
    return NULL;
}

enum status nccl_create(const struct nccl_args *args, const volatile uint32_t *stop,
                        struct nccl **out, struct errmsg *e)
{
    ncclUniqueId u;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    memcpy(u.internal, args->id, NCCL_ID_BYTES);
    struct nccl *n = mem_zalloc(1, sizeof *n);
    pthread_mutex_init(&n->lock, NULL);
    pthread_mutex_init(&n->wish_lock, NULL);
    pthread_cond_init(&n->wished, NULL);
    int rc = pthread_create(&n->aborter, NULL, abort_main, n);
    if (rc) {
        free(n);
        return errmsg_set(e, status_from_errno(rc), "NCCL: thread: %s", strerror(rc));
    }
    n->stream = args->stream;
    n->rank = args->rank;
    ncclResult_t r = lib.ncclCommInitRankConfig(&n->comm, args->size, u, args->rank, &config);
    enum status s = fine(r, "ncclCommInitRankConfig") ? STATUS_OK : STATUS_LINK_DOWN;
    if (s == STATUS_OK)
        s = settle(n, stop, INIT_TIMEOUT_MS, "ncclCommInitRankConfig");
    if (s == STATUS_OK) {
        *out = n;
        return STATUS_OK;
    }
    nccl_destroy(n);
    return errmsg_set(e, s, "NCCL: rank %d of %d could not join its group", args->rank, args->size);
}

// The first call of a kind connects the ranks, later ones are done at once.
static enum status done(struct nccl *n, ncclResult_t r, const char *what)
{
    if (!fine(r, what))
        return STATUS_LINK_DOWN;
    return r == ncclSuccess ? STATUS_OK : settle(n, NULL, CALL_TIMEOUT_MS, what);
}

enum status nccl_all_gather(struct nccl *n, void *packed, size_t bytes)
{
    ncclResult_t r = ncclSuccess;
    pthread_mutex_lock(&n->lock);
    bool live = n->comm != NULL;
    if (live)
        r = lib.ncclAllGather((char *)packed + (size_t)n->rank * bytes, packed, bytes, ncclUint8,
                              n->comm, n->stream);
    pthread_mutex_unlock(&n->lock);
    return live ? done(n, r, "ncclAllGather") : STATUS_ABORTED;
}

enum status nccl_all_reduce(struct nccl *n, float *buf, size_t count)
{
    ncclResult_t r = ncclSuccess;
    pthread_mutex_lock(&n->lock);
    bool live = n->comm != NULL;
    if (live)
        r = lib.ncclAllReduce(buf, buf, count, ncclFloat32, ncclSum, n->comm, n->stream);
    pthread_mutex_unlock(&n->lock);
    return live ? done(n, r, "ncclAllReduce") : STATUS_ABORTED;
}

void nccl_abort(struct nccl *n)
{
    pthread_mutex_lock(&n->wish_lock);
    n->wish = true;
    pthread_cond_signal(&n->wished);
    pthread_mutex_unlock(&n->wish_lock);
}

bool nccl_failed(struct nccl *n)
{
    ncclResult_t r = ncclSuccess;
    if (pthread_mutex_trylock(&n->lock))
        return false; // being aborted
    bool failed = n->comm && (lib.ncclCommGetAsyncError(n->comm, &r) != ncclSuccess ||
                              (r != ncclSuccess && r != ncclInProgress));
    pthread_mutex_unlock(&n->lock);
    return failed;
}

// Aborting also where all went well: the ranks of a group do not end at the same time, and a
// graceful end waits for all.
void nccl_destroy(struct nccl *n)
{
    if (!n)
        return;
    nccl_abort(n);
    pthread_join(n->aborter, NULL);
    pthread_cond_destroy(&n->wished);
    pthread_mutex_destroy(&n->wish_lock);
    pthread_mutex_destroy(&n->lock);
    free(n);
}
