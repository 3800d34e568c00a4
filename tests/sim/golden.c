// Named scenarios: a small cluster, a script, and the story of it in words. The stories are kept in
// traces/ and compared exactly: they are the readable specification of who notices what, when, and
// what then.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/world.h"

struct scenario {
    const char *name;
    const char *about; // first line of the trace
    uint32_t replicas, stages, tensor, nodes;
    uint32_t clients, tokens; // so many requests at 1000 ms, of so many tokens each
    uint32_t until_ms;
    void (*script)(struct world *w);  // plans calls
    void (*options)(struct world *w); // changes what is set up; NULL = nothing
};

// ---- what scripts are made of ----

static void kill_node(struct world *w, int i)
{
    world_tell(w, "script > kill -9 node %s", w->nodes[i].name);
    node_crash(w, i, false);
}

static void start_node(struct world *w, int i)
{
    world_tell(w, "script > start node %s", w->nodes[i].name);
    node_start(w, i);
}

static void stop_node(struct world *w, int i)
{
    world_tell(w, "script > SIGSTOP node %s", w->nodes[i].name);
    node_stop(w, i, true);
}

static void continue_node(struct world *w, int i)
{
    world_tell(w, "script > SIGCONT node %s", w->nodes[i].name);
    node_stop(w, i, false);
}

static void hang_engine(struct world *w, int i)
{
    world_tell(w, "script > the engine of node %s hangs in a collective", w->nodes[i].name);
    engine_mock_hang(w->nodes[i].engine, true);
    w->nodes[i].woken = true;
}

static void unhang_engine(struct world *w, int i)
{
    world_tell(w, "script > the engine of node %s goes on", w->nodes[i].name);
    engine_mock_hang(w->nodes[i].engine, false);
    w->nodes[i].woken = true;
}

static void cut_off(struct world *w, int i)
{
    world_tell(w, "script > node %s cannot reach the coordinator", w->nodes[i].name);
    net_partition(w, i, true);
}

static void heal(struct world *w, int i)
{
    world_tell(w, "script > node %s can reach it again", w->nodes[i].name);
    net_partition(w, i, false);
}

static void nan_step(struct world *w, int i)
{
    world_tell(w, "script > the next step of node %s gives NaN", w->nodes[i].name);
    engine_mock_fail_step(w->nodes[i].engine, 0, STATUS_NODE_NAN);
}

static void drain_node(struct world *w, int i)
{
    admin_send(w, COORD_DRAIN, w->nodes[i].name, 0);
}

static void undrain_node(struct world *w, int i)
{
    admin_send(w, COORD_UNDRAIN, w->nodes[i].name, 0);
}

static void replay_old_tokens(struct world *w, int i)
{
    struct coord_request_view v;
    if (!coord_request_find(w->coord, 1, &v))
        world_fail(w, "request 1 is gone");
    const struct token_out t = {.request = 1, .index = v.tokens_n, .token = 7};
    struct msg m = {.kind = MSG_TOKENS,
                    .tokens = {.replica = 1, .epoch = 1, .tokens = &t, .tokens_n = 1}};
    struct coord_stats before, after;
    coord_stats(w->coord, &before);
    world_tell(w, "script > node %s sends tokens of epoch 1, replica 1 is at epoch %" PRIu64,
               w->nodes[i].name, w->epochs[1]);
    world_coord(w, &(struct coord_event){.kind = COORD_NODE_MSG, .node = {w->nodes[i].conn, &m}});
    coord_stats(w->coord, &after);
    world_tell(w, "coord > %" PRIu64 " message of an old epoch dropped",
               after.stale_dropped - before.stale_dropped);
}

static bool tell_replica(void *arg, const struct coord_replica_view *v)
{
    world_tell(arg, "coord > replica %" PRIu64 " is %s with %u requests", v->id,
               coord_replica_state_name(v->state), v->running);
    return true;
}

static void show(struct world *w, int arg)
{
    coord_each_replica(w->coord, tell_replica, w);
}

static void at(struct world *w, uint32_t ms, void (*fn)(struct world *, int), int node)
{
    world_call(w, SIM_MS(ms), fn, node - 1); // nodes by name
}

// ---- scenarios ----

static void script_kill(struct world *w)
{
    at(w, 1200, kill_node, 2);
    at(w, 1700, start_node, 2);
}

static void script_hang(struct world *w)
{
    at(w, 1200, hang_engine, 4);
    at(w, 5000, unhang_engine, 4);
}

static void script_stop(struct world *w)
{
    at(w, 1200, stop_node, 1);
    at(w, 4000, continue_node, 1);
}

static void script_drain(struct world *w)
{
    at(w, 1100, show, 1);
    at(w, 1200, drain_node, 1);
    at(w, 1400, show, 1);
    at(w, 3000, undrain_node, 1);
}

static void script_restart(struct world *w)
{
    at(w, 60, kill_node, 2);
    at(w, 300, start_node, 2);
}

static void script_partition(struct world *w)
{
    at(w, 1200, cut_off, 1);
    at(w, 4000, heal, 1);
}

static void script_fencing(struct world *w)
{
    at(w, 1200, nan_step, 1);
    at(w, 1600, replay_old_tokens, 1);
}

static void script_stop_string(struct world *w)
{
    w->clients[0].stop_at = 10;
}

static void script_reattach(struct world *w)
{
    w->clients[0].leave_us = SIM_MS(1100);
    w->clients[0].return_us = SIM_MS(2500);
    w->clients[1].leave_us = SIM_MS(1100); // and never comes back
}

static void add_urgent(struct world *w, int arg)
{
    const int32_t prompt[4] = {900, 901, 902, 903};
    struct coord_submit s = {.prompt_n = 4,
                             .max_tokens = 10,
                             .band = 9,
                             .sampling = {.seed = 1, .top_p = 1, .repetition_penalty = 1}};
    uint32_t c = client_add(w, &s, prompt);
    world_tell(w, "client %" PRIu64 " > asks in band 9", w->clients[c].id);
    client_run(w, c);
}

static void script_gives_way(struct world *w)
{
    w->tell_all = true;
    at(w, 1200, add_urgent, 1);
}

static void add_long(struct world *w, int arg)
{
    int32_t prompt[300];
    for (int i = 0; i < 300; i++)
        prompt[i] = 500 + i;
    struct coord_submit s = {.prompt_n = 300,
                             .max_tokens = 40,
                             .sampling = {.seed = 1, .top_p = 1, .repetition_penalty = 1}};
    uint32_t c = client_add(w, &s, prompt);
    world_tell(w, "client %" PRIu64 " > asks with a prompt of 300 tokens", w->clients[c].id);
    client_run(w, c);
}

static void roles(struct world *w)
{
    w->opt.coord.prefill_replicas = 1;
    w->opt.coord.long_prompt_tokens = 100;
    w->opt.mock.kv_setup_us = SIM_MS(2);
    w->opt.mock.kv_block_us = SIM_MS(1);
}

static void script_apart(struct world *w)
{
    w->tell_all = true;
    at(w, 1200, add_long, 1);
}

static void script_source_dies(struct world *w)
{
    w->tell_all = true;
    at(w, 1200, add_long, 1);
    at(w, 1213, kill_node, 1);
}

static void script_target_dies(struct world *w)
{
    w->tell_all = true;
    at(w, 1200, add_long, 1);
    at(w, 1213, kill_node, 2);
    at(w, 1300, start_node, 2);
}

static void lie(struct world *w, int i)
{
    world_tell(w, "script > node %s begins to answer wrong tokens", w->nodes[i].name);
    node_lie(w, i, true);
}

static void tell_truth(struct world *w, int i)
{
    world_tell(w, "script > node %s is mended", w->nodes[i].name);
    node_lie(w, i, false);
}

static void slow_down(struct world *w, int i)
{
    world_tell(w, "script > node %s takes five times as long", w->nodes[i].name);
    engine_mock_slow(w->nodes[i].engine, 5);
}

static void probes(struct world *w)
{
    static const int32_t prompt[] = {11, 12, 13, 14};
    struct coord_config *k = &w->opt.coord;
    k->probe_prompt = prompt;
    k->probe_prompt_n = 4;
    k->probe_tokens_n = 4;
    k->probe_interval_ms = 500;
    k->probe_timeout_ms = 1000;
    k->quarantine_ms = 2000;
    k->trial_ms = 500;
    k->slow_ms = 1000;
}

static void with_standby(struct world *w)
{
    w->opt.standby = true;
    w->opt.copy_mode = COPY_SYNC;
}

static void kill_coordinator(struct world *w, int arg)
{
    standby_kill_leader(w, 300);
}

static void script_coordinator_dies(struct world *w)
{
    at(w, 1200, kill_coordinator, 1);
    at(w, 3200, kill_coordinator, 1);
}

static void versions(struct world *w)
{
    rollout_draw(w, 0);
}

static void versions_with_standby(struct world *w)
{
    versions(w);
    with_standby(w);
}

static void roll(struct world *w, int version) // as in rollout.c
{
    struct coord_admin a = {.op = COORD_ROLLOUT_START, .target = "model"};
    rollout_plan_default(&a.plan);
    a.plan.steps[0] = 34;
    a.plan.steps[1] = 100;
    a.plan.steps_n = 2;
    a.plan.dwell_ms = 800;
    a.plan.min_requests = 2;
    a.plan.agree_percent = 0;
    rollout_send(w, &a, version);
}

static void add_short(struct world *w, int tokens)
{
    int32_t prompt[8];
    struct coord_submit s = {.prompt_n = 8,
                             .max_tokens = (uint32_t)tokens,
                             .sampling = {.seed = 1, .top_p = 1, .repetition_penalty = 1}};
    for (int i = 0; i < 8; i++)
        prompt[i] = (int32_t)((w->clients_n * 8 + (size_t)i) % w->opt.mock.vocab);
    uint32_t c = client_add(w, &s, prompt);
    world_push(w,
               (struct sim_event){.at_us = w->now_us, .kind = SIM_CLIENT, .node = -1, .client = c});
}

static void script_rollout(struct world *w)
{
    at(w, 1200, roll, 1 + 1);
    for (uint32_t ms = 1600; ms < 3600; ms += 400)
        at(w, ms, add_short, 12);
}

static void script_rollout_slow(struct world *w)
{
    at(w, 1200, roll, 3 + 1);
    for (uint32_t ms = 1300; ms < 4000; ms += 100)
        at(w, ms, add_short, 8);
}

static void script_rollout_broken(struct world *w)
{
    at(w, 1200, roll, 4 + 1);
    at(w, 1900, kill_coordinator, 0);
}

static void elastic(struct world *w)
{
    w->opt.coord.elastic = (struct elastic_config){.min = 1,
                                                   .max = 2,
                                                   .up = {{200, 1}},
                                                   .up_n = 1,
                                                   .down_window_ms = 3000,
                                                   .down_percent = 60,
                                                   .hold_ms = 5000};
}

static void script_lies(struct world *w)
{
    at(w, 1200, lie, 2);
    at(w, 3000, tell_truth, 2);
}

static void script_liar_of_two(struct world *w)
{
    at(w, 1200, lie, 4);
}

static void script_slow(struct world *w)
{
    at(w, 1100, slow_down, 2);
}

static const struct scenario scenarios[] = {
    {"kill-a-rank", "a rank is killed under load: its requests go on elsewhere, it comes back", 2,
     2, 1, 4, 6, 60, 4000, script_kill, NULL},
    {"hang", "a rank hangs in a collective: it is named, fenced, and used again when it moves", 2,
     2, 1, 4, 6, 120, 7000, script_hang, NULL},
    {"stopped-process", "a process is stopped and goes on later as a stale one", 2, 2, 1, 4, 6, 80,
     5500, script_stop, NULL},
    {"drain-under-load", "a node is drained: its replica hands over and is formed of a spare", 2, 2,
     1, 5, 6, 80, 4000, script_drain, NULL},
    {"restart-during-form", "a rank dies while the replica loads weights", 1, 2, 2, 4, 2, 20, 3000,
     script_restart, NULL},
    {"partition-and-heal", "a node is cut off from the coordinator, then heals", 2, 2, 1, 4, 6, 80,
     5500, script_partition, NULL},
    {"old-epoch-refused", "a step gives NaN; later tokens of the fenced epoch come: dropped", 1, 1,
     1, 1, 2, 60, 3500, script_fencing, NULL},
    {"stop-string", "the shell finds a stop string: the rest is cancelled", 1, 1, 1, 1, 1, 60, 2500,
     script_stop_string, NULL},
    {"wrong-answers",
     "a node answers wrong tokens: ejected, in quarantine, on trial, trusted again", 3, 1, 1, 3, 6,
     30, 6500, script_lies, probes},
    {"wrong-rank-found", "one of two ranks answers wrong tokens: a spare tells which", 2, 2, 1, 5,
     6, 30, 4000, script_liar_of_two, probes},
    {"straggler", "a node takes five times as long as its peers: measured alone, and ejected", 3, 1,
     1, 3, 12, 300, 4500, script_slow, probes},
    {"coordinator-dies", "the coordinator is killed, and later its successor: every stream goes on",
     2, 2, 1, 4, 6, 200, 6500, script_coordinator_dies, with_standby},
    {"prompt-apart", "one replica computes a long prompt, its KV moves to the one that streams", 2,
     1, 1, 2, 1, 30, 2000, script_apart, roles},
    {"prefill-dies", "the one that computes a long prompt is killed while it sends KV", 2, 1, 1, 2,
     1, 30, 2500, script_source_dies, roles},
    {"kv-target-dies", "the one that KV is sent to is killed: the answer goes on where it is", 2, 1,
     1, 2, 1, 30, 2500, script_target_dies, roles},
    {"rollout",
     "a new version under load: first a third of the requests, then all; the old one is kept", 3, 1,
     1, 3, 6, 60, 4500, script_rollout, versions},
    {"rollout-slow", "a version that takes three times as long is taken back by itself", 2, 1, 1, 2,
     4, 40, 4500, script_rollout_slow, versions},
    {"rollout-broken", "a version that cannot be loaded, and its coordinator dies meanwhile", 2, 1,
     1, 2, 2, 60, 6000, script_rollout_broken, versions_with_standby},
    {"elastic", "who comes waits: a replica is added; when it is not needed any more it goes", 1, 1, 1,
     2, 24, 40, 8000, NULL, elastic},
    {"gives-way", "all places are taken: a request of band 0 gives way to one of band 9", 1, 1, 1,
     1, 8, 60, 2500, script_gives_way, NULL},
    {"re-attach", "one client drops its connection and comes back, one never does", 1, 1, 1, 1, 2,
     250, 6000, script_reattach, NULL},
};

static void set_up(struct world *w, const struct scenario *s)
{
    w->scenario = s->name;
    w->opt = (struct sim_options){
        .replicas = s->replicas,
        .stages = s->stages,
        .tensor = s->tensor,
        .nodes = s->nodes,
        .hosts = 1,
        .mock = mock_config_default(),
        .delay_min_us = 1000,
        .delay_max_us = 1000,
        .pulse_channel = true,
    };
    struct mock_config *m = &w->opt.mock;
    m->vocab = 1000;
    m->max_context = 512;
    m->kv_blocks = 256;
    m->block_tokens = 16;
    m->max_rows = 256;
    m->max_seqs = 8;
    m->form_us = SIM_MS(200);
    m->step_us = SIM_MS(10);
    m->row_us = 10;
    m->detect_us = SIM_MS(20);
    coord_config_default(&w->opt.coord);
    w->opt.coord.grace_ms = 2000;
    prng_seed(&w->prng, 1);
    if (s->options)
        s->options(w);
}

static void add_clients(struct world *w, const struct scenario *s)
{
    for (uint32_t i = 0; i < s->clients; i++) {
        int32_t prompt[8];
        for (uint32_t k = 0; k < 8; k++)
            prompt[k] = (int32_t)(i * 8 + k);
        struct coord_submit sub = {.prompt_n = 8,
                                   .max_tokens = s->tokens,
                                   .sampling = {.seed = 1, .top_p = 1, .repetition_penalty = 1}};
        uint32_t c = client_add(w, &sub, prompt);
        world_push(w, (struct sim_event){
                          .at_us = SIM_MS(1000), .kind = SIM_CLIENT, .node = -1, .client = c});
    }
}

static void run(const struct scenario *s, struct strbuf *out, bool print)
{
    struct world w = {.collect = out, .print = print, .messages = print};
    strbuf_printf(out, "%s\n", s->about);
    set_up(&w, s);
    world_start(&w);
    add_clients(&w, s);
    if (s->script)
        s->script(&w);
    while (world_step(&w, SIM_MS(s->until_ms)))
        ;
    uint64_t longest = 0;
    for (size_t i = 0; i < w.clients_n; i++)
        if (w.clients[i].longest_gap_us > longest)
            longest = w.clients[i].longest_gap_us;
    strbuf_printf(out, "%zu requests, %s, longest pause between two tokens %" PRIu64 " ms\n",
                  w.clients_n, clients_finished(&w) ? "all ended" : "some not ended",
                  longest / 1000);
    world_finish(&w);
}

static bool same_as_file(const char *path, const struct strbuf *got)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    char *kept = malloc(got->n + 1);
    size_t n = kept ? fread(kept, 1, got->n + 1, f) : 0;
    bool same = kept && n == got->n && memcmp(kept, got->v, n) == 0;
    free(kept);
    fclose(f);
    return same;
}

static bool write_file(const char *path, const struct strbuf *text)
{
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(text->v, 1, text->n, f) == text->n;
    if (f && fclose(f) != 0)
        ok = false;
    if (!ok)
        perror(path);
    return ok;
}

int golden_run(const char *dir, bool bless)
{
    int bad = 0;
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
        struct strbuf got = {0};
        char path[1024];
        snprintf(path, sizeof path, "%s/%s.txt", dir, scenarios[i].name);
        run(&scenarios[i], &got, false);
        bool ok = bless ? write_file(path, &got) : same_as_file(path, &got);
        printf("%s %s\n", ok ? (bless ? "wrote" : "same") : "DIFFERS", path);
        if (!ok)
            printf("%s", got.v);
        bad += !ok;
        strbuf_finish(&got);
    }
    return bad;
}

bool golden_print(const char *name)
{
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
        if (strcmp(scenarios[i].name, name) != 0)
            continue;
        struct strbuf out = {0};
        run(&scenarios[i], &out, true);
        printf("---- the golden trace ----\n%s", out.v);
        strbuf_finish(&out);
        return true;
    }
    return false;
}
