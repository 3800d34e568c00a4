// A source only waits to be asked; all that moves is done by the target's end, when it is polled.
#include "node/mock_kv.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/mem.h"

enum end_state { END_OPENING, END_MOVING, END_STOPPING };

struct mock_kv_end {
    struct mock_kv_end *prev, *next;
    struct mock_kv *owner;
    enum kv_role role;
    enum end_state state;
    uint64_t transfer;
    uint64_t peer_replica, peer_epoch;
    uint32_t first, total;
    uint32_t *blocks; // [total], by place; owned
    uint32_t filled;  // places known. Target: all
    bool last;        // source: `filled` is the end of the chain
    uint32_t copied;  // target: places before it are there
    bool done;        // source: the target has all
    bool failed;      // was reported
    uint64_t due_us;  // OPENING: ready, or connected; MOVING: next block; STOPPING: stopped
    uint64_t stop_us;
    uint64_t lost_us;            // UINT64_MAX = it is not
    struct mock_kv_end *partner; // NULL = not connected, or lost
};

static uint64_t now_us(const struct mock_kv *kv)
{
    return mock_fabric_now(kv->rank->fabric);
}

static struct mock_kv_end *find(struct mock_kv *kv, uint64_t transfer)
{
    struct mock_kv_end *e;
    DL_FOREACH(kv->ends, e)
    if (e->transfer == transfer)
        return e;
    return NULL;
}

void mock_kv_join(struct mock_kv *kv, struct mock_cache *cache, uint64_t replica, uint64_t epoch)
{
    assert(kv->cache == NULL && kv->ends == NULL);
    kv->cache = cache;
    kv->replica = replica;
    kv->epoch = epoch;
    DL_APPEND(*mock_fabric_kvs(kv->rank->fabric), kv);
}

static void lose(struct mock_kv_end *e)
{
    struct mock_kv_end *p = e->partner;
    if (p == NULL)
        return;
    e->partner = p->partner = NULL;
    e->lost_us = p->lost_us = now_us(e->owner);
    p->owner->wake(p->owner->wake_ctx);
}

static void end_destroy(struct mock_kv_end *e)
{
    if (e->partner != NULL && e->partner->done)
        e->partner->partner = NULL; // it has all it needs of us
    else
        lose(e);
    DL_DELETE(e->owner->ends, e);
    free(e->blocks);
    free(e);
}

void mock_kv_leave(struct mock_kv *kv)
{
    if (kv->cache == NULL)
        return;
    while (kv->ends != NULL)
        end_destroy(kv->ends);
    DL_DELETE(*mock_fabric_kvs(kv->rank->fabric), kv);
    kv->cache = NULL;
}

// ---- orders ----

static void open_end(struct mock_kv *kv, const struct kv_order *o)
{
    assert(find(kv, o->transfer) == NULL && o->first < o->total);
    struct mock_kv_end *e = mem_zalloc(1, sizeof *e);
    e->owner = kv;
    e->role = o->kind == KV_ORDER_RECEIVE ? KV_ROLE_TARGET : KV_ROLE_SOURCE;
    e->transfer = o->transfer;
    e->peer_replica = o->peer->replica;
    e->peer_epoch = o->peer->epoch;
    e->first = e->copied = e->filled = o->first;
    e->total = o->total;
    e->blocks = mem_zalloc(o->total, sizeof *e->blocks);
    e->due_us = now_us(kv) + kv->config->kv_setup_us;
    e->lost_us = e->stop_us = UINT64_MAX;
    if (e->role == KV_ROLE_TARGET) {
        assert(o->blocks_n == o->total - o->first);
        memcpy(e->blocks + o->first, o->blocks, o->blocks_n * sizeof *o->blocks);
        e->filled = o->total;
    }
    DL_APPEND(kv->ends, e);
}

static void filled(struct mock_kv_end *e, const struct kv_order *o)
{
    assert(e->role == KV_ROLE_SOURCE && !e->last);
    assert(o->first == e->filled && o->first + o->blocks_n <= e->total);
    if (o->blocks_n > 0)
        memcpy(e->blocks + o->first, o->blocks, o->blocks_n * sizeof *o->blocks);
    e->filled += o->blocks_n;
    e->last = o->last;
    if (e->partner != NULL) {
        struct mock_kv *target = e->partner->owner;
        if (e->partner->due_us < now_us(target))
            e->partner->due_us = now_us(target) + target->config->kv_block_us;
        target->wake(target->wake_ctx);
    }
}

void mock_kv_order(struct mock_kv *kv, const struct kv_order *o)
{
    struct mock_kv_end *e = find(kv, o->transfer);
    assert(kv->cache != NULL && o->epoch == kv->epoch);
    switch (o->kind) {
    case KV_ORDER_RECEIVE:
    case KV_ORDER_SEND:
        open_end(kv, o);
        return;
    case KV_ORDER_FILLED:
        if (e != NULL && e->state != END_STOPPING)
            filled(e, o);
        return;
    case KV_ORDER_STOP:
        if (e == NULL || e->state == END_STOPPING)
            return; // ENDED is on its way
        e->state = END_STOPPING;
        e->stop_us = now_us(kv) + kv->config->kv_stop_us;
        return;
    }
}

// ---- what happens when ----

static bool stuck(const struct mock_kv_end *e)
{
    return mock_group_hangs(e->owner->rank->group) ||
           (e->partner != NULL && mock_group_hangs(e->partner->owner->rank->group));
}

static bool has_next(const struct mock_kv_end *e)
{
    return e->role == KV_ROLE_TARGET && e->state != END_OPENING && e->partner != NULL &&
           e->partner->filled > e->copied && !stuck(e);
}

static bool has_all(const struct mock_kv_end *e)
{
    if (e->role == KV_ROLE_SOURCE)
        return e->done;
    return e->state != END_OPENING && e->partner != NULL && e->partner->last &&
           e->partner->filled == e->copied && !stuck(e);
}

static uint64_t lost_due(const struct mock_kv_end *e)
{
    if (e->lost_us == UINT64_MAX || e->failed || e->state == END_STOPPING)
        return UINT64_MAX;
    return e->lost_us + e->owner->config->detect_us;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t end_due(const struct mock_kv_end *e)
{
    if (has_all(e))
        return 0;
    uint64_t due = min_u64(lost_due(e), e->stop_us);
    if (e->state == END_OPENING || has_next(e))
        due = min_u64(due, e->due_us);
    return due;
}

uint64_t mock_kv_due(const struct mock_kv *kv)
{
    uint64_t due = UINT64_MAX;
    struct mock_kv_end *e;
    if (kv->cache == NULL || mock_group_hangs(kv->rank->group))
        return UINT64_MAX;
    DL_FOREACH(kv->ends, e)
    due = min_u64(due, end_due(e));
    return due;
}

static void copy_due(struct mock_kv_end *e)
{
    while (has_next(e) && e->due_us <= now_us(e->owner)) {
        uint32_t i = e->copied++;
        mock_cache_copy(e->owner->cache, e->blocks[i], e->partner->owner->cache,
                        e->partner->blocks[i]);
        e->due_us += e->owner->config->kv_block_us;
    }
}

static struct mock_kv_end *target_of(const struct mock_kv_end *e)
{
    struct mock_kv *kv;
    DL_FOREACH(*mock_fabric_kvs(e->owner->rank->fabric), kv)
    {
        struct mock_kv_end *t = find(kv, e->transfer);
        if (kv->replica == e->peer_replica && kv->epoch == e->peer_epoch && t != NULL &&
            t->role == KV_ROLE_TARGET && t->state == END_MOVING && t->partner == NULL &&
            t->lost_us == UINT64_MAX && t->peer_replica == e->owner->replica &&
            t->peer_epoch == e->owner->epoch)
            return t;
    }
    return NULL;
}

static void connect(struct mock_kv_end *e)
{
    struct mock_kv_end *t = target_of(e);
    e->state = END_MOVING;
    e->lost_us = t == NULL ? now_us(e->owner) : UINT64_MAX;
    if (t == NULL)
        return;
    e->partner = t;
    t->partner = e;
    t->due_us = now_us(e->owner) + t->owner->config->kv_block_us;
    if (mock_fabric_groups_cut(e->owner->rank, t->owner->rank))
        lose(e);
    else
        t->owner->wake(t->owner->wake_ctx);
}

static void report_ended(struct mock_kv_end *e, struct kv_report *out)
{
    uint32_t blocks = e->role == KV_ROLE_SOURCE ? (e->done ? e->filled : e->first) : e->copied;
    *out = (struct kv_report){.kind = KV_REPORT_ENDED,
                              .transfer = e->transfer,
                              .blocks = blocks,
                              .whole = has_all(e),
                              .bytes = (uint64_t)(blocks - e->first) * 8 *
                                       e->owner->config->block_tokens};
    if (out->whole && e->role == KV_ROLE_TARGET) {
        e->partner->done = true;
        e->partner->owner->wake(e->partner->owner->wake_ctx);
    }
    end_destroy(e);
}

static bool end_poll(struct mock_kv_end *e, struct kv_report *out)
{
    uint64_t now = now_us(e->owner);
    if (e->state == END_OPENING && e->due_us <= now && e->stop_us > now) {
        if (e->role == KV_ROLE_SOURCE) {
            connect(e);
        } else {
            e->state = END_MOVING;
            *out = (struct kv_report){.kind = KV_REPORT_READY, .transfer = e->transfer};
            return true;
        }
    }
    copy_due(e);
    if (has_all(e) || e->stop_us <= now) {
        report_ended(e, out);
        return true;
    }
    if (lost_due(e) > now)
        return false;
    e->failed = true;
    *out = (struct kv_report){
        .kind = KV_REPORT_FAILED, .transfer = e->transfer, .status = STATUS_LINK_DOWN};
    snprintf(out->text, sizeof out->text, "the other side is gone");
    return true;
}

bool mock_kv_poll(struct mock_kv *kv, struct kv_report *out)
{
    struct mock_kv_end *e, *next;
    if (kv->cache == NULL || mock_group_hangs(kv->rank->group))
        return false;
    DL_FOREACH_SAFE(kv->ends, e, next)
    if (end_due(e) <= now_us(kv) && end_poll(e, out))
        return true;
    return false;
}

void mock_kv_changed(struct mock_kv *kv)
{
    struct mock_kv_end *e;
    DL_FOREACH(kv->ends, e)
    {
        if (e->partner == NULL)
            continue;
        struct mock_kv *other = e->partner->owner;
        if (mock_fabric_groups_cut(kv->rank, other->rank))
            lose(e);
        else
            other->wake(other->wake_ctx);
    }
}
