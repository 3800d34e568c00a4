// base/: status names, generators against published vectors, UTF-8, rings, state machines.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "base/spsc.h"
#include "base/status.h"
#include "base/strbuf.h"
#include "base/utf8.h"

static void test_status_groups(void **state)
{
    assert_string_equal(status_name(STATUS_FULL), "FULL");
    assert_int_equal(status_group(STATUS_OK), STATUS_GROUP_NONE);
    assert_int_equal(status_group(STATUS_AGAIN), STATUS_GROUP_NONE);
    assert_int_equal(status_group(STATUS_BAD_REQUEST), STATUS_GROUP_REQUEST);
    assert_int_equal(status_group(STATUS_LINK_CORRUPT), STATUS_GROUP_LINK);
    assert_int_equal(status_group(STATUS_STALE_EPOCH), STATUS_GROUP_NODE);
    assert_int_equal(status_group(STATUS_UNKNOWN_ARCH), STATUS_GROUP_CONFIG);
    assert_int_equal(status_group(STATUS_NO_MEMORY), STATUS_GROUP_SYSTEM);
    struct errmsg e;
    assert_int_equal(errmsg_set(&e, STATUS_BAD_FILE, "f: %d", 7), STATUS_BAD_FILE);
    assert_string_equal(e.text, "f: 7");
}

// Known-answer vectors of the Random123 distribution (kat_vectors, philox 4x32, 10 rounds).
static void test_philox_vectors(void **state)
{
    uint32_t r[4];
    philox4x32(0, 0, 0, r);
    const uint32_t zero[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    assert_memory_equal(r, zero, sizeof r);
    philox4x32(UINT64_MAX, UINT64_MAX, UINT64_MAX, r);
    const uint32_t ones[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    assert_memory_equal(r, ones, sizeof r);
    philox4x32(0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x0370734413198a2eu, r);
    const uint32_t pi[4] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
    assert_memory_equal(r, pi, sizeof r);
}

static void test_prng_ranges(void **state)
{
    struct prng p;
    prng_seed(&p, 1);
    int seen[7] = {0};
    double sum = 0;
    for (int i = 0; i < 70000; i++) {
        seen[prng_below(&p, 7)]++;
        double u = prng_unit(&p);
        assert_true(u >= 0 && u < 1);
        sum += prng_exp(&p, 2.0);
    }
    for (int i = 0; i < 7; i++)
        assert_in_range(seen[i], 9500, 10500);
    assert_true(sum / 70000 > 1.95 && sum / 70000 < 2.05);
}

static void test_utf8(void **state)
{
    const struct {
        const char *s;
        size_t n, valid;
    } cases[] = {
        {"plain", 5, 5},
        {"\xC3\xA9", 2, 2},
        {"\xC3", 1, 0},
        {"a\xE2\x82\xAC", 4, 4},
        {"a\xE2\x82", 3, 1},
        {"\xC0\x80", 2, 0},         // overlong
        {"\xED\xA0\x80", 3, 0},     // surrogate
        {"\xF4\x90\x80\x80", 4, 0}, // above U+10FFFF
        {"\xF0\x9F\x90\xB3", 4, 4},
        {"\xF0\x8F\x80\x80", 4, 0},
        {"\xFF", 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(utf8_valid_prefix(cases[i].s, cases[i].n), cases[i].valid);
    assert_true(utf8_incomplete("\xF0\x9F\x90", 3));
    assert_true(utf8_incomplete("\xE2", 1));
    assert_false(utf8_incomplete("\xED\xA0", 2));
    assert_false(utf8_incomplete("a", 1));
    assert_false(utf8_incomplete("\x80", 1));
}

static void test_strbuf_json(void **state)
{
    struct strbuf b = {0};
    strbuf_json(&b, "a\"\\\n\x01z", 6);
    strbuf_printf(&b, ":%d", 42);
    assert_string_equal(b.v, "\"a\\\"\\\\\\n\\u0001z\":42");
    strbuf_finish(&b);
}

static void test_spsc_full_and_empty(void **state)
{
    struct spsc q;
    int items[4];
    spsc_init(&q, 4);
    assert_null(spsc_pop(&q));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++)
            assert_true(spsc_push(&q, &items[i]));
        assert_false(spsc_push(&q, &items[0]));
        for (int i = 0; i < 4; i++)
            assert_ptr_equal(spsc_pop(&q), &items[i]);
        assert_true(spsc_empty(&q));
    }
    spsc_finish(&q);
}

static void test_block_hash_chains(void **state)
{
    const int32_t a[4] = {1, 2, 3, 4}, b[4] = {1, 2, 3, 5};
    uint64_t ha = hash_block(0, a, 4);
    assert_true(ha == hash_block(0, a, 4));
    assert_true(ha != hash_block(0, b, 4));
    assert_true(hash_block(ha, b, 4) != hash_block(0, b, 4));
    assert_true(hash_pair(1, 2) != hash_pair(2, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status_groups),     cmocka_unit_test(test_philox_vectors),
        cmocka_unit_test(test_prng_ranges),       cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_strbuf_json),       cmocka_unit_test(test_spsc_full_and_empty),
        cmocka_unit_test(test_block_hash_chains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
