// The body of products with many rows: out[i][r] = sum_k x[i][k] W[r][k] on wgmma, fed by TMA. One
// persistent CTA per multiprocessor: warpgroup 0 loads, warpgroups 1 and 2 compute, each 64 rows of
// x times BN rows of W, and write out by bulk copies while the loads for the next tile already run.
// x is wgmma's A and W its B (the bits are the same either way): so a row's scale is one number per
// thread, a matrix with few outputs can be cut into narrow tiles, and a gated product is one wgmma
// whose B tile is BN / 2 rows of gate above BN / 2 rows of up.
//
// A cluster of CM x CN CTAs shares loads: CM tiles of x rows take the same tile of W, CN tiles of
// outputs the same tile of x; each CTA loads its share and multicasts it.
//
// Order of sums: as mm.h defines, so a row has the bits that the kernels for few rows give it.
#pragma once

#include "kernels/cuda/mm_many_load.cuh"
#include "kernels/cuda/mm_many_sum.cuh"
#include "kernels/cuda/mm_many_write.cuh"

namespace many
{

template <int KIND> struct sum_type {
    typedef float type;
};
template <> struct sum_type<hopper::S8> {
    typedef int type;
};

template <class C>
__device__ void consume(uint32_t base, const args &a, const walk<C> &w, int wg, int cm, int cn)
{
    ring<C> at(base);
    const uint32_t stage = base + C::AT_OUT + (threadIdx.x / 32 - 4) * OUT_WARP;
    for (int i = w.first; i < w.total; i += w.step) {
        const tile t = w.at(i, cm, cn);
        typename sum_type<C::KIND>::type acc[C::BN / 2];
        if (t.n <= wg * 64 || t.o0 >= a.rows) { // nothing of it is asked for
            for (int ks = 0; ks < a.ksteps; ks++, at.next()) {
                hopper::bar_wait(at.full(), at.phase);
                __syncwarp();
                release<C>(at.empty(), cm, cn);
            }
            continue;
        }
        if constexpr (C::KIND == hopper::E4M3)
            multiply_scaled<C>(at, wg, a, t, cm, cn, acc);
        else
            multiply<C>(at, wg, a.ksteps, cm, cn, acc);
        write<C>(a, t, wg, stage, acc);
    }
    hopper::bulk_wait();
}

template <class C>
__global__ void __launch_bounds__(THREADS, 1)
    kernel(const __grid_constant__ CUtensorMap wmap, const __grid_constant__ CUtensorMap upmap,
           const __grid_constant__ CUtensorMap xmap, const __grid_constant__ args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) uint8_t raw[];
    const uint32_t base = hopper::smem(raw);
    const maps m = {&wmap, &upmap, &xmap};
    const int rank = C::CLUSTER == 1 ? 0 : hopper::cluster_rank();
    const int cm = rank % C::CM, cn = rank / C::CM;
    if (threadIdx.x == 0) {
        if (base % 1024 != 0) // the swizzle's atoms
            asm volatile("trap;");
        hopper::tma_prefetch(&wmap);
        if (C::GATED)
            hopper::tma_prefetch(&upmap);
        if (!C::GATHER)
            hopper::tma_prefetch(&xmap);
        for (int i = 0; i < C::STAGES; i++) {
            const uint32_t full = base + C::AT_BARS + i * 8;
            hopper::bar_init(full, C::GATHER ? 1 + 32 * GATHER_WARPS : 2);
            hopper::bar_init(full + C::STAGES * 8, 8 * (C::CM + C::CN - 1));
        }
        hopper::bar_init_fence();
    }
    if (C::CLUSTER == 1)
        __syncthreads();
    else
        hopper::cluster_sync();
    uint16_t *until = (uint16_t *)(raw + C::AT_UNTIL + 4 * WARPS);
    if (C::GATHER) {
        hopper::wait_predecessors();
        hopper::launch_dependents();
        count_tiles(a, BM * C::CM, until, (int32_t *)(raw + C::AT_UNTIL));
    }
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp < 4) {
        hopper::registers_less<40>();
        const walk<C> w(a, until);
        if (warp == 0) {
            produce_w<C>(base, m, a, w, cm, cn);
        } else if constexpr (C::GATHER) {
            produce_gathered<C>(base, a, w, threadIdx.x - 32, cm);
        } else if (warp == 1) {
            hopper::wait_predecessors();
            hopper::launch_dependents();
            produce_x<C>(base, m, a, w, cm, cn);
        }
    } else {
        hopper::registers_more<232>();
        hopper::wait_predecessors();
        consume<C>(base, a, walk<C>(a, until), warp / 4 - 1, cm, cn);
    }
    if (C::CLUSTER > 1) { // nobody may still arrive at the barriers of a CTA that is gone
        __syncwarp();
        hopper::cluster_sync();
    }
#endif // elsewhere the launchers refuse
}

} // namespace many
