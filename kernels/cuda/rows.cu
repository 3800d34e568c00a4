// The plain ops that treat rows one by one: embed, gather_rows, add, silu_mul, rope and
// kv_write. All are small; each is one launch. Operands are f32 or bf16 and computed with as f32.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

#include <cuda_fp16.h>

enum { THREADS = 256 };

// A row per y, as far as a grid goes; kernels walk on from there.
static dim3 rows_grid(size_t n, size_t elements)
{
    size_t x = (elements + THREADS - 1) / THREADS;
    return dim3((unsigned)(x < 64 ? x : 64), (unsigned)(n < 65535 ? n : 65535));
}
#define FOR_ROWS(i, n) for (size_t i = blockIdx.y; i < (n); i += gridDim.y)
#define FOR_COLUMNS(c, n)                                                                          \
    for (size_t c = blockIdx.x * (size_t)blockDim.x + threadIdx.x; c < (n);                        \
         c += (size_t)gridDim.x * blockDim.x)

// ---- lookups

static __device__ __forceinline__ float element(const void *p, enum kern_dtype dtype, size_t i)
{
    if (dtype == KERN_F32)
        return ((const float *)p)[i];
    if (dtype == KERN_F16)
        return __half2float(((const __half *)p)[i]);
    return from_bf16(((const uint16_t *)p)[i]);
}

static __global__ void embed(const void *table, enum kern_dtype dtype, size_t ld,
                             const int32_t *ids, size_t n, size_t cols, struct cuda_rows out)
{
    pdl_take_over();
    FOR_ROWS(i, n)
    FOR_COLUMNS(c, cols)
    row_set(out, i, c, element(table, dtype, ids[i] * ld + c));
}

void cuda_embed(struct kern *k, const struct kern_embed_args *a)
{
    size_t cols = a->table->shape.cols;
    cuda_launch(cuda_of(k), "embed", embed, rows_grid(a->n, cols), THREADS, 0, a->table->p,
                a->table->shape.dtype, a->table->ld, (const int32_t *)a->ids->p + a->ids_at, a->n,
                cols, cuda_rows(&a->out));
}

static __global__ void gather(struct cuda_rows x, const int32_t *rows, size_t n, size_t dim,
                              struct cuda_rows out)
{
    pdl_take_over();
    FOR_ROWS(i, n)
    FOR_COLUMNS(c, dim)
    row_set(out, i, c, row_get(x, rows[i], c));
}

void cuda_gather_rows(struct kern *k, const struct kern_gather_args *a)
{
    cuda_launch(cuda_of(k), "gather_rows", gather, rows_grid(a->n, a->dim), THREADS, 0,
                cuda_rows(&a->x), (const int32_t *)a->rows->p, a->n, a->dim, cuda_rows(&a->out));
}

// ---- elementwise

static __global__ void add(size_t n, size_t dim, struct cuda_rows a, struct cuda_rows b,
                           struct cuda_rows out)
{
    pdl_take_over();
    FOR_ROWS(i, n)
    FOR_COLUMNS(c, dim)
    row_set(out, i, c, row_get(a, i, c) + row_get(b, i, c));
}

void cuda_add(struct kern *k, const struct kern_add_args *a)
{
    cuda_launch(cuda_of(k), "add", add, rows_grid(a->n, a->dim), THREADS, 0, a->n, a->dim,
                cuda_rows(&a->a), cuda_rows(&a->b), cuda_rows(&a->out));
}

static __global__ void silu_mul(size_t n, size_t dim, struct cuda_rows gate, struct cuda_rows up,
                                struct cuda_rows out)
{
    pdl_take_over();
    FOR_ROWS(i, n)
    FOR_COLUMNS(c, dim)
    {
        float g = row_get(gate, i, c);
        row_set(out, i, c, g / (1 + expf(-g)) * row_get(up, i, c));
    }
}

void cuda_silu_mul(struct kern *k, const struct kern_silu_mul_args *a)
{
    cuda_launch(cuda_of(k), "silu_mul", silu_mul, rows_grid(a->n, a->dim), THREADS, 0, a->n, a->dim,
                cuda_rows(&a->gate), cuda_rows(&a->up), cuda_rows(&a->out));
}

// ---- rope and kv_write

struct rope {
    size_t n, heads, head_stride, half;
    bool pairs;
    struct cuda_rows x;
    const float *table;
    const int32_t *pos;
};
static __global__ void rope(struct rope a)
{
    pdl_take_over();
    FOR_ROWS(i, a.n)
    FOR_COLUMNS(j, a.heads * a.half)
    {
        size_t h = j / a.half, p = j % a.half;
        const float *cos = a.table + a.pos[i] * 2 * a.half, *sin = cos + a.half;
        size_t first = h * a.head_stride + (a.pairs ? 2 * p : p);
        size_t second = first + (a.pairs ? 1 : a.half);
        float u = row_get(a.x, i, first), v = row_get(a.x, i, second);
        // Rounded one by one, as the CPU bodies do: the compiler would fuse.
        row_set(a.x, i, first, __fsub_rn(__fmul_rn(u, cos[p]), __fmul_rn(v, sin[p])));
        row_set(a.x, i, second, __fadd_rn(__fmul_rn(v, cos[p]), __fmul_rn(u, sin[p])));
    }
}

void cuda_rope(struct kern *k, const struct kern_rope_args *a)
{
    struct rope s = {a->n,
                     a->heads,
                     a->head_stride,
                     a->dim / 2,
                     a->style == KERN_ROPE_PAIRS,
                     cuda_rows(&a->x),
                     (const float *)a->table->p,
                     (const int32_t *)a->pos->p};
    cuda_launch(cuda_of(k), "rope", rope, rows_grid(a->n, a->heads * a->dim / 2), THREADS, 0, s);
}

struct cuda_kv cuda_kv(const struct kern_batch *b, const struct kern_kv *kv)
{
    struct cuda_kv v = {(uint16_t *)kv->buf->p + kv->at,
                        kv->width,
                        kv->block_tokens,
                        (const int32_t *)b->seq->p,
                        (const int32_t *)b->pos->p,
                        (const int32_t *)b->tables->p,
                        b->table_stride};
    return v;
}

static __global__ void kv_write(struct cuda_kv kv, size_t n, struct cuda_rows a, size_t a_dim,
                                struct cuda_rows b)
{
    pdl_take_over();
    FOR_ROWS(i, n)
    {
        size_t pos = kv.pos[i];
        int32_t block = kv.tables[kv.seq[i] * kv.table_stride + pos / kv.block_tokens];
        uint16_t *to = kv.pool + (block * kv.block_tokens + pos % kv.block_tokens) * kv.width;
        FOR_COLUMNS(c, kv.width)
        to[c] = to_bf16(c < a_dim ? row_get(a, i, c) : row_get(b, i, c - a_dim));
    }
}

void cuda_kv_write(struct kern *k, const struct kern_kv_write_args *a)
{
    cuda_launch(cuda_of(k), "kv_write", kv_write, rows_grid(a->batch->n, a->kv.width), THREADS, 0,
                cuda_kv(a->batch, &a->kv), a->batch->n, cuda_rows(&a->a), a->a_dim,
                cuda_rows(&a->b));
}
