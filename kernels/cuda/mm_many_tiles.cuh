// Of the many-row products (mm_many.cuh): what a kernel is told, the shapes it comes in, and the
// walk over its tiles.
#pragma once

#include <stdint.h>

#include "kernels/cuda/hopper.cuh"

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

} // namespace many
