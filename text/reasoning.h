// Streaming splitter of an answer into the thoughts between <think> and </think> and the content
// after them. Thoughts are recognised at the start of the answer only. The tags, the newlines just
// inside them and those just after </think> are dropped; everything else comes out, in order.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/strbuf.h"

struct reasoning {
    enum {
        REASONING_START,   // nothing but blanks and a part of <think> so far
        REASONING_OPENED,  // inside, nothing but newlines so far
        REASONING_INSIDE,  // thoughts
        REASONING_CLOSED,  // after </think>, nothing but newlines so far
        REASONING_CONTENT, // content to the end
    } state;
    bool opened_by_prompt;
    size_t held_n;      // bytes that may still be part of a tag, or blanks before it
    struct strbuf held; // owned
};

// opened_by_prompt: the prompt ended with <think> (chat_template_opens_think).
void reasoning_init(struct reasoning *r, bool opened_by_prompt);
void reasoning_finish(struct reasoning *r);
// Appends what became certain; either buffer may stay unchanged.
void reasoning_push(struct reasoning *r, const char *text, size_t n, struct strbuf *thoughts,
                    struct strbuf *content);
// The end of the answer: gives out what was held back.
void reasoning_flush(struct reasoning *r, struct strbuf *thoughts, struct strbuf *content);
