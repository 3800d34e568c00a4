// The product of one job of the few-row kernel with more than 8 rows of x (mm_few_product.cuh): x
// goes through registers, a warp loads what it has of 16 rows.
#pragma once

#include "kernels/cuda/mm_few_product.cuh"

template <mm_kind KIND, int R, few_op OP> struct few_product<KIND, R, OP, FEW_ROWS> {
    using shape = few_shape<KIND, R, OP>;
    using sum = typename few_sum<KIND>::type;
    static constexpr int PARTS = shape::PARTS, N = shape::N, D = N / 2;

    const few &m;
    uint32_t bars;
    few_ring w, x;
    // Of the job and the stage in work.
    uint32_t a[2][4][4];
    uint32_t w_at; // descriptor
    uint32_t x_at, x_step, x_sub;
    bool some; // this warp has rows of x
    sum c[KIND == MM_FP8 ? 2 : 1][PARTS][D];

    using place = few_x_place<FEW_ROWS>;

    // Waits for the next stage of both rings.
    __device__ __forceinline__ void stage(int rows)
    {
        const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, row = 16 * warp + (lane & 15);
        const uint32_t at = smem_at(few_smem + m.at_x);
        w.wait_full(bars + offsetof(few_bars, w_full));
        x.wait_full(bars + offsetof(few_bars, x_full));
        some = 16 * warp < rows;
        x_step = row < rows ? 32 : 0;
        x_sub = row < rows ? FEW_SUB : 0;
        // The same in all lanes: said so, it stays in uniform registers, where wgmma wants it.
        w_at = __shfl_sync(
            ~0u, wgmma_tile(smem_at(few_smem) + w.slot * shape::w_bytes(m.stage_subs)), 0);
        x_at = row < rows ? at + (x.slot * m.x_rows + row) * place::pitch(m) + lane / 16 * 16
                          : bars + (uint32_t)offsetof(few_bars, zeros);
    }

    __device__ __forceinline__ void done(uint32_t w_slot, uint32_t x_slot)
    {
        if ((threadIdx.x & 31) == 0) {
            mbar_arrive(bars + offsetof(few_bars, w_empty) + 8 * w_slot);
            mbar_arrive(bars + offsetof(few_bars, x_empty) + 8 * x_slot);
        }
    }

    // x of 128 bytes of every row.
    __device__ __forceinline__ void load(int buf, int q)
    {
        if (some)
#pragma unroll
            for (int s = 0; s < 4; s++)
                load_a(a[buf][s], x_at + q * x_sub + s * x_step);
    }

    // `more`: the sums go on.
    __device__ __forceinline__ void multiply(int buf, int q, sum (*to)[D], int more)
    {
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; s++)
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                mm_wgmma_rows<N, KIND>::go(
                    to[part], a[buf][s],
                    w_at + (part * m.stage_subs + q) * (N * FEW_SUB / 16) + s * 2, more | (s > 0));
        wgmma_commit();
    }

    __device__ __forceinline__ void begin(float (*sums)[D])
    {
#pragma unroll
        for (int b = 0; b < 2; b++)
#pragma unroll
            for (int s = 0; s < 4; s++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    a[b][s][i] = 0;
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int i = 0; i < D; i++)
                sums[part][i] = 0;
    }

    // One chain over all columns. While a sub is multiplied, x of the next is loaded.
    __device__ __forceinline__ void chain(int rows, float (*sums)[D])
    {
        int w_before = -1, x_before = 0;
        for (int from = 0; from < m.subs; from += m.stage_subs) {
            const int subs = min(m.stage_subs, m.subs - from);
            stage(rows);
            for (int q = 0; q < subs; q += 2) {
                load(0, q);
                multiply(0, q, c[0], from + q);
                wgmma_wait<1>();
                if (w_before >= 0)
                    done(w_before, x_before);
                w_before = -1;
                if (q + 1 < subs) {
                    load(1, q + 1);
                    multiply(1, q + 1, c[0], 1);
                    wgmma_wait<1>();
                }
            }
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

    // FP8: sums += the product of block q of the stage, in c, times its scales.
    __device__ __forceinline__ void fold(int buf, int q, float (*sums)[D])
    {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            float s0 = __fmul_rn(xs[0][q], ws[part][q]), s1 = __fmul_rn(xs[1][q], ws[part][q]);
#pragma unroll
            for (int i = 0; i < D; i++)
                sums[part][i] =
                    fmaf(c[KIND == MM_FP8 ? buf : 0][part][i], i / 2 % 2 ? s1 : s0, sums[part][i]);
        }
    }

    // FP8: the scales of a stage.
    float xs[2][4], ws[PARTS][4];
    __device__ __forceinline__ void read_scales(int rows)
    {
        const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = 16 * warp + lane / 4 + 8 * h;
            float4 v = make_float4(0, 0, 0, 0);
            if (r < rows)
                v = *(const float4 *)(few_smem + place::scales(m, x.slot, r));
            xs[h][0] = v.x, xs[h][1] = v.y, xs[h][2] = v.z, xs[h][3] = v.w;
        }
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            float4 v = ((const float4 *)(few_smem + m.at_ws + 32 * w.slot))[part];
            ws[part][0] = v.x, ws[part][1] = v.y, ws[part][2] = v.z, ws[part][3] = v.w;
        }
    }

    // FP8: a chain per block, each added with its scales while the next is multiplied. A stage is
    // four blocks; of the last stage those beyond the columns are zeros.
    __device__ __forceinline__ void blocks(int rows, float (*sums)[D])
    {
        constexpr int B = KIND == MM_FP8 ? 1 : 0; // second buffer
        for (int from = 0; from < m.subs; from += 4) {
            stage(rows);
            read_scales(rows);
            load(0, 0);
            cut(from + 1);
            load(1, 1);
            multiply(0, 0, c[0], 0);
            multiply(1, 1, c[B], 0);
            wgmma_wait<1>();
            fold(0, 0, sums);
            cut(from + 2);
            load(0, 2);
            multiply(0, 2, c[0], 0);
            wgmma_wait<1>();
            fold(1, 1, sums);
            cut(from + 3);
            load(1, 3);
            multiply(1, 3, c[B], 0);
            wgmma_wait<1>();
            fold(0, 2, sums);
            wgmma_wait<0>();
            fold(1, 3, sums);
            done(w.slot, x.slot);
            w.next();
            x.next();
        }
    }
    // From here on x is zeros, when that block is beyond the columns.
    __device__ __forceinline__ void cut(int block)
    {
        if (block >= m.subs) {
            x_at = bars + (uint32_t)offsetof(few_bars, zeros);
            x_step = x_sub = 0;
        }
    }

    __device__ __forceinline__ void go(const few_job &j, float (*sums)[D])
    {
        begin(sums);
        if constexpr (KIND == MM_FP8)
            blocks(j.n, sums);
        else
            chain(j.n, sums);
    }
};
