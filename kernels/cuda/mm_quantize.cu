// cuda_quantize: activations as FP8 and INT8 products take them. FP8: a warp per run of 128
// columns, INT8: a block per row, in two passes.
#include "kernels/cuda/mm.h"
#include "kernels/cuda/mm_launch.cuh"
#include "kernels/cuda/mm_ptx.cuh"
#include "kernels/cuda/mm_shared.cuh"

enum { QUANTIZE_WARPS = 8, QUANTIZE_ROW = 256 };

struct quantize_row_max {
    float warp[QUANTIZE_ROW / 32];
};

// Columns at .. at + 4 of a row, those beyond its end 0.
static __device__ __forceinline__ void quantize_read(const struct cuda_quantize &q,
                                                     const uint16_t *x, int at, float v[4])
{
    ushort4 u = make_ushort4(0, 0, 0, 0);
    if (at < q.cols)
        u = *(const ushort4 *)(x + at);
    const unsigned short e[4] = {u.x, u.y, u.z, u.w};
    for (int i = 0; i < 4; i++)
        v[i] = at + i < q.cols ? __uint_as_float((uint32_t)e[i] << 16) : 0;
}

// The largest, NaN not counted; a NaN becomes a NaN when it is quantized.
static __device__ __forceinline__ float quantize_most(const float v[4])
{
    return fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
}
static __device__ __forceinline__ float quantize_warp_max(float x)
{
    for (int d = 16; d; d /= 2)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

static __global__ void __launch_bounds__(32 * QUANTIZE_WARPS)
    quantize_fp8(const struct cuda_quantize q)
{
    pdl_wait();
    if (threadIdx.x == 0)
        pdl_launch();
    int block = blockIdx.x * QUANTIZE_WARPS + threadIdx.x / 32, lane = threadIdx.x & 31;
    int blocks = (q.cols + CUDA_MM_BLOCK - 1) / CUDA_MM_BLOCK;
    size_t row = blockIdx.y;
    if (block < blocks) {
        int at = block * CUDA_MM_BLOCK + 4 * lane;
        float v[4];
        quantize_read(q, q.x + row * q.x_ld, at, v);
        mm_scale s = mm_scale_of(quantize_warp_max(quantize_most(v)), MM_FP8_MOST);
        uint32_t lo = mm_to_fp8x2(v[0] * s.factor, v[1] * s.factor);
        uint32_t hi = mm_to_fp8x2(v[2] * s.factor, v[3] * s.factor);
        *(uint32_t *)((char *)q.xq + row * q.xq_ld + at) = lo | hi << 16;
        if (lane == 0)
            q.xs[row * q.xs_ld + block] = s.scale;
    } else if (block < q.xs_ld && lane == 0) {
        q.xs[row * q.xs_ld + block] = 0;
    }
}

static __global__ void __launch_bounds__(QUANTIZE_ROW) quantize_int8(const struct cuda_quantize q)
{
    __shared__ quantize_row_max most;
    pdl_wait();
    if (threadIdx.x == 0)
        pdl_launch();
    size_t row = blockIdx.x;
    const uint16_t *x = q.x + row * q.x_ld;
    float amax = 0, v[4];
    for (int at = 4 * threadIdx.x; at < q.cols; at += 4 * QUANTIZE_ROW) {
        quantize_read(q, x, at, v);
        amax = fmaxf(amax, quantize_most(v));
    }
    amax = quantize_warp_max(amax);
    if ((threadIdx.x & 31) == 0)
        most.warp[threadIdx.x / 32] = amax;
    __syncthreads();
    for (int i = 0; i < QUANTIZE_ROW / 32; i++)
        amax = fmaxf(amax, most.warp[i]);
    mm_scale s = mm_scale_of(amax, MM_INT8_MOST);
    int padded = (q.cols + CUDA_MM_BLOCK - 1) / CUDA_MM_BLOCK * CUDA_MM_BLOCK;
    for (int at = 4 * threadIdx.x; at < padded; at += 4 * QUANTIZE_ROW) {
        quantize_read(q, x, at, v);
        char4 to = make_char4(mm_to_int8(v[0] * s.factor), mm_to_int8(v[1] * s.factor),
                              mm_to_int8(v[2] * s.factor), mm_to_int8(v[3] * s.factor));
        *(char4 *)((char *)q.xq + row * q.xq_ld + at) = to;
    }
    if (threadIdx.x == 0)
        q.xs[row] = s.scale;
}

cudaError_t cuda_quantize(cudaStream_t s, const struct cuda_quantize *a)
{
    if (a->n == 0)
        return cudaSuccess;
    bool fp8 = a->type == CUDA_W_FP8;
    size_t blocks = (a->cols + CUDA_MM_BLOCK - 1) / CUDA_MM_BLOCK;
    if (a->n < 0 || a->cols < 1 || (!fp8 && a->type != CUDA_W_INT8) || !a->x || !a->xq || !a->xs ||
        (uintptr_t)a->x % 16 || (uintptr_t)a->xq % 16 || a->x_ld % 8 || a->xq_ld % CUDA_MM_BLOCK ||
        a->xq_ld < blocks * CUDA_MM_BLOCK || (fp8 && (a->xs_ld % 4 || a->xs_ld < blocks)))
        return cudaErrorInvalidValue;
    if (!fp8)
        return mm_launch(s, {dim3((unsigned)a->n), QUANTIZE_ROW, 0}, quantize_int8, *a);
    unsigned columns = (unsigned)((a->xs_ld + QUANTIZE_WARPS - 1) / QUANTIZE_WARPS);
    struct cuda_quantize part = *a;
    for (int done = 0; done < a->n; done += part.n) { // the grid's y is limited
        part.n = a->n - done < 65535 ? a->n - done : 65535;
        part.x = a->x + done * a->x_ld;
        part.xq = (char *)a->xq + done * a->xq_ld;
        part.xs = a->xs + done * a->xs_ld;
        cudaError_t e = mm_launch(s, {dim3(columns, (unsigned)part.n), 32 * QUANTIZE_WARPS, 0},
                                  quantize_fp8, part);
        if (e != cudaSuccess)
            return e;
    }
    return cudaSuccess;
}
