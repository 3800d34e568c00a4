// The coordinator's configuration file: every key is refused with file, key and value when it makes no
// sense, and whatever is in the file, nothing breaks.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/prng.h"
#include "coordinator/config.h"

static char path[64];

static enum status load(const char *text, struct coordinator_config *c, struct errmsg *err)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    enum status s = coordinator_config_load(path, c, err);
    if (s)
        return s;
    s = coordinator_config_check(c, err);
    if (s)
        coordinator_config_finish(c);
    return s;
}

static void refused(const char *text, const char *a, const char *b)
{
    struct coordinator_config c;
    struct errmsg err = {0};
    if (!load(text, &c, &err))
        fail_msg("was taken:\n%s", text);
    if (!strstr(err.text, a) || !strstr(err.text, b))
        fail_msg("'%s' does not tell '%s' and '%s' of:\n%s", err.text, a, b, text);
}

static const char *const numbers[] = {
    "replicas", "stages", "tensor", "heartbeat_ms", "heartbeat_timeout_ms", "hang_ms",
    "warmup_timeout_ms", "prefix_blocks", "queue_limit", "default_deadline_ms", "grace_ms",
    "retention_ms", "retain_limit", "probe_interval_ms", "probe_timeout_ms", "probe_failures",
    "probe_tokens", "quarantine_ms", "quarantine_percent", "trial_ms", "flap_limit", "slow_ms",
    "slow_factor", "ageing_ms", "ageing_band", "preempt_limit", "circuit_failures",
    "circuit_open_ms", "circuit_trials", "retry_percent", "retry_burst_tokens", "lease_ms",
    "http_connections", "rpc_connections", "idle_ms", "write_stall_ms", "keepalive_ms", "stop_ms"};
enum { NUMBERS = sizeof numbers / sizeof *numbers };

static void test_numbers(void **state)
{
    char text[128];
    for (int i = 0; i < NUMBERS; i++) {
        snprintf(text, sizeof text, "%s: -1\n", numbers[i]);
        refused(text, numbers[i], "-1 is not in");
        snprintf(text, sizeof text, "%s: 123456789012\n", numbers[i]);
        refused(text, numbers[i], "123456789012 is not in");
        snprintf(text, sizeof text, "a: 1\n%s: many\n", numbers[i]);
        refused(text, path, "");
        snprintf(text, sizeof text, "%s: [1]\n", numbers[i]);
        refused(text, path, "");
    }
}

static void test_pools(void **state)
{
    static const char *const bad[][3] = {
        {"pools: [{name: a}]\n", "dir", ""},
        {"pools: [{name: a, dir: /m, colour: red}]\n", "colour", ""},
        {"pools: [{name: a b, dir: /m}]\n", "pools: a b", "name"},
        {"pools: [{name: a, dir: /m}, {name: a, dir: /m}]\n", "pools: a", "twice"},
        {"pools: [{name: a, dir: /m, replicas: -2}]\n", "pools: a: replicas", "-2"},
        {"pools: [{name: a, dir: /m, stages: 0}]\n", "pools: a: stages", "0"},
        {"pools: [{name: a, dir: /m, weight: 9999999}]\n", "pools: a: weight", "9999999"},
        {"pools: [{name: a, dir: /m, prompt_max: -1}]\n", "pools: a: prompt_max", "-1"},
        {"pools: [{name: a, dir: /m, prefill: 2}]\n", "pools: a", "prefill"},
        {"pools: [{name: a, dir: /m, fallback: x}]\n", "pools: a: fallback", "'x'"},
        {"pools: [{name: a, model: A, dir: /m, fallback: B}, {name: b, model: B, dir: /m, fallback: "
         "A}]\n",
         "fallback", "leads back"},
        {"pools: [{name: a, dir: /m}]\nmodel: /m\n", "model", "pools"},
        {"pools: [{name: a, dir: /m}]\nreplicas: 2\n", "replicas", "pools"},
        {"pools: [{name: a, model: A, dir: /m}]\naliases: [{name: x, model: B}]\n", "aliases: x",
         "'B'"},
        {"pools: [{name: a, model: A, dir: /m}]\naliases: [{name: A, model: A}]\n", "aliases: A",
         "name of a model"},
        {"aliases: [{name: x, model: m}, {name: x, model: m}]\n", "aliases: x", "twice"},
        {"breakers: [{metric: warp, above: 1, for_ms: 0, action: stop_admission}]\n", "breakers[0]",
         "warp"},
        {"breakers: [{metric: running, above: 1, for_ms: 0, action: dance}]\n", "breakers[0]",
         "dance"},
        {"breakers: [{metric: running, for_ms: 0, action: stop_admission}]\n", "breakers[0]",
         "above"},
        {"breakers: [{metric: running, above: 1, for_ms: -1, action: stop_admission}]\n",
         "breakers[0]", "for_ms"},
        {"breakers: [{metric: running, above: 1, for_ms: 0, action: cap_max_tokens}]\n",
         "breakers[0]", "value"},
        {"transport: pigeon\n", "transport", "pigeon"},
        {"copies: some\n", "copies", "some"},
        {"tenant_from: hat\n", "tenant_from", "hat"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(bad[i][0], bad[i][1], bad[i][2]);
    struct coordinator_config c;
    struct errmsg err = {0};
    if (load("pools:\n"
             "  - {name: a, model: r1, dir: /m/r1, replicas: 2, tensor: 2, prompt_max: 4000}\n"
             "  - {name: b, model: r1, dir: /m/r1, weight: 3, fallback: small}\n"
             "  - {name: c, dir: /m/small/}\n"
             "aliases: [{name: gpt, model: r1}]\n"
             "breakers: [{metric: gpu_utilization, above: 90, for_ms: 60000, action: "
             "fallback_model}]\n",
             &c, &err))
        fail_msg("%s", err.text);
    assert_int_equal(c.pools_n, 3);
    assert_string_equal(c.pools[2].model, "small");
    assert_string_equal(c.pools[1].fallback, "small");
    assert_int_equal(c.pools[0].tensor, 2);
    assert_int_equal(c.pools[1].weight, 3);
    assert_string_equal(c.model, "/m/r1");
    assert_string_equal(c.model_name, "r1");
    assert_int_equal(c.breakers[0].action, BREAKER_FALLBACK);
    coordinator_config_finish(&c);
}

static void test_all_names_of_breakers(void **state)
{
    char text[256];
    struct coordinator_config c;
    struct errmsg err = {0};
    for (int m = 0; m < BREAKER_METRICS; m++)
        for (int a = 0; a < BREAKER_ACTIONS; a++) {
            assert_non_null(coord_breaker_metric_name((enum coord_breaker_metric)m));
            snprintf(text, sizeof text,
                     "breakers: [{metric: %s, below: 1.5, for_ms: 10, action: %s, value: 3}]\n",
                     coord_breaker_metric_name((enum coord_breaker_metric)m),
                     coord_breaker_action_name((enum coord_breaker_action)a));
            if (load(text, &c, &err))
                fail_msg("%s", err.text);
            assert_int_equal(c.breakers[0].metric, m);
            coordinator_config_finish(&c);
        }
}

static void test_the_example(void **state)
{
    struct coordinator_config c, d;
    struct errmsg err = {0};
    coordinator_config_default(&d);
    if (coordinator_config_load("configs/coordinator.yaml", &c, &err))
        fail_msg("%s", err.text);
    assert_int_equal(c.core.prefix_blocks, d.core.prefix_blocks);
    assert_int_equal(c.core.circuit_failures, d.core.circuit_failures);
    assert_int_equal(c.core.circuit_open_ms, d.core.circuit_open_ms);
    assert_int_equal(c.core.retry_percent, d.core.retry_percent);
    assert_int_equal(c.core.retry_burst_tokens, d.core.retry_burst_tokens);
    assert_int_equal(c.core.queue_limit, d.core.queue_limit);
    coordinator_config_finish(&c);
    coordinator_config_finish(&d);
}

// Files that are nearly right: bytes of a good one changed at random.
static void test_damaged_files(void **state)
{
    static const char good[] =
        "pools:\n  - {name: a, model: r1, dir: /m/r1, replicas: 2, fallback: c}\n"
        "  - {name: b, model: c, dir: /m/c, weight: 3, prompt_max: 100}\n"
        "aliases: [{name: gpt, model: r1}]\nqueue_limit: 10\nretry_percent: 50\n"
        "breakers: [{metric: running, above: 90, for_ms: 60, action: fallback_model}]\n";
    struct prng p;
    uint32_t taken = 0;
    prng_seed(&p, 17);
    for (int i = 0; i < 1500; i++) {
        char text[sizeof good];
        struct coordinator_config c;
        struct errmsg err = {0};
        memcpy(text, good, sizeof good);
        for (uint64_t k = prng_below(&p, 4); k-- > 0;)
            text[prng_below(&p, sizeof good - 1)] = (char)(32 + prng_below(&p, 95));
        if (load(text, &c, &err)) {
            assert_true(err.text[0]);
            continue;
        }
        taken++;
        coordinator_config_finish(&c);
    }
    assert_in_range(taken, 300, 1400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),     cmocka_unit_test(test_pools),
        cmocka_unit_test(test_all_names_of_breakers),
        cmocka_unit_test(test_the_example), cmocka_unit_test(test_damaged_files),
    };
    snprintf(path, sizeof path, "/tmp/hadal-test-config-%d.yaml", (int)getpid());
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    remove(path);
    return rc;
}
