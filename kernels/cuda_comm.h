// Collectives among GPUs, as the CUDA module offers them: a table of functions that is found beside
// kern_open's entry. node/comm_cuda.c is the body of node/comm.h over it; `hadal bench comm` times
// it.
//
// One cuda_comm is one rank's end, on one kern's stream. Ranks may be threads or processes. To form
// a group each rank creates its end and goes through CUDA_COMM_ROUNDS rounds; between two rounds
// everybody gets everybody's notes, by whatever link there is. Operations enqueue and return;
// nothing in them waits on the host or allocates, and they may be captured into a CUDA graph (which
// then belongs to this group: its kernels hold the peers' addresses).
//
// Peer memory (kernels/cuda/peer.h) is used when every rank of the group can write into every
// other's, NCCL (loaded at run time; absent = not used) for messages for which it was measured
// faster, or for all when there is no peer access.
#pragma once

#include "kernels/kern.h"

struct cuda_comm;

enum { CUDA_COMM_ABI = 1, CUDA_COMM_NOTE_BYTES = 512, CUDA_COMM_ROUNDS = 3 };
enum cuda_comm_via { CUDA_COMM_ANY, CUDA_COMM_PEER = 1, CUDA_COMM_NCCL = 2 }; // a set of bits

struct cuda_comm_config {
    int size, rank;
    size_t window_bytes; // of each rank's slice in one go over peer memory; 0 = 4 MiB
    uint32_t timeout_ms; // a rank that waits so long gives up by itself; 0 = 10 s
    unsigned want;       // set of enum cuda_comm_via; 0 = peer memory, NCCL only without it
};

// What a rank tells the others in a round. Plain bytes from outside: checked when they are used.
struct cuda_comm_note {
    unsigned char v[CUDA_COMM_NOTE_BYTES];
};

// buf: [rows][size][part] elements of elem_bytes, this rank's slices are filled, the others' will
// be. part * elem_bytes must be a multiple of 4.
struct cuda_comm_gather {
    struct kern_buf *buf;
    size_t at; // elements; row 0 starts here
    size_t rows, part, elem_bytes;
    enum cuda_comm_via via; // ANY = whichever was measured faster at this size
};

// buf[at .. at + n) f32: the sum over ranks. Only to be measured: see peer.h.
struct cuda_comm_reduce {
    struct kern_buf *buf;
    size_t at, n;
    enum cuda_comm_via via;
};

// One of the three, `repeats` times in a row in one CUDA graph.
struct cuda_comm_timing {
    const struct cuda_comm_gather *gather;
    const struct cuda_comm_reduce *reduce;
    size_t copy_bytes; // a copy from our window into the next rank's; at most window_bytes
    int repeats;
};

enum cuda_comm_failure { CUDA_COMM_FINE, CUDA_COMM_ABORTED, CUDA_COMM_TIMEOUT, CUDA_COMM_BROKEN };
struct cuda_comm_state {
    enum cuda_comm_failure failure;
    int waited_for;   // rank, -1 = unknown
    uint64_t number;  // of the collective that failed
    uint64_t started; // collectives over peer memory that the device has begun in this group
};

struct cuda_pipe_ops;
struct cuda_comm_ops {
    int abi;
    int (*devices)(void); // GPUs that this process sees; no context is made
    enum status (*create)(struct kern *k, const struct cuda_comm_config *config,
                          struct cuda_comm **out, struct errmsg *e);
    // Rounds 0 .. CUDA_COMM_ROUNDS, in order. all: [size] notes of the round before (round 0:
    // NULL); own: this rank's note for the next (last round: not written). The last sets up NCCL
    // when the ranks need it: waits for the peers, ABORTED when `abort` comes. UNSUPPORTED: the
    // ranks have neither peer access nor NCCL. LINK_PROTOCOL: a note is not one of ours.
    enum status (*round)(struct cuda_comm *c, int round, const struct cuda_comm_note *all,
                         struct cuda_comm_note *own, struct errmsg *e);
    unsigned (*via)(const struct cuda_comm *c); // what the group has; 0 before the last round
    enum status (*all_gather)(struct cuda_comm *c, const struct cuda_comm_gather *g);
    enum status (*all_reduce)(struct cuda_comm *c, const struct cuda_comm_reduce *r);
    // Owner thread: nothing is under way on the stream.
    bool (*idle)(struct cuda_comm *c);
    // From any thread: what is enqueued on the stream passes within 100 ms, whatever peers do.
    void (*abort)(struct cuda_comm *c);
    // From any thread, never waits: what the device last wrote.
    struct cuda_comm_state (*state)(const struct cuda_comm *c);
    // Time of one, on the device; all ranks call it together.
    enum status (*measure)(struct cuda_comm *c, const struct cuda_comm_timing *t, double *us_out,
                           struct errmsg *e);
    void (*destroy)(struct cuda_comm *c); // waits for the stream; NULL is fine
    const struct cuda_pipe_ops *pipe;
};

// A one-way pipe between two GPUs of one host: the receiver owns some slots of device memory, the
// sender copies rows into one of them. Which slot is free, and which is filled, the two tell each
// other by other means: a lane with a message per slot.
struct cuda_pipe;

// `rows` runs of row_bytes in a buffer, `stride` bytes apart, from byte `at`; dense in the slot.
struct cuda_pipe_rows {
    struct kern_buf *buf;
    size_t at, rows, row_bytes, stride;
};

struct cuda_pipe_ops {
    // note: for the sender.
    enum status (*create_rx)(struct kern *k, size_t slots, size_t slot_bytes,
                             struct cuda_pipe **out, struct cuda_comm_note *note, struct errmsg *e);
    // UNSUPPORTED: the sender's GPU cannot write into the receiver's. LINK_PROTOCOL: a bad note.
    enum status (*create_tx)(struct kern *k, const struct cuda_comm_note *note,
                             struct cuda_pipe **out, struct errmsg *e);
    // Both enqueue on the kern's stream. After a put: sync before the receiver is told. TOO_LARGE:
    // no such slot, or more than it holds.
    enum status (*put)(struct cuda_pipe *p, size_t slot, const struct cuda_pipe_rows *from);
    enum status (*get)(struct cuda_pipe *p, size_t slot, const struct cuda_pipe_rows *to);
    void (*destroy)(struct cuda_pipe *p); // NULL is fine
};

#define KERN_CUDA_COMM "hadal_cuda_comm"
typedef const struct cuda_comm_ops *kern_cuda_comm_fn(void);

// NULL, with the reason: no module, or one of another build.
const struct cuda_comm_ops *kern_cuda_comm(struct errmsg *err);
