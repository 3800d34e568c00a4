// Keys are compared all of them and every byte, so that the time tells nothing of how much of a
// guess was right.
#include "coordinator/identity.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/hash.h"
#include "base/mem.h"
#include "coordinator/coord.h"

static bool same(const char *key, struct rpc_text shown)
{
    size_t n = strlen(key);
    unsigned char apart = n != shown.n;
    for (size_t i = 0; i < shown.n; i++)
        apart |= (unsigned char)(shown.v[i] ^ key[n ? i % n : 0]);
    return !apart;
}

static const struct identity_key *find(const struct identity *id, struct rpc_text shown)
{
    const struct identity_key *found = NULL;
    for (size_t i = 0; i < id->keys_n; i++)
        if (same(id->keys[i].key, shown))
            found = &id->keys[i];
    return found;
}

bool identity_add(struct identity *id, const char *key, const char *tenant)
{
    size_t n = strlen(key);
    if (n == 0 || n > IDENTITY_KEY_BYTES || id->keys_n == IDENTITY_KEYS ||
        find(id, (struct rpc_text){key, n}))
        return false;
    MEM_GROW(id->keys, id->keys_n, id->keys_cap);
    struct identity_key *k = &id->keys[id->keys_n++];
    k->key = mem_strdup(key);
    snprintf(k->tenant, sizeof k->tenant, "%s", tenant);
    return true;
}

void identity_finish(struct identity *id)
{
    for (size_t i = 0; i < id->keys_n; i++)
        free(id->keys[i].key);
    free(id->keys);
    *id = (struct identity){0};
}

// A name as it is when it can be one, else a hash of it: `user` may be anything.
static void take_name(struct rpc_text t, char out[LIMIT_NAME])
{
    out[0] = 0;
    if (!t.n)
        return;
    if (t.n < LIMIT_NAME) {
        memcpy(out, t.v, t.n);
        out[t.n] = 0;
    }
    if (t.n >= LIMIT_NAME || strlen(out) != t.n || !coord_tenant_name_ok(out))
        snprintf(out, LIMIT_NAME, "user-%016" PRIx64, hash_bytes(t.v, t.n, 0));
}

bool identity_tenant(const struct identity *id, const struct identity_claim *claim,
                     char out[LIMIT_NAME], struct openai_error *e)
{
    out[0] = 0;
    const struct identity_key *k = NULL;
    if (claim->key.n && claim->key.n <= IDENTITY_KEY_BYTES)
        k = find(id, claim->key);
    if (k) {
        memcpy(out, k->tenant, LIMIT_NAME);
        return true;
    }
    if (id->require_key)
        return openai_fail(e, 401, NULL, "invalid_api_key",
                           claim->key.n ? "Incorrect API key provided."
                                        : "You didn't provide an API key.");
    if (id->from == IDENTITY_HEADER)
        take_name(claim->header, out);
    else if (id->from == IDENTITY_USER)
        take_name(claim->user, out);
    return true;
}

struct rpc_text identity_bearer(const char *value, size_t n)
{
    static const char word[] = "Bearer ";
    size_t k = sizeof word - 1;
    if (n <= k || strncasecmp(value, word, k))
        return (struct rpc_text){"", 0};
    while (k < n && value[k] == ' ')
        k++;
    return (struct rpc_text){value + k, n - k};
}
