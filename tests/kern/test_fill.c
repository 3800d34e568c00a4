// The ways in which weights are filled beside kern_weight_fill: numbers made in place equal those
// of base/noise.h on every body, staged fills equal plain ones.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "base/minifloat.h"
#include "base/noise.h"
#include "tests/kern/kt.h"

enum { ROWS = 37, COLS = 75, KEY = 99 };

static struct kern_weight *make(struct kern *k, enum kern_weight_kind kind, enum kern_dtype dtype)
{
    struct kern_weight *w;
    const struct kern_weight_args a = {kind, dtype, 1, ROWS, COLS};
    assert_int_equal(kern_weight_create(k, &a, &w), STATUS_OK);
    return w;
}

// A table's rows are read by looking them up; a matrix's columns by multiplying with unit vectors.
static void read_back(struct kern *k, struct kern_weight *w, enum kern_weight_kind kind,
                      float out[ROWS * COLS])
{
    struct kern_buf *y = kt_poison_buf(k, ROWS * COLS);
    if (kind == KERN_WEIGHT_TABLE) {
        int32_t ids[ROWS];
        for (int i = 0; i < ROWS; i++)
            ids[i] = i;
        struct kern_buf *b = kt_i32_buf(k, ids, ROWS);
        kern_embed(k,
                   &(struct kern_embed_args){.n = ROWS, .table = w, .ids = b, .out = {y, 0, COLS}});
        assert_int_equal(kern_download(out, y, 0, ROWS * COLS), STATUS_OK);
        kern_buf_destroy(b);
    } else {
        const bool bf16 = kern_act_dtype(k) == KERN_BF16;
        static float one[COLS * COLS], columns[COLS * ROWS];
        static uint16_t one16[COLS * COLS];
        struct kern_buf *x;
        for (int i = 0; i < COLS; i++) {
            one[i * COLS + i] = 1;
            one16[i * COLS + i] = 0x3f80;
        }
        assert_int_equal(kern_buf_create(k, kern_act_dtype(k), COLS * COLS, &x), STATUS_OK);
        kern_upload(x, 0, bf16 ? (const void *)one16 : one, COLS * COLS);
        kern_linear(k, &(struct kern_linear_args){
                           .n = COLS, .w = w, .x = {x, 0, COLS}, .out = {y, 0, ROWS}});
        assert_int_equal(kern_download(columns, y, 0, ROWS * COLS), STATUS_OK);
        for (int i = 0; i < ROWS * COLS; i++)
            out[i] = columns[i % COLS * ROWS + i / COLS];
        kern_buf_destroy(x);
    }
    kern_buf_destroy(y);
}

static void expect_noise(const float *got, enum kern_dtype dtype, uint64_t first)
{
    for (int r = 0; r < ROWS; r++) {
        float row[COLS];
        noise_f32(&(struct noise){KEY, first + (uint64_t)r, 0.5f, 2}, COLS, row);
        for (int c = 0; c < COLS; c++)
            assert_true(got[r * COLS + c] ==
                        (dtype == KERN_F32 ? row[c] : bf16_to_f32(bf16_from_f32(row[c]))));
    }
}

static void test_noise(void **state)
{
    static const enum kern_dtype dtypes[] = {KERN_F32, KERN_BF16};
    static const enum kern_weight_kind kinds[] = {KERN_WEIGHT_TABLE, KERN_WEIGHT_MATRIX};
    static float got[ROWS * COLS];
    for (int i = 0; i < kt_bodies_n * 4; i++) {
        struct kern *k = kt_bodies[i / 4];
        enum kern_dtype dtype = dtypes[i / 2 % 2];
        struct kern_weight *w = make(k, kinds[i % 2], dtype);
        // In two parts, from the middle of a stream.
        for (size_t at = 0; at < ROWS; at += 30)
            kern_weight_fill_noise(w, &(struct kern_noise_args){.row0 = at,
                                                                .rows = at ? ROWS - at : 30,
                                                                .key = KEY,
                                                                .first = 1000 + at,
                                                                .mean = 0.5f,
                                                                .amplitude = 2});
        read_back(k, w, kinds[i % 2], got);
        expect_noise(got, dtype, 1000);
        kern_weight_destroy(w);
    }
}

// Quantized matrices, with scales of 1. On a GPU the unit vectors are quantized too: 1 becomes 448
// or 127 times its scale, which is within rounding of 1 again.
static void test_quantized_noise(void **state)
{
    static float got[ROWS * COLS], scales[ROWS];
    for (int i = 0; i < ROWS; i++)
        scales[i] = 1;
    for (int i = 0; i < kt_bodies_n * 2; i++) {
        struct kern *k = kt_bodies[i / 2];
        const bool fp8 = i % 2;
        struct kern_weight *w = make(k, KERN_WEIGHT_MATRIX, fp8 ? KERN_FP8 : KERN_INT8);
        kern_weight_fill_noise(w,
                               &(struct kern_noise_args){.rows = ROWS, .key = KEY, .first = 1000});
        kern_weight_fill_scales(w, &(struct kern_scales_args){.rows = ROWS, .data = scales});
        read_back(k, w, KERN_WEIGHT_MATRIX, got);
        for (int r = 0; r < ROWS; r++) {
            const struct noise n = {.key = KEY, .row = 1000 + (uint64_t)r};
            uint8_t e4m3[COLS];
            int8_t int8[COLS];
            noise_e4m3(&n, COLS, e4m3);
            noise_int8(&n, COLS, int8);
            for (int c = 0; c < COLS; c++) {
                const float want = fp8 ? e4m3_to_f32(e4m3[c]) : (float)int8[c];
                assert_true(fabsf(got[r * COLS + c] - want) <= 1e-6f * fabsf(want));
            }
        }
        kern_weight_destroy(w);
    }
}

static void test_buf_noise(void **state)
{
    for (int i = 0; i < kt_bodies_n * 2; i++) {
        struct kern *k = kt_bodies[i / 2];
        enum kern_dtype dtype = i % 2 ? KERN_BF16 : KERN_F32;
        struct kern_buf *b;
        float want[COLS], got[COLS + 2] = {0};
        uint16_t want16[COLS], got16[COLS + 2] = {0};
        const struct noise s = {KEY, 7, 0, 3};
        assert_int_equal(kern_buf_create(k, dtype, COLS + 2, &b), STATUS_OK);
        kern_buf_fill_noise(b, &(struct kern_buf_noise_args){
                                   .at = 1, .n = COLS, .key = KEY, .row = 7, .amplitude = 3});
        noise_f32(&s, COLS, want);
        noise_bf16(&s, COLS, want16);
        void *to = dtype == KERN_F32 ? (void *)got : got16;
        assert_int_equal(kern_download(to, b, 0, COLS + 2), STATUS_OK);
        if (dtype == KERN_F32) {
            assert_memory_equal(got + 1, want, sizeof want);
            assert_true(got[0] == 0 && got[COLS + 1] == 0);
        } else {
            assert_memory_equal(got16 + 1, want16, sizeof want16);
            assert_true(got16[0] == 0 && got16[COLS + 1] == 0);
        }
        kern_buf_destroy(b);
    }
}

static void test_stages(void **state)
{
    static float got[ROWS * COLS];
    for (int i = 0; i < kt_bodies_n * 2; i++) {
        struct kern *k = kt_bodies[i / 2];
        const enum kern_weight_kind kind = i % 2 ? KERN_WEIGHT_MATRIX : KERN_WEIGHT_TABLE;
        struct kern_weight *w = make(k, kind, KERN_BF16);
        struct kern_stage *s[2];
        enum { STEP = 5 };
        for (int j = 0; j < 2; j++)
            assert_int_equal(kern_stage_create(k, 2 * STEP * COLS, &s[j]), STATUS_OK);
        for (size_t at = 0, n; at < ROWS; at += n) { // two stages in turn, each reused
            struct kern_stage *t = s[at / STEP % 2];
            n = ROWS - at < STEP ? ROWS - at : STEP;
            kern_stage_wait(t);
            for (size_t r = 0; r < n; r++)
                noise_bf16(&(struct noise){KEY, 3 + at + r, 0.5f, 2}, COLS,
                           (char *)kern_stage_memory(t) + 2 * r * COLS);
            kern_weight_fill_staged(w, &(struct kern_fill_args){.row0 = at, .rows = n}, t);
        }
        read_back(k, w, kind, got);
        expect_noise(got, KERN_BF16, 3);
        for (int j = 0; j < 2; j++)
            kern_stage_destroy(s[j]);
        kern_weight_destroy(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_quantized_noise),
        cmocka_unit_test(test_buf_noise),
        cmocka_unit_test(test_stages),
    };
    return cmocka_run_group_tests_name("kern/fill", tests, kt_setup, kt_teardown);
}
