// Reads the model of tokenizer.json: the vocabulary (bytes of every token, ids by bytes) and the
// merges (from a pair of ids to the rank and result of their merge), both in open-addressed tables
// at most half full.
#include "text/bpe_impl.h"

#include <stdlib.h>

#include "base/limits.h"
#include "base/mem.h"
#include "text/bytemap.h"

enum { TOKEN_BYTES_MAX = 64 << 20 }; // of all tokens together

static uint32_t table_mask(size_t n)
{
    uint32_t size = 16;
    while (size < 2 * n)
        size *= 2;
    return size - 1;
}

// The id at vocab[key]; -1 and the cause when it is not one.
static int32_t vocab_id(const json_t *v, const char *file, const char *key, struct errmsg *err)
{
    json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    if (id >= 0 && id < LIMIT_VOCAB)
        return (int32_t)id;
    (void)errmsg_set(err, STATUS_BAD_FILE, "%s: model.vocab[\"%.60s\"]: not an id of 0..%d", file,
                     key, LIMIT_VOCAB - 1);
    return -1;
}

static enum status size_of_vocab(struct bpe *b, json_t *vocab, const char *file, struct errmsg *err)
{
    const char *key;
    json_t *v;
    if (!json_is_object(vocab) || !json_object_size(vocab))
        return errmsg_set(err, STATUS_BAD_FILE, "%s: model.vocab: missing or empty", file);
    if (json_object_size(vocab) > LIMIT_VOCAB)
        return errmsg_set(err, STATUS_BAD_FILE, "%s: model.vocab: more than %d tokens", file,
                          LIMIT_VOCAB);
    json_object_foreach(vocab, key, v)
    {
        int32_t id = vocab_id(v, file, key, err);
        if (id < 0)
            return STATUS_BAD_FILE;
        if ((uint32_t)id >= b->size)
            b->size = (uint32_t)id + 1;
    }
    return STATUS_OK;
}

static enum status add_token(struct bpe *b, const char *key, uint32_t id, const char *file,
                             struct errmsg *err)
{
    size_t n = strlen(key), at = b->bytes.n;
    if (b->at[id] != UINT32_MAX)
        return errmsg_set(err, STATUS_BAD_FILE,
                          "%s: model.vocab[\"%.60s\"]: id %u is also another token's", file, key,
                          id);
    if (at + n > TOKEN_BYTES_MAX)
        return errmsg_set(err, STATUS_BAD_FILE, "%s: model.vocab: more than %d bytes of tokens",
                          file, TOKEN_BYTES_MAX);
    bool spelled = bytemap_decode(key, n, &b->bytes);
    if (!spelled)
        strbuf_add(&b->bytes, key, n);
    b->at[id] = (uint32_t)at;
    b->len[id] = (uint32_t)(b->bytes.n - at);
    if (spelled && b->len[id])
        *bpe_bytes_slot(b, b->bytes.v + at, b->len[id]) = (int32_t)id;
    return STATUS_OK;
}

static enum status load_vocab(struct bpe *b, json_t *vocab, const char *file, struct errmsg *err)
{
    enum status s = size_of_vocab(b, vocab, file, err);
    if (s)
        return s;
    b->at = mem_alloc(b->size * sizeof *b->at);
    memset(b->at, 0xFF, b->size * sizeof *b->at);
    b->len = mem_zalloc(b->size, sizeof *b->len);
    b->reserved = mem_zalloc(b->size, sizeof *b->reserved);
    b->by_bytes_mask = table_mask(json_object_size(vocab));
    b->by_bytes = mem_alloc((b->by_bytes_mask + (size_t)1) * sizeof *b->by_bytes);
    memset(b->by_bytes, 0xFF, (b->by_bytes_mask + (size_t)1) * sizeof *b->by_bytes);
    const char *key;
    json_t *v;
    json_object_foreach(vocab, key, v)
    {
        s = add_token(b, key, (uint32_t)json_integer_value(v), file, err);
        if (s)
            return s;
    }
    return STATUS_OK;
}

// Every byte that UTF-8 can hold must have a token: then nothing that is encoded can get lost.
static enum status load_bytes(struct bpe *b, const char *file, struct errmsg *err)
{
    for (unsigned c = 0; c < 256; c++) {
        b->byte_ids[c] = bpe_find(b, &(char){(char)c}, 1);
        bool in_utf8 = c != 0xC0 && c != 0xC1 && c <= 0xF4;
        if (in_utf8 && b->byte_ids[c] < 0)
            return errmsg_set(err, STATUS_BAD_FILE,
                              "%s: model.vocab: no token for byte 0x%02x (not byte-level BPE?)",
                              file, c);
    }
    return STATUS_OK;
}

// The two halves of a merge, written "a b" or ["a", "b"].
struct halves {
    const char *a, *b;
    size_t a_n, b_n;
};

static bool split_merge(const json_t *m, struct halves *out)
{
    if (json_is_array(m) && json_array_size(m) == 2) {
        const json_t *a = json_array_get(m, 0), *b = json_array_get(m, 1);
        if (!json_is_string(a) || !json_is_string(b))
            return false;
        *out = (struct halves){json_string_value(a), json_string_value(b), json_string_length(a),
                               json_string_length(b)};
        return true;
    }
    if (!json_is_string(m))
        return false;
    const char *s = json_string_value(m);
    size_t n = json_string_length(m);
    const char *space = memchr(s, ' ', n);
    if (!space || memchr(space + 1, ' ', n - (size_t)(space + 1 - s)))
        return false;
    *out = (struct halves){s, space + 1, (size_t)(space - s), n - (size_t)(space + 1 - s)};
    return true;
}

static enum status bad_merge(const char *file, size_t i, const char *what, struct errmsg *err)
{
    return errmsg_set(err, STATUS_BAD_FILE, "%s: model.merges[%zu]: %s", file, i, what);
}

static enum status add_merge(struct bpe *b, const json_t *vocab, const json_t *m, size_t i,
                             const char *file, struct errmsg *err)
{
    struct halves h;
    if (!split_merge(m, &h))
        return bad_merge(file, i, "expected \"a b\" or [\"a\", \"b\"]", err);
    char joined[512];
    if (h.a_n + h.b_n > sizeof joined)
        return bad_merge(file, i, "token of more than 512 bytes", err);
    if (!h.a_n || !h.b_n)
        return bad_merge(file, i, "one half is empty", err);
    memcpy(joined, h.a, h.a_n);
    memcpy(joined + h.a_n, h.b, h.b_n);
    const json_t *left = json_object_getn(vocab, h.a, h.a_n);
    const json_t *right = json_object_getn(vocab, h.b, h.b_n);
    const json_t *result = json_object_getn(vocab, joined, h.a_n + h.b_n);
    if (!left || !right || !result)
        return bad_merge(file, i,
                         !left    ? "the first half is not in model.vocab"
                         : !right ? "the second half is not in model.vocab"
                                  : "the merged token is not in model.vocab",
                         err);
    uint32_t x = (uint32_t)json_integer_value(left), y = (uint32_t)json_integer_value(right);
    struct merge *slot = bpe_merge_slot(b, x, y);
    if (slot->id >= 0)
        return bad_merge(file, i, "this pair was merged before", err);
    *slot = (struct merge){x, y, (uint32_t)i, (int32_t)json_integer_value(result)};
    return STATUS_OK;
}

static enum status load_merges(struct bpe *b, const json_t *vocab, const json_t *merges,
                               const char *file, struct errmsg *err)
{
    if (!json_is_array(merges) || json_array_size(merges) > 2 * (size_t)LIMIT_VOCAB)
        return errmsg_set(err, STATUS_BAD_FILE, "%s: model.merges: expected a list of at most %d",
                          file, 2 * LIMIT_VOCAB);
    b->merges_mask = table_mask(json_array_size(merges));
    b->merges = mem_alloc((b->merges_mask + (size_t)1) * sizeof *b->merges);
    for (size_t i = 0; i <= b->merges_mask; i++)
        b->merges[i].id = -1;
    size_t i;
    json_t *m;
    json_array_foreach(merges, i, m)
    {
        enum status s = add_merge(b, vocab, m, i, file, err);
        if (s)
            return s;
    }
    return STATUS_OK;
}

static bool set(const json_t *v)
{
    return v && !json_is_null(v) && !json_is_false(v) &&
           !(json_is_string(v) && !json_string_length(v)) &&
           !(json_is_number(v) && json_number_value(v) == 0);
}

// Members that would change the encoding and that byte-level models do not use.
static enum status check_members(const json_t *model, const char *file, struct errmsg *err)
{
    static const char *const refused[] = {"continuing_subword_prefix", "end_of_word_suffix",
                                          "byte_fallback", "dropout"};
    const char *type = json_string_value(json_object_get(model, "type"));
    if (!type || strcmp(type, "BPE"))
        return errmsg_set(err, STATUS_BAD_FILE, "%s: model.type: '%.40s' is not supported", file,
                          type ? type : "(absent)");
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (set(json_object_get(model, refused[i])))
            return errmsg_set(err, STATUS_BAD_FILE, "%s: model.%s is set: not supported", file,
                              refused[i]);
    return STATUS_OK;
}

enum status bpe_create(const json_t *model, const char *file, struct bpe **out, struct errmsg *err)
{
    struct bpe *b = mem_zalloc(1, sizeof *b);
    json_t *vocab = json_object_get(model, "vocab");
    enum status s = check_members(model, file, err);
    if (!s)
        s = load_vocab(b, vocab, file, err);
    if (!s)
        s = load_bytes(b, file, err);
    if (!s)
        s = load_merges(b, vocab, json_object_get(model, "merges"), file, err);
    if (s) {
        bpe_destroy(b);
        return s;
    }
    b->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    *out = b;
    return STATUS_OK;
}

void bpe_reserve(struct bpe *b, int32_t id, bool special)
{
    if ((uint32_t)id < b->size)
        b->reserved[id] = special ? BPE_RESERVED_SPECIAL : BPE_RESERVED;
}

enum status bpe_check_reserved(const struct bpe *b, const char *file, struct errmsg *err)
{
    for (size_t i = 0; i <= b->merges_mask; i++) {
        const struct merge *m = &b->merges[i];
        if (m->id >= 0 && b->reserved[m->id] == BPE_RESERVED_SPECIAL)
            return bad_merge(file, m->rank, "builds a special token", err);
    }
    return STATUS_OK;
}
