// The messages that move KV between replicas, to and from protobuf, and what they share with those
// that form a replica: the members of a replica and where they are reached.
#include "proto/wire_pb.h"

// protobuf-c does not write through the pointer.
static char *str(const char *s)
{
    return (char *)(s ? s : "");
}

void wire_write_addresses(const struct rank_addresses *from, Hadal__Addresses *pb)
{
    hadal__addresses__init(pb);
    pb->shm = str(from->shm);
    pb->tcp = str(from->tcp);
    pb->verbs = str(from->verbs);
}

void wire_read_addresses(struct wire_check *c, const Hadal__Addresses *p, struct rank_addresses *to)
{
    *to = (struct rank_addresses){"", "", ""};
    if (!p)
        return;
    wire_check_string(c, "addresses.shm", p->shm, LIMIT_ADDR);
    wire_check_string(c, "addresses.tcp", p->tcp, LIMIT_ADDR);
    wire_check_string(c, "addresses.verbs", p->verbs, LIMIT_RAIL_ADDRS);
    *to = (struct rank_addresses){p->shm, p->tcp, p->verbs};
}

Hadal__LinkMember **wire_write_members(struct wire_arena *a, const struct link_member *members,
                                       uint32_t n)
{
    struct member_pb {
        Hadal__LinkMember member;
        Hadal__Addresses addresses;
    } *pbs = wire_arena_alloc(a, n * sizeof *pbs);
    Hadal__LinkMember **list = wire_arena_alloc(a, n * sizeof *list);
    if (!list || !pbs)
        return NULL;
    for (uint32_t i = 0; i < n; i++) {
        list[i] = &pbs[i].member;
        hadal__link_member__init(list[i]);
        wire_write_addresses(&members[i].addresses, &pbs[i].addresses);
        list[i]->name = str(members[i].name);
        list[i]->host = str(members[i].host);
        list[i]->addresses = &pbs[i].addresses;
    }
    return list;
}

const struct link_member *wire_read_members(struct wire_check *c, Hadal__LinkMember **pb, size_t n)
{
    if (c->status)
        return NULL;
    struct link_member *members = wire_alloc(c, n, sizeof *members);
    for (size_t i = 0; members && i < n && !c->status; i++) {
        wire_check_name(c, "members.name", pb[i]->name);
        wire_check_string(c, "members.host", pb[i]->host, LIMIT_ADDR);
        members[i].name = pb[i]->name;
        members[i].host = pb[i]->host;
        wire_read_addresses(c, pb[i]->addresses, &members[i].addresses);
    }
    return members;
}

static Hadal__KvPeer *write_peer(struct wire_arena *a, const struct kv_peer *p)
{
    Hadal__KvPeer *pb = wire_arena_alloc(a, sizeof *pb);
    if (!pb)
        return NULL;
    hadal__kv_peer__init(pb);
    pb->replica = p->replica;
    pb->epoch = p->epoch;
    pb->stages = p->stages;
    pb->tensor = p->tensor;
    pb->fingerprint = p->fingerprint;
    pb->block_tokens = p->block_tokens;
    pb->n_members = p->members_n;
    pb->members = wire_write_members(a, p->members, p->members_n);
    return pb->members || !p->members_n ? pb : NULL;
}

// `members`: every rank of the peer must be named, else none.
static void read_peer(struct wire_check *c, const Hadal__KvPeer *pb, bool members,
                      struct kv_peer *out)
{
    if (!pb) {
        wire_fail(c, STATUS_LINK_PROTOCOL, "peer: absent");
        return;
    }
    wire_check_range(c, "peer.stages", pb->stages, 1, LIMIT_STAGES);
    wire_check_range(c, "peer.tensor", pb->tensor, 1, LIMIT_TENSOR);
    if (!c->status && pb->stages * pb->tensor > LIMIT_RANKS)
        wire_fail(c, STATUS_LINK_PROTOCOL, "peer.stages: %u x %u ranks are too many", pb->stages,
                  pb->tensor);
    wire_check_range(c, "peer.block_tokens", pb->block_tokens, 1, LIMIT_CONTEXT);
    uint64_t n = members ? (uint64_t)pb->stages * pb->tensor : 0;
    wire_check_range(c, "peer.members", pb->n_members, n, n);
    *out = (struct kv_peer){.replica = pb->replica,
                            .epoch = pb->epoch,
                            .stages = pb->stages,
                            .tensor = pb->tensor,
                            .fingerprint = pb->fingerprint,
                            .block_tokens = pb->block_tokens,
                            .members = wire_read_members(c, pb->members, pb->n_members),
                            .members_n = (uint32_t)pb->n_members};
}

bool wire_write_kv_cached(struct wire_arena *a, const struct msg_kv_cached *k, Hadal__KvCached *pb)
{
    uint32_t *blocks = wire_arena_alloc(a, k->changes_n * sizeof *blocks);
    uint64_t *names = wire_arena_alloc(a, k->changes_n * sizeof *names);
    if (k->changes_n && (!blocks || !names))
        return false;
    for (uint32_t i = 0; i < k->changes_n; i++) {
        blocks[i] = k->changes[i].block;
        names[i] = k->changes[i].name;
    }
    hadal__kv_cached__init(pb);
    pb->replica = k->replica;
    pb->epoch = k->epoch;
    pb->seq = k->seq;
    pb->reset = k->reset;
    pb->more = k->more;
    pb->n_blocks = pb->n_names = k->changes_n;
    pb->blocks = blocks;
    pb->names = names;
    return true;
}

void wire_read_kv_cached(struct wire_check *c, const Hadal__KvCached *pb, struct msg_kv_cached *out)
{
    wire_check_range(c, "seq", pb->seq, 1, UINT64_MAX);
    wire_check_range(c, "blocks", pb->n_blocks, 0, MSG_KV_CHANGES);
    wire_check_range(c, "names", pb->n_names, pb->n_blocks, pb->n_blocks);
    if (c->status)
        return;
    struct kv_change *changes = wire_alloc(c, pb->n_blocks, sizeof *changes);
    for (size_t i = 0; changes && i < pb->n_blocks; i++)
        changes[i] = (struct kv_change){.block = pb->blocks[i], .name = pb->names[i]};
    *out = (struct msg_kv_cached){.replica = pb->replica,
                                  .epoch = pb->epoch,
                                  .seq = pb->seq,
                                  .reset = pb->reset,
                                  .more = pb->more,
                                  .changes = changes,
                                  .changes_n = (uint32_t)pb->n_blocks};
}

void wire_write_kv_ready(const struct msg_kv_ready *r, Hadal__KvReady *pb)
{
    hadal__kv_ready__init(pb);
    pb->replica = r->replica;
    pb->epoch = r->epoch;
    pb->transfer = r->transfer;
    pb->blocks = r->blocks;
    pb->have = r->have;
}

void wire_read_kv_ready(struct wire_check *c, const Hadal__KvReady *pb, struct msg_kv_ready *out)
{
    wire_check_range(c, "transfer", pb->transfer, 1, UINT64_MAX);
    wire_check_range(c, "blocks", pb->blocks, 1, LIMIT_CONTEXT);
    wire_check_range(c, "have", pb->have, 0, pb->blocks);
    *out = (struct msg_kv_ready){.replica = pb->replica,
                                 .epoch = pb->epoch,
                                 .transfer = pb->transfer,
                                 .blocks = pb->blocks,
                                 .have = pb->have};
}

void wire_write_kv_done(const struct msg_kv_done *d, Hadal__KvDone *pb)
{
    hadal__kv_done__init(pb);
    pb->replica = d->replica;
    pb->epoch = d->epoch;
    pb->transfer = d->transfer;
    pb->role = d->role;
    pb->status = d->status;
    pb->text = str(d->text);
    pb->tokens_n = d->tokens_n;
    pb->bytes = d->bytes;
    pb->us = d->us;
}

void wire_read_kv_done(struct wire_check *c, const Hadal__KvDone *pb, struct msg_kv_done *out)
{
    wire_check_range(c, "transfer", pb->transfer, 1, UINT64_MAX);
    wire_check_range(c, "role", pb->role, KV_ROLE_SOURCE, KV_ROLE_TARGET);
    wire_check_status(c, "status", pb->status);
    wire_check_string(c, "text", pb->text, LIMIT_PATH);
    wire_check_range(c, "tokens_n", pb->tokens_n, 0, LIMIT_CONTEXT);
    *out = (struct msg_kv_done){.replica = pb->replica,
                                .epoch = pb->epoch,
                                .transfer = pb->transfer,
                                .role = (enum kv_role)pb->role,
                                .status = (enum status)pb->status,
                                .text = pb->text,
                                .tokens_n = pb->tokens_n,
                                .bytes = pb->bytes,
                                .us = pb->us};
}

enum { LEASE_MAX_MS = 3600 * 1000 };

static void check_transfer(struct wire_check *c, uint64_t transfer, size_t tokens_n,
                           uint32_t lease_ms)
{
    wire_check_range(c, "transfer", transfer, 1, UINT64_MAX);
    wire_check_range(c, "tokens", tokens_n, 1, LIMIT_CONTEXT);
    wire_check_range(c, "lease_ms", lease_ms, 1, LEASE_MAX_MS);
}

bool wire_write_kv_receive(struct wire_arena *a, const struct msg_kv_receive *r,
                           Hadal__KvReceive *pb)
{
    hadal__kv_receive__init(pb);
    pb->replica = r->replica;
    pb->epoch = r->epoch;
    pb->transfer = r->transfer;
    pb->n_tokens = r->tokens_n;
    pb->tokens = (int32_t *)r->tokens;
    pb->lease_ms = r->lease_ms;
    pb->source = write_peer(a, &r->source);
    return pb->source;
}

void wire_read_kv_receive(struct wire_check *c, const Hadal__KvReceive *pb,
                          struct msg_kv_receive *out)
{
    check_transfer(c, pb->transfer, pb->n_tokens, pb->lease_ms);
    wire_check_ids(c, "tokens", pb->tokens, pb->n_tokens, LIMIT_CONTEXT);
    *out = (struct msg_kv_receive){.replica = pb->replica,
                                   .epoch = pb->epoch,
                                   .transfer = pb->transfer,
                                   .tokens = pb->tokens,
                                   .tokens_n = (uint32_t)pb->n_tokens,
                                   .lease_ms = pb->lease_ms};
    read_peer(c, pb->source, false, &out->source);
}

bool wire_write_kv_send(struct wire_arena *a, const struct msg_kv_send *s, Hadal__KvSend *pb)
{
    hadal__kv_send__init(pb);
    pb->replica = s->replica;
    pb->epoch = s->epoch;
    pb->transfer = s->transfer;
    pb->request = s->request;
    pb->n_tokens = s->tokens_n;
    pb->tokens = (int32_t *)s->tokens;
    pb->first_block = s->first_block;
    pb->lease_ms = s->lease_ms;
    pb->target = write_peer(a, &s->target);
    return pb->target;
}

void wire_read_kv_send(struct wire_check *c, const Hadal__KvSend *pb, struct msg_kv_send *out)
{
    check_transfer(c, pb->transfer, pb->n_tokens, pb->lease_ms);
    wire_check_ids(c, "tokens", pb->tokens, pb->n_tokens, LIMIT_CONTEXT);
    wire_check_range(c, "first_block", pb->first_block, 0, LIMIT_CONTEXT);
    *out = (struct msg_kv_send){.replica = pb->replica,
                                .epoch = pb->epoch,
                                .transfer = pb->transfer,
                                .request = pb->request,
                                .tokens = pb->tokens,
                                .tokens_n = (uint32_t)pb->n_tokens,
                                .first_block = pb->first_block,
                                .lease_ms = pb->lease_ms};
    read_peer(c, pb->target, true, &out->target);
}

void wire_write_kv_cancel(const struct msg_kv_cancel *k, Hadal__KvCancel *pb)
{
    hadal__kv_cancel__init(pb);
    pb->replica = k->replica;
    pb->epoch = k->epoch;
    pb->transfer = k->transfer;
}

void wire_read_kv_cancel(struct wire_check *c, const Hadal__KvCancel *pb, struct msg_kv_cancel *out)
{
    wire_check_range(c, "transfer", pb->transfer, 1, UINT64_MAX);
    *out = (struct msg_kv_cancel){pb->replica, pb->epoch, pb->transfer};
}
