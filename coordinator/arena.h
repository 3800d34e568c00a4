// Memory that lives for one step: allocate while the step runs, reset when the next one begins.
// Blocks never move, so pointers into the arena stay valid until the reset.
#pragma once

#include <stdarg.h>
#include <stddef.h>

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks; // owned; newest first
    size_t used;                // bytes of the newest
};

void arena_finish(struct arena *a);
// Frees all but one chunk; that one is kept unless a burst made it huge.
void arena_reset(struct arena *a);
// Zeroed, aligned for any type.
void *arena_alloc(struct arena *a, size_t n, size_t size);
void *arena_dup(struct arena *a, const void *p, size_t n, size_t size);
char *arena_vprintf(struct arena *a, const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));
char *arena_printf(struct arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
