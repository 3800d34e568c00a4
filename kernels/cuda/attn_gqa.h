// Grouped-query attention over the paged KV pool: the launcher and the definition that all of its
// kernels keep.
//
// Definition. The keys of a row, tokens 0 .. pos, are cut into units of 128 from position 0. A unit
// has its own softmax:
//   s = q . k        one chain over rising elements in k16 steps on the tensor cores, f32
//   t = max(s) * c   c = scale * log2(e); rounded to f32
//   p = 2^(s * c - t)                     by ex2.approx of one fused multiply-add
//   l = sum of p     four sums, one for each t = (key % 8) / 2; inside each, runs of 32 keys in
//                    order, added in order
//   o = p . v        p rounded to bf16; one chain over rising keys in k16 steps, f32
// and units are folded in order: T = max(T, t), a = 2^(T_old - T), b = 2^(t - T), L = L * a + l *
// b, O = O * a + o * b (fused). out = O / L in bf16. Nothing in this depends on what else is in the
// batch, on how the row's sequence was cut into steps, or on how many SMs there are: decode
// (attn_gqa_few.cu, mma.sync) and prefill (attn_gqa_many.cu, wgmma) give the same bits.
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_GQA_UNIT = 128 }; // keys

struct cuda_gqa {
    int n;        // rows
    int keys_max; // host-known bound: every pos < keys_max
    // Host-known bound on neighbouring rows of one sequence; 0 = not known. 1 says more: no two
    // rows are of one sequence.
    int run_max;
    int heads, kv_heads, head_dim;
    float scale;

    const void *q; // bf16 [n][heads][head_dim], rows q_stride elements apart
    size_t q_stride;
    void *out; // bf16 [n][heads][head_dim], rows out_stride elements apart
    size_t out_stride;

    // bf16 [blocks][block_tokens][2 * kv_heads * head_dim]: K of all heads, then V. What lies after
    // a row's pos is not looked at.
    const void *pool;
    int blocks, block_tokens;
    // [n]. Neighbouring rows of one sequence with positions rising by one share keys; any other
    // order is right too. pos < 0: a row that is not there (padding of a captured batch), its
    // output stays.
    const int32_t *seq, *pos;
    const int32_t *tables; // [seqs][table_stride] block numbers
    int table_stride;

    int sms;  // multiprocessors of the device
    int arch; // its compute capability: 90 for 9.0

    // Which kernel computes which rows (made on the device), and partial results. 256-byte aligned.
    void *plan, *scratch;
    // The plan is that of an earlier call with the same n, keys_max, run_max, heads, kv_heads, seq
    // and pos: another layer of the step.
    bool planned;
};

// Bytes that a call with these bounds (n, keys_max, run_max, heads, kv_heads, head_dim, sms) needs
// at plan and at scratch. They rise with n, keys_max and run_max.
size_t cuda_gqa_plan_bytes(const struct cuda_gqa *a);
size_t cuda_gqa_scratch_bytes(const struct cuda_gqa *a);

// head_dim 64 and 128 with pool, q, out and strides aligned to 16 bytes run on the tensor cores;
// anything else (head_dim up to 1024) takes a plain kernel that rounds elsewhere, by shape alone.
//
// Launched with programmatic stream serialization: what comes before in the stream may still be
// running. It may be the writer of q and of the rows' own keys and values; seq, pos, tables and all
// older keys and values must have been written by what came before that: they are read ahead.
cudaError_t cuda_gqa(cudaStream_t stream, const struct cuda_gqa *a);

#ifdef __cplusplus
}
#endif
