// Laboratory of grouped-query attention: check (against float64, poisoned pools and outputs; equal
// bits however a sequence is cut, whatever the number of SMs) and bench (decode against the copy
// bandwidth, prefill against the tensor cores) of the product's kernels.
//
//   nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -I. -cudart static -o gqa
//       kernels/lab/gqa.cu kernels/cuda/attn_gqa*.cu
//   ./gqa check [SHAPE] | decode [FILE.csv] | prefill [FILE.csv]
#include "kernels/cuda/attn_gqa.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <vector>

#define OK(call)                                                                                   \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));           \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

typedef __nv_bfloat16 bf16;
static int sms, arch = 90;
static cudaStream_t stream;

static __host__ __device__ uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}
// Sum of four uniforms, about normal with deviation 1.
static __device__ float noise(uint64_t seed, uint64_t i)
{
    uint64_t x = mix(seed * 0x1000003 + i);
    float s = 0;
    for (int k = 0; k < 4; k++)
        s += (float)((x >> (16 * k)) & 0xffff) / 65536.0f - 0.5f;
    return s * 1.7320508f;
}

static __global__ void fill(bf16 *p, size_t n, uint64_t seed, float scale)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        p[i] = __float2bfloat16(scale * noise(seed, i));
}

// ---- a call and its memory

struct piece {
    int seq, pos0, n;
};
struct shape {
    int heads, kv_heads, head_dim, block_tokens;
};

struct data {
    shape s;
    int seqs, tokens, stride; // tokens: written ones of each sequence
    bf16 *pool;
    int blocks;
    int32_t *tables;
    std::vector<int32_t> host_tables;
};

// NaN where no token was written. A token's row and a query depend on (sequence, position) alone.
static __global__ void fill_pool(bf16 *pool, const int32_t *tables, int stride, int block_tokens,
                                 int width, int tokens, uint64_t seed)
{
    int s = blockIdx.y, t = blockIdx.x;
    size_t row = (size_t)tables[s * stride + t / block_tokens] * block_tokens + t % block_tokens;
    for (int c = threadIdx.x; c < width; c += blockDim.x)
        pool[row * width + c] = __float2bfloat16(
            noise(seed, ((uint64_t)s * 1000003 + t) * 65536 + c) * (c < width / 2 ? 1.5f : 1.0f));
}
static __global__ void fill_q(bf16 *q, size_t stride, const int32_t *seq, const int32_t *pos,
                              int width, uint64_t seed)
{
    int r = blockIdx.x;
    for (int c = threadIdx.x; c < width; c += blockDim.x)
        q[r * stride + c] = __float2bfloat16(
            noise(seed ^ 77, ((uint64_t)seq[r] * 1000003 + pos[r]) * 65536 + c) * 1.5f);
}

static data make_data(const shape &s, int seqs, int tokens, uint64_t seed)
{
    data d = {s, seqs, tokens};
    d.stride = (tokens + s.block_tokens - 1) / s.block_tokens + 1;
    d.blocks = seqs * d.stride + 3;
    d.host_tables.resize(seqs * d.stride);
    std::vector<int32_t> order(d.blocks);
    for (int i = 0; i < d.blocks; i++)
        order[i] = i;
    for (int i = d.blocks - 1; i > 0; i--)
        std::swap(order[i], order[mix(seed * 31 + i) % (i + 1)]);
    for (size_t i = 0; i < d.host_tables.size(); i++) // the last of each is never a token's
        d.host_tables[i] = i % d.stride == (size_t)d.stride - 1 ? -12345678 : order[i];
    size_t width = 2 * s.kv_heads * s.head_dim, n = (size_t)d.blocks * s.block_tokens * width;
    OK(cudaMalloc(&d.pool, n * 2));
    OK(cudaMemset(d.pool, 0xff, n * 2));
    OK(cudaMalloc(&d.tables, d.host_tables.size() * 4));
    OK(cudaMemcpy(d.tables, d.host_tables.data(), d.host_tables.size() * 4,
                  cudaMemcpyHostToDevice));
    fill_pool<<<dim3(tokens, seqs), 128>>>(d.pool, d.tables, d.stride, s.block_tokens, (int)width,
                                           tokens, seed);
    OK(cudaGetLastError());
    return d;
}
static void free_data(data &d)
{
    cudaFree(d.pool);
    cudaFree(d.tables);
}

struct call {
    struct cuda_gqa a;
    int32_t *seq, *pos;
    bf16 *q, *out;
    void *scratch;
    size_t out_bytes;
    std::vector<int32_t> host_pos;
};

static call make_call(const data &d, const std::vector<piece> &pieces, int run_max, int use_sms)
{
    call c = {};
    std::vector<int32_t> seq, &pos = c.host_pos;
    int last = 0;
    for (auto &p : pieces)
        for (int i = 0; i < p.n; i++) {
            seq.push_back(p.seq);
            pos.push_back(p.pos0 + i);
            last = std::max(last, p.pos0 + i);
        }
    size_t n = seq.size(), width = d.s.heads * d.s.head_dim, stride = width + 16;
    OK(cudaMalloc(&c.seq, n * 4));
    OK(cudaMalloc(&c.pos, n * 4));
    OK(cudaMemcpy(c.seq, seq.data(), n * 4, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(c.pos, pos.data(), n * 4, cudaMemcpyHostToDevice));
    OK(cudaMalloc(&c.q, n * stride * 2));
    OK(cudaMemset(c.q, 0xff, n * stride * 2));
    fill_q<<<(unsigned)n, 128>>>(c.q, stride, c.seq, c.pos, (int)width, 5);
    c.out_bytes = n * stride * 2;
    OK(cudaMalloc(&c.out, c.out_bytes));
    OK(cudaMemset(c.out, 0xff, c.out_bytes));
    c.a = {.n = (int)n, .keys_max = last + 1, .run_max = run_max};
    c.a.heads = d.s.heads;
    c.a.kv_heads = d.s.kv_heads;
    c.a.head_dim = d.s.head_dim;
    c.a.scale = 1 / sqrtf((float)d.s.head_dim);
    c.a.q = c.q;
    c.a.q_stride = stride;
    c.a.out = c.out;
    c.a.out_stride = stride;
    c.a.pool = d.pool;
    c.a.blocks = d.blocks;
    c.a.block_tokens = d.s.block_tokens;
    c.a.seq = c.seq;
    c.a.pos = c.pos;
    c.a.tables = d.tables;
    c.a.table_stride = d.stride;
    c.a.sms = use_sms;
    c.a.arch = arch;
    size_t bytes = cuda_gqa_scratch_bytes(&c.a), plan = cuda_gqa_plan_bytes(&c.a);
    OK(cudaMalloc(&c.scratch, bytes + plan + 256));
    OK(cudaMemset(c.scratch, 0xff, bytes + plan + 256));
    c.a.plan = c.scratch;
    c.a.scratch = (char *)c.scratch + (plan + 255) / 256 * 256;
    OK(cudaDeviceSynchronize());
    return c;
}
static void free_call(call &c)
{
    cudaFree(c.seq);
    cudaFree(c.pos);
    cudaFree(c.q);
    cudaFree(c.out);
    cudaFree(c.scratch);
}
static std::vector<uint16_t> run(call &c)
{
    OK(cuda_gqa(stream, &c.a));
    OK(cudaDeviceSynchronize());
    std::vector<uint16_t> v(c.out_bytes / 2);
    OK(cudaMemcpy(v.data(), c.out, c.out_bytes, cudaMemcpyDeviceToHost));
    return v;
}

// ---- reference in double, one block per (head, row)

static __global__ void reference(struct cuda_gqa a, double *out)
{
    extern __shared__ double sh[]; // keys_max scores, then 128 for sums
    int row = blockIdx.y, h = blockIdx.x, d = a.head_dim, kv = h / (a.heads / a.kv_heads);
    int keys = a.pos[row] + 1, tid = threadIdx.x, n = blockDim.x;
    const int32_t *table = a.tables + (size_t)a.seq[row] * a.table_stride;
    const bf16 *q = (const bf16 *)a.q + row * a.q_stride + (size_t)h * d;
    size_t width = 2 * a.kv_heads * d;
    double *red = sh + a.keys_max, top = -1e300, sum = 0;
    for (int t = tid; t < keys; t += n) {
        const bf16 *k =
            (const bf16 *)a.pool +
            ((size_t)table[t / a.block_tokens] * a.block_tokens + t % a.block_tokens) * width +
            kv * d;
        double s = 0;
        for (int c = 0; c < d; c++)
            s += (double)__bfloat162float(q[c]) * (double)__bfloat162float(k[c]);
        sh[t] = s * a.scale;
        top = fmax(top, sh[t]);
    }
    red[tid] = top;
    __syncthreads();
    for (int i = 0; i < n; i++)
        top = fmax(top, red[i]);
    __syncthreads();
    for (int t = tid; t < keys; t += n)
        sum += sh[t] = exp(sh[t] - top);
    red[tid] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < n; i++)
        sum += red[i];
    for (int c = tid; c < d; c += n) {
        double o = 0;
        for (int t = 0; t < keys; t++) {
            const bf16 *v =
                (const bf16 *)a.pool +
                ((size_t)table[t / a.block_tokens] * a.block_tokens + t % a.block_tokens) * width +
                (a.kv_heads + kv) * d;
            o += sh[t] * (double)__bfloat162float(v[c]);
        }
        out[((size_t)row * a.heads + h) * d + c] = o / sum;
    }
}

static float from_bits(uint16_t b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static int failures;

static void check_reference(const char *what, call &c)
{
    std::vector<uint16_t> got = run(c);
    size_t width = (size_t)c.a.heads * c.a.head_dim, n = c.a.n * width;
    double *ref;
    OK(cudaMalloc(&ref, n * 8));
    size_t smem = ((size_t)c.a.keys_max + 128) * 8;
    OK(cudaFuncSetAttribute(reference, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem));
    reference<<<dim3(c.a.heads, c.a.n), 128, smem>>>(c.a, ref);
    OK(cudaDeviceSynchronize());
    std::vector<double> want(n);
    OK(cudaMemcpy(want.data(), ref, n * 8, cudaMemcpyDeviceToHost));
    cudaFree(ref);
    double diff = 0, norm = 0, worst = 0;
    size_t nans = 0, stray = 0;
    for (int r = 0; r < c.a.n; r++) {
        for (size_t x = 0; x < width; x++) {
            if (c.host_pos[r] < 0) {
                stray += got[r * c.a.out_stride + x] != 0xffff;
                continue;
            }
            double v = from_bits(got[r * c.a.out_stride + x]), w = want[r * width + x];
            if (!(v == v)) {
                nans++;
                continue;
            }
            diff += (v - w) * (v - w);
            norm += w * w;
            worst = std::max(worst, fabs(v - w));
        }
        for (size_t x = width; x < c.a.out_stride; x++)
            stray += got[r * c.a.out_stride + x] != 0xffff;
    }
    double rel = sqrt(diff / norm);
    bool bad = nans || stray || !(rel < 4e-3) || !(worst < 0.05);
    failures += bad;
    printf("%s %-44s rel %.2e worst %.2e nan %zu stray %zu\n", bad ? "FAIL" : "  ok", what, rel,
           worst, nans, stray);
}

// The rows of one sequence [0, tokens) of data d, put together of several calls.
static std::vector<uint16_t> rows_by(const data &d, int seq, const std::vector<int> &cuts,
                                     int run_max, int use_sms, int company)
{
    std::vector<uint16_t> all;
    size_t width = (size_t)d.s.heads * d.s.head_dim;
    for (size_t i = 0; i + 1 < cuts.size(); i++) {
        std::vector<piece> p;
        for (int k = 0; k < company; k++)
            p.push_back({(seq + 1 + k) % d.seqs, ((int)i * 37 + k * 11) % (d.tokens - 40),
                         1 + 20 * (k & 1)});
        int before = 0;
        for (auto &x : p)
            before += x.n;
        p.push_back({seq, cuts[i], cuts[i + 1] - cuts[i]});
        call c = make_call(d, p, company ? 0 : run_max, use_sms);
        std::vector<uint16_t> v = run(c);
        for (int r = before; r < c.a.n; r++)
            all.insert(all.end(), v.begin() + r * c.a.out_stride,
                       v.begin() + r * c.a.out_stride + width);
        free_call(c);
    }
    return all;
}

// Each row of the sequence as a decode row, all in one call.
static std::vector<uint16_t> rows_decoded(const data &d, int seq, int from, int to, int use_sms)
{
    std::vector<piece> p;
    std::vector<uint16_t> all;
    size_t width = (size_t)d.s.heads * d.s.head_dim;
    for (int t = to - 1; t >= from; t--) // falling: no two rows share a tile
        p.push_back({seq, t, 1});
    call c = make_call(d, p, 1, use_sms);
    std::vector<uint16_t> v = run(c);
    for (int r = c.a.n - 1; r >= 0; r--)
        all.insert(all.end(), v.begin() + r * c.a.out_stride,
                   v.begin() + r * c.a.out_stride + width);
    free_call(c);
    return all;
}

static void compare_bits(const char *what, const std::vector<uint16_t> &x,
                         const std::vector<uint16_t> &y, size_t width)
{
    size_t n = 0, first = 0;
    if (x.size() != y.size())
        n = 1;
    for (size_t i = 0; i < x.size() && !(x.size() != y.size()); i++)
        if (x[i] != y[i] && !n++)
            first = i;
    failures += n > 0;
    printf("%s bits: %-40s differing %zu of %zu%s", n ? "FAIL" : "  ok", what, n, x.size(),
           n ? "" : "\n");
    if (n)
        printf(", first at row %zu column %zu: %04x %04x\n", first / width, first % width, x[first],
               y[first]);
}

static void check_bits(const shape &s, int tokens)
{
    data d = make_data(s, 4, tokens, 11 + s.heads + s.block_tokens);
    size_t width = (size_t)s.heads * s.head_dim;
    char what[128];
    auto name = [&](const char *x) {
        snprintf(what, sizeof what, "%d/%d x %d, block %d, %d: %s", s.heads, s.kv_heads, s.head_dim,
                 s.block_tokens, tokens, x);
        return what;
    };
    std::vector<uint16_t> whole = rows_by(d, 1, {0, tokens}, 0, sms, 0);
    std::vector<int> cuts = {0};
    for (int i = 0; cuts.back() < tokens; i++)
        cuts.push_back(std::min(tokens, cuts.back() + 1 + (int)(mix(i) % 300)));
    compare_bits(name("pieces"), whole, rows_by(d, 1, cuts, 0, sms, 0), width);
    compare_bits(name("pieces in company"), whole, rows_by(d, 1, cuts, 0, sms, 5), width);
    compare_bits(name("decode"), whole, rows_decoded(d, 1, 0, tokens, sms), width);
    compare_bits(name("decode on 7 SMs"), whole, rows_decoded(d, 1, 0, tokens, 7), width);
    std::vector<uint16_t> tail(whole.end() - 3 * width, whole.end());
    compare_bits(name("decode, 3 rows"), tail, rows_decoded(d, 1, tokens - 3, tokens, sms), width);
    std::vector<uint16_t> last(whole.end() - width, whole.end());
    compare_bits(name("decode, 1 row"), last, rows_decoded(d, 1, tokens - 1, tokens, sms), width);
    free_data(d);
}

// only: one of the shapes, -1 for all.
static void check(int only)
{
    static const shape shapes[] = {{32, 8, 128, 16},  {32, 8, 128, 64}, {64, 8, 128, 32},
                                   {28, 4, 128, 16},  {12, 2, 128, 32}, {40, 8, 128, 16},
                                   {16, 16, 64, 16},  {14, 2, 64, 64},  {32, 1, 64, 128},
                                   {40, 2, 128, 256}, {8, 8, 128, 24}};
    for (auto &s : shapes) {
        if (only >= 0 && &s != &shapes[only])
            continue;
        char what[128];
        static const int lengths[] = {1, 63, 64, 65, 127, 128, 129, 511, 513, 1025, 4097};
        data d = make_data(s, 3, 4200, 3 + s.heads);
        std::vector<piece> decode, mixed;
        for (int i = 0; i < 11; i++)
            decode.push_back({i % 3, lengths[i] - 1, 1});
        decode.insert(decode.begin() + 3, 2, {0, -1, 1}); // padding
        decode.push_back({0, -1, 1});
        snprintf(what, sizeof what, "%d/%d x %d, block %d: decode", s.heads, s.kv_heads, s.head_dim,
                 s.block_tokens);
        call c = make_call(d, decode, 1, sms);
        check_reference(what, c);
        free_call(c);
        mixed = {{0, -1, 1},    {0, 4096, 1}, {1, 0, 1},   {2, 100, 130}, {0, 1000, 3},
                 {1, 511, 1},   {1, 512, 1},  {0, 3, 513}, {2, -1, 1},    {2, 4000, 20},
                 {1, 2000, 64}, {2, 0, 65},   {1, -1, 1},  {1, -1, 1}};
        snprintf(what, sizeof what, "%d/%d x %d, block %d: mixed", s.heads, s.kv_heads, s.head_dim,
                 s.block_tokens);
        c = make_call(d, mixed, 0, sms);
        check_reference(what, c);
        c.a.arch = 80;
        OK(cudaMemset(c.out, 0xff, c.out_bytes));
        strcat(what, ", few only");
        check_reference(what, c);
        free_call(c);
        free_data(d);
    }
    // Shapes and strides that the tensor cores do not take.
    for (shape s : {shape{6, 3, 96, 16}, shape{4, 2, 20, 10}, shape{5, 1, 256, 64}}) {
        data d = make_data(s, 3, 700, 9);
        call c = make_call(d, {{0, 0, 65}, {1, 511, 1}, {2, 640, 3}}, 0, sms);
        char what[128];
        snprintf(what, sizeof what, "%d/%d x %d, block %d: plain", s.heads, s.kv_heads, s.head_dim,
                 s.block_tokens);
        check_reference(what, c);
        free_call(c);
        free_data(d);
    }
    for (auto &s : shapes)
        if (only < 0 || &s == &shapes[only])
            check_bits(s, s.heads == 32 ? 1400 : 700);
}

// ---- bench

static double copy_gbs()
{
    size_t n = (size_t)2 << 30;
    char *x, *y;
    OK(cudaMalloc(&x, n));
    OK(cudaMalloc(&y, n));
    cudaEvent_t e[2];
    cudaEventCreate(&e[0]);
    cudaEventCreate(&e[1]);
    double best = 1e9;
    for (int i = 0; i < 6; i++) {
        OK(cudaEventRecord(e[0], stream));
        OK(cudaMemcpyAsync(y, x, n, cudaMemcpyDeviceToDevice, stream));
        OK(cudaEventRecord(e[1], stream));
        OK(cudaDeviceSynchronize());
        float ms;
        cudaEventElapsedTime(&ms, e[0], e[1]);
        best = std::min(best, (double)ms);
    }
    cudaFree(x);
    cudaFree(y);
    return 2 * (double)n / best / 1e6;
}

// Median time of one call, of graphs of `calls` launches.
static double time_calls(std::vector<struct cuda_gqa> &calls, int reps)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (auto &a : calls)
        OK(cuda_gqa(stream, &a));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t e[2];
    cudaEventCreate(&e[0]);
    cudaEventCreate(&e[1]);
    std::vector<float> times;
    for (int i = 0; i < reps + 2; i++) {
        OK(cudaEventRecord(e[0], stream));
        OK(cudaGraphLaunch(exec, stream));
        OK(cudaEventRecord(e[1], stream));
        OK(cudaEventSynchronize(e[1]));
        float ms;
        cudaEventElapsedTime(&ms, e[0], e[1]);
        if (i >= 2)
            times.push_back(ms);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2] * 1e3 / calls.size();
}

struct bench {
    bf16 *pool, *q, *out;
    void *scratch;
    size_t pool_bytes, q_bytes, scratch_bytes;
};

static bench open_bench(size_t pool_bytes)
{
    bench b = {};
    b.pool_bytes = pool_bytes;
    b.q_bytes = (size_t)256 << 20;
    b.scratch_bytes = (size_t)1 << 30;
    OK(cudaMalloc(&b.pool, b.pool_bytes));
    OK(cudaMalloc(&b.q, b.q_bytes));
    OK(cudaMalloc(&b.out, b.q_bytes));
    OK(cudaMalloc(&b.scratch, b.scratch_bytes));
    fill<<<1024, 256>>>(b.pool, b.pool_bytes / 2, 1, 1);
    fill<<<1024, 256>>>(b.q, b.q_bytes / 2, 2, 1);
    OK(cudaDeviceSynchronize());
    return b;
}

// Time in us of one call with `seqs` sequences of `rows` rows each that end at `keys`.
static double bench_case(bench &b, const shape &s, int seqs, int keys, int rows, int layers_max,
                         int use_sms)
{
    int stride = (keys + s.block_tokens - 1) / s.block_tokens, blocks = seqs * stride;
    size_t width = 2 * s.kv_heads * s.head_dim, layer = (size_t)blocks * s.block_tokens * width * 2;
    if (layer > b.pool_bytes)
        return NAN;
    int layers = (int)std::min<size_t>(layers_max, b.pool_bytes / layer), n = seqs * rows;
    std::vector<int32_t> tables(blocks), seq(n), pos(n);
    for (int i = 0; i < blocks; i++)
        tables[i] = i;
    for (int i = blocks - 1; i > 0; i--)
        std::swap(tables[i], tables[mix(i) % (i + 1)]);
    for (int i = 0; i < n; i++) {
        seq[i] = i / rows;
        pos[i] = keys - rows + i % rows;
    }
    int32_t *d;
    OK(cudaMalloc(&d, (size_t)(blocks + 2 * n) * 4));
    OK(cudaMemcpy(d, tables.data(), (size_t)blocks * 4, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(d + blocks, seq.data(), (size_t)n * 4, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(d + blocks + n, pos.data(), (size_t)n * 4, cudaMemcpyHostToDevice));
    std::vector<struct cuda_gqa> calls;
    for (int i = 0; i < layers; i++) {
        struct cuda_gqa a = {.n = n, .keys_max = keys, .run_max = rows};
        a.heads = s.heads;
        a.kv_heads = s.kv_heads;
        a.head_dim = s.head_dim;
        a.scale = 1 / sqrtf((float)s.head_dim);
        a.q_stride = a.out_stride = s.heads * s.head_dim;
        size_t q_bytes = n * a.q_stride * 2, q_slots = b.q_bytes / q_bytes;
        a.q = (char *)b.q + (i % q_slots) * q_bytes;
        a.out = (char *)b.out + (i % q_slots) * q_bytes;
        a.pool = (char *)b.pool + i * layer;
        a.blocks = blocks;
        a.block_tokens = s.block_tokens;
        a.tables = d;
        a.seq = d + blocks;
        a.pos = d + blocks + n;
        a.table_stride = stride;
        a.sms = use_sms;
        a.arch = arch;
        a.plan = b.scratch;
        a.scratch = (char *)b.scratch + (1 << 20);
        a.planned = i > 0;
        if (cuda_gqa_scratch_bytes(&a) + (1 << 20) > b.scratch_bytes) {
            printf("scratch of %zu MB\n", cuda_gqa_scratch_bytes(&a) >> 20);
            return NAN;
        }
        calls.push_back(a);
    }
    double us = time_calls(calls, layer * layers > ((size_t)8 << 30) ? 5 : 15);
    cudaFree(d);
    return us;
}

static void bench_decode(const char *csv)
{
    double copy = copy_gbs();
    bench b = open_bench((size_t)36 << 30);
    FILE *f = csv ? fopen(csv, "w") : NULL;
    if (f)
        fprintf(f, "case,batch,context,block_tokens,us,gb_per_s,copy_gb_per_s,share\n");
    printf("copy %.0f GB/s (read + write)\n", copy);
    printf("%-14s %6s", "shape", "batch");
    for (int keys : {1024, 8192, 32768})
        printf("  %7d: us  GB/s share", keys);
    printf("\n");
    struct {
        const char *name;
        shape s;
    } cases[] = {{"llama-8b", {32, 8, 128, 64}},  {"llama-8b/16", {32, 8, 128, 16}},
                 {"llama-70b", {64, 8, 128, 64}}, {"qwen-7b", {28, 4, 128, 64}},
                 {"qwen-1.5b", {12, 2, 128, 64}}, {"64 wide", {32, 8, 64, 64}}};
    for (auto &c : cases)
        for (int batch : {1, 8, 32, 64, 256}) {
            printf("%-14s %6d", c.name, batch);
            for (int keys : {1024, 8192, 32768}) {
                double us = bench_case(b, c.s, batch, keys, 1, 32, sms);
                double bytes = (double)batch * keys * 2 * c.s.kv_heads * c.s.head_dim * 2;
                printf("  %12.1f %5.0f  %3.0f%%", us, bytes / us / 1e3, bytes / us / copy / 10);
                if (f && us == us)
                    fprintf(f, "%s,%d,%d,%d,%.2f,%.0f,%.0f,%.3f\n", c.name, batch, keys,
                            c.s.block_tokens, us, bytes / us / 1e3, copy, bytes / us / copy / 1e3);
            }
            printf("\n");
        }
    if (f)
        fclose(f);
}

static void bench_prefill(const char *csv)
{
    bench b = open_bench((size_t)4 << 30);
    FILE *f = csv ? fopen(csv, "w") : NULL;
    if (f)
        fprintf(f, "case,sequences,rows,context,us,tflop_per_s\n");
    struct {
        const char *name;
        shape s;
    } cases[] = {{"llama-8b", {32, 8, 128, 64}},  {"llama-8b/16", {32, 8, 128, 16}},
                 {"llama-70b", {64, 8, 128, 64}}, {"qwen-7b", {28, 4, 128, 64}},
                 {"qwen-1.5b", {12, 2, 128, 64}}, {"64 wide", {32, 8, 64, 64}}};
    struct {
        int seqs, rows, keys;
    } sizes[] = {{1, 512, 512},    {1, 512, 8192},  {1, 2048, 2048}, {1, 4096, 4096},
                 {1, 4096, 16384}, {1, 8192, 8192}, {8, 512, 2048},  {64, 8, 4096}};
    for (auto &c : cases) {
        printf("%-12s", c.name);
        for (auto &z : sizes) {
            double us = bench_case(b, c.s, z.seqs, z.keys, z.rows, 4, sms);
            double pairs = (double)z.seqs *
                           ((double)z.rows * (z.keys - z.rows) + (double)z.rows * (z.rows + 1) / 2);
            double tflops = 4 * pairs * c.s.heads * c.s.head_dim / us / 1e6;
            printf("  %dx%d/%d: %.0f us %.0f", z.seqs, z.rows, z.keys, us, tflops);
            if (f)
                fprintf(f, "%s,%d,%d,%d,%.1f,%.0f\n", c.name, z.seqs, z.rows, z.keys, us, tflops);
        }
        printf("\n");
        fflush(stdout);
    }
    if (f)
        fclose(f);
}

int main(int argc, char **argv)
{
    cudaDeviceProp p;
    OK(cudaGetDeviceProperties(&p, 0));
    sms = p.multiProcessorCount;
    if (getenv("GQA_ARCH")) // 80: decode's kernel for everything
        arch = atoi(getenv("GQA_ARCH"));
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const char *what = argc > 1 ? argv[1] : "check", *csv = argc > 2 ? argv[2] : NULL;
    if (!strcmp(what, "check"))
        check(csv ? atoi(csv) : -1);
    else if (!strcmp(what, "decode"))
        bench_decode(csv);
    else if (!strcmp(what, "prefill"))
        bench_prefill(csv);
    else if (!strcmp(what, "one")) { // one size of prefill: for the profiler
        bench b = open_bench((size_t)1 << 30);
        printf("%.1f us\n", bench_case(b, {32, 8, 128, 64}, 1, 4096, 4096, 1, sms));
        printf("%.1f us\n", bench_case(b, {32, 8, 128, 64}, 1, 16384, 4096, 1, sms));
    }
    printf("%s: %d failures\n", what, failures);
    return failures > 0;
}
