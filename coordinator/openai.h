// OpenAI's HTTP API as pure functions: bodies of requests in, JSON out. No sockets, no clock.
//
// Choices where OpenAI's own behaviour leaves room (README repeats them for users):
//  * n must be 1; echo, suffix, tools, functions, logit_bias, response_format other than text, and
//    message parts other than text are refused by name; other unknown fields are ignored.
//  * max_tokens beyond what the context has room for is an error, not clamped. Without it a chat
//    goes on to the end of the context, a completion gets 16 tokens, as OpenAI's does.
//  * Sampling fields that the client leaves out come from the model's generation_config.json.
//  * Extensions: top_k, min_p, repetition_penalty (as vLLM's), priority 0..9 (9 = most urgent,
//    default 5), deadline_ms (refuse rather than start later), prompt_cache_key (OpenAI's; requests
//    with the same one go to the same replica while they can).
//  * stop applies to the content, not to reasoning_content.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/strbuf.h"
#include "coordinator/answer.h"
#include "proto/rpc.h"

struct openai_error {
    int http;         // status code; 0 = no error
    const char *type; // static: "invalid_request_error", ...
    const char *code; // static; NULL = null
    char param[64];   // "" = null
    char message[512];
    uint32_t retry_after_ms; // 0 = none
};

// Fills *e and returns false, so that `return openai_fail(e, ...)` works in functions that return
// success. param and code may be NULL.
bool openai_fail(struct openai_error *e, int http, const char *param, const char *code,
                 const char *fmt, ...) __attribute__((format(printf, 5, 6)));
// {"error":{"message":...,"type":...,"param":...,"code":...}}
void openai_error_json(const struct openai_error *e, struct strbuf *out);
// The same failure for a client of the RPC.
enum rpc_code openai_error_rpc_code(const struct openai_error *e);

enum openai_kind { OPENAI_CHAT, OPENAI_COMPLETION };

// A request as parsed. `gen` borrows from the other members.
struct openai_request {
    enum openai_kind kind;
    struct rpc_generate gen;
    bool stream, include_usage;
    // owned
    json_t *root;
    struct rpc_message *messages;
    struct strbuf *contents; // of messages given in parts, one per message
    int32_t *ids;
    struct rpc_text *stop;
};

// Checks everything that can be known without the model. On failure *e says what to answer.
bool openai_parse(enum openai_kind kind, const char *body, size_t n, struct openai_request *out,
                  struct openai_error *e) STATUS_MUST_USE;
void openai_request_finish(struct openai_request *r); // zeroed is fine

// ---- answers ------------------------------------------------------------------------------------

// What stays the same in all that is said of one request.
struct openai_head {
    enum openai_kind kind;
    uint64_t request;
    int64_t created; // Unix time, seconds
    const char *model;
    bool include_usage;
};

// Longest id: "chatcmpl-" and 16 digits.
enum { OPENAI_ID_BYTES = 32 };
void openai_id(const struct openai_head *h, char id[OPENAI_ID_BYTES]);
// "chatcmpl-<hex>", "cmpl-<hex>" or bare hex of 1..16 digits -> id; 0 when it is none of them.
uint64_t openai_id_parse(const char *s, size_t n);

struct openai_usage {
    uint32_t prompt, completion, cached, reasoning; // tokens
};

// Server-sent events, appended to `out`. Every event has an id: role 0, text covering the tokens up
// to k: k, finish n + 1, usage n + 2, [DONE] n + 3, where n is the number of tokens.
void openai_sse_role(const struct openai_head *h, struct strbuf *out);
// The part of the answer between two numbers of tokens; nothing when it has neither text nor
// log-probabilities to tell. True when something was appended.
bool openai_sse_delta(const struct openai_head *h, const struct answer *a, uint32_t from,
                      uint32_t to, struct strbuf *out);
// With the text that became certain only at the end.
void openai_sse_finish(const struct openai_head *h, const struct answer *a,
                       enum finish_reason finish, struct strbuf *out);
void openai_sse_usage(const struct openai_head *h, uint32_t n, const struct openai_usage *u,
                      struct strbuf *out);
void openai_sse_error(uint32_t n, const struct openai_error *e, struct strbuf *out);
void openai_sse_done(uint32_t n, struct strbuf *out);

// The whole answer as one JSON document.
void openai_response(const struct openai_head *h, const struct answer *a, enum finish_reason finish,
                     const struct openai_usage *u, struct strbuf *out);
void openai_model(const char *model, int64_t created, uint32_t max_context, struct strbuf *out);
