// The CUDA body's common part: state of an open kern, scratch memory, and what ops hand to kernels.
// Seen by kernels/cuda only; C and CUDA C++ both read it.
//
// Host code is C (device.c: memory, stream, weights; ops.c: what is launched for an op) and .cu
// files hold kernels with their launchers. Everything runs on one stream, so scratch memory may be
// handed from op to op without waiting. A launch that fails is remembered (cuda_check) and comes
// out of the next kern_sync or kern_download as INTERNAL: an op has no other way to say it.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/kern_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

enum cuda_arena {
    CUDA_ARENA_X,       // activations as pairs of bf16, padded, for the tensor cores
    CUDA_ARENA_PLAN,    // (token, choice) pairs sorted by expert
    CUDA_ARENA_PARTIAL, // softmax over pieces of a sequence; products of chosen experts
    CUDA_ARENA_STAGE,   // raw rows of a weight before they are packed
    CUDA_ARENAS
};
enum { CUDA_PINNED_BYTES = 16 << 20 }; // one of two halves through which all uploads pass

struct cuda {
    struct kern base;
    int device;
    int sms; // multiprocessors
    cudaStream_t stream;
    cudaError_t failed; // first failure since the last sync; cudaSuccess = none
    const char *failed_at;
    struct {
        void *p;
        size_t bytes;
    } arenas[CUDA_ARENAS];
    struct {
        char *p;            // pinned
        size_t used;        // bytes handed out since it was last waited for
        cudaEvent_t copied; // the last copy out of it has been made
    } pinned[2];
    int pinned_i; // half in use
};

static inline struct cuda *cuda_of(struct kern *k)
{
    return (struct cuda *)k;
}

// Remembers a failure with the call's name; true when it was none.
bool cuda_check(struct cuda *c, cudaError_t e, const char *what);
// After a launch.
void cuda_launched(struct cuda *c, const char *kernel);
// At least `bytes` of device memory, 256-byte aligned, contents undefined, valid until the arena is
// asked for again. Grows to the high-water mark, then stays: steady steps allocate nothing.
void *cuda_scratch(struct cuda *c, enum cuda_arena arena, size_t bytes);

// A context belongs to a thread: makes this kern's the caller's.
struct cuda *cuda_enter(struct kern *k);

// Rows of base/noise.h's numbers: row i is row first + i of the stream.
struct cuda_noise {
    enum kern_dtype dtype;
    void *p;
    size_t rows, cols, row_bytes;
    uint64_t key, first;
    float mean, amplitude;
};
void cuda_noise(struct cuda *c, const struct cuda_noise *n);

// kern_device's members that fill.c holds.
void cuda_weight_noise(struct kern_weight *w, const struct kern_noise_args *a);
void cuda_buf_noise(struct kern_buf *b, const struct kern_buf_noise_args *a);
enum status cuda_stage_alloc(struct kern_stage *s);
void cuda_stage_free(struct kern_stage *s);
void cuda_stage_wait(struct kern_stage *s);
void cuda_stage_fill(struct kern_weight *w, const struct kern_fill_args *a, struct kern_stage *s);

// Rows of float32 on the device.
struct cuda_rows {
    float *p;
    size_t stride;
};
static inline struct cuda_rows cuda_rows(const struct kern_view *v)
{
    struct cuda_rows r = {v->buf ? (float *)v->buf->p + v->at : NULL, v->stride};
    return r;
}

// A KV pool with the rows of a step, as kernels see it.
struct cuda_kv {
    float *pool;
    size_t width, block_tokens;
    const int32_t *seq, *pos, *tables;
    size_t table_stride;
};
struct cuda_kv cuda_kv(const struct kern_batch *b, const struct kern_kv *kv);

// ---- packed weights -----------------------------------------------------------------------------
//
// bf16 matrices lie in the order in which the tensor cores take them (mma.m16n8k16, operand A), so
// that a warp's load is 512 contiguous bytes and needs no shuffling: tiles of 16 rows x 32 columns,
// [row tile][column group of 32][half of 2][lane of 32][8 values]. Lane 4g + t holds of rows g and
// g + 8 the columns 8t + 4 half .. + 3: {r g: c0 c1, r g+8: c0 c1, r g: c2 c3, r g+8: c2 c3}. Rows
// and columns are padded with zeros to whole tiles. Operand B (activations) then is 8 contiguous
// bf16 per lane and group: columns 8t .. 8t + 7. f32 and f16 matrices, and tables, stay row-major.
enum { CUDA_TILE_ROWS = 16, CUDA_TILE_COLS = 32, CUDA_TILE_BYTES = 1024 };
static inline size_t cuda_tiles(size_t n, size_t size)
{
    return (n + size - 1) / size;
}
static inline bool cuda_is_packed(const struct kern_weight *w)
{
    return w->shape.kind == KERN_WEIGHT_MATRIX && w->shape.dtype == KERN_BF16;
}
struct cuda_pack {
    void *matrix;    // packed
    const void *src; // element (i, j) at src[i * row_stride + j * col_stride]
    size_t row0, rows, cols, row_stride, col_stride;
};
void cuda_pack(struct cuda *c, const struct cuda_pack *p);

// ---- matrix products
// -----------------------------------------------------------------------------

// Some rows that share one matrix: pairs[first .. first + n) when there are pairs, else rows
// first .. first + n themselves.
struct cuda_piece {
    int32_t matrix, first, n;
};

// out[row] (+)= x[row] W[s]^T for the rows of every piece; the one description that linear,
// linear_heads and the experts are put in. A row's sum is cut into at most CUDA_SEGMENTS runs of
// whole groups of 32 columns, by the width alone; each run is one chain over rising columns, and
// the runs are added in order. So a row's bits do not depend on its company.
enum { CUDA_SEGMENTS = 16, CUDA_PLAIN_ROWS = 8 };
struct cuda_mm {
    const void *w, *w_up; // w_up: second matrix of a gated product, out = silu(W x) * (W_up x)
    enum kern_dtype dtype;
    size_t stack_bytes; // distance of two matrices of the stack
    size_t rows, cols;  // of a matrix
    struct cuda_rows x, out;
    size_t x_head, out_head; // per head: offset of head h's input and output
    const float *bias;
    struct cuda_rows add;
    size_t n, x_rows; // rows of out and of x
    size_t heads;     // matrices that every row is multiplied with; 1 for experts
    // Experts: pieces of at most piece_rows (8, 16, 32 or 64; for f32 and f16 CUDA_PLAIN_ROWS) rows.
    // NULL: plain rows.
    const struct cuda_piece *pieces;
    const int32_t *pieces_n; // on the device
    const int32_t *pairs;
    size_t pieces_max, piece_rows;
    const int32_t *ids; // experts without a plan: row i has matrix ids[i] for itself
    size_t x_div;       // output row j is made of x row j / x_div
};
void cuda_mm(struct cuda *c, const struct cuda_mm *m);
void cuda_mm_plain(struct cuda *c, const struct cuda_mm *m); // f32, f16: linear_plain.cu

// ---- ops
// -----------------------------------------------------------------------------------------

void cuda_embed(struct kern *k, const struct kern_embed_args *a);
void cuda_gather_rows(struct kern *k, const struct kern_gather_args *a);
void cuda_rmsnorm(struct kern *k, const struct kern_rmsnorm_args *a);
void cuda_linear(struct kern *k, const struct kern_linear_args *a);
void cuda_linear_heads(struct kern *k, const struct kern_linear_heads_args *a);
void cuda_add(struct kern *k, const struct kern_add_args *a);
void cuda_silu_mul(struct kern *k, const struct kern_silu_mul_args *a);
void cuda_rope(struct kern *k, const struct kern_rope_args *a);
void cuda_kv_write(struct kern *k, const struct kern_kv_write_args *a);
void cuda_attn_mla(struct kern *k, const struct kern_attn_mla_args *a);
void cuda_attn_gqa(struct kern *k, const struct kern_attn_gqa_args *a);
void cuda_router(struct kern *k, const struct kern_router_args *a);
void cuda_moe_gate_up(struct kern *k, const struct kern_moe_gate_up_args *a);
void cuda_moe_down(struct kern *k, const struct kern_moe_down_args *a);
void cuda_argmax(struct kern *k, const struct kern_argmax_args *a);

#ifdef __cplusplus
}
#endif
