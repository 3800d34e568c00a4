#include "base/mem.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *checked(void *p, size_t bytes)
{
    if (!p && bytes) {
        fprintf(stderr, "out of memory: %zu bytes\n", bytes);
        abort();
    }
    return p;
}

void *mem_alloc(size_t bytes)
{
    return checked(malloc(bytes), bytes);
}

void *mem_zalloc(size_t n, size_t size)
{
    return checked(calloc(n, size), n && size ? SIZE_MAX : 0);
}

void *mem_realloc(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes))
        return checked(NULL, SIZE_MAX);
    return checked(realloc(p, bytes), bytes);
}

void *mem_dup(const void *p, size_t bytes)
{
    return bytes ? memcpy(mem_alloc(bytes), p, bytes) : NULL;
}

char *mem_strdup(const char *s)
{
    return mem_dup(s, strlen(s) + 1);
}
