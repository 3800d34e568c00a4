// Pools: which one a request is for, that one does not wait for another, and what configurations
// are refused. Nodes are played by hand, one per replica.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "coordinator/coord.h"

#define MS(x) ((uint64_t)(x)*1000)
enum { CONTEXT = 1000, PLACES = 2 };

struct rig {
    struct coord *c;
    struct coord_actions out;
    uint64_t now_us, next_id;
    uint64_t epochs[8]; // of replicas, by their node's connection
};

static void step(struct rig *g, struct coord_event *ev)
{
    ev->now_us = g->now_us;
    coord_step(g->c, ev, &g->out);
    coord_check(g->c);
}

static void from(struct rig *g, uint64_t conn, struct msg m)
{
    step(g, &(struct coord_event){.kind = COORD_NODE_MSG, .node = {conn, &m}});
}

static const struct msg *sent(const struct rig *g, enum msg_kind kind)
{
    for (size_t i = 0; i < g->out.n; i++)
        if (g->out.v[i].kind == COORD_SEND && g->out.v[i].send.msg->kind == kind)
            return g->out.v[i].send.msg;
    return NULL;
}

static void rig_init(struct rig *g, const struct coord_pool *pools, uint32_t n)
{
    struct coord_config k;
    struct errmsg err = {0};
    *g = (struct rig){.now_us = MS(1000), .next_id = 1};
    coord_config_default(&k);
    k.trace = LOG_OFF;
    k.pools = pools;
    k.pools_n = n;
    g->c = coord_create(&k, &err);
    if (!g->c)
        fail_msg("%s", err.text);
}

// A node joins, becomes a replica, and serves with this context. Returns the replica.
static uint64_t join(struct rig *g, uint64_t conn, uint32_t context)
{
    char name[8];
    snprintf(name, sizeof name, "n%u", (unsigned)conn);
    struct msg m = {.kind = MSG_HELLO,
                    .hello = {.version = MSG_VERSION,
                              .name = name,
                              .incarnation = 1,
                              .host = "h",
                              .backend = "mock"}};
    step(g, &(struct coord_event){.kind = COORD_NODE_UP, .node = {conn, &m}});
    const struct msg *f = sent(g, MSG_FORM);
    assert_non_null(f);
    uint64_t id = f->form.replica, epoch = f->form.epoch;
    g->epochs[conn] = epoch;
    uint64_t fingerprint = strcmp(f->form.model_dir, "small") ? 7 : 8;
    from(g, conn, (struct msg){.kind = MSG_PREPARED, .prepared = {id, epoch, {"s", "t", ""}}});
    from(g, conn,
         (struct msg){.kind = MSG_FORMED,
                      .formed = {.replica = id,
                                 .epoch = epoch,
                                 .text = "",
                                 .fingerprint = fingerprint,
                                 .max_seqs = PLACES,
                                 .max_context = context,
                                 .kv_blocks = 64,
                                 .block_tokens = 16}});
    return id;
}

static const struct coord_action *refused(const struct rig *g)
{
    for (size_t i = 0; i < g->out.n; i++)
        if (g->out.v[i].kind == COORD_REFUSED)
            return &g->out.v[i];
    return NULL;
}

// Returns the pool's name; NULL: refused.
static const char *submit(struct rig *g, struct coord_submit s)
{
    static const int32_t prompt[CONTEXT] = {1, 2, 3};
    struct coord_request_view v;
    s.request = g->next_id++;
    s.prompt = prompt;
    s.prompt_n = s.prompt_n ? s.prompt_n : 10;
    s.max_tokens = s.max_tokens ? s.max_tokens : 100;
    s.sampling.top_p = 1;
    step(g, &(struct coord_event){.kind = COORD_SUBMIT, .submit = s});
    return coord_request_find(g->c, s.request, &v) ? v.pool : NULL;
}

static struct coord_pool pool(const char *name, const char *model)
{
    return (struct coord_pool){.name = name,
                               .model = model,
                               .model_dir = model,
                               .replicas = 1,
                               .stages = 1,
                               .tensor = 1,
                               .weight = 1};
}

static void test_models(void **state)
{
    struct rig g;
    const struct coord_pool pools[] = {pool("r1", "big"), pool("distilled", "small")};
    rig_init(&g, pools, 2);
    assert_int_equal(join(&g, 1, CONTEXT), 1);
    assert_int_equal(join(&g, 2, CONTEXT), 2);
    assert_string_equal(submit(&g, (struct coord_submit){0}), "r1"); // the first is the default
    assert_string_equal(submit(&g, (struct coord_submit){.model = "small"}), "distilled");
    assert_int_equal(sent(&g, MSG_DISPATCH)->dispatch.replica, 2);
    assert_null(submit(&g, (struct coord_submit){.model = "other"}));
    assert_int_equal(refused(&g)->refused.reason, COORD_REFUSE_BAD_REQUEST);
    assert_non_null(strstr(refused(&g)->refused.text, "'other'"));
    // The big one is full; what it makes wait does not hold up the small one.
    submit(&g, (struct coord_submit){0});
    submit(&g, (struct coord_submit){.tenant = "gold"});
    assert_null(sent(&g, MSG_DISPATCH));
    assert_string_equal(submit(&g, (struct coord_submit){.model = "small", .tenant = "gold"}),
                        "distilled");
    assert_non_null(sent(&g, MSG_DISPATCH));
    coord_destroy(g.c);
}

static void test_context_and_class(void **state)
{
    struct rig g;
    struct coord_pool pools[] = {pool("short", "big"), pool("long", "big")};
    pools[0].prompt_max = 64;
    rig_init(&g, pools, 2);
    join(&g, 1, 200);
    join(&g, 2, CONTEXT);
    assert_string_equal(submit(&g, (struct coord_submit){.prompt_n = 64}), "short");
    assert_string_equal(submit(&g, (struct coord_submit){.prompt_n = 65}), "long");
    // A short prompt whose answer needs the larger context.
    assert_string_equal(submit(&g, (struct coord_submit){.prompt_n = 20, .max_tokens = 500}),
                        "long");
    assert_null(submit(&g, (struct coord_submit){.prompt_n = 20, .max_tokens = 2000}));
    assert_non_null(strstr(refused(&g)->refused.text, "1000"));
    coord_destroy(g.c);
}

static void test_weights(void **state)
{
    enum { SESSIONS = 4000 };
    struct rig g;
    struct coord_pool pools[] = {pool("old", "big"), pool("canary", "big"), pool("off", "big")};
    static uint8_t first[SESSIONS];
    uint32_t canary[2] = {0}, moved = 0;
    for (int round = 0; round < 2; round++) {
        pools[0].weight = 19 - 9 * round; // 5%, then about 9% of all
        pools[2].weight = 0;
        rig_init(&g, pools, 3);
        for (uint64_t i = 1; i <= SESSIONS; i++) {
            const char *p = submit(&g, (struct coord_submit){.session = i, .tenant = "t"});
            if (!p) // the queue is full: only the choice counts here
                fail_msg("session %u: %s", (unsigned)i, refused(&g)->refused.text);
            assert_string_not_equal(p, "off");
            bool is = !strcmp(p, "canary");
            canary[round] += is;
            if (!round)
                first[i - 1] = is;
            else
                moved += first[i - 1] && !is;
            step(&g, &(struct coord_event){.kind = COORD_CANCEL, .req = {g.next_id - 1, 0}});
        }
        coord_destroy(g.c);
    }
    assert_in_range(canary[0], SESSIONS * 4 / 100, SESSIONS * 6 / 100);
    assert_in_range(canary[1], SESSIONS * 7 / 100, SESSIONS * 11 / 100);
    assert_int_equal(moved, 0); // nobody went back
}

// Restored requests go on in their pool, even one that takes nothing new.
static void test_restore(void **state)
{
    struct rig g;
    struct coord_request_view v;
    struct coord_pool pools[] = {pool("new", "big"), pool("old", "big")};
    static const int32_t tokens[] = {4, 5, 6};
    pools[1].weight = 0;
    rig_init(&g, pools, 2);
    struct coord_restore r = {.submit = {.request = 9,
                                         .prompt = tokens,
                                         .prompt_n = 3,
                                         .max_tokens = 10,
                                         .model = "big",
                                         .pool = "old",
                                         .sampling = {.top_p = 1}},
                              .emitted = tokens,
                              .emitted_n = 2,
                              .fingerprint = 7};
    step(&g, &(struct coord_event){.kind = COORD_RESTORE, .restore = r});
    assert_true(coord_request_find(g.c, 9, &v));
    assert_string_equal(v.pool, "old");
    coord_destroy(g.c);
}

// A session stays where it began when another pool would be its place now.
static void test_sessions_stay(void **state)
{
    struct rig g;
    struct coord_pool pools[] = {pool("small", "big"), pool("wide", "big")};
    pools[0].prompt_max = 64;
    rig_init(&g, pools, 2);
    join(&g, 1, CONTEXT);
    join(&g, 2, CONTEXT);
    struct coord_submit s = {.prompt_n = 100, .session = 5};
    assert_string_equal(submit(&g, s), "wide");
    s.prompt_n = 10; // of its own it would go to the narrower one
    assert_string_equal(submit(&g, s), "wide");
    s.session = 6;
    assert_string_equal(submit(&g, s), "small");
    s.prompt_n = 100; // it has outgrown its pool
    assert_string_equal(submit(&g, s), "wide");
    coord_destroy(g.c);
}

static void test_fallback(void **state)
{
    struct rig g;
    struct coord_pool pools[] = {pool("full", "big"), pool("mid", "middle"), pool("low", "small")};
    pools[0].fallback = "middle";
    pools[1].fallback = "small";
    rig_init(&g, pools, 3);
    assert_null(coord_fallback(g.c, "big", 5, 10, 0)); // nobody serves yet: it waits for its own
    join(&g, 1, CONTEXT);
    join(&g, 2, CONTEXT);
    join(&g, 3, CONTEXT);
    assert_null(coord_fallback(g.c, "big", 5, 10, 0));
    assert_null(coord_fallback(g.c, "small", 5, 10, 0));
    step(&g, &(struct coord_event){.kind = COORD_NODE_DOWN, .node = {1, NULL}});
    assert_string_equal(coord_fallback(g.c, "big", 5, 10, 0), "middle");
    step(&g, &(struct coord_event){.kind = COORD_NODE_DOWN, .node = {2, NULL}});
    assert_string_equal(coord_fallback(g.c, "big", 5, 10, 0), "small");
    assert_null(coord_fallback(g.c, "big", 5, CONTEXT, 0)); // that has no room for it either
    assert_null(coord_fallback(g.c, "small", 5, 10, 0));
    assert_null(coord_fallback(g.c, "other", 5, 10, 0));
    coord_destroy(g.c);
}

static void test_refused_configurations(void **state)
{
    struct coord_pool good[2] = {pool("a", "m"), pool("b", "m")};
    for (int i = 0; i < 8; i++) {
        struct coord_pool p[2] = {good[0], good[1]};
        struct coord_config k;
        struct errmsg err = {0};
        static const char *const says[] = {"name", "name",     "model",   "stages",
                                           "long", "replicas", "prefill", "model_dir"};
        p[1].name = i == 0 ? "a" : i == 1 ? "with space" : "b";
        p[1].model = i == 2 ? "" : "m";
        p[1].stages = i == 3 ? 0 : 1;
        p[1].probe_prompt_n = i == 4 ? 100000 : 0;
        p[1].replicas = i == 5 ? COORD_MAX_REPLICAS : 1;
        p[1].prefill_replicas = i == 6 ? 2 : 0;
        p[1].model_dir = i == 7 ? NULL : "m";
        coord_config_default(&k);
        k.pools = p;
        k.pools_n = 2;
        assert_null(coord_create(&k, &err));
        if (!strstr(err.text, says[i]))
            fail_msg("case %d: '%s' does not name %s", i, err.text, says[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_context_and_class),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_restore),
        cmocka_unit_test(test_sessions_stay),
        cmocka_unit_test(test_fallback),
        cmocka_unit_test(test_refused_configurations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
