// Decomposition, ordering, composition. utf8proc (a small C library kept by the Julia project;
// libunistring is thirty times its size) has the tables and the first and last of these; the
// ordering is done here, because utf8proc's takes quadratic time on a long run of marks, and the
// text comes from strangers.
#include "text/nfc.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"

struct points {
    utf8proc_int32_t *v;
    size_t n, cap;
};

// Everything below U+0300 is in form C already.
static bool surely_normal(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] >= 0xCC)
            return false;
    return true;
}

static void decompose(const char *s, size_t n, struct points *out)
{
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c, parts[8];
        int boundary = 0;
        utf8proc_ssize_t len =
            utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c);
        i += len > 0 ? (size_t)len : 1;
        utf8proc_ssize_t k =
            len > 0 ? utf8proc_decompose_char(c, parts, 8, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE,
                                              &boundary)
                    : 0;
        for (utf8proc_ssize_t j = 0; j < k && j < 8; j++) {
            MEM_GROW(out->v, out->n, out->cap);
            out->v[out->n++] = parts[j];
        }
    }
}

static unsigned combining_class(utf8proc_int32_t c)
{
    return (unsigned)utf8proc_get_property(c)->combining_class & 0xFF;
}

// Sorts v[0..n), all with a combining class, by class, stably: by counting.
static void order_run(utf8proc_int32_t *v, size_t n)
{
    if (n < 2)
        return;
    size_t start[257] = {0};
    utf8proc_int32_t *copy = mem_dup(v, n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        start[combining_class(v[i]) + 1]++;
    for (size_t i = 1; i < 257; i++)
        start[i] += start[i - 1];
    for (size_t i = 0; i < n; i++)
        v[start[combining_class(copy[i])]++] = copy[i];
    free(copy);
}

static void order(struct points *p)
{
    for (size_t i = 0; i < p->n;) {
        size_t from = i;
        while (i < p->n && combining_class(p->v[i]))
            i++;
        order_run(p->v + from, i - from);
        i += i == from;
    }
}

void nfc_normalize(const char *s, size_t n, struct strbuf *out)
{
    if (surely_normal(s, n)) {
        strbuf_add(out, s, n);
        return;
    }
    struct points p = {0};
    decompose(s, n, &p);
    order(&p);
    utf8proc_ssize_t composed =
        utf8proc_normalize_utf32(p.v, (utf8proc_ssize_t)p.n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < composed; i++) {
        char bytes[4];
        strbuf_add(out, bytes, (size_t)utf8proc_encode_char(p.v[i], (utf8proc_uint8_t *)bytes));
    }
    free(p.v);
}
