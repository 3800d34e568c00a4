// tools/sse, tools/load_*: events in any pieces, answers compared, fault scripts, percentiles.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "tools/load_plan.h"
#include "tools/load_stats.h"
#include "tools/load_stream.h"
#include "tools/sse.h"

struct seen {
    char text[512];
};

static void on_event(void *user, const struct sse_event *e)
{
    struct seen *s = user;
    size_t n = strlen(s->text);
    snprintf(s->text + n, sizeof s->text - n, "[%s%s|%s]", e->has_id ? "#" : "", e->id, e->data);
}

static void on_comment(void *user, const char *text)
{
    struct seen *s = user;
    size_t n = strlen(s->text);
    snprintf(s->text + n, sizeof s->text - n, "(%s)", text);
}

// Feeds the text in pieces of each size and expects the same events every time.
static void expect_events(const char *bytes, const char *want)
{
    size_t n = strlen(bytes);
    for (size_t piece = 1; piece <= n; piece++) {
        struct seen seen = {""};
        const struct sse_handler h = {on_event, on_comment, &seen};
        struct sse s;
        sse_init(&s);
        for (size_t i = 0; i < n; i += piece)
            assert_int_equal(sse_feed(&s, bytes + i, n - i < piece ? n - i : piece, &h), STATUS_OK);
        sse_finish(&s);
        assert_string_equal(seen.text, want);
    }
}

static void test_sse_format(void **state)
{
    expect_events("data: a\n\n", "[|a]");
    expect_events("data:a\r\ndata: b\r\n\r\n", "[|a\nb]");
    expect_events("id: 7\rdata:  x\r\rdata: y\r\r", "[#7| x][7|y]");
    expect_events(": queued position=2\n\ndata: z\n\n", "(queued position=2)[|z]");
    expect_events("\xef\xbb\xbf"
                  "data: bom\n\n",
                  "[|bom]");
    expect_events("event: ping\nretry: 5\nid: 3\n\n", "");
    expect_events("data\n\ndata:\ndata:\n\n", "[|][|\n]");
    expect_events("data: never ended\n", "");
}

static void test_sse_bounded(void **state)
{
    struct seen seen = {""};
    const struct sse_handler h = {on_event, NULL, &seen};
    struct sse s;
    sse_init(&s);
    char block[4096];
    memset(block, 'x', sizeof block);
    enum status st = STATUS_OK;
    for (int i = 0; i < 2000 && st == STATUS_OK; i++)
        st = sse_feed(&s, block, sizeof block, &h);
    assert_int_equal(st, STATUS_TOO_LARGE);
    sse_finish(&s);
}

static int64_t give(struct load_stream *s, int64_t now_us, const char *id, const char *data)
{
    const struct sse_event e = {.id = id, .has_id = *id, .data = data, .data_n = strlen(data)};
    return load_stream_event(s, now_us, &e);
}

#define CHUNK(text) "{\"id\":\"r1\",\"choices\":[{\"delta\":{" text "},\"finish_reason\":null}]}"

static void test_stream_takes_chunks(void **state)
{
    struct load_stream s;
    load_stream_begin(&s, 0, 1000);
    assert_int_equal(give(&s, 2000, "0", CHUNK("\"role\":\"assistant\"")), -1);
    assert_int_equal(s.first_us, 0);
    assert_int_equal(give(&s, 3000, "1", CHUNK("\"reasoning_content\":\"a\"")), -1);
    assert_int_equal(give(&s, 3500, "2", CHUNK("\"content\":\"b\"")), 500);
    load_stream_mark(&s, 0, 3600);
    assert_int_equal(give(&s, 5500, "4", CHUNK("\"content\":\"cd\"")), 2000);
    assert_int_equal(s.fault_gap_us, 2000);
    assert_int_equal(s.repeated, 0);
    assert_int_equal(give(&s, 6000, "4", CHUNK("\"content\":\"cd\"")), -1);
    assert_int_equal(s.repeated, 1);
    give(&s, 6100, "5", "{\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}");
    give(&s, 6200, "6", "{\"choices\":[],\"usage\":{\"completion_tokens\":4}}");
    assert_false(s.done);
    give(&s, 6300, "7", "[DONE]");
    assert_true(s.done);
    assert_int_equal(s.answer.tokens, 4);
    assert_string_equal(s.answer.finish, "stop");
    assert_string_equal(s.answer.reasoning.v, "a");
    assert_string_equal(s.answer.content.v, "bcdcd");
    assert_string_equal(s.request, "r1");
    assert_string_equal(s.error, "");
    load_stream_finish(&s);
}

static void test_stream_notices_errors(void **state)
{
    struct load_stream s;
    load_stream_begin(&s, 0, 0);
    give(&s, 1, "", "{\"error\":{\"message\":\"gone\"}}");
    assert_string_equal(s.error, "gone");
    load_stream_finish(&s);
    load_stream_begin(&s, 0, 0);
    give(&s, 1, "", "{nonsense");
    assert_memory_equal(s.error, "event is not JSON", 17);
    load_stream_finish(&s);
}

static void test_answers_compare(void **state)
{
    struct load_answer a = {.tokens = 2, .finish = "stop"}, b = {.tokens = 2, .finish = "stop"};
    strbuf_puts(&a.content, "ab");
    strbuf_puts(&b.content, "ab");
    assert_true(load_answer_equal(&a, &b));
    b.tokens = 3;
    assert_false(load_answer_equal(&a, &b));
    b.tokens = 2;
    strcpy(b.finish, "length");
    assert_false(load_answer_equal(&a, &b));
    strcpy(b.finish, "stop");
    strbuf_puts(&b.reasoning, "x");
    assert_false(load_answer_equal(&a, &b));
    load_answer_finish(&a);
    load_answer_finish(&b);
}

static void test_fault_script(void **state)
{
    static const struct {
        const char *line;
        struct load_fault want;
    } good[] = {
        {"at 2s kill node 2", {LOAD_KILL, "2", 2000, 2000, 0, 0}},
        {"at 2 kill 2", {LOAD_KILL, "2", 2000, 2000, 0, 0}},
        {"  at 0.5s..3s  stop busy\n", {LOAD_STOP, "busy", 500, 3000, 0, 0}},
        {"at 1s stop random for 500ms", {LOAD_STOP, "random", 1000, 1000, 0, 500}},
        {"every 5s kill random", {LOAD_KILL, "random", 5000, 5000, 5000, 0}},
        {"at 1s failover replica 2", {LOAD_FAILOVER, "2", 1000, 1000, 0, 0}},
        {"at 1s drain host-a.1", {LOAD_DRAIN, "host-a.1", 1000, 1000, 0, 0}},
        {"at 1s drop all", {LOAD_DROP, "all", 1000, 1000, 0, 0}},
    };
    struct load_script script = {.n = 0};
    struct errmsg err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(load_script_add(&script, good[i].line, &err), STATUS_OK);
        const struct load_fault *f = &script.v[script.n - 1], *w = &good[i].want;
        assert_int_equal(f->action, w->action);
        assert_string_equal(f->target, w->target);
        assert_true(f->from_ms == w->from_ms && f->to_ms == w->to_ms);
        assert_true(f->every_ms == w->every_ms && f->for_ms == w->for_ms);
    }
    int n = script.n;
    assert_int_equal(load_script_add(&script, "", &err), STATUS_OK);
    assert_int_equal(load_script_add(&script, "# at 1s kill 1", &err), STATUS_OK);
    static const char *const bad[] = {
        "kill 2",           "at kill 2",           "at 2s",
        "at 2s shoot 2",    "at 2s kill",          "at 2s kill node",
        "at 3s..2s kill 1", "at 1d kill 1",        "every 0s kill 1",
        "at 2s kill 1 now", "at 1s kill 1 for 2s", "at 1s drop 3",
        "at 1s failover x", "at 1s stop 1 for x",  "at -1s kill 1",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(load_script_add(&script, bad[i], &err), STATUS_BAD_CONFIG);
    assert_int_equal(script.n, n);
}

static void test_prompts(void **state)
{
    struct load_prompt_args a = {
        .model = "m", .mix = "all", .distinct = 40, .max_tokens = 9, .seed = 3};
    struct load_prompts p, q;
    struct errmsg err;
    assert_int_equal(load_prompts_make(&p, &a, &err), STATUS_OK);
    assert_int_equal(load_prompts_make(&q, &a, &err), STATUS_OK);
    assert_int_equal(p.n, 40);
    int differ = 0;
    for (int i = 0; i < p.n; i++) {
        assert_string_equal(p.bodies[i], q.bodies[i]);
        differ += strcmp(p.bodies[i], p.bodies[0]) != 0;
        assert_non_null(strstr(p.bodies[i], "\"max_tokens\":9"));
    }
    assert_true(differ > 30);
    load_prompts_finish(&p);
    load_prompts_finish(&q);
}

static enum status prompts_of(const char *text, struct load_prompts *p, struct errmsg *err)
{
    char path[] = "/tmp/hadal-prompts-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    struct load_prompt_args a = {.model = "m", .file = path, .max_tokens = 9};
    enum status s = load_prompts_make(p, &a, err);
    unlink(path);
    return s;
}

static void test_prompt_files(void **state)
{
    struct load_prompts p;
    struct errmsg err;
    const char *good = "{\"prompt\":\"a\"}\n\n\"b\"\n"
                       "{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}]}\n";
    assert_int_equal(prompts_of(good, &p, &err), STATUS_OK);
    assert_int_equal(p.n, 3);
    assert_non_null(strstr(p.bodies[2], "\"content\":\"c\""));
    load_prompts_finish(&p);
    assert_int_equal(prompts_of("", &p, &err), STATUS_BAD_FILE);
    assert_int_equal(prompts_of("{\"x\":1}\n", &p, &err), STATUS_BAD_FILE);
    assert_int_equal(prompts_of("\"a\"\n{", &p, &err), STATUS_BAD_FILE);
    assert_non_null(strstr(err.text, ":2:"));
    assert_int_equal(prompts_of("\"\xff\"\n", &p, &err), STATUS_BAD_FILE);
}

static void test_percentiles(void **state)
{
    struct load_samples s = {0};
    assert_int_equal(load_samples_summary(&s).n, 0);
    for (int i = 100; i >= 1; i--)
        load_samples_add(&s, i * 1000);
    struct load_summary r = load_samples_summary(&s);
    assert_true(r.p50_ms == 50 && r.p90_ms == 90 && r.p99_ms == 99 && r.max_ms == 100);
    assert_true(r.mean_ms > 50.49 && r.mean_ms < 50.51);
    load_samples_finish(&s);
    load_samples_add(&s, -5);
    load_samples_add(&s, INT64_MAX);
    r = load_samples_summary(&s);
    assert_true(r.p50_ms == 0 && r.max_ms > 4e6);
    load_samples_finish(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sse_format),
        cmocka_unit_test(test_sse_bounded),
        cmocka_unit_test(test_stream_takes_chunks),
        cmocka_unit_test(test_stream_notices_errors),
        cmocka_unit_test(test_answers_compare),
        cmocka_unit_test(test_fault_script),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_prompt_files),
        cmocka_unit_test(test_percentiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
