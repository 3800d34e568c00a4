// text/regex: Oniguruma's meaning, run by PCRE2; what has no equal is refused.
#include "test_text_fixture.h"

#include "text/regex.h"

// The matches of an expression in a text, as "from-to from-to".
static void find(const char *pattern, const char *text, char *out, size_t cap)
{
    struct regex *r = NULL;
    struct errmsg err = {0};
    if (regex_compile(pattern, strlen(pattern), &r, &err))
        fail_msg("%s: %s", pattern, err.text);
    struct regex_scratch *scratch = regex_scratch_create();
    struct regex_iter it;
    size_t from, to, at = 0;
    out[0] = '\0';
    regex_iter_init(&it, r, scratch, text, strlen(text));
    while (regex_iter_next(&it, &from, &to) == STATUS_OK && at < cap)
        at += (size_t)snprintf(out + at, cap - at, at ? " %zu-%zu" : "%zu-%zu", from, to);
    regex_scratch_destroy(scratch);
    regex_destroy(r);
}

static void test_meaning(void **state)
{
    static const struct {
        const char *pattern, *text, *matches;
    } cases[] = {
        {"a", "banana", "1-2 3-4 5-6"},
        {"x*", "axb", "0-0 1-2 3-3"},
        {"\\s+",
         "a\xC2\x85\xE2\x80\xA8\xE3\x80\x80\x0b"
         "b",
         "1-10"},
        {"\\s", "\xE1\xA0\x8E", ""},     // U+180E is no blank
        {"\\s", "\x1c\xE2\x80\x8B", ""}, // nor are a separator, a zero-width space
        {"[\\s]", " ", "0-1"},
        {"[^\\s]+", "a b", "0-1 2-3"},
        {"\\S+",
         "a\xC2\x85"
         "b",
         "0-1 3-4"},
        {"[\\S]", "\xC2\x85.", "2-3"},
        {"\\d+", "1\xD9\xA1\xC2\xB2", "0-3"},        // Nd, not No
        {"\\w+", "a_1\xCC\x81\xE2\x80\xBF-", "0-8"}, // marks, connectors
        {"\\h", "g", ""},
        {"\\h+", "fF0g ", "0-3"},
        {"\\v", "\n\x0b", "1-2"},
        {".+", "a\nb\r", "0-1 2-4"},
        {"^b", "a\nb", "2-3"},
        {"a$", "a\nb", "0-1"},
        {"a$", "a\r\nb", ""},
        {"\\p{Han}+", "\xE4\xB8\xAD\xE3\x80\x82", "0-3"}, // not the full stop: Script_Extensions
        {"\\p{^L}", "a1", "1-2"},
        {"\\P{L}", "a1", "1-2"},
        {"\\p{Letter}", "1a", "1-2"},
        {"[\\u4e00-\\x{9fa5}]", "\xE4\xB8\xAD", "0-3"},
        {"(?i:'s)", "'S'\xC5\xBF", "0-2 2-5"},
        {"(?i)a|b", "AB", "0-1 1-2"},
        {"\\s+(?!\\S)", "a   b", "1-3"},
        {"a++a", "aaa", ""},
        {"[a\\-z]", "-b", "0-1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char got[128];
        find(cases[i].pattern, cases[i].text, got, sizeof got);
        if (strcmp(got, cases[i].matches))
            fail_msg("%s on '%s': %s, expected %s", cases[i].pattern, cases[i].text, got,
                     cases[i].matches);
    }
}

static void test_refused(void **state)
{
    static const char *const bad[] = {
        "(",       "[a",    "[]",     "[a[b]]",      "[a&&b]",    "a{2}+", "a{2,3}?",
        "a{,3}",   "(?m)a", "(?m:a)", "a(?i)b",      "(?<x>a)",   "(?#c)", "(*UTF)",
        "\\",      "\\b",   "\\G",    "\\K",         "\\R",       "\\X",   "\\1",
        "\\0",     "\\q",   "\\p",    "\\pL",        "\\p{",      "\\p{}", "\\p{Nonsense}",
        "\\p{1}",  "\\xff", "\\x{",   "\\x{110000}", "\\x{d800}", "\\u12", "[\\W]",
        "[\\s-z]", "\xff",  "*",      "a**b**(",     "[z-a]",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct regex *r = NULL;
        struct errmsg err = {0};
        if (regex_compile(bad[i], strlen(bad[i]), &r, &err) != STATUS_BAD_FILE)
            fail_msg("%s was taken", bad[i]);
        assert_non_null(strstr(err.text, "regex"));
        assert_null(r);
    }
    assert_int_equal(regex_compile("\\\0", 2, &(struct regex *){NULL}, NULL), STATUS_BAD_FILE);
}

// An expression that backtracks without end is stopped, not waited for.
static void test_runaway(void **state)
{
    static const char text[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    struct regex *r = NULL;
    struct regex_iter it;
    size_t from, to;
    assert_int_equal(regex_compile("(a|a|aa)*[bc]", 13, &r, NULL), STATUS_OK);
    struct regex_scratch *scratch = regex_scratch_create();
    regex_iter_init(&it, r, scratch, text, strlen(text));
    enum status s = regex_iter_next(&it, &from, &to);
    assert_int_equal(s, STATUS_TOO_LARGE);
    regex_scratch_destroy(scratch);
    regex_destroy(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_meaning),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_runaway),
    };
    return cmocka_run_group_tests_name("text/regex", tests, NULL, NULL);
}
