// KV blocks between two replicas: two control cores over mock engines that share a fabric, the test
// is the coordinator. What is shown: a prefix that was moved is hit, and everything that can go
// wrong costs a computation and never a block, a slot or a token.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/prng.h"
#include "node/engine_mock.h"
#include "node/node.h"

enum { NODES = 4, SENT = 512, VOCAB = 97, BLOCK = 4, BLOCKS = 64, CHAIN = 41 };

struct world;
struct member {
    struct world *world;
    struct node *core;
    struct engine *engine; // NULL = crashed
    uint64_t timer_us;
    struct msg *sent[SENT]; // owned
    int sent_n;
};

// Replica 1 is nodes 0 and 1 (two stages), replica 2 nodes 2 and 3 (two tensor ranks).
struct world {
    uint64_t now_us;
    struct mock_fabric *fabric;
    struct member m[NODES];
    uint64_t epochs; // used so far
    uint64_t epoch[2];
};
enum { A = 0, B = 2 }; // leads

static uint64_t world_clock(void *ctx)
{
    return ((struct world *)ctx)->now_us;
}

static void no_wake(void *ctx)
{
}

static void do_action(struct member *m, const struct node_action *a)
{
    struct engine *e = m->engine;
    switch (a->kind) {
    case NODE_ACT_SEND:
        assert_true(m->sent_n < SENT);
        m->sent[m->sent_n++] = msg_clone(&a->msg);
        break;
    case NODE_ACT_FORM:
        e->ops->form(e, a->form);
        break;
    case NODE_ACT_LINK:
        e->ops->link(e, a->link);
        break;
    case NODE_ACT_DISSOLVE:
        e->ops->dissolve(e, a->epoch);
        break;
    case NODE_ACT_SUBMIT:
        assert_int_equal(e->ops->submit(e, a->plan), STATUS_OK);
        break;
    case NODE_ACT_KV:
        e->ops->kv(e, &a->kv);
        break;
    case NODE_ACT_TIMER:
        m->timer_us = a->at_us;
        break;
    case NODE_ACT_TRACE:
        break;
    }
}

static void step(struct member *m, struct node_event ev)
{
    struct node_actions actions;
    ev.now_us = m->world->now_us;
    node_step(m->core, &ev, &actions);
    node_check(m->core);
    for (size_t i = 0; i < actions.n; i++)
        do_action(m, &actions.v[i]);
}

static void tell(struct member *m, struct msg msg)
{
    step(m, (struct node_event){.kind = NODE_EV_MSG, .msg = &msg});
}

static void forget_sent(struct member *m)
{
    while (m->sent_n > 0)
        msg_free(m->sent[--m->sent_n]);
}

static bool turn(struct world *w, uint64_t until_us)
{
    uint64_t due = UINT64_MAX;
    struct member *next = NULL;
    bool timer = false;
    for (int i = 0; i < NODES; i++) {
        struct member *m = &w->m[i];
        uint64_t engine = m->engine != NULL ? engine_mock_next_due(m->engine) : UINT64_MAX;
        uint64_t at = engine < m->timer_us ? engine : m->timer_us;
        if (at >= due)
            continue;
        due = at;
        next = m;
        timer = m->timer_us < engine;
    }
    if (next == NULL || due > until_us)
        return false;
    if (due > w->now_us)
        w->now_us = due;
    struct engine_event ev;
    if (timer) {
        next->timer_us = UINT64_MAX;
        step(next, (struct node_event){.kind = NODE_EV_TIMER});
    } else if (next->engine->ops->poll(next->engine, &ev)) {
        step(next, (struct node_event){.kind = NODE_EV_ENGINE, .engine = &ev});
    }
    return true;
}

static void run_us(struct world *w, uint64_t us)
{
    uint64_t until = w->now_us + us;
    for (int i = 0; turn(w, until); i++)
        if (i == 100000)
            fail_msg("the world does not come to rest");
    w->now_us = until;
}

static void run_ms(struct world *w, uint64_t ms)
{
    run_us(w, ms * 1000);
}

static const struct msg *last_of(const struct member *m, enum msg_kind kind)
{
    for (int i = m->sent_n; i-- > 0;)
        if (m->sent[i]->kind == kind)
            return m->sent[i];
    return NULL;
}

static int count_of(const struct member *m, enum msg_kind kind)
{
    int n = 0;
    for (int i = 0; i < m->sent_n; i++)
        n += m->sent[i]->kind == kind;
    return n;
}

static const struct link_member members[2] = {{.name = "1", .host = "h"},
                                              {.name = "2", .host = "h"}};

// Forms replica 0 or 1 of the world anew, at the next epoch.
static void form(struct world *w, int r)
{
    struct member *m = &w->m[2 * r];
    w->epoch[r] = ++w->epochs;
    for (uint32_t i = 0; i < 2; i++)
        tell(&m[i], (struct msg){.kind = MSG_FORM,
                                 .form = {.replica = (uint64_t)r + 1,
                                          .epoch = w->epoch[r],
                                          .model_dir = "model",
                                          .stages = r ? 1 : 2,
                                          .tensor = r ? 2 : 1,
                                          .my_stage = r ? 0 : i,
                                          .my_tensor = r ? i : 0}});
    run_ms(w, 100);
    for (uint32_t i = 0; i < 2; i++)
        tell(&m[i],
             (struct msg){.kind = MSG_LINK, .link = {(uint64_t)r + 1, w->epoch[r], members, 2}});
    run_ms(w, 1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(node_state(m[i].core), NODE_READY);
}

static struct mock_config small_mock(void)
{
    struct mock_config c = mock_config_default();
    c.vocab = VOCAB;
    c.max_context = 128;
    c.kv_blocks = BLOCKS;
    c.block_tokens = BLOCK;
    c.max_rows = 32;
    c.max_seqs = 8;
    return c;
}

static void revive(struct world *w, struct member *m, const struct mock_config *config)
{
    m->world = w;
    m->timer_us = UINT64_MAX;
    m->core = node_create(&(struct node_config){.prefill_chunk = 8});
    m->engine = engine_mock_create(
        &(struct engine_mock_args){.config = config, .fabric = w->fabric, .wake = no_wake});
    step(m, (struct node_event){.kind = NODE_EV_COORD_UP});
}

static void world_init_with(struct world *w, const struct mock_config *config)
{
    memset(w, 0, sizeof *w);
    w->now_us = 1;
    w->fabric = mock_fabric_create(world_clock, w);
    for (int i = 0; i < NODES; i++)
        revive(w, &w->m[i], config);
    form(w, 0);
    form(w, 1);
}

static void world_init(struct world *w)
{
    struct mock_config c = small_mock();
    world_init_with(w, &c);
}

static void world_init_slow(struct world *w, uint64_t kv_block_us)
{
    struct mock_config c = small_mock();
    c.kv_block_us = kv_block_us;
    world_init_with(w, &c);
}

static void kill_member(struct member *m)
{
    forget_sent(m);
    if (m->engine != NULL)
        m->engine->ops->destroy(m->engine);
    m->engine = NULL;
    m->timer_us = UINT64_MAX;
    node_destroy(m->core);
    m->core = NULL;
}

static void world_finish(struct world *w)
{
    for (int i = 0; i < NODES; i++)
        kill_member(&w->m[i]);
    mock_fabric_destroy(w->fabric);
}

static uint32_t kv_free(struct member *m)
{
    struct msg_heartbeat h;
    struct rank_progress none = {0};
    node_heartbeat(node_pulse(m->core), &none, m->world->now_us, &h);
    return h.kv_free;
}

// ---- messages ----

static int32_t chain[128];

static struct kv_peer peer(const struct world *w, int r)
{
    return (struct kv_peer){.replica = (uint64_t)r + 1,
                            .epoch = w->epoch[r],
                            .stages = r ? 1 : 2,
                            .tensor = r ? 2 : 1,
                            .fingerprint = mock_config_default().fingerprint,
                            .block_tokens = BLOCK,
                            .members = members,
                            .members_n = 2};
}

struct move {
    uint64_t transfer, request;
    uint32_t tokens_n, first_block, lease_ms;
};

// From replica 0 to replica 1.
static struct msg receive_msg(const struct world *w, struct move v)
{
    return (struct msg){.kind = MSG_KV_RECEIVE,
                        .kv_receive = {.replica = 2,
                                       .epoch = w->epoch[1],
                                       .transfer = v.transfer,
                                       .tokens = chain,
                                       .tokens_n = v.tokens_n,
                                       .lease_ms = v.lease_ms ? v.lease_ms : 1000,
                                       .source = peer(w, 0)}};
}

static void receive(struct world *w, struct move v)
{
    tell(&w->m[B], receive_msg(w, v));
}

static void send(struct world *w, struct move v)
{
    tell(&w->m[A], (struct msg){.kind = MSG_KV_SEND,
                                .kv_send = {.replica = 1,
                                            .epoch = w->epoch[0],
                                            .transfer = v.transfer,
                                            .request = v.request,
                                            .tokens = chain,
                                            .tokens_n = v.tokens_n,
                                            .first_block = v.first_block,
                                            .lease_ms = v.lease_ms ? v.lease_ms : 1000,
                                            .target = peer(w, 1)}});
}

static void cancel(struct world *w, int r, uint64_t transfer)
{
    tell(&w->m[2 * r], (struct msg){.kind = MSG_KV_CANCEL,
                                    .kv_cancel = {(uint64_t)r + 1, w->epoch[r], transfer}});
}

static void dispatch(struct world *w, int r, uint64_t request, uint32_t prompt_n, bool prefill_only)
{
    tell(&w->m[2 * r], (struct msg){.kind = MSG_DISPATCH,
                                    .dispatch = {.replica = (uint64_t)r + 1,
                                                 .epoch = w->epoch[r],
                                                 .journal = {.request = request,
                                                             .prompt = chain,
                                                             .prompt_n = prompt_n,
                                                             .max_tokens = 3},
                                                 .prefill_only = prefill_only}});
}

static void cancel_request(struct world *w, int r, uint64_t request)
{
    tell(&w->m[2 * r],
         (struct msg){.kind = MSG_CANCEL, .cancel = {(uint64_t)r + 1, w->epoch[r], request}});
}

// Tokens that a lead gave for a request, each checked against the mock's stream.
static uint32_t answered(const struct member *m, uint64_t request, uint32_t prompt_n,
                         uint32_t *cached_out)
{
    uint32_t n = 0;
    for (int i = 0; i < m->sent_n; i++) {
        const struct msg *s = m->sent[i];
        for (uint32_t k = 0; s->kind == MSG_TOKENS && k < s->tokens.tokens_n; k++) {
            const struct token_out *t = &s->tokens.tokens[k];
            if (t->request != request)
                continue;
            assert_int_equal(t->index, n);
            assert_int_equal(t->token, engine_mock_expected(&(struct mock_expected_args){
                                           chain, prompt_n, t->index, VOCAB}));
            if (n++ == 0)
                *cached_out = t->cached_tokens;
        }
    }
    return n;
}

static void expect_hit(struct world *w, int r, uint64_t request, uint32_t prompt_n, uint32_t want)
{
    uint32_t cached = 0;
    dispatch(w, r, request, prompt_n, false);
    run_ms(w, 500);
    assert_int_equal(answered(&w->m[2 * r], request, prompt_n, &cached), 3);
    assert_int_equal(cached, want);
}

static const struct msg_kv_done *done_of(const struct world *w, int r)
{
    const struct msg *m = last_of(&w->m[2 * r], MSG_KV_DONE);
    if (m == NULL)
        fail_msg("no KV_DONE of replica %d", r + 1);
    assert_int_equal(m->kv_done.role, r ? KV_ROLE_TARGET : KV_ROLE_SOURCE);
    return &m->kv_done;
}

static void expect_done(const struct world *w, int r, enum status status, uint32_t tokens_n)
{
    const struct msg_kv_done *d = done_of(w, r);
    assert_int_equal(d->status, status);
    assert_int_equal(d->tokens_n, tokens_n);
}

// The chain is in replica 0's cache, and on its way.
static void begin_moving(struct world *w, struct move v)
{
    dispatch(w, 0, 1, CHAIN, false);
    run_ms(w, 500);
    receive(w, v);
    run_ms(w, 1);
    send(w, v);
}

// ---- what works ----

static void a_moved_prefix_is_hit(void **state)
{
    struct world w;
    world_init(&w);
    dispatch(&w, 0, 1, CHAIN, false);
    run_ms(&w, 500);
    uint32_t before = kv_free(&w.m[B]);
    receive(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    assert_null(last_of(&w.m[B], MSG_KV_READY)); // not before its ranks are
    run_ms(&w, 1);
    const struct msg_kv_ready *ready = &last_of(&w.m[B], MSG_KV_READY)->kv_ready;
    assert_true(ready->transfer == 7 && ready->blocks == 10 && ready->have == 0);
    assert_int_equal(kv_free(&w.m[B]), before - 10);
    send(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    run_ms(&w, 10);
    expect_done(&w, 0, STATUS_OK, 40);
    expect_done(&w, 1, STATUS_OK, 40);
    assert_true(done_of(&w, 1)->bytes > 0 && done_of(&w, 1)->us > 0);
    assert_int_equal(node_transfers(w.m[A].core), 0);
    assert_int_equal(node_transfers(w.m[B].core), 1); // held until it is used
    expect_hit(&w, 1, 1, CHAIN, 40);
    assert_int_equal(node_transfers(w.m[B].core), 0);
    assert_int_equal(kv_free(&w.m[B]), before);
    world_finish(&w);
}

static void blocks_follow_while_the_prompt_is_computed(void **state)
{
    struct world w;
    world_init(&w);
    receive(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    run_ms(&w, 1);
    dispatch(&w, 0, 1, CHAIN, true);
    send(&w, (struct move){.transfer = 7, .request = 1, .tokens_n = CHAIN});
    run_ms(&w, 3); // within the first chunks
    assert_null(last_of(&w.m[A], MSG_KV_DONE));
    run_ms(&w, 500);
    expect_done(&w, 0, STATUS_OK, 40);
    expect_done(&w, 1, STATUS_OK, 40);
    uint32_t cached = 0;
    assert_int_equal(answered(&w.m[A], 1, CHAIN, &cached), 1); // and is gone
    assert_false(node_has_request(w.m[A].core, 1));
    expect_hit(&w, 1, 1, CHAIN, 40);
    world_finish(&w);
}

static void what_the_target_has_is_not_sent(void **state)
{
    struct world w;
    world_init(&w);
    dispatch(&w, 0, 1, CHAIN, false);
    dispatch(&w, 1, 2, 17, false);
    run_ms(&w, 500);
    receive(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    run_ms(&w, 1);
    assert_int_equal(last_of(&w.m[B], MSG_KV_READY)->kv_ready.have, 4);
    send(&w, (struct move){.transfer = 7, .tokens_n = CHAIN, .first_block = 4});
    run_ms(&w, 10);
    expect_done(&w, 1, STATUS_OK, 40);
    assert_int_equal(done_of(&w, 1)->bytes, 6 * BLOCK * 8);
    // Once more: nothing is left to send.
    receive(&w, (struct move){.transfer = 8, .tokens_n = CHAIN});
    const struct msg_kv_ready *ready = &last_of(&w.m[B], MSG_KV_READY)->kv_ready;
    assert_true(ready->transfer == 8 && ready->have == 10);
    expect_done(&w, 1, STATUS_OK, 40);
    cancel(&w, 1, 8);
    cancel(&w, 1, 7);
    assert_int_equal(node_transfers(w.m[B].core), 0);
    expect_hit(&w, 1, 1, CHAIN, 40);
    world_finish(&w);
}

static void a_request_that_leaves_ends_its_transfer(void **state)
{
    struct world w;
    struct mock_config c = small_mock();
    c.step_us = 10000;
    world_init_with(&w, &c);
    receive(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    run_ms(&w, 1);
    dispatch(&w, 0, 1, CHAIN, false);
    send(&w, (struct move){.transfer = 7, .request = 1, .tokens_n = CHAIN});
    run_ms(&w, 35);
    cancel_request(&w, 0, 1);
    run_ms(&w, 200);
    const struct msg_kv_done *d = done_of(&w, 0);
    assert_int_equal(d->status, STATUS_OK);
    assert_true(d->tokens_n > 0 && d->tokens_n < 40 && d->tokens_n % BLOCK == 0);
    uint32_t moved = d->tokens_n;
    expect_done(&w, 1, STATUS_OK, moved);
    expect_hit(&w, 1, 1, CHAIN, moved);
    world_finish(&w);
}

// ---- what is refused ----

static void refusals_say_why(void **state)
{
    struct world w;
    world_init(&w);
    struct msg m = receive_msg(&w, (struct move){.transfer = 1, .tokens_n = CHAIN});
    m.kv_receive.source.fingerprint++;
    tell(&w.m[B], m);
    expect_done(&w, 1, STATUS_BAD_MODEL, 0);
    m.kv_receive.source = peer(&w, 0);
    m.kv_receive.source.block_tokens = 8;
    tell(&w.m[B], m);
    expect_done(&w, 1, STATUS_BAD_MODEL, 0);
    receive(&w, (struct move){.transfer = 2, .tokens_n = BLOCK - 1});
    expect_done(&w, 1, STATUS_BAD_REQUEST, 0);
    send(&w, (struct move){.transfer = 3, .tokens_n = CHAIN});
    expect_done(&w, 0, STATUS_NOT_FOUND, 0);
    send(&w, (struct move){.transfer = 4, .tokens_n = CHAIN, .first_block = 10});
    expect_done(&w, 0, STATUS_BAD_REQUEST, 0);
    m.kv_receive.epoch = w.epoch[1] - 1;
    int before = count_of(&w.m[B], MSG_KV_DONE);
    tell(&w.m[B], m);
    assert_int_equal(count_of(&w.m[B], MSG_KV_DONE), before); // stale: nobody is told
    assert_int_equal(node_transfers(w.m[A].core) + node_transfers(w.m[B].core), 0);
    world_finish(&w);
}

static void a_full_pool_refuses(void **state)
{
    struct world w;
    world_init(&w);
    receive(&w, (struct move){.transfer = 1, .tokens_n = 128});
    receive(&w, (struct move){.transfer = 2, .tokens_n = 128});
    assert_int_equal(count_of(&w.m[B], MSG_KV_DONE), 0);
    receive(&w, (struct move){.transfer = 3, .tokens_n = CHAIN});
    expect_done(&w, 1, STATUS_FULL, 0);
    world_finish(&w);
}

static void a_repeated_message_counts_once(void **state)
{
    struct world w;
    world_init(&w);
    dispatch(&w, 0, 1, CHAIN, false);
    run_ms(&w, 500);
    for (int i = 0; i < 2; i++)
        receive(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    run_ms(&w, 1);
    for (int i = 0; i < 2; i++)
        send(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    run_ms(&w, 10);
    assert_int_equal(count_of(&w.m[A], MSG_KV_DONE), 1);
    assert_int_equal(count_of(&w.m[B], MSG_KV_DONE), 1);
    assert_true(node_counters(w.m[A].core).duplicate == 1);
    assert_true(node_counters(w.m[B].core).duplicate == 1);
    cancel(&w, 0, 7); // is over there
    assert_true(node_counters(w.m[A].core).unexpected == 1);
    world_finish(&w);
}

// ---- what goes wrong ----

static void a_lease_runs_out(void **state)
{
    struct world w;
    world_init(&w);
    uint32_t before = kv_free(&w.m[B]);
    receive(&w, (struct move){.transfer = 7, .tokens_n = CHAIN, .lease_ms = 20});
    run_ms(&w, 19);
    assert_int_equal(kv_free(&w.m[B]), before - 10);
    run_ms(&w, 3);
    expect_done(&w, 1, STATUS_DEADLINE, 0);
    assert_int_equal(kv_free(&w.m[B]), before);
    // Held after it was done: gone with the lease, the prefix stays.
    begin_moving(&w, (struct move){.transfer = 8, .tokens_n = CHAIN, .lease_ms = 50});
    run_ms(&w, 60);
    expect_done(&w, 1, STATUS_OK, 40);
    assert_int_equal(node_transfers(w.m[B].core), 0);
    assert_int_equal(kv_free(&w.m[B]), before);
    expect_hit(&w, 1, 1, CHAIN, 40);
    world_finish(&w);
}

static void a_source_gives_its_blocks_back_in_time(void **state)
{
    struct world w;
    world_init_slow(&w, 10000);
    uint32_t before = kv_free(&w.m[A]);
    begin_moving(&w, (struct move){.transfer = 8, .tokens_n = CHAIN, .lease_ms = 50});
    run_ms(&w, 45);
    assert_int_equal(kv_free(&w.m[A]), before - 10);
    run_ms(&w, 15);
    assert_int_equal(done_of(&w, 0)->status, STATUS_DEADLINE);
    assert_int_equal(kv_free(&w.m[A]), before);
    assert_int_equal(node_transfers(w.m[A].core), 0);
    world_finish(&w);
}

static void a_cancel_keeps_what_has_come(void **state)
{
    struct world w;
    world_init_slow(&w, 10000);
    uint32_t before = kv_free(&w.m[B]);
    begin_moving(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    run_ms(&w, 35);
    cancel(&w, 1, 7);
    cancel(&w, 0, 7);
    assert_true(kv_free(&w.m[B]) < before); // its ranks may still write
    run_ms(&w, 5);
    expect_done(&w, 1, STATUS_CANCELLED, 12);
    assert_int_equal(done_of(&w, 0)->status, STATUS_CANCELLED);
    assert_int_equal(kv_free(&w.m[B]), before);
    expect_hit(&w, 1, 1, CHAIN, 12);
    world_finish(&w);
}

static void a_source_that_dies_is_noticed(void **state)
{
    struct world w;
    world_init_slow(&w, 10000);
    begin_moving(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    run_ms(&w, 35);
    kill_member(&w.m[A]);
    run_ms(&w, 100);
    expect_done(&w, 1, STATUS_LINK_DOWN, 12);
    assert_int_equal(node_transfers(w.m[B].core), 0);
    expect_hit(&w, 1, 1, CHAIN, 12);
    world_finish(&w);
}

static void a_target_that_is_dissolved_is_noticed(void **state)
{
    struct world w;
    world_init_slow(&w, 10000);
    uint32_t before = kv_free(&w.m[A]);
    begin_moving(&w, (struct move){.transfer = 7, .tokens_n = CHAIN});
    run_ms(&w, 35);
    assert_int_equal(kv_free(&w.m[A]), before - 10);
    for (int i = B; i <= B + 1; i++)
        tell(&w.m[i], (struct msg){.kind = MSG_DISSOLVE, .dissolve = {2, w.epoch[1]}});
    run_ms(&w, 100);
    assert_int_equal(done_of(&w, 0)->status, STATUS_LINK_DOWN);
    assert_int_equal(kv_free(&w.m[A]), before);
    form(&w, 1);
    expect_hit(&w, 1, 1, CHAIN, 0); // nothing of it is left at the next epoch
    world_finish(&w);
}

static void running_sequences_go_before_leases(void **state)
{
    struct world w;
    world_init(&w);
    receive(&w, (struct move){.transfer = 1, .tokens_n = 128, .lease_ms = 60000});
    run_us(&w, 1);
    receive(&w, (struct move){.transfer = 2, .tokens_n = 100, .lease_ms = 60000});
    run_ms(&w, 1);
    dispatch(&w, 1, 5, 60, false); // 15 blocks, 7 are free
    run_ms(&w, 500);
    uint32_t cached = 0;
    assert_int_equal(answered(&w.m[B], 5, 60, &cached), 3);
    expect_done(&w, 1, STATUS_FULL, 0);
    assert_int_equal(done_of(&w, 1)->transfer, 2);
    assert_int_equal(node_transfers(w.m[B].core), 1);
    world_finish(&w);
}

static void a_hung_rank_keeps_its_blocks_from_others(void **state)
{
    struct world w;
    world_init_slow(&w, 10000);
    uint32_t before = kv_free(&w.m[A]);
    begin_moving(&w, (struct move){.transfer = 7, .tokens_n = CHAIN, .lease_ms = 200});
    run_ms(&w, 35);
    engine_mock_hang(w.m[B + 1].engine, true);
    run_ms(&w, 500);
    assert_int_equal(done_of(&w, 0)->status, STATUS_DEADLINE); // its own ranks are well
    assert_int_equal(kv_free(&w.m[A]), before);
    assert_null(last_of(&w.m[B], MSG_KV_DONE)); // who knows what that rank may still write
    engine_mock_hang(w.m[B + 1].engine, false);
    run_ms(&w, 50);
    assert_true(done_of(&w, 1)->status < 0);
    assert_int_equal(node_transfers(w.m[B].core), 0);
    world_finish(&w);
}

static void a_rank_that_never_lets_go_ends_the_epoch(void **state)
{
    struct world w;
    world_init_slow(&w, 10000);
    begin_moving(&w, (struct move){.transfer = 7, .tokens_n = CHAIN, .lease_ms = 200});
    run_ms(&w, 35);
    engine_mock_hang(w.m[B + 1].engine, true);
    run_ms(&w, 59000);
    assert_null(last_of(&w.m[B], MSG_FAULT));
    run_ms(&w, 2000);
    assert_int_equal(last_of(&w.m[B], MSG_FAULT)->fault.status, STATUS_NODE_HUNG);
    assert_int_equal(node_state(w.m[B].core), NODE_VOID);
    assert_int_equal(node_transfers(w.m[B].core), 0);
    engine_mock_hang(w.m[B + 1].engine, false);
    run_ms(&w, 100);
    form(&w, 1);
    expect_hit(&w, 1, 1, CHAIN, 0);
    world_finish(&w);
}

// ---- everything at once ----

static void mishap(struct world *w, struct prng *p, const struct mock_config *config, uint64_t id)
{
    int r = (int)prng_below(p, 2), i = 2 * r + (int)prng_below(p, 2);
    switch (prng_below(p, 8)) {
    case 0:
        cancel(w, r, id);
        break;
    case 1:
        cancel_request(w, 0, id);
        break;
    case 2: // dies, and the replica is formed anew
        kill_member(&w->m[i]);
        w->m[i].timer_us = UINT64_MAX;
        run_us(w, prng_below(p, 40000));
        revive(w, &w->m[i], config);
        form(w, r);
        break;
    case 3:
        engine_mock_hang(w->m[i].engine, true);
        run_us(w, prng_below(p, 40000));
        engine_mock_hang(w->m[i].engine, false);
        break;
    case 4:
        engine_mock_cut(w->m[A].engine, w->m[B + 1].engine, true);
        run_us(w, prng_below(p, 40000));
        engine_mock_cut(w->m[A].engine, w->m[B + 1].engine, false);
        break;
    case 5: // the coordinator is lost
        step(&w->m[2 * r], (struct node_event){.kind = NODE_EV_COORD_DOWN});
        step(&w->m[2 * r], (struct node_event){.kind = NODE_EV_COORD_UP});
        form(w, r);
        break;
    default:
        break;
    }
}

static void nothing_leaks_whatever_happens(void **state)
{
    struct world w;
    struct prng p;
    struct mock_config c = small_mock();
    c.kv_block_us = 1000;
    world_init_with(&w, &c);
    prng_seed(&p, 20260101);
    uint32_t whole = 0, part = 0;
    for (uint64_t id = 1; id <= 400; id++) {
        for (uint32_t i = 0; i < 8; i++)
            chain[i] = (int32_t)((id / 3 + i) % VOCAB); // some prefixes come again
        uint32_t n = BLOCK + (uint32_t)prng_below(&p, 90);
        struct move v = {.transfer = id,
                         .request = id,
                         .tokens_n = n,
                         .lease_ms = 1 + (uint32_t)prng_below(&p, 60)};
        forget_sent(&w.m[A]);
        forget_sent(&w.m[B]);
        dispatch(&w, 0, id, n + 1, prng_below(&p, 2));
        receive(&w, v);
        run_us(&w, prng_below(&p, 3000));
        const struct msg *ready = last_of(&w.m[B], MSG_KV_READY);
        v.first_block =
            ready != NULL && ready->kv_ready.have < n / BLOCK ? ready->kv_ready.have : 0;
        send(&w, v);
        run_us(&w, prng_below(&p, 40000));
        mishap(&w, &p, &c, id);
        run_us(&w, prng_below(&p, 20000));
        // Replica 2 goes on with it, as after a failover; the answers are what they must be.
        forget_sent(&w.m[B]);
        dispatch(&w, 1, id, n + 1, false);
        run_ms(&w, 800);
        uint32_t cached = 0;
        assert_int_equal(answered(&w.m[B], id, n + 1, &cached), 3);
        whole += cached / BLOCK == n / BLOCK;
        part += cached > 0 && cached / BLOCK < n / BLOCK;
        assert_int_equal(node_transfers(w.m[A].core) + node_transfers(w.m[B].core), 0);
        assert_int_equal(node_sequences(w.m[A].core) + node_sequences(w.m[B].core), 0);
        assert_int_equal(kv_free(&w.m[A]), BLOCKS);
        assert_int_equal(kv_free(&w.m[B]), BLOCKS);
    }
    assert_true(whole > 50 && part > 20); // the test is not about nothing
    world_finish(&w);
}

static int fill_chain(void **state)
{
    for (int32_t i = 0; i < 128; i++)
        chain[i] = i % VOCAB;
    return 0;
}

int main(void)
{
#define T(f) cmocka_unit_test_setup(f, fill_chain)
    const struct CMUnitTest tests[] = {
        T(a_moved_prefix_is_hit),
        T(blocks_follow_while_the_prompt_is_computed),
        T(what_the_target_has_is_not_sent),
        T(a_request_that_leaves_ends_its_transfer),
        T(refusals_say_why),
        T(a_full_pool_refuses),
        T(a_repeated_message_counts_once),
        T(a_lease_runs_out),
        T(a_source_gives_its_blocks_back_in_time),
        T(a_cancel_keeps_what_has_come),
        T(a_source_that_dies_is_noticed),
        T(a_target_that_is_dissolved_is_noticed),
        T(running_sequences_go_before_leases),
        T(a_hung_rank_keeps_its_blocks_from_others),
        T(a_rank_that_never_lets_go_ends_the_epoch),
        T(nothing_leaks_whatever_happens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
