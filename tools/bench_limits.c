// The two limits of a CPU or GPU that every figure of `hadal bench kernels` is held against.
// Independent of kernels/: a body that is slow must not lower its own limit.
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/mem.h"
#include "kernels/cuda_load.h"
#include "tools/bench.h"

enum { HUGE_PAGE = 2 << 20, READ_BYTES = 96 << 20, CHAINS = 12, FMA_ROUNDS = 2000000, REPEATS = 5 };

struct probe {
    pthread_t thread;
    pthread_barrier_t *start;
    const uint64_t *memory; // this thread's part
    double (*work)(struct probe *);
    double seconds; // best of REPEATS, all threads working at once
};

static volatile uint64_t sink; // keeps the work from being dropped

static double read_memory(struct probe *p)
{
    double start = bench_now_s();
    enum { STREAMS = 4, PART = READ_BYTES / 8 / STREAMS };
    uint64_t sum[STREAMS] = {0};
    for (size_t i = 0; i < PART; i += 8) // a cache line of each stream in turn
        for (size_t s = 0; s < STREAMS; s++)
            for (size_t l = 0; l < 8; l++)
                sum[s] += p->memory[s * PART + i + l];
    for (size_t s = 0; s < STREAMS; s++)
        sink += sum[s];
    return bench_now_s() - start;
}

// Flops of one round of all chains; the width is the one that fma_probe chose.
static double fma_round_flops;

static double fma_scalar(struct probe *p)
{
    float x[CHAINS] = {0};
    double start = bench_now_s();
    for (int r = 0; r < FMA_ROUNDS; r++)
        for (int c = 0; c < CHAINS; c++)
            x[c] = x[c] * 0.5f + 1.0f;
    double seconds = bench_now_s() - start;
    for (int c = 0; c < CHAINS; c++)
        sink += (uint64_t)x[c];
    return seconds;
}

#if defined(__x86_64__)
#define FMA_PROBE(NAME, TARGET, VECTOR, SET, FMA)                                                  \
    __attribute__((target(TARGET))) static double NAME(struct probe *p)                            \
    {                                                                                              \
        VECTOR x[CHAINS], half = SET(0.5f), one = SET(1.0f);                                       \
        for (int c = 0; c < CHAINS; c++)                                                           \
            x[c] = SET((float)c);                                                                  \
        double start = bench_now_s();                                                              \
        for (int r = 0; r < FMA_ROUNDS; r++)                                                       \
            _Pragma("GCC unroll 12") for (int c = 0; c < CHAINS; c++) x[c] = FMA(x[c], half, one); \
        double seconds = bench_now_s() - start;                                                    \
        for (int c = 0; c < CHAINS; c++)                                                           \
            sink += (uint64_t)((const float *)&x[c])[0];                                           \
        return seconds;                                                                            \
    }
FMA_PROBE(fma_avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps)
FMA_PROBE(fma_avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps)
#endif

static double (*fma_probe(void))(struct probe *)
{
    int width = 1;
    double (*probe)(struct probe *) = fma_scalar;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        width = 16;
        probe = fma_avx512;
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        width = 8;
        probe = fma_avx2;
    }
#endif
    fma_round_flops = 2.0 * CHAINS * width;
    return probe;
}

static void *probe_main(void *arg)
{
    struct probe *p = arg;
    p->seconds = 1e9;
    for (int i = 0; i < REPEATS; i++) {
        pthread_barrier_wait(p->start);
        double s = p->work(p);
        p->seconds = s < p->seconds ? s : p->seconds;
    }
    return NULL;
}

// The slowest thread's best time.
static double run_probes(int threads, double (*work)(struct probe *), const uint64_t *memory)
{
    struct probe *p = mem_zalloc((size_t)threads, sizeof *p);
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        const uint64_t *part = memory ? memory + (size_t)i * (READ_BYTES / 8) : NULL;
        p[i] = (struct probe){.start = &start, .memory = part, .work = work};
        if (pthread_create(&p[i].thread, NULL, probe_main, &p[i]))
            abort(); // the barrier counts on every thread
    }
    double slowest = 0;
    for (int i = 0; i < threads; i++) {
        pthread_join(p[i].thread, NULL);
        slowest = p[i].seconds > slowest ? p[i].seconds : slowest;
    }
    pthread_barrier_destroy(&start);
    free(p);
    return slowest;
}

struct bench_limits bench_measure_limits(int threads)
{
    size_t bytes = (size_t)threads * READ_BYTES;
    uint64_t *memory = aligned_alloc(HUGE_PAGE, bytes);
    if (!memory)
        abort();
    madvise(memory, bytes, MADV_HUGEPAGE); // only a hint
    memset(memory, 1, bytes);
    double read_s = run_probes(threads, read_memory, memory);
    free(memory);
    double fma_s = run_probes(threads, fma_probe(), NULL);
    return (struct bench_limits){
        .read_gb_s = (double)bytes / read_s / 1e9,
        .gflop_s = fma_round_flops * FMA_ROUNDS * threads / fma_s / 1e9,
        .memory = "memory read bandwidth",
        .compute = "multiply-add peak",
    };
}

enum status bench_limits_of(struct kern *k, struct bench_limits *out, struct errmsg *err)
{
    if (kern_backend(k) != KERN_CUDA) {
        *out = bench_measure_limits(kern_threads(k));
        return STATUS_OK;
    }
    struct kern_cuda_limits l;
    enum status s = kern_cuda_measure(k, &l, err);
    if (s == STATUS_OK && l.tflop_s <= 0)
        s = errmsg_set(err, STATUS_NO_DEVICE,
                       "libcublasLt.so.13, which gives the limit of products, cannot be loaded");
    if (s == STATUS_OK)
        *out = (struct bench_limits){.read_gb_s = l.copy_gb_s,
                                     .gflop_s = l.tflop_s * 1000,
                                     .fp8_gflop_s = l.fp8_tflop_s * 1000,
                                     .int8_gflop_s = l.int8_top_s * 1000,
                                     .host_gb_s = l.host_gb_s,
                                     .memory = "device copy bandwidth",
                                     .compute = "cuBLASLt products"};
    return s;
}
