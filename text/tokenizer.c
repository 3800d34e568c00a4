// Encoding, in the order of Hugging Face's library: added tokens are cut out of the raw text, what
// is left is normalized, the added tokens meant for normalized text are cut out of that, and the
// rest goes through the pre-tokenizer to BPE. Normalization stops at the borders between control
// and other text, so that a client's combining mark cannot change a control token.
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/nfc.h"
#include "text/replace.h"

enum { TEXT_MAX = 256 << 20 };

// The text of one call, with its runs of control and other text.
struct input {
    struct strbuf text;
    struct control_run *runs; // owned
    size_t n, cap;
};

struct encode {
    const struct tokenizer *t;
    struct pretok_scratch pretok;
    struct bpe_scratch bpe;
    struct token_vec *ids;
    struct errmsg *err;
};

static void input_finish(struct input *in)
{
    strbuf_finish(&in->text);
    free(in->runs);
}

// Extends the last run to the end of the text, or begins another.
static void input_run(struct input *in, bool control)
{
    if (!in->n || in->runs[in->n - 1].control != control) {
        MEM_GROW(in->runs, in->n, in->cap);
        in->runs[in->n++].control = control;
    }
    in->runs[in->n - 1].to = in->text.n;
}

static enum status words(struct encode *e, const char *text, size_t n)
{
    enum status s = pretok_run(e->t->pretok, &e->pretok, text, n, &text);
    if (s)
        return errmsg_set(e->err, s, "the tokenizer's split expression gave up on this text");
    for (size_t i = 0; i < e->pretok.spans.n; i++) {
        struct span w = e->pretok.spans.v[i];
        bpe_encode(e->t->bpe, &e->bpe, text + w.from, w.to - w.from, e->ids);
    }
    return STATUS_OK;
}

static void push_id(struct token_vec *ids, int32_t id)
{
    MEM_GROW(ids->v, ids->n, ids->cap);
    ids->v[ids->n++] = id;
}

typedef enum status rest_fn(struct encode *e, const struct input *in, size_t from, size_t to);

// Cuts the tokens of a set out of a part of the text and hands the rest on.
static enum status cut_added(struct encode *e, const struct added_set *set, const struct input *in,
                             size_t from, size_t to, rest_fn *rest)
{
    struct added_iter it = {
        .set = set, .text = in->text.v, .from = from, .to = to, .runs = in->runs};
    const struct added_token *token;
    enum status s = STATUS_OK;
    size_t token_from, token_to;
    while (!s && (token = added_next(&it, &token_from, &token_to))) {
        if (from < token_from)
            s = rest(e, in, from, token_from);
        push_id(e->ids, token->id);
        from = token_to;
    }
    return s || from == to ? s : rest(e, in, from, to);
}

static enum status rest_to_words(struct encode *e, const struct input *in, size_t from, size_t to)
{
    return words(e, in->text.v + from, to - from);
}

static enum status rest_normalized(struct encode *e, const struct input *in, size_t from, size_t to)
{
    if (!e->t->nfc)
        return cut_added(e, &e->t->normalized, in, from, to, rest_to_words);
    struct input normal = {0};
    for (const struct control_run *run = in->runs; from < to; run++) {
        size_t end = run->to < to ? run->to : to;
        if (end <= from)
            continue;
        nfc_normalize(in->text.v + from, end - from, &normal.text);
        input_run(&normal, run->control);
        from = end;
    }
    enum status s = cut_added(e, &e->t->normalized, &normal, 0, normal.text.n, rest_to_words);
    input_finish(&normal);
    return s;
}

static enum status join(const struct text_segment *segments, size_t n, struct input *in,
                        struct errmsg *err)
{
    for (size_t i = 0; i < n; i++) {
        const struct text_segment *s = &segments[i];
        if (s->n > TEXT_MAX || in->text.n + s->n > TEXT_MAX)
            return errmsg_set(err, STATUS_TOO_LARGE, "text of more than %d bytes", TEXT_MAX);
        size_t valid = utf8_valid_prefix(s->v, s->n);
        if (valid != s->n)
            return errmsg_set(err, STATUS_BAD_REQUEST,
                              "text is not UTF-8: byte 0x%02x at offset %zu",
                              (unsigned char)s->v[valid], in->text.n + valid);
        if (!s->n)
            continue;
        strbuf_add(&in->text, s->v, s->n);
        input_run(in, s->control);
    }
    return STATUS_OK;
}

enum status tokenizer_encode(const struct tokenizer *t, const struct text_segment *segments,
                             size_t n, struct token_vec *ids, struct errmsg *err)
{
    struct encode e = {.t = t, .ids = ids, .err = err};
    struct input in = {0};
    size_t before = ids->n;
    enum status s = join(segments, n, &in, err);
    if (s || !in.text.n)
        goto drop_input;
    e.pretok.regex = regex_scratch_create();
    if (!e.pretok.regex) {
        s = errmsg_set(err, STATUS_NO_MEMORY, "no memory for matching");
        goto drop_input;
    }
    s = cut_added(&e, &t->raw, &in, 0, in.text.n, rest_normalized);
    if (s)
        ids->n = before;
    regex_scratch_destroy(e.pretok.regex);
    pretok_scratch_finish(&e.pretok);
    bpe_scratch_finish(&e.bpe);
drop_input:
    input_finish(&in);
    return s;
}

enum status tokenizer_encode_text(const struct tokenizer *t, const char *text, size_t n,
                                  bool parse_special, struct token_vec *ids, struct errmsg *err)
{
    struct text_segment segment = {text, n, parse_special};
    return tokenizer_encode(t, &segment, 1, ids, err);
}

void token_vec_finish(struct token_vec *ids)
{
    free(ids->v);
    *ids = (struct token_vec){0};
}

static const struct token_text *token(const struct tokenizer *t, int32_t id)
{
    bool exists = id >= 0 && (uint32_t)id < t->size && t->tokens[id].exists;
    return exists ? &t->tokens[id] : NULL;
}

bool tokenizer_token_bytes(const struct tokenizer *t, int32_t id, const char **bytes_out,
                           size_t *n_out)
{
    const struct token_text *text = token(t, id);
    *n_out = text ? text->n : 0;
    *bytes_out = text ? t->bytes.v + text->at : "";
    return text != NULL;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    const struct token_text *text = token(t, id);
    return text && text->special;
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                      struct strbuf *out)
{
    struct strbuf bytes = {0};
    for (size_t i = 0; i < n; i++) {
        const struct token_text *text = token(t, ids[i]);
        if (text && !(skip_special && text->special))
            strbuf_add(&bytes, t->bytes.v + text->at, text->n);
    }
    replace_broken(bytes.v, bytes.n, true, out);
    strbuf_finish(&bytes);
}

int32_t tokenizer_find(const struct tokenizer *t, const char *text)
{
    size_t n = strlen(text);
    for (size_t i = 0; i < t->added_n; i++)
        if (t->added[i].n == n && !memcmp(t->added[i].v, text, n))
            return t->added[i].id;
    return bpe_find(t->bpe, text, n);
}

uint32_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->size;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

bool tokenizer_add_bos(const struct tokenizer *t)
{
    return t->add_bos;
}

const int32_t *tokenizer_eos(const struct tokenizer *t, size_t *n_out)
{
    *n_out = t->eos_n;
    return t->eos;
}

bool tokenizer_is_eos(const struct tokenizer *t, int32_t id)
{
    for (size_t i = 0; i < t->eos_n; i++)
        if (t->eos[i] == id)
            return true;
    return false;
}
