// MLA on Hopper's tensor cores: a tile is 64 rows (heads of one or several neighbouring tokens) by
// 64 keys. One block per multiprocessor walks its piece of the work list.
//
// A warp group loads (tensor copies into two tiles of keys, 128-byte swizzle); two compute. Keys go
// in pairs of tiles: group 0 scores the even tile, group 1 the odd one, so that the softmax of one
// runs under the products of the other; of the output, group 0 sums columns 0..255, group 1 the
// rest, over both tiles in order. Probabilities reach the other group through the rope columns of
// their tile, which nobody needs once the tile is scored.
//
//     group 0:  S0 = Q K0'   softmax 0 -> P0   O += P0 V0   (P1) O += P1 V1
//     group 1:  S1 = Q K1'   (P0) O += P0 V0   softmax 1 -> P1   O += P1 V1
//
// At the end of a split the sums are set aside (or folded into what was set aside) while the next
// split's first scores are being computed.
#include "kernels/cuda/attn_mla.cuh"
#include "kernels/cuda/attn_sm90.cuh"

enum {
    GROUP = 128, // threads of a warp group
    BLOCK = 3 * GROUP,
    BOX = 64 * 128,       // bytes of 64 rows by 64 columns
    BOXES = MLA_KEY / 64, // of a tile; the last is rope
    STAGES = 3,           // parts of a tile that are waited for by themselves
    TILE_BYTES = BOXES * BOX,
    ALL_WARPS = 8, // that compute
    CONSUMER_REGS = 240,
    PRODUCER_REGS = 24
};
// Named barriers.
enum { BAR_P0 = 1, BAR_P1, BAR_SPLIT, BAR_GROUP0, BAR_GROUP1 };

struct tiled {
    CUtensorMap kv, latent, rope;
    struct mla_cut c;
    struct mla_work w;
    struct cuda_attn_rows rows;
    uint16_t *out;
    size_t out_ld;
    float scale; // by log2 e
    int block_tokens, box_rows;
};

struct shared_part {
    uint64_t full[2][STAGES], empty[2], q_full, q_empty;
    float decay[2][MLA_TILE], top[2][MLA_TILE]; // by tile of the pair, row
    float sum[2][2][MLA_TILE];                  // by split, group, row
};
enum { SMEM = 3 * TILE_BYTES + (int)sizeof(struct shared_part) };

struct block {
    __device__ __forceinline__ uint32_t kv(int i) const
    {
        return q + (1 + i) * TILE_BYTES;
    }

    uint32_t q; // shared memory: queries, then two tiles of keys
    struct shared_part *sh;
    int worker, head_tile;
    struct mla_worker begin, end;
};

// The same in all threads of a warp, and known to be: products must not lie on paths that could
// part the warp's threads.
static __device__ __forceinline__ int uniform(int x)
{
    return __shfl_sync(~0u, x, 0);
}

// Pieces of groups that a worker computes: splits first .. last - 1 of each.
struct piece {
    struct mla_group g;
    int at, first, last, splits;
};
static __device__ __forceinline__ bool next_piece(const tiled &a, const block &b, struct piece *p)
{
    p->at++;
    if (p->at > b.end.group || (p->at == b.end.group && b.end.split == 0))
        return false;
    p->first = p->at == b.begin.group ? b.begin.split : 0;
    if (p->at == b.end.group && p->first >= b.end.split)
        return false;
    int4 v = *(const int4 *)&a.w.groups[p->at];
    p->g.row0 = uniform(v.x);
    p->g.rows = uniform(v.y);
    p->g.keys = uniform(v.z);
    p->g.keys_all = uniform(v.w);
    p->splits = (p->g.keys + a.c.split - 1) / a.c.split;
    p->last = p->at == b.end.group ? b.end.split : p->splits;
    return true;
}

// ---- loading

static __device__ __forceinline__ void load_queries(const tiled &a, const block &b, int row0, int n,
                                                    int lane)
{
    uint32_t full = shared_at(&b.sh->q_full);
    if (lane == 0) {
        bar_wait(shared_at(&b.sh->q_empty), (n & 1) ^ 1);
        bar_expect(full, BOXES * a.c.tile_heads * a.c.tile_tokens * 128);
        for (int i = 0; i < BOXES - 1; i++)
            tensor_load_3d(b.q + i * BOX, &a.latent, 64 * i, b.head_tile * MLA_TILE, row0, full);
        tensor_load_3d(b.q + (BOXES - 1) * BOX, &a.rope, 0, b.head_tile * MLA_TILE, row0, full);
    }
    __syncwarp();
}

// A tile's blocks, one by each of the first lanes.
static __device__ __forceinline__ void load_tile(const tiled &a, const block &b,
                                                 const int32_t *table, int keys, int tile, int n,
                                                 uint64_t policy, int lane)
{
    int i = tile & 1, token = tile * MLA_TILE + lane * a.box_rows;
    bool mine = lane < MLA_TILE / a.box_rows && token < keys;
    int row = mine ? table[token / a.block_tokens] * a.block_tokens + token % a.block_tokens : 0;
    int boxes = __popc(__ballot_sync(~0u, mine));
    uint32_t full = shared_at(b.sh->full[i]), to = b.kv(i) + lane * a.box_rows * 128;
    if (lane == 0) {
        bar_wait(shared_at(&b.sh->empty[i]), (n & 1) ^ 1);
#pragma unroll
        for (int s = 0; s < STAGES; s++)
            bar_expect(full + 8 * s, boxes * a.box_rows * 128 * (BOXES / STAGES));
    }
    __syncwarp();
    if (mine)
#pragma unroll
        for (int c = 0; c < BOXES; c++)
            tensor_load_2d(to + c * BOX, &a.kv, 64 * c, row, full + 8 * (c / (BOXES / STAGES)),
                           policy);
    __syncwarp();
}

static __device__ __forceinline__ void produce(const tiled &a, const block &b, int lane)
{
    uint64_t policy;
    if (a.c.head_tiles == 1)
        asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    else
        asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    int pieces = 0, n_even = 0, n_odd = 0;
    struct piece p = {{}, b.begin.group - 1};
    while (next_piece(a, b, &p)) {
        const int32_t *table = a.rows.tables + a.rows.seq[p.g.row0] * a.rows.table_stride;
        int per_split = a.c.split / MLA_TILE, to = min(p.last * per_split, mla_tiles(p.g.keys));
        load_queries(a, b, p.g.row0, pieces++, lane);
        for (int t = p.first * per_split; t < to; t++)
            load_tile(a, b, table, p.g.keys, t, t & 1 ? n_odd++ : n_even++, policy, lane);
    }
}

// ---- computing

// What is to become of a split's sums.
struct ending {
    bool some, fold, write; // write: to the output, else to partial result `at`
    int row0, rows;         // of the batch
    size_t at;
    float top[2], sum[2];
};

template <int G> struct consumer {
    const tiled &a;
    const block &b;
    int warp, lane, row; // row: of the tile, the thread's first; the other is 8 further
    int used[2];         // tiles so far, by place
    float total_top[2], total_sum[2];

    __device__ __forceinline__ void group_sync()
    {
        named_sync<G ? BAR_GROUP1 : BAR_GROUP0, GROUP>();
    }

    __device__ __forceinline__ void wait_tile(int i, int stage)
    {
        bar_wait(shared_at(&b.sh->full[i][stage]), used[i] & 1);
    }

    __device__ __forceinline__ void release(uint64_t *bar)
    {
        __syncwarp();
        if (lane == 0)
            bar_arrive(shared_at(bar));
    }

    __device__ __forceinline__ void begin_scores(float (&s)[32])
    {
        uint64_t q = operand(b.q, 16, 1024), k = operand(b.kv(G), 16, 1024);
#pragma unroll
        for (int c = 0; c < BOXES; c++) {
            if (c % (BOXES / STAGES) == 0) {
                wait_tile(G, c / (BOXES / STAGES));
                product_fence(); // anew after every branch
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
                product_64(s, q + (c * BOX + 32 * i) / 16, k + (c * BOX + 32 * i) / 16, c + i);
        }
        product_commit();
    }

    // o (+)= P V over this group's columns, P of tile i from shared memory.
    __device__ __forceinline__ void begin_values(float (&o)[128], int i, bool add)
    {
        uint64_t p = operand(b.kv(i) + (BOXES - 1) * BOX, 16, 1024);
        uint64_t v = operand(b.kv(i) + G * 4 * BOX, BOX, 1024);
        product_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            product_256(o, p + 32 * k / 16, v + 2048 * k / 16, add || k);
        product_commit();
    }
    // The same with P in registers.
    __device__ __forceinline__ void begin_values(float (&o)[128], int i, const uint32_t (&p)[4][4],
                                                 bool add)
    {
        uint64_t v = operand(b.kv(i) + G * 4 * BOX, BOX, 1024);
        product_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            product_256_r(o, p[k], v + 2048 * k / 16, add || k);
        product_commit();
    }

    __device__ __forceinline__ void decay_values(float (&o)[128], float lo, float hi)
    {
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

    // Scores to probabilities: top[] grows, decay[] is what older sums are multiplied with, sum[]
    // gets this thread's share. `seen`: keys of the tile that each row sees.
    __device__ __forceinline__ void softmax(float (&s)[32], uint32_t (&p)[4][4], bool masked,
                                            int seen_lo, int seen_hi, float (&top)[2],
                                            float (&decay)[2], float (&sum)[2])
    {
        int first = 2 * (lane % 4);
        if (masked)
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    s[4 * j + e] = 8 * j + e + first < seen_lo ? s[4 * j + e] : -INFINITY;
                    s[4 * j + 2 + e] = 8 * j + e + first < seen_hi ? s[4 * j + 2 + e] : -INFINITY;
                }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float largest = s[2 * r];
#pragma unroll
            for (int j = 0; j < 8; j++)
                largest = fmaxf(largest, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
            float new_top = fmaxf(top[r], largest * a.scale);
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
            sum[r] = all;
        }
    }
    static __device__ __forceinline__ float exp2_fast(float x)
    {
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
    }

    // For the other group: probabilities, and per row the new top and decay.
    __device__ __forceinline__ void publish(const uint32_t (&p)[4][4], const float (&top)[2],
                                            const float (&decay)[2])
    {
        uint32_t to = b.kv(G) + (BOXES - 1) * BOX;
        int r = 16 * warp + lane % 16;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t at = to + r * 128 + ((2 * k + lane / 16) ^ (r & 7)) * 16;
            asm volatile(
                "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
                "r"(p[k][0]), "r"(p[k][1]), "r"(p[k][2]), "r"(p[k][3])
                : "memory");
        }
        if (lane % 4 == 0) {
            b.sh->top[G][row] = top[0];
            b.sh->top[G][row + 8] = top[1];
            b.sh->decay[G][row] = decay[0];
            b.sh->decay[G][row + 8] = decay[1];
        }
        fence_async();
    }

    // Keys that nobody wrote may hold anything, and 0 * NaN is NaN.
    __device__ __forceinline__ void zero_tail(int keys)
    {
        for (int i = threadIdx.x % GROUP; i < (MLA_TILE - keys) * 64; i += GROUP) {
            uint32_t at = b.kv(G) + i % 64 / 8 * BOX + (keys + i / 64) * 128 + i % 8 * 16;
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
        }
    }

    __device__ __forceinline__ void finish(const ending &e, float (&o)[128])
    {
        float old[2] = {0, 0}, now[2] = {1, 1};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (e.fold) {
                mla_fold(&total_top[r], &total_sum[r], e.top[r], e.sum[r], &old[r], &now[r]);
            } else {
                total_top[r] = e.top[r];
                total_sum[r] = e.sum[r];
            }
        }
        if (16 * warp >= e.rows * a.c.tile_heads)
            return;
        float4 *sums =
            a.w.sums + e.at * a.w.plan->entry_warps * MLA_WARP_SUMS + (warp * 2 + G) * 1024 + lane;
        float by[2] = {1 / total_sum[0], 1 / total_sum[1]};
        uint16_t *to[2];
        bool there[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int token = (row + 8 * r) / a.c.tile_heads;
            int head = b.head_tile * MLA_TILE + (row + 8 * r) % a.c.tile_heads;
            there[r] = e.write && token < e.rows && head < a.c.heads;
            to[r] = a.out + (e.row0 + token) * a.out_ld + (size_t)head * MLA_LORA +
                    G * (MLA_LORA / 2) + 2 * (lane % 4);
        }
#pragma unroll
        for (int j = 0; j < 32; j += 4) {
            float4 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] = e.fold ? __ldcg(sums + 32 * (j + i)) : make_float4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *x = &o[4 * (j + i)];
                v[i].x = mla_fold_value(v[i].x, x[0], old[0], now[0]);
                v[i].y = mla_fold_value(v[i].y, x[1], old[0], now[0]);
                v[i].z = mla_fold_value(v[i].z, x[2], old[1], now[1]);
                v[i].w = mla_fold_value(v[i].w, x[3], old[1], now[1]);
                if (!e.write)
                    __stcg(sums + 32 * (j + i), v[i]);
                if (there[0])
                    *(__nv_bfloat162 *)(to[0] + 8 * (j + i)) =
                        __floats2bfloat162_rn(v[i].x * by[0], v[i].y * by[0]);
                if (there[1])
                    *(__nv_bfloat162 *)(to[1] + 8 * (j + i)) =
                        __floats2bfloat162_rn(v[i].z * by[1], v[i].w * by[1]);
            }
        }
        if (G == 0 && lane % 4 == 0 && !e.write) {
            float2 *tops = a.w.tops + e.at * MLA_TILE + row;
            tops[0] = make_float2(total_top[0], total_sum[0]);
            tops[8] = make_float2(total_top[1], total_sum[1]);
        }
    }

    // The pair of tiles t, t + 1 (the second only if `both`). e: of the split before, finished on
    // the way.
    template <bool both>
    __device__ __forceinline__ void
    pair_even(int t, bool first, const struct piece &p, const int (&seen)[2], const ending &e,
              float (&o)[128], float (&s)[32], float (&top)[2], float (&sum)[2], bool last)
    {
        uint32_t pr[4][4];
        float decay[2], share[2];
        int keys = p.g.keys - t * MLA_TILE;
        begin_scores(s);
        if (first && e.some)
            finish(e, o);
        product_wait<0>();
        if (last)
            release(&b.sh->q_empty);
        group_sync();
        softmax(s, pr, (t + 1) * MLA_TILE > p.g.keys_all, seen[0] - t * MLA_TILE,
                seen[1] - t * MLA_TILE, top, decay, share);
        if (keys < MLA_TILE)
            zero_tail(keys);
        publish(pr, top, decay);
        if (keys < MLA_TILE)
            group_sync();
        named_arrive<BAR_P0, 2 * GROUP>();
        if (!first)
            decay_values(o, decay[0], decay[1]);
        sum[0] = fmaf(sum[0], decay[0], share[0]);
        sum[1] = fmaf(sum[1], decay[1], share[1]);
        begin_values(o, 0, pr, !first);
        if (both)
            named_sync<BAR_P1, 2 * GROUP>();
        product_wait<0>();
        release(&b.sh->empty[0]);
        used[0]++;
        if (both) {
            decay[0] = b.sh->decay[1][row];
            decay[1] = b.sh->decay[1][row + 8];
            top[0] = b.sh->top[1][row];
            top[1] = b.sh->top[1][row + 8];
            sum[0] *= decay[0];
            sum[1] *= decay[1];
            decay_values(o, decay[0], decay[1]);
            begin_values(o, 1, true);
            product_wait<0>();
            release(&b.sh->empty[1]);
            used[1]++;
        }
    }

    template <bool both>
    __device__ __forceinline__ void
    pair_odd(int t, bool first, const struct piece &p, const int (&seen)[2], const ending &e,
             float (&o)[128], float (&s)[32], float (&top)[2], float (&sum)[2], bool last)
    {
        uint32_t pr[4][4];
        float decay[2], share[2];
        int keys = p.g.keys - (t + 1) * MLA_TILE;
        if (both)
            begin_scores(s);
        if (first && e.some)
            finish(e, o);
        named_sync<BAR_P0, 2 * GROUP>();
        top[0] = b.sh->top[0][row];
        top[1] = b.sh->top[0][row + 8];
        decay[0] = b.sh->decay[0][row];
        decay[1] = b.sh->decay[0][row + 8];
        sum[0] *= decay[0];
        sum[1] *= decay[1];
        if (!first)
            decay_values(o, decay[0], decay[1]);
#pragma unroll
        for (int i = 0; i < STAGES; i++)
            wait_tile(0, i);
        begin_values(o, 0, !first);
        if (both) {
            product_wait<1>();
            if (last)
                release(&b.sh->q_empty);
            group_sync();
            softmax(s, pr, (t + 2) * MLA_TILE > p.g.keys_all, seen[0] - (t + 1) * MLA_TILE,
                    seen[1] - (t + 1) * MLA_TILE, top, decay, share);
            if (keys < MLA_TILE)
                zero_tail(keys);
            publish(pr, top, decay);
            if (keys < MLA_TILE)
                group_sync();
            named_arrive<BAR_P1, 2 * GROUP>();
            sum[0] = fmaf(sum[0], decay[0], share[0]);
            sum[1] = fmaf(sum[1], decay[1], share[1]);
        } else if (last) {
            release(&b.sh->q_empty);
        }
        product_wait<0>();
        release(&b.sh->empty[0]);
        used[0]++;
        if (both) {
            decay_values(o, decay[0], decay[1]);
            begin_values(o, 1, pr, true);
            product_wait<0>();
            release(&b.sh->empty[1]);
            used[1]++;
        }
    }

    // The sums of both groups, by row.
    __device__ __forceinline__ void end_split(float (&sum)[2], int parity)
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
            sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
            if (lane % 4 == 0)
                b.sh->sum[parity][G][row + 8 * r] = sum[r];
        }
        named_sync<BAR_SPLIT, 2 * GROUP>();
#pragma unroll
        for (int r = 0; r < 2; r++)
            sum[r] = b.sh->sum[parity][0][row + 8 * r] + b.sh->sum[parity][1][row + 8 * r];
    }

    // Where the sums of split i of a piece go.
    __device__ __forceinline__ void place(const struct piece &p, int i, ending *e)
    {
        bool begun = p.first > 0; // by an earlier worker: splits stay apart
        int entry = begun ? b.begin.entry + i - p.first : b.end.entry - 1;
        e->at = (size_t)entry * a.c.head_tiles + b.head_tile;
        e->some = true;
        e->fold = !begun && i > 0;
        e->write = !begun && i + 1 == p.splits;
        e->row0 = p.g.row0;
        e->rows = p.g.rows;
    }

    __device__ __forceinline__ void compute()
    {
        float o[128] = {}, s[32] = {};
        ending e;
        e.some = false;
        int pieces = 0, splits = 0;
        struct piece p = {{}, b.begin.group - 1};
        while (next_piece(a, b, &p)) {
            int seen[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int token = (row + 8 * r) / a.c.tile_heads;
                seen[r] = token < p.g.rows ? a.rows.pos[p.g.row0 + token] + 1 : p.g.keys;
            }
            bar_wait(shared_at(&b.sh->q_full), pieces++ & 1);
            int per_split = a.c.split / MLA_TILE, tiles = mla_tiles(p.g.keys);
            int to_all = min(p.last * per_split, tiles);
            for (int i = p.first; i < p.last; i++) {
                int from = i * per_split, to = min(from + per_split, tiles);
                float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
                for (int t = from; t < to; t += 2) {
                    bool first = t == from, last = t + 2 >= to_all;
                    if (t + 1 < to) {
                        if (G == 0)
                            pair_even<true>(t, first, p, seen, e, o, s, top, sum, last);
                        else
                            pair_odd<true>(t, first, p, seen, e, o, s, top, sum, last);
                    } else {
                        if (G == 0)
                            pair_even<false>(t, first, p, seen, e, o, s, top, sum, last);
                        else
                            pair_odd<false>(t, first, p, seen, e, o, s, top, sum, last);
                    }
                }
                end_split(sum, splits++ & 1);
                place(p, i, &e);
                e.top[0] = top[0];
                e.top[1] = top[1];
                e.sum[0] = sum[0];
                e.sum[1] = sum[1];
            }
        }
        if (e.some)
            finish(e, o);
    }
};

static __global__ void __launch_bounds__(BLOCK, 1) mla_tiles_sm90(const __grid_constant__ tiled a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) uint8_t smem[];
    block b;
    b.q = shared_at(smem);
    b.sh = (struct shared_part *)(smem + 3 * TILE_BYTES);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            for (int s = 0; s < STAGES; s++)
                bar_init(shared_at(&b.sh->full[i][s]), 1);
            bar_init(shared_at(&b.sh->empty[i]), ALL_WARPS);
        }
        bar_init(shared_at(&b.sh->q_full), 1);
        bar_init(shared_at(&b.sh->q_empty), ALL_WARPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_async();
        tensor_prefetch_map(&a.kv);
        tensor_prefetch_map(&a.latent);
        tensor_prefetch_map(&a.rope);
    }
    __syncthreads();
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
    b.worker = blockIdx.x / a.c.head_tiles;
    b.head_tile = blockIdx.x % a.c.head_tiles;
    int4 begin = *(const int4 *)&a.w.workers[b.worker],
         end = *(const int4 *)&a.w.workers[b.worker + 1];
    b.begin = {uniform(begin.x), uniform(begin.y), uniform(begin.z), 0};
    b.end = {uniform(end.x), uniform(end.y), uniform(end.z), 0};
    int group = uniform(threadIdx.x / GROUP), lane = threadIdx.x % 32;
    int warp = uniform(threadIdx.x / 32 % 4);
    if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int)PRODUCER_REGS));
        if (warp == 0)
            produce(a, b, lane);
    } else if (group == 0) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)CONSUMER_REGS));
        consumer<0> c = {a, b, warp, lane, 16 * warp + lane / 4, {0, 0}};
        c.compute();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)CONSUMER_REGS));
        consumer<1> c = {a, b, warp, lane, 16 * warp + lane / 4, {0, 0}};
        c.compute();
    }
#endif
}

// ---- host

typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                           const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                           const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encode_fn *find_encode(void)
{
    static encode_fn *found;
    void *p = NULL;
    cudaDriverEntryPointQueryResult r;
    if (!found &&
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault,
                                         &r) == cudaSuccess &&
        r == cudaDriverEntryPointSuccess)
        found = (encode_fn *)p;
    return found;
}

// bf16; strides in elements, of dimensions 1 on.
struct map_args {
    const void *at;
    int rank;
    size_t dims[3], strides[2];
    int box[3];
};
static bool make_map(CUtensorMap *map, const struct map_args *m)
{
    encode_fn *encode = find_encode();
    cuuint64_t dims[3], strides[2];
    cuuint32_t box[3], ones[3] = {1, 1, 1};
    for (int i = 0; i < m->rank; i++) {
        dims[i] = m->dims[i];
        box[i] = (cuuint32_t)m->box[i];
        if (i)
            strides[i - 1] = 2 * m->strides[i - 1];
    }
    return encode && encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)m->rank,
                            (void *)m->at, dims, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                            CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool mla_is_tiled(const struct cuda_mla *m)
{
    int device = 0, major = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        major != 9)
        return false;
    uintptr_t at = (uintptr_t)m->pool | (uintptr_t)m->q_latent | (uintptr_t)m->q_rope;
    size_t strides = m->q_latent_ld | m->q_latent_head | m->q_rope_ld | m->q_rope_head;
    bool blocks = m->block_tokens % MLA_TILE == 0 ||
                  (m->block_tokens % 8 == 0 && MLA_TILE % m->block_tokens == 0);
    return m->form == CUDA_KV_BF16 && m->kv_lora == MLA_LORA && m->rope == MLA_ROPE &&
           at % 16 == 0 && strides % 8 == 0 && blocks && (uintptr_t)m->out % 4 == 0 &&
           m->out_ld % 2 == 0;
}

cudaError_t mla_tiled(cudaStream_t s, const struct cuda_mla *m)
{
    tiled a = {};
    if (!mla_cut(m, &a.c) || m->plan_bytes < a.c.plan_bytes ||
        m->scratch_bytes < a.c.scratch_bytes || !(m->scale > 0))
        return cudaErrorInvalidValue;
    a.w = mla_work(m, &a.c);
    a.rows = m->rows;
    a.out = m->out;
    a.out_ld = m->out_ld;
    a.scale = m->scale * 1.4426950408889634f;
    a.block_tokens = (int)m->block_tokens;
    a.box_rows = m->block_tokens < MLA_TILE ? (int)m->block_tokens : MLA_TILE;
    struct map_args kv = {
        m->pool, 2, {MLA_KEY, m->blocks * m->block_tokens}, {MLA_KEY}, {64, a.box_rows}};
    struct map_args latent = {m->q_latent,
                              3,
                              {MLA_LORA, (size_t)m->heads, (size_t)m->rows.n},
                              {m->q_latent_head, m->q_latent_ld},
                              {64, a.c.tile_heads, a.c.tile_tokens}};
    struct map_args rope = {m->q_rope,
                            3,
                            {MLA_ROPE, (size_t)m->heads, (size_t)m->rows.n},
                            {m->q_rope_head, m->q_rope_ld},
                            {64, a.c.tile_heads, a.c.tile_tokens}};
    if (!make_map(&a.kv, &kv) || !make_map(&a.latent, &latent) || !make_map(&a.rope, &rope))
        return cudaErrorInvalidValue;
    cudaError_t e =
        cudaFuncSetAttribute(mla_tiles_sm90, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM);
    if (e != cudaSuccess)
        return e;
    cudaLaunchAttribute pdl = {};
    pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    pdl.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(a.c.workers * a.c.head_tiles);
    config.blockDim = dim3(BLOCK);
    config.dynamicSmemBytes = SMEM;
    config.stream = s;
    config.attrs = &pdl;
    config.numAttrs = 1;
    e = cudaLaunchKernelEx(&config, mla_tiles_sm90, a);
    if (e != cudaSuccess || a.c.keys_max <= a.c.split)
        return e;
    return mla_merge(s, m, &a.c);
}
