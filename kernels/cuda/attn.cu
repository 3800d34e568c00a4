// Causal attention over paged KV: attn_mla (absorbed, key and value share the latent) and attn_gqa.
//
// A sequence is cut into spans of 128 keys from position 0. A block computes one span for one row
// and up to 16 heads that share its keys, on the tensor cores (tf32, from the float32 cache) with
// an online softmax over runs of 32 keys; a second kernel merges a row's spans in order. Where the
// spans lie depends on the position alone, so neither company nor chunking changes a bit. Shapes
// that the tensor cores cannot take (and unaligned pools) go to attn_plain, a block per row and
// head; which kernel runs depends on the shape, never on the batch.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mma.cuh"

#include <string.h>

enum { SPAN = 128, RUN = 32, HEADS = 16, THREADS = 256, PARTIAL_BYTES = 192 << 20 };

struct attn {
    struct cuda_kv kv;
    struct cuda_rows q, q_rope, out;
    size_t q_head, q_rope_head; // distance of two heads' queries
    int heads;                  // of a row
    int shared;                 // query heads that read one kv head (MLA: all)
    int dim, rope, v_dim;       // rope: further elements of query and key; 0 for GQA
    int v_at;                   // where kv head 0's value lies in a token's row
    size_t row0;                // first row of this launch
    int spans;                  // of the longest row
    float scale;
    float *partial; // [row of the launch][span][head][v_dim]: sums, not divided
    float2 *tops;   // [row of the launch][span][head]: largest score, sum of exponentials
};

static __device__ __forceinline__ const float *token(const attn &a, const int32_t *table, size_t t)
{
    size_t block = table[t / a.kv.block_tokens];
    return a.kv.pool + (block * a.kv.block_tokens + t % a.kv.block_tokens) * a.kv.width;
}

// ---- on the tensor cores

// D + R: elements of a key, V: of a value; MLA: the value is the key's first V elements.
template <int D, int R, int V, bool MLA> struct span_block {
    static constexpr int K = D + R, K_LD = K + 8, V_LD = MLA ? K_LD : V + 8;
    static constexpr int RUN_FLOATS = RUN * K_LD + (MLA ? 0 : RUN * V_LD);
    static constexpr int Q_FLOATS = HEADS * K_LD, S_LD = RUN + 4;
    static constexpr int FLOATS = Q_FLOATS + 2 * RUN_FLOATS + 2 * HEADS * S_LD + HEADS + 2 * SPAN;
    static constexpr int NT = V / 64; // columns of 8 of the sums that a warp owns
    static constexpr int HALF = K / 2;
    static_assert(V % 64 == 0 && HALF % 16 == 0 && D % 32 == 0 && R % 32 == 0, "shape");

    const attn &a;
    float *q, *runs, *score, *decay; // runs: two, one being read while the other is filled
    const float **tokens;            // [SPAN]: where each token's row lies
    int pos, kv_head, head0, heads; // heads: of this block, at most HEADS
    int warp, lane, g, t;

    // Reads all before it writes any: the compiler must not think that one waits for the other.
    __device__ __forceinline__ void load_q(size_t row)
    {
        constexpr int EACH = K / 32, ROUNDS = HEADS / (THREADS / 32);
        float v[ROUNDS][EACH];
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            int h = warp + i * (THREADS / 32);
            const float *x = a.q.p + row * a.q.stride + (head0 + h) * a.q_head + lane;
            const float *rope = a.q_rope.p + row * a.q_rope.stride +
                                (head0 + h) * a.q_rope_head + lane - D;
#pragma unroll
            for (int j = 0; j < EACH; j++)
                v[i][j] = h < heads ? (32 * j < D ? x : rope)[32 * j] : 0;
        }
#pragma unroll
        for (int i = 0; i < ROUNDS; i++)
#pragma unroll
            for (int j = 0; j < EACH; j++)
                q[(warp + i * (THREADS / 32)) * K_LD + lane + 32 * j] =
                    __uint_as_float(to_tf32(v[i][j]));
    }

    // Tokens after pos repeat it, unseen.
    __device__ void find_tokens(const int32_t *table, int first)
    {
        if (threadIdx.x < SPAN)
            tokens[threadIdx.x] = token(a, table, min(first + (int)threadIdx.x, pos));
    }

    // Keys and values of RUN tokens, from token `at` of the span on; a warp copies whole rows.
    __device__ __forceinline__ void load_run(int i, int at)
    {
        constexpr int K_CHUNKS = K / 4, CHUNKS = K_CHUNKS + (MLA ? 0 : V / 4);
        float *to = runs + i * RUN_FLOATS;
        for (int r = warp; r < RUN; r += THREADS / 32) {
            const float *from = tokens[at + r], *key = from + (MLA ? 0 : kv_head * D);
            const float *value = from + a.v_at + kv_head * V;
#pragma unroll
            for (int j = 0; j < (CHUNKS + 31) / 32; j++) {
                int c = lane + 32 * j;
                if (c < K_CHUNKS)
                    copy_async(to + r * K_LD + 4 * c, key + 4 * c, true);
                else if (c < CHUNKS)
                    copy_async(to + RUN * K_LD + r * V_LD + 4 * (c - K_CHUNKS),
                               value + 4 * (c - K_CHUNKS), true);
            }
        }
    }

    // Scores of 16 heads x 8 keys over one half of the key's elements, by warp.
    __device__ __forceinline__ void multiply_keys(const float *k)
    {
        float c[4] = {}, d[4] = {}; // two chains: an instruction's result comes late
        int half = warp / 4, n = warp % 4;
        const float *qa = q + half * HALF + 2 * t, *kb = k + (8 * n + g) * K_LD + half * HALF + 2 * t;
#pragma unroll 8
        for (int i = 0; i < HALF; i += 16) { // of 8 elements lane t takes 2t and 2t + 1: no two
#pragma unroll
            for (int e = 0; e < 2; e++) { // lanes of a load meet in a bank
                float2 lo = *(const float2 *)(qa + g * K_LD + i + 8 * e);
                float2 hi = *(const float2 *)(qa + (g + 8) * K_LD + i + 8 * e);
                float2 b = *(const float2 *)(kb + i + 8 * e);
                uint32_t a0[4] = {__float_as_uint(lo.x), __float_as_uint(hi.x),
                                  __float_as_uint(lo.y), __float_as_uint(hi.y)};
                mma_tf32(e ? d : c, a0, to_tf32(b.x), to_tf32(b.y));
            }
        }
        float *to = score + half * HEADS * S_LD + g * S_LD + 8 * n + 2 * t;
        to[0] = c[0] + d[0];
        to[1] = c[1] + d[1];
        to[8 * S_LD] = c[2] + d[2];
        to[8 * S_LD + 1] = c[3] + d[3];
    }

    // Probabilities in place of scores; a thread keeps largest score and sum of its head, with 15
    // others, and leaves how much older sums decay.
    __device__ __forceinline__ void softmax(int first, float *top, float *sum)
    {
        int h = threadIdx.x / 16, k = threadIdx.x % 16;
        float *s = score + h * S_LD + k, v[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            v[i] = first + k + 16 * i <= pos
                       ? __fmul_rn(__fadd_rn(s[16 * i], s[HEADS * S_LD + 16 * i]), a.scale)
                       : -INFINITY;
        float largest = fmaxf(v[0], v[1]);
#pragma unroll
        for (int d = 8; d; d /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
        float new_top = fmaxf(*top, largest), old = expf(*top - new_top);
        float p0 = expf(v[0] - new_top), p1 = expf(v[1] - new_top), both = p0 + p1;
#pragma unroll
        for (int d = 8; d; d /= 2)
            both += __shfl_xor_sync(~0u, both, d);
        s[0] = __uint_as_float(to_tf32(p0));
        s[16] = __uint_as_float(to_tf32(p1));
        *sum = fmaf(*sum, old, both);
        *top = new_top;
        if (k == 0)
            decay[h] = old;
    }

    __device__ __forceinline__ void multiply_values(const float *k, float (*o)[4])
    {
        const float *v = (MLA ? k : k + RUN * K_LD) + warp * (V / 8) + g;
        float lo = decay[g], hi = decay[g + 8];
#pragma unroll
        for (int j = 0; j < NT; j++) {
            o[j][0] *= lo;
            o[j][1] *= lo;
            o[j][2] *= hi;
            o[j][3] *= hi;
        }
#pragma unroll
        for (int i = 0; i < RUN; i += 8) {
            const float *p = score + i + t;
            uint32_t pa[4] = {
                __float_as_uint(p[g * S_LD]), __float_as_uint(p[(g + 8) * S_LD]),
                __float_as_uint(p[g * S_LD + 4]), __float_as_uint(p[(g + 8) * S_LD + 4])};
#pragma unroll
            for (int j = 0; j < NT; j++)
                mma_tf32(o[j], pa, to_tf32(v[(i + t) * V_LD + 8 * j]),
                         to_tf32(v[(i + t + 4) * V_LD + 8 * j]));
        }
    }

    // A row within one span is finished here; else its sums wait to be merged.
    __device__ __forceinline__ void finish(size_t row, int span, float top, float sum,
                                           float (*o)[4])
    {
        bool whole = pos < SPAN;
        size_t at = ((row - a.row0) * a.spans + span) * a.heads + head0;
        __syncthreads();
        if (threadIdx.x % 16 == 0) {
            int h = threadIdx.x / 16;
            decay[h] = sum;
            if (!whole && h < heads)
                a.tops[at + h] = make_float2(top, sum);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int h = g + 8 * i;
            if (h >= heads)
                continue;
            float *to = whole ? a.out.p + row * a.out.stride + (size_t)(head0 + h) * V
                              : a.partial + (at + h) * V;
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float v = o[j][2 * i + e];
                    to[warp * (V / 8) + 8 * j + 2 * t + e] = whole ? v / decay[h] : v;
                }
        }
    }

    __device__ void compute(size_t row, int span)
    {
        float top = -INFINITY, sum = 0, o[NT][4] = {};
        int first = span * SPAN, n = min(SPAN, pos + 1 - first);
        load_run(0, 0);
        copy_commit();
        load_q(row);
        for (int i = 0, at = 0; at < n; i ^= 1, at += RUN) {
            if (at + RUN < n)
                load_run(i ^ 1, at + RUN);
            copy_commit();
            copy_wait<1>();
            __syncthreads();
            multiply_keys(runs + i * RUN_FLOATS);
            __syncthreads();
            softmax(first + at, &top, &sum);
            __syncthreads();
            multiply_values(runs + i * RUN_FLOATS, o);
            __syncthreads();
        }
        finish(row, span, top, sum, o);
    }
};

template <int D, int R, int V, bool MLA>
static __global__ void __launch_bounds__(THREADS) attn_span(const __grid_constant__ attn a)
{
    extern __shared__ __align__(16) float smem[];
    using block_t = span_block<D, R, V, MLA>;
    size_t row = a.row0 + blockIdx.y;
    int pos = a.kv.pos[row], per_kv = (a.shared + HEADS - 1) / HEADS;
    if ((int)blockIdx.x * SPAN > pos)
        return;
    int kv_head = blockIdx.z / per_kv, group = blockIdx.z % per_kv;
    block_t b = {a};
    b.q = smem;
    b.runs = smem + block_t::Q_FLOATS;
    b.score = b.runs + 2 * block_t::RUN_FLOATS;
    b.decay = b.score + 2 * HEADS * block_t::S_LD;
    b.tokens = (const float **)(b.decay + HEADS);
    b.pos = pos;
    b.kv_head = kv_head;
    b.head0 = kv_head * a.shared + group * HEADS;
    b.heads = min((int)HEADS, a.shared - group * HEADS);
    b.warp = threadIdx.x / 32;
    b.lane = threadIdx.x % 32;
    b.g = b.lane / 4;
    b.t = b.lane % 4;
    b.find_tokens(a.kv.tables + a.kv.seq[row] * a.kv.table_stride, blockIdx.x * SPAN);
    __syncthreads();
    b.compute(row, blockIdx.x);
}

// A block per (head, row): spans in order, a thread per column.
static __global__ void attn_merge(const __grid_constant__ attn a)
{
    size_t row = a.row0 + blockIdx.y;
    int pos = a.kv.pos[row], h = blockIdx.x, spans = pos / SPAN + 1;
    if (spans == 1)
        return;
    for (int c = threadIdx.x; c < a.v_dim; c += blockDim.x) {
        float top = -INFINITY, sum = 0, o = 0;
#pragma unroll 8
        for (int s = 0; s < spans; s++) {
            size_t at = ((size_t)blockIdx.y * a.spans + s) * a.heads + h;
            float2 m = a.tops[at];
            float new_top = fmaxf(top, m.x), old = expf(top - new_top), now = expf(m.x - new_top);
            o = fmaf(a.partial[at * a.v_dim + c], now, o * old);
            sum = fmaf(m.y, now, sum * old);
            top = new_top;
        }
        a.out.p[row * a.out.stride + (size_t)h * a.v_dim + c] = o / sum;
    }
}

template <int D, int R, int V, bool MLA> static void launch_span(struct cuda *c, attn a, size_t n)
{
    constexpr int bytes = span_block<D, R, V, MLA>::FLOATS * (int)sizeof(float);
    if (!cuda_check(c,
                    cudaFuncSetAttribute(attn_span<D, R, V, MLA>,
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                    "attn_span: shared memory"))
        return;
    unsigned groups = (a.heads / a.shared) * ((a.shared + HEADS - 1) / HEADS);
    size_t per_row = (size_t)a.spans * a.heads * (V * sizeof(float) + sizeof(float2));
    size_t rows = PARTIAL_BYTES / per_row;
    rows = rows < 1 ? 1 : rows > 65535 ? 65535 : rows;
    rows = rows < n ? rows : n;
    if (a.spans > 1) {
        a.tops = (float2 *)cuda_scratch(c, CUDA_ARENA_PARTIAL, rows * per_row);
        a.partial = (float *)(a.tops + rows * a.spans * a.heads);
    }
    for (size_t some; a.row0 < n; a.row0 += some) {
        some = n - a.row0 < rows ? n - a.row0 : rows;
        dim3 grid((unsigned)a.spans, (unsigned)some, groups);
        attn_span<D, R, V, MLA><<<grid, THREADS, bytes, c->stream>>>(a);
        cuda_launched(c, "attn_span");
        if (a.spans == 1)
            continue;
        attn_merge<<<dim3((unsigned)a.heads, (unsigned)some), V, 0, c->stream>>>(a);
        cuda_launched(c, "attn_merge");
    }
}

// ---- any shape

enum { PLAIN_THREADS = 128 };

static __device__ float block_max_or_sum(float v, bool sum)
{
    __shared__ float part[PLAIN_THREADS / 32];
    for (int d = 16; d; d /= 2) {
        float w = __shfl_xor_sync(~0u, v, d);
        v = sum ? v + w : fmaxf(v, w);
    }
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int i = 1; i < PLAIN_THREADS / 32; i++)
        v = sum ? v + part[i] : fmaxf(v, part[i]);
    __syncthreads();
    return v;
}

// A thread per key of a run of 128, then a thread per column of the value.
static __global__ void __launch_bounds__(PLAIN_THREADS) attn_plain(const __grid_constant__ attn a)
{
    extern __shared__ float o[]; // [v_dim]
    __shared__ float p[PLAIN_THREADS];
    size_t row = a.row0 + blockIdx.y;
    int h = blockIdx.x, kv_head = h / a.shared, pos = a.kv.pos[row];
    const int32_t *table = a.kv.tables + a.kv.seq[row] * a.kv.table_stride;
    const float *q = a.q.p + row * a.q.stride + h * a.q_head;
    const float *q_rope = a.q_rope.p + row * a.q_rope.stride + h * a.q_rope_head;
    bool mla = a.rope > 0;
    float top = -INFINITY, sum = 0;
    for (int c = threadIdx.x; c < a.v_dim; c += PLAIN_THREADS)
        o[c] = 0;
    for (int first = 0; first <= pos; first += PLAIN_THREADS) {
        int n = min(PLAIN_THREADS, pos + 1 - first);
        float s = -INFINITY;
        if (threadIdx.x < n) {
            const float *key = token(a, table, first + threadIdx.x) + (mla ? 0 : kv_head * a.dim);
            s = 0;
            for (int c = 0; c < a.dim; c++)
                s = fmaf(q[c], key[c], s);
            for (int c = 0; c < a.rope; c++)
                s = fmaf(q_rope[c], key[a.dim + c], s);
            s *= a.scale;
        }
        float new_top = fmaxf(top, block_max_or_sum(s, false)), old = expf(top - new_top);
        p[threadIdx.x] = expf(s - new_top);
        sum = fmaf(sum, old, block_max_or_sum(p[threadIdx.x], true));
        top = new_top;
        __syncthreads();
        for (int c = threadIdx.x; c < a.v_dim; c += PLAIN_THREADS) {
            float v = o[c] * old;
            for (int i = 0; i < n; i++)
                v = fmaf(p[i], token(a, table, first + i)[a.v_at + kv_head * a.v_dim * !mla + c], v);
            o[c] = v;
        }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < a.v_dim; c += PLAIN_THREADS)
        a.out.p[row * a.out.stride + (size_t)h * a.v_dim + c] = o[c] / sum;
}

static void launch_plain(struct cuda *c, attn a, size_t n)
{
    for (size_t some; a.row0 < n; a.row0 += some) {
        some = n - a.row0 < 65535 ? n - a.row0 : 65535;
        attn_plain<<<dim3((unsigned)a.heads, (unsigned)some), PLAIN_THREADS,
                     a.v_dim * sizeof(float), c->stream>>>(a);
        cuda_launched(c, "attn_plain");
    }
}

// ---- ops

// Tokens can be copied 16 bytes at a time.
static bool is_aligned(const attn *a)
{
    return ((uintptr_t)a->kv.pool & 15) == 0 && a->kv.width % 4 == 0;
}

void cuda_attn_mla(struct kern *k, const struct kern_attn_mla_args *args)
{
    attn a = {};
    a.kv = cuda_kv(args->batch, &args->kv);
    a.q = cuda_rows(&args->q_latent);
    a.q_rope = cuda_rows(&args->q_rope);
    a.out = cuda_rows(&args->out);
    a.q_head = args->q_latent_head_stride;
    a.q_rope_head = args->q_rope_head_stride;
    a.heads = a.shared = (int)args->heads;
    a.dim = a.v_dim = (int)args->kv_lora;
    a.rope = (int)args->rope_dim;
    a.spans = (int)((args->batch->keys_max + SPAN - 1) / SPAN);
    a.scale = args->scale;
    if (is_aligned(&a) && a.dim == 512 && a.rope == 64)
        launch_span<512, 64, 512, true>(cuda_of(k), a, args->batch->n);
    else
        launch_plain(cuda_of(k), a, args->batch->n);
}

void cuda_attn_gqa(struct kern *k, const struct kern_attn_gqa_args *args)
{
    attn a = {};
    a.kv = cuda_kv(args->batch, &args->kv);
    a.q = a.q_rope = cuda_rows(&args->q);
    a.out = cuda_rows(&args->out);
    a.q_head = args->head_dim;
    a.heads = (int)args->heads;
    a.shared = (int)(args->heads / args->kv_heads);
    a.dim = a.v_dim = (int)args->head_dim;
    a.v_at = (int)(args->kv_heads * args->head_dim);
    a.spans = (int)((args->batch->keys_max + SPAN - 1) / SPAN);
    a.scale = args->scale;
    if (is_aligned(&a) && a.dim == 128)
        launch_span<128, 0, 128, false>(cuda_of(k), a, args->batch->n);
    else if (is_aligned(&a) && a.dim == 64)
        launch_span<64, 0, 64, false>(cuda_of(k), a, args->batch->n);
    else
        launch_plain(cuda_of(k), a, args->batch->n);
}
