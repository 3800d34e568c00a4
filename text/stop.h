// Streaming search for stop strings in emitted text. Text that may be the beginning of a stop
// string is held back until that is decided; the stop string itself never comes out. Each byte
// costs one step per stop string, whatever the strings are.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/strbuf.h"

struct stop_matcher;

// n strings of 1..LIMIT_STOP_BYTES bytes of UTF-8, at most LIMIT_STOP_STRINGS; copied. BAD_REQUEST
// or TOO_LARGE otherwise. n may be 0: nothing is ever held back.
STATUS_MUST_USE enum status stop_matcher_create(const char *const *strings, const size_t *lengths,
                                                size_t n, struct stop_matcher **out,
                                                struct errmsg *err);
void stop_matcher_destroy(struct stop_matcher *m);

// Feeds text and appends to *out what is certain not to belong to a stop string. Returns -1, or the
// index of the stop string that was completed first (of several ending at one byte, the longest);
// the text before it is then all out, and the rest of the text and later pushes are ignored.
int stop_matcher_push(struct stop_matcher *m, const char *text, size_t n, struct strbuf *out);
// The end of the text: gives out what was held back.
void stop_matcher_flush(struct stop_matcher *m, struct strbuf *out);
