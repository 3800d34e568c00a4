// Moves KV blocks of this rank to ranks of other replicas, and takes in theirs: threads and xport
// endpoints of its own, beside the engine, so that a step is never held up. What moves and where it
// lands is told by the engine's thread; the bytes are cut and put together as kv_layout.h says.
//
//   source rank                                target rank
//     connect, hello {transfer, epochs, rank, shape of a slot}  --->  is it awaited? opens a
//     staging
//                                                                     region for this link
//     region of staging slots            <--- GRANT
//     gathers pieces into a slot, writes it with DATA  --->  checks each piece, copies it into the
//                                                            pool
//                                        <--- ACK: the slot is free
//     END: the chain ends at block n     --->
//                                        <--- TAKEN: all of it is in the pool
//
// Why nothing late lands in a foreign block: a peer can only write into the staging region of its
// own link. Bytes go from there into the pool under the mover's lock, piece by piece, and only
// while the transfer is known here, awaits this piece, and has not had it; mover_stop and
// mover_detach forget transfers under the same lock. So when they return, or when ENDED was
// reported, no block of the transfer is touched any more. The same holds for reading at a source.
// Blocks that are read are full and never written again while they are held.
//
// One thread for each transport that this host offers. All calls are for the engine's thread.
#pragma once

#include "kernels/kern.h"
#include "node/kv_layout.h"
#include "node/kv_move.h"
#include "rdma/xport.h"

struct mover;

struct mover_config {
    const char *bind;        // as in xport_config; borrowed until return
    void (*wake)(void *arg); // from any of its threads: mover_poll has something
    void *arg;
};
struct mover *mover_create(const struct mover_config *config);
void mover_destroy(struct mover *m); // NULL is fine; detached
// Where it takes blocks; "" = not over this transport. Valid until destroy.
struct rank_addresses mover_addresses(const struct mover *m);

// The pool and the place of this rank in its replica, from now on.
struct mover_rank {
    uint64_t replica, epoch, fingerprint;
    uint32_t rank;
    struct kv_shape shape;
    enum transport_choice choice; // of the replica, for what it sends
    const char *host;             // of this node, as peers know it; borrowed until detach
    struct kern *kern;
    struct kern_buf *const *kv; // [layers_n] pools of kern_kv_dtype; borrowed until detach
    const struct model_config *config;
    uint32_t block_tokens, kv_blocks;
};
STATUS_MUST_USE enum status mover_attach(struct mover *m, const struct mover_rank *rank,
                                         struct errmsg *e);
// Forgets all transfers. The pool is not touched any more. Also when nothing is attached.
void mover_detach(struct mover *m);

// What the lead ordered, checked against the pool. The outcome is a report, also of a failure; an
// order of another epoch is dropped.
void mover_order(struct mover *m, const struct kv_order *o);
// The next report of this rank, in the meaning of kv_move.h for it alone. False: none.
bool mover_poll(struct mover *m, struct kv_report *out);

struct mover_stats {
    uint64_t sent_bytes, taken_bytes, refused; // refused: links and pieces that were not awaited
};
struct mover_stats mover_stats_get(struct mover *m);
