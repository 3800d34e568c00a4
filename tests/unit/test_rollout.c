// The leaves of rollouts and elasticity: steps, shares, judgement; thresholds and their windows.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/elastic.h"
#include "coordinator/rollout.h"

static void steps_are_parsed(void **state)
{
    struct rollout_plan p;
    struct errmsg err = {0};
    rollout_plan_default(&p);
    assert_int_equal(rollout_steps_parse("5%,25,50", &p, &err), STATUS_OK);
    assert_int_equal(p.steps_n, 4);
    assert_int_equal(p.steps[0], 5);
    assert_int_equal(p.steps[3], 100);
    assert_int_equal(rollout_steps_parse("100", &p, &err), STATUS_OK);
    assert_int_equal(p.steps_n, 1);
    static const char *const bad[] = {"0",
                                      "5,5",
                                      "50,25",
                                      "101",
                                      "x",
                                      "5,",
                                      ",5",
                                      "5;6",
                                      "-5",
                                      "99999999999999999999",
                                      "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(rollout_steps_parse(bad[i], &p, &err), STATUS_BAD_REQUEST);
    assert_int_equal(p.steps_n, 1); // as it was
}

static void shares_keep_one_for_each(void **state)
{
    assert_int_equal(rollout_share(5, 4), 1);
    assert_int_equal(rollout_share(25, 4), 1);
    assert_int_equal(rollout_share(26, 4), 2);
    assert_int_equal(rollout_share(99, 4), 3);
    assert_int_equal(rollout_share(100, 4), 4);
    assert_int_equal(rollout_share(0, 4), 0);
    assert_int_equal(rollout_share(50, 1), 1);
    assert_int_equal(rollout_share(1, 2), 1);
}

static void medians_are_near(void **state)
{
    struct rollout_times t = {0};
    assert_int_equal(rollout_times_median(&t), 0);
    for (int i = 0; i < 11; i++)
        rollout_times_add(&t, 10000);
    for (int i = 0; i < 10; i++)
        rollout_times_add(&t, UINT64_MAX / 2); // wild ones
    uint64_t m = rollout_times_median(&t);
    assert_in_range(m, 10000, 12000);
}

static struct rollout_figures figures(uint32_t n, uint32_t errors, uint64_t ttft_us,
                                      uint64_t tpot_us)
{
    struct rollout_figures f = {.finished = n, .errors = errors};
    for (uint32_t i = 0; i < n; i++) {
        rollout_times_add(&f.ttft, ttft_us);
        rollout_times_add(&f.tpot, tpot_us);
    }
    return f;
}

static bool judge(const struct rollout_figures *to, const struct rollout_figures *from, int agree,
                  int score_to, int score_from, char *why)
{
    struct rollout_plan p;
    rollout_plan_default(&p);
    struct rollout_case k = {to, from, agree, score_to, score_from};
    why[0] = 0;
    return rollout_judge(&p, &k, why, 200);
}

static void verdicts_have_reasons(void **state)
{
    char why[200];
    struct rollout_figures old = figures(1000, 0, 50000, 10000),
                           same = figures(40, 0, 50000, 10000);
    assert_true(judge(&same, &old, -1, -1, -1, why));
    assert_true(judge(&same, &old, 50, 800, 820, why));
    assert_false(judge(&same, &old, 49, -1, -1, why));
    assert_non_null(strstr(why, "golden"));
    assert_false(judge(&same, &old, -1, 799, 820, why));
    assert_non_null(strstr(why, "score"));
    struct rollout_figures few = figures(19, 19, 500000, 100000); // not enough to be sure
    assert_true(judge(&few, &old, -1, -1, -1, why));
    struct rollout_figures bad = figures(40, 3, 50000, 10000);
    assert_false(judge(&bad, &old, -1, -1, -1, why));
    assert_non_null(strstr(why, "failed"));
    struct rollout_figures late = figures(40, 0, 130000, 10000),
                           slow = figures(40, 0, 50000, 20000);
    assert_false(judge(&late, &old, -1, -1, -1, why));
    assert_non_null(strstr(why, "first token"));
    assert_false(judge(&slow, &old, -1, -1, -1, why));
    assert_non_null(strstr(why, "per token"));
    struct rollout_figures broken = {.faults = 3};
    assert_false(judge(&broken, &old, -1, -1, -1, why));
}

// ---- elasticity ----

static struct elastic_config elastic(void)
{
    struct elastic_config c;
    struct errmsg err = {0};
    elastic_config_default(&c);
    c.max = 6;
    assert_int_equal(elastic_config_check(&c, &err), STATUS_OK);
    return c;
}

// Looks once a second from `from` to `to` seconds; the wanted number follows.
static void look(const struct elastic_config *c, struct elastic *e, struct elastic_look *k,
                 int from, int to)
{
    for (int s = from; s <= to; s++)
        k->wanted = elastic_step(c, e, (uint64_t)s * 1000000, k);
}

static void a_spike_changes_nothing(void **state)
{
    struct elastic_config c = elastic();
    struct elastic e = {0};
    struct elastic_look k = {
        .wanted = 2, .ready = 2, .places = 8, .load = 20, .queued = 12, .wait_ms = 60000};
    look(&c, &e, &k, 1, 3);
    assert_int_equal(k.wanted, 2);
    k.wait_ms = 2500; // of the window the least counts
    look(&c, &e, &k, 4, 4);
    assert_int_equal(k.wanted, 3);
    k.wait_ms = 60000; // the new one is not there yet
    look(&c, &e, &k, 5, 60);
    assert_int_equal(k.wanted, 3);
    k.ready = 3;
    look(&c, &e, &k, 61, 66);
    assert_int_equal(k.wanted, 6); // four more, but at most six
}

static void slack_must_last(void **state)
{
    struct elastic_config c = elastic();
    struct elastic e = {0};
    struct elastic_look k = {.wanted = 5, .ready = 5, .places = 20, .load = 1};
    look(&c, &e, &k, 1, 200);
    k.load = 6; // needs three
    look(&c, &e, &k, 201, 201);
    k.load = 1;
    look(&c, &e, &k, 202, 300);
    assert_int_equal(k.wanted, 5);
    look(&c, &e, &k, 301, 301);
    assert_int_equal(k.wanted, 3); // the most that was needed within the window
    k.ready = 3;
    k.places = 12;
    k.queued = 1; // somebody waits: no slack
    look(&c, &e, &k, 302, 900);
    assert_int_equal(k.wanted, 3);
    k.queued = k.load = 0;
    look(&c, &e, &k, 901, 1201);
    assert_int_equal(k.wanted, 1);
    look(&c, &e, &k, 1202, 2000);
    assert_int_equal(k.wanted, 1);
}

static void limits_hold_at_once(void **state)
{
    struct elastic_config c = elastic();
    struct elastic e = {0};
    struct elastic_look k = {.wanted = 9, .ready = 9, .places = 9, .load = 9};
    look(&c, &e, &k, 1, 1);
    assert_int_equal(k.wanted, 6);
    struct errmsg err = {0};
    c.min = 7;
    assert_int_equal(elastic_config_check(&c, &err), STATUS_BAD_CONFIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_parsed),        cmocka_unit_test(shares_keep_one_for_each),
        cmocka_unit_test(medians_are_near),        cmocka_unit_test(verdicts_have_reasons),
        cmocka_unit_test(a_spike_changes_nothing), cmocka_unit_test(slack_must_last),
        cmocka_unit_test(limits_hold_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
