// Peers that do not play by the rules: garbage and silence on connecting, floods of idle
// connections, other versions, listeners that lie, frames and rings full of nonsense. The honest
// must not notice.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/prng.h"
#include "rdma/xport_body.h"
#include "tests/xport/world.h"

#define BOTH(a, b) (struct end *[]){a, b}, 2

// --- a peer made of a bare socket ---

static uint64_t token_of(const char *address)
{
    return strtoull(strrchr(address, '#') + 1, NULL, 16);
}

static socklen_t where(const char *address, struct sockaddr_storage *sa)
{
    memset(sa, 0, sizeof *sa);
    const char *name = strchr(address, ':') + 1, *hash = strrchr(address, '#');
    if (world_kind == XPORT_SHM) {
        struct sockaddr_un *un = (struct sockaddr_un *)sa;
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path + 1, name, (size_t)(hash - name));
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)(hash - name));
    }
    struct sockaddr_in *in = (struct sockaddr_in *)sa;
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    in->sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    return sizeof *in;
}

static int raw_socket(void)
{
    bool shm = world_kind == XPORT_SHM;
    int fd = socket(shm ? AF_UNIX : AF_INET, shm ? SOCK_SEQPACKET : SOCK_STREAM, 0);
    assert_true(fd >= 0);
    return fd;
}

static int raw_connect(const char *address)
{
    struct sockaddr_storage sa;
    socklen_t n = where(address, &sa);
    int fd = raw_socket();
    if (connect(fd, (struct sockaddr *)&sa, n) < 0)
        fail_msg("raw connect: %s", strerror(errno));
    return fd;
}

static void raw_send(int fd, const void *bytes, size_t n)
{
    ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);
    assert_true(sent == (ssize_t)n || (sent < 0 && errno == EPIPE));
}

static void raw_send_fds(int fd, const void *bytes, size_t n, const int *fds, size_t fds_n)
{
    union {
        char buf[CMSG_SPACE(8 * sizeof(int))];
        struct cmsghdr align;
    } c = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, n};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fds_n) {
        m.msg_control = c.buf;
        m.msg_controllen = CMSG_SPACE(fds_n * sizeof(int));
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(fds_n * sizeof(int));
        memcpy(CMSG_DATA(h), fds, fds_n * sizeof(int));
    }
    assert_int_equal(sendmsg(fd, &m, MSG_NOSIGNAL), n);
}

static struct xgreeting greeting(const struct end *to)
{
    return (struct xgreeting){.magic = XPORT_MAGIC,
                              .version = XPORT_VERSION,
                              .kind = (uint8_t)world_kind,
                              .token = token_of(xport_address(to->x)),
                              .depth = 4};
}

// What the server answers within a second; 0 = it hung up.
static size_t raw_answer(struct end *server, int fd, void *buf, size_t n)
{
    for (int i = 0; i < 1000; i++) {
        end_poll(server);
        struct pollfd p = {fd, POLLIN, 0};
        if (poll(&p, 1, 1) > 0) {
            ssize_t got = recv(fd, buf, n, MSG_DONTWAIT);
            return got > 0 ? (size_t)got : 0;
        }
    }
    fail_msg("no answer and no hang-up");
    return 0;
}

// The server still serves others, and told nobody of the stranger.
static void still_well(struct end *server, int ups)
{
    assert_int_equal(server->ups, ups);
    struct end *honest = end_open(NULL);
    end_connect(honest, server);
    pump(BOTH(honest, server), &honest->ups, 1);
    struct xwrite w = {.region = REGION, .src = "well", .bytes = 4, .notice = 1};
    int before = server->notices;
    assert_int_equal(end_write(honest, &w), STATUS_OK);
    pump(BOTH(honest, server), &server->notices, before + 1);
    end_close(honest);
    pump(&server, 1, &server->downs, server->ups);
}

static void test_garbage_greetings(void **state)
{
    struct end *server = end_open(NULL);
    struct prng r;
    prng_seed(&r, 3);
    for (int i = 0; i < 200; i++) {
        uint8_t junk[4096], answer[4096];
        size_t n = 1 + prng_below(&r, sizeof junk - 1);
        fill(junk, n, (uint64_t)i);
        if (i % 4 == 1 && n > sizeof(struct xgreeting)) { // a true greeting with a wrong field
            struct xgreeting g = greeting(server);
            memcpy(junk, &g, sizeof g);
            size_t at = prng_below(&r, 16); // magic, version, kind, code, hello_n, token
            junk[at] = (uint8_t)(junk[at] + 1 + (at == 7 ? 64 : 0));
        }
        int fd = raw_connect(xport_address(server->x));
        raw_send(fd, junk, n);
        if (n >= sizeof(struct xgreeting))
            raw_answer(server, fd, answer, sizeof answer); // refused, not left hanging
        close(fd);
        end_poll(server);
    }
    pump_ms(&server, 1, 20);
    assert_int_equal(server->downs, 0);
    assert_true(xport_stats_get(server->x).protocol_errors > 100);
    still_well(server, 0);
    end_close(server);
}

static void test_silent_and_slow_callers(void **state)
{
    struct xport_config c = {.handshake_ms = 150, .max_links = 4};
    struct end *server = end_open(&c);
    int silent = raw_connect(xport_address(server->x));
    int half = raw_connect(xport_address(server->x));
    struct xgreeting g = greeting(server);
    raw_send(half, &g, sizeof g / 2);
    uint64_t t = now_us();
    char answer[8];
    assert_int_equal(raw_answer(server, silent, answer, sizeof answer), 0);
    assert_in_range(now_us() - t, world_kind == XPORT_SHM ? 0 : 100000, 900000);
    assert_int_equal(raw_answer(server, half, answer, sizeof answer), 0);
    close(silent);
    close(half);
    still_well(server, 0);
    end_close(server);
}

static void test_idle_flood(void **state)
{
    enum { N = 600 };
    struct xport_config c = {.max_links = 8};
    struct end *server = end_open(&c);
    int *fds = mem_zalloc(N, sizeof *fds);
    for (int i = 0; i < N; i++) {
        fds[i] = raw_connect(xport_address(server->x));
        end_poll(server);
    }
    still_well(server, 0);
    pump_ms(&server, 1, 10);
    int open = 0;
    for (int i = 0; i < N; i++) {
        char byte;
        open += recv(fds[i], &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
        close(fds[i]);
    }
    assert_in_range(open, 0, 16); // the oldest made room
    free(fds);
    end_close(server);
}

static void test_wrong_version(void **state)
{
    struct end *server = end_open(NULL);
    struct xgreeting g = greeting(server), answer;
    g.version = XPORT_VERSION + 1;
    int fd = raw_connect(xport_address(server->x));
    raw_send(fd, &g, sizeof g);
    assert_int_equal(raw_answer(server, fd, &answer, sizeof answer), sizeof answer);
    assert_int_equal(answer.magic, XPORT_MAGIC);
    assert_int_equal(answer.version, XPORT_VERSION);
    assert_int_equal(answer.code, XGREET_VERSION);
    close(fd);
    still_well(server, 0);
    end_close(server);
}

// Listeners that are no xport, or another one.
static void test_false_listeners(void **state)
{
    const struct {
        const char *what;
        struct xgreeting g;
        size_t n;
        enum status want;
    } cases[] = {
        {"another version",
         {.magic = XPORT_MAGIC, .version = 9, .kind = (uint8_t)world_kind},
         sizeof(struct xgreeting),
         STATUS_LINK_VERSION},
        {"garbage", {.magic = 0x12345678}, sizeof(struct xgreeting), STATUS_LINK_PROTOCOL},
        {"unknown code",
         {.magic = XPORT_MAGIC, .version = XPORT_VERSION, .kind = (uint8_t)world_kind, .code = 77},
         sizeof(struct xgreeting),
         STATUS_LINK_PROTOCOL},
        {"silence", {0}, 0, STATUS_LINK_TIMEOUT},
        {"hang-up", {0}, 1000, STATUS_LINK_DOWN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char address[100];
        struct sockaddr_storage sa;
        int listener = raw_socket();
        snprintf(address, sizeof address,
                 world_kind == XPORT_SHM ? "shm:hadal-false-%d#1" : "tcp:127.0.0.1:%d#1",
                 world_kind == XPORT_SHM ? (int)getpid() : 0);
        socklen_t n = where(address, &sa);
        assert_int_equal(bind(listener, (struct sockaddr *)&sa, n), 0);
        assert_int_equal(listen(listener, 5), 0);
        getsockname(listener, (struct sockaddr *)&sa, &n);
        if (world_kind == XPORT_TCP)
            snprintf(address, sizeof address, "tcp:127.0.0.1:%d#1",
                     ntohs(((struct sockaddr_in *)&sa)->sin_port));

        struct xport_config c = {.handshake_ms = 200};
        struct end *a = end_open(&c);
        struct xlink *l;
        assert_int_equal(xport_connect(a->x, address, NULL, 0, NULL, &l, NULL), STATUS_OK);
        int fd = accept(listener, NULL, NULL);
        assert_true(fd >= 0);
        if (cases[i].n == sizeof(struct xgreeting))
            raw_send(fd, &cases[i].g, cases[i].n);
        if (cases[i].n == 1000)
            shutdown(fd, SHUT_RDWR);
        pump(&a, 1, &a->downs, 1);
        if (a->down != cases[i].want)
            fail_msg("%s: %s, not %s", cases[i].what, status_name(a->down),
                     status_name(cases[i].want));
        pump_ms(&a, 1, 5);
        assert_int_equal(a->downs, 1);
        assert_int_equal(a->ups, 0);
        close(fd);
        close(listener);
        end_close(a);
    }
}

// --- after a true greeting ---

static void test_garbage_frames(void **state)
{
    struct prng r;
    prng_seed(&r, 5);
    for (int i = 0; i < 100; i++) {
        struct end *server = end_open(NULL);
        struct xgreeting g = greeting(server), answer;
        int fd = raw_connect(xport_address(server->x));
        raw_send(fd, &g, sizeof g);
        raw_answer(server, fd, &answer, sizeof answer);
        assert_int_equal(answer.code, XGREET_OK);
        pump(&server, 1, &server->ups, 1);
        uint8_t junk[1000];
        size_t n = 32 + prng_below(&r, sizeof junk - 32);
        fill(junk, n, (uint64_t)i);
        raw_send(fd, junk, n);
        pump(&server, 1, &server->downs, 1);
        assert_int_equal(server->down, STATUS_LINK_PROTOCOL);
        assert_int_equal(server->notices, 0);
        close(fd);
        end_close(server);
    }
}

// A frame whose sender dies in the middle of the payload: no notice.
static void test_cut_frame(void **state)
{
    struct end *a, *b;
    pair_open(&a, &b, NULL);
    struct xgreeting g = greeting(b), answer;
    int fd = raw_connect(xport_address(b->x));
    raw_send(fd, &g, sizeof g);
    raw_answer(b, fd, &answer, sizeof answer);
    struct xframe f = {.magic = 0x4d524658, .region = REGION, .notice = 1, .bytes = 1000};
    for (size_t i = 0; i < sizeof f; i++) { // and the header byte by byte
        raw_send(fd, (uint8_t *)&f + i, 1);
        end_poll(b);
    }
    raw_send(fd, &g, sizeof g);
    pump_ms(&b, 1, 5);
    close(fd);
    pump(&b, 1, &b->downs, 1);
    assert_int_equal(b->notices, 0);
    assert_int_equal(b->down, STATUS_LINK_DOWN);
    assert_int_equal(a->downs, 0);
    end_close(a);
    end_close(b);
}

static int memfd(size_t bytes, int seals)
{
    int fd = memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

// Greetings over shared memory whose memory is not what it should be.
static void test_bad_memory(void **state)
{
    const int sealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    const struct {
        const char *what;
        size_t bytes;
        int seals;
        uint32_t depth, regions_n;
        size_t fds_n;
    } cases[] = {
        {"unsealed", 4096, 0, 4, 0, 1},
        {"only grow sealed", 4096, F_SEAL_GROW, 4, 0, 1},
        {"too small", 100, sealed, 4, 0, 1},
        {"too large", 8192, sealed, 4, 0, 1},
        {"no power of two", 4096, sealed, 3, 0, 1},
        {"depth 0", 4096, sealed, 0, 0, 1},
        {"depth huge", 4096, sealed, 1u << 31, 0, 1},
        {"no memory", 4096, sealed, 4, 0, 0},
        {"more than said", 4096, sealed, 4, 0, 3},
        {"regions not there", 4096, sealed, 4, 1, 1},
        {"regions without end", 4096, sealed, 4, UINT32_MAX, 1},
    };
    struct end *server = end_open(NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct xgreeting g = greeting(server), answer = {0};
        g.depth = cases[i].depth;
        g.regions_n = cases[i].regions_n;
        int fds[3];
        for (size_t k = 0; k < 3; k++)
            fds[k] = memfd(cases[i].bytes, cases[i].seals);
        int fd = raw_connect(xport_address(server->x));
        raw_send_fds(fd, &g, sizeof g, fds, cases[i].fds_n);
        size_t n = raw_answer(server, fd, &answer, sizeof answer);
        if (n > 0 && answer.code == XGREET_OK)
            fail_msg("%s: accepted", cases[i].what);
        close(fd);
        for (size_t k = 0; k < 3; k++)
            close(fds[k]);
    }
    still_well(server, 0);
    end_close(server);
}

// A link with a ring that the test holds: entries and heads are garbage.
static void test_garbage_rings(void **state)
{
    for (int i = 0; i < 60; i++) {
        struct end *server = end_open(NULL);
        struct xgreeting g = greeting(server), answer;
        int mem = memfd(4096, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
        uint8_t *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
        assert_true(map != MAP_FAILED);
        int fd = raw_connect(xport_address(server->x));
        raw_send_fds(fd, &g, sizeof g, &mem, 1);
        raw_answer(server, fd, &answer, sizeof answer);
        assert_int_equal(answer.code, XGREET_OK);
        pump(&server, 1, &server->ups, 1);
        fill(map, 4096, (uint64_t)i);
        uint64_t one = 1; // the first entry is there; its frame is garbage
        if (i % 3 == 0)
            memcpy(map + 192, &one, 8);
        if (i % 3 == 1) // or only words on the socket
            raw_send(fd, map, 1 + (size_t)i);
        int accepted = 0;
        for (int k = 0; k < 10 && server->downs == 0; k++) {
            struct xwrite w = {.region = 1};
            accepted += end_write(server, &w) == STATUS_OK;
            pump_ms(&server, 1, 1);
        }
        assert_int_equal(server->notices, 0);
        close(fd);
        pump(&server, 1, &server->downs, 1);
        assert_int_equal(server->dones, accepted);
        munmap(map, 4096);
        close(mem);
        end_close(server);
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, fds_before, fds_after)

int main(int argc, char **argv)
{
    world_init(argc, argv);
    const struct CMUnitTest tests[] = {
        T(test_garbage_greetings), T(test_silent_and_slow_callers), T(test_idle_flood),
        T(test_wrong_version),     T(test_false_listeners),
    };
    const struct CMUnitTest tcp_tests[] = {T(test_garbage_frames), T(test_cut_frame)};
    const struct CMUnitTest shm_tests[] = {T(test_bad_memory), T(test_garbage_rings)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + (world_kind == XPORT_TCP ? cmocka_run_group_tests(tcp_tests, NULL, NULL)
                                             : cmocka_run_group_tests(shm_tests, NULL, NULL));
}
