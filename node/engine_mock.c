// The engine's interface over mock_fabric (who is there) and mock_cache (what comes out). A plan is
// computed when it is submitted and handed back when its time has come and every rank is there to
// have done its part. In real time, one alarm stands for the fabric's clock.
#include "node/engine_mock.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/fault_file.h"
#include "node/mock_alarm.h"
#include "node/mock_cache.h"
#include "node/mock_fabric.h"
#include "node/mock_kv.h"

// What this rank is in; poll gives the event that leads out of PREPARING and LINKING.
enum phase { OUT, PREPARING, PREPARED, LINKING, LINKED };

struct flight {
    uint64_t step, due_us;
    enum status status;
    struct step_sample *samples; // [max_seqs], owned
    uint32_t samples_n;
};

struct mock {
    struct engine base;
    struct mock_rank rank;
    struct mock_config config;
    struct mock_fabric *own_fabric; // real time
    struct mock_alarm *alarm;       // real time
    struct fault_file faults;       // real time
    void (*wake)(void *ctx);
    void *wake_ctx;

    enum phase phase;
    enum status form_status; // < 0: reported when PREPARING is over
    const char *form_text;
    struct mock_config model; // `config` as the folder of this epoch has it
    double version_slow;
    uint64_t replica, epoch;
    uint64_t due_us; // PREPARING: loaded; LINKING: link times out
    uint32_t pipeline;
    char address[64];

    struct mock_cache *cache; // lead, LINKED
    struct mock_kv kv;
    struct flight *flights; // ring [ring_n]
    uint32_t ring_n;        // one more than under way: the samples of the last poll
    uint32_t flights_first, flights_n;
    uint64_t *stage_free_us; // [stages]
    uint64_t fail_step;
    enum status fail_status; // 0 = none
    bool fail_next;

    _Atomic uint64_t progress_step, progress_us;
    _Atomic bool progress_hung;
};

static struct mock *mock_of(const struct engine *e)
{
    return (struct mock *)(void *)e;
}

static bool is_lead(const struct mock *m)
{
    return m->rank.place.stage == 0 && m->rank.place.tensor == 0;
}

static uint64_t now_us(const struct mock *m)
{
    return mock_fabric_now(m->rank.fabric);
}

struct mock_config mock_config_default(void)
{
    return (struct mock_config){
        .vocab = 512,
        .max_context = 4096,
        .kv_blocks = 1024,
        .block_tokens = 16,
        .max_rows = 512,
        .max_seqs = 16,
        .layers = 4,
        .fingerprint = UINT64_C(0x6d6f636b),
        .form_us = 50000,
        .link_timeout_us = 10000000,
        .step_us = 2000,
        .row_us = 20,
        .kv_setup_us = 300,
        .kv_block_us = 50,
        .kv_stop_us = 200,
        .detect_us = 20000,
    };
}

// ---- when is what due ----

static uint64_t broken_due(const struct mock *m)
{
    return m->rank.group->broken ? m->rank.group->broken_us + m->config.detect_us : UINT64_MAX;
}

// The oldest step is back, or will be: done before the group broke.
static bool step_counts(const struct mock *m)
{
    const struct mock_group *g = m->rank.group;
    if (m->flights_n == 0 || mock_group_hangs(g))
        return false;
    return !g->broken || m->flights[m->flights_first].due_us <= g->broken_us;
}

static uint64_t next_due(const struct mock *m)
{
    if (m->rank.hung || m->phase == OUT || m->phase == PREPARED)
        return UINT64_MAX;
    if (m->phase == PREPARING)
        return m->due_us;
    if (m->phase == LINKING && mock_group_complete(m->rank.group))
        return 0;
    uint64_t due = broken_due(m);
    if (m->phase == LINKING)
        return due < m->due_us ? due : m->due_us;
    if (step_counts(m) && m->flights[m->flights_first].due_us < due)
        due = m->flights[m->flights_first].due_us;
    uint64_t kv_due = m->rank.group->broken ? UINT64_MAX : mock_kv_due(&m->kv);
    return kv_due < due ? kv_due : due;
}

uint64_t engine_mock_next_due(const struct engine *e)
{
    return next_due(mock_of(e));
}

// After every call from the owner.
static void rearm(struct mock *m)
{
    if (m->alarm != NULL)
        mock_alarm_set(m->alarm, next_due(m));
}

static void rank_changed(struct mock_rank *r)
{
    struct mock *m = (struct mock *)(void *)((char *)r - offsetof(struct mock, rank));
    mock_kv_changed(&m->kv);
    m->wake(m->wake_ctx);
}

// ---- progress ----

static void progress_set(struct mock *m, uint64_t step)
{
    const struct mock_group *g = m->rank.group;
    uint64_t now = now_us(m);
    for (uint32_t i = 0; i < g->stages * g->tensor; i++) {
        if (g->ranks[i] == NULL)
            continue;
        struct mock *peer =
            (struct mock *)(void *)((char *)g->ranks[i] - offsetof(struct mock, rank));
        atomic_store_explicit(&peer->progress_step, step, memory_order_relaxed);
        atomic_store_explicit(&peer->progress_us, now, memory_order_relaxed);
    }
}

static struct rank_progress mock_progress(struct engine *e, uint64_t now)
{
    struct mock *m = mock_of(e);
    uint64_t since = atomic_load_explicit(&m->progress_us, memory_order_relaxed);
    struct rank_progress p = {.step =
                                  atomic_load_explicit(&m->progress_step, memory_order_relaxed)};
    if (p.step == 0)
        return p;
    p.age_ms = since < now ? (uint32_t)((now - since) / 1000) : 0;
    // A rank that hangs does so in its first layer; the others wait for it at the last.
    if (!atomic_load_explicit(&m->progress_hung, memory_order_relaxed))
        p.layer = p.collective = m->config.layers;
    return p;
}

// ---- forming ----

static void drop_work(struct mock *m)
{
    mock_cache_destroy(m->cache);
    m->cache = NULL;
    for (uint32_t i = 0; m->flights != NULL && i < m->ring_n; i++)
        free(m->flights[i].samples);
    free(m->flights);
    free(m->stage_free_us);
    m->flights = NULL;
    m->stage_free_us = NULL;
    m->flights_first = m->flights_n = 0;
}

static void leave(struct mock *m)
{
    mock_kv_leave(&m->kv);
    if (m->rank.group != NULL)
        mock_fabric_leave(&m->rank);
    drop_work(m);
    m->phase = OUT;
    atomic_store_explicit(&m->progress_step, 0, memory_order_relaxed);
}

// The model in the folder; what loading it ends with.
static enum status load_version(struct mock *m, const char *dir)
{
    m->model = m->config;
    m->version_slow = 1;
    for (uint32_t i = 0; i < m->config.versions_n; i++) {
        const struct mock_version *v = &m->config.versions[i];
        if (strcmp(v->dir, dir))
            continue;
        m->model.fingerprint = v->fingerprint;
        m->model.salt = v->salt;
        m->version_slow = v->slow > 0 ? v->slow : 1;
        return v->form_status;
    }
    return STATUS_OK;
}

static void mock_form(struct engine *e, const struct msg_form *form)
{
    struct mock *m = mock_of(e);
    leave(m);
    m->replica = form->replica;
    m->epoch = form->epoch;
    m->pipeline = m->config.pipeline > 0 ? m->config.pipeline : form->stages;
    snprintf(m->address, sizeof m->address, "mock-e%" PRIu64 "-s%u-t%u", m->epoch, form->my_stage,
             form->my_tensor);
    m->form_status = mock_fabric_join(&m->rank, form, m->own_fabric != NULL);
    m->form_text = "the place is taken or of another shape";
    enum status loaded = load_version(m, form->model_dir ? form->model_dir : "");
    if (m->form_status >= 0 && loaded < 0) {
        m->form_status = loaded;
        m->form_text = "the model cannot be loaded";
    }
    m->phase = PREPARING;
    m->due_us = now_us(m) + m->config.form_us;
    rearm(m);
}

static void mock_link(struct engine *e, const struct msg_link *link)
{
    struct mock *m = mock_of(e);
    assert(m->phase == PREPARED && link->epoch == m->epoch);
    m->phase = LINKING;
    m->due_us = now_us(m) + m->config.link_timeout_us;
    mock_fabric_link(&m->rank);
    rearm(m);
}

static void mock_dissolve(struct engine *e, uint64_t epoch)
{
    struct mock *m = mock_of(e);
    if (m->phase != OUT && m->epoch == epoch)
        leave(m);
    rearm(m);
}

static void start_work(struct mock *m)
{
    m->cache = mock_cache_create(&m->model);
    m->ring_n = m->pipeline + 1;
    m->flights = mem_zalloc(m->ring_n, sizeof *m->flights);
    for (uint32_t i = 0; i < m->ring_n; i++)
        m->flights[i].samples = mem_zalloc(m->config.max_seqs, sizeof(struct step_sample));
    m->stage_free_us = mem_zalloc(m->rank.group->stages, sizeof *m->stage_free_us);
    mock_kv_join(&m->kv, m->cache, m->replica, m->epoch);
}

static void formed_ok(struct mock *m, struct engine_formed *f)
{
    f->fingerprint = m->model.fingerprint;
    f->max_context = m->config.max_context;
    f->kv_blocks = m->config.kv_blocks;
    f->block_tokens = m->config.block_tokens;
    f->max_rows = m->config.max_rows;
    f->max_seqs = m->config.max_seqs;
    f->vocab = m->config.vocab;
    f->pipeline = m->pipeline;
    f->moves_kv = m->own_fabric == NULL;
    m->phase = LINKED;
    if (is_lead(m))
        start_work(m);
}

static void report_formed(struct mock *m, enum status status, const char *text,
                          struct engine_event *ev)
{
    ev->kind = ENGINE_FORMED;
    ev->formed = (struct engine_formed){.replica = m->replica, .epoch = m->epoch, .status = status};
    snprintf(ev->formed.text, sizeof ev->formed.text, "%s", text);
    if (status == STATUS_OK)
        formed_ok(m, &ev->formed);
    else
        leave(m);
}

static bool poll_preparing(struct mock *m, struct engine_event *ev)
{
    if (now_us(m) < m->due_us)
        return false;
    if (m->form_status < 0) {
        report_formed(m, m->form_status, m->form_text, ev);
        return true;
    }
    ev->kind = ENGINE_PREPARED;
    ev->addresses = (struct rank_addresses){.shm = m->address, .tcp = "", .verbs = ""};
    ev->mover = (struct rank_addresses){
        .shm = m->own_fabric == NULL ? m->address : "", .tcp = "", .verbs = ""};
    m->phase = PREPARED;
    return true;
}

static bool poll_linking(struct mock *m, struct engine_event *ev)
{
    if (mock_group_complete(m->rank.group))
        report_formed(m, STATUS_OK, "", ev);
    else if (now_us(m) >= broken_due(m))
        report_formed(m, STATUS_LINK_DOWN, "another rank left", ev);
    else if (now_us(m) >= m->due_us)
        report_formed(m, STATUS_LINK_TIMEOUT, "not all ranks linked up in time", ev);
    else
        return false;
    return true;
}

// ---- steps ----

static uint64_t pass_through_stages(struct mock *m, uint32_t rows)
{
    const struct mock_group *g = m->rank.group;
    double stage_us = (double)(m->config.step_us + rows * m->config.row_us) * m->version_slow;
    uint64_t at = now_us(m);
    for (uint32_t s = 0; s < g->stages; s++) {
        if (m->stage_free_us[s] > at)
            at = m->stage_free_us[s];
        at += (uint64_t)(stage_us * mock_group_slow(g, s));
        m->stage_free_us[s] = at;
    }
    return at;
}

static enum status injected(struct mock *m, uint64_t step)
{
    if (m->fail_status == STATUS_OK || (!m->fail_next && m->fail_step != step))
        return STATUS_OK;
    enum status st = m->fail_status;
    m->fail_status = STATUS_OK;
    return st;
}

static void real_fault(struct mock *m)
{
    enum node_fault f = fault_file_now(&m->faults, now_us(m));
    m->rank.lies = f == NODE_FAULT_WRONG;
    m->rank.slow = f == NODE_FAULT_SLOW ? NODE_FAULT_SLOW_FACTOR : 1;
    if (f == NODE_FAULT_HANG)
        engine_mock_hang(&m->base, true);
}

static enum status mock_submit(struct engine *e, const struct step_plan *plan)
{
    struct mock *m = mock_of(e);
    struct errmsg err = {0};
    assert(m->phase == LINKED && is_lead(m));
    if (m->flights_n == m->pipeline)
        return STATUS_FULL;
    struct flight *f = &m->flights[(m->flights_first + m->flights_n) % m->ring_n];
    if (m->faults.path)
        real_fault(m);
    f->step = plan->step;
    mock_cache_lie(m->cache, mock_group_lies(m->rank.group));
    f->status = plan->epoch == m->epoch
                    ? mock_cache_step(m->cache, plan, f->samples, &f->samples_n, &err)
                    : errmsg_set(&err, STATUS_STALE_EPOCH, "plan of epoch %" PRIu64, plan->epoch);
    if (f->status < 0)
        log_error("mock engine: r%" PRIu64 "/e%" PRIu64 " step %" PRIu64 ": %s", m->replica,
                  m->epoch, plan->step, err.text);
    else
        f->status = injected(m, plan->step);
    f->due_us = pass_through_stages(m, plan->rows);
    if (m->flights_n++ == 0)
        progress_set(m, plan->step);
    rearm(m);
    return STATUS_OK;
}

// After this the rank waits for dissolve, out of reach of its peers.
static void step_failed(struct mock *m, enum status status, struct mock_rank_place bad,
                        struct engine_event *ev)
{
    ev->result.status = status;
    ev->result.bad_stage = bad.stage;
    ev->result.bad_tensor = bad.tensor;
    leave(m);
}

static void report_step(struct mock *m, struct engine_event *ev)
{
    struct flight *f = &m->flights[m->flights_first];
    ev->kind = ENGINE_STEP;
    ev->result = (struct step_result){.step = f->step, .bad_stage = -1, .bad_tensor = -1};
    if (f->status < 0) {
        step_failed(m, f->status, m->rank.place, ev);
        return;
    }
    ev->result.samples = f->samples;
    ev->result.samples_n = f->samples_n;
    mock_cache_returned(m->cache, f->step);
    m->flights_first = (m->flights_first + 1) % m->ring_n;
    m->flights_n--;
    progress_set(m, m->flights_n > 0 ? m->flights[m->flights_first].step : 0);
}

static void report_broken(struct mock *m, struct engine_event *ev)
{
    ev->kind = m->flights_n > 0 ? ENGINE_STEP : ENGINE_FAULT;
    ev->result =
        (struct step_result){.step = m->flights_n > 0 ? m->flights[m->flights_first].step : 0};
    step_failed(m, STATUS_LINK_DOWN, mock_group_suspect(&m->rank), ev);
}

static bool poll_linked(struct mock *m, struct engine_event *ev)
{
    if (step_counts(m) && now_us(m) >= m->flights[m->flights_first].due_us)
        report_step(m, ev);
    else if (now_us(m) >= broken_due(m))
        report_broken(m, ev);
    else if (!m->rank.group->broken && mock_kv_poll(&m->kv, &ev->kv))
        ev->kind = ENGINE_KV;
    else
        return false;
    return true;
}

static void mock_order(struct engine *e, const struct kv_order *order)
{
    struct mock *m = mock_of(e);
    assert(m->own_fabric == NULL);
    if (m->phase == LINKED) // else the group has broken, and the core does not know yet
        mock_kv_order(&m->kv, order);
    rearm(m);
}

static bool mock_poll(struct engine *e, struct engine_event *ev)
{
    struct mock *m = mock_of(e);
    bool got = false;
    memset(ev, 0, sizeof *ev);
    ev->replica = m->replica;
    ev->epoch = m->epoch;
    if (m->rank.hung)
        return false;
    if (m->phase == PREPARING)
        got = poll_preparing(m, ev);
    else if (m->phase == LINKING)
        got = poll_linking(m, ev);
    else if (m->phase == LINKED)
        got = poll_linked(m, ev);
    rearm(m);
    return got;
}

// ---- life ----

static void mock_destroy(struct engine *e)
{
    struct mock *m = mock_of(e);
    mock_alarm_destroy(m->alarm);
    m->alarm = NULL;
    leave(m);
    mock_fabric_forget(&m->rank);
    mock_fabric_destroy(m->own_fabric);
    free(m);
}

static const struct engine_ops mock_ops = {
    .name = "mock",
    .form = mock_form,
    .link = mock_link,
    .dissolve = mock_dissolve,
    .submit = mock_submit,
    .kv = mock_order,
    .poll = mock_poll,
    .progress = mock_progress,
    .destroy = mock_destroy,
};

static struct mock *create(const struct engine_mock_args *args, struct mock_fabric *fabric)
{
    struct mock *m = mem_zalloc(1, sizeof *m);
    m->base.ops = &mock_ops;
    m->config = *args->config;
    m->rank = (struct mock_rank){.fabric = fabric, .slow = 1, .changed = rank_changed};
    m->wake = args->wake;
    m->wake_ctx = args->wake_ctx;
    m->kv = (struct mock_kv){
        .rank = &m->rank, .config = &m->config, .wake = args->wake, .wake_ctx = args->wake_ctx};
    return m;
}

struct engine *engine_mock_create(const struct engine_mock_args *args)
{
    return &create(args, args->fabric)->base;
}

static uint64_t real_now_us(void *ctx)
{
    return mock_alarm_now_us();
}

struct engine *engine_mock_create_real(const struct engine_mock_args *args)
{
    struct mock_fabric *fabric = mock_fabric_create(real_now_us, NULL);
    struct mock *m = create(args, fabric);
    m->own_fabric = fabric;
    m->faults.path = args->fault_file;
    m->alarm = mock_alarm_create(m->wake, m->wake_ctx);
    return &m->base;
}

void engine_mock_hang(struct engine *e, bool hung)
{
    struct mock *m = mock_of(e);
    atomic_store_explicit(&m->progress_hung, hung, memory_order_relaxed);
    mock_fabric_hang(&m->rank, hung);
}

void engine_mock_slow(struct engine *e, double factor)
{
    assert(factor >= 1);
    mock_of(e)->rank.slow = factor;
}

void engine_mock_lie(struct engine *e, bool lies)
{
    mock_of(e)->rank.lies = lies;
}

void engine_mock_cut(struct engine *a, struct engine *b, bool cut)
{
    mock_fabric_cut(&mock_of(a)->rank, &mock_of(b)->rank, cut);
}

void engine_mock_fail_step(struct engine *e, uint64_t step, enum status status)
{
    struct mock *m = mock_of(e);
    assert(status < 0);
    m->fail_status = status;
    m->fail_step = step;
    m->fail_next = step == 0;
}
