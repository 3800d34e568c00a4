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

#include <cuda_bf16.h>
#include <stdint.h>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/mm_shared.cuh"

namespace many
{

enum { BM = 128, K_BYTES = 128, THREADS = 384, WARPS = THREADS / 32 };
enum { OUT_BYTES = 256, OUT_PITCH = OUT_BYTES + 16, OUT_WARP = 16 * OUT_PITCH }; // staged per warp
enum { GATHER_WARPS = 3 };
enum { SMEM_MAX = 227 << 10 };

struct args {
    int n;      // rows of x, unless by expert
    int rows;   // outputs of one matrix; gated: I
    int ksteps; // slots' worth of K
    int heads;  // matrices that every row is multiplied with
    int x_head; // elements between two heads' inputs
    int group;  // clusters' tiles of x rows that are walked together, for L2
    // Experts: first[experts + 1]; rows pairs[first[e]] .. pairs[first[e + 1] - 1] of out are
    // products with W[e], out row p of x row p / x_div.
    const int32_t *first, *pairs;
    int experts, x_div;
    const void *x; // gathered: rows of x_ld bytes, x_bytes of them are x
    size_t x_ld;
    int x_bytes;
    // fp8: scale of x row i, block b of K at xs[i * xs_ld + b]; of W[s] in block row r at
    // ws[s * ws_stack + r * ws_ld + b]. int8: xs[i], ws[s * ws_stack + r].
    const float *xs, *ws, *ws_up;
    size_t xs_ld, ws_ld, ws_stack;
    const float *bias, *bias_up;
    const float *add;
    size_t add_ld;
    void *out;
    size_t out_ld, out_head;
    int out_f32;
    int vector; // out and its strides and width allow copies of 16 bytes
    int reduce; // add is out itself: added by the copies
};

// SUBS blocks of 128 bytes of K per slot; GATHER: products by expert.
template <int KIND_, int BN_, int SUBS_, int STAGES_, int CM_, int CN_, bool GATED_, bool GATHER_>
struct config {
    static constexpr int KIND = KIND_, BN = BN_, SUBS = SUBS_, STAGES = STAGES_, CM = CM_, CN = CN_;
    static constexpr bool GATED = GATED_, GATHER = GATHER_;
    static constexpr int CLUSTER = CM * CN;
    static constexpr int OUTS = GATED ? BN / 2 : BN; // outputs of a tile
    static constexpr int A_SUB = BM * K_BYTES, B_SUB = BN * K_BYTES;
    static constexpr int A_BYTES = A_SUB * SUBS, B_BYTES = B_SUB * SUBS, SLOT = A_BYTES + B_BYTES;
    static constexpr int W_ROWS = BN / CM;                           // rows of W that a CTA loads
    static constexpr int W_BOX = GATED && CM == 1 ? BN / 2 : W_ROWS; // by one copy
    // A copy brings all of a slot's blocks of K where they lie as they come from it.
    static constexpr bool W_WHOLE = W_BOX == BN;
    static constexpr int X_BOX = BM / CN;
    static constexpr int K_ELEMS = KIND == hopper::BF16 ? 64 : 128;
    static constexpr int AT_OUT = STAGES * SLOT, AT_BARS = AT_OUT + 8 * OUT_WARP,
                         AT_UNTIL = AT_BARS + 2 * STAGES * 8;
    static constexpr int EXPERTS_MAX = GATHER ? (SMEM_MAX - AT_UNTIL - 4 * WARPS) / 2 : 0;
    static_assert(AT_UNTIL <= SMEM_MAX, "shared memory");
    static_assert(!GATHER || (CN == 1 && SUBS == 1), "gathered rows are not multicast");
    static_assert(BN / CM % 8 == 0 && BM / CN % 8 == 0, "whole swizzle atoms");
    static_assert(KIND != hopper::E4M3 || SUBS == 1, "a scale per slot");
    static constexpr int smem(int experts)
    {
        return GATHER ? AT_UNTIL + 4 * WARPS + 2 * experts : AT_UNTIL;
    }
};

// ---- tiles --------------------------------------------------------------------------------------

// matrix; first row of x or of pairs; rows from there, may be <= 0; first output
struct tile {
    int s, x0, n, o0;
};

// All threads: until[e] = clusters' tiles of rows of experts 0 .. e. Each warp takes a run of
// experts. totals: WARPS numbers of shared memory.
__device__ inline void count_tiles(const args &a, int cluster_rows, uint16_t *until,
                                   int32_t *totals)
{
    const int rounds = (a.experts + THREADS - 1) / THREADS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int sum = 0;
    for (int i = 0; i < rounds; i++) {
        const int e = (warp * rounds + i) * 32 + lane;
        int n = e < a.experts ? (a.first[e + 1] - a.first[e] + cluster_rows - 1) / cluster_rows : 0;
        for (int d = 1; d < 32; d *= 2) {
            const int v = __shfl_up_sync(~0u, n, d);
            n += lane >= d ? v : 0;
        }
        if (e < a.experts)
            until[e] = (uint16_t)(sum + n);
        sum += __shfl_sync(~0u, n, 31);
    }
    if (lane == 0)
        totals[warp] = sum;
    __syncthreads();
    int before = 0;
    for (int w = 0; w < warp; w++)
        before += totals[w];
    for (int i = 0; i < rounds; i++) {
        const int e = (warp * rounds + i) * 32 + lane;
        if (e < a.experts)
            until[e] = (uint16_t)(until[e] + before);
    }
    __syncthreads();
}

template <class C> struct walk {
    const args &a;
    const uint16_t *until;
    int mt, ot; // clusters' tiles of rows and of outputs
    int first, total, step;
    __device__ walk(const args &a_, const uint16_t *until_) : a(a_), until(until_)
    {
        mt = (a.n + BM * C::CM - 1) / (BM * C::CM);
        ot = (a.rows + C::OUTS * C::CN - 1) / (C::OUTS * C::CN);
        first = blockIdx.x / C::CLUSTER;
        step = gridDim.x / C::CLUSTER;
        total = C::GATHER ? until[a.experts - 1] * ot : a.heads * mt * ot;
    }
    __device__ tile at(int t, int cm, int cn) const
    {
        if (C::GATHER) {
            const int m = t / ot;
            int e = 0; // until[e - 1] <= m < until[e]
            for (int high = a.experts - 1; e < high;) {
                const int mid = (e + high) / 2;
                if (m < until[mid])
                    high = mid;
                else
                    e = mid + 1;
            }
            const int from = ((m - (e > 0 ? until[e - 1] : 0)) * C::CM + cm) * BM, x0 = a.first[e];
            return {e, x0 + from, a.first[e + 1] - x0 - from, (t % ot * C::CN + cn) * C::OUTS};
        }
        const int s = t / (mt * ot), u = t % (mt * ot);
        const int m0 = u / (a.group * ot) * a.group, v = u % (a.group * ot);
        const int g = min(a.group, mt - m0);
        const int m = (m0 + v % g) * C::CM + cm, o = v / g * C::CN + cn;
        return {s, m * BM, a.n - m * BM, o * C::OUTS};
    }
};

// The ring of slots: addresses in shared memory, and the position of one who walks it.
template <class C> struct ring {
    uint32_t base;
    int slot = 0;
    uint32_t phase = 0;
    __device__ ring(uint32_t base_) : base(base_)
    {
    }
    __device__ uint32_t a() const
    {
        return base + slot * C::SLOT;
    }
    __device__ uint32_t b() const
    {
        return base + slot * C::SLOT + C::A_BYTES;
    }
    __device__ uint32_t full() const
    {
        return base + C::AT_BARS + slot * 8;
    }
    __device__ uint32_t empty() const
    {
        return base + C::AT_BARS + (C::STAGES + slot) * 8;
    }
    __device__ void next()
    {
        if (++slot == C::STAGES)
            slot = 0, phase ^= 1;
    }
};

// ---- loading ------------------------------------------------------------------------------------

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

// ---- computing ----------------------------------------------------------------------------------

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

// ---- writing ------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t pack(float a, float b)
{
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *(const uint32_t *)&v;
}

__device__ __forceinline__ float as_float(float v)
{
    return v;
}
__device__ __forceinline__ float as_float(int bits)
{
    return __int_as_float(bits);
}
__device__ __forceinline__ void set_float(float &v, float to)
{
    v = to;
}
__device__ __forceinline__ void set_float(int &bits, float to)
{
    bits = __float_as_int(to);
}

// In place: int8's sums become floats (as bits) by their scales; bias is added.
template <class C, class T>
__device__ __forceinline__ void settle(const args &a, const tile &t, int row0, T *acc)
{
    const int lane = threadIdx.x % 32;
    float xs[2] = {1, 1};
    if (C::KIND == hopper::S8) {
        for (int i = 0; i < 2; i++) {
            const int r = t.x0 + min(row0 + lane / 4 + 8 * i, t.n - 1);
            xs[i] = a.xs[C::GATHER ? a.pairs[r] / a.x_div : r];
        }
    }
#pragma unroll
    for (int i = 0; i < C::BN / 2; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int r = i * 2 + lane % 4 * 2 + e; // row of B
            const bool up = C::GATED && r >= C::BN / 2;
            const int o = min(t.o0 + (up ? r - C::BN / 2 : r), a.rows - 1);
            const float bias = a.bias ? __ldg((up ? a.bias_up : a.bias) + o) : 0;
            if (C::KIND == hopper::S8) {
                const float ws = __ldg((up ? a.ws_up : a.ws) + t.s * a.ws_stack + o);
                const float v0 = acc[i + e] * (xs[0] * ws), v1 = acc[i + e + 2] * (xs[1] * ws);
                set_float(acc[i + e], a.bias ? v0 + bias : v0);
                set_float(acc[i + e + 2], a.bias ? v1 + bias : v1);
            } else {
                set_float(acc[i + e], as_float(acc[i + e]) + bias);
                set_float(acc[i + e + 2], as_float(acc[i + e + 2]) + bias);
            }
        }
    }
}

// `n` elements of each of the 16 staged rows that lanes 0 .. 15 say are valid, to where they say.
template <int SIZE>
__device__ __forceinline__ void write_elements(char *to, uint32_t stage, bool valid, int n)
{
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int r = 0; r < 16; r++) {
        char *row = (char *)__shfl_sync(~0u, (unsigned long long)to, r);
        if (!__shfl_sync(~0u, valid, r))
            continue;
#pragma unroll 1
        for (int i = lane; i < n; i += 32) {
            if (SIZE == 4) {
                uint32_t v;
                asm volatile("ld.shared.u32 %0, [%1];"
                             : "=r"(v)
                             : "r"(stage + r * OUT_PITCH + i * 4)
                             : "memory");
                ((uint32_t *)row)[i] = v;
            } else {
                uint16_t v;
                asm volatile("ld.shared.u16 %0, [%1];"
                             : "=h"(v)
                             : "r"(stage + r * OUT_PITCH + i * 2)
                             : "memory");
                ((uint16_t *)row)[i] = v;
            }
        }
    }
}

// A warp's 16 rows, 256 bytes of each at a time, through shared memory. Lane i < 16 copies row i
// out, and the copies run on while the warp goes on; where the alignment does not allow that, the
// warp stores element by element.
template <class C, bool F32, class F>
__device__ __forceinline__ void write_rows(const args &a, const tile &t, int row0, uint32_t stage,
                                           F value)
{
    constexpr int SIZE = F32 ? 4 : 2, WIDTH = OUT_BYTES / SIZE;
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int r = row0 + lane;
    const bool mine = lane < 16 && r < t.n;
    char *to = (char *)a.out + (t.o0 + (C::GATHER ? 0 : t.s * a.out_head)) * SIZE;
    if (mine)
        to += (size_t)(C::GATHER ? a.pairs[t.x0 + r] : t.x0 + r) * a.out_ld * SIZE;
    const bool added = F32 && a.add && !a.reduce;
#pragma unroll
    for (int c = 0; c < C::OUTS; c += WIDTH) {
        constexpr int LAST = C::OUTS % WIDTH ? C::OUTS % WIDTH : WIDTH;
        const int width = c + WIDTH < C::OUTS ? WIDTH : LAST, left = a.rows - t.o0 - c;
        if (left <= 0)
            break;
        hopper::bulk_wait_read();
        __syncwarp();
        if constexpr (!F32) {
            const uint32_t p = stage + (lane / 8 % 2 * 8 + lane % 8) * OUT_PITCH + lane / 16 * 16;
#pragma unroll
            for (int j = 0; j < width / 16; j++) {
                const int i = (c / 8 + 2 * j) * 4; // first of eight values
                asm volatile(
                    "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                        p + j * 32),
                    "r"(pack(value(i), value(i + 1))), "r"(pack(value(i + 2), value(i + 3))),
                    "r"(pack(value(i + 4), value(i + 5))), "r"(pack(value(i + 6), value(i + 7)))
                    : "memory");
            }
        } else {
            const uint32_t p = stage + g * OUT_PITCH + q * 8;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = row0 + g + 8 * h, o = t.o0 + c + 2 * q;
                const float *from = a.add + (t.x0 + row) * a.add_ld + o;
#pragma unroll
                for (int j = 0; j < width / 8; j++) {
                    const int i = (c / 8 + j) * 4 + 2 * h;
                    float v0 = value(i), v1 = value(i + 1);
                    if (added && row < t.n && o + 8 * j < a.rows)
                        v0 += from[8 * j], v1 += from[8 * j + 1];
                    asm volatile(
                        "st.shared.v2.f32 [%0], {%1, %2};" ::"r"(p + h * 8 * OUT_PITCH + j * 32),
                        "f"(v0), "f"(v1)
                        : "memory");
                }
            }
        }
        if (!a.vector) {
            __syncwarp();
            write_elements<SIZE>(to + c * SIZE, stage, mine, min(width, left));
            __syncwarp();
            continue;
        }
        hopper::fence_async();
        __syncwarp();
        if (mine) {
            const uint32_t from = stage + lane * OUT_PITCH, bytes = min(width, left) * SIZE;
            if (F32 && a.reduce)
                hopper::bulk_add(to + c * SIZE, from, bytes);
            else
                hopper::bulk_store(to + c * SIZE, from, bytes);
        }
        hopper::bulk_commit();
    }
}

template <class C, class T>
__device__ __forceinline__ void write(const args &a, const tile &t, int wg, uint32_t stage, T *acc)
{
    const int row0 = wg * 64 + threadIdx.x % 128 / 32 * 16;
    if (C::KIND == hopper::S8 || a.bias)
        settle<C>(a, t, row0, acc);
    auto value = [&](int i) -> float {
        const float v = as_float(acc[i]);
        return C::GATED ? mm_gated(v, as_float(acc[i + C::BN / 4])) : v;
    };
    if (a.out_f32)
        write_rows<C, true>(a, t, row0, stage, value);
    else
        write_rows<C, false>(a, t, row0, stage, value);
}

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
