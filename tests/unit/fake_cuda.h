// A CUDA module without CUDA, for node/comm_cuda: memory is the host's, and each rank's collectives
// run on a thread of its own, behind the caller, as on a stream. Ranks are threads of one process.
#pragma once

#include <stdint.h>

enum fake_cuda_value {
    FAKE_CUDA_NO_WAY,     // 1: the ranks have neither peer access nor NCCL
    FAKE_CUDA_BAD_ROUND,  // 1 + rank whose second round fails
    FAKE_CUDA_TIMEOUT_MS, // after which a rank gives up by itself; 0 = 20 s
    FAKE_CUDA_ALIVE,      // groups that were created and not destroyed
    FAKE_CUDA_VALUES
};
void fake_cuda_set(enum fake_cuda_value which, int64_t v);
int64_t fake_cuda_get(enum fake_cuda_value which);
