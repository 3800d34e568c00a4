// Owns the vocabulary (bytes of every token, ids by bytes) and the merges (an open-addressed table
// from a pair of ids to the rank and result of their merge).
//
// A word is merged pair by pair, lowest rank first, leftmost first among equals. Short words scan
// an array for the best pair; long ones, which may be hostile, keep the pairs in a heap. Entries
// of the heap are not removed when a neighbour changes: one that no longer describes its pair is
// skipped when it comes up.
#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/limits.h"
#include "base/mem.h"
#include "text/bytemap.h"

enum {
    SHORT_WORD = 40,
    CACHE_SLOTS = 4096,
    CACHE_WORD = 24,
    CACHE_IDS = 8,
    TOKEN_BYTES_MAX = 64 << 20, // of all tokens together
};

enum { RESERVED = 1, RESERVED_SPECIAL = 2 };

struct merge {
    uint32_t a, b;
    uint32_t rank;
    int32_t id; // the result; -1: free slot
};

struct bpe {
    uint32_t size; // one more than the largest id
    struct strbuf bytes;
    uint32_t *at, *len; // of each id in `bytes`; at UINT32_MAX: no token
    uint8_t *reserved;
    int32_t *by_bytes; // open-addressed; -1: free
    uint32_t by_bytes_mask;
    struct merge *merges; // open-addressed
    uint32_t merges_mask;
    int32_t byte_ids[256];
    bool ignore_merges;
};

struct bpe_symbol {
    int32_t id; // -1: merged into the one before
    int32_t prev, next;
};

struct bpe_cached {
    uint8_t n, ids_n; // n 0: free
    char word[CACHE_WORD];
    int32_t ids[CACHE_IDS];
};

static uint32_t table_mask(size_t n)
{
    uint32_t size = 16;
    while (size < 2 * n)
        size *= 2;
    return size - 1;
}

static uint32_t pair_hash(uint32_t a, uint32_t b)
{
    uint64_t h = ((uint64_t)a << 32 | b) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(h >> 32 ^ h >> 12);
}

// The merge of a pair, or the free slot where it belongs.
static struct merge *merge_slot(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint32_t i = pair_hash(left, right) & b->merges_mask;
    while (b->merges[i].id >= 0 && (b->merges[i].a != left || b->merges[i].b != right))
        i = (i + 1) & b->merges_mask;
    return &b->merges[i];
}

const char *bpe_token(const struct bpe *b, uint32_t id, size_t *n_out)
{
    *n_out = 0;
    if (id >= b->size || b->at[id] == UINT32_MAX)
        return NULL;
    *n_out = b->len[id];
    return b->bytes.v + b->at[id];
}

// The id of a token with these bytes, or the free slot for it.
static int32_t *bytes_slot(const struct bpe *b, const char *bytes, size_t n)
{
    uint32_t i = (uint32_t)XXH3_64bits(bytes, n) & b->by_bytes_mask;
    for (; b->by_bytes[i] >= 0; i = (i + 1) & b->by_bytes_mask) {
        uint32_t id = (uint32_t)b->by_bytes[i];
        if (b->len[id] == n && !memcmp(b->bytes.v + b->at[id], bytes, n))
            break;
    }
    return &b->by_bytes[i];
}

int32_t bpe_find(const struct bpe *b, const char *bytes, size_t n)
{
    return n ? *bytes_slot(b, bytes, n) : -1;
}

uint32_t bpe_size(const struct bpe *b)
{
    return b->size;
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
        *bytes_slot(b, b->bytes.v + at, b->len[id]) = (int32_t)id;
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
    struct merge *slot = merge_slot(b, x, y);
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

void bpe_destroy(struct bpe *b)
{
    if (!b)
        return;
    strbuf_finish(&b->bytes);
    free(b->at);
    free(b->len);
    free(b->reserved);
    free(b->by_bytes);
    free(b->merges);
    free(b);
}

void bpe_reserve(struct bpe *b, int32_t id, bool special)
{
    if ((uint32_t)id < b->size)
        b->reserved[id] = special ? RESERVED_SPECIAL : RESERVED;
}

enum status bpe_check_reserved(const struct bpe *b, const char *file, struct errmsg *err)
{
    for (size_t i = 0; i <= b->merges_mask; i++) {
        const struct merge *m = &b->merges[i];
        if (m->id >= 0 && b->reserved[m->id] == RESERVED_SPECIAL)
            return bad_merge(file, m->rank, "builds a special token", err);
    }
    return STATUS_OK;
}

void bpe_scratch_finish(struct bpe_scratch *s)
{
    free(s->symbols);
    free(s->heap);
    free(s->cache);
}

static void push_id(struct token_vec *ids, int32_t id)
{
    MEM_GROW(ids->v, ids->n, ids->cap);
    ids->v[ids->n++] = id;
}

// Short words: two arrays, the ids and the merge of each id with the next.
static void encode_short(const struct bpe *b, const char *word, size_t n, struct token_vec *ids)
{
    int32_t id[SHORT_WORD];
    const struct merge *pair[SHORT_WORD];
    for (size_t i = 0; i < n; i++)
        id[i] = b->byte_ids[(unsigned char)word[i]];
    for (size_t i = 0; i + 1 < n; i++)
        pair[i] = merge_slot(b, (uint32_t)id[i], (uint32_t)id[i + 1]);
    for (;;) {
        size_t best = n;
        uint32_t rank = UINT32_MAX;
        for (size_t i = 0; i + 1 < n; i++)
            if (pair[i]->id >= 0 && pair[i]->rank < rank) {
                rank = pair[i]->rank;
                best = i;
            }
        if (best == n)
            break;
        id[best] = pair[best]->id;
        n--;
        memmove(&id[best + 1], &id[best + 2], (n - best - 1) * sizeof *id);
        memmove(&pair[best], &pair[best + 1], (n - best - 1) * sizeof *pair);
        if (best > 0)
            pair[best - 1] = merge_slot(b, (uint32_t)id[best - 1], (uint32_t)id[best]);
        if (best + 1 < n)
            pair[best] = merge_slot(b, (uint32_t)id[best], (uint32_t)id[best + 1]);
    }
    for (size_t i = 0; i < n; i++)
        push_id(ids, id[i]);
}

// A binary heap of (rank, position of the left symbol), smallest first.
static void heap_push(struct bpe_scratch *s, uint64_t key)
{
    MEM_GROW(s->heap, s->heap_n, s->heap_cap);
    size_t i = s->heap_n++;
    for (; i && s->heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = key;
}

static uint64_t heap_pop(struct bpe_scratch *s)
{
    uint64_t top = s->heap[0], last = s->heap[--s->heap_n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= s->heap_n)
            break;
        if (child + 1 < s->heap_n && s->heap[child + 1] < s->heap[child])
            child++;
        if (s->heap[child] >= last)
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return top;
}

static void heap_offer(const struct bpe *b, struct bpe_scratch *s, int32_t i)
{
    int32_t next = i < 0 ? -1 : s->symbols[i].next;
    if (next < 0)
        return;
    const struct merge *m =
        merge_slot(b, (uint32_t)s->symbols[i].id, (uint32_t)s->symbols[next].id);
    if (m->id >= 0)
        heap_push(s, (uint64_t)m->rank << 32 | (uint32_t)i);
}

static void symbols_fill(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n)
{
    if (s->symbols_cap < n) {
        s->symbols = mem_realloc(s->symbols, n, sizeof *s->symbols);
        s->symbols_cap = n;
    }
    for (size_t i = 0; i < n; i++)
        s->symbols[i] = (struct bpe_symbol){b->byte_ids[(unsigned char)word[i]], (int32_t)i - 1,
                                            i + 1 < n ? (int32_t)i + 1 : -1};
    s->heap_n = 0;
    for (size_t i = 0; i + 1 < n; i++)
        heap_offer(b, s, (int32_t)i);
}

static void encode_long(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n,
                        struct token_vec *ids)
{
    symbols_fill(b, s, word, n);
    struct bpe_symbol *v = s->symbols;
    while (s->heap_n) {
        uint64_t top = heap_pop(s);
        int32_t i = (int32_t)(uint32_t)top, next = v[i].next;
        if (v[i].id < 0 || next < 0)
            continue;
        const struct merge *m = merge_slot(b, (uint32_t)v[i].id, (uint32_t)v[next].id);
        if (m->id < 0 || m->rank != top >> 32)
            continue;
        v[i].id = m->id;
        v[i].next = v[next].next;
        if (v[i].next >= 0)
            v[v[i].next].prev = i;
        v[next].id = -1;
        heap_offer(b, s, v[i].prev);
        heap_offer(b, s, i);
    }
    for (int32_t i = 0; i >= 0; i = v[i].next)
        push_id(ids, v[i].id);
}

// Words repeat: a direct-mapped cache of the call's short words and their ids.
static struct bpe_cached *cache_slot(struct bpe_scratch *s, const char *word, size_t n)
{
    if (!s->cache)
        s->cache = mem_zalloc(CACHE_SLOTS, sizeof *s->cache);
    return &s->cache[XXH3_64bits(word, n) % CACHE_SLOTS];
}

static void encode_cached(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n,
                          struct token_vec *ids)
{
    struct bpe_cached *c = cache_slot(s, word, n);
    if (c->n == n && !memcmp(c->word, word, n)) {
        for (size_t i = 0; i < c->ids_n; i++)
            push_id(ids, c->ids[i]);
        return;
    }
    size_t before = ids->n;
    encode_short(b, word, n, ids);
    if (ids->n - before > CACHE_IDS)
        return;
    c->n = (uint8_t)n;
    c->ids_n = (uint8_t)(ids->n - before);
    memcpy(c->word, word, n);
    memcpy(c->ids, ids->v + before, c->ids_n * sizeof *c->ids);
}

void bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n,
                struct token_vec *ids)
{
    if (!n)
        return;
    if (n == 1) {
        push_id(ids, b->byte_ids[(unsigned char)word[0]]);
        return;
    }
    int32_t whole = b->ignore_merges ? bpe_find(b, word, n) : -1;
    if (whole >= 0 && !b->reserved[whole])
        push_id(ids, whole);
    else if (n <= CACHE_WORD)
        encode_cached(b, s, word, n, ids);
    else if (n <= SHORT_WORD)
        encode_short(b, word, n, ids);
    else
        encode_long(b, s, word, n, ids);
}
