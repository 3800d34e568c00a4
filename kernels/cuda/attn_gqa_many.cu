// Grouped-query attention for long pieces of prefill, on Hopper: bound by the tensor cores.
//
// A block computes tiles of up to 128 rows (neighbouring tokens x the query heads that share a kv
// head): one warp feeds it (TMA over the block table, 128-byte swizzle, into a ring of slots that
// hold a unit's K or V), two groups of four warps compute 64 rows each with wgmma. A unit's sums
// begin at zero and are folded into the state in registers, as attn_gqa.h defines.
//
// A group's turn at the tensor cores: the left half of unit u's value product, the scores of unit
// u + 1, the right half. The left half is folded while the scores run; the right half, and the
// softmax of u + 1, while the other group has its turn. The halves share 32 registers: state (64),
// scores (64), probabilities (32) and a whole product (64) would not fit.
//
// Blocks stay resident and take (tile, kv head) by falling length, back and forth; the scores of
// the next tile's first unit are made in the turn of the last product of the one before.
#include "kernels/cuda/attn_gqa.cuh"

#include <cuda.h>

namespace gqa
{

#if __CUDA_ARCH_FEAT_SM90_ALL
#define HOPPER 1
#endif

enum {
    GROUPS = 2, // that compute
    MANY_THREADS = (GROUPS + 1) * 128,
    PRODUCER_REGISTERS = 24,
    CONSUMER_REGISTERS = 240,
};

template <int HD> struct shared_many {
    static constexpr int HALVES = HD / 64, Q_BYTES = WG_ROWS * 128, KV_BYTES = UNIT * 128;
    static constexpr int SLOTS = HD == 128 ? 5 : 8;
    // Of each: [half][row][64 elements], 128-byte swizzle.
    char q[2][GROUPS][HALVES][Q_BYTES];
    char kv[SLOTS][HALVES][KV_BYTES]; // K of a unit, V, K of the next ...
    uint64_t q_full[2], q_empty[2], full[SLOTS], empty[SLOTS];
};

// Walks the slots.
template <int HD> struct place {
    int slot;
    uint32_t phase;
    __device__ __forceinline__ void advance()
    {
        if (++slot == shared_many<HD>::SLOTS) {
            slot = 0;
            phase ^= 1;
        }
    }
};

#ifdef HOPPER
// ---- instructions

static __device__ __forceinline__ void barrier_expect(uint64_t *b, uint32_t bytes)
{
    asm volatile(
        "{ .reg .b64 s; mbarrier.arrive.expect_tx.shared.b64 s, [%0], %1; }" ::"r"(smem_at(b)),
        "r"(bytes)
        : "memory");
}
static __device__ __forceinline__ void copy_box3(void *to, const CUtensorMap *map, int x, int y,
                                                 int z, uint64_t *b)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(smem_at(to)),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(smem_at(b))
                 : "memory");
}
static __device__ __forceinline__ void copy_box4(void *to, const CUtensorMap *map, int x, int y,
                                                 int z, int w, uint64_t *b)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(smem_at(to)),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(smem_at(b))
                 : "memory");
}
template <int N> static __device__ __forceinline__ void named_sync(int id)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(N) : "memory");
}
template <int N> static __device__ __forceinline__ void named_arrive(int id)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(N) : "memory");
}
static __device__ __forceinline__ void products_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void products_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT> static __device__ __forceinline__ void products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// Operands in shared memory, 128-byte swizzle, groups of 8 rows 1024 bytes apart: the lower half of
// a descriptor, which alone depends on the place; 16 bytes further on is 1 more. The upper half is
// DESCRIBED.
static __device__ __forceinline__ uint32_t describe(const void *p)
{
    return (smem_at(p) & 0x3ffff) >> 4 | 1 << 16;
}
#define DESCRIBED "0x40000040"

// d (+)= a b: 64 x 16 rows by 128 rows of 16, both in shared memory.
static __device__ __forceinline__ void multiply_keys(float (&d)[64], uint32_t a, uint32_t b,
                                                     bool add)
{
    asm volatile("{ .reg .pred p; .reg .b64 a, b; setp.ne.b32 p, %66, 0; "
                 "mov.b64 a, {%64, " DESCRIBED "}; mov.b64 b, {%65, " DESCRIBED "}; "
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "a, b, p, 1, 1, 0, 0; }"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
                   "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
                   "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
                   "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
                   "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
                   "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
                 : "r"(a), "r"(b), "r"((int)add));
}
// d (+)= a b: a of registers, b 16 x 64 in shared memory, columns contiguous.
static __device__ __forceinline__ void multiply_values(float (&d)[32], const uint32_t *a,
                                                       uint32_t b, bool add)
{
    asm volatile("{ .reg .pred p; .reg .b64 b; setp.ne.b32 p, %37, 0; "
                 "mov.b64 b, {%36, " DESCRIBED "}; "
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, b, p, 1, 1, 1; }"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"((int)add));
}

// ---- who computes what

struct work {
    int row, tokens, kv_head, pos0, keys, units; // keys: that the tile's last row sees
};

static __device__ __forceinline__ int works_of(const args &a)
{
    return a.planned->many_n * a.kv_heads;
}
// The i-th piece of work of this block; false: there is none.
static __device__ __forceinline__ bool work_at(const args &a, int i, work *w)
{
    int at = i * gridDim.x + (i & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    if (at >= works_of(a))
        return i * gridDim.x < works_of(a) && (w->tokens = 0, true);
    tile t = a.many_tiles[at / a.kv_heads];
    w->row = t.row;
    w->tokens = t.tokens;
    w->kv_head = at % a.kv_heads;
    w->pos0 = a.pos[t.row];
    w->keys = w->pos0 + t.tokens;
    w->units = (w->keys + UNIT - 1) / UNIT;
    return true;
}

// ---- feeding

template <int HD> struct feeder {
    const args &a;
    shared_many<HD> &s;
    const CUtensorMap *q_map, *kv_map;
    int box; // tokens of a box of K or V
    int lane;

    __device__ __forceinline__ void feed_q(const work &w, int i)
    {
        int b = i & 1;
        barrier_wait(&s.q_empty[b], (i / 2 & 1) ^ 1);
        int group1 = w.tokens > a.many_tokens; // has the second group any rows
        constexpr int HALVES = shared_many<HD>::HALVES;
        if (lane == 0)
            barrier_expect(&s.q_full[b], (1 + group1) * HALVES * a.many_tokens * a.group * 128);
        __syncwarp();
        int g = lane / HALVES, half = lane % HALVES;
        if (g < 1 + group1)
            copy_box4(s.q[b][g][half], q_map, 0, w.kv_head * a.group, w.row + g * a.many_tokens,
                      half, &s.q_full[b]);
    }

    // Boxes of a unit of K or V: lane by lane, halves inside.
    __device__ __forceinline__ void feed_kv(place<HD> *at, int token, int boxes, int column)
    {
        constexpr int HALVES = shared_many<HD>::HALVES;
        uint64_t *full = &s.full[at->slot];
        barrier_wait(&s.empty[at->slot], at->phase ^ 1);
        if (lane == 0)
            barrier_expect(full, boxes * box * HALVES * 128);
        __syncwarp();
        int i = lane / HALVES, half = lane % HALVES;
        int from = __shfl_sync(~0u, token, i);
        if (i < boxes)
            copy_box3(s.kv[at->slot][half] + i * box * 128, kv_map, 0, from, column / 64 + half,
                      full);
        at->advance();
    }

    // First token (row of the pool) of this lane's box of a unit.
    __device__ __forceinline__ int find(const int32_t *table, int unit, int keys) const
    {
        int t = unit * UNIT + lane * box;
        if (lane * box >= UNIT || t >= keys)
            return 0;
        int b = t / a.block_tokens;
        return table[b] * a.block_tokens + (t - b * a.block_tokens);
    }

    __device__ void run()
    {
        place<HD> at = {0, 0};
        work w;
        for (int i = 0, some = 0; work_at(a, i, &w); i++) {
            if (!w.tokens)
                continue;
            feed_q(w, some++);
            const int32_t *table = a.tables + (size_t)a.seq[w.row] * a.table_stride;
            int next = find(table, 0, w.keys);
            for (int u = 0; u < w.units; u++) {
                int token = next;
                next = find(table, u + 1, w.keys);
                int boxes = (min(w.keys - u * UNIT, (int)UNIT) + box - 1) / box;
                feed_kv(&at, token, boxes, w.kv_head * HD);
                feed_kv(&at, token, boxes, (a.kv_heads + w.kv_head) * HD);
            }
        }
    }
};

// ---- computing

template <int HD> struct consumer {
    static constexpr int HALVES = HD / 64;
    const args &a;
    shared_many<HD> &s;
    int group, g, t; // group of warps; row and column of this thread in its warp's tile
    place<HD> at;    // of the next K or V
    int row_pos[2];  // last key that the thread's two rows see
    float top[2], sum[2], o[HALVES][32];
    float c[64];    // scores, probabilities
    uint32_t p[32]; // probabilities in bf16: operand of the value product

    __device__ __forceinline__ void find_rows(const work &w)
    {
        int warp = threadIdx.x % 128 / 32;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = warp * 16 + g + 8 * i, token = r / a.group;
            bool some = token < a.many_tokens && group * a.many_tokens + token < w.tokens;
            row_pos[i] = some ? w.pos0 + group * a.many_tokens + token : -1;
        }
    }

    // Scores to probabilities. In two steps: the first needs the scores only, the second may
    // overwrite the last unit's probabilities.
    __device__ __forceinline__ void find_top(int unit, bool masked, float *unit_top)
    {
        if (masked) {
            int first = unit * UNIT + 2 * t;
#pragma unroll
            for (int i = 0; i < 64; i++)
                if (first + i / 4 * 8 + i % 2 > row_pos[i / 2 % 2])
                    c[i] = -INFINITY;
        }
        float m[4] = {c[0], c[2], c[4], c[6]}; // two chains for each row
#pragma unroll
        for (int i = 8; i < 64; i++)
            m[i / 2 % 4] = fmaxf(m[i / 2 % 4], c[i]);
        m[0] = fmaxf(fmaxf(m[0], m[2]), fmaxf(c[1], c[5]));
        m[1] = fmaxf(fmaxf(m[1], m[3]), fmaxf(c[3], c[7]));
#pragma unroll
        for (int e = 0; e < 2; e++)
            unit_top[e] = __fmul_rn(quad_max(m[e]), a.c);
    }

    // The sum is made in the order of attn_gqa.h.
    __device__ __forceinline__ void exponentials(const float *unit_top, float *unit_sum)
    {
        float l[4][2], minus[2] = {-finite_top(unit_top[0]), -finite_top(unit_top[1])};
#pragma unroll
        for (int i = 0; i < 64; i++) {
            int e = i / 2 % 2, run = i / 16;
            c[i] = exp2_approx(fmaf(c[i], a.c, minus[e]));
            l[run][e] = i % 16 == 2 * e ? c[i] : __fadd_rn(l[run][e], c[i]);
            if (i % 2)
                p[i / 2] = to_bf16x2(c[i - 1], c[i]);
        }
#pragma unroll
        for (int e = 0; e < 2; e++)
            unit_sum[e] = __fadd_rn(__fadd_rn(__fadd_rn(l[0][e], l[1][e]), l[2][e]), l[3][e]);
    }

    // Values after the last key may be anything, and 0 times anything may be NaN.
    __device__ __forceinline__ void clear_values(int slot, int keys_left)
    {
        if (keys_left >= UNIT)
            return;
        int words = (UNIT - keys_left) * 8; // of 16 bytes
        for (int i = threadIdx.x % 128; i < words * HALVES; i += 128)
            *(uint4 *)(s.kv[slot][i / words] + keys_left * 128 + i % words * 16) =
                make_uint4(0, 0, 0, 0);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        named_sync<128>(4 + group);
    }

    __device__ __forceinline__ void store(const work &w)
    {
        int warp = threadIdx.x % 128 / 32;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float inverse = __frcp_rn(quad_sum(sum[i]));
            if (row_pos[i] < 0)
                continue;
            int r = warp * 16 + g + 8 * i, token = r / a.group, h = r - token * a.group;
            __nv_bfloat16 *to = a.out +
                                (size_t)(w.row + group * a.many_tokens + token) * a.out_stride +
                                (size_t)(w.kv_head * a.group + h) * HD + 2 * t;
#pragma unroll
            for (int j = 0; j < HD / 8; j++) {
                const float *x = &o[j / 8][j % 8 * 4 + 2 * i];
                *(uint32_t *)(to + 8 * j) =
                    to_bf16x2(finished(x[0], inverse), finished(x[1], inverse));
            }
        }
    }

    __device__ __forceinline__ void issue_scores(int q_i, int slot)
    {
        uint32_t q = describe(s.q[q_i][group]), k = describe(s.kv[slot]);
        products_begin();
#pragma unroll
        for (int j = 0; j < HD / 16; j++)
            multiply_keys(c, q + j / 4 * (s.Q_BYTES / 16) + j % 4 * 2,
                          k + j / 4 * (s.KV_BYTES / 16) + j % 4 * 2, j > 0);
        products_commit();
    }
    // 64 columns of the value product.
    __device__ __forceinline__ void issue_values(float (&x)[32], int slot, int half)
    {
        uint32_t v = describe(s.kv[slot][half]);
        products_begin();
#pragma unroll
        for (int j = 0; j < 8; j++)
            multiply_values(x, p + 4 * j, v + j * (2048 / 16), j > 0);
        products_commit();
    }
    __device__ __forceinline__ void release(uint64_t *b)
    {
        if (threadIdx.x % 128 == 0)
            barrier_arrive(b);
    }
    static __device__ __forceinline__ void fold_half(float (&state)[32], const float (&x)[32],
                                                     const fold &f0, const fold &f1)
    {
#pragma unroll
        for (int j = 0; j < 32; j++)
            state[j] = j / 2 % 2 ? f1(state[j], x[j]) : f0(state[j], x[j]);
    }

    __device__ __forceinline__ bool next_work(int *i, work *w) const
    {
        do {
            if (!work_at(a, ++*i, w))
                return false;
        } while (!w->tokens);
        return true;
    }

    __device__ __forceinline__ void begin(const work &w)
    {
        find_rows(w);
        top[0] = top[1] = -INFINITY;
        sum[0] = sum[1] = 0;
#pragma unroll
        for (int j = 0; j < 32 * HALVES; j++)
            o[j / 32][j % 32] = 0;
    }

    __device__ void run()
    {
        // Turns: barrier 2 + group. The first is the first group's.
        int i = -1, tiles = 0, u = 0;
        work w, next;
        if (!next_work(&i, &w))
            return;
        if (group)
            named_arrive<256>(2);
        begin(w);
        barrier_wait(&s.q_full[0], 0);
        barrier_wait(&s.full[at.slot], at.phase);
        named_sync<256>(2 + group);
        issue_scores(0, at.slot);
        named_arrive<256>(3 - group);
        products_wait<0>();
        release(&s.empty[at.slot]);
        if (w.units == 1)
            release(&s.q_empty[0]);
        at.advance();
        float unit_top[2], unit_sum[2], x[32];
        find_top(0, UNIT > w.pos0 + group * a.many_tokens, unit_top);
        exponentials(unit_top, unit_sum);
        for (;;) {
            // Unit u of w: probabilities are ready. What comes after it?
            bool last = u + 1 == w.units, more = !last || next_work(&i, &next);
            int next_u = last ? 0 : u + 1, q_i = (tiles + last) & 1;
            place<HD> v = at;
            at.advance();
            barrier_wait(&s.full[v.slot], v.phase);
            clear_values(v.slot, w.keys - u * UNIT);
            if (more) {
                if (last)
                    barrier_wait(&s.q_full[q_i], (tiles + 1) / 2 & 1);
                barrier_wait(&s.full[at.slot], at.phase);
            }
            named_sync<256>(2 + group);
            issue_values(x, v.slot, 0);
            issue_scores(q_i, at.slot); // the very last are of nothing, and nobody's
            fold f0(&top[0], unit_top[0]), f1(&top[1], unit_top[1]);
            sum[0] = f0(sum[0], unit_sum[0]);
            sum[1] = f1(sum[1], unit_sum[1]);
            products_wait<1>();
            fold_half(o[0], x, f0, f1);
            if (HALVES == 2)
                issue_values(x, v.slot, 1);
            named_arrive<256>(3 - group);
            products_wait<HALVES - 1>();
            if (more) {
                release(&s.empty[at.slot]);
                if (next_u + 1 == (last ? next.units : w.units))
                    release(&s.q_empty[q_i]);
                at.advance();
            }
            if (HALVES == 2) {
                products_wait<0>();
                fold_half(o[HALVES - 1], x, f0, f1);
            }
            release(&s.empty[v.slot]);
            if (last) {
                store(w);
                if (!more)
                    break;
                w = next;
                tiles++;
                begin(w);
            }
            u = next_u;
            find_top(u, (u + 1) * UNIT > w.pos0 + group * a.many_tokens, unit_top);
            exponentials(unit_top, unit_sum);
        }
        if (group == 0)
            named_sync<256>(2);
    }
};
#endif // HOPPER

template <int HD>
static __global__ void __launch_bounds__(MANY_THREADS, 1)
    attn_gqa_many(const __grid_constant__ args a, const __grid_constant__ CUtensorMap q_map,
                  const __grid_constant__ CUtensorMap kv_map, int box)
{
#ifdef HOPPER
    extern __shared__ __align__(1024) char smem[];
    shared_many<HD> &s = *(shared_many<HD> *)smem;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(&s.q_full[i], 1);
            barrier_init(&s.q_empty[i], GROUPS);
        }
        for (int i = 0; i < shared_many<HD>::SLOTS; i++) {
            barrier_init(&s.full[i], 1);
            barrier_init(&s.empty[i], GROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    wait_for_predecessor();
    launch_dependents();
    __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int)PRODUCER_REGISTERS));
        if (threadIdx.x < 32) {
            feeder<HD> f = {a, s, &q_map, &kv_map, box, (int)threadIdx.x};
            f.run();
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)CONSUMER_REGISTERS));
        // Through a shuffle, so that the compiler knows that it is the same for the whole warp.
        int lane = threadIdx.x % 32, group = __shfl_sync(~0u, (int)threadIdx.x / 128 - 1, 0);
        consumer<HD> c = {a, s, group, lane / 4, lane % 4, {0, 0}};
        c.run();
    }
#endif
}

// ---- launching

static CUresult encode(CUtensorMap *map, const void *p, int rank, const cuuint64_t *dims,
                       const cuuint64_t *strides, const cuuint32_t *box)
{
    typedef CUresult (*encode_f)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                 const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                 const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    static encode_f f; // the same for every thread that gets here first
    if (!f) {
        void *found = NULL;
        cudaDriverEntryPointQueryResult how;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                             cudaEnableDefault, &how) != cudaSuccess ||
            how != cudaDriverEntryPointSuccess)
            return CUDA_ERROR_NOT_FOUND;
        f = (encode_f)found;
    }
    static const cuuint32_t ones[4] = {1, 1, 1, 1};
    return f(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank, (void *)p, dims, strides, box,
             ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

template <int HD> static cudaError_t launch_many(const launch &l, const args &a)
{
    int box = l.block_tokens < UNIT ? l.block_tokens : UNIT;
    CUtensorMap q_map, kv_map;
    // Query: 64 elements of a head, heads, rows, halves of a head.
    cuuint64_t q_dims[4] = {64, (cuuint64_t)a.heads, (cuuint64_t)a.n, HD / 64};
    cuuint64_t q_strides[3] = {HD * 2, a.q_stride * 2, 128};
    cuuint32_t q_box[4] = {64, (cuuint32_t)a.group, (cuuint32_t)a.many_tokens, 1};
    // Pool: 64 elements, tokens, runs of 64 elements of a token's row.
    cuuint64_t kv_dims[3] = {64, (cuuint64_t)l.blocks * l.block_tokens, (cuuint64_t)a.width / 64};
    cuuint64_t kv_strides[2] = {(cuuint64_t)a.width * 2, 128};
    cuuint32_t kv_box[3] = {64, (cuuint32_t)box, 1};
    if (encode(&q_map, a.q, 4, q_dims, q_strides, q_box) != CUDA_SUCCESS ||
        encode(&kv_map, a.pool, 3, kv_dims, kv_strides, kv_box) != CUDA_SUCCESS)
        return cudaErrorInvalidValue;
    return launch_kernel(l.stream, attn_gqa_many<HD>, dim3((unsigned)l.sms), MANY_THREADS,
                         sizeof(shared_many<HD>), a, q_map, kv_map, box);
}

cudaError_t many(const launch &l, const args &a)
{
    return l.head_dim == 128 ? launch_many<128>(l, a) : launch_many<64>(l, a);
}

} // namespace gqa
