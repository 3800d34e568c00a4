// node/transports.c: which transport a replica's ranks choose, and when RDMA rests.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "node/transports.h"

// Two ranks; what each offers, of "stv" (shared memory, TCP, verbs).
struct pair {
    const char *hosts[2], *offers[2];
};

static enum status choose(enum transport_choice choice, const struct pair *p, enum xport_kind *kind,
                          int *fallback, struct errmsg *e)
{
    struct link_member m[2];
    for (int i = 0; i < 2; i++)
        m[i] = (struct link_member){
            .name = i ? "beta" : "alpha",
            .host = p->hosts[i],
            .addresses = {.shm = strchr(p->offers[i], 's') ? "shm:1" : "",
                          .tcp = strchr(p->offers[i], 't') ? "tcp:1" : "",
                          .verbs = strchr(p->offers[i], 'v') ? "verbs:1" : ""}};
    const struct transports_want want = {.choice = choice, .members = m, .members_n = 2};
    return transports_choose(&want, kind, fallback, e);
}

static void test_choice(void **state)
{
    static const struct {
        enum transport_choice choice;
        struct pair ranks;
        enum xport_kind kind;
        int fallback;
    } cases[] = {
        {TRANSPORT_AUTO, {{"a", "a"}, {"stv", "stv"}}, XPORT_SHM, -1},
        {TRANSPORT_AUTO, {{"a", "b"}, {"stv", "stv"}}, XPORT_VERBS, -1},
        {TRANSPORT_AUTO, {{"a", "b"}, {"stv", "st"}}, XPORT_TCP, -1},
        {TRANSPORT_AUTO, {{"a", "a"}, {"tv", "stv"}}, XPORT_VERBS, -1},
        {TRANSPORT_SHM, {{"a", "a"}, {"stv", "stv"}}, XPORT_SHM, -1},
        {TRANSPORT_TCP, {{"a", "a"}, {"stv", "stv"}}, XPORT_TCP, -1},
        {TRANSPORT_VERBS, {{"a", "a"}, {"stv", "stv"}}, XPORT_VERBS, -1},
        {TRANSPORT_VERBS, {{"a", "b"}, {"stv", "st"}}, XPORT_TCP, 1},
        {TRANSPORT_VERBS, {{"a", "b"}, {"t", "tv"}}, XPORT_TCP, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum xport_kind kind = XPORT_KINDS;
        int fallback = -2;
        struct errmsg e = {0};
        assert_int_equal(choose(cases[i].choice, &cases[i].ranks, &kind, &fallback, &e), STATUS_OK);
        assert_int_equal(kind, cases[i].kind);
        assert_int_equal(fallback, cases[i].fallback);
    }
}

static void test_nothing_in_common_names_the_rank(void **state)
{
    static const struct {
        enum transport_choice choice;
        struct pair ranks;
        const char *text;
    } cases[] = {
        {TRANSPORT_SHM, {{"a", "b"}, {"stv", "stv"}}, "node beta cannot be reached over shm"},
        {TRANSPORT_TCP, {{"a", "b"}, {"sv", "stv"}}, "node alpha cannot be reached over tcp"},
        {TRANSPORT_VERBS, {{"a", "b"}, {"tv", "s"}}, "node beta cannot be reached over tcp"},
        {TRANSPORT_AUTO, {{"a", "b"}, {"", "stv"}}, "node alpha cannot be reached over tcp"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum xport_kind kind = XPORT_KINDS;
        int fallback = -2;
        struct errmsg e = {0};
        assert_int_equal(choose(cases[i].choice, &cases[i].ranks, &kind, &fallback, &e),
                         STATUS_BAD_CONFIG);
        assert_non_null(strstr(e.text, cases[i].text));
        assert_int_equal(kind, XPORT_KINDS); // written only on success
    }
}

static void test_three_faults_in_ten_seconds_rest(void **state)
{
    struct rdma_rest r = {0};
    assert_true(rdma_rest_offers(&r, 0));
    assert_false(rdma_rest_fault(&r, 1000, false));
    assert_false(rdma_rest_fault(&r, 2000, false));
    assert_false(rdma_rest_fault(&r, 11500, false)); // the first is too long ago
    assert_true(rdma_rest_offers(&r, 11500));
    assert_true(rdma_rest_fault(&r, 11900, false));
    assert_false(rdma_rest_offers(&r, 11900));
    assert_false(rdma_rest_offers(&r, 11900 + RDMA_REST_MS - 1));
    assert_true(rdma_rest_offers(&r, 11900 + RDMA_REST_MS));
    assert_int_equal(r.rests, 1);
}

static void test_rests_double_while_faults_come_back(void **state)
{
    struct rdma_rest r = {0};
    uint64_t now = 1;
    for (uint64_t want = RDMA_REST_MS; want < 4 * (uint64_t)RDMA_REST_MAX_MS; want *= 2) {
        assert_true(rdma_rest_fault(&r, now, true));
        assert_int_equal(r.rest_ms, want < RDMA_REST_MAX_MS ? want : RDMA_REST_MAX_MS);
        assert_false(rdma_rest_fault(&r, now + 1, true)); // resting: nothing was over verbs
        now = r.until_ms + 5000;
    }
    now = r.until_ms + RDMA_FAULT_WINDOW_MS; // it held for a while: from the start
    assert_true(rdma_rest_fault(&r, now, true));
    assert_int_equal(r.rest_ms, RDMA_REST_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_nothing_in_common_names_the_rank),
        cmocka_unit_test(test_three_faults_in_ten_seconds_rest),
        cmocka_unit_test(test_rests_double_while_faults_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
