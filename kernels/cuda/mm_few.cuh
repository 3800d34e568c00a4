// The few-row product (mm.h) on Hopper: what the kernel takes, and the kernel.
//
// Weights are the wide operand: a block multiplies R rows of W by up to 64 rows of x, as wgmma's B,
// so units of work can be as narrow as 8 rows of W and 132 multiprocessors finish together; x is A.
// Its rows above n are zeros or whatever lies there: what they make is never looked at. Every unit
// walks all of K, so no sum is split between warps.
//
// A block is persistent over its units. One warp streams W by the tensor copy engine into a ring of
// stages and, before it waits for the kernel before, fills the ring; two or three copy rows of x
// (gathered, for experts) into a ring of their own; four warps multiply. The W ring runs on across
// units, so memory never waits for an epilogue.
#pragma once

#include "kernels/cuda/mm.h"
#include "kernels/cuda/mm_ptx.cuh"
#include "kernels/cuda/mm_shared.cuh"
#include "kernels/cuda/mm_wgmma.cuh"

enum few_op { FEW_PLAIN, FEW_GATED, FEW_DOWN };
// Where wgmma finds x: up to FEW_X_TILE rows in shared memory, swizzled; more in registers, so that
// rows that are not there need no room.
enum few_form { FEW_TILE, FEW_ROWS };
enum { FEW_W_WARP = 4, FEW_X_WARP = 5, FEW_SUMS_THREADS = 128 }; // the first four multiply
enum { FEW_X_BATCH = 4 }; // rows of x whose addresses a lane makes before it copies them
enum { FEW_SUB = 128 };   // bytes of a row that lie together in a stage, swizzled
enum { FEW_X_TILE = 8 }; // rows of x up to which they are wgmma's tile in shared memory as they lie
enum { FEW_X_MOST = 64 }; // rows that wgmma takes
enum { FEW_X_PAD = 16 };  // behind a longer x's rows in a stage: no bank conflicts; xs of FP8
// As many (token, choice) pairs are sorted by every block for itself.
enum { FEW_PLAN_PAIRS = 1024 };

static __host__ __device__ constexpr int few_x_warps(few_form form)
{
    return form == FEW_TILE ? 2 : 3;
}
static __host__ __device__ constexpr int few_threads(few_form form)
{
    return 32 * (FEW_X_WARP + few_x_warps(form));
}

struct few_piece { // rows of one expert: pairs[first .. first + n)
    int expert, first, n;
};

struct few {
    CUtensorMap w, w_up;  // {128 bytes, rows, 128-byte columns, stack}
    const char *x;        // bf16 or quantized
    size_t x_row, x_head; // bytes
    const float *xs, *scales, *scales_up;
    size_t xs_ld, scales_ld, stack_scales;
    void *out;
    size_t out_ld, out_head;
    const float *bias, *bias_up, *add;
    size_t add_ld;
    const float *shared; // FEW_DOWN; add is the residual
    size_t shared_ld;
    int out_bf16;
    int rows, n, tiles, units;          // units: of products without experts
    int row_bytes;                      // bytes of x that a row has, cols rounded up to 16 bytes
    int subs;                           // FEW_SUBs of a row of W
    int stage_subs, w_stages, x_stages; // stage_subs: 2 or 4
    int x_rows;                         // most rows of a piece
    int keep;                           // W is read again soon: no evict-first
    // Experts: topk + always > 0.
    int topk, choices, experts, always, ready;
    const int32_t *ids;
    const float *weights;
    const int32_t *first, *pairs; // a plan made before; NULL: made here
    // Offsets into shared memory.
    int at_x, at_ws, at_xs, at_sums, at_plan;
};

extern __shared__ __align__(1024) char few_smem[];

struct few_bars { // behind the rings
    uint64_t w_full[32], w_empty[32], x_full[32], x_empty[32];
    uint4 zeros; // rows that are not there
};

struct few_plan {
    int routed;           // pieces of routed experts
    const int32_t *pairs; // shared or global
    few_piece *pieces;
};
