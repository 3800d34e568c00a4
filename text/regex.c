// Rewrites Oniguruma expressions for PCRE2 and runs them, with JIT where the system lets code be
// made at run time. The rewriting is a walk over the pattern, not a parser: what it does not know
// it refuses, so that an expression is never run with another meaning.
//
// Where the engines differ (PCRE2 10.42 and Oniguruma 6.9, both Unicode 14):
//   \s       PCRE2 adds U+180E; spelled out here
//   \d \w    as Unicode properties; Oniguruma's \w holds marks and connector punctuation
//   \h \v    a hexadecimal digit, the vertical tab; classes of blanks for PCRE2
//   \p{Han}  Script; PCRE2 would take Script_Extensions
//   ^ $      at every line; PCRE2_MULTILINE
//   (?m)     "dot matches newline"; refused, as are x{n}+ and x{n}? (repeats of a repeat)
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <ctype.h>
#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "base/utf8.h"

enum {
    REGEX_MAX = 64 << 10, // bytes of a pattern
    JIT_STACK_MIN = 64 << 10,
    JIT_STACK_MAX = 4 << 20,
};

struct regex {
    pcre2_code *code;
};

struct regex_scratch {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

// White_Space and its complement, as the inside of a class.
#define SPACES                                                                                     \
    "\\x{09}-\\x{0d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"  \
    "\\x{205f}\\x{3000}"
#define NON_SPACES                                                                                 \
    "\\x{00}-\\x{08}\\x{0e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"                \
    "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"                 \
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{d7ff}\\x{e000}-\\x{10ffff}"
#define WORDS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"

// Escapes with another text in PCRE2; NULL: refused in that place.
static const struct escape {
    char c;
    const char *outside, *inside;
} escapes[] = {
    {'s', "[" SPACES "]", SPACES},
    {'S', "[^" SPACES "]", NON_SPACES},
    {'d', "\\p{Nd}", "\\p{Nd}"},
    {'D', "\\P{Nd}", "\\P{Nd}"},
    {'w', "[" WORDS "]", WORDS},
    {'W', "[^" WORDS "]", NULL},
    {'h', "[0-9a-fA-F]", "0-9a-fA-F"},
    {'H', "[^0-9a-fA-F]", NULL},
    {'v', "\\x{0b}", "\\x{0b}"},
    {'A', "\\A", NULL},
    {'z', "\\z", NULL},
    {'Z', "\\Z", NULL},
    {'n', "\\n", "\\n"},
    {'r', "\\r", "\\r"},
    {'t', "\\t", "\\t"},
    {'f', "\\f", "\\f"},
    {'a', "\\a", "\\a"},
    {'e', "\\e", "\\e"},
};

struct walk {
    const char *p; // the pattern
    size_t n, i;
    bool in_class;
    struct strbuf out;
    struct errmsg *err;
};

static char peek(const struct walk *w, size_t ahead)
{
    return w->i + ahead < w->n ? w->p[w->i + ahead] : '\0';
}

static enum status refuse(struct walk *w, const char *what)
{
    return errmsg_set(w->err, STATUS_BAD_FILE, "regex at byte %zu: %s", w->i, what);
}

static void copy(struct walk *w, size_t n)
{
    strbuf_add(&w->out, w->p + w->i, n);
    w->i += n;
}

// General categories go through; other names are scripts. Long names of the common categories.
static const char *category(const char *name)
{
    static const char *const known[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me",
                                        "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi",
                                        "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl",
                                        "Zp", "C",  "Cc", "Cf", "Cn", "Co", "Any"};
    static const char *const longer[][2] = {
        {"Letter", "L"},      {"Mark", "M"},   {"Number", "N"},      {"Punctuation", "P"},
        {"Symbol", "S"},      {"Other", "C"},  {"Separator", "Z"},   {"Uppercase_Letter", "Lu"},
        {"Alphabetic", NULL}, {"Digit", "Nd"}, {"White_Space", NULL}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcasecmp(name, known[i]))
            return known[i];
    for (size_t i = 0; i < sizeof longer / sizeof *longer; i++)
        if (!strcasecmp(name, longer[i][0]))
            return longer[i][1] ? longer[i][1] : longer[i][0];
    return NULL;
}

// \p{Name}, \p{^Name}, \P{Name}; the walk stands on the backslash.
static enum status property(struct walk *w)
{
    bool negated = peek(w, 1) == 'P';
    if (peek(w, 2) != '{')
        return refuse(w, "\\p without {name}");
    size_t from = w->i + 3;
    const char *close = memchr(w->p + from, '}', w->n - from);
    if (!close)
        return refuse(w, "\\p{ without }");
    if (w->p[from] == '^') {
        negated = !negated;
        from++;
    }
    size_t n = (size_t)(close - w->p) - from;
    char name[48];
    if (!n || n >= sizeof name)
        return refuse(w, "property name of no or of more than 47 bytes");
    for (size_t i = 0; i < n; i++) {
        name[i] = w->p[from + i];
        if (!isalpha((unsigned char)name[i]) && name[i] != '_')
            return refuse(w, "property name with other characters than letters");
    }
    name[n] = '\0';
    const char *known = category(name);
    strbuf_printf(&w->out, "\\%c{%s%s}", negated ? 'P' : 'p',
                  known ? "" : "sc:", known ? known : name);
    w->i = (size_t)(close - w->p) + 1;
    return STATUS_OK;
}

// \xHH below 0x80, \x{H...}, \uHHHH; the walk stands on the backslash.
static enum status code_point(struct walk *w)
{
    bool u = peek(w, 1) == 'u', braces = !u && peek(w, 2) == '{';
    size_t from = braces ? 3 : 2, max = u ? 4 : braces ? 6 : 2, digits = 0;
    unsigned long c = 0;
    for (; digits < max && isxdigit((unsigned char)peek(w, from + digits)); digits++) {
        char d = (char)tolower((unsigned char)peek(w, from + digits));
        c = c * 16 + (unsigned long)(d <= '9' ? d - '0' : d - 'a' + 10);
    }
    if (!digits || (!braces && digits != max) || (braces && peek(w, from + digits) != '}'))
        return refuse(w, "malformed code point");
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF) || (!u && !braces && c >= 0x80))
        return refuse(w, "code point out of range");
    strbuf_printf(&w->out, "\\x{%lx}", c);
    w->i += from + digits + braces;
    return STATUS_OK;
}

static enum status escape(struct walk *w)
{
    char c = peek(w, 1);
    if (w->i + 1 >= w->n)
        return refuse(w, "backslash at the end");
    if (c == 'p' || c == 'P')
        return property(w);
    if (c == 'x' || c == 'u')
        return code_point(w);
    for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) {
        const struct escape *e = &escapes[i];
        const char *text = w->in_class ? e->inside : e->outside;
        if (e->c != c || !text)
            continue;
        if (w->in_class && strchr("sSdDwh", c) && peek(w, 2) == '-' && peek(w, 3) != ']')
            return refuse(w, "a range that begins with a class");
        strbuf_puts(&w->out, text);
        w->i += 2;
        return STATUS_OK;
    }
    if (isalnum((unsigned char)c) || (unsigned char)c >= 0x80 || c == '\0')
        return refuse(w, "an escape that is not supported");
    copy(w, 2);
    return STATUS_OK;
}

// A group; the walk stands on the parenthesis.
static enum status group(struct walk *w)
{
    static const char *const known[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"};
    size_t left = w->n - w->i;
    if (peek(w, 1) == '*')
        return refuse(w, "a verb (*...)");
    if (peek(w, 1) != '?') {
        copy(w, 1);
        return STATUS_OK;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t n = strlen(known[i]);
        if (left >= n && !memcmp(w->p + w->i, known[i], n)) {
            copy(w, n);
            return STATUS_OK;
        }
    }
    if (w->i == 0 && left >= 4 && !memcmp(w->p, "(?i)", 4)) {
        copy(w, 4);
        return STATUS_OK;
    }
    return refuse(w, "a group (?...) that is not supported");
}

static enum status class_begin(struct walk *w)
{
    w->in_class = true;
    copy(w, peek(w, 1) == '^' ? 2 : 1);
    return peek(w, 0) == ']' ? refuse(w, "an empty class") : STATUS_OK;
}

static enum status in_class(struct walk *w)
{
    char c = peek(w, 0);
    if (c == '[')
        return refuse(w, "a class inside a class");
    if (c == '&' && peek(w, 1) == '&')
        return refuse(w, "an intersection of classes");
    if (c == ']')
        w->in_class = false;
    copy(w, 1);
    return STATUS_OK;
}

static enum status outside(struct walk *w)
{
    char c = peek(w, 0);
    if (c == '(')
        return group(w);
    if (c == '[')
        return class_begin(w);
    if (c == '{' && peek(w, 1) == ',')
        return refuse(w, "a repeat without its lower bound");
    if (c == '}' && (peek(w, 1) == '+' || peek(w, 1) == '?'))
        return refuse(w, "a repeat of a counted repeat");
    copy(w, 1);
    return STATUS_OK;
}

static enum status rewrite(struct walk *w)
{
    while (w->i < w->n) {
        enum status s = peek(w, 0) == '\\' ? escape(w) : w->in_class ? in_class(w) : outside(w);
        if (s)
            return s;
    }
    return w->in_class ? refuse(w, "a class without its end") : STATUS_OK;
}

static enum status compile(const struct strbuf *pattern, struct regex **out, struct errmsg *err)
{
    int code;
    size_t at;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return errmsg_set(err, STATUS_NO_MEMORY, "regex: out of memory");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_code *re = pcre2_compile(
        (PCRE2_SPTR)(pattern->v ? pattern->v : ""), pattern->n,
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &at, context);
    pcre2_compile_context_free(context);
    if (!re) {
        char text[160];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        return errmsg_set(err, STATUS_BAD_FILE, "regex: %s", text);
    }
    // Without JIT (a hardened kernel may forbid it) the interpreter gives the same matches.
    (void)pcre2_jit_compile(re, PCRE2_JIT_COMPLETE);
    *out = mem_zalloc(1, sizeof **out);
    (*out)->code = re;
    return STATUS_OK;
}

enum status regex_compile(const char *pattern, size_t n, struct regex **out, struct errmsg *err)
{
    if (n > REGEX_MAX)
        return errmsg_set(err, STATUS_BAD_FILE, "regex of %zu bytes, more than %d", n, REGEX_MAX);
    if (!utf8_valid(pattern, n))
        return errmsg_set(err, STATUS_BAD_FILE, "regex is not UTF-8");
    struct walk w = {.p = pattern, .n = n, .err = err};
    enum status s = rewrite(&w);
    if (!s)
        s = compile(&w.out, out, err);
    strbuf_finish(&w.out);
    return s;
}

void regex_destroy(struct regex *r)
{
    if (!r)
        return;
    pcre2_code_free(r->code);
    free(r);
}

struct regex_scratch *regex_scratch_create(void)
{
    struct regex_scratch *s = mem_zalloc(1, sizeof *s);
    s->data = pcre2_match_data_create(1, NULL);
    s->context = pcre2_match_context_create(NULL);
    if (!s->data || !s->context) {
        regex_scratch_destroy(s);
        return NULL;
    }
    return s;
}

// The 32 KiB of the thread's own stack that PCRE2 takes are enough for most texts; mapping another
// one would cost more than matching a short one.
static bool take_stack(struct regex_scratch *s)
{
    if (s->stack)
        return false;
    s->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    if (s->stack)
        pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return s->stack != NULL;
}

static int match(struct regex_iter *it)
{
    return pcre2_match(it->regex->code, (PCRE2_SPTR)it->text, it->n, it->at, PCRE2_NO_UTF_CHECK,
                       it->scratch->data, it->scratch->context);
}

void regex_scratch_destroy(struct regex_scratch *s)
{
    if (!s)
        return;
    pcre2_jit_stack_free(s->stack);
    pcre2_match_context_free(s->context);
    pcre2_match_data_free(s->data);
    free(s);
}

void regex_iter_init(struct regex_iter *it, const struct regex *r, struct regex_scratch *s,
                     const char *text, size_t n)
{
    *it = (struct regex_iter){r, s, text, n, 0, SIZE_MAX};
}

static size_t char_bytes(unsigned char c)
{
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

enum status regex_iter_next(struct regex_iter *it, size_t *from_out, size_t *to_out)
{
    while (it->at <= it->n) {
        int rc = match(it);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT && take_stack(it->scratch))
            rc = match(it);
        if (rc == PCRE2_ERROR_NOMATCH)
            return STATUS_NOT_FOUND;
        if (rc < 0)
            return rc == PCRE2_ERROR_NOMEMORY ? STATUS_NO_MEMORY : STATUS_TOO_LARGE;
        size_t *v = pcre2_get_ovector_pointer(it->scratch->data);
        if (v[0] == v[1] && v[1] == it->last_match) {
            it->at += it->at < it->n ? char_bytes((unsigned char)it->text[it->at]) : 1;
            continue;
        }
        *from_out = v[0];
        *to_out = it->at = it->last_match = v[1];
        return STATUS_OK;
    }
    return STATUS_NOT_FOUND;
}
