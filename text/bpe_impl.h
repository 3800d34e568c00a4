// What bpe_load.c builds and bpe.c uses; no part of the interface.
#pragma once

#include <string.h>
#include <xxhash.h>

#include "text/bpe.h"

enum { BPE_RESERVED = 1, BPE_RESERVED_SPECIAL = 2 };

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

static inline uint32_t bpe_pair_hash(uint32_t a, uint32_t b)
{
    uint64_t h = ((uint64_t)a << 32 | b) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(h >> 32 ^ h >> 12);
}

// The merge of a pair, or the free slot where it belongs.
static inline struct merge *bpe_merge_slot(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint32_t i = bpe_pair_hash(left, right) & b->merges_mask;
    while (b->merges[i].id >= 0 && (b->merges[i].a != left || b->merges[i].b != right))
        i = (i + 1) & b->merges_mask;
    return &b->merges[i];
}

// The id of a token with these bytes, or the free slot for it.
static inline int32_t *bpe_bytes_slot(const struct bpe *b, const char *bytes, size_t n)
{
    uint32_t i = (uint32_t)XXH3_64bits(bytes, n) & b->by_bytes_mask;
    for (; b->by_bytes[i] >= 0; i = (i + 1) & b->by_bytes_mask) {
        uint32_t id = (uint32_t)b->by_bytes[i];
        if (b->len[id] == n && !memcmp(b->bytes.v + b->at[id], bytes, n))
            break;
    }
    return &b->by_bytes[i];
}
