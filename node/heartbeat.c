// Owns one thread and one socket. Everything it sends is built from the node's pulse (atomics), the
// engine's progress slot, the GPU watch and /proc; a coordinator that does not read for a second
// loses the connection, never blocks the thread longer.
#include "node/heartbeat.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "proto/secure.h"
#include "proto/wire.h"

enum { RETRY_MS = 200, SEND_TIMEOUT_S = 1, SHAKE_READS = 16 };

struct heartbeat {
    pthread_t thread;
    struct msg *hello; // owned
    const struct node_pulse *pulse;
    struct engine *engine;
    struct gpu_watch *gpu;
    struct secure_domain *domain;
    struct secure *secure;    // of the connection; NULL: in the clear
    pthread_mutex_t lock;     // guards those below
    pthread_cond_t wake;      // one of them changed
    char host[256], port[16]; // of the coordinator
    uint32_t interval_ms;     // 0 = pause
    bool stop;
    struct wire_arena arena;
    struct strbuf out, wire, plain;
};

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

static uint64_t resident_bytes(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f)
        return 0;
    if (fscanf(f, "%*u %llu", &pages) != 1)
        pages = 0;
    fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

// Sleeps for one interval (`ms` 0), or `ms`; sooner when it is time to stop or to pause, which
// gives false.
static bool sleep_ms(struct heartbeat *h, uint32_t ms)
{
    struct timespec until;
    pthread_mutex_lock(&h->lock);
    ms = ms ? ms : h->interval_ms;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    int rc = 0;
    while (!h->stop && h->interval_ms && rc == 0)
        rc = pthread_cond_timedwait(&h->wake, &h->lock, &until);
    bool go_on = !h->stop && h->interval_ms;
    pthread_mutex_unlock(&h->lock);
    return go_on;
}

// Waits out a pause; false when it is time to stop.
static bool wait_go(struct heartbeat *h)
{
    pthread_mutex_lock(&h->lock);
    while (!h->stop && !h->interval_ms)
        pthread_cond_wait(&h->wake, &h->lock);
    bool go = !h->stop;
    pthread_mutex_unlock(&h->lock);
    return go;
}

static int dial(struct heartbeat *h)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    char host[sizeof h->host], port[sizeof h->port];
    pthread_mutex_lock(&h->lock);
    memcpy(host, h->host, sizeof host);
    memcpy(port, h->port, sizeof port);
    pthread_mutex_unlock(&h->lock);
    if (getaddrinfo(host, port, &hints, &list))
        return -1;
    int fd = -1;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd < 0)
            continue;
        struct timeval limit = {.tv_sec = SEND_TIMEOUT_S};
        int one = 1;
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); // bounds connect as well
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit); // of the handshake
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(fd, a->ai_addr, a->ai_addrlen)) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    return fd;
}

// Sends and empties it.
static bool send_all(int fd, struct strbuf *b)
{
    for (size_t at = 0; at < b->n;) {
        ssize_t n = send(fd, b->v + at, b->n - at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += (size_t)n;
    }
    strbuf_clear(b);
    return true;
}

static bool send_msg(struct heartbeat *h, int fd, const struct msg *m)
{
    strbuf_clear(&h->out);
    if (wire_encode_msg(&h->arena, m, &h->out) != STATUS_OK)
        return false;
    if (!h->secure)
        return send_all(fd, &h->out);
    return secure_seal(h->secure, h->out.v, h->out.n, &h->wire) == STATUS_OK &&
           send_all(fd, &h->wire);
}

static bool feed(struct heartbeat *h, int fd, const char *bytes, size_t n)
{
    struct errmsg e = {0};
    strbuf_clear(&h->plain); // what coordinators say here is dropped
    if (!h->secure || secure_feed(h->secure, bytes, n, &h->plain, &h->wire, &e) == STATUS_OK)
        return send_all(fd, &h->wire);
    log_warn("heartbeats to %s:%s: %s", h->host, h->port, e.text);
    return false;
}

// The handshake; each read waits a second at most.
static bool shake(struct heartbeat *h, int fd)
{
    char bytes[4096];
    secure_greet(h->secure, &h->wire);
    bool ok = send_all(fd, &h->wire);
    for (int i = 0; ok && i < SHAKE_READS && !secure_is_up(h->secure); i++) {
        ssize_t n = recv(fd, bytes, sizeof bytes, 0);
        ok = n > 0 && feed(h, fd, bytes, (size_t)n);
    }
    return ok && secure_is_up(h->secure);
}

// What the coordinator says on this connection (WELCOME) is read and dropped; false when it closed.
static bool drain_input(struct heartbeat *h, int fd)
{
    char scrap[512];
    ssize_t n;
    while ((n = recv(fd, scrap, sizeof scrap, MSG_DONTWAIT)) > 0)
        if (!feed(h, fd, scrap, (size_t)n))
            return false;
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

static void beat_until_broken(struct heartbeat *h, int fd)
{
    if (!send_msg(h, fd, h->hello))
        return;
    do {
        uint64_t now = now_us();
        struct rank_progress progress = h->engine->ops->progress(h->engine, now);
        struct msg m = {.kind = MSG_HEARTBEAT};
        node_heartbeat(h->pulse, &progress, now, &m.heartbeat);
        m.heartbeat.rss_bytes = resident_bytes();
        gpu_watch_read(h->gpu, &m.heartbeat.gpu);
        if (!send_msg(h, fd, &m) || !drain_input(h, fd))
            return;
    } while (sleep_ms(h, 0));
}

static void *heartbeat_main(void *arg)
{
    struct heartbeat *h = arg;
    while (wait_go(h)) {
        int fd = dial(h);
        if (fd >= 0) {
            h->secure = h->domain ? secure_open(h->domain, false) : NULL;
            if (!h->secure || shake(h, fd))
                beat_until_broken(h, fd);
            secure_close(h->secure);
            strbuf_clear(&h->wire);
            close(fd);
        }
        (void)sleep_ms(h, RETRY_MS); // why it returned is asked above
    }
    return NULL;
}

static void heartbeat_free(struct heartbeat *h)
{
    pthread_cond_destroy(&h->wake);
    pthread_mutex_destroy(&h->lock);
    wire_arena_finish(&h->arena);
    strbuf_finish(&h->out);
    strbuf_finish(&h->wire);
    strbuf_finish(&h->plain);
    msg_free(h->hello);
    free(h);
}

enum status heartbeat_start(const struct heartbeat_args *args, struct heartbeat **heartbeat_out,
                            struct errmsg *e)
{
    struct heartbeat *h = mem_zalloc(1, sizeof *h);
    struct msg hello = {.kind = MSG_HELLO, .hello = args->hello};
    hello.hello.heartbeat_channel = true;
    h->hello = msg_clone(&hello);
    h->pulse = args->pulse;
    h->engine = args->engine;
    h->gpu = args->gpu;
    h->domain = args->domain;
    pthread_mutex_init(&h->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&h->wake, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&h->thread, NULL, heartbeat_main, h);
    if (rc) {
        heartbeat_free(h);
        return errmsg_set(e, status_from_errno(rc), "heartbeat thread: %s", strerror(rc));
    }
    pthread_setname_np(h->thread, "heartbeat");
    *heartbeat_out = h;
    return STATUS_OK;
}

static void set_interval(struct heartbeat *h, uint32_t interval_ms)
{
    pthread_mutex_lock(&h->lock);
    h->interval_ms = interval_ms;
    pthread_cond_signal(&h->wake);
    pthread_mutex_unlock(&h->lock);
}

void heartbeat_go(struct heartbeat *h, const char *host, const char *port, uint32_t interval_ms)
{
    pthread_mutex_lock(&h->lock);
    snprintf(h->host, sizeof h->host, "%s", host);
    snprintf(h->port, sizeof h->port, "%s", port);
    pthread_mutex_unlock(&h->lock);
    set_interval(h, interval_ms ? interval_ms : 1);
}

void heartbeat_pause(struct heartbeat *h)
{
    set_interval(h, 0);
}

void heartbeat_stop(struct heartbeat *h)
{
    if (!h)
        return;
    pthread_mutex_lock(&h->lock);
    h->stop = true;
    pthread_cond_signal(&h->wake);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    heartbeat_free(h);
}
