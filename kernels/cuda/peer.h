// Collectives over peer memory: the T ranks of a stage on GPUs of one host that can write into each
// other's memory (NVLink, or PCIe where the driver allows it). One-shot: every rank writes its
// slice straight into every peer's window, and waits for theirs.
//
// Two forms, by size:
//   words    each 16-byte store carries 8 bytes of data and two copies of a mark that differs from
//            collective to collective, so data and its announcement arrive together: one trip over
//            the link, no fence (the "LL" protocol of NCCL). Twice the bytes; for small messages.
//   pieces   plain 16-byte stores; each block of threads announces its pieces by a flag of its own
//            with release semantics at system scope. Full bandwidth; two trips and a fence.
//
// No acknowledgement: collective e uses half e & 1 of the window. A rank starts e only when its
// stream has finished e - 1, for which it had to receive what every peer sent in e - 1; a peer
// sends that after its own e - 2 is finished, i.e. after it has read half e & 1 for the last time.
//
// The number of the collective is in device memory and is advanced by the kernels, so a captured
// graph can be replayed. All ranks must enqueue the same collectives in the same order.
//
// Every wait is bounded: it ends when the host sets `abort`, or after `timeout_ns`. Then this and
// all later collectives pass without waiting, `failed` says why and for which rank it waited, and
// the contents of the buffers are undefined.
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PEER_RANKS = 8,              // GPUs of one NVLink domain host; more ranks go by NCCL
    PEER_WORDS_BYTES = 64 << 10, // of a rank's slice, at most, in the words form
    PEER_BLOCKS = 32,            // that send, and as many that receive, in the pieces form
    PEER_FLAG_STRIDE = 2,        // uint64 between two flags
};

// Shared with the host: pinned and mapped. The host writes `abort`, the device the rest.
struct peer_host {
    uint32_t abort;
    uint32_t failed;        // enum peer_failure | rank waited for << 8; 0 = fine
    uint64_t failed_number; // of the collective
    uint64_t started;       // collectives begun: for naming a rank that is stuck
};
enum peer_failure { PEER_ABORTED = 1, PEER_TIMEOUT = 2 };

// Own device memory, zeroed at the start.
struct peer_state {
    uint64_t number;  // collectives finished
    uint32_t arrived; // blocks of the kernel under way that are done
    uint32_t failed;  // as in peer_host
};

// A kernel argument. Windows are laid out alike on every rank; [rank] is our own, the others are
// mapped peers'.
struct peer_group {
    int size, rank;
    size_t pieces_bytes; // of one source in one half, at most, in the pieces form; multiple of 16
    uint64_t timeout_ns;
    // Ranks share a GPU, as in tests: a successor that waits on all multiprocessors for this kernel
    // would keep the peer's kernels out, so it is not started early.
    bool crowded;
    char *windows[PEER_RANKS];
    struct peer_state *state;
    struct peer_host *host; // its device address
};

// [2 halves][size][PEER_WORDS_BYTES * 2] words, then [2][size][pieces_bytes], then flags
// uint64 [size][PEER_BLOCKS][PEER_FLAG_STRIDE]. Zeroed before any peer may write.
size_t peer_window_bytes(int size, size_t pieces_bytes);

// buf: [rows][size][part bytes], this rank's slices are there; the others' are filled in. part must
// be a multiple of 4, buf 16-byte aligned; rows * part at most PEER_WORDS_BYTES (words) or
// pieces_bytes (pieces).
struct peer_gather {
    void *buf;
    size_t rows, part;
};
// threads, blocks: 0 = as measured best.
cudaError_t peer_gather_words(cudaStream_t s, const struct peer_group *g,
                              const struct peer_gather *a);
cudaError_t peer_gather_pieces(cudaStream_t s, const struct peer_group *g,
                               const struct peer_gather *a);
cudaError_t peer_gather_words_tuned(cudaStream_t s, const struct peer_group *g,
                                    const struct peer_gather *a, int blocks, int threads);
cudaError_t peer_gather_pieces_tuned(cudaStream_t s, const struct peer_group *g,
                                     const struct peer_gather *a, int blocks, int piece_vectors);

// buf[i] = sum over ranks 0, 1, .. of their buf[i], in float32: the same bits on every rank, but
// not those of one rank's sum. The forward pass never splits a sum (node/comm.h) and does not use
// it; `hadal bench comm` holds it against NCCL's.
struct peer_reduce {
    float *buf; // [n], 16-byte aligned
    size_t n;   // even; 4 n at most PEER_WORDS_BYTES
};
cudaError_t peer_reduce_words(cudaStream_t s, const struct peer_group *g,
                              const struct peer_reduce *a);

// Packed slices [size][rows][part bytes] <-> buf [rows][size][part bytes], for NCCL, which gathers
// dense slices. own: only this rank's slice; else only the others'.
struct peer_repack {
    void *packed, *buf;
    size_t rows, part;
    int size, rank;
    bool own;
};
cudaError_t peer_pack(cudaStream_t s, const struct peer_repack *a);
cudaError_t peer_unpack(cudaStream_t s, const struct peer_repack *a);

#ifdef __cplusplus
}
#endif
