// Matrix products of any shape and alignment: the plain body of linear, linear_heads and the
// experts, for what mm.h does not take, and the one that it is tested against. bf16 weights go
// through the tensor cores, straight from device memory: a warp makes 16 outputs of up to 32 rows,
// and a row's sum is one chain over rising columns in steps of 16, so it does not depend on the
// row's company. f32 and f16 weights (routers, and models that are published so) are plain
// multiply-adds: lane l of a warp sums columns l, l + 32, ... and the lanes are added in a fixed
// order. So are quantized weights of such shapes, each multiplied by its scale; here their
// activations are not quantized.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/rows.cuh"

#include <cuda_fp16.h>
#include <cuda_fp8.h>

enum { WARPS = 4, TILE_ROWS = 16, PIECE = CUDA_PIECE_ROWS, STEP = 16, PLAIN_ROWS = 8 };

void cuda_mm_set_weight(struct cuda_mm *m, const struct kern_weight *w)
{
    m->w = w->p;
    m->dtype = w->shape.dtype;
    m->ld = w->ld;
    m->stack_bytes = w->stack_bytes;
    m->rows = w->shape.rows;
    m->cols = w->shape.cols;
    m->heads = m->x_div = 1;
    m->scales = w->scales;
    m->scales_ld = w->scales_ld;
    m->scales_stack = w->scales_stack;
}

// ---- which rows a block works on

struct some_rows {
    int first, n;
    size_t matrix, head;
};
static __device__ __forceinline__ bool take_rows(const struct cuda_mm &m, int block_rows,
                                                 some_rows *r)
{
    if (m.pieces) {
        if (blockIdx.y >= *m.pieces_n)
            return false;
        cuda_piece p = m.pieces[blockIdx.y];
        *r = {p.first, p.n, (size_t)p.matrix, 0};
    } else if (m.ids) {
        *r = {(int)blockIdx.y, 1, (size_t)m.ids[blockIdx.y], 0};
    } else {
        int first = blockIdx.y * block_rows;
        *r = {first, min(block_rows, (int)m.n - first), blockIdx.z, blockIdx.z};
    }
    return true;
}
static __device__ __forceinline__ size_t out_row(const struct cuda_mm &m, const some_rows &r, int i)
{
    return m.pairs ? m.pairs[r.first + i] : r.first + i;
}
static __device__ __forceinline__ const uint16_t *x_of(const struct cuda_mm &m, const some_rows &r,
                                                       int i)
{
    return (const uint16_t *)m.x.p + out_row(m, r, i) / m.x_div * m.x.stride + r.head * m.x_head;
}

static __device__ __forceinline__ void store(const struct cuda_mm &m, size_t row, size_t head,
                                             size_t col, float y)
{
    if (m.bias)
        y += m.bias[col];
    if (m.add.p)
        y += row_get(m.add, row, col);
    row_set(m.out, row, head * m.out_head + col, y);
}
static __device__ __forceinline__ float silu(float x)
{
    return x / (1 + expf(-x));
}

// ---- bf16

// Columns at .. at + 3 of a row of x, zeros beyond its end; x may lie anywhere.
static __device__ __forceinline__ uint2 load_x(const uint16_t *x, size_t at, size_t cols,
                                               bool aligned)
{
    if (!x)
        return make_uint2(0, 0);
    if (aligned && at + 4 <= cols)
        return *(const uint2 *)(x + at);
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = at + i < cols ? x[at + i] : 0;
    return make_uint2(v[0] | v[1] << 16, v[2] | v[3] << 16);
}

// Of 16 columns lane t takes 4t .. 4t + 3, of weights and activations alike: the order inside one
// instruction shows in no bit.
template <int NT, int MATRICES>
static __global__ void __launch_bounds__(32 * WARPS)
    mm_bf16(const __grid_constant__ struct cuda_mm m)
{
    some_rows r;
    pdl_take_over();
    if (!take_rows(m, 8 * NT, &r))
        return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    size_t row0 = (blockIdx.x * (size_t)WARPS + warp) * TILE_ROWS;
    if (row0 >= m.rows)
        return;
    const uint16_t *x[NT], *w[MATRICES][2];
    bool aligned = true;
#pragma unroll
    for (int j = 0; j < NT; j++) {
        x[j] = 8 * j + g < r.n ? x_of(m, r, 8 * j + g) : NULL;
        aligned &= ((uintptr_t)x[j] & 7) == 0;
    }
#pragma unroll
    for (int i = 0; i < MATRICES; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) // a row beyond the last repeats it; nothing is stored
            w[i][h] =
                (const uint16_t *)((const char *)(i ? m.w_up : m.w) + r.matrix * m.stack_bytes) +
                min(row0 + g + 8 * h, m.rows - 1) * m.ld;
    float c[MATRICES][NT][4] = {};
#pragma unroll 4
    for (size_t k = 4 * t; k < m.ld; k += STEP) { // rows of W are padded with zeros
        if (k - 4 * t >= m.cols)
            break;
        uint4 a[MATRICES];
#pragma unroll
        for (int i = 0; i < MATRICES; i++) {
            uint2 lo = *(const uint2 *)(w[i][0] + k), hi = *(const uint2 *)(w[i][1] + k);
            a[i] = make_uint4(lo.x, hi.x, lo.y, hi.y);
        }
#pragma unroll
        for (int j = 0; j < NT; j++) {
            uint2 b = load_x(x[j], k, m.cols, aligned);
#pragma unroll
            for (int i = 0; i < MATRICES; i++)
                mma_bf16(c[i][j], a[i], b.x, b.y);
        }
    }
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = 8 * j + 2 * t + e % 2;
            size_t col = row0 + g + 8 * (e / 2);
            float y = MATRICES == 2 ? silu(c[0][j][e]) * c[MATRICES - 1][j][e] : c[0][j][e];
            if (i < r.n && col < m.rows)
                store(m, out_row(m, r, i), r.head, col, y);
        }
}

// ---- f32 and f16

static __device__ __forceinline__ float to_float(float x)
{
    return x;
}
static __device__ __forceinline__ float to_float(__half x)
{
    return __half2float(x);
}

static __device__ __forceinline__ float to_float(__nv_fp8_e4m3 x)
{
    return (float)x;
}
static __device__ __forceinline__ float to_float(int8_t x)
{
    return (float)x;
}
template <class T> constexpr bool is_blocks = false; // a scale per 128 columns
template <> constexpr bool is_blocks<__nv_fp8_e4m3> = true;
template <class T> constexpr bool is_scaled = sizeof(T) == 1;

// Scales of a row of a matrix.
template <class T>
static __device__ __forceinline__ const float *scales_of(const struct cuda_mm &m, const float *all,
                                                         size_t matrix, size_t row)
{
    return all + matrix * m.scales_stack +
           row / (is_blocks<T> ? KERN_SCALE_BLOCK : 1) * m.scales_ld;
}

template <class T>
static __device__ __forceinline__ void dots(const T *w, const float *scales,
                                            const uint16_t *const x[PLAIN_ROWS], int n, size_t cols,
                                            float sum[PLAIN_ROWS])
{
    for (int i = 0; i < PLAIN_ROWS; i++)
        sum[i] = 0;
    for (size_t k = threadIdx.x % 32; k < cols; k += 32) {
        float v = to_float(w[k]);
        if (is_scaled<T>)
            v *= scales[is_blocks<T> ? k / KERN_SCALE_BLOCK : 0];
#pragma unroll
        for (int i = 0; i < PLAIN_ROWS; i++)
            if (i < n)
                sum[i] = fmaf(from_bf16(x[i][k]), v, sum[i]);
    }
#pragma unroll
    for (int i = 0; i < PLAIN_ROWS; i++)
        for (int d = 16; d; d /= 2)
            sum[i] += __shfl_xor_sync(~0u, sum[i], d);
}

template <class T>
static __global__ void __launch_bounds__(32 * WARPS) mm_plain(const struct cuda_mm m)
{
    size_t row = blockIdx.x * (size_t)WARPS + threadIdx.x / 32;
    some_rows r;
    pdl_take_over();
    if (row >= m.rows || !take_rows(m, PLAIN_ROWS, &r))
        return;
    size_t at = r.matrix * m.stack_bytes;
    for (int first = 0; first < r.n; first += PLAIN_ROWS) { // pieces are longer
        const uint16_t *x[PLAIN_ROWS];
        int n = min((int)PLAIN_ROWS, r.n - first);
#pragma unroll
        for (int i = 0; i < PLAIN_ROWS; i++)
            x[i] = i < n ? x_of(m, r, first + i) : NULL;
        float sum[PLAIN_ROWS], up[PLAIN_ROWS];
        dots((const T *)((const char *)m.w + at) + row * m.ld,
             scales_of<T>(m, m.scales, r.matrix, row), x, n, m.cols, sum);
        if (m.w_up)
            dots((const T *)((const char *)m.w_up + at) + row * m.ld,
                 scales_of<T>(m, m.scales_up, r.matrix, row), x, n, m.cols, up);
        if (threadIdx.x % 32)
            continue;
        for (int i = 0; i < PLAIN_ROWS && i < n; i++)
            store(m, out_row(m, r, first + i), r.head, row, m.w_up ? silu(sum[i]) * up[i] : sum[i]);
    }
}

// ---- launching

static dim3 grid_of(const struct cuda_mm *m, size_t block_outputs, size_t block_rows)
{
    size_t chunks = m->pieces ? m->pieces_max
                    : m->ids  ? m->n
                              : (m->n + block_rows - 1) / block_rows;
    return dim3((unsigned)((m->rows + block_outputs - 1) / block_outputs), (unsigned)chunks,
                (unsigned)m->heads);
}

template <int NT> static void launch_bf16(struct cuda *c, const struct cuda_mm *m)
{
    dim3 grid = grid_of(m, WARPS * TILE_ROWS, 8 * NT);
    if (m->w_up)
        cuda_launch(c, "mm", mm_bf16<NT, 2>, grid, 32 * WARPS, 0, *m);
    else
        cuda_launch(c, "mm", mm_bf16<NT, 1>, grid, 32 * WARPS, 0, *m);
}

template <class T> static void launch_plain(struct cuda *c, const struct cuda_mm *m)
{
    cuda_launch(c, "mm", mm_plain<T>, grid_of(m, WARPS, PLAIN_ROWS), 32 * WARPS, 0, *m);
}

void cuda_mm(struct cuda *c, const struct cuda_mm *m)
{
    bool few = m->ids || (!m->pieces && m->n <= 8);
    switch (m->dtype) {
    case KERN_F32:
        return launch_plain<float>(c, m);
    case KERN_F16:
        return launch_plain<__half>(c, m);
    case KERN_FP8:
        return launch_plain<__nv_fp8_e4m3>(c, m);
    case KERN_INT8:
        return launch_plain<int8_t>(c, m);
    case KERN_BF16:
        return few ? launch_bf16<1>(c, m) : launch_bf16<PIECE / 8>(c, m);
    case KERN_I32:
        break;
    }
    assert(!"no such weights");
}
