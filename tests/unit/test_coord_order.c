// Who is served next, who gives way, who is refused: bands, tenants, deadlines, quotas, ageing and
// preemption, driven by hand on one replica with four places.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "coordinator/coord.h"

#define MS(x) ((uint64_t)(x)*1000)
enum { PLACES = 4, CONTEXT = 1000 };

struct rig {
    struct coord *c;
    struct coord_actions out;
    uint64_t now_us, next_id;
};

static void step(struct rig *g, struct coord_event *ev)
{
    ev->now_us = g->now_us;
    coord_step(g->c, ev, &g->out);
    coord_check(g->c);
}

static void from(struct rig *g, struct msg m)
{
    step(g, &(struct coord_event){.kind = COORD_NODE_MSG, .node = {1, &m}});
}

static void rig_init(struct rig *g, struct coord_config *k)
{
    struct errmsg err = {0};
    *g = (struct rig){.now_us = MS(1000), .next_id = 1};
    k->model_dir = "m";
    k->trace = LOG_OFF;
    g->c = coord_create(k, &err);
    if (!g->c)
        fail_msg("%s", err.text);
    struct msg m = {
        .kind = MSG_HELLO,
        .hello = {
            .version = MSG_VERSION, .name = "a", .incarnation = 1, .host = "h", .backend = "mock"}};
    step(g, &(struct coord_event){.kind = COORD_NODE_UP, .node = {1, &m}});
    from(g, (struct msg){.kind = MSG_PREPARED, .prepared = {1, 1, {"s", "t", ""}}});
    from(g, (struct msg){.kind = MSG_FORMED,
                         .formed = {.replica = 1,
                                    .epoch = 1,
                                    .text = "",
                                    .fingerprint = 7,
                                    .max_seqs = PLACES,
                                    .max_context = CONTEXT,
                                    .kv_blocks = 64,
                                    .block_tokens = 16}});
}

// Time passes, and the node is heard.
static void wait_ms(struct rig *g, uint64_t ms)
{
    for (uint64_t t = 0; t < ms; t += 100) {
        g->now_us += MS(100);
        from(g, (struct msg){.kind = MSG_HEARTBEAT, .heartbeat = {.replica = 1, .epoch = 1}});
    }
}

static const struct coord_action *action(const struct rig *g, enum coord_action_kind kind)
{
    for (size_t i = 0; i < g->out.n; i++)
        if (g->out.v[i].kind == kind)
            return &g->out.v[i];
    return NULL;
}

static const struct msg *sent(const struct rig *g, enum msg_kind kind)
{
    for (size_t i = 0; i < g->out.n; i++)
        if (g->out.v[i].kind == COORD_SEND && g->out.v[i].send.msg->kind == kind)
            return g->out.v[i].send.msg;
    return NULL;
}

static uint64_t submit(struct rig *g, struct coord_submit s)
{
    static const int32_t prompt[CONTEXT] = {1, 2, 3};
    s.request = g->next_id++;
    s.prompt = prompt;
    s.prompt_n = s.prompt_n ? s.prompt_n : 10;
    s.max_tokens = s.max_tokens ? s.max_tokens : 100;
    step(g, &(struct coord_event){.kind = COORD_SUBMIT, .submit = s});
    return s.request;
}

static void token(struct rig *g, uint64_t id, uint32_t index, enum finish_reason finish)
{
    struct token_out t = {.request = id, .index = index, .token = 5, .finish = (uint8_t)finish};
    from(g, (struct msg){.kind = MSG_TOKENS,
                         .tokens = {.replica = 1, .epoch = 1, .tokens = &t, .tokens_n = 1}});
}

static struct coord_request_view view(const struct rig *g, uint64_t id)
{
    struct coord_request_view v;
    assert_true(coord_request_find(g->c, id, &v));
    return v;
}

// Ends one that runs; the request that takes its place.
static uint64_t next_after(struct rig *g, uint64_t running)
{
    token(g, running, view(g, running).tokens_n, FINISH_STOP);
    const struct msg *m = sent(g, MSG_DISPATCH);
    return m ? m->dispatch.journal.request : 0;
}

static void fill(struct rig *g, uint8_t band)
{
    for (int i = 0; i < PLACES; i++) {
        submit(g, (struct coord_submit){.band = band});
        assert_non_null(sent(g, MSG_DISPATCH));
    }
}

static struct coord_config config(void)
{
    struct coord_config k;
    coord_config_default(&k);
    k.preempt_limit = 0;
    return k;
}

static void test_earliest_deadline_first(void **state)
{
    struct rig g;
    struct coord_config k = config();
    rig_init(&g, &k);
    fill(&g, 5);
    uint64_t late =
        submit(&g, (struct coord_submit){.band = 5, .deadline_us = g.now_us + MS(9000)});
    uint64_t none = submit(&g, (struct coord_submit){.band = 5});
    uint64_t soon =
        submit(&g, (struct coord_submit){.band = 5, .deadline_us = g.now_us + MS(5000)});
    uint64_t high = submit(&g, (struct coord_submit){.band = 6});
    assert_int_equal(next_after(&g, 1), high);
    assert_int_equal(next_after(&g, 2), soon);
    assert_int_equal(next_after(&g, 3), late);
    assert_int_equal(next_after(&g, 4), none);
    coord_destroy(g.c);
}

static void test_band_deadline(void **state)
{
    struct rig g;
    struct coord_config k = config();
    k.band_deadline_ms[7] = 400;
    rig_init(&g, &k);
    fill(&g, 9);
    submit(&g, (struct coord_submit){.band = 7});
    wait_ms(&g, 300);
    assert_null(action(&g, COORD_REFUSED));
    wait_ms(&g, 100);
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_DEADLINE);
    coord_destroy(g.c);
}

// Places over time follow the weights, however many requests each tenant has waiting.
static void test_weights_share(void **state)
{
    struct rig g;
    struct coord_config k = config();
    const struct coord_tenant tenants[] = {{.name = "big", .weight = 3, .max_band = 9},
                                           {.name = "small", .weight = 1, .max_band = 9}};
    k.tenants = tenants;
    k.tenants_n = 2;
    rig_init(&g, &k);
    fill(&g, 5);
    for (int i = 0; i < 300; i++)
        submit(&g, (struct coord_submit){.band = 5, .tenant = i < 200 ? "small" : "big"});
    uint64_t running[PLACES] = {1, 2, 3, 4};
    int big = 0;
    for (int i = 0; i < 100; i++) {
        uint64_t id = next_after(&g, running[i % PLACES]);
        assert_true(id);
        big += !strcmp(view(&g, id).tenant, "big");
        running[i % PLACES] = id;
    }
    assert_in_range(big, 72, 78);
    coord_destroy(g.c);
}

// Who was away is not owed the time of its absence.
static void test_idle_tenants_save_nothing(void **state)
{
    struct rig g;
    struct coord_config k = config();
    rig_init(&g, &k);
    fill(&g, 5);
    uint64_t running[PLACES] = {1, 2, 3, 4};
    for (int i = 0; i < 60; i++)
        submit(&g, (struct coord_submit){.band = 5, .tenant = "a"});
    for (int i = 0; i < 20; i++)
        running[i % PLACES] = next_after(&g, running[i % PLACES]);
    for (int i = 0; i < 60; i++)
        submit(&g, (struct coord_submit){.band = 5, .tenant = "b"});
    int b = 0;
    for (int i = 0; i < 20; i++) {
        uint64_t id = next_after(&g, running[i % PLACES]);
        b += !strcmp(view(&g, id).tenant, "b");
        running[i % PLACES] = id;
    }
    assert_in_range(b, 9, 12);
    coord_destroy(g.c);
}

static void test_quota(void **state)
{
    struct rig g;
    struct coord_config k = config();
    const struct coord_tenant t = {
        .name = "q", .tokens_per_s = 100, .burst_tokens = 50, .max_band = 2};
    k.tenants = &t;
    k.tenants_n = 1;
    rig_init(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.tenant = "q", .band = 8, .prompt_n = 200});
    assert_int_equal(view(&g, id).band, 2); // lowered
    submit(&g, (struct coord_submit){.tenant = "q"});
    const struct coord_action *a = action(&g, COORD_REFUSED);
    assert_int_equal(a->refused.reason, COORD_REFUSE_QUOTA);
    assert_in_range(a->refused.retry_after_ms, 1500, 1520); // 150 tokens of debt
    submit(&g, (struct coord_submit){.tenant = "other"});
    assert_null(action(&g, COORD_REFUSED));
    wait_ms(&g, 1600);
    submit(&g, (struct coord_submit){.tenant = "q"});
    assert_null(action(&g, COORD_REFUSED));
    coord_destroy(g.c);
}

static void test_full_queue_sheds_the_lowest(void **state)
{
    struct rig g;
    struct coord_config k = config();
    k.queue_limit = 2;
    rig_init(&g, &k);
    fill(&g, 9);
    submit(&g, (struct coord_submit){.band = 3});
    uint64_t low = submit(&g, (struct coord_submit){.band = 2});
    submit(&g, (struct coord_submit){.band = 2}); // no lower one: refused itself
    assert_int_equal(action(&g, COORD_REFUSED)->refused.request, g.next_id - 1);
    submit(&g, (struct coord_submit){.band = 4});
    assert_int_equal(action(&g, COORD_REFUSED)->refused.request, low);
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_QUEUE_FULL);
    assert_true(action(&g, COORD_REFUSED)->refused.retry_after_ms > 0);
    coord_destroy(g.c);
}

static void test_ageing_stops_below_the_top(void **state)
{
    struct rig g;
    struct coord_config k = config();
    k.ageing_ms = 1000;
    k.ageing_band = 8;
    rig_init(&g, &k);
    fill(&g, 9);
    uint64_t old = submit(&g, (struct coord_submit){.band = 0});
    wait_ms(&g, 4600);
    assert_int_equal(view(&g, old).lane_band, 4);
    submit(&g, (struct coord_submit){.band = 3});
    wait_ms(&g, 20000);
    assert_int_equal(view(&g, old).lane_band, 8);
    uint64_t top = submit(&g, (struct coord_submit){.band = 9});
    assert_int_equal(next_after(&g, 1), top);
    assert_int_equal(next_after(&g, 2), old);
    coord_destroy(g.c);
}

static void test_preemption(void **state)
{
    struct rig g;
    struct coord_config k = config();
    k.preempt_limit = 1;
    rig_init(&g, &k);
    fill(&g, 5);
    uint64_t low = 4; // dispatched last: gives way first
    token(&g, low, 0, FINISH_NONE);
    uint64_t top = submit(&g, (struct coord_submit){.band = 6});
    assert_int_equal(sent(&g, MSG_CANCEL)->cancel.request, low);
    assert_int_equal(sent(&g, MSG_DISPATCH)->dispatch.journal.request, top);
    token(&g, low, 1, FINISH_NONE); // its step was under way: the token counts
    from(&g, (struct msg){.kind = MSG_CANCELLED, .cancelled = {1, 1, low}});
    assert_int_equal(view(&g, low).state, COORD_REQ_QUEUED);
    uint64_t same = submit(&g, (struct coord_submit){.band = 5});
    assert_int_equal(view(&g, same).state, COORD_REQ_QUEUED); // an equal band takes nothing
    assert_int_equal(next_after(&g, top), low);               // first of its band
    const struct journal *j = &sent(&g, MSG_DISPATCH)->dispatch.journal;
    assert_int_equal(j->emitted_n, 2);
    for (int i = 0; i < 4; i++)
        submit(&g, (struct coord_submit){.band = 7});
    assert_int_equal(view(&g, low).state, COORD_REQ_RUNNING); // not more than preempt_limit times
    struct coord_stats s;
    coord_stats(g.c, &s);
    assert_int_equal(s.preemptions, 4);
    coord_destroy(g.c);
}

// What was admitted because it can start in time is not stopped before it has.
static void test_no_preemption_before_a_promised_token(void **state)
{
    struct rig g;
    struct coord_config k = config();
    k.preempt_limit = 3;
    rig_init(&g, &k);
    for (int i = 0; i < PLACES; i++)
        submit(&g, (struct coord_submit){.band = 5, .deadline_us = g.now_us + MS(500)});
    uint64_t top = submit(&g, (struct coord_submit){.band = 6});
    assert_int_equal(view(&g, top).state, COORD_REQ_QUEUED);
    token(&g, 2, 0, FINISH_NONE);
    assert_int_equal(sent(&g, MSG_CANCEL)->cancel.request, 2);
    assert_int_equal(view(&g, top).state, COORD_REQ_RUNNING);
    coord_destroy(g.c);
}

static void test_breakers(void **state)
{
    struct rig g;
    struct coord_config k = config();
    const struct coord_breaker rules[] = {
        {.metric = BREAKER_QUEUE_LENGTH, .threshold = 2, .for_ms = 1000, .value = 5},
        {.metric = BREAKER_CREDITS_USED, .threshold = 50, .action = BREAKER_CAP_TOKENS, .value = 7},
        {.metric = BREAKER_REPLICAS_READY,
         .below = true,
         .threshold = 1,
         .action = BREAKER_STOP_ADMISSION},
    };
    k.breakers = rules;
    k.breakers_n = 3;
    rig_init(&g, &k);
    wait_ms(&g, 300);
    fill(&g, 9);
    wait_ms(&g, 300);
    uint64_t capped = submit(&g, (struct coord_submit){.band = 1});
    assert_int_equal(view(&g, capped).max_tokens, 7);
    submit(&g, (struct coord_submit){.band = 1});
    submit(&g, (struct coord_submit){.band = 1}); // three wait
    assert_null(action(&g, COORD_REFUSED));
    wait_ms(&g, 700);
    submit(&g, (struct coord_submit){.band = 1}); // not for so long yet
    assert_null(action(&g, COORD_REFUSED));
    wait_ms(&g, 800);
    submit(&g, (struct coord_submit){.band = 4});
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_BREAKER);
    assert_true(action(&g, COORD_REFUSED)->refused.retry_after_ms >= 1000);
    submit(&g, (struct coord_submit){.band = 5});
    assert_null(action(&g, COORD_REFUSED));
    for (uint64_t id = 1; id <= 4; id++)
        next_after(&g, id);
    wait_ms(&g, 2000); // one waits
    submit(&g, (struct coord_submit){.band = 1});
    assert_null(action(&g, COORD_REFUSED));
    step(&g, &(struct coord_event){.kind = COORD_NODE_DOWN, .node = {1, NULL}});
    g.now_us += MS(300);
    step(&g, &(struct coord_event){.kind = COORD_TIMER});
    submit(&g, (struct coord_submit){.band = 9}); // no replica, no admission
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_BREAKER);
    coord_destroy(g.c);
}

static void test_tenants_are_bounded(void **state)
{
    struct rig g;
    struct coord_config k = config();
    k.tenants_limit = 2;
    rig_init(&g, &k);
    uint64_t a = submit(&g, (struct coord_submit){.tenant = "a"});
    submit(&g, (struct coord_submit){.tenant = "b"});
    uint64_t c = submit(&g, (struct coord_submit){.tenant = "c"});
    assert_string_equal(view(&g, c).tenant, "default");
    next_after(&g, a);
    uint64_t d = submit(&g, (struct coord_submit){.tenant = "d"});
    assert_string_equal(view(&g, d).tenant, "d"); // a has nothing left and is forgotten
    coord_destroy(g.c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_earliest_deadline_first),
        cmocka_unit_test(test_band_deadline),
        cmocka_unit_test(test_weights_share),
        cmocka_unit_test(test_idle_tenants_save_nothing),
        cmocka_unit_test(test_quota),
        cmocka_unit_test(test_full_queue_sheds_the_lowest),
        cmocka_unit_test(test_ageing_stops_below_the_top),
        cmocka_unit_test(test_preemption),
        cmocka_unit_test(test_no_preemption_before_a_promised_token),
        cmocka_unit_test(test_breakers),
        cmocka_unit_test(test_tenants_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
