// Laboratory of the dense many-row products in bf16: versions, check to the bit, bench beside
// cuBLASLt. Notes in README.md. Usage: mm_many [check | bench]; both without an argument.
#include "kernels/lab/mm_many_lab.cuh"

using hopper::BF16;
typedef cudaError_t run_fn(cudaStream_t, const struct cuda_matmul *, int group);
struct version {
    const char *name;
    run_fn *run;
    bool gated;
    int group;
};
// What the product takes.
static cudaError_t chosen(cudaStream_t s, const struct cuda_matmul *m, int)
{
    return cuda_matmul_many(s, m);
}
#define VERSION(bn, subs, st, cm, cn, gated, group)                                         \
    {#bn "x" #subs "x" #st " " #cm "x" #cn " " #group,                                  \
     many::matmul_by<many::config<BF16, bn, subs, st, cm, cn, gated, false>>, gated, group}
static const version versions[] = {
    VERSION(256, 1, 4, 2, 1, false, 8), VERSION(256, 1, 4, 1, 2, false, 8), VERSION(192, 1, 4, 2, 1, false, 8),
    VERSION(128, 1, 6, 2, 1, false, 8), VERSION(128, 1, 6, 1, 2, false, 8), VERSION(64, 2, 4, 1, 1, false, 8),
    VERSION(64, 2, 4, 2, 1, false, 8),  VERSION(32, 2, 4, 1, 1, false, 8),  VERSION(256, 1, 4, 2, 1, true, 8),
    VERSION(256, 1, 4, 1, 2, true, 8),  VERSION(128, 1, 6, 1, 2, true, 8),  VERSION(64, 2, 4, 1, 1, true, 8),
    {"chosen", chosen, false, 0},       {"chosen", chosen, true, 0},
};

// add: 1 another matrix, 2 what out holds.
static void check(int n, int rows, int cols, bool gated, bool bf16, bool bias, int add, int heads)
{
    const size_t ld = (cols + 63) / 64 * 64, x_head = (cols + 7) / 8 * 8, x_ld = heads * x_head;
    const size_t out_ld = heads * (size_t)rows + (rows % 8 ? 1 : 8), out_rows = n + 3;
    const int stack = heads * (gated ? 2 : 1);
    uint16_t *w = alloc<uint16_t>(stack * rows * ld), *x = alloc<uint16_t>(n * x_ld);
    fill<<<512, 256>>>((__nv_bfloat16 *)w, stack * (size_t)rows, cols, ld, rand(), 0.05f);
    fill<<<512, 256>>>((__nv_bfloat16 *)x, n, x_ld, x_ld, rand(), 1.0f);
    float *b = alloc<float>(2 * rows), *ad = alloc<float>(out_rows * out_ld);
    fill<<<64, 256>>>(b, 1, 2 * rows, 2 * rows, rand(), 1.0f);
    fill<<<64, 256>>>(ad, out_rows, out_ld, out_ld, rand(), 1.0f);
    float *sums = alloc<float>((size_t)n * rows * 2);
    void *out = alloc<char>(out_rows * out_ld * 4);
    for (const version &v : versions) {
        if (v.gated != gated)
            continue;
        struct cuda_matmul m = {};
        m.w = {w, CUDA_W_BF16, heads, rows, cols, ld, rows * ld * 2};
        m.w_up = gated ? w + rows * ld : NULL;
        m.x = x, m.x_ld = x_ld, m.x_head = x_head;
        m.out = out, m.out_bf16 = bf16, m.out_ld = out_ld, m.out_head = rows;
        m.bias = bias ? b : NULL, m.bias_up = bias ? b + rows : NULL;
        m.add = add == 2 ? (float *)out : add ? ad : NULL, m.add_ld = out_ld;
        m.n = n, m.heads = heads;
        CHECK(cudaMemset(out, 0xff, out_rows * out_ld * (bf16 ? 2 : 4)));
        if (add == 2)
            CHECK(cudaMemcpy2D(out, out_ld * 4, ad, out_ld * 4, rows * 4, n, cudaMemcpyDeviceToDevice));
        CHECK(v.run(0, &m, v.group));
        CHECK(cudaDeviceSynchronize());
        char what[100];
        snprintf(what, sizeof what, "n %d rows %d cols %d%s%s%s%s heads %d", n, rows, cols, gated ? " gated" : "",
                 bf16 ? " bf16" : " f32", bias ? " bias" : "", add == 2 ? " in place" : add ? " add" : "", heads);
        for (int h = 0; h < heads; h++) {
            for (int u = 0; u < (gated ? 2 : 1); u++)
                reference(CUDA_W_BF16, {w + (h + u) * rows * ld, x, NULL, NULL, NULL, NULL, ld, 0, x_ld, 0, 0, 0, 0, n, rows, cols,
                                        h * (int)x_head, sums + (size_t)u * n * rows});
            finish f = {sums, gated ? sums + (size_t)n * rows : NULL, m.bias, m.bias_up, add ? ad : NULL, n, rows,
                        (char *)out + (size_t)h * rows * (bf16 ? 2 : 4), out_ld, out_ld, bf16};
            if (heads > 1) // the other heads' columns are not poison: look at this head's only
                f.out_ld = out_ld;
            if (heads == 1)
                verdict(what, v.name, f, out_rows);
            else {
                std::vector<float> want((size_t)n * rows), got(out_rows * out_ld);
                CHECK(cudaMemcpy(want.data(), sums, want.size() * 4, cudaMemcpyDeviceToHost));
                CHECK(cudaMemcpy(got.data(), out, got.size() * 4, cudaMemcpyDeviceToHost));
                size_t bad = 0;
                for (int i = 0; i < n; i++)
                    for (int r = 0; r < rows; r++)
                        bad += memcmp(&want[(size_t)i * rows + r], &got[i * out_ld + h * rows + r], 4) != 0;
                if (bad)
                    failures++, printf("WRONG %s %s head %d: %zu differ\n", v.name, what, h, bad);
            }
        }
    }
    cudaFree(w), cudaFree(x), cudaFree(b), cudaFree(ad), cudaFree(sums), cudaFree(out);
}

static double copy_rate, peak;

static void bench(int n, int rows, int cols, bool gated, bool bf16, bool add)
{
    const size_t ld = (cols + 63) / 64 * 64;
    const int all = gated ? 2 * rows : rows;
    const double flop = 2.0 * n * all * cols;
    const double bytes = 2.0 * all * cols + 2.0 * n * cols + (bf16 ? 2.0 : add ? 8.0 : 4.0) * n * rows;
    const int sets = std::max(2, std::min(16, (int)(150e6 / (2.0 * all * cols + 2.0 * n * cols)) + 1));
    std::vector<const void *> w, x;
    for (int i = 0; i < sets; i++) {
        uint16_t *a = alloc<uint16_t>(all * ld), *b = alloc<uint16_t>(n * ld);
        fill<<<1024, 256>>>((__nv_bfloat16 *)a, all, cols, ld, rand(), 0.05f);
        fill<<<1024, 256>>>((__nv_bfloat16 *)b, n, cols, ld, rand(), 1.0f);
        w.push_back(a), x.push_back(b);
    }
    void *out = alloc<float>((size_t)n * all);
    CHECK(cudaMemset(out, 0, (size_t)n * all * 4));
    const int times = std::max(4, std::min(40, (int)(3e12 / flop)));
    const float blas = blas_us({CUDA_R_16BF, bf16 ? CUDA_R_16BF : CUDA_R_32F, n, all, cols, ld, ld, false, false, false, w, x, out, NULL}, times);
    const float split = n <= 512 ? blas_us({CUDA_R_16BF, bf16 ? CUDA_R_16BF : CUDA_R_32F, n, all, cols, ld, ld, false, false, true, w, x, out, NULL}, times) : blas;
    const double limit = std::max(flop / peak * 1e-6, bytes / copy_rate * 1e-3);
    printf("n %4d rows %5d cols %5d%s%s%s: limit %.1f us, cuBLASLt %.1f us (%.0f TFLOP/s, %.0f%%)", n, rows, cols,
           gated ? " gated" : "", bf16 ? "" : " f32", add ? " add" : "", limit, blas, flop / blas * 1e-6, 100 * limit / blas);
    if (split < blas * 0.97)
        printf(", split-K %.1f us", split);
    printf("\n   ");
    for (const version &v : versions) {
        if (v.gated != gated)
            continue;
        auto run = [&](int i) {
            struct cuda_matmul m = {};
            m.w = {w[i % sets], CUDA_W_BF16, 1, rows, cols, ld, 0};
            m.w_up = gated ? (const uint16_t *)w[i % sets] + rows * ld : NULL;
            m.x = (const uint16_t *)x[i % sets], m.x_ld = ld;
            m.out = out, m.out_bf16 = bf16, m.out_ld = rows;
            m.add = add ? (float *)out : NULL, m.add_ld = rows;
            m.n = n, m.heads = 1;
            CHECK(v.run(0, &m, v.group));
        };
        const float us = time_us(run, times);
        printf(" %s: %.1f us %.0f%%/%.0f%%;", v.name, us, 100 * limit / us, 100 * blas / us);
    }
    printf("\n");
    for (int i = 0; i < sets; i++)
        cudaFree((void *)w[i]), cudaFree((void *)x[i]);
    cudaFree(out);
}

int main(int argc, char **argv)
{
    setbuf(stdout, NULL);
    const char *only = argc > 1 ? argv[1] : "";
    if (strcmp(only, "bench") != 0) {
        check(128, 256, 64, false, false, false, false, 1);
        check(256, 512, 1024, false, true, false, false, 1);
        check(65, 1000, 1408, false, false, true, true, 1);
        check(100, 576, 1536, false, true, true, false, 1);
        check(257, 333, 10944, false, false, false, true, 1);
        check(300, 2112, 712, false, true, false, false, 1);
        check(300, 1000, 1408, false, false, true, 2, 1);
        check(129, 2048, 512, false, false, false, 2, 1);
        check(1, 8, 8, false, false, false, false, 1);
        check(700, 1111, 520, false, false, false, false, 1);
        check(130, 512, 128, false, false, false, false, 5);
        check(65, 128, 512, false, false, false, false, 3);
        check(129, 1408, 2048, true, true, false, false, 1);
        check(300, 1000, 1544, true, true, true, false, 1);
        printf("check: %d failures\n", failures);
    }
    if (strcmp(only, "check") != 0) {
        copy_rate = copy_gbs();
        {
            const int n = 8192;
            uint16_t *a = alloc<uint16_t>((size_t)n * n), *b = alloc<uint16_t>((size_t)n * n), *c = alloc<uint16_t>((size_t)n * n);
            fill<<<1024, 256>>>((__nv_bfloat16 *)a, n, n, n, 1, 0.05f);
            fill<<<1024, 256>>>((__nv_bfloat16 *)b, n, n, n, 2, 1.0f);
            const float us = blas_us({CUDA_R_16BF, CUDA_R_16BF, n, n, n, (size_t)n, (size_t)n, false, false, false, {a}, {b}, c, NULL}, 4);
            const float u4 = blas_us({CUDA_R_16BF, CUDA_R_16BF, 4096, 4096, 4096, 4096, 4096, false, false, false, {a, a + (1 << 25)}, {b, b + (1 << 25)}, c, NULL}, 16);
            peak = std::max(2e-6 * n * n * n / us, 2e-6 * 4096 * 4096 * 4096 / u4);
            cudaFree(a), cudaFree(b), cudaFree(c);
        }
        printf("copy %.0f GB/s, peak (cuBLASLt) %.0f TFLOP/s; per version: us, share of the limit / of cuBLASLt\n", copy_rate, peak);
        bench(4096, 4096, 4096, false, true, false);   // Llama-8B q, o
        bench(4096, 6144, 4096, false, true, false);   // qkv
        bench(4096, 4096, 14336, false, false, true);  // down, residual
        bench(4096, 14336, 4096, true, true, false);   // gate-up
        bench(4096, 3072, 2048, false, true, false);   // V2-Lite q
        bench(4096, 576, 2048, false, true, false);    // V2-Lite kv_a
        bench(4096, 2048, 2048, false, false, true);   // V2-Lite o
        bench(4096, 10944, 2048, true, true, false);   // V2-Lite dense layer
        bench(4096, 2048, 10944, false, false, true);
        bench(4096, 2816, 2048, true, true, false);    // V2-Lite shared experts
        bench(1024, 4096, 4096, false, true, false);
        for (int n : {128, 256}) {
            bench(n, 6144, 4096, false, true, false);
            bench(n, 4096, 4096, false, false, true);
            bench(n, 14336, 4096, true, true, false);
            bench(n, 4096, 14336, false, false, true);
            bench(n, 3072, 2048, false, true, false);
            bench(n, 2048, 2048, false, false, true);
        }
    }
    return failures != 0;
}
