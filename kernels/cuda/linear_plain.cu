// Matrix products with f32 and f16 weights (routers, and the models that are published so): plain
// multiply-adds in float32. A warp makes one output of up to 8 rows of x; lane l sums columns l,
// l + 32, ... and the lanes are added in a fixed order.
#include "kernels/cuda/cuda.h"

#include <cuda_fp16.h>

enum { ROWS = CUDA_PLAIN_ROWS, WARPS = 8 };

static __device__ __forceinline__ float to_float(float x)
{
    return x;
}
static __device__ __forceinline__ float to_float(__half x)
{
    return __half2float(x);
}

template <class T>
static __device__ __forceinline__ void dots(const T *w, const float *const x[ROWS], int n,
                                            size_t cols, float sum[ROWS])
{
    for (int i = 0; i < ROWS; i++)
        sum[i] = 0;
    for (size_t k = threadIdx.x; k < cols; k += 32) {
        float v = to_float(w[k]);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            if (i < n)
                sum[i] = fmaf(x[i][k], v, sum[i]);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        for (int d = 16; d; d /= 2)
            sum[i] += __shfl_xor_sync(~0u, sum[i], d);
}

template <class T> static __global__ void mm_plain(const struct cuda_mm m)
{
    size_t r = blockIdx.x * (size_t)WARPS + threadIdx.y, head = blockIdx.z, first, matrix = head;
    if (r >= m.rows)
        return;
    int n;
    if (m.pieces) {
        if (blockIdx.y >= *m.pieces_n)
            return;
        struct cuda_piece p = m.pieces[blockIdx.y];
        first = p.first;
        n = p.n;
        matrix = p.matrix;
    } else if (m.ids) {
        first = blockIdx.y;
        n = 1;
        matrix = m.ids[first];
    } else {
        first = blockIdx.y * (size_t)ROWS;
        n = m.n - first < ROWS ? (int)(m.n - first) : ROWS;
    }
    const float *x[ROWS];
    size_t row[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        row[i] = i >= n ? 0 : m.pairs ? m.pairs[first + i] : first + i;
        x[i] = m.x.p + row[i] / m.x_div * m.x.stride + head * m.x_head;
    }
    float sum[ROWS], up[ROWS];
    size_t at = matrix * m.stack_bytes;
    dots((const T *)((const char *)m.w + at) + r * m.cols, x, n, m.cols, sum);
    if (m.w_up)
        dots((const T *)((const char *)m.w_up + at) + r * m.cols, x, n, m.cols, up);
    if (threadIdx.x != 0)
        return;
    for (int i = 0; i < ROWS && i < n; i++) {
        float y = sum[i];
        if (m.w_up)
            y = y / (1 + expf(-y)) * up[i];
        if (m.bias)
            y += m.bias[r];
        if (m.add.p)
            y += m.add.p[row[i] * m.add.stride + r];
        m.out.p[row[i] * m.out.stride + head * m.out_head + r] = y;
    }
}

void cuda_mm_plain(struct cuda *c, const struct cuda_mm *m)
{
    size_t chunks = m->pieces ? m->pieces_max : m->ids ? m->n : (m->n + ROWS - 1) / ROWS;
    dim3 grid((unsigned)((m->rows + WARPS - 1) / WARPS), (unsigned)chunks, (unsigned)m->heads);
    dim3 block(32, WARPS);
    if (m->dtype == KERN_F32)
        mm_plain<float><<<grid, block, 0, c->stream>>>(*m);
    else
        mm_plain<__half><<<grid, block, 0, c->stream>>>(*m);
    cuda_launched(c, "mm_plain");
}
