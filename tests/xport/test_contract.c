// The contract of rdma/xport.h, the same for every body: both ends in one thread, polled in turn,
// so that each situation is exact.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/prng.h"
#include "tests/xport/world.h"

#define BOTH(a, b) (struct end *[]){a, b}, 2

static void test_hello(void **state)
{
    static const size_t sizes[] = {0, 1, 63, 64};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct end *a = end_open(NULL), *b = end_open(NULL);
        uint8_t hello[64];
        fill(hello, sizeof hello, i);
        struct xlink *l;
        assert_int_equal(xport_connect(a->x, xport_address(b->x), hello, sizes[i], a, &l, NULL),
                         STATUS_OK);
        assert_int_equal(xlink_write(l, &(struct xwrite){.region = REGION}), STATUS_AGAIN);
        pump(BOTH(a, b), &a->ups, 1);
        pump(BOTH(a, b), &b->ups, 1);
        assert_ptr_equal(a->link, l);
        assert_ptr_equal(xlink_user(l), a);
        assert_null(xlink_user(b->link));
        xlink_set_user(b->link, b);
        assert_ptr_equal(xlink_user(b->link), b);
        assert_int_equal(b->hello_n, sizes[i]);
        assert_memory_equal(b->hello, hello, sizes[i]);
        pump_ms(BOTH(a, b), 20);
        assert_int_equal(a->ups + b->ups, 2);
        assert_int_equal(a->downs + b->downs, 0);
        end_close(a);
        end_close(b);
    }
}

// Random writes to random places; each is checked when its notice comes, before it may be
// overwritten.
static void test_order_and_visibility(void **state)
{
    enum { SLOT = 16384, AHEAD = 100 };
    const int N = world_rounds(3000);
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    uint8_t *src = mem_alloc(AHEAD * SLOT);
    struct prng r;
    prng_seed(&r, 11);
    size_t sizes[AHEAD], offsets[AHEAD];
    int sent = 0, seen = 0;
    uint64_t deadline = now_us() + 20000000;
    while (seen < N && now_us() < deadline) {
        while (sent < N && sent - seen < AHEAD && sent - a->dones < AHEAD) {
            int k = sent % AHEAD;
            sizes[k] = prng_below(&r, SLOT);
            offsets[k] = (size_t)k * SLOT + prng_below(&r, SLOT - sizes[k] + 1);
            fill(src + k * SLOT, sizes[k], (uint64_t)sent);
            struct xwrite w = {.region = REGION,
                               .offset = offsets[k],
                               .src = src + k * SLOT,
                               .bytes = sizes[k],
                               .notice = (uint32_t)sent,
                               .user = src + k};
            if (end_write(a, &w) == STATUS_FULL)
                break;
            sent++;
        }
        end_poll(a);
        end_poll(b);
        for (; seen < b->notices; seen++) {
            const struct xport_event *ev = &b->history[seen % HISTORY];
            int k = seen % AHEAD;
            assert_int_equal(ev->notice, seen);
            assert_int_equal(ev->region, REGION);
            assert_int_equal(ev->offset, offsets[k]);
            assert_int_equal(ev->bytes, sizes[k]);
            assert_true(filled(b->mem + offsets[k], sizes[k], (uint64_t)seen));
        }
    }
    assert_int_equal(seen, N);
    pump(BOTH(a, b), &a->dones, N);
    assert_int_equal(a->done_bad, 0);
    for (int i = 0; i < N; i++)
        assert_ptr_equal(a->done_users[i], src + i % AHEAD);
    struct xport_stats s = xport_stats_get(a->x), t = xport_stats_get(b->x);
    assert_int_equal(s.writes, N);
    assert_int_equal(t.notices, N);
    end_close(a);
    end_close(b);
    free(src);
}

static void test_odd_sizes(void **state)
{
    static const size_t sizes[] = {0, 1, 7, 4095, 4096, 4097, 65537, (1 << 20) + 3, REGION_BYTES};
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    uint8_t *src = mem_alloc(REGION_BYTES);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i], offset = REGION_BYTES - n; // up to the very end of the region
        fill(src, n, i);
        struct xwrite w = {
            .region = REGION, .offset = offset, .src = src, .bytes = n, .notice = UINT32_MAX};
        assert_int_equal(end_write(a, &w), STATUS_OK);
        pump(BOTH(a, b), &b->notices, (int)i + 1);
        pump(BOTH(a, b), &a->dones, (int)i + 1);
        assert_true(filled(b->mem + offset, n, i));
        assert_int_equal(b->history[i].bytes, n);
        assert_int_equal(b->history[i].notice, UINT32_MAX);
    }
    assert_int_equal(b->downs, 0);
    end_close(a);
    end_close(b);
    free(src);
}

// Again and again to the same few places, as lanes do, with any notice: each arrives as it was
// said.
static void test_same_places(void **state)
{
    static const size_t sizes[] = {300, 4096, 4096, 40000, 17, 0};
    enum { PLACES = 6, TIMES = 20 };
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    struct prng r;
    prng_seed(&r, 11);
    uint32_t notice = 0xfffffff0; // small steps over the end, then large ones
    for (int i = 0; i < PLACES * TIMES; i++) {
        size_t n = sizes[i % PLACES];
        struct xwrite w = {.region = REGION,
                           .offset = (uint64_t)(i % PLACES) * 65536,
                           .src = a->mem + i % PLACES * 65536,
                           .bytes = n,
                           .notice = notice};
        fill(a->mem + w.offset, n, (uint64_t)i);
        assert_int_equal(end_write(a, &w), STATUS_OK);
        pump(BOTH(a, b), &b->notices, i + 1);
        pump(BOTH(a, b), &a->dones, i + 1);
        const struct xport_event *ev = &b->history[i];
        assert_true(ev->region == REGION && ev->offset == w.offset && ev->bytes == n);
        assert_int_equal(ev->notice, notice);
        assert_true(filled(b->mem + w.offset, n, (uint64_t)i));
        notice = i < PLACES * TIMES / 2 ? notice + 1 : (uint32_t)prng_u64(&r);
    }
    end_close(a);
    end_close(b);
}

// A receiver that looks now and then, and takes one event at a time: the sender is told FULL and
// nothing is lost, reordered or kept in growing memory.
static void test_slow_receiver(void **state)
{
    struct xport_config c = {.link_depth = 16};
    struct end *a, *b;
    pair_open(&a, &b, &c);
    int total = world_rounds(3000), sent = 0, full = 0, seen = 0;
    uint64_t end = now_us() + 60000000;
    for (int turn = 0; seen < total && now_us() < end; turn++) {
        struct xwrite w = {.region = REGION,
                           .offset = (uint64_t)(sent % 512) * 4096,
                           .src = a->mem,
                           .bytes = (size_t)(sent % 4096),
                           .notice = (uint32_t)sent};
        enum status s = sent < total ? end_write(a, &w) : STATUS_FULL;
        sent += s == STATUS_OK;
        full += sent < total && s == STATUS_FULL;
        end_poll(a);
        struct xport_event ev;
        // While the sender can send it is far behind; then it keeps up with one event in two turns.
        if (turn % (sent < total ? 8 : 2) || xport_poll(b->x, &ev, 1) == 0)
            continue;
        if (ev.kind != XPORT_NOTICE)
            continue;
        assert_int_equal(ev.notice, seen);
        assert_int_equal(ev.bytes, seen % 4096);
        seen++;
    }
    assert_int_equal(seen, total);
    assert_true(full > 0);
    pump(BOTH(a, b), &a->dones, total);
    assert_int_equal(a->done_bad, 0);
    end_close(a);
    end_close(b);
}

// A receiver that does not poll: FULL comes within a bound, and nothing is lost.
static void test_back_pressure(void **state)
{
    struct xport_config c = {.link_depth = 32};
    struct end *a, *b;
    pair_open(&a, &b, &c);
    static uint8_t src[65536];
    struct xwrite w = {.region = REGION, .src = src, .bytes = sizeof src};
    int accepted = 0;
    enum status s = STATUS_OK;
    for (int idle = 0; idle < 50 && accepted < 4000;) {
        w.notice = (uint32_t)accepted;
        s = end_write(a, &w);
        if (s == STATUS_OK)
            accepted++;
        else if (end_poll(a) == 0) // its DONEs made no room: blocked for good
            idle++;
    }
    assert_int_equal(s, STATUS_FULL);
    assert_in_range(accepted, 32, 3999);
    assert_true(xport_stats_get(a->x).refused_full > 0);
    pump(BOTH(a, b), &b->notices, accepted);
    pump(BOTH(a, b), &a->dones, accepted);
    for (int i = 0; i < accepted; i++)
        assert_int_equal(b->history[i].notice, i);
    assert_int_equal(end_write(a, &w), STATUS_OK);
    end_close(a);
    end_close(b);
}

static int write_some(struct end *a, int n, const uint8_t *src, size_t bytes)
{
    int accepted = 0;
    for (int i = 0; i < n; i++) {
        struct xwrite w = {.region = REGION, .src = src, .bytes = bytes, .notice = (uint32_t)i};
        accepted += end_write(a, &w) == STATUS_OK;
    }
    return accepted;
}

static void test_close_with_writes_under_way(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    uint8_t *src = mem_zalloc(1, 1 << 20);
    int accepted = write_some(a, 100, src, 1 << 20); // more than any socket buffer
    assert_true(accepted > 0);
    xlink_close(a->link);
    xlink_close(a->link); // again: nothing
    pump(BOTH(a, b), &b->downs, 1);
    pump_ms(BOTH(a, b), 30);
    assert_int_equal(a->dones, accepted);
    assert_int_equal(a->downs, 0); // its own doing
    assert_int_equal(b->downs, 1);
    assert_int_equal(b->down, STATUS_LINK_DOWN);
    for (int i = 0; i < b->notices; i++)
        assert_int_equal(b->history[i].notice, i);
    end_close(a);
    end_close(b);
    free(src);
}

static void test_peer_closes(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    uint8_t *src = mem_zalloc(1, 1 << 20);
    int accepted = write_some(a, 20, src, 1 << 20);
    end_close(b);
    pump(&a, 1, &a->downs, 1);
    pump_ms(&a, 1, 20);
    assert_int_equal(a->dones, accepted);
    assert_int_equal(a->downs, 1);
    assert_int_equal(a->down, STATUS_LINK_DOWN);
    assert_int_equal(xport_stats_get(a->x).links_down, 1);
    end_close(a);
    free(src);
}

// The LINK_DOWN comes after everything that the peer sent before it closed.
static void test_last_words(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    int accepted = write_some(a, 40, (const uint8_t *)"last words", 10);
    assert_int_equal(accepted, 40);
    xlink_close(a->link);
    pump(BOTH(a, b), &b->downs, 1);
    assert_int_equal(b->notices, 40);
    end_close(a);
    end_close(b);
}

static void test_write_after_down(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    end_close(b);
    enum status s = STATUS_OK;
    int accepted = 0;
    for (int i = 0; i < 1000 && s != STATUS_LINK_DOWN; i++) {
        struct xport_event ev[4];
        s = end_write(a, &(struct xwrite){.region = REGION});
        accepted += s == STATUS_OK;
        int n = xport_poll(a->x, ev, 1); // one at a time: the link still stands after this
        a->dones += n == 1 && ev[0].kind == XPORT_WRITE_DONE;
        if (n == 1 && ev[0].kind == XPORT_LINK_DOWN) {
            assert_int_equal(end_write(a, &(struct xwrite){.region = REGION}), STATUS_LINK_DOWN);
            a->downs++;
            break;
        }
    }
    pump(&a, 1, &a->downs, 1);
    assert_int_equal(a->dones, accepted);
    assert_int_equal(a->downs, 1);
    end_close(a);
}

static void test_writes_out_of_range(void **state)
{
    static const struct xwrite bad[] = {
        {.region = REGION + 1, .offset = 0, .bytes = 0},
        {.region = REGION + 1, .offset = 0, .bytes = 8},
        {.region = REGION, .offset = REGION_BYTES, .bytes = 1},
        {.region = REGION, .offset = REGION_BYTES + 1, .bytes = 0},
        {.region = REGION, .offset = REGION_BYTES - 7, .bytes = 8},
        {.region = REGION, .offset = UINT64_MAX, .bytes = 1},
        {.region = REGION, .offset = UINT64_MAX - 3, .bytes = 8},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct end *a, *b;
        pair_open(&a, &b, NULL);
        struct xwrite w = bad[i];
        w.src = "12345678";
        assert_int_equal(end_write(a, &w), STATUS_OK);
        pump(BOTH(a, b), &b->downs, 1);
        pump(BOTH(a, b), &a->downs, 1);
        pump_ms(BOTH(a, b), 5);
        assert_int_equal(b->down, STATUS_LINK_PROTOCOL);
        assert_int_equal(b->notices, 0);
        assert_int_equal(a->dones, 1);
        assert_int_equal(a->downs + b->downs, 2);
        assert_int_equal(xport_stats_get(b->x).protocol_errors, 1);
        for (size_t k = 0; k < REGION_BYTES; k += 1)
            if (b->mem[k])
                fail_msg("case %zu wrote into the region", i);
        end_close(a);
        end_close(b);
    }
}

static void test_region_after_up(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    void *late;
    assert_int_equal(xport_region_create(b->x, 99, 100, &late, NULL), STATUS_OK);
    struct xwrite w = {.region = 99, .src = "late", .bytes = 4};
    assert_int_equal(end_write(a, &w), STATUS_OK); // told by word of mouth, not polled for
    pump(BOTH(a, b), &b->notices, 1);
    assert_memory_equal(late, "late", 4);
    struct errmsg e;
    assert_int_equal(xport_region_create(b->x, 99, 100, &late, &e), STATUS_EXISTS);
    assert_int_equal(xport_region_create(b->x, 98, 0, &late, &e), STATUS_BAD_CONFIG);
    for (uint32_t i = 2; i < XPORT_REGIONS_MAX; i++)
        assert_int_equal(xport_region_create(b->x, 1000 + i, 1, &late, &e), STATUS_OK);
    assert_int_equal(xport_region_create(b->x, 5000, 1, &late, &e), STATUS_FULL);
    end_connect(a, b); // all of them travel in the greeting
    pump(BOTH(a, b), &a->ups, 2);
    w.region = 1000 + XPORT_REGIONS_MAX - 1;
    w.bytes = 1;
    assert_int_equal(end_write(a, &w), STATUS_OK);
    pump(BOTH(a, b), &b->notices, 2);
    xport_region_destroy(b->x, 99);
    w.region = 99;
    assert_int_equal(end_write(a, &w), STATUS_OK);
    pump(BOTH(a, b), &b->downs, 1);
    assert_int_equal(b->down, STATUS_LINK_PROTOCOL);
    end_close(a);
    end_close(b);
}

static void test_many_links(void **state)
{
    enum { MOST = 80, EACH = 20 };
    const int N = world_kind == XPORT_VERBS ? MOST / 2 : MOST;
    struct xport_config c = {.max_links = (uint32_t)N};
    struct end *server = end_open(&c);
    struct end *all[MOST + 1] = {server};
    for (int i = 1; i <= N; i++) {
        all[i] = end_open(NULL);
        end_connect(all[i], server);
    }
    pump(all, N + 1, &server->ups, N);
    for (int i = 1; i <= N; i++)
        pump(all, N + 1, &all[i]->ups, 1);
    uint32_t next[MOST + 1] = {0};
    for (int k = 0; k < EACH; k++) {
        for (int i = 1; i <= N; i++) {
            uint32_t word = (uint32_t)(i << 16 | k);
            struct xwrite w = {.region = REGION,
                               .offset = (uint64_t)i * 64,
                               .src = &word,
                               .bytes = 4,
                               .notice = word};
            assert_int_equal(end_write(all[i], &w), STATUS_OK);
            pump(all, N + 1, &server->notices, server->notices + (i % 16 == 0));
        }
        pump(all, N + 1, &server->notices, (k + 1) * N);
    }
    for (int i = 0; i < N * EACH; i++) { // in order per link
        uint32_t from = server->history[i].notice >> 16;
        assert_int_equal(server->history[i].notice & 0xffff, next[from]++);
    }
    struct end *late = end_open(NULL);
    end_connect(late, server);
    all[0] = late;
    pump((struct end *[]){late, server}, 2, &late->downs, 1);
    assert_int_equal(late->down, STATUS_REFUSED);
    end_close(late);
    for (int i = 1; i <= N; i++)
        end_close(all[i]);
    pump(&server, 1, &server->downs, N);
    end_close(server);
}

// A thousand links between two ends, each of which works and ends.
static void test_thousand_links(void **state)
{
    int n = world_rounds(1000);
    struct rlimit lim;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &lim), 0);
    lim.rlim_cur = lim.rlim_max;
    setrlimit(RLIMIT_NOFILE, &lim);
    if (lim.rlim_cur < (rlim_t)(2 * n + 100)) {
        printf("skipped: only %llu descriptors\n", (unsigned long long)lim.rlim_cur);
        skip();
    }
    struct xport_config c = {.max_links = (uint32_t)n, .link_depth = 16, .handshake_ms = 60000};
    struct end *a = end_open(&c), *b = end_open(&c);
    struct xlink **links = mem_zalloc((size_t)n, sizeof *links);
    for (int i = 0; i < n; i++) {
        enum status s;
        while ((s = xport_connect(a->x, xport_address(b->x), &i, sizeof i, NULL, &links[i],
                                  NULL)) == STATUS_AGAIN)
            pump_ms(BOTH(a, b), 1); // a full backlog
        assert_int_equal(s, STATUS_OK);
        if (i % 50 == 49)
            pump(BOTH(a, b), &b->ups, i - 20);
    }
    pump(BOTH(a, b), &a->ups, n);
    pump(BOTH(a, b), &b->ups, n);
    for (int i = 0; i < n; i++) {
        struct xwrite w = {.region = REGION,
                           .offset = (uint64_t)i * 64,
                           .src = &i,
                           .bytes = sizeof i,
                           .notice = (uint32_t)i};
        assert_int_equal(xlink_write(links[i], &w), STATUS_OK);
        pump(BOTH(a, b), &a->dones, i + 1);
    }
    pump(BOTH(a, b), &b->notices, n);
    for (int i = 0; i < n; i++) {
        int v;
        memcpy(&v, b->mem + i * 64, sizeof v);
        assert_int_equal(v, i);
        xlink_close(links[i]);
    }
    pump(BOTH(a, b), &b->downs, n);
    assert_int_equal(a->downs, 0);
    free(links);
    end_close(a);
    end_close(b);
}

// A child of a fork holds copies of all descriptors: links work on, and a closed one is closed.
static void test_fork(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pause();
        _exit(0);
    }
    for (int i = 0; i < 100; i++) {
        fill(a->mem, 5000, (uint64_t)i);
        struct xwrite w = {.region = REGION, .src = a->mem, .bytes = 5000, .notice = 1};
        assert_int_equal(end_write(a, &w), STATUS_OK);
        pump(BOTH(a, b), &b->notices, i + 1);
        pump(BOTH(a, b), &a->dones, i + 1);
        assert_true(filled(b->mem, 5000, (uint64_t)i));
    }
    xlink_close(a->link);
    pump(BOTH(a, b), &b->downs, 1);
    assert_int_equal(b->down, STATUS_LINK_DOWN);
    end_connect(a, b); // and the listener is the parent's alone
    pump(BOTH(a, b), &b->ups, 2);
    end_close(a);
    pump(&b, 1, &b->downs, 2);
    end_close(b);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_max_links_of_the_caller(void **state)
{
    struct xport_config c = {.max_links = 1};
    struct end *a = end_open(&c), *b = end_open(NULL);
    end_connect(a, b);
    struct xlink *l;
    struct errmsg e;
    assert_int_equal(xport_connect(a->x, xport_address(b->x), NULL, 0, NULL, &l, &e), STATUS_FULL);
    pump(BOTH(a, b), &a->ups, 1);
    xlink_close(a->link);
    pump(BOTH(a, b), &b->downs, 1);
    end_connect(a, b);
    pump(BOTH(a, b), &a->ups, 2);
    end_close(a);
    end_close(b);
}

static void test_both_connect(void **state)
{
    struct end *a = end_open(NULL), *b = end_open(NULL);
    for (int i = 0; i < 10; i++) {
        end_connect(a, b);
        end_connect(b, a);
    }
    pump(BOTH(a, b), &a->ups, 20);
    pump(BOTH(a, b), &b->ups, 20);
    assert_int_equal(end_write(a, &(struct xwrite){.region = REGION, .notice = 5}), STATUS_OK);
    assert_int_equal(end_write(b, &(struct xwrite){.region = REGION, .notice = 6}), STATUS_OK);
    pump(BOTH(a, b), &a->notices, 1);
    pump(BOTH(a, b), &b->notices, 1);
    end_close(a);
    end_close(b);
}

static void test_close_while_connecting(void **state)
{
    struct end *a = end_open(NULL), *b = end_open(NULL);
    for (int i = 0; i < 10; i++) {
        struct xlink *l = end_connect(a, b);
        if (i & 1)
            end_poll(a);
        xlink_close(l);
    }
    pump_ms(BOTH(a, b), 20);
    assert_int_equal(a->ups + a->downs, 0);
    assert_int_equal(b->ups, b->downs); // it may have seen some of them come and go
    end_connect(a, b);
    pump(BOTH(a, b), &a->ups, 1);
    end_close(a);
    end_close(b);
}

static void test_dead_address(void **state)
{
    struct end *a = end_open(NULL), *gone = end_open(NULL);
    char address[LIMIT_ADDR];
    strcpy(address, xport_address(gone->x));
    end_close(gone);
    struct xlink *l;
    uint64_t t = now_us();
    assert_int_equal(xport_connect(a->x, address, NULL, 0, NULL, &l, NULL), STATUS_OK);
    pump(&a, 1, &a->downs, 1);
    assert_int_equal(a->down, STATUS_LINK_DOWN);
    assert_true(now_us() - t < NOTICED_US);
    assert_int_equal(a->ups, 0);
    end_close(a);
}

static void test_bad_addresses(void **state)
{
    static const char *const bad[] = {
        "",
        "shm",
        "tcp:",
        "shm:#",
        "tcp:#12",
        "verbs:1.2.3.4:5#1",
        "shm:x#",
        "tcp:1.2.3.4#1",
        "tcp::1#1",
        "tcp:a:b#1",
        "tcp:[::1:5#1",
        "tcp:127.0.0.1:99999#1",
        "tcp:1.2.3.4:5#zz",
        "shm:x#1z",
        "shm:x",
        "udp:127.0.0.1:1#1",
        "tcp:localhost:80#1",
        "verbs:#1",
        "verbs:1.2.3.4#1",
        "verbs:1.2.3.4:0#1",
        "verbs:[::1:5#1",
        "verbs:localhost:80#1",
    };
    struct end *a = end_open(NULL);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct xlink *l;
        struct errmsg e = {{0}};
        if (world_kind == XPORT_VERBS && !strcmp(bad[i], "verbs:1.2.3.4:5#1"))
            continue; // good
        if (xport_connect(a->x, bad[i], NULL, 0, NULL, &l, &e) != STATUS_BAD_CONFIG)
            fail_msg("'%s' was taken for an address", bad[i]);
        assert_true(strlen(e.text) > 0);
        end_poll(a);
    }
    char longest[1000];
    snprintf(longest, sizeof longest, "%s:%0900d#1", xport_kind_name(world_kind), 0);
    struct xlink *l;
    assert_int_equal(xport_connect(a->x, longest, NULL, 0, NULL, &l, NULL), STATUS_BAD_CONFIG);
    end_close(a);
}

static void test_wrong_token(void **state)
{
    struct end *a = end_open(NULL), *b = end_open(NULL);
    char address[LIMIT_ADDR];
    strcpy(address, xport_address(b->x));
    char *last = address + strlen(address) - 1;
    *last = *last == '0' ? '1' : '0';
    struct xlink *l;
    assert_int_equal(xport_connect(a->x, address, NULL, 0, NULL, &l, NULL), STATUS_OK);
    pump(BOTH(a, b), &a->downs, 1);
    assert_int_equal(a->down, STATUS_REFUSED);
    assert_int_equal(b->ups, 0);
    end_close(a);
    end_close(b);
}

static void test_absent_kinds(void **state)
{
    struct xport *x;
    struct errmsg e = {{0}};
    struct xport_config c = {.kind = XPORT_VERBS};
    enum status s = xport_open(&c, &x, &e);
    if (s == STATUS_OK) // this host has one
        xport_close(x);
    else
        assert_int_equal(s, STATUS_NO_DEVICE);
    assert_true(s == STATUS_OK || strstr(e.text, "verbs"));
    c.kind = XPORT_TCP;
    c.bind_host = "0.0.0.0";
    assert_int_equal(xport_open(&c, &x, &e), STATUS_BAD_CONFIG);
    c.bind_host = "no such host";
    assert_int_equal(xport_open(&c, &x, &e), STATUS_BAD_CONFIG);
    c = (struct xport_config){.kind = XPORT_SHM, .link_depth = 1 << 20};
    assert_int_equal(xport_open(&c, &x, &e), STATUS_BAD_CONFIG);
    enum xport_kind kind;
    assert_int_equal(xport_kind_parse("rdma", &kind), STATUS_BAD_CONFIG);
    xport_close(NULL);
}

static void test_wait_timeout(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    pump_ms(BOTH(a, b), 10);
    uint64_t t = now_us();
    for (int i = 0; i < 3; i++) // may return for no reason, but not again and again
        xport_wait(a->x, 50);
    assert_in_range(now_us() - t, 45000, NOTICED_US);
    xport_wake(a->x); // before the wait counts
    xport_wake(a->x);
    t = now_us();
    xport_wait(a->x, 2000);
    assert_true(now_us() - t < NOTICED_US);
    end_close(a);
    end_close(b);
}

#define T(f) cmocka_unit_test_setup_teardown(f, fds_before, fds_after)

int main(int argc, char **argv)
{
    world_init(argc, argv);
    const struct CMUnitTest tests[] = {
        T(test_hello),
        T(test_order_and_visibility),
        T(test_odd_sizes),
        T(test_same_places),
        T(test_back_pressure),
        T(test_slow_receiver),
        T(test_close_with_writes_under_way),
        T(test_peer_closes),
        T(test_last_words),
        T(test_write_after_down),
        T(test_writes_out_of_range),
        T(test_region_after_up),
        T(test_many_links),
        T(test_thousand_links),
        T(test_fork),
        T(test_max_links_of_the_caller),
        T(test_both_connect),
        T(test_close_while_connecting),
        T(test_dead_address),
        T(test_bad_addresses),
        T(test_wrong_token),
        T(test_absent_kinds),
        T(test_wait_timeout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
