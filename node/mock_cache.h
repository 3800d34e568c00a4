// The mock engine's computing half: sequence slots and a KV cache of rolling hashes. Checks each
// plan before it computes it. Lead only.
#pragma once

#include "node/engine_mock.h"

struct mock_cache;

struct mock_cache *mock_cache_create(const struct mock_config *config);
void mock_cache_destroy(struct mock_cache *c); // NULL is fine

// Computes the plan; samples has room for plan->entries_n. INTERNAL: nonsense, *e says what; the
// cache is unusable then.
enum status mock_cache_step(struct mock_cache *c, const struct step_plan *plan,
                            struct step_sample *samples, uint32_t *samples_n_out, struct errmsg *e);
// Steps up to this id have returned: what they wrote may be shared from now on.
void mock_cache_returned(struct mock_cache *c, uint64_t step);

// Block `to` of `c` becomes what block `from` of another cache is. No step under way may write it.
void mock_cache_copy(struct mock_cache *c, uint32_t to, const struct mock_cache *from_cache,
                     uint32_t from);

// From now on the wrong token is sampled, and goes into the history.
void mock_cache_lie(struct mock_cache *c, bool lies);

uint64_t mock_hash_next(uint64_t hash, int32_t token);
int32_t mock_hash_token(uint64_t hash, uint32_t vocab);
