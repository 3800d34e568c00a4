// Single characters of valid UTF-8.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The character that begins at s (n > 0 bytes are there), and the offset of the one before `at` >
// 0.
int32_t unichar_at(const char *s, size_t n);
size_t unichar_before(const char *text, size_t at);
bool unichar_is_space(int32_t c); // property White_Space

// Narrows *s, *n by the blanks at its ends, as Python's str.strip() does.
void unichar_strip_left(const char **s, size_t *n);
void unichar_strip_right(const char **s, size_t *n);
