// One HTTP call at a time, for the tools that ask the coordinator something and wait for it.
#pragma once

#include <stddef.h>

#include "base/status.h"
#include "base/strbuf.h"

enum { HTTP_REPLY_MAX = 64 << 20 };

struct http_reply {
    long code;          // 200, 404, ...
    struct strbuf body; // owned; free with http_reply_finish
};

struct http_call {
    const char *method; // "GET", "POST"
    const char *url;    // the coordinator, "http://host:port"
    const char *path;   // "/hadal/v1/status"; already percent-encoded
    const char *body;   // JSON, or NULL
    long timeout_ms;    // of the whole call
};

// The address that tools use when none is given: HADAL_URL, or http://127.0.0.1:8000.
const char *http_default_url(void);

// LINK_DOWN, LINK_TIMEOUT or BAD_CONFIG (the URL) with a text in *err when there was no reply. Any
// code is a reply. `reply` is written in every case and must be finished.
enum status http_do(const struct http_call *call, struct http_reply *reply,
                    struct errmsg *err) STATUS_MUST_USE;
void http_reply_finish(struct http_reply *reply);

// "error.message" of an OpenAI-shaped error body, else its first line; into buf.
const char *http_error_text(const struct http_reply *reply, char *buf, size_t n);

// `text` percent-encoded as one segment of a path, appended to `to`.
void http_encode(struct strbuf *to, const char *text);
