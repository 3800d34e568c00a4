// The pool's bookkeeping: one record per block, an intrusive free stack, an intrusive list of
// cached blocks in the order of their last use, and hash buckets chained through the records.
//
// The idea that is not obvious: a named block remembers the serial number of the block before it,
// and each naming draws a new serial. A chain found link by link is therefore equal in content to
// the caller's tokens, whatever the hash function does, and a block whose parent was evicted can
// no longer be reached.
#include "node/kvpool.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "proto/msg.h"

enum { NONE = UINT32_MAX };

enum place { PLACE_FREE, PLACE_HELD, PLACE_CACHED };

struct block {
    uint32_t refs;
    uint8_t place;
    uint64_t hash;          // 0 = unnamed
    uint64_t serial;        // of this naming
    uint64_t parent_serial; // of the block before, 0 = first
    uint32_t bucket_next;   // of the same hash bucket
    uint32_t prev, next;    // free stack (next only) or cached list
    uint32_t untold_next;   // of the queue of those to be told; NONE = the last
    bool untold;
};

struct kvpool {
    uint32_t blocks_n, block_tokens;
    struct block *blocks; // [blocks_n]
    int32_t *tokens;      // [blocks_n][block_tokens], of named blocks
    uint32_t *buckets;    // [bucket_mask + 1], first block or NONE
    uint32_t bucket_mask;
    uint32_t free_top, free_n;
    uint32_t lru_first, lru_last, lru_n; // first = least recently used
    uint64_t serials;
    uint32_t untold_first, untold_last, untold_n;
};

static uint32_t buckets_for(uint32_t blocks)
{
    uint32_t n = 1;
    while (n < blocks && n < (1u << 30))
        n *= 2;
    return n;
}

static void free_push(struct kvpool *p, uint32_t i)
{
    p->blocks[i].place = PLACE_FREE;
    p->blocks[i].next = p->free_top;
    p->free_top = i;
    p->free_n++;
}

struct kvpool *kvpool_create(const struct kvpool_config *config)
{
    assert(config->blocks >= 1 && config->blocks < NONE && config->block_tokens >= 1);
    struct kvpool *p = mem_zalloc(1, sizeof *p);
    uint32_t buckets = buckets_for(config->blocks);
    p->blocks_n = config->blocks;
    p->block_tokens = config->block_tokens;
    p->blocks = mem_zalloc(p->blocks_n, sizeof *p->blocks);
    p->tokens = mem_zalloc((size_t)p->blocks_n * p->block_tokens, sizeof *p->tokens);
    p->buckets = mem_zalloc(buckets, sizeof *p->buckets);
    memset(p->buckets, 0xff, buckets * sizeof *p->buckets);
    p->bucket_mask = buckets - 1;
    p->free_top = p->lru_first = p->lru_last = p->untold_first = p->untold_last = NONE;
    for (uint32_t i = p->blocks_n; i-- > 0;)
        free_push(p, i);
    return p;
}

void kvpool_destroy(struct kvpool *p)
{
    if (p == NULL)
        return;
    free(p->blocks);
    free(p->tokens);
    free(p->buckets);
    free(p);
}

static void lru_append(struct kvpool *p, uint32_t i)
{
    struct block *b = &p->blocks[i];
    b->place = PLACE_CACHED;
    b->prev = p->lru_last;
    b->next = NONE;
    if (p->lru_last == NONE)
        p->lru_first = i;
    else
        p->blocks[p->lru_last].next = i;
    p->lru_last = i;
    p->lru_n++;
}

static void lru_remove(struct kvpool *p, uint32_t i)
{
    struct block *b = &p->blocks[i];
    if (b->prev == NONE)
        p->lru_first = b->next;
    else
        p->blocks[b->prev].next = b->next;
    if (b->next == NONE)
        p->lru_last = b->prev;
    else
        p->blocks[b->next].prev = b->prev;
    p->lru_n--;
}

static void untold_add(struct kvpool *p, uint32_t i)
{
    struct block *b = &p->blocks[i];
    if (b->untold)
        return;
    b->untold = true;
    b->untold_next = NONE;
    if (p->untold_last == NONE)
        p->untold_first = i;
    else
        p->blocks[p->untold_last].untold_next = i;
    p->untold_last = i;
    p->untold_n++;
}

static bool untold_pop(struct kvpool *p, uint32_t *i_out)
{
    uint32_t i = p->untold_first;
    if (i == NONE)
        return false;
    p->untold_first = p->blocks[i].untold_next;
    if (p->untold_first == NONE)
        p->untold_last = NONE;
    p->blocks[i].untold = false;
    p->untold_n--;
    *i_out = i;
    return true;
}

static void unname(struct kvpool *p, uint32_t i)
{
    struct block *b = &p->blocks[i];
    uint32_t *at = &p->buckets[b->hash & p->bucket_mask];
    while (*at != i) {
        assert(*at != NONE);
        at = &p->blocks[*at].bucket_next;
    }
    *at = b->bucket_next;
    b->hash = 0;
    b->serial = 0;
    untold_add(p, i);
}

uint32_t kvpool_available(const struct kvpool *p)
{
    return p->free_n + p->lru_n;
}

uint32_t kvpool_refs(const struct kvpool *p, uint32_t block)
{
    assert(block < p->blocks_n);
    return p->blocks[block].refs;
}

bool kvpool_take(struct kvpool *p, uint32_t *block_out)
{
    uint32_t i = p->free_top;
    if (i != NONE) {
        p->free_top = p->blocks[i].next;
        p->free_n--;
    } else if ((i = p->lru_first) != NONE) {
        lru_remove(p, i);
        unname(p, i);
    } else {
        return false;
    }
    p->blocks[i].place = PLACE_HELD;
    p->blocks[i].refs = 1;
    *block_out = i;
    return true;
}

void kvpool_ref(struct kvpool *p, uint32_t block)
{
    assert(block < p->blocks_n);
    struct block *b = &p->blocks[block];
    assert(b->place != PLACE_FREE);
    if (b->place == PLACE_CACHED) {
        lru_remove(p, block);
        b->place = PLACE_HELD;
    }
    b->refs++;
}

static void unref(struct kvpool *p, uint32_t block)
{
    assert(block < p->blocks_n);
    struct block *b = &p->blocks[block];
    assert(b->place == PLACE_HELD && b->refs > 0);
    if (--b->refs > 0)
        return;
    if (b->hash != 0)
        lru_append(p, block);
    else
        free_push(p, block);
}

void kvpool_release(struct kvpool *p, const uint32_t *blocks, uint32_t blocks_n)
{
    while (blocks_n-- > 0)
        unref(p, blocks[blocks_n]);
}

static uint32_t named(const struct kvpool *p, uint64_t hash)
{
    uint32_t i = p->buckets[hash & p->bucket_mask];
    while (i != NONE && p->blocks[i].hash != hash)
        i = p->blocks[i].bucket_next;
    return i;
}

static bool holds(const struct kvpool *p, uint32_t i, uint64_t parent, const int32_t *tokens)
{
    return p->blocks[i].parent_serial == parent &&
           memcmp(p->tokens + (size_t)i * p->block_tokens, tokens,
                  p->block_tokens * sizeof *tokens) == 0;
}

bool kvpool_find(const struct kvpool *p, struct kv_chain *chain, const int32_t *tokens,
                 uint32_t *block_out)
{
    uint64_t hash = hash_block(chain->hash, tokens, p->block_tokens);
    uint32_t i = named(p, hash);
    if (chain->broken || i == NONE || !holds(p, i, chain->serial, tokens))
        return false;
    chain->hash = hash;
    chain->serial = p->blocks[i].serial;
    *block_out = i;
    return true;
}

static void name(struct kvpool *p, struct kv_chain *chain, uint64_t hash, const int32_t *tokens,
                 uint32_t block)
{
    struct block *b = &p->blocks[block];
    assert(b->hash == 0);
    b->hash = hash;
    b->serial = ++p->serials;
    b->parent_serial = chain->serial;
    memcpy(p->tokens + (size_t)block * p->block_tokens, tokens, p->block_tokens * sizeof *tokens);
    b->bucket_next = p->buckets[hash & p->bucket_mask];
    p->buckets[hash & p->bucket_mask] = block;
    chain->hash = hash;
    chain->serial = b->serial;
    untold_add(p, block);
}

void kvpool_publish(struct kvpool *p, struct kv_chain *chain, const int32_t *tokens, uint32_t block)
{
    assert(block < p->blocks_n && p->blocks[block].place == PLACE_HELD);
    if (chain->broken)
        return;
    uint32_t same;
    if (kvpool_find(p, chain, tokens, &same))
        return;
    uint64_t hash = hash_block(chain->hash, tokens, p->block_tokens);
    uint32_t other = named(p, hash);
    if (other != NONE && p->blocks[other].refs > 0) {
        // Equal names, other content or an other parent: the first one keeps the name.
        chain->broken = true;
        return;
    }
    if (other != NONE) {
        lru_remove(p, other); // unreachable from this chain, and in nobody's use
        unname(p, other);
        free_push(p, other);
    }
    name(p, chain, hash, tokens, block);
}

uint32_t kvpool_changes_n(const struct kvpool *p)
{
    return p->untold_n;
}

uint32_t kvpool_changes(struct kvpool *p, struct kv_change *out, uint32_t max)
{
    uint32_t n = 0, i;
    while (n < max && untold_pop(p, &i))
        out[n++] = (struct kv_change){.block = i, .name = p->blocks[i].hash};
    return n;
}

void kvpool_tell_all(struct kvpool *p)
{
    uint32_t i;
    while (untold_pop(p, &i))
        ;
    for (i = 0; i < p->blocks_n; i++)
        if (p->blocks[i].hash != 0)
            untold_add(p, i);
}

uint64_t kvpool_digest(const struct kvpool *p)
{
    uint64_t d = 0;
    for (uint32_t i = 0; i < p->blocks_n; i++)
        if (p->blocks[i].hash != 0)
            d ^= hash_pair(i, p->blocks[i].hash);
    return d;
}

static void check_block(const struct kvpool *p, uint32_t i, uint32_t refs)
{
    const struct block *b = &p->blocks[i];
    assert(b->refs == refs);
    assert((b->place == PLACE_HELD) == (b->refs > 0));
    assert(b->place != PLACE_FREE || b->hash == 0);
    assert(b->place != PLACE_CACHED || b->hash != 0);
    if (b->hash == 0)
        return;
    uint32_t at = p->buckets[b->hash & p->bucket_mask];
    while (at != i) {
        assert(at != NONE);
        at = p->blocks[at].bucket_next;
    }
    assert(named(p, b->hash) == i); // no two blocks of one name
    assert(b->parent_serial < b->serial && b->serial <= p->serials);
}

void kvpool_check(const struct kvpool *p, const uint32_t *refs)
{
    uint32_t counts[3] = {0}, cached = 0, unused = 0;
    for (uint32_t i = 0; i < p->blocks_n; i++) {
        check_block(p, i, refs[i]);
        counts[p->blocks[i].place]++;
    }
    assert(counts[PLACE_FREE] == p->free_n && counts[PLACE_CACHED] == p->lru_n);
    for (uint32_t i = p->lru_first; i != NONE && cached <= p->lru_n; i = p->blocks[i].next) {
        assert(p->blocks[i].place == PLACE_CACHED);
        cached++;
    }
    for (uint32_t i = p->free_top; i != NONE && unused <= p->free_n; i = p->blocks[i].next) {
        assert(p->blocks[i].place == PLACE_FREE);
        unused++;
    }
    assert(cached == p->lru_n && unused == p->free_n);
    uint32_t untold = 0;
    for (uint32_t i = p->untold_first; i != NONE && untold <= p->untold_n;
         i = p->blocks[i].untold_next) {
        assert(p->blocks[i].untold);
        untold++;
    }
    assert(untold == p->untold_n);
}
