// Forming, linking, dissolving, faults. Nothing of an old epoch needs undoing: a FORM, DISSOLVE or
// fault throws the whole batch away; the journals are at the coordinator.
#include <inttypes.h>
#include <stdio.h>

#include "base/mem.h"
#include "node/node_int.h"

static void answer_form(struct node *n, const struct msg_form *f, enum status status,
                        const char *text)
{
    snprintf(n->text, sizeof n->text, "%s", text);
    node_trace(n, "r%" PRIu64 "/e%" PRIu64 " not formed: %s: %s", f->replica, f->epoch,
               status_name(status), n->text);
    struct msg *m = node_send(n, MSG_FORMED);
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
    node_dissolve_engine(n);
    node_enter(n, NODE_FORMING);
    n->phase = PHASE_PREPARING;
    n->highest = n->epoch = n->engine_epoch = f->epoch;
    n->replica = f->replica;
    n->stage = f->my_stage;
    n->tensor = f->my_tensor;
    n->ranks = f->stages * f->tensor;
    node_trace(n, "form r%" PRIu64 "/e%" PRIu64 " as rank (%u,%u) of %ux%u", f->replica, f->epoch,
               f->my_stage, f->my_tensor, f->stages, f->tensor);
    node_act(n, NODE_ACT_FORM)->form = f;
    node_set_timer(n, n->now_us + n->config.form_timeout_us);
}

void node_on_form(struct node *n, const struct msg_form *f)
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

void node_on_prepared(struct node *n, const struct engine_event *ev)
{
    n->phase = PHASE_PREPARED;
    node_set_timer(n, UINT64_MAX);
    struct msg *m = node_send(n, MSG_PREPARED);
    m->prepared = (struct msg_prepared){
        .replica = n->replica, .epoch = n->epoch, .addresses = ev->addresses, .mover = ev->mover};
}

void node_form_failed(struct node *n, enum status status, const char *text)
{
    struct msg_form f = {.replica = n->replica, .epoch = n->epoch};
    answer_form(n, &f, status, text);
    node_dissolve_engine(n);
    node_enter(n, NODE_IDLE);
}

void node_on_link(struct node *n, const struct msg_link *l)
{
    char text[96];
    if (n->state != NODE_FORMING || n->phase != PHASE_PREPARED) {
        n->counters.unexpected++;
        return;
    }
    if (l->members_n != n->ranks) {
        snprintf(text, sizeof text, "link names %u members, the replica has %u ranks", l->members_n,
                 n->ranks);
        node_form_failed(n, STATUS_BAD_REQUEST, text);
        return;
    }
    n->phase = PHASE_LINKING;
    node_act(n, NODE_ACT_LINK)->link = l;
    node_set_timer(n, n->now_us + n->config.form_timeout_us);
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
    node_cache_begin(n);
    n->pipeline = f->pipeline;
    n->submit_us = mem_zalloc(f->pipeline, sizeof *n->submit_us);
    node_reserve_actions(n, (size_t)batch_slots(n->batch) + f->pipeline + NODE_TRACES +
                                2 * NODE_TRANSFERS + 8);
    n->fingerprint = f->fingerprint;
    n->block_tokens = f->block_tokens;
    n->moves_kv = f->moves_kv;
    return true;
}

void node_on_formed(struct node *n, const struct engine_formed *f)
{
    struct errmsg e = {0};
    if (f->status < 0) {
        node_form_failed(n, f->status, f->text);
        return;
    }
    if (node_is_lead(n) && !start_batch(n, f, &e)) {
        node_form_failed(n, STATUS_INTERNAL, e.text);
        return;
    }
    node_enter(n, NODE_READY);
    node_trace(n, "r%" PRIu64 "/e%" PRIu64 " ready", n->replica, n->epoch);
    struct msg *m = node_send(n, MSG_FORMED);
    m->formed = (struct msg_formed){
        .replica = n->replica, .epoch = n->epoch, .text = "", .fingerprint = f->fingerprint,
        .weights = f->weights, .loaded = f->loaded};
    if (n->batch == NULL)
        return;
    m->formed.max_seqs = batch_slots(n->batch);
    m->formed.max_context = batch_context(n->batch);
    m->formed.kv_blocks = f->kv_blocks;
    m->formed.block_tokens = f->block_tokens;
    m->formed.transport = f->transport;
}

void node_on_dissolve(struct node *n, const struct msg_dissolve *d)
{
    if (d->epoch > n->highest)
        n->highest = d->epoch;
    if (n->state == NODE_IDLE || d->replica != n->replica || d->epoch < n->epoch) {
        n->counters.stale_epoch++;
        return;
    }
    node_trace(n, "dissolve r%" PRIu64 "/e%" PRIu64 ", %u sequences dropped", n->replica, n->epoch,
               node_sequences(n));
    node_dissolve_engine(n);
    node_enter(n, NODE_IDLE);
}

void node_fault(struct node *n, const struct step_result *r, const char *text)
{
    snprintf(n->text, sizeof n->text, "%s", text);
    node_trace(n, "fault r%" PRIu64 "/e%" PRIu64 " rank (%d,%d) suspected: %s", n->replica,
               n->epoch, r->bad_stage, r->bad_tensor, n->text);
    struct msg *m = node_send(n, MSG_FAULT);
    if (m != NULL)
        m->fault = (struct msg_fault){
            .replica = n->replica,
            .epoch = n->epoch,
            .status = r->status,
            .stage = r->bad_stage,
            .tensor = r->bad_tensor,
            .text = n->text,
        };
    node_dissolve_engine(n);
    node_enter(n, NODE_VOID);
}
