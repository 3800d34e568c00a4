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
    CUDA_ARENA_X,         // quantized activations
    CUDA_ARENA_PLAN,      // (token, choice) pairs sorted by expert
    CUDA_ARENA_ATTN_PLAN, // MLA's work list, of a whole step
    CUDA_ARENA_PARTIAL,   // softmax over pieces of a sequence; products of chosen experts
    CUDA_ARENAS
};
enum { CUDA_RECORDS = 64, CUDA_ZEROS = 8192, CUDA_ROUTE_ROWS = 8 * CUDA_ZEROS };
enum { CUDA_PINNED_BYTES = 16 << 20 }; // one of two halves through which all uploads pass

// A step as a graph (replay.c). key 0: free; exec NULL: seen once.
struct cuda_record {
    uint64_t key, used; // used: number of the replay that used it last
    cudaGraphExec_t exec;
};

struct cuda {
    struct kern base;
    int device;
    int sms;     // multiprocessors
    int arch;    // compute capability: 90 for 9.0
    bool pdl;    // the device knows programmatic dependent launch
    bool hopper; // and wgmma
    int *zeros;  // [CUDA_ZEROS] on the device; a kernel that counts in it leaves zeros behind
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
    struct cuda_record records[CUDA_RECORDS];
    uint64_t replays;
    uint64_t capturing; // key of what is being recorded, 0: nothing
};

static inline struct cuda *cuda_of(struct kern *k)
{
    return (struct cuda *)k;
}

// Remembers a failure with the call's name; true when it was none.
bool cuda_check(struct cuda *c, cudaError_t e, const char *what);
// The failure remembered, as a status, and forgets it.
enum status cuda_failure(struct cuda *c);
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

// kern_device's members that replay.c holds. cuda_replay_forget: memory is about to be freed.
bool cuda_replay_begin(struct kern *k, uint64_t key);
enum status cuda_replay_end(struct kern *k);
void cuda_replay_forget(struct cuda *c);

// kern_device's members that copier.c holds.
enum status cuda_copier_open(struct kern_copier *c);
void cuda_copier_close(struct kern_copier *c);
enum status cuda_copier_fence(struct kern_copier *c);
enum status cuda_copier_read(struct kern_copier *c, void *host, const struct kern_strip *s);
enum status cuda_copier_write(struct kern_copier *c, const struct kern_strip *s, const void *host);
enum status cuda_copier_wait(struct kern_copier *c);

// kern_device's members that fill.c holds.
void cuda_weight_noise(struct kern_weight *w, const struct kern_noise_args *a);
void cuda_buf_noise(struct kern_buf *b, const struct kern_buf_noise_args *a);
enum status cuda_stage_alloc(struct kern_stage *s);
void cuda_stage_free(struct kern_stage *s);
void cuda_stage_wait(struct kern_stage *s);
void cuda_stage_fill(struct kern_weight *w, const struct kern_fill_args *a, struct kern_stage *s);

// Rows on the device, of float32 or bf16. p NULL: absent.
struct cuda_rows {
    void *p;
    size_t stride; // elements
    bool bf16;
};
static inline struct cuda_rows cuda_rows(const struct kern_view *v)
{
    struct cuda_rows r = {NULL, 0, false};
    if (v->buf) {
        r.p = (char *)v->buf->p + v->at * kern_dtype_bytes(v->buf->dtype);
        r.stride = v->stride;
        r.bf16 = v->buf->dtype == KERN_BF16;
    }
    return r;
}

// A KV pool (bf16) with the rows of a step, as kernels see it.
struct cuda_kv {
    uint16_t *pool;
    size_t width, block_tokens;
    const int32_t *seq, *pos, *tables;
    size_t table_stride;
};
struct cuda_kv cuda_kv(const struct kern_batch *b, const struct kern_kv *kv);

// ---- matrix products ----------------------------------------------------------------------------
//
// Weights lie row-major, rows padded with zeros to CUDA_ROW_BYTES. A bf16 product is one chain over
// rising columns, in steps of 16 (a tensor core instruction), from 0; whichever kernel makes it.
enum { CUDA_ROW_BYTES = 128 };

// Some rows that share one matrix: pairs[first .. first + n) when there are pairs, else rows
// first .. first + n themselves.
struct cuda_piece {
    int32_t matrix, first, n;
};

// out[row] = x[row] W[s]^T + bias + add for the rows of every piece; the one description that
// linear, linear_heads and the experts are put in.
enum { CUDA_PIECE_ROWS = 32 };
struct cuda_mm {
    const void *w, *w_up; // w_up: second matrix of a gated product, out = silu(W x) * (W_up x)
    enum kern_dtype dtype;
    size_t ld;                       // elements from row to row of a matrix
    size_t stack_bytes;              // distance of two matrices of the stack
    size_t rows, cols;               // of a matrix
    const float *scales, *scales_up; // as kern_weight's; NULL: none
    size_t scales_ld, scales_stack;
    struct cuda_rows x;      // bf16
    struct cuda_rows out;    // f32 or bf16
    size_t x_head, out_head; // per head: offset of head h's input and output
    const float *bias;       // NULL: none
    struct cuda_rows add;    // f32
    size_t n;                // rows of out
    size_t heads;            // matrices that every row is multiplied with; 1 for experts
    // Experts: pieces of at most CUDA_PIECE_ROWS rows; NULL: plain rows.
    const struct cuda_piece *pieces;
    const int32_t *pieces_n; // on the device
    const int32_t *pairs;
    size_t pieces_max;
    const int32_t *ids; // experts without a plan: row i has matrix ids[i] for itself
    size_t x_div;       // output row j is made of x row j / x_div
};
void cuda_mm_set_weight(struct cuda_mm *m, const struct kern_weight *w);
// Any shape, alignment and dtype.
void cuda_mm(struct cuda *c, const struct cuda_mm *m);
void cuda_moe_gate_up_any(struct kern *k, const struct kern_moe_gate_up_args *a);
void cuda_moe_down_any(struct kern *k, const struct kern_moe_down_args *a);

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
void cuda_gated(struct kern *k, const struct kern_gated_args *a);
void cuda_mla_prepare(struct kern *k, const struct kern_mla_prepare_args *a);
void cuda_gqa_prepare(struct kern *k, const struct kern_gqa_prepare_args *a);
void cuda_route(struct kern *k, const struct kern_route_args *a);
void cuda_argmax(struct kern *k, const struct kern_argmax_args *a);
void cuda_sample_op(struct kern *k, const struct kern_sample_args *a);

#ifdef __cplusplus
}
#endif
