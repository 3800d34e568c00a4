// hadal bench comm: collectives among the GPUs of this host, one process a rank: time of one out of
// a CUDA graph of many, by size, over peer memory and by NCCL; and bandwidth of large ones beside a
// peer copy. Rank 0 prints.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cuda_comm.h"
#include "tools/bench.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/rank_procs.h"

enum {
    REPEATS = 100,
    LARGE_REPEATS = 5,
    LARGE_ROWS = 1024,
    WINDOW_BYTES = 64 << 20,
    LARGE_BYTES = 256 << 20, // of all slices
};

struct options {
    int64_t ranks;
    bool json;
    int devices;
};

struct end {
    struct rank_procs *p;
    const struct options *o;
    int rank, size;
    const struct cuda_comm_ops *ops;
    struct kern *k;
    struct cuda_comm *c;
    struct kern_buf *buf;
};

static enum status join(struct end *r, struct errmsg *e)
{
    struct cuda_comm_note all[RANK_PROCS_MAX], own;
    struct cuda_comm_config c = {.size = r->size,
                                 .rank = r->rank,
                                 .window_bytes = WINDOW_BYTES,
                                 .want = CUDA_COMM_PEER | CUDA_COMM_NCCL};
    // NCCL takes one rank a device.
    if (r->o->devices < r->size)
        c.want = CUDA_COMM_PEER;
    struct kern_config kc = {.device = r->rank % r->o->devices};
    enum status s = kern_open(KERN_CUDA, &kc, &r->k, e);
    if (s == STATUS_OK)
        s = (r->ops = kern_cuda_comm(e)) ? r->ops->create(r->k, &c, &r->c, e) : STATUS_NO_DEVICE;
    for (int i = 0; i <= CUDA_COMM_ROUNDS && s == STATUS_OK; i++) {
        s = r->ops->round(r->c, i, i ? all : NULL, &own, e);
        if (s == STATUS_OK && i < CUDA_COMM_ROUNDS &&
            !rank_procs_exchange(r->p, r->rank, &own, sizeof own, all))
            s = errmsg_set(e, STATUS_LINK_DOWN, "a rank was lost");
    }
    if (s == STATUS_OK)
        s = kern_buf_create(r->k, KERN_F32, LARGE_BYTES / 4, &r->buf);
    return s;
}

// 0: this way is not there. All ranks together.
static double measure(struct end *r, const struct cuda_comm_timing *t)
{
    double us = 0;
    struct errmsg e = {0};
    if (!rank_procs_barrier(r->p))
        exit(CMD_FAILED);
    enum status s = r->ops->measure(r->c, t, &us, &e);
    if (s != STATUS_OK && s != STATUS_UNSUPPORTED && s != STATUS_TOO_LARGE) {
        fprintf(stderr, "rank %d: %s\n", r->rank, e.text[0] ? e.text : status_text(s));
        exit(CMD_FAILED);
    }
    return s == STATUS_OK ? us : 0;
}

static double gather_us(struct end *r, size_t bytes, size_t rows, enum cuda_comm_via via,
                        int repeats)
{
    struct cuda_comm_gather g = {
        .buf = r->buf, .rows = rows, .part = bytes / rows / 4, .elem_bytes = 4, .via = via};
    return measure(r, &(struct cuda_comm_timing){.gather = &g, .repeats = repeats});
}

static double reduce_us(struct end *r, size_t bytes, enum cuda_comm_via via)
{
    struct cuda_comm_reduce g = {.buf = r->buf, .n = bytes / 4, .via = via};
    return measure(r, &(struct cuda_comm_timing){.reduce = &g, .repeats = REPEATS});
}

static void print_time(const struct end *r, const char *name, double us, double nccl_us)
{
    struct bench_figure f = {.name = name, .metric = "time", .unit = "us", .value = us};
    if (r->rank || !us)
        return;
    if (nccl_us) {
        f.limit = "NCCL";
        f.limit_value = nccl_us;
    }
    bench_print(r->o->json, &f);
}

static const char *size_name(size_t bytes, char buf[32])
{
    if (bytes % 1024)
        snprintf(buf, 32, "%zu B", bytes);
    else
        snprintf(buf, 32, "%zu KiB", bytes / 1024);
    return buf;
}

static void small_ones(struct end *r)
{
    static const size_t sizes[] = {64,    1024,  2048,  4096,  7168,   8192,
                                   14336, 16384, 32768, 65536, 262144, 1 << 20};
    char name[64], size[32];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i];
        double peer = gather_us(r, n, 1, CUDA_COMM_PEER, REPEATS);
        double nccl = gather_us(r, n, 1, CUDA_COMM_NCCL, REPEATS);
        snprintf(name, sizeof name, "all-gather, slices of %s", size_name(n, size));
        print_time(r, name, peer, nccl);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i];
        double peer = reduce_us(r, n, CUDA_COMM_PEER), nccl = reduce_us(r, n, CUDA_COMM_NCCL);
        snprintf(name, sizeof name, "all-reduce of %s", size_name(n, size));
        print_time(r, name, peer, nccl);
    }
}

static void print_rate(const struct end *r, const char *name, double us, double bytes,
                       double copy_gb_s)
{
    if (r->rank || !us)
        return;
    struct bench_figure f = {.name = name,
                             .metric = "received",
                             .unit = "GB/s",
                             .value = bytes / us * 1e-3,
                             .limit = copy_gb_s ? "peer copy" : NULL,
                             .limit_value = copy_gb_s};
    bench_print(r->o->json, &f);
}

// What a rank receives of 256 MiB, as dense slices and as the rows of a prefill.
static void large_ones(struct end *r)
{
    const size_t slice = LARGE_BYTES / (size_t)r->size, others = slice * (size_t)(r->size - 1);
    double us = measure(
        r, &(struct cuda_comm_timing){.copy_bytes = WINDOW_BYTES, .repeats = LARGE_REPEATS});
    double copy = us ? WINDOW_BYTES / us * 1e-3 : 0;
    print_rate(r, "peer copy, all ranks at once", us, WINDOW_BYTES, 0);
    static const struct {
        enum cuda_comm_via via;
        size_t rows;
        const char *name;
    } ways[] = {
        {CUDA_COMM_PEER, LARGE_ROWS, "all-gather of 256 MiB in 1,024 rows, peer memory"},
        {CUDA_COMM_NCCL, LARGE_ROWS, "all-gather of 256 MiB in 1,024 rows, NCCL"},
        {CUDA_COMM_NCCL, 1, "all-gather of 256 MiB, dense, NCCL"},
    };
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        print_rate(r, ways[i].name,
                   gather_us(r, slice / ways[i].rows / 16 * 16 * ways[i].rows, ways[i].rows,
                             ways[i].via, LARGE_REPEATS),
                   (double)others, copy);
}

static int run_rank(struct rank_procs *p, int rank, void *arg)
{
    struct end r = {.p = p, .o = arg, .rank = rank, .size = rank_procs_size(p)};
    struct errmsg e = {0};
    if (join(&r, &e) != STATUS_OK) {
        fprintf(stderr, "hadal bench comm: rank %d: %s\n", rank, e.text);
        return CMD_FAILED;
    }
    small_ones(&r);
    large_ones(&r);
    bool together = rank_procs_barrier(p);
    r.ops->destroy(r.c);
    kern_buf_destroy(r.buf);
    kern_close(r.k);
    return together ? CMD_OK : CMD_FAILED;
}

// In a process of its own: this one forks, and must not have opened a GPU.
static int count_devices(struct rank_procs *p, int rank, void *arg)
{
    struct errmsg e = {0};
    const struct cuda_comm_ops *ops = kern_cuda_comm(&e);
    *(volatile int *)arg = ops ? ops->devices() : 0;
    if (!ops)
        fprintf(stderr, "hadal bench comm: %s\n", e.text);
    return 0;
}

int bench_comm(int argc, char **argv)
{
    struct options o = {0};
    const struct cmdline_opt opts[] = {
        {"--ranks", CMDLINE_INT, &o.ranks, "N", .min = 2, .max = 8,
         .help = "processes, dealt out to the GPUs; default: a rank a GPU, at least 2"},
        {"--json", CMDLINE_FLAG, &o.json, .help = "one JSON object per line"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench comm [OPTION...]",
        .about = "Times collectives among the GPUs of this host, beside NCCL and a peer copy.",
        .opts = opts};
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    int *found =
        mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED || rank_procs_run(1, 0, count_devices, found) || !*found) {
        fputs("hadal bench comm: no GPU\n", stderr);
        return CMD_FAILED;
    }
    o.devices = *found;
    if (!o.ranks)
        o.ranks = o.devices < 2 ? 2 : o.devices < 8 ? o.devices : 8;
    return rank_procs_run((int)o.ranks, 0, run_rank, &o) ? CMD_FAILED : CMD_OK;
}
