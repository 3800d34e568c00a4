// Reads the files of a tokenizer and checks everything in them, so that encoding and decoding need
// no checks of their own.
#include "text/tokenizer_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/mem.h"
#include "text/bytemap.h"
#include "text/model_json.h"

enum { ADDED_MAX = 65536 };

struct load {
    struct tokenizer *t;
    const json_t *file;   // tokenizer.json
    const json_t *config; // tokenizer_config.json; NULL when absent
    const char *dir;
    char name[300]; // "dir/tokenizer.json", for messages
    struct errmsg *err;
};

#define FAIL(l, ...) errmsg_set((l)->err, STATUS_BAD_FILE, __VA_ARGS__)

static enum status load_normalizer(struct load *l, const json_t *n, const char *where)
{
    const char *type = json_string_value(json_object_get(n, "type"));
    if (!n || json_is_null(n))
        return STATUS_OK;
    if (type && !strcmp(type, "NFC")) {
        l->t->nfc = true;
        return STATUS_OK;
    }
    if (!type || strcmp(type, "Sequence"))
        return FAIL(l, "%s: %s.type: '%.40s' is not supported", l->name, where,
                    type ? type : "(absent)");
    const json_t *list = json_object_get(n, "normalizers"), *item;
    size_t i;
    json_array_foreach(list, i, item)
    {
        const char *inner = json_string_value(json_object_get(item, "type"));
        if (inner && !strcmp(inner, "Sequence"))
            return FAIL(l, "%s: %s: a Sequence inside a Sequence", l->name, where);
        enum status s = load_normalizer(l, item, "normalizer.normalizers[]");
        if (s)
            return s;
    }
    return STATUS_OK;
}

static enum status load_pretok(struct load *l)
{
    char where[330];
    snprintf(where, sizeof where, "%s: pre_tokenizer", l->name);
    return pretok_create(json_object_get(l->file, "pre_tokenizer"), where, &l->t->pretok, l->err);
}

// The decoder must be ByteLevel, alone or as the only member of a Sequence that does something.
static enum status check_decoder(struct load *l)
{
    const json_t *d = json_object_get(l->file, "decoder");
    const json_t *list = json_object_get(d, "decoders");
    if (json_array_size(list) == 1)
        d = json_array_get(list, 0);
    const char *type = json_string_value(json_object_get(d, "type"));
    if (!type || strcmp(type, "ByteLevel"))
        return FAIL(l, "%s: decoder.type: '%.40s' is not supported", l->name,
                    type ? type : "(absent)");
    return STATUS_OK;
}

static enum status flag(struct load *l, const json_t *o, size_t i, const char *key, bool absent,
                        bool *out)
{
    const json_t *v = json_object_get(o, key);
    if (v && !json_is_boolean(v))
        return FAIL(l, "%s: added_tokens[%zu].%s: expected true or false", l->name, i, key);
    *out = v ? json_is_true(v) : absent;
    return STATUS_OK;
}

static enum status load_added_flags(struct load *l, const json_t *o, size_t i,
                                    struct added_token *a)
{
    enum status s = flag(l, o, i, "special", false, &a->special);
    if (!s)
        s = flag(l, o, i, "lstrip", false, &a->lstrip);
    if (!s)
        s = flag(l, o, i, "rstrip", false, &a->rstrip);
    if (!s)
        s = flag(l, o, i, "single_word", false, &a->single_word);
    if (!s)
        s = flag(l, o, i, "normalized", !a->special, &a->normalized);
    return s;
}

// An added token that is in the vocabulary too must have the same id there.
static enum status check_added_id(struct load *l, size_t i, const struct added_token *a)
{
    const json_t *vocab = json_object_get(json_object_get(l->file, "model"), "vocab");
    const json_t *same = json_object_getn(vocab, a->v, a->n);
    size_t n;
    if (same && json_integer_value(same) != a->id)
        return FAIL(l, "%s: added_tokens[%zu].id: %d, but model.vocab gives it %lld", l->name, i,
                    a->id, (long long)json_integer_value(same));
    if (!same && bpe_token(l->t->bpe, (uint32_t)a->id, &n))
        return FAIL(l, "%s: added_tokens[%zu].id: %d is another token of model.vocab", l->name, i,
                    a->id);
    return STATUS_OK;
}

static enum status load_added_token(struct load *l, const json_t *o, size_t i)
{
    struct added_token *a = &l->t->added[i];
    const json_t *content = json_object_get(o, "content"), *id = json_object_get(o, "id");
    if (!json_is_string(content) || json_string_length(content) > ADDED_BYTES_MAX)
        return FAIL(l, "%s: added_tokens[%zu].content: expected a string of at most %d bytes",
                    l->name, i, ADDED_BYTES_MAX);
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= LIMIT_VOCAB)
        return FAIL(l, "%s: added_tokens[%zu].id: not an id of 0..%d", l->name, i, LIMIT_VOCAB - 1);
    a->n = json_string_length(content);
    a->v = mem_dup(json_string_value(content), a->n);
    a->id = (int32_t)json_integer_value(id);
    enum status s = load_added_flags(l, o, i, a);
    return s ? s : check_added_id(l, i, a);
}

static enum status load_added(struct load *l)
{
    const json_t *list = json_object_get(l->file, "added_tokens"), *item;
    size_t i, n = json_array_size(list);
    if ((list && !json_is_null(list) && !json_is_array(list)) || n > ADDED_MAX)
        return FAIL(l, "%s: added_tokens: expected a list of at most %d", l->name, ADDED_MAX);
    l->t->added = mem_zalloc(n + 1, sizeof *l->t->added);
    l->t->added_n = n;
    json_array_foreach(list, i, item)
    {
        enum status s = load_added_token(l, item, i);
        if (s)
            return s;
    }
    return STATUS_OK;
}

static void set_token(struct tokenizer *t, uint32_t id, const char *bytes, size_t n)
{
    t->tokens[id].at = (uint32_t)t->bytes.n;
    t->tokens[id].n = (uint32_t)n;
    t->tokens[id].exists = true;
    strbuf_add(&t->bytes, bytes, n);
}

// Hugging Face's decoder reads added tokens as byte-level words too, when all of their characters
// are in that alphabet.
static enum status place_added(struct load *l, size_t i)
{
    struct tokenizer *t = l->t;
    struct added_token *a = &t->added[i];
    struct token_text *old = &t->tokens[a->id];
    struct strbuf bytes = {0};
    if (!bytemap_decode(a->v, a->n, &bytes))
        strbuf_add(&bytes, a->v, a->n);
    bool differs = old->exists && (old->n != bytes.n ||
                                   (bytes.n && memcmp(t->bytes.v + old->at, bytes.v, bytes.n)));
    if (!old->exists)
        set_token(t, (uint32_t)a->id, bytes.v, bytes.n);
    strbuf_finish(&bytes);
    if (differs)
        return FAIL(l, "%s: added_tokens[%zu].id: %d is also another token's", l->name, i, a->id);
    t->tokens[a->id].special |= a->special;
    bpe_reserve(t->bpe, a->id, a->special);
    if (a->n)
        added_set_add(a->normalized ? &t->normalized : &t->raw, a);
    return STATUS_OK;
}

// The table of all tokens by id.
static enum status build_tokens(struct load *l)
{
    struct tokenizer *t = l->t;
    t->size = bpe_size(t->bpe);
    for (size_t i = 0; i < t->added_n; i++)
        if ((uint32_t)t->added[i].id >= t->size)
            t->size = (uint32_t)t->added[i].id + 1;
    t->tokens = mem_zalloc(t->size, sizeof *t->tokens);
    for (uint32_t id = 0; id < t->size; id++) {
        size_t n;
        const char *bytes = bpe_token(t->bpe, id, &n);
        if (bytes)
            set_token(t, id, bytes, n);
    }
    for (size_t i = 0; i < t->added_n; i++) {
        enum status s = place_added(l, i);
        if (s)
            return s;
    }
    return bpe_check_reserved(t->bpe, l->name, l->err);
}

// The id named by tokenizer_config.json's `key`; -1 when the key is absent or null.
static enum status config_token(struct load *l, const char *key, int32_t *out)
{
    const json_t *entry = json_object_get(l->config, key);
    const char *text = model_json_token(entry);
    *out = -1;
    if (!entry || json_is_null(entry))
        return STATUS_OK;
    *out = text ? tokenizer_find(l->t, text) : -1;
    if (*out < 0)
        return FAIL(l, "%s/tokenizer_config.json: %s: '%.60s' is not a token", l->dir, key,
                    text ? text : "(neither string nor object with content)");
    return STATUS_OK;
}

// Whether a TemplateProcessing in `post_processor` puts bos before a single text.
static bool template_adds(const struct load *l, const json_t *p, const char *bos)
{
    const json_t *list = json_object_get(p, "processors"), *item;
    const json_t *first = json_array_get(json_object_get(p, "single"), 0);
    const char *id =
        json_string_value(json_object_get(json_object_get(first, "SpecialToken"), "id"));
    size_t i;
    if (id)
        return bos && !strcmp(id, bos);
    json_array_foreach(list, i, item)
    {
        if (!json_object_get(item, "processors") && template_adds(l, item, bos))
            return true;
    }
    return false;
}

static void add_eos(struct tokenizer *t, int32_t id)
{
    if (id >= 0 && !tokenizer_is_eos(t, id) && t->eos_n < EOS_MAX)
        t->eos[t->eos_n++] = id;
}

static enum status load_config(struct load *l)
{
    int32_t eos;
    enum status s = config_token(l, "bos_token", &l->t->bos);
    if (!s)
        s = config_token(l, "eos_token", &eos);
    if (s)
        return s;
    add_eos(l->t, eos);
    const json_t *add = json_object_get(l->config, "add_bos_token");
    const char *bos = model_json_token(json_object_get(l->config, "bos_token"));
    l->t->add_bos =
        l->t->bos >= 0 &&
        (json_is_boolean(add) ? json_is_true(add)
                              : template_adds(l, json_object_get(l->file, "post_processor"), bos));
    return STATUS_OK;
}

// eos_token_id of generation_config.json: one id or a list.
static enum status load_generation(struct load *l)
{
    json_t *g, *v;
    size_t i;
    enum status s = model_json_load(l->dir, "generation_config.json", 0, &g, l->err);
    if (s)
        return s == STATUS_NOT_FOUND ? STATUS_OK : s;
    json_t *eos = json_object_get(g, "eos_token_id");
    json_t *list = json_is_array(eos) ? json_incref(eos) : json_array();
    if (eos && !json_is_array(eos) && !json_is_null(eos))
        json_array_append(list, eos);
    json_array_foreach(list, i, v)
    {
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= LIMIT_VOCAB || i >= EOS_MAX / 2)
            s = FAIL(l, "%s/generation_config.json: eos_token_id: expected at most %d ids", l->dir,
                     EOS_MAX / 2);
        else
            add_eos(l->t, (int32_t)id);
    }
    json_decref(list);
    json_decref(g);
    return s;
}

static enum status load_all(struct load *l)
{
    enum status s = bpe_create(json_object_get(l->file, "model"), l->name, &l->t->bpe, l->err);
    if (!s)
        s = load_normalizer(l, json_object_get(l->file, "normalizer"), "normalizer");
    if (!s)
        s = load_pretok(l);
    if (!s)
        s = check_decoder(l);
    if (!s)
        s = load_added(l);
    if (!s)
        s = build_tokens(l);
    if (!s)
        s = load_config(l);
    return s ? s : load_generation(l);
}

enum status tokenizer_open(const char *dir, struct tokenizer **out, struct errmsg *err)
{
    struct load l = {.dir = dir, .err = err};
    json_t *file = NULL, *config = NULL;
    snprintf(l.name, sizeof l.name, "%s/tokenizer.json", dir);
    enum status s = model_json_load(dir, "tokenizer.json", 0, &file, err);
    if (s)
        return s == STATUS_NOT_FOUND ? STATUS_BAD_MODEL : s;
    s = model_json_load(dir, "tokenizer_config.json", JSON_DECODE_INT_AS_REAL, &config, err);
    if (s && s != STATUS_NOT_FOUND)
        goto drop_file;
    l.t = mem_zalloc(1, sizeof *l.t);
    l.t->bos = -1;
    l.file = file;
    l.config = config;
    s = load_all(&l);
    if (s)
        tokenizer_close(l.t);
    else
        *out = l.t;
    json_decref(config);
drop_file:
    json_decref(file);
    return s;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    bpe_destroy(t->bpe);
    pretok_destroy(t->pretok);
    added_set_finish(&t->raw);
    added_set_finish(&t->normalized);
    for (size_t i = 0; i < t->added_n; i++)
        free(t->added[i].v);
    free(t->added);
    free(t->tokens);
    strbuf_finish(&t->bytes);
    free(t);
}
