// hadal bench weights: how fast a shard is loaded from its own disk, from the page cache, and from
// other processes that give it (node/pull.h), several at once, over each transport.
//
// The sources are child processes with the folder --model open, as nodes have it; the shard is
// loaded by this process into the CPU's memory. --own is another copy of the folder, so that what
// is cold here is not cold for the sources.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/model/shard.h"
#include "node/pull.h"
#include "node/pull_server.h"
#include "tools/bench.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"

enum { SOURCES = 8, DIRECT_THREADS = 4, DIRECT_BYTES = 4 << 20, PATHS = 4096 };

struct source {
    pid_t pid;
    int hold; // the child ends when this is closed
    char address[XPORT_KINDS][LIMIT_ADDR];
};

struct weights_bench {
    const char *model, *own;
    int64_t sources, mib, steps;
    bool json;
    uint64_t fingerprint;
    struct source at[SOURCES];
    double direct_gb_s; // of the disk; 0: not known
    double memory_gb_s;
};

// ---- files

// fn for every file of a folder that holds weights.
static void each_file(const char *dir, void (*fn)(const char *path, void *arg), void *arg)
{
    DIR *d = opendir(dir);
    for (const struct dirent *x; d && (x = readdir(d));) {
        char path[PATHS];
        const char *dot = strrchr(x->d_name, '.');
        if (!dot || strcmp(dot, ".safetensors") != 0)
            continue;
        if (snprintf(path, sizeof path, "%s/%s", dir, x->d_name) < PATHS)
            fn(path, arg);
    }
    if (d)
        closedir(d);
}

static void evict(const char *path, void *arg)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fdatasync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
        log_warn("%s stays in the page cache", path);
    close(fd);
}

static void warm(const char *path, void *arg)
{
    char *bytes = mem_alloc(DIRECT_BYTES);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && read(fd, bytes, DIRECT_BYTES) > 0)
        ;
    if (fd >= 0)
        close(fd);
    free(bytes);
}

struct residency {
    size_t pages, in;
};

static void count_pages(const char *path, void *arg)
{
    struct residency *r = arg;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t n = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    void *map = n > 0 ? mmap(NULL, (size_t)n, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (map != MAP_FAILED) {
        const size_t pages = ((size_t)n + 4095) / 4096;
        unsigned char *v = mem_zalloc(pages, 1);
        if (mincore(map, (size_t)n, v) == 0) {
            r->pages += pages;
            for (size_t i = 0; i < pages; i++)
                r->in += v[i] & 1;
        }
        free(v);
        munmap(map, (size_t)n);
    }
    if (fd >= 0)
        close(fd);
}

static double resident_percent(const char *dir)
{
    struct residency r = {0};
    each_file(dir, count_pages, &r);
    return r.pages ? 100.0 * (double)r.in / (double)r.pages : 0;
}

// ---- what the disk can do

struct direct {
    const char *path;
    int first;
    uint64_t bytes;
    int error;
};

static void *direct_main(void *arg)
{
    struct direct *d = arg;
    void *buffer = NULL;
    int fd = open(d->path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (fd < 0 || posix_memalign(&buffer, 4096, DIRECT_BYTES)) {
        d->error = fd < 0 ? errno : ENOMEM;
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    for (off_t at = (off_t)d->first * DIRECT_BYTES;; at += (off_t)DIRECT_THREADS * DIRECT_BYTES) {
        ssize_t got = pread(fd, buffer, DIRECT_BYTES, at);
        if (got <= 0)
            break;
        d->bytes += (uint64_t)got;
    }
    free(buffer);
    close(fd);
    return NULL;
}

static void read_direct(const char *path, void *arg)
{
    uint64_t *bytes = arg;
    pthread_t threads[DIRECT_THREADS];
    struct direct d[DIRECT_THREADS];
    for (int i = 0; i < DIRECT_THREADS; i++) {
        d[i] = (struct direct){.path = path, .first = i};
        if (pthread_create(&threads[i], NULL, direct_main, &d[i]) != 0)
            abort(); // no thread for a measurement
    }
    for (int i = 0; i < DIRECT_THREADS; i++) {
        pthread_join(threads[i], NULL);
        *bytes += d[i].bytes;
        if (d[i].error)
            log_warn("%s: O_DIRECT: %s", path, strerror(d[i].error));
    }
}

static void measure_disk(struct weights_bench *b)
{
    uint64_t bytes = 0;
    each_file(b->own, evict, NULL);
    double begin = bench_now_s();
    each_file(b->own, read_direct, &bytes);
    double s = bench_now_s() - begin;
    b->direct_gb_s = bytes ? (double)bytes * 1e-9 / s : 0;
    if (bytes)
        bench_print(b->json, &(struct bench_figure){.name = "disk, O_DIRECT",
                                                    .metric = "bandwidth",
                                                    .unit = "GB/s",
                                                    .value = b->direct_gb_s});
}

// ---- sources

static void source_main(const struct weights_bench *b, int report, int hold)
{
    struct errmsg e = {0};
    struct pull_files *files = NULL;
    char byte;
    if (pull_files_open(b->model, b->fingerprint, &files, &e) != STATUS_OK) {
        fprintf(stderr, "%s\n", e.text);
        _exit(1);
    }
    struct pull_server *s =
        pull_server_open(&(struct pull_server_config){.mib_per_s = (uint32_t)b->mib});
    pull_server_publish(s, files);
    const struct rank_addresses a = pull_server_addresses(s);
    char all[XPORT_KINDS][LIMIT_ADDR] = {{0}};
    snprintf(all[XPORT_SHM], LIMIT_ADDR, "%s", a.shm);
    snprintf(all[XPORT_TCP], LIMIT_ADDR, "%s", a.tcp);
    snprintf(all[XPORT_VERBS], LIMIT_ADDR, "%s", a.verbs);
    if (write(report, all, sizeof all) != sizeof all)
        _exit(1);
    while (read(hold, &byte, 1) > 0) // until the parent is gone
        ;
    pull_server_close(s);
    _exit(0);
}

static enum status start_source(struct weights_bench *b, struct source *x, struct errmsg *e)
{
    int report[2], hold[2];
    if (pipe2(report, O_CLOEXEC) || pipe2(hold, O_CLOEXEC))
        return errmsg_set(e, STATUS_IO, "pipe: %s", strerror(errno));
    fflush(NULL);
    x->pid = fork();
    if (x->pid == 0) {
        for (struct source *earlier = b->at; earlier < x; earlier++)
            close(earlier->hold); // else they would wait for this one's end
        close(report[0]);
        close(hold[1]);
        source_main(b, report[1], hold[0]);
    }
    close(report[1]);
    close(hold[0]);
    x->hold = hold[1];
    ssize_t got = x->pid < 0 ? -1 : read(report[0], x->address, sizeof x->address);
    close(report[0]);
    return got == (ssize_t)sizeof x->address
               ? STATUS_OK
               : errmsg_set(e, STATUS_INTERNAL, "a source did not start");
}

static void stop_sources(struct weights_bench *b)
{
    for (int i = 0; i < b->sources; i++) {
        if (b->at[i].pid <= 0)
            continue;
        close(b->at[i].hold);
        waitpid(b->at[i].pid, NULL, 0);
    }
}

// ---- loads

struct way {
    const char *name;
    int sources; // 0: from disk
    enum xport_kind kind;
    bool disk;      // the own folder: instead of sources, or beside them
    bool cold;      // evicted before
    bool disk_only; // its limit is the disk
};

static enum status open_shard(struct kern *k, const struct model_source *source, size_t *bytes,
                              struct errmsg *e)
{
    const struct model_shard_args a = {.source = *source,
                                       .rank = {0, 1, 0, 1},
                                       .kern = k,
                                       .max_context = 64,
                                       .max_rows = 1,
                                       .max_seqs = 1,
                                       .kv_blocks = 2};
    struct model_shard *s = NULL;
    enum status st = model_shard_open(&a, &s, e);
    if (st != STATUS_OK)
        return st;
    *bytes = s->weights.bytes;
    model_shard_close(s);
    return STATUS_OK;
}

static enum status pull_shard(const struct weights_bench *b, const struct way *w, struct kern *k,
                              size_t *bytes, struct errmsg *e)
{
    static const char *const names[SOURCES] = {"1", "2", "3", "4", "5", "6", "7", "8"};
    struct weight_source sources[SOURCES];
    for (int i = 0; i < w->sources; i++) {
        const char *at[XPORT_KINDS] = {"", "", ""};
        at[w->kind] = b->at[i].address[w->kind];
        sources[i] = (struct weight_source){
            .name = names[i], .addresses = {at[XPORT_SHM], at[XPORT_TCP], at[XPORT_VERBS]}};
    }
    struct safetensors *own = NULL;
    struct pull *p = NULL;
    char config[64], text[512];
    enum status s = w->disk ? safetensors_open_dir(b->own, &own, e) : STATUS_OK;
    const struct pull_args args = {.sources = sources,
                                   .sources_n = (uint32_t)w->sources,
                                   .fingerprint = b->fingerprint,
                                   .disk = own,
                                   .disk_helps = w->disk};
    if (s == STATUS_OK)
        s = pull_open(&args, &p, e);
    if (s == STATUS_OK)
        s = pull_file(p, "config.json", config, e);
    if (s == STATUS_OK) {
        const struct model_source source = {.config = config, .folder = pull_folder(p)};
        s = open_shard(k, &source, bytes, e);
    }
    if (s == STATUS_OK) {
        pull_describe(p, text, sizeof text);
        log_info("%s: %s", w->name, text);
    }
    pull_close(p);
    safetensors_close(own);
    return s;
}

static enum status run_way(const struct weights_bench *b, const struct way *w, struct errmsg *e)
{
    struct kern *k = NULL;
    const struct kern_config config = {.threads = 1};
    enum status s = kern_open(KERN_CPU, &config, &k, e);
    for (int64_t i = 0; i < b->steps && s == STATUS_OK; i++) {
        size_t bytes = 0;
        const struct model_source own = {.dir = b->own};
        if (w->disk || !w->sources)
            each_file(b->own, w->cold ? evict : warm, NULL);
        if (w->sources)
            each_file(b->model, warm, NULL);
        const double there = w->cold ? resident_percent(b->own) : 0;
        if (there > 5)
            log_warn("%s: %.0f%% of it is in the page cache", w->name, there);
        const double begin = bench_now_s();
        s = w->sources ? pull_shard(b, w, k, &bytes, e) : open_shard(k, &own, &bytes, e);
        const double took = bench_now_s() - begin;
        if (s != STATUS_OK)
            break;
        const bool disk = w->disk_only && b->direct_gb_s > 0;
        bench_print(b->json, &(struct bench_figure){
                                 w->name, "bandwidth", "GB/s", (double)bytes * 1e-9 / took,
                                 disk ? "disk, O_DIRECT" : "memory bandwidth, 1 thread",
                                 disk ? b->direct_gb_s : b->memory_gb_s});
        bench_print(b->json, &(struct bench_figure){
                                 .name = w->name, .metric = "time", .unit = "s", .value = took});
    }
    kern_close(k);
    return s;
}

static enum status run_all(struct weights_bench *b, struct errmsg *e)
{
    const struct way ways[] = {
        {"own folder, cold", 0, XPORT_SHM, true, true, true},
        {"own folder, in the page cache", 0, XPORT_SHM, true, false, false},
        {"1 source, shm", 1, XPORT_SHM, false, false, false},
        {"2 sources, shm", 2, XPORT_SHM, false, false, false},
        {"1 source, tcp", 1, XPORT_TCP, false, false, false},
        {"2 sources, tcp", 2, XPORT_TCP, false, false, false},
        {"1 source, tcp, and the own folder, cold", 1, XPORT_TCP, true, true, false},
    };
    const struct model_source source = {.dir = b->model};
    enum status s = model_source_fingerprint(&source, &b->fingerprint, e);
    for (int i = 0; i < b->sources && s == STATUS_OK; i++)
        s = start_source(b, &b->at[i], e);
    b->memory_gb_s = bench_measure_limits(1).read_gb_s;
    if (s == STATUS_OK)
        measure_disk(b);
    for (size_t i = 0; i < sizeof ways / sizeof *ways && s == STATUS_OK; i++)
        if (ways[i].sources <= b->sources)
            s = run_way(b, &ways[i], e);
    stop_sources(b);
    return s;
}

int bench_weights(int argc, char **argv)
{
    struct weights_bench b = {.sources = 2, .steps = 3};
    const struct cmdline_opt opts[] = {
        {"--model", CMDLINE_STRING, &b.model, "DIR", .help = "what the sources have"},
        {"--own", CMDLINE_STRING, &b.own, "DIR",
         .help = "another copy of it, which may be cold (DIR of --model)"},
        {"--sources", CMDLINE_INT, &b.sources, "N", .max = SOURCES,
         .help = "processes that give it (2)"},
        {"--serve-weights-mib", CMDLINE_INT, &b.mib, "N", .max = 1 << 20,
         .help = "MiB/s of each source; 0 = without a limit (0)"},
        {"--steps", CMDLINE_INT, &b.steps, "N", .min = 1, .max = 100, .help = "of each case (3)"},
        {"--json", CMDLINE_FLAG, &b.json, .help = "a line of JSON for each figure"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench weights --model DIR [OPTION...]",
        .about = "How fast a shard is loaded from disk, from the page cache, and from one or two\n"
                 "other processes that have the model, against what disk and memory can do.",
        .opts = opts,
        .after = "example:\n  hadal bench weights --model q --own copy-of-q\n",
    };
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    if (!b.model) {
        fprintf(stderr, "hadal bench weights: --model is missing\n");
        return CMD_USAGE;
    }
    b.own = b.own ? b.own : b.model;
    struct errmsg e = {0};
    if (run_all(&b, &e) == STATUS_OK)
        return CMD_OK;
    fprintf(stderr, "hadal bench weights: %s\n", e.text);
    return CMD_FAILED;
}
