// MLA over paged latent KV: which kernel runs, and the plain one for any shape.
//
// The fast path: attn_mla_plan.cu cuts a step's rows into pieces of work, attn_mla_sm90.cu computes
// them on the tensor cores, and where a row's splits fell to several workers, a merge kernel folds
// them in order.
#include "kernels/cuda/attn_mla.cuh"

enum { PLAIN_THREADS = 128 };

// ---- any shape

struct plain {
    struct cuda_mla m;
    size_t token_bytes;
    int row0;
};

static __device__ __forceinline__ float bf16(const uint16_t *p)
{
    return __uint_as_float((uint32_t)*p << 16);
}

static __device__ __forceinline__ const uint8_t *token(const plain &a, const int32_t *table, int t)
{
    size_t block = table[t / a.m.block_tokens];
    return (const uint8_t *)a.m.pool +
           (block * a.m.block_tokens + t % a.m.block_tokens) * a.token_bytes;
}

// As the fast path sees it: fp8 values are rounded to bf16 after they are scaled.
template <bool FP8>
static __device__ __forceinline__ float latent(const plain &a, const uint8_t *t, int c)
{
    if (!FP8)
        return bf16((const uint16_t *)t + c);
    __nv_fp8_e4m3 v;
    v.__x = t[c];
    float scale = *(const float *)(t + a.m.kv_lora + c / 128 * sizeof(float));
    return __bfloat162float(__float2bfloat16_rn((float)v * scale));
}

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

// A block per row and head; a thread per key of a run of 128, then a thread per column.
template <bool FP8>
static __global__ void __launch_bounds__(PLAIN_THREADS) mla_plain(const __grid_constant__ plain a)
{
    extern __shared__ float o[]; // [kv_lora]
    __shared__ float p[PLAIN_THREADS];
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
    int row = a.row0 + blockIdx.y, h = blockIdx.x, pos = a.m.rows.pos[row];
    if (pos < 0)
        return;
    const int32_t *table = a.m.rows.tables + a.m.rows.seq[row] * a.m.rows.table_stride;
    const uint16_t *q = a.m.q_latent + row * a.m.q_latent_ld + h * a.m.q_latent_head;
    const uint16_t *q_rope = a.m.q_rope + row * a.m.q_rope_ld + h * a.m.q_rope_head;
    size_t rope_at = FP8 ? a.m.kv_lora + a.m.kv_lora / 128 * sizeof(float) : 2 * a.m.kv_lora;
    float top = -INFINITY, sum = 0;
    for (int c = threadIdx.x; c < a.m.kv_lora; c += PLAIN_THREADS)
        o[c] = 0;
    for (int first = 0; first <= pos; first += PLAIN_THREADS) {
        int n = min(PLAIN_THREADS, pos + 1 - first);
        float s = -INFINITY;
        if (threadIdx.x < n) {
            const uint8_t *t = token(a, table, first + threadIdx.x);
            s = 0;
            for (int c = 0; c < a.m.kv_lora; c++)
                s = fmaf(bf16(q + c), latent<FP8>(a, t, c), s);
            for (int c = 0; c < a.m.rope; c++)
                s = fmaf(bf16(q_rope + c), bf16((const uint16_t *)(t + rope_at) + c), s);
            s *= a.m.scale;
        }
        float new_top = fmaxf(top, block_max_or_sum(s, false)), old = expf(top - new_top);
        p[threadIdx.x] = expf(s - new_top);
        sum = fmaf(sum, old, block_max_or_sum(p[threadIdx.x], true));
        top = new_top;
        __syncthreads();
        for (int c = threadIdx.x; c < a.m.kv_lora; c += PLAIN_THREADS) {
            float v = o[c] * old;
            for (int i = 0; i < n; i++)
                v = fmaf(p[i], latent<FP8>(a, token(a, table, first + i), c), v);
            o[c] = v;
        }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < a.m.kv_lora; c += PLAIN_THREADS)
        *(__nv_bfloat16 *)(a.m.out + row * a.m.out_ld + (size_t)h * a.m.kv_lora + c) =
            __float2bfloat16_rn(o[c] / sum);
}

static cudaError_t launch_plain(cudaStream_t s, const struct cuda_mla *m)
{
    plain a = {*m, 0, 0};
    bool fp8 = m->form == CUDA_KV_FP8;
    a.token_bytes = fp8 ? m->kv_lora + m->kv_lora / 128 * sizeof(float) + 2 * m->rope
                        : 2 * (size_t)(m->kv_lora + m->rope);
    cudaLaunchAttribute pdl = {};
    pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    pdl.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t c = {};
    c.blockDim = dim3(PLAIN_THREADS);
    c.dynamicSmemBytes = m->kv_lora * sizeof(float);
    c.stream = s;
    c.attrs = &pdl;
    c.numAttrs = 1;
    for (int some; a.row0 < m->rows.n; a.row0 += some) {
        some = m->rows.n - a.row0 < 65535 ? m->rows.n - a.row0 : 65535;
        c.gridDim = dim3(m->heads, some);
        cudaError_t e = fp8 ? cudaLaunchKernelEx(&c, mla_plain<true>, a)
                            : cudaLaunchKernelEx(&c, mla_plain<false>, a);
        if (e != cudaSuccess)
            return e;
    }
    return cudaSuccess;
}

// ---- which one

static bool is_valid(const struct cuda_mla *m)
{
    return m->heads > 0 && m->heads <= 65535 && m->kv_lora > 0 && m->kv_lora <= 8192 &&
           m->rope >= 0 && m->block_tokens > 0 && m->rows.n >= 0 &&
           (m->form != CUDA_KV_FP8 || (m->kv_lora % 128 == 0 && m->rope % 2 == 0));
}

cudaError_t cuda_mla(cudaStream_t s, const struct cuda_mla *m)
{
    if (!is_valid(m))
        return cudaErrorInvalidValue;
    if (m->rows.n == 0)
        return cudaSuccess;
    return mla_is_tiled(m) ? mla_tiled(s, m) : launch_plain(s, m);
}
