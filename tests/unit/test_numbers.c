// Small floating-point formats against a search over all their values, and the numbers of random
// weights against their definition.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/minifloat.h"
#include "base/noise.h"
#include "base/prng.h"

static bool is_nan8(int code)
{
    return (code & 0x7f) == 0x7f;
}

// The nearest code by distance; between two, the even one; never beyond the largest.
static uint8_t nearest_e4m3(float f)
{
    int best = signbit(f) ? 0x80 : 0;
    for (int c = best; !is_nan8(c); c++) {
        double d = fabs((double)e4m3_to_f32((uint8_t)c) - (double)f);
        double b = fabs((double)e4m3_to_f32((uint8_t)best) - (double)f);
        if (d < b || (d == b && !(c & 1)))
            best = c;
    }
    return (uint8_t)best;
}

static void test_e4m3(void **state)
{
    assert_true(e4m3_to_f32(0x7e) == 448 && e4m3_to_f32(0x38) == 1 && e4m3_to_f32(1) == 0x1p-9f);
    assert_true(isnan(e4m3_to_f32(0x7f)) && isnan(e4m3_to_f32(0xff)));
    assert_true(is_nan8(e4m3_from_f32(NAN)));
    for (int c = 0; c < 256; c++)
        if (!is_nan8(c))
            assert_int_equal(e4m3_from_f32(e4m3_to_f32((uint8_t)c)), c);
    // Halfway between each two neighbours, and just beside.
    for (int c = 0; c < 0x7e; c++) {
        float mid = (e4m3_to_f32((uint8_t)c) + e4m3_to_f32((uint8_t)(c + 1))) / 2;
        const float v[] = {mid, nextafterf(mid, 0), nextafterf(mid, 1000), -mid};
        for (int i = 0; i < 4; i++)
            assert_int_equal(e4m3_from_f32(v[i]), nearest_e4m3(v[i]));
    }
    struct prng r;
    prng_seed(&r, 1);
    for (int i = 0; i < 20000; i++) {
        float f = (float)((prng_unit(&r) - 0.5) * exp2(prng_unit(&r) * 24 - 13));
        assert_int_equal(e4m3_from_f32(f), nearest_e4m3(f));
    }
    const float large[] = {449, 464, 465, 480, 1e30f, INFINITY};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        assert_int_equal(e4m3_from_f32(large[i]), 0x7e);
        assert_int_equal(e4m3_from_f32(-large[i]), 0xfe);
    }
}

static void test_bf16(void **state)
{
    for (uint32_t c = 0; c < 1 << 16; c++)
        if (!isnan(bf16_to_f32((uint16_t)c)))
            assert_int_equal(bf16_from_f32(bf16_to_f32((uint16_t)c)), c);
    assert_int_equal(bf16_from_f32(1.00390625f), 0x3f80); // tie to even, down
    assert_int_equal(bf16_from_f32(1.01171875f), 0x3f82); // tie to even, up
    assert_int_equal(bf16_from_f32(1.00390637f), 0x3f81);
    assert_int_equal(bf16_from_f32(3.4e38f), 0x7f80); // rounds to infinity
    assert_true(isnan(bf16_to_f32(bf16_from_f32(NAN))));
    const uint32_t low_payload = 0x7f800001;
    float f;
    memcpy(&f, &low_payload, sizeof f);
    assert_true(isnan(bf16_to_f32(bf16_from_f32(f))));
    assert_true(f16_to_f32(0x3c00) == 1 && f16_to_f32(0x0001) == 0x1p-24f &&
                f16_to_f32(0xfbff) == -65504 && isinf(f16_to_f32(0x7c00)));
}

static void test_noise(void **state)
{
    const struct noise s = {.key = 77, .row = 5, .mean = 1, .amplitude = 0.25f};
    float f[21], first[3];
    uint16_t b[21];
    uint8_t e[21];
    int8_t q[21];
    noise_f32(&s, 21, f);
    noise_bf16(&s, 21, b);
    noise_e4m3(&s, 21, e);
    noise_int8(&s, 21, q);
    noise_f32(&s, 3, first);
    assert_memory_equal(f, first, sizeof first); // a prefix is a prefix
    for (size_t i = 0; i < 21; i++) {
        uint32_t w[4];
        philox4x32(77, i / 8, 5, w);
        float u = ((float)(w[i % 8 / 2] >> 16 * (i % 2) & 0xffff) - 32767.5f) / 32768;
        assert_true(u > -1 && u < 1);
        assert_true(f[i] == fmaf(0.25f, u, 1));
        assert_int_equal(b[i], bf16_from_f32(f[i]));
        assert_int_equal(e[i], e4m3_from_f32(448 * u));
        assert_int_equal(q[i], lrintf(127 * u));
    }
}

static void test_noise_spread(void **state)
{
    enum { N = 4096 };
    static float f[N];
    noise_f32(&(struct noise){.key = 3, .amplitude = 1}, N, f);
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) {
        sum += f[i];
        squares += f[i] * f[i];
    }
    assert_true(fabs(sum / N) < 0.03 && fabs(squares / N - 1.0 / 3) < 0.02);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_e4m3),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_noise_spread),
    };
    return cmocka_run_group_tests_name("unit/numbers", tests, NULL, NULL);
}
