// Steps are Splits by an expression or a fixed string (ByteLevel and Digits are Splits in
// disguise) with one of five behaviors, which say to whom the matches belong. As in Hugging Face's
// library a step sees one piece at a time, so a lookahead ends at the end of the piece.
#include "text/pretok.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum behavior { REMOVED, ISOLATED, CONTIGUOUS, WITH_PREVIOUS, WITH_NEXT };

struct step {
    struct regex *regex; // NULL: `literal`, and when that is NULL too, nothing is cut
    char *literal;
    size_t literal_n;
    enum behavior behavior;
    bool invert;
    bool add_prefix_space;
};

enum { STEPS_MAX = 32 };

struct pretok {
    struct step steps[STEPS_MAX];
    size_t n;
};

struct cut {
    struct span span;
    bool match;
};

// What ByteLevel splits by when use_regex is set (GPT-2's expression), and Digits.
#define GPT2_REGEX                                                                                 \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static enum status bool_member(const json_t *o, const char *key, bool absent, bool *out,
                               const char *where, struct errmsg *err)
{
    const json_t *v = json_object_get(o, key);
    if (v && !json_is_boolean(v))
        return errmsg_set(err, STATUS_BAD_FILE, "%s.%s: expected true or false", where, key);
    *out = v ? json_is_true(v) : absent;
    return STATUS_OK;
}

static enum status step_regex(struct step *st, const char *pattern, size_t n, const char *where,
                              struct errmsg *err)
{
    struct errmsg why = {0};
    enum status s = regex_compile(pattern, n, &st->regex, &why);
    return s ? errmsg_set(err, s, "%s: %s", where, why.text) : s;
}

static enum status parse_behavior(const json_t *o, enum behavior *out, const char *where,
                                  struct errmsg *err)
{
    static const char *const names[] = {"Removed", "Isolated", "Contiguous", "MergedWithPrevious",
                                        "MergedWithNext"};
    const char *name = json_string_value(json_object_get(o, "behavior"));
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) {
            *out = (enum behavior)i;
            return STATUS_OK;
        }
    return errmsg_set(err, STATUS_BAD_FILE, "%s.behavior: '%.40s' is not known", where,
                      name ? name : "(absent)");
}

static enum status parse_split(struct step *st, const json_t *o, const char *where,
                               struct errmsg *err)
{
    enum status s = parse_behavior(o, &st->behavior, where, err);
    if (!s)
        s = bool_member(o, "invert", false, &st->invert, where, err);
    if (s)
        return s;
    const json_t *pattern = json_object_get(o, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *literal = json_object_get(pattern, "String");
    if (json_is_string(regex))
        return step_regex(st, json_string_value(regex), json_string_length(regex), where, err);
    if (!json_is_string(literal) || !json_string_length(literal))
        return errmsg_set(err, STATUS_BAD_FILE, "%s.pattern: expected {Regex} or {String}", where);
    st->literal_n = json_string_length(literal);
    st->literal = mem_dup(json_string_value(literal), st->literal_n);
    return STATUS_OK;
}

static enum status parse_byte_level(struct step *st, const json_t *o, const char *where,
                                    struct errmsg *err)
{
    bool use_regex = true;
    enum status s = bool_member(o, "add_prefix_space", true, &st->add_prefix_space, where, err);
    if (!s)
        s = bool_member(o, "use_regex", true, &use_regex, where, err);
    st->behavior = ISOLATED;
    if (!s && use_regex)
        s = step_regex(st, GPT2_REGEX, strlen(GPT2_REGEX), where, err);
    return s;
}

static enum status parse_digits(struct step *st, const json_t *o, const char *where,
                                struct errmsg *err)
{
    bool individual = false;
    enum status s = bool_member(o, "individual_digits", false, &individual, where, err);
    st->behavior = individual ? ISOLATED : CONTIGUOUS;
    return s ? s : step_regex(st, "\\p{N}", 5, where, err);
}

static enum status parse(struct pretok *p, const json_t *o, const char *where, int depth,
                         struct errmsg *err);

static enum status parse_sequence(struct pretok *p, const json_t *o, const char *where, int depth,
                                  struct errmsg *err)
{
    const json_t *list = json_object_get(o, "pretokenizers"), *item;
    if (!json_is_array(list) || depth > 4)
        return errmsg_set(err, STATUS_BAD_FILE, "%s.pretokenizers: expected a list", where);
    size_t i;
    json_array_foreach(list, i, item)
    {
        char inner[300];
        snprintf(inner, sizeof inner, "%s.pretokenizers[%zu]", where, i);
        enum status s = parse(p, item, inner, depth + 1, err);
        if (s)
            return s;
    }
    return STATUS_OK;
}

static enum status parse(struct pretok *p, const json_t *o, const char *where, int depth,
                         struct errmsg *err)
{
    const char *type = json_string_value(json_object_get(o, "type"));
    if (type && !strcmp(type, "Sequence"))
        return parse_sequence(p, o, where, depth, err);
    if (p->n == STEPS_MAX)
        return errmsg_set(err, STATUS_BAD_FILE, "%s: more than %d steps", where, STEPS_MAX);
    struct step *st = &p->steps[p->n++];
    if (type && !strcmp(type, "Split"))
        return parse_split(st, o, where, err);
    if (type && !strcmp(type, "ByteLevel"))
        return parse_byte_level(st, o, where, err);
    if (type && !strcmp(type, "Digits"))
        return parse_digits(st, o, where, err);
    return errmsg_set(err, STATUS_BAD_FILE, "%s.type: '%.40s' is not supported", where,
                      type ? type : "(absent)");
}

enum status pretok_create(const json_t *json, const char *where, struct pretok **out,
                          struct errmsg *err)
{
    struct pretok *p = mem_zalloc(1, sizeof *p);
    enum status s = !json || json_is_null(json) ? STATUS_OK : parse(p, json, where, 0, err);
    if (s) {
        pretok_destroy(p);
        return s;
    }
    *out = p;
    return STATUS_OK;
}

void pretok_destroy(struct pretok *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n; i++) {
        regex_destroy(p->steps[i].regex);
        free(p->steps[i].literal);
    }
    free(p);
}

void pretok_scratch_finish(struct pretok_scratch *s)
{
    free(s->spans.v);
    free(s->next.v);
    free(s->cuts.v);
    strbuf_finish(&s->text);
}

static void push(struct span_vec *v, size_t from, size_t to)
{
    MEM_GROW(v->v, v->n, v->cap);
    v->v[v->n++] = (struct span){(uint32_t)from, (uint32_t)to};
}

// Where a step cuts a piece: `cuts` receives the matches.
static enum status find_literal(const struct step *st, const char *text, size_t n,
                                struct span_vec *cuts)
{
    for (size_t at = 0; at < n;) {
        const char *hit = memmem(text + at, n - at, st->literal, st->literal_n);
        if (!hit)
            break;
        at = (size_t)(hit - text) + st->literal_n;
        push(cuts, at - st->literal_n, at);
    }
    return STATUS_OK;
}

static enum status find_regex(const struct step *st, struct regex_scratch *scratch,
                              const char *text, size_t n, struct span_vec *cuts)
{
    struct regex_iter it;
    size_t from, to;
    enum status s;
    regex_iter_init(&it, st->regex, scratch, text, n);
    while (!(s = regex_iter_next(&it, &from, &to)))
        push(cuts, from, to);
    return s == STATUS_NOT_FOUND ? STATUS_OK : s;
}

// Receives the pieces of a piece from left to right, matches and gaps in turn, and gives them to
// `out` as the behavior says.
struct merger {
    enum behavior behavior;
    struct span_vec *out;
    size_t base, first; // offset of the piece; out->n when it began
    bool previous_match;
    bool open; // the last piece is a match
};

static void merge(struct merger *m, struct cut c)
{
    struct span_vec *out = m->out;
    size_t from = m->base + c.span.from, to = m->base + c.span.to;
    bool last = out->n > m->first, join = false;
    switch (m->behavior) {
    case REMOVED:
        if (c.match)
            return;
        break;
    case ISOLATED:
        break;
    case CONTIGUOUS:
        join = last && m->previous_match == c.match;
        break;
    case WITH_PREVIOUS:
        join = last && c.match && !m->previous_match;
        break;
    case WITH_NEXT:
        join = last && m->open && !c.match;
        break;
    }
    m->previous_match = c.match;
    m->open = c.match && from < to;
    if (join)
        out->v[out->n - 1].to = (uint32_t)to;
    else if (from < to)
        push(out, from, to);
}

static enum status cut_piece(const struct step *st, struct pretok_scratch *scratch,
                             const char *text, struct span piece)
{
    const char *s = text + piece.from;
    size_t n = piece.to - piece.from, at = 0;
    struct span_vec *cuts = &scratch->cuts;
    cuts->n = 0;
    enum status rc =
        st->regex ? find_regex(st, scratch->regex, s, n, cuts) : find_literal(st, s, n, cuts);
    struct merger m = {.behavior = st->behavior,
                       .out = &scratch->next,
                       .base = piece.from,
                       .first = scratch->next.n};
    for (size_t i = 0; i < cuts->n && !rc; i++) {
        if (at < cuts->v[i].from)
            merge(&m, (struct cut){{(uint32_t)at, cuts->v[i].from}, st->invert});
        merge(&m, (struct cut){cuts->v[i], !st->invert});
        at = cuts->v[i].to;
    }
    if (!rc && at < n)
        merge(&m, (struct cut){{(uint32_t)at, (uint32_t)n}, st->invert});
    return rc;
}

// Rewrites the text so that every piece begins with a space.
static const char *prefix_spaces(struct pretok_scratch *scratch, const char *text)
{
    struct strbuf out = {0};
    scratch->next.n = 0;
    for (size_t i = 0; i < scratch->spans.n; i++) {
        struct span p = scratch->spans.v[i];
        size_t from = out.n;
        if (text[p.from] != ' ')
            strbuf_add(&out, " ", 1);
        strbuf_add(&out, text + p.from, p.to - p.from);
        push(&scratch->next, from, out.n);
    }
    strbuf_finish(&scratch->text);
    scratch->text = out;
    struct span_vec swap = scratch->spans;
    scratch->spans = scratch->next;
    scratch->next = swap;
    return out.v ? out.v : text;
}

enum status pretok_run(const struct pretok *p, struct pretok_scratch *scratch, const char *text,
                       size_t n, const char **words_text)
{
    scratch->spans.n = 0;
    if (n)
        push(&scratch->spans, 0, n);
    for (size_t i = 0; i < p->n; i++) {
        const struct step *st = &p->steps[i];
        if (st->add_prefix_space)
            text = prefix_spaces(scratch, text);
        if (!st->regex && !st->literal)
            continue;
        scratch->next.n = 0;
        for (size_t k = 0; k < scratch->spans.n; k++) {
            enum status s = cut_piece(st, scratch, text, scratch->spans.v[k]);
            if (s)
                return s;
        }
        struct span_vec swap = scratch->spans;
        scratch->spans = scratch->next;
        scratch->next = swap;
    }
    *words_text = text;
    return STATUS_OK;
}
