// Laboratory of the dense many-row products in fp8 (scales per 1 x 128 of x and 128 x 128 of W) and
// int8: versions, check to the bit, bench beside cuBLASLt. Notes in README.md.
// Usage: mm_many_fp8 [check | bench].
#include "kernels/lab/mm_many_lab.cuh"

using hopper::E4M3;
using hopper::S8;
typedef cudaError_t run_fn(cudaStream_t, const struct cuda_matmul *, int group);
struct version {
    const char *name;
    enum cuda_wtype type;
    run_fn *run;
    bool gated;
    int group;
};
// What the product takes.
static cudaError_t chosen(cudaStream_t s, const struct cuda_matmul *m, int)
{
    return cuda_matmul_many(s, m);
}
#define VERSION(kind, type, bn, st, cm, cn, gated, group)                                   \
    {#kind " " #bn "x" #st " " #cm "x" #cn " " #group, type,                            \
     many::matmul_by<many::config<kind, bn, 1, st, cm, cn, gated, false>>, gated, group}
static const version versions[] = {
    VERSION(E4M3, CUDA_W_FP8, 128, 6, 1, 1, false, 8), VERSION(E4M3, CUDA_W_FP8, 128, 6, 2, 1, false, 8),
    VERSION(E4M3, CUDA_W_FP8, 128, 6, 1, 2, false, 8), VERSION(E4M3, CUDA_W_FP8, 64, 7, 1, 1, false, 8),
    VERSION(E4M3, CUDA_W_FP8, 128, 6, 1, 1, true, 8),  VERSION(E4M3, CUDA_W_FP8, 128, 6, 2, 1, true, 8),
    VERSION(S8, CUDA_W_INT8, 128, 6, 2, 1, false, 8),  VERSION(S8, CUDA_W_INT8, 192, 4, 2, 1, false, 8),
    VERSION(S8, CUDA_W_INT8, 128, 6, 2, 1, true, 8),
    {"chosen", CUDA_W_FP8, chosen, false, 0}, {"chosen", CUDA_W_FP8, chosen, true, 0},
    {"chosen", CUDA_W_INT8, chosen, false, 0}, {"chosen", CUDA_W_INT8, chosen, true, 0},
};

struct operand {
    void *p;
    float *scales;
    size_t ld, scales_ld, rows;
};
static operand make(enum cuda_wtype t, bool weight, size_t rows, int cols)
{
    operand o = {};
    o.rows = rows;
    o.ld = (cols + 127) / 128 * 128;
    uint8_t *p = alloc<uint8_t>(rows * o.ld);
    if (t == CUDA_W_FP8)
        fill<<<1024, 256>>>(p, rows, cols, o.ld, rand(), 1.0f);
    else
        fill<<<1024, 256>>>((int8_t *)p, rows, cols, o.ld, rand(), 1.0f);
    o.p = p;
    o.scales_ld = t == CUDA_W_FP8 ? (o.ld / 128 + 3) / 4 * 4 : 1;
    const size_t n = (t == CUDA_W_FP8 && weight ? (rows + 127) / 128 : rows) * o.scales_ld;
    o.scales = alloc<float>(n);
    fill_scales<<<64, 256>>>(o.scales, n, rand());
    return o;
}
static struct cuda_matmul args_of(enum cuda_wtype t, const operand &w, const operand *up, const operand &x, int n, int rows, int cols)
{
    struct cuda_matmul m = {};
    m.w = {w.p, t, 1, rows, cols, w.ld, 0, w.scales, w.scales_ld, 0};
    if (up)
        m.w_up = up->p, m.scales_up = up->scales;
    m.xq = x.p, m.xq_ld = x.ld, m.xs = x.scales, m.xs_ld = x.scales_ld;
    m.n = n, m.heads = 1;
    return m;
}

static void check(enum cuda_wtype t, int n, int rows, int cols, bool gated, bool bf16, bool bias, bool add)
{
    operand w = make(t, true, rows, cols), u = make(t, true, rows, cols), x = make(t, false, n, cols);
    const size_t out_ld = rows + 8 - rows % 2, out_rows = n + 3;
    void *out = alloc<char>(out_rows * out_ld * 4);
    float *b = alloc<float>(2 * rows), *ad = alloc<float>(out_rows * out_ld), *sums = alloc<float>((size_t)n * rows * 2);
    fill<<<64, 256>>>(b, 1, 2 * rows, 2 * rows, rand(), 1.0f);
    fill<<<64, 256>>>(ad, out_rows, out_ld, out_ld, rand(), 1.0f);
    for (int i = 0; i < (gated ? 2 : 1); i++) {
        const operand &m = i ? u : w;
        reference(t, {m.p, x.p, m.scales, x.scales, NULL, NULL, m.ld, 0, x.ld, m.scales_ld, 0, x.scales_ld, 0, n, rows, cols, 0, sums + (size_t)i * n * rows});
    }
    for (const version &v : versions) {
        if (v.type != t || v.gated != gated)
            continue;
        struct cuda_matmul m = args_of(t, w, gated ? &u : NULL, x, n, rows, cols);
        m.out = out, m.out_bf16 = bf16, m.out_ld = out_ld;
        m.bias = bias ? b : NULL, m.bias_up = bias ? b + rows : NULL;
        m.add = add ? ad : NULL, m.add_ld = out_ld;
        CHECK(cudaMemset(out, 0xff, out_rows * out_ld * (bf16 ? 2 : 4)));
        CHECK(v.run(0, &m, v.group));
        char what[100];
        snprintf(what, sizeof what, "n %d rows %d cols %d%s%s%s%s", n, rows, cols, gated ? " gated" : "", bf16 ? " bf16" : " f32",
                 bias ? " bias" : "", add ? " add" : "");
        verdict(what, v.name, {sums, gated ? sums + (size_t)n * rows : NULL, m.bias, m.bias_up, m.add, n, rows, out, out_ld, out_ld, bf16}, out_rows);
    }
    for (operand *o : {&w, &u, &x})
        cudaFree(o->p), cudaFree(o->scales);
    cudaFree(out), cudaFree(b), cudaFree(ad), cudaFree(sums);
}

static double copy_rate, peak;

static void bench(enum cuda_wtype t, int n, int rows, int cols, bool gated, bool bf16)
{
    const int all = gated ? 2 * rows : rows;
    const double flop = 2.0 * n * all * cols, bytes = (double)all * cols + (double)n * cols + (bf16 ? 2.0 : 4.0) * n * rows;
    const int sets = std::max(2, std::min(16, (int)(150e6 / ((double)all * cols + n * cols)) + 1));
    std::vector<operand> w, x;
    std::vector<const void *> wp, xp;
    for (int i = 0; i < sets; i++) {
        w.push_back(make(t, true, all, cols)), x.push_back(make(t, false, n, cols));
        wp.push_back(w[i].p), xp.push_back(x[i].p);
    }
    void *out = alloc<float>((size_t)n * all);
    const int times = std::max(4, std::min(40, (int)(5e12 / flop)));
    const double limit = std::max(flop / peak * 1e-6, bytes / copy_rate * 1e-3);
    float *big = alloc<float>(4 << 20);
    fill_scales<<<64, 256>>>(big, 4 << 20, 1);
    const size_t ld = w[0].ld;
    float blas = 0, tensor = 0;
    if (t == CUDA_W_FP8) {
        blas = blas_us({CUDA_R_8F_E4M3, CUDA_R_16BF, n, all, cols, ld, ld, true, false, false, wp, xp, out, big}, times);
        tensor = blas_us({CUDA_R_8F_E4M3, CUDA_R_16BF, n, all, cols, ld, ld, false, true, false, wp, xp, out, big}, times);
    }
    printf("%s n %4d rows %5d cols %5d%s%s: limit %.1f us; cuBLASLt 1x128 %.1f us (%.0f TFLOP/s), per tensor %.1f us (%.0f)\n   ", t == CUDA_W_FP8 ? "fp8" : "int8",
           n, rows, cols, gated ? " gated" : "", bf16 ? "" : " f32", limit, blas, flop / blas * 1e-6, tensor, flop / tensor * 1e-6);
    for (const version &v : versions) {
        if (v.type != t || v.gated != gated)
            continue;
        auto run = [&](int i) {
            operand up = w[i % sets];
            up.p = (uint8_t *)up.p + rows * ld, up.scales += rows / 128 * up.scales_ld;
            struct cuda_matmul m = args_of(t, w[i % sets], gated ? &up : NULL, x[i % sets], n, rows, cols);
            m.out = out, m.out_bf16 = bf16, m.out_ld = rows;
            CHECK(v.run(0, &m, v.group));
        };
        const float us = time_us(run, times);
        printf(" %s: %.1f us %.0f %.0f%%;", v.name, us, flop / us * 1e-6, 100 * limit / us);
    }
    printf("\n");
    for (int i = 0; i < sets; i++)
        cudaFree(w[i].p), cudaFree(x[i].p), cudaFree(w[i].scales), cudaFree(x[i].scales);
    cudaFree(out), cudaFree(big);
}

int main(int argc, char **argv)
{
    setbuf(stdout, NULL);
    const char *only = argc > 1 ? argv[1] : "";
    if (strcmp(only, "bench") != 0) {
        for (enum cuda_wtype t : {CUDA_W_FP8, CUDA_W_INT8}) {
            check(t, 128, 256, 128, false, false, false, false);
            check(t, 256, 512, 1024, false, true, false, false);
            check(t, 65, 1000, 1408, false, false, true, true);
            check(t, 100, 576, 1536, false, true, true, false);
            check(t, 257, 333, 10944, false, false, false, true);
            check(t, 300, 2112, 720, false, true, false, false);
            check(t, 129, 1408, 2048, true, true, false, false);
            check(t, 300, 1000, 1552, true, true, true, false);
        }
        printf("check: %d failures\n", failures);
    }
    if (strcmp(only, "check") != 0) {
        copy_rate = copy_gbs();
        const int n = 4096;
        char *a = alloc<char>(n * n * 4), *b = alloc<char>(n * n * 4), *c = alloc<char>(n * n * 4);
        float *one = alloc<float>(1 << 20);
        fill_scales<<<64, 256>>>(one, 1 << 20, 1);
        fill<<<1024, 256>>>((uint8_t *)a, 4 * n, n, n, 1, 1.0f);
        fill<<<1024, 256>>>((uint8_t *)b, 4 * n, n, n, 2, 1.0f);
        const size_t half = (size_t)n * n * 2;
        peak = 2e-6 * n * n * n / blas_us({CUDA_R_8F_E4M3, CUDA_R_16BF, n, n, n, n, n, false, true, false, {a, a + half}, {b, b + half}, c, one}, 16);
        cudaFree(a), cudaFree(b), cudaFree(c), cudaFree(one);
        printf("copy %.0f GB/s, fp8 peak (cuBLASLt per tensor, fast accumulation) %.0f TFLOP/s; per version: us, TFLOP/s, share of limit\n", copy_rate, peak);
        bench(CUDA_W_FP8, 4096, 2112, 7168, false, true);
        bench(CUDA_W_FP8, 4096, 24576, 1536, false, true);
        bench(CUDA_W_FP8, 4096, 7168, 16384, false, false);
        bench(CUDA_W_FP8, 4096, 7168, 2048, false, false);
        bench(CUDA_W_FP8, 4096, 4096, 7168, false, true);
        bench(CUDA_W_FP8, 4096, 18432, 7168, true, true);
        bench(CUDA_W_FP8, 4096, 7168, 18432, false, false);
        bench(CUDA_W_FP8, 4096, 4096, 4096, false, true);
        bench(CUDA_W_FP8, 4096, 2048, 7168, true, true);
        for (int m : {128, 256}) {
            bench(CUDA_W_FP8, m, 2112, 7168, false, true);
            bench(CUDA_W_FP8, m, 24576, 1536, false, true);
            bench(CUDA_W_FP8, m, 7168, 16384, false, false);
        }
        bench(CUDA_W_INT8, 4096, 4096, 4096, false, true);
    }
    return failures != 0;
}
