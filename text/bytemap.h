// GPT-2's alphabet: every byte has a printable character that stands for it in `tokenizer.json`
// (space is U+0120), so that vocabularies of bytes can be written as text.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/strbuf.h"

// Appends the bytes that `s` (valid UTF-8) spells. False, with nothing appended, when a character
// of it is outside the alphabet.
bool bytemap_decode(const char *s, size_t n, struct strbuf *out);
