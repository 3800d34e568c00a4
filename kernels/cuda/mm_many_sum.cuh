// Of the many-row products (mm_many.cuh): the sums over K, on wgmma.
#pragma once

#include "kernels/cuda/mm_many_tiles.cuh"

namespace many
{

// Tells all producers that fill this slot that the warp has read it. empty: the slot's barrier.
template <class C> __device__ __forceinline__ void release(uint32_t empty, int cm, int cn)
{
    const int lane = threadIdx.x % 32;
    if (C::CLUSTER == 1) {
        if (lane == 0)
            hopper::bar_arrive(empty);
    } else if (lane < C::CM) {
        hopper::bar_arrive_at(empty, cn * C::CM + lane);
    } else if (lane < C::CM + C::CN - 1) {
        const int other = lane - C::CM; // of the other columns
        hopper::bar_arrive_at(empty, (other + (other >= cn)) * C::CM + cm);
    }
}

// acc = the whole sum over K; bf16 and int8.
template <class C, class T>
__device__ __forceinline__ void multiply(ring<C> &at, int wg, int ksteps, int cm, int cn, T *acc)
{
    uint32_t last = 0;
    for (int ks = 0; ks < ksteps; ks++, at.next()) {
        hopper::bar_wait(at.full(), at.phase);
        const uint64_t da = hopper::mma_desc(at.a() + wg * 64 * K_BYTES),
                       db = hopper::mma_desc(at.b());
        hopper::mma_fence();
#pragma unroll
        for (int sub = 0; sub < C::SUBS; sub++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                hopper::mma<C::KIND, C::BN>::run(acc, da + sub * (C::A_SUB >> 4) + 2 * k,
                                                 db + sub * (C::B_SUB >> 4) + 2 * k,
                                                 ks > 0 || sub > 0 || k > 0);
        hopper::mma_commit();
        hopper::mma_wait<1>();
        if (ks > 0)
            release<C>(last, cm, cn);
        last = at.empty();
    }
    hopper::mma_wait<0>();
    release<C>(last, cm, cn);
}

// fp8: every block of 128 of K is a sum of its own, scaled and added in float32. While one block is
// added, the next is already in the tensor cores, in a second set of accumulators.
template <class C> struct scaled {
    static constexpr int GROUPS = C::BN / 64; // columns 64 g .. of the tile have one weight scale
    const args &a;
    uint32_t xo[2], wo[GROUPS]; // where the scales of the next block are
    uint32_t empty[2];
    float x[2][2], w[2][GROUPS];

    __device__ __forceinline__ scaled(const args &a_, const tile &t, int wg) : a(a_)
    {
        const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + wg * 64;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int r = t.x0 + min(row + 8 * i, t.n - 1);
            xo[i] = (C::GATHER ? a.pairs[r] / a.x_div : r) * (uint32_t)a.xs_ld +
                    (C::GATHER ? 0 : t.s * a.x_head / 128);
        }
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const bool up = C::GATED && g >= GROUPS / 2;
            const int o = min(t.o0 + (up ? g - GROUPS / 2 : g) * 64, a.rows - 1);
            wo[g] = t.s * (uint32_t)a.ws_stack + o / 128 * (uint32_t)a.ws_ld;
        }
    }
    // The next block into c, of the two sets that one named SET.
    template <int SET> __device__ __forceinline__ void start(ring<C> &at, int wg, float *c)
    {
        hopper::bar_wait(at.full(), at.phase);
        const uint64_t da = hopper::mma_desc(at.a() + wg * 64 * K_BYTES),
                       db = hopper::mma_desc(at.b());
        hopper::mma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            hopper::mma<C::KIND, C::BN>::run(c, da + 2 * k, db + 2 * k, k > 0);
        hopper::mma_commit();
        empty[SET] = at.empty();
        at.next();
        x[SET][0] = __ldg(a.xs + xo[0]++), x[SET][1] = __ldg(a.xs + xo[1]++);
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
            w[SET][g] = __ldg((C::GATED && g >= GROUPS / 2 ? a.ws_up : a.ws) + wo[g]++);
    }
    template <int SET>
    __device__ __forceinline__ void finish(const float *c, float *sum, int cm, int cn)
    {
        release<C>(empty[SET], cm, cn);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const float s[2] = {x[SET][0] * w[SET][g], x[SET][1] * w[SET][g]};
#pragma unroll
            for (int i = g * 32; i < g * 32 + 32; i++)
                sum[i] = fmaf(c[i], s[i >> 1 & 1], sum[i]);
        }
    }
};

template <class C>
__device__ __forceinline__ void multiply_scaled(ring<C> &at, int wg, const args &a, const tile &t,
                                                int cm, int cn, float *sum)
{
    scaled<C> s(a, t, wg);
    float c0[C::BN / 2], c1[C::BN / 2];
#pragma unroll
    for (int i = 0; i < C::BN / 2; i++)
        sum[i] = 0;
    s.template start<0>(at, wg, c0);
    int ks = 1;
#pragma unroll 1
    for (; ks + 1 < a.ksteps; ks += 2) {
        s.template start<1>(at, wg, c1);
        hopper::mma_wait<1>();
        s.template finish<0>(c0, sum, cm, cn);
        s.template start<0>(at, wg, c0);
        hopper::mma_wait<1>();
        s.template finish<1>(c1, sum, cm, cn);
    }
    if (ks < a.ksteps) {
        s.template start<1>(at, wg, c1);
        hopper::mma_wait<1>();
        s.template finish<0>(c0, sum, cm, cn);
        hopper::mma_wait<0>();
        s.template finish<1>(c1, sum, cm, cn);
    } else {
        hopper::mma_wait<0>();
        s.template finish<0>(c0, sum, cm, cn);
    }
}

} // namespace many
