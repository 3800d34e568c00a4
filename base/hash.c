#include "base/hash.h"

#include <xxhash.h>

uint64_t hash_bytes(const void *data, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, n, seed);
}

uint64_t hash_pair(uint64_t a, uint64_t b)
{
    uint64_t v[2] = {a, b};
    return XXH3_64bits(v, sizeof v);
}

uint64_t hash_block(uint64_t parent, const int32_t *tokens, size_t n)
{
    uint64_t h = XXH3_64bits_withSeed(tokens, n * sizeof *tokens, parent);
    return h ? h : 1;
}
