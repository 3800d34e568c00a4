// Whose request is it? Pure: what a client shows in, the tenant's name out.
//
// An API key of the configuration always names its tenant. Else, as the configuration says, the
// header x-hadal-tenant (behind a gateway that sets it) or the request's `user` may; else it is
// nobody's, which is the tenant "default". Keys that are not known are ignored unless keys are
// required: OpenAI's clients always send one.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/limits.h"
#include "coordinator/openai.h"

enum { IDENTITY_KEYS = 4096, IDENTITY_KEY_BYTES = 256 };

enum identity_from { IDENTITY_KEY, IDENTITY_HEADER, IDENTITY_USER };

struct identity_key {
    char *key; // owned
    char tenant[LIMIT_NAME];
};

struct identity {
    struct identity_key *keys; // owned
    size_t keys_n, keys_cap;
    enum identity_from from;
    bool require_key;
};

// What a client shows. Not NUL-terminated; n 0 = not given.
struct identity_claim {
    struct rpc_text key, header, user;
};

// false: the key is there already, empty or too long, or there are too many.
bool identity_add(struct identity *id, const char *key, const char *tenant);
void identity_finish(struct identity *id);
// "" in out = of nobody. false: *e says why it is not let in (401).
bool identity_tenant(const struct identity *id, const struct identity_claim *claim,
                     char out[LIMIT_NAME], struct openai_error *e);
// "Bearer KEY" -> KEY; n 0 when it is something else.
struct rpc_text identity_bearer(const char *value, size_t n);
