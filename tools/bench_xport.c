// hadal bench xport: bandwidth of writes by size, round trips, all-gather between two processes,
// for each software body; held against what the same two cores do without xport in the same run:
// memcpy, a bare TCP stream, a cache line or a byte sent to and fro.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "node/comm_xport.h"
#include "tools/bench.h"
#include "tools/bench_xport.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"

enum {
    REGION = BENCH_XPORT_REGION,
    REGION_BYTES = BENCH_XPORT_BYTES,
    REPEATS = 5,
    STREAM_REPEATS = 20,
    ROUNDS = 2000,
    STREAM_BYTES = 128 << 10
};
static const double STREAM_S = 0.06; // short, and the best of many: others may be using the cores

struct bench {
    bool json;
    enum xport_kind kind;
    uint8_t *src; // [REGION_BYTES]
};

static void die(const char *what)
{
    fprintf(stderr, "hadal bench xport: %s\n", what);
    exit(CMD_FAILED);
}

// --- two processes ---

struct child {
    pid_t pid;
    int talk; // socket to it
};

static struct child child_start(void (*body)(void *ctx, int talk), void *ctx)
{
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
        die("socketpair failed");
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0)
        die("fork failed");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(fds[0]);
        body(ctx, fds[1]);
        _exit(0);
    }
    close(fds[1]);
    return (struct child){pid, fds[0]};
}

static void child_end(struct child *c)
{
    close(c->talk);
    waitpid(c->pid, NULL, 0);
}

static void tell(int talk, const void *p, size_t n)
{
    if (send(talk, p, n, MSG_NOSIGNAL) != (ssize_t)n)
        die("the other process is gone");
}

static void hear(int talk, void *p, size_t n)
{
    if (recv(talk, p, n, MSG_WAITALL) != (ssize_t)n)
        die("the other process is gone");
}

// --- xport ends ---

static int side_poll(struct side *s)
{
    struct xport_event ev[32];
    int n = xport_poll(s->x, ev, 32);
    for (int i = 0; i < n; i++) {
        s->dones += ev[i].kind == XPORT_WRITE_DONE;
        if (ev[i].kind == XPORT_LINK_DOWN) {
            s->down = true;
            s->why = ev[i].status;
        }
        if (ev[i].kind == XPORT_LINK_UP) {
            s->up = true;
            s->link = ev[i].link;
            s->hello_n = ev[i].hello_n;
            memcpy(s->hello, ev[i].hello, ev[i].hello_n);
        }
        if (ev[i].kind == XPORT_NOTICE) {
            s->notices++;
            s->last = ev[i].notice;
        }
    }
    return n;
}

void bench_side_turn(struct side *s)
{
    if (side_poll(s) == 0)
        xport_wait(s->x, 1000);
}

void bench_side_write(struct side *s, const struct xwrite *w)
{
    enum status st;
    while ((st = xlink_write(s->link, w)) == STATUS_FULL)
        bench_side_turn(s);
    if (st != STATUS_OK && !s->down)
        die(status_text(st));
}

struct side bench_side_open(const struct xport_config *c)
{
    struct side s = {0};
    struct errmsg e;
    void *base;
    if (xport_open(c, &s.x, &e) != STATUS_OK ||
        xport_region_create(s.x, REGION, REGION_BYTES, &base, &e) != STATUS_OK)
        die(e.text);
    s.mem = base;
    return s;
}

static struct side side_open(enum xport_kind kind, uint32_t spin_us)
{
    return bench_side_open(&(struct xport_config){.kind = kind, .spin_us = spin_us});
}

struct far_end {
    enum xport_kind kind;
    uint32_t spin_us;
    bool echo; // answer each notice with as many bytes, else tell how many came
};

// The far process: answers until the link goes down.
static void far_body(void *ctx, int talk)
{
    const struct far_end *f = ctx;
    struct side s = side_open(f->kind, f->spin_us);
    char address[LIMIT_ADDR] = {0};
    snprintf(address, sizeof address, "%s", xport_address(s.x));
    tell(talk, address, sizeof address);
    uint32_t bytes;
    hear(talk, &bytes, sizeof bytes);
    uint8_t *src = mem_zalloc(1, bytes + 1);
    uint64_t told = 0;
    while (!s.down) {
        bench_side_turn(&s);
        for (; f->echo && told < s.notices; told++)
            bench_side_write(&s, &(struct xwrite){.region = REGION, .src = src, .bytes = bytes});
        if (told < s.notices && s.link && !s.down) {
            told = s.notices;
            bench_side_write(&s, &(struct xwrite){.region = REGION, .notice = (uint32_t)told});
        }
    }
}

static struct side near_open(struct far_end *f, struct child *c, uint32_t bytes)
{
    *c = child_start(far_body, f);
    char address[LIMIT_ADDR];
    hear(c->talk, address, sizeof address);
    tell(c->talk, &bytes, sizeof bytes);
    struct side s = side_open(f->kind, f->spin_us);
    struct errmsg e;
    if (xport_connect(s.x, address, NULL, 0, NULL, &s.link, &e) != STATUS_OK)
        die(e.text);
    while (!s.up && !s.down)
        bench_side_turn(&s);
    return s;
}

static void near_close(struct side *s, struct child *c)
{
    xport_close(s->x);
    child_end(c);
}

// --- bandwidth ---

static double copy_gb_s(const uint8_t *src, size_t size)
{
    static uint8_t *dst;
    if (!dst) {
        dst = mem_alloc(REGION_BYTES);
        memset(dst, 1, REGION_BYTES);
    }
    size_t slots = REGION_BYTES / size;
    double start = bench_now_s(), now = start;
    uint64_t n = 0;
    while (now - start < STREAM_S) {
        for (int i = 0; i < 8; i++, n++)
            memcpy(dst + n % slots * size, src + n % slots * size, size);
        now = bench_now_s();
    }
    return (double)n * (double)size / (now - start) / 1e9;
}

double bench_write_gb_s(struct side *s, const uint8_t *src, size_t size)
{
    size_t slots = REGION_BYTES / size;
    uint64_t window = slots / 2 < 64 ? slots / 2 : 64;
    uint64_t n = 0, base = s->last, dones = s->dones;
    double start = bench_now_s(), now = start;
    while (now - start < STREAM_S && !s->down) {
        size_t at = n % slots * size;
        while (base + n - s->last >= window && !s->down)
            bench_side_turn(s);
        bench_side_write(
            s, &(struct xwrite){.region = REGION, .offset = at, .src = src + at, .bytes = size});
        n++;
        now = bench_now_s();
    }
    while ((s->last - base < n || s->dones - dones < n) && !s->down)
        bench_side_turn(s);
    return (double)n * (double)size / (bench_now_s() - start) / 1e9;
}

static int tcp_pair_listen(int *port_out)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof sa;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&sa, n) < 0 || listen(fd, 1) < 0 ||
        getsockname(fd, (struct sockaddr *)&sa, &n) < 0)
        die("cannot listen on 127.0.0.1");
    *port_out = ntohs(sa.sin_port);
    return fd;
}

// A bare TCP connection: the child drops what comes (0 bytes) or sends each `bytes` back.
static void tcp_body(void *ctx, int talk)
{
    size_t bytes = *(size_t *)ctx;
    int port, listener = tcp_pair_listen(&port), one = 1;
    tell(talk, &port, sizeof port);
    int fd = accept(listener, NULL, NULL);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    uint8_t *buf = mem_zalloc(1, STREAM_BYTES);
    if (bytes == 0)
        while (recv(fd, buf, STREAM_BYTES, 0) > 0)
            ;
    else
        while (recv(fd, buf, bytes, MSG_WAITALL) == (ssize_t)bytes)
            if (send(fd, buf, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
                break;
}

static int tcp_near(struct child *c, size_t *bytes)
{
    *c = child_start(tcp_body, bytes);
    int port, one = 1;
    hear(c->talk, &port, sizeof port);
    struct sockaddr_in sa = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof sa) < 0)
        die("cannot connect to 127.0.0.1");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static double stream_gb_s(const uint8_t *src)
{
    struct child c;
    size_t none = 0;
    int fd = tcp_near(&c, &none);
    double start = bench_now_s(), now = start, bytes = 0;
    for (; now - start < STREAM_S; now = bench_now_s()) {
        ssize_t n = send(fd, src, STREAM_BYTES, MSG_NOSIGNAL);
        bytes += n > 0 ? (double)n : 0;
    }
    close(fd);
    child_end(&c);
    return bytes / (now - start) / 1e9;
}

static void bench_bandwidth(const struct bench *b)
{
    static const size_t sizes[] = {4096, 65536, 1 << 20, 8 << 20};
    bool shm = b->kind == XPORT_SHM;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct far_end f = {.kind = b->kind, .spin_us = 20};
        struct child c;
        struct side s = near_open(&f, &c, 0);
        double best = 0, limit = 0;
        for (int r = 0; r < STREAM_REPEATS; r++) {
            double l = shm ? copy_gb_s(b->src, sizes[i]) : stream_gb_s(b->src);
            double v = bench_write_gb_s(&s, b->src, sizes[i]);
            limit = l > limit ? l : limit;
            best = v > best ? v : best;
        }
        near_close(&s, &c);
        char name[64];
        snprintf(name, sizeof name, "xport %s write %zu KiB", xport_kind_name(b->kind),
                 sizes[i] >> 10);
        bench_print(b->json, &(struct bench_figure){.name = name,
                                                    .metric = "bandwidth",
                                                    .unit = "GB/s",
                                                    .value = best,
                                                    .limit = shm ? "memcpy" : "bare TCP stream",
                                                    .limit_value = limit});
    }
}

// --- round trips ---

double bench_round_trip_us(struct side *s, const uint8_t *src, uint32_t bytes, int rounds)
{
    double start = bench_now_s();
    for (int i = 0; i < rounds; i++) {
        uint64_t want = s->notices + 1;
        bench_side_write(s, &(struct xwrite){.region = REGION, .src = src, .bytes = bytes});
        while (s->notices < want && !s->down)
            bench_side_turn(s);
    }
    return (bench_now_s() - start) / rounds * 1e6;
}

// Two atomics on cache lines of their own, in memory of both processes.
struct lines {
    _Alignas(64) _Atomic uint32_t there;
    _Alignas(64) _Atomic uint32_t back;
};

static void line_body(void *ctx, int talk)
{
    struct lines *l = ctx;
    for (uint32_t i = 1; i <= ROUNDS * REPEATS; i++) {
        while (atomic_load_explicit(&l->there, memory_order_acquire) != i)
            ;
        atomic_store_explicit(&l->back, i, memory_order_release);
    }
}

static double line_round_trip_us(void)
{
    struct lines *l =
        mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (l == MAP_FAILED)
        die("mmap failed");
    struct child c = child_start(line_body, l);
    double best = 1e9;
    uint32_t k = 0;
    for (int r = 0; r < REPEATS; r++) {
        double start = bench_now_s();
        for (int i = 0; i < ROUNDS; i++) {
            atomic_store_explicit(&l->there, ++k, memory_order_release);
            while (atomic_load_explicit(&l->back, memory_order_acquire) != k)
                ;
        }
        double us = (bench_now_s() - start) / ROUNDS * 1e6;
        best = us < best ? us : best;
    }
    child_end(&c);
    munmap(l, sizeof *l);
    return best;
}

static double socket_round_trip_us(size_t bytes)
{
    struct child c;
    uint8_t *buf = mem_zalloc(1, bytes);
    int fd = tcp_near(&c, &bytes);
    double best = 1e9;
    for (int r = 0; r < REPEATS; r++) {
        double start = bench_now_s();
        for (int i = 0; i < ROUNDS; i++) {
            tell(fd, buf, bytes);
            hear(fd, buf, bytes);
        }
        double us = (bench_now_s() - start) / ROUNDS * 1e6;
        best = us < best ? us : best;
    }
    close(fd);
    child_end(&c);
    free(buf);
    return best;
}

static void bench_round_trips(const struct bench *b)
{
    static const struct {
        uint32_t bytes, spin_us;
        const char *how;
    } cases[] = {{8, 100000, "spinning"},
                 {4096, 100000, "spinning"},
                 {8, 0, "sleeping"},
                 {4096, 0, "sleeping"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct far_end f = {.kind = b->kind, .spin_us = cases[i].spin_us, .echo = true};
        struct child c;
        struct side s = near_open(&f, &c, cases[i].bytes);
        double best = 1e9;
        for (int r = 0; r < 2 * REPEATS; r++) {
            double us = bench_round_trip_us(&s, b->src, cases[i].bytes, ROUNDS);
            best = us < best ? us : best;
        }
        near_close(&s, &c);
        bool line = b->kind == XPORT_SHM && cases[i].spin_us > 0;
        char name[64];
        snprintf(name, sizeof name, "xport %s %u B, both %s", xport_kind_name(b->kind),
                 cases[i].bytes, cases[i].how);
        bench_print(b->json, &(struct bench_figure){
                                 .name = name,
                                 .metric = "round_trip",
                                 .unit = "us",
                                 .value = best,
                                 .limit = line ? "one cache line" : "bare TCP, blocking",
                                 .limit_value = line ? line_round_trip_us()
                                                     : socket_round_trip_us(cases[i].bytes)});
    }
}

// --- all-gather ---

struct gather {
    enum xport_kind kind;
    uint32_t rank, spin_us;
    size_t part;
    double us; // best of REPEATS
};

static void gather_run(struct gather *g, int talk)
{
    struct lane_hub_config hc = {.kind = g->kind, .spin_us = g->spin_us};
    struct lane_group group = {1, g->rank, 2};
    struct comm_xport_config cc = {.ranks = (const uint32_t[]){0, 1}, .n = 2};
    struct lane_hub *h;
    struct comm *c;
    struct errmsg e;
    char own[LIMIT_ADDR] = {0}, other[LIMIT_ADDR];
    if (lane_hub_open(&hc, &h, &e) != STATUS_OK || lane_hub_begin(h, &group, &e) != STATUS_OK ||
        comm_create_xport(h, &cc, &c, &e) != STATUS_OK)
        die(e.text);
    snprintf(own, sizeof own, "%s", lane_hub_address(h));
    tell(talk, own, sizeof own);
    hear(talk, other, sizeof other);
    const char *addresses[2] = {g->rank ? other : own, g->rank ? own : other};
    if (lane_hub_connect(h, addresses, 5000, &e) != STATUS_OK)
        die(e.text);
    float *buf = mem_zalloc(2 * g->part, sizeof *buf);
    g->us = 1e9;
    for (int r = 0; r < 2 * REPEATS; r++) {
        double start = bench_now_s();
        for (int i = 0; i < ROUNDS; i++)
            if (comm_all_gather(c, buf, 1, g->part) != STATUS_OK)
                die("all-gather failed");
        double us = (bench_now_s() - start) / ROUNDS * 1e6;
        g->us = us < g->us ? us : g->us;
    }
    free(buf);
    comm_destroy(c);
    lane_hub_close(h);
}

static void gather_body(void *ctx, int talk)
{
    struct gather far = *(struct gather *)ctx;
    far.rank = 1;
    gather_run(&far, talk);
}

static void bench_gathers(const struct bench *b)
{
    static const struct {
        size_t part;
        uint32_t spin_us;
    } cases[] = {{128, 20}, {3584, 20}, {128, 0}, {3584, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gather g = {.kind = b->kind, .part = cases[i].part, .spin_us = cases[i].spin_us};
        struct child c = child_start(gather_body, &g);
        gather_run(&g, c.talk);
        child_end(&c);
        char name[64];
        snprintf(name, sizeof name, "all-gather %s T=2 %zu floats, spin %u us",
                 xport_kind_name(b->kind), cases[i].part, cases[i].spin_us);
        bench_print(b->json, &(struct bench_figure){
                                 .name = name, .metric = "latency", .unit = "us", .value = g.us});
    }
}

int bench_xport(int argc, char **argv)
{
    const char *kind = "all", *address = NULL, *bind_host = NULL;
    bool listen_here = false;
    struct bench b = {0};
    const struct cmdline_opt opts[] = {
        {"--kind", CMDLINE_CHOICE, &kind, "KIND", .choices = "all|shm|tcp|verbs",
         .help = "default: all but verbs"},
        {"--listen", CMDLINE_FLAG, &listen_here,
         .help = "between hosts: print an address and serve those who measure against it"},
        {"--connect", CMDLINE_STRING, &address, "ADDRESS",
         .help = "between hosts: measure against what --listen printed there"},
        {"--bind", CMDLINE_STRING, &bind_host, "HOST",
         .help = "with those: the address of this host that the link uses"},
        {"--json", CMDLINE_FLAG, &b.json, .help = "one JSON object per line"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench xport [OPTION...]",
        .about = "Transport between two processes of this host; best of several. Between hosts:\n"
                 "--listen --kind tcp --bind HOST on one, --connect ADDRESS on the other.",
        .opts = opts};
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    log_set_level(LOG_ERROR);
    if (address)
        return bench_xport_connect(address, bind_host, b.json);
    if (listen_here) {
        struct xport_config listen = {.bind_host = bind_host, .max_links = 1, .spin_us = 100000};
        if (xport_kind_parse(kind, &listen.kind) != STATUS_OK) {
            fprintf(stderr, "hadal bench xport: --listen needs --kind\n");
            return CMD_USAGE;
        }
        return bench_xport_listen(&listen);
    }
    log_set_level(LOG_ERROR); // who ends first is lost to the other, and that is fine here
    b.src = mem_alloc(REGION_BYTES);
    memset(b.src, 3, REGION_BYTES);
    for (int k = XPORT_SHM; k < XPORT_KINDS; k++) {
        bool named = !strcmp(kind, xport_kind_name((enum xport_kind)k));
        if (!named && (strcmp(kind, "all") || k == XPORT_VERBS))
            continue;
        b.kind = (enum xport_kind)k;
        bench_bandwidth(&b);
        bench_round_trips(&b);
        bench_gathers(&b);
    }
    free(b.src);
    return CMD_OK;
}
