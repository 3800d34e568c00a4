// A small machine over bytes. Only what may be part of a tag is held back, with the blanks or
// newlines before it; neither tag contains its own first byte again, so a tag that fails is let go
// whole.
//
//   START --<think>--> OPENED --text--> INSIDE --</think>--> CLOSED --text--> CONTENT
//     '--------------------- anything else ------------------------------------^
#include "text/reasoning.h"

#include <string.h>

static const char open_tag[] = "<think>", close_tag[] = "</think>";

struct sinks {
    struct strbuf *thoughts, *content;
};

void reasoning_init(struct reasoning *r, bool opened_by_prompt)
{
    *r = (struct reasoning){.state = REASONING_START, .opened_by_prompt = opened_by_prompt};
}

void reasoning_finish(struct reasoning *r)
{
    *r = (struct reasoning){0};
}

static void feed(struct reasoning *r, char c, const struct sinks *to);

static void feed_all(struct reasoning *r, const char *s, size_t n, const struct sinks *to)
{
    for (size_t i = 0; i < n; i++)
        feed(r, s[i], to);
}

// No <think> at the start: what was held goes where the answer begins.
static void start_failed(struct reasoning *r, const struct sinks *to)
{
    size_t tag_n = r->tag_n, blanks_n = r->blanks_n;
    r->tag_n = r->blanks_n = 0;
    r->state = r->opened_by_prompt ? REASONING_OPENED : REASONING_CONTENT;
    feed_all(r, r->blanks, blanks_n, to);
    feed_all(r, open_tag, tag_n, to);
}

static void feed_start(struct reasoning *r, char c, const struct sinks *to)
{
    bool blank = c == ' ' || c == '\t' || c == '\r' || c == '\n';
    if (!r->tag_n && blank && r->blanks_n < sizeof r->blanks) {
        r->blanks[r->blanks_n++] = c;
    } else if (c == open_tag[r->tag_n]) {
        if (open_tag[++r->tag_n])
            return;
        r->tag_n = 0; // a second <think> is dropped as the first is
        r->state = REASONING_OPENED;
    } else {
        start_failed(r, to);
        feed(r, c, to);
    }
}

static void inside_failed(struct reasoning *r, struct strbuf *thoughts)
{
    for (; r->newlines_n; r->newlines_n--)
        strbuf_add(thoughts, "\n", 1);
    strbuf_add(thoughts, close_tag, r->tag_n);
    r->tag_n = 0;
}

static void feed_inside(struct reasoning *r, char c, const struct sinks *to)
{
    if (c == close_tag[r->tag_n]) {
        if (close_tag[++r->tag_n])
            return;
        r->tag_n = 0;
        r->newlines_n = 0;
        r->state = REASONING_CLOSED;
    } else if (r->tag_n) {
        inside_failed(r, to->thoughts);
        feed_inside(r, c, to);
    } else if (c == '\n') {
        r->newlines_n++;
    } else {
        inside_failed(r, to->thoughts);
        strbuf_add(to->thoughts, &c, 1);
    }
}

static void feed(struct reasoning *r, char c, const struct sinks *to)
{
    switch (r->state) {
    case REASONING_START:
        feed_start(r, c, to);
        break;
    case REASONING_OPENED:
        if (c == '\n')
            break;
        r->state = REASONING_INSIDE;
        feed_inside(r, c, to);
        break;
    case REASONING_INSIDE:
        feed_inside(r, c, to);
        break;
    case REASONING_CLOSED:
        if (c == '\n')
            break;
        r->state = REASONING_CONTENT;
        strbuf_add(to->content, &c, 1);
        break;
    case REASONING_CONTENT:
        strbuf_add(to->content, &c, 1);
        break;
    }
}

void reasoning_push(struct reasoning *r, const char *text, size_t n, struct strbuf *thoughts,
                    struct strbuf *content)
{
    const struct sinks to = {thoughts, content};
    size_t i = 0;
    while (i < n && r->state != REASONING_CONTENT)
        feed(r, text[i++], &to);
    if (i < n)
        strbuf_add(content, text + i, n - i);
}

void reasoning_flush(struct reasoning *r, struct strbuf *thoughts, struct strbuf *content)
{
    const struct sinks to = {thoughts, content};
    if (r->state == REASONING_START)
        start_failed(r, &to);
    if (r->state == REASONING_INSIDE)
        inside_failed(r, thoughts);
}
