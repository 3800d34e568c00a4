// The tile kernel of attn_mla_sm90.cu: what its warp groups share, and how keys get into shared
// memory.
#pragma once

#include "kernels/cuda/attn_mla.cuh"
#include "kernels/cuda/attn_sm90.cuh"

enum {
    GROUP = 128, // threads of a warp group
    BLOCK = 3 * GROUP,
    BOX = 64 * 128,       // bytes of 64 rows by 64 columns
    BOXES = MLA_KEY / 64, // of a tile: 4 left, 4 right, rope
    STAGES = 4,           // parts of a tile that are waited for by themselves: two boxes each
    TILE_BYTES = BOXES * BOX,
    WARPS = 4,
    SCORES_REGS = 104, // with twice the next not more than 3 * 168, which a block starts with
    VALUES_REGS = 200
};
enum { BAR_SCORES = 1 };

struct tiled {
    CUtensorMap kv, latent, rope;
    struct mla_cut c;
    struct mla_work w;
    struct cuda_attn_rows rows;
    uint16_t *out;
    size_t out_ld;
    float scale; // by log2 e
    int block_tokens, box_rows;
    const uint8_t *fp8; // the pool, when it is fp8
};

// The next tile whose half is to be loaded: of its group, of all. In shared memory to save
// registers; fp8: one for each warp.
struct feed {
    int at, t, to, n, keys;
    bool once; // nobody else reads these keys
    const int32_t *table;
};

// By place of a tile (its number's last bit), row.
struct shared_part {
    struct feed feed[2][WARPS];
    uint64_t full[2][STAGES]; // keys are there
    uint64_t scored[2];       // P and decay are there
    uint64_t empty[2][2];     // by half: the values were used
    uint64_t q_full;
    float decay[2][MLA_TILE];
    float2 split[2][MLA_TILE]; // of a split that ended: reference, sum; by the last tile's place
};
enum { SMEM = 3 * TILE_BYTES + (int)sizeof(struct shared_part) };

struct block {
    uint32_t q; // shared memory: queries, then two tiles of keys
    struct shared_part *sh;
    int head_tile;
    struct mla_worker begin, end;
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

static __device__ __forceinline__ uint32_t tile_at(const block &b, int i)
{
    return b.q + (1 + i) * TILE_BYTES;
}

// The same in all threads of a warp, and known to be: products must not lie on paths that could
// part the warp's threads.
static __device__ __forceinline__ int uniform(int x)
{
    return __shfl_sync(~0u, x, 0);
}

// Pieces of groups that a worker computes: tiles from .. to - 1 of each, in splits of `split`.
struct piece {
    struct mla_group g;
    int at, from, to, all, split;
};
static __device__ __forceinline__ bool next_piece(const tiled &a, const block &b, struct piece *p)
{
    p->at++;
    int first = p->at == b.begin.group ? b.begin.split : 0;
    if (p->at > b.end.group || (p->at == b.end.group && first >= b.end.split))
        return false;
    int4 v = *(const int4 *)&a.w.groups[p->at];
    p->g.row0 = uniform(v.x);
    p->g.rows = uniform(v.y);
    p->g.keys = uniform(v.z);
    p->g.keys_all = uniform(v.w);
    p->split = a.c.split / MLA_TILE;
    p->all = mla_tiles(p->g.keys);
    p->from = first * p->split;
    p->to = p->at == b.end.group ? min(b.end.split * p->split, p->all) : p->all;
    return true;
}
static __device__ __forceinline__ bool ends_split(const struct piece &p, int t)
{
    return t + 1 == p.to || (t + 1) % p.split == 0;
}

static __device__ __forceinline__ void release(uint64_t *bar, int lane)
{
    __syncwarp();
    if (lane == 0)
        bar_arrive(shared_at(bar));
}

// ---- loading

static __device__ __forceinline__ void load_queries(const tiled &a, const block &b, int row0)
{
    uint32_t full = shared_at(&b.sh->q_full);
    bar_expect(full, BOXES * a.c.tile_heads * a.c.tile_tokens * 128);
    for (int i = 0; i < BOXES - 1; i++)
        tensor_load_3d(b.q + i * BOX, &a.latent, 64 * i, b.head_tile * MLA_TILE, row0, full);
    tensor_load_3d(b.q + (BOXES - 1) * BOX, &a.rope, 0, b.head_tile * MLA_TILE, row0, full);
}

// Makes f the next tile; false: there is none.
static __device__ __forceinline__ bool find_tile(const tiled &a, const block &b, struct feed *f)
{
    if (f->t >= f->to) {
        struct piece p;
        p.at = f->at;
        bool some = next_piece(a, b, &p);
        f->at = some ? p.at : b.end.group;
        f->t = some ? p.from : 0;
        f->to = some ? p.to : 0;
        f->keys = p.g.keys;
        f->once = a.c.head_tiles == 1 && p.g.rows == 1;
        if (some)
            f->table = a.rows.tables + a.rows.seq[p.g.row0] * a.rows.table_stride;
    }
    return f->t < f->to;
}
static __device__ __forceinline__ int pool_row(const tiled &a, const struct feed &f, int token)
{
    return f.table[token / a.block_tokens] * a.block_tokens + token % a.block_tokens;
}

// P lies in the rope columns, so the right half is free when both are.
template <int HALF> static __device__ __forceinline__ void wait_empty(const block &b, int n)
{
    bar_wait(shared_at(&b.sh->empty[n & 1][0]), (n / 2 & 1) ^ 1);
    if (HALF)
        bar_wait(shared_at(&b.sh->empty[n & 1][1]), (n / 2 & 1) ^ 1);
}

// The next half tile by one warp, a block of its tokens by each of the first lanes.
template <int HALF>
static __device__ __forceinline__ void feed(const tiled &a, const block &b, int lane)
{
    struct feed f = b.sh->feed[HALF][0];
    if (find_tile(a, b, &f)) {
        int i = f.n & 1, token = f.t * MLA_TILE + lane * a.box_rows;
        bool mine = lane < MLA_TILE / a.box_rows && token < f.keys;
        int row = mine ? pool_row(a, f, token) : 0;
        int bytes = __popc(__ballot_sync(~0u, mine)) * a.box_rows * 128;
        uint32_t full = shared_at(&b.sh->full[i][2 * HALF]);
        uint32_t to = tile_at(b, i) + lane * a.box_rows * 128;
        uint64_t policy;
        if (f.once)
            asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        else
            asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
        wait_empty<HALF>(b, f.n);
        if (lane == 0) {
            bar_expect(full, 2 * bytes);
            bar_expect(full + 8, (2 + HALF) * bytes);
        }
        __syncwarp();
        if (mine)
#pragma unroll
            for (int c = 0; c < 4 + HALF; c++)
                tensor_load_2d(to + (4 * HALF + c) * BOX, &a.kv, 64 * (4 * HALF + c), row,
                               full + 8 * (c > 1), policy);
        f.t++;
        f.n++;
    }
    __syncwarp();
    if (lane == 0)
        b.sh->feed[HALF][0] = f;
    __syncwarp();
}

// fp8: the same by a whole warp group, through registers. A thread has half a token's half: 128
// columns with one scale.
template <int HALF> struct converter {
    const tiled &a;
    const block &b;
    int warp, lane;
    uint4 raw[8], rope[HALF ? 4 : 1];
    float scale;
    int n; // the tile that is in registers; -1: none

    __device__ __forceinline__ void fetch()
    {
        struct feed f = b.sh->feed[HALF][warp];
        int thread = threadIdx.x % GROUP, part = thread % 2;
        n = -1;
        if (find_tile(a, b, &f)) {
            int token = f.t * MLA_TILE + thread / 2;
            scale = 0;
#pragma unroll
            for (int i = 0; i < 8; i++)
                raw[i] = make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < (HALF ? 4 : 1); i++)
                rope[i] = make_uint4(0, 0, 0, 0);
            if (token < f.keys) {
                const uint8_t *from = a.fp8 + (size_t)pool_row(a, f, token) * MLA_FP8_TOKEN;
                const uint4 *v = (const uint4 *)(from + HALF * (MLA_LORA / 2) + part * 128);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    raw[i] = __ldcg(v + i);
                scale = *(const float *)(from + MLA_LORA + 4 * (2 * HALF + part));
                if (HALF) {
                    v = (const uint4 *)(from + MLA_LORA + 16 + part * 64);
#pragma unroll
                    for (int i = 0; i < (HALF ? 4 : 1); i++)
                        rope[i] = __ldcg(v + i);
                }
            }
            n = f.n++;
            f.t++;
        }
        __syncwarp();
        if (lane == 0)
            b.sh->feed[HALF][warp] = f;
        __syncwarp();
    }

    static __device__ __forceinline__ void store(uint32_t at, const uint4 &v)
    {
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y),
                     "r"(v.z), "r"(v.w)
                     : "memory");
    }

    // Two e4m3 as two bf16, scaled in between and rounded once.
    __device__ __forceinline__ uint32_t two(uint32_t pair)
    {
        __half2 h(__nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)pair, __NV_E4M3));
        float2 v = __half22float2(h);
        __nv_bfloat162 r = __floats2bfloat162_rn(v.x * scale, v.y * scale);
        return *(uint32_t *)&r;
    }
    __device__ __forceinline__ uint4 eight(uint32_t lo, uint32_t hi)
    {
        return make_uint4(two(lo & 0xffff), two(lo >> 16), two(hi & 0xffff), two(hi >> 16));
    }

    __device__ __forceinline__ void put()
    {
        if (n < 0)
            return;
        int i = n & 1, row = threadIdx.x % GROUP / 2, part = threadIdx.x % 2;
        uint32_t tile = tile_at(b, i) + row * 128, swizzle = row & 7;
        wait_empty<HALF>(b, n);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            uint32_t box = tile + (4 * HALF + 2 * part + k / 4) * BOX;
            store(box + ((2 * (k % 4)) ^ swizzle) * 16, eight(raw[k].x, raw[k].y));
            store(box + ((2 * (k % 4) + 1) ^ swizzle) * 16, eight(raw[k].z, raw[k].w));
        }
        if (HALF)
#pragma unroll
            for (int k = 0; k < (HALF ? 4 : 1); k++)
                store(tile + (BOXES - 1) * BOX + ((4 * part + k) ^ swizzle) * 16, rope[k]);
        fence_async();
        release(&b.sh->full[i][2 * HALF], lane);
        release(&b.sh->full[i][2 * HALF + 1], lane);
    }
};

#endif
