// The control core: one switch over the event, one function per message. It owns which rank of
// which epoch this node is, and leaves sequences and blocks to the batch scheduler. What is not
// obvious: nothing of an old epoch needs undoing. A FORM, DISSOLVE or fault throws the whole batch
// away; the journals are at the coordinator.
#include "node/node.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sm.h"
#include "node/batch.h"
#include "node/pulse.h"

enum { DEFAULT_PREFILL_CHUNK = 128, TRACES = 16, TRACE_BYTES = 256 };
static const uint64_t default_form_timeout_us = 600 * UINT64_C(1000000);

static const struct sm_state states[] = {
    [NODE_IDLE] = {"IDLE", SM_TO(NODE_FORMING)},
    [NODE_FORMING] = {"FORMING", SM_TO(NODE_FORMING) | SM_TO(NODE_READY) | SM_TO(NODE_IDLE) |
                                     SM_TO(NODE_VOID)},
    [NODE_READY] = {"READY", SM_TO(NODE_FORMING) | SM_TO(NODE_IDLE) | SM_TO(NODE_VOID)},
    [NODE_VOID] = {"VOID", SM_TO(NODE_FORMING) | SM_TO(NODE_IDLE)},
};
static const struct sm node_sm = {"node", states, sizeof states / sizeof *states};

// The two rounds of FORMING. The timer runs while the engine has to answer.
enum form_phase { PHASE_PREPARING, PHASE_PREPARED, PHASE_LINKING };

struct node {
    struct node_config config;
    enum node_state state;
    bool coord_up;
    uint64_t highest;        // epoch ever seen: fences everything that is not above it
    uint64_t replica, epoch; // 0, 0 in IDLE
    uint64_t engine_epoch;   // that the engine was told to form and not yet to dissolve; 0 = none
    uint32_t stage, tensor;  // of this rank
    uint32_t ranks;          // of the replica
    enum form_phase phase;   // FORMING only
    uint64_t deadline_us;    // of the timer; 0 = never set

    struct batch *batch; // READY lead only
    uint64_t *submit_us; // ring [pipeline]: when the plans under way were made
    uint32_t pipeline;   // of the ring
    uint64_t submitted, returned;

    struct node_counters counters;
    struct node_pulse pulse;

    // Of the step under way.
    uint64_t now_us;
    struct node_action *actions;
    size_t actions_n, actions_cap;
    char traces[TRACES][TRACE_BYTES];
    size_t traces_n;
    char text[sizeof((struct errmsg *)0)->text]; // of the FORMED or FAULT being sent
    struct token_out refused;
};

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

static struct node_action *act(struct node *n, enum node_action_kind kind)
{
    MEM_GROW(n->actions, n->actions_n, n->actions_cap);
    struct node_action *a = &n->actions[n->actions_n++];
    memset(a, 0, sizeof *a);
    a->kind = kind;
    return a;
}

static void reserve_actions(struct node *n, size_t cap)
{
    if (cap > n->actions_cap) {
        n->actions = mem_realloc(n->actions, cap, sizeof *n->actions);
        n->actions_cap = cap;
    }
}

__attribute__((format(printf, 2, 3))) static void trace(struct node *n, const char *fmt, ...)
{
    if (n->traces_n == TRACES)
        return;
    char *text = n->traces[n->traces_n++];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, TRACE_BYTES, fmt, ap);
    va_end(ap);
    act(n, NODE_ACT_TRACE)->text = text;
}

// NULL while the connection is down: there is nobody to tell. Filled in by the caller.
static struct msg *send_msg(struct node *n, enum msg_kind kind)
{
    if (!n->coord_up)
        return NULL;
    struct node_action *a = act(n, NODE_ACT_SEND);
    a->msg.kind = kind;
    return &a->msg;
}

static void dissolve_engine(struct node *n)
{
    if (n->engine_epoch != 0)
        act(n, NODE_ACT_DISSOLVE)->epoch = n->engine_epoch;
    n->engine_epoch = 0;
}

static void set_timer(struct node *n, uint64_t at_us)
{
    if (n->deadline_us != at_us)
        act(n, NODE_ACT_TIMER)->at_us = at_us;
    n->deadline_us = at_us;
}

static void enter(struct node *n, enum node_state to)
{
    n->state = sm_move(&node_sm, n->state, to);
    if (to != NODE_FORMING && n->deadline_us != 0)
        set_timer(n, UINT64_MAX);
    if (to != NODE_READY)
        drop_batch(n);
    if (to == NODE_IDLE)
        n->replica = n->epoch = 0;
}

// ---- forming ----

static void answer_form(struct node *n, const struct msg_form *f, enum status status,
                        const char *text)
{
    snprintf(n->text, sizeof n->text, "%s", text);
    trace(n, "r%" PRIu64 "/e%" PRIu64 " not formed: %s: %s", f->replica, f->epoch,
          status_name(status), n->text);
    struct msg *m = send_msg(n, MSG_FORMED);
    if (m != NULL)
        m->formed = (struct msg_formed){
            .replica = f->replica, .epoch = f->epoch, .status = status, .text = n->text};
}

static bool form_makes_sense(const struct msg_form *f)
{
    return f->replica != 0 && f->epoch != 0 && f->stages >= 1 && f->stages <= LIMIT_STAGES &&
           f->tensor >= 1 && f->tensor <= LIMIT_TENSOR && f->my_stage < f->stages &&
           f->my_tensor < f->tensor && f->stages * f->tensor <= LIMIT_RANKS;
}

static void join(struct node *n, const struct msg_form *f)
{
    dissolve_engine(n);
    enter(n, NODE_FORMING);
    n->phase = PHASE_PREPARING;
    n->highest = n->epoch = n->engine_epoch = f->epoch;
    n->replica = f->replica;
    n->stage = f->my_stage;
    n->tensor = f->my_tensor;
    n->ranks = f->stages * f->tensor;
    trace(n, "form r%" PRIu64 "/e%" PRIu64 " as rank (%u,%u) of %ux%u", f->replica, f->epoch,
          f->my_stage, f->my_tensor, f->stages, f->tensor);
    act(n, NODE_ACT_FORM)->form = f;
    set_timer(n, n->now_us + n->config.form_timeout_us);
}

static void on_form(struct node *n, const struct msg_form *f)
{
    char text[96];
    if (!form_makes_sense(f)) {
        answer_form(n, f, STATUS_BAD_REQUEST, "ranks or ids of the form do not fit");
    } else if (n->epoch == f->epoch && n->replica == f->replica) {
        n->counters.duplicate++;
    } else if (f->epoch <= n->highest) {
        n->counters.stale_epoch++;
        snprintf(text, sizeof text, "epoch %" PRIu64 " was seen before", n->highest);
        answer_form(n, f, STATUS_STALE_EPOCH, text);
    } else {
        join(n, f);
    }
}

static void on_prepared(struct node *n, const struct rank_addresses *addresses)
{
    n->phase = PHASE_PREPARED;
    set_timer(n, UINT64_MAX);
    struct msg *m = send_msg(n, MSG_PREPARED);
    m->prepared =
        (struct msg_prepared){.replica = n->replica, .epoch = n->epoch, .addresses = *addresses};
}

static void form_failed(struct node *n, enum status status, const char *text)
{
    struct msg_form f = {.replica = n->replica, .epoch = n->epoch};
    answer_form(n, &f, status, text);
    dissolve_engine(n);
    enter(n, NODE_IDLE);
}

static void on_link(struct node *n, const struct msg_link *l)
{
    char text[96];
    if (n->state != NODE_FORMING || n->phase != PHASE_PREPARED) {
        n->counters.unexpected++;
        return;
    }
    if (l->members_n != n->ranks) {
        snprintf(text, sizeof text, "link names %u members, the replica has %u ranks", l->members_n,
                 n->ranks);
        form_failed(n, STATUS_BAD_REQUEST, text);
        return;
    }
    n->phase = PHASE_LINKING;
    act(n, NODE_ACT_LINK)->link = l;
    set_timer(n, n->now_us + n->config.form_timeout_us);
}

static bool start_batch(struct node *n, const struct engine_formed *f, struct errmsg *e)
{
    struct batch_config c = {
        .epoch = n->epoch,
        .max_seqs = f->max_seqs,
        .max_rows = f->max_rows,
        .pipeline = f->pipeline,
        .max_context = f->max_context,
        .kv_blocks = f->kv_blocks,
        .block_tokens = f->block_tokens,
        .vocab = f->vocab,
        .prefill_chunk = n->config.prefill_chunk,
    };
    n->batch = batch_create(&c, e);
    if (n->batch == NULL)
        return false;
    n->pipeline = f->pipeline;
    n->submit_us = mem_zalloc(f->pipeline, sizeof *n->submit_us);
    reserve_actions(n, (size_t)batch_slots(n->batch) + f->pipeline + TRACES + 8);
    return true;
}

static void on_formed(struct node *n, const struct engine_formed *f)
{
    struct errmsg e = {0};
    if (f->status < 0) {
        form_failed(n, f->status, f->text);
        return;
    }
    if (node_is_lead(n) && !start_batch(n, f, &e)) {
        form_failed(n, STATUS_INTERNAL, e.text);
        return;
    }
    enter(n, NODE_READY);
    trace(n, "r%" PRIu64 "/e%" PRIu64 " ready", n->replica, n->epoch);
    struct msg *m = send_msg(n, MSG_FORMED);
    m->formed = (struct msg_formed){
        .replica = n->replica, .epoch = n->epoch, .text = "", .fingerprint = f->fingerprint};
    if (n->batch == NULL)
        return;
    m->formed.max_seqs = batch_slots(n->batch);
    m->formed.max_context = batch_context(n->batch);
    m->formed.kv_blocks = f->kv_blocks;
    m->formed.block_tokens = f->block_tokens;
}

static void on_dissolve(struct node *n, const struct msg_dissolve *d)
{
    if (d->epoch > n->highest)
        n->highest = d->epoch;
    if (n->state == NODE_IDLE || d->replica != n->replica || d->epoch < n->epoch) {
        n->counters.stale_epoch++;
        return;
    }
    trace(n, "dissolve r%" PRIu64 "/e%" PRIu64 ", %u sequences dropped", n->replica, n->epoch,
          node_sequences(n));
    dissolve_engine(n);
    enter(n, NODE_IDLE);
}

// ---- work ----

static void fault(struct node *n, const struct step_result *r, const char *text)
{
    snprintf(n->text, sizeof n->text, "%s", text);
    trace(n, "fault r%" PRIu64 "/e%" PRIu64 " rank (%d,%d) suspected: %s", n->replica, n->epoch,
          r->bad_stage, r->bad_tensor, n->text);
    struct msg *m = send_msg(n, MSG_FAULT);
    if (m != NULL)
        m->fault = (struct msg_fault){
            .replica = n->replica,
            .epoch = n->epoch,
            .status = r->status,
            .stage = r->bad_stage,
            .tensor = r->bad_tensor,
            .text = n->text,
        };
    dissolve_engine(n);
    enter(n, NODE_VOID);
}

static void fill_load(const struct node *n, struct msg_tokens *t)
{
    struct batch_load load = batch_load(n->batch);
    t->replica = n->replica;
    t->epoch = n->epoch;
    t->running = load.running;
    t->waiting = load.waiting;
    t->kv_free = load.kv_free;
}

static void send_cancelled(struct node *n, uint64_t request)
{
    struct msg *m = send_msg(n, MSG_CANCELLED);
    m->cancelled =
        (struct msg_cancelled){.replica = n->replica, .epoch = n->epoch, .request = request};
}

static void refuse(struct node *n, const struct journal *j, enum finish_reason finish,
                   const char *text)
{
    n->counters.refused++;
    trace(n, "req %" PRIu64 " refused: %s", j->request, text);
    n->refused = (struct token_out){
        .request = j->request, .index = j->emitted_n, .token = -1, .finish = (uint8_t)finish};
    struct msg *m = send_msg(n, MSG_TOKENS);
    m->tokens = (struct msg_tokens){.tokens = &n->refused, .tokens_n = 1};
    fill_load(n, &m->tokens);
}

static void on_dispatch(struct node *n, const struct journal *j)
{
    struct errmsg e = {0};
    enum status s = batch_add(n->batch, j, &e);
    if (s == STATUS_EXISTS)
        n->counters.duplicate++;
    else if (s == STATUS_TOO_LARGE && j->emitted_n > 0)
        refuse(n, j, FINISH_LENGTH, e.text);
    else if (s != STATUS_OK)
        refuse(n, j, FINISH_ERROR, e.text);
}

static void on_cancel(struct node *n, uint64_t request)
{
    if (batch_cancel(n->batch, request) != STATUS_PENDING)
        send_cancelled(n, request);
}

// As many plans as the pipeline takes.
static void pump(struct node *n)
{
    const struct step_plan *plan;
    while ((plan = batch_plan(n->batch)) != NULL) {
        act(n, NODE_ACT_SUBMIT)->plan = plan;
        n->submit_us[n->submitted++ % n->pipeline] = n->now_us;
    }
}

static void on_step(struct node *n, const struct step_result *r)
{
    struct batch_step out;
    struct errmsg e = {0};
    if (r->status != STATUS_OK) {
        errmsg_set(&e, r->status, "step %" PRIu64 ": %s", r->step, status_text(r->status));
        fault(n, r, e.text);
        return;
    }
    enum status s = batch_result(n->batch, r, &out, &e);
    if (s < 0) {
        fault(n, &(struct step_result){.status = s, .bad_stage = -1, .bad_tensor = -1}, e.text);
        return;
    }
    n->returned++;
    n->counters.steps++;
    n->counters.tokens += out.tokens_n;
    pump(n); // before the tokens: the engine waits, and tokens take time to send
    if (out.tokens_n > 0) {
        struct msg *m = send_msg(n, MSG_TOKENS);
        m->tokens =
            (struct msg_tokens){.step = r->step, .tokens = out.tokens, .tokens_n = out.tokens_n};
        fill_load(n, &m->tokens);
    }
    for (uint32_t i = 0; i < out.cancelled_n; i++)
        send_cancelled(n, out.cancelled[i]);
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
        on_form(n, &m->form);
        return;
    case MSG_LINK:
        if (current(n, m->link.replica, m->link.epoch))
            on_link(n, &m->link);
        return;
    case MSG_DISSOLVE:
        on_dissolve(n, &m->dissolve);
        return;
    case MSG_DISPATCH:
        if (!admissible(n, m->dispatch.replica, m->dispatch.epoch))
            return;
        on_dispatch(n, &m->dispatch.journal);
        pump(n);
        return;
    case MSG_CANCEL:
        if (!admissible(n, m->cancel.replica, m->cancel.epoch))
            return;
        on_cancel(n, m->cancel.request);
        pump(n);
        return;
    default:
        n->counters.unexpected++;
        trace(n, "unexpected message of kind %d", (int)m->kind);
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
        on_prepared(n, &ev->addresses);
    } else if (ev->kind == ENGINE_FORMED && forming &&
               (n->phase == PHASE_LINKING || ev->formed.status < 0)) {
        on_formed(n, &ev->formed);
    } else if (ev->kind == ENGINE_STEP && working_lead(n)) {
        on_step(n, &ev->result);
    } else if (ev->kind == ENGINE_FAULT && forming) {
        form_failed(n, ev->result.status, status_text(ev->result.status));
    } else if (ev->kind == ENGINE_FAULT && n->state == NODE_READY) {
        snprintf(text, sizeof text, "between steps: %s", status_text(ev->result.status));
        fault(n, &ev->result, text);
    } else {
        n->counters.unexpected++;
    }
}

static void on_coord_down(struct node *n)
{
    n->coord_up = false;
    if (n->state == NODE_FORMING || (n->state == NODE_READY && n->batch != NULL)) {
        trace(n, "coordinator lost: r%" PRIu64 "/e%" PRIu64 " stops, %u sequences dropped",
              n->replica, n->epoch, node_sequences(n));
        enter(n, NODE_VOID);
    }
}

static void on_timer(struct node *n)
{
    if (n->state == NODE_FORMING && n->now_us >= n->deadline_us)
        form_failed(n, STATUS_NODE_HUNG, "the engine did not form in time");
}

static void write_pulse(struct node *n)
{
    struct batch_load load = {0};
    if (n->batch != NULL)
        load = batch_load(n->batch);
    bool under_way = n->submitted > n->returned;
    pulse_write(&n->pulse, &(struct pulse_values){
                               .replica = n->replica,
                               .epoch = n->epoch,
                               .steps = n->counters.steps,
                               .oldest_us = under_way ? n->submit_us[n->returned % n->pipeline] : 0,
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
