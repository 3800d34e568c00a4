// tests/sim --seeds A..B        runs seeds A to B-1
//           --seed N [--trace] [--until SECONDS]
//           --apart             a measured run: prefill and decode apart
//           --overload          a measured run with more than the cluster can do
//           --scale [options]   thousands of nodes, datacenters, 100,000 streams (scale.h)
//           --scenario NAME     prints a named scenario's trace
//           --golden DIR        compares all of them with DIR/NAME.txt; --bless DIR writes them
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/sim/scale.h"
#include "tests/sim/world.h"

static void on_abort(int sig)
{
    if (world_current)
        world_dump(world_current);
    _exit(1);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int run_seeds(uint64_t from, uint64_t to, bool trace, uint64_t until_us)
{
    struct swarm_report sum = {0};
    double begin = seconds();
    for (uint64_t seed = from; seed < to; seed++)
        swarm_run(seed, trace, until_us, &sum);
    printf("%" PRIu64 " seeds, %" PRIu64 " virtual s, %" PRIu64 " steps, %" PRIu64
           " requests, %" PRIu64 " tokens, %" PRIu64 " fences, %" PRIu64 " moves, %" PRIu64
           " preemptions, %" PRIu64 " probes, %" PRIu64 " quarantines, %" PRIu64 " lies, %" PRIu64
           " takeovers of %" PRIu64 " requests, %" PRIu64 " rollouts (%" PRIu64 " done, %" PRIu64
           " taken back, %" PRIu64 " loans), %" PRIu64 " times scaled, %" PRIu64 " stale messages offered, %" PRIu64
           " KV transfers, %" PRIu64 " handed over, %" PRIu64 " prompts apart, %" PRIu64 " sources of weights named, %.1f s\n",
           to - from, sum.virtual_us / 1000000, sum.steps, sum.requests, sum.tokens, sum.fences,
           sum.moves, sum.preemptions, sum.probes, sum.quarantines, sum.lies, sum.takeovers,
           sum.restored, sum.rollouts, sum.rollouts_done, sum.rollouts_reverted, sum.loans, sum.scaled, sum.stale, sum.transfers, sum.kv_moved, sum.apart, sum.sources,
           seconds() - begin);
    return 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: sim --seeds A..B | --seed N [--trace] [--until SECONDS] | --overload | --scale ... | "
                    "--scenario NAME | --golden DIR | --bless DIR\n");
    return 2;
}

static bool parse_range(const char *s, uint64_t *from, uint64_t *to)
{
    char *end;
    *from = strtoull(s, &end, 10);
    if (strncmp(end, "..", 2) != 0)
        return false;
    *to = strtoull(end + 2, &end, 10);
    return *end == 0 && *from < *to;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},
        {"seeds", required_argument, NULL, 'S'},
        {"trace", no_argument, NULL, 't'},
        {"until", required_argument, NULL, 'u'},
        {"scenario", required_argument, NULL, 'n'},
        {"golden", required_argument, NULL, 'g'},
        {"bless", required_argument, NULL, 'b'},
        {"overload", no_argument, NULL, 'o'},
        {"apart", no_argument, NULL, 'A'},
        {0},
    };
    uint64_t from = 0, to = 0, until_us = UINT64_MAX / 2;
    const char *golden = NULL, *scenario = NULL;
    bool trace = false, bless = false;
    signal(SIGABRT, on_abort);
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--scale"))
            return scale_main(argc, argv);
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 's') {
            from = strtoull(optarg, NULL, 10);
            to = from + 1;
        } else if (o == 'S') {
            if (!parse_range(optarg, &from, &to))
                return usage();
        } else if (o == 't') {
            trace = true;
        } else if (o == 'u') {
            until_us = (uint64_t)(strtod(optarg, NULL) * 1e6);
        } else if (o == 'A') {
            return apart_run() ? 0 : 1;
        } else if (o == 'o') {
            return overload_run() ? 0 : 1;
        } else if (o == 'n') {
            scenario = optarg;
        } else if (o == 'g' || o == 'b') {
            golden = optarg;
            bless = o == 'b';
        } else {
            return usage();
        }
    }
    if (scenario)
        return golden_print(scenario) ? 0 : usage();
    if (golden)
        return golden_run(golden, bless) != 0;
    return from < to ? run_seeds(from, to, trace, until_us) : usage();
}
