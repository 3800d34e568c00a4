// MLA decode of few rows, where latency is all: a split (8 tiles of 64 keys) is shared by a cluster
// of 8 blocks. Each scores one tile, and multiplies all tiles' probabilities with 64 columns of the
// values; largest scores and probabilities travel through distributed shared memory. Every sum is
// the one that attn_mla_sm90.cu makes (mma.sync and wgmma give equal bits), so it does not show
// which of the two ran.
#include "kernels/cuda/attn_mla.cuh"
#include "kernels/cuda/attn_sm90.cuh"

enum {
    RANKS = 8, // blocks of a cluster = tiles of a split
    ROWS = 16, // heads of a row, padded
    BLOCK = 256,
    BOX = 64 * 128, // bytes of 64 tokens by 64 columns
    BOXES = MLA_KEY / 64,
    STAGES = 3,
    Q_BOX = ROWS * 128,
    S_LD = MLA_TILE + 4,
    CLUSTERS = 24 // up to which this is the faster kernel: H100, 2 take 10 us, 16 take 20, 64 50
};

struct shorts {
    CUtensorMap kv, latent, rope;
    struct cuda_attn_rows rows;
    struct mla_work w;
    uint16_t *out;
    size_t out_ld;
    float scale; // by log2 e
    int heads, splits, block_tokens, box_rows;
};

struct shared_part {
    uint8_t k[BOXES * BOX];        // this block's tile of keys
    uint8_t v[RANKS * BOX];        // 64 columns of all tiles' values
    uint8_t q[BOXES * Q_BOX];      // [box][row][64]
    uint8_t p[RANKS * ROWS * 128]; // [tile][row][64 keys], from all blocks
    float s[ROWS * S_LD];          // this tile's scores
    float top[RANKS][ROWS];        // largest scaled score, from all blocks
    float sum[RANKS][ROWS][4];     // by quarter of the columns, from all blocks
    float decay[RANKS][ROWS];
    uint64_t k_full[STAGES], q_full, v_full[RANKS];
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

static __device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
static __device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same place in the shared memory of another block of the cluster.
static __device__ __forceinline__ uint32_t remote(uint32_t at, int rank)
{
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}
static __device__ __forceinline__ void store_remote(uint32_t at, float v)
{
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
}
static __device__ __forceinline__ void store_remote(uint32_t at, const uint4 &v)
{
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}

static __device__ __forceinline__ void matrix_load(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
static __device__ __forceinline__ void matrix_load_t(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// A row of 128 bytes, its 16-byte piece c.
static __device__ __forceinline__ uint32_t swizzled(int row, int c)
{
    return row * 128 + ((c ^ (row & 7)) << 4);
}

struct span {
    int row, split, keys, tiles; // keys of the row; tiles of this split
    int rank, warp, lane;
    struct shared_part *sh;
};

// A warp of each kind of thing: tokens of this block's tile, its columns of the others' values.
static __device__ __forceinline__ void load(const shorts &a, const span &b)
{
    const int32_t *table = a.rows.tables + a.rows.seq[b.row] * a.rows.table_stride;
    int first = b.split * RANKS * MLA_TILE;
    int per_tile = MLA_TILE / a.box_rows; // a power of 2
    int bytes = a.box_rows * 128;
    if (b.warp == 0) {
        int token = first + b.rank * MLA_TILE + b.lane * a.box_rows;
        bool mine = b.lane < per_tile && token < b.keys && b.rank < b.tiles;
        int all = __popc(__ballot_sync(~0u, mine)) * bytes;
        if (b.lane == 0) {
            bar_expect(shared_at(&b.sh->q_full), BOXES * a.heads * 128);
            for (int c = 0; c < BOXES; c++)
                tensor_load_3d(shared_at(b.sh->q) + c * Q_BOX, c < 8 ? &a.latent : &a.rope,
                               c < 8 ? 64 * c : 0, 0, b.row, shared_at(&b.sh->q_full));
            for (int s = 0; s < STAGES; s++)
                bar_expect(shared_at(&b.sh->k_full[s]), all * (BOXES / STAGES));
        }
        __syncwarp();
        if (mine) {
            int row = table[token / a.block_tokens] * a.block_tokens + token % a.block_tokens;
            for (int c = 0; c < BOXES; c++)
                tensor_load_2d(shared_at(b.sh->k) + c * BOX + b.lane * bytes, &a.kv, 64 * c, row,
                               shared_at(&b.sh->k_full[c / (BOXES / STAGES)]));
        }
    } else if (b.warp == 1) {
        for (int i = b.lane; i < b.tiles * per_tile; i += 32) {
            int token = first + i * a.box_rows;
            if (token >= b.keys)
                break;
            int row = table[token / a.block_tokens] * a.block_tokens + token % a.block_tokens;
            tensor_load_2d(shared_at(b.sh->v) + i * bytes, &a.kv, 64 * b.rank, row,
                           shared_at(&b.sh->v_full[i / per_tile]));
        }
    } else if (b.warp == 2 && b.lane < b.tiles) {
        int keys = min(MLA_TILE, b.keys - first - b.lane * MLA_TILE);
        bar_expect(shared_at(&b.sh->v_full[b.lane]), (keys + a.box_rows - 1) / a.box_rows * bytes);
    }
}

// Scores of 8 keys a warp.
static __device__ __forceinline__ void score(const span &b)
{
    float c[4] = {};
    uint32_t q = shared_at(b.sh->q), k = shared_at(b.sh->k);
    int half = b.lane / 16, row = b.lane % 16, key = 8 * b.warp + b.lane % 8;
    bar_wait(shared_at(&b.sh->q_full), 0);
#pragma unroll
    for (int x = 0; x < BOXES; x++) {
        if (x % (BOXES / STAGES) == 0)
            bar_wait(shared_at(&b.sh->k_full[x / (BOXES / STAGES)]), 0);
        uint32_t kf[2][4], qf[4][4];
#pragma unroll
        for (int i = 0; i < 2; i++)
            matrix_load(kf[i], k + x * BOX + swizzled(key, 4 * i + b.lane / 8));
#pragma unroll
        for (int i = 0; i < 4; i++)
            matrix_load(qf[i], q + x * Q_BOX + swizzled(row, 2 * i + half));
#pragma unroll
        for (int i = 0; i < 4; i++)
            multiply(c, qf[i], kf[i / 2][2 * (i % 2)], kf[i / 2][2 * (i % 2) + 1]);
    }
    float *s = b.sh->s + b.lane / 4 * S_LD + 8 * b.warp + 2 * (b.lane % 4);
    s[0] = c[0];
    s[1] = c[1];
    s[8 * S_LD] = c[2];
    s[8 * S_LD + 1] = c[3];
}

// Thread (row, t) has columns 8 j + 2 t and the next, as in the other kernel.
static __device__ __forceinline__ void load_scores(const span &b, float (&s)[16])
{
    int row = threadIdx.x / 4, t = threadIdx.x % 4;
    int seen = b.keys - (b.split * RANKS + b.rank) * MLA_TILE;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            s[2 * j + e] =
                8 * j + 2 * t + e < seen ? b.sh->s[row * S_LD + 8 * j + 2 * t + e] : -INFINITY;
}

static __device__ __forceinline__ void send_top(const shorts &a, const span &b, float (&s)[16])
{
    float largest = s[0];
#pragma unroll
    for (int j = 1; j < 16; j++)
        largest = fmaxf(largest, s[j]);
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    uint32_t to = shared_at(&b.sh->top[b.rank][threadIdx.x / 4]);
#pragma unroll
    for (int i = 0; i < 2; i++)
        store_remote(remote(to, threadIdx.x % 4 * 2 + i), largest * a.scale);
}

static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// This tile's probabilities into this block's p, the sums to all.
static __device__ __forceinline__ void make_p(const shorts &a, const span &b, float (&s)[16])
{
    int row = threadIdx.x / 4, t = threadIdx.x % 4;
    float top = -INFINITY, all = 0;
    for (int i = 0; i <= b.rank; i++)
        top = mla_reference(top, b.sh->top[i][row]);
    float base = top == -INFINITY ? 0 : top;
    uint8_t *p = b.sh->p + b.rank * ROWS * 128;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float lo = exp2_fast(fmaf(s[2 * j], a.scale, -base));
        float hi = exp2_fast(fmaf(s[2 * j + 1], a.scale, -base));
        all += lo;
        all += hi;
        *(__nv_bfloat162 *)(p + swizzled(row, j) + 4 * t) = __floats2bfloat162_rn(lo, hi);
    }
    uint32_t to = shared_at(&b.sh->sum[b.rank][row][t]);
#pragma unroll
    for (int i = 0; i < RANKS; i++)
        store_remote(remote(to, i), all);
}

static __device__ __forceinline__ void send_p(const span &b)
{
    uint32_t p = shared_at(b.sh->p) + b.rank * ROWS * 128 + threadIdx.x % 128 * 16;
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(p));
#pragma unroll
    for (int i = 0; i < RANKS / 2; i++) {
        int rank = threadIdx.x / 128 * (RANKS / 2) + i;
        if (rank != b.rank)
            store_remote(remote(p, rank), v);
    }
}

// Decays of all tiles by row; reference and sum of the split come back.
static __device__ __forceinline__ float2 make_decays(const span &b, int row)
{
    float top = -INFINITY, sum[4] = {};
    for (int i = 0; i < b.tiles; i++) {
        float now = mla_reference(top, b.sh->top[i][row]);
        float decay = exp2_fast(top - (now == -INFINITY ? 0 : now));
        b.sh->decay[i][row] = decay;
#pragma unroll
        for (int t = 0; t < 4; t++)
            sum[t] = fmaf(sum[t], decay, b.sh->sum[i][row][t]);
        top = now;
    }
    return make_float2(top, (sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// 8 columns a warp, all tiles in order.
static __device__ __forceinline__ void add_values(const span &b, float (&o)[4])
{
    uint32_t p = shared_at(b.sh->p), v = shared_at(b.sh->v);
    int half = b.lane / 16, row = b.lane % 16, g = b.lane / 4;
    for (int i = 0; i < b.tiles; i++) {
        uint32_t pf[4][4], vf[2][4];
        bar_wait(shared_at(&b.sh->v_full[i]), 0);
#pragma unroll
        for (int k = 0; k < 4; k++)
            matrix_load(pf[k], p + i * ROWS * 128 + swizzled(row, 2 * k + half));
#pragma unroll
        for (int k = 0; k < 2; k++)
            matrix_load_t(vf[k], v + i * BOX + swizzled(32 * k + b.lane, b.warp));
        if (i) {
            float lo = b.sh->decay[i][g], hi = b.sh->decay[i][g + 8];
            o[0] *= lo;
            o[1] *= lo;
            o[2] *= hi;
            o[3] *= hi;
        }
#pragma unroll
        for (int k = 0; k < 4; k++)
            multiply(o, pf[k], vf[k / 2][2 * (k % 2)], vf[k / 2][2 * (k % 2) + 1]);
    }
}

// Values of tokens that nobody wrote may be NaN, and 0 * NaN is NaN.
static __device__ __forceinline__ void zero_tail(const span &b)
{
    int last = b.tiles - 1, keys = b.keys - (b.split * RANKS + last) * MLA_TILE;
    if (keys >= MLA_TILE)
        return;
    bar_wait(shared_at(&b.sh->v_full[last]), 0);
    for (int i = threadIdx.x; i < (MLA_TILE - keys) * 8; i += BLOCK)
        *(uint4 *)(b.sh->v + last * BOX + keys * 128 + i * 16) = make_uint4(0, 0, 0, 0);
}

static __device__ __forceinline__ void store(const shorts &a, const span &b, const float (&o)[4],
                                             const float2 *split)
{
    int g = b.lane / 4, column = 64 * b.rank + 8 * b.warp;
    if (b.keys > RANKS * MLA_TILE) {
        size_t at = (size_t)b.row * a.splits + b.split;
        a.w.sums[at * MLA_WARP_SUMS + (column / 256) * 1024 + column % 256 / 8 * 32 + b.lane] =
            make_float4(o[0], o[1], o[2], o[3]);
        if (b.rank == 0 && threadIdx.x < ROWS)
            a.w.tops[at * MLA_TILE + threadIdx.x] = split[threadIdx.x];
        return;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int head = g + 8 * r;
        float by = 1 / split[head].y;
        if (head < a.heads)
            *(__nv_bfloat162 *)(a.out + b.row * a.out_ld + head * MLA_LORA + column +
                                2 * (b.lane % 4)) =
                __floats2bfloat162_rn(o[2 * r] * by, o[2 * r + 1] * by);
    }
}

#define CLUSTER(n) __cluster_dims__(n, 1, 1)
#else
#define CLUSTER(n)
#endif

static __global__ void CLUSTER(RANKS) __launch_bounds__(BLOCK, 1)
    mla_short_sm90(const __grid_constant__ shorts a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) uint8_t smem[];
    __shared__ float2 split[ROWS];
    span b;
    b.sh = (struct shared_part *)smem;
    b.rank = blockIdx.x;
    b.row = blockIdx.z;
    b.split = blockIdx.y;
    b.warp = threadIdx.x / 32;
    b.lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++)
            bar_init(shared_at(&b.sh->k_full[i]), 1);
        for (int i = 0; i < RANKS; i++)
            bar_init(shared_at(&b.sh->v_full[i]), 1);
        bar_init(shared_at(&b.sh->q_full), 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_async();
    }
    __syncthreads();
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
    b.keys = a.rows.pos[b.row] + 1;
    if (b.keys <= b.split * RANKS * MLA_TILE) // the whole cluster
        return;
    cluster_arrive();
    b.tiles = min((int)RANKS, mla_tiles(b.keys) - b.split * RANKS);
    load(a, b);
    float s[16];
    if (b.rank < b.tiles)
        score(b);
    __syncthreads();
    cluster_wait(); // all have started
    if (b.rank < b.tiles && threadIdx.x < 4 * ROWS) {
        load_scores(b, s);
        send_top(a, b, s);
    }
    cluster_arrive();
    cluster_wait();
    if (b.rank < b.tiles && threadIdx.x < 4 * ROWS)
        make_p(a, b, s);
    __syncthreads();
    if (b.rank < b.tiles)
        send_p(b);
    cluster_arrive();
    zero_tail(b);
    cluster_wait();
    if (threadIdx.x < ROWS)
        split[threadIdx.x] = make_decays(b, threadIdx.x);
    __syncthreads();
    float o[4] = {};
    add_values(b, o);
    store(a, b, o, split);
#else
    __trap(); // built for sm_90 instead of sm_90a
#endif
}

// ---- host

bool mla_is_short(const struct cuda_mla *m, const struct mla_cut *c)
{
    size_t splits = ((size_t)c->keys_max + c->split - 1) / c->split;
    return m->form == CUDA_KV_BF16 && c->split == RANKS * MLA_TILE && m->heads <= ROWS &&
           m->rows.n * splits <= CLUSTERS && m->rows.n * splits <= c->warps;
}

cudaError_t mla_short(cudaStream_t s, const struct cuda_mla *m, const struct mla_cut *c)
{
    shorts a = {};
    a.rows = m->rows;
    a.w = mla_work(m, c);
    a.out = m->out;
    a.out_ld = m->out_ld;
    a.scale = m->scale * 1.4426950408889634f;
    a.heads = m->heads;
    a.splits = (c->keys_max + c->split - 1) / c->split;
    a.block_tokens = (int)m->block_tokens;
    if (!mla_maps(m, m->heads, 1, &a.kv, &a.latent, &a.rope, &a.box_rows))
        return cudaErrorInvalidValue;
    cudaError_t e = cudaFuncSetAttribute(
        mla_short_sm90, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(struct shared_part));
    if (e != cudaSuccess)
        return e;
    cudaLaunchAttribute pdl = {};
    pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    pdl.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(RANKS, a.splits, m->rows.n);
    config.blockDim = dim3(BLOCK);
    config.dynamicSmemBytes = sizeof(struct shared_part);
    config.stream = s;
    config.attrs = &pdl;
    config.numAttrs = 1;
    e = cudaLaunchKernelEx(&config, mla_short_sm90, a);
    return e != cudaSuccess || a.splits == 1 ? e : mla_merge_rows(s, m, c);
}
