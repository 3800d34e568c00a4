// Where requests go: the index of prefix caches against a plain model, the latency measure, and the
// choice itself, with replicas played by hand.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "coordinator/circuit.h"
#include "coordinator/coord.h"
#include "coordinator/kvindex.h"
#include "coordinator/latency.h"
#include "coordinator/retry.h"

#define MS(x) ((uint64_t)(x)*1000)
enum { REPLICAS = 4, PLACES = 8, BT = 16, BLOCKS = 64, PROMPT = 200 };

// ---- the index ----

static void test_kvindex(void **state)
{
    enum { NAMES = 2000, HOLDERS = 6 };
    static bool in[NAMES][HOLDERS + 1];
    static uint64_t names[NAMES];
    struct kvindex x = {0};
    struct prng p;
    prng_seed(&p, 5);
    memset(in, 0, sizeof in);
    for (int i = 0; i < NAMES; i++) // many share their place in the table
        names[i] = ((uint64_t)i << 32) | (prng_below(&p, 64) + 1);
    assert_null(kvindex_find(&x, 7));
    for (int k = 0; k < 30 * NAMES; k++) {
        int i = (int)prng_below(&p, NAMES);
        uint16_t h = (uint16_t)(1 + prng_below(&p, HOLDERS));
        int n = 0;
        for (int j = 1; j <= HOLDERS; j++)
            n += in[i][j];
        if (in[i][h] || prng_below(&p, 4) == 0) {
            kvindex_remove(&x, names[i], h);
            in[i][h] = false;
        } else if (kvindex_add(&x, names[i], h)) {
            in[i][h] = true;
        } else {
            assert_int_equal(n, KVINDEX_HOLDERS);
        }
    }
    size_t known = 0;
    for (int i = 0; i < NAMES; i++) {
        bool any = false;
        for (uint16_t h = 1; h <= HOLDERS; h++) {
            assert_int_equal(kvindex_holds(&x, names[i], h), in[i][h]);
            any |= in[i][h];
        }
        assert_int_equal(kvindex_find(&x, names[i]) != NULL, any);
        known += any;
    }
    assert_int_equal(x.n, known);
    assert_true(4 * x.n <= 3 * x.cap);
    kvindex_finish(&x);
}

static void test_latency(void **state)
{
    struct latency slow = {0}, all = {0};
    assert_true(latency_factor(&slow, &all, 0) == 1);
    for (int i = 0; i < 100; i++) {
        latency_first(&slow, 100000, 936, 0.125, MS(10)); // 100 us per token
        latency_step(&slow, 20000, 0.125, MS(10));
        latency_first(&all, 50000, 936, 0.125, MS(10));
        latency_step(&all, 10000, 0.125, MS(10));
    }
    double f = latency_factor(&slow, &all, MS(10));
    assert_true(f > 1.9 && f < 2.1);
    assert_true(latency_factor(&slow, &all, MS(20000)) == 1); // that was long ago
    for (int i = 0; i < 200; i++)
        latency_first(&slow, 100000000, 0, 0.5, MS(10));
    assert_true(latency_factor(&slow, &all, MS(10)) == 4);
}

// ---- the choice ----

struct rig {
    struct coord *c;
    struct coord_actions out;
    uint64_t now_us, next_id;
    uint64_t epochs[REPLICAS + 1], seqs[REPLICAS + 1];
};

static void step(struct rig *g, struct coord_event *ev)
{
    ev->now_us = g->now_us;
    coord_step(g->c, ev, &g->out);
    coord_check(g->c);
}

static void from(struct rig *g, uint64_t replica, struct msg m)
{
    step(g, &(struct coord_event){.kind = COORD_NODE_MSG, .node = {replica, &m}});
}

static const struct msg *sent(const struct rig *g, enum msg_kind kind)
{
    for (size_t i = 0; i < g->out.n; i++)
        if (g->out.v[i].kind == COORD_SEND && g->out.v[i].send.msg->kind == kind)
            return g->out.v[i].send.msg;
    return NULL;
}

static void rig_init(struct rig *g, uint32_t prefix_blocks)
{
    struct coord_config k;
    struct errmsg err = {0};
    *g = (struct rig){.now_us = MS(1000), .next_id = 1};
    coord_config_default(&k);
    k.trace = LOG_OFF;
    k.model_dir = "m";
    k.replicas = REPLICAS;
    k.prefix_blocks = prefix_blocks;
    k.heartbeat_timeout_ms = k.warmup_silence_ms = 1000000;
    g->c = coord_create(&k, &err);
    if (!g->c)
        fail_msg("%s", err.text);
    for (uint64_t i = 1; i <= REPLICAS; i++) { // connection i is the lead of replica i
        char name[8];
        snprintf(name, sizeof name, "n%u", (unsigned)i);
        struct msg m = {.kind = MSG_HELLO,
                        .hello = {.version = MSG_VERSION,
                                  .name = name,
                                  .incarnation = 1,
                                  .host = "h",
                                  .backend = "mock"}};
        step(g, &(struct coord_event){.kind = COORD_NODE_UP, .node = {i, &m}});
        uint64_t epoch = sent(g, MSG_FORM)->form.epoch;
        g->epochs[i] = epoch;
        assert_int_equal(sent(g, MSG_FORM)->form.replica, i);
        from(g, i, (struct msg){.kind = MSG_PREPARED, .prepared = {i, epoch, {"s", "t", ""}}});
        from(g, i,
             (struct msg){.kind = MSG_FORMED,
                          .formed = {.replica = i,
                                     .epoch = epoch,
                                     .text = "",
                                     .fingerprint = 7,
                                     .max_seqs = PLACES,
                                     .max_context = 1000,
                                     .kv_blocks = BLOCKS,
                                     .block_tokens = BT}});
    }
}

// A prompt of one family: the first `same` tokens are equal.
static void make_prompt(int32_t *p, int32_t family, uint32_t same, int32_t tail)
{
    for (uint32_t i = 0; i < PROMPT; i++)
        p[i] = i < same ? (int32_t)(family * 1000 + i) : (int32_t)(100000 + tail * 1000 + i);
}

// Replica r tells that it has the first n blocks of the prompt, in its blocks first, first + 1 ...
static void tell(struct rig *g, uint64_t r, const int32_t *prompt, uint32_t first, uint32_t n)
{
    struct kv_change ch[BLOCKS];
    uint64_t name = 0;
    for (uint32_t i = 0; i < n; i++) {
        name = hash_block(name, prompt + (size_t)i * BT, BT);
        ch[i] = (struct kv_change){first + i, name};
    }
    from(g, r,
         (struct msg){.kind = MSG_KV_CACHED,
                      .kv_cached = {.replica = r,
                                    .epoch = g->epochs[r],
                                    .seq = ++g->seqs[r],
                                    .changes = ch,
                                    .changes_n = n}});
}

// Returns the replica.
static uint64_t submit(struct rig *g, const int32_t *prompt, uint64_t session)
{
    struct coord_submit s = {.request = g->next_id++,
                             .prompt = prompt,
                             .prompt_n = PROMPT,
                             .max_tokens = 10,
                             .session = session,
                             .sampling = {.top_p = 1}};
    step(g, &(struct coord_event){.kind = COORD_SUBMIT, .submit = s});
    const struct msg *d = sent(g, MSG_DISPATCH);
    return d ? d->dispatch.replica : 0;
}

static void end(struct rig *g, uint64_t replica, uint64_t request)
{
    struct token_out t = {.request = request, .index = 0, .token = 3, .finish = FINISH_STOP};
    from(g, replica,
         (struct msg){
             .kind = MSG_TOKENS,
             .tokens = {
                 .replica = replica, .epoch = g->epochs[replica], .tokens = &t, .tokens_n = 1}});
}

static uint32_t cached(const struct rig *g)
{
    struct coord_stats s;
    coord_stats(g->c, &s);
    return (uint32_t)s.cached_blocks;
}

static void test_goes_to_its_prefix(void **state)
{
    struct rig g;
    int32_t p[PROMPT];
    rig_init(&g, 1 << 20);
    for (uint64_t r = 1; r <= REPLICAS; r++) { // wherever the ring points
        make_prompt(p, (int32_t)r, PROMPT, 0);
        tell(&g, r, p, 0, PROMPT / BT);
        assert_int_equal(submit(&g, p, 0), r);
        end(&g, r, g.next_id - 1);
        assert_int_equal(submit(&g, p, 77), r); // the session's place is another one
        end(&g, r, g.next_id - 1);
    }
    assert_int_equal(cached(&g), REPLICAS * (PROMPT / BT));
    // Of two the one that has more of it.
    make_prompt(p, 9, PROMPT, 0);
    tell(&g, 1, p, 20, 3);
    tell(&g, 3, p, 20, 10);
    assert_int_equal(submit(&g, p, 0), 3);
    coord_destroy(g.c);
}

static void test_bounded_load(void **state)
{
    struct rig g;
    int32_t p[PROMPT];
    uint32_t load[REPLICAS + 1] = {0};
    rig_init(&g, 1 << 20);
    make_prompt(p, 1, PROMPT, 0);
    tell(&g, 2, p, 0, PROMPT / BT);
    for (int i = 0; i < REPLICAS * PLACES / 2; i++) // one prompt that all ask
        load[submit(&g, p, 0)]++;
    uint32_t most = 0;
    for (int r = 1; r <= REPLICAS; r++)
        most = load[r] > most ? load[r] : most;
    assert_int_equal(load[2], most);
    assert_in_range(most, PLACES / 2, PLACES / 2 * 5 / 4 + 1); // 1.25 x mean, rounded up
    coord_destroy(g.c);
}

static void test_a_common_beginning_is_no_reason(void **state)
{
    struct rig g;
    int32_t p[PROMPT];
    uint32_t at[REPLICAS + 1] = {0};
    rig_init(&g, 1 << 20);
    make_prompt(p, 1, BT, 0); // one block of 12 that all share
    tell(&g, 1, p, 0, 1);
    for (int i = 0; i < 60; i++) {
        make_prompt(p, 1, BT, i + 1);
        uint64_t r = submit(&g, p, (uint64_t)i + 1);
        at[r]++;
        end(&g, r, g.next_id - 1);
    }
    assert_true(at[1] < 45); // most keys' places are elsewhere, and idle
    coord_destroy(g.c);
}

static void test_lost_report(void **state)
{
    struct rig g;
    int32_t p[PROMPT];
    rig_init(&g, 1 << 20);
    make_prompt(p, 1, PROMPT, 0);
    tell(&g, 2, p, 0, 4);
    assert_int_equal(cached(&g), 4);
    g.seqs[2]++; // one is lost
    tell(&g, 2, p, 4, 4);
    assert_int_equal(cached(&g), 0);
    assert_true(sent(&g, MSG_KV_LIST)->kv_list.all);
    tell(&g, 2, p, 8, 4); // was under way
    assert_null(sent(&g, MSG_KV_LIST));
    assert_int_equal(cached(&g), 0);
    struct kv_change ch = {5, 1234};
    struct msg m = {.kind = MSG_KV_CACHED,
                    .kv_cached = {.replica = 2,
                                  .epoch = g.epochs[2],
                                  .seq = ++g.seqs[2],
                                  .reset = true,
                                  .more = true,
                                  .changes = &ch,
                                  .changes_n = 1}};
    from(&g, 2, m);
    assert_int_equal(cached(&g), 1);
    assert_false(sent(&g, MSG_KV_LIST)->kv_list.all); // the rest
    tell(&g, 2, p, 6, 3);
    assert_int_equal(cached(&g), 4);
    // A name goes, and comes again in another block, in one report.
    struct kv_change moved[] = {{7, 1234}, {5, 0}};
    m.kv_cached = (struct msg_kv_cached){
        .replica = 2, .epoch = g.epochs[2], .seq = ++g.seqs[2], .changes = moved, .changes_n = 2};
    from(&g, 2, m);
    assert_int_equal(cached(&g), 3);
    // Blocks that cannot be are counted, not stored.
    struct coord_stats s;
    struct kv_change bad = {BLOCKS, 99};
    m.kv_cached.seq = ++g.seqs[2];
    m.kv_cached.changes = &bad;
    m.kv_cached.changes_n = 1;
    from(&g, 2, m);
    coord_stats(g.c, &s);
    assert_int_equal(s.protocol_errors, 1);
    assert_int_equal(cached(&g), 3);
    // A fence takes all of it.
    step(&g, &(struct coord_event){.kind = COORD_ADMIN,
                                   .admin = {.op = COORD_FAILOVER, .target = "", .replica = 2}});
    assert_int_equal(cached(&g), 0);
    coord_destroy(g.c);
}

static void test_limit(void **state)
{
    struct rig g;
    int32_t p[PROMPT];
    rig_init(&g, REPLICAS * 5);
    make_prompt(p, 1, PROMPT, 0);
    tell(&g, 2, p, 0, 12);
    assert_int_equal(cached(&g), 5);
    coord_destroy(g.c);
    rig_init(&g, 0);
    tell(&g, 2, p, 0, 12);
    assert_int_equal(cached(&g), 0);
    coord_destroy(g.c);
}

// One replica answers four times slower: keys of its own go to their second place, as far as that
// is not busier, and it keeps some work.
static void test_slow_replica(void **state)
{
    struct rig g;
    int32_t p[PROMPT];
    uint32_t at[REPLICAS + 1] = {0};
    rig_init(&g, 1 << 20);
    for (int i = 0; i < 400; i++) {
        make_prompt(p, 0, 0, i);
        uint64_t r = submit(&g, p, (uint64_t)i + 1);
        at[r] += i >= 200;
        g.now_us += r == 1 ? MS(40) : MS(10);
        end(&g, r, g.next_id - 1);
    }
    for (int r = 2; r <= REPLICAS; r++)
        assert_true(at[r] > 2 * at[1]);
    coord_destroy(g.c);
}

// ---- circuit breakers and the retry budget ----

static void test_circuit_machine(void **state)
{
    struct circuit c = {0};
    const struct circuit_limits lim = {.failures = 3,
                                       .window_us = MS(1000),
                                       .open_us = MS(100),
                                       .open_max_us = MS(300),
                                       .successes = 2};
    assert_false(circuit_failed(&c, &lim, MS(0)));
    assert_false(circuit_failed(&c, &lim, MS(10)));
    assert_false(circuit_failed(&c, &lim, MS(2000))); // the first two are forgotten
    assert_false(circuit_failed(&c, &lim, MS(2001)));
    assert_true(circuit_failed(&c, &lim, MS(2002)));
    assert_false(circuit_failed(&c, &lim, MS(2003))); // open already
    assert_false(circuit_tick(&c, MS(2101)));
    assert_true(circuit_tick(&c, MS(2102)));
    assert_int_equal(c.state, CIRCUIT_HALF_OPEN);
    assert_false(circuit_succeeded(&c, &lim));
    assert_true(
        circuit_failed(&c, &lim, MS(2110))); // one is enough now, and it takes twice as long
    assert_true(c.until_us == MS(2310));
    assert_true(circuit_tick(&c, MS(2310)));
    assert_true(circuit_failed(&c, &lim, MS(2310)));
    assert_true(c.until_us == MS(2610)); // the longest
    assert_true(circuit_tick(&c, MS(2610)));
    assert_false(circuit_succeeded(&c, &lim));
    assert_true(circuit_succeeded(&c, &lim));
    assert_int_equal(c.state, CIRCUIT_CLOSED);
    const struct circuit_limits never = {0};
    for (int i = 0; i < 100; i++)
        assert_false(circuit_failed(&c, &never, MS(i)));
}

static void test_retry_bucket(void **state)
{
    struct retry r = {0};
    const struct retry_limits lim = {50, 1000}, none = {0, 0};
    assert_true(retry_allows(&r, &lim, 99, 2));
    retry_spend(&r, &lim, 1500);
    assert_false(retry_allows(&r, &lim, 2, 2));
    assert_true(retry_allows(&r, &lim, 1, 2)); // one for each replica, whatever happens
    assert_true(retry_allows(&r, &none, 99, 1));
    retry_earn(&r, &lim, 1000);
    assert_false(retry_allows(&r, &lim, 2, 2)); // level 0
    retry_earn(&r, &lim, 2);
    assert_true(retry_allows(&r, &lim, 2, 2));
    retry_earn(&r, &lim, 1000000);
    assert_true(retry_left(&r, &lim) == 1000);
}

static void token(struct rig *g, uint64_t replica, struct token_out t)
{
    from(g, replica,
         (struct msg){
             .kind = MSG_TOKENS,
             .tokens = {
                 .replica = replica, .epoch = g->epochs[replica], .tokens = &t, .tokens_n = 1}});
}

struct look {
    uint64_t replica;
    const char *circuit;
    bool serves;
};

static bool see(void *arg, const struct coord_replica_view *v)
{
    struct look *l = arg;
    if (v->id == l->replica) {
        l->circuit = v->circuit;
        l->serves = v->serves;
    }
    return true;
}

static const char *circuit_of(struct rig *g, uint64_t replica)
{
    struct look l = {.replica = replica};
    coord_each_replica(g->c, see, &l);
    assert_int_equal(l.serves, strcmp(l.circuit, "open") != 0);
    return l.circuit;
}

// A lead that refuses what others serve gets a pause, then a trial; its requests lose nothing.
static void test_a_lead_that_refuses(void **state)
{
    struct rig g;
    int32_t p[PROMPT];
    rig_init(&g, 1 << 20);
    for (int i = 0; i < 3; i++) {
        make_prompt(p, 1, PROMPT, 0);
        tell(&g, 2, p, 0, 12); // all of them go there
        assert_string_equal(circuit_of(&g, 2), "closed");
        assert_int_equal(submit(&g, p, 0), 2);
        uint64_t id = g.next_id - 1;
        token(&g, 2, (struct token_out){.request = id, .token = -1, .finish = FINISH_ERROR});
        uint64_t other = sent(&g, MSG_DISPATCH)->dispatch.replica;
        assert_int_not_equal(other, 2);
        end(&g, other, id);
        struct coord_request_view v;
        assert_true(coord_request_find(g.c, id, &v));
        assert_int_equal(v.finish, FINISH_STOP);
    }
    assert_string_equal(circuit_of(&g, 2), "open");
    for (int i = 0; i < 3 * PLACES; i++) // a load that would fill it as well
        assert_int_not_equal(submit(&g, p, (uint64_t)i + 1), 2);
    g.now_us += MS(5000);
    step(&g, &(struct coord_event){.kind = COORD_TIMER});
    assert_string_equal(circuit_of(&g, 2), "half-open");
    uint64_t tried[8];
    uint32_t n = 0;
    for (int i = 0; i < 8; i++) // three at a time
        if (submit(&g, p, 0) == 2)
            tried[n++] = g.next_id - 1;
    assert_int_equal(n, 3);
    for (uint32_t i = 0; i < n; i++)
        end(&g, 2, tried[i]);
    assert_string_equal(circuit_of(&g, 2), "closed");
    coord_destroy(g.c);
}

// A request that nobody can serve ends with an error, and nobody is blamed for it.
static void test_a_poisoned_request(void **state)
{
    struct rig g;
    int32_t p[PROMPT];
    make_prompt(p, 1, PROMPT, 0);
    rig_init(&g, 1 << 20);
    for (int i = 0; i < 6; i++) {
        uint64_t r = submit(&g, p, 0), id = g.next_id - 1, seen = 0;
        for (int k = 0; k < 3; k++) {
            assert_true(r && r != seen);
            seen = r; // not where it was refused just now
            token(&g, r, (struct token_out){.request = id, .token = -1, .finish = FINISH_ERROR});
            r = sent(&g, MSG_DISPATCH) ? sent(&g, MSG_DISPATCH)->dispatch.replica : 0;
        }
        assert_int_equal(r, 0);
        struct coord_request_view v;
        assert_true(coord_request_find(g.c, id, &v));
        assert_int_equal(v.finish, FINISH_ERROR);
    }
    for (uint64_t r = 1; r <= REPLICAS; r++)
        assert_string_equal(circuit_of(&g, r), "closed");
    coord_destroy(g.c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kvindex),
        cmocka_unit_test(test_latency),
        cmocka_unit_test(test_goes_to_its_prefix),
        cmocka_unit_test(test_bounded_load),
        cmocka_unit_test(test_a_common_beginning_is_no_reason),
        cmocka_unit_test(test_lost_report),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_slow_replica),
        cmocka_unit_test(test_circuit_machine),
        cmocka_unit_test(test_retry_bucket),
        cmocka_unit_test(test_a_lead_that_refuses),
        cmocka_unit_test(test_a_poisoned_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
