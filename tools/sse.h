// Server-sent events from a byte stream, as the HTML standard defines the format: lines end in LF,
// CR or CRLF, `data:` lines add up, an empty line sends the event off, lines that begin with a
// colon are comments. Bytes may arrive in any pieces.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/strbuf.h"

enum { SSE_EVENT_MAX = 4 << 20, SSE_ID_MAX = 128 };

struct sse_event {
    const char *id;   // last id seen on this stream; "" = none yet
    bool has_id;      // the event itself carried it
    const char *data; // NUL-terminated; data_n bytes
    size_t data_n;
};

// Both are borrowed until they return. `comment` may be NULL.
struct sse_handler {
    void (*event)(void *user, const struct sse_event *e);
    void (*comment)(void *user, const char *text);
    void *user;
};

struct sse {
    struct strbuf line, data;
    char id[SSE_ID_MAX];
    bool has_data, has_id, after_cr, started;
};

void sse_init(struct sse *s);
void sse_finish(struct sse *s);
// TOO_LARGE when one event or line is longer than SSE_EVENT_MAX; the stream is of no use then.
enum status sse_feed(struct sse *s, const char *bytes, size_t n,
                     const struct sse_handler *h) STATUS_MUST_USE;
