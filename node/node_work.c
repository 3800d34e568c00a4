// What a lead does while READY: requests into the batch, plans to the engine, results to the
// coordinator.
#include <inttypes.h>

#include "node/node_int.h"

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
    struct msg *m = node_send(n, MSG_CANCELLED);
    m->cancelled =
        (struct msg_cancelled){.replica = n->replica, .epoch = n->epoch, .request = request};
}

static void refuse(struct node *n, const struct journal *j, enum finish_reason finish,
                   const char *text)
{
    n->counters.refused++;
    node_trace(n, "req %" PRIu64 " refused: %s", j->request, text);
    n->refused = (struct token_out){
        .request = j->request, .index = j->emitted_n, .token = -1, .finish = (uint8_t)finish};
    struct msg *m = node_send(n, MSG_TOKENS);
    m->tokens = (struct msg_tokens){.tokens = &n->refused, .tokens_n = 1};
    fill_load(n, &m->tokens);
}

void node_on_dispatch(struct node *n, const struct msg_dispatch *d)
{
    struct errmsg e = {0};
    const struct journal *j = &d->journal;
    enum status s = batch_add(n->batch, j, &e);
    if (s == STATUS_OK && d->prefill_only)
        batch_prefill_only(n->batch, j->request);
    if (s == STATUS_EXISTS)
        n->counters.duplicate++;
    else if (s == STATUS_TOO_LARGE && j->emitted_n > 0)
        refuse(n, j, FINISH_LENGTH, e.text);
    else if (s != STATUS_OK)
        refuse(n, j, FINISH_ERROR, e.text);
}

void node_on_cancel(struct node *n, uint64_t request)
{
    if (batch_cancel(n->batch, request) != STATUS_PENDING) {
        send_cancelled(n, request);
        node_cache_stepped(n); // it may have been the last one: no more steps follow
    }
}

void node_pump(struct node *n)
{
    const struct step_plan *plan;
    while ((plan = batch_plan(n->batch)) != NULL) {
        node_act(n, NODE_ACT_SUBMIT)->plan = plan;
        n->submit_us[n->submitted++ % n->pipeline] = n->now_us;
    }
}

void node_on_step(struct node *n, const struct step_result *r)
{
    struct batch_step out;
    struct errmsg e = {0};
    if (r->status != STATUS_OK) {
        errmsg_set(&e, r->status, "step %" PRIu64 ": %s", r->step, status_text(r->status));
        node_fault(n, r, e.text);
        return;
    }
    enum status s = batch_result(n->batch, r, &out, &e);
    if (s < 0) {
        node_fault(n, &(struct step_result){.status = s, .bad_stage = -1, .bad_tensor = -1},
                   e.text);
        return;
    }
    n->returned++;
    n->counters.steps++;
    n->counters.tokens += out.tokens_n;
    node_pump(n); // before the tokens: the engine waits, and tokens take time to send
    if (out.tokens_n > 0) {
        struct msg *m = node_send(n, MSG_TOKENS);
        m->tokens =
            (struct msg_tokens){.step = r->step, .tokens = out.tokens, .tokens_n = out.tokens_n};
        fill_load(n, &m->tokens);
    }
    for (uint32_t i = 0; i < out.cancelled_n; i++)
        send_cancelled(n, out.cancelled[i]);
    node_cache_stepped(n);
}
