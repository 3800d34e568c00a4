// node/comm_cuda over a CUDA module that is none: forming a group, gathers behind the caller's
// back, and every way in which waiting for them ends.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>
#include <dlfcn.h>
#include <pthread.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/comm_body.h"
#include "node/comm_cuda.h"
#include "node/comm_local.h"
#include "tests/unit/fake_cuda.h"

enum { RANKS = 3, WORDS = 4096 };

static __typeof__(fake_cuda_set) *set;
static __typeof__(fake_cuda_get) *get;

struct rank {
    int i;
    struct comm_local *meeting;
    struct comm *host, *comm;
    struct kern *k;
    struct kern_buf *buf;
    float *x; // what is in buf
    enum status status;
    struct errmsg e;
    void (*run)(struct rank *r);
};

static struct comm *shared[RANKS];

static void share(void *arg, struct comm *c)
{
    shared[((struct rank *)arg)->i] = c;
}

static void join_group(struct rank *r)
{
    r->host = comm_local_rank(r->meeting, r->i);
    if (kern_open(KERN_CUDA, &(struct kern_config){0}, &r->k, &r->e) != STATUS_OK ||
        kern_buf_create(r->k, KERN_F32, WORDS, &r->buf) != STATUS_OK)
        abort();
    r->x = kern_buf_ptr(r->buf);
    struct comm_cuda_config c = {.host = r->host, .k = r->k, .share = share, .arg = r};
    r->status = comm_create_cuda(&c, &r->comm, &r->e);
    if (r->status != STATUS_OK)
        comm_abort(r->host);
}

static void leave(struct rank *r)
{
    comm_destroy(r->comm ? r->comm : r->host);
    kern_buf_destroy(r->buf);
    kern_close(r->k);
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    join_group(r);
    if (r->status == STATUS_OK)
        r->run(r);
    return NULL;
}

// Every rank in a thread of its own; they leave when all are done.
static void run_all(struct rank *ranks, void (*run)(struct rank *r))
{
    pthread_t t[RANKS];
    struct comm_local *meeting = comm_local_create(RANKS);
    for (int i = 0; i < RANKS; i++) {
        ranks[i] = (struct rank){.i = i, .meeting = meeting, .run = run};
        if (pthread_create(&t[i], NULL, rank_main, &ranks[i]))
            abort();
    }
    for (int i = 0; i < RANKS; i++)
        pthread_join(t[i], NULL);
    for (int i = 0; i < RANKS; i++)
        leave(&ranks[i]);
    comm_local_destroy(meeting);
    assert_int_equal(get(FAKE_CUDA_ALIVE), 0);
}

static float value(int seed, int owner, size_t i)
{
    return (float)(seed * 1000 + owner * 100 + (int)(i % 97));
}

// A gather of rows x part; false: what came out is wrong.
static bool gather(struct rank *r, size_t rows, size_t part, int seed)
{
    for (size_t i = 0; i < rows * part * RANKS; i++)
        r->x[i] = (int)(i / part % RANKS) == r->i ? value(seed, r->i, i) : -1;
    r->status = comm_gather(r->comm, r->k, r->buf, rows, part);
    if (r->status == STATUS_OK)
        r->status = comm_sync(r->comm, r->k);
    for (size_t i = 0; i < rows * part * RANKS && r->status == STATUS_OK; i++)
        if (r->x[i] != value(seed, (int)(i / part % RANKS), i))
            return false;
    return r->status == STATUS_OK;
}

static void run_gathers(struct rank *r)
{
    static const size_t shapes[][2] = {{1, 1}, {3, 5}, {16, 40}, {1, 1000}};
    bool right = comm_size(r->comm) == RANKS && comm_rank(r->comm) == r->i;
    for (int i = 0; i < 20; i++)
        right = gather(r, shapes[i % 4][0], shapes[i % 4][1], i) && right;
    if (!right)
        r->status = STATUS_INTERNAL;
}

static void reset(void)
{
    for (int i = 0; i < FAKE_CUDA_ALIVE; i++)
        set((enum fake_cuda_value)i, 0);
    memset(shared, 0, sizeof shared);
}

static void run_gathers_and_look(struct rank *r)
{
    run_gathers(r);
    // The device's own count, and when it last moved.
    comm_progress_refresh(r->comm, 777);
    struct comm_progress *p = comm_progress(r->comm);
    bool counted = p->collective == 20 && p->changed_us == 777;
    comm_progress_refresh(r->comm, 888);
    if (!counted || p->changed_us != 777 || !comm_enqueues(r->comm) || shared[r->i] != r->comm)
        r->status = STATUS_INTERNAL;
}

static void test_gathers(void **state)
{
    struct rank ranks[RANKS];
    reset();
    run_all(ranks, run_gathers_and_look);
    for (int i = 0; i < RANKS; i++)
        assert_int_equal(ranks[i].status, STATUS_OK);
}

// GPUs that cannot reach each other: by way of host memory.
static void test_no_way_between_the_devices(void **state)
{
    struct rank ranks[RANKS];
    reset();
    set(FAKE_CUDA_NO_WAY, 1);
    run_all(ranks, run_gathers);
    for (int i = 0; i < RANKS; i++) {
        assert_int_equal(ranks[i].status, STATUS_OK);
        assert_ptr_equal(ranks[i].comm, ranks[i].host);
        assert_null(shared[i]);
    }
}

static void test_a_rank_that_cannot_join(void **state)
{
    struct rank ranks[RANKS];
    reset();
    set(FAKE_CUDA_BAD_ROUND, 1 + 1);
    run_all(ranks, run_gathers);
    assert_int_equal(ranks[1].status, STATUS_LINK_PROTOCOL);
    assert_string_equal(ranks[1].e.text, "a bad note");
    for (int i = 0; i < RANKS; i += 2) {
        assert_int_equal(ranks[i].status, STATUS_ABORTED);
        assert_non_null(strstr(ranks[i].e.text, "a rank was lost"));
        assert_null(shared[i]);
    }
}

// ---- ranks that do not come

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void run_without_2(struct rank *r)
{
    if (r->i == 2) {
        sleep_ms(400); // stays, but has nothing to give
        return;
    }
    (void)gather(r, 2, 3, 1);
    if (r->status == STATUS_LINK_TIMEOUT && comm_suspect(r->comm) != 2)
        r->status = STATUS_INTERNAL;
}

static void test_a_rank_that_does_not_come_is_named(void **state)
{
    struct rank ranks[RANKS];
    reset();
    set(FAKE_CUDA_TIMEOUT_MS, 100);
    run_all(ranks, run_without_2);
    for (int i = 0; i < 2; i++)
        assert_int_equal(ranks[i].status, STATUS_LINK_TIMEOUT);
}

static void run_until_aborted(struct rank *r)
{
    if (r->i == 2) {
        sleep_ms(100); // another thread than the one that waits
        comm_abort(shared[0]);
        comm_abort(shared[1]);
        return;
    }
    uint64_t start = now_ms();
    (void)gather(r, 2, 3, 1);
    bool soon = now_ms() - start < 5000 && comm_suspect(r->comm) == 2;
    if (r->status == STATUS_ABORTED && soon)
        r->status = comm_gather(r->comm, r->k, r->buf, 1, 1); // and all later ones
}

static void test_abort(void **state)
{
    struct rank ranks[RANKS];
    reset();
    run_all(ranks, run_until_aborted);
    for (int i = 0; i < 2; i++)
        assert_int_equal(ranks[i].status, STATUS_ABORTED);
}

// ---- links that break while the device waits

struct broken_host {
    struct comm comm; // first
    struct comm *inner;
    uint64_t breaks_ms;
};

static enum status broken_gather(struct comm *c, float *buf, size_t rows, size_t part)
{
    return comm_all_gather(((struct broken_host *)c)->inner, buf, rows, part);
}

static void broken_wake(struct comm *c)
{
    comm_abort(((struct broken_host *)c)->inner);
}

static void broken_destroy(struct comm *c)
{
    comm_destroy(((struct broken_host *)c)->inner);
    free(c);
}

static enum status broken_poll(struct comm *c)
{
    return now_ms() < ((struct broken_host *)c)->breaks_ms ? STATUS_OK : STATUS_LINK_DOWN;
}

static const struct comm_body broken_body = {.all_gather = broken_gather,
                                             .wake = broken_wake,
                                             .destroy = broken_destroy,
                                             .poll = broken_poll};

static void *rank_with_links(void *arg)
{
    struct rank *r = arg;
    struct broken_host *h = mem_zalloc(1, sizeof *h);
    h->inner = comm_local_rank(r->meeting, r->i);
    h->comm.body = &broken_body;
    h->comm.size = RANKS;
    h->comm.rank = r->i;
    h->breaks_ms = now_ms() + 200;
    r->host = &h->comm;
    if (kern_open(KERN_CUDA, &(struct kern_config){0}, &r->k, &r->e) != STATUS_OK ||
        kern_buf_create(r->k, KERN_F32, WORDS, &r->buf) != STATUS_OK)
        abort();
    r->x = kern_buf_ptr(r->buf);
    struct comm_cuda_config c = {.host = r->host, .k = r->k};
    r->status = comm_create_cuda(&c, &r->comm, &r->e);
    if (r->status == STATUS_OK)
        run_without_2(r);
    return NULL;
}

static void test_a_link_that_breaks_meanwhile(void **state)
{
    struct rank ranks[RANKS];
    pthread_t t[RANKS];
    struct comm_local *meeting = comm_local_create(RANKS);
    reset();
    for (int i = 0; i < RANKS; i++) {
        ranks[i] = (struct rank){.i = i, .meeting = meeting};
        if (pthread_create(&t[i], NULL, rank_with_links, &ranks[i]))
            abort();
    }
    for (int i = 0; i < RANKS; i++)
        pthread_join(t[i], NULL);
    for (int i = 0; i < RANKS; i++) {
        assert_int_equal(ranks[i].status, i < 2 ? STATUS_LINK_DOWN : STATUS_OK);
        leave(&ranks[i]);
    }
    comm_local_destroy(meeting);
    assert_int_equal(get(FAKE_CUDA_ALIVE), 0);
}

int main(void)
{
    log_set_level(LOG_OFF);
    const char *module = getenv("HADAL_CUDA_MODULE");
    void *h = module ? dlopen(module, RTLD_NOW) : NULL;
    if (h) {
        memcpy(&set, &(void *){dlsym(h, "fake_cuda_set")}, sizeof set);
        memcpy(&get, &(void *){dlsym(h, "fake_cuda_get")}, sizeof get);
    }
    if (!set || !get) {
        fputs("HADAL_CUDA_MODULE must name tests/unit/libfake_cuda.so\n", stderr);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gathers),
        cmocka_unit_test(test_no_way_between_the_devices),
        cmocka_unit_test(test_a_rank_that_cannot_join),
        cmocka_unit_test(test_a_rank_that_does_not_come_is_named),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_a_link_that_breaks_meanwhile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
