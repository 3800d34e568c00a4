// Shared by `hadal bench WHAT`: how a figure is printed, and the machine's limits it is held
// against, measured in the same run.
#pragma once

#include <stdbool.h>
#include <stddef.h>

// One figure. `limit` names what bounds it ("memory bandwidth"); NULL: nothing was measured for it.
// Where value and limit are rates, share = value / limit_value.
struct bench_figure {
    const char *name; // the case
    const char *metric, *unit;
    double value;
    const char *limit;
    double limit_value; // same unit
};
// A JSON line, or an aligned line for people.
void bench_print(bool json, const struct bench_figure *f);

double bench_now_s(void); // monotonic

// Calls run(ctx) until `seconds` are over, at least 3 times; the best time of one call in seconds.
double bench_best_s(double seconds, void (*run)(void *ctx), void *ctx);

// What this host's cores reach, with `threads` threads at once.
struct bench_limits {
    double read_gb_s; // summing an array that no cache holds
    double gflop_s;   // independent fused multiply-adds of the widest vectors, 2 flop each
};
struct bench_limits bench_measure_limits(int threads);

int bench_kernels(int argc, char **argv);
int bench_decode(int argc, char **argv);
int bench_prefill(int argc, char **argv);
int bench_xport(int argc, char **argv);
