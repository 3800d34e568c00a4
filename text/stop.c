// One Knuth-Morris-Pratt automaton per stop string. Its state is how long a beginning of the string
// the text now ends with; the longest of the states is what has to be held back, and since every
// string is UTF-8 that begins with a character, so does what is held.
#include "text/stop.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/mem.h"
#include "base/utf8.h"

struct pattern {
    char *v; // owned
    size_t n, state;
    uint16_t *fallback; // owned, n: the state to go on with when byte i does not match
};

struct stop_matcher {
    struct pattern patterns[LIMIT_STOP_STRINGS];
    size_t n;
    bool stopped;
    struct strbuf held; // the end of the text that is not out yet
};

static_assert(LIMIT_STOP_BYTES <= UINT16_MAX, "states fit");

static void pattern_init(struct pattern *p, const char *s, size_t n)
{
    *p = (struct pattern){
        .v = mem_dup(s, n), .n = n, .fallback = mem_zalloc(n, sizeof *p->fallback)};
    for (size_t i = 1, k = 0; i < n; i++) {
        while (k && s[i] != s[k])
            k = p->fallback[k - 1];
        k += s[i] == s[k];
        p->fallback[i] = (uint16_t)k;
    }
}

// True when the byte completes the string.
static bool pattern_step(struct pattern *p, char c)
{
    size_t k = p->state;
    while (k && c != p->v[k])
        k = p->fallback[k - 1];
    p->state = k + (c == p->v[k]);
    return p->state == p->n;
}

static enum status check(const char *s, size_t n, size_t i, struct errmsg *err)
{
    if (!n)
        return errmsg_set(err, STATUS_BAD_REQUEST, "stop[%zu]: empty string", i);
    if (n > LIMIT_STOP_BYTES)
        return errmsg_set(err, STATUS_TOO_LARGE, "stop[%zu]: %zu bytes, at most %d are allowed", i,
                          n, LIMIT_STOP_BYTES);
    if (!utf8_valid(s, n))
        return errmsg_set(err, STATUS_BAD_REQUEST, "stop[%zu]: not UTF-8", i);
    return STATUS_OK;
}

enum status stop_matcher_create(const char *const *strings, const size_t *lengths, size_t n,
                                struct stop_matcher **out, struct errmsg *err)
{
    if (n > LIMIT_STOP_STRINGS)
        return errmsg_set(err, STATUS_TOO_LARGE, "stop: %zu strings, at most %d are allowed", n,
                          LIMIT_STOP_STRINGS);
    for (size_t i = 0; i < n; i++) {
        enum status s = check(strings[i], lengths[i], i, err);
        if (s)
            return s;
    }
    struct stop_matcher *m = mem_zalloc(1, sizeof *m);
    for (m->n = 0; m->n < n; m->n++)
        pattern_init(&m->patterns[m->n], strings[m->n], lengths[m->n]);
    *out = m;
    return STATUS_OK;
}

void stop_matcher_destroy(struct stop_matcher *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n; i++) {
        free(m->patterns[i].v);
        free(m->patterns[i].fallback);
    }
    strbuf_finish(&m->held);
    free(m);
}

// Feeds a byte to all; the index of the longest string that it completes, or -1.
static int step(struct stop_matcher *m, char c)
{
    int found = -1;
    for (size_t i = 0; i < m->n; i++)
        if (pattern_step(&m->patterns[i], c) &&
            (found < 0 || m->patterns[i].n > m->patterns[found].n))
            found = (int)i;
    return found;
}

// Gives out all of held but the last `keep` bytes.
static void give(struct stop_matcher *m, size_t keep, struct strbuf *out)
{
    size_t n = m->held.n - keep;
    if (!n)
        return;
    strbuf_add(out, m->held.v, n);
    memmove(m->held.v, m->held.v + n, keep);
    m->held.n = keep;
}

int stop_matcher_push(struct stop_matcher *m, const char *text, size_t n, struct strbuf *out)
{
    if (m->stopped)
        return -1;
    for (size_t i = 0; i < n; i++) {
        int found = step(m, text[i]);
        if (found < 0)
            continue;
        strbuf_add(&m->held, text, i + 1);
        give(m, m->patterns[found].n, out);
        strbuf_clear(&m->held);
        m->stopped = true;
        return found;
    }
    size_t keep = 0;
    for (size_t i = 0; i < m->n; i++)
        if (m->patterns[i].state > keep)
            keep = m->patterns[i].state;
    strbuf_add(&m->held, text, n);
    give(m, keep, out);
    return -1;
}

void stop_matcher_flush(struct stop_matcher *m, struct strbuf *out)
{
    give(m, 0, out);
}
