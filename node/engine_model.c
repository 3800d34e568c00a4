// The owner's side of the model engine: orders go into the worker's mailbox, plans and events
// through rings of preallocated memory. Nothing here waits for the worker but destroy.
#include "node/engine_model.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/plan_wire.h"
#include "node/worker.h"
#include "node/worker_kv.h"

struct engine_model {
    struct engine base;
    struct worker worker;
    pthread_t thread;
    struct worker_plan plan_pool[WORKER_PLANS];
    struct worker_event event_pool[WORKER_EVENTS];
    struct worker_event *polled; // given to the owner, back in the ring at the next poll
    uint64_t void_epoch;         // events of this epoch and older ones are not reported any more
    char *bind, *models_dir;
};

static struct engine_model *model_of(struct engine *e)
{
    return (struct engine_model *)e;
}

// For an order: wherever the worker waits, also while it links up.
static void wake_worker(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    pthread_cond_signal(&w->posted);
    pthread_mutex_unlock(&w->lock);
    for (int k = 0; k < WORKER_HUBS; k++)
        if (w->hubs[k])
            lane_hub_wake(w->hubs[k]);
}

// For a plan, once a step: only where a linked worker can be waiting.
static void wake_linked(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    pthread_cond_signal(&w->posted);
    struct lane_hub *hub = w->hub;
    pthread_mutex_unlock(&w->lock);
    if (hub)
        lane_hub_wake(hub);
}

// A worker that waits for its device looks at no link: the collectives are told as well.
static void abort_comm(struct worker *w, uint64_t epoch)
{
    pthread_mutex_lock(&w->lock);
    if (w->comm && w->comm_epoch <= epoch)
        comm_abort(w->comm);
    pthread_mutex_unlock(&w->lock);
}

static void abort_epoch(struct engine_model *m, uint64_t epoch)
{
    abort_comm(&m->worker, epoch);
    for (int k = 0; k < WORKER_HUBS; k++)
        if (m->worker.hubs[k])
            lane_hub_abort(m->worker.hubs[k], epoch);
}

static void model_form(struct engine *e, const struct msg_form *form)
{
    struct engine_model *m = model_of(e);
    struct worker *w = &m->worker;
    struct msg *copy = msg_clone(&(struct msg){.kind = MSG_FORM, .form = *form});
    m->void_epoch = form->epoch - 1;
    abort_epoch(m, form->epoch - 1);
    pthread_mutex_lock(&w->lock);
    msg_free(w->form);
    msg_free(w->link);
    w->form = copy;
    w->link = NULL;
    pthread_mutex_unlock(&w->lock);
    wake_worker(w);
}

static void model_link(struct engine *e, const struct msg_link *link)
{
    struct worker *w = &model_of(e)->worker;
    struct msg *copy = msg_clone(&(struct msg){.kind = MSG_LINK, .link = *link});
    pthread_mutex_lock(&w->lock);
    msg_free(w->link);
    w->link = copy;
    pthread_mutex_unlock(&w->lock);
    wake_worker(w);
}

static void model_dissolve(struct engine *e, uint64_t epoch)
{
    struct engine_model *m = model_of(e);
    struct worker *w = &m->worker;
    if (epoch > m->void_epoch)
        m->void_epoch = epoch;
    abort_epoch(m, epoch);
    pthread_mutex_lock(&w->lock);
    if (epoch > w->dissolve)
        w->dissolve = epoch;
    if (w->form && w->form->form.epoch <= epoch) {
        msg_free(w->form);
        w->form = NULL;
    }
    if (w->link && w->link->link.epoch <= epoch) {
        msg_free(w->link);
        w->link = NULL;
    }
    pthread_mutex_unlock(&w->lock);
    wake_worker(w);
}

static enum status model_submit(struct engine *e, const struct step_plan *plan)
{
    struct worker *w = &model_of(e)->worker;
    struct worker_plan *p = spsc_pop(&w->plans_free);
    if (!p)
        return STATUS_FULL;
    p->epoch = plan->epoch;
    strbuf_clear(&p->bytes);
    step_plan_encode(plan, &p->bytes);
    bool pushed = spsc_push(&w->plans, p);
    assert(pushed); // as many places as plans exist
    wake_linked(w);
    return STATUS_OK;
}

static void model_kv(struct engine *e, const struct kv_order *order)
{
    struct worker *w = &model_of(e)->worker;
    worker_kv_post(w->kv, order);
    wake_linked(w);
}

static bool model_poll(struct engine *e, struct engine_event *ev)
{
    struct engine_model *m = model_of(e);
    struct worker *w = &m->worker;
    for (;;) {
        if (m->polled) {
            bool pushed = spsc_push(&w->events_free, m->polled);
            assert(pushed); // as many places as events exist
        }
        m->polled = spsc_pop(&w->events);
        if (!m->polled)
            return false;
        if (m->polled->ev.epoch > m->void_epoch)
            break;
    }
    *ev = m->polled->ev;
    return true;
}

static struct rank_progress model_progress(struct engine *e, uint64_t now_us)
{
    struct worker *w = &model_of(e)->worker;
    struct rank_progress r = {0};
    pthread_mutex_lock(&w->lock);
    if (w->comm) {
        comm_progress_refresh(w->comm, now_us);
        const struct comm_progress *p = comm_progress(w->comm);
        uint64_t changed = atomic_load_explicit(&p->changed_us, memory_order_relaxed);
        r.step = atomic_load_explicit(&p->step, memory_order_relaxed);
        r.layer = atomic_load_explicit(&p->layer, memory_order_relaxed);
        r.collective = atomic_load_explicit(&p->collective, memory_order_relaxed);
        r.age_ms = r.step && now_us > changed ? (uint32_t)((now_us - changed) / 1000) : 0;
    }
    pthread_mutex_unlock(&w->lock);
    return r;
}

static bool model_device(struct engine *e, char uuid[ENGINE_UUID_BYTES])
{
    struct worker *w = &model_of(e)->worker;
    pthread_mutex_lock(&w->lock);
    memcpy(uuid, w->uuid, sizeof w->uuid);
    pthread_mutex_unlock(&w->lock);
    return uuid[0] != 0;
}

static void model_free(struct engine_model *m)
{
    struct worker *w = &m->worker;
    worker_kv_destroy(w->kv);
    for (int k = 0; k < WORKER_HUBS; k++)
        lane_hub_close(w->hubs[k]);
    msg_free(w->form);
    msg_free(w->link);
    for (int i = 0; i < WORKER_PLANS; i++)
        strbuf_finish(&m->plan_pool[i].bytes);
    for (int i = 0; i < WORKER_EVENTS; i++)
        free(m->event_pool[i].samples);
    spsc_finish(&w->plans);
    spsc_finish(&w->plans_free);
    spsc_finish(&w->events);
    spsc_finish(&w->events_free);
    pthread_cond_destroy(&w->posted);
    pthread_mutex_destroy(&w->lock);
    free(m->bind);
    free(m->models_dir);
    free(m);
}

static void model_destroy(struct engine *e)
{
    struct engine_model *m = model_of(e);
    struct worker *w = &m->worker;
    abort_epoch(m, UINT64_MAX);
    pthread_mutex_lock(&w->lock);
    w->quit = true;
    pthread_mutex_unlock(&w->lock);
    wake_worker(w);
    pthread_join(m->thread, NULL);
    model_free(m);
}

static const struct engine_ops model_ops = {
    .name = "model",
    .form = model_form,
    .link = model_link,
    .dissolve = model_dissolve,
    .submit = model_submit,
    .kv = model_kv,
    .poll = model_poll,
    .progress = model_progress,
    .device = model_device,
    .destroy = model_destroy,
};

// A transport that this host does not offer is not an error; the address in PREPARED stays empty.
static void open_hub(struct worker *w, struct transport t, const char *host)
{
    struct lane_hub_config config = {
        .kind = t.kind, .bind_host = host, .spin_us = w->config.spin_us, .wire = w->config.wire};
    struct lane_hub **hub = &w->hubs[worker_hub_of(t)];
    struct errmsg why = {0};
    enum status rc = lane_hub_open(&config, hub, &why);
    if (rc == STATUS_OK) {
        if (t.kind == XPORT_VERBS)
            log_info("rail %u: %s", t.rail, lane_hub_address(*hub));
        return;
    }
    *hub = NULL;
    log_write(rc == STATUS_NO_DEVICE ? LOG_INFO : LOG_WARN, "transport %s is not offered: %s",
              xport_kind_name(t.kind), why.text);
}

static enum status open_hubs(struct engine_model *m, const char *rdma, struct errmsg *e)
{
    struct worker *w = &m->worker;
    struct rails rails;
    const struct rails_want want = {.rdma = rdma ? rdma : "auto",
                                    .bind = m->bind,
                                    .sysfs = "/sys",
                                    .numa_node = rails_numa_node()};
    enum status rc = rails_find(&want, &rails, e);
    if (rc != STATUS_OK)
        return rc;
    open_hub(w, (struct transport){.kind = XPORT_SHM}, m->bind);
    open_hub(w, (struct transport){.kind = XPORT_TCP}, m->bind);
    for (uint32_t i = 0; i < rails.n; i++)
        open_hub(w, (struct transport){XPORT_VERBS, i},
                 rails.hosts[i][0] ? rails.hosts[i] : m->bind);
    return STATUS_OK;
}

static void init_worker(struct engine_model *m)
{
    struct worker *w = &m->worker;
    pthread_condattr_t attr;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->posted, &attr);
    pthread_condattr_destroy(&attr);
    spsc_init(&w->plans, WORKER_PLANS);
    spsc_init(&w->plans_free, WORKER_PLANS);
    spsc_init(&w->events, WORKER_EVENTS);
    spsc_init(&w->events_free, WORKER_EVENTS);
    for (int i = 0; i < WORKER_PLANS; i++)
        if (!spsc_push(&w->plans_free, &m->plan_pool[i]))
            abort(); // rings are as long as their pools
    for (int i = 0; i < WORKER_EVENTS; i++)
        if (!spsc_push(&w->events_free, &m->event_pool[i]))
            abort();
}

struct engine *engine_model_create(const struct engine_model_config *config,
                                   void (*wake)(void *arg), void *arg, struct errmsg *e)
{
    struct engine_model *m = mem_zalloc(1, sizeof *m);
    m->base.ops = &model_ops;
    m->bind = mem_strdup(config->bind ? config->bind : "127.0.0.1");
    m->worker.config = *config;
    m->worker.config.bind = m->bind;
    m->models_dir = config->models_dir ? mem_strdup(config->models_dir) : NULL;
    m->worker.config.models_dir = m->models_dir;
    m->worker.wake = wake;
    m->worker.wake_arg = arg;
    init_worker(m);
    m->worker.config.rdma = NULL; // the caller's
    if (open_hubs(m, config->rdma, e) != STATUS_OK) {
        model_free(m);
        return NULL;
    }
    m->worker.kv = worker_kv_create(&m->worker, m->bind);
    int rc = pthread_create(&m->thread, NULL, worker_main, &m->worker);
    if (rc) {
        model_free(m);
        (void)errmsg_set(e, status_from_errno(rc), "engine thread: %s", strerror(rc));
        return NULL;
    }
    pthread_setname_np(m->thread, "engine");
    return &m->base;
}
