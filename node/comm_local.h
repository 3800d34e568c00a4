// The comm among threads of one process: `hadal logits`, `hadal eval` and tests run all ranks of a
// replica so. Ranks copy their slices into each other's buffers between two barriers.
#pragma once

#include "node/comm.h"

struct comm_local; // the meeting point of one stage's T threads

struct comm_local *comm_local_create(int tensors);
// After every rank's comm was destroyed. NULL is fine.
void comm_local_destroy(struct comm_local *l);
// The comm of one rank, used by one thread. comm_abort on any of them aborts all.
struct comm *comm_local_rank(struct comm_local *l, int rank);
