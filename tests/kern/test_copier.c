// Copies beside the queue: strips of a buffer to and from the host, by a thread that does not own
// the kern; what a fence orders is there.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <pthread.h>
#include <string.h>
#include <cmocka.h>

#include "tests/kern/kt.h"

enum { ROWS = 32, WIDTH = 96, BLOCKS = 5, N = BLOCKS * ROWS * WIDTH };

struct job {
    struct kern_copier *c;
    struct kern_strip strip;
    float host[N];
    bool write;
    enum status status;
};

static void *run(void *arg)
{
    struct job *j = arg;
    j->status = j->write ? kern_copier_write(j->c, &j->strip, j->host)
                         : kern_copier_read(j->c, j->host, &j->strip);
    if (j->status == STATUS_OK)
        j->status = kern_copier_wait(j->c);
    return NULL;
}

static void on_a_thread(struct job *j)
{
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, run, j), 0);
    assert_int_equal(pthread_join(t, NULL), 0);
    assert_int_equal(j->status, STATUS_OK);
}

static void test_strips(void **state)
{
    static const struct {
        size_t block, first, n;
    } cases[] = {{0, 0, WIDTH}, {4, 0, WIDTH}, {2, 32, 16}, {1, 95, 1}, {3, 0, 48}};
    for (int b = 0; b < kt_bodies_n; b++) {
        struct kern *k = kt_bodies[b];
        struct kern_buf *buf = kt_random_buf(k, 7, N);
        static struct job j;
        static float now[N];
        assert_int_equal(kern_copier_create(k, &j.c), STATUS_OK);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            j.strip = (struct kern_strip){.buf = buf,
                                          .at = cases[i].block * ROWS * WIDTH + cases[i].first,
                                          .stride = WIDTH,
                                          .rows = ROWS,
                                          .n = cases[i].n};
            // What the queue did before the fence is read.
            kern_zero(buf, j.strip.at, 1);
            assert_int_equal(kern_copier_fence(j.c), STATUS_OK);
            j.write = false;
            on_a_thread(&j);
            assert_int_equal(kern_download(now, buf, 0, N), STATUS_OK);
            assert_true(j.host[0] == 0);
            for (size_t r = 0; r < ROWS; r++)
                assert_memory_equal(j.host + r * j.strip.n, now + j.strip.at + r * WIDTH,
                                    j.strip.n * sizeof(float));
            // What is written is there, and nothing else.
            for (size_t e = 0; e < ROWS * j.strip.n; e++)
                j.host[e] = (float)(e + 1);
            for (size_t r = 0; r < ROWS; r++)
                memcpy(now + j.strip.at + r * WIDTH, j.host + r * j.strip.n,
                       j.strip.n * sizeof(float));
            j.write = true;
            on_a_thread(&j);
            static float after[N];
            assert_int_equal(kern_download(after, buf, 0, N), STATUS_OK);
            assert_memory_equal(after, now, sizeof now);
        }
        kern_copier_destroy(j.c);
        kern_buf_destroy(buf);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_strips)};
    return cmocka_run_group_tests_name("kern/copier", tests, kt_setup, kt_teardown);
}
