// Life of the mover, orders and reports: the engine's side of it. The threads are mover_link.c's.
#include "node/mover.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/mover_int.h"
#include "node/transports.h"

static const char *address_of(const struct mover *m, enum xport_kind kind)
{
    return m->threads[kind].x ? xport_address(m->threads[kind].x) : "";
}

struct rank_addresses mover_addresses(const struct mover *m)
{
    return (struct rank_addresses){address_of(m, XPORT_SHM), address_of(m, XPORT_TCP),
                                   address_of(m, XPORT_VERBS)};
}

static void wake_threads(struct mover *m)
{
    for (int k = 0; k < XPORT_KINDS; k++)
        if (m->threads[k].x)
            xport_wake(m->threads[k].x);
}

static void open_thread(struct mover *m, enum xport_kind kind, const char *bind)
{
    struct mover_thread *t = &m->threads[kind];
    struct errmsg e = {0};
    struct xport_config config = {.kind = kind, .bind_host = bind, .max_links = MOVER_LINKS};
    t->m = m;
    t->kind = kind;
    enum status rc = xport_open(&config, &t->x, &e);
    if (rc == STATUS_OK && pthread_create(&t->thread, NULL, mover_thread_main, t)) {
        xport_close(t->x);
        rc = errmsg_set(&e, STATUS_NO_MEMORY, "no thread");
    }
    if (rc == STATUS_OK) {
        pthread_setname_np(t->thread, "kv mover");
        return;
    }
    t->x = NULL;
    if (rc != STATUS_NO_DEVICE)
        log_warn("no KV blocks over %s: %s", xport_kind_name(kind), e.text);
}

struct mover *mover_create(const struct mover_config *config)
{
    struct mover *m = mem_zalloc(1, sizeof *m);
    pthread_mutex_init(&m->lock, NULL);
    m->wake = config->wake;
    m->arg = config->arg;
    for (int k = 0; k < XPORT_KINDS; k++)
        open_thread(m, (enum xport_kind)k, config->bind);
    return m;
}

void mover_destroy(struct mover *m)
{
    if (!m)
        return;
    mover_detach(m);
    pthread_mutex_lock(&m->lock);
    m->quit = true;
    pthread_mutex_unlock(&m->lock);
    wake_threads(m);
    for (int k = 0; k < XPORT_KINDS; k++) {
        if (!m->threads[k].x)
            continue;
        pthread_join(m->threads[k].thread, NULL);
        xport_close(m->threads[k].x);
    }
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static uint32_t slot_bytes_of(const struct kv_layout *l, const struct kv_share *s)
{
    const struct kv_piece whole = {0, 0, s->heads_n};
    size_t need =
        sizeof(struct mover_slot) + sizeof(struct mover_piece) + kv_piece_bytes(l, &whole);
    need = (need + 4095) & ~(size_t)4095;
    return need > MOVER_SLOT_BYTES ? (uint32_t)need : MOVER_SLOT_BYTES;
}

enum status mover_attach(struct mover *m, const struct mover_rank *rank, struct errmsg *e)
{
    struct kv_layout layout;
    struct kv_share share;
    mover_detach(m);
    int elem = kern_kv_dtype(rank->kern) == KERN_F32 ? 4 : 2;
    kv_layout_init(&layout, rank->config, (int)rank->block_tokens, elem);
    enum status rc = kv_layout_share(&layout, rank->shape, rank->rank, &share, e);
    if (rc != STATUS_OK)
        return rc;
    struct kern_copier *copier;
    rc = kern_copier_create(rank->kern, &copier);
    if (rc != STATUS_OK)
        return errmsg_set(e, rc, "no way to copy KV blocks");
    pthread_mutex_lock(&m->lock);
    m->rank = *rank;
    snprintf(m->host, sizeof m->host, "%s", rank->host);
    m->rank.host = m->host;
    m->layout = layout;
    m->share = share;
    m->slot_bytes = slot_bytes_of(&layout, &share);
    m->copier = copier;
    m->attached = true;
    pthread_mutex_unlock(&m->lock);
    return STATUS_OK;
}

static void move_free(struct mover *m, struct mover_move *v)
{
    DL_DELETE(m->moves, v);
    for (uint32_t i = 0; i < v->peers_n; i++) {
        free(v->peers[i].pieces);
        free(v->peers[i].address);
    }
    free(v->peers);
    free(v->blocks);
    free(v->have);
    free(v->have_n);
    free(v);
}

void mover_detach(struct mover *m)
{
    pthread_mutex_lock(&m->lock);
    while (m->moves)
        move_free(m, m->moves);
    m->reports_n = 0;
    kern_copier_destroy(m->copier);
    m->copier = NULL;
    m->attached = false;
    pthread_mutex_unlock(&m->lock);
    wake_threads(m);
}

struct mover_move *mover_find(struct mover *m, uint64_t transfer)
{
    struct mover_move *v;
    DL_FOREACH(m->moves, v)
    if (v->transfer == transfer)
        return v;
    return NULL;
}

// ---- reports ----

void mover_report(struct mover *m, const struct kv_report *r)
{
    assert(m->reports_n < MOVER_REPORTS); // three of a transfer at most, and they are taken at once
    m->reports[(m->reports_first + m->reports_n++) % MOVER_REPORTS] = *r;
    m->wake(m->arg);
}

bool mover_poll(struct mover *m, struct kv_report *out)
{
    pthread_mutex_lock(&m->lock);
    bool any = m->reports_n > 0;
    if (any) {
        *out = m->reports[m->reports_first];
        m->reports_first = (m->reports_first + 1) % MOVER_REPORTS;
        m->reports_n--;
    }
    pthread_mutex_unlock(&m->lock);
    return any;
}

void mover_fail(struct mover *m, struct mover_move *v, enum status status, const char *text)
{
    if (v->failed)
        return;
    v->failed = true;
    struct kv_report r = {.kind = KV_REPORT_FAILED, .transfer = v->transfer, .status = status};
    snprintf(r.text, sizeof r.text, "rank %u: %s", m->rank.rank, text);
    mover_report(m, &r);
}

static uint32_t complete(const struct mover_move *v)
{
    uint32_t n = v->first;
    while (!v->source && n < v->total && v->have_n[n] == v->units)
        n++;
    return n;
}

static void end(struct mover *m, struct mover_move *v, uint32_t blocks, bool whole)
{
    mover_report(m, &(struct kv_report){.kind = KV_REPORT_ENDED,
                                        .transfer = v->transfer,
                                        .blocks = blocks,
                                        .whole = whole,
                                        .bytes = v->bytes});
    move_free(m, v);
}

void mover_check_end(struct mover *m, struct mover_move *v)
{
    if (v->failed || (v->source && !v->last))
        return;
    for (uint32_t i = 0; i < v->peers_n; i++)
        if (!v->peers[i].over)
            return;
    if (v->source) {
        end(m, v, v->filled, true);
        return;
    }
    uint32_t n = complete(v);
    for (uint32_t i = 0; i < v->peers_n; i++)
        if (v->peers[i].end != n) {
            mover_fail(m, v, STATUS_LINK_PROTOCOL, "the source's ranks do not agree on the end");
            return;
        }
    end(m, v, n, true);
}

struct mover_stats mover_stats_get(struct mover *m)
{
    pthread_mutex_lock(&m->lock);
    struct mover_stats s = m->stats;
    pthread_mutex_unlock(&m->lock);
    return s;
}

// ---- orders; under the lock ----

static void add_peer(struct mover_move *v, uint32_t rank, struct kv_piece *pieces, uint32_t n)
{
    v->peers[v->peers_n++] =
        (struct mover_peer){.rank = rank, .pieces = pieces, .pieces_n = n, .end = UINT32_MAX};
}

// With whom this rank has to do.
static enum status find_peers(struct mover *m, struct mover_move *v, struct errmsg *e)
{
    uint32_t ranks = v->peer_shape.stages * v->peer_shape.tensor;
    v->peers = mem_zalloc(ranks, sizeof *v->peers);
    for (uint32_t r = 0; r < ranks; r++) {
        struct kv_piece *pieces;
        uint32_t n;
        enum status rc = v->source ? kv_layout_pieces(&m->layout, m->rank.shape, m->rank.rank,
                                                      v->peer_shape, r, &pieces, &n, e)
                                   : kv_layout_pieces(&m->layout, v->peer_shape, r, m->rank.shape,
                                                      m->rank.rank, &pieces, &n, e);
        if (rc != STATUS_OK)
            return rc;
        if (n > 0)
            add_peer(v, r, pieces, n);
    }
    return STATUS_OK;
}

static enum status choose(struct mover *m, struct mover_move *v, const struct kv_peer *p,
                          struct errmsg *e)
{
    struct link_member *all = mem_zalloc(p->members_n + 1, sizeof *all);
    memcpy(all, p->members, p->members_n * sizeof *all);
    all[p->members_n] = (struct link_member){"here", m->host, mover_addresses(m)};
    struct transports_want want = {
        .choice = m->rank.choice, .members = all, .members_n = p->members_n + 1};
    struct transport t = {0};
    int fallback;
    enum status rc = transports_choose(&want, &t, &fallback, e);
    free(all);
    v->kind = t.kind;
    for (uint32_t i = 0; i < v->peers_n && rc == STATUS_OK; i++) {
        char buf[LIMIT_ADDR];
        v->peers[i].address =
            mem_strdup(transports_address(&p->members[v->peers[i].rank].addresses, t, buf));
    }
    return rc;
}

static void begin(struct mover *m, const struct kv_order *o)
{
    struct errmsg e = {0};
    struct mover_move *v = mem_zalloc(1, sizeof *v);
    v->transfer = o->transfer;
    v->source = o->kind == KV_ORDER_SEND;
    v->peer_epoch = o->peer->epoch;
    v->peer_shape = (struct kv_shape){o->peer->stages, o->peer->tensor};
    v->first = v->filled = o->first;
    v->total = o->total;
    v->blocks = mem_zalloc(o->total, sizeof *v->blocks);
    v->units = (uint32_t)(m->share.layers_n * m->share.heads_n);
    DL_APPEND(m->moves, v);
    enum status rc = find_peers(m, v, &e);
    if (rc == STATUS_OK && v->source)
        rc = choose(m, v, o->peer, &e);
    if (rc == STATUS_OK && !v->source) {
        for (uint32_t i = 0; i < o->blocks_n; i++)
            v->blocks[o->first + i] = o->blocks[i];
        v->filled = o->total;
        v->have = mem_zalloc(((size_t)o->total * v->units + 7) / 8, 1);
        v->have_n = mem_zalloc(o->total, sizeof *v->have_n);
        mover_report(m, &(struct kv_report){.kind = KV_REPORT_READY, .transfer = v->transfer});
    }
    if (rc != STATUS_OK) {
        if (!v->source)
            v->have_n = mem_zalloc(o->total, sizeof *v->have_n);
        mover_fail(m, v, rc, e.text);
    }
}

// From another rank: believed only as far as the pool's bounds.
static bool order_fits(const struct mover *m, const struct kv_order *o)
{
    for (uint32_t i = 0; i < o->blocks_n; i++)
        if (o->blocks[i] >= m->rank.kv_blocks)
            return false;
    switch (o->kind) {
    case KV_ORDER_RECEIVE:
        return o->first < o->total && o->blocks_n == o->total - o->first &&
               o->total <= m->rank.kv_blocks;
    case KV_ORDER_SEND:
        return o->first < o->total && o->total <= m->rank.kv_blocks &&
               o->peer->members_n == o->peer->stages * o->peer->tensor;
    default:
        return true;
    }
}

static void fill(struct mover *m, struct mover_move *v, const struct kv_order *o)
{
    if (!v->source || v->last || o->first != v->filled || o->blocks_n > v->total - v->filled) {
        mover_fail(m, v, STATUS_LINK_PROTOCOL, "blocks that do not follow");
        return;
    }
    if (o->blocks_n)
        memcpy(v->blocks + v->filled, o->blocks, o->blocks_n * sizeof *v->blocks);
    enum status rc = kern_copier_fence(m->copier);
    if (rc != STATUS_OK)
        mover_fail(m, v, rc, "a fence");
    v->filled += o->blocks_n;
    v->last = o->last;
    mover_check_end(m, v);
}

static void obey(struct mover *m, const struct kv_order *o)
{
    struct mover_move *v = mover_find(m, o->transfer);
    if (!m->attached || o->epoch != m->rank.epoch || !order_fits(m, o))
        return;
    switch (o->kind) {
    case KV_ORDER_RECEIVE:
    case KV_ORDER_SEND:
        if (!v)
            begin(m, o);
        return;
    case KV_ORDER_FILLED:
        if (v)
            fill(m, v, o);
        return;
    case KV_ORDER_STOP:
        if (v)
            end(m, v, complete(v), false);
        return;
    }
}

void mover_order(struct mover *m, const struct kv_order *o)
{
    pthread_mutex_lock(&m->lock);
    obey(m, o);
    pthread_mutex_unlock(&m->lock);
    wake_threads(m);
}
