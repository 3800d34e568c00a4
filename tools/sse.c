// Server-sent events: collects bytes to lines, lines to events.
#include "tools/sse.h"

#include <string.h>

void sse_init(struct sse *s)
{
    memset(s, 0, sizeof *s);
}

void sse_finish(struct sse *s)
{
    strbuf_finish(&s->line);
    strbuf_finish(&s->data);
}

static void dispatch(struct sse *s, const struct sse_handler *h)
{
    if (s->has_data) {
        s->data.v[--s->data.n] = 0; // the newline after the last data line is not part of it
        h->event(h->user, &(struct sse_event){s->id, s->has_id, s->data.v, s->data.n});
    }
    strbuf_clear(&s->data);
    s->has_data = s->has_id = false;
}

static void field(struct sse *s, const char *name, size_t name_n, const char *value, size_t n)
{
    if (name_n == 4 && !memcmp(name, "data", 4)) {
        strbuf_add(&s->data, value, n);
        strbuf_add(&s->data, "\n", 1);
        s->has_data = true;
    } else if (name_n == 2 && !memcmp(name, "id", 2) && n < sizeof s->id && !memchr(value, 0, n)) {
        memcpy(s->id, value, n);
        s->id[n] = 0;
        s->has_id = true;
    }
}

static void end_line(struct sse *s, const struct sse_handler *h)
{
    const char *line = s->line.n ? s->line.v : "";
    size_t n = s->line.n;
    if (!s->started && n >= 3 && !memcmp(line, "\xef\xbb\xbf", 3))
        line += 3, n -= 3;
    s->started = true;
    const char *colon = memchr(line, ':', n);
    if (n == 0) {
        dispatch(s, h);
    } else if (colon == line) {
        if (h->comment)
            h->comment(h->user, line + 1 + (n > 1 && line[1] == ' '));
    } else {
        size_t name_n = colon ? (size_t)(colon - line) : n;
        const char *value = colon ? colon + 1 : line + n;
        if (value < line + n && *value == ' ')
            value++;
        field(s, line, name_n, value, (size_t)(line + n - value));
    }
    strbuf_clear(&s->line);
}

enum status sse_feed(struct sse *s, const char *bytes, size_t n, const struct sse_handler *h)
{
    const char *end = bytes + n;
    while (bytes < end) {
        if (s->after_cr && *bytes == '\n')
            bytes++;
        s->after_cr = false;
        const char *p = bytes;
        while (p < end && *p != '\n' && *p != '\r')
            p++;
        if (s->line.n + (size_t)(p - bytes) + s->data.n > SSE_EVENT_MAX)
            return STATUS_TOO_LARGE;
        strbuf_add(&s->line, bytes, (size_t)(p - bytes));
        if (p == end)
            break;
        s->after_cr = *p == '\r';
        end_line(s, h);
        bytes = p + 1;
    }
    return STATUS_OK;
}
