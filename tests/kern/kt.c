#include "tests/kern/kt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "base/prng.h"

struct kern *kt_bodies[KT_BODIES_MAX];
int kt_bodies_n;

static void open_body(enum kern_backend backend, enum kern_isa isa, int threads)
{
    struct errmsg err;
    struct kern_config config = {.threads = threads, .isa = isa};
    if (kern_open(backend, &config, &kt_bodies[kt_bodies_n], &err) == STATUS_OK)
        print_message("  body: %s\n", kern_describe(kt_bodies[kt_bodies_n++]));
}

// HADAL_KERN_BODY=cuda: the suites run on the CUDA body instead of the fast CPU ones. It adds in
// another order, and rounds what it stores to bf16 where kern.h says `act`; attention rounds
// probabilities too.
static bool on_cuda;

static double slack(const char *what)
{
    return !on_cuda                                             ? 0
           : strstr(what, "attention") || strstr(what, "gated") ? 1e-2
           : strstr(what, "f32") != NULL                        ? 2e-5
                                                                : 4e-3;
}

enum { SKIPPED = 77 }; // what meson takes for "skipped"

static int setup_cuda(void)
{
    struct errmsg err;
    open_body(KERN_CPU_REF, KERN_ISA_BEST, 1);
    if (kern_open(KERN_CUDA, &(struct kern_config){0}, &kt_bodies[1], &err) != STATUS_OK) {
        fprintf(stderr, "SKIPPED, nothing was tested: %s\n", err.text);
        exit(SKIPPED);
    }
    print_message("  body: %s\n", kern_describe(kt_bodies[1]));
    kt_bodies_n = 2;
    on_cuda = true;
    return 0;
}

int kt_setup(void **state)
{
    const char *body = getenv("HADAL_KERN_BODY");
    if (body && !strcmp(body, "cuda"))
        return setup_cuda();
    open_body(KERN_CPU_REF, KERN_ISA_BEST, 1);
    open_body(KERN_CPU, KERN_ISA_PORTABLE, 1);
    open_body(KERN_CPU, KERN_ISA_PORTABLE, 3);
    open_body(KERN_CPU, KERN_ISA_AVX2, 1);
    open_body(KERN_CPU, KERN_ISA_AVX2, 4);
    open_body(KERN_CPU, KERN_ISA_AVX512, 1);
    open_body(KERN_CPU, KERN_ISA_AVX512, 2);
    return kt_bodies_n >= 3 ? 0 : -1;
}

int kt_teardown(void **state)
{
    for (int i = 0; i < kt_bodies_n; i++)
        kern_close(kt_bodies[i]);
    kt_bodies_n = 0;
    return 0;
}

float kt_random(uint64_t seed, size_t i)
{
    uint64_t z = seed * 0x9e3779b97f4a7c15u + i + 1; // splitmix64's finaliser
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (float)((z ^ z >> 31) >> 40) * 0x1p-23f - 1;
}

struct kern_buf *kt_f32_buf(struct kern *k, const float *v, size_t n)
{
    struct kern_buf *b;
    assert_int_equal(kern_buf_create(k, KERN_F32, n, &b), STATUS_OK);
    kern_upload(b, 0, v, n);
    return b;
}

struct kern_buf *kt_random_buf(struct kern *k, uint64_t seed, size_t n)
{
    float *v = mem_alloc((n + 1) * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = kt_random(seed, i);
    struct kern_buf *b = kt_f32_buf(k, v, n);
    free(v);
    return b;
}

struct kern_buf *kt_poison_buf(struct kern *k, size_t n)
{
    float *v = mem_alloc((n + 1) * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = NAN;
    struct kern_buf *b = kt_f32_buf(k, v, n);
    free(v);
    return b;
}

static uint16_t to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if (isnan(f))
        return (uint16_t)(u >> 16 | 1);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

struct kern_buf *kt_act_buf(struct kern *k, const float *v, size_t n)
{
    if (!on_cuda)
        return kt_f32_buf(k, v, n);
    uint16_t *h = mem_alloc((n + 1) * sizeof *h);
    float *f = mem_alloc((n + 1) * sizeof *f);
    for (size_t i = 0; i < n; i++) {
        h[i] = to_bf16(v[i]);
        f[i] = from_bf16(h[i]);
    }
    bool wide = kern_act_dtype(k) == KERN_F32;
    struct kern_buf *b;
    assert_int_equal(kern_buf_create(k, kern_act_dtype(k), n, &b), STATUS_OK);
    kern_upload(b, 0, wide ? (void *)f : (void *)h, n);
    free(h);
    free(f);
    return b;
}

struct kern_buf *kt_act_random_buf(struct kern *k, uint64_t seed, size_t n)
{
    float *v = mem_alloc((n + 1) * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = kt_random(seed, i);
    struct kern_buf *b = kt_act_buf(k, v, n);
    free(v);
    return b;
}

struct kern_buf *kt_act_poison_buf(struct kern *k, size_t n)
{
    float *v = mem_alloc((n + 1) * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = NAN;
    struct kern_buf *b = kt_act_buf(k, v, n);
    free(v);
    return b;
}

void kt_download(float *out, const struct kern_buf *b, size_t n)
{
    if (kern_buf_dtype(b) == KERN_F32) {
        assert_int_equal(kern_download(out, b, 0, n), STATUS_OK);
        return;
    }
    uint16_t *h = mem_alloc((n + 1) * sizeof *h);
    assert_int_equal(kern_download(h, b, 0, n), STATUS_OK);
    for (size_t i = 0; i < n; i++)
        out[i] = from_bf16(h[i]);
    free(h);
}

struct kern_buf *kt_i32_buf(struct kern *k, const int32_t *v, size_t n)
{
    struct kern_buf *b;
    assert_int_equal(kern_buf_create(k, KERN_I32, n, &b), STATUS_OK);
    kern_upload(b, 0, v, n);
    return b;
}

// Truncates to the dtype; random values need no care for overflow.
static void encode(enum kern_dtype dtype, float f, char *to)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t h = (uint16_t)(u >> 16);
    if (dtype == KERN_F16) { // normal numbers, else zero (sign kept)
        int exponent = (int)(u >> 23 & 255) - 112;
        h = (uint16_t)((u >> 16 & 0x8000) |
                       (exponent > 0 ? (uint32_t)exponent << 10 | (u >> 13 & 1023) : u >> 13 & 3));
    }
    memcpy(to, dtype == KERN_F32 ? (void *)&u : (void *)&h, dtype == KERN_F32 ? 4 : 2);
}

struct kern_weight *kt_weight(struct kern *k, uint64_t seed, const struct kern_weight_args *a)
{
    struct kern_weight *w;
    assert_int_equal(kern_weight_create(k, a, &w), STATUS_OK);
    size_t e = a->dtype == KERN_F32 ? 4 : 2, matrix = a->rows * a->cols;
    char *host = mem_alloc(matrix * e + 1) /* unaligned on purpose */, *data = host + 1;
    for (size_t s = 0; s < a->stack; s++) {
        for (size_t i = 0; i < matrix; i++)
            encode(a->dtype, kt_random(seed + 77 * s, i), data + i * e);
        size_t half = a->rows / 2;
        kern_weight_fill(w, &(struct kern_fill_args){.s = s, .rows = half, .data = data});
        kern_weight_fill(w, &(struct kern_fill_args){.s = s,
                                                     .row0 = half,
                                                     .rows = a->rows - half,
                                                     .data = data + half * a->cols * e});
    }
    free(host);
    return w;
}

static void compare_with_reference(const char *what, const char *body, const float *want,
                                   const float *got, size_t n, double bound)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++)
        if (!isnan(want[i]))
            largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < n; i++) {
        if (isnan(want[i]) != isnan(got[i]))
            fail_msg("%s on %s: element %zu is %g, the reference has %g", what, body, i, got[i],
                     want[i]);
        if (!isnan(want[i]) && !(fabs((double)got[i] - want[i]) <= bound * largest))
            fail_msg("%s on %s: element %zu is %.9g, the reference has %.9g, bound %g of %g", what,
                     body, i, got[i], want[i], bound, largest);
    }
}

static void compare_bits(const char *what, const char *body, const float *want, const float *got,
                         size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (isnan(want[i]) != isnan(got[i]) || (!isnan(want[i]) && want[i] != got[i]))
            fail_msg("%s on %s: element %zu is %.9g, another body has %.9g", what, body, i, got[i],
                     want[i]);
}

void kt_check(const char *what, kt_op *op, const void *args, size_t n, double bound)
{
    float *want = mem_zalloc(n + 1, sizeof *want), *got = mem_zalloc(n + 1, sizeof *got);
    float *first = mem_zalloc(n + 1, sizeof *first);
    op(kt_bodies[0], args, want, n);
    op(kt_bodies[1], args, first, n);
    compare_with_reference(what, kern_describe(kt_bodies[1]), want, first, n, bound + slack(what));
    for (int i = 2; i < kt_bodies_n; i++) {
        op(kt_bodies[i], args, got, n);
        compare_bits(what, kern_describe(kt_bodies[i]), first, got, n);
    }
    free(want);
    free(got);
    free(first);
}
