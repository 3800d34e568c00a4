// Allocation that cannot return NULL: running out of memory at start or for a small object is not
// survivable, so it prints what was asked for and aborts. Large or outside-controlled sizes are
// bounded before they get here. Everything is freed with free().
#pragma once

#include <stddef.h>

void *mem_alloc(size_t bytes);           // uninitialised
void *mem_zalloc(size_t n, size_t size); // zeroed array, overflow checked
void *mem_realloc(void *p, size_t n, size_t size);
void *mem_dup(const void *p, size_t bytes); // NULL when bytes is 0
char *mem_strdup(const char *s);

// Grows a dynamic array: makes room for one more element, doubling the capacity.
//   struct { T *v; size_t n, cap; } a = {0};  MEM_GROW(a.v, a.n, a.cap); a.v[a.n++] = x;
#define MEM_GROW(v, n, cap)                                                                        \
    do {                                                                                           \
        if ((n) == (cap)) {                                                                        \
            (cap) = (cap) ? (cap)*2 : 8;                                                           \
            (v) = mem_realloc((v), (cap), sizeof *(v));                                            \
        }                                                                                          \
    } while (0)
