// Of the many-row products (mm_many.cuh): the warps that load.
#pragma once

#include "kernels/cuda/mm_many_tiles.cuh"

namespace many
{

struct maps {
    const CUtensorMap *w, *up, *x;
};

// One warp: all of W. Weights do not depend on earlier kernels of the stream, so they are on their
// way while those still run.
template <class C>
__device__ void produce_w(uint32_t base, const maps &m, const args &a, const walk<C> &w, int cm,
                          int cn)
{
    uint16_t mask = 0;
    for (int i = 0; i < C::CM; i++)
        mask |= 1 << (cn * C::CM + i);
    const bool lead = hopper::elect();
    // Copy j of block k of the tile's W.
    auto box = [&](const tile &t, int j, int k, uint32_t to, uint32_t full) {
        const int r = cm * C::W_ROWS + j * C::W_BOX; // row of the tile
        const bool up = C::GATED && r >= C::BN / 2;
        const CUtensorMap *map = up ? m.up : m.w;
        const int row = t.o0 + (up ? r - C::BN / 2 : r);
        if (C::CM == 1)
            hopper::tma_load(to + r * K_BYTES, map, full, 0, row, k, t.s);
        else
            hopper::tma_multicast(to + r * K_BYTES, map, full, mask, 0, row, k, t.s);
    };
    constexpr int BOXES = C::W_ROWS / C::W_BOX, PARTS = C::W_WHOLE ? 1 : C::SUBS;
    ring<C> at(base);
    for (int i = w.first; i < w.total; i += w.step) {
        const tile t = w.at(i, cm, cn);
        for (int ks = 0; ks < a.ksteps; ks++, at.next()) {
            hopper::bar_wait(at.empty(), at.phase ^ 1);
            if (!lead)
                continue;
            hopper::bar_expect(at.full(), C::B_BYTES);
#pragma unroll
            for (int p = 0; p < BOXES * PARTS; p++)
                box(t, p / PARTS, ks * C::SUBS + p % PARTS, at.b() + p % PARTS * C::B_SUB,
                    at.full());
        }
        __syncwarp();
    }
}

template <class C>
__device__ void produce_x(uint32_t base, const maps &m, const args &a, const walk<C> &w, int cm,
                          int cn)
{
    uint16_t mask = 0;
    for (int i = 0; i < C::CN; i++)
        mask |= 1 << (i * C::CM + cm);
    const bool lead = hopper::elect();
    ring<C> at(base);
    for (int i = w.first; i < w.total; i += w.step) {
        const tile t = w.at(i, cm, cn);
        for (int ks = 0; ks < a.ksteps; ks++, at.next()) {
            hopper::bar_wait(at.empty(), at.phase ^ 1);
            if (!lead)
                continue;
            hopper::bar_expect(at.full(), C::A_BYTES);
#pragma unroll
            for (int sub = 0; sub < C::SUBS; sub++) {
                const int k = t.s * a.x_head + (ks * C::SUBS + sub) * C::K_ELEMS;
                const uint32_t to = at.a() + sub * C::A_SUB + cn * C::X_BOX * K_BYTES;
                if (C::CN == 1)
                    hopper::tma_load(to, m.x, at.full(), k, t.x0);
                else
                    hopper::tma_multicast(to, m.x, at.full(), mask, k, t.x0 + cn * C::X_BOX);
            }
        }
        __syncwarp();
    }
}

// Gathered rows, GATHER_WARPS warps: eight neighbouring threads copy the 128 bytes of a row. A slot
// is reported full by each thread once its own copies have arrived and are visible to wgmma, LAG
// slots behind the copies that are being started.
template <class C>
__device__ void produce_gathered(uint32_t base, const args &a, const walk<C> &w, int tid, int cm)
{
    constexpr int LAG = C::STAGES > 3 ? 2 : 1, PASS = GATHER_WARPS * 4,
                  PASSES = (BM + PASS - 1) / PASS;
    const int part = tid % 8, row = tid / 8;
    ring<C> at(base), done(base);
    int behind = 0;
    for (int i = w.first; i < w.total; i += w.step) {
        const tile t = w.at(i, cm, 0);
        const uint8_t *from[PASSES];
        uint32_t live = 0;
#pragma unroll
        for (int j = 0; j < PASSES; j++) {
            const int r = j * PASS + row;
            from[j] = (const uint8_t *)a.x + part * 16;
            if (r < t.n && r < BM) {
                from[j] += (size_t)(a.pairs[t.x0 + r] / a.x_div) * a.x_ld;
                live |= 1u << j;
            }
        }
        for (int ks = 0; ks < a.ksteps; ks++, at.next()) {
            hopper::bar_wait(at.empty(), at.phase ^ 1);
            const int k = ks * K_BYTES;
            const int bytes = max(0, min(16, a.x_bytes - k - part * 16));
            const uint32_t to = at.a() + row * K_BYTES;
#pragma unroll
            for (int j = 0; j < PASSES; j++) {
                const int r = j * PASS + row;
                if (j == PASSES - 1 && r >= BM)
                    break;
                const int size = live >> j & 1 ? bytes : 0;
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                                 to + j * PASS * K_BYTES + ((part ^ (r & 7)) << 4)),
                             "l"(size ? from[j] + k : (const uint8_t *)a.x), "r"(size)
                             : "memory");
            }
            asm volatile("cp.async.commit_group;" ::: "memory");
            if (++behind > LAG) {
                asm volatile("cp.async.wait_group %0;" ::"n"(LAG) : "memory");
                hopper::fence_async();
                hopper::bar_arrive(done.full());
                done.next(), behind--;
            }
        }
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    hopper::fence_async();
    for (; behind > 0; behind--, done.next())
        hopper::bar_arrive(done.full());
}

} // namespace many
