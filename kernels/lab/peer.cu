// Laboratory of kernels/cuda/peer.cu: which launch shapes carry a collective fastest, what telling
// the host costs, and NCCL beside it. Ranks are threads, rank t on device t (one device: all on it;
// then only the protocol's own time is seen). Correctness first, then times of one operation out of
// a CUDA graph of many.
//
//   peer_lab [RANKS]
//
// Build: with the objects of libhadal_cuda.so and the base library.
//
// Two H100 (NVLink, 18 links), 2026-11-25, one operation out of a graph of 100:
//   expected                                          found
//   words, 64 B: one trip, about 1 us over an         2.2 us against 0.6: the trip and back of the
//   empty kernel                                      number, 1.6
//   words beat pieces up to 64 KiB (a fence and a     3.6 against 6.05 us at 64 KiB
//   second trip saved, twice the bytes cost little)
//   one packet a thread is best                       yes: 14 KiB 16 x 128, 8 x 256, 4 x 512 within
//                                                     4%; two packets + 10%, four + 40%
//   telling the host what was begun costs a little    nothing: the store overlaps with the waiting
//   several blocks cost a counter                     0.6 us with a fence before it; 0.3 without
//   NCCL is better from some size on                  not up to slices of 4 MiB: 33 against 23 us
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/comm.h"
#include "kernels/cuda_load.h"
#include "kernels/kern_impl.h"

extern "C" kern_cuda_open_fn hadal_cuda_open;

#define CHECK(x)                                                                                   \
    do {                                                                                           \
        cudaError_t e_ = (x);                                                                      \
        if (e_ != cudaSuccess) {                                                                   \
            printf("line %d: %s: %s\n", __LINE__, #x, cudaGetErrorString(e_));                     \
            fflush(stdout);                                                                        \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

enum { RANKS = PEER_RANKS, REPEATS = 100, LAUNCHES = 7 };
static const size_t buf_bytes = 64u << 20;

static int ranks;
static pthread_barrier_t barrier;
static struct cuda_comm_note notes[CUDA_COMM_ROUNDS + 1][RANKS];

struct rank {
    int rank, device;
    struct kern *k;
    struct cuda_comm *m;
    cudaStream_t stream;
    struct peer_group g;
    unsigned char *buf, *host;
};

static void die(const char *what, struct errmsg *e)
{
    printf("FAILED %s: %s\n", what, e->text);
    fflush(stdout);
    _exit(1);
}

static void join(struct rank *r)
{
    struct errmsg e = {};
    struct kern_config kc = {};
    struct cuda_comm_config cc = {};
    kc.device = r->device;
    cc.size = ranks;
    cc.rank = r->rank;
    cc.want = CUDA_COMM_PEER | (getenv("NO_NCCL") ? 0 : CUDA_COMM_NCCL);
    if (hadal_cuda_open(KERN_CUDA_ABI, &kc, &r->k, &e) != STATUS_OK)
        die("open", &e);
    if (hadal_cuda_comm()->create(r->k, &cc, &r->m, &e) != STATUS_OK)
        die("create", &e);
    for (int i = 0; i <= CUDA_COMM_ROUNDS; i++) {
        struct cuda_comm_note own;
        if (hadal_cuda_comm()->round(r->m, i, i ? notes[i - 1] : NULL, &own, &e) != STATUS_OK)
            die("round", &e);
        notes[i][r->rank] = own;
        pthread_barrier_wait(&barrier);
    }
    r->stream = cuda_comm_stream(r->m);
    r->g = *cuda_comm_group(r->m);
    CHECK(cudaMalloc(&r->buf, buf_bytes));
    // Not pageable: a copy from it holds the context while it waits, and so the other ranks on one device.
    CHECK(cudaMallocHost(&r->host, buf_bytes));
}

// ---- correctness

static uint32_t word(uint32_t seed, int rank, size_t i)
{
    uint32_t x = seed * 2654435761u ^ (uint32_t)rank * 40503u ^ (uint32_t)i * 2246822519u;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    return x;
}

// Own slices random, the rest poisoned; runs `times` gathers of different contents.
static void check_gather(struct rank *r, size_t rows, size_t part, bool words, uint32_t seed)
{
    size_t n = rows * part * ranks / 4, row = part / 4;
    for (size_t i = 0; i < n; i++) {
        int owner = (int)(i / row % ranks);
        ((uint32_t *)r->host)[i] = owner == r->rank ? word(seed, owner, i) : 0xdeadbeefu;
    }
    CHECK(cudaMemcpyAsync(r->buf, r->host, n * 4, cudaMemcpyHostToDevice, r->stream));
    struct peer_gather a = {r->buf, rows, part};
    CHECK(words ? peer_gather_words(r->stream, &r->g, &a)
                : peer_gather_pieces(r->stream, &r->g, &a));
    CHECK(cudaMemcpyAsync(r->host, r->buf, n * 4, cudaMemcpyDeviceToHost, r->stream));
    CHECK(cudaStreamSynchronize(r->stream));
    for (size_t i = 0; i < n; i++)
        if (((uint32_t *)r->host)[i] != word(seed, (int)(i / row % ranks), i)) {
            printf("FAILED gather %s %zu x %zu rank %d: word %zu is %08x\n",
                   words ? "words" : "pieces", rows, part, r->rank, i, ((uint32_t *)r->host)[i]);
            fflush(stdout);
            _exit(1);
        }
}

static void check_all(struct rank *r)
{
    static const size_t rows[] = {1, 2, 3, 7, 64, 129},
                        parts[] = {4, 8, 12, 20, 256, 1020, 8192, 14336};
    uint32_t seed = 1;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < sizeof parts / sizeof *parts; j++) {
            size_t w = (parts[j] / 4 + 1) / 2 * 8 * rows[i];
            if (w <= PEER_WORDS_BYTES)
                check_gather(r, rows[i], parts[j], true, seed++);
            check_gather(r, rows[i], parts[j], false, seed++);
            if (w <= PEER_WORDS_BYTES)
                check_gather(r, rows[i], parts[j], true, seed++);
        }
    check_gather(r, 1, 4 << 20, false, seed++);
    check_gather(r, 512, 8192, false, seed++);
    // Many in a row, of changing size, nothing in between: halves and flags in turn.
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 3000; i++) {
            size_t part = 16 + 16 * (word(7, 0, i) % 500);
            struct peer_gather a = {r->buf, 1 + word(9, 0, i) % 8, part};
            bool words = word(11, 0, i) & 1 && a.rows * part <= PEER_WORDS_BYTES;
            CHECK(words ? peer_gather_words(r->stream, &r->g, &a)
                        : peer_gather_pieces(r->stream, &r->g, &a));
        }
        check_gather(r, 5, 2000, true, seed++);
        check_gather(r, 5, 2000, false, seed++);
    }
    for (size_t n = 2; n <= PEER_WORDS_BYTES / 4; n = n * 3 + 2) {
        float *h = (float *)r->host;
        for (size_t i = 0; i < n; i++)
            h[i] = (float)(word(seed, r->rank, i) % 1000);
        CHECK(cudaMemcpyAsync(r->buf, h, n * 4, cudaMemcpyHostToDevice, r->stream));
        struct peer_reduce a = {(float *)r->buf, n};
        CHECK(peer_reduce_words(r->stream, &r->g, &a));
        CHECK(cudaMemcpyAsync(h, r->buf, n * 4, cudaMemcpyDeviceToHost, r->stream));
        CHECK(cudaStreamSynchronize(r->stream));
        for (size_t i = 0; i < n; i++) {
            float sum = 0;
            for (int j = 0; j < ranks; j++)
                sum += (float)(word(seed, j, i) % 1000);
            if (h[i] != sum) {
                printf("FAILED reduce n %zu rank %d at %zu: %g not %g\n", n, r->rank, i, h[i], sum);
                _exit(1);
            }
        }
        seed++;
    }
    pthread_barrier_wait(&barrier);
    if (r->rank == 0)
        printf("ok: %u gathers and reductions on %d ranks\n", seed, ranks), fflush(stdout);
}

// ---- time

struct shape {
    const char *what; // words, pieces, reduce, nccl-gather, nccl-reduce, empty
    size_t bytes;     // of a slice (gathers), of the vector (reductions)
    size_t rows;
    int a, b; // blocks and threads, or blocks and vectors of a piece
};

__global__ void empty_kernel()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static void enqueue(struct rank *r, const struct peer_group *g, const struct shape *s)
{
    struct kern_buf b = {};
    b.k = r->k;
    b.p = r->buf;
    struct peer_gather ga = {r->buf, s->rows, s->bytes / s->rows};
    struct peer_reduce re = {(float *)r->buf, s->bytes / 4};
    struct cuda_comm_gather ng = {&b, 0, s->rows, s->bytes / s->rows / 4, 4, CUDA_COMM_NCCL};
    struct cuda_comm_reduce nr = {&b, 0, s->bytes / 4, CUDA_COMM_NCCL};
    if (!strcmp(s->what, "words"))
        CHECK(peer_gather_words_tuned(r->stream, g, &ga, s->a, s->b));
    else if (!strcmp(s->what, "pieces"))
        CHECK(peer_gather_pieces_tuned(r->stream, g, &ga, s->a, s->b));
    else if (!strcmp(s->what, "reduce"))
        CHECK(peer_reduce_words(r->stream, g, &re));
    else if (!strcmp(s->what, "nccl-gather"))
        CHECK(hadal_cuda_comm()->all_gather(r->m, &ng) == STATUS_OK ? cudaSuccess
                                                                    : cudaErrorUnknown);
    else if (!strcmp(s->what, "nccl-reduce"))
        CHECK(hadal_cuda_comm()->all_reduce(r->m, &nr) == STATUS_OK ? cudaSuccess
                                                                    : cudaErrorUnknown);
    else {
        cudaLaunchAttribute at;
        at.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        at.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t c = {};
        c.gridDim = dim3(4), c.blockDim = dim3(512), c.stream = r->stream, c.attrs = &at,
        c.numAttrs = 1;
        CHECK(cudaLaunchKernelEx(&c, empty_kernel));
    }
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double time_us(struct rank *r, const struct peer_group *g, const struct shape *s)
{
    cudaGraph_t graph;
    cudaGraphExec_t run;
    cudaEvent_t at[2];
    float ms[LAUNCHES];
    int repeats = s->bytes > (1 << 20) ? REPEATS / 5 : REPEATS;
    enqueue(r, g, s);
    CHECK(cudaStreamSynchronize(r->stream));
    CHECK(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < repeats; i++)
        enqueue(r, g, s);
    CHECK(cudaStreamEndCapture(r->stream, &graph));
    CHECK(cudaGraphInstantiate(&run, graph, 0));
    CHECK(cudaEventCreate(&at[0]));
    CHECK(cudaEventCreate(&at[1]));
    for (int i = -2; i < LAUNCHES; i++) {
        pthread_barrier_wait(&barrier);
        CHECK(cudaEventRecord(at[0], r->stream));
        CHECK(cudaGraphLaunch(run, r->stream));
        CHECK(cudaEventRecord(at[1], r->stream));
        CHECK(cudaStreamSynchronize(r->stream));
        if (i >= 0)
            CHECK(cudaEventElapsedTime(&ms[i], at[0], at[1]));
    }
    qsort(ms, LAUNCHES, sizeof *ms, by_value);
    cudaGraphExecDestroy(run);
    cudaGraphDestroy(graph);
    return ms[LAUNCHES / 2] * 1e3 / repeats;
}

static void show(struct rank *r, const struct peer_group *g, const char *note, struct shape s)
{
    double us = time_us(r, g, &s);
    if (r->rank == 0)
        printf("%-11s %-6s %9zu B x%-3zu %3d %5d  %8.2f us %7.1f GB/s\n", s.what, note, s.bytes,
               s.rows, s.a, s.b, us,
               s.bytes * (s.what[0] == 'n' || s.what[0] == 'r' ? 1.0 : 1.0) / us * 1e-3),
            fflush(stdout);
}

static void time_all(struct rank *r)
{
    bool nccl = hadal_cuda_comm()->via(r->m) & CUDA_COMM_NCCL;
    struct peer_group quiet = r->g;
    CHECK(cudaMalloc(&quiet.host, sizeof *quiet.host));
    CHECK(cudaMemset(quiet.host, 0, sizeof *quiet.host));
    show(r, &r->g, "", {"empty", 4, 1, 4, 512});
    static const size_t small[] = {64, 1024, 2048, 4096, 7168, 8192, 14336, 16384, 32768, 65536};
    for (size_t b : small) {
        show(r, &r->g, "", {"words", b, 1, 0, 0});
        show(r, &quiet, "quiet", {"words", b, 1, 0, 0});
        if (b == 4096 || b == 14336 || b == 65536)
            for (int threads : {128, 256, 512, 1024})
                for (int blocks : {1, 2, 4, 8, 16, 32, 64})
                    if ((size_t)blocks * threads * 8 <= b * 2 && (size_t)blocks * threads * 64 >= b)
                        show(r, &r->g, "", {"words", b, 1, blocks, threads});
        show(r, &r->g, "", {"pieces", b, 1, 0, 0});
        if (b >= 4096)
            show(r, &r->g, "rows", {"words", b, 8, 0, 0});
        show(r, &r->g, "", {"reduce", b, 1, 0, 0});
        if (nccl) {
            show(r, &r->g, "", {"nccl-gather", b, 1, 0, 0});
            show(r, &r->g, "", {"nccl-reduce", b, 1, 0, 0});
        }
    }
    static const size_t large[] = {128 << 10, 256 << 10, 512 << 10, 1 << 20, 4 << 20};
    for (size_t b : large) {
        for (int blocks : {8, 16, 24, 32})
            for (int piece : {512, 1024, 2048, 4096})
                if (b >= (1 << 20) || piece <= 1024)
                    show(r, &r->g, "", {"pieces", b, 1, blocks, piece});
        show(r, &r->g, "", {"pieces", b, 1, 0, 0});
        show(r, &r->g, "rows", {"pieces", b, 64, 0, 0});
        if (nccl) {
            show(r, &r->g, "", {"nccl-gather", b, 1, 0, 0});
            show(r, &r->g, "rows", {"nccl-gather", b, 64, 0, 0});
            show(r, &r->g, "", {"nccl-reduce", b, 1, 0, 0});
        }
    }
    for (size_t b : {(size_t)16 << 20, (size_t)32 << 20})
        if (nccl && b * ranks <= buf_bytes)
            show(r, &r->g, "", {"nccl-gather", b, 1, 0, 0});
}

static void *run(void *arg)
{
    struct rank *r = (struct rank *)arg;
    join(r);
    check_all(r);
    if (!getenv("CHECK_ONLY"))
        time_all(r);
    pthread_barrier_wait(&barrier);
    hadal_cuda_comm()->destroy(r->m);
    return NULL;
}

int main(int argc, char **argv)
{
    int devices = 0;
    setenv("CUDA_MODULE_LOADING", "EAGER", 1); // see device.c
    CHECK(cudaGetDeviceCount(&devices));
    ranks = argc > 1 ? atoi(argv[1]) : devices > 1 ? devices : 2;
    if (ranks < 2 || ranks > RANKS)
        return 2;
    pthread_barrier_init(&barrier, NULL, (unsigned)ranks);
    static struct rank r[RANKS];
    pthread_t t[RANKS];
    for (int i = 0; i < ranks; i++) {
        r[i].rank = i;
        r[i].device = i % devices;
        pthread_create(&t[i], NULL, run, &r[i]);
    }
    for (int i = 0; i < ranks; i++)
        pthread_join(t[i], NULL);
    return 0;
}
