// KV that moves between replicas, as the coordinator's core sees it, driven by hand: drains, long
// prompts computed apart, and every way in which a transfer ends.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "coordinator/coord.h"
#include "coordinator/kvrate.h"

#define MS(x) ((uint64_t)(x)*1000)
enum { PLACES = 2, CONTEXT = 1000, BLOCK = 16, LONG = 100 };

struct rig {
    struct coord *c;
    struct coord_actions out; // of the last step
    uint64_t now_us, next_id;
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

static const struct msg *sent_to(const struct rig *g, uint64_t conn, enum msg_kind kind)
{
    for (size_t i = 0; i < g->out.n; i++)
        if (g->out.v[i].kind == COORD_SEND && g->out.v[i].send.conn == conn &&
            g->out.v[i].send.msg->kind == kind)
            return g->out.v[i].send.msg;
    return NULL;
}

// Replica r of one rank, on connection r, at epoch r.
static void join(struct rig *g, uint64_t r, bool mover)
{
    const char *const names[] = {"", "a", "b", "c"};
    struct msg m = {.kind = MSG_HELLO,
                    .hello = {.version = MSG_VERSION,
                              .name = names[r],
                              .incarnation = r,
                              .host = "h",
                              .backend = "mock"}};
    step(g, &(struct coord_event){.kind = COORD_NODE_UP, .node = {r, &m}});
    from(g, r,
         (struct msg){.kind = MSG_PREPARED,
                      .prepared = {r, r, {"s", "t", ""}, {mover ? "ms" : "", "", ""}}});
    from(g, r,
         (struct msg){.kind = MSG_FORMED,
                      .formed = {.replica = r,
                                 .epoch = r,
                                 .text = "",
                                 .fingerprint = 7,
                                 .max_seqs = PLACES,
                                 .max_context = CONTEXT,
                                 .kv_blocks = 64,
                                 .block_tokens = BLOCK}});
}

static void rig_init(struct rig *g, uint32_t replicas, uint32_t prefill, bool movers)
{
    struct errmsg err = {0};
    struct coord_config k;
    coord_config_default(&k);
    k.model_dir = "m";
    k.trace = LOG_OFF;
    k.replicas = replicas;
    k.prefill_replicas = prefill;
    k.long_prompt_tokens = LONG;
    k.kv_min_tokens = 2 * BLOCK;
    k.kv_lease_ms = 500;
    k.heartbeat_timeout_ms = 60000;
    k.warmup_silence_ms = 60000;
    *g = (struct rig){.now_us = MS(1000), .next_id = 1};
    g->c = coord_create(&k, &err);
    if (!g->c)
        fail_msg("%s", err.text);
    for (uint64_t r = 1; r <= replicas; r++)
        join(g, r, movers);
}

static const int32_t prompt[CONTEXT] = {1, 2, 3};

static uint64_t submit(struct rig *g, uint32_t prompt_n)
{
    struct coord_submit s = {.request = g->next_id++, .prompt = prompt, .prompt_n = prompt_n};
    step(g, &(struct coord_event){.kind = COORD_SUBMIT, .submit = s});
    return s.request;
}

static void token(struct rig *g, uint64_t r, uint64_t id, uint32_t index, enum finish_reason finish)
{
    struct token_out t = {.request = id, .index = index, .token = 5, .finish = (uint8_t)finish};
    from(g, r,
         (struct msg){.kind = MSG_TOKENS,
                      .tokens = {.replica = r, .epoch = r, .tokens = &t, .tokens_n = 1}});
}

static void done(struct rig *g, uint64_t r, uint64_t transfer, enum kv_role role, enum status s)
{
    from(g, r,
         (struct msg){.kind = MSG_KV_DONE,
                      .kv_done = {.replica = r,
                                  .epoch = r,
                                  .transfer = transfer,
                                  .role = role,
                                  .status = s,
                                  .text = "",
                                  .tokens_n = 32,
                                  .bytes = 1000}});
}

static void ready(struct rig *g, uint64_t r, uint64_t transfer)
{
    from(g, r,
         (struct msg){.kind = MSG_KV_READY,
                      .kv_ready = {
                          .replica = r, .epoch = r, .transfer = transfer, .blocks = 3, .have = 1}});
}

static void cancelled(struct rig *g, uint64_t r, uint64_t id)
{
    from(g, r, (struct msg){.kind = MSG_CANCELLED, .cancelled = {r, r, id}});
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

static struct coord_stats stats(const struct rig *g)
{
    struct coord_stats s;
    coord_stats(g->c, &s);
    return s;
}

static bool take_transfer(void *arg, const struct coord_transfer_view *v)
{
    *(struct coord_transfer_view *)arg = *v;
    return false;
}

static struct coord_transfer_view transfer(const struct rig *g)
{
    struct coord_transfer_view v = {0};
    coord_each_transfer(g->c, take_transfer, &v);
    return v;
}

// A request of 40 tokens with two of its answer runs on replica *at_out; its node is drained, and a
// transfer is offered to the other one.
static uint64_t draining(struct rig *g, uint64_t *at_out, uint64_t *to_out)
{
    uint64_t id = submit(g, 40);
    uint64_t at = view(g, id).replica, to = 3 - at;
    token(g, at, id, 0, FINISH_NONE);
    token(g, at, id, 1, FINISH_NONE);
    admin(g, COORD_DRAIN, at == 1 ? "a" : "b", 0);
    *at_out = at;
    *to_out = to;
    return id;
}

static void test_drain(void **state)
{
    struct rig g;
    uint64_t at, to;
    rig_init(&g, 2, 0, true);
    uint64_t id = draining(&g, &at, &to);
    assert_null(sent_to(&g, at, MSG_CANCEL)); // it computes on
    const struct msg_kv_receive *offer = &sent_to(&g, to, MSG_KV_RECEIVE)->kv_receive;
    uint64_t t = offer->transfer;
    assert_int_equal(offer->tokens_n, 32); // whole blocks of the 42
    assert_int_equal(offer->source.fingerprint, 7);
    assert_int_equal(offer->lease_ms, 500);
    assert_int_equal(transfer(&g).state, COORD_TRANSFER_OFFERED);
    ready(&g, to, t);
    const struct msg_kv_send *send = &sent_to(&g, at, MSG_KV_SEND)->kv_send;
    assert_int_equal(send->request, id);
    assert_int_equal(send->first_block, 1);
    assert_int_equal(send->target.members_n, 1);
    assert_string_equal(send->target.members[0].addresses.shm, "ms");
    token(&g, at, id, 2, FINISH_NONE);
    assert_int_equal(view(&g, id).tokens_n, 3);
    done(&g, at, t, KV_ROLE_SOURCE, STATUS_OK);
    assert_null(sent_to(&g, at, MSG_CANCEL));
    done(&g, to, t, KV_ROLE_TARGET, STATUS_OK);
    assert_non_null(sent_to(&g, at, MSG_CANCEL));
    token(&g, at, id, 3, FINISH_NONE); // of the step under way
    cancelled(&g, at, id);
    assert_int_equal(sent_to(&g, to, MSG_DISPATCH)->dispatch.journal.emitted_n, 4);
    assert_int_equal(view(&g, id).replica, to);
    struct coord_stats s = stats(&g);
    assert_int_equal(s.transfers[COORD_TRANSFER_MOVED], 1);
    assert_int_equal(s.kv_tokens, 32);
    assert_int_equal(s.kv_bytes, 1000);
    assert_int_equal(s.handed_plain, 0);
    coord_destroy(g.c);
}

// Without movers, and with too little context, the journal is computed again.
static void test_plain(void **state)
{
    for (int small = 0; small < 2; small++) {
        struct rig g;
        rig_init(&g, 2, 0, small);
        uint64_t id = submit(&g, small ? 20 : 40), at = view(&g, id).replica;
        admin(&g, COORD_DRAIN, at == 1 ? "a" : "b", 0);
        assert_non_null(sent_to(&g, at, MSG_CANCEL));
        assert_null(sent_to(&g, 3 - at, MSG_KV_RECEIVE));
        assert_int_equal(stats(&g).handed_plain, 1);
        coord_destroy(g.c);
    }
}

static void test_prompts_apart(void **state)
{
    struct rig g;
    rig_init(&g, 2, 1, true);
    uint64_t little = submit(&g, LONG - 1);
    assert_non_null(sent_to(&g, 2, MSG_DISPATCH));
    uint64_t id = submit(&g, LONG);
    assert_int_equal(sent_to(&g, 1, MSG_DISPATCH)->dispatch.journal.prompt_n, LONG);
    uint64_t t = sent_to(&g, 2, MSG_KV_RECEIVE)->kv_receive.transfer;
    assert_int_equal(sent_to(&g, 2, MSG_KV_RECEIVE)->kv_receive.tokens_n, 96);
    // Its place at the target is held: the next one waits.
    uint64_t next = submit(&g, 10);
    assert_int_equal(view(&g, next).state, COORD_REQ_QUEUED);
    ready(&g, 2, t);
    token(&g, 1, id, 0, FINISH_NONE); // the first token does not wait for the transfer
    assert_int_equal(view(&g, id).tokens_n, 1);
    done(&g, 2, t, KV_ROLE_TARGET, STATUS_OK);
    cancelled(&g, 1, id);
    assert_int_equal(view(&g, id).replica, 2);
    assert_int_equal(view(&g, little).replica, 2);
    assert_int_equal(view(&g, next).state, COORD_REQ_QUEUED);
    assert_int_equal(stats(&g).prompts_apart, 1);
    coord_destroy(g.c);
}

static void test_no_other_serves(void **state)
{
    struct rig g;
    rig_init(&g, 2, 1, true);
    step(&g, &(struct coord_event){.kind = COORD_NODE_DOWN, .node = {2, NULL}});
    uint64_t id = submit(&g, LONG);
    assert_int_equal(view(&g, id).replica, 1);
    assert_int_equal(transfer(&g).id, 0);
    admin(&g, COORD_ROLE, "decode", 1); // nobody for prefill: it does both
    assert_int_equal(view(&g, submit(&g, LONG)).replica, 1);
    coord_destroy(g.c);
}

enum how { REFUSED, TARGET, SOURCE, LEASE, TARGET_DOWN, SOURCE_DOWN, CLIENT, LEAD };

static void fail_transfer(struct rig *g, enum how how, uint64_t id, uint64_t t)
{
    if (how == REFUSED)
        done(g, 2, t, KV_ROLE_TARGET, STATUS_FULL);
    else if (how == TARGET || how == SOURCE)
        done(g, how == TARGET ? 2 : 1, t, how == TARGET ? KV_ROLE_TARGET : KV_ROLE_SOURCE,
             STATUS_LINK_DOWN);
    else if (how == LEASE)
        g->now_us += MS(501);
    if (how == LEASE)
        step(g, &(struct coord_event){.kind = COORD_TIMER});
    else if (how == TARGET_DOWN || how == SOURCE_DOWN)
        step(g, &(struct coord_event){.kind = COORD_NODE_DOWN,
                                      .node = {how == TARGET_DOWN ? 2 : 1, NULL}});
    else if (how == CLIENT)
        step(g, &(struct coord_event){.kind = COORD_CANCEL, .req = {id, 0}});
    else if (how == LEAD)
        token(g, 1, id, 1, FINISH_STOP);
}

// Replica 1 computes a prompt for replica 2, and something happens, before or after the target was
// ready. The request goes on where it runs, or where it can; nothing is held any more.
static void test_every_end(void **state)
{
    static const struct {
        enum how how;
        enum coord_transfer_end end;
        uint64_t runs_on; // 0 = it is over
    } cases[] = {
        {REFUSED, COORD_TRANSFER_REFUSED, 1},     {TARGET, COORD_TRANSFER_TARGET, 1},
        {SOURCE, COORD_TRANSFER_SOURCE, 1},       {LEASE, COORD_TRANSFER_LEASE, 1},
        {TARGET_DOWN, COORD_TRANSFER_REPLICA, 1}, {SOURCE_DOWN, COORD_TRANSFER_REPLICA, 2},
        {CLIENT, COORD_TRANSFER_REQUEST, 0},      {LEAD, COORD_TRANSFER_REQUEST, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int sending = 0; sending < 2; sending++) {
            struct rig g;
            rig_init(&g, 2, 1, true);
            uint64_t id = submit(&g, LONG), t = transfer(&g).id;
            token(&g, 1, id, 0, FINISH_NONE);
            if (sending)
                ready(&g, 2, t);
            fail_transfer(&g, cases[i].how, id, t);
            assert_int_equal(stats(&g).transfers[cases[i].end], 1);
            assert_int_equal(stats(&g).transferring, 0);
            assert_int_equal(sent_to(&g, 2, MSG_KV_CANCEL) != NULL, cases[i].how != TARGET_DOWN);
            assert_int_equal(sent_to(&g, 1, MSG_KV_CANCEL) != NULL,
                             sending && cases[i].how != SOURCE_DOWN);
            if (cases[i].runs_on)
                assert_int_equal(view(&g, id).replica, cases[i].runs_on);
            else
                assert_true(view(&g, id).state >= COORD_REQ_CLOSING);
            coord_destroy(g.c);
        }
    }
}

// After a failure it is tried once more, later; then the request is handed over without its KV.
static void test_tries(void **state)
{
    struct rig g;
    rig_init(&g, 2, 1, true);
    uint64_t id = submit(&g, LONG);
    token(&g, 1, id, 0, FINISH_NONE);
    done(&g, 2, transfer(&g).id, KV_ROLE_TARGET, STATUS_FULL);
    assert_int_equal(transfer(&g).id, 0);
    g.now_us += MS(300);
    token(&g, 1, id, 1, FINISH_NONE);
    uint64_t second = transfer(&g).id;
    assert_int_not_equal(second, 0);
    done(&g, 2, second, KV_ROLE_TARGET, STATUS_LINK_DOWN);
    assert_non_null(sent_to(&g, 1, MSG_CANCEL));
    cancelled(&g, 1, id);
    assert_int_equal(view(&g, id).replica, 2);
    assert_int_equal(stats(&g).handed_plain, 1);
    coord_destroy(g.c);
}

static void test_old_and_odd(void **state)
{
    struct rig g;
    uint64_t at, to;
    rig_init(&g, 2, 0, true);
    uint64_t id = draining(&g, &at, &to), t = transfer(&g).id;
    ready(&g, to, t + 1); // no such transfer
    ready(&g, at, t);     // not its target
    done(&g, to, t, KV_ROLE_SOURCE, STATUS_OK);
    assert_int_equal(stats(&g).stale_dropped, 3);
    assert_int_equal(transfer(&g).state, COORD_TRANSFER_OFFERED);
    ready(&g, to, t);
    ready(&g, to, t);
    assert_null(sent_to(&g, at, MSG_KV_SEND));
    assert_int_equal(stats(&g).duplicate_dropped, 1);
    done(&g, to, t, KV_ROLE_TARGET, STATUS_OK);
    done(&g, to, t, KV_ROLE_TARGET, STATUS_OK);
    assert_int_equal(stats(&g).duplicate_dropped, 2);
    done(&g, at, t, KV_ROLE_SOURCE, STATUS_LINK_DOWN); // the target has it all the same
    assert_int_equal(transfer(&g).state, COORD_TRANSFER_LANDED);
    cancelled(&g, at, id);
    assert_int_equal(view(&g, id).replica, to);
    done(&g, to, t, KV_ROLE_TARGET, STATUS_CANCELLED);
    assert_int_equal(stats(&g).stale_dropped, 4);
    coord_destroy(g.c);
}

// The target had everything: there is nothing to send.
static void test_nothing_to_send(void **state)
{
    struct rig g;
    uint64_t at, to;
    rig_init(&g, 2, 0, true);
    uint64_t id = draining(&g, &at, &to);
    done(&g, to, transfer(&g).id, KV_ROLE_TARGET, STATUS_OK);
    assert_non_null(sent_to(&g, at, MSG_CANCEL));
    cancelled(&g, at, id);
    assert_int_equal(view(&g, id).replica, to);
    coord_destroy(g.c);
}

// Landed, and then the target is gone, or the client is.
static void test_landed_and_lost(void **state)
{
    for (int client = 0; client < 2; client++) {
        struct rig g;
        uint64_t at, to;
        rig_init(&g, 2, 0, true);
        uint64_t id = draining(&g, &at, &to);
        ready(&g, to, transfer(&g).id);
        done(&g, to, transfer(&g).id, KV_ROLE_TARGET, STATUS_OK);
        if (client)
            step(&g, &(struct coord_event){.kind = COORD_CANCEL, .req = {id, 0}});
        else
            step(&g, &(struct coord_event){.kind = COORD_NODE_DOWN, .node = {to, NULL}});
        assert_int_equal(sent_to(&g, to, MSG_KV_CANCEL) != NULL, client);
        assert_int_equal(stats(&g).transferring, 0);
        cancelled(&g, at, id);
        assert_int_equal(view(&g, id).state, client ? COORD_REQ_DONE : COORD_REQ_QUEUED);
        coord_destroy(g.c);
    }
}

static void test_role_change_moves(void **state)
{
    struct rig g;
    rig_init(&g, 2, 0, true);
    uint64_t id = submit(&g, 40), at = view(&g, id).replica;
    token(&g, at, id, 0, FINISH_NONE);
    admin(&g, COORD_ROLE, "prefill", at);
    assert_int_equal(transfer(&g).request, id);
    admin(&g, COORD_ROLE, "prefill", 3 - at); // no other role is left: both serve
    assert_int_equal(transfer(&g).request, id); // what was begun goes on
    assert_int_equal(view(&g, submit(&g, LONG)).dispatches, 1);
    assert_int_equal(stats(&g).transferring, 1);
    admin(&g, COORD_ROLE, "nonsense", 1);
    for (size_t i = 0; i < g.out.n; i++)
        if (g.out.v[i].kind == COORD_ADMIN_DONE)
            assert_int_equal(g.out.v[i].admin_done.status, STATUS_BAD_REQUEST);
    coord_destroy(g.c);
}

// A replica that lives hands over before it is formed anew; one that does not get done is fenced.
static void test_failover(void **state)
{
    for (int late = 0; late < 2; late++) {
        struct rig g;
        rig_init(&g, 2, 0, true);
        uint64_t id = submit(&g, 40), at = view(&g, id).replica, to = 3 - at;
        token(&g, at, id, 0, FINISH_NONE);
        admin(&g, COORD_FAILOVER, NULL, at);
        uint64_t t = transfer(&g).id;
        assert_int_not_equal(t, 0);
        admin(&g, COORD_UNDRAIN, at == 1 ? "a" : "b", 0); // has nothing to do with it
        assert_int_equal(stats(&g).replicas_ready, 1);
        if (late) {
            g.now_us += MS(501);
            step(&g, &(struct coord_event){.kind = COORD_TIMER});
        } else {
            ready(&g, to, t);
            done(&g, to, t, KV_ROLE_TARGET, STATUS_OK);
            cancelled(&g, at, id);
        }
        assert_int_equal(view(&g, id).replica, to);
        assert_int_equal(stats(&g).transfers[COORD_TRANSFER_MOVED], !late);
        assert_non_null(sent_to(&g, at, MSG_DISSOLVE));
        assert_non_null(sent_to(&g, at, MSG_FORM));
        bool answered = false;
        for (size_t i = 0; i < g.out.n; i++)
            answered |= g.out.v[i].kind == COORD_ADMIN_DONE &&
                        g.out.v[i].admin_done.status == STATUS_OK;
        assert_true(answered);
        coord_destroy(g.c);
    }
}

static void test_rates(void **state)
{
    struct kvrate k = {0};
    assert_true(kvrate_move_pays(&k)); // nothing is known
    kvrate_computed(&k, 8, 1); // too few to tell
    assert_int_equal(kvrate_compute_us(&k, 1000), 0);
    kvrate_computed(&k, 100, 1000);
    assert_int_equal(kvrate_compute_us(&k, 1000), 10000);
    kvrate_moved(&k, 100, 500);
    assert_true(kvrate_move_pays(&k));
    for (int i = 0; i < 20; i++)
        kvrate_moved(&k, 100, 2000);
    assert_false(kvrate_move_pays(&k));
    int asked = 0;
    while (!kvrate_move_pays(&k) && asked < 1000)
        asked++;
    assert_in_range(asked, 10, 100); // the opinion fades
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_prompts_apart),
        cmocka_unit_test(test_no_other_serves),
        cmocka_unit_test(test_every_end),
        cmocka_unit_test(test_tries),
        cmocka_unit_test(test_old_and_odd),
        cmocka_unit_test(test_nothing_to_send),
        cmocka_unit_test(test_landed_and_lost),
        cmocka_unit_test(test_role_change_moves),
        cmocka_unit_test(test_failover),
        cmocka_unit_test(test_rates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
