// coordinator/openai*.c and answer.c: a table of good and bad bodies, the events of a stream, and
// that the events from any place on are exactly what was not seen.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include <jansson.h>

#include "base/mem.h"
#include "base/prng.h"
#include "coordinator/openai.h"
#include "coordinator/text_pool.h"

#define MSG "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define M   "\"model\":\"m\","

struct body_case {
    enum openai_kind kind;
    const char *body;
    int http; // 0 = good
    const char *param, *code;
};

static const struct body_case bodies[] = {
    // good
    {OPENAI_CHAT, "{" M MSG "}", 0, "", NULL},
    {OPENAI_CHAT, "{" M MSG ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}", 0, "",
     NULL},
    {OPENAI_CHAT, "{" M MSG ",\"temperature\":null,\"stop\":null,\"n\":1,\"user\":\"u\"}", 0, "",
     NULL},
    {OPENAI_CHAT, "{" M MSG ",\"stop\":[\"a\",\"b\"],\"seed\":-1}", 0, "", NULL},
    {OPENAI_CHAT, "{" M MSG ",\"logprobs\":true,\"top_logprobs\":20}", 0, "", NULL},
    {OPENAI_CHAT, "{" M MSG ",\"temperature\":2,\"top_p\":0.5,\"top_k\":-1,\"min_p\":0.1}", 0, "",
     NULL},
    {OPENAI_CHAT, "{" M MSG ",\"response_format\":{\"type\":\"text\"},\"tools\":[]}", 0, "", NULL},
    {OPENAI_CHAT, "{" M MSG ",\"some_new_field\":{\"x\":[1]},\"metadata\":{}}", 0, "", NULL},
    {OPENAI_CHAT, "{" M MSG ",\"priority\":9,\"deadline_ms\":1000,\"prompt_cache_key\":\"s\"}", 0,
     "", NULL},
    {OPENAI_CHAT,
     "{" M "\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
     "{\"type\":\"text\",\"text\":\"b\"}]},{\"role\":\"assistant\",\"content\":null},"
     "{\"role\":\"tool\",\"content\":\"\"}]}",
     0, "", NULL},
    {OPENAI_COMPLETION, "{" M "\"prompt\":\"x\",\"logprobs\":5,\"echo\":false}", 0, "", NULL},
    {OPENAI_COMPLETION, "{" M "\"prompt\":[1,2,3]}", 0, "", NULL},
    {OPENAI_COMPLETION, "{" M "\"prompt\":[\"x\"],\"best_of\":1}", 0, "", NULL},
    {OPENAI_COMPLETION, "{" M "\"prompt\":[[1,2]],\"suffix\":null}", 0, "", NULL},
    {OPENAI_COMPLETION, "{" M "\"prompt\":\"nul \\u0000 inside\"}", 0, "", NULL},
    // no JSON, or not an object
    {OPENAI_CHAT, "", 400, "", "invalid_json"},
    {OPENAI_CHAT, "{", 400, "", "invalid_json"},
    {OPENAI_CHAT, "[]", 400, "", "invalid_json"},
    {OPENAI_CHAT, "\"x\"", 400, "", "invalid_json"},
    {OPENAI_CHAT, "{\"model\":\"m\",}", 400, "", "invalid_json"},
    {OPENAI_CHAT, "{\"model\":\"\xFF\"}", 400, "", "invalid_json"},
    {OPENAI_CHAT, "{\"model\":\"\\ud800\"}", 400, "", "invalid_json"},
    {OPENAI_CHAT, "{" M MSG ",\"max_tokens\":1e999}", 400, "", "invalid_json"},
    {OPENAI_CHAT, "{" M MSG ",\"seed\":99999999999999999999}", 400, "", "invalid_json"},
    {OPENAI_CHAT, "{" M MSG "} x", 400, "", "invalid_json"},
    // missing, wrong types
    {OPENAI_CHAT, "{" MSG "}", 400, "model", "missing_required_parameter"},
    {OPENAI_CHAT, "{\"model\":null," MSG "}", 400, "model", "missing_required_parameter"},
    {OPENAI_CHAT, "{\"model\":3," MSG "}", 400, "model", "invalid_type"},
    {OPENAI_CHAT, "{\"model\":\"a\\u0000b\"," MSG "}", 400, "model", "invalid_value"},
    {OPENAI_CHAT, "{\"model\":\"m\"}", 400, "messages", "missing_required_parameter"},
    {OPENAI_CHAT, "{" M "\"messages\":\"hi\"}", 400, "messages", "invalid_type"},
    {OPENAI_CHAT, "{" M "\"messages\":[]}", 400, "messages", "empty_array"},
    {OPENAI_CHAT, "{" M "\"messages\":[\"hi\"]}", 400, "messages[0]", "invalid_type"},
    {OPENAI_CHAT, "{" M "\"messages\":[{}]}", 400, "messages[0].role",
     "missing_required_parameter"},
    {OPENAI_CHAT, "{" M "\"messages\":[{\"role\":1}]}", 400, "messages[0].role", "invalid_type"},
    {OPENAI_CHAT, "{" M "\"messages\":[{\"role\":\"robot\",\"content\":\"\"}]}", 400,
     "messages[0].role", "invalid_value"},
    {OPENAI_CHAT, "{" M "\"messages\":[{\"role\":\"user\"}]}", 400, "messages[0].content",
     "missing_required_parameter"},
    {OPENAI_CHAT, "{" M "\"messages\":[{\"role\":\"user\",\"content\":null}]}", 400,
     "messages[0].content", "invalid_type"},
    {OPENAI_CHAT, "{" M "\"messages\":[{\"role\":\"user\",\"content\":{}}]}", 400,
     "messages[0].content", "invalid_type"},
    {OPENAI_CHAT,
     "{" M "\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", 400,
     "messages[0].content", "unsupported_value"},
    {OPENAI_CHAT, "{" M "\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}", 400,
     "messages[0].content", "invalid_value"},
    {OPENAI_CHAT,
     "{" M "\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":1}]}]}", 400,
     "messages[0].content", "invalid_value"},
    {OPENAI_CHAT, "{" M MSG ",\"stream\":\"yes\"}", 400, "stream", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"stream_options\":{}}", 400, "stream_options", "invalid_value"},
    {OPENAI_CHAT, "{" M MSG ",\"stream\":true,\"stream_options\":1}", 400, "stream_options",
     "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"stream\":true,\"stream_options\":{\"include_usage\":1}}", 400,
     "stream_options.include_usage", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"max_tokens\":\"5\"}", 400, "max_tokens", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"max_tokens\":5.5}", 400, "max_tokens", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"max_tokens\":0}", 400, "max_tokens", "integer_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"max_tokens\":-1}", 400, "max_tokens", "integer_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"max_tokens\":9223372036854775807}", 400, "max_tokens",
     "integer_above_max_value"},
    {OPENAI_CHAT, "{" M MSG ",\"max_completion_tokens\":0}", 400, "max_completion_tokens",
     "integer_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"temperature\":\"hot\"}", 400, "temperature", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"temperature\":2.1}", 400, "temperature", "decimal_above_max_value"},
    {OPENAI_CHAT, "{" M MSG ",\"temperature\":-0.1}", 400, "temperature",
     "decimal_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"top_p\":1.01}", 400, "top_p", "decimal_above_max_value"},
    {OPENAI_CHAT, "{" M MSG ",\"min_p\":-1}", 400, "min_p", "decimal_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"top_k\":-2}", 400, "top_k", "integer_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"top_k\":1.5}", 400, "top_k", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"presence_penalty\":3}", 400, "presence_penalty",
     "decimal_above_max_value"},
    {OPENAI_CHAT, "{" M MSG ",\"frequency_penalty\":-3}", 400, "frequency_penalty",
     "decimal_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"repetition_penalty\":0}", 400, "repetition_penalty",
     "decimal_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"seed\":1.5}", 400, "seed", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"logprobs\":1}", 400, "logprobs", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"top_logprobs\":1}", 400, "top_logprobs", "invalid_value"},
    {OPENAI_CHAT, "{" M MSG ",\"logprobs\":true,\"top_logprobs\":21}", 400, "top_logprobs",
     "integer_above_max_value"},
    {OPENAI_CHAT, "{" M MSG ",\"stop\":1}", 400, "stop", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"stop\":[1]}", 400, "stop", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"stop\":\"\"}", 400, "stop", "invalid_value"},
    {OPENAI_CHAT,
     "{" M MSG ",\"stop\":[\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\","
     "\"\",\"\",\"\"]}",
     400, "stop", "array_above_max_length"},
    {OPENAI_CHAT, "{" M MSG ",\"priority\":10}", 400, "priority", "integer_above_max_value"},
    {OPENAI_CHAT, "{" M MSG ",\"deadline_ms\":0}", 400, "deadline_ms", "integer_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"prompt_cache_key\":1}", 400, "prompt_cache_key", "invalid_type"},
    // what this server does not do
    {OPENAI_CHAT, "{" M MSG ",\"n\":2}", 400, "n", "unsupported_value"},
    {OPENAI_CHAT, "{" M MSG ",\"n\":0}", 400, "n", "integer_below_min_value"},
    {OPENAI_CHAT, "{" M MSG ",\"tools\":[{}]}", 400, "tools", "unsupported_parameter"},
    {OPENAI_CHAT, "{" M MSG ",\"tools\":{}}", 400, "tools", "invalid_type"},
    {OPENAI_CHAT, "{" M MSG ",\"functions\":[{}]}", 400, "functions", "unsupported_parameter"},
    {OPENAI_CHAT, "{" M MSG ",\"logit_bias\":{\"1\":2}}", 400, "logit_bias",
     "unsupported_parameter"},
    {OPENAI_CHAT, "{" M MSG ",\"response_format\":{\"type\":\"json_object\"}}", 400,
     "response_format", "unsupported_parameter"},
    {OPENAI_CHAT, "{" M MSG ",\"response_format\":1}", 400, "response_format",
     "unsupported_parameter"},
    {OPENAI_COMPLETION, "{\"model\":\"m\"}", 400, "prompt", "missing_required_parameter"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":5}", 400, "prompt", "invalid_type"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":[]}", 400, "prompt", "empty_array"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":[[]]}", 400, "prompt", "empty_array"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":[1,\"a\"]}", 400, "prompt", "invalid_type"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":[-1]}", 400, "prompt", "invalid_value"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":[1048576]}", 400, "prompt", "invalid_value"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":[\"a\",\"b\"]}", 400, "prompt", "unsupported_value"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":\"a\",\"logprobs\":21}", 400, "logprobs",
     "integer_above_max_value"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":\"a\",\"logprobs\":true}", 400, "logprobs",
     "invalid_type"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":\"a\",\"echo\":true}", 400, "echo",
     "unsupported_parameter"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":\"a\",\"suffix\":\"b\"}", 400, "suffix",
     "unsupported_parameter"},
    {OPENAI_COMPLETION, "{" M "\"prompt\":\"a\",\"best_of\":2}", 400, "best_of",
     "unsupported_parameter"},
};

static void test_bodies(void **state)
{
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        const struct body_case *c = &bodies[i];
        struct openai_request r;
        struct openai_error e = {0};
        bool ok = openai_parse(c->kind, c->body, strlen(c->body), &r, &e);
        if (ok != !c->http || strcmp(e.param, c->param) || e.http != c->http ||
            (c->code && strcmp(e.code, c->code)))
            fail_msg("%s: %d param '%s' code %s: %s", c->body, e.http, e.param,
                     e.code ? e.code : "null", e.message);
        if (ok) {
            openai_request_finish(&r);
            continue;
        }
        struct strbuf json = {0};
        openai_error_json(&e, &json);
        json_t *o = json_loadb(json.v, json.n, 0, NULL);
        assert_non_null(json_string_value(json_object_get(json_object_get(o, "error"), "type")));
        json_decref(o);
        strbuf_finish(&json);
    }
}

static void test_values_arrive(void **state)
{
    const char *body = "{" M "\"messages\":[{\"role\":\"system\",\"content\":[{\"type\":\"text\","
                       "\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]},{\"role\":\"user\","
                       "\"content\":\"c\"}],\"max_tokens\":5,\"max_completion_tokens\":7,"
                       "\"temperature\":0.25,\"top_k\":-1,\"seed\":-2,\"stop\":\"END\","
                       "\"logprobs\":true,\"top_logprobs\":3,\"priority\":8}";
    struct openai_request r;
    struct openai_error e;
    assert_true(openai_parse(OPENAI_CHAT, body, strlen(body), &r, &e));
    const struct rpc_generate *g = &r.gen;
    assert_int_equal(g->messages_n, 2);
    assert_string_equal(g->messages[0].content.v, "ab");
    assert_int_equal(g->max_tokens, 7);
    assert_true(g->sampling.temperature == 0.25f && g->sampling.top_k == 0);
    assert_true(g->sampling.seed == (uint64_t)-2);
    assert_int_equal(g->given, RPC_GIVEN_TEMPERATURE | RPC_GIVEN_TOP_K | RPC_GIVEN_SEED);
    assert_int_equal(g->stop_n, 1);
    assert_int_equal(g->sampling.top_logprobs, 3);
    assert_int_equal(g->band, 8);
    openai_request_finish(&r);
}

static void test_json_position(void **state)
{
    struct openai_request r;
    struct openai_error e;
    const char *body = "{\n \"model\": nope}";
    assert_false(openai_parse(OPENAI_CHAT, body, strlen(body), &r, &e));
    assert_non_null(strstr(e.message, "line 2"));
    char deep[3000];
    memset(deep, '[', sizeof deep);
    assert_false(openai_parse(OPENAI_CHAT, deep, sizeof deep, &r, &e));
    assert_non_null(strstr(e.message, "deep"));
}

// `from` as the first of an ignored field's `n` elements.
static bool parse_many(const char *from, const char *each, const char *to, int n,
                       struct openai_error *e)
{
    struct strbuf body = {0};
    struct openai_request r;
    strbuf_printf(&body, "{" M MSG ",\"metadata\":%s", from);
    for (int i = 0; i < n; i++)
        strbuf_printf(&body, "%s,", each);
    strbuf_puts(&body, to);
    bool ok = openai_parse(OPENAI_CHAT, body.v, body.n, &r, e);
    if (ok)
        openai_request_finish(&r);
    strbuf_finish(&body);
    return ok;
}

// A few MB that would become hundreds: refused before they are parsed. What is in strings is text.
static void test_json_that_swells(void **state)
{
    struct openai_error e;
    const struct {
        const char *from, *each, *to;
        int n;
        const char *error; // NULL = good
    } cases[] = {
        {"[", "[]", "1]}", 1000, NULL},
        {"[", "[]", "1]}", 2000000, "objects, arrays"},
        {"[", "{}", "1]}", 2000000, "objects, arrays"},
        {"{", "\"a\":1", "\"b\":1}}", 400000, "objects, arrays"},
        {"[", "1", "1]}", LIMIT_CONTEXT, NULL},
        {"[", "1", "1]}", 2000000, "values"},
        {"[", "\"[{:,\\\"[{:,\"", "1]}", 500000, NULL},
        {"[\"", "[],{\\\\", "\"]}", 500000, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool ok = parse_many(cases[i].from, cases[i].each, cases[i].to, cases[i].n, &e);
        assert_int_equal(ok, !cases[i].error);
        if (!ok) {
            assert_string_equal(e.code, "invalid_json");
            assert_non_null(strstr(e.message, cases[i].error));
        }
    }
}

static void test_ids(void **state)
{
    const struct {
        const char *text;
        uint64_t id;
    } cases[] = {
        {"chatcmpl-00000000000000ff", 255},
        {"cmpl-1", 1},
        {"ABCDEF0123456789", 0xABCDEF0123456789},
        {"", 0},
        {"chatcmpl-", 0},
        {"xyz", 0},
        {"12345678901234567", 0},
        {"cmpl-chatcmpl-1", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_true(openai_id_parse(cases[i].text, strlen(cases[i].text)) == cases[i].id);
}

// Random damage to good bodies: parsed or refused, never worse (the sanitizers watch).
static void test_damaged_bodies(void **state)
{
    struct prng p;
    prng_seed(&p, 5);
    for (int round = 0; round < 20000; round++) {
        const struct body_case *c = &bodies[prng_below(&p, sizeof bodies / sizeof *bodies)];
        size_t n = strlen(c->body);
        char *body = mem_strdup(c->body);
        for (uint64_t k = 1 + prng_below(&p, 3); k && n; k--)
            body[prng_below(&p, n)] = (char)prng_u64(&p);
        struct openai_request r;
        struct openai_error e;
        if (openai_parse(c->kind, body, n, &r, &e))
            openai_request_finish(&r);
        else
            assert_true(e.http >= 400);
        free(body);
    }
}

// ---- with the sample model's tokenizer
// -----------------------------------------------------------

static struct model_text model;

static int open_model(void **state)
{
    struct errmsg err = {0};
    if (model_text_open("models/sample", NULL, &model, &err)) {
        print_error("%s\n", err.text);
        return -1;
    }
    return 0;
}

static int close_model(void **state)
{
    model_text_close(&model);
    return 0;
}

static void test_model_text(void **state)
{
    assert_string_equal(model.name, "sample");
    assert_true(model.thinks && model.opens_think);
    assert_int_equal(model.context, 4096);
    assert_true(model.defaults.temperature == 0.6f && model.defaults.top_p == 0.95f);
    assert_int_equal(model.stop_ids_n, 1);
}

static void test_jobs(void **state)
{
    const struct {
        enum text_source source;
        const char *body;
        int http;
        const char *code;
    } cases[] = {
        {TEXT_CHAT, "{\"model\":\"sample\"," MSG "}", 0, ""},
        {TEXT_COMPLETION, "{\"model\":\"sample\",\"prompt\":\"x\"}", 0, ""},
        {TEXT_COMPLETION, "{\"model\":\"sample\",\"prompt\":[1,2]}", 0, ""},
        {TEXT_CHAT, "{\"model\":\"gpt-4\"," MSG "}", 404, "model_not_found"},
        {TEXT_COMPLETION, "{\"model\":\"sample\",\"prompt\":[4096]}", 400, "invalid_value"},
        {TEXT_RPC, "\x01", 400, "invalid_value"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct text_job j = {.model = &model,
                             .source = cases[i].source,
                             .bytes = cases[i].body,
                             .n = strlen(cases[i].body)};
        text_job_run(&j);
        assert_int_equal(j.error.http, cases[i].http);
        if (cases[i].http)
            assert_string_equal(j.error.code, cases[i].code);
        else
            assert_true(j.ids.n > 0 && j.sampling.temperature == 0.6f);
        text_job_finish(&j);
    }
}

static struct token_vec encode(const char *text)
{
    struct token_vec ids = {0};
    assert_int_equal(tokenizer_encode_text(model.tokenizer, text, strlen(text), true, &ids, NULL),
                     STATUS_OK);
    return ids;
}

static const struct openai_head chat_head = {
    .kind = OPENAI_CHAT, .request = 255, .created = 1, .model = "m", .include_usage = true};

static void push_all(struct answer *a, const struct token_vec *ids)
{
    for (size_t i = 0; i < ids->n; i++)
        answer_push(a, &(struct token_out){.index = (uint32_t)i,
                                           .token = ids->v[i],
                                           .finish = i + 1 == ids->n ? FINISH_LENGTH : 0});
}

static void test_answer_splits(void **state)
{
    struct token_vec ids = encode("let me see\n</think>\n\nIt is caf\xC3\xA9 \xF0\x9F\x90\xB3!");
    struct answer a;
    assert_int_equal(answer_init(&a,
                                 &(struct answer_args){.tokenizer = model.tokenizer,
                                                       .reasoning = true,
                                                       .opens_think = true},
                                 NULL),
                     STATUS_OK);
    push_all(&a, &ids);
    answer_close(&a);
    assert_string_equal(a.thoughts.v, "let me see");
    assert_string_equal(a.content.v, "It is caf\xC3\xA9 \xF0\x9F\x90\xB3!");
    assert_true(a.reasoning_tokens > 0 && a.reasoning_tokens < a.tokens_n);
    answer_finish(&a);
    token_vec_finish(&ids);
}

static void test_answer_stops(void **state)
{
    struct token_vec ids = encode("one two three four five");
    const struct rpc_text stop[] = {{"ee fo", 5}, {"never", 5}};
    struct answer a;
    assert_int_equal(
        answer_init(&a,
                    &(struct answer_args){.tokenizer = model.tokenizer, .stop = stop, .stop_n = 2},
                    NULL),
        STATUS_OK);
    uint32_t hits = 0;
    for (size_t i = 0; i < ids.n; i++)
        hits += answer_push(&a, &(struct token_out){.token = ids.v[i]});
    answer_close(&a);
    assert_int_equal(hits, 1);
    assert_true(a.tokens_n < ids.n);
    assert_string_equal(a.content.v, "one two thr");
    answer_finish(&a);
    token_vec_finish(&ids);
}

// Collects the content of the events in `sse`, and the id of the last one.
static int64_t read_events(const char *sse, struct strbuf *content)
{
    int64_t last = -1;
    for (const char *at = sse; (at = strstr(at, "id: ")); at++) {
        last = atoll(at + 4);
        const char *data = strstr(at, "data: ") + 6;
        json_t *o = json_loads(data, JSON_DISABLE_EOF_CHECK, NULL);
        assert_non_null(o);
        json_t *delta = json_object_get(json_array_get(json_object_get(o, "choices"), 0), "delta");
        const char *members[] = {"reasoning_content", "content"};
        for (int i = 0; i < 2; i++) {
            const json_t *v = json_object_get(delta, members[i]);
            if (v)
                strbuf_add(content, json_string_value(v), json_string_length(v));
        }
        json_decref(o);
    }
    return last;
}

// From every place on, in pieces of every size, the events say exactly the rest.
static void test_events_from_anywhere(void **state)
{
    struct token_vec ids = encode("thoughts\n</think>\n\ncaf\xC3\xA9 \xF0\x9F\x90\xB3 \"x\"\n.");
    struct answer a;
    assert_int_equal(answer_init(&a,
                                 &(struct answer_args){.tokenizer = model.tokenizer,
                                                       .reasoning = true,
                                                       .opens_think = true},
                                 NULL),
                     STATUS_OK);
    push_all(&a, &ids);
    answer_close(&a);
    struct strbuf whole = {0};
    strbuf_printf(&whole, "%s%s", a.thoughts.v, a.content.v);
    for (uint32_t cut = 0; cut <= a.tokens_n; cut++) {
        for (uint32_t step = 1; step <= 5; step += 2) {
            struct strbuf sse = {0}, text = {0};
            uint32_t at = 0;
            while (at < a.tokens_n) { // in two connections, cut at `cut`
                uint32_t to = at + step;
                to = at < cut && to > cut ? cut : to;
                to = to > a.tokens_n ? a.tokens_n : to;
                openai_sse_delta(&chat_head, &a, at, to, &sse);
                at = to;
            }
            openai_sse_finish(&chat_head, &a, FINISH_LENGTH, &sse);
            assert_int_equal(read_events(sse.v, &text), a.tokens_n + 1);
            assert_string_equal(text.v, whole.v);
            strbuf_finish(&sse);
            strbuf_finish(&text);
        }
    }
    strbuf_finish(&whole);
    answer_finish(&a);
    token_vec_finish(&ids);
}

static void test_events_text(void **state)
{
    struct answer a;
    struct strbuf out = {0};
    struct token_vec ids = encode("hi");
    assert_int_equal(answer_init(&a, &(struct answer_args){.tokenizer = model.tokenizer}, NULL),
                     STATUS_OK);
    push_all(&a, &ids);
    answer_close(&a);
    const struct openai_usage u = {3, 1, 2, 0};
    openai_sse_role(&chat_head, &out);
    openai_sse_usage(&chat_head, a.tokens_n, &u, &out);
    openai_sse_done(a.tokens_n, &out);
    assert_string_equal(
        out.v,
        "id: 0\ndata: {\"id\":\"chatcmpl-00000000000000ff\",\"object\":\"chat.completion.chunk\","
        "\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\","
        "\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n"
        "id: 3\ndata: {\"id\":\"chatcmpl-00000000000000ff\",\"object\":\"chat.completion.chunk\","
        "\"created\":1,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,"
        "\"completion_tokens\":1,\"total_tokens\":4,\"prompt_tokens_details\":{\"cached_tokens\":"
        "2},\"completion_tokens_details\":{\"reasoning_tokens\":0}}}\n\n"
        "id: 4\ndata: [DONE]\n\n");
    strbuf_finish(&out);
    answer_finish(&a);
    token_vec_finish(&ids);
}

// The budget of the per-token path: detokenize, split, mark, render. The limit is generous, so that
// a loaded machine does not fail it.
static void test_cost_per_token(void **state)
{
    struct token_vec ids = encode("and so it goes on and on, letter by letter, word by word. ");
    struct answer a;
    assert_int_equal(answer_init(&a,
                                 &(struct answer_args){.tokenizer = model.tokenizer,
                                                       .reasoning = true,
                                                       .opens_think = true},
                                 NULL),
                     STATUS_OK);
    struct strbuf out = {0};
    enum { N = 100000 };
    clock_t start = clock();
    for (uint32_t i = 0; i < N; i++) {
        answer_push(&a, &(struct token_out){.index = i, .token = ids.v[i % ids.n]});
        strbuf_clear(&out);
        openai_sse_delta(&chat_head, &a, i, i + 1, &out);
    }
    double us = (double)(clock() - start) / CLOCKS_PER_SEC * 1e6 / N;
    print_message("%.2f us CPU per token, %.1f bytes kept per token\n", us,
                  (double)(a.marks_cap * sizeof *a.marks + a.thoughts.cap) / N);
    assert_true(us < 50);
    strbuf_finish(&out);
    answer_finish(&a);
    token_vec_finish(&ids);
}

// Prompts up to 4 KiB are read on the loop thread: that must not hold up streams. A generous limit,
// as above.
static void test_cost_of_a_prompt(void **state)
{
    struct strbuf body = {0};
    strbuf_puts(&body, "{\"model\":\"sample\",\"prompt\":\"");
    while (body.n < 4000)
        strbuf_printf(&body, "The %zu ships of caf\xC3\xA9 sail; ", body.n);
    strbuf_puts(&body, "\"}");
    enum { N = 200 };
    clock_t start = clock();
    for (int i = 0; i < N; i++) {
        struct text_job j = {
            .model = &model, .source = TEXT_COMPLETION, .bytes = body.v, .n = body.n};
        text_job_run(&j);
        assert_int_equal(j.error.http, 0);
        text_job_finish(&j);
    }
    double us = (double)(clock() - start) / CLOCKS_PER_SEC * 1e6 / N;
    print_message("%.0f us for a body of %zu bytes\n", us, body.n);
    assert_true(us < 20000);
    strbuf_finish(&body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bodies),
        cmocka_unit_test(test_values_arrive),
        cmocka_unit_test(test_json_position),
        cmocka_unit_test(test_json_that_swells),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_damaged_bodies),
        cmocka_unit_test(test_model_text),
        cmocka_unit_test(test_jobs),
        cmocka_unit_test(test_answer_splits),
        cmocka_unit_test(test_answer_stops),
        cmocka_unit_test(test_events_from_anywhere),
        cmocka_unit_test(test_events_text),
        cmocka_unit_test(test_cost_per_token),
        cmocka_unit_test(test_cost_of_a_prompt),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
