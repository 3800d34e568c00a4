// Collectives among GPU processes: right at odd shapes, and free again when a rank hangs or dies.
// Two processes, on two GPUs where there are two, else on one. Not in the default suite: without a
// GPU it says so and exits 77.
//
//   comm_gpu [CASE...]      cases: right, nccl, hang, timeout, killed, killed-busy, killed-nccl,
//                           memory; none: all that this host can run
#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cuda_comm.h"
#include "kernels/cuda_load.h"
#include "tools/rank_procs.h"

enum { WORDS = 1 << 20 };

static int devices;

struct end {
    struct rank_procs *p;
    int rank;
    const struct cuda_comm_ops *ops;
    struct kern *k;
    struct cuda_comm *c;
    struct kern_buf *buf;
    uint32_t *host;
};

#define EXPECT(x)                                                                                  \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "rank %d, line %d: %s\n", r->rank, __LINE__, #x);                      \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + 1e-6 * (double)t.tv_nsec;
}

static void sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

static int join(struct end *r, const struct cuda_comm_config *config)
{
    struct errmsg e = {0};
    struct cuda_comm_config c = *config;
    struct cuda_comm_note all[RANK_PROCS_MAX], own;
    c.size = rank_procs_size(r->p);
    c.rank = r->rank;
    enum status s = r->ops->create(r->k, &c, &r->c, &e);
    for (int i = 0; i <= CUDA_COMM_ROUNDS && s == STATUS_OK; i++) {
        s = r->ops->round(r->c, i, i ? all : NULL, &own, &e);
        if (s == STATUS_OK && i < CUDA_COMM_ROUNDS)
            EXPECT(rank_procs_exchange(r->p, r->rank, &own, sizeof own, all));
    }
    if (s != STATUS_OK)
        fprintf(stderr, "rank %d: %s\n", r->rank, e.text);
    EXPECT(s == STATUS_OK);
    return 0;
}

static int open_end(struct end *r, struct rank_procs *p, int rank)
{
    struct errmsg e = {0};
    struct kern_config kc = {.device = rank % devices};
    *r = (struct end){.p = p, .rank = rank};
    enum status s = kern_open(KERN_CUDA, &kc, &r->k, &e);
    if (s != STATUS_OK)
        fprintf(stderr, "%s\n", e.text);
    EXPECT(s == STATUS_OK);
    EXPECT(r->ops = kern_cuda_comm(&e));
    EXPECT(kern_buf_create(r->k, KERN_F32, WORDS, &r->buf) == STATUS_OK);
    EXPECT(r->host = malloc(WORDS * 4));
    return 0;
}

static void close_end(struct end *r)
{
    r->ops->destroy(r->c);
    kern_buf_destroy(r->buf);
    kern_close(r->k);
    free(r->host);
}

static uint32_t word(uint32_t seed, int rank, size_t i)
{
    uint32_t x = seed * 2654435761u ^ (uint32_t)rank * 40503u ^ (uint32_t)i * 2246822519u;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    return x;
}

static int gather(struct end *r, size_t rows, size_t part, uint32_t seed, enum cuda_comm_via via)
{
    const size_t size = (size_t)rank_procs_size(r->p), n = rows * part * size;
    for (size_t i = 0; i < n; i++) {
        int owner = (int)(i / part % size);
        r->host[i] = owner == r->rank ? word(seed, owner, i) : 0xdeadbeef;
    }
    kern_upload(r->buf, 0, r->host, n);
    struct cuda_comm_gather g = {
        .buf = r->buf, .rows = rows, .part = part, .elem_bytes = 4, .via = via};
    EXPECT(r->ops->all_gather(r->c, &g) == STATUS_OK);
    EXPECT(kern_download(r->host, r->buf, 0, n) == STATUS_OK);
    for (size_t i = 0; i < n; i++)
        if (r->host[i] != word(seed, (int)(i / part % size), i)) {
            fprintf(stderr, "rank %d: %zu x %zu: word %zu is %08x\n", r->rank, rows, part, i,
                    r->host[i]);
            return 1;
        }
    return 0;
}

static int many(struct end *r, enum cuda_comm_via via)
{
    static const size_t shapes[][2] = {{1, 1},  {1, 2},    {3, 5},    {7, 33},    {1, 1792},
                                       {8, 64}, {64, 256}, {100, 77}, {1, 65536}, {257, 1024}};
    for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (gather(r, shapes[i][0], shapes[i][1], i + 1, via))
            return 1;
    EXPECT(r->ops->state(r->c).failure == CUDA_COMM_FINE);
    return 0;
}

static int case_right(struct rank_procs *p, int rank, void *arg)
{
    struct end e, *r = &e;
    if (open_end(r, p, rank) || join(r, &(struct cuda_comm_config){.want = CUDA_COMM_PEER}))
        return 1;
    EXPECT(r->ops->via(r->c) == CUDA_COMM_PEER);
    if (many(r, CUDA_COMM_ANY))
        return 1;
    EXPECT(r->ops->state(r->c).started >= 10);
    EXPECT(rank_procs_barrier(p));
    close_end(r);
    return 0;
}

static int case_nccl(struct rank_procs *p, int rank, void *arg)
{
    struct end e, *r = &e;
    if (open_end(r, p, rank) || join(r, &(struct cuda_comm_config){.want = CUDA_COMM_NCCL}))
        return 1;
    EXPECT(r->ops->via(r->c) == CUDA_COMM_NCCL);
    if (many(r, CUDA_COMM_ANY))
        return 1;
    EXPECT(rank_procs_barrier(p));
    close_end(r);
    return 0;
}

static int enqueue(struct end *r, int n)
{
    struct cuda_comm_gather g = {.buf = r->buf, .rows = 1, .part = 1024, .elem_bytes = 4};
    for (int i = 0; i < n; i++) {
        enum status s = r->ops->all_gather(r->c, &g);
        EXPECT(s == STATUS_OK || s == STATUS_ABORTED);
    }
    return 0;
}

static void *abort_soon(void *arg)
{
    struct end *r = arg;
    sleep_ms(300);
    r->ops->abort(r->c);
    return NULL;
}

// Rank 0 waits for a rank that does not come, its control thread aborts after 300 ms; then the two
// form a new group and go on.
static int waits_then_free(struct end *r, int n, double limit_ms)
{
    pthread_t t;
    double start = now_ms();
    EXPECT(pthread_create(&t, NULL, abort_soon, r) == 0);
    if (enqueue(r, n)) // more than a stream holds: the host waits as well
        return 1;
    EXPECT(kern_sync(r->k) == STATUS_OK);
    double ms = now_ms() - start;
    pthread_join(t, NULL);
    struct cuda_comm_state s = r->ops->state(r->c);
    printf("    free after %.1f ms (300 until the abort), failure %d, waited for rank %d\n", ms,
           s.failure, s.waited_for);
    EXPECT(s.failure == CUDA_COMM_ABORTED && ms > 250 && ms < limit_ms);
    if (r->ops->via(r->c) == CUDA_COMM_PEER)
        EXPECT(s.waited_for == 1);
    return 0;
}

static int case_hang(struct rank_procs *p, int rank, void *arg)
{
    struct end e, *r = &e;
    if (open_end(r, p, rank) || join(r, &(struct cuda_comm_config){0}) || many(r, CUDA_COMM_ANY))
        return 1;
    if (rank == 0 && waits_then_free(r, 3, 500))
        return 1;
    r->ops->destroy(r->c);
    r->c = NULL;
    EXPECT(rank_procs_barrier(p));
    if (join(r, &(struct cuda_comm_config){0}) || many(r, CUDA_COMM_ANY))
        return 1;
    EXPECT(rank_procs_barrier(p));
    close_end(r);
    return 0;
}

static int case_timeout(struct rank_procs *p, int rank, void *arg)
{
    struct end e, *r = &e;
    if (open_end(r, p, rank) || join(r, &(struct cuda_comm_config){.timeout_ms = 400}))
        return 1;
    if (rank == 0) {
        double start = now_ms();
        if (enqueue(r, 1))
            return 1;
        EXPECT(kern_sync(r->k) == STATUS_OK);
        double ms = now_ms() - start;
        struct cuda_comm_state s = r->ops->state(r->c);
        printf("    gave up after %.1f ms, rank %d\n", ms, s.waited_for);
        EXPECT(s.failure == CUDA_COMM_TIMEOUT && s.waited_for == 1 && ms > 350 && ms < 700);
    }
    EXPECT(rank_procs_barrier(p));
    close_end(r);
    return 0;
}

static int killed(struct rank_procs *p, int rank, unsigned want, int before)
{
    struct end e, *r = &e;
    if (open_end(r, p, rank) || join(r, &(struct cuda_comm_config){.want = want}) ||
        many(r, CUDA_COMM_ANY))
        return 1;
    EXPECT(rank_procs_barrier(p));
    if (rank == 1) {
        if (enqueue(r, before)) // some under way when it dies
            return 1;
        kill(getpid(), SIGKILL);
    }
    if (waits_then_free(r, before ? before + 3000 : 3, 2000))
        return 1;
    double start = now_ms();
    r->ops->destroy(r->c);
    r->c = NULL;
    printf("    group gone in %.1f ms\n", now_ms() - start);
    // The device still computes.
    kern_upload(r->buf, 0, &(uint32_t){7}, 1);
    EXPECT(kern_download(r->host, r->buf, 0, 1) == STATUS_OK && r->host[0] == 7);
    close_end(r);
    return 0;
}

static int case_killed(struct rank_procs *p, int rank, void *arg)
{
    return killed(p, rank, CUDA_COMM_PEER, 0);
}

static int case_killed_busy(struct rank_procs *p, int rank, void *arg)
{
    return killed(p, rank, CUDA_COMM_PEER, 400);
}

static int case_killed_nccl(struct rank_procs *p, int rank, void *arg)
{
    return killed(p, rank, CUDA_COMM_NCCL, 0);
}

// A rank leaves and forms again many times: windows that a peer still maps are not lost for ever.
static int case_memory(struct rank_procs *p, int rank, void *arg)
{
    struct end e, *r = &e;
    if (open_end(r, p, rank))
        return 1;
    for (int i = 0; i < 30; i++) {
        if (join(r, &(struct cuda_comm_config){.window_bytes = 256 << 20}))
            return 1;
        if (gather(r, 3, 100, (uint32_t)i, CUDA_COMM_ANY))
            return 1;
        if (rank == i % 2) // now one, now the other leaves first
            sleep_ms(5);
        r->ops->destroy(r->c);
        r->c = NULL;
        EXPECT(rank_procs_barrier(p));
    }
    close_end(r);
    return 0;
}

static const struct test {
    const char *name;
    rank_procs_body *body;
    unsigned dies;
    bool own_devices; // NCCL takes one rank a device
} tests[] = {
    {"right", case_right, 0, false},
    {"hang", case_hang, 0, false},
    {"timeout", case_timeout, 0, false},
    {"killed", case_killed, 2, false},
    {"killed-busy", case_killed_busy, 2, false},
    {"memory", case_memory, 0, false},
    {"nccl", case_nccl, 0, true},
    {"killed-nccl", case_killed_nccl, 2, true},
};

// In a process of its own: this one forks ranks and must not hold a context.
static int count_devices(struct rank_procs *p, int rank, void *arg)
{
    struct errmsg e = {0};
    struct kern *k = NULL;
    int n = 0;
    while (n < RANK_PROCS_MAX &&
           kern_open(KERN_CUDA, &(struct kern_config){.device = n}, &k, &e) == STATUS_OK) {
        kern_close(k);
        n++;
    }
    *(volatile int *)arg = n;
    return 0;
}

static bool asked_for(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], name))
            return true;
    return argc == 1;
}

int main(int argc, char **argv)
{
    int *found =
        mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(found != MAP_FAILED);
    int broken = rank_procs_run(1, 0, count_devices, found), passed = 0, failed = 0;
    devices = *found;
    if (broken || devices == 0) {
        puts("skipped: no GPU");
        return 77;
    }
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        const struct test *t = &tests[i];
        if (!asked_for(t->name, argc, argv) || (t->own_devices && devices < 2))
            continue;
        double start = now_ms();
        int rc = rank_procs_run(2, t->dies, t->body, NULL);
        printf("%-8s%s (%.1f s)\n", rc ? "FAILED" : "ok", t->name, (now_ms() - start) / 1e3);
        fflush(stdout);
        failed += rc != 0;
        passed += rc == 0;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
