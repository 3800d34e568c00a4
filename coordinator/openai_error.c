// Error bodies of OpenAI's shape, and ids of answers.
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "coordinator/openai.h"

static const char *type_of(int http)
{
    switch (http) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 429:
        return "rate_limit_error";
    default:
        return http >= 500 ? "server_error" : "invalid_request_error";
    }
}

bool openai_fail(struct openai_error *e, int http, const char *param, const char *code,
                 const char *fmt, ...)
{
    *e = (struct openai_error){.http = http, .type = type_of(http), .code = code};
    if (param)
        snprintf(e->param, sizeof e->param, "%s", param);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
    // What was cut off, or quoted from the client, must not end inside a character.
    e->message[utf8_valid_prefix(e->message, strlen(e->message))] = '\0';
    return false;
}

static void json_or_null(struct strbuf *out, const char *s)
{
    if (s && *s)
        strbuf_json(out, s, strlen(s));
    else
        strbuf_puts(out, "null");
}

void openai_error_json(const struct openai_error *e, struct strbuf *out)
{
    strbuf_puts(out, "{\"error\":{\"message\":");
    strbuf_json(out, e->message, strlen(e->message));
    strbuf_puts(out, ",\"type\":");
    json_or_null(out, e->type);
    strbuf_puts(out, ",\"param\":");
    json_or_null(out, e->param);
    strbuf_puts(out, ",\"code\":");
    json_or_null(out, e->code);
    strbuf_puts(out, "}}");
}

enum rpc_code openai_error_rpc_code(const struct openai_error *e)
{
    switch (e->http) {
    case 400:
    case 413:
        return RPC_CODE_INVALID_ARGUMENT;
    case 401:
        return RPC_CODE_UNAUTHENTICATED;
    case 404:
        return RPC_CODE_NOT_FOUND;
    case 408:
    case 504:
        return RPC_CODE_DEADLINE_EXCEEDED;
    case 429:
        return RPC_CODE_RESOURCE_EXHAUSTED;
    case 499:
        return RPC_CODE_CANCELLED;
    case 503:
        return RPC_CODE_UNAVAILABLE;
    default:
        return RPC_CODE_INTERNAL;
    }
}

void openai_id(const struct openai_head *h, char id[OPENAI_ID_BYTES])
{
    snprintf(id, OPENAI_ID_BYTES, "%s%016" PRIx64, h->kind == OPENAI_CHAT ? "chatcmpl-" : "cmpl-",
             h->request);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

uint64_t openai_id_parse(const char *s, size_t n)
{
    static const char *const prefixes[] = {"chatcmpl-", "cmpl-"};
    for (int i = 0; i < 2; i++) {
        size_t len = strlen(prefixes[i]);
        if (n > len && !memcmp(s, prefixes[i], len)) {
            s += len;
            n -= len;
            break;
        }
    }
    if (n == 0 || n > 16)
        return 0;
    uint64_t id = 0;
    for (size_t i = 0; i < n; i++) {
        int d = hex_digit(s[i]);
        if (d < 0)
            return 0;
        id = id << 4 | (uint64_t)d;
    }
    return id;
}
