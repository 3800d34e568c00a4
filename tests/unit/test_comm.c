// node/comm: a stage that is not split, and what comm_create_xport refuses.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/limits.h"
#include "node/comm_xport.h"

static void test_single(void **state)
{
    struct comm *c = comm_create_single();
    float x[4] = {1, 2, 3, 4};
    assert_int_equal(comm_size(c), 1);
    assert_int_equal(comm_rank(c), 0);
    assert_int_equal(comm_all_gather(c, x, 2, 2), STATUS_OK);
    assert_int_equal(comm_all_gather(c, x, 0, 0), STATUS_OK);
    assert_true(x[0] == 1 && x[3] == 4);
    assert_int_equal(comm_progress(c)->collective, 2);
    comm_abort(c);
    assert_int_equal(comm_all_gather(c, x, 2, 2), STATUS_ABORTED);
    comm_destroy(c);
    comm_destroy(NULL);
}

static void test_refusals(void **state)
{
    static const uint32_t ranks[] = {0, 1, 2};
    static const struct comm_xport_config bad[] = {
        {.ranks = ranks, .n = 0},
        {.ranks = ranks, .n = 2}, // rank 2 is not in it
        {.ranks = ranks, .n = LIMIT_TENSOR + 1},
        {.ranks = ranks, .n = 3, .area_bytes = 100},
    };
    struct lane_hub *h;
    struct lane_hub_config hc = {.kind = XPORT_SHM};
    struct lane_group g = {1, 2, 3};
    assert_int_equal(lane_hub_open(&hc, &h, NULL), STATUS_OK);
    assert_int_equal(lane_hub_begin(h, &g, NULL), STATUS_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct comm *c = NULL;
        struct errmsg e = {{0}};
        assert_int_equal(comm_create_xport(h, &bad[i], &c, &e), STATUS_BAD_CONFIG);
        assert_non_null(strstr(e.text, "rank 2"));
        assert_null(c);
    }
    lane_hub_close(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
