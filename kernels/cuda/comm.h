// Private to the module: what kernels that carry a collective in themselves, and the laboratory,
// need of a group (kernels/cuda_comm.h).
#pragma once

#include "kernels/cuda/peer.h"
#include "kernels/cuda_comm.h"

#ifdef __cplusplus
extern "C" {
#endif

// Valid until the group is destroyed; NULL where it has no peer memory.
const struct peer_group *cuda_comm_group(const struct cuda_comm *m);
cudaStream_t cuda_comm_stream(const struct cuda_comm *m);
kern_cuda_comm_fn hadal_cuda_comm;

extern const struct cuda_pipe_ops cuda_pipe_ops; // pipe.c

// comm_time.c: see cuda_comm_ops.
enum status cuda_comm_measure(struct cuda_comm *m, const struct cuda_comm_timing *t, double *us_out,
                              struct errmsg *e);

#ifdef __cplusplus
}
#endif
