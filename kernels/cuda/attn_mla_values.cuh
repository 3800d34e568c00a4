// The tile kernel of attn_mla_sm90.cu: sums of values over half of the columns, by one warp group,
// and what becomes of them where a split ends.
#pragma once

#include "kernels/cuda/attn_mla_load.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int HALF, bool FP8> struct summer {
    const tiled &a;
    const block &b;
    int warp, lane, row;
    float total_top[2], total_sum[2];

    __device__ __forceinline__ void decay_all(float (&o)[128], int i)
    {
        float lo = b.sh->decay[i][row], hi = b.sh->decay[i][row + 8];
        if (__all_sync(~0u, lo == 1 && hi == 1)) // mostly; shows in no bit
            return;
#pragma unroll
        for (int j = 0; j < 128; j += 4) {
            o[j] *= lo;
            o[j + 1] *= lo;
            o[j + 2] *= hi;
            o[j + 3] *= hi;
        }
    }

    __device__ __forceinline__ void multiply(float (&o)[128], int i, bool add)
    {
        uint64_t p = operand(tile_at(b, i) + (BOXES - 1) * BOX, 16, 1024);
        uint64_t v = operand(tile_at(b, i) + HALF * 4 * BOX, BOX, 1024);
        product_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            product_256(o, p + 32 * k / 16, v + 2048 * k / 16, add || k);
        product_commit();
        product_wait<0>();
    }

    // The split that ends with tile t: sums to the output, or (added) to a partial result.
    __device__ __forceinline__ void finish(const float (&o)[128], const struct piece &p, int t,
                                           const float2 (&split)[2])
    {
        bool begun = p.from > 0; // by an earlier worker: splits stay apart
        int which = t / p.split;
        bool fold = !begun && which > 0, write = !begun && t + 1 == p.all;
        float old[2] = {0, 0}, now[2] = {1, 1};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (fold) {
                mla_fold(&total_top[r], &total_sum[r], split[r].x, split[r].y, &old[r], &now[r]);
            } else {
                total_top[r] = split[r].x;
                total_sum[r] = split[r].y;
            }
        }
        if (16 * warp >= p.g.rows * a.c.tile_heads)
            return;
        int entry = begun ? b.begin.entry + which - p.from / p.split : b.end.entry - 1;
        size_t at = (size_t)entry * a.c.head_tiles + b.head_tile;
        float4 *sums =
            a.w.sums + at * a.w.plan->entry_warps * MLA_WARP_SUMS + (warp * 2 + HALF) * 1024 + lane;
        if (write) {
            write_out(o, p, fold, sums, old, now);
            return;
        }
        bool add = fold && __all_sync(~0u, old[0] == 1 && old[1] == 1);
#pragma unroll
        for (int j = 0; j < 32; j += 4) {
            float4 v[4];
            if (fold && !add)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    v[i] = __ldcg(sums + 32 * (j + i));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *x = &o[4 * (j + i)];
                if (add) {
                    asm volatile(
                        "red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sums + 32 * (j + i)),
                        "f"(x[0] * now[0]), "f"(x[1] * now[0]), "f"(x[2] * now[1]),
                        "f"(x[3] * now[1])
                        : "memory");
                } else if (fold) {
                    v[i].x = mla_fold_value(v[i].x, x[0], old[0], now[0]);
                    v[i].y = mla_fold_value(v[i].y, x[1], old[0], now[0]);
                    v[i].z = mla_fold_value(v[i].z, x[2], old[1], now[1]);
                    v[i].w = mla_fold_value(v[i].w, x[3], old[1], now[1]);
                    __stcg(sums + 32 * (j + i), v[i]);
                } else {
                    __stcg(sums + 32 * (j + i), make_float4(x[0], x[1], x[2], x[3]));
                }
            }
        }
        if (HALF == 0 && lane % 4 == 0) {
            float2 *tops = a.w.tops + at * MLA_TILE + row;
            tops[0] = make_float2(total_top[0], total_sum[0]);
            tops[8] = make_float2(total_top[1], total_sum[1]);
        }
    }

    __device__ __forceinline__ void write_out(const float (&o)[128], const struct piece &p,
                                              bool fold, const float4 *sums, const float (&old)[2],
                                              const float (&now)[2])
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int token = (row + 8 * r) / a.c.tile_heads;
            int head = b.head_tile * MLA_TILE + (row + 8 * r) % a.c.tile_heads;
            if (token >= p.g.rows || head >= a.c.heads)
                continue;
            uint16_t *to = a.out + (p.g.row0 + token) * a.out_ld + (size_t)head * MLA_LORA +
                           HALF * (MLA_LORA / 2) + 2 * (lane % 4);
            const float2 *total = (const float2 *)sums + r;
            float by = 1 / total_sum[r];
#pragma unroll
            for (int j = 0; j < 32; j += 4) {
                float2 v[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    v[i] = fold ? __ldcg(total + 64 * (j + i)) : make_float2(0, 0);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float *x = &o[4 * (j + i) + 2 * r];
                    *(__nv_bfloat162 *)(to + 8 * (j + i)) =
                        __floats2bfloat162_rn(mla_fold_value(v[i].x, x[0], old[r], now[r]) * by,
                                              mla_fold_value(v[i].y, x[1], old[r], now[r]) * by);
                }
            }
        }
    }

    __device__ __forceinline__ void compute()
    {
        float o[128] = {};
        int n = 0;
        converter<HALF> c = {a, b, warp, lane};
        for (int i = 0; i < 2; i++) {
            if (FP8) {
                c.fetch();
                c.put();
            } else if (warp == 0) {
                feed<HALF>(a, b, lane);
            }
        }
        if (FP8)
            c.fetch();
        struct piece p = {{}, b.begin.group - 1};
        while (next_piece(a, b, &p))
            for (int t = p.from; t < p.to; t++, n++) {
                int i = n & 1;
                bool add = t != p.from && t % p.split != 0;
                bar_wait(shared_at(&b.sh->scored[i]), n / 2 & 1);
                for (int s = 0; s < 2; s++) // long since; makes the copies' writes visible
                    bar_wait(shared_at(&b.sh->full[i][2 * HALF + s]), n / 2 & 1);
                if (add)
                    decay_all(o, i);
                multiply(o, i, add);
                float2 split[2] = {b.sh->split[i][row], b.sh->split[i][row + 8]};
                release(&b.sh->empty[i][HALF], lane);
                if (FP8)
                    c.put();
                else if (warp == 0)
                    feed<HALF>(a, b, lane);
                if (ends_split(p, t))
                    finish(o, p, t, split);
                if (FP8)
                    c.fetch();
            }
    }
};

#endif
