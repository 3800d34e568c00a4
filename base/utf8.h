// UTF-8 as in RFC 3629: no surrogates, no overlong forms, nothing above U+10FFFF.
#pragma once

#include <stdbool.h>
#include <stddef.h>

// Length of the longest prefix of s[0..n) that is whole, valid UTF-8.
size_t utf8_valid_prefix(const char *s, size_t n);
static inline bool utf8_valid(const char *s, size_t n)
{
    return utf8_valid_prefix(s, n) == n;
}
// True when s[0..n) (1 to 3 bytes) could still become a valid character with more bytes.
bool utf8_incomplete(const char *s, size_t n);
