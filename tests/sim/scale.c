#include "tests/sim/scale.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/mem.h"

static const char *const cause_names[] = {"", "killed", "silent", "hangs", "rack", "datacenter"};
static const char *const cost_names[] = {"tokens", "heartbeat", "submit", "timer", "other"};

// ---- clock and words ----

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void scale_trace(struct scale *w, const char *fmt, ...)
{
    va_list ap;
    if (!w->opt.trace)
        return;
    printf("[%7.3f] ", (double)w->now_us / 1e6);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

void scale_fail(struct scale *w, const char *fmt, ...)
{
    va_list ap;
    fflush(stdout);
    fprintf(stderr, "[%7.3f] VIOLATED: ", (double)w->now_us / 1e6);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\nreplay: tests/sim --scale --seed %" PRIu64 "\n", w->opt.seed);
    exit(1);
}

void samples_add(struct samples *s, uint64_t v)
{
    MEM_GROW(s->v, s->n, s->cap);
    s->v[s->n++] = v < UINT32_MAX ? (uint32_t)v : UINT32_MAX;
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double samples_at(struct samples *s, double share)
{
    if (!s->n)
        return 0;
    qsort(s->v, s->n, sizeof *s->v, by_size);
    size_t at = (size_t)(share * (double)s->n);
    return s->v[at < s->n ? at : s->n - 1];
}

// ---- events ----

static bool before(const struct scale_event *a, const struct scale_event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->order < b->order;
}

void scale_push(struct scale *w, uint64_t at_us, enum scale_kind kind, uint32_t at, uint64_t gen)
{
    MEM_GROW(w->heap, w->heap_n, w->heap_cap);
    struct scale_event ev = {at_us, ++w->order, gen, kind, at};
    size_t i = w->heap_n++;
    for (; i > 0 && before(&ev, &w->heap[(i - 1) / 4]); i = (i - 1) / 4)
        w->heap[i] = w->heap[(i - 1) / 4];
    w->heap[i] = ev;
}

static struct scale_event pop(struct scale *w)
{
    struct scale_event top = w->heap[0], last = w->heap[--w->heap_n];
    size_t i = 0;
    for (;;) {
        size_t child = 4 * i + 1, end = child + 4 < w->heap_n ? child + 4 : w->heap_n;
        if (child >= w->heap_n)
            break;
        for (size_t k = child + 1; k < end; k++)
            if (before(&w->heap[k], &w->heap[child]))
                child = k;
        if (!before(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

// ---- coordinators ----

static enum scale_cost cost_of(const struct coord_event *ev)
{
    switch (ev->kind) {
    case COORD_NODE_MSG:
        return ev->node.msg->kind == MSG_TOKENS      ? COST_TOKENS
               : ev->node.msg->kind == MSG_HEARTBEAT ? COST_HEARTBEAT
                                                     : COST_OTHER;
    case COORD_SUBMIT:
        return COST_SUBMIT;
    case COORD_TIMER:
        return COST_TIMER;
    default:
        return COST_OTHER;
    }
}

static void act(struct scale *w, uint32_t dc, const struct coord_action *a)
{
    switch (a->kind) {
    case COORD_SEND:
        scale_rank_msg(w, dc, a->send.conn, a->send.msg);
        break;
    case COORD_CLOSE_CONN:
        scale_rank_closed(w, dc, a->close.conn);
        break;
    case COORD_SET_TIMER:
        w->dcs[dc].timer_gen++;
        if (a->timer.at_us != UINT64_MAX)
            scale_push(w, a->timer.at_us, SCALE_TIMER, dc, w->dcs[dc].timer_gen);
        break;
    case COORD_TRACE:
        scale_trace(w, "dc %u, %s", dc + 1, a->trace.text);
        break;
    default:
        scale_stream_action(w, dc, a);
        break;
    }
}

void scale_coord(struct scale *w, uint32_t dc, struct coord_event *ev)
{
    struct coord_actions out;
    struct scale_dc *d = &w->dcs[dc];
    if (!d->core)
        return;
    ev->now_us = w->now_us;
    double t = seconds();
    coord_step(d->core, ev, &out);
    t = seconds() - t;
    if (w->now_us >= w->begin_us) {
        enum scale_cost k = cost_of(ev);
        w->cost_s[k] += t;
        w->cost_n[k]++;
        d->cost_s += t;
        if (t > w->longest_s) {
            w->longest_s = t;
            w->longest_of = k;
            w->longest_at_us = w->now_us;
        }
    }
    for (size_t i = 0; i < out.n; i++) {
        if (i + 4 < out.n && out.v[i + 4].kind == COORD_TOKENS)
            scale_stream_expect(w, out.v[i + 4].tokens.request);
        act(w, dc, &out.v[i]);
    }
}

static uint32_t hosts_of(const struct scale *w, uint32_t dc)
{
    return w->opt.hosts / w->opt.dcs + (dc < w->opt.hosts % w->opt.dcs);
}

void scale_dc_start(struct scale *w, uint32_t dc)
{
    struct coord_config k;
    struct errmsg err = {0};
    static const int32_t probe[] = {1, 2, 3, 4, 5, 6, 7, 8};
    coord_config_default(&k);
    k.model_dir = "model";
    k.replicas = hosts_of(w, dc) * 97 / 100; // the rest is spare
    k.replicas += k.replicas == 0;
    k.tensor = SCALE_DEVICES;
    k.first_epoch = w->dcs[dc].epoch + 1000000;
    k.probe_prompt = probe;
    k.probe_prompt_n = 8;
    k.queue_limit = 1 << 20;
    k.trace = w->opt.trace ? LOG_INFO : LOG_ERROR;
    w->dcs[dc].core = coord_create(&k, &err);
    if (!w->dcs[dc].core)
        scale_fail(w, "%s", err.text);
}

// ---- the run ----

static void on_second(struct scale *w)
{
    if (w->now_us > w->begin_us) {
        samples_add(&w->per_s, w->second_tokens);
        if (w->open_n < w->open_least)
            w->open_least = w->open_n;
    }
    if (w->opt.trace)
        scale_trace(w, "%u streams open, %" PRIu64 " tokens in this second", w->open_n,
                    w->second_tokens);
    w->second_tokens = 0;
    scale_push(w, w->now_us + 1000000, SCALE_SECOND, 0, 0);
    if (w->now_us / 1000000 % 20 == 0)
        scale_streams_check(w);
}

static void handle(struct scale *w, const struct scale_event *ev)
{
    switch (ev->kind) {
    case SCALE_PULSE:
        scale_host_pulse(w, ev->at, ev->gen);
        break;
    case SCALE_STEP:
        scale_rank_step(w, ev->at, ev->gen);
        break;
    case SCALE_PREPARED:
        scale_rank_prepared(w, ev->at, ev->gen);
        break;
    case SCALE_LINKED:
        scale_rank_linked(w, ev->at, ev->gen);
        break;
    case SCALE_CONNECT:
        scale_rank_connect(w, ev->at);
        break;
    case SCALE_DOWN:
        scale_coord(w, ev->at,
                    &(struct coord_event){.kind = COORD_NODE_DOWN, .node = {ev->gen, NULL}});
        break;
    case SCALE_TIMER:
        if (ev->gen == w->dcs[ev->at].timer_gen)
            scale_coord(w, ev->at, &(struct coord_event){.kind = COORD_TIMER});
        break;
    case SCALE_STREAM:
        scale_stream_run(w, ev->at);
        break;
    case SCALE_FAULT:
        scale_fault(w, ev->at);
        break;
    case SCALE_RETURN:
        scale_host_return(w, ev->at, ev->gen);
        break;
    case SCALE_SECOND:
        on_second(w);
        break;
    }
}

static void start(struct scale *w)
{
    prng_seed(&w->prng, w->opt.seed);
    w->begin_us = 1000000ull * w->opt.warm_s;
    w->end_us = w->begin_us + 1000000ull * w->opt.seconds;
    w->open_least = UINT32_MAX;
    w->hosts = mem_zalloc(w->opt.hosts, sizeof *w->hosts);
    for (uint32_t d = 0; d < w->opt.dcs; d++)
        scale_dc_start(w, d);
    for (uint32_t i = 0, dc = 0, left = hosts_of(w, 0); i < w->opt.hosts; i++) {
        if (!left--)
            left = hosts_of(w, ++dc) - 1;
        w->hosts[i].dc = dc;
        scale_host_start(w, i);
    }
    scale_streams_start(w);
    scale_faults_plan(w);
    scale_push(w, 1000000, SCALE_SECOND, 0, 0);
}

static void finish(struct scale *w)
{
    for (uint32_t d = 0; d < w->opt.dcs; d++) {
        coord_destroy(w->dcs[d].core);
        free(w->dcs[d].conns);
    }
    for (uint32_t i = 0; i < w->opt.hosts; i++)
        scale_host_free(w, i);
    for (int c = 0; c < CAUSES; c++)
        free(w->pauses[c].v);
    free(w->ttft.v);
    free(w->quiet_ttft.v);
    free(w->per_s.v);
    free(w->hosts);
    free(w->streams);
    free(w->heap);
}

// ---- the report ----

struct report {
    struct scale *w;
    FILE *csv; // NULL = none
};

static void figure(const struct report *r, const char *name, double value, const char *unit)
{
    printf("  %-44s %14.2f %s\n", name, value, unit);
    if (r->csv)
        fprintf(r->csv, "\"%s\",%.4f,%s\n", name, value, unit);
}

static void report_pauses(const struct report *r)
{
    for (int c = CAUSE_KILL; c < CAUSES; c++) {
        struct samples *s = &r->w->pauses[c];
        char name[64];
        if (!s->n)
            continue;
        snprintf(name, sizeof name, "streams paused by: %s", cause_names[c]);
        figure(r, name, (double)s->n, "");
        snprintf(name, sizeof name, "pause p50, %s", cause_names[c]);
        figure(r, name, samples_at(s, 0.5) / 1e3, "ms");
        snprintf(name, sizeof name, "pause p99, %s", cause_names[c]);
        figure(r, name, samples_at(s, 0.99) / 1e3, "ms");
    }
}

static void report_cost(const struct report *r)
{
    struct scale *w = r->w;
    double sum = 0, most = 0;
    char name[64];
    for (int k = 0; k < COSTS; k++)
        sum += w->cost_s[k];
    for (uint32_t d = 0; d < w->opt.dcs; d++)
        most = w->dcs[d].cost_s > most ? w->dcs[d].cost_s : most;
    figure(r, "coordinator's core per request", sum * 1e6 / (double)w->finished, "us");
    figure(r, "coordinator's core per token", sum * 1e9 / (double)w->tokens, "ns");
    figure(r, "of a core, busiest coordinator", 100 * most / w->opt.seconds, "%");
    for (int k = 0; k < COSTS; k++) {
        snprintf(name, sizeof name, "one event: %s", cost_names[k]);
        figure(r, name, w->cost_n[k] ? w->cost_s[k] * 1e9 / (double)w->cost_n[k] : 0, "ns");
    }
    snprintf(name, sizeof name, "longest event (%s at %.0f s)", cost_names[w->longest_of],
             (double)w->longest_at_us / 1e6);
    figure(r, name, w->longest_s * 1e3, "ms");
}

static void report(const struct report *r, double took_s)
{
    struct scale *w = r->w;
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    // What passed while somebody else had the processor is not a cost of ours.
    double used_s = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                    (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
    double share = used_s < took_s ? used_s / took_s : 1;
    for (int k = 0; k < COSTS; k++)
        w->cost_s[k] *= share;
    for (uint32_t d = 0; d < w->opt.dcs; d++)
        w->dcs[d].cost_s *= share;
    figure(r, "nodes", w->opt.hosts, "");
    figure(r, "devices", w->opt.hosts * SCALE_DEVICES, "");
    figure(r, "datacenters", w->opt.dcs, "");
    figure(r, "streams wanted", w->opt.streams, "");
    figure(r, "streams open, least", w->open_least, "");
    figure(r, "virtual time", w->opt.seconds, "s");
    figure(r, "real time", took_s, "s");
    figure(r, "processor time", used_s, "s");
    figure(r, "memory", (double)u.ru_maxrss / 1024, "MiB");
    figure(r, "requests finished", (double)w->finished, "");
    figure(r, "streams lost", 0, ""); // the run ends at the first
    figure(r, "requests refused", (double)w->refused, "");
    figure(r, "streams that moved and went on", (double)w->moved, "");
    figure(r, "of them to another datacenter", (double)w->restored, "");
    figure(r, "asked again before their first token", (double)w->asked_again, "");
    for (int c = CAUSE_KILL; c < CAUSES; c++) {
        char name[64];
        snprintf(name, sizeof name, "faults: %s", cause_names[c]);
        figure(r, name, (double)w->faults[c], "");
    }
    figure(r, "goodput", (double)w->tokens / w->opt.seconds, "tokens/s");
    figure(r, "goodput, p1 of the seconds", samples_at(&w->per_s, 0.01), "tokens/s");
    figure(r, "TTFT p50, nothing fails", samples_at(&w->quiet_ttft, 0.5) / 1e3, "ms");
    figure(r, "TTFT p99, nothing fails", samples_at(&w->quiet_ttft, 0.99) / 1e3, "ms");
    figure(r, "TTFT p50", samples_at(&w->ttft, 0.5) / 1e3, "ms");
    figure(r, "TTFT p99", samples_at(&w->ttft, 0.99) / 1e3, "ms");
    report_pauses(r);
    report_cost(r);
}

static int run(const struct scale_options *opt)
{
    struct scale w = {.opt = *opt};
    FILE *csv = opt->csv ? fopen(opt->csv, "w") : NULL;
    if (opt->csv && !csv) {
        fprintf(stderr, "sim: %s cannot be written\n", opt->csv);
        return 1;
    }
    double begin = seconds();
    start(&w);
    while (w.heap_n && w.heap[0].at_us <= w.end_us) {
        struct scale_event ev = pop(&w);
        w.now_us = ev.at_us;
        handle(&w, &ev);
    }
    scale_streams_check(&w);
    if (csv)
        fprintf(csv, "figure,value,unit\n");
    report(&(struct report){&w, csv}, seconds() - begin);
    if (csv)
        fclose(csv);
    finish(&w);
    return 0;
}

// ---- options ----

static int usage(void)
{
    fprintf(stderr, "usage: sim --scale [--nodes N] [--dcs N] [--streams N] [--seconds S] "
                    "[--warm S] [--rack N] [--step MS] [--fails SHARE_PER_HOUR] [--seed N] "
                    "[--csv FILE] [--trace]\n");
    return 2;
}

static bool sensible(const struct scale_options *o)
{
    return o->hosts >= o->dcs && o->dcs >= 1 && o->dcs <= SCALE_DCS && o->streams >= 1 &&
           o->streams < 1 << 20 && o->seconds >= 10 && o->warm_s >= 10 && o->rack <= o->hosts &&
           o->step_ms >= 1 && o->hosts / o->dcs * SCALE_DEVICES < LIMIT_NODES;
}

int scale_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"scale", no_argument, NULL, 'x'},
        {"nodes", required_argument, NULL, 'n'},
        {"dcs", required_argument, NULL, 'd'},
        {"streams", required_argument, NULL, 's'},
        {"seconds", required_argument, NULL, 't'},
        {"warm", required_argument, NULL, 'w'},
        {"rack", required_argument, NULL, 'r'},
        {"step", required_argument, NULL, 'p'},
        {"fails", required_argument, NULL, 'f'},
        {"seed", required_argument, NULL, 'e'},
        {"csv", required_argument, NULL, 'c'},
        {"trace", no_argument, NULL, 'v'},
        {0},
    };
    struct scale_options o = {.hosts = 2000,
                              .dcs = 3,
                              .streams = 100000,
                              .rack = 40,
                              .seconds = 600,
                              .warm_s = 60,
                              .step_ms = 200,
                              .row_us = 40,
                              .rows = 2048,
                              .seqs = 96,
                              .fails_per_hour = 0.01,
                              .dc_notice_ms = 5000,
                              .seed = 1};
    optind = 1;
    for (int k; (k = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        uint32_t n = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;
        switch (k) {
        case 'x':
            break;
        case 'n':
            o.hosts = n;
            break;
        case 'd':
            o.dcs = n;
            break;
        case 's':
            o.streams = n;
            break;
        case 't':
            o.seconds = n;
            break;
        case 'w':
            o.warm_s = n;
            break;
        case 'r':
            o.rack = n;
            break;
        case 'p':
            o.step_ms = n;
            break;
        case 'f':
            o.fails_per_hour = strtod(optarg, NULL);
            break;
        case 'e':
            o.seed = strtoull(optarg, NULL, 10);
            break;
        case 'c':
            o.csv = optarg;
            break;
        case 'v':
            o.trace = true;
            break;
        default:
            return usage();
        }
    }
    return sensible(&o) ? run(&o) : usage();
}
