// What attention needs between the first product and the scores, in one launch: norms, rotation,
// and the new tokens' places in the pool. MLA: a block for the key side of a row and one for its
// queries. GQA: a warp per head, for heads of 64 and 128; other sizes are composed of plain ops.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

struct rope {
    const float *table;
    int dim;
    bool pairs;
};

// cos and sin of pair p at a position; the pair, rotated. Rounded one by one, as the CPU bodies do.
static __device__ __forceinline__ float2 rotate(const rope &r, int pos, int p, float a, float b)
{
    const float *cos = r.table + (size_t)pos * r.dim, *sin = cos + r.dim / 2;
    float c = cos[p], s = sin[p];
    return make_float2(__fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)),
                       __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
}

static __device__ __forceinline__ uint16_t *place(const struct cuda_kv &kv, size_t row, int pos)
{
    size_t block = kv.tables[kv.seq[row] * kv.table_stride + pos / kv.block_tokens];
    return kv.pool + (block * kv.block_tokens + pos % kv.block_tokens) * kv.width;
}

// ---- MLA

enum { MLA_THREADS = 128 };

struct mla_prepare {
    struct cuda_kv kv;
    struct rope rope;
    uint16_t *row, *q; // of row 0
    size_t row_stride, q_stride;
    const float *kv_norm, *q_norm; // q_norm NULL: rotate
    int kv_lora, q_dim, heads, q_head, q_rope_at;
    float eps;
};

static __device__ float mla_block_sum(float v)
{
    __shared__ float part[MLA_THREADS / 32];
#pragma unroll
    for (int d = 16; d; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int w = 0; w < MLA_THREADS / 32; w++)
        v += part[w];
    return v;
}

// x and out may be one; pairs of elements, so that nothing but evenness is asked of the place.
static __device__ __forceinline__ void mla_norm(const uint16_t *x, uint16_t *out,
                                                const float *gamma, int dim, float eps)
{
    float sum = 0;
    for (int c = threadIdx.x; c < dim; c += MLA_THREADS) {
        float v = from_bf16(x[c]);
        sum = fmaf(v, v, sum);
    }
    float r = 1 / sqrtf(mla_block_sum(sum) / (float)dim + eps);
    for (int c = threadIdx.x; c < dim; c += MLA_THREADS)
        out[c] = to_bf16(from_bf16(x[c]) * r * gamma[c]);
}

static __device__ __forceinline__ void mla_rotate(const rope &r, int pos, int p, const uint16_t *x,
                                                  uint16_t *out)
{
    int a = r.pairs ? 2 * p : p, b = r.pairs ? a + 1 : p + r.dim / 2;
    float2 v = rotate(r, pos, p, from_bf16(x[a]), from_bf16(x[b]));
    out[a] = to_bf16(v.x);
    out[b] = to_bf16(v.y);
}

static __global__ void __launch_bounds__(MLA_THREADS)
    mla_prepare_row(const __grid_constant__ mla_prepare a)
{
    size_t row = blockIdx.x;
    pdl_take_over();
    int pos = a.kv.pos[row], half = a.rope.dim / 2;
    if (blockIdx.y == 0) {
        const uint16_t *x = a.row + row * a.row_stride;
        uint16_t *to = place(a.kv, row, pos);
        for (int p = threadIdx.x; p < half; p += MLA_THREADS)
            mla_rotate(a.rope, pos, p, x + a.kv_lora, to + a.kv_lora);
        mla_norm(x, to, a.kv_norm, a.kv_lora, a.eps);
        return;
    }
    uint16_t *q = a.q + row * a.q_stride;
    if (a.q_norm) {
        mla_norm(q, q, a.q_norm, a.q_dim, a.eps);
        return;
    }
    for (int i = threadIdx.x; i < a.heads * half; i += MLA_THREADS) {
        uint16_t *x = q + i / half * a.q_head + a.q_rope_at;
        mla_rotate(a.rope, pos, i % half, x, x);
    }
}

static struct rope rope_of(const struct kern_rope_table *r)
{
    return {(const float *)r->table->p, (int)r->dim, r->style == KERN_ROPE_PAIRS};
}

extern "C" void cuda_mla_prepare(struct kern *k, const struct kern_mla_prepare_args *a)
{
    struct cuda_rows row = cuda_rows(&a->kv), q = cuda_rows(&a->q);
    mla_prepare s = {};
    s.kv = cuda_kv(a->batch, &a->pool);
    s.rope = rope_of(&a->rope);
    s.row = (uint16_t *)row.p;
    s.row_stride = row.stride;
    s.q = (uint16_t *)q.p;
    s.q_stride = q.stride;
    s.kv_norm = (const float *)a->kv_norm->p;
    s.q_norm = a->q_norm ? (const float *)a->q_norm->p : NULL;
    s.kv_lora = (int)a->kv_lora;
    s.q_dim = (int)a->q_dim;
    s.heads = (int)a->heads;
    s.q_head = (int)a->q_head_stride;
    s.q_rope_at = (int)a->q_rope_at;
    s.eps = a->eps;
    cuda_launch(cuda_of(k), "mla_prepare", mla_prepare_row, dim3((unsigned)a->batch->n, 2),
                MLA_THREADS, 0, s);
}

// ---- GQA

enum { GQA_WARPS = 8 };

struct gqa_prepare {
    struct cuda_kv kv;
    struct rope rope;
    uint16_t *qkv;
    size_t stride;
    const float *q_norm, *k_norm; // NULL: none
    int heads, kv_heads;
    float eps;
};

// Lane l holds elements l * E .. + E - 1 of each half of a head; E = D / 64.
template <int D>
static __global__ void __launch_bounds__(32 * GQA_WARPS)
    gqa_prepare_heads(const __grid_constant__ gqa_prepare a)
{
    constexpr int E = D / 64;
    size_t row = blockIdx.y;
    int h = blockIdx.x * GQA_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    bool is_q = h < a.heads, is_v = h >= a.heads + a.kv_heads;
    pdl_take_over();
    if (h >= a.heads + 2 * a.kv_heads)
        return;
    int pos = a.kv.pos[row];
    uint16_t *x = a.qkv + row * a.stride + (size_t)h * D + lane * E;
    uint16_t *to = x;
    if (!is_q)
        to = place(a.kv, row, pos) + (size_t)(h - a.heads) * D + lane * E;
    float v[2][E];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < E; e++)
            v[i][e] = from_bf16(x[i * (D / 2) + e]);
    const float *gamma = is_q ? a.q_norm : a.k_norm;
    if (gamma && !is_v) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int e = 0; e < E; e++)
                sum = fmaf(v[i][e], v[i][e], sum);
#pragma unroll
        for (int d = 16; d; d /= 2)
            sum += __shfl_xor_sync(~0u, sum, d);
        float r = 1 / sqrtf(sum / D + a.eps);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int e = 0; e < E; e++)
                v[i][e] = v[i][e] * r * gamma[i * (D / 2) + lane * E + e];
    }
#pragma unroll
    for (int e = 0; e < E; e++) {
        float2 w = make_float2(v[0][e], v[1][e]);
        if (!is_v)
            w = rotate(a.rope, pos, lane * E + e, w.x, w.y);
        to[e] = to_bf16(w.x);
        to[D / 2 + e] = to_bf16(w.y);
    }
}

extern "C" void cuda_gqa_prepare(struct kern *k, const struct kern_gqa_prepare_args *a)
{
    size_t dim = a->head_dim;
    if ((dim != 64 && dim != 128) || a->rope.style != KERN_ROPE_HALVES || a->batch->n > 65535) {
        kern_composed_gqa_prepare(k, a);
        return;
    }
    struct cuda_rows qkv = cuda_rows(&a->qkv);
    gqa_prepare s = {};
    s.kv = cuda_kv(a->batch, &a->pool);
    s.rope = rope_of(&a->rope);
    s.qkv = (uint16_t *)qkv.p;
    s.stride = qkv.stride;
    s.q_norm = a->q_norm ? (const float *)a->q_norm->p : NULL;
    s.k_norm = a->k_norm ? (const float *)a->k_norm->p : NULL;
    s.heads = (int)a->heads;
    s.kv_heads = (int)a->kv_heads;
    s.eps = a->eps;
    unsigned blocks = (unsigned)((a->heads + 2 * a->kv_heads + GQA_WARPS - 1) / GQA_WARPS);
    cuda_launch(cuda_of(k), "gqa_prepare",
                dim == 128 ? gqa_prepare_heads<128> : gqa_prepare_heads<64>,
                dim3(blocks, (unsigned)a->batch->n), 32 * GQA_WARPS, 0, s);
}
