// The coordinator's core, driven by hand: what it admits, refuses, drops and fences. Long stories
// with many nodes are told by tests/sim; here are the edges.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "coordinator/coord.h"

#define MS(x) ((uint64_t)(x)*1000)

struct rig {
    struct coord *c;
    struct coord_actions out; // of the last step
    uint64_t now_us;
    uint64_t next_id;
};

static struct coord_config small_config(void)
{
    struct coord_config k;
    coord_config_default(&k);
    k.model_dir = "m";
    k.trace = LOG_OFF;
    return k;
}

static void rig_init(struct rig *g, const struct coord_config *k)
{
    struct errmsg err = {0};
    *g = (struct rig){.now_us = MS(1000), .next_id = 1};
    g->c = coord_create(k, &err);
    if (!g->c)
        fail_msg("%s", err.text);
}

static void step(struct rig *g, struct coord_event *ev)
{
    ev->now_us = g->now_us;
    coord_step(g->c, ev, &g->out);
    coord_check(g->c);
}

static void tick(struct rig *g, uint64_t ms)
{
    g->now_us += MS(ms);
    step(g, &(struct coord_event){.kind = COORD_TIMER});
}

static const struct coord_action *action(const struct rig *g, enum coord_action_kind kind)
{
    for (size_t i = 0; i < g->out.n; i++)
        if (g->out.v[i].kind == kind)
            return &g->out.v[i];
    return NULL;
}

// The n-th message of a kind that was sent in the last step.
static const struct coord_action *sent_nth(const struct rig *g, enum msg_kind kind, int n)
{
    for (size_t i = 0; i < g->out.n; i++)
        if (g->out.v[i].kind == COORD_SEND && g->out.v[i].send.msg->kind == kind && n-- == 0)
            return &g->out.v[i];
    return NULL;
}

static const struct msg *sent(const struct rig *g, enum msg_kind kind)
{
    const struct coord_action *a = sent_nth(g, kind, 0);
    return a ? a->send.msg : NULL;
}

static void hello(struct rig *g, uint64_t conn, const char *name, uint64_t incarnation)
{
    struct msg m = {.kind = MSG_HELLO,
                    .hello = {.version = MSG_VERSION,
                              .name = name,
                              .incarnation = incarnation,
                              .host = "h",
                              .backend = "mock"}};
    step(g, &(struct coord_event){.kind = COORD_NODE_UP, .node = {conn, &m}});
}

static void from(struct rig *g, uint64_t conn, struct msg m)
{
    step(g, &(struct coord_event){.kind = COORD_NODE_MSG, .node = {conn, &m}});
}

static void down(struct rig *g, uint64_t conn)
{
    step(g, &(struct coord_event){.kind = COORD_NODE_DOWN, .node = {conn, NULL}});
}

static void beat(struct rig *g, uint64_t conn, struct msg_heartbeat h)
{
    from(g, conn, (struct msg){.kind = MSG_HEARTBEAT, .heartbeat = h});
}

static void prepared(struct rig *g, uint64_t conn, uint64_t replica, uint64_t epoch)
{
    from(g, conn,
         (struct msg){.kind = MSG_PREPARED,
                      .prepared = {replica, epoch, {.shm = "s", .tcp = "t", .verbs = ""}}});
}

static void formed(struct rig *g, uint64_t conn, struct msg_formed f)
{
    f.text = f.text ? f.text : "";
    from(g, conn, (struct msg){.kind = MSG_FORMED, .formed = f});
}

enum { SEQS = 4, CONTEXT = 100 };

static struct msg_formed fine(uint64_t replica, uint64_t epoch)
{
    return (struct msg_formed){.replica = replica,
                               .epoch = epoch,
                               .fingerprint = 7,
                               .max_seqs = SEQS,
                               .max_context = CONTEXT,
                               .kv_blocks = 64,
                               .block_tokens = 16};
}

// A replica of one rank, ready on this connection.
static void ready(struct rig *g, uint64_t conn, uint64_t replica, uint64_t epoch)
{
    prepared(g, conn, replica, epoch);
    assert_non_null(sent(g, MSG_LINK));
    formed(g, conn, fine(replica, epoch));
}

static const int32_t prompt[CONTEXT + 8] = {1, 2, 3};

static uint64_t submit(struct rig *g, struct coord_submit s)
{
    s.request = s.request ? s.request : g->next_id++;
    s.prompt = s.prompt ? s.prompt : prompt;
    s.prompt_n = s.prompt_n ? s.prompt_n : 3;
    step(g, &(struct coord_event){.kind = COORD_SUBMIT, .submit = s});
    return s.request;
}

static void req(struct rig *g, enum coord_event_kind kind, uint64_t id, uint32_t kept)
{
    step(g, &(struct coord_event){.kind = kind, .req = {id, kept}});
}

static void token(struct rig *g, uint64_t conn, uint64_t replica, uint64_t epoch,
                  struct token_out t)
{
    from(g, conn,
         (struct msg){.kind = MSG_TOKENS,
                      .tokens = {.replica = replica, .epoch = epoch, .tokens = &t, .tokens_n = 1}});
}

static void admin(struct rig *g, enum coord_admin_op op, const char *target, uint64_t replica)
{
    step(g, &(struct coord_event){
                .kind = COORD_ADMIN,
                .admin = {.op = op, .target = target, .replica = replica, .tag = 77}});
}

static struct coord_request_view view(const struct rig *g, uint64_t id)
{
    struct coord_request_view v;
    assert_true(coord_request_find(g->c, id, &v));
    return v;
}

struct node_state {
    const char *name;
    enum coord_node_state state;
    const char *fault; // borrowed until the next step
    bool found;
};

static bool match_node(void *arg, const struct coord_node_view *v)
{
    struct node_state *s = arg;
    if (strcmp(v->name, s->name) != 0)
        return true;
    s->state = v->state;
    s->fault = v->fault;
    s->found = true;
    return false;
}

static enum coord_node_state node_is(const struct rig *g, const char *name)
{
    struct node_state s = {.name = name};
    coord_each_node(g->c, match_node, &s);
    assert_true(s.found);
    return s.state;
}

static const char *fault_of(const struct rig *g, const char *name)
{
    struct node_state s = {.name = name};
    coord_each_node(g->c, match_node, &s);
    assert_true(s.found);
    return s.fault;
}

static struct coord_stats stats(const struct rig *g)
{
    struct coord_stats s;
    coord_stats(g->c, &s);
    return s;
}

// One replica of one rank, ready at epoch 1 on connection 1.
static void rig_ready(struct rig *g, const struct coord_config *k)
{
    rig_init(g, k);
    hello(g, 1, "a", 1);
    ready(g, 1, 1, 1);
    assert_int_equal(stats(g).replicas_ready, 1);
}

// ---- configuration and members ----

static void test_config_refused(void **state)
{
    struct coord_config bad[10];
    for (size_t i = 0; i < 10; i++)
        bad[i] = small_config();
    bad[0].model_dir = NULL;
    bad[1].replicas = 0;
    bad[2].replicas = COORD_MAX_REPLICAS + 1;
    bad[3].stages = 0;
    bad[4].tensor = LIMIT_TENSOR + 1;
    bad[5].stages = bad[5].tensor = 40; // 1600 ranks
    bad[6].heartbeat_ms = 600;          // timeout 1000
    bad[7].hang_ms = 0;
    bad[8].max_context = LIMIT_CONTEXT + 1;
    bad[9].warmup_silence_ms = 10;
    for (size_t i = 0; i < 10; i++) {
        struct errmsg err = {0};
        assert_null(coord_create(&bad[i], &err));
        assert_non_null(strstr(err.text, "coordinator: "));
    }
    coord_destroy(NULL);
}

static void test_hello_table(void **state)
{
    static const char long_name[] =
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"; // 64
    static const struct {
        const char *what;
        struct msg m;
        enum status status; // OK: welcome
    } cases[] = {
        {"good", {.kind = MSG_HELLO, .hello = {.version = 1, .name = "x-1._Y"}}, STATUS_OK},
        {"version", {.kind = MSG_HELLO, .hello = {.version = 2, .name = "x"}}, STATUS_LINK_VERSION},
        {"no name", {.kind = MSG_HELLO, .hello = {.version = 1}}, STATUS_LINK_PROTOCOL},
        {"empty", {.kind = MSG_HELLO, .hello = {.version = 1, .name = ""}}, STATUS_LINK_PROTOCOL},
        {"blank",
         {.kind = MSG_HELLO, .hello = {.version = 1, .name = "a b"}},
         STATUS_LINK_PROTOCOL},
        {"utf8",
         {.kind = MSG_HELLO, .hello = {.version = 1, .name = "\xc3\xa4"}},
         STATUS_LINK_PROTOCOL},
        {"long",
         {.kind = MSG_HELLO, .hello = {.version = 1, .name = long_name}},
         STATUS_LINK_PROTOCOL},
        {"no hello", {.kind = MSG_HEARTBEAT}, STATUS_LINK_PROTOCOL},
        {"pulse of a stranger",
         {.kind = MSG_HELLO, .hello = {.version = 1, .name = "q", .heartbeat_channel = true}},
         STATUS_NOT_FOUND},
    };
    struct coord_config k = small_config();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rig g;
        rig_init(&g, &k);
        step(&g, &(struct coord_event){.kind = COORD_NODE_UP, .node = {5, &cases[i].m}});
        const struct coord_action *closed = action(&g, COORD_CLOSE_CONN);
        if (cases[i].status == STATUS_OK ? !sent(&g, MSG_WELCOME)
                                         : !closed || closed->close.status != cases[i].status)
            fail_msg("%s", cases[i].what);
        coord_destroy(g.c);
    }
}

static void test_same_name(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    hello(&g, 2, "a", 0); // an older process
    assert_int_equal(action(&g, COORD_CLOSE_CONN)->close.conn, 2);
    assert_int_equal(stats(&g).replicas_ready, 1);
    hello(&g, 3, "a", 2); // a newer one
    assert_int_equal(action(&g, COORD_CLOSE_CONN)->close.conn, 1);
    assert_int_equal(sent(&g, MSG_FORM)->form.epoch, 2);
    beat(&g, 1, (struct msg_heartbeat){0}); // the old connection means nothing any more
    assert_int_equal(stats(&g).stale_dropped, 1);
    hello(&g, 4, "a", 2); // the same process connects anew
    assert_int_equal(action(&g, COORD_CLOSE_CONN)->close.conn, 3);
    hello(&g, 4, "b", 1); // a second HELLO on one connection
    assert_int_equal(action(&g, COORD_CLOSE_CONN)->close.status, STATUS_LINK_PROTOCOL);
    assert_int_equal(node_is(&g, "a"), COORD_NODE_LOST);
    coord_destroy(g.c);
}

static void test_members_are_bounded(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_init(&g, &k);
    char name[16];
    for (uint64_t i = 1; i <= LIMIT_NODES; i++) {
        snprintf(name, sizeof name, "n%llu", (unsigned long long)i);
        struct msg m = {.kind = MSG_HELLO, .hello = {.version = 1, .name = name}};
        coord_step(
            g.c, &(struct coord_event){.kind = COORD_NODE_UP, .now_us = g.now_us, .node = {i, &m}},
            &g.out);
    }
    hello(&g, LIMIT_NODES + 1, "late", 1);
    assert_int_equal(action(&g, COORD_CLOSE_CONN)->close.status, STATUS_FULL);
    down(&g, 9); // one that is gone makes room
    hello(&g, LIMIT_NODES + 2, "late", 1);
    assert_non_null(sent(&g, MSG_WELCOME));
    assert_int_equal(stats(&g).nodes, LIMIT_NODES);
    coord_destroy(g.c);
}

static void test_heartbeat_lost_after_a_second_look(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    // This process stood still for 5 s; the heartbeats lie unread in the socket.
    tick(&g, 5000);
    assert_int_equal(stats(&g).nodes, 1);
    beat(&g, 1, (struct msg_heartbeat){.replica = 1, .epoch = 1});
    tick(&g, 150);
    assert_int_equal(stats(&g).nodes, 1);
    tick(&g, 760); // nothing comes now
    assert_int_equal(stats(&g).nodes, 1);
    tick(&g, 100);
    assert_int_equal(action(&g, COORD_CLOSE_CONN)->close.status, STATUS_LINK_TIMEOUT);
    assert_int_equal(stats(&g).nodes, 0);
    coord_destroy(g.c);
}

static void test_warm_up_is_not_sickness(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_init(&g, &k);
    hello(&g, 1, "a", 1);
    for (int i = 0; i < 10; i++) { // silent for 3 s at a time, and its loop seems stuck
        tick(&g, 3000);
        beat(&g, 1, (struct msg_heartbeat){.replica = 1, .epoch = 1, .loop_age_ms = 3000});
    }
    assert_int_equal(stats(&g).nodes, 1);
    assert_int_equal(stats(&g).fences, 0);
    coord_destroy(g.c);
}

// ---- forming ----

static void test_forming_fails(void **state)
{
    static const struct {
        const char *what;
        struct msg_formed f;
    } cases[] = {
        {"cannot", {.status = STATUS_BAD_MODEL, .text = "no such tensor"}},
        {"no sequences", {.max_context = 10}},
        {"too many sequences", {.max_seqs = 100000, .max_context = 10}},
        {"no context", {.max_seqs = 1}},
        {"absurd context", {.max_seqs = 1, .max_context = LIMIT_CONTEXT + 1}},
    };
    struct coord_config k = small_config();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rig g;
        rig_init(&g, &k);
        hello(&g, 1, "a", 1);
        prepared(&g, 1, 1, 1);
        struct msg_formed f = cases[i].f;
        f.replica = f.epoch = 1;
        formed(&g, 1, f);
        if (!sent(&g, MSG_DISSOLVE) || stats(&g).replicas_ready || stats(&g).forms_failed != 1)
            fail_msg("%s", cases[i].what);
        coord_destroy(g.c);
    }
}

static void test_back_off_doubles(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_init(&g, &k);
    hello(&g, 1, "a", 1);
    uint64_t wait_ms = k.backoff_ms;
    for (uint64_t epoch = 1; epoch <= 9; epoch++) {
        formed(&g, 1,
               (struct msg_formed){.replica = 1, .epoch = epoch, .status = STATUS_BAD_MODEL});
        beat(&g, 1, (struct msg_heartbeat){0}); // shows that it is not stuck
        assert_null(sent(&g, MSG_FORM));
        for (uint64_t t = 100; t < wait_ms; t += 100) {
            tick(&g, 100);
            assert_null(sent(&g, MSG_FORM));
            beat(&g, 1, (struct msg_heartbeat){0});
        }
        tick(&g, 100);
        assert_int_equal(sent(&g, MSG_FORM)->form.epoch, epoch + 1);
        wait_ms = wait_ms * 2 < k.backoff_max_ms ? wait_ms * 2 : k.backoff_max_ms;
    }
    coord_destroy(g.c);
}

static bool note_fault(void *arg, const struct coord_replica_view *v)
{
    snprintf(arg, 200, "%s", v->fault);
    return false;
}

static void test_fingerprints_differ(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.tensor = 2;
    rig_init(&g, &k);
    hello(&g, 1, "a", 1);
    hello(&g, 2, "b", 1);
    prepared(&g, 1, 1, 1);
    assert_null(sent(&g, MSG_LINK));
    prepared(&g, 2, 1, 1);
    const struct msg *l = sent(&g, MSG_LINK);
    assert_int_equal(l->link.members_n, 2);
    assert_string_equal(l->link.members[1].name, "b");
    assert_string_equal(l->link.members[1].addresses.tcp, "t");
    formed(&g, 1, fine(1, 1));
    struct msg_formed f = fine(1, 1);
    f.fingerprint = 8;
    formed(&g, 2, f);
    assert_int_equal(stats(&g).replicas_ready, 0);
    char fault[200];
    coord_each_replica(g.c, note_fault, fault);
    assert_non_null(strstr(fault, "node b has another model"));
    coord_destroy(g.c);
}

// Replicas may be of another model only one after the other, and answers stay with theirs.
static void test_replicas_of_another_model(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.replicas = 2;
    rig_init(&g, &k);
    hello(&g, 1, "a", 1);
    hello(&g, 2, "b", 1);
    ready(&g, 1, 1, 1);
    uint64_t begun = submit(&g, (struct coord_submit){.max_tokens = 9});
    token(&g, 1, 1, 1, (struct token_out){.request = begun, .token = 4});
    uint64_t fresh = submit(&g, (struct coord_submit){.max_tokens = 9});
    struct msg_formed f = fine(2, 2);
    f.fingerprint = 8;
    prepared(&g, 2, 2, 2);
    formed(&g, 2, f);
    assert_int_equal(stats(&g).replicas_ready, 1);
    char fault[200];
    coord_each_replica(g.c, note_fault, fault); // of the first: none yet
    assert_string_equal(fault, "");
    down(&g, 1);
    const struct msg *form = sent(&g, MSG_FORM);
    f.replica = form->form.replica;
    f.epoch = form->form.epoch;
    prepared(&g, 2, f.replica, f.epoch);
    formed(&g, 2, f);
    assert_int_equal(stats(&g).replicas_ready, 1);
    const struct coord_action *a = action(&g, COORD_DONE);
    assert_int_equal(a->done.request, begun);
    assert_int_equal(a->done.finish, FINISH_ERROR);
    assert_int_equal(a->done.status, STATUS_BAD_MODEL);
    assert_int_equal(sent(&g, MSG_DISPATCH)->dispatch.journal.request, fresh);
    coord_destroy(g.c);
}

static void test_formed_before_linked(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_init(&g, &k);
    hello(&g, 1, "a", 1);
    formed(&g, 1, fine(1, 1)); // skipped PREPARED
    assert_int_equal(stats(&g).replicas_ready, 0);
    assert_int_equal(stats(&g).protocol_errors, 1);
    prepared(&g, 1, 1, 1);
    prepared(&g, 1, 1, 1); // twice
    assert_int_equal(stats(&g).protocol_errors, 2);
    formed(&g, 1, fine(1, 1));
    assert_int_equal(stats(&g).replicas_ready, 1);
    formed(&g, 1, fine(1, 1));
    assert_int_equal(stats(&g).protocol_errors, 3);
    coord_destroy(g.c);
}

static void test_epochs_of_nodes_are_respected(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    hello(&g, 2, "b", 1);
    beat(&g, 2, (struct msg_heartbeat){.replica = 3, .epoch = 900}); // of an earlier coordinator
    admin(&g, COORD_FAILOVER, NULL, 1);
    assert_int_equal(sent(&g, MSG_FORM)->form.epoch, 901);
    coord_destroy(g.c);
}

static void test_stale_epoch_leaps(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_init(&g, &k);
    hello(&g, 1, "a", 1);
    formed(&g, 1, (struct msg_formed){.replica = 1, .epoch = 1, .status = STATUS_STALE_EPOCH});
    beat(&g, 1, (struct msg_heartbeat){0});
    tick(&g, k.backoff_ms);
    assert_true(sent(&g, MSG_FORM)->form.epoch > UINT32_MAX);
    coord_destroy(g.c);
}

// ---- admission ----

static void test_refusals(void **state)
{
    static const int32_t negative[] = {1, -1};
    static const int32_t beyond[] = {1, LIMIT_VOCAB};
    static const struct {
        struct coord_submit s;
        enum coord_refusal reason;
    } cases[] = {
        {{.max_tokens = 5}, COORD_REFUSE_NONE},
        {{.max_tokens = 0}, COORD_REFUSE_NONE},
        {{.prompt_n = CONTEXT - 1, .max_tokens = 1}, COORD_REFUSE_NONE},
        {{.prompt_n = CONTEXT - 1, .max_tokens = 2}, COORD_REFUSE_BAD_MAX_TOKENS},
        {{.prompt_n = CONTEXT, .max_tokens = 1}, COORD_REFUSE_PROMPT_TOO_LONG},
        {{.max_tokens = UINT32_MAX}, COORD_REFUSE_BAD_MAX_TOKENS},
        {{.prompt = negative, .prompt_n = 2}, COORD_REFUSE_BAD_REQUEST},
        {{.prompt = beyond, .prompt_n = 2}, COORD_REFUSE_BAD_REQUEST},
        {{.band = 10}, COORD_REFUSE_BAD_REQUEST},
        {{.stop_ids_n = MSG_STOP_IDS + 1}, COORD_REFUSE_BAD_REQUEST},
        {{.sampling = {.top_logprobs = LIMIT_TOP_LOGPROBS + 1}}, COORD_REFUSE_BAD_REQUEST},
        {{.deadline_us = 1}, COORD_REFUSE_DEADLINE},
    };
    struct coord_config k = small_config();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rig g;
        rig_ready(&g, &k);
        submit(&g, cases[i].s);
        const struct coord_action *a = action(&g, COORD_REFUSED);
        if ((a ? a->refused.reason : COORD_REFUSE_NONE) != cases[i].reason)
            fail_msg("case %zu: %s", i, a ? a->refused.text : "admitted");
        assert_true(a || sent(&g, MSG_DISPATCH));
        coord_destroy(g.c);
    }
}

static void test_ids(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    step(&g, &(struct coord_event){.kind = COORD_SUBMIT,
                                   .submit = {.prompt = prompt, .prompt_n = 1}}); // id 0
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_BAD_REQUEST);
    step(&g, &(struct coord_event){.kind = COORD_SUBMIT,
                                   .submit = {.request = 3, .prompt = prompt}}); // empty
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_BAD_REQUEST);
    submit(&g, (struct coord_submit){.request = 5});
    submit(&g, (struct coord_submit){.request = 5});
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_BAD_REQUEST);
    assert_int_equal(view(&g, 5).state, COORD_REQ_RUNNING);
    for (int e = COORD_STOP; e <= COORD_CANCEL; e++) // nobody knows 99
        req(&g, (enum coord_event_kind)e, 99, 0);
    coord_destroy(g.c);
}

static void test_queue_full_and_bands(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.queue_limit = 3;
    k.preempt_limit = 0;
    rig_ready(&g, &k);
    for (int i = 0; i < SEQS; i++)
        submit(&g, (struct coord_submit){.max_tokens = 9});
    uint64_t low = submit(&g, (struct coord_submit){.band = 1});
    assert_int_equal(action(&g, COORD_QUEUED)->queued.position, 1);
    uint64_t low2 = submit(&g, (struct coord_submit){.band = 1});
    assert_int_equal(action(&g, COORD_QUEUED)->queued.position, 2);
    uint64_t high = submit(&g, (struct coord_submit){.band = 8});
    assert_int_equal(action(&g, COORD_QUEUED)->queued.position, 1);
    assert_true(action(&g, COORD_QUEUED)->queued.eta_ms > 0);
    submit(&g, (struct coord_submit){.band = 1});
    const struct coord_action *a = action(&g, COORD_REFUSED);
    assert_int_equal(a->refused.reason, COORD_REFUSE_QUEUE_FULL);
    assert_in_range(a->refused.retry_after_ms, 1000, 60000);
    beat(&g, 1, (struct msg_heartbeat){.replica = 1, .epoch = 1});
    tick(&g, 500); // the others hear that they moved back
    assert_int_equal(view(&g, low).position, 2);
    assert_int_equal(view(&g, low2).position, 3);
    token(&g, 1, 1, 1, (struct token_out){.request = 1, .finish = FINISH_STOP});
    assert_int_equal(view(&g, high).state, COORD_REQ_RUNNING);
    token(&g, 1, 1, 1, (struct token_out){.request = 2, .finish = FINISH_STOP});
    assert_int_equal(view(&g, low).state, COORD_REQ_RUNNING);
    assert_int_equal(view(&g, low2).state, COORD_REQ_QUEUED);
    coord_destroy(g.c);
}

static void test_queue_tokens_bounded(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.queue_tokens_limit = 10;
    rig_init(&g, &k); // no node at all: everything waits
    submit(&g, (struct coord_submit){.prompt_n = 6});
    assert_non_null(action(&g, COORD_QUEUED));
    submit(&g, (struct coord_submit){.prompt_n = 6});
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_QUEUE_FULL);
    submit(&g, (struct coord_submit){.prompt_n = 4});
    assert_null(action(&g, COORD_REFUSED));
    coord_destroy(g.c);
}

static void test_deadline_while_waiting(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_init(&g, &k);
    submit(&g, (struct coord_submit){.deadline_us = g.now_us + MS(300)});
    tick(&g, 299);
    assert_null(action(&g, COORD_REFUSED));
    tick(&g, 1);
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_NO_CAPACITY);
    struct coord_request_view v;
    assert_false(coord_request_find(g.c, 1, &v));
    coord_destroy(g.c);
}

static void test_context_known_late(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_init(&g, &k);
    static const int32_t big[CONTEXT * 2];
    uint64_t long_one = submit(&g, (struct coord_submit){.prompt = big, .prompt_n = CONTEXT * 2});
    uint64_t fits = submit(&g, (struct coord_submit){0});
    hello(&g, 1, "a", 1);
    ready(&g, 1, 1, 1);
    assert_int_equal(view(&g, long_one).finish, FINISH_ERROR);
    assert_int_equal(view(&g, long_one).status, STATUS_TOO_LARGE);
    assert_int_equal(view(&g, fits).max_tokens, CONTEXT - 3);
    coord_destroy(g.c);
}

static void test_close_admission(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 2});
    admin(&g, COORD_CLOSE, NULL, 0);
    assert_null(action(&g, COORD_ADMIN_DONE));
    submit(&g, (struct coord_submit){0});
    assert_int_equal(action(&g, COORD_REFUSED)->refused.reason, COORD_REFUSE_DRAINING);
    token(&g, 1, 1, 1, (struct token_out){.request = id, .finish = FINISH_STOP});
    assert_int_equal(action(&g, COORD_ADMIN_DONE)->admin_done.tag, 77);
    admin(&g, COORD_CLOSE, NULL, 0);
    assert_non_null(action(&g, COORD_ADMIN_DONE));
    coord_destroy(g.c);
}

static void test_waiting_commands_are_bounded(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    submit(&g, (struct coord_submit){.max_tokens = 2});
    for (int i = 0; i < 64; i++) {
        admin(&g, COORD_DRAIN, "a", 0);
        assert_null(action(&g, COORD_ADMIN_DONE));
    }
    admin(&g, COORD_DRAIN, "a", 0);
    assert_int_equal(action(&g, COORD_ADMIN_DONE)->admin_done.status, STATUS_FULL);
    coord_destroy(g.c);
}

// ---- tokens ----

static void test_tokens_once_in_order(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 5});
    const struct logprob top[2] = {{4, -0.1f}, {5, -2.f}};
    token(
        &g, 1, 1, 1,
        (struct token_out){.request = id, .token = 4, .top_n = 2, .top = top, .cached_tokens = 2});
    const struct coord_action *a = action(&g, COORD_TOKENS);
    assert_int_equal(a->tokens.tokens[0].token, 4);
    assert_int_equal(a->tokens.tokens[0].top[1].token, 5);
    token(&g, 1, 1, 1, (struct token_out){.request = id, .token = 4}); // again
    assert_null(action(&g, COORD_TOKENS));
    assert_int_equal(stats(&g).duplicate_dropped, 1);
    token(&g, 1, 1, 0, (struct token_out){.request = id, .index = 1, .token = 6}); // old epoch
    token(&g, 1, 2, 1, (struct token_out){.request = id, .index = 1, .token = 6}); // other replica
    assert_int_equal(stats(&g).stale_dropped, 2);
    token(&g, 1, 1, 1, (struct token_out){.request = 99, .index = 1, .token = 6});
    assert_int_equal(stats(&g).stale_dropped, 3);
    token(&g, 1, 1, 1,
          (struct token_out){.request = id, .index = 1, .token = 9, .finish = FINISH_LENGTH});
    a = action(&g, COORD_DONE);
    assert_int_equal(a->done.finish, FINISH_LENGTH);
    assert_int_equal(a->done.emitted_n, 2);
    assert_int_equal(a->done.cached_n, 2);
    assert_int_equal(view(&g, id).tokens[1], 9);
    coord_destroy(g.c);
}

static void test_lies_of_a_lead_are_fenced(void **state)
{
    static const struct token_out lies[] = {
        {.index = 1, .token = 5},                             // a gap
        {.index = 0, .token = -7},                            // no such token
        {.index = 0, .token = LIMIT_VOCAB},                   //
        {.index = 0, .token = 5, .finish = 9},                //
        {.index = 0, .token = 5, .finish = FINISH_CANCELLED}, // nobody asked
        {.index = 0, .token = 5, .top_n = LIMIT_TOP_LOGPROBS + 1},
    };
    struct coord_config k = small_config();
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        struct rig g;
        rig_ready(&g, &k);
        struct token_out t = lies[i];
        t.request = submit(&g, (struct coord_submit){.max_tokens = 5});
        token(&g, 1, 1, 1, t);
        if (!sent(&g, MSG_DISSOLVE) || view(&g, t.request).state != COORD_REQ_QUEUED)
            fail_msg("lie %zu was believed", i);
        assert_int_equal(view(&g, t.request).tokens_n, 0);
        coord_destroy(g.c);
    }
}

static void test_lead_overlooks_max_tokens(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 1});
    token(&g, 1, 1, 1, (struct token_out){.request = id, .token = 4});
    assert_int_equal(action(&g, COORD_DONE)->done.finish, FINISH_LENGTH);
    assert_int_equal(sent(&g, MSG_CANCEL)->cancel.request, id);
    assert_int_equal(view(&g, id).state, COORD_REQ_CLOSING);
    assert_int_equal(stats(&g).credits_free, SEQS - 1);
    from(&g, 1, (struct msg){.kind = MSG_CANCELLED, .cancelled = {1, 1, id}});
    assert_int_equal(stats(&g).credits_free, SEQS);
    coord_destroy(g.c);
}

static void test_no_token(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 5});
    token(&g, 1, 1, 1, (struct token_out){.request = id, .token = -1, .finish = FINISH_ERROR});
    assert_null(action(&g, COORD_TOKENS));
    assert_int_equal(action(&g, COORD_DONE)->done.finish, FINISH_ERROR);
    coord_destroy(g.c);
}

static void test_stop_string(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 9});
    for (uint32_t i = 0; i < 4; i++)
        token(&g, 1, 1, 1, (struct token_out){.request = id, .index = i, .token = 4});
    req(&g, COORD_STOP, id, 2);
    assert_int_equal(action(&g, COORD_DONE)->done.emitted_n, 2);
    assert_non_null(sent(&g, MSG_CANCEL));
    token(&g, 1, 1, 1, (struct token_out){.request = id, .index = 4, .token = 4}); // on its way
    assert_null(action(&g, COORD_TOKENS));
    assert_int_equal(stats(&g).replicas_ready, 1); // not taken for a gap
    coord_destroy(g.c);
}

// ---- failover ----

static void test_journal_goes_on_elsewhere(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.replicas = 2;
    rig_init(&g, &k);
    hello(&g, 1, "a", 1);
    hello(&g, 2, "b", 1);
    ready(&g, 1, 1, 1);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 9, .sampling = {.seed = 5}});
    token(&g, 1, 1, 1, (struct token_out){.request = id, .token = 4});
    token(&g, 1, 1, 1, (struct token_out){.request = id, .index = 1, .token = 8});
    ready(&g, 2, 2, 2);
    g.now_us += MS(50);
    down(&g, 1);
    const struct coord_action *a = sent_nth(&g, MSG_DISPATCH, 0);
    assert_int_equal(a->send.conn, 2);
    const struct journal *j = &a->send.msg->dispatch.journal;
    assert_int_equal(j->emitted_n, 2);
    assert_int_equal(j->emitted[1], 8);
    assert_int_equal(j->prompt[2], 3);
    assert_int_equal(j->sampling.seed, 5);
    assert_int_equal(j->max_tokens, 9);
    g.now_us += MS(7);
    token(&g, 2, 2, 2, (struct token_out){.request = id, .index = 2, .token = 8});
    assert_int_equal(view(&g, id).pause_us, 57000);
    assert_int_equal(view(&g, id).dispatches, 2);
    coord_destroy(g.c);
}

static void fault(struct rig *g, uint64_t epoch)
{
    from(g, 1,
         (struct msg){.kind = MSG_FAULT,
                      .fault = {1, epoch, STATUS_NODE_NAN, -1, -1, "NaN in a step"}});
}

// Forms the replica on connection 1 anew after a fault; returns its epoch.
static uint64_t again(struct rig *g)
{
    for (int i = 0; i < 700; i++) {
        const struct msg *m = sent(g, MSG_FORM);
        if (m) {
            uint64_t epoch = m->form.epoch;
            ready(g, 1, 1, epoch);
            return epoch;
        }
        g->now_us += MS(100);
        beat(g, 1, (struct msg_heartbeat){0});
    }
    fail_msg("never formed again");
    return 0;
}

static void test_poison_is_given_up(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    uint64_t bad = submit(&g, (struct coord_submit){.max_tokens = 5});
    uint64_t good = submit(&g, (struct coord_submit){.max_tokens = 50});
    uint64_t epoch = 1;
    uint32_t index = 0, faults = 0;
    while (view(&g, bad).finish == FINISH_NONE) {
        if (view(&g, good).state == COORD_REQ_RUNNING)
            token(&g, 1, 1, epoch, (struct token_out){.request = good, .index = index++});
        fault(&g, epoch);
        if (++faults <= k.poison_faults)
            epoch = again(&g);
        assert_in_range(faults, 1, 20);
    }
    assert_int_equal(faults, k.poison_faults + 1);
    assert_int_equal(view(&g, bad).finish, FINISH_ERROR);
    assert_int_equal(view(&g, good).finish, FINISH_NONE); // it had tokens in between
    coord_destroy(g.c);
}

// Requests under which replicas died come back one at a time, so that the guilty one is alone.
static void test_suspects_go_one_by_one(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    for (int i = 0; i < 3; i++)
        submit(&g, (struct coord_submit){.max_tokens = 5});
    fault(&g, 1);
    uint64_t epoch = again(&g);
    assert_int_equal(stats(&g).running, 3);
    fault(&g, epoch);
    epoch = again(&g);
    assert_int_equal(stats(&g).running, 1);
    assert_int_equal(stats(&g).queued_moved, 2);
    submit(&g, (struct coord_submit){.max_tokens = 5}); // a new one is not held up
    assert_int_equal(stats(&g).running, 2);
    token(&g, 1, 1, epoch, (struct token_out){.request = 1, .token = 3}); // 1 is innocent
    assert_int_equal(stats(&g).running, 3);
    coord_destroy(g.c);
}

static void test_hang_is_named(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.tensor = 2;
    rig_init(&g, &k);
    hello(&g, 1, "a", 1);
    hello(&g, 2, "b", 1);
    prepared(&g, 1, 1, 1);
    prepared(&g, 2, 1, 1);
    formed(&g, 1, fine(1, 1));
    formed(&g, 2, fine(1, 1));
    struct msg_heartbeat h = {.replica = 1, .epoch = 1, .step_age_ms = 2100};
    h.progress = (struct rank_progress){9, 4, 1, 2050};
    beat(&g, 2, h);
    assert_int_equal(stats(&g).replicas_ready,
                     0); // a has said nothing: b is the only one in a step
    assert_int_equal(node_is(&g, "b"), COORD_NODE_SUSPECT);
    assert_int_equal(node_is(&g, "a"), COORD_NODE_FREE);
    h = (struct msg_heartbeat){.progress = {9, 4, 1, 2150}};
    beat(&g, 2, h); // dissolved, but its device still computes
    assert_int_equal(node_is(&g, "b"), COORD_NODE_SUSPECT);
    beat(&g, 2, (struct msg_heartbeat){0});
    assert_int_equal(node_is(&g, "b"), COORD_NODE_IN_REPLICA);
    coord_destroy(g.c);
}

static void test_loaded_rank_that_does_not_prepare(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    admin(&g, COORD_FAILOVER, NULL, 1);
    assert_int_equal(sent(&g, MSG_FORM)->form.epoch, 2); // the same node, weights in memory
    hello(&g, 2, "b", 1);
    for (uint32_t t = 0; t < k.reload_timeout_ms; t += 500) {
        assert_null(sent(&g, MSG_FORM));
        beat(&g, 1, (struct msg_heartbeat){.replica = 1, .epoch = 2});
        beat(&g, 2, (struct msg_heartbeat){0});
        tick(&g, 500);
    }
    assert_non_null(sent(&g, MSG_DISSOLVE));
    assert_int_equal(node_is(&g, "a"), COORD_NODE_SUSPECT);
    tick(&g, k.backoff_ms);
    assert_int_equal(sent_nth(&g, MSG_FORM, 0)->send.conn, 2); // the spare
    coord_destroy(g.c);
}

static void test_cancel_unanswered(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 5});
    req(&g, COORD_CANCEL, id, 0);
    assert_int_equal(action(&g, COORD_DONE)->done.finish, FINISH_CANCELLED);
    for (uint32_t t = 0; t <= k.cancel_timeout_ms; t += 500) {
        assert_int_equal(stats(&g).replicas_ready, 1);
        beat(&g, 1, (struct msg_heartbeat){.replica = 1, .epoch = 1});
        tick(&g, 500);
        if (t + 500 >= k.cancel_timeout_ms)
            break;
    }
    assert_int_equal(stats(&g).replicas_ready, 0);
    coord_destroy(g.c);
}

// ---- clients ----

static void test_grace_and_re_attach(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.heartbeat_timeout_ms = 100000;
    k.warmup_silence_ms = 100000;
    rig_ready(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 5});
    req(&g, COORD_ATTACH, id, 0);
    req(&g, COORD_DETACH, id, 0);
    tick(&g, 40000); // one is still there
    assert_int_equal(view(&g, id).state, COORD_REQ_RUNNING);
    req(&g, COORD_DETACH, id, 0);
    req(&g, COORD_DETACH, id, 0); // one too many is ignored
    tick(&g, 29999);
    req(&g, COORD_ATTACH, id, 0);
    tick(&g, 20000);
    assert_int_equal(view(&g, id).state, COORD_REQ_RUNNING);
    req(&g, COORD_DETACH, id, 0);
    tick(&g, 30000);
    assert_int_equal(action(&g, COORD_DONE)->done.finish, FINISH_CANCELLED);
    coord_destroy(g.c);
}

static void test_retention_is_bounded(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.retain_limit = 2;
    k.retain_tokens_limit = 100;
    rig_ready(&g, &k);
    for (uint64_t i = 1; i <= 3; i++) {
        submit(&g, (struct coord_submit){.max_tokens = 5});
        token(&g, 1, 1, 1, (struct token_out){.request = i, .finish = FINISH_STOP});
    }
    assert_int_equal(action(&g, COORD_FORGET)->forget.request, 1);
    assert_int_equal(view(&g, 2).tokens_n, 1);
    assert_int_equal(stats(&g).retained, 2);
    for (int i = 0; i < 65; i++) {
        beat(&g, 1, (struct msg_heartbeat){.replica = 1, .epoch = 1});
        tick(&g, 950);
    }
    assert_int_equal(stats(&g).retained, 0);
    coord_destroy(g.c);
}

// ---- routing and operators ----

static void test_sessions_stay_and_load_is_bounded(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.replicas = 4;
    rig_init(&g, &k);
    for (uint64_t i = 1; i <= 4; i++) {
        char name[2] = {(char)('a' + i), 0};
        hello(&g, i, name, 1);
        ready(&g, i, i, i);
    }
    uint64_t first = 0;
    for (int i = 0; i < 5; i++) { // one session's turns, one after the other
        uint64_t id = submit(&g, (struct coord_submit){.session = 42, .max_tokens = 5});
        uint64_t at = view(&g, id).replica;
        first = first ? first : at;
        assert_int_equal(at, first);
        token(&g, at, at, at, (struct token_out){.request = id, .finish = FINISH_STOP});
    }
    uint32_t load[5] = {0};
    for (int i = 0; i < 9; i++) // all at once: no replica gets more than 1.25 times the mean
        load[view(&g, submit(&g, (struct coord_submit){.session = 42})).replica]++;
    for (int i = 1; i <= 4; i++)
        assert_in_range(load[i], 0, 3); // ceil(1.25 * 9 / 4), below the 4 credits
    coord_destroy(g.c);
}

static void test_drain_without_another_replica(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 5});
    admin(&g, COORD_DRAIN, "a", 0);
    assert_null(sent(&g, MSG_CANCEL)); // nobody could take it over: it ends where it is
    uint64_t later = submit(&g, (struct coord_submit){.max_tokens = 5});
    assert_int_equal(view(&g, later).state, COORD_REQ_QUEUED);
    token(&g, 1, 1, 1, (struct token_out){.request = id, .finish = FINISH_STOP});
    assert_int_equal(action(&g, COORD_ADMIN_DONE)->admin_done.status, STATUS_OK);
    assert_int_equal(node_is(&g, "a"), COORD_NODE_DRAINED);
    down(&g, 1);
    hello(&g, 2, "a", 2); // a restart does not undrain it
    assert_int_equal(node_is(&g, "a"), COORD_NODE_DRAINED);
    admin(&g, COORD_UNDRAIN, "a", 0);
    assert_non_null(sent(&g, MSG_FORM));
    coord_destroy(g.c);
}

static void test_undrain_in_mid_drain(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    submit(&g, (struct coord_submit){.max_tokens = 5});
    admin(&g, COORD_DRAIN, "a", 0);
    admin(&g, COORD_UNDRAIN, "a", 0);
    assert_int_equal(action(&g, COORD_ADMIN_DONE)->admin_done.status, STATUS_CANCELLED);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 5});
    assert_int_equal(view(&g, id).state, COORD_REQ_RUNNING);
    coord_destroy(g.c);
}

static void test_eject_and_unknown_targets(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    admin(&g, COORD_EJECT, "a", 0);
    assert_int_equal(action(&g, COORD_ADMIN_DONE)->admin_done.status, STATUS_OK);
    assert_int_equal(node_is(&g, "a"), COORD_NODE_EJECTED);
    assert_null(sent(&g, MSG_FORM));
    admin(&g, COORD_FAILOVER, NULL, 1);
    assert_int_equal(action(&g, COORD_ADMIN_DONE)->admin_done.status, STATUS_AGAIN);
    admin(&g, COORD_FAILOVER, NULL, 2);
    assert_int_equal(action(&g, COORD_ADMIN_DONE)->admin_done.status, STATUS_NOT_FOUND);
    const enum coord_admin_op ops[] = {COORD_DRAIN, COORD_UNDRAIN, COORD_EJECT};
    for (int i = 0; i < 3; i++) {
        admin(&g, ops[i], i ? "nobody" : NULL, 0);
        assert_int_equal(action(&g, COORD_ADMIN_DONE)->admin_done.status, STATUS_NOT_FOUND);
    }
    admin(&g, (enum coord_admin_op)99, NULL, 0);
    assert_int_equal(action(&g, COORD_ADMIN_DONE)->admin_done.status, STATUS_UNSUPPORTED);
    admin(&g, COORD_UNDRAIN, "a", 0);
    assert_non_null(sent(&g, MSG_FORM));
    coord_destroy(g.c);
}

// A device that NVML calls suspect: out at once, with the reason; an operator may let it in again.
static void test_suspect_gpu(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    uint64_t id = submit(&g, (struct coord_submit){.max_tokens = 5});
    struct msg_heartbeat h = {.replica = 1, .epoch = 1, .gpu = {.present = true, .xid = 31}};
    beat(&g, 1, h);
    assert_int_equal(node_is(&g, "a"), COORD_NODE_IN_REPLICA);
    h.gpu.suspect = true;
    strcpy(h.gpu.reason, "XID 79, fell off the bus");
    beat(&g, 1, h);
    assert_int_equal(node_is(&g, "a"), COORD_NODE_EJECTED);
    assert_int_equal(view(&g, id).state, COORD_REQ_QUEUED);
    assert_non_null(strstr(fault_of(&g, "a"), "GPU suspect: XID 79, fell off the bus"));
    h.replica = h.epoch = 0;
    beat(&g, 1, h);
    tick(&g, 100);
    assert_null(sent(&g, MSG_FORM));
    admin(&g, COORD_UNDRAIN, "a", 0);
    assert_non_null(sent(&g, MSG_FORM));
    beat(&g, 1, h); // still says so
    assert_int_equal(node_is(&g, "a"), COORD_NODE_IN_REPLICA);
    coord_destroy(g.c);
}

// A node that comes back with a suspect device goes out again, also when it is in no replica.
static void test_suspect_gpu_of_a_new_process(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    hello(&g, 5, "spare", 1);
    struct msg_heartbeat h = {
        .gpu = {.present = true, .suspect = true, .reason = "new ECC errors"}};
    beat(&g, 5, h);
    assert_int_equal(node_is(&g, "spare"), COORD_NODE_EJECTED);
    admin(&g, COORD_UNDRAIN, "spare", 0);
    assert_int_equal(node_is(&g, "spare"), COORD_NODE_FREE);
    hello(&g, 6, "spare", 2);
    assert_int_equal(node_is(&g, "spare"), COORD_NODE_FREE);
    beat(&g, 6, h);
    assert_int_equal(node_is(&g, "spare"), COORD_NODE_EJECTED);
    coord_destroy(g.c);
}

static void test_heartbeat_channel(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    rig_ready(&g, &k);
    struct msg m = {
        .kind = MSG_HELLO,
        .hello = {.version = 1, .name = "a", .incarnation = 1, .heartbeat_channel = true}};
    step(&g, &(struct coord_event){.kind = COORD_NODE_UP, .node = {2, &m}});
    assert_null(action(&g, COORD_CLOSE_CONN));
    for (int i = 0; i < 30; i++) {
        tick(&g, 100);
        beat(&g, 2, (struct msg_heartbeat){.replica = 1, .epoch = 1});
    }
    assert_int_equal(stats(&g).replicas_ready, 1);
    beat(&g, 2, (struct msg_heartbeat){.replica = 1, .epoch = 1, .loop_age_ms = 2500});
    assert_int_equal(stats(&g).replicas_ready, 0); // the thread lives, the loop does not
    formed(&g, 2, fine(1, 1));                     // only heartbeats may come here
    assert_int_equal(action(&g, COORD_CLOSE_CONN)->close.conn, 2);
    assert_int_equal(stats(&g).nodes, 1);
    coord_destroy(g.c);
}

// ---- weights from other nodes

static struct msg_formed giving(uint64_t replica, uint64_t epoch, uint64_t fingerprint)
{
    struct msg_formed f = fine(replica, epoch);
    f.fingerprint = fingerprint;
    f.weights = (struct rank_addresses){"shm", "tcp", ""};
    return f;
}

static void hello_on(struct rig *g, uint64_t conn, const char *name, const char *host)
{
    struct msg m = {.kind = MSG_HELLO,
                    .hello = {.version = MSG_VERSION,
                              .name = name,
                              .incarnation = conn,
                              .host = host,
                              .backend = "mock"}};
    step(g, &(struct coord_event){.kind = COORD_NODE_UP, .node = {conn, &m}});
}

static void test_weight_sources(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    k.replicas = 4;
    rig_init(&g, &k);
    hello_on(&g, 1, "a", "here");
    assert_int_equal(sent(&g, MSG_FORM)->form.sources_n, 0); // nobody has them yet
    prepared(&g, 1, 1, 1);
    formed(&g, 1, giving(1, 1, 7));
    hello_on(&g, 2, "b", "here");
    const struct msg_form *f = &sent(&g, MSG_FORM)->form;
    assert_int_equal(f->sources_n, 1);
    assert_int_equal(f->fingerprint, 7);
    assert_string_equal(f->sources[0].name, "a");
    assert_string_equal(f->sources[0].addresses.shm, "shm");
    prepared(&g, 2, 2, 2);
    formed(&g, 2, fine(2, 2)); // has them, gives none
    hello_on(&g, 3, "c", "there");
    f = &sent(&g, MSG_FORM)->form;
    assert_int_equal(f->sources_n, 1);
    assert_string_equal(f->sources[0].addresses.shm, ""); // of another host
    assert_string_equal(f->sources[0].addresses.tcp, "tcp");
    prepared(&g, 3, 3, 3);
    formed(&g, 3, giving(3, 3, 7));
    // A lost one is no source, and when it comes back as a new process it has nothing.
    down(&g, 1);
    hello_on(&g, 4, "d", "here");
    f = &sent(&g, MSG_FORM)->form;
    assert_int_equal(f->sources_n, 1);
    assert_string_equal(f->sources[0].name, "c");
    down(&g, 3);
    hello_on(&g, 5, "a", "here");
    assert_int_equal(sent(&g, MSG_FORM)->form.sources_n, 0);
    coord_destroy(g.c);
}

// At most as many as a message takes, each rank from another one on, of the served model only.
static void test_weight_sources_spread(void **state)
{
    struct rig g;
    struct coord_config k = small_config();
    char name[8];
    k.replicas = 14;
    rig_init(&g, &k);
    for (uint64_t i = 1; i <= 12; i++) {
        snprintf(name, sizeof name, "n%d", (int)i);
        hello_on(&g, i, name, "h");
        prepared(&g, i, i, i);
        formed(&g, i, giving(i, i, 7));
    }
    const char *first[2];
    for (uint64_t i = 13; i <= 14; i++) {
        snprintf(name, sizeof name, "n%d", (int)i);
        hello_on(&g, i, name, "h");
        const struct msg_form *f = &sent(&g, MSG_FORM)->form;
        assert_int_equal(f->sources_n, MSG_WEIGHT_SOURCES);
        static char names[2][8];
        snprintf(names[i - 13], sizeof names[0], "%s", f->sources[0].name);
        first[i - 13] = names[i - 13];
        for (uint32_t s = 0; s < f->sources_n; s++)
            assert_string_not_equal(f->sources[s].name, name);
    }
    assert_string_not_equal(first[0], first[1]);
    coord_destroy(g.c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weight_sources),
        cmocka_unit_test(test_weight_sources_spread),
        cmocka_unit_test(test_config_refused),
        cmocka_unit_test(test_hello_table),
        cmocka_unit_test(test_same_name),
        cmocka_unit_test(test_members_are_bounded),
        cmocka_unit_test(test_heartbeat_lost_after_a_second_look),
        cmocka_unit_test(test_warm_up_is_not_sickness),
        cmocka_unit_test(test_forming_fails),
        cmocka_unit_test(test_back_off_doubles),
        cmocka_unit_test(test_fingerprints_differ),
        cmocka_unit_test(test_replicas_of_another_model),
        cmocka_unit_test(test_formed_before_linked),
        cmocka_unit_test(test_epochs_of_nodes_are_respected),
        cmocka_unit_test(test_stale_epoch_leaps),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_queue_full_and_bands),
        cmocka_unit_test(test_queue_tokens_bounded),
        cmocka_unit_test(test_deadline_while_waiting),
        cmocka_unit_test(test_context_known_late),
        cmocka_unit_test(test_close_admission),
        cmocka_unit_test(test_waiting_commands_are_bounded),
        cmocka_unit_test(test_tokens_once_in_order),
        cmocka_unit_test(test_lies_of_a_lead_are_fenced),
        cmocka_unit_test(test_lead_overlooks_max_tokens),
        cmocka_unit_test(test_no_token),
        cmocka_unit_test(test_stop_string),
        cmocka_unit_test(test_journal_goes_on_elsewhere),
        cmocka_unit_test(test_poison_is_given_up),
        cmocka_unit_test(test_suspects_go_one_by_one),
        cmocka_unit_test(test_hang_is_named),
        cmocka_unit_test(test_loaded_rank_that_does_not_prepare),
        cmocka_unit_test(test_cancel_unanswered),
        cmocka_unit_test(test_grace_and_re_attach),
        cmocka_unit_test(test_retention_is_bounded),
        cmocka_unit_test(test_sessions_stay_and_load_is_bounded),
        cmocka_unit_test(test_drain_without_another_replica),
        cmocka_unit_test(test_undrain_in_mid_drain),
        cmocka_unit_test(test_eject_and_unknown_targets),
        cmocka_unit_test(test_suspect_gpu),
        cmocka_unit_test(test_suspect_gpu_of_a_new_process),
        cmocka_unit_test(test_heartbeat_channel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
