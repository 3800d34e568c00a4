// The node's control core over mock engines that share a fabric; the test is the coordinator. What
// is shown: two-round forming, epochs that fence, what a lead answers, and what becomes of work
// when a rank, a link, the coordinator or the arithmetic fails.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "node/engine_mock.h"
#include "node/node.h"
#include "tests/unit/count_allocations.h"

// ---- a world of nodes, driven as the shell drives one ----

enum { NODES = 4, SENT = 256, VOCAB = 97 };

struct world;
struct member {
    struct world *world;
    struct node *core;
    struct engine *engine; // NULL = crashed
    uint64_t timer_us;
    struct msg *sent[SENT]; // owned
    int sent_n;
    int dissolved; // engine dissolves seen
    uint64_t step_allocations;
};

struct world {
    uint64_t now_us;
    struct mock_fabric *fabric;
    struct member m[NODES];
};

static uint64_t world_clock(void *ctx)
{
    return ((struct world *)ctx)->now_us;
}

static void no_wake(void *ctx)
{
}

static void step(struct member *m, struct node_event ev);

static void do_action(struct member *m, const struct node_action *a)
{
    switch (a->kind) {
    case NODE_ACT_SEND:
        assert_true(m->sent_n < SENT);
        m->sent[m->sent_n++] = msg_clone(&a->msg);
        break;
    case NODE_ACT_FORM:
        m->engine->ops->form(m->engine, a->form);
        break;
    case NODE_ACT_LINK:
        m->engine->ops->link(m->engine, a->link);
        break;
    case NODE_ACT_DISSOLVE:
        m->dissolved++;
        m->engine->ops->dissolve(m->engine, a->epoch);
        break;
    case NODE_ACT_SUBMIT:
        assert_int_equal(m->engine->ops->submit(m->engine, a->plan), STATUS_OK);
        break;
    case NODE_ACT_KV:
        m->engine->ops->kv(m->engine, &a->kv);
        break;
    case NODE_ACT_TIMER:
        m->timer_us = a->at_us;
        break;
    case NODE_ACT_TRACE:
        assert_non_null(a->text);
        break;
    }
}

static void step(struct member *m, struct node_event ev)
{
    struct node_actions actions;
    ev.now_us = m->world->now_us;
    uint64_t before = allocations;
    node_step(m->core, &ev, &actions);
    m->step_allocations += allocations - before;
    node_check(m->core);
    for (size_t i = 0; i < actions.n; i++)
        do_action(m, &actions.v[i]);
}

static void tell(struct member *m, struct msg msg)
{
    step(m, (struct node_event){.kind = NODE_EV_MSG, .msg = &msg});
}

static void world_init_with(struct world *w, const struct mock_config *config)
{
    memset(w, 0, sizeof *w);
    w->now_us = 1;
    w->fabric = mock_fabric_create(world_clock, w);
    for (int i = 0; i < NODES; i++) {
        struct member *m = &w->m[i];
        m->world = w;
        m->timer_us = UINT64_MAX;
        m->core = node_create(&(struct node_config){.prefill_chunk = 8});
        m->engine = engine_mock_create(
            &(struct engine_mock_args){.config = config, .fabric = w->fabric, .wake = no_wake});
        step(m, (struct node_event){.kind = NODE_EV_COORD_UP});
    }
}

static struct mock_config small_mock(void)
{
    struct mock_config c = mock_config_default();
    c.vocab = VOCAB;
    c.max_context = 128;
    c.kv_blocks = 64;
    c.block_tokens = 4;
    c.max_rows = 32;
    c.max_seqs = 8;
    return c;
}

static void world_init(struct world *w)
{
    struct mock_config c = small_mock();
    world_init_with(w, &c);
}

static void crash(struct member *m)
{
    m->engine->ops->destroy(m->engine);
    m->engine = NULL;
}

static void forget_sent(struct member *m)
{
    while (m->sent_n > 0)
        msg_free(m->sent[--m->sent_n]);
}

static void world_finish(struct world *w)
{
    for (int i = 0; i < NODES; i++) {
        forget_sent(&w->m[i]);
        if (w->m[i].engine != NULL)
            crash(&w->m[i]);
        node_destroy(w->m[i].core);
    }
    mock_fabric_destroy(w->fabric);
}

// What comes next in the world, or NULL; *is_timer tells which of the two.
static struct member *next_due(struct world *w, uint64_t *due_out, bool *is_timer)
{
    struct member *next = NULL;
    uint64_t due = UINT64_MAX;
    for (int i = 0; i < NODES; i++) {
        struct member *m = &w->m[i];
        uint64_t engine = m->engine != NULL ? engine_mock_next_due(m->engine) : UINT64_MAX;
        uint64_t at = engine < m->timer_us ? engine : m->timer_us;
        if (at >= due)
            continue;
        due = at;
        next = m;
        *is_timer = m->timer_us < engine;
    }
    *due_out = due;
    return next;
}

static void run_until(struct world *w, uint64_t until_us)
{
    for (int i = 0; i < 100000; i++) {
        uint64_t due;
        bool is_timer = false;
        struct member *m = next_due(w, &due, &is_timer);
        if (m == NULL || due > until_us) {
            w->now_us = until_us;
            return;
        }
        if (due > w->now_us)
            w->now_us = due;
        struct engine_event ev;
        if (is_timer) {
            m->timer_us = UINT64_MAX;
            step(m, (struct node_event){.kind = NODE_EV_TIMER});
        } else if (m->engine->ops->poll(m->engine, &ev)) {
            step(m, (struct node_event){.kind = NODE_EV_ENGINE, .engine = &ev});
        }
    }
    fail_msg("the world does not come to rest");
}

static void run_ms(struct world *w, uint64_t ms)
{
    run_until(w, w->now_us + ms * 1000);
}

// ---- the coordinator's side ----

static int count_of(const struct member *m, enum msg_kind kind)
{
    int n = 0;
    for (int i = 0; i < m->sent_n; i++)
        n += m->sent[i]->kind == kind;
    return n;
}

static const struct msg *last_of(const struct member *m, enum msg_kind kind)
{
    for (int i = m->sent_n; i-- > 0;)
        if (m->sent[i]->kind == kind)
            return m->sent[i];
    fail_msg("no %s was sent", msg_kind_name(kind));
    return NULL;
}

struct shape {
    uint64_t epoch;
    uint32_t stages, tensor;
    int first; // node of rank (0,0)
};

static struct msg form_msg(struct shape s, uint32_t rank)
{
    return (struct msg){.kind = MSG_FORM,
                        .form = {.replica = 1,
                                 .epoch = s.epoch,
                                 .model_dir = "model",
                                 .stages = s.stages,
                                 .tensor = s.tensor,
                                 .my_stage = rank / s.tensor,
                                 .my_tensor = rank % s.tensor}};
}

static struct msg link_msg(struct shape s)
{
    static const struct link_member members[NODES] = {{.name = "1", .host = "h"}};
    return (struct msg){
        .kind = MSG_LINK,
        .link = {
            .replica = 1, .epoch = s.epoch, .members = members, .members_n = s.stages * s.tensor}};
}

static void form(struct world *w, struct shape s)
{
    uint32_t ranks = s.stages * s.tensor;
    for (uint32_t r = 0; r < ranks; r++)
        tell(&w->m[s.first + (int)r], form_msg(s, r));
    run_ms(w, 100);
    for (uint32_t r = 0; r < ranks; r++)
        assert_int_equal(last_of(&w->m[s.first + (int)r], MSG_PREPARED)->prepared.epoch, s.epoch);
    for (uint32_t r = 0; r < ranks; r++)
        tell(&w->m[s.first + (int)r], link_msg(s));
    run_ms(w, 1);
    for (uint32_t r = 0; r < ranks; r++) {
        const struct msg_formed *f = &last_of(&w->m[s.first + (int)r], MSG_FORMED)->formed;
        assert_int_equal(f->epoch, s.epoch);
        assert_int_equal(f->status, STATUS_OK);
        assert_int_equal(node_state(w->m[s.first + (int)r].core), NODE_READY);
    }
}

static const int32_t prompt[] = {5, 6, 7, 8, 9, 10, 11};
enum { PROMPT_N = sizeof prompt / sizeof *prompt };

static struct msg dispatch_msg(uint64_t epoch, uint64_t request, uint32_t max_tokens)
{
    return (struct msg){.kind = MSG_DISPATCH,
                        .dispatch = {.replica = 1,
                                     .epoch = epoch,
                                     .journal = {.request = request,
                                                 .prompt = prompt,
                                                 .prompt_n = PROMPT_N,
                                                 .max_tokens = max_tokens}}};
}

static struct msg cancel_msg(uint64_t epoch, uint64_t request)
{
    return (struct msg){.kind = MSG_CANCEL,
                        .cancel = {.replica = 1, .epoch = epoch, .request = request}};
}

static struct msg dissolve_msg(uint64_t epoch)
{
    return (struct msg){.kind = MSG_DISSOLVE, .dissolve = {.replica = 1, .epoch = epoch}};
}

// Appends the request's tokens that m sent since forget_sent; checks index and value.
static uint32_t collect(const struct member *m, uint64_t request, int32_t *tokens, uint32_t n,
                        enum finish_reason *finish)
{
    for (int i = 0; i < m->sent_n; i++) {
        const struct msg *msg = m->sent[i];
        if (msg->kind != MSG_TOKENS)
            continue;
        for (uint32_t k = 0; k < msg->tokens.tokens_n; k++) {
            const struct token_out *t = &msg->tokens.tokens[k];
            if (t->request != request)
                continue;
            assert_int_equal(t->index, n);
            assert_int_equal(*finish, FINISH_NONE);
            assert_int_equal(t->token, engine_mock_expected(&(struct mock_expected_args){
                                           prompt, PROMPT_N, t->index, VOCAB}));
            tokens[n++] = t->token;
            *finish = t->finish;
        }
    }
    return n;
}

static void expect_answer(const struct member *m, uint64_t request, uint32_t want_n)
{
    int32_t tokens[128];
    enum finish_reason finish = FINISH_NONE;
    assert_int_equal(collect(m, request, tokens, 0, &finish), want_n);
    assert_int_equal(finish, FINISH_LENGTH);
}

// ---- forming ----

static void forms_in_two_rounds(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 7, .stages = 2, .tensor = 2});
    for (int i = 0; i < 4; i++) {
        const struct msg_formed *f = &last_of(&w.m[i], MSG_FORMED)->formed;
        assert_int_equal(node_is_lead(w.m[i].core), i == 0);
        assert_int_equal(f->max_seqs, i == 0 ? 8 : 0);
        assert_int_equal(f->max_context, i == 0 ? 128 : 0);
        assert_int_equal(f->fingerprint, small_mock().fingerprint);
        assert_true(strlen(last_of(&w.m[i], MSG_PREPARED)->prepared.addresses.shm) > 0);
        assert_int_equal(w.m[i].timer_us, UINT64_MAX);
    }
    world_finish(&w);
}

static void a_pool_smaller_than_the_context_is_told(void **state)
{
    struct world w;
    struct mock_config c = small_mock();
    c.kv_blocks = 10;
    world_init_with(&w, &c);
    form(&w, (struct shape){.epoch = 1, .stages = 1, .tensor = 1});
    assert_int_equal(last_of(&w.m[0], MSG_FORMED)->formed.max_context, 40);
    world_finish(&w);
}

static void bad_forms_are_answered(void **state)
{
    static const struct msg_form forms[] = {
        {.replica = 0, .epoch = 1, .stages = 1, .tensor = 1},
        {.replica = 1, .epoch = 0, .stages = 1, .tensor = 1},
        {.replica = 1, .epoch = 1, .stages = 0, .tensor = 1},
        {.replica = 1, .epoch = 1, .stages = 1, .tensor = 0},
        {.replica = 1, .epoch = 1, .stages = 1, .tensor = 1, .my_stage = 1},
        {.replica = 1, .epoch = 1, .stages = 1, .tensor = 1, .my_tensor = 1},
        {.replica = 1, .epoch = 1, .stages = LIMIT_STAGES + 1, .tensor = 1},
        {.replica = 1, .epoch = 1, .stages = 1, .tensor = LIMIT_TENSOR + 1},
        {.replica = 1, .epoch = 1, .stages = 64, .tensor = 64},
        {.replica = 1, .epoch = 1, .stages = 1u << 31, .tensor = 2},
    };
    struct world w;
    world_init(&w);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        tell(&w.m[0], (struct msg){.kind = MSG_FORM, .form = forms[i]});
        assert_int_equal(count_of(&w.m[0], MSG_FORMED), i + 1);
        assert_int_equal(last_of(&w.m[0], MSG_FORMED)->formed.status, STATUS_BAD_REQUEST);
        assert_int_equal(node_state(w.m[0].core), NODE_IDLE);
    }
    world_finish(&w);
}

static void a_higher_epoch_replaces_a_lower_is_refused(void **state)
{
    struct world w;
    struct shape s = {.epoch = 5, .stages = 1, .tensor = 1};
    world_init(&w);
    form(&w, s);
    tell(&w.m[0], dispatch_msg(5, 1, 50));
    tell(&w.m[0], form_msg(s, 0)); // repeated: nothing happens
    assert_int_equal(node_counters(w.m[0].core).duplicate, 1);
    assert_int_equal(node_state(w.m[0].core), NODE_READY);
    s.epoch = 4;
    tell(&w.m[0], form_msg(s, 0));
    assert_int_equal(last_of(&w.m[0], MSG_FORMED)->formed.status, STATUS_STALE_EPOCH);
    assert_int_equal(last_of(&w.m[0], MSG_FORMED)->formed.epoch, 4);
    assert_int_equal(node_epoch(w.m[0].core), 5);
    assert_true(node_has_request(w.m[0].core, 1));
    s.epoch = 6;
    form(&w, s);
    assert_int_equal(w.m[0].dissolved, 1);
    assert_false(node_has_request(w.m[0].core, 1));
    world_finish(&w);
}

static void a_form_during_forming_starts_over(void **state)
{
    struct world w;
    struct shape s = {.epoch = 1, .stages = 1, .tensor = 1};
    world_init(&w);
    tell(&w.m[0], form_msg(s, 0));
    s.epoch = 2;
    form(&w, s);
    assert_int_equal(count_of(&w.m[0], MSG_PREPARED), 1);
    assert_int_equal(count_of(&w.m[0], MSG_FORMED), 1);
    world_finish(&w);
}

static void dissolve_during_forming(void **state)
{
    struct world w;
    struct shape s = {.epoch = 3, .stages = 1, .tensor = 1};
    world_init(&w);
    tell(&w.m[0], form_msg(s, 0));
    tell(&w.m[0], dissolve_msg(3));
    assert_int_equal(node_state(w.m[0].core), NODE_IDLE);
    run_ms(&w, 1000);
    assert_int_equal(w.m[0].sent_n, 0);
    struct engine_event late = {.kind = ENGINE_FORMED, .replica = 1, .epoch = 3};
    step(&w.m[0], (struct node_event){.kind = NODE_EV_ENGINE, .engine = &late});
    tell(&w.m[0], link_msg(s));
    assert_int_equal(node_counters(w.m[0].core).stale_epoch, 2);
    tell(&w.m[0], form_msg(s, 0)); // an epoch that was left does not come back
    assert_int_equal(last_of(&w.m[0], MSG_FORMED)->formed.status, STATUS_STALE_EPOCH);
    s.epoch = 4;
    form(&w, s);
    world_finish(&w);
}

static void links_that_do_not_fit(void **state)
{
    struct world w;
    struct shape s = {.epoch = 1, .stages = 2, .tensor = 1};
    world_init(&w);
    tell(&w.m[0], form_msg(s, 0));
    tell(&w.m[0], link_msg(s)); // not prepared yet
    assert_int_equal(node_counters(w.m[0].core).unexpected, 1);
    run_ms(&w, 100);
    struct msg link = link_msg(s);
    link.link.members_n = 3;
    tell(&w.m[0], link);
    assert_int_equal(last_of(&w.m[0], MSG_FORMED)->formed.status, STATUS_BAD_REQUEST);
    assert_int_equal(node_state(w.m[0].core), NODE_IDLE);
    world_finish(&w);
}

static void an_engine_that_never_forms_counts_as_hung(void **state)
{
    struct world w;
    world_init(&w);
    engine_mock_hang(w.m[0].engine, true);
    tell(&w.m[0], form_msg((struct shape){.epoch = 1, .stages = 1, .tensor = 1}, 0));
    assert_true(w.m[0].timer_us < UINT64_MAX);
    run_until(&w, w.m[0].timer_us);
    assert_int_equal(last_of(&w.m[0], MSG_FORMED)->formed.status, STATUS_NODE_HUNG);
    assert_int_equal(node_state(w.m[0].core), NODE_IDLE);
    world_finish(&w);
}

static void a_rank_that_dies_while_linking(void **state)
{
    struct world w;
    struct shape s = {.epoch = 1, .stages = 2, .tensor = 1};
    world_init(&w);
    tell(&w.m[0], form_msg(s, 0));
    tell(&w.m[1], form_msg(s, 1));
    run_ms(&w, 100);
    tell(&w.m[0], link_msg(s));
    crash(&w.m[1]);
    run_ms(&w, 100);
    assert_int_equal(last_of(&w.m[0], MSG_FORMED)->formed.status, STATUS_LINK_DOWN);
    assert_int_equal(node_state(w.m[0].core), NODE_IDLE);
    world_finish(&w);
}

static void a_rank_that_never_links(void **state)
{
    struct world w;
    struct shape s = {.epoch = 1, .stages = 2, .tensor = 1};
    world_init(&w);
    tell(&w.m[0], form_msg(s, 0));
    tell(&w.m[1], form_msg(s, 1));
    run_ms(&w, 100);
    tell(&w.m[0], link_msg(s));
    run_ms(&w, 20000);
    assert_int_equal(last_of(&w.m[0], MSG_FORMED)->formed.status, STATUS_LINK_TIMEOUT);
    world_finish(&w);
}

// ---- work ----

static void answers_a_dispatch(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 2, .tensor = 2});
    tell(&w.m[0], dispatch_msg(1, 42, 30));
    run_ms(&w, 2000);
    expect_answer(&w.m[0], 42, 30);
    assert_int_equal(node_sequences(w.m[0].core), 0);
    tell(&w.m[0], dispatch_msg(1, 43, 1));
    run_ms(&w, 200);
    tell(&w.m[0], dissolve_msg(1));
    struct node_counters c = node_counters(w.m[0].core); // they outlive the batch
    assert_int_equal(c.tokens, 31);
    assert_int_equal(c.steps, 31);
    assert_int_equal(c.prefix_tokens, 4);
    world_finish(&w);
}

static void one_message_per_step(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 1, .tensor = 1});
    for (uint64_t id = 1; id <= 5; id++)
        tell(&w.m[0], dispatch_msg(1, id, 20));
    run_ms(&w, 2000);
    for (uint64_t id = 1; id <= 5; id++)
        expect_answer(&w.m[0], id, 20);
    uint64_t last = 0;
    for (int i = 0; i < w.m[0].sent_n; i++) {
        if (w.m[0].sent[i]->kind != MSG_TOKENS)
            continue;
        assert_true(w.m[0].sent[i]->tokens.step > last);
        last = w.m[0].sent[i]->tokens.step;
    }
    assert_true(count_of(&w.m[0], MSG_TOKENS) <= 25);
    world_finish(&w);
}

static void work_of_another_epoch_is_dropped(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 5, .stages = 1, .tensor = 1});
    forget_sent(&w.m[0]);
    tell(&w.m[0], dispatch_msg(4, 1, 5));
    tell(&w.m[0], dispatch_msg(6, 2, 5));
    tell(&w.m[0], cancel_msg(4, 1));
    tell(&w.m[0], dissolve_msg(4));
    struct msg other = dispatch_msg(5, 3, 5);
    other.dispatch.replica = 2;
    tell(&w.m[0], other);
    run_ms(&w, 500);
    assert_int_equal(node_counters(w.m[0].core).stale_epoch, 5);
    assert_int_equal(node_state(w.m[0].core), NODE_READY);
    assert_int_equal(w.m[0].sent_n, 0);
    world_finish(&w);
}

static void only_a_ready_lead_takes_work(void **state)
{
    struct world w;
    struct shape s = {.epoch = 1, .stages = 2, .tensor = 1};
    world_init(&w);
    tell(&w.m[0], form_msg(s, 0));
    tell(&w.m[0], dispatch_msg(1, 1, 5)); // forming
    assert_int_equal(node_counters(w.m[0].core).unexpected, 1);
    tell(&w.m[0], dissolve_msg(1));
    s.epoch = 2;
    form(&w, s);
    tell(&w.m[1], dispatch_msg(2, 1, 5)); // not the lead
    tell(&w.m[1], cancel_msg(2, 1));
    assert_int_equal(node_counters(w.m[1].core).unexpected, 2);
    tell(&w.m[1], (struct msg){.kind = MSG_TOKENS});
    assert_int_equal(node_counters(w.m[1].core).unexpected, 3);
    assert_int_equal(node_sequences(w.m[0].core) + node_sequences(w.m[1].core), 0);
    world_finish(&w);
}

static void refusals_say_so(void **state)
{
    struct world w;
    int32_t long_prompt[128] = {0};
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 1, .tensor = 1});
    struct msg m = dispatch_msg(1, 1, 200);
    m.dispatch.journal.prompt = long_prompt;
    m.dispatch.journal.prompt_n = 128;
    tell(&w.m[0], m);
    const struct msg_tokens *t = &last_of(&w.m[0], MSG_TOKENS)->tokens;
    assert_int_equal(t->step, 0);
    assert_int_equal(t->tokens_n, 1);
    assert_int_equal(t->tokens[0].token, -1);
    assert_int_equal(t->tokens[0].finish, FINISH_ERROR);
    m = dispatch_msg(1, 2, 200);
    m.dispatch.journal.emitted = long_prompt;
    m.dispatch.journal.emitted_n = 128 - PROMPT_N;
    tell(&w.m[0], m);
    t = &last_of(&w.m[0], MSG_TOKENS)->tokens;
    assert_int_equal(t->tokens[0].request, 2);
    assert_int_equal(t->tokens[0].index, 128 - PROMPT_N);
    assert_int_equal(t->tokens[0].finish, FINISH_LENGTH);
    assert_int_equal(node_counters(w.m[0].core).refused, 2);
    world_finish(&w);
}

static void cancel_is_always_answered(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 1, .tensor = 1});
    tell(&w.m[0], cancel_msg(1, 99)); // never heard of
    assert_int_equal(last_of(&w.m[0], MSG_CANCELLED)->cancelled.request, 99);
    tell(&w.m[0], dispatch_msg(1, 1, 100));
    tell(&w.m[0], dispatch_msg(1, 1, 100)); // twice: once
    assert_int_equal(node_counters(w.m[0].core).duplicate, 1);
    run_ms(&w, 50);
    tell(&w.m[0], cancel_msg(1, 1)); // its step is under way
    assert_int_equal(count_of(&w.m[0], MSG_CANCELLED), 1);
    int tokens = count_of(&w.m[0], MSG_TOKENS);
    run_ms(&w, 500);
    assert_int_equal(count_of(&w.m[0], MSG_CANCELLED), 2);
    assert_int_equal(count_of(&w.m[0], MSG_TOKENS), tokens);
    assert_int_equal(node_sequences(w.m[0].core), 0);
    world_finish(&w);
}

static void steady_work_allocates_nothing(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 2, .tensor = 1});
    for (uint64_t id = 1; id <= 8; id++)
        tell(&w.m[0], dispatch_msg(1, id, 20));
    w.m[0].step_allocations = 0;
    run_ms(&w, 2000);
    for (uint64_t id = 1; id <= 8; id++)
        expect_answer(&w.m[0], id, 20);
    assert_int_equal(w.m[0].step_allocations, 0);
    world_finish(&w);
}

// ---- faults ----

static void a_dead_rank_is_named(void **state)
{
    struct world w;
    struct shape s = {.epoch = 1, .stages = 2, .tensor = 2};
    world_init(&w);
    form(&w, s);
    tell(&w.m[0], dispatch_msg(1, 1, 100));
    run_ms(&w, 50);
    crash(&w.m[3]);
    run_ms(&w, 500);
    for (int i = 0; i < 3; i++) {
        const struct msg_fault *f = &last_of(&w.m[i], MSG_FAULT)->fault;
        assert_int_equal(count_of(&w.m[i], MSG_FAULT), 1);
        assert_int_equal(f->status, STATUS_LINK_DOWN);
        assert_int_equal(f->stage, 1);
        assert_int_equal(f->tensor, 1);
        assert_int_equal(node_state(w.m[i].core), NODE_VOID);
        assert_int_equal(w.m[i].dissolved, 1);
    }
    tell(&w.m[0], dispatch_msg(1, 2, 5));
    assert_int_equal(node_counters(w.m[0].core).unexpected, 1);
    assert_int_equal(node_sequences(w.m[0].core), 0);
    form(&w, (struct shape){.epoch = 2, .stages = 1, .tensor = 1});
    world_finish(&w);
}

static void a_fault_between_steps(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 2, .tensor = 1});
    engine_mock_cut(w.m[0].engine, w.m[1].engine, true);
    run_ms(&w, 100);
    assert_int_equal(last_of(&w.m[0], MSG_FAULT)->fault.stage, 1);
    assert_int_equal(last_of(&w.m[1], MSG_FAULT)->fault.stage, 0);
    tell(&w.m[0], dissolve_msg(1));
    assert_int_equal(node_state(w.m[0].core), NODE_IDLE);
    assert_int_equal(w.m[0].dissolved, 1); // at the fault, not twice
    world_finish(&w);
}

static void nan_breaks_the_replica(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 1, .tensor = 1});
    engine_mock_fail_step(w.m[0].engine, 3, STATUS_NODE_NAN);
    tell(&w.m[0], dispatch_msg(1, 1, 100));
    run_ms(&w, 200);
    assert_int_equal(last_of(&w.m[0], MSG_FAULT)->fault.status, STATUS_NODE_NAN);
    assert_int_equal(count_of(&w.m[0], MSG_TOKENS), 2);
    assert_int_equal(node_state(w.m[0].core), NODE_VOID);
    world_finish(&w);
}

static void a_hung_rank_shows_in_heartbeats(void **state)
{
    struct world w;
    struct msg_heartbeat h[2];
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 2, .tensor = 1});
    tell(&w.m[0], dispatch_msg(1, 1, 100));
    run_ms(&w, 50);
    engine_mock_hang(w.m[1].engine, true);
    run_ms(&w, 3000);
    int tokens = count_of(&w.m[0], MSG_TOKENS);
    for (int i = 0; i < 2; i++) {
        struct rank_progress p = w.m[i].engine->ops->progress(w.m[i].engine, w.now_us);
        node_pulse_turn(node_pulse(w.m[i].core), w.now_us);
        node_heartbeat(node_pulse(w.m[i].core), &p, w.now_us + 7000, &h[i]);
    }
    assert_in_range(h[0].step_age_ms, 2900, 3100 + 7);
    assert_int_equal(h[0].loop_age_ms, 7);
    assert_int_equal(h[0].running, 1);
    assert_int_equal(h[0].epoch, 1);
    assert_true(h[0].kv_free < h[0].kv_blocks);
    assert_true(h[1].progress.age_ms > 2900);
    assert_true(h[1].progress.collective < h[0].progress.collective); // the others wait for it
    assert_int_equal(h[1].step_age_ms, 0);
    engine_mock_hang(w.m[1].engine, false);
    run_ms(&w, 100);
    assert_true(count_of(&w.m[0], MSG_TOKENS) > tokens);
    world_finish(&w);
}

static void a_lost_coordinator_stops_the_lead(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 2, .tensor = 1});
    tell(&w.m[0], dispatch_msg(1, 1, 100));
    run_ms(&w, 20);
    for (int i = 0; i < 2; i++) {
        forget_sent(&w.m[i]);
        step(&w.m[i], (struct node_event){.kind = NODE_EV_COORD_DOWN});
    }
    run_ms(&w, 1000);
    assert_int_equal(node_state(w.m[0].core), NODE_VOID);
    assert_int_equal(node_state(w.m[1].core), NODE_READY);
    assert_int_equal(node_replica(w.m[0].core), 1);
    assert_int_equal(w.m[0].sent_n + w.m[1].sent_n, 0);
    for (int i = 0; i < 2; i++)
        step(&w.m[i], (struct node_event){.kind = NODE_EV_COORD_UP});
    tell(&w.m[0], dispatch_msg(1, 2, 10)); // nothing of the old connection counts
    assert_int_equal(node_counters(w.m[0].core).unexpected, 2); // and the result of the last step
    form(&w, (struct shape){.epoch = 2, .stages = 2, .tensor = 1});
    tell(&w.m[0], dispatch_msg(2, 2, 10));
    run_ms(&w, 500);
    expect_answer(&w.m[0], 2, 10);
    world_finish(&w);
}

// Another rank keeps quiet too when its replica breaks meanwhile: there is nobody to tell.
static void a_fault_while_the_coordinator_is_lost(void **state)
{
    struct world w;
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 2, .tensor = 1});
    forget_sent(&w.m[1]);
    step(&w.m[1], (struct node_event){.kind = NODE_EV_COORD_DOWN});
    crash(&w.m[0]);
    run_ms(&w, 100);
    assert_int_equal(node_state(w.m[1].core), NODE_VOID);
    assert_int_equal(w.m[1].dissolved, 1);
    assert_int_equal(w.m[1].sent_n, 0);
    world_finish(&w);
}

static void coordinator_lost_while_forming(void **state)
{
    struct world w;
    struct shape s = {.epoch = 1, .stages = 1, .tensor = 1};
    world_init(&w);
    tell(&w.m[0], form_msg(s, 0));
    step(&w.m[0], (struct node_event){.kind = NODE_EV_COORD_DOWN});
    assert_int_equal(node_state(w.m[0].core), NODE_VOID);
    run_ms(&w, 1000);
    assert_int_equal(w.m[0].sent_n, 0);
    step(&w.m[0], (struct node_event){.kind = NODE_EV_COORD_UP});
    s.epoch = 2;
    form(&w, s);
    world_finish(&w);
}

// The journal moves to another replica of another layout, and the answer goes on.
static void failover_continues_exactly(void **state)
{
    struct world w;
    int32_t tokens[64];
    enum finish_reason finish = FINISH_NONE;
    world_init(&w);
    form(&w, (struct shape){.epoch = 1, .stages = 2, .tensor = 1});
    tell(&w.m[0], dispatch_msg(1, 1, 40));
    run_ms(&w, 60);
    crash(&w.m[1]);
    run_ms(&w, 100);
    uint32_t n = collect(&w.m[0], 1, tokens, 0, &finish);
    assert_in_range(n, 3, 39);
    form(&w, (struct shape){.epoch = 2, .stages = 1, .tensor = 2, .first = 2});
    struct msg m = dispatch_msg(2, 1, 40);
    m.dispatch.journal.emitted = tokens;
    m.dispatch.journal.emitted_n = n;
    tell(&w.m[2], m);
    run_ms(&w, 1000);
    assert_int_equal(collect(&w.m[2], 1, tokens, n, &finish), 40);
    assert_int_equal(finish, FINISH_LENGTH);
    world_finish(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_in_two_rounds),
        cmocka_unit_test(a_pool_smaller_than_the_context_is_told),
        cmocka_unit_test(bad_forms_are_answered),
        cmocka_unit_test(a_higher_epoch_replaces_a_lower_is_refused),
        cmocka_unit_test(a_form_during_forming_starts_over),
        cmocka_unit_test(dissolve_during_forming),
        cmocka_unit_test(links_that_do_not_fit),
        cmocka_unit_test(an_engine_that_never_forms_counts_as_hung),
        cmocka_unit_test(a_rank_that_dies_while_linking),
        cmocka_unit_test(a_rank_that_never_links),
        cmocka_unit_test(answers_a_dispatch),
        cmocka_unit_test(one_message_per_step),
        cmocka_unit_test(work_of_another_epoch_is_dropped),
        cmocka_unit_test(only_a_ready_lead_takes_work),
        cmocka_unit_test(refusals_say_so),
        cmocka_unit_test(cancel_is_always_answered),
        cmocka_unit_test(steady_work_allocates_nothing),
        cmocka_unit_test(a_dead_rank_is_named),
        cmocka_unit_test(a_fault_between_steps),
        cmocka_unit_test(nan_breaks_the_replica),
        cmocka_unit_test(a_hung_rank_shows_in_heartbeats),
        cmocka_unit_test(a_lost_coordinator_stops_the_lead),
        cmocka_unit_test(a_fault_while_the_coordinator_is_lost),
        cmocka_unit_test(coordinator_lost_while_forming),
        cmocka_unit_test(failover_continues_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
