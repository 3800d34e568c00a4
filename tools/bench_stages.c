// hadal bench stages: decoding by a whole replica of S stages x T tensor ranks, each rank an engine
// as in a node (node/engine_model.h) on a GPU of its own where there are enough: plans, links,
// hand-over of hidden states and sampling are the service's; only scheduler and HTTP are missing.
// With S stages, S micro-batches are under way.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "kernels/cuda_comm.h"
#include "node/engine_model.h"
#include "tools/bench.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/sample_model.h"

enum { RANKS_MAX = 8, WAIT_S = 120, BLOCK_TOKENS = 32, WARM_UP = 4 };

struct options {
    const char *model, *backend, *random;
    int64_t stages, tensor, batch, context, steps, threads;
    bool json;
};

struct replica {
    const struct options *o;
    uint32_t ranks, slots, blocks_each;
    struct engine *engines[RANKS_MAX];
    int32_t *tokens; // [slots] last of each
    int32_t *prompt; // [context], of all
    uint64_t step;
    struct plan_entry *entries; // [batch]
};

static void no_wake(void *arg)
{
}

static void pause_us(long us)
{
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

static enum status await(struct engine *e, struct engine_event *ev, struct errmsg *err)
{
    double until = bench_now_s() + WAIT_S;
    while (!e->ops->poll(e, ev)) {
        if (bench_now_s() > until)
            return errmsg_set(err, STATUS_DEADLINE, "an engine gave no answer");
        pause_us(2);
    }
    if (ev->kind == ENGINE_FORMED && ev->formed.status != STATUS_OK)
        return errmsg_set(err, ev->formed.status, "%s", ev->formed.text);
    if (ev->kind == ENGINE_FAULT || (ev->kind == ENGINE_STEP && ev->result.status != STATUS_OK))
        return errmsg_set(err, ev->result.status, "the replica broke");
    return STATUS_OK;
}

static enum status create(struct replica *r, struct errmsg *e)
{
    const struct options *o = r->o;
    const struct cuda_comm_ops *cuda = strcmp(o->backend, "cuda") ? NULL : kern_cuda_comm(e);
    int devices = cuda ? cuda->devices() : 0;
    struct engine_model_config c = {
        .backend = strcmp(o->backend, "cuda") ? KERN_CPU : KERN_CUDA,
        .threads = (int)o->threads,
        .max_seqs = r->slots,
        .max_rows = (uint32_t)o->batch,
        .context = r->blocks_each * BLOCK_TOKENS,
        .kv_tokens = (uint64_t)r->slots * r->blocks_each * BLOCK_TOKENS,
        .block_tokens = BLOCK_TOKENS,
        .spin_us = 20,
        .random_weights = o->random != NULL,
    };
    enum status s = STATUS_OK;
    if (o->random && strcmp(o->random, "published")) // that is what config.json says
        s = model_precision_of(o->random, &c.precision, e);
    for (uint32_t i = 0; i < r->ranks && s == STATUS_OK; i++) {
        c.device = devices ? (int)i % devices : 0;
        r->engines[i] = engine_model_create(&c, no_wake, NULL, e);
        s = r->engines[i] ? STATUS_OK : STATUS_INTERNAL;
    }
    return s;
}

static enum status form(struct replica *r, struct errmsg *e)
{
    const struct options *o = r->o;
    char addresses[RANKS_MAX][LIMIT_ADDR];
    struct link_member members[RANKS_MAX];
    struct engine_event ev;
    enum status s = STATUS_OK;
    for (uint32_t i = 0; i < r->ranks; i++)
        r->engines[i]->ops->form(r->engines[i],
                                 &(struct msg_form){.replica = 1,
                                                    .epoch = 1,
                                                    .model_dir = o->model,
                                                    .stages = (uint32_t)o->stages,
                                                    .tensor = (uint32_t)o->tensor,
                                                    .my_stage = i / (uint32_t)o->tensor,
                                                    .my_tensor = i % (uint32_t)o->tensor,
                                                    .transport = TRANSPORT_SHM});
    for (uint32_t i = 0; i < r->ranks && s == STATUS_OK; i++) {
        s = await(r->engines[i], &ev, e);
        if (s == STATUS_OK)
            snprintf(addresses[i], LIMIT_ADDR, "%s", ev.addresses.shm);
        members[i] = (struct link_member){"rank", "here", {addresses[i], "", ""}};
    }
    for (uint32_t i = 0; i < r->ranks && s == STATUS_OK; i++)
        r->engines[i]->ops->link(r->engines[i], &(struct msg_link){.replica = 1,
                                                                   .epoch = 1,
                                                                   .members = members,
                                                                   .members_n = r->ranks});
    for (uint32_t i = 0; i < r->ranks && s == STATUS_OK; i++)
        s = await(r->engines[i], &ev, e);
    return s;
}

static enum status submit(struct replica *r, struct step_plan *plan)
{
    plan->epoch = 1;
    plan->step = ++r->step;
    plan->rows = plan->entries_n;
    return r->engines[0]->ops->submit(r->engines[0], plan);
}

static enum status take_result(struct replica *r, struct errmsg *e)
{
    struct engine_event ev;
    enum status s = await(r->engines[0], &ev, e);
    for (uint32_t i = 0; s == STATUS_OK && i < ev.result.samples_n; i++)
        r->tokens[ev.result.samples[i].slot] = ev.result.samples[i].token;
    return s;
}

// A sequence whose context nobody computed: its keys and values are what the pool holds.
static enum status open_slot(struct replica *r, uint32_t slot, struct errmsg *e)
{
    const uint32_t n = (uint32_t)r->o->context;
    uint32_t *blocks = mem_zalloc(r->blocks_each, sizeof *blocks);
    for (uint32_t i = 0; i < r->blocks_each; i++)
        blocks[i] = slot * r->blocks_each + i;
    struct plan_open open = {.slot = slot,
                             .sampling = {.top_p = 1, .repetition_penalty = 1},
                             .tokens = r->prompt,
                             .tokens_n = n,
                             .prompt_n = n};
    struct plan_entry entry = {.slot = slot,
                               .pos = n - 1,
                               .n = 1,
                               .sample = true,
                               .tokens = &r->prompt[n - 1],
                               .new_blocks = blocks,
                               .new_blocks_n = r->blocks_each};
    struct step_plan plan = {.opens = &open, .opens_n = 1, .entries = &entry, .entries_n = 1};
    enum status s = submit(r, &plan);
    s = s == STATUS_OK ? take_result(r, e) : s;
    free(blocks);
    return s;
}

// One row of each sequence of a micro-batch.
static enum status submit_group(struct replica *r, uint32_t group, uint32_t pos)
{
    const uint32_t n = (uint32_t)r->o->batch;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = group * n + i;
        r->entries[i] = (struct plan_entry){
            .slot = slot, .pos = pos, .n = 1, .sample = true, .tokens = &r->tokens[slot]};
    }
    return submit(r, &(struct step_plan){.entries = r->entries, .entries_n = n});
}

// Rounds of all micro-batches, each submitted again as soon as its tokens are there.
static enum status run_rounds(struct replica *r, uint32_t first, uint32_t rounds, struct errmsg *e)
{
    const uint32_t groups = (uint32_t)r->o->stages;
    enum status s = STATUS_OK;
    for (uint32_t g = 0; g < groups && s == STATUS_OK; g++)
        s = submit_group(r, g, first);
    for (uint32_t i = 1; i <= rounds && s == STATUS_OK; i++)
        for (uint32_t g = 0; g < groups && s == STATUS_OK; g++) {
            s = take_result(r, e);
            if (s == STATUS_OK && i < rounds)
                s = submit_group(r, g, first + i);
        }
    return s;
}

static enum status measure(struct replica *r, double *seconds, struct errmsg *e)
{
    const uint32_t pos = (uint32_t)r->o->context, steps = (uint32_t)r->o->steps;
    enum status s = create(r, e);
    if (s == STATUS_OK)
        s = form(r, e);
    for (uint32_t i = 0; i < r->slots && s == STATUS_OK; i++)
        s = open_slot(r, i, e);
    if (s == STATUS_OK)
        s = run_rounds(r, pos, WARM_UP, e);
    double start = bench_now_s();
    if (s == STATUS_OK)
        s = run_rounds(r, pos + WARM_UP, steps, e);
    *seconds = bench_now_s() - start;
    return s;
}

static int report(const struct options *o, double seconds)
{
    char name[160];
    const double rows = (double)(o->batch * o->stages * o->steps);
    snprintf(name, sizeof name, "decode %lld stages x %lld ranks, %lld x %lld sequences of %lld",
             (long long)o->stages, (long long)o->tensor, (long long)o->stages, (long long)o->batch,
             (long long)o->context);
    const struct bench_figure figures[] = {
        {.name = name, .metric = "throughput", .unit = "token/s", .value = rows / seconds},
        {.name = name, .metric = "time", .unit = "ms", .value = seconds / (double)o->steps * 1e3},
    };
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        bench_print(o->json, &figures[i]);
    return CMD_OK;
}

static int run(const struct options *o)
{
    struct replica r = {.o = o,
                        .ranks = (uint32_t)(o->stages * o->tensor),
                        .slots = (uint32_t)(o->batch * o->stages)};
    r.blocks_each = (uint32_t)((o->context + o->steps + WARM_UP + BLOCK_TOKENS) / BLOCK_TOKENS);
    if (r.ranks > RANKS_MAX) {
        fprintf(stderr, "hadal bench stages: %u ranks, at most %d\n", r.ranks, RANKS_MAX);
        return CMD_USAGE;
    }
    r.tokens = mem_zalloc(r.slots, sizeof *r.tokens);
    r.prompt = mem_zalloc((size_t)o->context, sizeof *r.prompt);
    r.entries = mem_zalloc((size_t)o->batch, sizeof *r.entries);
    struct errmsg e = {0};
    double seconds = 0;
    enum status s = measure(&r, &seconds, &e);
    for (uint32_t i = 0; i < r.ranks; i++)
        if (r.engines[i])
            r.engines[i]->ops->dissolve(r.engines[i], 1);
    for (uint32_t i = 0; i < r.ranks; i++)
        if (r.engines[i])
            r.engines[i]->ops->destroy(r.engines[i]);
    free(r.tokens);
    free(r.prompt);
    free(r.entries);
    if (s == STATUS_OK)
        return report(o, seconds);
    fprintf(stderr, "hadal bench stages: %s\n", e.text[0] ? e.text : status_text(s));
    return CMD_FAILED;
}

int bench_stages(int argc, char **argv)
{
    struct options o = {.model = sample_model(),
                        .backend = "cpu",
                        .stages = 1,
                        .tensor = 1,
                        .batch = 8,
                        .context = 128,
                        .steps = 32,
                        .threads = 1};
    const struct cmdline_opt opts[] = {
        {"--model", CMDLINE_STRING, &o.model, "DIR", .help = "model folder (the sample model)"},
        {"--random-weights", CMDLINE_CHOICE, &o.random, "P", .choices = "published|bf16|fp8|int8",
         .help = "made from the folder's config.json in this precision"},
        {"--backend", CMDLINE_CHOICE, &o.backend, "B", .choices = "cpu|cuda", .help = "(cpu)"},
        {"--stages", CMDLINE_INT, &o.stages, "S", .min = 1, .max = RANKS_MAX, .help = "(1)"},
        {"--tensor", CMDLINE_INT, &o.tensor, "T", .min = 1, .max = RANKS_MAX, .help = "(1)"},
        {"--batch", CMDLINE_INT, &o.batch, "N", .min = 1, .max = 1024,
         .help = "sequences of a micro-batch; there are as many as stages (8)"},
        {"--context", CMDLINE_INT, &o.context, "N", .min = 1, .max = 1 << 18,
         .help = "tokens that each has (128)"},
        {"--steps", CMDLINE_INT, &o.steps, "N", .min = 1, .max = 4096, .help = "(32)"},
        {"--threads", CMDLINE_INT, &o.threads, "N", .min = 1, .max = 1024,
         .help = "of each rank, on CPUs (1)"},
        {"--json", CMDLINE_FLAG, &o.json, .help = "one JSON object per line"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench stages [OPTION...]",
        .about = "Tokens per second of a replica of several ranks, each on a GPU of its own.",
        .opts = opts,
        .after = "example:\n  hadal bench stages --backend cuda --stages 2 --batch 64\n"};
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    if (!o.model) {
        fputs("hadal bench stages: no sample model here: --model\n", stderr);
        return CMD_USAGE;
    }
    return run(&o);
}
