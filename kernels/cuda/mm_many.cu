// Launchers of the products with many rows: checks of shape and alignment, then the kernels of the
// weights' type.
#include "kernels/cuda/mm_many.h"

#include <stdint.h>

namespace
{

bool aligned(const void *p)
{
    return p && (uintptr_t)p % 16 == 0;
}

// x as a product takes it: bf16, or quantized with scales.
struct operand {
    const uint16_t *x;
    size_t x_ld;
    const void *xq;
    size_t xq_ld;
    const float *xs;
    size_t xs_ld;
};

bool weights_fit(const struct cuda_matrix *w, const void *up, const float *scales_up)
{
    const size_t size = w->type == CUDA_W_BF16 ? 2 : 1;
    if (!aligned(w->w) || w->stack < 1 || w->rows < 1 || w->cols < 1 || w->ld < (size_t)w->cols ||
        w->ld * size % 128 != 0 || (w->stack > 1 && w->stack_bytes % 16 != 0) ||
        (up && !aligned(up)))
        return false;
    return w->type == CUDA_W_BF16 || (w->scales && (!up || scales_up));
}

bool x_fits(const struct cuda_matrix *w, const operand &x)
{
    if (w->type == CUDA_W_BF16)
        return aligned(x.x) && x.x_ld % 8 == 0;
    return aligned(x.xq) && x.xq_ld % 16 == 0 && x.xs;
}

// 0: no device, or one without Hopper's instructions.
int hopper_sms()
{
    int device, major, sms;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return 0;
    return major == 9 ? sms : 0;
}

bool experts_fit(const struct cuda_experts *e, const struct cuda_matrix *w,
                 const struct cuda_experts_rows *rows)
{
    return e->n > 0 && e->n <= CUDA_EXPERTS_TOKENS && e->topk >= 1 && e->always >= 0 &&
           e->topk + e->always <= 64 && e->experts >= 1 && e->experts + e->always <= w->stack &&
           e->experts + e->always <= CUDA_EXPERTS_MAX && rows->first && rows->pairs;
}

} // namespace

cudaError_t cuda_matmul_many(cudaStream_t s, const struct cuda_matmul *m)
{
    if (m->n == 0)
        return cudaSuccess;
    const bool gated = m->w_up != NULL, heads = m->heads > 1;
    if (m->n < 0 || m->heads < 1 || m->heads > m->w.stack || !m->out ||
        !weights_fit(&m->w, m->w_up, m->scales_up) ||
        !x_fits(&m->w, {m->x, m->x_ld, m->xq, m->xq_ld, m->xs, m->xs_ld}) ||
        (heads && (m->w.type != CUDA_W_BF16 || gated || m->add || m->bias || m->x_head % 8 != 0)) ||
        (gated && (m->add || (m->bias == NULL) != (m->bias_up == NULL))) || (m->add && m->out_bf16))
        return cudaErrorInvalidValue;
    const int sms = hopper_sms();
    if (sms == 0)
        return cudaErrorNotSupported;
    switch (m->w.type) {
    case CUDA_W_BF16:
        return many_matmul_bf16(s, m, sms);
    case CUDA_W_FP8:
        return many_matmul_fp8(s, m, sms);
    case CUDA_W_INT8:
        return many_matmul_int8(s, m, sms);
    }
    return cudaErrorInvalidValue;
}

cudaError_t cuda_experts_gate_up_many(cudaStream_t s, const struct cuda_experts_gate_up *m,
                                      const struct cuda_experts_rows *rows)
{
    if (m->e.n == 0)
        return cudaSuccess;
    if (!experts_fit(&m->e, &m->w, rows) || !m->w_up || !m->out ||
        !weights_fit(&m->w, m->w_up, m->scales_up) ||
        !x_fits(&m->w, {m->x, m->x_ld, m->xq, m->xq_ld, m->xs, m->xs_ld}))
        return cudaErrorInvalidValue;
    const int sms = hopper_sms();
    if (sms == 0)
        return cudaErrorNotSupported;
    switch (m->w.type) {
    case CUDA_W_BF16:
        return many_gate_up_bf16(s, m, rows, sms);
    case CUDA_W_FP8:
        return many_gate_up_fp8(s, m, rows, sms);
    case CUDA_W_INT8:
        return many_gate_up_int8(s, m, rows, sms);
    }
    return cudaErrorInvalidValue;
}

cudaError_t cuda_experts_down_many(cudaStream_t s, const struct cuda_experts_down *m,
                                   const struct cuda_experts_rows *rows)
{
    if (m->e.n == 0)
        return cudaSuccess;
    if (!experts_fit(&m->e, &m->w, rows) || !m->products || !weights_fit(&m->w, NULL, NULL) ||
        !x_fits(&m->w, {m->h, m->h_ld, m->hq, m->hq_ld, m->hs, m->hs_ld}))
        return cudaErrorInvalidValue;
    const int sms = hopper_sms();
    if (sms == 0)
        return cudaErrorNotSupported;
    switch (m->w.type) {
    case CUDA_W_BF16:
        return many_down_bf16(s, m, rows, sms);
    case CUDA_W_FP8:
        return many_down_fp8(s, m, rows, sms);
    case CUDA_W_INT8:
        return many_down_int8(s, m, rows, sms);
    }
    return cudaErrorInvalidValue;
}
