// Unicode normalization form C (UAX #15), which Qwen's tokenizers ask for.
#pragma once

#include <stddef.h>

#include "base/strbuf.h"

// Appends the normal form of s[0..n) (valid UTF-8) to *out. Time is linear for any text.
void nfc_normalize(const char *s, size_t n, struct strbuf *out);
