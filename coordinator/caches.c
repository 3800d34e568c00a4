// What replicas told of their prefix caches (proto/msg.h, KV_CACHED), and the index over all of it.
// Of each replica the names of its blocks are kept by their number: so a change needs no word of
// what was there before, a fence takes all of a replica out again, and reports may be repeated.
#include <inttypes.h>
#include <stdlib.h>

#include "base/hash.h"
#include "coordinator/core.h"

// The limit is of the cluster: each replica of a pool gets an equal part. Pools take the lowest
// block numbers first, so what lies beyond is used last.
static uint32_t part_of(const struct coord *c, const struct replica *r)
{
    uint64_t part = c->replicas_n ? c->cfg.prefix_blocks / c->replicas_n : 0;
    return r->kv_blocks < part ? r->kv_blocks : (uint32_t)part;
}

void cache_begin(struct coord *c, struct replica *r)
{
    cache_drop(r);
    r->cache.blocks = part_of(c, r);
    if (r->block_tokens)
        r->pool->block_tokens = r->block_tokens;
}

static void set_name(struct replica *r, uint32_t block, uint64_t name)
{
    struct cache *k = &r->cache;
    uint64_t old = k->names[block];
    if (old == name)
        return;
    if (old) {
        kvindex_remove(&r->pool->caches, old, (uint16_t)r->id);
        k->digest ^= hash_pair(block, old);
        k->named--;
    }
    k->names[block] = name;
    if (name) {
        kvindex_add(&r->pool->caches, name, (uint16_t)r->id);
        k->digest ^= hash_pair(block, name);
        k->named++;
    }
}

static void forget_names(struct replica *r)
{
    for (uint32_t i = 0; r->cache.names && r->cache.named && i < r->cache.blocks; i++)
        set_name(r, i, 0);
}

void cache_drop(struct replica *r)
{
    forget_names(r);
    free(r->cache.names);
    r->cache = (struct cache){0};
}

static void ask(struct coord *c, struct replica *r, bool all)
{
    core_send(c, r->ranks[0]->conn,
              (struct msg){.kind = MSG_KV_LIST, .kv_list = {r->id, r->epoch, all}});
}

// First the old names go, then the new ones come: a name may have moved from block to block.
static void take_changes(struct coord *c, struct replica *r, const struct msg_kv_cached *m)
{
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < m->changes_n; i++) {
            const struct kv_change *ch = &m->changes[i];
            if (ch->block < r->cache.blocks)
                set_name(r, ch->block, pass ? ch->name : 0);
            else
                c->stats.protocol_errors += pass && ch->block >= r->kv_blocks;
        }
}

void cache_report(struct coord *c, struct replica *r, const struct msg_kv_cached *m)
{
    struct cache *k = &r->cache;
    if (!k->blocks)
        return;
    if (m->seq <= k->seq) {
        c->stats.stale_dropped++;
        return;
    }
    if (m->seq != k->seq + 1 && !m->reset) { // one is missing: nothing is certain any more
        if (!k->asked)
            ask(c, r, true);
        c->stats.cache_resyncs += !k->asked;
        k->asked = true;
        k->seq = m->seq;
        forget_names(r);
        return;
    }
    k->seq = m->seq;
    if (k->asked && !m->reset)
        return; // sent before the lead was asked
    k->asked = false;
    if (m->reset)
        forget_names(r);
    if (!k->names)
        k->names = mem_zalloc(k->blocks, sizeof *k->names);
    take_changes(c, r, m);
    if (m->more)
        ask(c, r, false);
}
