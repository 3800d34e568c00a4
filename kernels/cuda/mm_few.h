// Host side of the few-row products, shared by their launchers and the laboratory: how a product is
// laid over the device.
#pragma once

#include <cuda_runtime_api.h>

struct few;

enum { FEW_SMEM_MAX = 224 << 10, FEW_SMEM = 112 << 10 }; // FEW_SMEM: so that two kernels fit
enum { FEW_STAGES_MAX = 32 };

struct few_geometry {
    int op, r; // few_op; rows of W per unit (gate and up together)
    int blocks, smem, device;
};

// 0 = chosen. For measurements.
struct few_tune {
    int r, blocks, smem, keep;
};
extern struct few_tune few_tune;

cudaError_t few_launch_bf16(cudaStream_t s, const struct few *m, const struct few_geometry *g);
cudaError_t few_launch_fp8(cudaStream_t s, const struct few *m, const struct few_geometry *g);
cudaError_t few_launch_int8(cudaStream_t s, const struct few *m, const struct few_geometry *g);
