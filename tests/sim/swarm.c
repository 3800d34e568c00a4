// A run from a seed: sizes, limits, clients and fault classes are drawn at random ("swarm testing",
// Groce et al., ISSTA'12: leaving whole classes out finds more than a bit of everything). After a
// while everything is healed, and then every accepted request must end, every replica must serve
// again, and nothing may be left over.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tests/sim/world.h"

struct swarm {
    bool classes[FAULT_CLASSES];
    uint32_t classes_n;
    uint64_t mean_gap_us; // between two faults
    uint64_t heal_us;
};

enum { PROBE_ANSWER = 6 };

static void draw_mock(struct world *w)
{
    struct mock_config *m = &w->opt.mock;
    *m = mock_config_default();
    m->vocab = (uint32_t)world_between(w, 50, 5000);
    m->block_tokens = world_chance(w, 0.5) ? 4 : 16;
    m->max_context = (uint32_t)world_between(w, 96, 200) + (w->opt.long_prompts ? 80 : 0);
    m->max_seqs = (uint32_t)world_between(w, 1, 8);
    uint32_t per_seq = m->max_context / m->block_tokens + 1;
    m->kv_blocks = per_seq * (uint32_t)world_between(w, 1, m->max_seqs) + 2;
    m->max_rows = (uint32_t)world_between(w, 16, 128);
    m->fingerprint = 0xfeed;
    m->form_us = SIM_MS(world_between(w, 20, 800));
    m->step_us = world_between(w, 1000, 20000);
    m->row_us = world_between(w, 1, 100);
    m->detect_us = world_between(w, 1000, 50000);
    m->kv_setup_us = world_between(w, 0, 20000);
    m->kv_block_us = world_between(w, 1, world_chance(w, 0.5) ? 50000 : 2000);
    m->kv_stop_us = world_between(w, 0, 30000);
    m->link_timeout_us = SIM_S(5);
}

static void draw_coord(struct world *w)
{
    struct coord_config *k = &w->opt.coord;
    coord_config_default(k);
    k->warmup_timeout_ms = 10000;
    k->reload_timeout_ms = 3000;
    k->backoff_max_ms = 2000;
    k->stable_ms = 3000;
    k->default_deadline_ms = 0;
    k->grace_ms = (uint32_t)world_between(w, 200, 3000);
    k->retention_ms = (uint32_t)world_between(w, 100, 3000);
    k->poison_faults = k->poison_losses = 1000; // no request of a swarm is to blame
    k->ageing_ms = world_chance(w, 0.5) ? (uint32_t)world_between(w, 100, 3000) : 0;
    k->ageing_band = (uint8_t)world_between(w, 0, 9);
    k->preempt_limit = (uint32_t)world_between(w, 0, 3);
    if (world_chance(w, 0.3))
        k->prefix_blocks = (uint32_t)world_between(w, 0, 200);
    k->circuit_failures = (uint32_t)world_between(w, 0, 4);
    k->circuit_open_ms = (uint32_t)world_between(w, 50, 3000);
    k->circuit_trials = (uint32_t)world_between(w, 1, 4);
    if (world_chance(w, 0.5)) {
        k->retry_percent = (uint32_t)world_between(w, 0, 100);
        k->retry_burst_tokens = (uint32_t)world_between(w, 0, 300);
    }
    k->tenants_limit = (uint32_t)world_between(w, 0, 3);
    for (int b = 0; b < 10; b++)
        if (world_chance(w, 0.1))
            k->band_deadline_ms[b] = (uint32_t)world_between(w, 100, 5000);
    if (world_chance(w, 0.2))
        k->other_tenants.tokens_per_s = (uint32_t)world_between(w, 20, 500);
    if (world_chance(w, 0.3))
        k->queue_limit = (uint32_t)world_between(w, 1, 10);
    if (world_chance(w, 0.2))
        k->retain_limit = (uint32_t)world_between(w, 0, 5);
}

static void draw_tenants(struct world *w)
{
    static const char *const names[] = {"gold", "silver", "tin"};
    static struct coord_tenant tenants[3];
    for (int i = 0; i < 3; i++)
        tenants[i] = (struct coord_tenant){
            .name = names[i],
            .weight = (uint32_t)world_between(w, 0, 5),
            .tokens_per_s = world_chance(w, 0.2) ? (uint32_t)world_between(w, 20, 500) : 0,
            .burst_tokens = world_chance(w, 0.5) ? (uint32_t)world_between(w, 1, 300) : 0,
            .max_band = world_chance(w, 0.3) ? (uint8_t)world_between(w, 0, 9) : 9,
        };
    w->opt.coord.tenants = tenants;
    w->opt.coord.tenants_n = (uint32_t)world_between(w, 0, 3);
}

// The right answer is known beforehand where nodes lie: what can be learned depends on who speaks
// first.
static void draw_probes(struct world *w, bool lies)
{
    static int32_t prompt[8], expect[PROBE_ANSWER];
    struct coord_config *k = &w->opt.coord;
    k->quarantine_ms = (uint32_t)world_between(w, 100, 2000);
    k->quarantine_percent = (uint32_t)world_between(w, 0, 60);
    k->trial_ms = world_chance(w, 0.5) ? (uint32_t)world_between(w, 100, 3000) : 0;
    k->flap_limit = (uint32_t)world_between(w, 0, 6);
    k->slow_factor = (float)world_between(w, 2, 4);
    k->slow_ms = world_chance(w, 0.5) ? (uint32_t)world_between(w, 200, 2000) : 0;
    if (!lies && world_chance(w, 0.4))
        return;
    for (int i = 0; i < 8; i++)
        prompt[i] = (int32_t)prng_below(&w->prng, w->opt.mock.vocab);
    k->probe_prompt = prompt;
    k->probe_prompt_n = 8;
    k->probe_tokens_n = (uint32_t)world_between(w, 1, PROBE_ANSWER);
    k->probe_interval_ms = (uint32_t)world_between(w, 100, 4000);
    k->probe_timeout_ms = (uint32_t)world_between(w, 3000, 6000);
    k->probe_failures = (uint32_t)world_between(w, 1, 4);
    struct mock_stream s;
    mock_stream_init(&s, prompt, 8, w->opt.mock.vocab);
    for (uint32_t i = 0; i < k->probe_tokens_n; i++)
        expect[i] = mock_stream_next(&s);
    if (lies || world_chance(w, 0.5))
        k->probe_expect = expect;
}

static void draw_breakers(struct world *w)
{
    static struct coord_breaker rules[3];
    for (int i = 0; i < 3; i++)
        rules[i] = (struct coord_breaker){
            .metric = (enum coord_breaker_metric)world_between(w, 0, BREAKER_METRICS - 1),
            .below = world_chance(w, 0.3),
            .threshold = (double)world_between(w, 0, 100),
            .for_ms = (uint32_t)world_between(w, 0, 2000),
            .action = world_chance(w, 0.7) ? BREAKER_REJECT_LOW : BREAKER_STOP_ADMISSION,
            .value = (uint32_t)world_between(w, 0, 9),
        };
    w->opt.coord.breakers = rules;
    w->opt.coord.breakers_n = world_chance(w, 0.2) ? (uint32_t)world_between(w, 1, 3) : 0;
}

static void draw_roles(struct world *w)
{
    struct coord_config *k = &w->opt.coord;
    if (w->opt.long_prompts && w->opt.replicas > 1)
        k->prefill_replicas = (uint32_t)world_between(w, 1, w->opt.replicas - 1);
    if (k->prefill_replicas || !world_chance(w, 0.5))
        return;
    k->prefill_replicas = (uint32_t)world_between(w, 0, w->opt.replicas);
    k->decode_replicas = (uint32_t)world_between(w, 0, w->opt.replicas - k->prefill_replicas);
}

// Sometimes the replicas are of two pools: of one model with weights or with classes of prompts, or
// of two models.
static void draw_pools(struct world *w)
{
    static struct coord_pool pools[2];
    struct sim_options *o = &w->opt;
    if (o->replicas < 2 || !world_chance(w, 0.4))
        return;
    bool models = world_chance(w, 0.4), classes = !models && world_chance(w, 0.5);
    for (int i = 0; i < 2; i++)
        pools[i] = (struct coord_pool){
            .name = i ? "two" : "one",
            .model = i && models ? "small" : "big",
            .model_dir = "models/sample",
            .stages = o->stages,
            .tensor = o->tensor,
            .weight = (uint32_t)world_between(w, 1, 4),
            .prompt_max = !i && classes ? (uint32_t)world_between(w, 1, 40) : 0,
            .probe_prompt = o->coord.probe_prompt,
            .probe_prompt_n = o->coord.probe_prompt_n,
            .probe_expect = o->coord.probe_expect,
        };
    pools[0].replicas = (uint32_t)world_between(w, 1, o->replicas - 1);
    pools[1].replicas = o->replicas - pools[0].replicas;
    for (int i = 0; i < 2 && o->coord.prefill_replicas; i++)
        pools[i].prefill_replicas = (uint32_t)world_between(w, 0, pools[i].replicas);
    o->coord.pools = pools;
    o->coord.pools_n = 2;
}

static void draw_kv(struct world *w)
{
    struct coord_config *k = &w->opt.coord;
    k->kv_move = world_chance(w, 0.9);
    k->kv_min_tokens = (uint32_t)world_between(w, 0, 40);
    k->long_prompt_tokens = (uint32_t)world_between(w, 1, w->opt.long_prompts ? 20 : 60);
    k->kv_lease_ms = (uint32_t)world_between(w, 20, world_chance(w, 0.5) ? 200 : 3000);
    k->kv_retry_ms = (uint32_t)world_between(w, 0, 500);
}

// Replicas come and go with the load; there are nodes for all of them.
static void draw_elastic(struct world *w)
{
    struct elastic_config *e = &w->opt.coord.elastic;
    if (w->opt.coord.pools_n || !world_chance(w, 0.3))
        return;
    e->min = (uint32_t)world_between(w, 1, w->opt.replicas);
    e->max = w->opt.replicas;
    e->up_n = (uint32_t)world_between(w, 1, 3);
    for (uint32_t i = 0; i < e->up_n; i++)
        e->up[i] = (struct elastic_step){100 + 400 * i, (uint32_t)world_between(w, 1, 3)};
    e->up_window_ms = (uint32_t)world_between(w, 0, 1000);
    e->down_window_ms = (uint32_t)world_between(w, 0, 3000);
    e->down_percent = (uint32_t)world_between(w, 20, 100);
    e->hold_ms = (uint32_t)world_between(w, 0, 5000);
}

static void draw_options(struct world *w)
{
    struct sim_options *o = &w->opt;
    o->replicas = (uint32_t)world_between(w, 1, 4);
    o->stages = (uint32_t)world_between(w, 1, 3);
    o->tensor = (uint32_t)world_between(w, 1, world_chance(w, 0.3) ? 3 : 2);
    o->nodes = o->replicas * o->stages * o->tensor + (uint32_t)world_between(w, 0, 2);
    o->hosts = (uint32_t)world_between(w, 1, o->nodes);
    o->long_prompts = world_chance(w, 0.3);
    o->delay_min_us = world_between(w, 50, 1000);
    o->delay_max_us = o->delay_min_us + world_between(w, 0, 20000);
    o->pulse_channel = world_chance(w, 0.5);
    o->late = world_chance(w, 0.5);
    o->lose_reports = world_chance(w, 0.3);
    draw_mock(w);
    draw_coord(w);
    draw_tenants(w);
    draw_breakers(w);
    draw_roles(w);
    draw_kv(w);
}

static void draw_stop_ids(struct world *w, struct coord_submit *s)
{
    if (!world_chance(w, 0.3))
        return;
    s->stop_ids_n = (uint32_t)world_between(w, 1, 3);
    for (uint32_t i = 0; i < s->stop_ids_n; i++)
        s->stop_ids[i] = (int32_t)prng_below(&w->prng, w->opt.mock.vocab);
}

static uint64_t maybe(struct world *w, double p, uint64_t from_us, uint64_t span_us)
{
    return world_chance(w, p) ? from_us + prng_below(&w->prng, span_us) : 0;
}

static void draw_client(struct world *w, uint64_t span_us)
{
    static const struct sampling greedy = {.seed = 1, .top_p = 1, .repetition_penalty = 1};
    int32_t prompt[128];
    struct coord_submit s = {.sampling = greedy};
    s.prompt_n = (uint32_t)world_between(w, 1, w->opt.long_prompts ? 120 : 48);
    // A few families of prompts share their beginnings.
    uint64_t family = world_between(w, 0, 3);
    uint32_t shared = w->opt.long_prompts ? 100 : 24;
    for (uint32_t i = 0; i < s.prompt_n; i++)
        prompt[i] = (int32_t)(i < shared && family ? (family * 7 + i) % w->opt.mock.vocab
                                                   : prng_below(&w->prng, w->opt.mock.vocab));
    s.max_tokens = world_chance(w, 0.1) ? 0 : (uint32_t)world_between(w, 1, 48);
    static const char *const tenants[] = {NULL, "", "gold", "silver", "tin", "lead", "mud"};
    s.band = (uint8_t)world_between(w, 0, 9);
    s.tenant = tenants[world_between(w, 0, 6)];
    if (w->opt.coord.pools_n && world_chance(w, 0.5))
        s.model = w->opt.coord.pools[world_between(w, 0, 1)].model;
    s.session = world_chance(w, 0.3) ? world_between(w, 1, 5) : 0;
    s.deadline_us = maybe(w, 0.1, SIM_MS(200), SIM_S(5)); // after the submit
    draw_stop_ids(w, &s);
    uint32_t i = client_add(w, &s, prompt);
    struct sim_client *c = &w->clients[i];
    uint64_t at = prng_below(&w->prng, span_us);
    c->stop_at = world_chance(w, 0.15) ? (uint32_t)world_between(w, 1, 30) : 0;
    c->cancel_us = maybe(w, 0.1, at, SIM_S(3));
    c->leave_us = maybe(w, 0.25, at, SIM_S(2));
    c->return_us = c->leave_us ? maybe(w, 0.8, c->leave_us, SIM_S(3)) : 0;
    world_push(w, (struct sim_event){.at_us = at, .kind = SIM_CLIENT, .node = -1, .client = i});
}

static void draw_faults(struct world *w, struct swarm *s)
{
    for (int f = 0; f < FAULT_CLASSES; f++) {
        s->classes[f] = world_chance(w, 0.35);
        s->classes_n += s->classes[f];
    }
    if (s->classes[FAULT_ROLLOUT] && s->classes[FAULT_LIE]) { // who lies says what no version does
        s->classes[FAULT_LIE] = false;
        s->classes_n--;
    }
    s->mean_gap_us = SIM_MS(world_between(w, 60, 2000));
    s->heal_us = SIM_S(world_between(w, 3, 12));
}

static void some_fault(struct world *w, const struct swarm *s)
{
    uint64_t k = prng_below(&w->prng, s->classes_n);
    for (int f = 0; f < FAULT_CLASSES; f++)
        if (s->classes[f] && k-- == 0) {
            fault_inject(w, (enum fault_class)f);
            return;
        }
}

static void run_until(struct world *w, uint64_t t_us)
{
    while (world_step(w, t_us))
        ;
    w->now_us = t_us;
}

static void run_faults(struct world *w, const struct swarm *s, uint64_t until_us)
{
    while (s->classes_n && w->now_us < s->heal_us && w->now_us < until_us) {
        uint64_t next = w->now_us + (uint64_t)prng_exp(&w->prng, (double)s->mean_gap_us) + 1;
        run_until(w, next < s->heal_us ? next : s->heal_us);
        if (w->now_us < s->heal_us)
            some_fault(w, s);
    }
    run_until(w, s->heal_us < until_us ? s->heal_us : until_us);
}

static bool note_unfinished(void *arg, const struct coord_request_view *v)
{
    struct world *w = arg;
    if (v->state <= COORD_REQ_CLOSING)
        world_trace(w,
                    "left over: request %" PRIu64 " is %s, replica %" PRIu64
                    ", token %u, %u dispatches, prompt %u, at most %u, band %u",
                    v->id, coord_request_state_name(v->state), v->replica, v->tokens_n,
                    v->dispatches, v->prompt_n, v->max_tokens, v->band);
    return true;
}

static bool note_unready(void *arg, const struct coord_replica_view *v)
{
    struct world *w = arg;
    if (v->state != COORD_REPLICA_READY)
        world_trace(w, "left over: replica %" PRIu64 " is %s: %s", v->id,
                    coord_replica_state_name(v->state), v->fault);
    return true;
}

static bool note_node(void *arg, const struct coord_node_view *v)
{
    world_trace(arg, "left over: node %s is %s", v->name, coord_node_state_name(v->state));
    return true;
}

// No block of a lead that computes nothing is held for anybody.
static bool kv_free(struct world *w)
{
    for (uint32_t i = 0; i < w->opt.nodes; i++) {
        struct node *core = w->nodes[i].core;
        struct rank_progress idle = {0};
        struct msg_heartbeat h;
        node_heartbeat(node_pulse(core), &idle, w->now_us, &h);
        if (!node_sequences(core) && h.kv_free != h.kv_blocks)
            return false;
    }
    return true;
}

static bool settled(struct world *w)
{
    if (!w->coord)
        return false;
    struct coord_stats s;
    coord_stats(w->coord, &s);
    uint32_t transfers = 0, sequences = 0,
             probes = w->opt.coord.probe_prompt_n ? w->opt.replicas : 0;
    for (uint32_t i = 0; i < w->opt.nodes; i++) {
        sequences += node_sequences(w->nodes[i].core);
        transfers += node_transfers(w->nodes[i].core);
    }
    return clients_finished(w) && s.replicas_ready == s.replicas && rollout_is_over(w) &&
           !s.retained && s.credits_free == s.credits && sequences <= probes &&
           s.nodes == w->opt.nodes && !s.transferring && !transfers && kv_free(w) &&
           w->admin_sent == w->admin_done;
}

static void check_liveness(struct world *w, uint64_t bound_us)
{
    uint64_t until = w->now_us + bound_us;
    while (!settled(w) && w->now_us < until)
        run_until(w, w->now_us + SIM_MS(500));
    if (settled(w))
        return;
    coord_each_request(w->coord, note_unfinished, w);
    coord_each_replica(w->coord, note_unready, w);
    coord_each_node(w->coord, note_node, w);
    for (size_t i = 0; i < w->clients_n; i++)
        if (w->clients[i].stage <= CLIENT_LIVE)
            world_trace(w, "left over: client %zu waits at token %u", i + 1, w->clients[i].seen_n);
    world_fail(w,
               "not all requests ended, not all replicas serve, or work is left over, %" PRIu64
               " s after the last "
               "fault; commands sent %" PRIu64 ", answered %" PRIu64,
               bound_us / 1000000, w->admin_sent, w->admin_done);
}

// At rest the coordinator knows exactly what the leads have cached, but for what is under way:
// golden probes go on.
struct cache_judge {
    const struct world *w;
    uint64_t wrong; // a replica; 0 = none
};

static bool judge_cache(void *arg, const struct coord_replica_view *v)
{
    struct cache_judge *j = arg;
    const struct world *w = j->w;
    for (uint32_t i = 0; v->state == COORD_REPLICA_READY && i < w->opt.nodes; i++) {
        const struct node *n = w->nodes[i].core;
        if (node_replica(n) == v->id && node_epoch(n) == v->epoch && node_is_lead(n) &&
            node_cache_digest(n) != v->cache_digest)
            j->wrong = v->id;
    }
    return true;
}

static void check_caches(struct world *w)
{
    struct cache_judge j = {.w = w, .wrong = 1};
    if (w->opt.lose_reports || w->opt.coord.prefix_blocks < 4096)
        return;
    for (int tries = 0; j.wrong && tries < 100; tries++) {
        run_until(w, w->now_us + SIM_MS(37));
        j.wrong = 0;
        if (w->coord)
            coord_each_replica(w->coord, judge_cache, &j);
    }
    if (j.wrong)
        world_fail(w, "of replica %" PRIu64 " other blocks are known than are cached", j.wrong);
}

static void report(const struct world *w, struct swarm_report *sum)
{
    struct coord_stats s;
    coord_stats(w->coord, &s);
    sum->steps += w->steps;
    sum->tokens += w->tokens;
    sum->requests += w->clients_n;
    sum->moves += s.moves;
    sum->fences += s.fences;
    sum->preemptions += s.preemptions;
    sum->takeovers += w->takeovers;
    sum->restored += w->restored;
    sum->probes += s.probes;
    sum->rollouts += s.rollouts;
    sum->rollouts_done += s.rollouts_done;
    sum->rollouts_reverted += s.rollouts_reverted;
    sum->loans += s.loans;
    sum->scaled += s.scaled;
    sum->quarantines += s.quarantines;
    for (size_t i = 0; i < w->clients_n; i++)
        sum->lies += w->clients[i].lies;
    sum->stale += w->stale_offered;
    sum->sources += w->sources_named;
    sum->virtual_us += w->now_us;
    for (int i = 0; i < COORD_TRANSFER_ENDS; i++)
        sum->transfers += s.transfers[i];
    sum->kv_moved += s.transfers[COORD_TRANSFER_MOVED];
    sum->apart += s.prompts_apart;
}

void swarm_run(uint64_t seed, bool print, uint64_t until_us, struct swarm_report *sum)
{
    struct world w = {.seed = seed, .print = print, .messages = print};
    struct swarm s = {0};
    prng_seed(&w.prng, seed);
    draw_options(&w);
    draw_faults(&w, &s);
    draw_probes(&w, s.classes[FAULT_LIE]);
    if (s.classes[FAULT_ROLLOUT])
        rollout_draw(&w, s.heal_us);
    else
        draw_pools(&w);
    draw_elastic(&w);
    w.opt.standby = s.classes[FAULT_COORD];
    w.opt.follower_clients = w.opt.standby && world_chance(&w, 0.7);
    if (w.opt.standby) // an end that is not kept cannot be told by a successor
        w.opt.coord.retain_limit = 4096;
    // What is computed again is the same only where nobody lies.
    w.opt.copy_mode = s.classes[FAULT_LIE] || s.classes[FAULT_ROLLOUT] || world_chance(&w, 0.7)
                          ? COPY_SYNC
                          : COPY_ASYNC;
    uint32_t clients = (uint32_t)world_between(&w, 1, 40);
    world_trace(&w, "%u replicas of %u x %u on %u nodes, %u clients", w.opt.replicas, w.opt.stages,
                w.opt.tensor, w.opt.nodes, clients);
    world_start(&w);
    for (uint32_t i = 0; i < clients; i++)
        draw_client(&w, s.heal_us);
    run_faults(&w, &s, until_us);
    if (w.now_us < until_us) {
        while (!w.coord) // its standby is about to take over
            run_until(&w, w.now_us + SIM_MS(500));
        faults_heal(&w);
        check_liveness(&w, SIM_S(600)); // a slow version with one place takes its time
        check_caches(&w);
    }
    report(&w, sum);
    world_finish(&w);
}
