// Request bodies of /v1/chat/completions and /v1/completions. Each field is read by a small
// function that knows its type and range and names it when it is wrong; the JSON document stays
// alive with the request, so strings are borrowed from it.
#include "coordinator/openai.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/mem.h"

enum {
    COMPLETION_TOKENS = 16, // OpenAI's default for completions
    DEFAULT_BAND = 5,
};

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a decimal number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        break;
    }
    return "null";
}

static bool wrong_type(struct openai_error *e, const char *param, const char *want,
                       const json_t *got)
{
    return openai_fail(e, 400, param, "invalid_type",
                       "Invalid type for '%s': expected %s, but got %s instead.", param, want,
                       type_name(got));
}

static bool missing(struct openai_error *e, const char *param)
{
    return openai_fail(e, 400, param, "missing_required_parameter",
                       "Missing required parameter: '%s'.", param);
}

static bool unsupported(struct openai_error *e, const char *param, const char *why)
{
    return openai_fail(e, 400, param, "unsupported_parameter", "'%s' is not supported: %s.", param,
                       why);
}

// A member that is there and not null.
static json_t *field(const json_t *o, const char *name)
{
    json_t *v = json_object_get(o, name);
    return v && !json_is_null(v) ? v : NULL;
}

static bool take_bool(const json_t *o, const char *name, bool *out, struct openai_error *e)
{
    const json_t *v = field(o, name);
    if (!v)
        return true;
    if (!json_is_boolean(v))
        return wrong_type(e, name, "a boolean", v);
    *out = json_is_true(v);
    return true;
}

static bool take_int(const json_t *o, const char *name, int64_t lo, int64_t hi, int64_t *out,
                     struct openai_error *e)
{
    const json_t *v = field(o, name);
    if (!v)
        return true;
    if (!json_is_integer(v))
        return wrong_type(e, name, "an integer", v);
    json_int_t i = json_integer_value(v);
    if (i < lo)
        return openai_fail(e, 400, name, "integer_below_min_value",
                           "Invalid '%s': integer below minimum value. Expected a value >= %lld, "
                           "but got %lld instead.",
                           name, (long long)lo, (long long)i);
    if (i > hi)
        return openai_fail(e, 400, name, "integer_above_max_value",
                           "Invalid '%s': integer above maximum value. Expected a value <= %lld, "
                           "but got %lld instead.",
                           name, (long long)hi, (long long)i);
    *out = i;
    return true;
}

struct real_range {
    const char *name;
    double lo, hi;
    enum rpc_given given;
    float *out;
};

static bool take_real(const json_t *o, const struct real_range *r, uint32_t *given,
                      struct openai_error *e)
{
    const json_t *v = field(o, r->name);
    if (!v)
        return true;
    if (!json_is_number(v))
        return wrong_type(e, r->name, "a number", v);
    double d = json_number_value(v);
    if (!(d >= r->lo))
        return openai_fail(e, 400, r->name, "decimal_below_min_value",
                           "Invalid '%s': decimal below minimum value. Expected a value >= %g, "
                           "but got %g instead.",
                           r->name, r->lo, d);
    if (!(d <= r->hi))
        return openai_fail(e, 400, r->name, "decimal_above_max_value",
                           "Invalid '%s': decimal above maximum value. Expected a value <= %g, "
                           "but got %g instead.",
                           r->name, r->hi, d);
    *r->out = (float)d;
    *given |= (uint32_t)r->given;
    return true;
}

static bool take_sampling(const json_t *o, struct rpc_generate *g, struct openai_error *e)
{
    struct sampling *s = &g->sampling;
    const struct real_range reals[] = {
        {"temperature", 0, 2, RPC_GIVEN_TEMPERATURE, &s->temperature},
        {"top_p", 0, 1, RPC_GIVEN_TOP_P, &s->top_p},
        {"min_p", 0, 1, RPC_GIVEN_MIN_P, &s->min_p},
        {"repetition_penalty", 0.01, 10, RPC_GIVEN_REPETITION, &s->repetition_penalty},
        {"presence_penalty", -2, 2, RPC_GIVEN_PRESENCE, &s->presence_penalty},
        {"frequency_penalty", -2, 2, RPC_GIVEN_FREQUENCY, &s->frequency_penalty},
    };
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
        if (!take_real(o, &reals[i], &g->given, e))
            return false;
    int64_t top_k = -2, seed = 0;
    if (!take_int(o, "top_k", -1, INT32_MAX, &top_k, e) ||
        !take_int(o, "seed", INT64_MIN, INT64_MAX, &seed, e))
        return false;
    if (top_k >= -1) {
        s->top_k = top_k < 0 ? 0 : (int32_t)top_k; // vLLM's -1 is our 0: off
        g->given |= RPC_GIVEN_TOP_K;
    }
    if (field(o, "seed")) {
        s->seed = (uint64_t)seed;
        g->given |= RPC_GIVEN_SEED;
    }
    return true;
}

static bool take_logprobs(const json_t *o, struct openai_request *r, struct openai_error *e)
{
    struct sampling *s = &r->gen.sampling;
    int64_t top = -1;
    if (r->kind == OPENAI_COMPLETION) {
        if (!take_int(o, "logprobs", 0, LIMIT_TOP_LOGPROBS, &top, e))
            return false;
        s->logprobs = top >= 0;
        s->top_logprobs = top > 0 ? (uint32_t)top : 0;
        return true;
    }
    if (!take_bool(o, "logprobs", &s->logprobs, e) ||
        !take_int(o, "top_logprobs", 0, LIMIT_TOP_LOGPROBS, &top, e))
        return false;
    if (top >= 0 && !s->logprobs)
        return openai_fail(e, 400, "top_logprobs", "invalid_value",
                           "'top_logprobs' needs 'logprobs' to be true.");
    s->top_logprobs = top > 0 ? (uint32_t)top : 0;
    return true;
}

static bool take_stop_string(const json_t *v, struct rpc_text *out, struct openai_error *e)
{
    if (!json_is_string(v))
        return wrong_type(e, "stop", "a string or an array of strings", v);
    *out = (struct rpc_text){json_string_value(v), json_string_length(v)};
    if (out->n == 0 || out->n > LIMIT_STOP_BYTES)
        return openai_fail(e, 400, "stop", "invalid_value",
                           "Invalid 'stop': a stop string has 1 to %d bytes, this one %zu.",
                           LIMIT_STOP_BYTES, out->n);
    return true;
}

static bool take_stop(const json_t *o, struct openai_request *r, struct openai_error *e)
{
    const json_t *v = field(o, "stop");
    if (!v)
        return true;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > LIMIT_STOP_STRINGS)
        return openai_fail(e, 400, "stop", "array_above_max_length",
                           "Invalid 'stop': array too long. Expected at most %d strings, but got "
                           "%zu instead.",
                           LIMIT_STOP_STRINGS, n);
    r->stop = mem_zalloc(n ? n : 1, sizeof *r->stop);
    for (size_t i = 0; i < n; i++)
        if (!take_stop_string(json_is_array(v) ? json_array_get(v, i) : v, &r->stop[i], e))
            return false;
    r->gen.stop = r->stop;
    r->gen.stop_n = (uint32_t)n;
    return true;
}

static bool take_max_tokens(const json_t *o, struct openai_request *r, struct openai_error *e)
{
    int64_t n = 0;
    if (!take_int(o, "max_tokens", 1, LIMIT_CONTEXT, &n, e))
        return false;
    if (r->kind == OPENAI_CHAT &&
        !take_int(o, "max_completion_tokens", 1, LIMIT_CONTEXT, &n, e)) // the newer name wins
        return false;
    r->gen.max_tokens = (uint32_t)(n ? n : r->kind == OPENAI_COMPLETION ? COMPLETION_TOKENS : 0);
    return true;
}

static bool take_stream(const json_t *o, struct openai_request *r, struct openai_error *e)
{
    if (!take_bool(o, "stream", &r->stream, e))
        return false;
    const json_t *options = field(o, "stream_options");
    if (!options)
        return true;
    if (!json_is_object(options))
        return wrong_type(e, "stream_options", "an object", options);
    if (!r->stream)
        return openai_fail(e, 400, "stream_options", "invalid_value",
                           "'stream_options' is only allowed when 'stream' is true.");
    const json_t *usage = field(options, "include_usage");
    if (usage && !json_is_boolean(usage))
        return wrong_type(e, "stream_options.include_usage", "a boolean", usage);
    r->include_usage = json_is_true(usage);
    return true;
}

// What cannot be done must not be ignored: the answer would not be what was asked for.
static bool refuse_unsupported(const json_t *o, struct openai_request *r, struct openai_error *e)
{
    int64_t n = 1, best_of = 1;
    if (!take_int(o, "n", 1, 128, &n, e) || !take_int(o, "best_of", 1, 20, &best_of, e))
        return false;
    if (n != 1)
        return openai_fail(e, 400, "n", "unsupported_value",
                           "'n' is %lld; only 1 answer per request is supported.", (long long)n);
    if (best_of != 1)
        return unsupported(e, "best_of", "only 1 answer per request is computed");
    static const char *const lists[] = {"tools", "functions"};
    for (int i = 0; i < 2; i++) {
        const json_t *v = field(o, lists[i]);
        if (v && !json_is_array(v))
            return wrong_type(e, lists[i], "an array", v);
        if (json_array_size(v))
            return unsupported(e, lists[i], "tool calls are not available on this server");
    }
    if (json_object_size(field(o, "logit_bias")))
        return unsupported(e, "logit_bias", "it is not available on this server");
    const json_t *format = field(o, "response_format");
    const char *type = json_string_value(json_object_get(format, "type"));
    if (format && (!type || strcmp(type, "text")))
        return unsupported(e, "response_format", "only the type \"text\" is available");
    if (json_is_true(json_object_get(o, "echo")))
        return unsupported(e, "echo", "the prompt is not repeated");
    if (r->kind == OPENAI_COMPLETION && field(o, "suffix"))
        return unsupported(e, "suffix", "text cannot be inserted");
    return true;
}

static bool take_extensions(const json_t *o, struct rpc_generate *g, struct openai_error *e)
{
    int64_t band = DEFAULT_BAND, deadline_ms = 0;
    if (!take_int(o, "priority", 0, 9, &band, e) ||
        !take_int(o, "deadline_ms", 1, 24 * 3600 * 1000, &deadline_ms, e))
        return false;
    g->band = (uint8_t)band;
    g->deadline_ms = (uint32_t)deadline_ms;
    const json_t *key = field(o, "prompt_cache_key");
    if (key && !json_is_string(key))
        return wrong_type(e, "prompt_cache_key", "a string", key);
    g->session = key ? json_string_value(key) : "";
    const json_t *user = field(o, "user");
    if (user && !json_is_string(user))
        return wrong_type(e, "user", "a string", user);
    g->user = user ? json_string_value(user) : "";
    g->key = "";
    return true;
}

static bool take_model(const json_t *o, struct rpc_generate *g, struct openai_error *e)
{
    const json_t *v = field(o, "model");
    if (!v)
        return missing(e, "model");
    if (!json_is_string(v))
        return wrong_type(e, "model", "a string", v);
    g->model = json_string_value(v);
    if (strlen(g->model) != json_string_length(v))
        return openai_fail(e, 400, "model", "invalid_value", "Invalid 'model': it holds a NUL.");
    return true;
}

// ---- chat ---------------------------------------------------------------------------------------

// Name of a place in `messages`, for errors.
struct place {
    char v[64];
};

static struct place place(size_t message, const char *member)
{
    struct place p;
    snprintf(p.v, sizeof p.v, "messages[%zu].%s", message, member);
    return p;
}

// Content as a list of parts: the texts one after another.
static bool take_parts(const json_t *parts, size_t i, struct strbuf *out, struct openai_error *e)
{
    size_t k;
    const json_t *part;
    strbuf_puts(out, "");
    json_array_foreach(parts, k, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");
        if (!json_is_object(part) || !type)
            return openai_fail(e, 400, place(i, "content").v, "invalid_value",
                               "Invalid 'messages[%zu].content[%zu]': expected an object with "
                               "'type'.",
                               i, k);
        if (strcmp(type, "text"))
            return openai_fail(e, 400, place(i, "content").v, "unsupported_value",
                               "'messages[%zu].content[%zu]' has type '%.40s'; this model reads "
                               "only text.",
                               i, k, type);
        if (!json_is_string(text))
            return openai_fail(e, 400, place(i, "content").v, "invalid_value",
                               "Invalid 'messages[%zu].content[%zu]': 'text' must be a string.", i,
                               k);
        strbuf_add(out, json_string_value(text), json_string_length(text));
    }
    return true;
}

static bool take_content(const json_t *m, size_t i, struct openai_request *r,
                         struct openai_error *e)
{
    const json_t *v = json_object_get(m, "content");
    struct rpc_text *out = &r->messages[i].content;
    if (json_is_string(v)) {
        *out = (struct rpc_text){json_string_value(v), json_string_length(v)};
        return true;
    }
    if (json_is_array(v)) {
        if (!take_parts(v, i, &r->contents[i], e))
            return false;
        *out = (struct rpc_text){r->contents[i].v, r->contents[i].n};
        return true;
    }
    if ((!v || json_is_null(v)) && !strcmp(r->messages[i].role, "assistant")) {
        *out = (struct rpc_text){"", 0}; // an answer that was only tool calls
        return true;
    }
    return v ? wrong_type(e, place(i, "content").v, "a string or an array of parts", v)
             : missing(e, place(i, "content").v);
}

static bool take_message(const json_t *m, size_t i, struct openai_request *r,
                         struct openai_error *e)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    struct place where = place(i, "role");
    if (!json_is_object(m)) {
        snprintf(where.v, sizeof where.v, "messages[%zu]", i);
        return wrong_type(e, where.v, "an object", m);
    }
    const json_t *role = field(m, "role");
    if (!role)
        return missing(e, where.v);
    if (!json_is_string(role))
        return wrong_type(e, where.v, "a string", role);
    for (size_t k = 0; k < sizeof roles / sizeof *roles && !r->messages[i].role; k++)
        if (!strcmp(json_string_value(role), roles[k]))
            r->messages[i].role = roles[k];
    if (!r->messages[i].role)
        return openai_fail(e, 400, where.v, "invalid_value",
                           "Invalid value: '%.40s'. Supported values are: 'system', 'developer', "
                           "'user', 'assistant' and 'tool'.",
                           json_string_value(role));
    return take_content(m, i, r, e);
}

static bool take_messages(const json_t *o, struct openai_request *r, struct openai_error *e)
{
    const json_t *list = field(o, "messages");
    if (!list)
        return missing(e, "messages");
    if (!json_is_array(list))
        return wrong_type(e, "messages", "an array", list);
    size_t n = json_array_size(list), i;
    if (n == 0)
        return openai_fail(e, 400, "messages", "empty_array",
                           "Invalid 'messages': empty array. Expected at least one message.");
    if (n > RPC_MESSAGES)
        return openai_fail(e, 400, "messages", "array_above_max_length",
                           "Invalid 'messages': array too long. Expected at most %d messages, but "
                           "got %zu instead.",
                           RPC_MESSAGES, n);
    r->messages = mem_zalloc(n, sizeof *r->messages);
    r->contents = mem_zalloc(n, sizeof *r->contents);
    r->gen.messages = r->messages;
    r->gen.messages_n = (uint32_t)n;
    const json_t *m;
    json_array_foreach(list, i, m) if (!take_message(m, i, r, e)) return false;
    return true;
}

// ---- completions --------------------------------------------------------------------------------

static bool take_ids(const json_t *list, struct openai_request *r, struct openai_error *e)
{
    size_t n = json_array_size(list), i;
    if (n > LIMIT_CONTEXT)
        return openai_fail(e, 400, "prompt", "context_length_exceeded",
                           "The prompt has %zu tokens; no context is longer than %d.", n,
                           LIMIT_CONTEXT);
    r->ids = mem_alloc(n * sizeof *r->ids);
    const json_t *v;
    json_array_foreach(list, i, v)
    {
        if (!json_is_integer(v))
            return wrong_type(e, "prompt", "an array of token ids", v);
        json_int_t id = json_integer_value(v);
        if (id < 0 || id >= LIMIT_VOCAB)
            return openai_fail(e, 400, "prompt", "invalid_value",
                               "Invalid 'prompt[%zu]': %lld is no token id.", i, (long long)id);
        r->ids[i] = (int32_t)id;
    }
    r->gen.ids = r->ids;
    r->gen.ids_n = (uint32_t)n;
    return true;
}

// A string, a list of ids, or a list with one of either.
static bool take_prompt(const json_t *o, struct openai_request *r, struct openai_error *e)
{
    const json_t *v = field(o, "prompt");
    if (!v)
        return missing(e, "prompt");
    const json_t *first = json_array_get(v, 0);
    if (json_is_string(first) || json_is_array(first)) {
        if (json_array_size(v) != 1)
            return openai_fail(e, 400, "prompt", "unsupported_value",
                               "'prompt' holds %zu prompts; only 1 per request is supported.",
                               json_array_size(v));
        v = first;
    }
    if (json_is_array(v)) {
        if (json_array_size(v) == 0)
            return openai_fail(e, 400, "prompt", "empty_array", "Invalid 'prompt': empty array.");
        return take_ids(v, r, e);
    }
    if (!json_is_string(v))
        return wrong_type(e, "prompt", "a string or an array of token ids", v);
    r->gen.text = (struct rpc_text){json_string_value(v), json_string_length(v)};
    return true;
}

// ---- the document -------------------------------------------------------------------------------

// What the document would cost jansson: it recurses to a depth of its own, and an empty array of
// three bytes becomes 150 of memory, an object 400.
struct json_shape {
    int depth, deepest;
    size_t nodes;  // objects, arrays and members of objects
    size_t values; // at least as many as the document has
};

static struct json_shape json_shape(const char *s, size_t n)
{
    struct json_shape j = {.values = 1};
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        if (in_string) {
            in_string = s[i] != '"';
            i += s[i] == '\\'; // what is escaped is skipped
            continue;
        }
        in_string = s[i] == '"';
        bool opens = s[i] == '[' || s[i] == '{';
        j.depth += opens - (s[i] == ']' || s[i] == '}');
        j.deepest = j.depth > j.deepest ? j.depth : j.deepest;
        j.nodes += opens || s[i] == ':';
        j.values += opens || s[i] == ',';
    }
    return j;
}

static bool shape_ok(const char *body, size_t n, struct openai_error *e)
{
    struct json_shape j = json_shape(body, n);
    if (j.deepest > LIMIT_JSON_DEPTH)
        return openai_fail(e, 400, NULL, "invalid_json",
                           "The JSON body is nested more than %d deep.", LIMIT_JSON_DEPTH);
    if (j.nodes > LIMIT_JSON_NODES)
        return openai_fail(e, 400, NULL, "invalid_json",
                           "The JSON body has more than %d objects, arrays and their members.",
                           LIMIT_JSON_NODES);
    if (j.values > LIMIT_JSON_VALUES)
        return openai_fail(e, 400, NULL, "invalid_json", "The JSON body has more than %d values.",
                           LIMIT_JSON_VALUES);
    return true;
}

static bool parse_json(const char *body, size_t n, json_t **out, struct openai_error *e)
{
    if (!shape_ok(body, n, e))
        return false;
    json_error_t je;
    json_t *root = json_loadb(body, n, JSON_ALLOW_NUL, &je);
    if (!root)
        return openai_fail(e, 400, NULL, "invalid_json",
                           "We could not parse the JSON body of your request: %s at line %d, "
                           "column %d (byte %d).",
                           je.text, je.line, je.column, je.position);
    if (!json_is_object(root)) {
        json_decref(root);
        return openai_fail(e, 400, NULL, "invalid_json",
                           "The JSON body of the request must be an object.");
    }
    *out = root;
    return true;
}

static bool take_fields(struct openai_request *r, struct openai_error *e)
{
    const json_t *o = r->root;
    return take_model(o, &r->gen, e) &&
           (r->kind == OPENAI_CHAT ? take_messages(o, r, e) : take_prompt(o, r, e)) &&
           take_stream(o, r, e) && take_max_tokens(o, r, e) && take_sampling(o, &r->gen, e) &&
           take_logprobs(o, r, e) && take_stop(o, r, e) && refuse_unsupported(o, r, e) &&
           take_extensions(o, &r->gen, e);
}

bool openai_parse(enum openai_kind kind, const char *body, size_t n, struct openai_request *out,
                  struct openai_error *e)
{
    struct openai_request r = {.kind = kind, .gen.window = RPC_WINDOW};
    if (!parse_json(body, n, &r.root, e))
        return false;
    if (!take_fields(&r, e)) {
        openai_request_finish(&r);
        return false;
    }
    *out = r;
    return true;
}

void openai_request_finish(struct openai_request *r)
{
    for (uint32_t i = 0; r->contents && i < r->gen.messages_n; i++)
        strbuf_finish(&r->contents[i]);
    free(r->contents);
    free(r->messages);
    free(r->ids);
    free(r->stop);
    json_decref(r->root);
    *r = (struct openai_request){0};
}
