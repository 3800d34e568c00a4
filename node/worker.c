// Orders and life of the worker thread. It holds at most one replica: FORM loads the shard and
// starts a group on the hubs, LINK opens the lanes and connects, then steps are computed
// (worker_step.c) until the group breaks, is dissolved, or a newer FORM comes. The shard stays
// loaded in between, so that a replica re-forms in milliseconds when another rank died.
#include "node/worker.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "kernels/cuda_load.h"
#include "node/worker_state.h"

enum { CONNECT_TIMEOUT_MS = 10000, IDLE_WAIT_MS = 1000 };

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

// ---- events to the owner
// --------------------------------------------------------------------------

struct worker_event *worker_event_new(struct worker *w, enum engine_event_kind kind)
{
    struct worker_event *x;
    // The ring holds more than can be under way; only an owner that stopped polling empties it.
    while (!(x = spsc_pop(&w->events_free))) {
        struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
    x->ev = (struct engine_event){
        .kind = kind, .replica = w->state->form.replica, .epoch = w->state->form.epoch};
    return x;
}

void worker_event_post(struct worker *w, struct worker_event *x)
{
    bool posted = spsc_push(&w->events, x);
    assert(posted); // as many places as events exist
    w->wake(w->wake_arg);
}

static void report_formed(struct worker *w, enum status status, const char *text)
{
    const struct worker_state *s = w->state;
    struct worker_event *x = worker_event_new(w, ENGINE_FORMED);
    struct engine_formed *f = &x->ev.formed;
    f->replica = s->form.replica;
    f->epoch = s->form.epoch;
    f->status = status;
    snprintf(f->text, sizeof f->text, "%s", text);
    if (status == STATUS_OK) {
        f->fingerprint = s->shard->fingerprint;
        f->transport = s->hub ? transports_in_use(s->transport.kind) : TRANSPORT_AUTO;
        f->max_context = (uint32_t)s->shard->max_context;
        f->kv_blocks = (uint32_t)s->shard->kv_blocks;
        f->block_tokens = (uint32_t)s->shard->block_tokens;
        f->max_rows = w->config.max_rows;
        f->max_seqs = w->config.max_seqs;
        f->vocab = (uint32_t)s->shard->config.vocab;
        f->pipeline = s->form.stages;
        f->moves_kv = worker_kv_moves(w);
        f->weights = worker_weights_addresses(w);
        f->loaded = s->loaded;
    }
    worker_event_post(w, x);
}

// Those that do not rest; "" when there are none.
static void offer_rails(const struct worker *w, char *to, size_t n)
{
    size_t used = 0;
    bool any = false;
    for (uint32_t rail = 0; rail < RDMA_RAILS_MAX; rail++) {
        const struct lane_hub *h = w->hubs[worker_hub_of((struct transport){XPORT_VERBS, rail})];
        bool offered = h && rdma_rest_offers(&w->state->rdma[rail], now_ms());
        const char *address = offered ? lane_hub_address(h) : "";
        if (used + strlen(address) + 2 > n)
            break;
        used += (size_t)snprintf(to + used, n - used, "%s%s", rail ? "," : "", address);
        any |= offered;
    }
    if (!any)
        to[0] = 0;
}

static void report_prepared(struct worker *w)
{
    struct worker_event *x = worker_event_new(w, ENGINE_PREPARED);
    const struct lane_hub *shm = w->hubs[XPORT_SHM], *tcp = w->hubs[XPORT_TCP];
    snprintf(x->shm, sizeof x->shm, "%s", shm ? lane_hub_address(shm) : "");
    snprintf(x->tcp, sizeof x->tcp, "%s", tcp ? lane_hub_address(tcp) : "");
    offer_rails(w, x->verbs, sizeof x->verbs);
    x->ev.addresses = (struct rank_addresses){.shm = x->shm, .tcp = x->tcp, .verbs = x->verbs};
    x->ev.mover = worker_kv_addresses(w->kv);
    worker_event_post(w, x);
}

static void rdma_fault(struct worker_state *s, enum status why, bool unreachable)
{
    struct rdma_rest *rest = &s->rdma[s->transport.rail];
    if (rdma_rest_fault(rest, now_ms(), unreachable))
        log_warn("transport verbs, rail %u, is not offered for %u s: %s", s->transport.rail,
                 rest->rest_ms / 1000,
                 unreachable ? "a peer could not be reached" : status_text(why));
}

void worker_report_fault(struct worker *w, enum status status, const char *text, int rank)
{
    struct worker_state *s = w->state;
    s->phase = WORKER_BROKEN;
    if (status == STATUS_ABORTED)
        return; // the owner asked for it
    int tensor = (int)s->form.tensor;
    if (s->hub && s->transport.kind == XPORT_VERBS && status_group(status) == STATUS_GROUP_LINK)
        rdma_fault(s, status, false);
    log_error("replica %" PRIu64 " epoch %" PRIu64 " rank (%u,%u): %s: %s", s->form.replica,
              s->form.epoch, s->form.my_stage, s->form.my_tensor, status_text(status), text);
    struct worker_event *x = worker_event_new(w, ENGINE_FAULT);
    x->ev.result.status = status;
    x->ev.result.bad_stage = rank < 0 ? -1 : rank / tensor;
    x->ev.result.bad_tensor = rank < 0 ? -1 : rank % tensor;
    worker_event_post(w, x);
}

// ---- forming
// ----------------------------------------------------------------------------------------

// The heartbeat thread may look at the comm's progress only under the lock; the owner wakes the
// hub.
static void worker_publish_comm(struct worker *w, struct comm *comm)
{
    pthread_mutex_lock(&w->lock);
    w->comm = comm;
    w->comm_epoch = w->state->form.epoch;
    w->hub = comm ? w->state->hub : NULL;
    pthread_mutex_unlock(&w->lock);
}

void worker_unlink(struct worker *w)
{
    struct worker_state *s = w->state;
    worker_publish_comm(w, NULL);
    worker_kv_leave(w);
    if (s->shard)
        model_shard_attach(s->shard, NULL);
    worker_hidden_close(w);
    comm_destroy(s->comm);
    s->comm = NULL;
    slots_destroy(s->slots);
    s->slots = NULL;
    s->hub = NULL;
    s->agree_rx = s->plan_rx = s->result_rx = s->result_tx = NULL;
    memset(s->agree_tx, 0, sizeof s->agree_tx);
    memset(s->plan_tx, 0, sizeof s->plan_tx);
    s->phase = WORKER_IDLE;
}

static void take_form(struct worker *w, const struct msg_form *f)
{
    struct worker_state *s = w->state;
    worker_unlink(w);
    s->form = *f;
    s->form.model_dir = NULL; // not ours to keep
    struct errmsg e = {0};
    enum status rc = worker_weights_load(w, f, &e);
    if (rc != STATUS_OK) {
        report_formed(w, rc, e.text);
        return;
    }
    s->phase = WORKER_PREPARED;
    report_prepared(w);
}

// ---- linking
// ------------------------------------------------------------------------------------------

static uint32_t my_rank(const struct worker_state *s)
{
    return s->form.my_stage * s->form.tensor + s->form.my_tensor;
}

struct slots_config worker_limits(const struct worker *w)
{
    const struct model_shard *m = w->state->shard;
    return (struct slots_config){.max_seqs = w->config.max_seqs,
                                 .max_rows = w->config.max_rows,
                                 .max_context = (uint32_t)m->max_context,
                                 .kv_blocks = (uint32_t)m->kv_blocks,
                                 .block_tokens = (uint32_t)m->block_tokens,
                                 .vocab = (uint32_t)m->config.vocab};
}

// The scheduler bounds what one plan opens to one context in all.
static size_t plan_bytes_max(const struct worker *w)
{
    struct step_plan_limits limits = {
        .max_seqs = w->config.max_seqs,
        .max_rows = w->config.max_rows,
        .max_context = (uint32_t)w->state->shard->max_context,
        .block_tokens = (uint32_t)w->state->shard->block_tokens,
    };
    return step_plan_max_bytes(&limits);
}

static enum status open_lane(struct worker *w, bool tx, const struct lane_config *config,
                             struct lane **lane, struct errmsg *e)
{
    return tx ? lane_open_tx(w->state->hub, config, lane, e)
              : lane_open_rx(w->state->hub, config, lane, e);
}

// Lanes of this rank: set-up and plans from the lead to all, hidden states along the stages,
// samples from the last stage back to the lead.
static enum status open_lanes(struct worker *w, struct errmsg *e)
{
    struct worker_state *s = w->state;
    const struct msg_form *f = &s->form;
    uint32_t me = my_rank(s), ranks = f->stages * f->tensor, depth = f->stages + 1;
    uint32_t last = (f->stages - 1) * f->tensor;
    enum status rc = STATUS_OK;
    struct lane_config agree = {.channel = CHANNEL_AGREE, .slots = 1, .slot_bytes = 256};
    struct lane_config plan = {.channel = CHANNEL_PLAN, .slots = depth};
    plan.slot_bytes = s->plan_bytes = plan_bytes_max(w);
    for (uint32_t r = 1; r < ranks && rc == STATUS_OK; r++) {
        if (me != 0 && me != r)
            continue;
        agree.peer = plan.peer = me == 0 ? r : 0;
        rc = open_lane(w, me == 0, &agree, me == 0 ? &s->agree_tx[r] : &s->agree_rx, e);
        if (rc == STATUS_OK)
            rc = open_lane(w, me == 0, &plan, me == 0 ? &s->plan_tx[r] : &s->plan_rx, e);
    }
    if (rc == STATUS_OK)
        rc = worker_hidden_open(w, e);
    if (rc == STATUS_OK)
        rc = worker_kv_open(w, e);
    struct lane_config result = {.channel = CHANNEL_RESULT, .slots = depth};
    result.slot_bytes = step_result_max_bytes(w->config.max_seqs);
    if (rc == STATUS_OK && last != 0 && me == 0) {
        result.peer = last;
        rc = open_lane(w, false, &result, &s->result_rx, e);
    }
    if (rc == STATUS_OK && last != 0 && me == last) {
        result.peer = 0;
        rc = open_lane(w, true, &result, &s->result_tx, e);
    }
    return rc;
}

static enum status open_comm(struct worker *w, struct errmsg *e)
{
    struct worker_state *s = w->state;
    uint32_t ranks[LIMIT_TENSOR];
    if (s->form.tensor == 1) {
        s->comm = comm_create_single();
        return STATUS_OK;
    }
    for (uint32_t t = 0; t < s->form.tensor; t++)
        ranks[t] = s->form.my_stage * s->form.tensor + t;
    struct comm_xport_config config = {.ranks = ranks, .n = s->form.tensor};
    return comm_create_xport(s->hub, &config, &s->comm, e);
}

static void share_comm(void *worker, struct comm *c)
{
    worker_publish_comm(worker, c);
}

// Once the ranks know each other.
static enum status open_device_comm(struct worker *w, struct errmsg *e)
{
    struct worker_state *s = w->state;
    if (s->form.tensor == 1 || kern_backend(s->kern) != KERN_CUDA)
        return STATUS_OK;
    struct comm_cuda_config config = {.host = s->comm, .k = s->kern, .share = share_comm, .arg = w};
    return comm_create_cuda(&config, &s->comm, e);
}

static enum status choose_transport(struct worker *w, const struct msg_link *l, struct errmsg *e)
{
    struct worker_state *s = w->state;
    const struct transports_want want = {.choice = (enum transport_choice)s->form.transport,
                                         .members = l->members,
                                         .members_n = l->members_n,
                                         .replica = s->form.replica};
    int fallback;
    enum status rc = transports_choose(&want, &s->transport, &fallback, e);
    if (rc != STATUS_OK)
        return rc;
    s->hub = w->hubs[worker_hub_of(s->transport)];
    if (!s->hub) // we are one of the members
        return errmsg_set(e, STATUS_LINK_PROTOCOL, "transport: an address that is not ours");
    if (fallback >= 0)
        log_warn("replica %" PRIu64 " epoch %" PRIu64
                 ": node %s does not offer verbs now, the ranks link up over tcp",
                 s->form.replica, s->form.epoch, l->members[fallback].name);
    return STATUS_OK;
}

static enum status connect_group(struct worker *w, const struct msg_link *l, struct errmsg *e)
{
    struct worker_state *s = w->state;
    const char *addresses[LIMIT_RANKS];
    if (l->members_n == 1) {
        s->hub = NULL;
        return open_comm(w, e);
    }
    enum status rc = choose_transport(w, l, e);
    if (rc != STATUS_OK)
        return rc;
    struct lane_group group = {.epoch = s->form.epoch, .rank = my_rank(s), .ranks = l->members_n};
    rc = lane_hub_begin(s->hub, &group, e);
    if (rc == STATUS_OK)
        rc = open_lanes(w, e);
    if (rc == STATUS_OK)
        rc = open_comm(w, e);
    if (rc != STATUS_OK)
        return rc;
    char(*copies)[LIMIT_ADDR] = mem_alloc(l->members_n * sizeof *copies);
    for (uint32_t i = 0; i < l->members_n; i++)
        addresses[i] = transports_address(&l->members[i].addresses, s->transport, copies[i]);
    rc = lane_hub_connect(s->hub, addresses, CONNECT_TIMEOUT_MS, e);
    free(copies);
    if (s->transport.kind == XPORT_VERBS && rc == STATUS_LINK_TIMEOUT)
        rdma_fault(s, rc, true);
    return rc;
}

static void take_link(struct worker *w, const struct msg_link *l)
{
    struct worker_state *s = w->state;
    if (s->phase != WORKER_PREPARED || l->epoch != s->form.epoch ||
        l->members_n != s->form.stages * s->form.tensor)
        return; // overtaken by a newer order
    struct errmsg e = {0};
    enum status rc = connect_group(w, l, &e);
    if (rc == STATUS_OK)
        rc = worker_agree(w, &e);
    if (rc == STATUS_OK)
        rc = open_device_comm(w, &e);
    if (rc == STATUS_OK)
        rc = worker_hidden_join(w, &e);
    if (rc == STATUS_OK)
        rc = worker_kv_join(w, l->members[my_rank(s)].host, &e);
    if (rc != STATUS_OK) {
        report_formed(w, rc, e.text);
        worker_unlink(w);
        return;
    }
    model_shard_attach(s->shard, s->comm);
    worker_publish_comm(w, s->comm);
    struct slots_config limits = worker_limits(w);
    s->slots = slots_create(&limits);
    s->phase = WORKER_LINKED;
    report_formed(w, STATUS_OK, "");
}

// ---- the thread
// -----------------------------------------------------------------------------------------

struct orders {
    struct msg *form, *link;
    uint64_t dissolve;
    bool quit;
};

static struct orders take_orders(struct worker *w)
{
    pthread_mutex_lock(&w->lock);
    struct orders o = {w->form, w->link, w->dissolve, w->quit};
    w->form = w->link = NULL;
    w->dissolve = 0;
    pthread_mutex_unlock(&w->lock);
    return o;
}

// The owner puts them in such an order that dissolve never means a FORM that came after it.
static void obey(struct worker *w, struct orders *o)
{
    if (o->dissolve && w->state->phase != WORKER_IDLE && w->state->form.epoch <= o->dissolve)
        worker_unlink(w);
    if (o->form)
        take_form(w, &o->form->form);
    if (o->link)
        take_link(w, &o->link->link);
    msg_free(o->form);
    msg_free(o->link);
}

static bool orders_waiting(const struct worker *w)
{
    return w->form || w->link || w->dissolve || w->quit;
}

// A linked rank of several sleeps in its hub, every other one on the mailbox; the owner wakes both.
static void wait_for_work(struct worker *w)
{
    struct worker_state *s = w->state;
    if (s->phase == WORKER_LINKED && s->hub) {
        enum status rc = lane_hub_wait(s->hub, IDLE_WAIT_MS);
        (void)rc; // what came is looked at in the next turn, a loss as well
        return;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += IDLE_WAIT_MS / 1000;
    pthread_mutex_lock(&w->lock);
    while (!orders_waiting(w) && spsc_empty(&w->plans) && !worker_kv_waiting(w->kv))
        if (pthread_cond_timedwait(&w->posted, &w->lock, &until))
            break;
    pthread_mutex_unlock(&w->lock);
}

static bool open_state(struct worker *w)
{
    struct kern_config kern = {.threads = w->config.threads, .device = w->config.device};
    struct errmsg e = {0};
    w->state = mem_zalloc(1, sizeof *w->state);
    enum status rc = kern_open(w->config.backend, &kern, &w->state->kern, &e);
    if (rc != STATUS_OK) {
        log_error("cannot compute here: %s", e.text);
        return false;
    }
    log_info("computes on %s", kern_describe(w->state->kern));
    char uuid[ENGINE_UUID_BYTES];
    if (kern_backend(w->state->kern) == KERN_CUDA && kern_cuda_uuid(w->state->kern, uuid)) {
        pthread_mutex_lock(&w->lock);
        memcpy(w->uuid, uuid, sizeof w->uuid);
        pthread_mutex_unlock(&w->lock);
    }
    return true;
}

static void close_state(struct worker *w)
{
    struct worker_state *s = w->state;
    worker_unlink(w);
    worker_weights_finish(w);
    worker_step_finish(s);
    kern_close(s->kern);
    free(s);
}

void *worker_main(void *arg)
{
    struct worker *w = arg;
    bool can_compute = open_state(w);
    for (;;) {
        struct orders o = take_orders(w);
        if (o.form && !can_compute) {
            w->state->form = o.form->form;
            report_formed(w, STATUS_NO_DEVICE, "the backend could not be opened on this node");
        } else {
            obey(w, &o);
        }
        if (o.quit)
            break;
        if (!worker_step(w))
            wait_for_work(w);
    }
    close_state(w);
    return NULL;
}
