// Causal attention over paged KV for shapes that no other kernel takes: attn_mla (absorbed, key and
// value share the latent) and attn_gqa, a block per row and head. Which kernel runs depends on the
// shape, never on the batch.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

struct attn {
    struct cuda_kv kv;
    struct cuda_rows q, q_rope, out;
    size_t q_head, q_rope_head; // distance of two heads' queries
    int heads;                  // of a row
    int shared;                 // query heads that read one kv head (MLA: all)
    int dim, rope, v_dim;       // rope: further elements of query and key; 0 for GQA
    int v_at;                   // where kv head 0's value lies in a token's row
    size_t row0;                // first row of this launch
    float scale;
};

static __device__ __forceinline__ const uint16_t *token(const attn &a, const int32_t *table,
                                                        size_t t)
{
    size_t block = table[t / a.kv.block_tokens];
    return a.kv.pool + (block * a.kv.block_tokens + t % a.kv.block_tokens) * a.kv.width;
}

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
    pdl_take_over();
    int h = blockIdx.x, kv_head = h / a.shared, pos = a.kv.pos[row];
    const int32_t *table = a.kv.tables + a.kv.seq[row] * a.kv.table_stride;
    const uint16_t *q = (const uint16_t *)a.q.p + row * a.q.stride + h * a.q_head;
    const uint16_t *q_rope =
        (const uint16_t *)a.q_rope.p + row * a.q_rope.stride + h * a.q_rope_head;
    bool mla = a.rope > 0;
    float top = -INFINITY, sum = 0;
    for (int c = threadIdx.x; c < a.v_dim; c += PLAIN_THREADS)
        o[c] = 0;
    for (int first = 0; first <= pos; first += PLAIN_THREADS) {
        int n = min(PLAIN_THREADS, pos + 1 - first);
        float s = -INFINITY;
        if (threadIdx.x < n) {
            const uint16_t *key =
                token(a, table, first + threadIdx.x) + (mla ? 0 : kv_head * a.dim);
            s = 0;
            for (int c = 0; c < a.dim; c++)
                s = fmaf(from_bf16(q[c]), from_bf16(key[c]), s);
            for (int c = 0; c < a.rope; c++)
                s = fmaf(from_bf16(q_rope[c]), from_bf16(key[a.dim + c]), s);
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
                v = fmaf(
                    p[i],
                    from_bf16(token(a, table, first + i)[a.v_at + kv_head * a.v_dim * !mla + c]),
                    v);
            o[c] = v;
        }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < a.v_dim; c += PLAIN_THREADS)
        row_set(a.out, row, (size_t)h * a.v_dim + c, o[c] / sum);
}

static void launch_plain(struct cuda *c, attn a, size_t n)
{
    for (size_t some; a.row0 < n; a.row0 += some) {
        some = n - a.row0 < 65535 ? n - a.row0 : 65535;
        cuda_launch(c, "attn_plain", attn_plain, dim3((unsigned)a.heads, (unsigned)some),
                    PLAIN_THREADS, a.v_dim * sizeof(float), a);
    }
}

// ---- ops

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
    a.scale = args->scale;
    launch_plain(cuda_of(k), a, args->batch->n);
}
