// One thread: finds out which device the engine computes on, then waits for XIDs, and takes figures
// once a period. What it publishes is copied under a lock that no call of NVML holds.
#include "node/gpu_watch.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/nvml.h"
#include "node/xid.h"

enum { PERIOD_MS = 1000, LOOK_MS = 100, STOP_MS = 1000 };

// Two owners, the caller and the thread; the last one frees it.
struct gpu_watch {
    atomic_int owners;
    atomic_bool stop;
    struct engine *engine;
    char *library;
    uint32_t period_ms;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool done;                  // under the lock: the thread is past its last use of the engine
    struct gpu_figures figures; // under the lock
};

static void release(struct gpu_watch *w)
{
    if (atomic_fetch_sub(&w->owners, 1) != 1)
        return;
    pthread_cond_destroy(&w->ended);
    pthread_mutex_destroy(&w->lock);
    free(w->library);
    free(w);
}

static void publish(struct gpu_watch *w, const struct gpu_figures *f)
{
    pthread_mutex_lock(&w->lock);
    w->figures = *f;
    pthread_mutex_unlock(&w->lock);
}

// The first reason stays: what follows is often its consequence.
__attribute__((format(printf, 2, 3))) static void suspect(struct gpu_figures *f, const char *fmt,
                                                          ...)
{
    if (f->suspect)
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->reason, sizeof f->reason, fmt, ap);
    va_end(ap);
    f->suspect = true;
    log_error("GPU %s is suspect: %s", f->name, f->reason);
}

static void on_xid(struct gpu_figures *f, uint32_t xid)
{
    const struct xid_meaning *m = xid_meaning(xid);
    f->xid = xid;
    f->xids++;
    if (m->class == XID_DEVICE)
        suspect(f, "XID %" PRIu32 ", %s", xid, m->text);
    else
        log_warn("GPU %s: XID %" PRIu32 ", %s", f->name, xid, m->text);
}

static void on_sample(struct gpu_figures *f, bool there, uint64_t ecc_before)
{
    if (!there)
        suspect(f, "the driver has lost it");
    if (f->ecc_uncorrected > ecc_before)
        suspect(f, "%" PRIu64 " new uncorrected ECC errors", f->ecc_uncorrected - ecc_before);
}

static void look_on(struct gpu_watch *w, struct nvml *n)
{
    struct gpu_figures f = {0};
    bool there = nvml_sample(n, &f);
    uint64_t ecc = f.ecc_uncorrected; // those of earlier days are history
    on_sample(&f, there, ecc);
    publish(w, &f);
    for (uint32_t waited = 0; !atomic_load(&w->stop);) {
        uint32_t xid, some = w->period_ms < LOOK_MS ? w->period_ms : LOOK_MS;
        bool came = nvml_wait_xid(n, some, &xid);
        if (came)
            on_xid(&f, xid);
        waited += some;
        if (!came && waited < w->period_ms)
            continue;
        waited = 0;
        there = nvml_sample(n, &f);
        on_sample(&f, there, ecc);
        if (f.ecc_uncorrected > ecc)
            ecc = f.ecc_uncorrected;
        publish(w, &f);
    }
}

// Until the engine has opened its device; false: told to stop.
static bool find_device(struct gpu_watch *w, char uuid[ENGINE_UUID_BYTES])
{
    while (!atomic_load(&w->stop)) {
        if (w->engine->ops->device(w->engine, uuid))
            return true;
        struct timespec t = {.tv_nsec = LOOK_MS * 1000000L};
        nanosleep(&t, NULL);
    }
    return false;
}

static void *watch_main(void *arg)
{
    struct gpu_watch *w = arg;
    char uuid[ENGINE_UUID_BYTES];
    struct nvml *n = NULL;
    struct errmsg e = {0};
    if (find_device(w, uuid)) {
        if (nvml_open(w->library, uuid, &n, &e) == STATUS_OK)
            look_on(w, n);
        else
            log_info("no figures of the GPU: %s", e.text);
        nvml_close(n);
    }
    pthread_mutex_lock(&w->lock);
    w->done = true;
    pthread_cond_signal(&w->ended);
    pthread_mutex_unlock(&w->lock);
    release(w);
    return NULL;
}

struct gpu_watch *gpu_watch_start(const struct gpu_watch_args *args)
{
    if (!args->engine->ops->device)
        return NULL;
    const char *library = args->library ? args->library : getenv("HADAL_NVML");
    struct gpu_watch *w = mem_zalloc(1, sizeof *w);
    w->owners = 2;
    w->engine = args->engine;
    w->library = mem_strdup(library ? library : "libnvidia-ml.so.1");
    w->period_ms = args->period_ms ? args->period_ms : PERIOD_MS;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->ended, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&w->thread, NULL, watch_main, w);
    if (rc) {
        log_warn("no figures of the GPU: thread: %s", strerror(rc));
        w->owners = 1;
        release(w);
        return NULL;
    }
    pthread_setname_np(w->thread, "gpu-watch");
    return w;
}

void gpu_watch_read(struct gpu_watch *w, struct gpu_figures *out)
{
    *out = (struct gpu_figures){0};
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    *out = w->figures;
    pthread_mutex_unlock(&w->lock);
}

void gpu_watch_stop(struct gpu_watch *w)
{
    if (!w)
        return;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += STOP_MS / 1000;
    atomic_store(&w->stop, true);
    pthread_mutex_lock(&w->lock);
    int rc = 0;
    while (!w->done && rc == 0)
        rc = pthread_cond_timedwait(&w->ended, &w->lock, &until);
    bool done = w->done;
    pthread_mutex_unlock(&w->lock);
    if (done)
        pthread_join(w->thread, NULL);
    else
        pthread_detach(w->thread);
    release(w);
}
