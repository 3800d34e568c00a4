// Grouped-query attention for few rows per sequence (decode, short pieces of prefill): bound by the
// reading of K and V, so everything serves that.
//
// All units of all (tile, kv head) lie in one line that is cut into equal parts, one per resident
// block: the load is even whatever the lengths. Four warps do nothing but copy (cp.async into a
// ring of stages of 64 keys, K and V alternating), four compute: a unit's keys are divided among
// them for the scores, the columns of the value for the sums. The 16 rows of the tensor core's tile
// are the query heads that share the kv head, times neighbouring tokens where there are any.
//
// Without a plan no two rows are of one sequence, so all keys but a row's own are older than this
// step: they are copied while the predecessor still runs.
//
// A block that begins a tile folds its units in registers; what it begins in the middle cannot be
// folded before its predecessors are known, so it writes every unit's sums, and attn_gqa_merge
// folds them in order. A block of cut_tile says where.
#include "kernels/cuda/attn_gqa.cuh"

namespace gqa
{

enum {
    WARPS = 4, // that compute, and that copy
    THREADS = 2 * WARPS * 32,
    STAGE_KEYS = 64,
    RING_BYTES = 112 << 10, // so much that two blocks never meet on a multiprocessor
    LIST_MAX = 1024,        // tiles whose sums of units are held in shared memory
};

template <int HD> struct shared_few {
    static constexpr int STAGE = STAGE_KEYS * HD, STAGES = RING_BYTES / (STAGE * 2);
    __nv_bfloat16 ring[STAGES][STAGE]; // swizzled rows of HD
    __nv_bfloat16 p[FEW_ROWS * UNIT];  // swizzled
    float top[WARPS][FEW_ROWS], sum[WARPS][FEW_ROWS][4];
    uint64_t full[STAGES], empty[STAGES];
    int32_t scan[THREADS / 32];
    int32_t units[LIST_MAX + 1];
};

// Chunks of 16 bytes of a row, permuted so that 8 rows' chunks of one column meet no bank twice.
template <int HD> static __device__ __forceinline__ uint32_t swizzled(int row, int chunk)
{
    return (uint32_t)(row * HD * 2 + ((chunk ^ (row & 7)) << 4));
}

static __device__ __forceinline__ int units_of(int keys)
{
    return max(keys + UNIT - 1, 0) / UNIT;
}

// ---- who computes what

struct line {
    const int32_t *units; // [tiles + 1] units before each tile
    int tiles, per_tile;  // per_tile: kv heads x groups of query heads
};

struct segment {
    tile t;
    int part, unit, units, count; // part of the tile; units [unit, unit + count) of its `units`
};

// The tile that holds place `at` of the line, 0 <= at < all.
static __device__ segment segment_at(const args &a, const line &l, int at, int end)
{
    int lo = 0, hi = l.tiles; // units[lo] * per_tile <= at < units[hi] * per_tile
    while (hi - lo > 1) {
        int mid = (lo + hi) / 2;
        if (l.units[mid] * l.per_tile <= at)
            lo = mid;
        else
            hi = mid;
    }
    segment s;
    int rest = at - l.units[lo] * l.per_tile;
    s.units = l.units[lo + 1] - l.units[lo];
    s.part = rest / s.units;
    s.unit = rest - s.part * s.units;
    s.count = min(s.units - s.unit, end - at);
    s.t = a.planned ? a.few_tiles[lo] : tile{lo, 1};
    return s;
}

// Without a plan: a scan over the rows' units, by the whole block.
static __device__ line make_line(const args &a, int32_t *units, int32_t *scan)
{
    line l = {units, a.n, a.kv_heads * a.few_groups};
    if (a.planned) {
        l.tiles = a.planned->few_n;
        l.units = a.few_units;
        if (l.tiles <= LIST_MAX) {
            for (int i = threadIdx.x; i <= l.tiles; i += blockDim.x)
                units[i] = a.few_units[i];
            l.units = units;
            __syncthreads();
        }
        return l;
    }
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, base = 0;
    for (int first = 0; first < a.n; first += blockDim.x) {
        int i = first + threadIdx.x, v = i < a.n ? units_of(a.pos[i] + 1) : 0;
        for (int d = 1; d < 32; d *= 2) {
            int w = __shfl_up_sync(~0u, v, d);
            v += lane >= d ? w : 0;
        }
        if (lane == 31)
            scan[warp] = v;
        __syncthreads();
        int all = base;
        for (int w = 0; w < blockDim.x / 32; w++) {
            v += w < warp ? scan[w] : 0;
            all += scan[w];
        }
        if (i < a.n)
            units[i + 1] = base + v;
        base = all;
        __syncthreads();
    }
    if (threadIdx.x == 0)
        units[0] = 0;
    __syncthreads();
    return l;
}

// ---- copying

template <int HD> struct copier {
    const args &a;
    shared_few<HD> &s;
    int warp, lane; // of the copying warps
    bool waited;    // for the predecessor: the rows' own keys and values may come from it
    int stage;
    uint32_t phase;

    // Which token row of the pool holds the key that this lane looks after: lanes 0 .. 15 in the
    // unit's first half, the others in its second. -1: none.
    __device__ __forceinline__ int find(const int32_t *table, int unit, int keys) const
    {
        int t = unit * UNIT + (lane / 16) * STAGE_KEYS + warp * 16 + lane % 16;
        if (t >= keys)
            return -1;
        int b = t / a.block_tokens;
        return table[b] * a.block_tokens + (t - b * a.block_tokens);
    }

    // 16 rows of a stage by a warp. Rows without a key become zeros: what lies there may be NaN.
    __device__ __forceinline__ void copy(int token, int half, const __nv_bfloat16 *from)
    {
        constexpr int LANES = HD / 8, ROWS = 32 / LANES; // lanes per row, rows at once
        barrier_wait(&s.empty[stage], phase ^ 1);
        char *to = (char *)s.ring[stage];
        int chunk = lane % LANES;
#pragma unroll
        for (int i = 0; i < 16; i += ROWS) {
            int r = i + lane / LANES, from_token = __shfl_sync(~0u, token, half * 16 + r);
            const __nv_bfloat16 *x = from + (size_t)max(from_token, 0) * a.width + chunk * 8;
            copy_async(to + swizzled<HD>(warp * 16 + r, chunk), x, from_token >= 0);
        }
        barrier_arrive_copied(&s.full[stage]);
        if (++stage == s.STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }

    __device__ void run(const segment &g)
    {
        int row = g.t.row, keys = a.pos[row + g.t.tokens - 1] + 1;
        int kv_head = g.part / a.few_groups;
        const int32_t *table = a.tables + (size_t)a.seq[row] * a.table_stride;
        const __nv_bfloat16 *k = a.pool + kv_head * HD, *v = k + a.kv_heads * HD;
        int next = find(table, g.unit, keys);
        for (int u = g.unit; u < g.unit + g.count; u++) {
            int token = next;
            next = find(table, u + 1, u + 1 < g.unit + g.count ? keys : 0);
            if (!waited && u + 1 == g.units) {
                wait_for_predecessor();
                waited = true;
            }
            copy(token, 0, k);
            copy(token, 1, k);
            copy(token, 0, v);
            copy(token, 1, v);
        }
    }
};

// ---- computing

template <int HD> struct computer {
    static constexpr int KS = HD / 16;          // k16 steps of a score
    static constexpr int NT = HD / (8 * WARPS); // columns of 8 of the value that a warp owns
    const args &a;
    shared_few<HD> &s;
    int warp, lane, g, t;
    int stage;
    uint32_t phase;

    uint4 q[KS];
    int row_pos[2]; // last key that rows g and g + 8 see
    float top[2], sum[2], o[NT][4], unit_o[NT][4], unit_top[2], unit_sum[2];

    __device__ __forceinline__ static void sync()
    {
        asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory");
    }

    __device__ __forceinline__ int stage_after(int i) const
    {
        int at = stage + i;
        return at >= s.STAGES ? at - s.STAGES : at;
    }
    __device__ __forceinline__ void wait_full(int i)
    {
        barrier_wait(&s.full[stage_after(i)], phase ^ (stage + i >= s.STAGES));
    }
    __device__ __forceinline__ void release(int i)
    {
        if (lane == 0)
            barrier_arrive(&s.empty[stage_after(i)]);
    }

    __device__ void load_q(const segment &x)
    {
        int group = x.part % a.few_groups, kv_head = x.part / a.few_groups;
        int head0 = group * a.few_heads, heads = min(a.few_heads, a.group - head0);
        int pos0 = a.pos[x.t.row];
        const uint32_t *from[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = g + 8 * i, token = r / heads, h = r - token * heads;
            from[i] = NULL;
            row_pos[i] = -1;
            if (token < x.t.tokens) {
                size_t head = (size_t)kv_head * a.group + head0 + h;
                from[i] = (const uint32_t *)(a.q + (x.t.row + token) * a.q_stride + head * HD) + t;
                row_pos[i] = pos0 + token;
            }
        }
#pragma unroll
        for (int i = 0; i < KS; i++) {
            q[i].x = from[0] ? from[0][8 * i] : 0;
            q[i].y = from[1] ? from[1][8 * i] : 0;
            q[i].z = from[0] ? from[0][8 * i + 4] : 0;
            q[i].w = from[1] ? from[1][8 * i + 4] : 0;
        }
    }

    // Scores of this warp's 32 keys; leaves probabilities of all keys in shared memory.
    __device__ __forceinline__ void scores(int unit)
    {
        float c[4][4] = {};
        int key0 = (warp % 2) * 32;
        uint32_t k = smem_at(s.ring[stage_after(warp / 2)]);
#pragma unroll
        for (int i = 0; i < KS; i += 2)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t b[4];
                load_matrices(b, k + swizzled<HD>(key0 + 8 * j + lane % 8, 2 * i + lane / 8));
                mma_bf16(c[j], q[i], b[0], b[1]);
                mma_bf16(c[j], q[i + 1], b[2], b[3]);
            }
        __syncwarp();
        release(0);
        release(1);
        int first = unit * UNIT + warp * 32 + 2 * t;
        float m[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (first + 8 * j + e % 2 > row_pos[e / 2])
                    c[j][e] = -INFINITY;
                m[e / 2] = fmaxf(m[e / 2], c[j][e]);
            }
        m[0] = quad_max(m[0]);
        m[1] = quad_max(m[1]);
        if (t == 0) {
            s.top[warp][g] = m[0];
            s.top[warp][g + 8] = m[1];
        }
        sync();
        float l[2] = {}, minus[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = g + 8 * i;
            float all = fmaxf(fmaxf(s.top[0][r], s.top[1][r]), fmaxf(s.top[2][r], s.top[3][r]));
            unit_top[i] = __fmul_rn(all, a.c);
            minus[i] = -finite_top(unit_top[i]);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                c[j][e] = exp2_approx(fmaf(c[j][e], a.c, minus[e / 2]));
                l[e / 2] = j == 0 && e % 2 == 0 ? c[j][e] : __fadd_rn(l[e / 2], c[j][e]);
            }
            char *p = (char *)s.p + 4 * t;
            *(uint32_t *)(p + swizzled<UNIT>(g, 4 * warp + j)) = to_bf16x2(c[j][0], c[j][1]);
            *(uint32_t *)(p + swizzled<UNIT>(g + 8, 4 * warp + j)) = to_bf16x2(c[j][2], c[j][3]);
        }
        s.sum[warp][g][t] = l[0];
        s.sum[warp][g + 8][t] = l[1];
        sync();
    }

    // unit_o = probabilities x values, this warp's columns.
    __device__ __forceinline__ void values()
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = g + 8 * i;
            unit_sum[i] =
                __fadd_rn(__fadd_rn(__fadd_rn(s.sum[0][r][t], s.sum[1][r][t]), s.sum[2][r][t]),
                          s.sum[3][r][t]);
        }
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                unit_o[j][e] = 0;
        uint32_t p = smem_at(s.p);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            wait_full(2 + half);
            uint32_t v = smem_at(s.ring[stage_after(2 + half)]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t pa[4];
                load_matrices(pa, p + swizzled<UNIT>(lane % 16, 8 * half + 2 * i + lane / 16));
                uint4 pf = {pa[0], pa[1], pa[2], pa[3]};
#pragma unroll
                for (int j = 0; j < NT; j += 2) {
                    uint32_t b[4];
                    load_matrices_transposed(
                        b, v + swizzled<HD>(16 * i + lane % 16, warp * NT + j + lane / 16));
                    mma_bf16(unit_o[j], pf, b[0], b[1]);
                    mma_bf16(unit_o[j + 1], pf, b[2], b[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void advance()
    {
        __syncwarp();
        release(2);
        release(3);
        phase ^= stage + 4 >= s.STAGES;
        stage = stage_after(4);
    }

    // What this block began and others go on with.
    __device__ __forceinline__ void store_cut(const segment &x, int at, int per_cta, int heads)
    {
        if (threadIdx.x)
            return;
        int kv_head = x.part / a.few_groups, head0 = x.part % a.few_groups * a.few_heads;
        cut_tile c = {x.t.row,      heads * x.t.tokens, heads,  kv_head * a.group + head0,
                      at + x.count, x.units - x.count,  per_cta};
        a.cuts[blockIdx.x] = c;
    }

    // A row's sums (not divided), for attn_gqa_merge.
    __device__ __forceinline__ void store_slot(int slot, const float (*x)[4], const float *x_top,
                                               const float *x_sum, int rows)
    {
        float *to = a.partial + ((size_t)blockIdx.x * a.slots + slot) * a.slot_rows * (HD + STATS);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = g + 8 * i;
            if (r >= rows)
                continue;
            float *o_to = to + r * HD + warp * (HD / WARPS) + 2 * t;
#pragma unroll
            for (int j = 0; j < NT; j++)
                *(float2 *)(o_to + 8 * j) = make_float2(x[j][2 * i], x[j][2 * i + 1]);
            if (warp == 0) {
                float *stats = to + a.slot_rows * HD + r * STATS;
                stats[1 + t] = x_sum[i];
                if (t == 0)
                    stats[0] = x_top[i];
            }
        }
    }

    __device__ __forceinline__ void store_out(const segment &x, int heads)
    {
        int kv_head = x.part / a.few_groups, head0 = x.part % a.few_groups * a.few_heads;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float inverse = __frcp_rn(quad_sum(sum[i]));
            int r = g + 8 * i, token = r / heads, h = r - token * heads;
            if (token >= x.t.tokens)
                continue;
            size_t head = (size_t)kv_head * a.group + head0 + h;
            __nv_bfloat16 *to =
                a.out + (x.t.row + token) * a.out_stride + head * HD + warp * (HD / WARPS) + 2 * t;
#pragma unroll
            for (int j = 0; j < NT; j++)
                *(uint32_t *)(to + 8 * j) =
                    to_bf16x2(finished(o[j][2 * i], inverse), finished(o[j][2 * i + 1], inverse));
        }
    }

    // `at`: place of the segment in the line.
    __device__ void run(const segment &x, int at, int per_cta)
    {
        int heads = min(a.few_heads, a.group - x.part % a.few_groups * a.few_heads);
        int rows = heads * x.t.tokens;
        load_q(x);
        top[0] = top[1] = -INFINITY;
        sum[0] = sum[1] = 0;
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[j][e] = 0;
        for (int u = x.unit; u < x.unit + x.count; u++) {
            wait_full(0);
            wait_full(1);
            scores(u);
            values();
            advance();
            if (x.unit > 0) {
                store_slot(1 + u - x.unit, unit_o, unit_top, unit_sum, rows);
                continue;
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                fold f(&top[i], unit_top[i]);
                sum[i] = f(sum[i], unit_sum[i]);
#pragma unroll
                for (int j = 0; j < NT; j++) {
                    o[j][2 * i] = f(o[j][2 * i], unit_o[j][2 * i]);
                    o[j][2 * i + 1] = f(o[j][2 * i + 1], unit_o[j][2 * i + 1]);
                }
            }
        }
        if (x.unit > 0)
            return;
        if (x.count == x.units)
            store_out(x, heads);
        else {
            store_slot(0, o, top, sum, rows);
            store_cut(x, at, per_cta, heads);
        }
    }
};

template <int HD>
static __global__ void __launch_bounds__(THREADS) attn_gqa_few(const __grid_constant__ args a)
{
    extern __shared__ __align__(128) char smem[];
    shared_few<HD> &s = *(shared_few<HD> *)smem;
    if (threadIdx.x < s.STAGES) {
        barrier_init(&s.full[threadIdx.x], WARPS * 32);
        barrier_init(&s.empty[threadIdx.x], WARPS);
    }
    if (a.planned) { // by what may be the direct predecessor
        wait_for_predecessor();
        launch_dependents();
    }
    line l = make_line(a, s.units, s.scan);
    __syncthreads(); // with a long plan nothing else makes the barriers seen
    int all = l.units[l.tiles] * l.per_tile, per_cta = (all + gridDim.x - 1) / gridDim.x;
    int at = min((int)blockIdx.x * per_cta, all), end = min(at + per_cta, all);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp >= WARPS) {
        copier<HD> c = {a, s, warp - WARPS, lane, a.planned != NULL, 0, 0};
        while (at < end) {
            segment x = segment_at(a, l, at, end);
            c.run(x);
            at += x.count;
        }
        copy_wait<0>();
        return;
    }
    if (!a.planned) {
        wait_for_predecessor();
        launch_dependents();
    }
    computer<HD> c = {a, s, warp, lane, lane / 4, lane % 4, 0, 0};
    if (threadIdx.x == 0)
        a.cuts[blockIdx.x].rows = 0;
    while (at < end) {
        segment x = segment_at(a, l, at, end);
        c.run(x, at, per_cta);
        at += x.count;
    }
}

// ---- folding what was cut

enum { MERGE_THREADS = 128, MERGE_PARTS = 32, MERGE_STAGES = 2 };

// A block per block of attn_gqa_few that began a tile and did not finish it, and row of that tile;
// a thread per column. Parts of the tile: its folded start, then single units of the blocks that
// follow. They come through a ring of stages of 32 parts; the fold itself is a short chain.
template <int HD> struct merger {
    static constexpr int PIECES = HD / 4; // of 16 bytes of a part's row
    struct shared {
        float o[MERGE_STAGES][MERGE_PARTS][HD];
        float sum[MERGE_STAGES][MERGE_PARTS][4], top[MERGE_STAGES][MERGE_PARTS];
    };
    const args &a;
    shared &s;
    cut_tile c;
    int first, r, warp, lane;

    __device__ __forceinline__ const float *part_at(int part) const
    {
        int cta = first, slot = 0;
        if (part > 0) {
            int place = c.next + part - 1;
            cta = place / c.per_cta;
            slot = 1 + place - cta * c.per_cta;
        }
        return a.partial + ((size_t)cta * a.slots + slot) * a.slot_rows * (HD + STATS);
    }

    __device__ __forceinline__ void load(int stage, int part0) const
    {
        // Warp w takes parts w, w + 4 ...; lane i < 8 knows where the i-th of them lies.
        constexpr int WARPS_ = MERGE_THREADS / 32, EACH = MERGE_PARTS / WARPS_;
        int mine = part0 + warp + lane % EACH * WARPS_;
        uint64_t from = (uint64_t)part_at(min(mine, c.units));
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int part = warp + i * WARPS_;
            const float *x = (const float *)__shfl_sync(~0u, from, i);
            if (part0 + part > c.units)
                break;
            if (lane < PIECES)
                copy_async(&s.o[stage][part][4 * lane], x + r * HD + 4 * lane, true);
            const float *stats = x + a.slot_rows * HD + r * STATS;
            if (lane < 4)
                copy_async4(&s.sum[stage][part][lane], stats + 1 + lane);
            if (lane == 4)
                copy_async4(&s.top[stage][part], stats);
        }
    }

    __device__ __forceinline__ void run() const
    {
        float top = -INFINITY, o = 0, sum = 0;
        int column = warp * 32 + lane, chunks = c.units / MERGE_PARTS + 1;
#pragma unroll
        for (int i = 0; i < MERGE_STAGES - 1; i++) {
            if (i < chunks)
                load(i, i * MERGE_PARTS);
            copy_commit();
        }
        for (int i = 0; i < chunks; i++) {
            int ahead = i + MERGE_STAGES - 1, stage = i % MERGE_STAGES;
            if (ahead < chunks)
                load(ahead % MERGE_STAGES, ahead * MERGE_PARTS);
            copy_commit();
            copy_wait<MERGE_STAGES - 1>();
            __syncthreads();
            int n = min((int)MERGE_PARTS, c.units + 1 - i * MERGE_PARTS);
            float t = lane < n ? s.top[stage][lane] : -INFINITY, upto = t;
#pragma unroll
            for (int d = 1; d < 32; d *= 2) // below lane d: its own again
                upto = fmaxf(upto, __shfl_up_sync(~0u, upto, d));
            float before = __shfl_up_sync(~0u, upto, 1);
            before = lane ? fmaxf(before, top) : top;
            top = fmaxf(top, __shfl_sync(~0u, upto, 31));
            fold f(&before, t);
#pragma unroll 8
            for (int part = 0; part < n; part++) {
                float now = __shfl_sync(~0u, f.now, part), old = __shfl_sync(~0u, f.old, part);
                o = fmaf(s.o[stage][part][column % HD], now, __fmul_rn(o, old));
                sum = fmaf(s.sum[stage][part][lane % 4], now, __fmul_rn(sum, old));
            }
            __syncthreads();
        }
        float inverse = __frcp_rn(quad_sum(sum));
        int token = r / c.heads, h = r - token * c.heads;
        if (column < HD)
            a.out[(c.row + token) * a.out_stride + (size_t)(c.head0 + h) * HD + column] =
                __float2bfloat16_rn(finished(o, inverse));
    }
};

template <int HD>
static __global__ void __launch_bounds__(MERGE_THREADS)
    attn_gqa_merge(const __grid_constant__ args a)
{
    extern __shared__ __align__(128) char smem[];
    wait_for_predecessor();
    launch_dependents();
    merger<HD> m = {a,
                    *(typename merger<HD>::shared *)smem,
                    a.cuts[blockIdx.x],
                    (int)blockIdx.x,
                    (int)blockIdx.y,
                    (int)threadIdx.x / 32,
                    (int)threadIdx.x % 32};
    if (m.r < m.c.rows)
        m.run();
}

// ---- launching

template <int HD> static cudaError_t launch_few(const launch &l, const args &a)
{
    cudaError_t e = launch_kernel(l.stream, attn_gqa_few<HD>, dim3((unsigned)l.ctas), THREADS,
                                  sizeof(shared_few<HD>), a);
    if (e != cudaSuccess || l.ctas == 1)
        return e;
    return launch_kernel(l.stream, attn_gqa_merge<HD>,
                         dim3((unsigned)l.ctas - 1, (unsigned)a.slot_rows), MERGE_THREADS,
                         sizeof(typename merger<HD>::shared), a);
}

cudaError_t few(const launch &l, const args &a)
{
    return l.head_dim == 128 ? launch_few<128>(l, a) : launch_few<64>(l, a);
}

} // namespace gqa
