// What the MLA kernels share: the work list, the form of partial results, and the one arithmetic of
// a merge. attn_mla.cu says how they work together.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/attn.h"

enum {
    MLA_LORA = 512,
    MLA_ROPE = 64,
    MLA_KEY = MLA_LORA + MLA_ROPE,
    MLA_TILE = 64,               // keys of a tile, and rows (tokens x heads) of one
    MLA_WARP_SUMS = 2 * 32 * 32, // float4 of a partial result, by 16 rows
    MLA_FP8_TOKEN = MLA_LORA + 4 * MLA_LORA / 128 + 2 * MLA_ROPE
};

// Neighbouring rows of one sequence whose heads fill a tile.
struct mla_group {
    int row0, rows; // of the batch
    int keys;       // seen by the row that sees most
    int keys_all;   // seen by every row
};
// Where a worker begins; it ends where the next begins.
struct mla_worker {
    int group, split;
    int entry; // its first partial result
    int pad;
};
// A group that several workers compute: its partial results, in order.
struct mla_merge {
    int group, entry, entries, pad;
};
struct mla_plan {
    int groups, merges;
    int entry_warps; // of 16 rows, that a partial result has room for
    int pad;
};

// How a shape is cut, known on the host.
struct mla_cut {
    int n, keys_max, split;
    int heads, tile_heads, tile_tokens; // of a tile
    int head_tiles;                     // tiles that share a group's keys
    int tile_warps;                     // of 16 rows, that can have rows
    int workers;                        // each of head_tiles blocks
    size_t warps;                       // of partial results (by head tile) that scratch can hold
    // Offsets into plan and scratch.
    size_t groups_at, starts_at, workers_at, merges_at, plan_bytes;
    size_t tops_at, scratch_bytes;
};

// The plan's parts on the device.
struct mla_work {
    struct mla_plan *plan;
    struct mla_group *groups;   // [n]
    int2 *starts;               // [n + 1]: splits and cost of all groups before
    struct mla_worker *workers; // [workers + 1]
    struct mla_merge *merges;   // [workers]
    // Partial results, entry e of head tile t at (e * head_tiles + t): sums not divided, [warp of
    // 16 rows][half of the columns][column group of 8][lane] as the tensor core's accumulators lie
    // (a float4: two columns of row lane / 4, two of row lane / 4 + 8).
    float4 *sums;
    float2 *tops; // [entry][head tile][row of the tile]: largest score (log2), sum
};

// The reference that scores (log2) are taken relative to follows the largest one only when that has
// grown by 2^MLA_LAG: exponentials stay far from overflow, and sums are hardly ever rescaled.
enum { MLA_LAG = 8 };
static __device__ __forceinline__ float mla_reference(float reference, float largest)
{
    return largest > reference + MLA_LAG ? largest : reference;
}

// Folds a split's (reference, sum) into the total; values go by mla_fold_value.
static __device__ __forceinline__ void mla_fold(float *total, float *total_sum, float reference,
                                                float sum, float *old, float *now)
{
    float top = mla_reference(*total, reference);
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(*old) : "f"(*total - top));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(*now) : "f"(reference - top));
    *total_sum = __fadd_rn(__fmul_rn(sum, *now), __fmul_rn(*total_sum, *old));
    *total = top;
}
static __device__ __forceinline__ float mla_fold_value(float total, float o, float old, float now)
{
    return __fadd_rn(__fmul_rn(o, now), __fmul_rn(total, old));
}

static __host__ __device__ __forceinline__ int mla_tiles(int keys)
{
    return (keys + MLA_TILE - 1) / MLA_TILE;
}

bool mla_cut(const struct cuda_mla *m, struct mla_cut *cut_out);
struct mla_work mla_work(const struct cuda_mla *m, const struct mla_cut *c);
cudaError_t mla_merge_rows(cudaStream_t s, const struct cuda_mla *m, const struct mla_cut *c);
// sm_90; false: this shape or device is not for it.
bool mla_is_tiled(const struct cuda_mla *m);
cudaError_t mla_tiled(cudaStream_t s, const struct cuda_mla *m);
cudaError_t mla_merge(cudaStream_t s, const struct cuda_mla *m, const struct mla_cut *c);
// Few rows with few splits, in a cluster each. Partial result of row i, split j: i * splits + j.
bool mla_is_short(const struct cuda_mla *m, const struct mla_cut *c);
cudaError_t mla_short(cudaStream_t s, const struct cuda_mla *m, const struct mla_cut *c);
// Tensor maps of the pool (boxes of 64 columns by *box_rows_out tokens) and of queries (64 columns,
// `heads`, `tokens`).
bool mla_maps(const struct cuda_mla *m, int heads, int tokens, CUtensorMap *kv_out,
              CUtensorMap *latent_out, CUtensorMap *rope_out, int *box_rows_out);
