// Matrix products of the CUDA body over raw device pointers: dense, per head, and by expert. Plain
// C launchers, used by the op bodies and by kernels/lab. Few rows (at most 64 per matrix) are bound
// by reading the weights, many by the tensor cores; both keep one definition of every sum, so a
// row's bits do not depend on its company:
//
//   BF16  c = 0; for each 16 columns, rising: c = mma(x, w, c) in one tensor core accumulator.
//   FP8   s = 0; for each block of 128 columns, rising: c = 0; four times 32 columns: c = wgmma(x,
//         w, c) (mma.sync keeps other bits); s = fmaf(c, xs * ws, s).
//   INT8  exact int32 over all columns, to float, * (xs * ws).
//   Then, in f32 and in this order: + bias, silu(gate) * up when gated, + add; one rounding where
//   out is bf16. Experts: see cuda_experts.
//
// Programmatic dependent launch: every launcher here launches with programmatic stream
// serialization. Kernels read weights, scales and biases before griddepcontrol.wait and everything
// else after it, and call griddepcontrol.launch_dependents only after their own wait. So when a
// kernel starts, all that ran before its predecessor has finished (cuda_experts.ready relies on
// it).
//
// Nothing allocates or waits; every launcher may be captured into a graph. cudaErrorInvalidValue: a
// shape or alignment that is not allowed here; cudaErrorNotSupported: a device without Hopper's
// instructions.
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum cuda_wtype { CUDA_W_BF16, CUDA_W_FP8, CUDA_W_INT8 };
enum { CUDA_MM_FEW = 64 };    // rows up to which cuda_matmul takes the few-row kernel
enum { CUDA_MM_BLOCK = 128 }; // columns and rows that share a scale of FP8

// A stack of matrices [stack][rows][ld], row-major. 16-byte aligned; ld is a multiple of 128 bytes,
// stack_bytes of 16. Elements [cols, ld) of a row are zero.
struct cuda_matrix {
    const void *w;
    enum cuda_wtype type;
    int stack, rows, cols;
    size_t ld;          // elements from row to row
    size_t stack_bytes; // bytes from matrix to matrix; ignored with stack 1
    // FP8: [stack][rows / 128 rounded up][scales_ld], scales_ld = cols / 128 rounded up to a
    // multiple of 4, 16-byte aligned. INT8: [stack][rows].
    const float *scales;
    size_t scales_ld;    // floats; FP8
    size_t stack_scales; // floats from matrix to matrix
};

// Activations as products of FP8 and INT8 weights take them: x as cuda_quantize makes it.
//   FP8: e4m3 of x / xs per run of 128 columns, xs = amax / 448. INT8: of x / xs per row, amax /
//   127. All-zero runs have xs = 0 and zeros.
struct cuda_quantize {
    enum cuda_wtype type; // CUDA_W_FP8 or CUDA_W_INT8
    const uint16_t *x;    // bf16 [n][x_ld], 16-byte aligned, x_ld a multiple of 8
    size_t x_ld;
    int n, cols; // cols % 8 == 0 or readable up to the next multiple
    void *xq; // [n][xq_ld] bytes, 16-byte aligned; columns up to the next multiple of 128 become 0
    size_t xq_ld; // a multiple of 128, >= cols
    float *xs;    // FP8: [n][xs_ld], one per 128 columns; INT8: [n]
    size_t xs_ld; // FP8: a multiple of 4, >= cols / 128 rounded up; the rest becomes 0
};
cudaError_t cuda_quantize(cudaStream_t s, const struct cuda_quantize *a);

// out[i][h * out_head + r] = x[i][h * x_head + :] . W[h][r][:] for i < n, h < heads.
struct cuda_matmul {
    struct cuda_matrix w; // stack >= heads
    // Gated: a second matrix of w's shape, strides and type; out = silu(w x + bias) * (w_up x +
    // bias_up). NULL: plain. Gate above up in one matrix of 2 I rows: w.rows = I, w_up = w + I
    // rows.
    const void *w_up;
    const float *scales_up;

    // BF16: rows of x, 16-byte aligned, x_ld and x_head multiples of 8. Elements up to cols rounded
    // up to a multiple of 8 are read: they must be finite. heads > 1: BF16 only.
    const uint16_t *x;
    size_t x_ld, x_head;
    // FP8, INT8: x quantized instead, with the strides of cuda_quantize. Per head (FP8): x_head is
    // a multiple of 128 and head h's scales are those of its columns.
    const void *xq;
    size_t xq_ld;
    const float *xs;
    size_t xs_ld;

    void *out; // bf16 or f32
    bool out_bf16;
    size_t out_ld, out_head;     // elements; even
    const float *bias, *bias_up; // [rows] or NULL; with heads > 1 NULL
    const float *add;            // f32 [n][add_ld] or NULL; may be out; not when gated
    size_t add_ld;
    int n, heads; // heads 1: plain
};
cudaError_t cuda_matmul_few(cudaStream_t s, const struct cuda_matmul *m);  // n <= CUDA_MM_FEW
cudaError_t cuda_matmul_many(cudaStream_t s, const struct cuda_matmul *m); // any n
cudaError_t cuda_matmul(cudaStream_t s, const struct cuda_matmul *m);      // chooses

// ---- experts ------------------------------------------------------------------------------------

// Token i goes to experts ids[i * topk + j], j < topk, all different, and to `always` more: the
// last matrices of the stack, experts .. experts + always - 1 (shared experts cut to the routed
// ones' size), with weight 1. The product of token i with its choice j is row i * (topk + always) +
// j of what lies between gate_up and down; j = topk + a for the a-th always chosen one.
struct cuda_experts {
    int n, topk, experts, always; // tokens; n <= CUDA_EXPERTS_TOKENS; topk + always <= 64
    const int32_t *ids;           // [n][topk], each in [0, experts)
    const float *weights;         // [n][topk]; only down reads them
    // Scratch of cuda_experts_plan_bytes(), 16-byte aligned, NULL when that is 0: pairs sorted by
    // expert, made by gate_up and read again by the down that follows with the same ids.
    void *plan;
    // ids (and plan) were complete before the kernel launched just before this one: weights of the
    // chosen experts are then read before the wait. True for down, which follows gate_up.
    bool ready;
};
enum { CUDA_EXPERTS_TOKENS = 65536, CUDA_EXPERTS_MAX = 1024 + 64 };
size_t cuda_experts_plan_bytes(const struct cuda_experts *e);

// out[pair] = silu(gate[e] x[token]) * (up[e] x[token]), bf16.
struct cuda_experts_gate_up {
    struct cuda_experts e;
    struct cuda_matrix w; // gate [experts + always][I][D]
    const void *w_up;     // up, same shape and strides
    const float *scales_up;
    const uint16_t *x; // bf16 [n], or quantized as in cuda_matmul
    size_t x_ld;
    const void *xq;
    size_t xq_ld;
    const float *xs;
    size_t xs_ld;
    uint16_t *out; // bf16 [n * (topk + always)][out_ld], out_ld even
    size_t out_ld;
};

// out[i][r] = sum over i's choices by rising expert id of fmaf(weight, down[e][r] . h[pair], sum),
// from 0, the always chosen last; then + shared[i][r], then + residual[i][r]. f32.
struct cuda_experts_down {
    struct cuda_experts e;
    struct cuda_matrix w; // [experts + always][D][I]
    const uint16_t *h;    // bf16 [n * (topk + always)], or quantized
    size_t h_ld;
    const void *hq;
    size_t hq_ld;
    const float *hs;
    size_t hs_ld;
    const float *shared, *residual; // [n][ld] or NULL; may be out
    size_t shared_ld, residual_ld;
    float *out; // [n][out_ld], even
    size_t out_ld;
    // f32 [n * (topk + always)][D] scratch: the products before they are added, where n is so large
    // that one kernel cannot keep the sums (cuda_experts_products_bytes; NULL when that is 0).
    float *products;
};
// True: gate_up and down are for the many-row kernels (mm_many), else for the few-row ones.
bool cuda_experts_take_many(const struct cuda_experts *e);
enum { CUDA_EXPERTS_FEW = 1024 }; // tokens up to which the few-row kernel keeps the sums itself
size_t cuda_experts_products_bytes(const struct cuda_experts_down *m);

// Few rows per expert; they read plan where cuda_experts_plan_bytes is not 0. down: n <=
// CUDA_EXPERTS_FEW.
cudaError_t cuda_experts_gate_up_few(cudaStream_t s, const struct cuda_experts_gate_up *m);
cudaError_t cuda_experts_down_few(cudaStream_t s, const struct cuda_experts_down *m);

// Many rows per expert on the tensor cores (mm_many): the same sums. plan as made by
// cuda_experts_plan; down writes products, cuda_experts_combine adds them.
struct cuda_experts_rows { // the plan's contents
    const int32_t *first;  // [experts + always + 1]: pairs[first[e] .. first[e + 1]) are e's
    const int32_t *pairs;  // [n * (topk + always)]: row of h; its token is pair / (topk + always)
};
cudaError_t cuda_experts_plan(cudaStream_t s, const struct cuda_experts *e,
                              struct cuda_experts_rows *rows_out);
cudaError_t cuda_experts_gate_up_many(cudaStream_t s, const struct cuda_experts_gate_up *m,
                                      const struct cuda_experts_rows *rows);
cudaError_t cuda_experts_down_many(cudaStream_t s, const struct cuda_experts_down *m,
                                   const struct cuda_experts_rows *rows); // writes m->products
cudaError_t cuda_experts_combine(cudaStream_t s, const struct cuda_experts_down *m);

#ifdef __cplusplus
}
#endif
