// Between mm_many.cu, which checks products of many rows, and the files that hold their kernels,
// one for each type of weights: each chooses the tiles that take the least time by its table.
#pragma once

#include "kernels/cuda/mm.h"

// sms: multiprocessors of the device. The product's shape has been checked.
cudaError_t many_matmul_bf16(cudaStream_t s, const struct cuda_matmul *m, int sms);
cudaError_t many_matmul_fp8(cudaStream_t s, const struct cuda_matmul *m, int sms);
cudaError_t many_matmul_int8(cudaStream_t s, const struct cuda_matmul *m, int sms);

cudaError_t many_gate_up_bf16(cudaStream_t s, const struct cuda_experts_gate_up *m,
                              const struct cuda_experts_rows *rows, int sms);
cudaError_t many_gate_up_fp8(cudaStream_t s, const struct cuda_experts_gate_up *m,
                             const struct cuda_experts_rows *rows, int sms);
cudaError_t many_gate_up_int8(cudaStream_t s, const struct cuda_experts_gate_up *m,
                              const struct cuda_experts_rows *rows, int sms);
cudaError_t many_down_bf16(cudaStream_t s, const struct cuda_experts_down *m,
                           const struct cuda_experts_rows *rows, int sms);
cudaError_t many_down_fp8(cudaStream_t s, const struct cuda_experts_down *m,
                          const struct cuda_experts_rows *rows, int sms);
cudaError_t many_down_int8(cudaStream_t s, const struct cuda_experts_down *m,
                           const struct cuda_experts_rows *rows, int sms);
