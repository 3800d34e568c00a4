// Merges a word pair by pair, lowest rank first, leftmost first among equals. Short words scan an
// array for the best pair; long ones, which may be hostile, keep the pairs in a heap. Entries of
// the heap are not removed when a neighbour changes: one that no longer describes its pair is
// skipped when it comes up.
#include "text/bpe_impl.h"

#include <stdlib.h>

#include "base/mem.h"

enum {
    SHORT_WORD = 40,
    CACHE_FROM = 256, // words of a call that are encoded without it: clearing it would cost more
    CACHE_SLOTS = 4096,
    CACHE_WORD = 24,
    CACHE_IDS = 8,
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

const char *bpe_token(const struct bpe *b, uint32_t id, size_t *n_out)
{
    *n_out = 0;
    if (id >= b->size || b->at[id] == UINT32_MAX)
        return NULL;
    *n_out = b->len[id];
    return b->bytes.v + b->at[id];
}

int32_t bpe_find(const struct bpe *b, const char *bytes, size_t n)
{
    return n ? *bpe_bytes_slot(b, bytes, n) : -1;
}

uint32_t bpe_size(const struct bpe *b)
{
    return b->size;
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
        pair[i] = bpe_merge_slot(b, (uint32_t)id[i], (uint32_t)id[i + 1]);
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
            pair[best - 1] = bpe_merge_slot(b, (uint32_t)id[best - 1], (uint32_t)id[best]);
        if (best + 1 < n)
            pair[best] = bpe_merge_slot(b, (uint32_t)id[best], (uint32_t)id[best + 1]);
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
        bpe_merge_slot(b, (uint32_t)s->symbols[i].id, (uint32_t)s->symbols[next].id);
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
        const struct merge *m = bpe_merge_slot(b, (uint32_t)v[i].id, (uint32_t)v[next].id);
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

// In a long text words repeat: a direct-mapped cache of the call's short words and their ids.
static struct bpe_cached *cache_slot(struct bpe_scratch *s, const char *word, size_t n)
{
    if (!s->cache)
        s->cache = mem_zalloc(CACHE_SLOTS, sizeof *s->cache);
    return &s->cache[XXH3_64bits(word, n) % CACHE_SLOTS];
}

static void encode_cached(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n,
                          struct token_vec *ids)
{
    if (s->words < CACHE_FROM) {
        s->words++;
        encode_short(b, word, n, ids);
        return;
    }
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
