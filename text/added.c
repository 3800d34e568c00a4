// One walk down a trie of bytes per position where a token may begin. Strings are at most
// ADDED_BYTES_MAX long, which bounds the walk.
#include "text/added.h"

#include <stdlib.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "text/unichar.h"

struct added_node {
    int32_t child, sibling;          // 0: none
    const struct added_token *token; // that ends here; NULL
    unsigned char byte;
};

static int32_t node_new(struct added_set *s, unsigned char byte)
{
    MEM_GROW(s->nodes, s->nodes_n, s->nodes_cap);
    s->nodes[s->nodes_n] = (struct added_node){.byte = byte};
    return (int32_t)s->nodes_n++;
}

static int32_t child(const struct added_set *s, int32_t node, unsigned char byte)
{
    int32_t c = node ? s->nodes[node].child : s->first[byte];
    while (node && c && s->nodes[c].byte != byte)
        c = s->nodes[c].sibling;
    return c;
}

void added_set_add(struct added_set *s, const struct added_token *token)
{
    if (!s->nodes_n)
        node_new(s, 0);
    MEM_GROW(s->tokens, s->n, s->cap);
    s->tokens[s->n++] = token;
    int32_t node = 0;
    for (size_t i = 0; i < token->n; i++) {
        unsigned char byte = (unsigned char)token->v[i];
        int32_t next = child(s, node, byte);
        if (!next) {
            next = node_new(s, byte);
            if (node) {
                s->nodes[next].sibling = s->nodes[node].child;
                s->nodes[node].child = next;
            } else {
                s->first[byte] = next;
            }
        }
        node = next;
    }
    s->nodes[node].token = token;
}

void added_set_finish(struct added_set *s)
{
    free(s->tokens);
    free(s->nodes);
    *s = (struct added_set){0};
}

// The longest token that begins at text[at] and ends by `to`.
static const struct added_token *longest(const struct added_set *s, const char *text, size_t at,
                                         size_t to)
{
    const struct added_token *best = NULL;
    int32_t node = 0;
    while (at < to && (node = child(s, node, (unsigned char)text[at++])))
        if (s->nodes[node].token)
            best = s->nodes[node].token;
    return best;
}

// \w of Rust's regex crate, without the few letters of category So and the joiners.
static bool is_word(int32_t c)
{
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return (c >= 0x24B6 && c <= 0x24E9) || c == 0x200C || c == 0x200D;
    }
}

// The token at [from, to) must not touch a letter of a word.
static bool stands_alone(const struct added_iter *it, size_t from, size_t to)
{
    if (from > it->from) {
        size_t before = unichar_before(it->text, from);
        if (is_word(unichar_at(it->text + before, from - before)))
            return false;
    }
    return to == it->to || !is_word(unichar_at(it->text + to, it->to - to));
}

static size_t strip_left(const struct added_iter *it, size_t from)
{
    while (from > it->given) {
        size_t before = unichar_before(it->text, from);
        if (!unichar_is_space(unichar_at(it->text + before, from - before)))
            break;
        from = before;
    }
    return from;
}

static size_t strip_right(const struct added_iter *it, size_t to)
{
    while (to < it->to && unichar_is_space(unichar_at(it->text + to, it->to - to)))
        to += (size_t)utf8proc_utf8class[(unsigned char)it->text[to]];
    return to;
}

// The next position where a token begins, its length and where that control run ends.
static const struct added_token *seek(struct added_iter *it)
{
    for (;; it->runs++) {
        size_t end = it->runs->to < it->to ? it->runs->to : it->to;
        if (!it->runs->control && it->at < end)
            it->at = end;
        for (; it->at < end; it->at++) {
            const struct added_token *t = it->set->first[(unsigned char)it->text[it->at]]
                                              ? longest(it->set, it->text, it->at, end)
                                              : NULL;
            if (t)
                return t;
        }
        if (it->at >= it->to)
            return NULL;
    }
}

const struct added_token *added_next(struct added_iter *it, size_t *from_out, size_t *to_out)
{
    if (!it->begun) {
        it->begun = true;
        it->at = it->given = it->from;
    }
    while (it->set->n && it->at < it->to) {
        const struct added_token *t = seek(it);
        if (!t)
            return NULL;
        size_t from = it->at, to = from + t->n;
        it->at = to;
        if (t->single_word && !stands_alone(it, from, to))
            continue;
        *from_out = t->lstrip ? strip_left(it, from) : from;
        *to_out = it->at = it->given = t->rstrip ? strip_right(it, to) : to;
        return t;
    }
    return NULL;
}
