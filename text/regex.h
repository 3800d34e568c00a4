// The split expressions of tokenizers. They are written for Oniguruma (which Hugging Face's library
// uses) and run here by PCRE2; where the two read an expression differently it is rewritten, and
// what has no equal is refused by name.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct regex;

// `pattern` is UTF-8. BAD_FILE with the cause, and the byte offset in the pattern, in *err.
STATUS_MUST_USE enum status regex_compile(const char *pattern, size_t n, struct regex **out,
                                          struct errmsg *err);
void regex_destroy(struct regex *r);

// Memory for matching, one per thread and call; serves any number of expressions.
struct regex_scratch;
struct regex_scratch *regex_scratch_create(void);
void regex_scratch_destroy(struct regex_scratch *s);

// Walks the matches in a text from left to right, as Oniguruma's find_iter does: an empty match
// that touches the match before it is skipped.
struct regex_iter {
    const struct regex *regex; // borrowed
    struct regex_scratch *scratch;
    const char *text; // valid UTF-8
    size_t n;
    size_t at;         // search from here
    size_t last_match; // end of the last match; SIZE_MAX before the first
};
void regex_iter_init(struct regex_iter *it, const struct regex *r, struct regex_scratch *s,
                     const char *text, size_t n);
// OK and the bounds of the next match; NOT_FOUND after the last; TOO_LARGE when the expression
// needs more steps or stack than allowed.
STATUS_MUST_USE enum status regex_iter_next(struct regex_iter *it, size_t *from_out,
                                            size_t *to_out);
