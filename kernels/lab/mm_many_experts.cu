// Laboratory of the products by expert with many rows each, bf16 and fp8: versions, check to the bit
// against one row at a time, bench against the peak of cuBLASLt. Notes in README.md.
// Usage: mm_many_experts [check | bench].
#include "kernels/lab/mm_many_lab.cuh"

using hopper::BF16;
using hopper::E4M3;
struct version {
    const char *name;
    enum cuda_wtype type;
    decltype(&many::experts_gate_up<many::config<BF16, 128, 1, 6, 1, 1, true, true>>) gate_up;
    decltype(&many::experts_down<many::config<BF16, 128, 1, 6, 1, 1, false, true>>) down;
};
#define VERSION(kind, type, bn, st, cm)                                                     \
    {                                                                                              \
        #kind " " #bn "x" #st " " #cm "x1", type,                                   \
            many::experts_gate_up<many::config<kind, bn, 1, st, cm, 1, true, true>>,               \
            many::experts_down<many::config<kind, bn, 1, st, cm, 1, false, true>>                  \
    }
static const version versions[] = {
    VERSION(BF16, CUDA_W_BF16, 256, 4, 1), VERSION(BF16, CUDA_W_BF16, 256, 4, 2), VERSION(E4M3, CUDA_W_FP8, 128, 6, 1),
    {"chosen", CUDA_W_BF16, cuda_experts_gate_up_many, cuda_experts_down_many},
    {"chosen", CUDA_W_INT8, cuda_experts_gate_up_many, cuda_experts_down_many},
    {"chosen", CUDA_W_FP8, cuda_experts_gate_up_many, cuda_experts_down_many},
};

// n tokens with topk of `experts` each; `even`: experts get almost equal numbers, else very unequal.
struct plan {
    std::vector<int32_t> first, pairs, ids;
    int32_t *d_first, *d_pairs, *d_ids, *d_token, *d_pair;
};
static plan make_plan(int n, int topk, int experts, int always, bool even)
{
    plan p;
    const int k = topk + always, all = experts + always;
    p.ids.resize(n * k);
    std::vector<std::vector<int32_t>> of(all);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < k; j++) {
            int e;
            bool again;
            do {
                e = j >= topk ? experts + j - topk : even ? (rand() >> 4) % experts : (int)(experts * pow(rand() / (double)RAND_MAX, 3)) % experts;
                again = false;
                for (int q = 0; q < j; q++)
                    again |= p.ids[i * k + q] == e;
            } while (again);
            p.ids[i * k + j] = e;
            of[e].push_back(i * k + j);
        }
    p.first.push_back(0);
    for (auto &v : of) {
        p.pairs.insert(p.pairs.end(), v.begin(), v.end());
        p.first.push_back((int)p.pairs.size());
    }
    std::vector<int32_t> token(n * k), pair(n * k);
    for (int i = 0; i < n * k; i++)
        token[i] = i / k, pair[i] = i;
    auto up = [](const std::vector<int32_t> &v) {
        int32_t *d = alloc<int32_t>(v.size());
        CHECK(cudaMemcpy(d, v.data(), v.size() * 4, cudaMemcpyHostToDevice));
        return d;
    };
    p.d_first = up(p.first), p.d_pairs = up(p.pairs), p.d_ids = up(p.ids), p.d_token = up(token), p.d_pair = up(pair);
    return p;
}
static void drop(plan &p)
{
    cudaFree(p.d_first), cudaFree(p.d_pairs), cudaFree(p.d_ids), cudaFree(p.d_token), cudaFree(p.d_pair);
}

// Matrices [experts][rows][cols] with scales.
struct weights {
    void *w;
    float *scales;
    struct cuda_matrix m;
};
static weights make_weights(enum cuda_wtype t, int stack, int rows, int cols)
{
    weights v = {};
    const size_t size = t == CUDA_W_BF16 ? 2 : 1, unit = 128 / size, ld = (cols + unit - 1) / unit * unit;
    v.w = alloc<char>(stack * rows * ld * size);
    if (t == CUDA_W_BF16)
        fill<<<1024, 256>>>((__nv_bfloat16 *)v.w, (size_t)stack * rows, cols, ld, rand(), 0.05f);
    else if (t == CUDA_W_FP8)
        fill<<<1024, 256>>>((uint8_t *)v.w, (size_t)stack * rows, cols, ld, rand(), 1.0f);
    else
        fill<<<1024, 256>>>((int8_t *)v.w, (size_t)stack * rows, cols, ld, rand(), 1.0f);
    v.m = {v.w, t, stack, rows, cols, ld, rows * ld * size};
    if (t != CUDA_W_BF16) {
        v.m.scales_ld = t == CUDA_W_FP8 ? ((cols + 127) / 128 + 3) / 4 * 4 : 1;
        v.m.stack_scales = (t == CUDA_W_FP8 ? (rows + 127) / 128 : rows) * v.m.scales_ld;
        v.scales = alloc<float>(stack * v.m.stack_scales);
        fill_scales<<<64, 256>>>(v.scales, stack * v.m.stack_scales, rand());
        v.m.scales = v.scales;
    }
    return v;
}
static weights make_rows(enum cuda_wtype t, int n, int cols)
{
    weights v = make_weights(t, 1, n, cols);
    if (t == CUDA_W_FP8) { // scales per row
        cudaFree(v.scales);
        v.scales = alloc<float>(n * v.m.scales_ld);
        fill_scales<<<64, 256>>>(v.scales, n * v.m.scales_ld, rand());
    }
    return v;
}
static void drop(weights &v)
{
    cudaFree(v.w), cudaFree(v.scales);
}

static struct cuda_experts_gate_up gate_up_args(const plan &p, int n, int topk, int experts, int always, const weights &g,
                                                const weights &u, const weights &x, void *out)
{
    struct cuda_experts_gate_up a = {};
    a.e = {n, topk, experts, always, p.d_ids};
    a.w = g.m, a.w_up = u.w, a.scales_up = u.scales;
    a.x = (uint16_t *)x.w, a.x_ld = x.m.ld, a.xq = x.w, a.xq_ld = x.m.ld, a.xs = x.scales, a.xs_ld = x.m.scales_ld;
    a.out = (uint16_t *)out, a.out_ld = (g.m.rows + 7) / 8 * 8;
    return a;
}
static struct cuda_experts_down down_args(const plan &p, int n, int topk, int experts, int always, const weights &w,
                                          const weights &h, float *products)
{
    struct cuda_experts_down a = {};
    a.e = {n, topk, experts, always, p.d_ids};
    a.w = w.m;
    a.h = (uint16_t *)h.w, a.h_ld = h.m.ld, a.hq = h.w, a.hq_ld = h.m.ld, a.hs = h.scales, a.hs_ld = h.m.scales_ld;
    a.products = products;
    return a;
}

static void check(enum cuda_wtype t, int n, int topk, int experts, int always, int inter, int hidden, bool even)
{
    plan p = make_plan(n, topk, experts, always, even);
    const int all = experts + always, k = topk + always, pairs = n * k;
    weights g = make_weights(t, all, inter, hidden), u = make_weights(t, all, inter, hidden),
            d = make_weights(t, all, hidden, inter), x = make_rows(t, n, hidden), h = make_rows(t, pairs, inter);
    const size_t out_ld = (inter + 7) / 8 * 8;
    void *out = alloc<char>(pairs * out_ld * 2);
    float *products = alloc<float>((size_t)pairs * hidden), *sums = alloc<float>((size_t)pairs * std::max(2 * inter, hidden));
    const struct cuda_experts_rows rows = {p.d_first, p.d_pairs};
    char what[100];
    snprintf(what, sizeof what, "n %d topk %d of %d + %d, %d x %d%s", n, topk, experts, always, inter, hidden, even ? "" : " uneven");
    for (const version &v : versions) {
        if (v.type != t)
            continue;
        CHECK(cudaMemset(out, 0xff, pairs * out_ld * 2));
        CHECK(cudaMemset(products, 0xff, (size_t)pairs * hidden * 4));
        struct cuda_experts_gate_up ga = gate_up_args(p, n, topk, experts, always, g, u, x, out);
        struct cuda_experts_down da = down_args(p, n, topk, experts, always, d, h, products);
        CHECK(v.gate_up(0, &ga, &rows));
        CHECK(v.down(0, &da, &rows));
        CHECK(cudaDeviceSynchronize());
        for (int i = 0; i < 2; i++) {
            const weights &m = i ? u : g;
            reference(t, {m.w, x.w, m.scales, x.scales, p.d_token, p.d_ids, m.m.ld, inter * m.m.ld, x.m.ld, m.m.scales_ld,
                          m.m.stack_scales, x.m.scales_ld, 0, pairs, inter, hidden, 0, sums + (size_t)i * pairs * inter});
        }
        finish f = {sums, sums + (size_t)pairs * inter, NULL, NULL, NULL, pairs, inter, out, out_ld, 0, true};
        verdict((std::string("gate_up ") + what).c_str(), v.name, f, pairs);
        reference(t, {d.w, h.w, d.scales, h.scales, p.d_pair, p.d_ids, d.m.ld, hidden * d.m.ld, h.m.ld, d.m.scales_ld,
                      d.m.stack_scales, h.m.scales_ld, 0, pairs, hidden, inter, 0, sums});
        f = {sums, NULL, NULL, NULL, NULL, pairs, hidden, products, (size_t)hidden, 0, false};
        verdict((std::string("down ") + what).c_str(), v.name, f, pairs);
    }
    drop(p), drop(g), drop(u), drop(d), drop(x), drop(h);
    cudaFree(out), cudaFree(products), cudaFree(sums);
}

static double copy_rate, peaks[2];

static void bench(enum cuda_wtype t, int n, int topk, int experts, int always, int inter, int hidden, bool even)
{
    plan p = make_plan(n, topk, experts, always, even);
    const int all = experts + always, k = topk + always, pairs = n * k;
    weights g = make_weights(t, all, inter, hidden), u = make_weights(t, all, inter, hidden),
            d = make_weights(t, all, hidden, inter), x = make_rows(t, n, hidden), h = make_rows(t, pairs, inter);
    void *out = alloc<char>((size_t)pairs * inter * 2);
    float *products = alloc<float>((size_t)pairs * hidden);
    const struct cuda_experts_rows rows = {p.d_first, p.d_pairs};
    const double size = t == CUDA_W_BF16 ? 2 : 1, peak = peaks[t], flop = 2.0 * pairs * inter * hidden;
    const double gb = size * all * 2 * inter * hidden + size * n * hidden + 2.0 * pairs * inter;
    const double db = size * all * inter * hidden + size * pairs * inter + 4.0 * pairs * hidden;
    const double gl = std::max(2 * flop / peak * 1e-6, gb / copy_rate * 1e-3), dl = std::max(flop / peak * 1e-6, db / copy_rate * 1e-3);
    printf("%s %d tokens, %d of %d + %d, %d x %d%s, %d rows each: limits %.0f, %.0f us\n   ", t == CUDA_W_BF16 ? "bf16" : "fp8", n, topk,
           experts, always, inter, hidden, even ? "" : " uneven", pairs / all, gl, dl);
    for (const version &v : versions) {
        if (v.type != t)
            continue;
        struct cuda_experts_gate_up ga = gate_up_args(p, n, topk, experts, always, g, u, x, out);
        struct cuda_experts_down da = down_args(p, n, topk, experts, always, d, h, products);
        const int times = std::max(3, (int)(5e12 / flop / 4));
        const float a = time_us([&](int) { CHECK(v.gate_up(0, &ga, &rows)); }, std::min(times, 20));
        const float b = time_us([&](int) { CHECK(v.down(0, &da, &rows)); }, std::min(times, 20));
        printf(" %s: %.0f us %.0f%%, %.0f us %.0f%%;", v.name, a, 100 * gl / a, b, 100 * dl / b);
    }
    printf("\n");
    drop(p), drop(g), drop(u), drop(d), drop(x), drop(h);
    cudaFree(out), cudaFree(products);
}

int main(int argc, char **argv)
{
    setbuf(stdout, NULL);
    const char *only = argc > 1 ? argv[1] : "";
    if (strcmp(only, "bench") != 0) {
        for (enum cuda_wtype t : {CUDA_W_BF16, CUDA_W_FP8, CUDA_W_INT8}) {
            check(t, 300, 2, 5, 0, 256, 512, true);
            check(t, 257, 6, 64, 2, 128, 256, false);
            check(t, 100, 3, 7, 1, t == CUDA_W_FP8 ? 256 : 200, 1408, true);
            check(t, 700, 8, 256, 0, 128, 264, false);
            check(t, 1, 1, 4, 0, 64, 128, true);
        }
        printf("check: %d failures\n", failures);
    }
    if (strcmp(only, "check") != 0) {
        copy_rate = copy_gbs();
        const int n = 4096;
        char *a = alloc<char>(n * n * 4), *b = alloc<char>(n * n * 4), *c = alloc<char>(n * n * 4);
        float *one = alloc<float>(1 << 20);
        fill_scales<<<64, 256>>>(one, 1 << 20, 1);
        fill<<<1024, 256>>>((__nv_bfloat16 *)a, 2 * n, n, n, 1, 0.05f);
        fill<<<1024, 256>>>((__nv_bfloat16 *)b, 2 * n, n, n, 2, 1.0f);
        const size_t half = (size_t)n * n * 2;
        peaks[0] = 2e-6 * n * n * n / blas_us({CUDA_R_16BF, CUDA_R_16BF, n, n, n, n, n, false, false, false, {a, a + half}, {b, b + half}, c, NULL}, 16);
        fill<<<1024, 256>>>((uint8_t *)a, 4 * n, n, n, 1, 1.0f);
        fill<<<1024, 256>>>((uint8_t *)b, 4 * n, n, n, 2, 1.0f);
        peaks[1] = 2e-6 * n * n * n / blas_us({CUDA_R_8F_E4M3, CUDA_R_16BF, n, n, n, n, n, false, true, false, {a, a + half}, {b, b + half}, c, one}, 16);
        printf("copy %.0f GB/s, peaks (cuBLASLt) bf16 %.0f, fp8 %.0f TFLOP/s; gate_up and down per version: us, share of limit\n", copy_rate, peaks[0], peaks[1]);
        cudaFree(a), cudaFree(b), cudaFree(c), cudaFree(one);
        bench(CUDA_W_BF16, 2731, 6, 64, 0, 1408, 2048, true);  // V2-Lite, 256 rows per expert
        bench(CUDA_W_BF16, 4096, 6, 64, 2, 1408, 2048, true);  // a prefill of 4096
        bench(CUDA_W_BF16, 4096, 6, 64, 0, 1408, 2048, false);
        bench(CUDA_W_BF16, 1024, 6, 64, 0, 1408, 2048, true);
        bench(CUDA_W_FP8, 2048, 8, 64, 0, 2048, 7168, true);   // V3, a quarter of the experts, 256 rows each
        bench(CUDA_W_FP8, 2731, 6, 64, 0, 1408, 2048, true);
        bench(CUDA_W_FP8, 4096, 8, 256, 0, 256, 7168, true);   // V3, one of eight tensor ranks
        bench(CUDA_W_BF16, 2048, 8, 64, 0, 2048, 7168, true);
    }
    return failures != 0;
}
