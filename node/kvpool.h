// The KV cache's blocks: reference counts, free list, and the prefix cache. Knows block numbers
// only; the bytes are the engine's.
//
// A block is in exactly one of three places: on the free list, held (refs > 0), or cached (refs
// == 0 but named, so it can be found again; evicted when the free list is empty, least recently
// used first). A full block is named by the chained hash of its tokens and all before it
// (hash_block) once the step that filled it has returned: kvpool_publish. Lookup compares the
// tokens and the identity of the block before, not only the hash, so a crafted collision cannot
// give one user another one's cache.
//
// After Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention" (SOSP'23).
// All memory is taken at create; nothing here allocates later. One owner thread.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct kvpool;

struct kvpool_config {
    uint32_t blocks;       // >= 1
    uint32_t block_tokens; // >= 1
};

// Where a sequence stands in the chain of named blocks. All zero before its first block.
struct kv_chain {
    uint64_t hash;   // name of the last block
    uint64_t serial; // its identity; 0 = none
    bool broken;     // a collision: later blocks of this sequence stay unnamed
};

struct kvpool *kvpool_create(const struct kvpool_config *config);
void kvpool_destroy(struct kvpool *p); // NULL is fine

// Blocks that kvpool_take can give: free and cached ones.
uint32_t kvpool_available(const struct kvpool *p);
uint32_t kvpool_refs(const struct kvpool *p, uint32_t block);
// True: an unnamed block with one reference. False: every block is held.
bool kvpool_take(struct kvpool *p, uint32_t *block_out);
void kvpool_ref(struct kvpool *p, uint32_t block);
// Drop references of a sequence's table, last block first, so that the tails of chains are evicted
// before their heads.
void kvpool_release(struct kvpool *p, const uint32_t *blocks, uint32_t blocks_n);

// The block that follows `chain` and holds tokens[0 .. block_tokens). Found: moves the chain on,
// takes no reference and does not count as a use.
bool kvpool_find(const struct kvpool *p, struct kv_chain *chain, const int32_t *tokens,
                 uint32_t *block_out);
// `block` (held by the caller, full, its step returned) holds tokens[0 .. block_tokens) after
// `chain`: names it unless another block already has that name, and moves the chain on.
void kvpool_publish(struct kvpool *p, struct kv_chain *chain, const int32_t *tokens,
                    uint32_t block);

// What the names of blocks became since they were told last: at most `max` blocks, each with its
// name now (0: none). A block that changed several times counts once, so what is left to tell is
// bounded by the number of blocks.
struct kv_change;
uint32_t kvpool_changes(struct kvpool *p, struct kv_change *out, uint32_t max);
uint32_t kvpool_changes_n(const struct kvpool *p);
void kvpool_tell_all(struct kvpool *p); // all named blocks count as changed, and only they
// Of all names and where they are; equal for equal pools. O(blocks), for tests.
uint64_t kvpool_digest(const struct kvpool *p);

// Asserts the invariants above, and that the references of each block equal refs[block].
void kvpool_check(const struct kvpool *p, const uint32_t *refs);
