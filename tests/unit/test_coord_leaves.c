// The coordinator's leaves, each alone: timers, table of ids, ring, placement, health, estimates, queue, arena.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "coordinator/core.h"
#include "coordinator/health.h"
#include "coordinator/placement.h"

static void test_timers_fire_in_order(void **state)
{
    enum { N = 500 };
    struct timers ts = {0};
    static struct timer t[N];
    struct prng p;
    prng_seed(&p, 3);
    memset(t, 0, sizeof t);
    for (int i = 0; i < N; i++)
        timers_arm(&ts, &t[i], prng_below(&p, 100));
    for (int i = 0; i < N; i += 3) // move some, take some out
        timers_arm(&ts, &t[i], prng_below(&p, 100));
    for (int i = 1; i < N; i += 5)
        timers_disarm(&ts, &t[i]);
    uint64_t last = 0, order = 0;
    size_t fired = 0, expected = ts.n;
    for (struct timer *x; (x = timers_pop(&ts, 100)); fired++) {
        assert_true(x->due_us > last || (x->due_us == last && x->order > order));
        last = x->due_us;
        order = x->order;
        assert_int_equal(x->slot, 0);
    }
    assert_int_equal(fired, expected);
    assert_true(timers_next(&ts) == UINT64_MAX);
    timers_finish(&ts);
}

// Against plain arrays: ids that count and random ones, coming and going.
static void test_idmap(void **state)
{
    enum { N = 3000 };
    static uint64_t ids[N];
    static bool in[N];
    struct idmap m = {0};
    struct prng p;
    prng_seed(&p, 11);
    assert_null(idmap_find(&m, 5));
    for (int i = 0; i < N; i++)
        ids[i] = i % 2 ? prng_u64(&p) | 1 : (uint64_t)i << 20 | 2;
    size_t n = 0;
    for (int k = 0; k < 20 * N; k++) {
        int i = (int)prng_below(&p, N);
        if (in[i])
            idmap_remove(&m, ids[i]);
        else
            idmap_add(&m, ids[i], &ids[i]);
        in[i] = !in[i];
        n += in[i] ? 1 : (size_t)-1;
        int j = (int)prng_below(&p, N);
        assert_ptr_equal(idmap_find(&m, ids[j]), in[j] ? &ids[j] : NULL);
        assert_int_equal(m.n, n);
    }
    for (int i = 0; i < N; i++)
        assert_ptr_equal(idmap_find(&m, ids[i]), in[i] ? &ids[i] : NULL);
    assert_null(idmap_find(&m, 0));
    idmap_finish(&m);
}

static void test_timers_not_due(void **state)
{
    struct timers ts = {0};
    struct timer t = {0};
    timers_disarm(&ts, &t);
    timers_arm(&ts, &t, 10);
    assert_null(timers_pop(&ts, 9));
    assert_ptr_equal(timers_pop(&ts, 10), &t);
    timers_finish(&ts);
}

static bool always(void *arg, uint64_t member)
{
    return true;
}

static bool not_this(void *arg, uint64_t member)
{
    return member != *(uint64_t *)arg;
}

// When one of eight goes, its keys move and no others; they spread over the rest.
static void test_ring_moves_one_nth(void **state)
{
    enum { MEMBERS = 8, KEYS = 20000 };
    static uint64_t owner[KEYS];
    struct ring r = {0};
    for (uint64_t m = 1; m <= MEMBERS; m++)
        ring_add(&r, m);
    size_t share[MEMBERS + 1] = {0};
    for (uint64_t k = 0; k < KEYS; k++)
        share[owner[k] = ring_pick(&r, hash_pair(k, 9), always, NULL)]++;
    for (uint64_t m = 1; m <= MEMBERS; m++)
        assert_in_range(share[m], KEYS / MEMBERS / 2, KEYS / MEMBERS * 2);
    ring_remove(&r, 3);
    for (uint64_t k = 0; k < KEYS; k++) {
        uint64_t now = ring_pick(&r, hash_pair(k, 9), always, NULL);
        assert_true(owner[k] == 3 ? now != 3 : now == owner[k]);
    }
    ring_add(&r, 3);
    for (uint64_t k = 0; k < KEYS; k++)
        assert_int_equal(ring_pick(&r, hash_pair(k, 9), always, NULL), owner[k]);
    ring_finish(&r);
}

static void test_ring_walks_past_full(void **state)
{
    struct ring r = {0};
    assert_int_equal(ring_pick(&r, 1, always, NULL), 0);
    uint64_t full = 1;
    ring_add(&r, 1);
    assert_int_equal(ring_pick(&r, 1, not_this, &full), 0);
    ring_add(&r, 2);
    for (uint64_t k = 0; k < 100; k++)
        assert_int_equal(ring_pick(&r, hash_pair(k, 1), not_this, &full), 2);
    ring_finish(&r);
}

static void test_ring_cap(void **state)
{
    assert_int_equal(ring_cap(0, 1), 2);   // ceil(1.25 * 1)
    assert_int_equal(ring_cap(3, 4), 2);   // mean 1
    assert_int_equal(ring_cap(39, 4), 13); // 1.25 * 10 = 12.5
    assert_int_equal(ring_cap(799, 8), 125);
}

static const struct placement_want want22 = {1, 2, 2};

static void test_placement_survivors_stay(void **state)
{
    // Three of replica 1 are left, out of order, and two blank ones.
    const struct placement_node n[] = {
        {.host = 9},
        {.host = 1, .holds = true, .held_replica = 1, .stage = 1, .tensor = 1},
        {.host = 1, .holds = true, .held_replica = 1, .stage = 0, .tensor = 1},
        {.host = 1},
        {.host = 1, .holds = true, .held_replica = 1, .stage = 0, .tensor = 0},
    };
    uint32_t ranks[4];
    assert_true(placement_assign(&want22, n, 5, ranks));
    const uint32_t expected[4] = {4, 2, 3, 1}; // the blank one on the mate's host
    assert_memory_equal(ranks, expected, sizeof ranks);
}

static void test_placement_own_replica_first(void **state)
{
    const struct placement_want want = {2, 1, 1};
    const struct placement_node n[] = {
        {.holds = true, .held_replica = 1}, {.host = 5}, {.holds = true, .held_replica = 2}};
    uint32_t rank;
    assert_true(placement_assign(&want, n, 3, &rank));
    assert_int_equal(rank, 2);
    assert_true(placement_assign(&want, n, 2, &rank));
    assert_int_equal(rank, 0); // another replica's rank, but the same weights
}

static void test_placement_tensor_ranks_on_one_host(void **state)
{
    const struct placement_node n[] = {
        {.host = 1}, {.host = 2}, {.host = 3}, {.host = 2}, {.host = 3}};
    uint32_t ranks[4];
    assert_true(placement_assign(&want22, n, 5, ranks));
    assert_int_equal(n[ranks[0]].host, n[ranks[1]].host);
    assert_int_equal(n[ranks[2]].host, n[ranks[3]].host);
}

static void test_placement_faulty_last(void **state)
{
    const struct placement_want want = {1, 1, 1};
    const struct placement_node n[] = {{.holds = true, .held_replica = 1, .faults = 1},
                                       {.host = 1}};
    uint32_t rank;
    assert_true(placement_assign(&want, n, 2, &rank));
    assert_int_equal(rank, 1);
    assert_true(placement_assign(&want, n, 1, &rank));
    assert_int_equal(rank, 0);
}

static void test_placement_too_few(void **state)
{
    const struct placement_node n[3] = {0};
    uint32_t ranks[4] = {7, 7, 7, 7};
    assert_false(placement_assign(&want22, n, 3, ranks));
    assert_int_equal(ranks[0], 7);
}

static const struct health_limits limits = {.hang_ms = 2000, .heartbeat_ms = 100};

#define RANK(s, l, k, age)                                                                         \
    {                                                                                              \
        .progress = {s, l, k, age}, .step_age_ms = 2500                                            \
    }

static void test_health_names_the_last(void **state)
{
    static const struct {
        const char *what;
        struct health_rank ranks[3];
        bool hung;
        uint32_t suspect;
    } cases[] = {
        {"all well", {{{5, 1, 1, 3}, 10, 0, 0}, {{5, 1, 1, 3}, 10, 0, 0}, {{0}, 0, 0, 0}}, 0, 0},
        {"big step that moves on", {RANK(5, 3, 1, 40), RANK(5, 3, 1, 30), RANK(5, 3, 1, 20)}, 0, 0},
        {"behind in a collective",
         {RANK(7, 5, 2, 2400), RANK(7, 5, 1, 2450), RANK(7, 5, 2, 2400)},
         1,
         1},
        {"behind in a layer",
         {RANK(7, 5, 2, 2400), RANK(7, 6, 0, 2400), RANK(7, 4, 9, 2400)},
         1,
         2},
        {"first stage is a step ahead",
         {RANK(8, 0, 0, 2100), RANK(7, 20, 1, 2600), RANK(8, 0, 0, 5)},
         1,
         1},
        {"others idle", {RANK(0, 0, 0, 0), RANK(7, 20, 1, 2600), RANK(0, 0, 0, 0)}, 1, 1},
        {"equal: the oldest",
         {RANK(7, 5, 2, 2400), RANK(7, 5, 2, 2400), RANK(7, 5, 2, 2900)},
         1,
         2},
        {"result lost: the lead", {{{0}, 2500, 0, 0}, {{0}, 0, 0, 0}, {{0}, 0, 0, 0}}, 1, 0},
        {"silent one",
         {RANK(7, 1, 0, 2400), RANK(7, 5, 2, 2400), {{7, 5, 2, 10}, 10, 0, 700000}},
         1,
         2},
        {"loop stopped", {{{0}, 0, 0, 0}, {{0}, 0, 2001, 0}, {{0}, 0, 0, 0}}, 1, 1},
        {"exactly at the limit",
         {{{7, 1, 1, 2000}, 2000, 2000, 0}, {{0}, 0, 0, 0}, {{0}, 0, 0, 0}},
         0,
         0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct health_verdict v = health_judge(&limits, cases[i].ranks, 3);
        if (v.hung != cases[i].hung || (v.hung && v.suspect != cases[i].suspect))
            fail_msg("%s: hung %d, suspect %u", cases[i].what, v.hung, v.suspect);
    }
}

static void test_eta(void **state)
{
    struct eta e;
    eta_init(&e);
    assert_false(eta_trusted(&e));
    for (int i = 0; i < ETA_TRUSTED; i++)
        eta_observe(&e, 400000, 10);
    assert_true(eta_trusted(&e));
    assert_in_range(eta_wait_us(&e, 1, 4), 99999, 100001);
    assert_in_range(eta_wait_us(&e, 10, 4), 999990, 1000010);
    assert_in_range(eta_wait_us(&e, 1, 0), 399999, 400001); // no replica: as if one place
    for (int i = 0; i < 100; i++)
        eta_observe(&e, 800000, 10);
    assert_in_range(eta_wait_us(&e, 1, 1), 799000, 800000);
}

static void test_queue_bands(void **state)
{
    struct queue q = {0};
    struct request r[6] = {
        {.id = 1, .band = 3, .prompt_n = 1}, {.id = 2, .band = 9, .prompt_n = 2},
        {.id = 3, .band = 3, .prompt_n = 3}, {.id = 4, .band = 0, .prompt_n = 4},
        {.id = 5, .band = 9, .prompt_n = 5}, {.id = 6, .band = 3, .prompt_n = 6}};
    for (int i = 0; i < 6; i++)
        queue_push(&q, &r[i]);
    assert_int_equal(q.tokens, 21);
    queue_remove(&q, &r[2]); // from the middle
    const uint64_t order[] = {2, 5, 1, 6, 4};
    struct request *x = queue_head(&q);
    for (int i = 0; i < 5; i++, x = queue_next(&q, x))
        assert_int_equal(x->id, order[i]);
    assert_null(x);
    for (int i = 0; i < 5; i++)
        queue_remove(&q, queue_head(&q));
    assert_null(queue_head(&q));
    assert_int_equal(q.tokens, 0);
}

static void test_arena_blocks_stay(void **state)
{
    struct arena a = {0};
    for (int round = 0; round < 3; round++) {
        char *first = arena_printf(&a, "round %d", round);
        for (int i = 1; i < 200; i++) {
            unsigned char *p = arena_alloc(&a, (size_t)i * 37, 1);
            assert_int_equal((uintptr_t)p % 16, 0);
            for (int k = 0; k < i * 37; k++)
                assert_int_equal(p[k], 0);
            memset(p, 0xff, (size_t)i * 37);
        }
        char expected[16];
        snprintf(expected, sizeof expected, "round %d", round);
        assert_string_equal(first, expected);
        arena_reset(&a);
    }
    arena_finish(&a);
}

static void test_request_keys(void **state)
{
    int32_t a[300], b[300];
    for (int i = 0; i < 300; i++)
        a[i] = b[i] = i;
    b[299] = 7; // beyond the prefix that counts
    struct coord_submit x = {.prompt = a, .prompt_n = 300}, y = {.prompt = b, .prompt_n = 300};
    assert_true(request_key(&x) == request_key(&y));
    b[200] = 7;
    assert_true(request_key(&x) != request_key(&y));
    x.session = y.session = 12;
    assert_true(request_key(&x) == request_key(&y));
    struct coord_submit s = {.prompt = a, .prompt_n = 5}, t = {.prompt = a, .prompt_n = 6};
    assert_true(request_key(&s) != request_key(&t));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_timers_fire_in_order),
        cmocka_unit_test(test_timers_not_due),
        cmocka_unit_test(test_idmap),
        cmocka_unit_test(test_ring_moves_one_nth),
        cmocka_unit_test(test_ring_walks_past_full),
        cmocka_unit_test(test_ring_cap),
        cmocka_unit_test(test_placement_survivors_stay),
        cmocka_unit_test(test_placement_own_replica_first),
        cmocka_unit_test(test_placement_tensor_ranks_on_one_host),
        cmocka_unit_test(test_placement_faulty_last),
        cmocka_unit_test(test_placement_too_few),
        cmocka_unit_test(test_health_names_the_last),
        cmocka_unit_test(test_eta),
        cmocka_unit_test(test_queue_bands),
        cmocka_unit_test(test_arena_blocks_stay),
        cmocka_unit_test(test_request_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
