// MLA on Hopper's tensor cores: a tile is 64 rows (heads of one or several neighbouring tokens) by
// 64 keys. One block per multiprocessor walks its piece of the work list; its warp groups pass
// tiles on through barriers in shared memory:
//
//     scores:   S = Q K', then P; the next tile's products run beside this one's P V
//     left:     O += P V, columns 0 .. 255 of the latent
//     right:    O += P V, columns 256 .. 511
//
// There are two tiles of keys in shared memory; left and right refill their halves of one (by
// tensor copies) as soon as they have used them.
//
// P lies in the rope columns of its tile, which nobody needs once the tile is scored. Scores are
// relative to a reference that follows the largest score only when that has grown by 2^LAG: sums
// then are hardly ever rescaled, and results of splits mostly just added.
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
};

// The next tile whose half is to be loaded: of its group, of all. In shared memory to save
// registers.
struct feed {
    int at, t, to, n, keys;
    bool once; // nobody else reads these keys
    const int32_t *table;
};

// By place of a tile (its number's last bit), row.
struct shared_part {
    struct feed feed[2];
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

// The next half tile by one warp, a block of its tokens by each of the first lanes.
template <int HALF>
static __device__ __forceinline__ void feed(const tiled &a, const block &b, int lane)
{
    struct feed f = b.sh->feed[HALF];
    if (f.t >= f.to) {
        struct piece p;
        p.at = f.at;
        bool some = next_piece(a, b, &p);
        f.at = some ? p.at : b.end.group;
        f.t = some ? p.from : 0;
        f.to = some ? p.to : 0;
        f.keys = p.g.keys;
        f.once = a.c.head_tiles == 1 && p.g.rows == 1;
        if (some)
            f.table = a.rows.tables + a.rows.seq[p.g.row0] * a.rows.table_stride;
    }
    if (f.t < f.to) {
        int i = f.n & 1, parity = (f.n / 2 & 1) ^ 1, token = f.t * MLA_TILE + lane * a.box_rows;
        bool mine = lane < MLA_TILE / a.box_rows && token < f.keys;
        int row =
            mine ? f.table[token / a.block_tokens] * a.block_tokens + token % a.block_tokens : 0;
        int bytes = __popc(__ballot_sync(~0u, mine)) * a.box_rows * 128;
        uint32_t full = shared_at(&b.sh->full[i][2 * HALF]);
        uint32_t to = tile_at(b, i) + lane * a.box_rows * 128;
        uint64_t policy;
        if (f.once)
            asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        else
            asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
        bar_wait(shared_at(&b.sh->empty[i][0]), parity);
        if (HALF) // P lies in the rope columns
            bar_wait(shared_at(&b.sh->empty[i][1]), parity);
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
        b.sh->feed[HALF] = f;
    __syncwarp();
}

// ---- scores

struct scorer {
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
        if (first + MLA_TILE > p.g.keys)
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

// ---- values

template <int HALF> struct summer {
    const tiled &a;
    const block &b;
    int warp, lane, row;
    float total_top[2], total_sum[2];

    __device__ __forceinline__ void decay_all(float (&o)[128], int i)
    {
        float lo = b.sh->decay[i][row], hi = b.sh->decay[i][row + 8];
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

    __device__ __forceinline__ void multiply(float (&o)[128], int i, bool add)
    {
        uint64_t p = operand(tile_at(b, i) + (BOXES - 1) * BOX, 16, 1024);
        uint64_t v = operand(tile_at(b, i) + HALF * 4 * BOX, BOX, 1024);
        product_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            product_256(o, p + 32 * k / 16, v + 2048 * k / 16, add || k);
        product_commit();
        product_wait<0>();
    }

    // The split that ends with tile t: sums to the output, or (added) to a partial result.
    __device__ __forceinline__ void finish(const float (&o)[128], const struct piece &p, int t,
                                           const float2 (&split)[2])
    {
        bool begun = p.from > 0; // by an earlier worker: splits stay apart
        int which = t / p.split;
        bool fold = !begun && which > 0, write = !begun && t + 1 == p.all;
        float old[2] = {0, 0}, now[2] = {1, 1};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (fold) {
                mla_fold(&total_top[r], &total_sum[r], split[r].x, split[r].y, &old[r], &now[r]);
            } else {
                total_top[r] = split[r].x;
                total_sum[r] = split[r].y;
            }
        }
        if (16 * warp >= p.g.rows * a.c.tile_heads)
            return;
        int entry = begun ? b.begin.entry + which - p.from / p.split : b.end.entry - 1;
        size_t at = (size_t)entry * a.c.head_tiles + b.head_tile;
        float4 *sums =
            a.w.sums + at * a.w.plan->entry_warps * MLA_WARP_SUMS + (warp * 2 + HALF) * 1024 + lane;
        if (write) {
            write_out(o, p, fold, sums, old, now);
            return;
        }
        bool add = fold && __all_sync(~0u, old[0] == 1 && old[1] == 1);
#pragma unroll
        for (int j = 0; j < 32; j += 4) {
            float4 v[4];
            if (fold && !add)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    v[i] = __ldcg(sums + 32 * (j + i));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *x = &o[4 * (j + i)];
                if (add) {
                    asm volatile(
                        "red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sums + 32 * (j + i)),
                        "f"(x[0] * now[0]), "f"(x[1] * now[0]), "f"(x[2] * now[1]),
                        "f"(x[3] * now[1])
                        : "memory");
                } else if (fold) {
                    v[i].x = mla_fold_value(v[i].x, x[0], old[0], now[0]);
                    v[i].y = mla_fold_value(v[i].y, x[1], old[0], now[0]);
                    v[i].z = mla_fold_value(v[i].z, x[2], old[1], now[1]);
                    v[i].w = mla_fold_value(v[i].w, x[3], old[1], now[1]);
                    __stcg(sums + 32 * (j + i), v[i]);
                } else {
                    __stcg(sums + 32 * (j + i), make_float4(x[0], x[1], x[2], x[3]));
                }
            }
        }
        if (HALF == 0 && lane % 4 == 0) {
            float2 *tops = a.w.tops + at * MLA_TILE + row;
            tops[0] = make_float2(total_top[0], total_sum[0]);
            tops[8] = make_float2(total_top[1], total_sum[1]);
        }
    }

    __device__ __forceinline__ void write_out(const float (&o)[128], const struct piece &p,
                                              bool fold, const float4 *sums, const float (&old)[2],
                                              const float (&now)[2])
    {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int token = (row + 8 * r) / a.c.tile_heads;
            int head = b.head_tile * MLA_TILE + (row + 8 * r) % a.c.tile_heads;
            if (token >= p.g.rows || head >= a.c.heads)
                continue;
            uint16_t *to = a.out + (p.g.row0 + token) * a.out_ld + (size_t)head * MLA_LORA +
                           HALF * (MLA_LORA / 2) + 2 * (lane % 4);
            const float2 *total = (const float2 *)sums + r;
            float by = 1 / total_sum[r];
#pragma unroll
            for (int j = 0; j < 32; j += 4) {
                float2 v[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    v[i] = fold ? __ldcg(total + 64 * (j + i)) : make_float2(0, 0);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float *x = &o[4 * (j + i) + 2 * r];
                    *(__nv_bfloat162 *)(to + 8 * (j + i)) =
                        __floats2bfloat162_rn(mla_fold_value(v[i].x, x[0], old[r], now[r]) * by,
                                              mla_fold_value(v[i].y, x[1], old[r], now[r]) * by);
                }
            }
        }
    }

    __device__ __forceinline__ void compute()
    {
        float o[128] = {};
        int n = 0;
        if (warp == 0) {
            feed<HALF>(a, b, lane);
            feed<HALF>(a, b, lane);
        }
        struct piece p = {{}, b.begin.group - 1};
        while (next_piece(a, b, &p))
            for (int t = p.from; t < p.to; t++, n++) {
                int i = n & 1;
                bool add = t != p.from && t % p.split != 0;
                bar_wait(shared_at(&b.sh->scored[i]), n / 2 & 1);
                for (int s = 0; s < 2; s++) // long since; makes the copies' writes visible
                    bar_wait(shared_at(&b.sh->full[i][2 * HALF + s]), n / 2 & 1);
                if (add)
                    decay_all(o, i);
                multiply(o, i, add);
                float2 split[2] = {b.sh->split[i][row], b.sh->split[i][row + 8]};
                release(&b.sh->empty[i][HALF], lane);
                if (warp == 0)
                    feed<HALF>(a, b, lane);
                if (ends_split(p, t))
                    finish(o, p, t, split);
            }
    }
};

#endif

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
            bar_init(shared_at(&b.sh->scored[i]), WARPS);
            bar_init(shared_at(&b.sh->empty[i][0]), WARPS);
            bar_init(shared_at(&b.sh->empty[i][1]), WARPS);
        }
        bar_init(shared_at(&b.sh->q_full), 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_async();
        tensor_prefetch_map(&a.kv);
        tensor_prefetch_map(&a.latent);
        tensor_prefetch_map(&a.rope);
    }
    __syncthreads();
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
    int worker = blockIdx.x / a.c.head_tiles;
    b.head_tile = blockIdx.x % a.c.head_tiles;
    int4 begin = *(const int4 *)&a.w.workers[worker], end = *(const int4 *)&a.w.workers[worker + 1];
    b.begin = {uniform(begin.x), uniform(begin.y), uniform(begin.z), 0};
    b.end = {uniform(end.x), uniform(end.y), uniform(end.z), 0};
    if (threadIdx.x < 2)
        b.sh->feed[threadIdx.x] = {b.begin.group - 1, 0, 0, 0, 0, false, NULL};
    __syncthreads();
    int group = uniform(threadIdx.x / GROUP), lane = threadIdx.x % 32;
    int warp = uniform(threadIdx.x / 32 % 4), row = 16 * warp + lane / 4;
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int)SCORES_REGS));
        scorer s = {a, b, warp, lane, row};
        s.compute();
    } else if (group == 1) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)VALUES_REGS));
        summer<0> s = {a, b, warp, lane, row};
        s.compute();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)VALUES_REGS));
        summer<1> s = {a, b, warp, lane, row};
        s.compute();
    }
#else
    __trap(); // built for sm_90 instead of sm_90a
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

bool mla_maps(const struct cuda_mla *m, int heads, int tokens, CUtensorMap *kv_out,
              CUtensorMap *latent_out, CUtensorMap *rope_out, int *box_rows_out)
{
    size_t n = m->rows.n, all = m->heads;
    int rows = m->block_tokens < MLA_TILE ? (int)m->block_tokens : MLA_TILE;
    struct map_args kv = {
        m->pool, 2, {MLA_KEY, m->blocks * m->block_tokens}, {MLA_KEY}, {64, rows}};
    struct map_args latent = {m->q_latent,
                              3,
                              {MLA_LORA, all, n},
                              {m->q_latent_head, m->q_latent_ld},
                              {64, heads, tokens}};
    struct map_args rope = {
        m->q_rope, 3, {MLA_ROPE, all, n}, {m->q_rope_head, m->q_rope_ld}, {64, heads, tokens}};
    *box_rows_out = rows;
    return make_map(kv_out, &kv) && make_map(latent_out, &latent) && make_map(rope_out, &rope);
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
    if (mla_is_short(m, &a.c))
        return mla_short(s, m, &a.c);
    if (!mla_maps(m, a.c.tile_heads, a.c.tile_tokens, &a.kv, &a.latent, &a.rope, &a.box_rows))
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
