// Common to the kern tests: the bodies of this host, deterministic random operands, and the check
// that every test makes: an op run on every body, over poisoned (NaN) outputs, against the
// reference.
#pragma once

#include "kernels/kern.h"

enum { KT_BODIES_MAX = 8 };

// Opened once per program: [0] is the reference; the others are fast bodies (instruction sets this
// host has, with 1 and several threads) that must agree bit for bit.
extern struct kern *kt_bodies[KT_BODIES_MAX];
extern int kt_bodies_n;
int kt_setup(void **state);
int kt_teardown(void **state);

// Element i of random stream `seed`, uniform in [-1, 1); the same on every body.
float kt_random(uint64_t seed, size_t i);

// Buffers: random, poisoned with NaN, and index arrays (copied).
struct kern_buf *kt_random_buf(struct kern *k, uint64_t seed, size_t n);
struct kern_buf *kt_poison_buf(struct kern *k, size_t n);
struct kern_buf *kt_f32_buf(struct kern *k, const float *v, size_t n);
struct kern_buf *kt_i32_buf(struct kern *k, const int32_t *v, size_t n);
// The same of the dtype that products read and KV pools hold (kern_act_dtype): f32, or bf16 on a
// backend that takes it. Then the values are bf16 on the reference too, so that both see the same.
struct kern_buf *kt_act_random_buf(struct kern *k, uint64_t seed, size_t n);
struct kern_buf *kt_act_poison_buf(struct kern *k, size_t n);
struct kern_buf *kt_act_buf(struct kern *k, const float *v, size_t n);
// The first n elements as float32, whatever their dtype.
void kt_download(float *out, const struct kern_buf *b, size_t n);
// Random matrices, each filled in two parts when there is more than one row.
struct kern_weight *kt_weight(struct kern *k, uint64_t seed, const struct kern_weight_args *args);

// `op` builds its operands on k, runs, and downloads its whole output buffer (n floats), poison
// included. Checks: fast bodies agree bit for bit; against the reference NaN stands at the same
// places and values are within `bound` of it, relative to the largest value (0 = equal).
typedef void kt_op(struct kern *k, const void *args, float *out, size_t n);
void kt_check(const char *what, kt_op *op, const void *args, size_t n, double bound);
