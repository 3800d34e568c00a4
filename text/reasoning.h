// Streaming splitter of an answer into the thoughts between <think> and </think> and the content
// after them. Thoughts are recognised at the start of the answer only. The tags, the newlines just
// inside them and those just after </think> are dropped; everything else comes out, in order.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/strbuf.h"

struct reasoning {
    enum reasoning_state {
        REASONING_START,   // blanks and a part of <think> so far
        REASONING_OPENED,  // inside, nothing but newlines so far
        REASONING_INSIDE,  // thoughts
        REASONING_CLOSED,  // after </think>, nothing but newlines so far
        REASONING_CONTENT, // content to the end
    } state;
    bool opened_by_prompt;
    unsigned char tag_n;    // bytes of the awaited tag seen
    unsigned char blanks_n; // START: blanks before it
    char blanks[32];
    size_t newlines_n; // INSIDE: newlines before it
};

// opened_by_prompt: the prompt ended with <think> (chat_template_opens_think).
void reasoning_init(struct reasoning *r, bool opened_by_prompt);
void reasoning_finish(struct reasoning *r); // drops what is held back
// Appends what became certain; either buffer may stay unchanged.
void reasoning_push(struct reasoning *r, const char *text, size_t n, struct strbuf *thoughts,
                    struct strbuf *content);
// The end of the answer: gives out what was held back.
void reasoning_flush(struct reasoning *r, struct strbuf *thoughts, struct strbuf *content);
