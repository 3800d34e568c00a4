// Collectives among the T tensor ranks of one stage. Bodies: over xport links (shared memory on one
// host, TCP or verbs between hosts), and among GPUs, over peer memory or NCCL (comm_cuda.h).
//
// Hadal splits every matrix of a stage along its OUTPUT rows and never along the summed dimension,
// so the only collective of the forward pass is all-gather and every sum is made by one rank in one
// order: a replica gives bit-identical results at any T. (ARCHITECTURE.md, "The same answer".)
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/kern.h"

struct comm;

// Where this rank is: a slot that the heartbeat thread reads, so that a stuck rank can be named.
// Written by the owner thread, relaxed: step and layer by the engine (which zeroes `collective`
// with each step), collective and changed_us by each collective that starts. Among GPUs the host
// runs ahead of the device, so `collective` is the device's own count (since the group was formed).
struct comm_progress {
    _Atomic uint64_t step; // step id being computed, 0 = idle
    _Atomic uint32_t layer;
    _Atomic uint32_t collective; // sequence number inside the step
    _Atomic uint64_t changed_us; // monotonic time of the last change
};

struct comm_progress *comm_progress(struct comm *c); // lives as long as the comm
// From any thread: brings the slot up to date with the device. Before it is read.
void comm_progress_refresh(struct comm *c, uint64_t now_us);
int comm_size(const struct comm *c); // T, 1 when the stage is not split
int comm_rank(const struct comm *c); // 0 .. T-1

// buf: [rows][T][part] float32, row-major. On entry this rank's slice [r][rank][:] is filled; on
// return the slices of all ranks are. T == 1 returns at once. STATUS_LINK_DOWN: a rank died.
// STATUS_ABORTED: comm_abort was called. Buffer contents undefined then.
enum status comm_all_gather(struct comm *c, float *buf, size_t rows, size_t part);

// The same on rows of a kern's buffer, of any dtype (part in its elements, and a multiple of 4
// bytes), in the order of the kern's queue. Among GPUs it is enqueued, or captured into a graph,
// and returns at once: what befalls it comes out of comm_sync. Elsewhere it waits for the queue,
// and host memory carries what is in the buffer.
enum status comm_gather(struct comm *c, struct kern *k, struct kern_buf *buf, size_t rows,
                        size_t part);
// True when comm_gather only enqueues: may be captured.
bool comm_enqueues(const struct comm *c);
// kern_sync, and what became of the collectives enqueued: ABORTED; LINK_DOWN: a rank died;
// LINK_TIMEOUT: one did not come. Looks after the links meanwhile, so that a rank that died is
// noticed here even while the device waits for it.
enum status comm_sync(struct comm *c, struct kern *k) STATUS_MUST_USE;

// The tensor rank that a failed collective waited for, -1 = not known.
int comm_suspect(const struct comm *c);

// From any thread: the collective under way and all later ones return STATUS_ABORTED within 100 ms.
void comm_abort(struct comm *c);
void comm_destroy(struct comm *c); // NULL is fine

// T = 1.
struct comm *comm_create_single(void);
