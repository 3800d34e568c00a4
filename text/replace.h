// Bytes of tokens to text: what is not UTF-8 becomes U+FFFD, one for each maximal part of a
// character (Unicode standard, table 3-8; what Rust's from_utf8_lossy does).
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/strbuf.h"

// Appends the text of s[0..n) to *out and returns how many bytes were used up: all of them when
// `end`, else all but an unfinished character at the end (at most 3 bytes).
size_t replace_broken(const char *s, size_t n, bool end, struct strbuf *out);
