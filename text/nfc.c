// Decomposition, ordering, composition. utf8proc (a small C library kept by the Julia project;
// libunistring is thirty times its size) has the tables and the first and last of these; the
// ordering is done here, because utf8proc's takes quadratic time on a long run of marks, and the
// text comes from strangers.
//
// Hugging Face's library knows Unicode 9 here. Marks that came later are to it letters that nothing
// combines with; so they are here, because the ids must be those that the models were trained with.
#include "text/nfc.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "text/unichar.h"

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

// Combining characters (and letters made of two) newer than Unicode 9.
static const struct {
    int32_t from, to;
} newer[] = {{0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
             {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
             {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27},
             {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
             {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
             {0x11930, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
             {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
             {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1},
             {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF},
             {0x1E4EC, 0x1E4EF}};

static bool is_newer(int32_t c)
{
    size_t lo = 0, hi = sizeof newer / sizeof *newer;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (c > newer[mid].to)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < sizeof newer / sizeof *newer && c >= newer[lo].from;
}

static void decompose(int32_t c, struct points *out)
{
    utf8proc_int32_t parts[8];
    int boundary = 0;
    utf8proc_ssize_t n =
        utf8proc_decompose_char(c, parts, 8, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
    for (utf8proc_ssize_t i = 0; i < n && i < 8; i++) {
        MEM_GROW(out->v, out->n, out->cap);
        out->v[out->n++] = parts[i];
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

static void add_char(struct strbuf *out, int32_t c)
{
    char bytes[4];
    strbuf_add(out, bytes, (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)bytes));
}

// Puts the collected characters out in form C.
static void compose(struct points *p, struct strbuf *out)
{
    order(p);
    utf8proc_ssize_t n =
        utf8proc_normalize_utf32(p->v, (utf8proc_ssize_t)p->n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < n; i++)
        add_char(out, p->v[i]);
    p->n = 0;
}

void nfc_normalize(const char *s, size_t n, struct strbuf *out)
{
    if (surely_normal(s, n)) {
        strbuf_add(out, s, n);
        return;
    }
    struct points p = {0};
    for (size_t i = 0; i < n;) {
        int32_t c = unichar_at(s + i, n - i);
        i += (size_t)utf8proc_utf8class[(unsigned char)s[i]];
        if (is_newer(c)) {
            compose(&p, out);
            add_char(out, c);
        } else {
            decompose(c, &p);
        }
    }
    compose(&p, out);
    free(p.v);
}
