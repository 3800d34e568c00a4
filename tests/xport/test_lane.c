// Hubs and lanes: ranks as threads of one process. Linking up, epochs, messages with credits, loss,
// abort.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "node/lane.h"
#include "tests/xport/world.h"

enum { RANKS_MAX = 6, MESSAGES = 400, SLOT_BYTES = 20000 };

struct team {
    uint32_t ranks;
    struct lane_hub *hubs[RANKS_MAX];
    const char *addresses[RANKS_MAX];
    uint64_t epoch[RANKS_MAX];
    int failed[RANKS_MAX];
};

struct member {
    struct team *team;
    uint32_t rank;
};

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "rank %u, line %d: %s\n", m->rank, __LINE__, #cond);                   \
            m->team->failed[m->rank]++;                                                            \
            return NULL;                                                                           \
        }                                                                                          \
    } while (0)

static struct lane_hub *hub_open(void)
{
    struct lane_hub *h;
    struct errmsg e = {{0}};
    struct lane_hub_config c = {.kind = world_kind, .bind_host = world_host(), .wire = world_wire};
    if (lane_hub_open(&c, &h, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    return h;
}

static void team_open(struct team *t, uint32_t ranks)
{
    *t = (struct team){.ranks = ranks};
    for (uint32_t r = 0; r < ranks; r++) {
        t->hubs[r] = hub_open();
        t->addresses[r] = lane_hub_address(t->hubs[r]);
        t->epoch[r] = 5;
    }
}

static void team_close(struct team *t)
{
    for (uint32_t r = 0; r < t->ranks; r++)
        lane_hub_close(t->hubs[r]);
}

static void team_run(struct team *t, void *(*body)(void *))
{
    pthread_t threads[RANKS_MAX];
    struct member members[RANKS_MAX];
    for (uint32_t r = 0; r < t->ranks; r++) {
        members[r] = (struct member){t, r};
        pthread_create(&threads[r], NULL, body, &members[r]);
    }
    for (uint32_t r = 0; r < t->ranks; r++)
        pthread_join(threads[r], NULL);
    for (uint32_t r = 0; r < t->ranks; r++)
        assert_int_equal(t->failed[r], 0);
}

static enum status begin(struct member *m)
{
    struct lane_group g = {m->team->epoch[m->rank], m->rank, m->team->ranks};
    return lane_hub_begin(m->team->hubs[m->rank], &g, NULL);
}

// Every rank sends MESSAGES to the next one in a ring, of odd sizes, through two slots.
static void *ring_body(void *arg)
{
    struct member *m = arg;
    struct lane_hub *h = m->team->hubs[m->rank];
    uint32_t n = m->team->ranks, next = (m->rank + 1) % n, before = (m->rank + n - 1) % n;
    struct errmsg e = {{0}};
    CHECK(begin(m) == STATUS_OK);
    struct lane_config out = {.channel = 3, .peer = next, .slots = 2, .slot_bytes = SLOT_BYTES};
    struct lane_config in = out;
    in.peer = before;
    struct lane *tx, *rx;
    CHECK(lane_open_tx(h, &out, &tx, &e) == STATUS_OK);
    CHECK(lane_open_rx(h, &in, &rx, &e) == STATUS_OK);
    enum status s = lane_hub_connect(h, m->team->addresses, 60000, &e);
    if (s != STATUS_OK)
        fprintf(stderr, "%s\n", e.text);
    CHECK(s == STATUS_OK);
    static char too_large[SLOT_BYTES + 1];
    CHECK(lane_send(tx, too_large, sizeof too_large) == STATUS_TOO_LARGE);
    for (uint32_t i = 0; i < MESSAGES; i++) {
        void *slot;
        CHECK(lane_reserve_wait(tx, 20000, &slot) == STATUS_OK);
        size_t size = i % 7 == 0 ? i % 2 * SLOT_BYTES : i * 131 % SLOT_BYTES;
        fill(slot, size, i * 64 + m->rank);
        CHECK(lane_commit(tx, size) == STATUS_OK);
        const void *bytes;
        size_t got;
        CHECK(lane_recv_wait(rx, 20000, &bytes, &got) == STATUS_OK);
        CHECK(got == size && filled(bytes, got, i * 64 + before));
        lane_release(rx);
    }
    return NULL;
}

static void test_ring_over_epochs(void **state)
{
    static const uint32_t sizes[] = {2, 3, 6};
    for (int i = 0; i < 3; i++) {
        struct team t;
        team_open(&t, sizes[i]);
        for (int epoch = 1; epoch <= 3; epoch++) { // the same hubs and addresses
            for (uint32_t r = 0; r < t.ranks; r++)
                t.epoch[r] = (uint64_t)epoch * 4096 * 1024 + (uint64_t)epoch;
            team_run(&t, ring_body);
        }
        team_close(&t);
    }
}

// A sender without credit is told so; credits come back in order.
static void *credit_body(void *arg)
{
    struct member *m = arg;
    struct lane_hub *h = m->team->hubs[m->rank];
    CHECK(begin(m) == STATUS_OK);
    struct lane_config c = {.channel = 0, .peer = !m->rank, .slots = 3, .slot_bytes = 8};
    struct lane *l;
    CHECK((m->rank ? lane_open_rx : lane_open_tx)(h, &c, &l, NULL) == STATUS_OK);
    CHECK(lane_hub_connect(h, m->team->addresses, 60000, NULL) == STATUS_OK);
    const void *bytes;
    size_t n;
    if (m->rank == 0) {
        for (int i = 0; i < 3; i++)
            CHECK(lane_send(l, &i, sizeof i) == STATUS_OK);
        CHECK(lane_send(l, "x", 1) == STATUS_FULL);
        void *slot;
        CHECK(lane_reserve_wait(l, 60, &slot) == STATUS_DEADLINE);
        CHECK(lane_reserve_wait(l, 20000, &slot) == STATUS_OK);
        CHECK(lane_commit(l, 0) == STATUS_OK);
        while (lane_hub_peer(h, 1) == STATUS_OK)
            lane_hub_wait(h, 1000);
        CHECK(lane_send(l, "x", 1) == STATUS_LINK_DOWN);
        uint32_t rank = 77;
        CHECK(lane_hub_fault(h, &rank) == STATUS_LINK_DOWN && rank == 1);
        return NULL;
    }
    sleep_ms(150);
    for (int i = 0; i < 3; i++) {
        CHECK(lane_recv_wait(l, 20000, &bytes, &n) == STATUS_OK);
        CHECK(n == sizeof i && !memcmp(bytes, &i, n));
        lane_release(l);
    }
    CHECK(lane_recv_wait(l, 20000, &bytes, &n) == STATUS_OK && n == 0);
    lane_release(l);
    CHECK(lane_recv_wait(l, 30, &bytes, &n) == STATUS_DEADLINE);
    struct lane_group next = {m->team->epoch[1] + 1, 1, 2}; // leaves
    CHECK(lane_hub_begin(h, &next, NULL) == STATUS_OK);
    return NULL;
}

static void test_credits_and_loss(void **state)
{
    struct team t;
    team_open(&t, 2);
    team_run(&t, credit_body);
    team_close(&t);
}

// What came before the loss is still given.
static void *last_words_body(void *arg)
{
    struct member *m = arg;
    struct lane_hub *h = m->team->hubs[m->rank];
    CHECK(begin(m) == STATUS_OK);
    struct lane_config c = {.channel = 0, .peer = !m->rank, .slots = 4, .slot_bytes = 8};
    struct lane_config go = {.channel = 1, .peer = !m->rank, .slots = 1, .slot_bytes = 8};
    struct lane *l, *start;
    const void *bytes;
    size_t n;
    CHECK((m->rank ? lane_open_rx : lane_open_tx)(h, &c, &l, NULL) == STATUS_OK);
    CHECK((m->rank ? lane_open_tx : lane_open_rx)(h, &go, &start, NULL) == STATUS_OK);
    CHECK(lane_hub_connect(h, m->team->addresses, 60000, NULL) == STATUS_OK);
    if (m->rank == 0) {
        CHECK(lane_recv_wait(start, 20000, &bytes, &n) == STATUS_OK);
        CHECK(lane_send(l, "one", 3) == STATUS_OK && lane_send(l, "two", 3) == STATUS_OK);
        struct lane_group next = {6, 0, 2};
        CHECK(lane_hub_begin(h, &next, NULL) == STATUS_OK);
        return NULL;
    }
    CHECK(lane_send(start, "go", 2) == STATUS_OK);
    while (lane_hub_peer(h, 0) == STATUS_OK)
        lane_hub_wait(h, 1000);
    CHECK(lane_recv(l, &bytes, &n) == STATUS_OK && !memcmp(bytes, "one", 3));
    lane_release(l);
    CHECK(lane_recv(l, &bytes, &n) == STATUS_OK && !memcmp(bytes, "two", 3));
    lane_release(l);
    CHECK(lane_recv(l, &bytes, &n) == STATUS_LINK_DOWN);
    return NULL;
}

static void test_last_words(void **state)
{
    struct team t;
    team_open(&t, 2);
    team_run(&t, last_words_body);
    team_close(&t);
}

// --- linking up ---

static pthread_barrier_t all_linked;

// Rank 0 loses rank 1 while rank 2's links to both stand: rank 2 hears of it, or it might wait for
// something of theirs that never comes.
static void *told_body(void *arg)
{
    struct member *m = arg;
    struct lane_hub *h = m->team->hubs[m->rank];
    enum status s = begin(m);
    if (s == STATUS_OK)
        s = lane_hub_connect(h, m->team->addresses, 60000, NULL);
    pthread_barrier_wait(&all_linked);
    CHECK(s == STATUS_OK);
    if (m->rank == 0) {
        lane_hub_drop(h, 1, STATUS_LINK_DOWN);
        lane_hub_poll(h);
    }
    uint32_t lost = 77;
    uint64_t end = now_us() + 10 * 1000000;
    while (lane_hub_fault(h, &lost) == STATUS_OK && now_us() < end)
        lane_hub_wait(h, 100);
    CHECK(lane_hub_fault(h, &lost) == STATUS_LINK_DOWN);
    CHECK(m->rank == 2 ? lost == 0 || lost == 1 : lost == !m->rank);
    CHECK(m->rank != 2 || (lane_hub_peer(h, 0) == STATUS_OK && lane_hub_peer(h, 1) == STATUS_OK));
    return NULL;
}

static void test_loss_is_told_to_all(void **state)
{
    struct team t;
    team_open(&t, 3);
    pthread_barrier_init(&all_linked, NULL, 3);
    team_run(&t, told_body);
    pthread_barrier_destroy(&all_linked);
    team_close(&t);
}

static void test_missing_rank_is_named(void **state)
{
    struct team t;
    team_open(&t, 3);
    struct lane_group g = {5, 1, 3};
    struct errmsg e = {{0}};
    assert_int_equal(lane_hub_begin(t.hubs[1], &g, &e), STATUS_OK);
    uint64_t start = now_us();
    assert_int_equal(lane_hub_connect(t.hubs[1], t.addresses, 200, &e), STATUS_LINK_TIMEOUT);
    assert_in_range(now_us() - start, 190000, NOTICED_US);
    assert_non_null(strstr(e.text, "rank 0"));
    assert_non_null(strstr(e.text, "rank 2"));
    assert_null(strchr(e.text, '#'));
    // A rank that is not wanted is not missed; no address at all is an address of nobody.
    const char *none[3] = {NULL, NULL, NULL};
    assert_int_equal(lane_hub_connect(t.hubs[1], none, 200, &e), STATUS_OK);
    const char *bad[3] = {NULL, NULL, "nonsense"};
    assert_int_equal(lane_hub_connect(t.hubs[1], bad, 200, &e), STATUS_BAD_CONFIG);
    team_close(&t);
}

static void *connect_only(void *arg)
{
    struct member *m = arg;
    struct errmsg e = {{0}};
    CHECK(begin(m) == STATUS_OK);
    struct lane_hub *h = m->team->hubs[m->rank];
    uint64_t own = m->team->epoch[m->rank], other = m->team->epoch[!m->rank];
    enum status s = lane_hub_connect(h, m->team->addresses, 400, &e);
    if (own == other)
        CHECK(s == STATUS_OK);
    else if (own < other && m->rank == 0) // the caller is told
        CHECK(s == STATUS_STALE_EPOCH && strstr(e.text, "epoch"));
    else
        CHECK(s == STATUS_LINK_TIMEOUT && strstr(e.text, m->rank ? "rank 0" : "rank 1"));
    return NULL;
}

static void test_epochs_do_not_mix(void **state)
{
    static const uint64_t cases[][2] = {{5, 6}, {6, 5}, {5, 5}, {1, 4097}, {4097, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct team t;
        team_open(&t, 2);
        t.epoch[0] = cases[i][0];
        t.epoch[1] = cases[i][1];
        team_run(&t, connect_only);
        team_close(&t);
    }
}

// One rank comes late: the others keep calling.
static void *late_body(void *arg)
{
    struct member *m = arg;
    struct errmsg e = {{0}};
    if (m->rank == 2)
        sleep_ms(300);
    CHECK(begin(m) == STATUS_OK);
    enum status s = lane_hub_connect(m->team->hubs[m->rank], m->team->addresses, 60000, &e);
    if (s != STATUS_OK)
        fprintf(stderr, "%s\n", e.text);
    CHECK(s == STATUS_OK);
    return NULL;
}

static void test_late_rank(void **state)
{
    struct team t;
    team_open(&t, 4);
    team_run(&t, late_body);
    team_close(&t);
}

static void *abort_later(void *arg)
{
    struct member *m = arg;
    sleep_ms(50);
    lane_hub_abort(m->team->hubs[m->rank], m->team->epoch[m->rank]);
    return NULL;
}

static void test_abort(void **state)
{
    struct team t;
    team_open(&t, 2);
    struct member m = {&t, 1};
    pthread_t thread;
    struct errmsg e = {{0}};
    assert_int_equal(begin(&m), STATUS_OK);
    pthread_create(&thread, NULL, abort_later, &m);
    uint64_t start = now_us();
    assert_int_equal(lane_hub_connect(t.hubs[1], t.addresses, 60000, &e), STATUS_ABORTED);
    assert_in_range(now_us() - start, 40000, NOTICED_US);
    pthread_join(thread, NULL);

    t.epoch[1]++; // the next epoch is not aborted, until it is
    struct lane_config c = {.channel = 1, .peer = 0, .slots = 1, .slot_bytes = 1};
    struct lane *l;
    const void *bytes;
    size_t n;
    assert_int_equal(begin(&m), STATUS_OK);
    assert_int_equal(lane_open_rx(t.hubs[1], &c, &l, &e), STATUS_OK);
    assert_int_equal(lane_recv(l, &bytes, &n), STATUS_AGAIN);
    pthread_create(&thread, NULL, abort_later, &m);
    start = now_us();
    assert_int_equal(lane_recv_wait(l, -1, &bytes, &n), STATUS_ABORTED);
    assert_in_range(now_us() - start, 40000, NOTICED_US);
    pthread_join(thread, NULL);
    team_close(&t);
}

static void test_bad_lanes(void **state)
{
    static const struct lane_config bad[] = {
        {.channel = LANE_CHANNELS, .peer = 0, .slots = 1, .slot_bytes = 1},
        {.channel = 1, .peer = 1, .slots = 1, .slot_bytes = 1}, // itself
        {.channel = 1, .peer = 2, .slots = 1, .slot_bytes = 1},
        {.channel = 1, .peer = 0, .slots = 0, .slot_bytes = 1},
        {.channel = 1, .peer = 0, .slots = 1, .slot_bytes = 0},
        {.channel = 1, .peer = 0, .slots = 65536, .slot_bytes = SIZE_MAX},
    };
    struct team t;
    team_open(&t, 2);
    struct member m = {&t, 1};
    assert_int_equal(begin(&m), STATUS_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct lane *l;
        struct errmsg e = {{0}};
        assert_int_equal(lane_open_rx(t.hubs[1], &bad[i], &l, &e), STATUS_BAD_CONFIG);
        assert_int_equal(lane_open_tx(t.hubs[1], &bad[i], &l, &e), STATUS_BAD_CONFIG);
        assert_true(strlen(e.text) > 0);
    }
    struct lane_config c = {.channel = 1, .peer = 0, .slots = 1, .slot_bytes = 1};
    struct lane *l;
    struct errmsg e = {{0}};
    assert_int_equal(lane_open_rx(t.hubs[1], &c, &l, &e), STATUS_OK);
    assert_int_equal(lane_open_rx(t.hubs[1], &c, &l, &e), STATUS_EXISTS);
    team_close(&t);
}

#define T(f) cmocka_unit_test_setup_teardown(f, fds_before, fds_after)

int main(int argc, char **argv)
{
    world_init(argc, argv);
    const struct CMUnitTest tests[] = {
        T(test_ring_over_epochs),
        T(test_credits_and_loss),
        T(test_last_words),
        T(test_loss_is_told_to_all),
        T(test_missing_rank_is_named),
        T(test_epochs_do_not_mix),
        T(test_late_rank),
        T(test_abort),
        T(test_bad_lanes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
