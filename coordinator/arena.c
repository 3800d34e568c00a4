// Chunks in a list, bump allocation in the newest. A request that does not fit gets a chunk of at
// least twice the size of the one before, so a step needs few of them.
#include "coordinator/arena.h"

#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { ARENA_FIRST = 16 << 10, ARENA_KEEP = 1 << 20, ARENA_ALIGN = 16 };

struct arena_chunk {
    struct arena_chunk *older;
    size_t size;
    _Alignas(ARENA_ALIGN) char bytes[];
};

static void arena_drop(struct arena *a)
{
    struct arena_chunk *c = a->chunks;
    a->chunks = c->older;
    free(c);
}

void arena_finish(struct arena *a)
{
    while (a->chunks)
        arena_drop(a);
    a->used = 0;
}

void arena_reset(struct arena *a)
{
    while (a->chunks && (a->chunks->older || a->chunks->size > ARENA_KEEP))
        arena_drop(a);
    a->used = 0;
}

static void arena_grow(struct arena *a, size_t bytes)
{
    size_t size = a->chunks ? a->chunks->size * 2 : ARENA_FIRST;
    if (size < bytes)
        size = bytes;
    struct arena_chunk *c = mem_alloc(sizeof *c + size);
    c->older = a->chunks;
    c->size = size;
    a->chunks = c;
    a->used = 0;
}

void *arena_alloc(struct arena *a, size_t n, size_t size)
{
    assert(size && n <= (SIZE_MAX - ARENA_ALIGN) / size);
    size_t bytes = (n * size + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    if (!a->chunks || a->chunks->size - a->used < bytes)
        arena_grow(a, bytes);
    void *p = a->chunks->bytes + a->used;
    a->used += bytes;
    return memset(p, 0, bytes);
}

void *arena_dup(struct arena *a, const void *p, size_t n, size_t size)
{
    void *d = arena_alloc(a, n, size);
    if (n)
        memcpy(d, p, n * size);
    return d;
}

char *arena_vprintf(struct arena *a, const char *fmt, va_list ap)
{
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    assert(n >= 0);
    char *s = arena_alloc(a, (size_t)n + 1, 1);
    vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *s = arena_vprintf(a, fmt, ap);
    va_end(ap);
    return s;
}
