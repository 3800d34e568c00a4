// The control core: one switch over the event, one function per message. It leaves the membership
// to node_form.c, requests and steps to node_work.c, sequences and blocks to the batch scheduler.
#include "node/node.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sm.h"
#include "node/node_int.h"

enum { DEFAULT_PREFILL_CHUNK = 128 };
static const uint64_t default_form_timeout_us = 600 * UINT64_C(1000000);

static const struct sm_state states[] = {
    [NODE_IDLE] = {"IDLE", SM_TO(NODE_FORMING)},
    [NODE_FORMING] = {"FORMING", SM_TO(NODE_FORMING) | SM_TO(NODE_READY) | SM_TO(NODE_IDLE) |
                                     SM_TO(NODE_VOID)},
    [NODE_READY] = {"READY", SM_TO(NODE_FORMING) | SM_TO(NODE_IDLE) | SM_TO(NODE_VOID)},
    [NODE_VOID] = {"VOID", SM_TO(NODE_FORMING) | SM_TO(NODE_IDLE)},
};
static const struct sm node_sm = {"node", states, sizeof states / sizeof *states};

struct node *node_create(const struct node_config *config)
{
    struct node *n = mem_zalloc(1, sizeof *n);
    n->config = *config;
    if (n->config.prefill_chunk == 0)
        n->config.prefill_chunk = DEFAULT_PREFILL_CHUNK;
    if (n->config.form_timeout_us == 0)
        n->config.form_timeout_us = default_form_timeout_us;
    return n;
}

static void drop_batch(struct node *n)
{
    n->counters = node_counters(n); // keep what the batch has counted
    node_kv_drop_all(n);
    batch_destroy(n->batch);
    n->batch = NULL;
    free(n->submit_us);
    n->submit_us = NULL;
    n->submitted = n->returned = 0;
}

void node_destroy(struct node *n)
{
    if (n == NULL)
        return;
    drop_batch(n);
    free(n->actions);
    free(n);
}

// ---- actions ----

struct node_action *node_act(struct node *n, enum node_action_kind kind)
{
    MEM_GROW(n->actions, n->actions_n, n->actions_cap);
    struct node_action *a = &n->actions[n->actions_n++];
    memset(a, 0, sizeof *a);
    a->kind = kind;
    return a;
}

void node_reserve_actions(struct node *n, size_t cap)
{
    if (cap > n->actions_cap) {
        n->actions = mem_realloc(n->actions, cap, sizeof *n->actions);
        n->actions_cap = cap;
    }
}

void node_trace(struct node *n, const char *fmt, ...)
{
    if (n->traces_n == NODE_TRACES)
        return;
    char *text = n->traces[n->traces_n++];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, NODE_TRACE_BYTES, fmt, ap);
    va_end(ap);
    node_act(n, NODE_ACT_TRACE)->text = text;
}

struct msg *node_send(struct node *n, enum msg_kind kind)
{
    if (!n->coord_up)
        return NULL;
    struct node_action *a = node_act(n, NODE_ACT_SEND);
    a->msg.kind = kind;
    return &a->msg;
}

void node_dissolve_engine(struct node *n)
{
    if (n->engine_epoch != 0)
        node_act(n, NODE_ACT_DISSOLVE)->epoch = n->engine_epoch;
    n->engine_epoch = 0;
}

void node_set_timer(struct node *n, uint64_t at_us)
{
    if (n->deadline_us != at_us)
        node_act(n, NODE_ACT_TIMER)->at_us = at_us;
    n->deadline_us = at_us;
}

void node_enter(struct node *n, enum node_state to)
{
    n->state = sm_move(&node_sm, n->state, to);
    if (to != NODE_FORMING && n->deadline_us != 0)
        node_set_timer(n, UINT64_MAX);
    if (to != NODE_READY)
        drop_batch(n);
    if (to == NODE_IDLE)
        n->replica = n->epoch = 0;
}

// ---- events ----

static bool working_lead(const struct node *n)
{
    return n->state == NODE_READY && n->batch != NULL && n->coord_up;
}

static bool current(struct node *n, uint64_t replica, uint64_t epoch)
{
    if (n->epoch != 0 && replica == n->replica && epoch == n->epoch)
        return true;
    n->counters.stale_epoch++;
    return false;
}

// Messages to a lead: right epoch, right state?
static bool admissible(struct node *n, uint64_t replica, uint64_t epoch)
{
    if (!current(n, replica, epoch))
        return false;
    if (!working_lead(n))
        n->counters.unexpected++;
    return working_lead(n);
}

static void on_msg(struct node *n, const struct msg *m)
{
    assert(n->coord_up);
    switch (m->kind) {
    case MSG_FORM:
        node_on_form(n, &m->form);
        return;
    case MSG_LINK:
        if (current(n, m->link.replica, m->link.epoch))
            node_on_link(n, &m->link);
        return;
    case MSG_DISSOLVE:
        node_on_dissolve(n, &m->dissolve);
        return;
    case MSG_DISPATCH:
        if (!admissible(n, m->dispatch.replica, m->dispatch.epoch))
            return;
        node_on_dispatch(n, &m->dispatch);
        node_pump(n);
        return;
    case MSG_CANCEL:
        if (!admissible(n, m->cancel.replica, m->cancel.epoch))
            return;
        node_on_cancel(n, m->cancel.request);
        node_pump(n);
        return;
    case MSG_KV_LIST:
        if (admissible(n, m->kv_list.replica, m->kv_list.epoch))
            node_on_kv_list(n, m->kv_list.all);
        return;
    case MSG_KV_RECEIVE:
        if (admissible(n, m->kv_receive.replica, m->kv_receive.epoch))
            node_on_kv_receive(n, &m->kv_receive);
        return;
    case MSG_KV_SEND:
        if (admissible(n, m->kv_send.replica, m->kv_send.epoch))
            node_on_kv_send(n, &m->kv_send);
        return;
    case MSG_KV_CANCEL:
        if (admissible(n, m->kv_cancel.replica, m->kv_cancel.epoch))
            node_on_kv_cancel(n, m->kv_cancel.transfer);
        return;
    default:
        n->counters.unexpected++;
        node_trace(n, "unexpected message of kind %d", (int)m->kind);
    }
}

static void on_engine(struct node *n, const struct engine_event *ev)
{
    char text[96];
    if (n->epoch == 0 || ev->epoch != n->epoch) {
        n->counters.stale_epoch++;
        return;
    }
    bool forming = n->state == NODE_FORMING;
    if (ev->kind == ENGINE_PREPARED && forming && n->phase == PHASE_PREPARING) {
        node_on_prepared(n, ev);
    } else if (ev->kind == ENGINE_FORMED && forming &&
               (n->phase == PHASE_LINKING || ev->formed.status < 0)) {
        node_on_formed(n, &ev->formed);
    } else if (ev->kind == ENGINE_STEP && working_lead(n)) {
        node_on_step(n, &ev->result);
    } else if (ev->kind == ENGINE_KV && working_lead(n)) {
        node_on_kv_report(n, &ev->kv);
        if (n->batch != NULL)
            node_pump(n);
    } else if (ev->kind == ENGINE_FAULT && forming) {
        node_form_failed(n, ev->result.status, status_text(ev->result.status));
    } else if (ev->kind == ENGINE_FAULT && n->state == NODE_READY) {
        snprintf(text, sizeof text, "between steps: %s", status_text(ev->result.status));
        node_fault(n, &ev->result, text);
    } else {
        n->counters.unexpected++;
    }
}

static void on_coord_down(struct node *n)
{
    n->coord_up = false;
    if (n->state == NODE_FORMING || (n->state == NODE_READY && n->batch != NULL)) {
        node_trace(n, "coordinator lost: r%" PRIu64 "/e%" PRIu64 " stops, %u sequences dropped",
                   n->replica, n->epoch, node_sequences(n));
        node_enter(n, NODE_VOID);
    }
}

static void on_timer(struct node *n)
{
    if (n->state == NODE_FORMING && n->now_us >= n->deadline_us)
        node_form_failed(n, STATUS_NODE_HUNG, "the engine did not form in time");
}

static void write_pulse(struct node *n)
{
    struct batch_load load = {0};
    if (n->batch != NULL)
        load = batch_load(n->batch);
    bool under_way = n->submitted > n->returned;
    // Blocks that the engine does not let go of can be what the next step waits for.
    uint64_t oldest = under_way ? n->submit_us[n->returned % n->pipeline] : node_kv_stopping_us(n);
    pulse_write(&n->pulse, &(struct pulse_values){
                               .replica = n->replica,
                               .epoch = n->epoch,
                               .steps = n->counters.steps,
                               .oldest_us = oldest,
                               .running = load.running,
                               .waiting = load.waiting,
                               .kv_blocks = load.kv_blocks,
                               .kv_free = load.kv_free,
                           });
}

void node_step(struct node *n, const struct node_event *ev, struct node_actions *out)
{
    assert(ev->now_us >= n->now_us);
    n->now_us = ev->now_us;
    n->actions_n = n->traces_n = 0;
    n->cache_told = false;
    switch (ev->kind) {
    case NODE_EV_COORD_UP:
        n->coord_up = true;
        break;
    case NODE_EV_COORD_DOWN:
        on_coord_down(n);
        break;
    case NODE_EV_MSG:
        on_msg(n, ev->msg);
        break;
    case NODE_EV_ENGINE:
        on_engine(n, ev->engine);
        break;
    case NODE_EV_TIMER:
        on_timer(n);
        break;
    }
    if (working_lead(n))
        node_kv_turn(n);
    write_pulse(n);
    *out = (struct node_actions){.v = n->actions, .n = n->actions_n};
}

// ---- views ----

enum node_state node_state(const struct node *n)
{
    return n->state;
}

const char *node_state_name(enum node_state s)
{
    return sm_name(&node_sm, s);
}

bool node_is_lead(const struct node *n)
{
    return n->epoch != 0 && n->stage == 0 && n->tensor == 0;
}

uint64_t node_replica(const struct node *n)
{
    return n->replica;
}

uint64_t node_epoch(const struct node *n)
{
    return n->epoch;
}

uint32_t node_sequences(const struct node *n)
{
    if (n->batch == NULL)
        return 0;
    struct batch_load load = batch_load(n->batch);
    return load.running + load.waiting;
}

uint64_t node_cache_digest(const struct node *n)
{
    return n->batch != NULL ? batch_kv_digest(n->batch) : 0;
}

uint32_t node_cache_untold(const struct node *n)
{
    return n->batch != NULL ? batch_kv_changes_n(n->batch) : 0;
}

bool node_has_request(const struct node *n, uint64_t request)
{
    return n->batch != NULL && batch_has(n->batch, request);
}

void node_check(const struct node *n)
{
    assert((n->state == NODE_IDLE) == (n->epoch == 0) && (n->epoch == 0) == (n->replica == 0));
    assert(n->epoch <= n->highest);
    assert(n->engine_epoch == 0 || n->engine_epoch == n->epoch);
    assert((n->batch != NULL) == (n->state == NODE_READY && node_is_lead(n)));
    assert(n->submitted - n->returned <= n->pipeline);
    if (n->batch != NULL) {
        assert(batch_load(n->batch).under_way == n->submitted - n->returned);
        batch_check(n->batch);
    }
    node_kv_check(n);
}

uint32_t node_transfers(const struct node *n)
{
    return n->transfers_n;
}

struct node_counters node_counters(const struct node *n)
{
    struct node_counters c = n->counters;
    if (n->batch != NULL) {
        struct batch_load load = batch_load(n->batch);
        c.preemptions += load.preemptions;
        c.prefix_tokens += load.prefix_tokens;
    }
    return c;
}

struct node_pulse *node_pulse(struct node *n)
{
    return &n->pulse;
}
