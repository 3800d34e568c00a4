// Many-row products with bf16 weights: the tiles there are, and what they cost on an H100
// (kernels/lab/mm_many.cu measures them).
#include "kernels/cuda/mm_many.h"
#include "kernels/cuda/mm_many_host.cuh"

using hopper::BF16;
using many::choice;

template <int BN, int SUBS, int STAGES, int CM, int CN, bool GATED, bool GATHER = false>
using cfg = many::config<BF16, BN, SUBS, STAGES, CM, CN, GATED, GATHER>;

cudaError_t many_matmul_bf16(cudaStream_t s, const struct cuda_matmul *m, int sms)
{
    static const choice<struct cuda_matmul> plain[] = {
        {256, 2, 1, 680, 5000, many::matmul<cfg<256, 1, 4, 2, 1, false>>},
        {256, 1, 2, 680, 5000, many::matmul<cfg<256, 1, 4, 1, 2, false>>},
        {192, 2, 1, 520, 4500, many::matmul<cfg<192, 1, 4, 2, 1, false>>},
        {128, 2, 1, 360, 3500, many::matmul<cfg<128, 1, 6, 2, 1, false>>},
        {128, 1, 2, 355, 3500, many::matmul<cfg<128, 1, 6, 1, 2, false>>},
        {64, 1, 1, 255, 2500, many::matmul<cfg<64, 2, 4, 1, 1, false>>},
        {64, 2, 1, 250, 3000, many::matmul<cfg<64, 2, 4, 2, 1, false>>},
        {32, 1, 1, 225, 2200, many::matmul<cfg<32, 2, 4, 1, 1, false>>},
    };
    static const choice<struct cuda_matmul> gated[] = {
        {128, 2, 1, 680, 5000, many::matmul<cfg<256, 1, 4, 2, 1, true>>},
        {128, 1, 2, 680, 5000, many::matmul<cfg<256, 1, 4, 1, 2, true>>},
        {64, 1, 2, 355, 3500, many::matmul<cfg<128, 1, 6, 1, 2, true>>},
        {32, 1, 1, 255, 2500, many::matmul<cfg<64, 2, 4, 1, 1, true>>},
    };
    return m->w_up ? many::pick_dense(s, m, gated, sizeof gated / sizeof *gated, sms)
                   : many::pick_dense(s, m, plain, sizeof plain / sizeof *plain, sms);
}

cudaError_t many_gate_up_bf16(cudaStream_t s, const struct cuda_experts_gate_up *m,
                              const struct cuda_experts_rows *rows, int)
{
    if (m->e.experts + m->e.always > cfg<256, 1, 4, 1, 1, true, true>::EXPERTS_MAX)
        return many::experts_gate_up<cfg<128, 1, 5, 1, 1, true, true>>(s, m, rows);
    return many::experts_gate_up<cfg<256, 1, 4, 1, 1, true, true>>(s, m, rows);
}

cudaError_t many_down_bf16(cudaStream_t s, const struct cuda_experts_down *m,
                           const struct cuda_experts_rows *rows, int)
{
    if (m->e.experts + m->e.always > cfg<256, 1, 4, 1, 1, false, true>::EXPERTS_MAX)
        return many::experts_down<cfg<128, 1, 5, 1, 1, false, true>>(s, m, rows);
    return many::experts_down<cfg<256, 1, 4, 1, 1, false, true>>(s, m, rows);
}
