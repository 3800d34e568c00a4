// All-gather over links: bit-exact over random shapes, ranks as threads; abort, loss, and a killed
// process.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/prng.h"
#include "node/comm_xport.h"
#include "tests/xport/world.h"

enum {
    T_MAX = 4,
    AREA = 4096,
};
#define GATHERS ((uint32_t)world_rounds(1000))

struct member {
    struct lane_hub *hub;
    const char **addresses;
    struct comm *comm;
    uint32_t rank, ranks;
    _Atomic uint32_t gathers;
    const uint32_t *order; // of the hub ranks in the comm
    enum status status;
    uint32_t done;
    uint64_t returned_us;      // from the last gather
    _Atomic uint32_t progress; // 1 + gathers done, once linked up
};

static enum status member_link(struct member *m)
{
    struct lane_group g = {9, m->rank, m->ranks};
    struct comm_xport_config c = {.ranks = m->order, .n = m->ranks, .area_bytes = AREA};
    struct errmsg e = {{0}};
    enum status s = lane_hub_begin(m->hub, &g, &e);
    if (s == STATUS_OK)
        s = comm_create_xport(m->hub, &c, &m->comm, &e);
    if (s == STATUS_OK)
        s = lane_hub_connect(m->hub, m->addresses, 20000, &e);
    if (s != STATUS_OK)
        fprintf(stderr, "%s\n", e.text);
    return s;
}

static uint32_t bits(size_t round, size_t row, uint32_t from, size_t column)
{
    uint64_t v = hash_pair(hash_pair(round, row), hash_pair(from, column));
    return (uint32_t)v; // any bits, NaNs too: they must travel unchanged
}

// Some rounds fit many rows into an area, in others one row takes several.
static void shape_of(size_t round, size_t *rows, size_t *part)
{
    struct prng r;
    prng_seed(&r, round);
    bool wide = prng_below(&r, 10) == 0;
    *rows = wide ? 1 + prng_below(&r, 3) : prng_below(&r, 40);
    *part = wide ? 1 + prng_below(&r, 5000) : prng_below(&r, 200);
}

static bool gather_once(struct member *m, size_t round, float *buf)
{
    size_t rows, part, n = m->ranks;
    uint32_t me = (uint32_t)comm_rank(m->comm);
    shape_of(round, &rows, &part);
    uint32_t *words = (uint32_t *)buf;
    memset(words, 0xa5, rows * n * part * 4 + 4);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < part; c++)
            words[(r * n + me) * part + c] = bits(round, r, me, c);
    m->status = comm_all_gather(m->comm, buf, rows, part);
    m->returned_us = now_us();
    if (m->status != STATUS_OK)
        return false;
    bool same = words[rows * n * part] == 0xa5a5a5a5;
    for (size_t r = 0; r < rows; r++)
        for (uint32_t t = 0; t < n; t++)
            for (size_t c = 0; c < part; c++)
                same &= words[(r * n + t) * part + c] == bits(round, r, t, c);
    if (!same)
        m->status = STATUS_INTERNAL;
    return same;
}

static void *member_run(void *arg)
{
    struct member *m = arg;
    float *buf = mem_alloc((3 * 5000 + 40 * 200 + 1) * T_MAX * sizeof(float));
    m->status = member_link(m);
    m->progress = 1;
    for (; m->status == STATUS_OK && m->done < m->gathers; m->done++) {
        if (!gather_once(m, m->done, buf))
            break;
        m->progress = m->done + 1;
        if (m->rank == 1 && m->done % 200 == 0)
            sleep_ms(2); // the others run into it
    }
    free(buf);
    return NULL;
}

struct stage {
    uint32_t n;
    struct member members[T_MAX];
    const char *addresses[T_MAX];
    pthread_t threads[T_MAX];
};

static const uint32_t orders[2][T_MAX] = {{0, 1, 2, 3}, {1, 0, 3, 2}};

static void stage_open(struct stage *s, uint32_t n, uint32_t gathers, const uint32_t *order)
{
    *s = (struct stage){.n = n};
    for (uint32_t r = 0; r < n; r++) {
        struct lane_hub_config c = {.kind = world_kind,
                                    .bind_host = world_host(),
                                    .spin_us = r % 2 ? 20 : 0,
                                    .wire = world_wire};
        assert_int_equal(lane_hub_open(&c, &s->members[r].hub, NULL), STATUS_OK);
        s->addresses[r] = lane_hub_address(s->members[r].hub);
    }
    for (uint32_t r = 0; r < n; r++) {
        struct member *m = &s->members[r];
        m->addresses = s->addresses;
        m->rank = r;
        m->ranks = n;
        m->order = order;
        m->gathers = gathers;
        pthread_create(&s->threads[r], NULL, member_run, m);
    }
}

// From here on the test may use the members' comms.
static void stage_wait(struct stage *s)
{
    for (uint32_t r = 0; r < s->n; r++)
        for (int i = 0; i < 20000 && s->members[r].progress == 0; i++)
            sleep_ms(1);
}

static void stage_join(struct stage *s)
{
    for (uint32_t r = 0; r < s->n; r++)
        pthread_join(s->threads[r], NULL);
}

static void stage_close(struct stage *s)
{
    for (uint32_t r = 0; r < s->n; r++) {
        comm_destroy(s->members[r].comm);
        lane_hub_close(s->members[r].hub);
    }
}

static void test_gathers_are_exact(void **state)
{
    static const uint32_t sizes[] = {2, 3, 4, 2, 4};
    for (int i = 0; i < 5; i++) {
        struct stage s;
        stage_open(&s, sizes[i], GATHERS, orders[i > 2]);
        stage_join(&s);
        for (uint32_t r = 0; r < s.n; r++) {
            assert_int_equal(s.members[r].status, STATUS_OK);
            assert_int_equal(s.members[r].done, GATHERS);
            struct comm_progress *p = comm_progress(s.members[r].comm);
            assert_int_equal(p->collective, GATHERS);
            assert_true(p->changed_us > 0);
            assert_int_equal(orders[i > 2][comm_rank(s.members[r].comm)], r);
            assert_int_equal(comm_size(s.members[r].comm), s.n);
        }
        stage_close(&s);
    }
}

// One rank stops after some gathers; the others wait for it until they are aborted.
static void test_abort_while_waiting(void **state)
{
    struct stage s;
    stage_open(&s, 3, 1000, orders[0]);
    // Rank 2 stops early: its thread ends, its links stay up.
    s.members[2].gathers = 10;
    pthread_join(s.threads[2], NULL);
    stage_wait(&s);
    sleep_ms(50);
    for (uint32_t r = 0; r < 2; r++) {
        uint64_t t = now_us();
        comm_abort(s.members[r].comm);
        pthread_join(s.threads[r], NULL);
        assert_true(now_us() - t < NOTICED_US);
        assert_int_equal(s.members[r].status, STATUS_ABORTED);
        float x[3] = {0};
        assert_int_equal(comm_all_gather(s.members[r].comm, x, 1, 1), STATUS_ABORTED);
    }
    stage_close(&s);
}

static void test_hub_abort_ends_gathers(void **state)
{
    struct stage s;
    stage_open(&s, 2, 1000000, orders[0]);
    stage_wait(&s);
    sleep_ms(50);
    uint64_t t = now_us();
    lane_hub_abort(s.members[0].hub, 9);
    pthread_join(s.threads[0], NULL);
    assert_true((int64_t)(s.members[0].returned_us - t) < NOTICED_US);
    assert_int_equal(s.members[0].status, STATUS_ABORTED);
    comm_abort(s.members[1].comm);
    pthread_join(s.threads[1], NULL);
    stage_close(&s);
}

static void test_loss_of_a_rank(void **state)
{
    struct stage s;
    stage_open(&s, 4, 1000000, orders[0]);
    stage_wait(&s);
    sleep_ms(50);
    comm_abort(s.members[3].comm); // leaves, and closes its links
    pthread_join(s.threads[3], NULL);
    comm_destroy(s.members[3].comm);
    s.members[3].comm = NULL;
    struct lane_group g = {10, 3, 4};
    uint64_t t = now_us();
    assert_int_equal(lane_hub_begin(s.members[3].hub, &g, NULL), STATUS_OK);
    for (uint32_t r = 0; r < 3; r++) {
        pthread_join(s.threads[r], NULL);
        assert_int_equal(s.members[r].status, STATUS_LINK_DOWN);
        uint32_t lost = 77;
        assert_int_equal(lane_hub_fault(s.members[r].hub, &lost), STATUS_LINK_DOWN);
        assert_int_equal(lost, 3);
    }
    assert_true(now_us() - t < NOTICED_US);
    stage_close(&s);
}

// One rank of two in a process: exchanges addresses through pipes, opens its hub.
static void member_open(struct member *m, int in, int out, const char *addresses[2])
{
    static char other[LIMIT_ADDR], own[LIMIT_ADDR];
    struct lane_hub_config c = {.kind = world_kind, .bind_host = world_host(), .wire = world_wire};
    assert_int_equal(lane_hub_open(&c, &m->hub, NULL), STATUS_OK);
    snprintf(own, sizeof own, "%s", lane_hub_address(m->hub));
    assert_int_equal(write(out, own, sizeof own), sizeof own);
    assert_int_equal(read(in, other, sizeof other), sizeof other);
    addresses[m->rank] = own;
    addresses[!m->rank] = other;
    m->addresses = addresses;
    m->ranks = 2;
    m->order = orders[0];
    m->gathers = 1u << 30;
}

// Rank 0 is this program anew: a fork cannot use what its parent opened of an RDMA device.
static pid_t spawn_member(int in, int out)
{
    char fds[2][16];
    snprintf(fds[0], sizeof fds[0], "%d", in);
    snprintf(fds[1], sizeof fds[1], "%d", out);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execl("/proc/self/exe", "xport_comm_links", xport_kind_name(world_kind), fds[0], fds[1], NULL);
    _exit(4);
}

static int run_member(int in, int out)
{
    struct member m = {.rank = 0};
    const char *addresses[2];
    member_open(&m, in, out, addresses);
    member_run(&m);
    return 0;
}

// kill -9 of a process in the middle of gathers.
static void test_killed_process(void **state)
{
    for (int round = 0; round < world_rounds(5); round++) {
        int there[2], back[2];
        assert_int_equal(pipe(there) | pipe(back), 0);
        pid_t pid = spawn_member(there[0], back[1]);
        struct member m = {.rank = 1};
        const char *addresses[2];
        member_open(&m, back[0], there[1], addresses);
        pthread_t t;
        pthread_create(&t, NULL, member_run, &m);
        for (int i = 0; i < 20000 && m.progress < 20; i++)
            sleep_ms(1);
        assert_true(m.progress >= 20);
        sleep_ms(round);
        kill(pid, SIGKILL);
        uint64_t start = now_us();
        pthread_join(t, NULL);
        assert_true(now_us() - start < NOTICED_US);
        assert_int_equal(m.status, STATUS_LINK_DOWN);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        comm_destroy(m.comm);
        lane_hub_close(m.hub);
        for (int i = 0; i < 2; i++) {
            close(there[i]);
            close(back[i]);
        }
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, fds_before, fds_after)

int main(int argc, char **argv)
{
    world_init(argc, argv);
    if (argc == 4)
        return run_member(atoi(argv[2]), atoi(argv[3]));
    const struct CMUnitTest tests[] = {
        T(test_gathers_are_exact), T(test_abort_while_waiting), T(test_hub_abort_ends_gathers),
        T(test_loss_of_a_rank),    T(test_killed_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
