// A growing byte string. Zero-initialise; `v` is always NUL-terminated once something was added.
#pragma once

#include <stddef.h>

struct strbuf {
    char *v; // owned; NULL while empty and never used
    size_t n, cap;
};

void strbuf_finish(struct strbuf *b);
void strbuf_clear(struct strbuf *b); // keeps the memory
void strbuf_add(struct strbuf *b, const void *bytes, size_t n);
void strbuf_puts(struct strbuf *b, const char *s);
void strbuf_printf(struct strbuf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// `s` as a JSON string with quotes, escaped (RFC 8259); the bytes must be valid UTF-8.
void strbuf_json(struct strbuf *b, const char *s, size_t n);
