// linear and linear_heads: bit-equal to the reference's fused-multiply-add chains at every shape,
// every dtype, every batch size; rows of a batch equal the rows alone.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "tests/kern/kt.h"

struct linear_case {
    size_t n, rows, cols;
    enum kern_dtype dtype;
    bool bias, add, accumulate;
    bool act;     // what the output is of
    bool aligned; // operands lie as those of a model do: the tensor cores' fast kernels take them
};

enum { GAP = 5 }; // poisoned columns on both sides of the output

static size_t out_ld(const struct linear_case *c)
{
    return c->aligned ? (c->rows + 31) / 8 * 8 : c->rows + 2 * GAP;
}

static void run_linear(struct kern *k, const void *args, float *out, size_t n)
{
    const struct linear_case *c = args;
    size_t ld = out_ld(c), x_ld = c->aligned ? (c->cols + 15) / 8 * 8 : c->cols + 3;
    struct kern_weight *w = kt_weight(
        k, 1, &(struct kern_weight_args){KERN_WEIGHT_MATRIX, c->dtype, 1, c->rows, c->cols});
    struct kern_buf *x = kt_act_random_buf(k, 2, c->n * x_ld + 1);
    struct kern_buf *bias = kt_random_buf(k, 3, c->rows), *add = kt_random_buf(k, 4, c->n * ld);
    struct kern_buf *y = c->accumulate ? kt_random_buf(k, 5, n)
                         : c->act      ? kt_act_poison_buf(k, n)
                                       : kt_poison_buf(k, n);
    struct kern_view view = {y, c->aligned ? 8 : GAP, ld};
    kern_linear(k, &(struct kern_linear_args){
                       .n = c->n,
                       .w = w,
                       .x = {x, !c->aligned, x_ld},
                       .out = view,
                       .bias = c->bias ? bias : NULL,
                       .add = c->accumulate ? view
                              : c->add      ? (struct kern_view){add, 0, ld}
                                            : (struct kern_view){0},
                   });
    kt_download(out, y, n);
    kern_buf_destroy(x);
    kern_buf_destroy(bias);
    kern_buf_destroy(add);
    kern_buf_destroy(y);
    kern_weight_destroy(w);
}

static void test_shapes(void **state)
{
    static const size_t n[] = {0, 1, 2, 3, 4, 5, 6, 7, 13, 49, 101};
    static const size_t rows[] = {1, 15, 16, 17, 64, 65, 130};
    for (size_t i = 0; i < sizeof n / sizeof *n; i++)
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            for (int d = KERN_F32; d <= KERN_F16; d++) {
                struct linear_case c = {.n = n[i],
                                        .rows = rows[r],
                                        .cols = 1 + (i * 7 + r * 5) % 37,
                                        .dtype = (enum kern_dtype)d,
                                        .bias = i & 1,
                                        .add = r & 1,
                                        .accumulate = (i + r) % 5 == 0,
                                        .act = (i + r) % 2};
                kt_check(c.act ? "linear" : "linear, f32", run_linear, &c,
                         n[i] * (rows[r] + 2 * GAP), 0);
            }
}

static void test_aligned(void **state)
{
    static const size_t n[] = {1, 2, 8, 9, 16, 33, 64, 65, 132, 200};
    static const struct {
        size_t rows, cols;
    } shapes[] = {{768, 128}, {192, 96}, {704, 256}, {256, 64}, {40, 512}, {1000, 200}, {8, 8}};
    for (size_t i = 0; i < sizeof n / sizeof *n; i++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            struct linear_case c = {.n = n[i],
                                    .rows = shapes[s].rows,
                                    .cols = shapes[s].cols,
                                    .dtype = KERN_BF16,
                                    .bias = (i + s) % 3 == 0,
                                    .add = s & 1,
                                    .accumulate = (i + s) % 4 == 0,
                                    .act = (i + s) % 4 == 2,
                                    .aligned = true};
            kt_check(c.act ? "linear, aligned" : "linear, aligned, f32", run_linear, &c,
                     n[i] * out_ld(&c), 0);
        }
}

// Long sums are cut in pieces when many rows share the weights; the chain must not notice.
static void test_long_sums(void **state)
{
    struct linear_case c = {.n = 8, .rows = 40, .cols = 2500, .dtype = KERN_BF16};
    kt_check("linear, long sums, f32", run_linear, &c, 8 * (40 + 2 * GAP), 0);
}

// Rows [at, at + n) of the same x, so that a row can be computed in any company.
static void rows_of_batch(struct kern *k, size_t at, size_t n, float *out)
{
    enum { ROWS = 100, COLS = 1300 };
    struct kern_weight *w =
        kt_weight(k, 9, &(struct kern_weight_args){KERN_WEIGHT_MATRIX, KERN_BF16, 1, ROWS, COLS});
    struct kern_buf *x = kt_act_random_buf(k, 8, 20 * COLS), *y = kt_poison_buf(k, n * ROWS);
    kern_linear(k, &(struct kern_linear_args){
                       .n = n, .w = w, .x = {x, at * COLS, COLS}, .out = {y, 0, ROWS}});
    assert_int_equal(kern_download(out, y, 0, n * ROWS), STATUS_OK);
    kern_buf_destroy(x);
    kern_buf_destroy(y);
    kern_weight_destroy(w);
}

static void test_row_alone_equals_row_in_batch(void **state)
{
    static float all[20 * 100], some[20 * 100];
    for (int b = 1; b < kt_bodies_n; b++) {
        rows_of_batch(kt_bodies[b], 0, 20, all);
        for (size_t n = 1; n <= 7; n++)
            for (size_t at = 0; at + n <= 20; at += 6) {
                rows_of_batch(kt_bodies[b], at, n, some);
                assert_memory_equal(some, all + at * 100, n * 100 * sizeof *some);
            }
    }
}

struct heads_case {
    size_t n, heads, rows, cols;
    enum kern_dtype dtype;
    bool aligned;
};

static void run_heads(struct kern *k, const void *args, float *out, size_t n)
{
    const struct heads_case *c = args;
    size_t x_head = c->cols + (c->aligned ? 8 : 2), out_head = c->rows + (c->aligned ? 0 : 3);
    struct kern_weight *w = kt_weight(
        k, 1, &(struct kern_weight_args){KERN_WEIGHT_MATRIX, c->dtype, c->heads, c->rows, c->cols});
    struct kern_buf *x = kt_act_random_buf(k, 2, c->n * c->heads * x_head);
    struct kern_buf *y = kt_act_poison_buf(k, n);
    kern_linear_heads(k,
                      &(struct kern_linear_heads_args){.n = c->n,
                                                       .w = w,
                                                       .x = {x, 0, c->heads * x_head},
                                                       .out = {y, !c->aligned, c->heads * out_head},
                                                       .x_head_stride = x_head,
                                                       .out_head_stride = out_head});
    kt_download(out, y, n);
    kern_buf_destroy(x);
    kern_buf_destroy(y);
    kern_weight_destroy(w);
}

static void test_heads(void **state)
{
    static const struct heads_case cases[] = {
        {1, 4, 512, 128, KERN_BF16, false},  {3, 2, 33, 7, KERN_F32, false},
        {50, 3, 16, 20, KERN_F16, false},    {1, 1, 1, 1, KERN_BF16, false},
        {0, 2, 16, 16, KERN_F32, false},     {1, 4, 512, 128, KERN_BF16, true},
        {132, 4, 128, 512, KERN_BF16, true}, {70, 3, 64, 32, KERN_BF16, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct heads_case *c = &cases[i];
        size_t each = c->rows + (c->aligned ? 0 : 3);
        kt_check("linear_heads", run_heads, c, c->n * c->heads * each + !c->aligned, 0);
    }
}

// W filled from a transposed source, one row at a time, gives the same product.
static void test_transposed_fill(void **state)
{
    enum { ROWS = 37, COLS = 21 };
    float rowmajor[ROWS * COLS], transposed[ROWS * COLS], y[2][ROWS];
    for (size_t r = 0; r < ROWS; r++)
        for (size_t c = 0; c < COLS; c++)
            transposed[c * ROWS + r] = rowmajor[r * COLS + c] = kt_random(3, r * COLS + c);
    for (int b = 0; b < kt_bodies_n; b++) {
        struct kern *k = kt_bodies[b];
        struct kern_buf *x = kt_act_random_buf(k, 4, COLS), *out = kt_poison_buf(k, ROWS);
        for (int t = 0; t < 2; t++) {
            struct kern_weight *w;
            struct kern_weight_args shape = {KERN_WEIGHT_MATRIX, KERN_F32, 1, ROWS, COLS};
            assert_int_equal(kern_weight_create(k, &shape, &w), STATUS_OK);
            for (size_t r = 0; r < (t ? ROWS : 1); r++)
                kern_weight_fill(w, &(struct kern_fill_args){
                                        .row0 = r,
                                        .rows = t ? 1 : ROWS,
                                        .data = t ? transposed + r : rowmajor,
                                        .row_stride = t ? 1 : COLS,
                                        .col_stride = t ? ROWS : 1,
                                    });
            kern_linear(k, &(struct kern_linear_args){
                               .n = 1, .w = w, .x = {x, 0, COLS}, .out = {out, 0, ROWS}});
            assert_int_equal(kern_download(y[t], out, 0, ROWS), STATUS_OK);
            kern_weight_destroy(w);
        }
        assert_memory_equal(y[0], y[1], sizeof y[0]);
        kern_buf_destroy(x);
        kern_buf_destroy(out);
    }
}

static float e4m3(uint8_t v)
{
    int exponent = v >> 3 & 15, mantissa = v & 7;
    float f = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    return v >> 7 ? -f : f;
}

// FP8 and INT8 on the CPU bodies: the product is that of the f32 matrix float(w) * scale.
static void test_scaled_weights(void **state)
{
    enum { ROWS = 300, COLS = 200, BLOCK = KERN_SCALE_BLOCK, BLOCKS = 2 };
    static uint8_t raw[ROWS * COLS];
    static float wide[ROWS * COLS], scales[ROWS];
    for (int b = 0; b < kt_bodies_n * 2; b++) {
        struct kern *k = kt_bodies[b / 2];
        bool fp8 = b % 2;
        if (kern_backend(k) == KERN_CUDA)
            continue; // quantizes activations too
        for (size_t i = 0; i < ROWS; i++)
            scales[i] = 0.01f + kt_random(5, i) * 0.001f;
        for (size_t r = 0, i = 0; r < ROWS; r++)
            for (size_t c = 0; c < COLS; c++, i++) {
                raw[i] = (uint8_t)(((uint32_t)(kt_random(6, i) * 1e6f) & 0xff) % 0x7f);
                wide[i] = fp8 ? e4m3(raw[i]) * scales[r / BLOCK * BLOCKS + c / BLOCK]
                              : (float)(int8_t)raw[i] * scales[r];
            }
        struct kern_weight *w[2];
        struct kern_weight_args a = {KERN_WEIGHT_MATRIX, fp8 ? KERN_FP8 : KERN_INT8, 1, ROWS, COLS};
        assert_int_equal(kern_weight_create(k, &a, &w[0]), STATUS_OK);
        a.dtype = KERN_F32;
        assert_int_equal(kern_weight_create(k, &a, &w[1]), STATUS_OK);
        kern_weight_fill(w[0], &(struct kern_fill_args){.rows = ROWS, .data = raw});
        kern_weight_fill(w[1], &(struct kern_fill_args){.rows = ROWS, .data = wide});
        for (size_t row0 = 0, n; row0 < ROWS; row0 += n) { // in two parts
            n = row0 ? ROWS - row0 : BLOCK;
            kern_weight_fill_scales(
                w[0],
                &(struct kern_scales_args){.row0 = row0,
                                           .rows = n,
                                           .data = scales + (fp8 ? row0 / BLOCK * BLOCKS : row0)});
        }
        struct kern_buf *x = kt_act_random_buf(k, 4, COLS), *out = kt_poison_buf(k, ROWS);
        float y[2][ROWS];
        for (int i = 0; i < 2; i++) {
            kern_linear(k, &(struct kern_linear_args){
                               .n = 1, .w = w[i], .x = {x, 0, COLS}, .out = {out, 0, ROWS}});
            assert_int_equal(kern_download(y[i], out, 0, ROWS), STATUS_OK);
            kern_weight_destroy(w[i]);
        }
        assert_memory_equal(y[0], y[1], sizeof y[0]);
        kern_buf_destroy(x);
        kern_buf_destroy(out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),         cmocka_unit_test(test_aligned),
        cmocka_unit_test(test_long_sums),      cmocka_unit_test(test_row_alone_equals_row_in_batch),
        cmocka_unit_test(test_heads),          cmocka_unit_test(test_transposed_fill),
        cmocka_unit_test(test_scaled_weights),
    };
    return cmocka_run_group_tests_name("kern/linear", tests, kt_setup, kt_teardown);
}
