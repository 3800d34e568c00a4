// Collectives among the T tensor ranks of one stage. Bodies: over xport links (shared memory on one
// host, TCP between hosts) and, on GPUs, NCCL.
//
// Hadal splits every matrix of a stage along its OUTPUT rows and never along the summed dimension,
// so the only collective of the forward pass is all-gather and every sum is made by one rank in one
// order: a replica gives bit-identical results at any T. (ARCHITECTURE.md, "The same answer".)
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct comm;

// Where this rank is: a slot that the heartbeat thread reads, so that a stuck rank can be named.
// Written by the owner thread, relaxed: step and layer by the engine (which zeroes `collective`
// with each step), collective and changed_us by each collective that starts.
struct comm_progress {
    _Atomic uint64_t step; // step id being computed, 0 = idle
    _Atomic uint32_t layer;
    _Atomic uint32_t collective; // sequence number inside the step
    _Atomic uint64_t changed_us; // monotonic time of the last change
};

struct comm_progress *comm_progress(struct comm *c); // lives as long as the comm
int comm_size(const struct comm *c);                 // T, 1 when the stage is not split
int comm_rank(const struct comm *c);                 // 0 .. T-1

// buf: [rows][T][part] float32, row-major. On entry this rank's slice [r][rank][:] is filled; on
// return the slices of all ranks are. T == 1 returns at once. STATUS_LINK_DOWN: a rank died.
// STATUS_ABORTED: comm_abort was called. Buffer contents undefined then.
enum status comm_all_gather(struct comm *c, float *buf, size_t rows, size_t part);

// From any thread: the collective under way and all later ones return STATUS_ABORTED within 100 ms.
void comm_abort(struct comm *c);
void comm_destroy(struct comm *c); // NULL is fine

// T = 1.
struct comm *comm_create_single(void);
