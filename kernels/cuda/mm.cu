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

cudaError_t cuda_experts_gate_up(cudaStream_t s, const struct cuda_experts_gate_up *m)
{
    struct cuda_experts_rows rows;
    if (m->e.n > 0 && cuda_experts_plan_bytes(&m->e) != 0) {
        cudaError_t e = cuda_experts_plan(s, &m->e, &rows);
        if (e != cudaSuccess)
            return e;
    }
    return m->e.n > 0 && cuda_experts_take_many(&m->e) ? cuda_experts_gate_up_many(s, m, &rows)
                                                       : cuda_experts_gate_up_few(s, m);
}

cudaError_t cuda_experts_down(cudaStream_t s, const struct cuda_experts_down *m)
{
    const struct cuda_experts *e = &m->e;
    if (e->n == 0 || (e->n <= CUDA_EXPERTS_FEW && !cuda_experts_take_many(e)))
        return cuda_experts_down_few(s, m);
    if (!e->plan || cuda_experts_plan_bytes(e) == 0)
        return cudaErrorInvalidValue;
    const int32_t *first = (const int32_t *)e->plan; // as cuda_experts_plan laid it out for gate_up
    const struct cuda_experts_rows rows = {first, first + e->experts + e->always + 1};
    cudaError_t err = cuda_experts_down_many(s, m, &rows);
    return err == cudaSuccess ? cuda_experts_combine(s, m) : err;
}
