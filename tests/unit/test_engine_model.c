// node/engine_model.c: the ranks of a replica as engines of one process, linked by shared memory or
// TCP, driven by hand-made plans. The answers are the reference's; a lost rank is named; the next
// epoch works. With HADAL_ENGINE_BACKEND=cuda on GPUs, rank i on GPU i modulo their number: skipped
// where there is none.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "kernels/cuda_comm.h"
#include "node/engine_model.h"

enum { RANKS_MAX = 4, WAIT_MS = 20000, TOKENS_MAX = 300 };

struct rig {
    uint32_t stages, tensor, ranks;
    uint64_t epoch, step;
    bool used[8]; // slots opened in this epoch
    enum transport_choice transport;
    struct engine *engines[RANKS_MAX];
    char addresses[RANKS_MAX][2][LIMIT_ADDR];
};

static const char *model_dir(void)
{
    const char *dir = getenv("HADAL_MODEL");
    return dir ? dir : "models/sample";
}

static void no_wake(void *arg)
{
}

static int gpus; // 0: on CPUs

static struct engine *new_engine(uint32_t max_rows)
{
    static int made;
    struct engine_model_config config = {.backend = gpus ? KERN_CUDA : KERN_CPU,
                                         .device = gpus ? made++ % gpus : 0,
                                         .threads = 1,
                                         .max_seqs = 8,
                                         .max_rows = max_rows,
                                         .context = 512,
                                         .kv_tokens = 2048,
                                         .block_tokens = 32};
    struct errmsg e = {0};
    struct engine *engine = engine_model_create(&config, no_wake, NULL, &e);
    if (!engine)
        print_error("%s\n", e.text);
    assert_non_null(engine);
    return engine;
}

static void rig_start(struct rig *r, uint32_t stages, uint32_t tensor)
{
    *r = (struct rig){.stages = stages, .tensor = tensor, .ranks = stages * tensor};
    for (uint32_t i = 0; i < r->ranks; i++)
        r->engines[i] = new_engine(64);
}

static void rig_stop(struct rig *r)
{
    for (uint32_t i = 0; i < r->ranks; i++)
        if (r->engines[i])
            r->engines[i]->ops->destroy(r->engines[i]);
}

static bool wait_event(struct engine *e, struct engine_event *ev)
{
    for (int ms = 0; ms < WAIT_MS; ms++) {
        if (e->ops->poll(e, ev))
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return false;
}

static void rig_prepare(struct rig *r, uint64_t epoch)
{
    r->epoch = epoch;
    r->step = 0;
    memset(r->used, 0, sizeof r->used);
    for (uint32_t i = 0; i < r->ranks; i++) {
        struct msg_form form = {.replica = 1,
                                .epoch = epoch,
                                .model_dir = model_dir(),
                                .stages = r->stages,
                                .tensor = r->tensor,
                                .my_stage = i / r->tensor,
                                .my_tensor = i % r->tensor,
                                .transport = r->transport};
        r->engines[i]->ops->form(r->engines[i], &form);
    }
    for (uint32_t i = 0; i < r->ranks; i++) {
        struct engine_event ev;
        do
            assert_true(wait_event(r->engines[i], &ev));
        while (ev.kind == ENGINE_FAULT); // of the epoch before
        if (ev.kind == ENGINE_FORMED)
            print_error("rank %u: %s\n", i, ev.formed.text);
        assert_int_equal(ev.kind, ENGINE_PREPARED);
        assert_true(ev.epoch == epoch);
        snprintf(r->addresses[i][0], LIMIT_ADDR, "%s", ev.addresses.shm);
        snprintf(r->addresses[i][1], LIMIT_ADDR, "%s", ev.addresses.tcp);
    }
}

static void rig_send_link(struct rig *r)
{
    struct link_member members[RANKS_MAX];
    for (uint32_t i = 0; i < r->ranks; i++)
        members[i] =
            (struct link_member){"n", "here", {r->addresses[i][0], r->addresses[i][1], ""}};
    struct msg_link link = {
        .replica = 1, .epoch = r->epoch, .members = members, .members_n = r->ranks};
    for (uint32_t i = 0; i < r->ranks; i++)
        r->engines[i]->ops->link(r->engines[i], &link);
}

static void rig_form(struct rig *r, uint64_t epoch)
{
    rig_prepare(r, epoch);
    rig_send_link(r);
    uint64_t fingerprint = 0;
    for (uint32_t i = 0; i < r->ranks; i++) {
        struct engine_event ev;
        assert_true(wait_event(r->engines[i], &ev));
        assert_int_equal(ev.kind, ENGINE_FORMED);
        if (ev.formed.status != STATUS_OK)
            print_error("rank %u: %s\n", i, ev.formed.text);
        assert_int_equal(ev.formed.status, STATUS_OK);
        assert_int_equal(ev.formed.max_context, 512);
        assert_int_equal(ev.formed.pipeline, r->stages);
        assert_true(i == 0 || ev.formed.fingerprint == fingerprint);
        fingerprint = ev.formed.fingerprint;
    }
}

static void submit(struct rig *r, struct step_plan *plan)
{
    plan->step = ++r->step;
    plan->epoch = r->epoch;
    for (uint32_t i = 0; i < plan->entries_n; i++)
        plan->rows += plan->entries[i].n;
    assert_int_equal(r->engines[0]->ops->submit(r->engines[0], plan), STATUS_OK);
}

static int32_t await_token(struct rig *r, uint32_t slot)
{
    struct engine_event ev;
    assert_true(wait_event(r->engines[0], &ev));
    assert_int_equal(ev.kind, ENGINE_STEP);
    assert_int_equal(ev.result.status, STATUS_OK);
    assert_true(ev.result.step == r->step);
    assert_int_equal(ev.result.samples_n, 1);
    assert_int_equal(ev.result.samples[0].slot, slot);
    return ev.result.samples[0].token;
}

// Greedy (or seeded) decoding of `n` tokens in slot `slot`, the prompt in chunks of `chunk` rows.
static void generate(struct rig *r, uint32_t slot, const int32_t *prompt, uint32_t prompt_n,
                     uint32_t chunk, const struct sampling *sampling, int32_t *out, uint32_t n)
{
    uint32_t blocks[16], close = slot, close_n = r->used[slot];
    r->used[slot] = true; // the scheduler, too, closes a slot in the plan that gives it away
    for (uint32_t i = 0; i < 16; i++)
        blocks[i] = slot * 16 + 15 - i; // out of order, as a pool would give them
    struct plan_open open = {.slot = slot,
                             .sampling = *sampling,
                             .tokens = prompt,
                             .tokens_n = prompt_n,
                             .prompt_n = prompt_n};
    for (uint32_t at = 0; at < prompt_n; at += chunk) {
        uint32_t rows = prompt_n - at < chunk ? prompt_n - at : chunk;
        struct plan_entry entry = {.slot = slot,
                                   .pos = at,
                                   .n = rows,
                                   .sample = at + rows == prompt_n,
                                   .tokens = prompt + at,
                                   .new_blocks = blocks,
                                   .new_blocks_n = at ? 0 : 16};
        struct step_plan plan = {.closes = &close,
                                 .closes_n = at ? 0 : close_n,
                                 .opens = &open,
                                 .opens_n = at ? 0 : 1,
                                 .entries = &entry,
                                 .entries_n = 1};
        submit(r, &plan);
        if (entry.sample) {
            out[0] = await_token(r, slot);
        } else {
            struct engine_event ev;
            assert_true(wait_event(r->engines[0], &ev));
            assert_int_equal(ev.kind, ENGINE_STEP);
            assert_int_equal(ev.result.samples_n, 0);
        }
    }
    for (uint32_t i = 1; i < n; i++) {
        struct plan_entry entry = {
            .slot = slot, .pos = prompt_n + i - 1, .n = 1, .sample = true, .tokens = &out[i - 1]};
        struct step_plan plan = {.entries = &entry, .entries_n = 1};
        submit(r, &plan);
        out[i] = await_token(r, slot);
    }
}

struct task {
    int32_t prompt[TOKENS_MAX], answer[TOKENS_MAX];
    uint32_t prompt_n, answer_n;
};

static uint32_t read_ids(json_t *array, int32_t *out)
{
    uint32_t n = (uint32_t)json_array_size(array);
    assert_in_range(n, 1, TOKENS_MAX);
    for (uint32_t i = 0; i < n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return n;
}

static struct task *read_task(size_t which)
{
    char path[LIMIT_PATH];
    snprintf(path, sizeof path, "%s/reference.json", model_dir());
    json_t *root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    json_t *entry = json_array_get(root, which);
    struct task *t = mem_zalloc(1, sizeof *t);
    t->prompt_n = read_ids(json_object_get(entry, "prompt_ids"), t->prompt);
    t->answer_n = read_ids(json_object_get(entry, "greedy_ids"), t->answer);
    json_decref(root);
    return t;
}

static const struct sampling greedy = {.top_p = 1, .repetition_penalty = 1};
static const struct sampling seeded = {.temperature = 0.8f,
                                       .top_p = 0.95f,
                                       .repetition_penalty = 1.05f,
                                       .presence_penalty = 0.1f,
                                       .seed = 42};

static void expect_reference(struct rig *r, uint32_t chunk)
{
    struct task *t = read_task(1);
    int32_t out[TOKENS_MAX];
    generate(r, 3, t->prompt, t->prompt_n, chunk, &greedy, out, t->answer_n);
    // bf16 may choose another way where the reference nearly does: then all layouts do.
    static int32_t first[TOKENS_MAX];
    if (!first[0])
        memcpy(first, gpus ? out : t->answer, sizeof first);
    assert_memory_equal(out, first, t->answer_n * sizeof *out);
    free(t);
}

static void run_layout(uint32_t stages, uint32_t tensor, enum transport_choice transport,
                       int32_t *seeded_out, uint32_t n)
{
    struct rig r;
    rig_start(&r, stages, tensor);
    r.transport = transport;
    rig_form(&r, 7);
    expect_reference(&r, 64);
    expect_reference(&r, 5);
    struct task *t = read_task(0);
    generate(&r, 0, t->prompt, t->prompt_n, 64, &seeded, seeded_out, n);
    free(t);
    rig_stop(&r);
}

static void test_every_layout_gives_the_same_answer(void **state)
{
    int32_t alone[40], out[40];
    run_layout(1, 1, TRANSPORT_AUTO, alone, 40);
    run_layout(2, 1, TRANSPORT_AUTO, out, 40);
    assert_memory_equal(out, alone, sizeof alone);
    run_layout(1, 2, TRANSPORT_AUTO, out, 40);
    assert_memory_equal(out, alone, sizeof alone);
    run_layout(2, 2, TRANSPORT_SHM, out, 40);
    assert_memory_equal(out, alone, sizeof alone);
    run_layout(2, 2, TRANSPORT_TCP, out, 40);
    assert_memory_equal(out, alone, sizeof alone);
}

// A rank goes away: every other one reports a fault and the lead blames the right one; with a new
// engine in its place the next epoch answers.
static void test_lost_rank_is_named_and_replaced(void **state)
{
    for (uint32_t victim = 1; victim < 4; victim++) {
        struct rig r;
        rig_start(&r, 2, 2);
        rig_form(&r, 1);
        expect_reference(&r, 64);
        r.engines[victim]->ops->destroy(r.engines[victim]);
        r.engines[victim] = NULL;
        struct engine_event ev;
        assert_true(wait_event(r.engines[0], &ev));
        assert_int_equal(ev.kind, ENGINE_FAULT);
        assert_int_equal(ev.result.bad_stage, victim / 2);
        assert_int_equal(ev.result.bad_tensor, victim % 2);
        r.engines[victim] = new_engine(64);
        rig_form(&r, 2);
        expect_reference(&r, 64);
        rig_stop(&r);
    }
}

// Dissolving frees a rank that waits in a collective or for hidden states, and silences it.
static void test_dissolve_in_the_middle_of_a_step(void **state)
{
    struct rig r;
    rig_start(&r, 2, 2);
    rig_form(&r, 1);
    for (uint64_t epoch = 1; epoch < 6; epoch++) {
        struct task *t = read_task(0);
        uint32_t block = 0;
        struct plan_open open = {.sampling = greedy,
                                 .tokens = t->prompt,
                                 .tokens_n = t->prompt_n,
                                 .prompt_n = t->prompt_n};
        struct plan_entry entry = {.n = t->prompt_n,
                                   .tokens = t->prompt,
                                   .new_blocks = &block,
                                   .new_blocks_n = 1,
                                   .sample = true};
        struct step_plan plan = {.opens = &open, .opens_n = 1, .entries = &entry, .entries_n = 1};
        submit(&r, &plan);
        // The ranks leave one after the other, while the step runs.
        for (uint32_t i = 0; i < r.ranks; i++)
            r.engines[3 - i]->ops->dissolve(r.engines[3 - i], epoch);
        free(t);
        rig_form(&r, epoch + 1);
        expect_reference(&r, 64);
    }
    rig_stop(&r);
}

static void test_ranks_must_agree(void **state)
{
    struct rig r;
    rig_start(&r, 2, 1);
    r.engines[1]->ops->destroy(r.engines[1]);
    r.engines[1] = new_engine(32); // other limits than the lead's
    rig_prepare(&r, 1);
    rig_send_link(&r);
    struct engine_event ev;
    assert_true(wait_event(r.engines[1], &ev));
    assert_int_equal(ev.kind, ENGINE_FORMED);
    assert_int_equal(ev.formed.status, STATUS_BAD_CONFIG);
    assert_non_null(strstr(ev.formed.text, "max_rows: 32 here, 64 at the lead"));
    rig_stop(&r);
}

static void test_bad_model_is_reported(void **state)
{
    struct engine *e = new_engine(64);
    struct msg_form form = {
        .replica = 1, .epoch = 3, .model_dir = "/nonexistent", .stages = 1, .tensor = 1};
    e->ops->form(e, &form);
    struct engine_event ev;
    assert_true(wait_event(e, &ev));
    assert_int_equal(ev.kind, ENGINE_FORMED);
    assert_true(ev.formed.status < 0);
    assert_non_null(strstr(ev.formed.text, "/nonexistent"));
    e->ops->destroy(e);
}

static bool want_cuda(void)
{
    const char *backend = getenv("HADAL_ENGINE_BACKEND");
    return backend && !strcmp(backend, "cuda");
}

int main(void)
{
    struct errmsg e = {0};
    if (want_cuda()) {
        const struct cuda_comm_ops *cuda = kern_cuda_comm(&e);
        gpus = cuda ? cuda->devices() : 0;
        if (!gpus) {
            fprintf(stderr, "SKIPPED, nothing was tested: no GPU. %s\n", e.text);
            return 77;
        }
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_layout_gives_the_same_answer),
        cmocka_unit_test(test_lost_rank_is_named_and_replaced),
        cmocka_unit_test(test_dissolve_in_the_middle_of_a_step),
        cmocka_unit_test(test_ranks_must_agree),
        cmocka_unit_test(test_bad_model_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
