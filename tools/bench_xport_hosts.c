// hadal bench xport between hosts: the listening end serves one caller at a time, and each link's
// hello says what is to be measured, so that the caller alone decides. Its bytes come from its own
// region, which verbs devices read without a copy.
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "tools/bench.h"
#include "tools/bench_xport.h"
#include "tools/cmd.h"

enum { HELLO_MAGIC = 0x4258444c, REPEATS = 10, ROUNDS = 200, ECHO_MAX = 1 << 20 };
static const double CASE_S = 1; // slow links get fewer repeats

struct bench_hello {
    uint32_t magic;
    uint32_t echo;  // 1: answer each notice with `bytes`; 0: tell how many came
    uint32_t bytes; // <= ECHO_MAX
};

static volatile sig_atomic_t stop;

static void on_signal(int sig)
{
    stop = 1;
}

static void serve_link(struct side *s)
{
    struct bench_hello h = {0};
    if (s->hello_n == sizeof h)
        memcpy(&h, s->hello, sizeof h);
    if (h.magic != HELLO_MAGIC || h.bytes > ECHO_MAX) {
        fprintf(stderr, "hadal bench xport: a caller that is no bench was turned away\n");
        xlink_close(s->link);
        return;
    }
    uint64_t told = 0;
    while (!s->down && !stop) {
        bench_side_turn(s);
        for (; h.echo && told < s->notices && !s->down; told++)
            bench_side_write(
                s, &(struct xwrite){.region = BENCH_XPORT_REGION, .src = s->mem, .bytes = h.bytes});
        if (told < s->notices && !s->down) {
            told = s->notices;
            bench_side_write(
                s, &(struct xwrite){.region = BENCH_XPORT_REGION, .notice = (uint32_t)told});
        }
    }
}

int bench_xport_listen(const struct xport_config *c)
{
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    struct side s = bench_side_open(c);
    printf("%s\n", xport_address(s.x));
    fflush(stdout);
    while (!stop) {
        s.up = s.down = false;
        s.notices = 0;
        while (!s.up && !stop)
            bench_side_turn(&s);
        if (s.up)
            serve_link(&s);
    }
    xport_close(s.x);
    return CMD_OK;
}

// One case: a link, the best of several runs.
static enum status run_case(const struct xport_config *c, const char *address,
                            const struct bench_hello *h, double *best, struct errmsg *e)
{
    struct side s = bench_side_open(c);
    enum status rc = xport_connect(s.x, address, h, sizeof *h, NULL, &s.link, e);
    while (rc == STATUS_OK && !s.up && !s.down)
        bench_side_turn(&s);
    *best = h->echo ? 1e9 : 0;
    double end = bench_now_s() + CASE_S;
    for (int r = 0; rc == STATUS_OK && r < REPEATS && !s.down; r++) {
        if (r > 0 && bench_now_s() > end)
            break;
        double v = h->echo ? bench_round_trip_us(&s, s.mem, h->bytes, ROUNDS)
                           : bench_write_gb_s(&s, s.mem, h->bytes);
        if (!s.down)
            *best = (h->echo ? v < *best : v > *best) ? v : *best;
    }
    if (rc == STATUS_OK && s.down)
        rc = errmsg_set(e, s.why, "%s", status_text(s.why));
    xport_close(s.x);
    return rc;
}

int bench_xport_connect(const char *address, const char *bind, bool json)
{
    static const struct bench_hello cases[] = {
        {HELLO_MAGIC, 0, 4096}, {HELLO_MAGIC, 0, 65536}, {HELLO_MAGIC, 0, 1 << 20},
        {HELLO_MAGIC, 1, 8},    {HELLO_MAGIC, 1, 4096},  {HELLO_MAGIC, 1, 65536},
    };
    struct xport_config c = {.bind_host = bind, .spin_us = 100000};
    char kind[16], name[64];
    snprintf(kind, sizeof kind, "%.*s", (int)strcspn(address, ":"), address);
    if (xport_kind_parse(kind, &c.kind) != STATUS_OK) {
        fprintf(stderr, "hadal bench xport: '%.80s' is no address that --listen prints\n", address);
        return CMD_USAGE;
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct bench_hello *h = &cases[i];
        struct errmsg e = {0};
        double best;
        if (run_case(&c, address, h, &best, &e) != STATUS_OK) {
            fprintf(stderr, "hadal bench xport: %s\n", e.text);
            return CMD_FAILED;
        }
        snprintf(name, sizeof name, "xport %s between hosts, %u B", kind, h->bytes);
        bench_print(json, &(struct bench_figure){.name = name,
                                                 .metric = h->echo ? "round_trip" : "bandwidth",
                                                 .unit = h->echo ? "us" : "GB/s",
                                                 .value = best});
    }
    return CMD_OK;
}
