// text/detok, reasoning, stop: whatever the cuts between pushes, the result is that of the whole.
#include "test_text_fixture.h"

#include "base/limits.h"
#include "base/prng.h"
#include "base/utf8.h"
#include "text/detok.h"
#include "text/reasoning.h"
#include "text/stop.h"

// Random ids, so mostly broken UTF-8, must come out as decoding them together gives it.
static void test_detok_equals_decode(void **state)
{
    struct tokenizer *t = NULL;
    struct prng rng;
    assert_int_equal(tokenizer_open(SAMPLE, &t, NULL), STATUS_OK);
    prng_seed(&rng, 3);
    for (int round = 0; round < 2000; round++) {
        int32_t ids[40];
        size_t n = 1 + prng_below(&rng, 40);
        bool skip_special = round & 1;
        // Half of them bytes above 0x7f (the alphabet comes first after the added tokens).
        for (size_t i = 0; i < n; i++)
            ids[i] = (int32_t)prng_below(&rng, prng_below(&rng, 2) ? 263 : 4200);
        struct strbuf whole = {0}, parts = {0};
        struct detok d;
        tokenizer_decode(t, ids, n, skip_special, &whole);
        detok_init(&d, t, skip_special);
        for (size_t i = 0; i < n; i++) {
            detok_push(&d, ids[i], &parts);
            assert_true(!parts.n || utf8_valid(parts.v, parts.n));
        }
        detok_flush(&d, &parts);
        assert_int_equal(whole.n, parts.n);
        assert_memory_equal(whole.v, parts.v ? parts.v : "", whole.n);
        strbuf_finish(&whole);
        strbuf_finish(&parts);
    }
    tokenizer_close(t);
}

// Each byte is a token of the small tokenizer: what the standard says of ill-formed sequences.
static void test_detok_broken(void **state)
{
#define R "\xEF\xBF\xBD"
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"\xE4\xBD\xA0", "\xE4\xBD\xA0"},
        {"\xE4\xBD", R},
        {"\xE4\xBDx", R "x"},
        {"\xE4\xE4\xBD\xA0", R "\xE4\xBD\xA0"},
        {"\xF0\x9F\x98", R},
        {"\xF0\x9F\x98\xF0\x9F\x98\x80", R "\xF0\x9F\x98\x80"},
        {"\xED\xA0\x80", R R R}, // a surrogate
        {"\xC0\x80", R R},
        {"\xFF\xFE", R R},
        {"\xF4\x90\x80\x80", R R R R},
        {"\xF1\x80\x80\xC2\x80", R "\xC2\x80"},
    };
    json_t *j = small_tokenizer();
    struct tokenizer *t = NULL;
    assert_int_equal(open_json(j, &t, NULL), STATUS_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct detok d;
        struct strbuf out = {0};
        detok_init(&d, t, false);
        for (const char *b = cases[i].bytes; *b; b++)
            detok_push(&d, (unsigned char)*b, &out);
        detok_flush(&d, &out);
        assert_string_equal(out.v, cases[i].text);
        strbuf_finish(&out);
    }
    tokenizer_close(t);
    json_decref(j);
}

// A character that is whole must not wait for the next token.
static void test_detok_prompt(void **state)
{
    json_t *j = small_tokenizer();
    struct tokenizer *t = NULL;
    struct detok d;
    struct strbuf out = {0};
    assert_int_equal(open_json(j, &t, NULL), STATUS_OK);
    detok_init(&d, t, true);
    detok_push(&d, 'a', &out);
    assert_string_equal(out.v, "a");
    detok_push(&d, 0xC3, &out);
    detok_push(&d, 301, &out); // special, skipped, does not break the character
    assert_string_equal(out.v, "a");
    detok_push(&d, 0xA9, &out);
    assert_string_equal(out.v, "a\xC3\xA9");
    detok_push(&d, 9999, &out); // no token
    detok_push(&d, -1, &out);
    detok_flush(&d, &out);
    assert_string_equal(out.v, "a\xC3\xA9");
    strbuf_finish(&out);
    tokenizer_close(t);
    json_decref(j);
}

struct split {
    bool opened;
    const char *text, *thoughts, *content;
};

static void check_split(const struct split *c, size_t step)
{
    struct reasoning r;
    struct strbuf thoughts = {0}, content = {0};
    size_t n = strlen(c->text);
    reasoning_init(&r, c->opened);
    for (size_t i = 0; i < n; i += step)
        reasoning_push(&r, c->text + i, n - i < step ? n - i : step, &thoughts, &content);
    reasoning_flush(&r, &thoughts, &content);
    if (strcmp(thoughts.v ? thoughts.v : "", c->thoughts) ||
        strcmp(content.v ? content.v : "", c->content))
        fail_msg("'%s' by %zu: thoughts '%s', content '%s'", c->text, step, thoughts.v, content.v);
    reasoning_finish(&r);
    strbuf_finish(&thoughts);
    strbuf_finish(&content);
}

static void test_reasoning(void **state)
{
    static const struct split cases[] = {
        {true, "so\n</think>\n\nyes", "so", "yes"},
        {true, "so</think>yes", "so", "yes"},
        {true, "\n\na\n\nb\n\n</think>\nc\n\nd\n", "a\n\nb", "c\n\nd\n"},
        {true, "never closed\n", "never closed\n", ""},
        {true, "half </thi", "half </thi", ""},
        {true, "a </thi </think>b", "a </thi ", "b"},
        {true, "a <</think>b", "a <", "b"},
        {true, "a \n</\n</think>b", "a \n</", "b"},
        {true, "<think>\nso\n</think>\n\nyes", "so", "yes"}, // the model opens it again
        {true, "</think>yes", "", "yes"},
        {true, "<thin</think>x", "<thin", "x"},
        {true, "  so</think>x", "  so", "x"},
        {true, "a</think>b</think>c<think>d", "a", "b</think>c<think>d"},
        {true, "", "", ""},
        {true, "\n", "", ""},
        {false, "plain", "", "plain"},
        {false, "<think>\nso\n</think>\n\nyes", "so", "yes"},
        {false, "\n <think>so</think>yes", "so", "yes"},
        {false, "\n plain", "", "\n plain"},
        {false, "<thin ice", "", "<thin ice"},
        {false, "<thi", "", "<thi"},
        {false, "a <think>b</think>", "", "a <think>b</think>"},
        {false, "", "", ""},
        {false, " ", "", " "},
        {false, "                                          <think>x", "",
         "                                          <think>x"}, // too many blanks
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step < 12; step++)
            check_split(&cases[i], step);
}

// Text that can no longer be part of a tag comes out at once.
static void test_reasoning_prompt(void **state)
{
    struct reasoning r;
    struct strbuf thoughts = {0}, content = {0};
    reasoning_init(&r, true);
    reasoning_push(&r, "a\n", 2, &thoughts, &content);
    assert_string_equal(thoughts.v, "a");
    reasoning_push(&r, "b<", 2, &thoughts, &content);
    assert_string_equal(thoughts.v, "a\nb");
    reasoning_push(&r, "c", 1, &thoughts, &content);
    assert_string_equal(thoughts.v, "a\nb<c");
    strbuf_finish(&thoughts);
    strbuf_finish(&content);
}

struct stop_case {
    const char *stops[4], *text, *out;
    int found;
};

static void check_stop(const struct stop_case *c, size_t step)
{
    size_t lengths[4], k = 0, n = strlen(c->text);
    for (; k < 4 && c->stops[k]; k++)
        lengths[k] = strlen(c->stops[k]);
    struct stop_matcher *m = NULL;
    struct strbuf out = {0};
    int found = -1;
    assert_int_equal(stop_matcher_create(c->stops, lengths, k, &m, NULL), STATUS_OK);
    for (size_t i = 0; i < n && found < 0; i += step)
        found = stop_matcher_push(m, c->text + i, n - i < step ? n - i : step, &out);
    assert_int_equal(stop_matcher_push(m, "", 0, &out), -1);
    stop_matcher_flush(m, &out);
    if (found != c->found || strcmp(out.v ? out.v : "", c->out))
        fail_msg("'%s' by %zu: found %d, out '%s'", c->text, step, found, out.v);
    stop_matcher_destroy(m);
    strbuf_finish(&out);
}

static void test_stop(void **state)
{
    static const struct stop_case cases[] = {
        {{NULL}, "anything", "anything", -1},
        {{"END"}, "one END two", "one ", 0},
        {{"END"}, "one EN", "one EN", -1},
        {{"END"}, "EEND", "E", 0},
        {{"aab"}, "aaaab", "aa", 0},
        {{"abab", "bb"}, "ababb", "", 0},
        {{"abcd", "bc"}, "xabcd", "xa", 1}, // the first to be complete
        {{"c", "abc"}, "xabc", "x", 1},     // of two at one byte the longest
        {{"\n\n"}, "a\nb\n\nc", "a\nb", 0},
        {{"\n\n", "Q:"}, "a\nQ:", "a\n", 1},
        {{"\xC3\xA9"}, "\xC3\xA8\xC3\xA9x", "\xC3\xA8", 0}, // shares its first byte
        {{"</s>"}, "</s", "</s", -1},
        {{"x"}, "x", "", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step < 9; step++)
            check_stop(&cases[i], step);
}

// Against the plain definition: the stop that ends first, the longest of those.
static void test_stop_random(void **state)
{
    struct prng rng;
    prng_seed(&rng, 11);
    for (int round = 0; round < 3000; round++) {
        char text[33] = {0}, stops[3][6] = {{0}};
        const char *list[3];
        size_t lengths[3], n = prng_below(&rng, 32);
        for (size_t i = 0; i < n; i++)
            text[i] = (char)('a' + prng_below(&rng, 2));
        for (size_t k = 0; k < 3; k++) {
            lengths[k] = 1 + prng_below(&rng, 5);
            for (size_t i = 0; i < lengths[k]; i++)
                stops[k][i] = (char)('a' + prng_below(&rng, 2));
            list[k] = stops[k];
        }
        size_t cut = n, best = 0;
        for (size_t end = 1; end <= n && !best; end++)
            for (size_t k = 0; k < 3; k++)
                if (lengths[k] <= end && lengths[k] > best &&
                    !memcmp(text + end - lengths[k], stops[k], lengths[k])) {
                    best = lengths[k];
                    cut = end - best;
                }
        struct stop_matcher *m = NULL;
        struct strbuf out = {0};
        assert_int_equal(stop_matcher_create(list, lengths, 3, &m, NULL), STATUS_OK);
        int found = -1;
        for (size_t i = 0; i < n && found < 0;) {
            size_t step = 1 + prng_below(&rng, 4);
            step = step > n - i ? n - i : step;
            found = stop_matcher_push(m, text + i, step, &out);
            i += step;
        }
        stop_matcher_flush(m, &out);
        assert_int_equal(found >= 0, best > 0);
        assert_int_equal(out.n, cut);
        assert_memory_equal(out.v ? out.v : "", text, cut);
        stop_matcher_destroy(m);
        strbuf_finish(&out);
    }
}

static void test_stop_bad(void **state)
{
    static char big[LIMIT_STOP_BYTES + 1];
    memset(big, 'x', sizeof big);
    const char *one[] = {big}, *many[LIMIT_STOP_STRINGS + 1];
    size_t lengths[LIMIT_STOP_STRINGS + 1];
    struct stop_matcher *m = NULL;
    struct errmsg err;
    for (size_t i = 0; i <= LIMIT_STOP_STRINGS; i++) {
        many[i] = "x";
        lengths[i] = 1;
    }
    assert_int_equal(stop_matcher_create(many, lengths, LIMIT_STOP_STRINGS + 1, &m, &err),
                     STATUS_TOO_LARGE);
    size_t n = sizeof big;
    assert_int_equal(stop_matcher_create(one, &n, 1, &m, &err), STATUS_TOO_LARGE);
    n = 0;
    assert_int_equal(stop_matcher_create(one, &n, 1, &m, &err), STATUS_BAD_REQUEST);
    assert_non_null(strstr(err.text, "stop[0]"));
    one[0] = "\xC3";
    n = 1;
    assert_int_equal(stop_matcher_create(one, &n, 1, &m, &err), STATUS_BAD_REQUEST);
    assert_null(m);
    stop_matcher_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detok_equals_decode), cmocka_unit_test(test_detok_broken),
        cmocka_unit_test(test_detok_prompt),        cmocka_unit_test(test_reasoning),
        cmocka_unit_test(test_reasoning_prompt),    cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stop_random),         cmocka_unit_test(test_stop_bad),
    };
    return cmocka_run_group_tests_name("text/stream", tests, NULL, NULL);
}
