// The tile kernel of attn_mla_sm90.cu: scores of a tile and their softmax, by one warp group.
#pragma once

#include "kernels/cuda/attn_mla_load.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <bool FP8> struct scorer {
    const tiled &a;
    const block &b;
    int warp, lane, row; // row: of the tile, the thread's first; the other is 8 further
    int seen[2];         // keys that they see
    float top[2], sum[2];

    __device__ __forceinline__ void begin(float (&s)[32], int n)
    {
        int i = n & 1;
        uint64_t q = operand(b.q, 16, 1024), k = operand(tile_at(b, i), 16, 1024);
#pragma unroll
        for (int c = 0; c < BOXES; c++) {
            if (c % 2 == 0 && c / 2 < STAGES) {
                bar_wait(shared_at(&b.sh->full[i][c / 2]), n / 2 & 1);
                product_fence(); // anew after every branch
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
                product_64(s, q + (c * BOX + 32 * j) / 16, k + (c * BOX + 32 * j) / 16, c + j);
        }
        product_commit();
    }

    static __device__ __forceinline__ float exp2_fast(float x)
    {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }

    // Scores to probabilities, with what older sums are multiplied with. `first`: key of the tile.
    __device__ __forceinline__ void softmax(float (&s)[32], uint32_t (&p)[4][4], bool masked,
                                            int first, float (&decay)[2])
    {
        if (masked) {
            int lo = seen[0] - first - 2 * (lane % 4), hi = seen[1] - first - 2 * (lane % 4);
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    s[4 * j + e] = 8 * j + e < lo ? s[4 * j + e] : -INFINITY;
                    s[4 * j + 2 + e] = 8 * j + e < hi ? s[4 * j + 2 + e] : -INFINITY;
                }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float largest = s[2 * r];
#pragma unroll
            for (int j = 0; j < 8; j++)
                largest = fmaxf(largest, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
            float new_top = mla_reference(top[r], largest * a.scale);
            float base = new_top == -INFINITY ? 0 : new_top, all = 0;
            decay[r] = exp2_fast(top[r] - base);
            top[r] = new_top;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float lo = exp2_fast(fmaf(s[4 * j + 2 * r], a.scale, -base));
                float hi = exp2_fast(fmaf(s[4 * j + 2 * r + 1], a.scale, -base));
                all += lo;
                all += hi;
                __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
                p[j / 2][j % 2 * 2 + r] = *(uint32_t *)&v;
            }
            sum[r] = fmaf(sum[r], decay[r], all);
        }
    }

    __device__ __forceinline__ void write_p(const uint32_t (&p)[4][4], int i)
    {
        int r = 16 * warp + lane % 16;
        uint32_t to = tile_at(b, i) + (BOXES - 1) * BOX + r * 128;
#pragma unroll
        for (int k = 0; k < 4; k++)
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                             to + ((2 * k + lane / 16) ^ (r & 7)) * 16),
                         "r"(p[k][0]), "r"(p[k][1]), "r"(p[k][2]), "r"(p[k][3])
                         : "memory");
    }

    // Keys that nobody wrote may hold anything, and 0 * NaN is NaN.
    __device__ __forceinline__ void zero_tail(int keys, int i)
    {
        for (int x = threadIdx.x % GROUP; x < (MLA_TILE - keys) * 64; x += GROUP) {
            uint32_t at = tile_at(b, i) + x % 64 / 8 * BOX + (keys + x / 64) * 128 + x % 8 * 16;
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
        }
    }

    // Tile t, whose products are done: P for the others.
    __device__ __forceinline__ void publish(float (&s)[32], const struct piece &p, int t, int n)
    {
        uint32_t pr[4][4];
        float decay[2];
        int i = n & 1, first = t * MLA_TILE;
        if (t == p.from || t % p.split == 0)
            top[0] = top[1] = -INFINITY, sum[0] = sum[1] = 0;
        softmax(s, pr, first + MLA_TILE > p.g.keys_all, first, decay);
        named_sync<BAR_SCORES, GROUP>(); // all warps' products are done
        write_p(pr, i);
        if (!FP8 && first + MLA_TILE > p.g.keys)
            zero_tail(p.g.keys - first, i);
        if (lane % 4 == 0) {
            b.sh->decay[i][row] = decay[0];
            b.sh->decay[i][row + 8] = decay[1];
        }
        if (ends_split(p, t))
#pragma unroll
            for (int r = 0; r < 2; r++) {
                sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
                sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
                if (lane % 4 == 0)
                    b.sh->split[i][row + 8 * r] = make_float2(top[r], sum[r]);
            }
        fence_async();
        release(&b.sh->scored[i], lane);
    }

    __device__ __forceinline__ void compute()
    {
        float s[32] = {};
        int pieces = 0, n = 0;
        struct piece p = {{}, b.begin.group - 1};
        while (next_piece(a, b, &p)) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int token = (row + 8 * r) / a.c.tile_heads;
                seen[r] = token < p.g.rows ? a.rows.pos[p.g.row0 + token] + 1 : p.g.keys;
            }
            if (threadIdx.x % GROUP == 0) // all products with the last ones are done: publish
                load_queries(a, b, p.g.row0);
            __syncwarp();
            bar_wait(shared_at(&b.sh->q_full), pieces++ & 1);
            for (int t = p.from; t < p.to; t++, n++) {
                begin(s, n);
                product_wait<0>();
                publish(s, p, t, n);
            }
        }
    }
};

#endif
