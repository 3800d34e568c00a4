// Matrix products with bf16 weights on the tensor cores: cuda_mm for linear, linear_heads and the
// experts. Two kernels share one order of summation (cuda.h, cuda_mm): mm_few streams the weights
// once past up to 64 rows, a warp per segment of the sum; mm_many multiplies tiles from shared
// memory. Both take an activation as the sum of two bf16 (its rounding, and the rounding of what is
// left: 16 bits of it), so results are as good as with float32 activations, and add in float32 by
// one order: which kernel runs changes no bit.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mma.cuh"

#include <string.h>

enum { GROUP = CUDA_TILE_COLS, SEGMENTS = CUDA_SEGMENTS, FEW_THREADS = 32 * SEGMENTS };
enum { X_PAD = 64 }; // rows of bf16 activations are padded to this many elements

// cuda_mm as kernels take it.
struct mm {
    const uint4 *w, *w_up;
    size_t stack; // distance of two matrices, in uint4
    int rows, tiles, groups, seg;
    const float *x;            // float32 activations, or
    const __nv_bfloat16 *x_b;  // as two bf16: [row][head][2][x_ld]
    size_t x_stride, x_head, x_ld;
    float *out;
    size_t out_stride, out_head;
    const float *bias, *add;
    size_t add_stride;
    int n, heads;
    const struct cuda_piece *pieces;
    const int32_t *pieces_n, *pairs;
    const int32_t *ids; // row i has matrix ids[i] for itself
    int x_div;
};

// ---- which rows a block works on

struct some_rows {
    int first, n, matrix, head;
};
static __device__ __forceinline__ bool take_rows(const mm &m, int block_rows, some_rows *r)
{
    if (m.pieces) {
        if (blockIdx.y >= *m.pieces_n)
            return false;
        cuda_piece p = m.pieces[blockIdx.y];
        *r = {p.first, p.n, p.matrix, 0};
    } else if (m.ids) {
        *r = {(int)blockIdx.y, 1, m.ids[blockIdx.y], 0};
    } else {
        int first = blockIdx.y * block_rows;
        *r = {first, min(block_rows, m.n - first), (int)blockIdx.z, (int)blockIdx.z};
    }
    return true;
}
static __device__ __forceinline__ int out_row(const mm &m, const some_rows &r, int i)
{
    return m.pairs ? m.pairs[r.first + i] : r.first + i;
}
static __device__ __forceinline__ int x_row(const mm &m, const some_rows &r, int i)
{
    return (m.pairs ? m.pairs[r.first + i] : r.first + i) / m.x_div;
}

static __device__ __forceinline__ void store(const mm &m, int row, int head, int col, float y)
{
    if (m.bias)
        y += m.bias[col];
    if (m.add)
        y += m.add[row * m.add_stride + col];
    m.out[row * m.out_stride + head * m.out_head + col] = y;
}
static __device__ __forceinline__ float silu(float x)
{
    return x / (1 + expf(-x));
}

// ---- few rows

// Columns 8t .. 8t + 7 of one group of one row, as operand B: rounded, and what rounding left.
struct x_pair {
    uint4 hi, lo;
};
static __device__ __forceinline__ void split(float a, float b, uint32_t *hi, uint32_t *lo)
{
    *hi = to_bf16x2(a, b);
    *lo = to_bf16x2(a - __uint_as_float(*hi << 16), b - __uint_as_float(*hi & 0xffff0000));
}
template <bool F32X>
static __device__ __forceinline__ x_pair load_x(const mm &m, const void *row, int group, int t)
{
    x_pair x = {};
    if (!row)
        return x;
    if (F32X) {
        const float4 *p = (const float4 *)((const float *)row + group * GROUP + 8 * t);
        float4 a = p[0], b = p[1];
        split(a.x, a.y, &x.hi.x, &x.lo.x);
        split(a.z, a.w, &x.hi.y, &x.lo.y);
        split(b.x, b.y, &x.hi.z, &x.lo.z);
        split(b.z, b.w, &x.hi.w, &x.lo.w);
    } else {
        const __nv_bfloat16 *p = (const __nv_bfloat16 *)row + group * GROUP + 8 * t;
        x.hi = __ldg((const uint4 *)p);
        x.lo = __ldg((const uint4 *)(p + m.x_ld));
    }
    return x;
}

// Row tiles of W that a block of mm_few takes: two where many rows of x would be read for each.
static __host__ __device__ constexpr int few_row_tiles(int nt, int matrices)
{
    return nt >= 4 && matrices == 1 ? 2 : 1;
}

// One segment of the sums: w[i] points to a row tile (of one or two matrices), c[i][j] for rows
// 8j .. 8j + 7 of x.
template <int NT, bool F32X, int TILES>
static __device__ __forceinline__ void few_segment(const mm &m, const uint4 *const *w,
                                                   const void *const *x, int from, int to,
                                                   float (*c)[NT][4])
{
    constexpr int UNROLL = TILES * NT >= 16 ? 1 : TILES * NT >= 4 ? 2 : 4; // as registers allow
    constexpr int PAIR = NT > 1 ? 2 : 1;
    int t = threadIdx.x & 3;
    for (int g = from; g < to; g += UNROLL) {
        uint4 a[UNROLL][TILES][2];
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (g + u < to)
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    a[u][i][0] = load_once(w[i] + (size_t)(g + u) * 64);
                    a[u][i][1] = load_once(w[i] + (size_t)(g + u) * 64 + 32);
                }
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (g + u < to)
#pragma unroll
                for (int j = 0; j < NT; j += PAIR) {
                    x_pair b[PAIR];
#pragma unroll
                    for (int k = 0; k < PAIR; k++)
                        b[k] = load_x<F32X>(m, x[j + k], g + u, t);
#pragma unroll
                    for (int h = 0; h < 4; h++) // no two neighbours add to the same sum
#pragma unroll
                        for (int i = 0; i < TILES; i++)
#pragma unroll
                            for (int k = 0; k < PAIR; k++) {
                                const uint4 &v = h < 2 ? b[k].hi : b[k].lo;
                                mma_bf16(c[i][j + k], a[u][i][h % 2], h % 2 ? v.z : v.x,
                                         h % 2 ? v.w : v.y);
                            }
                }
    }
}

// Sums of all segments, in order, for up to 32 rows of x: thread i has row i / 16 of them and
// output i % 16.
enum { RED_ROWS = 32, RED_LD = 20 };
static __device__ __forceinline__ float few_reduce(float (*red)[RED_ROWS * RED_LD],
                                                   const float (*c)[4], int nt, int segments)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncthreads();
    for (int j = 0; j < nt; j++) {
        float *to = red[warp] + (8 * j + 2 * t) * RED_LD + g;
        to[0] = c[j][0];
        to[RED_LD] = c[j][1];
        to[8] = c[j][2];
        to[RED_LD + 8] = c[j][3];
    }
    __syncthreads();
    float sum = 0;
    if (threadIdx.x < nt * 128)
        for (int s = 0; s < segments; s++)
            sum += red[s][threadIdx.x / 16 * RED_LD + threadIdx.x % 16];
    return sum;
}

template <int NT, bool F32X, int MATRICES>
static __global__ void __launch_bounds__(FEW_THREADS, NT * MATRICES == 1 ? 2 : 1)
    mm_few(const __grid_constant__ mm m)
{
    __shared__ float red[SEGMENTS][RED_ROWS * RED_LD];
    constexpr int ROW_TILES = few_row_tiles(NT, MATRICES), TILES = MATRICES * ROW_TILES;
    some_rows r;
    if (!take_rows(m, 8 * NT, &r))
        return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile0 = blockIdx.x * ROW_TILES;
    const void *x[NT];
#pragma unroll
    for (int j = 0; j < NT; j++) {
        int i = 8 * j + lane / 4;
        x[j] = NULL;
        if (i < r.n) {
            size_t row = x_row(m, r, i);
            x[j] = F32X ? (const void *)(m.x + row * m.x_stride + r.head * m.x_head)
                        : (const void *)(m.x_b + (row * m.heads + r.head) * 2 * m.x_ld);
        }
    }
    const uint4 *w[TILES];
#pragma unroll
    for (int i = 0; i < TILES; i++) { // a tile beyond the last repeats it; nothing is stored
        int tile = min(tile0 + (MATRICES == 2 ? 0 : i), m.tiles - 1);
        size_t at = r.matrix * m.stack + (size_t)tile * m.groups * 64 + lane;
        w[i] = (MATRICES == 2 && i == 1 ? m.w_up : m.w) + at;
    }
    float c[TILES][NT][4] = {};
    int from = warp * m.seg, to = min(from + m.seg, m.groups);
    few_segment<NT, F32X, TILES>(m, w, x, from, to, c);
    int segments = (m.groups + m.seg - 1) / m.seg;
    constexpr int STEP = NT < 4 ? NT : 4;
#pragma unroll
    for (int k = 0; k < ROW_TILES; k++)
#pragma unroll
        for (int j = 0; j < NT; j += STEP) {
            float y = few_reduce(red, c[k] + j, STEP, segments);
            if (MATRICES == 2)
                y = silu(y) * few_reduce(red, c[TILES - 1] + j, STEP, segments);
            int i = 8 * j + threadIdx.x / 16, col = (tile0 + k) * CUDA_TILE_ROWS + threadIdx.x % 16;
            if (threadIdx.x < STEP * 128 && i < r.n && col < m.rows)
                store(m, out_row(m, r, i), r.head, col, y);
        }
}

// ---- many rows: 128 outputs x BN rows of x a block, in steps of 64 columns

enum { BM = 128, BM_TILES = BM / CUDA_TILE_ROWS, STEP_GROUPS = 2, STAGES = 4 };
enum { A_BYTES = BM_TILES * STEP_GROUPS * CUDA_TILE_BYTES, MANY_THREADS = 256 };

template <int BN, int MATRICES> __host__ __device__ constexpr int stage_bytes()
{
    return MATRICES * A_BYTES + 2 * BN * STEP_GROUPS * GROUP * 2;
}

// Where 16 bytes `chunk` of a row of x lie in a stage: spread over the banks.
static __device__ __forceinline__ int x_chunk(int row, int chunk)
{
    return row * 8 + (chunk ^ (row & 1) << 2);
}

template <int BN, int MATRICES> struct many {
    static constexpr int WARP_NT = BN / 16; // row groups of 8 of a warp; two warps share BN

    const mm &m;
    char *smem;
    int tile0, warp, lane;
    const uint4 *w[2];
    const __nv_bfloat16 *x[BN / 32]; // rows of x that this thread copies

    __device__ void load(int stage, int step)
    {
        char *to = smem + stage * stage_bytes<BN, MATRICES>();
        int group0 = step * STEP_GROUPS;
#pragma unroll
        for (int i = 0; i < MATRICES; i++)
#pragma unroll
            for (int j = 0; j < A_BYTES / 16 / MANY_THREADS; j++) {
                int at = threadIdx.x + j * MANY_THREADS, tile = at / 128, in = at % 128;
                bool some = tile0 + tile < m.tiles && group0 + in / 64 < m.groups;
                const uint4 *from = w[i] + (size_t)(tile0 + tile) * m.groups * 64 + group0 * 64 + in;
                copy_async(to + i * A_BYTES + at * 16, some ? from : w[i], some);
            }
        to += MATRICES * A_BYTES;
#pragma unroll
        for (int j = 0; j < BN / 32; j++) {
            int row = threadIdx.x / 8 + 32 * j, chunk = threadIdx.x % 8;
            bool some = x[j] != NULL;
            const __nv_bfloat16 *from = some ? x[j] + step * STEP_GROUPS * GROUP + chunk * 8 : m.x_b;
            copy_async(to + x_chunk(row, chunk) * 16, from, some);
            copy_async(to + (BN * 8 + x_chunk(row, chunk)) * 16, from + (some ? m.x_ld : 0), some);
        }
    }

    // One group of 32 columns of a stage.
    __device__ __forceinline__ void multiply(int stage, int g, float (*c)[2][WARP_NT][4])
    {
        const char *from = smem + stage * stage_bytes<BN, MATRICES>();
        const uint4 *xs = (const uint4 *)(from + MATRICES * A_BYTES);
        int wm = warp % 4, wn = warp / 4;
        uint4 w[MATRICES][2][2];
#pragma unroll
        for (int i = 0; i < MATRICES; i++)
#pragma unroll
            for (int mt = 0; mt < 2; mt++) {
                const uint4 *as = (const uint4 *)(from + i * A_BYTES) +
                                  ((wm * 2 + mt) * STEP_GROUPS + g) * 64 + lane;
                w[i][mt][0] = as[0];
                w[i][mt][1] = as[32];
            }
#pragma unroll
        for (int part = 0; part < 2; part++) // of an activation
#pragma unroll
            for (int j = 0; j < WARP_NT; j += 4) {
                uint4 b[4];
#pragma unroll
                for (int k = 0; k < 4; k++)
                    b[k] = xs[part * BN * 8 +
                              x_chunk(wn * (BN / 2) + 8 * (j + k) + lane / 4, 4 * g + lane % 4)];
#pragma unroll
                for (int h = 0; h < 2; h++) // no two neighbours add to the same sum
#pragma unroll
                    for (int i = 0; i < MATRICES; i++)
#pragma unroll
                        for (int mt = 0; mt < 2; mt++)
#pragma unroll
                            for (int k = 0; k < 4; k++)
                                mma_bf16(c[i][mt][j + k], w[i][mt][h], h ? b[k].z : b[k].x,
                                         h ? b[k].w : b[k].y);
            }
    }
};

template <int BN, int MATRICES>
static __global__ void __launch_bounds__(MANY_THREADS, 1) mm_many(const __grid_constant__ mm m)
{
    extern __shared__ __align__(128) char smem[];
    using many_t = many<BN, MATRICES>;
    constexpr int NT = many_t::WARP_NT;
    some_rows r;
    if (!take_rows(m, BN, &r))
        return;
    many_t job = {m, smem, (int)blockIdx.x * BM_TILES, (int)threadIdx.x / 32, (int)threadIdx.x % 32};
    job.w[0] = m.w + r.matrix * m.stack;
    job.w[1] = MATRICES == 2 ? m.w_up + r.matrix * m.stack : NULL;
#pragma unroll
    for (int j = 0; j < BN / 32; j++) {
        int i = threadIdx.x / 8 + 32 * j;
        job.x[j] = i < r.n ? m.x_b + ((size_t)x_row(m, r, i) * m.heads + r.head) * 2 * m.x_ld
                             : NULL;
    }
    float sum[MATRICES][2][NT][4] = {}, c[MATRICES][2][NT][4] = {};
    int steps = (m.groups + STEP_GROUPS - 1) / STEP_GROUPS, in_segment = 0;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps)
            job.load(s, s);
        copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps)
            job.load((step + STAGES - 1) % STAGES, step + STAGES - 1);
        copy_commit();
#pragma unroll
        for (int g = 0; g < STEP_GROUPS; g++) {
            int group = step * STEP_GROUPS + g;
            if (group >= m.groups)
                break;
            job.multiply(step % STAGES, g, c);
            if (++in_segment < m.seg && group + 1 < m.groups)
                continue;
            in_segment = 0;
#pragma unroll
            for (int i = 0; i < MATRICES * 2 * NT * 4; i++) {
                (&sum[0][0][0][0])[i] += (&c[0][0][0][0])[i];
                (&c[0][0][0][0])[i] = 0;
            }
        }
    }
    int wm = job.warp % 4, wn = job.warp / 4, g = job.lane / 4, t = job.lane % 4;
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int i = wn * (BN / 2) + 8 * j + 2 * t + e;
            if (i >= r.n)
                continue;
            int row = out_row(m, r, i);
#pragma unroll
            for (int mt = 0; mt < 2; mt++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int col = (job.tile0 + wm * 2 + mt) * CUDA_TILE_ROWS + g + 8 * h;
                    float y = sum[0][mt][j][e + 2 * h];
                    if (MATRICES == 2)
                        y = silu(y) * sum[MATRICES - 1][mt][j][e + 2 * h];
                    if (col < m.rows)
                        store(m, row, r.head, col, y);
                }
        }
}

// ---- activations as bf16

static __global__ void x_to_bf16(const mm m, __nv_bfloat16 *to, int cols)
{
    size_t row = blockIdx.y, head = blockIdx.z;
    const float *x = m.x + row * m.x_stride + head * m.x_head;
    to += (row * m.heads + head) * 2 * m.x_ld;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < m.x_ld; i += gridDim.x * blockDim.x) {
        float v = i < cols ? x[i] : 0;
        to[i] = __float2bfloat16_rn(v);
        to[m.x_ld + i] = __float2bfloat16_rn(v - __bfloat162float(to[i]));
    }
}

static void convert_x(struct cuda *c, mm *m, size_t rows, size_t cols)
{
    m->x_ld = (cols + X_PAD - 1) / X_PAD * X_PAD;
    __nv_bfloat16 *to =
        (__nv_bfloat16 *)cuda_scratch(c, CUDA_ARENA_X, 2 * rows * m->heads * m->x_ld * sizeof *to);
    size_t first = 0;
    for (size_t n; first < rows; first += n) { // the grid's y is limited
        n = rows - first < 65535 ? rows - first : 65535;
        mm part = *m;
        part.x += first * m->x_stride;
        dim3 grid((unsigned)((m->x_ld + 1023) / 1024), (unsigned)n, (unsigned)m->heads);
        x_to_bf16<<<grid, 256, 0, c->stream>>>(part, to + 2 * first * m->heads * m->x_ld,
                                                     (int)cols);
        cuda_launched(c, "x_to_bf16");
    }
    m->x_b = to;
}

// ---- launching

// Rows of x that a block of mm_few takes: up to 64, in steps that kernels exist for.
static int few_tiles(size_t n)
{
    return n <= 8 ? 1 : n <= 16 ? 2 : n <= 32 ? 4 : 8;
}

template <int MATRICES> static void launch_few(struct cuda *c, const mm &m, int nt, dim3 grid)
{
    if (nt == 1 && !m.x_b)
        mm_few<1, true, MATRICES><<<grid, FEW_THREADS, 0, c->stream>>>(m);
    else if (nt == 1)
        mm_few<1, false, MATRICES><<<grid, FEW_THREADS, 0, c->stream>>>(m);
    else if (nt == 2)
        mm_few<2, false, MATRICES><<<grid, FEW_THREADS, 0, c->stream>>>(m);
    else if (nt == 4 || MATRICES == 2) // gated: cuda_mm never asks for more
        mm_few<4, false, MATRICES><<<grid, FEW_THREADS, 0, c->stream>>>(m);
    else
        mm_few<8, false, 1><<<grid, FEW_THREADS, 0, c->stream>>>(m);
    cuda_launched(c, "mm_few");
}

template <int BN, int MATRICES> static void launch_many(struct cuda *c, const mm &m, dim3 grid)
{
    constexpr int bytes = STAGES * stage_bytes<BN, MATRICES>();
    if (!cuda_check(c,
                    cudaFuncSetAttribute(mm_many<BN, MATRICES>,
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                    "mm_many: shared memory"))
        return;
    mm_many<BN, MATRICES><<<grid, MANY_THREADS, bytes, c->stream>>>(m);
    cuda_launched(c, "mm_many");
}

// float32 activations can be taken as they are: 16-byte loads, whole groups.
static bool x_is_direct(const struct cuda_mm *a)
{
    return ((uintptr_t)a->x.p & 15) == 0 && a->x.stride % 4 == 0 && a->x_head % 4 == 0 &&
           a->cols % GROUP == 0;
}

// Rows of x that a block of mm_many takes: fewer where the device would not be filled.
static size_t many_rows(const struct cuda *c, const struct cuda_mm *a)
{
    size_t blocks = ((a->rows + BM - 1) / BM) * ((a->n + 127) / 128) * a->heads;
    return 2 * blocks <= (size_t)c->sms ? 64 : 128;
}

static void launch(struct cuda *c, const struct cuda_mm *a, const mm &m, size_t block_rows,
                   bool many)
{
    size_t chunks = a->pieces ? a->pieces_max
                    : a->ids  ? a->n
                              : (a->n + block_rows - 1) / block_rows;
    int tiles_each = many ? BM_TILES : few_row_tiles((int)block_rows / 8, a->w_up ? 2 : 1);
    unsigned tiles = (m.tiles + tiles_each - 1) / tiles_each;
    dim3 grid(tiles, (unsigned)chunks, (unsigned)a->heads);
    if (!many && a->w_up)
        launch_few<2>(c, m, (int)block_rows / 8, grid);
    else if (!many)
        launch_few<1>(c, m, (int)block_rows / 8, grid);
    else if (a->w_up)
        launch_many<64, 2>(c, m, grid);
    else if (block_rows == 64)
        launch_many<64, 1>(c, m, grid);
    else
        launch_many<128, 1>(c, m, grid);
}

void cuda_mm(struct cuda *c, const struct cuda_mm *a)
{
    if (a->dtype != KERN_BF16) {
        cuda_mm_plain(c, a);
        return;
    }
    int groups = (int)cuda_tiles(a->cols, CUDA_TILE_COLS);
    mm m = {};
    m.w = (const uint4 *)a->w;
    m.w_up = (const uint4 *)a->w_up;
    m.stack = a->stack_bytes / 16;
    m.rows = (int)a->rows;
    m.tiles = (int)cuda_tiles(a->rows, CUDA_TILE_ROWS);
    m.groups = groups;
    m.seg = (groups + SEGMENTS - 1) / SEGMENTS;
    m.x = a->x.p;
    m.x_stride = a->x.stride;
    m.x_head = a->x_head;
    m.out = a->out.p;
    m.out_stride = a->out.stride;
    m.out_head = a->out_head;
    m.bias = a->bias;
    m.add = a->add.p;
    m.add_stride = a->add.stride;
    m.n = (int)a->n;
    m.heads = (int)a->heads;
    m.pieces = a->pieces;
    m.pieces_n = a->pieces_n;
    m.pairs = a->pairs;
    m.x_div = (int)a->x_div;
    m.ids = a->ids;
    size_t rows = a->pieces ? a->piece_rows : a->ids ? 1 : a->n; // that share a matrix
    bool many = rows > 64 || (a->pieces && rows == 64);
    size_t block_rows = a->pieces ? rows : many ? many_rows(c, a) : 8 * (size_t)few_tiles(rows);
    if (many || block_rows > 8 || !x_is_direct(a))
        convert_x(c, &m, a->x_rows, a->cols);
    launch(c, a, m, block_rows, many);
}

// ---- packing

static __global__ void pack_rows(struct cuda_pack p, int groups)
{
    const uint16_t *src = (const uint16_t *)p.src;
    uint16_t *to = (uint16_t *)p.matrix;
    size_t n = p.rows * p.cols;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        size_t row = p.row0 + i / p.cols, col = i % p.cols;
        size_t tile = row / CUDA_TILE_ROWS * groups + col / CUDA_TILE_COLS;
        int lane = (int)(row % 8) * 4 + (int)(col % 32) / 8, half = (int)(col % 8) / 4;
        int v = (int)col % 4, e = v / 2 * 4 + (int)(row % 16) / 8 * 2 + v % 2;
        to[(tile * 2 + half) * 256 + lane * 8 + e] =
            src[i / p.cols * p.row_stride + col * p.col_stride];
    }
}

void cuda_pack(struct cuda *c, const struct cuda_pack *p)
{
    size_t blocks = (p->rows * p->cols + 1023) / 1024;
    pack_rows<<<(unsigned)(blocks < 4096 ? blocks : 4096), 256, 0, c->stream>>>(
        *p, (int)cuda_tiles(p->cols, CUDA_TILE_COLS));
    cuda_launched(c, "pack_rows");
}

// ---- ops

extern "C" void cuda_linear(struct kern *k, const struct kern_linear_args *a)
{
    struct cuda_mm m = {};
    m.w = a->w->p;
    m.dtype = a->w->shape.dtype;
    m.stack_bytes = a->w->stack_bytes;
    m.rows = a->w->shape.rows;
    m.cols = a->w->shape.cols;
    m.x = cuda_rows(&a->x);
    m.x_rows = a->n;
    m.out = cuda_rows(&a->out);
    m.bias = a->bias ? (const float *)a->bias->p : NULL;
    m.add = cuda_rows(&a->add);
    m.n = a->n;
    m.heads = m.x_div = 1;
    cuda_mm(cuda_of(k), &m);
}

extern "C" void cuda_linear_heads(struct kern *k, const struct kern_linear_heads_args *a)
{
    struct cuda_mm m = {};
    m.w = a->w->p;
    m.dtype = a->w->shape.dtype;
    m.stack_bytes = a->w->stack_bytes;
    m.rows = a->w->shape.rows;
    m.cols = a->w->shape.cols;
    m.x = cuda_rows(&a->x);
    m.x_rows = a->n;
    m.out = cuda_rows(&a->out);
    m.x_head = a->x_head_stride;
    m.out_head = a->out_head_stride;
    m.n = a->n;
    m.heads = a->w->shape.stack;
    m.x_div = 1;
    cuda_mm(cuda_of(k), &m);
}
