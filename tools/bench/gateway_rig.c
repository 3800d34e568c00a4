// Both ends of a gateway under test, cheap enough that the gateway is what is measured.
//
//   gateway_rig serve PORT EVENTS STEP_US        a backend: every stream gets the recorded events,
//   one
//                                                a step, all streams in the same step, as a batch
//                                                does; the first (the role) at once
//   gateway_rig load PORT BODY CONNECTIONS SECONDS [RATE]
//                                                asks for the same again and again, on kept
//                                                connections; with RATE at so many a second, times
//                                                counted from when it was due. Prints one line of
//                                                JSON
//   gateway_rig hold PORT BODY CONNECTIONS SECONDS
//                                                opens so many streams, reads them, prints "open N"
//                                                when all have begun
//
// One thread, one epoll each. Not part of the product: bytes are looked for, not parsed.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 4096, TURN = 512, TAIL = 16, BUFFER = 64 << 10 };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "gateway_rig: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *take(size_t n)
{
    void *p = calloc(1, n);
    if (!p)
        die("memory");
    return p;
}

static char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END))
        die(path);
    *n = (size_t)ftell(f);
    char *v = take(*n + 1);
    rewind(f);
    if (fread(v, 1, *n, f) != *n)
        die(path);
    fclose(f);
    return v;
}

static struct sockaddr_in local(const char *port)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)atoi(port)),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void many_files(void)
{
    struct rlimit r;
    if (!getrlimit(RLIMIT_NOFILE, &r)) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
}

// ---- backend ----

struct served {
    int fd;
    size_t got, want; // of a request: bytes read; with its body, 0 = the head is not complete
    int next;         // event to send; 0 = no stream
    bool fresh;       // came in this step: its first token comes with the next
    char head[4096];
};

static struct {
    char *at[EVENTS];
    size_t n[EVENTS];
    int count;
} recorded;

// Each recorded event becomes a chunk; the last one brings the end of the body.
static void record(const char *path)
{
    size_t n;
    char *v = read_file(path, &n), *end;
    for (char *p = v; (end = strstr(p, "\n\n")) && recorded.count < EVENTS; p = end + 2) {
        size_t k = (size_t)(end + 2 - p);
        char *chunk = take(k + 64);
        int m = sprintf(chunk, "%zx\r\n", k);
        memcpy(chunk + m, p, k);
        memcpy(chunk + m + k, "\r\n", 2);
        recorded.at[recorded.count] = chunk;
        recorded.n[recorded.count++] = (size_t)m + k + 2;
    }
    if (recorded.count < 3)
        die("EVENTS: too few");
    // The finish and [DONE] travel with the last token.
    for (int k = 0; k < 2 && recorded.count > 2; k++) {
        int i = --recorded.count - 1;
        char *both = take(recorded.n[i] + recorded.n[i + 1] + 64);
        memcpy(both, recorded.at[i], recorded.n[i]);
        memcpy(both + recorded.n[i], recorded.at[i + 1], recorded.n[i + 1]);
        recorded.n[i] += recorded.n[i + 1];
        recorded.at[i] = both;
    }
    int i = recorded.count - 1;
    char *both = take(recorded.n[i] + 64);
    memcpy(both, recorded.at[i], recorded.n[i]);
    memcpy(both + recorded.n[i], "0\r\n\r\n", 5);
    recorded.at[i] = both;
    recorded.n[i] += 5;
}

static void put(struct served *s, const char *v, size_t n)
{
    if (write(s->fd, v, n) != (ssize_t)n)
        s->next = -1; // a reader that does not read, or is gone: it is dropped
}

static void begin(struct served *s)
{
    char v[BUFFER];
    int n = sprintf(v, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                       "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n");
    memcpy(v + n, recorded.at[0], recorded.n[0]);
    put(s, v, (size_t)n + recorded.n[0]);
    s->next = s->next < 0 ? -1 : 1;
    s->fresh = true;
    s->got = s->want = 0;
}

static bool hear(struct served *s)
{
    ssize_t n = read(s->fd, s->head + s->got, sizeof s->head - 1 - s->got);
    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    s->got += (size_t)n;
    s->head[s->got] = 0;
    char *end = strstr(s->head, "\r\n\r\n"), *length = strcasestr(s->head, "content-length:");
    if (!s->want && end)
        s->want = (size_t)(end + 4 - s->head) + (length ? strtoul(length + 15, NULL, 10) : 0);
    if (s->want && s->got >= s->want)
        begin(s);
    return s->next >= 0;
}

static void step(struct served **v, int n)
{
    for (int i = 0; i < n; i++) {
        struct served *s = v[i];
        if (!s || s->next <= 0)
            continue;
        if (s->fresh) {
            s->fresh = false;
            continue;
        }
        put(s, recorded.at[s->next], recorded.n[s->next]);
        s->next = s->next < 0 ? -1 : s->next + 1 == recorded.count ? 0 : s->next + 1;
    }
}

static void drop(struct served **v, int fd)
{
    close(fd);
    free(v[fd]);
    v[fd] = NULL;
}

static int serve(char **argv)
{
    enum { FDS = 65536 };
    static struct served *v[FDS];
    struct epoll_event ev[TURN];
    struct sockaddr_in a = local(argv[2]);
    int most = 0, one = 1, ep = epoll_create1(0),
        tick = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    long step_ns = atol(argv[4]) * 1000;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    record(argv[3]);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4096))
        die("listen");
    struct timespec every = {step_ns / 1000000000, step_ns % 1000000000};
    timerfd_settime(tick, 0, &(struct itimerspec){every, every}, NULL);
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {.fd = fd}});
    epoll_ctl(ep, EPOLL_CTL_ADD, tick, &(struct epoll_event){EPOLLIN, {.fd = tick}});
    for (;;) {
        int n = epoll_wait(ep, ev, TURN, -1);
        for (int i = 0; i < n; i++) {
            int at = ev[i].data.fd;
            uint64_t times;
            if (at == tick && read(tick, &times, sizeof times) > 0) {
                step(v, most + 1);
            } else if (at == fd) {
                int c = accept4(fd, NULL, NULL, SOCK_NONBLOCK);
                if (c < 0 || c >= FDS)
                    continue;
                setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                v[c] = take(sizeof **v);
                v[c]->fd = c;
                most = c > most ? c : most;
                epoll_ctl(ep, EPOLL_CTL_ADD, c, &(struct epoll_event){EPOLLIN, {.fd = c}});
            } else if (at != tick && v[at] && (v[at]->next < 0 || !hear(v[at]))) {
                drop(v, at);
            }
        }
    }
}

// ---- clients ----

struct client {
    int fd;
    bool busy, first;
    double due, ttft;
    uint32_t events;
    char tail[TAIL]; // of what came: a mark may lie across two reads
};

static struct {
    struct client *v;
    char *request;
    size_t request_n;
    int n, epoll, busy;
    double *ttft, *total;
    size_t done, cap, events, errors, begun;
    struct sockaddr_in to;
} load;

static void connect_one(struct client *c)
{
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&load.to, sizeof load.to))
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(load.epoll, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){EPOLLIN, {.ptr = c}});
}

static void ask(struct client *c, double due)
{
    c->busy = true;
    c->first = false;
    c->due = due;
    c->events = 0;
    memset(c->tail, 0, TAIL);
    load.busy++;
    if (write(c->fd, load.request, load.request_n) != (ssize_t)load.request_n)
        die("write");
}

static void finish(struct client *c, double now)
{
    c->busy = false;
    load.busy--;
    if (load.done == load.cap)
        return;
    load.ttft[load.done] = c->ttft;
    load.total[load.done++] = now - c->due;
}

static void hear_answer(struct client *c)
{
    static char v[TAIL + BUFFER + 1];
    memcpy(v, c->tail, TAIL);
    ssize_t n = read(c->fd, v + TAIL, BUFFER);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0 || !c->busy) {
        load.errors++;
        load.busy -= c->busy;
        c->busy = false;
        close(c->fd);
        connect_one(c);
        return;
    }
    double now = seconds();
    char *end = v + TAIL + n;
    *end = 0;
    // A mark that began in the tail counts once: what lies wholly in it was counted before.
    for (char *p = v + TAIL - 5; (p = memmem(p, (size_t)(end - p), "data: ", 6)); p += 6) {
        load.events++;
        if (++c->events == 1)
            load.begun++;
        if (c->events == 2)
            c->ttft = now - c->due;
    }
    if (end - v >= TAIL + 5 ? !memcmp(end - 5, "0\r\n\r\n", 5)
                            : memmem(v, (size_t)(end - v), "\r\n0\r\n\r\n", 7) != NULL)
        finish(c, now);
    else
        memcpy(c->tail, end - TAIL, TAIL);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double at(double *v, size_t n, double share)
{
    return n ? v[(size_t)(share * (double)(n - 1))] * 1e3 : 0;
}

static void report(double took)
{
    qsort(load.ttft, load.done, sizeof *load.ttft, by_size);
    qsort(load.total, load.done, sizeof *load.total, by_size);
    printf(
        "{\"requests\": %zu, \"per_s\": %.1f, \"events\": %zu, \"errors\": %zu, \"ttft_p50_ms\": "
        "%.3f, \"ttft_p99_ms\": %.3f, \"total_p50_ms\": %.3f, \"total_p99_ms\": %.3f}\n",
        load.done, (double)load.done / took, load.events, load.errors,
        at(load.ttft, load.done, 0.5), at(load.ttft, load.done, 0.99),
        at(load.total, load.done, 0.5), at(load.total, load.done, 0.99));
}

static struct client *idle_one(int *from)
{
    for (int k = 0; k < load.n; k++) {
        struct client *c = &load.v[*from];
        *from = (*from + 1) % load.n;
        if (!c->busy)
            return c;
    }
    return NULL;
}

static double gap(double rate)
{
    return -log(1 - drand48()) / rate;
}

static void prepare(char **argv)
{
    size_t n;
    char *body = read_file(argv[3], &n);
    load.to = local(argv[2]);
    load.n = atoi(argv[4]);
    load.v = take((size_t)load.n * sizeof *load.v);
    load.cap = 1 << 22;
    load.ttft = take(load.cap * sizeof *load.ttft);
    load.total = take(load.cap * sizeof *load.total);
    load.request = take(n + 512);
    load.request_n =
        (size_t)sprintf(load.request,
                        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
                        "content-type: application/json\r\ncontent-length: %zu\r\n\r\n",
                        n);
    memcpy(load.request + load.request_n, body, n);
    load.request_n += n;
    load.epoll = epoll_create1(0);
    for (int i = 0; i < load.n; i++)
        connect_one(&load.v[i]);
    sleep(1); // they are accepted; only requests are measured
}

static int run(char **argv, bool hold)
{
    struct epoll_event ev[TURN];
    double rate = argv[5] && argv[6] && !hold ? atof(argv[6]) : 0;
    prepare(argv);
    double start = seconds(), end = start + atof(argv[5]), next = start;
    int from = 0;
    bool told = false;
    for (int i = 0; i < load.n && !rate; i++)
        ask(&load.v[i], seconds());
    for (double now = start; now < end || (load.busy && !hold && now < end + 10); now = seconds()) {
        struct client *c;
        for (; rate && next <= now && now < end && (c = idle_one(&from)); next += gap(rate))
            ask(c, next);
        int ms = rate && now < end ? (int)ceil((next - now) * 1e3) : 100;
        int n = epoll_wait(load.epoll, ev, TURN, ms < 0 ? 0 : ms > 100 ? 100 : ms);
        for (int i = 0; i < n; i++) {
            c = ev[i].data.ptr;
            hear_answer(c);
            if (!c->busy && !rate && (hold || seconds() < end))
                ask(c, seconds());
        }
        if (hold && !told && load.begun >= (size_t)load.n) {
            printf("open %zu\n", load.begun);
            fflush(stdout);
            told = true;
        }
    }
    if (!hold)
        report(seconds() - start);
    return load.errors != 0;
}

int main(int argc, char **argv)
{
    many_files();
    if (argc == 5 && !strcmp(argv[1], "serve"))
        return serve(argv);
    if (argc >= 6 && (!strcmp(argv[1], "load") || !strcmp(argv[1], "hold")))
        return run(argv, argv[1][0] == 'h');
    fprintf(stderr,
            "usage: gateway_rig serve PORT EVENTS STEP_US | load PORT BODY CONNECTIONS SECONDS "
            "[RATE] | hold PORT BODY CONNECTIONS SECONDS\n");
    return 2;
}
