// Laboratory of sampling on the device: check (every field of the result bit-equal to the host's
// sampler, on random logits and parameters, ties, flat rows, NaN) and bench.
//
//   gcc -O2 -ffp-contract=off -I. -c kernels/cpu/sample.c base/mem.c
//   nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -I. -cudart static -o sample
//       kernels/lab/sample.cu kernels/cuda/sample.cu sample.o mem.o
//   ./sample check | bench [FILE.csv]
#include "kernels/cuda/sample.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define OK(call)                                                                                   \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));           \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t state = 88172645463325252ull;
static uint64_t random_u64()
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545F4914F6CDD1Dull;
}
static double unit()
{
    return (double)(random_u64() >> 11) * 0x1p-53;
}
static double normal()
{
    return sqrt(-2 * log(unit() + 1e-300)) * cos(6.283185307179586 * unit());
}

static cudaStream_t stream;

struct problem {
    int n, vocab;
    size_t stride;
    std::vector<float> logits;
    std::vector<kern_sample_row> rows;
    std::vector<int32_t> history;
};

enum shape { NORMAL, PEAKED, COARSE, FLAT, EQUAL, WIDE, SHAPES };

static void fill_row(float *v, int vocab, int shape)
{
    double scale = 0.5 + 3 * unit();
    for (int i = 0; i < vocab; i++) {
        double x = normal() * scale;
        if (shape == COARSE)
            x = floor(x * 4) / 4;
        else if (shape == FLAT)
            x *= 1e-3;
        else if (shape == EQUAL)
            x = -0.0;
        else if (shape == WIDE)
            x = x * x * x * 40;
        v[i] = (float)x;
    }
    if (shape == PEAKED)
        for (int i = 0; i < 5; i++)
            v[random_u64() % vocab] += (float)(15 * unit());
    if (shape == EQUAL && vocab > 1)
        v[random_u64() % vocab] = 0.0f;
}

static kern_sample_row random_row(problem &p)
{
    kern_sample_row r = {};
    r.unit = (float)(random_u64() >> 40) * 0x1p-24f;
    r.temperature = random_u64() % 5 ? (float)(0.2 + 2 * unit()) : 0;
    r.top_p = random_u64() % 2 ? (float)unit() : 1;
    r.top_k = random_u64() % 3 ? 0 : (int32_t)(random_u64() % 200);
    if (random_u64() % 20 == 0)
        r.top_k = 6000;
    r.min_p = random_u64() % 4 ? 0 : (float)(0.2 * unit());
    r.repetition = 1;
    r.logprob = random_u64() % 2;
    r.top_n = random_u64() % 3 ? 0 : (uint32_t)(random_u64() % (KERN_SAMPLE_TOP_MAX + 1));
    if (random_u64() % 2) {
        r.repetition = (float)(0.5 + 1.5 * unit());
        r.frequency = (float)(2 * unit() - 1);
        r.presence = (float)(2 * unit() - 1);
        r.history_at = (uint32_t)p.history.size();
        r.history_n = (uint32_t)(random_u64() % 300);
        r.history_prompt = r.history_n ? (uint32_t)(random_u64() % r.history_n) : 0;
        for (uint32_t i = 0; i < r.history_n; i++)
            p.history.push_back((int32_t)(random_u64() % (p.vocab + 3)) - 1);
    }
    return r;
}

struct device {
    struct cuda_sample s;
    float *logits;
    void *rows, *history, *out, *scratch;
};

static device upload(const problem &p)
{
    device d = {};
    size_t bytes = p.logits.size() * 4;
    OK(cudaMalloc(&d.logits, bytes));
    OK(cudaMalloc(&d.rows, p.n * sizeof(kern_sample_row)));
    OK(cudaMalloc(&d.history, p.history.size() * 4 + 4));
    OK(cudaMalloc(&d.out, p.n * sizeof(kern_sample_out)));
    OK(cudaMemcpy(d.logits, p.logits.data(), bytes, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(d.rows, p.rows.data(), p.n * sizeof(kern_sample_row), cudaMemcpyHostToDevice));
    OK(cudaMemcpy(d.history, p.history.data(), p.history.size() * 4, cudaMemcpyHostToDevice));
    OK(cudaMemset(d.out, 0x7f, p.n * sizeof(kern_sample_out)));
    d.s = {p.n,
           p.vocab,
           d.logits,
           p.stride,
           (const kern_sample_row *)d.rows,
           (const int32_t *)d.history,
           p.history.size(),
           (kern_sample_out *)d.out,
           NULL};
    OK(cudaMalloc(&d.scratch, cuda_sample_scratch_bytes(&d.s)));
    OK(cudaMemset(d.scratch, 0x7f, cuda_sample_scratch_bytes(&d.s)));
    d.s.scratch = d.scratch;
    return d;
}
static void release(device &d)
{
    cudaFree(d.logits);
    cudaFree(d.rows);
    cudaFree(d.history);
    cudaFree(d.out);
    cudaFree(d.scratch);
}

static int check()
{
    static const int vocabs[] = {1, 2, 17, 512, 5000, 32003, 102400, 151936, 163840};
    int failures = 0, rows = 0, drawn[SHAPES] = {};
    for (int round = 0; round < 18; round++) {
        problem p = {};
        p.vocab = vocabs[round % 9];
        p.n = p.vocab > 100000 ? 24 : 96;
        p.stride = p.vocab + (round < 9 ? 0 : 1 + round % 4);
        p.logits.assign(p.n * p.stride, NAN);
        std::vector<int> shape(p.n);
        for (int i = 0; i < p.n; i++) {
            shape[i] = (int)(random_u64() % 16);
            shape[i] = shape[i] < SHAPES ? shape[i] : shape[i] % 3;
            fill_row(&p.logits[i * p.stride], p.vocab, shape[i]);
            p.rows.push_back(random_row(p));
            if (random_u64() % 24 == 0)
                p.logits[i * p.stride + random_u64() % p.vocab] = random_u64() % 2   ? NAN
                                                                  : random_u64() % 2 ? INFINITY
                                                                                     : -INFINITY;
        }
        device d = upload(p);
        OK(cuda_sample(stream, &d.s));
        OK(cudaDeviceSynchronize());
        std::vector<kern_sample_out> got(p.n);
        OK(cudaMemcpy(got.data(), d.out, p.n * sizeof(kern_sample_out), cudaMemcpyDeviceToHost));
        release(d);
        struct sample_memory *m = sample_memory_create(p.vocab);
        for (int i = 0; i < p.n; i++) {
            kern_sample_out want;
            sample_row(m, &p.logits[i * p.stride], &p.rows[i],
                       p.history.data() + p.rows[i].history_at, &want);
            bool same = got[i].token == want.token && got[i].top_n == want.top_n &&
                        !memcmp(&got[i].logprob, &want.logprob, 4);
            for (uint32_t k = 0; same && k < want.top_n; k++)
                same = got[i].top[k].token == want.top[k].token &&
                       !memcmp(&got[i].top[k].logprob, &want.top[k].logprob, 4);
            drawn[shape[i]] += p.rows[i].temperature > 0;
            rows++;
            if (!same && failures++ < 8)
                printf("FAIL vocab %d row %d shape %d: token %d want %d, logprob %.9g want %.9g, "
                       "top_n %u want %u; T %g k %d p %g min %g rep %g history %u\n",
                       p.vocab, i, shape[i], got[i].token, want.token, got[i].logprob, want.logprob,
                       got[i].top_n, want.top_n, p.rows[i].temperature, p.rows[i].top_k,
                       p.rows[i].top_p, p.rows[i].min_p, p.rows[i].repetition, p.rows[i].history_n);
        }
        sample_memory_destroy(m);
    }
    printf("check: %d rows, %d failures; drawn by shape:", rows, failures);
    for (int i = 0; i < SHAPES; i++)
        printf(" %d", drawn[i]);
    printf("\n");
    return failures;
}

static double time_us(const device *sets, int sets_n)
{
    cudaEvent_t e[2];
    cudaEventCreate(&e[0]);
    cudaEventCreate(&e[1]);
    std::vector<float> times;
    for (int i = 0; i < 8; i++) {
        OK(cudaEventRecord(e[0], stream));
        for (int j = 0; j < sets_n; j++)
            OK(cuda_sample(stream, &sets[j].s));
        OK(cudaEventRecord(e[1], stream));
        OK(cudaEventSynchronize(e[1]));
        float ms;
        cudaEventElapsedTime(&ms, e[0], e[1]);
        times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2] * 1e3 / sets_n;
}

static void bench(const char *csv)
{
    FILE *f = csv ? fopen(csv, "w") : NULL;
    if (f)
        fprintf(f, "case,rows,vocab,us\n");
    struct {
        const char *name;
        float temperature, top_p;
        int top_k, logprob, top_n, history;
    } cases[] = {{"greedy", 0, 1, 0, 0, 0, 0},
                 {"temperature", 1, 1, 0, 0, 0, 0},
                 {"top-p 0.95", 0.7f, 0.95f, 0, 0, 0, 0},
                 {"top-k 50", 0.7f, 1, 50, 0, 0, 0},
                 {"top-p, 5 logprobs", 0.7f, 0.95f, 0, 1, 5, 0},
                 {"top-p, penalties", 0.7f, 0.95f, 0, 0, 0, 2000}};
    for (auto &c : cases) {
        printf("%-18s", c.name);
        for (int rows : {1, 64, 256}) {
            for (int vocab : {102400, 151936}) {
                if (vocab != 102400 && rows != 64)
                    continue;
                problem p = {};
                p.n = rows;
                p.vocab = vocab;
                p.stride = vocab;
                p.logits.resize((size_t)rows * vocab);
                for (int i = 0; i < rows; i++) {
                    if (i < 2) // normal numbers are slow to make
                        fill_row(&p.logits[(size_t)i * vocab], vocab, PEAKED);
                    else
                        memcpy(&p.logits[(size_t)i * vocab], &p.logits[(size_t)(i % 2) * vocab],
                               vocab * 4);
                    kern_sample_row r = {};
                    r.unit = (float)unit() * 0.999f;
                    r.temperature = c.temperature;
                    r.top_p = c.top_p;
                    r.top_k = c.top_k;
                    r.logprob = c.logprob;
                    r.top_n = c.top_n;
                    r.repetition = c.history ? 1.1f : 1;
                    r.history_at = (uint32_t)p.history.size();
                    r.history_n = c.history;
                    for (int k = 0; k < c.history; k++)
                        p.history.push_back((int32_t)(random_u64() % vocab));
                    p.rows.push_back(r);
                }
                std::vector<device> sets;
                int n = rows >= 64 ? 2 : 4;
                for (int i = 0; i < n; i++)
                    sets.push_back(upload(p));
                double us = time_us(sets.data(), n);
                for (auto &d : sets)
                    release(d);
                printf("  %dx%dk: %.1f us", rows, vocab / 1000, us);
                if (f)
                    fprintf(f, "\"%s\",%d,%d,%.1f\n", c.name, rows, vocab, us);
            }
        }
        printf("\n");
    }
    if (f)
        fclose(f);
}

int main(int argc, char **argv)
{
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    if (argc > 1 && !strcmp(argv[1], "bench")) {
        bench(argc > 2 ? argv[2] : NULL);
        return 0;
    }
    return check() > 0;
}
