// Between staging slots and the pool: piece by piece, each under the lock and only while its
// transfer is known.
#include <string.h>

#include "node/mover_int.h"

// The strips of a piece in block `block` of the pool: K and V, or the whole row.
static struct kern_strip strip(const struct mover *m, const struct mover_piece *p, uint32_t block,
                               int i)
{
    const struct kv_layout *l = &m->layout;
    size_t heads = (size_t)m->share.heads_n, dim = (size_t)l->dim;
    size_t width = heads * dim * (size_t)l->strips;
    size_t at = (size_t)block * (size_t)l->block_tokens * width + (size_t)i * heads * dim +
                (p->head_first - (size_t)m->share.head_first) * dim;
    return (struct kern_strip){.buf = m->rank.kv[(int)p->layer - m->share.layer_first],
                               .at = at,
                               .stride = width,
                               .rows = (size_t)l->block_tokens,
                               .n = p->heads_n * dim};
}

static size_t strip_bytes(const struct mover *m, const struct kern_strip *s)
{
    return s->rows * s->n * (size_t)m->layout.elem_bytes;
}

// Under the lock.
static enum status read_piece(struct mover *m, const struct mover_piece *p, uint32_t block,
                              char *to)
{
    enum status rc = STATUS_OK;
    for (int i = 0; i < m->layout.strips && rc == STATUS_OK; i++) {
        struct kern_strip s = strip(m, p, block, i);
        rc = kern_copier_read(m->copier, to, &s);
        to += strip_bytes(m, &s);
    }
    return rc == STATUS_OK ? kern_copier_wait(m->copier) : rc;
}

static enum status write_piece(struct mover *m, const struct mover_piece *p, uint32_t block,
                               const char *from)
{
    enum status rc = STATUS_OK;
    for (int i = 0; i < m->layout.strips && rc == STATUS_OK; i++) {
        struct kern_strip s = strip(m, p, block, i);
        rc = kern_copier_write(m->copier, &s, from);
        from += strip_bytes(m, &s);
    }
    return rc == STATUS_OK ? kern_copier_wait(m->copier) : rc;
}

// One piece into the slot at `used`; false: none there now, or no room.
static bool gather_one(struct mover *m, struct mover_move *v, uint32_t peer, char *slot,
                       size_t *used, uint32_t *place, uint32_t *piece)
{
    const struct mover_peer *to = &v->peers[peer];
    if (*place >= v->filled)
        return false;
    const struct kv_piece *k = &to->pieces[*piece];
    struct mover_piece head = {*place, (uint32_t)k->layer, (uint32_t)k->head_first,
                               (uint32_t)k->heads_n};
    size_t bytes = kv_piece_bytes(&m->layout, k);
    if (*used + sizeof head + bytes > m->slot_bytes)
        return false;
    memcpy(slot + *used, &head, sizeof head);
    enum status rc = read_piece(m, &head, v->blocks[*place], slot + *used + sizeof head);
    if (rc != STATUS_OK) {
        mover_fail(m, v, rc, "reading the KV pool");
        return false;
    }
    *used += sizeof head + bytes;
    v->bytes += bytes;
    m->stats.sent_bytes += bytes;
    if (++*piece == to->pieces_n) {
        *piece = 0;
        ++*place;
    }
    return true;
}

size_t mover_gather(struct mover *m, uint64_t transfer, uint32_t peer, void *slot, uint32_t *place,
                    uint32_t *piece)
{
    struct mover_slot head = {0};
    size_t used = sizeof head;
    for (;;) {
        // The lock is let go between pieces: the engine's thread may want it.
        pthread_mutex_lock(&m->lock);
        struct mover_move *v = mover_find(m, transfer);
        bool more = v && gather_one(m, v, peer, slot, &used, place, piece);
        pthread_mutex_unlock(&m->lock);
        if (!more)
            break;
        head.pieces++;
    }
    memcpy(slot, &head, sizeof head);
    return head.pieces ? used : 0;
}

static bool peer_sends(const struct mover_peer *from, const struct mover_piece *p)
{
    for (uint32_t i = 0; i < from->pieces_n; i++)
        if ((uint32_t)from->pieces[i].layer == p->layer &&
            (uint32_t)from->pieces[i].head_first == p->head_first &&
            (uint32_t)from->pieces[i].heads_n == p->heads_n)
            return true;
    return false;
}

// Marks the piece as had; false when any of it was.
static bool mark(const struct mover *m, struct mover_move *v, const struct mover_piece *p)
{
    uint32_t heads = (uint32_t)m->share.heads_n;
    uint32_t unit = (p->layer - (uint32_t)m->share.layer_first) * heads + p->head_first -
                    (uint32_t)m->share.head_first;
    size_t bit = (size_t)p->place * v->units + unit;
    for (uint32_t i = 0; i < p->heads_n; i++)
        if (v->have[(bit + i) / 8] >> (bit + i) % 8 & 1)
            return false;
    for (uint32_t i = 0; i < p->heads_n; i++)
        v->have[(bit + i) / 8] |= (uint8_t)(1u << (bit + i) % 8);
    v->have_n[p->place] += p->heads_n;
    return true;
}

// Under the lock. `left`: bytes of the slot from `at` on.
static enum status scatter_one(struct mover *m, struct mover_move *v, uint32_t peer, const char *at,
                               size_t left, size_t *taken_out)
{
    struct mover_piece p;
    struct mover_peer *from = &v->peers[peer];
    if (left < sizeof p)
        return STATUS_LINK_PROTOCOL;
    memcpy(&p, at, sizeof p);
    if (!peer_sends(from, &p) || p.place < v->first || p.place >= v->total)
        return STATUS_LINK_PROTOCOL;
    const struct kv_piece k = {(int)p.layer, (int)p.head_first, (int)p.heads_n};
    size_t bytes = kv_piece_bytes(&m->layout, &k);
    if (left - sizeof p < bytes || !mark(m, v, &p))
        return STATUS_LINK_PROTOCOL;
    enum status rc = write_piece(m, &p, v->blocks[p.place], at + sizeof p);
    if (rc != STATUS_OK) {
        mover_fail(m, v, rc, "writing the KV pool");
        return STATUS_CANCELLED;
    }
    from->got++;
    v->bytes += bytes;
    m->stats.taken_bytes += bytes;
    *taken_out = sizeof p + bytes;
    return STATUS_OK;
}

enum status mover_scatter(struct mover *m, uint64_t transfer, uint32_t peer, const void *slot,
                          size_t bytes)
{
    struct mover_slot head;
    if (bytes < sizeof head)
        return STATUS_LINK_PROTOCOL;
    memcpy(&head, slot, sizeof head);
    size_t at = sizeof head;
    for (uint32_t i = 0; i < head.pieces; i++) {
        size_t taken = 0;
        pthread_mutex_lock(&m->lock);
        struct mover_move *v = mover_find(m, transfer);
        enum status rc = STATUS_CANCELLED;
        if (v && !v->failed)
            rc = scatter_one(m, v, peer, (const char *)slot + at, bytes - at, &taken);
        pthread_mutex_unlock(&m->lock);
        if (rc != STATUS_OK)
            return rc;
        at += taken;
    }
    return at == bytes ? STATUS_OK : STATUS_LINK_PROTOCOL;
}
