// The leaves of the golden probe: is an answer right, and who is a straggler.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "coordinator/pace.h"
#include "coordinator/probe.h"

static void test_judge(void **state)
{
    const struct probe_answer known = {3, {5, 6, 7}, {-1, -2, -3}};
    struct probe_answer got = known;
    uint32_t at;
    assert_int_equal(probe_judge(&known, &got, 0.1f, &at), PROBE_RIGHT);
    got.logprobs[1] = -2.05f;
    assert_int_equal(probe_judge(&known, &got, 0.1f, &at), PROBE_RIGHT);
    got.logprobs[1] = -2.2f;
    assert_int_equal(probe_judge(&known, &got, 0.1f, &at), PROBE_DRIFTED);
    assert_int_equal(at, 1);
    assert_int_equal(probe_judge(&known, &got, 0, &at), PROBE_RIGHT);
    got.logprobs[1] = NAN;
    assert_int_equal(probe_judge(&known, &got, 0.1f, &at), PROBE_DRIFTED);
    got.tokens[2] = 8; // a wrong token counts before all else
    assert_int_equal(probe_judge(&known, &got, 0.1f, &at), PROBE_WRONG_TOKEN);
    assert_int_equal(at, 2);
    got = known;
    got.n = 2; // cut short
    assert_int_equal(probe_judge(&known, &got, 0, &at), PROBE_WRONG_TOKEN);
}

static struct pace paced(uint64_t step_us, uint32_t tokens, uint64_t last_us)
{
    struct pace p = {0};
    for (int i = 0; i < 40; i++)
        pace_step(&p, step_us, tokens, last_us);
    return p;
}

static uint32_t outlier(const struct pace *p, uint32_t n)
{
    const struct pace *v[8];
    for (uint32_t i = 0; i < n; i++)
        v[i] = &p[i];
    return pace_outlier(v, n, 3, 2000000, 1000000);
}

static void test_outliers(void **state)
{
    const uint64_t now = 2000000;
    struct pace p[4] = {paced(10000, 4, now), paced(12000, 4, now), paced(50000, 4, now),
                        paced(9000, 4, now)};
    assert_int_equal(outlier(p, 4), 2);
    assert_int_equal(outlier(p, 2), 2);     // nobody
    assert_int_equal(outlier(&p[1], 2), 1); // two: the slower
    assert_int_equal(outlier(&p[2], 1), 1); // alone it has no peers
    p[2] = paced(50000, 32, now);           // long steps of many tokens: a big batch
    assert_int_equal(outlier(p, 4), 4);
    p[2] = paced(12000, 1, now); // few tokens at an ordinary pace
    assert_int_equal(outlier(p, 4), 4);
    p[2] = paced(50000, 4, now - 1500000); // not seen lately
    assert_int_equal(outlier(p, 4), 4);
    p[2] = (struct pace){50000, 12500, 3, now}; // too few samples
    assert_int_equal(outlier(p, 4), 4);
    p[0] = p[2] =
        paced(60000, 4, now); // two of four: slower than only half of the others, not more
    p[0] = paced(61000, 4, now);
    assert_int_equal(outlier(p, 4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_judge),
        cmocka_unit_test(test_outliers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
