// Which body a product takes: few rows are bound by reading the weights, many by the tensor cores.
// The bits are the same, so the choice is one of time only.
#include "kernels/cuda/mm.h"

enum {
    MANY_ROWS_EACH = 48
}; // rows per expert, on average, from which the many-row kernels are faster

cudaError_t cuda_matmul(cudaStream_t s, const struct cuda_matmul *m)
{
    return m->n <= CUDA_MM_FEW ? cuda_matmul_few(s, m) : cuda_matmul_many(s, m);
}

bool cuda_experts_take_many(const struct cuda_experts *e)
{
    return (long)e->n * e->topk >= (long)e->experts * MANY_ROWS_EACH &&
           cuda_experts_plan_bytes(e) != 0;
}
