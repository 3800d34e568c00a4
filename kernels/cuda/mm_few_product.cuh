// The product of one job of the few-row kernel, by four warps (a warpgroup), with up to 8 rows of
// x: a stage is multiplied as it lies. mm_few_rows.cuh is for more rows.
#pragma once

#include "kernels/cuda/mm_few_stream.cuh"

template <mm_kind KIND> struct few_sum {
    using type = float;
};
template <> struct few_sum<MM_INT8> {
    using type = int32_t;
};

template <mm_kind KIND, int R, few_op OP, few_form FORM> struct few_product;

// Sums of a thread: of rows 16 warp + lane / 4 (+ 8) of x and, for each group of 8 rows of W, rows
// 2 (lane % 4) and + 1: [part][group][x row of two][w row of two].
template <mm_kind KIND, int R, few_op OP> struct few_product<KIND, R, OP, FEW_TILE> {
    using shape = few_shape<KIND, R, OP>;
    using sum = typename few_sum<KIND>::type;
    static constexpr int PARTS = shape::PARTS, N = shape::N, D = N / 2;

    const few &m;
    uint32_t bars;
    few_ring w, x;
    uint32_t w_at, x_at; // tiles of the stage in work
    sum c[KIND == MM_FP8 ? 4 : 1][PARTS][D];
    float xs[2][4], ws[PARTS][4]; // FP8: scales of the stage

    // Waits for the next stage of both rings.
    __device__ __forceinline__ void stage()
    {
        w.wait_full(bars + offsetof(few_bars, w_full));
        x.wait_full(bars + offsetof(few_bars, x_full));
        wgmma_sees(); // x was copied by threads
        // The same in all lanes: said so, they stay in uniform registers, where wgmma wants them.
        w_at = __shfl_sync(
            ~0u, wgmma_tile(smem_at(few_smem) + w.slot * shape::w_bytes(m.stage_subs)), 0);
        x_at = __shfl_sync(
            ~0u, wgmma_tile(smem_at(few_smem + m.at_x) + x.slot * few_x_place<FEW_TILE>::stage(m)),
            0);
    }

    __device__ __forceinline__ void done(uint32_t w_slot, uint32_t x_slot)
    {
        if ((threadIdx.x & 31) == 0) {
            mbar_arrive(bars + offsetof(few_bars, w_empty) + 8 * w_slot);
            mbar_arrive(bars + offsetof(few_bars, x_empty) + 8 * x_slot);
        }
    }

    // 128 bytes of every row. `more`: the sums go on.
    __device__ __forceinline__ void sub(int q, sum (*to)[D], int more)
    {
#pragma unroll
        for (int s = 0; s < 4; s++)
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                mm_wgmma<N, KIND>::go(to[part], x_at + q * (FEW_X_TILE * FEW_SUB / 16) + s * 2,
                                      w_at + (part * m.stage_subs + q) * (N * FEW_SUB / 16) + s * 2,
                                      more | (s > 0));
    }

    // One chain over all columns; what a stage has beyond them is zeros.
    __device__ __forceinline__ void chain(float (*sums)[D])
    {
        int w_before = -1, x_before = 0;
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int i = 0; i < D; i++)
                c[0][part][i] = 0;
        for (int from = 0; from < m.subs; from += m.stage_subs) {
            stage();
            wgmma_fence();
#pragma unroll
            for (int q = 0; q < 4; q++)
                sub(q, c[0], 1);
            wgmma_commit();
            wgmma_wait<1>();
            if (w_before >= 0)
                done(w_before, x_before);
            w_before = w.slot;
            x_before = x.slot;
            w.next();
            x.next();
        }
        wgmma_wait<0>();
        done(w_before, x_before);
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int i = 0; i < D; i++)
                sums[part][i] = (float)c[0][part][i];
    }

    __device__ __forceinline__ void take4(float to[4], const void *from)
    {
        float4 v = *(const float4 *)from;
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
    __device__ __forceinline__ void read_scales(int rows)
    {
        const int row = threadIdx.x / 32 * 16 + (threadIdx.x & 31) / 4;
#pragma unroll
        for (int h = 0; h < 2; h++) // rows that are not there take the last one's
            take4(xs[h],
                  few_smem + few_x_place<FEW_TILE>::scales(m, x.slot, min(row + 8 * h, rows - 1)));
#pragma unroll
        for (int part = 0; part < PARTS; part++)
            take4(ws[part], few_smem + m.at_ws + 32 * w.slot + 16 * part);
    }

    // sums += the product of block q of the stage, times its scales.
    __device__ __forceinline__ void fold(int q, float (*sums)[D])
    {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            float s0 = __fmul_rn(xs[0][q], ws[part][q]), s1 = __fmul_rn(xs[1][q], ws[part][q]);
#pragma unroll
            for (int i = 0; i < D; i++)
                sums[part][i] =
                    fmaf(c[KIND == MM_FP8 ? q : 0][part][i], i / 2 % 2 ? s1 : s0, sums[part][i]);
        }
    }
    // FP8: a chain per block of the stage, each added with its scales while the next are
    // multiplied. Blocks beyond the columns are zeros.
    __device__ __forceinline__ void blocks(int rows, float (*sums)[D])
    {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int i = 0; i < D; i++)
                sums[part][i] = 0;
        for (int from = 0; from < m.subs; from += m.stage_subs) {
            stage();
            read_scales(rows);
            wgmma_fence();
#pragma unroll
            for (int q = 0; q < 4; q++) {
                sub(q, c[KIND == MM_FP8 ? q : 0], 0);
                wgmma_commit();
            }
            wgmma_wait<3>();
            fold(0, sums);
            wgmma_wait<2>();
            fold(1, sums);
            wgmma_wait<1>();
            fold(2, sums);
            wgmma_wait<0>();
            fold(3, sums);
            done(w.slot, x.slot);
            w.next();
            x.next();
        }
    }

    __device__ __forceinline__ void go(const few_job &j, float (*sums)[D])
    {
        if constexpr (KIND == MM_FP8)
            blocks(j.n, sums);
        else
            chain(sums);
    }
};
