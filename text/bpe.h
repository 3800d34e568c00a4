// Byte-pair encoding of one word: vocabulary, merges, and the merging itself.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/tokenizer.h"

struct bpe;

// `model`: that member of tokenizer.json. Errors begin with `file`.
STATUS_MUST_USE enum status bpe_create(const json_t *model, const char *file, struct bpe **out,
                                       struct errmsg *err);
void bpe_destroy(struct bpe *b);

uint32_t bpe_size(const struct bpe *b); // one more than the largest id
// The bytes of a token as decoding gives them; NULL when the id names none. Borrowed.
const char *bpe_token(const struct bpe *b, uint32_t id, size_t *n_out);
// The id of a token that spells these bytes; -1.
int32_t bpe_find(const struct bpe *b, const char *bytes, size_t n);
// Marks the id of an added token: a word is never looked up as it (ignore_merges), so only control
// text can give it.
void bpe_reserve(struct bpe *b, int32_t id, bool special);
// BAD_FILE when a merge builds a special token, which would let any text give it.
STATUS_MUST_USE enum status bpe_check_reserved(const struct bpe *b, const char *file,
                                               struct errmsg *err);

// Buffers of one call. Zero-initialise.
struct bpe_scratch {
    struct bpe_symbol *symbols;
    uint64_t *heap;
    struct bpe_cached *cache;
    size_t symbols_cap, heap_n, heap_cap;
    uint32_t words; // short ones so far
};
void bpe_scratch_finish(struct bpe_scratch *s);

// Appends the ids of a word of fewer than 2^28 bytes. Time is O(n log n) for any bytes.
void bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n,
                struct token_vec *ids);
