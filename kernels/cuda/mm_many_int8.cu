// Many-row products with int8 weights (a scale per row): the tiles there are, and what they cost on
// an H100 (kernels/lab/mm_many_fp8.cu measures them).
#include "kernels/cuda/mm_many.h"
#include "kernels/cuda/mm_many_host.cuh"

using hopper::S8;
using many::choice;

template <int BN, int SUBS, int STAGES, int CM, int CN, bool GATED, bool GATHER = false>
using cfg = many::config<S8, BN, SUBS, STAGES, CM, CN, GATED, GATHER>;

cudaError_t many_matmul_int8(cudaStream_t s, const struct cuda_matmul *m, int sms)
{
    static const choice<struct cuda_matmul> plain[] = {
        {128, 2, 1, 420, 3500, many::matmul<cfg<128, 1, 6, 2, 1, false>>},
        {128, 1, 1, 420, 3500, many::matmul<cfg<128, 1, 6, 1, 1, false>>},
        {64, 1, 1, 300, 3000, many::matmul<cfg<64, 1, 7, 1, 1, false>>},
    };
    static const choice<struct cuda_matmul> gated[] = {
        {64, 2, 1, 420, 3500, many::matmul<cfg<128, 1, 6, 2, 1, true>>},
        {64, 1, 1, 420, 3500, many::matmul<cfg<128, 1, 6, 1, 1, true>>},
    };
    return m->w_up ? many::pick_dense(s, m, gated, sizeof gated / sizeof *gated, sms)
                   : many::pick_dense(s, m, plain, sizeof plain / sizeof *plain, sms);
}

cudaError_t many_gate_up_int8(cudaStream_t s, const struct cuda_experts_gate_up *m,
                              const struct cuda_experts_rows *rows, int)
{
    return many::experts_gate_up<cfg<128, 1, 5, 1, 1, true, true>>(s, m, rows);
}

cudaError_t many_down_int8(cudaStream_t s, const struct cuda_experts_down *m,
                           const struct cuda_experts_rows *rows, int)
{
    return many::experts_down<cfg<128, 1, 5, 1, 1, false, true>>(s, m, rows);
}
