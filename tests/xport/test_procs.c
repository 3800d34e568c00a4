// Ends in processes of their own: kill -9 in the middle of writes, in both directions.
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "tests/xport/world.h"

enum { BIG = 1 << 20, AREAS = 4 };

static uint64_t sum(const uint8_t *p, size_t n)
{
    uint64_t s = n;
    for (size_t i = 0; i + 8 <= n; i += 8) {
        uint64_t v;
        memcpy(&v, p + i, 8);
        s = s * 0x9e3779b97f4a7c15u + v;
    }
    return s;
}

// Writes a checked area, waits until the parent has seen it (its notice), and so on for ever.
static void child_writes(const char *address)
{
    struct end *a = end_open(NULL);
    struct xlink *l;
    if (xport_connect(a->x, address, NULL, 0, NULL, &l, NULL) != STATUS_OK)
        _exit(3);
    uint8_t *src = mem_alloc(AREAS * BIG);
    for (int i = 0; a->downs == 0; i++) {
        while (a->downs == 0 && (a->ups == 0 || i - a->notices >= AREAS || i - a->dones >= AREAS))
            if (end_poll(a) == 0)
                xport_wait(a->x, 1000);
        uint8_t *area = src + (i % AREAS) * BIG;
        fill(area + 8, BIG - 8, (uint64_t)i);
        uint64_t check = sum(area + 8, BIG - 8);
        memcpy(area, &check, 8);
        struct xwrite w = {.region = REGION,
                           .offset = (uint64_t)(i % AREAS) * BIG,
                           .src = area,
                           .bytes = BIG,
                           .notice = (uint32_t)i};
        while (a->downs == 0 && xlink_write(l, &w) == STATUS_FULL)
            end_poll(a);
    }
    _exit(0);
}

static void child_listens(int pipe_to_parent, bool polls)
{
    struct end *b = end_open(NULL);
    char address[LIMIT_ADDR] = {0};
    strcpy(address, xport_address(b->x));
    if (write(pipe_to_parent, address, sizeof address) != sizeof address)
        _exit(3);
    while (b->downs == 0) {
        if (polls || b->ups == 0)
            end_poll(b);
        xport_wait(b->x, polls ? 1000 : 10);
    }
    _exit(0);
}

// A child is this program anew: what a process has opened of an RDMA device is of no use to a fork.
static pid_t spawn(const char *role, const char *arg)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execl("/proc/self/exe", "xport_procs", xport_kind_name(world_kind), role, arg, NULL);
    _exit(4);
}

static int run_role(const char *role, const char *arg)
{
    if (!strcmp(role, "writes")) {
        world_ends_elsewhere(1);
        child_writes(arg);
    }
    child_listens(atoi(arg), !strcmp(role, "listens"));
    return 5;
}

static void reap(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
}

static void test_writer_is_killed(void **state)
{
    for (int round = 0; round < world_rounds(8); round++) {
        struct end *b = end_open(NULL);
        pid_t pid = spawn("writes", xport_address(b->x));
        uint64_t deadline = now_us() + 30000000, killed = 0;
        int seen = 0;
        while (b->downs == 0 && now_us() < deadline) {
            if (end_poll(b) == 0)
                xport_wait(b->x, 1000);
            for (; seen < b->notices; seen++) {
                const uint8_t *area = b->mem + b->history[seen % HISTORY].offset;
                uint64_t check;
                memcpy(&check, area, 8);
                assert_int_equal(b->history[seen % HISTORY].notice, seen);
                assert_true(check == sum(area + 8, BIG - 8));
                struct xwrite w = {.region = REGION, .notice = (uint32_t)seen};
                end_write(b, &w);
            }
            if (seen > 5 * round && !killed) {
                kill(pid, SIGKILL);
                killed = now_us();
            }
        }
        assert_int_equal(b->downs, 1);
        assert_int_equal(b->down, STATUS_LINK_DOWN);
        assert_true(now_us() - killed < NOTICED_US);
        reap(pid);
        pump_ms(&b, 1, 5);
        assert_int_equal(b->downs, 1);
        end_close(b);
    }
}

// Every write that was accepted ends, and then the link, once; the dead leave nothing behind.
static void run_reader_is_killed(bool polls)
{
    for (int round = 0; round < world_rounds(6); round++) {
        int fds[2];
        assert_int_equal(pipe(fds), 0);
        char fd[16];
        snprintf(fd, sizeof fd, "%d", fds[1]);
        pid_t pid = spawn(polls ? "listens" : "is-stuck", fd);
        char address[LIMIT_ADDR];
        assert_int_equal(read(fds[0], address, sizeof address), sizeof address);
        close(fds[0]);
        close(fds[1]);
        world_ends_elsewhere(1);
        struct end *a = end_open(NULL);
        world_ends_elsewhere(-1);
        struct xlink *l;
        assert_int_equal(xport_connect(a->x, address, NULL, 0, NULL, &l, NULL), STATUS_OK);
        pump(&a, 1, &a->ups, 1);
        uint8_t *src = mem_zalloc(1, BIG);
        int accepted = 0;
        uint64_t deadline = now_us() + 30000000, killed = 0;
        while (a->downs == 0 && now_us() < deadline) {
            struct xwrite w = {.region = REGION, .src = src, .bytes = BIG};
            enum status s = xlink_write(l, &w);
            accepted += s == STATUS_OK;
            if (!killed && (accepted > 10 * round || s == STATUS_FULL)) {
                kill(pid, SIGKILL);
                killed = now_us();
            }
            if (end_poll(a) == 0)
                xport_wait(a->x, killed ? 1000 : 1);
        }
        assert_int_equal(a->downs, 1);
        assert_int_equal(a->dones, accepted);
        assert_true(now_us() - killed < NOTICED_US);
        reap(pid);
        assert_int_equal(xport_connect(a->x, address, NULL, 0, NULL, &l, NULL), STATUS_OK);
        pump(&a, 1, &a->downs, 2); // its address is free
        end_close(a);
        free(src);
    }
}

static void test_reader_is_killed(void **state)
{
    run_reader_is_killed(true);
}

static void test_stuck_reader_is_killed(void **state)
{
    run_reader_is_killed(false);
}

static void test_sleeper_sees_death_at_once(void **state)
{
    struct end *b = end_open(NULL);
    pid_t pid = spawn("writes", xport_address(b->x));
    pump(&b, 1, &b->notices, AREAS); // it waits for us now
    pump_ms(&b, 1, 20);
    kill(pid, SIGKILL);
    uint64_t t = now_us();
    while (b->downs == 0 && now_us() - t < NOTICED_US)
        if (end_poll(b) == 0)
            xport_wait(b->x, -1);
    assert_true(now_us() - t < NOTICED_US);
    reap(pid);
    end_close(b);
}

static int shm_files(void)
{
    DIR *d = opendir("/dev/shm");
    int n = 0;
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static int files_at_start;

static int files_before(void **state)
{
    files_at_start = shm_files();
    return 0;
}

static void test_nothing_left_behind(void **state)
{
    assert_int_equal(shm_files(), files_at_start);
}

#define T(f) cmocka_unit_test_setup_teardown(f, fds_before, fds_after)

int main(int argc, char **argv)
{
    world_init(argc, argv);
    if (argc == 4)
        return run_role(argv[2], argv[3]);
    const struct CMUnitTest tests[] = {
        T(test_writer_is_killed),
        T(test_reader_is_killed),
        T(test_stuck_reader_is_killed),
        T(test_sleeper_sees_death_at_once),
        cmocka_unit_test(test_nothing_left_behind),
    };
    return cmocka_run_group_tests(tests, files_before, NULL);
}
