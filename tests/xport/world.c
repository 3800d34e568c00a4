#include "tests/xport/world.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/prng.h"

enum xport_kind world_kind;
struct xport_wire world_wire = {.ack_timeout = 17};

static char hosts[2][64];
static int ends_open;

const char *world_host(void)
{
    if (world_kind != XPORT_VERBS)
        return NULL;
    return hosts[ends_open > 0];
}

void world_ends_elsewhere(int n)
{
    ends_open += n;
}

int world_rounds(int n)
{
    int few = n > 20 ? n / 10 : 2;
    return world_kind == XPORT_VERBS ? few : n;
}

// Without a device the tests are skipped, by exit status 77. Opening one here also lets the library
// take its descriptors before the first test counts them.
static void find_verbs(const char *program)
{
    const char *list = getenv("HADAL_VERBS_HOSTS");
    int n = sscanf(list ? list : "127.0.0.1", "%63[^,],%63s", hosts[0], hosts[1]);
    if (n == 1)
        memcpy(hosts[1], hosts[0], sizeof hosts[1]);
    for (int i = 0; i < 3; i++) {
        struct xport_config c = {.kind = XPORT_VERBS, .bind_host = i < 2 ? hosts[i] : NULL};
        struct xport *x;
        struct errmsg e = {{0}};
        if (xport_open(&c, &x, &e) != STATUS_OK) {
            fprintf(stderr, "%s: skipped: %s (tests/rdma-vm runs it)\n", program, e.text);
            exit(77);
        }
        xport_close(x);
    }
}

void world_init(int argc, char **argv)
{
    if (argc < 2 || xport_kind_parse(argv[1], &world_kind) != STATUS_OK) {
        fprintf(stderr, "usage: %s shm|tcp|verbs\n", argv[0]);
        exit(2);
    }
    log_set_level(LOG_ERROR);
    cmocka_set_test_filter(getenv("HADAL_TEST_FILTER")); // a pattern, to repeat one test
    if (world_kind == XPORT_VERBS)
        find_verbs(argv[0]);
}

uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

void sleep_ms(int ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000l};
    nanosleep(&ts, NULL);
}

struct end *end_open(const struct xport_config *more)
{
    struct xport_config c = more ? *more : (struct xport_config){0};
    c.kind = world_kind;
    c.bind_host = c.bind_host ? c.bind_host : world_host();
    c.wire = world_wire;
    if (world_kind == XPORT_VERBS && c.handshake_ms == 0)
        c.handshake_ms = 15000; // a lost message of rdma_cm is sent again after 4 s
    ends_open++;
    struct end *e = mem_zalloc(1, sizeof *e);
    struct errmsg err = {{0}};
    if (xport_open(&c, &e->x, &err) != STATUS_OK)
        fail_msg("%s", err.text);
    void *base;
    if (xport_region_create(e->x, REGION, REGION_BYTES, &base, &err) != STATUS_OK)
        fail_msg("%s", err.text);
    e->mem = base;
    return e;
}

void end_close(struct end *e)
{
    xport_close(e->x);
    ends_open--;
    free(e);
}

static void record(struct end *e, const struct xport_event *ev)
{
    switch (ev->kind) {
    case XPORT_LINK_UP:
        e->ups++;
        e->link = ev->link;
        e->hello_n = ev->hello_n;
        memcpy(e->hello, ev->hello, ev->hello_n);
        break;
    case XPORT_LINK_DOWN:
        e->downs++;
        e->down = ev->status;
        break;
    case XPORT_WRITE_DONE:
        e->done_users[e->dones++ % HISTORY] = ev->user;
        e->done = ev->status;
        e->done_bad += ev->status != STATUS_OK;
        break;
    case XPORT_NOTICE:
        e->history[e->notices++ % HISTORY] = *ev;
        break;
    }
}

int end_poll(struct end *e)
{
    struct xport_event ev[16];
    int n = xport_poll(e->x, ev, 16);
    for (int i = 0; i < n; i++)
        record(e, &ev[i]);
    return n;
}

static int poll_all(struct end *const *ends, int ends_n)
{
    int n = 0;
    for (int i = 0; i < ends_n; i++)
        n += end_poll(ends[i]);
    return n;
}

static void tell_downs(struct end *const *ends, int ends_n)
{
    for (int i = 0; i < ends_n; i++)
        if (ends[i]->downs > 0)
            fprintf(stderr, "end %d of %d: %d links up, %d down, the last for %s\n", i, ends_n,
                    ends[i]->ups, ends[i]->downs, status_name(ends[i]->down));
}

void pump(struct end *const *ends, int ends_n, const int *n, int want)
{
    uint64_t limit_s = 30, start = now_us();
    while (*n < want) {
        if (poll_all(ends, ends_n) == 0)
            xport_wait(ends[0]->x, 1);
        if (now_us() - start > limit_s * 1000000) {
            tell_downs(ends, ends_n);
            fail_msg("counted %d of %d events within %d s", *n, want, (int)limit_s);
        }
    }
}

void pump_ms(struct end *const *ends, int ends_n, int ms)
{
    uint64_t deadline = now_us() + (uint64_t)ms * 1000;
    while (now_us() < deadline)
        if (poll_all(ends, ends_n) == 0)
            xport_wait(ends[0]->x, 1);
}

struct xlink *end_connect(struct end *from, struct end *to)
{
    struct xlink *l = NULL;
    struct errmsg e = {{0}};
    if (xport_connect(from->x, xport_address(to->x), NULL, 0, from, &l, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    return l;
}

void pair_open(struct end **a, struct end **b, const struct xport_config *more)
{
    *a = end_open(more);
    *b = end_open(more);
    end_connect(*a, *b);
    pump((struct end *[]){*a, *b}, 2, &(*a)->ups, 1);
    pump((struct end *[]){*a, *b}, 2, &(*b)->ups, 1);
}

enum status end_write(struct end *e, const struct xwrite *w)
{
    return xlink_write(e->link, w);
}

int fds_open(void)
{
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    int n = 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static int fds_at_start;

int fds_before(void **state)
{
    ends_open = 0; // a failed test leaves some
    fds_at_start = fds_open();
    return 0;
}

int fds_after(void **state)
{
    int now = fds_open();
    if (now != fds_at_start)
        fprintf(stderr, "%d descriptors before the test, %d after\n", fds_at_start, now);
    return now != fds_at_start;
}

void fill(uint8_t *p, size_t n, uint64_t seed)
{
    struct prng r;
    prng_seed(&r, seed);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = prng_u64(&r);
        memcpy(p + i, &v, n - i < 8 ? n - i : 8);
    }
}

bool filled(const uint8_t *p, size_t n, uint64_t seed)
{
    struct prng r;
    prng_seed(&r, seed);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = prng_u64(&r);
        if (memcmp(p + i, &v, n - i < 8 ? n - i : 8))
            return false;
    }
    return true;
}
