// The ops that treat rows one by one (embed, gather_rows, rmsnorm, add, silu_mul, rope, argmax),
// opening, memory, and the thread pool under many small jobs.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "base/mem.h"
#include "kernels/cpu/pool.h"
#include "tests/kern/kt.h"

struct rows_case {
    size_t n, dim, heads;
    int mode;
};

static const struct rows_case cases[] = {
    {0, 16, 1, 0}, {1, 2, 1, 0},  {1, 256, 1, 1},  {3, 18, 5, 2},
    {5, 64, 4, 1}, {40, 6, 3, 0}, {900, 34, 2, 1},
};
static const size_t cases_n = sizeof cases / sizeof *cases;

static size_t row_width(const struct rows_case *c)
{
    return c->heads * (c->dim + 3) + 4;
}
static size_t all_n(const struct rows_case *c)
{
    return c->n * row_width(c) + 1;
}

static void finish(struct kern_buf *y, float *out, size_t n)
{
    kt_download(out, y, n);
    kern_buf_destroy(y);
}

static void run_rmsnorm(struct kern *k, const void *args, float *out, size_t n)
{
    const struct rows_case *c = args;
    bool in_place = c->mode == 1;
    struct kern_buf *x = c->mode == 1 ? kt_act_random_buf(k, 1, n) : kt_random_buf(k, 1, n);
    struct kern_buf *y = in_place       ? x
                         : c->mode == 0 ? kt_act_poison_buf(k, n)
                                        : kt_poison_buf(k, n);
    struct kern_buf *gamma = kt_random_buf(k, 2, c->dim);
    kern_rmsnorm(k, &(struct kern_rmsnorm_args){.n = c->n,
                                                .dim = c->dim,
                                                .heads = c->heads == 1 ? 0 : c->heads,
                                                .x_head_stride = c->dim + 3,
                                                .out_head_stride = c->dim + 3,
                                                .x = {x, 1, row_width(c)},
                                                .out = {y, 1, row_width(c)},
                                                .gamma = gamma,
                                                .eps = 1e-6f});
    finish(y, out, n);
    if (!in_place)
        kern_buf_destroy(x);
    kern_buf_destroy(gamma);
}

static void run_add(struct kern *k, const void *args, float *out, size_t n)
{
    const struct rows_case *c = args;
    struct kern_buf *a = kt_random_buf(k, 1, n), *b = kt_random_buf(k, 2, n);
    struct kern_buf *y = c->mode == 1 ? a : kt_poison_buf(k, n);
    struct kern_view va = {a, 0, row_width(c)}, vb = {b, 1, row_width(c)},
                     vy = {y, 0, row_width(c)};
    kern_add(k, &(struct kern_add_args){.n = c->n, .dim = c->dim, .a = va, .b = vb, .out = vy});
    finish(y, out, n);
    if (y != a)
        kern_buf_destroy(a);
    kern_buf_destroy(b);
}

// Gates from -120 to 120: exp over- and underflows there.
static void run_silu_mul(struct kern *k, const void *args, float *out, size_t n)
{
    const struct rows_case *c = args;
    float *wide = mem_zalloc(n, sizeof *wide);
    for (size_t i = 0; i < n; i++)
        wide[i] = 120 * kt_random(1, i) * (i % 3 ? 0.05f : 1);
    struct kern_buf *gate = kt_act_buf(k, wide, n), *up = kt_act_random_buf(k, 2, n);
    struct kern_buf *y = c->mode == 1 ? gate : kt_act_poison_buf(k, n);
    kern_silu_mul(k, &(struct kern_silu_mul_args){.n = c->n,
                                                  .dim = c->dim,
                                                  .gate = {gate, 1, row_width(c)},
                                                  .up = {up, 0, row_width(c)},
                                                  .out = {y, 1, row_width(c)}});
    finish(y, out, n);
    if (y != gate)
        kern_buf_destroy(gate);
    kern_buf_destroy(up);
    free(wide);
}

static void run_rope(struct kern *k, const void *args, float *out, size_t n)
{
    const struct rows_case *c = args;
    enum { POSITIONS = 50 };
    int32_t *pos = mem_zalloc(c->n + 1, 4);
    for (size_t i = 0; i < c->n; i++)
        pos[i] = (int32_t)(i * 13 % POSITIONS);
    struct kern_buf *x = c->mode ? kt_act_random_buf(k, 1, n) : kt_random_buf(k, 1, n);
    struct kern_buf *table = kt_random_buf(k, 2, POSITIONS * c->dim);
    struct kern_buf *positions = kt_i32_buf(k, pos, c->n);
    kern_rope(k, &(struct kern_rope_args){.n = c->n,
                                          .heads = c->heads,
                                          .head_stride = c->dim + 3,
                                          .dim = c->dim,
                                          .style = c->mode ? KERN_ROPE_PAIRS : KERN_ROPE_HALVES,
                                          .x = {x, 3, row_width(c)},
                                          .table = table,
                                          .positions = POSITIONS,
                                          .pos = positions});
    finish(x, out, n);
    kern_buf_destroy(table);
    kern_buf_destroy(positions);
    free(pos);
}

// embed when mode is 0, else gather_rows.
static void run_lookup(struct kern *k, const void *args, float *out, size_t n)
{
    const struct rows_case *c = args;
    enum { ROWS = 30 };
    int32_t *ids = mem_zalloc(c->n + 2, 4);
    for (size_t i = 0; i < c->n + 1; i++)
        ids[i] = (int32_t)((i * 7 + 3) % ROWS);
    struct kern_buf *index = kt_i32_buf(k, ids, c->n + 1);
    struct kern_buf *y = c->mode == 1 ? kt_act_poison_buf(k, n) : kt_poison_buf(k, n);
    size_t x_n = ROWS * (c->dim + 1);
    struct kern_buf *x = c->mode == 1 ? kt_act_random_buf(k, 1, x_n) : kt_random_buf(k, 1, x_n);
    struct kern_weight *table =
        kt_weight(k, 2, &(struct kern_weight_args){KERN_WEIGHT_TABLE, KERN_BF16, 1, ROWS, c->dim});
    struct kern_view to = {y, 1, row_width(c)};
    if (c->mode == 0)
        kern_embed(k, &(struct kern_embed_args){
                          .n = c->n, .table = table, .ids = index, .ids_at = 1, .out = to});
    else
        kern_gather_rows(k, &(struct kern_gather_args){.n = c->n,
                                                       .dim = c->dim,
                                                       .x_rows = ROWS,
                                                       .x = {x, 0, c->dim + 1},
                                                       .rows = index,
                                                       .out = to});
    finish(y, out, n);
    kern_buf_destroy(index);
    kern_buf_destroy(x);
    kern_weight_destroy(table);
    free(ids);
}

static void test_against_reference(void **state)
{
    for (size_t i = 0; i < cases_n; i++) {
        kt_check("rmsnorm", run_rmsnorm, &cases[i], all_n(&cases[i]), 1e-6);
        kt_check("add, f32", run_add, &cases[i], all_n(&cases[i]), 0);
        kt_check("silu_mul", run_silu_mul, &cases[i], all_n(&cases[i]), 5e-7);
        kt_check("rope", run_rope, &cases[i], all_n(&cases[i]), 0);
        kt_check("embed, gather_rows, f32", run_lookup, &cases[i], all_n(&cases[i]), 0);
    }
}

// Rows so long that several parts of the device share one; the best anywhere, and ties.
static void test_argmax_of_long_rows(void **state)
{
    enum { N = 5, DIM = 70001 };
    static const int32_t want[N] = {0, DIM - 1, 2047, 40000, -1};
    float *x = mem_alloc(N * DIM * sizeof *x);
    for (size_t i = 0; i < N * DIM; i++)
        x[i] = kt_random(3, i);
    for (size_t i = 0; i < N; i++)
        x[i * DIM + (size_t)(want[i] < 0 ? 7 : want[i])] = want[i] < 0 ? INFINITY : 2;
    x[2 * DIM + 2048] = x[2 * DIM + 69999] = 2; // ties lose to the lower index
    for (int b = 0; b < kt_bodies_n; b++) {
        struct kern_buf *in = kt_f32_buf(kt_bodies[b], x, N * DIM), *out;
        assert_int_equal(kern_buf_create_shared(kt_bodies[b], KERN_I32, N, &out), STATUS_OK);
        for (int again = 0; again < 3; again++) {
            kern_argmax(kt_bodies[b], &(struct kern_argmax_args){
                                          .n = N, .dim = DIM, .x = {in, 0, DIM}, .out = out});
            assert_int_equal(kern_sync(kt_bodies[b]), STATUS_OK);
            assert_memory_equal(kern_buf_host(out), want, sizeof want);
        }
        kern_buf_destroy(in);
        kern_buf_destroy(out);
    }
    free(x);
}

static void test_argmax(void **state)
{
    float x[4][19];
    for (size_t i = 0; i < 4 * 19; i++)
        x[i / 19][i % 19] = -5 - (float)(i % 7);
    x[0][18] = 2;           // in the tail
    x[1][4] = x[1][13] = 1; // a tie
    x[2][7] = 3, x[2][1] = NAN;
    x[3][17] = NAN;
    for (int b = 0; b < kt_bodies_n; b++) {
        struct kern_buf *in = kt_f32_buf(kt_bodies[b], x[0], 4 * 19);
        struct kern_buf *out = kt_i32_buf(kt_bodies[b], (int32_t[4]){0}, 4);
        kern_argmax(kt_bodies[b],
                    &(struct kern_argmax_args){.n = 4, .dim = 19, .x = {in, 0, 19}, .out = out});
        int32_t got[4], want[4] = {18, 4, -1, -1};
        assert_int_equal(kern_download(got, out, 0, 4), STATUS_OK);
        assert_memory_equal(got, want, sizeof got);
        kern_buf_destroy(in);
        kern_buf_destroy(out);
    }
}

// Every f16 and bf16 pattern reaches float32 as the formats say.
static void test_half_formats(void **state)
{
    enum { ALL = 1 << 16 };
    uint16_t *bits = mem_alloc(ALL * sizeof *bits);
    float *got = mem_alloc(ALL * sizeof *got);
    for (size_t i = 0; i < ALL; i++)
        bits[i] = (uint16_t)i;
    for (int b = 0; b < kt_bodies_n; b++) {
        struct kern_weight *w; // one input of 1.0 shows each weight, also by the vector path
        struct kern_weight_args shape = {KERN_WEIGHT_MATRIX, KERN_F16, 1, ALL, 1};
        assert_int_equal(kern_weight_create(kt_bodies[b], &shape, &w), STATUS_OK);
        kern_weight_fill(w, &(struct kern_fill_args){.rows = ALL, .data = bits});
        struct kern_buf *one = kt_act_buf(kt_bodies[b], (float[]){1}, 1);
        struct kern_buf *y = kt_poison_buf(kt_bodies[b], ALL);
        kern_linear(kt_bodies[b], &(struct kern_linear_args){
                                      .n = 1, .w = w, .x = {one, 0, 1}, .out = {y, 0, ALL}});
        assert_int_equal(kern_download(got, y, 0, ALL), STATUS_OK);
        for (size_t i = 0; i < ALL; i++) {
            int e = (int)(i >> 10 & 31), m = (int)(i & 1023);
            float v = e ? ldexpf((float)(1024 + m), e - 25) : ldexpf((float)m, -24);
            v = e == 31 ? (m ? NAN : INFINITY) : v;
            v = i >> 15 ? -v : v;
            assert_true(isnan(v) ? isnan(got[i]) : got[i] == v);
        }
        kern_weight_destroy(w);
        kern_buf_destroy(one);
        kern_buf_destroy(y);
    }
    free(bits);
    free(got);
}

static void test_opening(void **state)
{
    struct kern *k;
    struct errmsg err;
    char *module = getenv("HADAL_CUDA_MODULE"), *kept = module ? mem_strdup(module) : NULL;
    setenv("HADAL_CUDA_MODULE", "/nowhere/libhadal_cuda.so", 1);
    if (kern_backend(kt_bodies[kt_bodies_n - 1]) != KERN_CUDA) { // loaded once per process
        assert_int_equal(kern_open(KERN_CUDA, &(struct kern_config){0}, &k, &err),
                         STATUS_NO_DEVICE);
        assert_non_null(strstr(err.text, "cuda"));
        assert_non_null(strstr(err.text, "/nowhere"));
    }
    if (kept)
        setenv("HADAL_CUDA_MODULE", kept, 1);
    else
        unsetenv("HADAL_CUDA_MODULE");
    free(kept);
    assert_int_equal(kern_open(KERN_CPU, &(struct kern_config){.threads = -1}, &k, &err),
                     STATUS_BAD_CONFIG);
    assert_non_null(strstr(err.text, "threads"));
    assert_int_equal(kern_open(KERN_CPU, &(struct kern_config){.threads = 100000}, &k, NULL),
                     STATUS_BAD_CONFIG);
}

static void test_memory(void **state)
{
    struct kern *k = kt_bodies[0];
    float mine[6] = {1, 2, 3, 4, 5, 6}, got[4];
    struct kern_buf *b;
    assert_int_equal(kern_buf_wrap(k, KERN_F32, mine, 6, &b), STATUS_OK);
    kern_zero(b, 1, 2);
    kern_upload(b, 4, (float[]){9}, 1);
    assert_int_equal(kern_download(got, b, 1, 4), STATUS_OK);
    assert_memory_equal(got, ((float[]){0, 0, 4, 9}), sizeof got);
    assert_ptr_equal(kern_buf_ptr(b), mine);
    assert_int_equal(kern_buf_n(b), 6);
    kern_buf_destroy(b);
    assert_true(mine[5] == 6);
    assert_int_equal(kern_buf_create(k, KERN_F32, (size_t)1 << 60, &b), STATUS_NO_MEMORY);
    struct kern_weight *w;
    struct kern_weight_args absurd = {KERN_WEIGHT_MATRIX, KERN_F32, 1 << 20, 1 << 30, 1 << 30};
    assert_int_equal(kern_weight_create(k, &absurd, &w), STATUS_NO_MEMORY);
    assert_int_equal(kern_sync(k), STATUS_OK);
    kern_buf_destroy(NULL);
    kern_weight_destroy(NULL);
    kern_close(NULL);
}

// ---- pool

struct tally {
    atomic_int count[64];
    atomic_int wrong_thread;
};

static void count_item(void *ctx, size_t item, int thread)
{
    struct tally *t = ctx;
    atomic_fetch_add(&t->count[item], 1);
    if (thread < 0 || thread >= 4)
        atomic_fetch_add(&t->wrong_thread, 1);
}

// Every item of every job runs exactly once, with jobs back to back and with pauses that let the
// helpers fall asleep.
static void test_pool(void **state)
{
    struct cpu_pool *p = cpu_pool_create(4);
    for (int job = 0; job < 20000; job++) {
        struct tally t = {0};
        size_t n = (size_t)job % 63 + 1;
        cpu_pool_run(p, n, count_item, &t);
        for (size_t i = 0; i < 64; i++)
            assert_int_equal(atomic_load(&t.count[i]), i < n);
        assert_int_equal(atomic_load(&t.wrong_thread), 0);
        if (job % 1000 == 0)
            nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    cpu_pool_destroy(p);
}

// Helpers of an idle pool sleep: the process uses no CPU time.
static void test_pool_sleeps(void **state)
{
    if (kern_backend(kt_bodies[kt_bodies_n - 1]) == KERN_CUDA)
        skip(); // threads of the driver and of tools around it use CPU time too
    struct cpu_pool *p = cpu_pool_create(4);
    struct tally t = {0};
    cpu_pool_run(p, 8, count_item, &t);
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    double used = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
    assert_true(used < 0.005);
    cpu_pool_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_argmax),
        cmocka_unit_test(test_argmax_of_long_rows),
        cmocka_unit_test(test_half_formats),
        cmocka_unit_test(test_opening),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_pool_sleeps),
    };
    return cmocka_run_group_tests_name("kern/rows", tests, kt_setup, kt_teardown);
}
