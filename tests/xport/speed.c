// How fast links are, for one kind: bandwidth of large writes, half a round trip of small ones. Not
// a test; tests/rdma-vm/speed compares with perftest. Source and target lie in registered regions.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "rdma/xport.h"

enum {
    REGION = 1,
    BIG = 1 << 20,
    SMALL = 4096,
    AHEAD = 8,
    BYTES = AHEAD * BIG,
    ECHO = 1,
    LAST = 2
};

struct side {
    struct xport *x;
    struct xlink *link;
    uint8_t *mem;
    uint64_t notices, dones;
    uint32_t last;
    bool up, down;
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "speed: %s\n", what);
    exit(1);
}

static struct side side_open(enum xport_kind kind, const char *host, uint32_t spin_us)
{
    struct xport_config c = {.kind = kind, .bind_host = host, .spin_us = spin_us};
    struct side s = {0};
    struct errmsg e;
    void *base;
    if (xport_open(&c, &s.x, &e) != STATUS_OK ||
        xport_region_create(s.x, REGION, BYTES, &base, &e) != STATUS_OK)
        die(e.text);
    s.mem = base;
    return s;
}

static void turn(struct side *s)
{
    struct xport_event ev[16];
    int n = xport_poll(s->x, ev, 16);
    for (int i = 0; i < n; i++) {
        s->dones += ev[i].kind == XPORT_WRITE_DONE;
        s->down |= ev[i].kind == XPORT_LINK_DOWN;
        s->up |= ev[i].kind == XPORT_LINK_UP;
        s->link = ev[i].kind == XPORT_LINK_UP ? ev[i].link : s->link;
        s->notices += ev[i].kind == XPORT_NOTICE;
        s->last = ev[i].kind == XPORT_NOTICE ? ev[i].notice : s->last;
    }
    if (n == 0)
        xport_wait(s->x, 1000);
}

static void put(struct side *s, uint64_t at, size_t bytes, uint32_t notice)
{
    struct xwrite w = {
        .region = REGION, .offset = at, .src = s->mem + at, .bytes = bytes, .notice = notice};
    enum status st;
    while ((st = xlink_write(s->link, &w)) == STATUS_FULL)
        turn(s);
    if (st != STATUS_OK)
        die(status_text(st));
}

static void far_end(enum xport_kind kind, const char *host, uint32_t spin_us, int out)
{
    struct side s = side_open(kind, host, spin_us);
    char address[LIMIT_ADDR] = {0};
    snprintf(address, sizeof address, "%s", xport_address(s.x));
    if (write(out, address, sizeof address) != sizeof address)
        die("the other process is gone");
    for (uint64_t seen = 0; !s.down;) {
        turn(&s);
        for (; seen < s.notices && !s.down; seen++)
            if (s.last == ECHO)
                put(&s, 0, SMALL, ECHO);
            else if (s.last == LAST && seen + 1 == s.notices)
                put(&s, 0, 0, LAST);
    }
    _exit(0);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure_latency(struct side *s, int rounds)
{
    double *us = calloc((size_t)rounds, sizeof *us);
    for (int i = 0; i < rounds; i++) {
        uint64_t t = now_ns(), want = s->notices + 1;
        put(s, 0, SMALL, ECHO);
        while (s->notices < want && !s->down)
            turn(s);
        us[i] = (double)(now_ns() - t) / 2000;
    }
    qsort(us, (size_t)rounds, sizeof *us, by_value);
    printf("latency %d B: typical %.1f us, least %.1f us\n", SMALL, us[rounds / 2], us[0]);
    free(us);
}

static void measure_bandwidth(struct side *s, uint64_t writes)
{
    uint64_t t = now_ns(), dones = s->dones, want = s->notices + 1;
    for (uint64_t i = 0; i < writes; i++) {
        while (i - (s->dones - dones) >= AHEAD && !s->down)
            turn(s);
        put(s, i % AHEAD * BIG, BIG, i + 1 == writes ? LAST : 0);
    }
    while (s->notices < want && !s->down)
        turn(s);
    printf("bandwidth 1 MiB: %.1f MB/s\n", (double)(writes * BIG) * 1e3 / (double)(now_ns() - t));
}

// A far end of its own for each figure, before any device is opened (they share no verbs with a fork).
struct far {
    pid_t pid;
    int address; // pipe
};

static struct far far_start(enum xport_kind kind, const char *host, uint32_t spin_us)
{
    int fds[2];
    if (pipe(fds) < 0)
        die("pipe");
    struct far f = {.pid = fork(), .address = fds[0]};
    if (f.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        far_end(kind, host, spin_us, fds[1]);
    }
    close(fds[1]);
    return f;
}

static struct side far_connect(struct far *f, enum xport_kind kind, const char *near)
{
    char address[LIMIT_ADDR];
    struct errmsg e;
    if (read(f->address, address, sizeof address) != sizeof address)
        die("the other process is gone");
    struct side s = side_open(kind, near, 100000);
    if (xport_connect(s.x, address, NULL, 0, NULL, &s.link, &e) != STATUS_OK)
        die(e.text);
    return s;
}

static void far_end_now(struct far *f, struct side *s)
{
    xport_close(s->x);
    waitpid(f->pid, NULL, 0);
}

static void wait_up(struct side *s)
{
    while (!s->up && !s->down)
        turn(s);
}

int main(int argc, char **argv)
{
    enum xport_kind kind;
    if (argc != 6 || xport_kind_parse(argv[1], &kind) != STATUS_OK) {
        fprintf(stderr, "usage: xport_speed KIND FAR-HOST NEAR-HOST ROUNDS WRITES\n");
        return 2;
    }
    // Both spin for latency. For bandwidth the far end sleeps until something comes, as perftest's
    // server does: where the device is software, a spinning core is taken from it.
    struct far spinning = far_start(kind, argv[2], 100000), sleeping = far_start(kind, argv[2], 0);
    struct side s = far_connect(&spinning, kind, argv[3]);
    wait_up(&s);
    measure_latency(&s, atoi(argv[4]));
    far_end_now(&spinning, &s);
    s = far_connect(&sleeping, kind, argv[3]);
    wait_up(&s);
    measure_bandwidth(&s, strtoull(argv[5], NULL, 10));
    far_end_now(&sleeping, &s);
    return 0;
}
