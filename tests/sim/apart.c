// Prefill and decode apart, measured in virtual time, where nothing else wants the processors: the
// gaps between the tokens of eight streams, alone and beside prompts of 3,000 tokens, on two
// replicas that do both and on one for each. Times of a step are those of the sample model on one
// core; blocks travel at the speed of its shared memory.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/world.h"

enum { STREAMS = 8, TOKENS = 1500, PROMPT = 3000, PROMPTS = 4 };

static void set_up(struct world *w, bool apart)
{
    w->scenario = "apart";
    w->sparse = true;
    w->gaps_of = STREAMS;
    w->opt = (struct sim_options){.replicas = 2,
                                  .stages = 1,
                                  .tensor = 1,
                                  .nodes = 2,
                                  .hosts = 2,
                                  .mock = mock_config_default(),
                                  .delay_min_us = 50,
                                  .delay_max_us = 100,
                                  .pulse_channel = true};
    struct mock_config *m = &w->opt.mock;
    m->vocab = 1000;
    m->max_context = 4096;
    m->block_tokens = 16;
    m->kv_blocks = 2048;
    m->max_rows = 512;
    m->max_seqs = 16;
    m->form_us = SIM_MS(100);
    m->step_us = 1000;
    m->row_us = 180;
    m->kv_setup_us = 2000;
    m->kv_block_us = 300;
    coord_config_default(&w->opt.coord);
    w->opt.coord.prefill_replicas = w->opt.coord.decode_replicas = apart;
    prng_seed(&w->prng, 7);
}

static void add(struct world *w, uint32_t prompt_n, uint32_t tokens, uint64_t at_us)
{
    static int32_t prompt[PROMPT];
    for (uint32_t i = 0; i < prompt_n; i++)
        prompt[i] = (int32_t)prng_below(&w->prng, 1000);
    struct coord_submit s = {.prompt_n = prompt_n,
                             .max_tokens = tokens,
                             .sampling = {.seed = 1, .top_p = 1, .repetition_penalty = 1}};
    uint32_t c = client_add(w, &s, prompt);
    world_push(w,
               (struct sim_event){.at_us = at_us, .kind = SIM_CLIENT, .node = -1, .client = c});
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

// p99 of the gaps in ms; negative: not all were answered, or prompts did not go where they should.
static double run(bool apart, bool prompts)
{
    struct world w = {0};
    set_up(&w, apart);
    world_start(&w);
    for (int i = 0; i < STREAMS; i++)
        add(&w, 16, TOKENS, SIM_S(1));
    for (int i = 0; prompts && i < PROMPTS; i++)
        add(&w, PROMPT, 100, SIM_MS(1500 + 800 * i));
    while (world_step(&w, SIM_S(40)))
        ;
    struct coord_stats s;
    coord_stats(w.coord, &s);
    qsort(w.gaps, w.gaps_n, sizeof *w.gaps, by_size);
    double p99 = w.gaps_n ? (double)w.gaps[w.gaps_n * 99 / 100] / 1e3 : -1;
    uint32_t moved = apart && prompts ? PROMPTS : 0;
    if (!clients_finished(&w) || s.transfers[COORD_TRANSFER_MOVED] != moved)
        p99 = -1;
    printf("%-9s %-16s p99 of %zu gaps %7.2f ms, largest %7.2f ms, %" PRIu64
           " prompts moved with their KV\n",
           apart ? "apart" : "together", prompts ? "beside prompts" : "alone", w.gaps_n, p99,
           w.gaps_n ? (double)w.gaps[w.gaps_n - 1] / 1e3 : 0, s.transfers[COORD_TRANSFER_MOVED]);
    world_finish(&w);
    return p99;
}

bool apart_run(void)
{
    double together = run(false, true) / run(false, false);
    double alone = run(true, false), beside = run(true, true);
    bool ok = alone > 0 && beside > 0 && beside < 1.3 * alone;
    printf("beside prompts the p99 is %.2f times that without, together %.2f times\n%s below 1.3\n",
           beside / alone, together, ok ? "holds:" : "BROKEN:");
    return ok;
}
