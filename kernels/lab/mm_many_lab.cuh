// What the laboratory programs of the many-row products share: inputs, references, comparison to the
// bit, cuBLASLt as the yardstick, timing.
#pragma once

#include <cublasLt.h>
#include <cuda_fp8.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda/mm_many_host.cuh"

#define CHECK(x)                                                                                   \
    do {                                                                                           \
        cudaError_t e_ = (x);                                                                      \
        if (e_ != cudaSuccess) {                                                                   \
            printf("FAIL %s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_));         \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static int failures;

// ---- inputs -------------------------------------------------------------------------------------

static __device__ uint32_t mix(uint32_t x)
{
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu;
    return x ^ x >> 16;
}
static __device__ float normal(uint32_t i, uint32_t seed)
{
    const uint32_t a = mix(i * 2 + seed * 0x9e3779b9u + 1), b = mix(a + 0x1234567u + i);
    const float u = ((a >> 8) + 1) * (1.0f / 16777217), v = (b >> 8) * (1.0f / 16777216);
    const float z = sqrtf(-2 * logf(u)) * cosf(6.2831853f * v);
    return (mix(b + 77) & 255) == 0 ? z * 20 : z; // some outliers
}
// [rows][ld] with columns from `cols` on zero.
template <class T>
__global__ void fill(T *p, size_t rows, size_t cols, size_t ld, uint32_t seed, float scale)
{
    const size_t n = rows * ld;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        const float z = i % ld < cols ? normal((uint32_t)i, seed) * scale : 0;
        if constexpr (sizeof(T) == 2)
            p[i] = (T)z;
        else if constexpr (sizeof(T) == 4)
            p[i] = (T)z;
        else if constexpr ((T)-1 < (T)0) // int8
            p[i] = (T)fminf(fmaxf(z * 25, -127), 127);
        else
            p[i] = __nv_cvt_float_to_fp8(z * 20, __NV_SATFINITE, __NV_E4M3);
    }
}
__global__ void fill_scales(float *p, size_t n, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        p[i] = (1 + (mix((uint32_t)i + seed) & 1023) / 1024.0f) * 0.001f;
}
template <class T> static T *alloc(size_t n)
{
    T *p;
    CHECK(cudaMalloc(&p, n * sizeof(T) + 256));
    return p;
}

// ---- references ---------------------------------------------------------------------------------

// sums[i * rows + r]: the sum as mm.h defines it, by the plainest kernel: bf16 on mma.sync, fp8 on
// wgmma with tiles of 64 x 8 filled by ordinary loads, int8 by scalar code. x row of output row i:
// xrow ? xrow[i] : i; matrix: wsel ? wsel[i] : s.
struct ref {
    const void *w, *x;
    const float *ws, *xs;
    const int32_t *xrow, *wsel;
    size_t w_ld, w_stack, x_ld, ws_ld, ws_stack, xs_ld; // elements, floats
    int s, n, rows, cols, x0; // x0: first column of x
    float *sums;
};
__global__ void ref_bf16(ref r)
{
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4, i0 = blockIdx.y * 1, o0 = blockIdx.x * 16;
    // one row of x (as 8 equal columns of B): slow, but every row may have a matrix of its own
    const int i = i0, xi = r.xrow ? r.xrow[i] : i, s = r.wsel ? r.wsel[i] : r.s;
    const uint16_t *x = (const uint16_t *)r.x + (size_t)xi * r.x_ld + r.x0;
    const uint16_t *w = (const uint16_t *)r.w + s * r.w_stack;
    float c[4] = {0, 0, 0, 0};
    auto ld = [&](const uint16_t *p, int k) -> uint32_t {
        uint32_t lo = k < r.cols ? p[k] : 0, hi = k + 1 < r.cols ? p[k + 1] : 0;
        return lo | hi << 16;
    };
    const uint16_t *w0 = w + (size_t)min(o0 + g, r.rows - 1) * r.w_ld;
    const uint16_t *w1 = w + (size_t)min(o0 + g + 8, r.rows - 1) * r.w_ld;
    for (int k = 0; k < r.cols; k += 16) {
        const uint32_t a0 = ld(w0, k + 2 * t), a1 = ld(w1, k + 2 * t), a2 = ld(w0, k + 2 * t + 8),
                       a3 = ld(w1, k + 2 * t + 8), b0 = ld(x, k + 2 * t), b1 = ld(x, k + 2 * t + 8);
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},"
                     "{%8,%9},{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
    if (t == 0) {
        if (o0 + g < r.rows)
            r.sums[(size_t)i * r.rows + o0 + g] = c[0];
        if (o0 + g + 8 < r.rows)
            r.sums[(size_t)i * r.rows + o0 + g + 8] = c[2];
    }
}
__global__ void ref_fp8(ref r) // 64 outputs of one row of x
{
    __shared__ __align__(1024) uint8_t sa[64 * 128], sb[8 * 128];
    const int i = blockIdx.y, o0 = blockIdx.x * 64, tid = threadIdx.x;
    const int xi = r.xrow ? r.xrow[i] : i, s = r.wsel ? r.wsel[i] : r.s;
    const uint8_t *x = (const uint8_t *)r.x + (size_t)xi * r.x_ld + r.x0;
    const uint8_t *w = (const uint8_t *)r.w + s * r.w_stack;
    const int row = tid / 32 * 16 + tid % 32 / 4;
    float sum[2] = {0, 0}, c[4];
    for (int k = 0; k < r.cols; k += 128) {
        __syncthreads();
        for (int j = tid; j < 72 * 128; j += 128) {
            const int q = j / 128, b = j % 128;
            const uint8_t v = k + b >= r.cols ? 0 : q < 64 ? w[(size_t)min(o0 + q, r.rows - 1) * r.w_ld + k + b] : x[k + b];
            uint8_t *to = q < 64 ? sa + q * 128 : sb + (q - 64) * 128;
            to[b ^ (q & 7) << 4] = v;
        }
        hopper::fence_async();
        __syncthreads();
        hopper::mma_fence();
        for (int q = 0; q < 4; q++)
            hopper::mma<hopper::E4M3, 8>::run(c, hopper::mma_desc(hopper::smem(sa)) + 2 * q, hopper::mma_desc(hopper::smem(sb)) + 2 * q, q > 0);
        hopper::mma_commit();
        hopper::mma_wait<0>();
        const float xs = r.xs[(size_t)xi * r.xs_ld + (r.x0 + k) / 128];
        for (int h = 0; h < 2; h++) {
            const int o = min(o0 + row + 8 * h, r.rows - 1);
            sum[h] = fmaf(c[2 * h], xs * r.ws[s * r.ws_stack + o / 128 * r.ws_ld + k / 128], sum[h]);
        }
    }
    for (int h = 0; h < 2; h++)
        if (tid % 4 == 0 && o0 + row + 8 * h < r.rows)
            r.sums[(size_t)i * r.rows + o0 + row + 8 * h] = sum[h];
}
__global__ void ref_s8(ref r)
{
    const int i = blockIdx.y, o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o >= r.rows)
        return;
    const int xi = r.xrow ? r.xrow[i] : i, s = r.wsel ? r.wsel[i] : r.s;
    const int8_t *x = (const int8_t *)r.x + (size_t)xi * r.x_ld + r.x0;
    const int8_t *w = (const int8_t *)r.w + s * r.w_stack + (size_t)o * r.w_ld;
    int c = 0;
    for (int k = 0; k < r.cols; k++)
        c += x[k] * w[k];
    r.sums[(size_t)i * r.rows + o] = (float)c * (r.xs[xi] * r.ws[s * r.ws_stack + o]);
}
static void reference(enum cuda_wtype t, const ref &r)
{
    if (t == CUDA_W_BF16)
        ref_bf16<<<dim3((r.rows + 15) / 16, r.n), 32>>>(r);
    else if (t == CUDA_W_FP8)
        ref_fp8<<<dim3((r.rows + 63) / 64, r.n), 128>>>(r);
    else
        ref_s8<<<dim3((r.rows + 127) / 128, r.n), 128>>>(r);
    CHECK(cudaGetLastError());
}

// Compares out with what follows from the sums; elements outside must still be poison.
struct finish {
    const float *sums, *sums_up, *bias, *bias_up, *add;
    int n, rows;
    const void *out;
    size_t out_ld, add_ld;
    bool bf16;
};
__global__ void compare(finish f, unsigned long long *bad, int total_rows)
{
    const int i = blockIdx.y;
    for (int o = blockIdx.x * blockDim.x + threadIdx.x; o < (int)f.out_ld; o += gridDim.x * blockDim.x) {
        const size_t at = (size_t)i * f.out_ld + o;
        const uint32_t got = f.bf16 ? ((const uint16_t *)f.out)[at] : ((const uint32_t *)f.out)[at];
        uint32_t want = f.bf16 ? 0xffff : 0xffffffffu;
        if (i < f.n && o < f.rows) {
            float v = f.sums[(size_t)i * f.rows + o];
            if (f.bias)
                v += f.bias[o];
            if (f.sums_up) {
                float u = f.sums_up[(size_t)i * f.rows + o];
                if (f.bias_up)
                    u += f.bias_up[o];
                v = mm_gated(v, u);
            }
            if (f.add)
                v += f.add[(size_t)i * f.add_ld + o];
            want = __float_as_uint(v);
            if (f.bf16) {
                __nv_bfloat16 b = __float2bfloat16(v);
                want = *(uint16_t *)&b;
            }
            if (!isfinite(v))
                atomicAdd(&bad[1], 1);
        }
        if (got != want)
            atomicAdd(&bad[0], 1);
    }
}
static void verdict(const char *what, const char *version, const finish &f, int out_rows)
{
    static unsigned long long *bad;
    if (!bad)
        CHECK(cudaMallocManaged(&bad, 16));
    bad[0] = bad[1] = 0;
    CHECK(cudaDeviceSynchronize());
    compare<<<dim3(8, out_rows), 128>>>(f, bad, out_rows);
    CHECK(cudaDeviceSynchronize());
    if (bad[0] || bad[1]) {
        failures++;
        printf("WRONG %s %s: %llu of %d x %d differ, %llu not finite\n", version, what, bad[0], f.n, f.rows, bad[1]);
    }
}

// ---- timing -------------------------------------------------------------------------------------

// Median of 5 of the mean over `times` calls; call i gets i, to choose among sets of inputs.
template <class F> static float time_us(F f, int times)
{
    static cudaEvent_t a, b;
    if (!a) {
        CHECK(cudaEventCreate(&a));
        CHECK(cudaEventCreate(&b));
    }
    f(0), f(1);
    float t[5];
    for (float &v : t) {
        CHECK(cudaEventRecord(a));
        for (int i = 0; i < times; i++)
            f(i);
        CHECK(cudaEventRecord(b));
        CHECK(cudaEventSynchronize(b));
        CHECK(cudaEventElapsedTime(&v, a, b));
    }
    CHECK(cudaGetLastError());
    std::sort(t, t + 5);
    return t[2] * 1000 / times;
}

static double copy_gbs()
{
    const size_t n = 1 << 30;
    char *a = alloc<char>(n), *b = alloc<char>(n);
    const float us = time_us([&](int) { cudaMemcpyAsync(a, b, n, cudaMemcpyDeviceToDevice); }, 10);
    cudaFree(a), cudaFree(b);
    return 2.0 * n / us * 1e-3;
}

// ---- cuBLASLt -----------------------------------------------------------------------------------

// Best time over the first choices of the heuristic for out[n][rows] = x[n][cols] w[rows][cols]^T.
// split: with split-K allowed. scaled: fp8 with 1x128 and 128x128 blocks.
struct blas_args {
    cudaDataType_t in, out;
    int n, rows, cols;
    size_t w_ld, x_ld;
    bool scaled, fast, split;
    std::vector<const void *> w, x;
    void *y;
    const float *scales;
};
static float blas_us(const blas_args &b, int times)
{
    static cublasLtHandle_t lt;
    static void *ws;
    static float one = 1, zero = 0;
    const size_t ws_bytes = 64 << 20;
    if (!lt) {
        cublasLtCreate(&lt);
        CHECK(cudaMalloc(&ws, ws_bytes));
    }
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t la, lb, ld;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t tr = CUBLAS_OP_T;
    cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &tr, sizeof tr);
    const int8_t fast = b.fast;
    cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, 1);
    if (b.scales) {
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &b.scales, sizeof b.scales);
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &b.scales, sizeof b.scales);
    }
    if (b.scaled) {
        const int32_t ma = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F, mb = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &ma, sizeof ma);
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mb, sizeof mb);
    }
    cublasLtMatrixLayoutCreate(&la, b.in, b.cols, b.rows, b.w_ld);
    cublasLtMatrixLayoutCreate(&lb, b.in, b.cols, b.n, b.x_ld);
    cublasLtMatrixLayoutCreate(&ld, b.out, b.rows, b.n, b.rows);
    cublasLtMatmulPreferenceCreate(&pref);
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &ws_bytes, sizeof ws_bytes);
    const uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
    if (!b.split)
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, sizeof none);
    cublasLtMatmulHeuristicResult_t h[6];
    int got = 0;
    float best = 1e30f;
    if (cublasLtMatmulAlgoGetHeuristic(lt, op, la, lb, ld, ld, pref, 6, h, &got))
        got = 0;
    for (int i = 0; i < got; i++) {
        auto run = [&](int j) {
            return cublasLtMatmul(lt, op, &one, b.w[j % b.w.size()], la, b.x[j % b.x.size()], lb, &zero, b.y, ld, b.y,
                                  ld, &h[i].algo, ws, ws_bytes, 0);
        };
        if (run(0) == CUBLAS_STATUS_SUCCESS)
            best = std::min(best, time_us(run, times));
    }
    cublasLtMatmulPreferenceDestroy(pref);
    cublasLtMatrixLayoutDestroy(la), cublasLtMatrixLayoutDestroy(lb), cublasLtMatrixLayoutDestroy(ld);
    cublasLtMatmulDescDestroy(op);
    return best;
}
