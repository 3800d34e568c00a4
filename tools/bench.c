// hadal bench: finds the benchmark and hands it the rest of the command line; prints figures.
#include "tools/bench.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tools/cmd.h"

static const struct benchmark {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} benchmarks[] = {
    {"kernels", bench_kernels, "each op against memory bandwidth or multiply-add peak"},
    {"decode", bench_decode, "tokens per second of decoding, the engine alone"},
    {"prefill", bench_prefill, "tokens per second of a prompt, the engine alone"},
    {"load", bench_load, "reading a checkpoint into the device"},
    {"weights", bench_weights, "a shard from disk, page cache and other processes"},
    {"kv", bench_kv, "blocks of the KV cache between replicas, cut alike and anew"},
    {"xport", bench_xport, "transport between two processes: bandwidth, round trips, all-gather"},
    {"stages", bench_stages, "decoding by a replica of several ranks: tokens per second"},
    {"comm", bench_comm, "collectives among GPUs: time by size, bandwidth; NCCL beside them"},
    {NULL, NULL, NULL},
};

static int usage(FILE *to, int rc)
{
    fputs("usage: hadal bench WHAT [OPTION...]   (hadal bench WHAT --help tells more)\n\n", to);
    for (const struct benchmark *b = benchmarks; b->name; b++)
        fprintf(to, "  %-10s %s\n", b->name, b->help);
    return rc;
}

int cmd_bench(int argc, char **argv)
{
    if (argc < 2)
        return usage(stderr, CMD_USAGE);
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
        return usage(stdout, CMD_OK);
    for (const struct benchmark *b = benchmarks; b->name; b++)
        if (!strcmp(b->name, argv[1]))
            return b->run(argc - 1, argv + 1);
    fprintf(stderr, "hadal bench: no benchmark '%s'\n", argv[1]);
    return usage(stderr, CMD_USAGE);
}

void bench_print(bool json, const struct bench_figure *f)
{
    if (json) {
        printf("{\"case\": \"%s\", \"metric\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"", f->name,
               f->metric, f->value, f->unit);
        if (f->limit)
            printf(", \"limit\": \"%s\", \"limit_value\": %.6g, \"share\": %.4f", f->limit,
                   f->limit_value, f->value / f->limit_value);
        puts("}");
    } else {
        printf("%-44s %-9s %10.4g %-8s", f->name, f->metric, f->value, f->unit);
        if (f->limit)
            printf(" %5.1f%% of %.4g %s (%s)", 100 * f->value / f->limit_value, f->limit_value,
                   f->unit, f->limit);
        putchar('\n');
    }
    fflush(stdout);
}

double bench_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double bench_best_s(double seconds, void (*run)(void *ctx), void *ctx)
{
    double best = 1e9, start = bench_now_s(), at = start;
    for (int i = 0; i < 3 || at - start < seconds; i++) {
        run(ctx);
        double now = bench_now_s();
        best = now - at < best ? now - at : best;
        at = now;
    }
    return best;
}
