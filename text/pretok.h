// The pre-tokenizer: cuts a text into the words that BPE works on, in steps, each of which cuts
// the pieces of the step before (`pre_tokenizer` of tokenizer.json).
#pragma once

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/strbuf.h"
#include "text/regex.h"

struct span {
    uint32_t from, to;
};
struct span_vec {
    struct span *v; // owned
    size_t n, cap;
};

struct pretok;

// `json`: the value of `pre_tokenizer`; JSON null means one word per text. Errors name the member,
// beginning with `where` ("dir/tokenizer.json: pre_tokenizer").
STATUS_MUST_USE enum status pretok_create(const json_t *json, const char *where,
                                          struct pretok **out, struct errmsg *err);
void pretok_destroy(struct pretok *p);

// Buffers of one call. Zero-initialise, but for `regex`, which the caller creates and frees.
struct pretok_scratch {
    struct span_vec spans, next, cuts;
    struct strbuf text; // when a step adds a space to the text
    struct regex_scratch *regex;
};
void pretok_scratch_finish(struct pretok_scratch *s);

// Cuts text[0..n) (valid UTF-8, less than 4 GiB): the words are scratch->spans of *words_text,
// which is `text` or scratch->text.v. Both are valid until the next call.
STATUS_MUST_USE enum status pretok_run(const struct pretok *p, struct pretok_scratch *scratch,
                                       const char *text, size_t n, const char **words_text);
