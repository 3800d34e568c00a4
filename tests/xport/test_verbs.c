// What only the verbs body has: broken wires, a removed device, hostile use of keys and frames,
// sources that the device reads itself, the limit on locked memory. Runs inside tests/rdma-vm,
// whose `net` breaks the wire ($RDMA_NET).
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/prng.h"
#include "rdma/xport_verbs.h"
#include "tests/xport/world.h"

#define BOTH(a, b) (struct end *[]){a, b}, 2

enum { NOTICE_MS = 1000, SLACK_MS = 2500 }; // promised; the emulated machine may be slow

static pid_t start(const char *const argv[])
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    execvp(argv[0], (char *const *)(uintptr_t)argv);
    _exit(127);
}

static void net(const char *what, const char *arg)
{
    int status;
    pid_t pid = start((const char *[]){getenv("RDMA_NET"), what, arg, NULL});
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void link_works(struct end *a, struct end *b)
{
    int ups = a->ups, ups_b = b->ups, notices = b->notices;
    end_connect(a, b);
    pump(BOTH(a, b), &a->ups, ups + 1);
    pump(BOTH(a, b), &b->ups, ups_b + 1);
    struct xwrite w = {.region = REGION, .src = "well", .bytes = 4, .notice = 1};
    assert_int_equal(end_write(a, &w), STATUS_OK);
    pump(BOTH(a, b), &b->notices, notices + 1);
}

// Polls both, `a` writing all the while if `src`, until both noticed; prints after how long.
static void await_loss(const char *what, struct end *a, struct end *b, const uint8_t *src)
{
    uint64_t t = now_us(), seen_a = 0, seen_b = 0;
    int accepted = a->dones;
    while ((!seen_a || !seen_b) && now_us() - t < 10000000) {
        struct xwrite w = {.region = REGION, .src = src, .bytes = 4096};
        for (int i = 0; src && !a->downs && i < 16; i++)
            accepted += end_write(a, &w) == STATUS_OK;
        if (end_poll(a) + end_poll(b) == 0)
            xport_wait(a->x, 2);
        seen_a = seen_a || !a->downs ? seen_a : now_us();
        seen_b = seen_b || !b->downs ? seen_b : now_us();
    }
    printf("%s: noticed after %d ms here, %d ms there\n", what, (int)((seen_a - t) / 1000),
           (int)((seen_b - t) / 1000));
    pump_ms(BOTH(a, b), 20);
    assert_int_equal(a->downs, 1);
    assert_int_equal(b->downs, 1);
    assert_int_equal(a->down, STATUS_LINK_DOWN);
    if (src)
        assert_int_equal(a->dones, accepted);
    assert_in_range(seen_a - t, 0, (NOTICE_MS + SLACK_MS) * 1000);
    assert_in_range(seen_b - t, 0, (NOTICE_MS + SLACK_MS) * 1000);
}

// Links as the product has them, which are to break soon.
static void prompt_pair_open(struct end **a, struct end **b)
{
    struct xport_wire patient = world_wire;
    world_wire = (struct xport_wire){0};
    pair_open(a, b, NULL);
    world_wire = patient;
}

static void run_fault(const char *what, const char *arg, const char *mend, bool streams)
{
    struct end *a, *b;
    prompt_pair_open(&a, &b);
    pump_ms(BOTH(a, b), 10);
    char text[64];
    snprintf(text, sizeof text, "%s %s, %s", what, arg ? arg : "", streams ? "streaming" : "idle");
    net(what, arg);
    await_loss(text, a, b, streams ? a->mem : NULL);
    net(mend, arg);
    link_works(a, b);
    end_close(a);
    end_close(b);
}

static void test_cut_streaming(void **state)
{
    run_fault("cut", NULL, "mend", true);
}

static void test_cut_idle(void **state)
{
    run_fault("cut", NULL, "mend", false);
}

static void test_unplugged_streaming(void **state)
{
    run_fault("down", "1", "up", true);
}

static void test_unplugged_idle(void **state)
{
    run_fault("down", "0", "up", false);
}

// A sleeper with no timeout notices too: the probe wakes it.
static void test_cut_asleep(void **state)
{
    struct end *a, *b;
    prompt_pair_open(&a, &b);
    pump_ms(BOTH(a, b), 10);
    net("cut", NULL);
    uint64_t t = now_us();
    while (a->downs == 0 && now_us() - t < 10000000)
        if (end_poll(a) == 0)
            xport_wait(a->x, -1);
    printf("cut, asleep: noticed after %d ms\n", (int)((now_us() - t) / 1000));
    assert_int_equal(a->down, STATUS_LINK_DOWN);
    assert_in_range(now_us() - t, 0, (NOTICE_MS + SLACK_MS) * 1000);
    net("mend", NULL);
    end_close(a);
    end_close(b);
}

// Sources inside a region of our own, which the device reads: checked bytes over a bad wire.
static void stream_checked(struct end *a, struct end *b, int n, size_t slot)
{
    size_t slots = REGION_BYTES / slot;
    int sent = 0, seen = 0;
    uint64_t deadline = now_us() + 60000000;
    while (seen < n && now_us() < deadline && a->downs + b->downs == 0) {
        while (sent < n && sent - seen < (int)slots && sent - a->dones < (int)slots) {
            uint8_t *src = a->mem + (size_t)sent % slots * slot;
            fill(src, slot, (uint64_t)sent);
            struct xwrite w = {.region = REGION,
                               .offset = (uint64_t)(src - a->mem),
                               .src = src,
                               .bytes = slot - (size_t)sent % 7,
                               .notice = (uint32_t)sent};
            if (end_write(a, &w) != STATUS_OK)
                break;
            sent++;
        }
        if (end_poll(a) + end_poll(b) == 0)
            xport_wait(b->x, 1);
        for (; seen < b->notices; seen++) {
            const struct xport_event *ev = &b->history[seen % HISTORY];
            assert_int_equal(ev->notice, seen);
            assert_true(filled(b->mem + ev->offset, ev->bytes & ~7ull, (uint64_t)seen));
        }
    }
    assert_int_equal(seen, n);
    pump(BOTH(a, b), &a->dones, n);
    assert_int_equal(a->done_bad, 0);
}

static void test_registered_sources(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    stream_checked(a, b, 60, 65536);
    end_close(a);
    end_close(b);
}

static void test_loss(void **state)
{
    struct end *a, *b;
    prompt_pair_open(&a, &b);
    net("loss", "1%");
    uint64_t t = now_us();
    stream_checked(a, b, 1000, 4096);
    printf("1%% loss: 1000 writes of 4 KiB in %d ms, none lost\n", (int)((now_us() - t) / 1000));
    net("mend", NULL);
    end_close(a);
    end_close(b);
}

// A source may change as soon as its write is over, also when the link was closed under it: what
// the peer is told of is never torn.
static void test_close_while_the_device_reads(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    enum { N = 4, BYTES = 1 << 20 };
    for (int i = 0; i < N; i++) {
        fill(a->mem + i * BYTES, BYTES, (uint64_t)i);
        struct xwrite w = {.region = REGION,
                           .offset = (uint64_t)i * BYTES,
                           .src = a->mem + i * BYTES,
                           .bytes = BYTES,
                           .notice = (uint32_t)i};
        assert_int_equal(end_write(a, &w), STATUS_OK);
    }
    xlink_close(a->link);
    pump(&a, 1, &a->dones, N);
    memset(a->mem, 0xee, REGION_BYTES);
    pump(BOTH(a, b), &b->downs, 1);
    assert_int_equal(a->dones, N);
    assert_int_equal(a->downs, 0);
    for (int i = 0; i < b->notices; i++)
        assert_true(filled(b->mem + i * BYTES, BYTES, (uint64_t)i));
    end_close(a);
    end_close(b);
}

// --- a peer that breaks the rules, made of an honest one ---

static void post_raw(struct verbs_conn *c, const void *bytes, size_t n)
{
    uint8_t *out = (uint8_t *)&c->buf->hello_out; // registered
    memcpy(out, bytes, n);
    struct ibv_sge sge = {.addr = (uintptr_t)out, .length = (uint32_t)n, .lkey = c->buf_mr->lkey};
    struct ibv_send_wr *bad, wr = {.wr_id = c->sent++,
                                   .sg_list = &sge,
                                   .num_sge = 1,
                                   .opcode = IBV_WR_SEND,
                                   .send_flags = IBV_SEND_SIGNALED};
    assert_int_equal(ibv_post_send(c->id->qp, &wr, &bad), 0);
}

static void expect_refusal(const char *what, struct end *a, struct end *b)
{
    pump(BOTH(a, b), &b->downs, 1);
    pump(BOTH(a, b), &a->downs, 1);
    if (b->down != STATUS_LINK_PROTOCOL || b->notices != 0 || a->down != STATUS_LINK_DOWN)
        fail_msg("%s: %s there, %d notices, %s here", what, status_name(b->down), b->notices,
                 status_name(a->down));
}

static void test_bad_frames(void **state)
{
    const struct {
        const char *what;
        struct verbs_frame f;
        size_t n;
    } cases[] = {
        {"kind 0", {.kind = 0, .granted = 256}, 32},
        {"kind 99", {.kind = 99, .granted = 256}, 32},
        {"short", {.kind = VERBS_DATA, .granted = 256, .region = REGION}, 31},
        {"empty", {.kind = VERBS_DATA, .granted = 256, .region = REGION}, 0},
        {"data with payload", {.kind = VERBS_DATA, .granted = 256, .region = REGION}, 40},
        {"fewer bytes than said",
         {.kind = VERBS_INLINE, .granted = 256, .region = REGION, .bytes = 16},
         40},
        {"more bytes than said",
         {.kind = VERBS_INLINE, .granted = 256, .region = REGION, .bytes = 4},
         40},
        {"inline beyond a frame",
         {.kind = VERBS_INLINE, .granted = 256, .region = REGION, .bytes = 4096},
         256},
        {"behind the region",
         {.kind = VERBS_DATA, .granted = 256, .region = REGION, .offset = REGION_BYTES, .bytes = 1},
         32},
        {"offset overflow",
         {.kind = VERBS_DATA, .granted = 256, .region = REGION, .offset = UINT64_MAX, .bytes = 2},
         32},
        {"credits taken back", {.kind = VERBS_CREDIT, .granted = 255}, 32},
        {"credits out of nothing", {.kind = VERBS_CREDIT, .granted = 257}, 32},
        {"answer to no question", {.kind = VERBS_REGION, .granted = 256, .region = 9}, 32},
        {"asks for what is not", {.kind = VERBS_ASK, .granted = 256, .region = 9}, 32},
        {"larger than a receive", {.kind = VERBS_CREDIT, .granted = 256}, 300},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct end *a, *b;
        pair_open(&a, &b, NULL);
        uint8_t bytes[512] = {0};
        memcpy(bytes, &cases[i].f, sizeof cases[i].f);
        post_raw(((struct verbs_link *)a->link)->conn, bytes, cases[i].n);
        expect_refusal(cases[i].what, a, b);
        for (size_t k = 0; k < REGION_BYTES; k++)
            if (b->mem[k])
                fail_msg("%s: wrote into the region", cases[i].what);
        end_close(a);
        end_close(b);
    }
}

// An immediate that names no earlier write, and one whose length is another.
static void test_bad_immediates(void **state)
{
    for (int known = 0; known < 2; known++) {
        struct end *a, *b;
        pair_open(&a, &b, NULL);
        struct verbs_conn *c = ((struct verbs_link *)a->link)->conn;
        struct xwrite w = {.region = REGION, .src = a->mem, .bytes = 4096};
        if (known) {
            assert_int_equal(end_write(a, &w), STATUS_OK);
            pump(BOTH(a, b), &b->notices, 1);
            pump(BOTH(a, b), &a->dones, 1);
        }
        uint32_t number = 0;
        while (known && c->out_shapes[number].bytes == 0)
            number++;
        struct ibv_sge sge = {(uintptr_t)c->buf, 300, c->buf_mr->lkey};
        struct ibv_send_wr wr = {.wr_id = c->sent++,
                                 .sg_list = &sge,
                                 .num_sge = 1,
                                 .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
                                 .send_flags = IBV_SEND_SIGNALED,
                                 .imm_data = htonl(number << VERBS_STEP_BITS)},
                           *bad;
        wr.wr.rdma.remote_addr = c->peers[0].addr;
        wr.wr.rdma.rkey = c->peers[0].rkey;
        assert_int_equal(ibv_post_send(c->id->qp, &wr, &bad), 0);
        uint64_t t = now_us();
        while ((a->downs == 0 || b->downs == 0) && now_us() - t < NOTICED_US)
            if (end_poll(a) + end_poll(b) == 0)
                xport_wait(a->x, 2);
        assert_int_equal(b->down, STATUS_LINK_PROTOCOL);
        assert_int_equal(b->notices, known);
        end_close(a);
        end_close(b);
    }
}

static void test_random_frames(void **state)
{
    for (uint64_t i = 0; i < 30; i++) {
        struct end *a, *b;
        pair_open(&a, &b, NULL);
        uint8_t junk[256];
        fill(junk, sizeof junk, i);
        post_raw(((struct verbs_link *)a->link)->conn, junk, 1 + (i * 37) % 256);
        expect_refusal("random bytes", a, b);
        end_close(a);
        end_close(b);
    }
}

static void test_wrong_key(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    ((struct verbs_link *)a->link)->conn->peers[0].rkey ^= 0x5500;
    struct xwrite w = {.region = REGION, .src = a->mem, .bytes = 4096};
    memset(a->mem, 0xee, 4096);
    assert_int_equal(end_write(a, &w), STATUS_OK);
    expect_refusal("wrong key", a, b);
    assert_int_equal(b->mem[0], 0);
    assert_int_equal(a->dones, 1);
    assert_true(a->done < 0);
    end_close(a);
    end_close(b);
}

// --- limits and devices ---

// Runs as a user without rights, in a process of its own.
static int run_memlock(void)
{
    struct rlimit lim = {1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_MEMLOCK, &lim) < 0 || setgid(65534) < 0 || setuid(65534) < 0)
        return 3;
    struct xport_config c = {.kind = XPORT_VERBS, .bind_host = world_host()};
    struct xport *x;
    struct errmsg e = {{0}};
    void *base;
    if (xport_open(&c, &x, &e) != STATUS_OK) {
        fprintf(stderr, "%s\n", e.text);
        return 4;
    }
    enum status s = xport_region_create(x, 1, 4 << 20, &base, &e);
    bool told = strstr(e.text, "limited to 1024 KiB") != NULL;
    if (s != STATUS_NO_MEMORY || !told)
        fprintf(stderr, "%s: %s\n", status_name(s), e.text);
    xport_close(x);
    return s == STATUS_NO_MEMORY && told ? 0 : 5;
}

static void test_memlock_limit(void **state)
{
    int status;
    pid_t pid = start((const char *[]){"/proc/self/exe", "verbs", "memlock", NULL});
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

// The device of one end goes away under a link. That ends only when nobody has it open any more,
// and librdmacm keeps it open: a run of its own.
static void test_device_removal(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    start((const char *[]){"rdma", "link", "del", "rxe0", NULL});
    uint64_t t = now_us();
    pump(BOTH(a, b), &a->downs, 1);
    printf("device removed: noticed after %d ms\n", (int)((now_us() - t) / 1000));
    assert_int_equal(a->down, STATUS_LINK_DOWN);
    assert_int_equal(a->downs, 1);
    end_close(a);
    pump(&b, 1, &b->downs, 1);
    assert_int_equal(b->down, STATUS_LINK_DOWN);
    end_close(b);
}

#define T(f) cmocka_unit_test_setup_teardown(f, fds_before, fds_after)

int main(int argc, char **argv)
{
    world_init(argc, argv);
    if (argc == 3 && !strcmp(argv[2], "memlock"))
        return run_memlock();
    if (!getenv("RDMA_NET")) {
        fprintf(stderr, "xport_verbs: skipped: RDMA_NET is not set (tests/rdma-vm runs it)\n");
        return 77;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    const struct CMUnitTest tests[] = {
        T(test_registered_sources), T(test_close_while_the_device_reads),
        T(test_bad_frames),         T(test_random_frames),
        T(test_bad_immediates),     T(test_wrong_key),
        T(test_memlock_limit),      T(test_loss),
        T(test_cut_streaming),      T(test_cut_idle),
        T(test_cut_asleep),         T(test_unplugged_streaming),
        T(test_unplugged_idle),
    };
    const struct CMUnitTest last[] = {cmocka_unit_test(test_device_removal)};
    if (argc == 3)
        return cmocka_run_group_tests(last, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
