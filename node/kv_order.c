#include "node/kv_order.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

struct head {
    uint32_t kind, first, total, blocks_n, last, has_peer;
    uint64_t transfer, epoch;
    uint64_t peer_replica, peer_epoch;
    uint32_t stages, tensor, members_n, reserved;
};

static void add_string(struct strbuf *out, const char *s)
{
    s = s ? s : "";
    strbuf_add(out, s, strlen(s) + 1);
}

void kv_order_encode(const struct kv_order *o, struct strbuf *out)
{
    struct head h = {.kind = o->kind,
                     .first = o->first,
                     .total = o->total,
                     .blocks_n = o->blocks_n,
                     .last = o->last,
                     .has_peer = o->peer != NULL,
                     .transfer = o->transfer,
                     .epoch = o->epoch};
    if (o->peer) {
        h.peer_replica = o->peer->replica;
        h.peer_epoch = o->peer->epoch;
        h.stages = o->peer->stages;
        h.tensor = o->peer->tensor;
        h.members_n = o->peer->members_n;
    }
    strbuf_add(out, &h, sizeof h);
    if (o->blocks_n)
        strbuf_add(out, o->blocks, o->blocks_n * sizeof *o->blocks);
    for (uint32_t i = 0; i < h.members_n; i++) {
        const struct link_member *m = &o->peer->members[i];
        add_string(out, m->name);
        add_string(out, m->host);
        add_string(out, m->addresses.shm);
        add_string(out, m->addresses.tcp);
        add_string(out, m->addresses.verbs);
    }
}

void kv_order_memory_finish(struct kv_order_memory *m)
{
    free(m->members);
    free(m->blocks);
    *m = (struct kv_order_memory){0};
}

static bool take_string(const char **at, const char *end, const char **out)
{
    const char *nul = *at < end ? memchr(*at, 0, (size_t)(end - *at)) : NULL;
    if (!nul)
        return false;
    *out = *at;
    *at = nul + 1;
    return true;
}

static bool take_members(const char *at, const char *end, struct link_member *v, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!take_string(&at, end, &v[i].name) || !take_string(&at, end, &v[i].host) ||
            !take_string(&at, end, &v[i].addresses.shm) ||
            !take_string(&at, end, &v[i].addresses.tcp) ||
            !take_string(&at, end, &v[i].addresses.verbs))
            return false;
    return at == end;
}

static bool head_fits(const struct head *h, size_t rest)
{
    if (h->kind > KV_ORDER_STOP || h->total > LIMIT_CONTEXT || h->members_n > LIMIT_RANKS ||
        h->blocks_n > LIMIT_CONTEXT || h->blocks_n * sizeof(uint32_t) > rest)
        return false;
    if (h->kind != KV_ORDER_RECEIVE && h->kind != KV_ORDER_SEND)
        return !h->has_peer && !h->members_n;
    return h->has_peer && h->stages >= 1 && h->stages <= LIMIT_STAGES && h->tensor >= 1 &&
           h->tensor <= LIMIT_TENSOR && h->stages * h->tensor <= LIMIT_RANKS;
}

enum status kv_order_decode(const void *bytes, size_t n, struct kv_order_memory *m,
                            struct kv_order *out)
{
    struct head h;
    kv_order_memory_finish(m);
    if (n < sizeof h)
        return STATUS_LINK_CORRUPT;
    memcpy(&h, bytes, sizeof h);
    const char *at = (const char *)bytes + sizeof h, *end = (const char *)bytes + n;
    if (!head_fits(&h, n - sizeof h))
        return STATUS_LINK_CORRUPT;
    m->blocks = mem_dup(at, h.blocks_n * sizeof *m->blocks); // aligned, unlike what comes
    at += h.blocks_n * sizeof *m->blocks;
    if (h.members_n)
        m->members = mem_zalloc(h.members_n, sizeof *m->members);
    if (!take_members(at, end, m->members, h.members_n))
        return STATUS_LINK_CORRUPT;
    m->peer = (struct kv_peer){.replica = h.peer_replica,
                               .epoch = h.peer_epoch,
                               .stages = h.stages,
                               .tensor = h.tensor,
                               .members = m->members,
                               .members_n = h.members_n};
    *out = (struct kv_order){.kind = (enum kv_order_kind)h.kind,
                             .transfer = h.transfer,
                             .epoch = h.epoch,
                             .peer = h.has_peer ? &m->peer : NULL,
                             .first = h.first,
                             .total = h.total,
                             .blocks = m->blocks,
                             .blocks_n = h.blocks_n,
                             .last = h.last};
    return STATUS_OK;
}
