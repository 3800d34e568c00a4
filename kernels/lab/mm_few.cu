// Few-row products: check against a plain kernel, bit-equality with any company and with the chain
// of mma.sync that defines the sums, and bandwidth of chains of dependent launches in one graph
// whose weights are larger than L2. `mm_few check`, `mm_few bench`, `mm_few sweep`.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/mm.h"
#include "kernels/cuda/mm_few.h"
#include "kernels/lab/lab.cuh"

typedef __nv_bfloat16 bf16;

static cudaStream_t stream;
static double copy_rate;
static char *pool; // weights
static size_t pool_bytes, pool_at;
static float *pool_scales;
enum { SCALES = 1 << 22 };
static int failures;

static __global__ void fill_bf16(bf16 *p, size_t n, uint64_t seed, float most)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        p[i] = __float2bfloat16(most * lab_random(seed, i));
}
static __global__ void fill_f32(float *p, size_t n, uint64_t seed, float low, float high)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        p[i] = low + (high - low) * (lab_random(seed, i) + 1) / 2;
}
static __global__ void fill_bytes(uint8_t *p, size_t n, uint64_t seed, int fp8)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        float x = lab_random(seed, i);
        p[i] = fp8 ? __nv_cvt_float_to_fp8(x * 400, __NV_SATFINITE, __NV_E4M3)
                   : (uint8_t)(int8_t)(x * 127);
    }
}

// ---- a product and what it should be

static size_t width(cuda_wtype t)
{
    return t == CUDA_W_BF16 ? 2 : 1;
}

struct weights_args {
    cuda_wtype type;
    int stack, rows, cols;
};
// Next from the pool, around again when it ends: every launch reads other bytes.
static cuda_matrix weights_take(const weights_args &a)
{
    cuda_matrix w = {};
    w.type = a.type;
    w.stack = a.stack;
    w.rows = a.rows;
    w.cols = a.cols;
    w.ld = ((size_t)a.cols * width(a.type) + 127) / 128 * 128 / width(a.type);
    w.stack_bytes = w.ld * width(a.type) * a.rows;
    size_t bytes = (w.stack_bytes * a.stack + 255) / 256 * 256;
    if (bytes > pool_bytes) {
        printf("pool too small\n");
        exit(1);
    }
    if (pool_at + bytes > pool_bytes)
        pool_at = 0;
    w.w = pool + pool_at;
    pool_at += bytes;
    w.scales = pool_scales;
    if (a.type == CUDA_W_FP8) {
        w.scales_ld = ((a.cols + 127) / 128 + 3) / 4 * 4;
        w.stack_scales = w.scales_ld * ((a.rows + 127) / 128);
    } else {
        w.stack_scales = (a.rows + 3) / 4 * 4;
    }
    if (a.type != CUDA_W_BF16 && w.stack_scales * a.stack > SCALES) {
        printf("too many scales\n");
        exit(1);
    }
    return w;
}
// Pool memory is random bytes of the type: pads must be zero where they are read.
static __global__ void zero_pads(char *p, size_t rows, size_t row, size_t used)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i < rows)
        for (size_t k = used; k < row; k++)
            p[i * row + k] = 0;
}
static void weights_pad(const cuda_matrix &w)
{
    size_t row = w.ld * width(w.type), used = w.cols * width(w.type),
           rows = (size_t)w.rows * w.stack;
    if (row != used)
        zero_pads<<<(unsigned)((rows + 127) / 128), 128>>>((char *)w.w, rows, row, used);
    LAB(cudaGetLastError());
}

static __device__ double w_at(const cuda_matrix &w, const void *base, int s, int r, int k)
{
    size_t at = s * (w.stack_bytes / (w.type == CUDA_W_BF16 ? 2 : 1)) + r * w.ld + k;
    if (w.type == CUDA_W_BF16)
        return __bfloat162float(((const bf16 *)base)[at]);
    if (w.type == CUDA_W_FP8) {
        __nv_fp8_e4m3 v;
        v.__x = ((const uint8_t *)base)[at];
        return (double)(float)v * w.scales[s * w.stack_scales + r / 128 * w.scales_ld + k / 128];
    }
    return (double)((const int8_t *)base)[at] * w.scales[s * w.stack_scales + r];
}
struct any_x {
    const void *p;
    size_t ld;
    const float *xs;
    size_t xs_ld;
};
static __device__ double x_at(const cuda_matrix &w, const any_x &x, size_t row, size_t at, int k)
{
    if (w.type == CUDA_W_BF16)
        return __bfloat162float(((const bf16 *)x.p)[row * x.ld + at + k]);
    if (w.type == CUDA_W_FP8) {
        __nv_fp8_e4m3 v;
        v.__x = ((const uint8_t *)x.p)[row * x.ld + at + k];
        return (double)(float)v * x.xs[row * x.xs_ld + k / 128];
    }
    return (double)((const int8_t *)x.p)[row * x.ld + at + k] * x.xs[row];
}
static __device__ double dot(const cuda_matrix &w, const void *base, const any_x &x, int s, int r,
                             size_t row, size_t at)
{
    double sum = 0;
    for (int k = 0; k < w.cols; k++)
        sum += w_at(w, base, s, r, k) * x_at(w, x, row, at, k);
    return sum;
}
static __device__ double silu(double x)
{
    return x / (1 + exp(-x));
}

// Dense and per head, in double.
static __global__ void reference(const struct cuda_matmul m, any_x x, double *out)
{
    int r = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y, h = blockIdx.z;
    if (r >= m.w.rows)
        return;
    double y = dot(m.w, m.w.w, x, h, r, i, h * m.x_head);
    if (m.bias)
        y += m.bias[r];
    if (m.w_up) {
        cuda_matrix up = m.w;
        up.scales = m.scales_up;
        y = silu(y) * (dot(up, m.w_up, x, h, r, i, 0) + (m.bias_up ? m.bias_up[r] : 0));
    }
    if (m.add)
        y += m.add[i * m.add_ld + r];
    out[i * m.out_ld + h * m.out_head + r] = y;
}

// The definition for bf16: one chain of m16n8k16 over rising columns. A warp per 16 rows of W.
static __global__ void chain_bf16(const struct cuda_matmul m, float *out)
{
    int lane = threadIdx.x, g = lane / 4, t = lane % 4, row0 = blockIdx.x * 16, h = blockIdx.z;
    const bf16 *w = (const bf16 *)((const char *)m.w.w + h * m.w.stack_bytes);
    for (int n0 = 0; n0 < m.n; n0 += 8) {
        float c[4] = {0, 0, 0, 0};
        for (int k = 0; k < m.w.cols; k += 16) {
            uint32_t a[4], b[2];
            auto wv = [&](int r, int kk) {
                uint32_t v = 0;
                for (int e = 0; e < 2; e++)
                    if (row0 + r < m.w.rows && kk + e < m.w.cols)
                        v |= (uint32_t)__bfloat16_as_ushort(w[(size_t)(row0 + r) * m.w.ld + kk + e])
                             << 16 * e;
                return v;
            };
            auto xv = [&](int kk) {
                uint32_t v = 0;
                for (int e = 0; e < 2; e++)
                    if (n0 + g < m.n && kk + e < m.w.cols)
                        v |= (uint32_t)m.x[(size_t)(n0 + g) * m.x_ld + h * m.x_head + kk + e]
                             << 16 * e;
                return v;
            };
            a[0] = wv(g, k + 2 * t);
            a[1] = wv(g + 8, k + 2 * t);
            a[2] = wv(g, k + 2 * t + 8);
            a[3] = wv(g + 8, k + 2 * t + 8);
            b[0] = xv(k + 2 * t);
            b[1] = xv(k + 2 * t + 8);
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                         "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                         : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        }
        for (int e = 0; e < 4; e++) {
            int r = row0 + g + e / 2 * 8, n = n0 + 2 * t + e % 2;
            if (r < m.w.rows && n < m.n)
                out[n * m.out_ld + h * m.out_head + r] =
                    c[e] + (m.bias ? m.bias[r] : 0) + (m.add ? m.add[n * m.add_ld + r] : 0);
        }
    }
}

// ---- buffers that every case uses

enum { X_ROWS = 8192, ACT = 64 << 20 }; // bytes of an activation buffer
static uint16_t *x_bf16;
static void *x_q;
static float *x_s, *f_out, *f_add, *f_bias;
static double *d_out;
static int32_t *ids_dev;
static float *gates_dev;
static uint16_t *h_bf16;

static void setup(size_t gib)
{
    LAB(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    copy_rate = lab_copy_rate(stream);
    pool_bytes = gib << 30;
    pool = (char *)lab_alloc(pool_bytes);
    pool_scales = (float *)lab_alloc(SCALES * 4);
    fill_f32<<<1024, 256>>>(pool_scales, SCALES, 99, 1e-4f, 1e-3f);
    x_bf16 = (uint16_t *)lab_alloc(ACT);
    x_q = lab_alloc(ACT);
    x_s = (float *)lab_alloc(ACT);
    f_out = (float *)lab_alloc(ACT);
    f_add = (float *)lab_alloc(ACT);
    f_bias = (float *)lab_alloc(ACT);
    h_bf16 = (uint16_t *)lab_alloc(ACT);
    d_out = (double *)lab_alloc(2 * ACT);
    ids_dev = (int32_t *)lab_alloc(ACT);
    gates_dev = (float *)lab_alloc(ACT);
    fill_f32<<<1024, 256>>>(f_add, ACT / 4, 5, -1, 1);
    fill_f32<<<1024, 256>>>(f_bias, ACT / 4, 6, -1, 1);
    fill_f32<<<1024, 256>>>(gates_dev, ACT / 4, 7, 0.1f, 1);
    LAB(cudaDeviceSynchronize());
}

static void fill_pool(cuda_wtype t)
{
    if (t == CUDA_W_BF16)
        fill_bf16<<<2048, 256>>>((bf16 *)pool, pool_bytes / 2, 11, 0.05f);
    else
        fill_bytes<<<2048, 256>>>((uint8_t *)pool, pool_bytes, 12, t == CUDA_W_FP8);
    LAB(cudaDeviceSynchronize());
}

static void fresh_x(uint64_t seed)
{
    fill_bf16<<<1024, 256>>>((bf16 *)x_bf16, ACT / 2, seed, 1.0f);
    LAB(cudaGetLastError());
}

// Quantizes n rows of x for weights w; gives the product its operand.
static any_x operand(const cuda_matrix &w, const uint16_t *x, size_t x_ld, int n)
{
    if (w.type == CUDA_W_BF16)
        return {x, x_ld, NULL, 0};
    size_t xq_ld = (w.cols + 127) / 128 * 128, xs_ld = (w.cols / 128 + 4) / 4 * 4;
    struct cuda_quantize q = {w.type, x, x_ld, n, w.cols, x_q, xq_ld, x_s, xs_ld};
    LAB(cuda_quantize(stream, &q));
    return {x_q, xq_ld, x_s, xs_ld};
}

static const char *type_name(cuda_wtype t)
{
    return t == CUDA_W_BF16 ? "bf16" : t == CUDA_W_FP8 ? "fp8" : "int8";
}

static double relative(const std::vector<double> &want, const std::vector<double> &got)
{
    double d = 0, n = 0;
    for (size_t i = 0; i < want.size(); i++) {
        d += (want[i] - got[i]) * (want[i] - got[i]);
        n += want[i] * want[i];
    }
    return sqrt(d / (n > 0 ? n : 1));
}

static std::vector<float> fetch(const void *p, size_t n, bool is_bf16)
{
    std::vector<float> v(n);
    if (!is_bf16) {
        LAB(cudaMemcpy(v.data(), p, n * 4, cudaMemcpyDeviceToHost));
        return v;
    }
    std::vector<uint16_t> u(n);
    LAB(cudaMemcpy(u.data(), p, n * 2, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++) {
        uint32_t b = (uint32_t)u[i] << 16;
        memcpy(&v[i], &b, 4);
    }
    return v;
}

// ---- checks

struct dense_case {
    int rows, cols, heads;
    bool gated, bias, add, out_bf16;
};

static struct cuda_matmul dense(const cuda_matrix &w, const dense_case &c, int n)
{
    struct cuda_matmul m = {};
    m.w = w;
    m.x = x_bf16;
    m.heads = c.heads;
    m.x_head = c.heads > 1 ? (c.cols + 7) / 8 * 8 + 8 : 0;
    m.x_ld = c.heads > 1 ? m.x_head * c.heads : (c.cols + 7) / 8 * 8 + 8;
    m.out = f_out;
    m.out_bf16 = c.out_bf16;
    m.out_head = c.heads > 1 ? (c.rows + 1) / 2 * 2 : 0;
    m.out_ld = (size_t)(c.rows + 1) / 2 * 2 * c.heads + 2;
    m.bias = c.bias ? f_bias : NULL;
    m.bias_up = c.bias && c.gated ? f_bias + 1000 : NULL;
    m.add = c.add ? f_add : NULL;
    m.add_ld = c.rows + 1;
    m.n = n;
    return m;
}

static void give_x(struct cuda_matmul *m, const any_x &x)
{
    if (m->w.type == CUDA_W_BF16)
        return;
    m->xq = x.p;
    m->xq_ld = x.ld;
    m->xs = x.xs;
    m->xs_ld = x.xs_ld;
}

// Every element of out that a product writes, row by row.
static std::vector<double> written(const struct cuda_matmul &m, const std::vector<float> &out,
                                   int rows)
{
    std::vector<double> v;
    for (int i = 0; i < rows; i++)
        for (int h = 0; h < m.heads; h++)
            for (int r = 0; r < m.w.rows; r++)
                v.push_back(out[i * m.out_ld + h * m.out_head + r]);
    return v;
}

static std::vector<double> run_dense(struct cuda_matmul m, int n)
{
    m.n = n;
    any_x x = operand(m.w, m.x, m.x_ld, n);
    give_x(&m, x);
    size_t e = m.out_bf16 ? 2 : 4, count = (n + 1) * m.out_ld;
    LAB(cudaMemset(f_out, 0xff, count * e));
    LAB(cuda_matmul_few(stream, &m));
    LAB(cudaStreamSynchronize(stream));
    std::vector<float> out = fetch(f_out, count, m.out_bf16);
    for (size_t i = n * m.out_ld; i < count; i++)
        if (!isnan(out[i])) {
            printf("  wrote beyond row %d\n", n);
            failures++;
            break;
        }
    return written(m, out, n);
}

static void check_dense(cuda_wtype type, const dense_case &c, int n)
{
    cuda_matrix w =
        weights_take({type, c.heads, c.gated ? 2 * ((c.rows + 127) / 128 * 128) : c.rows, c.cols});
    struct cuda_matmul m;
    weights_pad(w);
    fresh_x(c.rows * 7919 + c.cols * 31 + n);
    if (c.gated) {
        int half = w.rows / 2;
        m = dense(w, c, n);
        m.w.rows = c.rows;
        m.w_up = (const char *)w.w + half * w.ld * width(type);
        m.scales_up = w.scales + (type == CUDA_W_FP8 ? half / 128 * w.scales_ld : half);
    } else {
        m = dense(w, c, n);
    }
    LAB(cudaDeviceSynchronize());
    std::vector<double> got = run_dense(m, n);
    any_x x = operand(m.w, m.x, m.x_ld, n);
    LAB(cudaStreamSynchronize(stream));
    reference<<<dim3((c.rows + 63) / 64, n, c.heads), 64>>>(m, x, d_out);
    LAB(cudaDeviceSynchronize());
    std::vector<double> ref(n * m.out_ld), want;
    LAB(cudaMemcpy(ref.data(), d_out, ref.size() * 8, cudaMemcpyDeviceToHost));
    for (int i = 0; i < n; i++)
        for (int h = 0; h < c.heads; h++)
            for (int r = 0; r < c.rows; r++)
                want.push_back(ref[i * m.out_ld + h * m.out_head + r]);
    double err = relative(want, got), most = c.out_bf16 ? 4e-3 : type == CUDA_W_FP8 ? 1e-3 : c.cols > 4096 ? 3e-5 : 1e-5;
    size_t differ = 0, chain_differ = 0;
    const int some[] = {1, 2, 7, 9, 17, 33};
    for (int k : some) { // fewer rows, the same bits
        if (k >= n)
            continue;
        std::vector<double> few = run_dense(m, k);
        for (size_t i = 0; i < few.size(); i++)
            differ += !(few[i] == got[i]);
    }
    if (type == CUDA_W_BF16 && !c.gated && !c.out_bf16) {
        chain_bf16<<<dim3((c.rows + 15) / 16, 1, c.heads), 32>>>(m, f_out);
        LAB(cudaDeviceSynchronize());
        std::vector<double> chain = written(m, fetch(f_out, n * m.out_ld, false), n);
        for (size_t i = 0; i < chain.size(); i++)
            chain_differ += !(chain[i] == got[i]);
    }
    bool ok = err <= most && !differ && !chain_differ;
    failures += !ok;
    if (!ok || n == 64)
        printf("%-4s %6d x %5d heads %2d n %2d%s%s%s%s: error %.2e, %zu differ with company, %zu "
               "from the "
               "chain %s\n",
               type_name(type), c.rows, c.cols, c.heads, n, c.gated ? " gated" : "",
               c.bias ? " bias" : "", c.add ? " add" : "", c.out_bf16 ? " to bf16" : "", err,
               differ, chain_differ, ok ? "" : "WRONG");
}

// ---- experts

struct moe_case {
    int n, topk, experts, always, d, i;
};

static std::vector<int32_t> route(const moe_case &c, uint64_t seed)
{
    std::vector<int32_t> ids((size_t)c.n * c.topk);
    srand((unsigned)seed);
    for (int t = 0; t < c.n; t++)
        for (int j = 0; j < c.topk; j++) {
            int e;
            bool again;
            do {
                e = rand() % c.experts;
                again = false;
                for (int k = 0; k < j; k++)
                    again |= ids[t * c.topk + k] == e;
            } while (again);
            ids[t * c.topk + j] = e;
        }
    return ids;
}

static void check_moe(cuda_wtype type, const moe_case &c)
{
    int all = c.experts + c.always, choices = c.topk + c.always, pairs = c.n * choices;
    cuda_matrix gate = weights_take({type, all, c.i, c.d}),
                up = weights_take({type, all, c.i, c.d});
    cuda_matrix down = weights_take({type, all, c.d, c.i});
    weights_pad(gate);
    weights_pad(up);
    weights_pad(down);
    fresh_x(c.n * 131 + c.d);
    std::vector<int32_t> ids = route(c, c.n);
    LAB(cudaMemcpy(ids_dev, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
    size_t x_ld = (c.d + 7) / 8 * 8, h_ld = (c.i + 7) / 8 * 8;
    cuda_experts e = {c.n, c.topk, c.experts, c.always, ids_dev, gates_dev, NULL, false};
    if (cuda_experts_plan_bytes(&e)) {
        e.plan = lab_alloc(cuda_experts_plan_bytes(&e));
        cuda_experts_rows rows;
        LAB(cuda_experts_plan(stream, &e, &rows));
    }
    struct cuda_experts_gate_up g = {e, gate, up.w, up.scales, x_bf16, x_ld};
    any_x x = operand(gate, x_bf16, x_ld, c.n);
    g.xq = x.p, g.xq_ld = x.ld, g.xs = x.xs, g.xs_ld = x.xs_ld;
    g.out = h_bf16;
    g.out_ld = h_ld;
    LAB(cudaMemset(h_bf16, 0xff, (size_t)pairs * h_ld * 2));
    LAB(cudaDeviceSynchronize());
    LAB(cuda_experts_gate_up_few(stream, &g));
    LAB(cudaStreamSynchronize(stream));
    std::vector<float> h = fetch(h_bf16, pairs * h_ld, true);
    // The reference: pair by pair, its matrices as a dense product.
    std::vector<double> want, got;
    for (int p = 0; p < pairs; p++) {
        int t = p / choices, j = p % choices,
            ex = j < c.topk ? ids[t * c.topk + j] : c.experts + j - c.topk;
        struct cuda_matmul m = {};
        m.w = gate;
        m.w.w = (const char *)gate.w + ex * gate.stack_bytes;
        m.w.scales = gate.scales + ex * gate.stack_scales;
        m.w_up = (const char *)up.w + ex * up.stack_bytes;
        m.scales_up = up.scales + ex * up.stack_scales;
        m.out_ld = c.i;
        any_x row = x;
        row.p = (const char *)x.p + t * x.ld * width(type);
        row.xs = type == CUDA_W_FP8 ? x.xs + t * x.xs_ld : x.xs + t;
        reference<<<dim3((c.i + 63) / 64, 1, 1), 64>>>(m, row, d_out + (size_t)p * c.i);
    }
    LAB(cudaDeviceSynchronize());
    want.resize((size_t)pairs * c.i);
    LAB(cudaMemcpy(want.data(), d_out, want.size() * 8, cudaMemcpyDeviceToHost));
    for (int p = 0; p < pairs; p++)
        for (int r = 0; r < c.i; r++)
            got.push_back(h[p * h_ld + r]);
    double err = relative(want, got), most = 4e-3;
    // down
    any_x hx = operand(down, h_bf16, h_ld, pairs);
    size_t ld = c.d + 2;
    struct cuda_experts_down dn = {e, down, h_bf16, h_ld};
    dn.hq = hx.p, dn.hq_ld = hx.ld, dn.hs = hx.xs, dn.hs_ld = hx.xs_ld;
    dn.shared = f_add + 7;
    dn.shared_ld = ld;
    dn.residual = f_add + 77777;
    dn.residual_ld = ld;
    dn.out = f_out;
    dn.out_ld = (ld + 1) / 2 * 2;
    LAB(cudaMemset(f_out, 0xff, (size_t)c.n * dn.out_ld * 4));
    LAB(cuda_experts_down_few(stream, &dn));
    LAB(cudaStreamSynchronize(stream));
    std::vector<float> y = fetch(f_out, c.n * dn.out_ld, false);
    for (int p = 0; p < pairs; p++) {
        int t = p / choices, j = p % choices,
            ex = j < c.topk ? ids[t * c.topk + j] : c.experts + j - c.topk;
        struct cuda_matmul m = {};
        m.w = down;
        m.w.w = (const char *)down.w + ex * down.stack_bytes;
        m.w.scales = down.scales + ex * down.stack_scales;
        m.out_ld = c.d;
        any_x row = hx;
        row.p = (const char *)hx.p + p * hx.ld * width(type);
        row.xs = type == CUDA_W_FP8 ? hx.xs + p * hx.xs_ld : hx.xs + p;
        reference<<<dim3((c.d + 63) / 64, 1, 1), 64>>>(m, row, d_out + (size_t)p * c.d);
    }
    LAB(cudaDeviceSynchronize());
    std::vector<double> prod((size_t)pairs * c.d), want2, got2;
    LAB(cudaMemcpy(prod.data(), d_out, prod.size() * 8, cudaMemcpyDeviceToHost));
    std::vector<float> add = fetch(f_add, 77777 + c.n * ld, false);
    std::vector<float> gates = fetch(gates_dev, c.n * c.topk, false);
    for (int t = 0; t < c.n; t++)
        for (int r = 0; r < c.d; r++) {
            double s = add[7 + t * ld + r] + add[77777 + t * ld + r];
            for (int j = 0; j < choices; j++)
                s += prod[((size_t)t * choices + j) * c.d + r] *
                     (j < c.topk ? gates[t * c.topk + j] : 1);
            want2.push_back(s);
            got2.push_back(y[t * dn.out_ld + r]);
        }
    double err2 = relative(want2, got2), most2 = type == CUDA_W_FP8 ? 1e-3 : 1e-5;
    // A token alone gives the same bits.
    size_t differ = 0;
    for (int t = 0; t < c.n; t += c.n / 3 + 1) {
        cuda_experts one = e;
        one.n = 1;
        one.ids = ids_dev + t * c.topk;
        one.weights = gates_dev + t * c.topk;
        struct cuda_experts_gate_up g1 = g;
        g1.e = one;
        g1.x = x_bf16 + t * x_ld;
        g1.xq = (const char *)x.p + t * x.ld;
        g1.xs = type == CUDA_W_INT8 ? x.xs + t : x.xs + t * x.xs_ld;
        operand(gate, x_bf16, x_ld, c.n);
        LAB(cudaMemset(h_bf16, 0xff, (size_t)choices * h_ld * 2));
        LAB(cuda_experts_gate_up_few(stream, &g1));
        LAB(cudaStreamSynchronize(stream));
        std::vector<float> h1 = fetch(h_bf16, choices * h_ld, true);
        for (int j = 0; j < choices; j++)
            for (int r = 0; r < c.i; r++)
                differ += !(h1[j * h_ld + r] == h[(t * choices + j) * h_ld + r]);
        operand(down, h_bf16, h_ld, choices);
        struct cuda_experts_down d1 = dn;
        d1.e = one;
        d1.shared += t * ld;
        d1.residual += t * ld;
        LAB(cudaMemset(f_out, 0xff, (size_t)dn.out_ld * 4));
        LAB(cuda_experts_down_few(stream, &d1));
        LAB(cudaStreamSynchronize(stream));
        std::vector<float> y1 = fetch(f_out, dn.out_ld, false);
        for (int r = 0; r < c.d; r++)
            differ += !(y1[r] == y[t * dn.out_ld + r]);
    }
    if (e.plan)
        LAB(cudaFree(e.plan));
    bool ok = err <= most && err2 <= most2 && !differ;
    failures += !ok;
    printf("%-4s experts %3d + %d, %4d tokens x %d, %4d -> %4d: gate_up error %.2e, down %.2e, %zu "
           "differ "
           "alone %s\n",
           type_name(type), c.experts, c.always, c.n, c.topk, c.d, c.i, err, err2, differ,
           ok ? "" : "WRONG");
}

static void check()
{
    const dense_case dense_cases[] = {
        {48, 64, 1, false, false, false, false},     {2048, 2048, 1, false, false, true, false},
        {3648, 2048, 1, false, true, true, false},   {77, 328, 1, false, true, false, true},
        {129, 1000, 1, true, true, false, true},     {512, 128, 16, false, false, false, true},
        {128, 512, 16, false, false, false, false},  {33, 40, 3, false, false, false, false},
        {704, 2048, 1, true, false, false, true},    {9472, 256, 1, false, false, true, false},
        {1100, 14336, 1, false, false, true, false}, {17, 8, 1, false, true, true, false},
        {3, 20, 1, false, true, true, false},
    };
    const moe_case moes[] = {{1, 6, 64, 2, 2048, 1408}, {7, 4, 16, 0, 256, 128},
                             {64, 6, 64, 2, 512, 256},  {130, 6, 24, 2, 128, 192},
                             {40, 8, 256, 1, 384, 256}, {300, 8, 32, 1, 256, 128},
                             {9, 2, 3, 1, 72, 40}};
    for (cuda_wtype t : {CUDA_W_BF16, CUDA_W_FP8, CUDA_W_INT8}) {
        fill_pool(t);
        for (const dense_case &c : dense_cases) {
            if (c.heads > 1 && t != CUDA_W_BF16)
                continue;
            for (int n : {1, 3, 8, 12, 16, 20, 40, 64})
                check_dense(t, c, n);
        }
        for (const moe_case &c : moes)
            check_moe(t, c);
    }
    printf("%d checks failed\n", failures);
}

// ---- figures

static void figure(const char *what, const char *type, int n, double us, double bytes)
{
    double rate = bytes / us / 1e3;
    printf("%-34s %-4s n %4d %9.2f us %7.0f GB/s %5.1f%%\n", what, type, n, us, rate,
           100 * rate / copy_rate);
}

// A chain of dependent launches over different weights; time of one.
static double dense_chain(cuda_wtype type, const dense_case &c, int n, int repeats)
{
    size_t bytes = (size_t)c.rows * (c.gated ? 2 : 1) * c.cols * c.heads * width(type);
    int launches = (int)std::min<size_t>(64, std::max<size_t>(8, ((size_t)1 << 30) / bytes));
    any_x x = {};
    cuda_matrix shape = weights_take({type, c.heads, c.rows, c.cols});
    struct cuda_matmul proto = dense(shape, c, n);
    x = operand(shape, proto.x, proto.x_ld, n);
    cudaGraphExec_t g = lab_capture(stream, [&] {
        for (int i = 0; i < launches; i++) {
            cuda_matrix w = weights_take({type, c.heads, c.gated ? 2 * c.rows : c.rows, c.cols});
            struct cuda_matmul m = dense(w, c, n);
            if (c.gated) {
                m.w.rows = c.rows;
                m.w_up = (const char *)w.w + c.rows * w.ld * width(type);
                m.scales_up = w.scales;
            }
            give_x(&m, x);
            LAB(cuda_matmul_few(stream, &m));
        }
    });
    double us = lab_time(g, stream, repeats) / launches;
    LAB(cudaGraphExecDestroy(g));
    return us;
}

static void bench_dense(const char *what, cuda_wtype type, const dense_case &c, int n)
{
    double us = dense_chain(type, c, n, 9);
    figure(what, type_name(type), n, us,
           (double)c.rows * (c.gated ? 2 : 1) * c.cols * c.heads * width(type));
}

// gate_up and down of one layer after the other, each with its own choice.
struct moe_chain {
    cuda_wtype type;
    moe_case c;
    bool gate_up, down;
};
static double moe_distinct(const moe_case &c, const std::vector<int32_t> &ids)
{
    std::vector<bool> seen(c.experts);
    int n = 0;
    for (int32_t e : ids)
        if (!seen[e]) {
            seen[e] = true;
            n++;
        }
    return n + c.always;
}
static void bench_moe(const char *what, const moe_chain &a)
{
    const moe_case &c = a.c;
    int all = c.experts + c.always, launches = 12;
    double experts = 0;
    std::vector<int32_t> ids;
    for (int i = 0; i < launches; i++) {
        std::vector<int32_t> some = route(c, 1000 + i);
        experts += moe_distinct(c, some);
        ids.insert(ids.end(), some.begin(), some.end());
    }
    LAB(cudaMemcpy(ids_dev, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
    cuda_matrix shape = weights_take({a.type, all, c.i, c.d}),
                shape2 = weights_take({a.type, all, c.d, c.i});
    any_x x = operand(shape, x_bf16, c.d, c.n), h = x;
    if (a.type != CUDA_W_BF16) { // what the values are does not matter here
        h.ld = shape2.ld;
        h.xs_ld = shape2.scales_ld;
    }
    void *plan = lab_alloc(64 << 20);
    cudaGraphExec_t g = lab_capture(stream, [&] {
        for (int i = 0; i < launches; i++) {
            cuda_experts e = {
                c.n,       c.topk, c.experts, c.always, ids_dev + (size_t)i * c.n * c.topk,
                gates_dev, plan,   false};
            cuda_experts_rows rows;
            if (cuda_experts_plan_bytes(&e))
                LAB(cuda_experts_plan(stream, &e, &rows));
            if (a.gate_up) {
                cuda_matrix gate = weights_take({a.type, all, c.i, c.d});
                cuda_matrix up = weights_take({a.type, all, c.i, c.d});
                struct cuda_experts_gate_up u = {e, gate, up.w, up.scales, x_bf16, (size_t)c.d};
                u.xq = x.p, u.xq_ld = x.ld, u.xs = x.xs, u.xs_ld = x.xs_ld;
                u.out = h_bf16;
                u.out_ld = c.i;
                LAB(cuda_experts_gate_up_few(stream, &u));
            }
            if (a.down) {
                cuda_matrix down = weights_take({a.type, all, c.d, c.i});
                struct cuda_experts_down d = {e, down, h_bf16, (size_t)c.i};
                d.e.ready = true;
                d.hq = h.p, d.hq_ld = h.ld, d.hs = h.xs, d.hs_ld = h.xs_ld;
                d.residual = f_add;
                d.residual_ld = c.d;
                d.out = f_out;
                d.out_ld = c.d;
                LAB(cuda_experts_down_few(stream, &d));
            }
        }
    });
    double us = lab_time(g, stream, 9) / launches;
    LAB(cudaGraphExecDestroy(g));
    LAB(cudaFree(plan));

    figure(what, type_name(a.type), c.n, us,
           experts / launches * c.i * c.d * width(a.type) *
               ((a.gate_up ? 2 : 0) + (a.down ? 1 : 0)));
}

// All products of one DeepSeek-V2-Lite layer, without norms, attention and router.
static void bench_layer(cuda_wtype type, int n)
{
    const moe_case c = {n, 6, 64, 2, 2048, 1408};
    const dense_case qkv = {3648, 2048, 1, false, false, false, true},
                     uk = {512, 128, 16, false, false, false, true};
    const dense_case uv = {128, 512, 16, false, false, false, true},
                     o = {2048, 2048, 1, false, false, true, false};
    const dense_case *parts[] = {&qkv, &uk, &uv, &o};
    int layers = 12, all = 66;
    double bytes = 0;
    std::vector<int32_t> ids;
    for (int i = 0; i < layers; i++) {
        std::vector<int32_t> some = route(c, 3000 + i);
        bytes += moe_distinct(c, some) / layers * 3 * c.i * c.d * width(type);
        ids.insert(ids.end(), some.begin(), some.end());
    }
    LAB(cudaMemcpy(ids_dev, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
    any_x x[4], xd, xh;
    for (int p = 0; p < 4; p++) {
        cuda_wtype t = parts[p]->heads > 1 ? CUDA_W_BF16 : type;
        cuda_matrix w = weights_take({t, parts[p]->heads, parts[p]->rows, parts[p]->cols});
        x[p] = operand(w, x_bf16, 2056, n);
        bytes += (double)parts[p]->rows * parts[p]->cols * parts[p]->heads * width(t);
    }
    xd = xh = x[0];
    if (type != CUDA_W_BF16) {
        xh.ld = 1408;
        xh.xs_ld = 12;
    }
    cudaGraphExec_t g = lab_capture(stream, [&] {
        for (int i = 0; i < layers; i++) {
            for (int p = 0; p < 4; p++) {
                cuda_wtype t = parts[p]->heads > 1 ? CUDA_W_BF16 : type;
                struct cuda_matmul m =
                    dense(weights_take({t, parts[p]->heads, parts[p]->rows, parts[p]->cols}),
                          *parts[p], n);
                give_x(&m, x[p]);
                LAB(cuda_matmul_few(stream, &m));
            }
            cuda_experts e = {n, 6, 64, 2, ids_dev + (size_t)i * n * 6, gates_dev, NULL, false};
            cuda_matrix gate = weights_take({type, all, c.i, c.d}),
                        up = weights_take({type, all, c.i, c.d});
            cuda_matrix down = weights_take({type, all, c.d, c.i});
            struct cuda_experts_gate_up u = {e, gate, up.w, up.scales, x_bf16, 2048};
            u.xq = xd.p, u.xq_ld = xd.ld, u.xs = xd.xs, u.xs_ld = xd.xs_ld;
            u.out = h_bf16;
            u.out_ld = c.i;
            LAB(cuda_experts_gate_up_few(stream, &u));
            struct cuda_experts_down d = {e, down, h_bf16, (size_t)c.i};
            d.e.ready = true;
            d.hq = xh.p, d.hq_ld = xh.ld, d.hs = xh.xs, d.hs_ld = xh.xs_ld;
            d.residual = f_add;
            d.residual_ld = 2048;
            d.out = f_out;
            d.out_ld = 2048;
            LAB(cuda_experts_down_few(stream, &d));
        }
    });
    double us = lab_time(g, stream, 9) / layers;
    LAB(cudaGraphExecDestroy(g));
    figure("V2-Lite layer, products only", type_name(type), n, us, bytes);
    printf("  %.1f us over the time of its bytes\n", us - bytes / copy_rate / 1e3);
}

static void bench()
{
    const dense_case plain = {0, 0, 1, false, false, false, true};
    auto shape = [&](int rows, int cols) {
        dense_case c = plain;
        c.rows = rows;
        c.cols = cols;
        return c;
    };
    auto gated = [&](int rows, int cols) {
        dense_case c = shape(rows, cols);
        c.gated = true;
        return c;
    };
    for (cuda_wtype t : {CUDA_W_BF16, CUDA_W_FP8}) {
        fill_pool(t);
        fresh_x(3);
        for (int n : {1, 8, 16, 32, 64}) {
            bench_dense("Llama-8B gate_up 28672x4096", t, gated(14336, 4096), n);
            bench_dense("Llama-8B down 4096x14336", t, shape(4096, 14336), n);
            bench_dense("V2-Lite lm_head 102400x2048", t, shape(102400, 2048), n);
            bench_dense("Llama-8B qkv 6144x4096", t, shape(6144, 4096), n);
            bench_dense("V2-Lite qkv 3648x2048", t, shape(3648, 2048), n);
            bench_dense("V2-Lite o 2048x2048", t, shape(2048, 2048), n);
            if (t == CUDA_W_FP8) {
                bench_dense("V3/8 qkv_a 2112x7168", t, shape(2112, 7168), n);
                bench_dense("V3/8 q_b 3072x1536", t, shape(3072, 1536), n);
                bench_dense("V3/8 o 896x16384", t, shape(896, 16384), n);
                bench_dense("V3 o 7168x2048", t, shape(7168, 2048), n);
            } else {
                dense_case uk = {512, 128, 16, false, false, false, true};
                dense_case uv = {128, 512, 16, false, false, false, true};
                bench_dense("V2-Lite uk 16 x 512x128", t, uk, n);
                bench_dense("V2-Lite uv 16 x 128x512", t, uv, n);
            }
        }
        for (int n : {1, 8, 32, 64, 128, 256}) {
            bench_moe("V2-Lite experts gate_up", {t, {n, 6, 64, 2, 2048, 1408}, true, false});
            bench_moe("V2-Lite experts down", {t, {n, 6, 64, 2, 2048, 1408}, false, true});
            bench_moe("V2-Lite experts both", {t, {n, 6, 64, 2, 2048, 1408}, true, true});
        }
        for (int n : {1, 8, 64})
            bench_layer(t, n);
        if (t == CUDA_W_FP8)
            for (int n :
                 {1, 8, 64, 256}) { // one rank of eight holds an eighth of every expert's rows
                bench_moe("V3/8 experts gate_up 256", {t, {n, 8, 256, 1, 7168, 256}, true, false});
                bench_moe("V3/8 experts down 896x2048",
                          {t, {n, 8, 256, 1, 896, 2048}, false, true});
            }
    }
}

static void sweep()
{
    fill_pool(CUDA_W_BF16);
    fresh_x(3);
    const dense_case cases[] = {{28672, 4096, 1, false, false, false, true},
                                {4096, 14336, 1, false, false, false, true},
                                {3648, 2048, 1, false, false, false, true},
                                {2048, 2048, 1, false, false, true, false}};
    for (int n : {1, 16, 64})
        for (const dense_case &c : cases) {
            double bytes = 2.0 * c.rows * c.cols;
            printf("%d x %d n %d, share of copy by rows of a unit and KiB of shared memory:", c.rows,
                   c.cols, n);
            for (int smem : {64, 112, 200})
                for (int r : {8, 16, 32, 64}) {
                    few_tune = {};
                    few_tune.r = r;
                    few_tune.smem = smem << 10;
                    double us = dense_chain(CUDA_W_BF16, c, n, 5);
                    printf(" %d/%d %.1f%%", r, smem, 100 * bytes / us / 1e3 / copy_rate);
                }
            printf("\n");
        }
    few_tune = {};
}

// One block whose weights lie in L2: the time of a step of the chain as the kernel really does it.
static void solo()
{
    for (cuda_wtype t : {CUDA_W_BF16, CUDA_W_FP8}) {
        fill_pool(t);
        for (int r : {16, 32, 64})
            for (int n : {1, 16, 64}) {
                double us[2];
                for (int k = 0; k < 2; k++) {
                    dense_case c = {r, k ? 14336 : 2048, 1, false, false, false, true};
                    few_tune = {};
                    few_tune.r = r;
                    cuda_matrix w = weights_take({t, 1, c.rows, c.cols});
                    struct cuda_matmul m = dense(w, c, n);
                    give_x(&m, operand(w, m.x, m.x_ld, n));
                    cudaGraphExec_t g = lab_capture(stream, [&] {
                        for (int i = 0; i < 40; i++)
                            LAB(cuda_matmul_few(stream, &m));
                    });
                    us[k] = lab_time(g, stream, 5) / 40;
                    LAB(cudaGraphExecDestroy(g));
                }
                printf("%s r %2d n %2d: %6.2f us with 2048 columns, %6.2f with 14336; %5.1f ns a step of 32 bytes\n",
                       type_name(t), r, n, us[0], us[1],
                       (us[1] - us[0]) * 1e3 / ((14336 - 2048) * width(t) / 32));
            }
    }
    few_tune = {};
}

// What a short run can show: the most important first.
static void round_of_all()
{
    const dense_case checks[] = {
        {2048, 2048, 1, false, false, true, false}, {129, 1000, 1, true, true, false, true},
        {512, 128, 16, false, false, false, true},  {33, 40, 3, false, false, false, false},
        {77, 328, 1, false, true, true, false},     {1100, 7168, 1, false, false, true, false},
    };
    const moe_case moes[] = {{1, 6, 64, 2, 2048, 1408}, {64, 6, 64, 2, 512, 256}, {9, 2, 3, 1, 72, 40}};
    const dense_case o = {2048, 2048, 1, false, false, true, false};
    const dense_case qkv = {3648, 2048, 1, false, false, false, true};
    const dense_case down = {4096, 14336, 1, false, false, true, false};
    const dense_case gate_up = {14336, 4096, 1, true, false, false, true};
    const dense_case head = {102400, 2048, 1, false, false, false, false};
    const dense_case q_a = {2112, 7168, 1, false, false, false, true};
    const dense_case uk = {512, 128, 16, false, false, false, true};
    const dense_case uv = {128, 512, 16, false, false, false, true};
    for (cuda_wtype t : {CUDA_W_BF16, CUDA_W_FP8}) {
        fill_pool(t);
        for (const dense_case &c : checks)
            if (c.heads == 1 || t == CUDA_W_BF16)
                for (int n : {3, 64})
                    check_dense(t, c, n);
        for (const moe_case &c : moes)
            check_moe(t, c);
        printf("%d checks failed\n", failures);
        for (int n : {1, 8, 64})
            bench_layer(t, n);
        for (int n : {1, 8, 16, 64}) {
            bench_dense("V2-Lite o 2048x2048", t, o, n);
            bench_dense("V2-Lite qkv 3648x2048", t, qkv, n);
            bench_dense("Llama-8B down 4096x14336", t, down, n);
            bench_dense("Llama-8B gate_up 28672x4096", t, gate_up, n);
            bench_dense("V2-Lite lm_head 102400x2048", t, head, n);
            bench_dense("V3/8 qkv_a 2112x7168", t, q_a, n);
            if (t == CUDA_W_BF16) {
                bench_dense("V2-Lite uk 16 x 512x128", t, uk, n);
                bench_dense("V2-Lite uv 16 x 128x512", t, uv, n);
            }
        }
        for (int n : {1, 8, 64, 256}) {
            bench_moe("V2-Lite experts gate_up", {t, {n, 6, 64, 2, 2048, 1408}, true, false});
            bench_moe("V2-Lite experts down", {t, {n, 6, 64, 2, 2048, 1408}, false, true});
        }
    }
    for (int n : {1, 64})
        bench_moe("V3/8 experts gate_up 256", {CUDA_W_FP8, {n, 8, 256, 1, 7168, 256}, true, false});
    for (int n : {1, 64})
        bench_moe("V3/8 experts down 896x2048", {CUDA_W_FP8, {n, 8, 256, 1, 896, 2048}, false, true});
    solo();
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "check";
    setvbuf(stdout, NULL, _IOLBF, 0);
    setup(10);
    struct cudaDeviceProp p;
    LAB(cudaGetDeviceProperties(&p, 0));
    printf("%s, copy %.0f GB/s\n", p.name, copy_rate);
    if (!strcmp(what, "check"))
        check();
    else if (!strcmp(what, "bench"))
        bench();
    else if (!strcmp(what, "round"))
        round_of_all();
    else if (!strcmp(what, "solo"))
        solo();
    else if (!strcmp(what, "sweep"))
        sweep();
    return failures != 0;
}
