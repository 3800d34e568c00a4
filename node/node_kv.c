// Transfers of KV blocks as a lead sees them: messages in, leases on the batch's blocks, orders to
// the engine, reports back. Every transfer ends once, and its blocks go back only when the engine
// said that no rank touches them any more.
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/sm.h"
#include "node/node_int.h"

static const struct sm_state states[] = {
    [TRANSFER_FREE] = {"FREE",
                       SM_TO(TRANSFER_OPENING) | SM_TO(TRANSFER_MOVING) | SM_TO(TRANSFER_HELD)},
    [TRANSFER_OPENING] = {"OPENING",
                          SM_TO(TRANSFER_MOVING) | SM_TO(TRANSFER_STOPPING) | SM_TO(TRANSFER_FREE)},
    [TRANSFER_MOVING] = {"MOVING",
                         SM_TO(TRANSFER_STOPPING) | SM_TO(TRANSFER_HELD) | SM_TO(TRANSFER_FREE)},
    [TRANSFER_STOPPING] = {"STOPPING", SM_TO(TRANSFER_FREE)},
    [TRANSFER_HELD] = {"HELD", SM_TO(TRANSFER_FREE)},
};
static const struct sm transfer_sm = {"transfer", states, sizeof states / sizeof *states};

// A rank that does not let go of blocks for so long hangs, and so do they: the epoch is over then.
// Orders reach a rank between its steps, so it is far longer than any step.
static const uint64_t stop_timeout_us = 60 * UINT64_C(1000000);

static void enter(struct transfer *t, enum transfer_state to)
{
    t->state = sm_move(&transfer_sm, t->state, to);
}

static struct transfer *find(struct node *n, uint64_t transfer)
{
    for (uint32_t i = 0; i < NODE_TRANSFERS; i++)
        if (n->transfers[i].state != TRANSFER_FREE && n->transfers[i].lease->transfer == transfer)
            return &n->transfers[i];
    return NULL;
}

static struct transfer *unused(struct node *n)
{
    for (uint32_t i = 0; i < NODE_TRANSFERS; i++)
        if (n->transfers[i].state == TRANSFER_FREE)
            return &n->transfers[i];
    return NULL;
}

static void begin(struct node *n, struct transfer *t, struct batch_lease *lease, uint32_t lease_ms)
{
    *t = (struct transfer){.lease = lease,
                           .began_us = n->now_us,
                           .deadline_us = n->now_us + (uint64_t)lease_ms * 1000};
    n->transfers_n++;
}

static void drop(struct node *n, struct transfer *t)
{
    batch_lease_close(n->batch, t->lease);
    t->lease = NULL;
    enter(t, TRANSFER_FREE);
    n->transfers_n--;
}

void node_kv_drop_all(struct node *n)
{
    for (uint32_t i = 0; i < NODE_TRANSFERS; i++)
        n->transfers[i] = (struct transfer){.state = TRANSFER_FREE};
    n->transfers_n = 0;
}

uint64_t node_kv_stopping_us(const struct node *n)
{
    uint64_t first = 0;
    for (uint32_t i = 0; i < NODE_TRANSFERS; i++)
        if (n->transfers[i].state == TRANSFER_STOPPING &&
            (!first || n->transfers[i].stopping_us < first))
            first = n->transfers[i].stopping_us;
    return first;
}

// ---- to the coordinator and to the engine ----

struct outcome {
    enum kv_role role;
    uint64_t transfer;
    enum status status;
    const char *text;
    uint32_t tokens_n;
    uint64_t bytes, us;
};

static void send_done(struct node *n, const struct outcome *o)
{
    struct msg *m = node_send(n, MSG_KV_DONE);
    m->kv_done = (struct msg_kv_done){.replica = n->replica,
                                      .epoch = n->epoch,
                                      .transfer = o->transfer,
                                      .role = o->role,
                                      .status = o->status,
                                      .text = o->text,
                                      .tokens_n = o->tokens_n,
                                      .bytes = o->bytes,
                                      .us = o->us};
    if (o->status == STATUS_OK)
        n->counters.kv_transfers++;
    else
        n->counters.kv_failed++;
    n->counters.kv_bytes += o->bytes;
    node_trace(n, "transfer %" PRIu64 " %s: %s, %u tokens%s%s", o->transfer, kv_role_name(o->role),
               status_name(o->status), o->tokens_n, o->text[0] ? ": " : "", o->text);
}

static void refuse(struct node *n, enum kv_role role, uint64_t transfer, enum status status,
                   const char *text)
{
    snprintf(n->text, sizeof n->text, "%s", text);
    send_done(n, &(struct outcome){
                     .role = role, .transfer = transfer, .status = status, .text = n->text});
}

static struct kv_order *order(struct node *n, const struct transfer *t, enum kv_order_kind kind)
{
    struct node_action *a = node_act(n, NODE_ACT_KV);
    a->kv = (struct kv_order){
        .kind = kind, .transfer = t->lease->transfer, .epoch = n->epoch, .total = t->lease->total};
    return &a->kv;
}

static void stop(struct node *n, struct transfer *t, enum status status, const char *text)
{
    if (t->state == TRANSFER_STOPPING)
        return;
    enter(t, TRANSFER_STOPPING);
    t->deadline_us = n->now_us + stop_timeout_us;
    t->stopping_us = n->now_us;
    t->status = status;
    snprintf(t->text, sizeof t->text, "%s", text);
    order(n, t, KV_ORDER_STOP);
}

// ---- messages ----

static enum status peer_check(const struct node *n, const struct kv_peer *p, struct errmsg *e)
{
    if (!n->moves_kv)
        return errmsg_set(e, STATUS_UNSUPPORTED, "this engine moves no KV");
    if (p->fingerprint != n->fingerprint)
        return errmsg_set(e, STATUS_BAD_MODEL, "model %016" PRIx64 " there, %016" PRIx64 " here",
                          p->fingerprint, n->fingerprint);
    if (p->block_tokens != n->block_tokens)
        return errmsg_set(e, STATUS_BAD_MODEL, "blocks of %u tokens there, %u here",
                          p->block_tokens, n->block_tokens);
    return STATUS_OK;
}

static void send_ready(struct node *n, const struct transfer *t)
{
    struct msg *m = node_send(n, MSG_KV_READY);
    m->kv_ready = (struct msg_kv_ready){.replica = n->replica,
                                        .epoch = n->epoch,
                                        .transfer = t->lease->transfer,
                                        .blocks = t->lease->total,
                                        .have = t->first};
}

void node_on_kv_receive(struct node *n, const struct msg_kv_receive *m)
{
    struct errmsg e = {0};
    struct batch_lease *lease = NULL;
    if (find(n, m->transfer) != NULL) {
        n->counters.duplicate++;
        return;
    }
    struct transfer *t = unused(n);
    enum status s = peer_check(n, &m->source, &e);
    if (s == STATUS_OK && t == NULL)
        s = errmsg_set(&e, STATUS_FULL, "%d transfers are under way", NODE_TRANSFERS);
    if (s == STATUS_OK)
        s = batch_lease_target(n->batch,
                               &(struct batch_lease_args){.transfer = m->transfer,
                                                          .tokens = m->tokens,
                                                          .tokens_n = m->tokens_n},
                               &lease, &e);
    if (s != STATUS_OK) {
        refuse(n, KV_ROLE_TARGET, m->transfer, s, e.text);
        return;
    }
    begin(n, t, lease, m->lease_ms);
    t->first = lease->named;
    if (lease->named == lease->total) {
        send_ready(n, t);
        send_done(n, &(struct outcome){.role = KV_ROLE_TARGET,
                                       .transfer = m->transfer,
                                       .text = "",
                                       .tokens_n = lease->named * n->block_tokens});
        enter(t, TRANSFER_HELD);
        return;
    }
    enter(t, TRANSFER_OPENING);
    struct kv_order *o = order(n, t, KV_ORDER_RECEIVE);
    o->peer = &m->source;
    o->first = t->first;
    o->blocks = lease->blocks + t->first;
    o->blocks_n = lease->total - t->first;
}

// What the source has of the chain by now and did not tell the engine yet.
static void fill(struct node *n, struct transfer *t)
{
    if (t->lease->role != KV_ROLE_SOURCE || t->state != TRANSFER_MOVING || t->last)
        return;
    bool more = batch_lease_fill(n->batch, t->lease);
    if (more && t->lease->blocks_n <= t->ordered)
        return;
    uint32_t end = t->lease->blocks_n > t->ordered ? t->lease->blocks_n : t->ordered;
    struct kv_order *o = order(n, t, KV_ORDER_FILLED);
    o->first = t->ordered;
    o->blocks = t->lease->blocks + t->ordered;
    o->blocks_n = end - t->ordered;
    o->last = !more;
    t->ordered = end;
    t->last = !more;
}

void node_on_kv_send(struct node *n, const struct msg_kv_send *m)
{
    struct errmsg e = {0};
    struct batch_lease *lease = NULL;
    if (find(n, m->transfer) != NULL) {
        n->counters.duplicate++;
        return;
    }
    struct transfer *t = unused(n);
    enum status s = peer_check(n, &m->target, &e);
    if (s == STATUS_OK && t == NULL)
        s = errmsg_set(&e, STATUS_FULL, "%d transfers are under way", NODE_TRANSFERS);
    if (s == STATUS_OK && m->first_block >= m->tokens_n / n->block_tokens)
        s = errmsg_set(&e, STATUS_BAD_REQUEST, "%u tokens have no block %u", m->tokens_n,
                       m->first_block);
    if (s == STATUS_OK)
        s = batch_lease_source(n->batch,
                               &(struct batch_lease_args){.transfer = m->transfer,
                                                          .request = m->request,
                                                          .tokens = m->tokens,
                                                          .tokens_n = m->tokens_n},
                               &lease, &e);
    if (s == STATUS_OK && !batch_lease_fill(n->batch, lease) && lease->blocks_n <= m->first_block) {
        batch_lease_close(n->batch, lease);
        s = errmsg_set(&e, STATUS_NOT_FOUND, "no block of the chain is here");
    }
    if (s != STATUS_OK) {
        refuse(n, KV_ROLE_SOURCE, m->transfer, s, e.text);
        return;
    }
    begin(n, t, lease, m->lease_ms);
    enter(t, TRANSFER_MOVING);
    t->first = t->ordered = m->first_block;
    struct kv_order *o = order(n, t, KV_ORDER_SEND);
    o->peer = &m->target;
    o->first = m->first_block;
}

void node_on_kv_cancel(struct node *n, uint64_t transfer)
{
    struct transfer *t = find(n, transfer);
    if (t == NULL)
        n->counters.unexpected++;
    else if (t->state == TRANSFER_HELD)
        drop(n, t);
    else
        stop(n, t, STATUS_CANCELLED, "");
}

// ---- reports ----

static void ended(struct node *n, struct transfer *t, const struct kv_report *r)
{
    struct batch_lease *l = t->lease;
    uint32_t blocks = r->blocks < l->total ? r->blocks : l->total;
    struct outcome o = {.role = l->role,
                        .transfer = l->transfer,
                        .status = r->whole ? STATUS_OK : t->status,
                        .text = r->whole ? "" : t->text,
                        .tokens_n = blocks * n->block_tokens,
                        .bytes = r->bytes,
                        .us = n->now_us - t->began_us};
    if (!r->whole && t->state != TRANSFER_STOPPING) {
        o.status = STATUS_INTERNAL;
        o.text = "the engine ended it unasked";
    }
    if (l->role == KV_ROLE_TARGET) {
        batch_lease_publish(n->batch, l, blocks);
        batch_lease_trim(n->batch, l);
        o.tokens_n = l->named * n->block_tokens;
    }
    send_done(n, &o);
    node_cache_stepped(n); // no step may follow
    if (l->role == KV_ROLE_TARGET && r->whole && t->state == TRANSFER_MOVING)
        enter(t, TRANSFER_HELD);
    else
        drop(n, t);
}

void node_on_kv_report(struct node *n, const struct kv_report *r)
{
    struct transfer *t = find(n, r->transfer);
    if (t == NULL || t->state == TRANSFER_HELD) {
        n->counters.unexpected++;
        return;
    }
    switch (r->kind) {
    case KV_REPORT_READY:
        if (t->state == TRANSFER_OPENING) {
            enter(t, TRANSFER_MOVING);
            send_ready(n, t);
        }
        return;
    case KV_REPORT_FAILED:
        stop(n, t, r->status, r->text);
        return;
    case KV_REPORT_ENDED:
        ended(n, t, r);
        return;
    }
}

// ---- after every event ----

static void expire(struct node *n, struct transfer *t)
{
    if (n->now_us < t->deadline_us)
        return;
    if (t->state == TRANSFER_HELD)
        drop(n, t);
    else
        stop(n, t, STATUS_DEADLINE, "the lease ran out");
}

// Running sequences go before leases: what is only held is given back at once, then the youngest
// transfer is stopped.
static void make_room(struct node *n)
{
    struct transfer *youngest = NULL;
    bool freed = false;
    for (uint32_t i = 0; i < NODE_TRANSFERS; i++) {
        struct transfer *t = &n->transfers[i];
        if (t->state == TRANSFER_STOPPING)
            return; // gives its blocks back soon
        if (t->state == TRANSFER_HELD) {
            drop(n, t);
            freed = true;
        } else if (t->state != TRANSFER_FREE &&
                   (youngest == NULL || t->began_us > youngest->began_us)) {
            youngest = t;
        }
    }
    if (freed)
        node_pump(n);
    else if (youngest != NULL)
        stop(n, youngest, STATUS_FULL, "running sequences need the blocks");
}

uint64_t node_lease_us(const struct node *n)
{
    uint64_t at = UINT64_MAX;
    for (uint32_t i = 0; i < NODE_TRANSFERS; i++) {
        const struct transfer *t = &n->transfers[i];
        if (t->state != TRANSFER_FREE && t->deadline_us < at)
            at = t->deadline_us;
    }
    return at;
}

static void set_timer(struct node *n)
{
    uint64_t at = node_lease_us(n);
    if (at != UINT64_MAX || n->deadline_us != 0)
        node_set_timer(n, at);
}

void node_kv_turn(struct node *n)
{
    for (uint32_t i = 0; i < NODE_TRANSFERS && n->transfers_n > 0; i++) {
        struct transfer *t = &n->transfers[i];
        if (t->state == TRANSFER_STOPPING && n->now_us >= t->deadline_us) {
            const struct step_result hung = {
                .status = STATUS_NODE_HUNG, .bad_stage = -1, .bad_tensor = -1};
            node_fault(n, &hung, "a rank does not let go of KV blocks");
            return;
        }
        if (t->state == TRANSFER_HELD && batch_lease_used(n->batch, t->lease))
            drop(n, t);
        if (t->state != TRANSFER_FREE && t->state != TRANSFER_STOPPING)
            expire(n, t);
        if (t->state != TRANSFER_FREE)
            fill(n, t);
    }
    if (batch_starved(n->batch))
        make_room(n);
    set_timer(n);
}

void node_kv_check(const struct node *n)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < NODE_TRANSFERS; i++) {
        const struct transfer *t = &n->transfers[i];
        used += t->state != TRANSFER_FREE;
        assert((t->state == TRANSFER_FREE) == (t->lease == NULL));
        if (t->lease == NULL)
            continue;
        assert(t->lease->role == KV_ROLE_TARGET || t->state != TRANSFER_HELD);
        assert(t->state != TRANSFER_HELD || t->lease->named == t->lease->total);
        assert(n->now_us < t->deadline_us);
    }
    assert(used == n->transfers_n && (n->batch != NULL || used == 0));
    assert(n->batch == NULL || batch_load(n->batch).leases == used);
}
