// Both ends on threads of their own that sleep in xport_wait: no wake-up may be lost, in either
// direction, with data, with room after FULL, and with xport_wake. Clean under TSan.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tests/xport/world.h"

enum { SLOTS = 64, SLOT = 4096 };
#define ROUNDS world_rounds(3000)
#define STREAM world_rounds(6000)

// Polls and sleeps until *n reaches want; false after 20 s without it.
static bool await(struct end *e, const int *n, int want)
{
    uint64_t deadline = now_us() + 20000000;
    while (*n < want && now_us() < deadline)
        if (end_poll(e) == 0)
            xport_wait(e->x, 5000); // a lost wake-up costs 5 s, which the callers check
    return *n >= want;
}

static bool put(struct end *e, const struct xwrite *w)
{
    uint64_t deadline = now_us() + 20000000;
    enum status s;
    while ((s = end_write(e, w)) == STATUS_FULL && now_us() < deadline)
        if (end_poll(e) == 0)
            xport_wait(e->x, 5000);
    return s == STATUS_OK;
}

static void *echo(void *arg)
{
    struct end *b = arg;
    bool ok = await(b, &b->ups, 1);
    for (int i = 0; i < ROUNDS && ok; i++)
        ok = await(b, &b->notices, i + 1) &&
             put(b, &(struct xwrite){.region = REGION, .notice = (uint32_t)i});
    ok = ok && await(b, &b->downs, 1);
    return ok ? b : NULL;
}

static void run_ping_pong(uint32_t spin_us)
{
    struct xport_config c = {.spin_us = spin_us};
    struct end *a = end_open(&c), *b = end_open(&c);
    pthread_t t;
    end_connect(a, b);
    pthread_create(&t, NULL, echo, b);
    uint64_t start = now_us();
    assert_true(await(a, &a->ups, 1));
    for (int i = 0; i < ROUNDS; i++) {
        assert_true(put(a, &(struct xwrite){.region = REGION, .notice = (uint32_t)i}));
        assert_true(await(a, &a->notices, i + 1));
        assert_int_equal(a->history[i].notice, i);
    }
    assert_true(now_us() - start < 4500000); // no wait ran into its timeout
    xlink_close(a->link);
    void *ok;
    pthread_join(t, &ok);
    assert_non_null(ok);
    end_close(a);
    end_close(b);
}

static void test_ping_pong_asleep(void **state)
{
    run_ping_pong(0);
}

static void test_ping_pong_spinning(void **state)
{
    run_ping_pong(20);
}

// A stream through a few slots; the receiver checks each and gives the slot back by a notice.
static void *sink(void *arg)
{
    struct end *b = arg;
    bool ok = await(b, &b->ups, 1);
    for (int i = 0; i < STREAM && ok; i++) {
        ok = await(b, &b->notices, i + 1);
        const struct xport_event *ev = &b->history[i % HISTORY];
        ok = ok && ev->notice == (uint32_t)i && filled(b->mem + ev->offset, ev->bytes, ev->notice);
        ok = ok && put(b, &(struct xwrite){.region = REGION, .notice = (uint32_t)i});
        if (i % 1000 == 0)
            sleep_ms(5); // slow for a while: the sender must block and be woken
    }
    ok = ok && await(b, &b->downs, 1);
    return ok ? b : NULL;
}

static void run_stream(uint32_t depth)
{
    struct xport_config c = {.link_depth = depth};
    struct end *a = end_open(&c), *b = end_open(&c);
    uint8_t *src = mem_alloc(SLOTS * SLOT);
    pthread_t t;
    end_connect(a, b);
    pthread_create(&t, NULL, sink, b);
    assert_true(await(a, &a->ups, 1));
    for (int i = 0; i < STREAM; i++) {
        if (i >= SLOTS)
            assert_true(await(a, &a->notices, i - SLOTS + 1));
        assert_true(await(a, &a->dones, i - SLOTS + 1));
        size_t at = (size_t)(i % SLOTS) * SLOT, n = (size_t)(i * 37) % SLOT;
        fill(src + at, n, (uint64_t)i);
        assert_true(put(a, &(struct xwrite){.region = REGION,
                                            .offset = at,
                                            .src = src + at,
                                            .bytes = n,
                                            .notice = (uint32_t)i}));
    }
    assert_true(await(a, &a->notices, STREAM));
    assert_true(await(a, &a->dones, STREAM));
    assert_int_equal(a->done_bad, 0);
    xlink_close(a->link);
    void *ok;
    pthread_join(t, &ok);
    assert_non_null(ok);
    end_close(a);
    end_close(b);
    free(src);
}

static void test_stream(void **state)
{
    run_stream(0);
}

static void test_stream_through_a_tiny_ring(void **state)
{
    run_stream(2);
}

static void *wake_later(void *arg)
{
    struct end *e = arg;
    sleep_ms(30);
    xport_wake(e->x);
    return NULL;
}

static void test_wake(void **state)
{
    static const uint32_t spins[] = {0, 100000};
    for (int i = 0; i < 2; i++) {
        struct xport_config c = {.spin_us = spins[i]};
        struct end *a = end_open(&c);
        pthread_t t;
        pthread_create(&t, NULL, wake_later, a);
        uint64_t start = now_us();
        xport_wait(a->x, 5000);
        assert_in_range(now_us() - start, 25000, NOTICED_US);
        pthread_join(t, NULL);
        end_close(a);
    }
}

static void *waker(void *arg)
{
    struct end *e = arg;
    for (int i = 0; i < 20000; i++)
        xport_wake(e->x);
    return NULL;
}

// The last wake always ends the last wait.
static void test_wake_storm(void **state)
{
    struct end *a = end_open(NULL);
    pthread_t t;
    pthread_create(&t, NULL, waker, a);
    uint64_t start = now_us();
    for (int i = 0; i < 200; i++) {
        xport_wait(a->x, 1);
        end_poll(a);
    }
    pthread_join(t, NULL);
    xport_wake(a->x);
    xport_wait(a->x, 5000);
    assert_true(now_us() - start < 4000000);
    end_close(a);
}

#define T(f) cmocka_unit_test_setup_teardown(f, fds_before, fds_after)

int main(int argc, char **argv)
{
    world_init(argc, argv);
    const struct CMUnitTest tests[] = {
        T(test_ping_pong_asleep),
        T(test_ping_pong_spinning),
        T(test_stream),
        T(test_stream_through_a_tiny_ring),
        T(test_wake),
        T(test_wake_storm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
