// tools/cmdline: options anywhere, both spellings, ranges, and every kind of mistake.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "tools/cmdline.h"

struct values {
    int64_t port;
    double rate;
    bool json;
    const char *url, *kind;
    struct cmdline_list faults;
    const char *args[2];
    int args_n;
};

static int parse(struct values *v, const char *const *words, int n)
{
    memset(v, 0, sizeof *v);
    const struct cmdline_opt opts[] = {
        {"--port", CMDLINE_INT, &v->port, "PORT", .max = 65535, .help = "port"},
        {"--rate", CMDLINE_REAL, &v->rate, "R", .help = "requests a second"},
        {"--json", CMDLINE_FLAG, &v->json, .help = "JSON"},
        {"--url", CMDLINE_STRING, &v->url, "URL", .help = "where"},
        {"--kind", CMDLINE_CHOICE, &v->kind, .choices = "cpu|cuda", .help = "which"},
        {"--fault", CMDLINE_LIST, &v->faults, "F", .help = "what breaks"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal x [OPTION...] A [B]", .opts = opts, .args_min = 1, .args_max = 2};
    char *argv[16] = {(char *)"x"};
    for (int i = 0; i < n; i++)
        argv[i + 1] = (char *)words[i];
    return cmdline_parse(&c, n + 1, argv, v->args, &v->args_n);
}

#define PARSE(v, ...)                                                                              \
    parse(v, (const char *const[]){__VA_ARGS__},                                                   \
          (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

static void test_options_anywhere(void **state)
{
    struct values v;
    assert_int_equal(PARSE(&v, "a", "--port", "80", "--rate=2.5", "b", "--json"), CMDLINE_GO);
    assert_int_equal(v.port, 80);
    assert_true(v.rate == 2.5 && v.json);
    assert_int_equal(v.args_n, 2);
    assert_string_equal(v.args[0], "a");
    assert_string_equal(v.args[1], "b");
    assert_int_equal(PARSE(&v, "--", "--json"), CMDLINE_GO);
    assert_false(v.json);
    assert_string_equal(v.args[0], "--json");
    assert_int_equal(PARSE(&v, "--fault=x", "--fault", "y", "--kind", "cuda", "-"), CMDLINE_GO);
    assert_int_equal(v.faults.n, 2);
    assert_string_equal(v.faults.v[1], "y");
    assert_string_equal(v.kind, "cuda");
    assert_string_equal(v.args[0], "-");
}

static void test_mistakes(void **state)
{
    struct values v;
    assert_int_equal(PARSE(&v, "--json"), 2);
    assert_int_equal(PARSE(&v, "a", "b", "c"), 2);
    assert_int_equal(PARSE(&v, "a", "--por", "1"), 2);
    assert_int_equal(PARSE(&v, "a", "--port"), 2);
    assert_int_equal(PARSE(&v, "a", "--port", "65536"), 2);
    assert_int_equal(PARSE(&v, "a", "--port", "-1"), 2);
    assert_int_equal(PARSE(&v, "a", "--port", "1x"), 2);
    assert_int_equal(PARSE(&v, "a", "--port", ""), 2);
    assert_int_equal(PARSE(&v, "a", "--port=99999999999999999999"), 2);
    assert_int_equal(PARSE(&v, "a", "--rate", "nan"), 2);
    assert_int_equal(PARSE(&v, "a", "--rate", "inf"), 2);
    assert_int_equal(PARSE(&v, "a", "--rate=-0.5"), 2);
    assert_int_equal(PARSE(&v, "a", "--json=1"), 2);
    assert_int_equal(PARSE(&v, "a", "--kind", "cud"), 2);
    assert_int_equal(PARSE(&v, "a", "--kind", "cpu|cuda"), 2);
}

static void test_durations(void **state)
{
    int64_t ms = 0;
    static const struct {
        const char *text;
        int64_t ms;
    } good[] = {{"2", 2000}, {"1.5s", 1500}, {"250ms", 250}, {"2m", 120000}, {"0", 0}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(cmdline_duration_ms(good[i].text, &ms));
        assert_int_equal(ms, good[i].ms);
    }
    static const char *const bad[] = {"", "s", "-1s", "1 s", "1d", "nan", "inf", "1e30", "25h"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(cmdline_duration_ms(bad[i], &ms));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_anywhere),
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_durations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
