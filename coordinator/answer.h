// The text of one answer as it grows: tokens in, content and thoughts out, with a mark after every
// token of how far both had come. A reader of the answer is then only a number of tokens: what it
// has not seen is the text between two marks, at whatever speed it reads and however often it comes
// back.
//
// Text before a mark never changes and never ends inside a character. Thoughts all come before
// content. Memory: 12 bytes per token, the text itself, and 8 bytes per log-probability asked for.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/strbuf.h"
#include "proto/msg.h"
#include "proto/rpc.h"
#include "text/detok.h"
#include "text/reasoning.h"
#include "text/stop.h"

struct answer_args {
    const struct tokenizer *tokenizer; // borrowed for the life of the answer
    bool reasoning;                    // split thoughts from content
    bool opens_think;                  // the prompt ended inside the thoughts
    const struct rpc_text *stop;       // looked for in the content
    uint32_t stop_n;
    bool logprobs; // keep them
};

// The state after a number of tokens.
struct answer_mark {
    uint32_t content_n, thoughts_n; // bytes
    int32_t token;                  // the last one of them
};

struct answer_logprob {
    float value;
    uint32_t top_at, top_n; // of `top`
};

struct answer {
    const struct tokenizer *tokenizer;
    struct detok detok;
    struct reasoning split;
    bool splits;
    struct stop_matcher *stop; // NULL: no stop strings
    struct strbuf content, thoughts;
    struct strbuf raw, plain;  // scratch
    struct answer_mark *marks; // owned; tokens_n + 1 of them
    size_t marks_n, marks_cap;
    uint32_t tokens_n;
    uint32_t reasoning_tokens;
    bool stopped; // a stop string was found; further tokens are ignored
    bool closed;
    bool logprobs;
    struct answer_logprob *lp; // owned; tokens_n of them when asked for
    size_t lp_n, lp_cap;
    struct logprob *top; // owned
    size_t top_n, top_cap;
};

// BAD_REQUEST, TOO_LARGE: stop strings that cannot be looked for.
STATUS_MUST_USE enum status answer_init(struct answer *a, const struct answer_args *args,
                                        struct errmsg *err);
void answer_finish(struct answer *a);

// The next token. True when it completed a stop string: the answer ends with it. A token that ends
// the sequence (finish STOP) has no text; a token of -1 does not count.
bool answer_push(struct answer *a, const struct token_out *t);
// No more tokens: gives out what was held back. Text beyond the last mark came only now.
void answer_close(struct answer *a);

struct answer_mark answer_mark(const struct answer *a, uint32_t tokens);
