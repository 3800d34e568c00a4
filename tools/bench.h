// Shared by `hadal bench WHAT`: how a figure is printed, and the machine's limits it is held
// against, measured in the same run.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "kernels/kern.h"

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

// What bounds a figure, and what it is called.
struct bench_limits {
    double read_gb_s;                 // memory
    double gflop_s;                   // multiply-adds, 2 flop each; bf16 on a GPU
    double fp8_gflop_s, int8_gflop_s; // of a GPU; 0: not known
    double host_gb_s;                 // pinned host memory to a GPU; 0 on CPUs
    const char *memory, *compute;     // static strings
};
// This host's cores, `threads` at once: summing an array that no cache holds; independent fused
// multiply-adds of the widest vectors.
struct bench_limits bench_measure_limits(int threads);
// What k computes on: the above, or the device's large copy and cuBLASLt's large bf16 product.
enum status bench_limits_of(struct kern *k, struct bench_limits *out,
                            struct errmsg *err) STATUS_MUST_USE;

int bench_kernels(int argc, char **argv);
int bench_decode(int argc, char **argv);
int bench_prefill(int argc, char **argv);
int bench_load(int argc, char **argv);
int bench_xport(int argc, char **argv);
int bench_kv(int argc, char **argv);
int bench_comm(int argc, char **argv);
int bench_stages(int argc, char **argv);
int bench_weights(int argc, char **argv);
