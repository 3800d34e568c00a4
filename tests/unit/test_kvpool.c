// KV pool: references, the prefix cache's exactness, eviction order, and a random walk against a
// plain model of who holds what.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/hash.h"
#include "base/prng.h"
#include "node/kvpool.h"

enum { BT = 4 };

static struct kvpool *pool_of(uint32_t blocks)
{
    return kvpool_create(&(struct kvpool_config){.blocks = blocks, .block_tokens = BT});
}

static void fill(int32_t *tokens, int32_t start)
{
    for (int i = 0; i < BT; i++)
        tokens[i] = start + i;
}

static void takes_until_empty(void **state)
{
    struct kvpool *p = pool_of(3);
    uint32_t b[3], extra;
    for (int i = 0; i < 3; i++)
        assert_true(kvpool_take(p, &b[i]));
    assert_true(b[0] != b[1] && b[1] != b[2] && b[0] != b[2]);
    assert_false(kvpool_take(p, &extra));
    assert_int_equal(kvpool_available(p), 0);
    kvpool_release(p, b, 3);
    assert_int_equal(kvpool_available(p), 3);
    kvpool_check(p, (uint32_t[3]){0});
    kvpool_destroy(p);
}

static void finds_what_was_published_only(void **state)
{
    struct kvpool *p = pool_of(4);
    int32_t first[BT], second[BT];
    uint32_t a, b, hit;
    fill(first, 10);
    fill(second, 20);
    struct kv_chain mine = {0}, look = {0};
    kvpool_take(p, &a);
    kvpool_take(p, &b);
    assert_false(kvpool_find(p, &look, first, &hit));
    kvpool_publish(p, &mine, first, a);
    kvpool_publish(p, &mine, second, b);
    assert_true(kvpool_find(p, &look, first, &hit));
    assert_int_equal(hit, a);
    assert_true(kvpool_find(p, &look, second, &hit));
    assert_int_equal(hit, b);
    struct kv_chain fresh = {0};
    assert_false(kvpool_find(p, &fresh, second, &hit)); // same tokens, other place in the chain
    assert_int_equal(fresh.serial, 0);
    kvpool_destroy(p);
}

static void cached_blocks_are_revived_or_evicted(void **state)
{
    struct kvpool *p = pool_of(2);
    int32_t t[2][BT];
    uint32_t b[2], hit, other;
    struct kv_chain chain = {0}, look = {0};
    for (int i = 0; i < 2; i++) {
        fill(t[i], 100 * i);
        kvpool_take(p, &b[i]);
        kvpool_publish(p, &chain, t[i], b[i]);
    }
    kvpool_release(p, b, 2);
    assert_int_equal(kvpool_available(p), 2);
    assert_true(kvpool_find(p, &look, t[0], &hit));
    kvpool_ref(p, hit);
    assert_int_equal(kvpool_available(p), 1);
    assert_true(kvpool_take(p, &other)); // evicts the tail
    assert_int_equal(other, b[1]);
    assert_false(kvpool_find(p, &look, t[1], &hit));
    assert_false(kvpool_take(p, &other));
    kvpool_destroy(p);
}

static void tails_go_before_heads(void **state)
{
    struct kvpool *p = pool_of(3);
    uint32_t b[3], got;
    struct kv_chain chain = {0};
    for (int i = 0; i < 3; i++) {
        int32_t t[BT];
        fill(t, 7 * i);
        kvpool_take(p, &b[i]);
        kvpool_publish(p, &chain, t, b[i]);
    }
    kvpool_release(p, b, 3);
    for (int i = 3; i-- > 0;) {
        assert_true(kvpool_take(p, &got));
        assert_int_equal(got, b[i]);
    }
    kvpool_destroy(p);
}

static void a_second_copy_stays_unnamed(void **state)
{
    struct kvpool *p = pool_of(3);
    int32_t t[BT], next[BT];
    uint32_t a, b, c, hit;
    fill(t, 1);
    fill(next, 50);
    struct kv_chain one = {0}, two = {0}, look = {0};
    kvpool_take(p, &a);
    kvpool_take(p, &b);
    kvpool_take(p, &c);
    kvpool_publish(p, &one, t, a);
    kvpool_publish(p, &two, t, b);
    assert_int_equal(one.serial, two.serial);
    kvpool_publish(p, &two, next, c); // follows the named twin
    kvpool_release(p, &b, 1);
    assert_true(kvpool_find(p, &look, t, &hit));
    assert_int_equal(hit, a);
    assert_true(kvpool_find(p, &look, next, &hit));
    assert_int_equal(hit, c);
    kvpool_check(p, (uint32_t[3]){[0] = 1, [1] = 0, [2] = 1});
    kvpool_destroy(p);
}

// A block whose parent was evicted and computed again must not be found: only content that was
// compared link by link counts.
static void orphans_are_not_found(void **state)
{
    struct kvpool *p = pool_of(2);
    int32_t head[BT], tail[BT];
    uint32_t a, b, hit;
    fill(head, 1);
    fill(tail, 9);
    struct kv_chain chain = {0}, again = {0}, look = {0};
    kvpool_take(p, &a);
    kvpool_take(p, &b);
    kvpool_publish(p, &chain, head, a);
    kvpool_publish(p, &chain, tail, b);
    kvpool_release(p, &a, 1); // head cached, tail held
    kvpool_take(p, &a);       // head evicted
    kvpool_publish(p, &again, head, a);
    assert_true(kvpool_find(p, &look, head, &hit));
    assert_false(kvpool_find(p, &look, tail, &hit));
    kvpool_destroy(p);
}

enum { WALK_BLOCKS = 24, WALK_SEQS = 6, WALK_LEN = 5 };

struct walker {
    uint32_t blocks[WALK_LEN], n;
    struct kv_chain chain;
};

static void walker_grow(struct kvpool *p, struct walker *w, struct prng *rng)
{
    int32_t t[BT];
    uint32_t block;
    if (w->n == WALK_LEN)
        return;
    fill(t, (int32_t)prng_below(rng, 2)); // few contents, so chains meet often
    struct kv_chain look = w->chain;
    if (!w->chain.broken && kvpool_find(p, &look, t, &block)) {
        kvpool_ref(p, block);
        w->chain = look;
    } else if (kvpool_take(p, &block)) {
        kvpool_publish(p, &w->chain, t, block);
    } else {
        return;
    }
    w->blocks[w->n++] = block;
}

static void references_add_up_on_a_random_walk(void **state)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct prng rng;
        struct walker w[WALK_SEQS] = {0};
        struct kvpool *p = pool_of(WALK_BLOCKS);
        prng_seed(&rng, seed);
        for (int step = 0; step < 2000; step++) {
            struct walker *x = &w[prng_below(&rng, WALK_SEQS)];
            if (prng_below(&rng, 8) == 0) {
                kvpool_release(p, x->blocks, x->n);
                memset(x, 0, sizeof *x);
            } else {
                walker_grow(p, x, &rng);
            }
            uint32_t refs[WALK_BLOCKS] = {0};
            for (int i = 0; i < WALK_SEQS; i++)
                for (uint32_t k = 0; k < w[i].n; k++)
                    refs[w[i].blocks[k]]++;
            kvpool_check(p, refs);
        }
        kvpool_destroy(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_until_empty),
        cmocka_unit_test(finds_what_was_published_only),
        cmocka_unit_test(cached_blocks_are_revived_or_evicted),
        cmocka_unit_test(tails_go_before_heads),
        cmocka_unit_test(a_second_copy_stays_unnamed),
        cmocka_unit_test(orphans_are_not_found),
        cmocka_unit_test(references_add_up_on_a_random_walk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
