// 64-bit hashes (XXH3). Stable across processes and hosts of either endianness class we run on
// (little), so that prefix keys and ring points agree everywhere.
#pragma once

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *data, size_t n, uint64_t seed);
// Mixes two 64-bit values; not commutative: hash_pair(a, b) != hash_pair(b, a).
uint64_t hash_pair(uint64_t a, uint64_t b);

// Name of a full block of tokens given the name of the block before it (0 for the first): the
// chained prefix hash of DESIGN section 2. Never returns 0.
uint64_t hash_block(uint64_t parent, const int32_t *tokens, size_t n);
