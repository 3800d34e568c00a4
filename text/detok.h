// Streaming detokenizer: token ids in, whole characters out. The bytes of an unfinished character
// wait for the next token. What all pushes and the flush give, put together, equals
// tokenizer_decode of all ids.
#pragma once

#include "text/tokenizer.h"

struct detok {
    const struct tokenizer *tokenizer; // borrowed
    bool skip_special;
    unsigned char held_n;
    char held[4]; // an unfinished character
};

void detok_init(struct detok *d, const struct tokenizer *t, bool skip_special);
// Appends the text that became certain to *out.
void detok_push(struct detok *d, int32_t id, struct strbuf *out);
// The end of the sequence: an unfinished character becomes U+FFFD. The detok is then as new.
void detok_flush(struct detok *d, struct strbuf *out);
