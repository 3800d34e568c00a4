// Overload, measured: the same cluster with its highest band alone, then with mixed bands at three
// and at ten times what it can do. The promise: the highest band does not notice, nobody accepted
// starts after its deadline, who is refused for want of time learns it at once, and what the
// cluster does per second does not fall when more is asked.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "tests/sim/world.h"

enum { TOKENS = 40, PROMPT = 16, TOP = 9, WARM_S = 3, RUN_S = 12, DEADLINE_MS = 3000 };

struct load {
    const char *name;
    double top_per_s, rest_per_s;
};

struct measured {
    double p50_ms, p99_ms; // of the highest band, to the first token
    double tokens_per_s;   // of all
    uint32_t top, refused_top, refused, displaced, late;
    uint64_t preemptions;
    // Refused, and not within 50 ms of asking: let in and then displaced by a higher band, or
    // (gave_up) let in and still waiting when its time was over.
    uint32_t told_late, gave_up;
};

static void set_up(struct world *w)
{
    w->scenario = "overload";
    w->sparse = true;
    w->opt = (struct sim_options){.replicas = 4,
                                  .stages = 2,
                                  .tensor = 1,
                                  .nodes = 8,
                                  .hosts = 4,
                                  .mock = mock_config_default(),
                                  .delay_min_us = 100,
                                  .delay_max_us = 300,
                                  .pulse_channel = true};
    struct mock_config *m = &w->opt.mock;
    m->vocab = 1000;
    m->max_context = 128;
    m->block_tokens = 16;
    m->kv_blocks = 160;
    m->max_rows = 256;
    m->max_seqs = 8;
    m->form_us = SIM_MS(100);
    m->step_us = SIM_MS(10);
    m->row_us = 20;
    coord_config_default(&w->opt.coord);
    w->opt.coord.queue_limit = 200;
    w->opt.coord.retention_ms = 0;
    prng_seed(&w->prng, 7);
}

static void arrivals(struct world *w, double per_s, bool top)
{
    int32_t prompt[PROMPT];
    if (per_s <= 0)
        return;
    for (double t = 1e6; t < 1e6 * (WARM_S + RUN_S); t += prng_exp(&w->prng, 1e6 / per_s)) {
        for (int i = 0; i < PROMPT; i++)
            prompt[i] = (int32_t)prng_below(&w->prng, 1000);
        struct coord_submit s = {.prompt_n = PROMPT,
                                 .max_tokens = TOKENS,
                                 .band = (uint8_t)(top ? TOP : prng_below(&w->prng, TOP)),
                                 .deadline_us = world_chance(w, 0.5) ? SIM_MS(DEADLINE_MS) : 0,
                                 .sampling = {.seed = 1, .top_p = 1, .repetition_penalty = 1}};
        uint32_t c = client_add(w, &s, prompt);
        w->clients[c].submit_us = (uint64_t)t;
        world_push(w, (struct sim_event){
                          .at_us = (uint64_t)t, .kind = SIM_CLIENT, .node = -1, .client = c});
    }
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void judge(const struct world *w, struct measured *m)
{
    uint64_t *ttft = mem_zalloc(w->clients_n + 1, sizeof *ttft);
    for (size_t i = 0; i < w->clients_n; i++) {
        const struct sim_client *c = &w->clients[i];
        bool top = c->submit.band == TOP, refused = c->stage == CLIENT_REFUSED;
        if (c->submit_us < SIM_S(WARM_S))
            continue;
        m->refused_top += top && refused;
        m->refused += refused;
        bool told_late = refused && c->done_us > c->submit_us + SIM_MS(50);
        m->told_late += told_late;
        m->gave_up += told_late && c->refused_for != COORD_REFUSE_QUEUE_FULL;
        uint64_t first = c->first_us ? c->first_us - c->submit_us : 0;
        if (top && first)
            ttft[m->top++] = first;
        // One step of both stages is the grain of all that is promised.
        m->late += c->submit.deadline_us && first > c->submit.deadline_us + SIM_MS(25);
    }
    qsort(ttft, m->top, sizeof *ttft, by_size);
    if (m->top) {
        m->p50_ms = (double)ttft[m->top / 2] / 1e3;
        m->p99_ms = (double)ttft[m->top * 99 / 100] / 1e3;
    }
    free(ttft);
}

static struct measured run(const struct load *l)
{
    struct world w = {0};
    struct measured m = {0};
    struct coord_stats before, after;
    set_up(&w);
    world_start(&w);
    arrivals(&w, l->top_per_s, true);
    arrivals(&w, l->rest_per_s, false);
    while (world_step(&w, SIM_S(WARM_S)))
        ;
    coord_stats(w.coord, &before);
    while (world_step(&w, SIM_S(WARM_S + RUN_S)))
        ;
    coord_stats(w.coord, &after);
    m.tokens_per_s = (double)(after.tokens - before.tokens) / RUN_S;
    m.preemptions = after.preemptions - before.preemptions;
    m.displaced = (uint32_t)(after.displaced - before.displaced);
    judge(&w, &m);
    printf("%-22s %6.0f %8u %9.1f %9.1f %9.0f %9u %9u %9u %9u %9" PRIu64 " %6u\n", l->name,
           l->top_per_s + l->rest_per_s, m.top, m.p50_ms, m.p99_ms, m.tokens_per_s, m.refused,
           m.told_late, m.gave_up, m.displaced, m.preemptions, m.late);
    world_finish(&w);
    return m;
}

static bool holds(bool ok, const char *what)
{
    printf("%s %s\n", ok ? "holds:" : "BROKEN:", what);
    return ok;
}

bool overload_run(void)
{
    // 32 places of about 0.83 s: some 38 requests a second.
    static const struct load loads[] = {{"highest band alone", 12, 0},
                                        {"all of it, 1x", 12, 26},
                                        {"mixed bands, 3x", 12, 102},
                                        {"mixed bands, 10x", 12, 368}};
    struct measured m[4];
    printf("%-22s %6s %8s %9s %9s %9s %9s %9s %9s %9s %9s %6s\n", "load", "req/s", "top band",
           "p50 ms", "p99 ms", "tokens/s", "refused", "told late", "gave up", "displaced",
           "preempted", "late");
    for (int i = 0; i < 4; i++)
        m[i] = run(&loads[i]);
    double peak = 0;
    for (int i = 0; i < 4; i++)
        peak = m[i].tokens_per_s > peak ? m[i].tokens_per_s : peak;
    bool ok = holds(m[2].p99_ms <= 1.2 * m[0].p99_ms && m[3].p99_ms <= 1.2 * m[0].p99_ms,
                    "the highest band's p99 stays within 1.2x of its own alone");
    ok &= holds(!m[2].refused_top && !m[3].refused_top, "none of the highest band is refused");
    ok &= holds(!m[1].late && !m[2].late && !m[3].late,
                "none that was accepted starts more than a step after its deadline");
    ok &= holds(m[3].tokens_per_s >= 0.95 * peak && m[2].tokens_per_s >= 0.95 * peak,
                "tokens/s stay within 5% of the peak");
    return ok;
}
