// The body of node/comm.h among GPUs: gathers are kernels on the kern's stream that write into the
// peers' memory, or NCCL's (kernels/cuda_comm.h). A host comm of the same ranks forms the group and
// stays beneath it, for gathers of host memory and to notice ranks that die.
#pragma once

#include "node/comm.h"

// Collective over all ranks of `host`. OK: *out is the comm to use, and owns `host`; it is `host`
// itself, with a log line, when the GPUs have neither peer access nor NCCL: gathers go through host
// memory then. On errors `host` stays the caller's. k: opened with KERN_CUDA, outlives the comm.
// shared: told of the new comm while the group is being formed, so that another thread can abort
// it; NULL is fine.
struct comm_cuda_config {
    struct comm *host;
    struct kern *k;
    void (*share)(void *arg, struct comm *c);
    void *arg;
};
enum status comm_create_cuda(const struct comm_cuda_config *config, struct comm **out,
                             struct errmsg *e) STATUS_MUST_USE;
