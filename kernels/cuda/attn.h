// Attention of the CUDA body over raw device pointers: MLA (absorbed) and GQA over paged KV, decode
// rows and prefill chunks in one call. Plain C launchers, used by the op bodies and by kernels/lab.
//
// Invariance: a row's bits depend on its query, its position and its sequence's keys alone. Keys
// are walked from position 0 in splits whose borders depend on the position only; within a split
// one running softmax goes over tiles of 64 keys, in order; splits are merged in order, from the
// first. Who computes which split (one block, many, prefill or decode) never shows.
//
// Programmatic dependent launch: every launcher here launches with programmatic stream
// serialization; kernels call griddepcontrol.wait before they touch anything that an earlier kernel
// wrote or may still read. Nothing allocates or waits; every launcher may be captured into a graph.
// cudaErrorInvalidValue: a shape or alignment that is not allowed here.
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Rows of a step. Rows of one sequence that are neighbours share every key they load; any order is
// right. pos < 0: a row that is not there (padding of a captured batch), its output stays.
struct cuda_attn_rows {
    const int32_t *seq;    // [n]: which block table
    const int32_t *pos;    // [n]: row i sees tokens 0 .. pos[i]
    const int32_t *tables; // [seqs][table_stride]: block numbers, in order
    size_t table_stride;
    int n;
    int keys_max; // host-known bound: every pos < keys_max
};

// ---- MLA ----------------------------------------------------------------------------------------

// A layer's pool [blocks][block_tokens] of tokens:
//   BF16  kv_lora latent | rope: bf16 each.
//   FP8   kv_lora e4m3 | kv_lora / 128 f32 scales (a value is e4m3 * scale) | rope bf16; kv_lora is
//         a multiple of 128. 656 bytes for 512 | 64.
enum cuda_kv_form { CUDA_KV_BF16, CUDA_KV_FP8 };

// out[i][h] = softmax(scale * (q_latent[i][h] . latent_t + q_rope[i][h] . rope_t)) . latent over t
// <= pos[i]. Products are bf16 on the tensor cores with f32 sums, probabilities are rounded to
// bf16. Fast for kv_lora 512, rope 64, 16-byte aligned operands with strides that are multiples of
// 8 elements, and block_tokens a multiple of 8 that divides 64 or a multiple of 64 (on sm_90);
// other shapes go to a plain kernel. Which of them runs depends on the shape, never on the batch.
struct cuda_mla {
    struct cuda_attn_rows rows;
    enum cuda_kv_form form;
    const void *pool;
    size_t blocks, block_tokens;
    int heads, kv_lora, rope;
    const uint16_t *q_latent; // bf16; row i, head h at i * q_latent_ld + h * q_latent_head
    size_t q_latent_ld, q_latent_head;
    const uint16_t *q_rope; // bf16, rotated
    size_t q_rope_ld, q_rope_head;
    uint16_t *out; // bf16; row i, head h at i * out_ld + h * kv_lora
    size_t out_ld;
    float scale;
    // Keys of a split, a multiple of 128; 0 takes CUDA_MLA_SPLIT. Shows in the bits: one value for
    // all replicas of a model.
    int split;
    // Work list of cuda_mla_plan and partial results. 256-byte aligned; contents are scratch.
    void *plan, *scratch;
    size_t plan_bytes, scratch_bytes;
};
enum { CUDA_MLA_SPLIT = 512 };

// Memory that the calls below want at plan and scratch for up to rows.n rows with pos < keys_max;
// only rows.n, rows.keys_max, heads, kv_lora, rope and split are read. Fewer rows need no more.
size_t cuda_mla_plan_bytes(const struct cuda_mla *m);
size_t cuda_mla_scratch_bytes(const struct cuda_mla *m);
// Cuts the rows of a step into pieces of work of equal size for all multiprocessors. Once per step:
// every layer's cuda_mla with the same rows (and n, keys_max, heads, form, split, plan_bytes,
// scratch_bytes) uses it.
cudaError_t cuda_mla_plan(cudaStream_t s, const struct cuda_mla *m);
cudaError_t cuda_mla(cudaStream_t s, const struct cuda_mla *m);

#ifdef __cplusplus
}
#endif
