// The clock, the queue of events, the trace in words, and the loop.
#include "tests/sim/world.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

struct world *world_current;

// ---- chance and words ----

uint64_t world_between(struct world *w, uint64_t lo, uint64_t hi)
{
    return lo >= hi ? lo : lo + prng_below(&w->prng, hi - lo + 1);
}

bool world_chance(struct world *w, double p)
{
    return prng_unit(&w->prng) < p;
}

static void keep_line(struct world *w, const char *text, bool tell)
{
    char line[640];
    snprintf(line, sizeof line, "[%5" PRIu64 "] %s\n", w->now_us / 1000, text);
    char **slot = &w->lines[w->lines_n++ % (sizeof w->lines / sizeof *w->lines)];
    free(*slot);
    *slot = mem_strdup(line);
    if (w->print)
        fputs(line, stdout);
    if (tell && w->collect)
        strbuf_puts(w->collect, line);
}

void world_trace(struct world *w, const char *fmt, ...)
{
    char text[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    keep_line(w, text, false);
}

void world_tell(struct world *w, const char *fmt, ...)
{
    char text[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    keep_line(w, text, true);
}

static void write_all(const char *s)
{
    size_t n = strlen(s);
    while (n > 0) {
        ssize_t k = write(STDERR_FILENO, s, n);
        if (k <= 0)
            return;
        s += k;
        n -= (size_t)k;
    }
}

void world_dump(const struct world *w)
{
    size_t ring = sizeof w->lines / sizeof *w->lines;
    uint64_t from = w->lines_n > ring ? w->lines_n - ring : 0;
    write_all("the last lines:\n");
    for (uint64_t i = from; i < w->lines_n; i++)
        write_all(w->lines[i % ring]);
    char text[96];
    if (w->scenario)
        snprintf(text, sizeof text, "replay: tests/sim --scenario %s\n", w->scenario);
    else
        snprintf(text, sizeof text, "replay: tests/sim --seed %" PRIu64 "\n", w->seed);
    write_all(text);
}

void world_fail(struct world *w, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    world_trace(w, "VIOLATED: %s", text);
    abort(); // the handler of SIGABRT dumps
}

// ---- event queue ----

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->order < b->order;
}

void world_push(struct world *w, struct sim_event ev)
{
    MEM_GROW(w->heap, w->heap_n, w->heap_cap);
    ev.order = ++w->order;
    size_t i = w->heap_n++;
    for (; i > 0 && before(&ev, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = ev;
}

static struct sim_event pop(struct world *w)
{
    struct sim_event top = w->heap[0], last = w->heap[--w->heap_n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child + 1 < w->heap_n && before(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (child >= w->heap_n || !before(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

void world_call(struct world *w, uint64_t at_us, void (*fn)(struct world *, int), int arg)
{
    world_push(
        w, (struct sim_event){.at_us = at_us, .kind = SIM_CALL, .node = -1, .fn = fn, .arg = arg});
}

// ---- the loop ----

static void handle(struct world *w, struct sim_event *ev)
{
    struct sim_node *n = ev->node >= 0 ? &w->nodes[ev->node] : NULL;
    switch (ev->kind) {
    case SIM_COPY:
        standby_record(w, ev);
        break;
    case SIM_ASK:
        standby_asked(w, ev);
        break;
    case SIM_ACK:
        standby_acked(w, ev);
        break;
    case SIM_TO_COORD:
        shell_to_coord(w, ev);
        break;
    case SIM_TO_NODE:
        if (n->alive)
            shell_to_node(w, ev);
        break;
    case SIM_COORD_DOWN:
        w->conns[ev->conn - 1].coord_open = false;
        world_coord(w, &(struct coord_event){.kind = COORD_NODE_DOWN, .node = {ev->conn, NULL}});
        break;
    case SIM_NODE_DOWN:
        if (n->alive)
            shell_node_down(w, ev);
        break;
    case SIM_CONNECT:
        if (!n->alive || ev->gen != n->gen || n->conn)
            break;
        if (!w->coord) { // refused: tries again
            world_push(w, (struct sim_event){.at_us = w->now_us + world_between(w, 50000, 200000),
                                             .kind = SIM_CONNECT,
                                             .node = ev->node,
                                             .gen = n->gen});
            break;
        }
        net_connect(w, ev->node);
        if (n->conn)
            node_event(w, ev->node, &(struct node_event){.kind = NODE_EV_COORD_UP});
        break;
    case SIM_PULSE:
        if (n->alive && ev->gen == n->gen)
            node_pulse_tick(w, ev->node, ev->gen);
        break;
    case SIM_ENGINE:
        if (n->alive && ev->gen == n->engine_gen)
            node_poll(w, ev->node);
        break;
    case SIM_NODE_TIMER:
        if (n->alive && ev->gen == n->timer_gen)
            node_event(w, ev->node, &(struct node_event){.kind = NODE_EV_TIMER});
        break;
    case SIM_COORD_TIMER:
        if (ev->gen == w->coord_timer_gen)
            world_coord(w, &(struct coord_event){.kind = COORD_TIMER});
        break;
    case SIM_CLIENT:
        client_run(w, ev->client);
        break;
    case SIM_CALL:
        ev->fn(w, ev->arg);
        break;
    }
}

bool world_step(struct world *w, uint64_t until_us)
{
    if (!w->heap_n || w->heap[0].at_us > until_us)
        return false;
    struct sim_event ev = pop(w);
    w->now_us = ev.at_us;
    if (!net_intercept(w, &ev) && !node_defers(w, &ev))
        handle(w, &ev);
    msg_free(ev.msg);
    free(ev.bytes);
    for (uint32_t i = 0; i < w->opt.nodes; i++)
        if (w->nodes[i].woken)
            node_reschedule(w, (int)i);
    return true;
}

static uint64_t world_clock(void *ctx)
{
    return ((const struct world *)ctx)->now_us;
}

void world_start(struct world *w)
{
    struct errmsg err = {0};
    world_current = w;
    w->fabric = mock_fabric_create(world_clock, w);
    w->opt.coord.model_dir = "models/sample";
    w->opt.coord.replicas = w->opt.replicas;
    w->opt.coord.stages = w->opt.stages;
    w->opt.coord.tensor = w->opt.tensor;
    w->opt.coord.trace = LOG_DEBUG;
    w->coord = coord_create(&w->opt.coord, &err);
    if (!w->coord)
        world_fail(w, "%s", err.text);
    policy_start(w);
    for (uint32_t i = 0; i < w->opt.nodes; i++) {
        snprintf(w->nodes[i].name, sizeof w->nodes[i].name, "%u", i + 1);
        snprintf(w->nodes[i].host, sizeof w->nodes[i].host, "host%u", i % w->opt.hosts);
        w->nodes[i].incarnation = 100 * (i + 1);
        node_start(w, (int)i);
    }
    standby_start(w);
    world_watch(w, 0);
}

void world_finish(struct world *w)
{
    for (size_t i = 0; i < w->heap_n; i++) {
        msg_free(w->heap[i].msg);
        free(w->heap[i].bytes);
    }
    copier_finish(&w->copier);
    follower_finish(&w->follower);
    while (guests_pop(&w->guests))
        ;
    wire_arena_finish(&w->copy_arena);
    free(w->heap);
    for (uint32_t i = 0; i < w->opt.nodes; i++) {
        node_free(w, &w->nodes[i]);
        inbox_clear(&w->nodes[i].held);
        for (int k = 0; k < SIM_SAID; k++)
            msg_free(w->nodes[i].said[k]);
        free(w->nodes[i].held.v);
        free(w->nodes[i].waiting.v);
    }
    mock_fabric_destroy(w->fabric);
    coord_destroy(w->coord);
    clients_free(w);
    free(w->conns);
    free(w->gaps);
    for (size_t i = 0; i < sizeof w->lines / sizeof *w->lines; i++)
        free(w->lines[i]);
    world_current = NULL;
}
