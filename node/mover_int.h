// Shared by the files of the mover: mover.c (life, orders, reports), mover_link.c (a thread of one
// transport: its links and events), mover_copy.c (between staging and the pool).
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "node/mover.h"

enum {
    MOVER_MAGIC = 0x4b564d31, // "KVM1": changes with anything below
    MOVER_SLOTS = 4,          // of a link's staging, both sides
    MOVER_SLOT_BYTES = 256 << 10,
    MOVER_SLOT_MAX = 64 << 20,
    MOVER_LINKS = 96, // of a thread: a region each
    MOVER_REPORTS = 256,
};

// First words on a link, as the hello.
struct mover_hello {
    uint32_t magic;
    uint32_t source_rank, target_rank;
    uint32_t region;              // at the source, for notices
    uint32_t slot_bytes;          // of MOVER_SLOTS each
    uint32_t elem_bytes, backend; // a pool's element; bits of backends differ
    uint32_t reserved;
    uint64_t transfer, source_epoch, target_epoch, fingerprint;
};
_Static_assert(sizeof(struct mover_hello) == 64, "a hello of xport");

// A notice: kind in the top 8 bits, value below.
enum mover_notice {
    MOVER_DATA = 1, // source -> target: slot
    MOVER_END,      // source -> target: blocks of the chain in all
    MOVER_GRANT,    // target -> source: region of the staging
    MOVER_ACK,      // target -> source
    MOVER_TAKEN,    // target -> source
};

// A slot: this, then `pieces` times (struct mover_piece, bytes).
struct mover_slot {
    uint32_t pieces, reserved;
};
struct mover_piece {
    uint32_t place; // in the chain
    uint32_t layer;
    uint32_t head_first, heads_n;
};

// What one peer rank and we have to do with each other in a transfer.
struct mover_peer {
    uint32_t rank;
    struct kv_piece *pieces; // of each block; owned
    uint32_t pieces_n;
    char *address; // source: owned
    bool linked;   // source: the thread has begun; target: it has come
    bool over;     // source: TAKEN; target: END and all its pieces
    uint32_t end;  // target: of END; UINT32_MAX = not said
    uint64_t got;  // target: pieces put in the pool
};

struct mover_move {
    struct mover_move *prev, *next;
    uint64_t transfer;
    bool source;
    enum xport_kind kind; // source: which thread sends
    uint64_t peer_epoch;
    struct kv_shape peer_shape;
    uint32_t first, total;
    uint32_t *blocks;         // [total]; owned
    uint32_t filled;          // places known
    bool last;                // source: `filled` is the end
    bool failed;              // reported
    struct mover_peer *peers; // owned
    uint32_t peers_n;
    uint8_t *have;    // target: bits [total][units]; owned
    uint32_t *have_n; // target: [total], of them
    uint32_t units;   // (layer, head) pairs of a block here
    uint64_t bytes;
};

struct mover_link;

struct mover_thread {
    struct mover *m;
    enum xport_kind kind;
    struct xport *x; // NULL = not offered
    pthread_t thread;
    struct mover_link *links;
    bool regions[MOVER_LINKS];
};

struct mover {
    pthread_mutex_t lock; // of all below but for what a thread owns
    bool quit;
    bool attached;
    struct mover_rank rank; // config and kv are borrowed
    struct kv_layout layout;
    struct kv_share share;
    uint32_t slot_bytes;
    char host[LIMIT_ADDR];
    struct kern_copier *copier;
    struct mover_move *moves;
    struct kv_report reports[MOVER_REPORTS]; // ring
    uint32_t reports_first, reports_n;
    struct mover_stats stats;

    void (*wake)(void *arg);
    void *arg;
    struct mover_thread threads[XPORT_KINDS];
};

// ---- mover.c; under the lock ----
struct mover_move *mover_find(struct mover *m, uint64_t transfer);
void mover_report(struct mover *m, const struct kv_report *r);
void mover_fail(struct mover *m, struct mover_move *v, enum status status, const char *text);
// Ends it when all peers are over.
void mover_check_end(struct mover *m, struct mover_move *v);

// ---- mover_link.c ----
void *mover_thread_main(void *thread);

// ---- mover_copy.c; takes the lock ----
// Gathers from (*place, *piece) on into a slot, as far as it has room and blocks are there, and
// moves the two on. Returns bytes of the slot, 0 = nothing to send now.
size_t mover_gather(struct mover *m, uint64_t transfer, uint32_t peer, void *slot, uint32_t *place,
                    uint32_t *piece);
// Puts a slot of the link's peer into the pool. LINK_PROTOCOL: it is not what is awaited.
// CANCELLED: the transfer is over here.
STATUS_MUST_USE enum status mover_scatter(struct mover *m, uint64_t transfer, uint32_t peer,
                                          const void *slot, size_t bytes);
