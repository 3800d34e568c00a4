// Leases: blocks that are held for a transfer between replicas. A source holds blocks of the prefix
// cache, so that nobody writes into them while they are read; a target holds fresh ones that are
// written from afar, and names them once they are whole. Both hold plain references, so that the
// pool's accounting and its check know nothing of transfers.
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/mem.h"
#include "node/batch_int.h"

static enum status chain_check(const struct batch *b, const struct batch_lease_args *a,
                               struct errmsg *e)
{
    if (a->tokens_n < b->config.block_tokens || a->tokens_n > b->context)
        return errmsg_set(e, STATUS_BAD_REQUEST, "%u tokens: a block is %u, the context %u",
                          a->tokens_n, b->config.block_tokens, b->context);
    for (uint32_t i = 0; i < a->tokens_n; i++)
        if (a->tokens[i] < 0 || (b->config.vocab > 0 && (uint32_t)a->tokens[i] >= b->config.vocab))
            return errmsg_set(e, STATUS_BAD_REQUEST, "tokens[%u] = %d is no token of %u", i,
                              a->tokens[i], b->config.vocab);
    return STATUS_OK;
}

static struct batch_lease *lease_new(struct batch *b, const struct batch_lease_args *a)
{
    uint32_t total = a->tokens_n / b->config.block_tokens;
    size_t tokens = (size_t)total * b->config.block_tokens;
    struct batch_lease *l = mem_alloc(sizeof *l + (tokens + total) * sizeof(uint32_t));
    *l = (struct batch_lease){.transfer = a->transfer, .request = a->request, .total = total};
    l->tokens = (int32_t *)(l + 1);
    l->blocks = (uint32_t *)(l->tokens + tokens);
    memcpy(l->tokens, a->tokens, tokens * sizeof *l->tokens);
    DL_APPEND(b->leases, l);
    b->leases_n++;
    return l;
}

static const int32_t *tokens_at(const struct batch *b, const struct batch_lease *l, uint32_t place)
{
    return l->tokens + (size_t)place * b->config.block_tokens;
}

// Holds what the prefix cache has, as far as it goes.
static void hold_named(struct batch *b, struct batch_lease *l)
{
    while (l->blocks_n < l->total &&
           kvpool_find(b->pool, &l->chain, tokens_at(b, l, l->blocks_n), &l->blocks[l->blocks_n])) {
        kvpool_ref(b->pool, l->blocks[l->blocks_n]);
        l->named = ++l->blocks_n;
    }
}

enum status batch_lease_target(struct batch *b, const struct batch_lease_args *args,
                               struct batch_lease **out, struct errmsg *e)
{
    enum status s = chain_check(b, args, e);
    if (s < 0)
        return s;
    struct batch_lease *l = lease_new(b, args);
    l->role = KV_ROLE_TARGET;
    hold_named(b, l);
    uint32_t need = l->total - l->blocks_n, have = kvpool_available(b->pool);
    if (have < (uint64_t)need + batch_headroom(b)) {
        batch_lease_close(b, l);
        return errmsg_set(e, STATUS_FULL, "%u blocks wanted, %u to be had", need, have);
    }
    while (l->blocks_n < l->total) {
        bool ok = kvpool_take(b->pool, &l->blocks[l->blocks_n++]);
        assert(ok);
    }
    *out = l;
    return STATUS_OK;
}

enum status batch_lease_source(struct batch *b, const struct batch_lease_args *args,
                               struct batch_lease **out, struct errmsg *e)
{
    enum status s = chain_check(b, args, e);
    if (s < 0)
        return s;
    *out = lease_new(b, args);
    (*out)->role = KV_ROLE_SOURCE;
    return STATUS_OK;
}

bool batch_lease_fill(struct batch *b, struct batch_lease *l)
{
    assert(l->role == KV_ROLE_SOURCE);
    hold_named(b, l);
    return l->blocks_n < l->total && l->request != 0 && batch_has(b, l->request);
}

// A block that was computed here meanwhile takes the place of the one that came.
static bool name_one(struct batch *b, struct batch_lease *l)
{
    uint32_t *block = &l->blocks[l->named], other;
    const int32_t *tokens = tokens_at(b, l, l->named);
    if (kvpool_find(b->pool, &l->chain, tokens, &other)) {
        kvpool_ref(b->pool, other);
        kvpool_release(b->pool, block, 1);
        *block = other;
        return true;
    }
    kvpool_publish(b->pool, &l->chain, tokens, *block);
    return !l->chain.broken;
}

void batch_lease_publish(struct batch *b, struct batch_lease *l, uint32_t n)
{
    assert(l->role == KV_ROLE_TARGET && n <= l->blocks_n);
    while (l->named < n && name_one(b, l))
        l->named++;
}

void batch_lease_trim(struct batch *b, struct batch_lease *l)
{
    kvpool_release(b->pool, l->blocks + l->named, l->blocks_n - l->named);
    l->blocks_n = l->total = l->named;
}

bool batch_lease_used(const struct batch *b, const struct batch_lease *l)
{
    return l->named > 0 && kvpool_refs(b->pool, l->blocks[l->named - 1]) > 1;
}

void batch_lease_close(struct batch *b, struct batch_lease *l)
{
    kvpool_release(b->pool, l->blocks, l->blocks_n);
    DL_DELETE(b->leases, l);
    b->leases_n--;
    free(l);
}

bool batch_starved(struct batch *b)
{
    bool starved = b->starved && b->leases_n > 0;
    b->starved = false;
    return starved;
}

void batch_leases_destroy(struct batch *b)
{
    struct batch_lease *l, *next;
    DL_FOREACH_SAFE(b->leases, l, next)
    free(l); // the pool goes as a whole
}

void batch_leases_check(struct batch *b)
{
    struct batch_lease *l;
    uint32_t n = 0;
    DL_FOREACH(b->leases, l)
    {
        assert(l->named <= l->blocks_n && l->blocks_n <= l->total);
        assert(l->role == KV_ROLE_TARGET ? l->blocks_n == l->total : l->named == l->blocks_n);
        for (uint32_t i = 0; i < l->blocks_n; i++)
            b->refs[l->blocks[i]]++;
        for (uint32_t i = l->named; i < l->blocks_n; i++)
            assert(kvpool_refs(b->pool, l->blocks[i]) == 1); // being written: nobody else's
        n++;
    }
    assert(n == b->leases_n);
}
