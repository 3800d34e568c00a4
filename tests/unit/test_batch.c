// The batch scheduler over the mock engine: whatever joins, leaves, is cancelled, preempted, hit in
// the prefix cache or moved to another replica, each request gets the tokens that the plain
// function tells, and the KV references add up after every step.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/prng.h"
#include "node/batch.h"
#include "node/engine_mock.h"
#include "tests/unit/count_allocations.h"

// ---- a replica: one batch over one mock engine ----

struct rig {
    uint64_t now_us;
    struct mock_config mock;
    struct mock_fabric *fabric;
    struct engine *engine;
    struct batch *batch;
    uint64_t epoch;
    uint64_t steps;
    uint64_t batch_allocations; // made inside batch_plan and batch_result
};

static uint64_t rig_clock(void *ctx)
{
    return ((struct rig *)ctx)->now_us;
}

static void no_wake(void *ctx)
{
}

static struct mock_config small_mock(void)
{
    struct mock_config c = mock_config_default();
    c.vocab = 97;
    c.max_context = 256;
    c.kv_blocks = 256;
    c.block_tokens = 4;
    c.max_rows = 32;
    c.max_seqs = 16;
    c.pipeline = 1;
    return c;
}

static struct engine_event next_event(struct rig *r)
{
    struct engine_event ev;
    uint64_t due = engine_mock_next_due(r->engine);
    assert_true(due != UINT64_MAX);
    if (due > r->now_us)
        r->now_us = due;
    assert_true(r->engine->ops->poll(r->engine, &ev));
    return ev;
}

static void rig_form(struct rig *r, uint32_t prefill_chunk)
{
    struct engine_mock_args args = {.config = &r->mock, .fabric = r->fabric, .wake = no_wake};
    struct msg_form form = {
        .replica = 1, .epoch = ++r->epoch, .stages = 1, .tensor = 1, .model_dir = ""};
    struct msg_link link = {.replica = 1, .epoch = r->epoch, .members_n = 1};
    r->engine = engine_mock_create(&args);
    r->engine->ops->form(r->engine, &form);
    assert_int_equal(next_event(r).kind, ENGINE_PREPARED);
    r->engine->ops->link(r->engine, &link);
    struct engine_event ev = next_event(r);
    assert_int_equal(ev.kind, ENGINE_FORMED);
    assert_int_equal(ev.formed.status, STATUS_OK);
    struct batch_config c = {
        .epoch = r->epoch,
        .max_seqs = ev.formed.max_seqs,
        .max_rows = ev.formed.max_rows,
        .pipeline = ev.formed.pipeline,
        .max_context = ev.formed.max_context,
        .kv_blocks = ev.formed.kv_blocks,
        .block_tokens = ev.formed.block_tokens,
        .vocab = ev.formed.vocab,
        .prefill_chunk = prefill_chunk,
    };
    struct errmsg e = {0};
    r->batch = batch_create(&c, &e);
    assert_non_null(r->batch);
}

static void rig_break(struct rig *r)
{
    batch_destroy(r->batch);
    r->engine->ops->destroy(r->engine);
    r->batch = NULL;
    r->engine = NULL;
}

static void rig_init(struct rig *r, const struct mock_config *mock, uint32_t prefill_chunk)
{
    memset(r, 0, sizeof *r);
    r->mock = *mock;
    r->fabric = mock_fabric_create(rig_clock, r);
    rig_form(r, prefill_chunk);
}

static void rig_finish(struct rig *r)
{
    rig_break(r);
    mock_fabric_destroy(r->fabric);
}

// Plans until the pipeline is full or nothing is to do; how many.
static int rig_pump(struct rig *r)
{
    int n = 0;
    for (;;) {
        uint64_t before = allocations;
        const struct step_plan *p = batch_plan(r->batch);
        r->batch_allocations += allocations - before;
        batch_check(r->batch);
        if (p == NULL)
            return n;
        assert_int_equal(r->engine->ops->submit(r->engine, p), STATUS_OK);
        n++;
    }
}

// The next step's outcome.
static struct batch_step rig_step(struct rig *r)
{
    struct batch_step out = {0};
    struct errmsg e = {0};
    struct engine_event ev = next_event(r);
    assert_int_equal(ev.kind, ENGINE_STEP);
    assert_int_equal(ev.result.status, STATUS_OK);
    uint64_t before = allocations;
    enum status s = batch_result(r->batch, &ev.result, &out, &e);
    r->batch_allocations += allocations - before;
    if (s != STATUS_OK)
        fail_msg("%s", e.text);
    batch_check(r->batch);
    r->steps++;
    return out;
}

// ---- requests ----

enum { MAX_TOKENS = 64, MAX_PROMPT = 160 };

struct request {
    uint64_t id;
    int32_t prompt[MAX_PROMPT], emitted[MAX_TOKENS];
    uint32_t prompt_n, emitted_n, max_tokens;
    int32_t stop;
    uint8_t band;
    struct mock_stream expect;
    bool dispatched, done, cancelling, cancelled;
    uint32_t cached;
    uint64_t start_step;
};

static struct journal journal_of(const struct request *q)
{
    return (struct journal){
        .request = q->id,
        .prompt = q->prompt,
        .prompt_n = q->prompt_n,
        .emitted = q->emitted,
        .emitted_n = q->emitted_n,
        .max_tokens = q->max_tokens,
        .stop_ids = {q->stop},
        .stop_ids_n = q->stop >= 0,
        .band = q->band,
        .sampling = {.temperature = 0, .top_p = 1, .repetition_penalty = 1},
    };
}

static void request_init(struct request *q, uint64_t id, uint32_t prompt_n, uint32_t max_tokens)
{
    memset(q, 0, sizeof *q);
    q->id = id;
    q->prompt_n = prompt_n;
    q->max_tokens = max_tokens;
    q->stop = -1;
    for (uint32_t i = 0; i < prompt_n; i++)
        q->prompt[i] = (int32_t)((id * 31 + i * 7) % 97);
}

static void dispatch(struct rig *r, struct request *q)
{
    struct errmsg e = {0};
    struct journal j = journal_of(q);
    if (q->emitted_n == 0)
        mock_stream_init(&q->expect, q->prompt, q->prompt_n, r->mock.vocab);
    enum status s = batch_add(r->batch, &j, &e);
    if (s != STATUS_OK)
        fail_msg("request %llu: %s", (unsigned long long)q->id, e.text);
    q->dispatched = true;
    q->start_step = r->steps;
}

static void take_token(const struct rig *r, struct request *q, const struct token_out *t)
{
    int32_t want = mock_stream_next(&q->expect);
    assert_false(q->done);
    assert_int_equal(t->index, q->emitted_n);
    assert_int_equal(t->token, want);
    q->emitted[q->emitted_n++] = t->token;
    enum finish_reason finish = FINISH_NONE;
    if (t->token == q->stop)
        finish = FINISH_STOP;
    else if (q->emitted_n == q->max_tokens || q->prompt_n + q->emitted_n == batch_context(r->batch))
        finish = FINISH_LENGTH;
    assert_int_equal(t->finish, finish);
    q->done = finish != FINISH_NONE;
    if (t->cached_tokens > 0)
        q->cached = t->cached_tokens;
}

static struct request *by_id(struct request *v, uint32_t n, uint64_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (v[i].id == id)
            return &v[i];
    fail_msg("unknown request %llu", (unsigned long long)id);
    return NULL;
}

static void take_step(struct rig *r, struct request *v, uint32_t n)
{
    struct batch_step out = rig_step(r);
    for (uint32_t i = 0; i < out.tokens_n; i++)
        take_token(r, by_id(v, n, out.tokens[i].request), &out.tokens[i]);
    for (uint32_t i = 0; i < out.cancelled_n; i++) {
        struct request *q = by_id(v, n, out.cancelled[i]);
        assert_true(q->cancelling && !q->done);
        q->done = q->cancelled = true;
    }
}

static void run_all(struct rig *r, struct request *v, uint32_t n)
{
    rig_pump(r);
    while (batch_load(r->batch).under_way > 0) {
        take_step(r, v, n);
        rig_pump(r);
    }
    for (uint32_t i = 0; i < n; i++)
        assert_true(!v[i].dispatched || v[i].done);
    assert_int_equal(batch_load(r->batch).running + batch_load(r->batch).waiting, 0);
    assert_int_equal(batch_load(r->batch).kv_free, r->mock.kv_blocks);
}

// ---- one thing at a time ----

static void one_request_alone(void **state)
{
    struct rig r;
    struct request q;
    struct mock_config c = small_mock();
    rig_init(&r, &c, 8);
    request_init(&q, 1, 11, 20);
    dispatch(&r, &q);
    run_all(&r, &q, 1);
    assert_int_equal(q.emitted_n, 20);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(q.emitted[i],
                         engine_mock_expected(&(struct mock_expected_args){
                             .prompt = q.prompt, .prompt_n = 11, .index = i, .vocab = 97}));
    rig_finish(&r);
}

static void stops_at_a_stop_id(void **state)
{
    struct rig r;
    struct request q;
    struct mock_config c = small_mock();
    rig_init(&r, &c, 8);
    request_init(&q, 1, 5, 60);
    q.stop = engine_mock_expected(
        &(struct mock_expected_args){.prompt = q.prompt, .prompt_n = 5, .index = 9, .vocab = 97});
    dispatch(&r, &q);
    run_all(&r, &q, 1);
    assert_in_range(q.emitted_n, 1, 10);
    assert_int_equal(q.emitted[q.emitted_n - 1], q.stop);
    rig_finish(&r);
}

// A pool smaller than the context bounds the context: LENGTH, not a livelock.
static void ends_where_the_pool_ends(void **state)
{
    struct rig r;
    struct request q;
    struct mock_config c = small_mock();
    c.kv_blocks = 6; // 24 tokens
    rig_init(&r, &c, 8);
    assert_int_equal(batch_context(r.batch), 24);
    request_init(&q, 1, 20, 60);
    dispatch(&r, &q);
    run_all(&r, &q, 1);
    assert_int_equal(q.emitted_n, 4);
    rig_finish(&r);
}

static void refuses_bad_journals(void **state)
{
    struct rig r;
    struct mock_config c = small_mock();
    rig_init(&r, &c, 8);
    struct request ok;
    request_init(&ok, 1, 4, 4);
    int32_t bad_id[] = {1, 97}, negative[] = {-1};
    int32_t *longest = mem_zalloc(256, sizeof *longest);
    const struct {
        enum status want;
        uint64_t request;
        const int32_t *prompt, *emitted;
        uint32_t prompt_n, emitted_n, max_tokens, stop_ids_n, top_logprobs;
    } cases[] = {
        {STATUS_BAD_REQUEST, 0, ok.prompt, NULL, 4, 0, 4, 0, 0},
        {STATUS_BAD_REQUEST, 1, ok.prompt, NULL, 0, 0, 4, 0, 0},
        {STATUS_BAD_REQUEST, 1, ok.prompt, NULL, 4, 0, 0, 0, 0},
        {STATUS_BAD_REQUEST, 1, ok.prompt, ok.prompt, 4, 4, 4, 0, 0},
        {STATUS_BAD_REQUEST, 1, ok.prompt, NULL, 4, 0, 4, MSG_STOP_IDS + 1, 0},
        {STATUS_BAD_REQUEST, 1, ok.prompt, NULL, 4, 0, 4, 0, LIMIT_TOP_LOGPROBS + 1},
        {STATUS_BAD_REQUEST, 1, bad_id, NULL, 2, 0, 4, 0, 0},
        {STATUS_BAD_REQUEST, 1, ok.prompt, negative, 4, 1, 4, 0, 0},
        {STATUS_TOO_LARGE, 1, longest, NULL, 256, 0, 4, 0, 0},
        {STATUS_TOO_LARGE, 1, longest, longest, 200, 56, 100, 0, 0},
        {STATUS_TOO_LARGE, 1, longest, longest, UINT32_MAX, 1, UINT32_MAX, 0, 0},
        {STATUS_OK, 1, longest, longest, 200, 55, UINT32_MAX, 0, 0},
        {STATUS_EXISTS, 1, ok.prompt, NULL, 4, 0, 4, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct errmsg e = {0};
        struct journal j = {
            .request = cases[i].request,
            .prompt = cases[i].prompt,
            .prompt_n = cases[i].prompt_n,
            .emitted = cases[i].emitted,
            .emitted_n = cases[i].emitted_n,
            .max_tokens = cases[i].max_tokens,
            .stop_ids_n = cases[i].stop_ids_n,
            .sampling.top_logprobs = cases[i].top_logprobs,
        };
        assert_int_equal(batch_add(r.batch, &j, &e), cases[i].want);
        assert_true((cases[i].want == STATUS_OK) == (e.text[0] == 0));
    }
    free(longest);
    rig_finish(&r);
}

static void refuses_more_than_it_can_hold(void **state)
{
    struct rig r;
    struct request q;
    struct errmsg e = {0};
    struct mock_config c = small_mock();
    c.max_seqs = 3;
    rig_init(&r, &c, 8);
    const uint64_t most = 2 * 3 + BATCH_PROBES;
    for (uint64_t id = 1; id <= most + 1; id++) {
        request_init(&q, id, 4, 4);
        struct journal j = journal_of(&q);
        assert_int_equal(batch_add(r.batch, &j, &e), id <= most ? STATUS_OK : STATUS_FULL);
    }
    rig_finish(&r);
}

static void a_prefix_hit_leaves_a_row(void **state)
{
    struct rig r;
    struct request q[3];
    struct mock_config c = small_mock();
    rig_init(&r, &c, 64);
    for (uint64_t i = 0; i < 3; i++)
        request_init(&q[i], i + 1, 16, 1);
    memcpy(q[1].prompt, q[0].prompt, sizeof q[0].prompt);
    memcpy(q[2].prompt, q[0].prompt, sizeof q[0].prompt);
    q[2].prompt_n = 17;
    q[2].prompt[16] = 5;
    for (int i = 0; i < 3; i++) {
        dispatch(&r, &q[i]);
        run_all(&r, q, (uint32_t)i + 1);
    }
    assert_int_equal(q[0].cached, 0);
    assert_int_equal(q[1].cached, 12); // 16 tokens are whole blocks, the last row is computed
    assert_int_equal(q[2].cached, 16);
    rig_finish(&r);
}

// Two that start together cannot share: the block is findable once its step has returned.
static void no_hit_on_blocks_still_computed(void **state)
{
    struct rig r;
    struct request q[2];
    struct mock_config c = small_mock();
    c.pipeline = 2;
    rig_init(&r, &c, 64);
    request_init(&q[0], 1, 16, 2);
    dispatch(&r, &q[0]);
    rig_pump(&r);
    q[1] = q[0];
    q[1].id = 2;
    dispatch(&r, &q[1]);
    run_all(&r, q, 2);
    assert_int_equal(q[1].cached, 0);
    rig_finish(&r);
}

static void decoding_is_dealt_over_the_pipeline(void **state)
{
    struct rig r;
    struct request q[8];
    struct mock_config c = small_mock();
    c.pipeline = 2;
    rig_init(&r, &c, 32);
    for (uint64_t i = 0; i < 8; i++) {
        request_init(&q[i], i + 1, 3, 40);
        dispatch(&r, &q[i]);
    }
    rig_pump(&r);
    for (int i = 0; i < 12; i++) {
        take_step(&r, q, 8);
        rig_pump(&r);
    }
    for (int i = 0; i < 20; i++) {
        struct batch_step out = rig_step(&r);
        assert_int_equal(out.tokens_n, 4);
        for (uint32_t k = 0; k < 4; k++)
            take_token(&r, by_id(q, 8, out.tokens[k].request), &out.tokens[k]);
        assert_int_equal(rig_pump(&r), 1);
        assert_int_equal(batch_load(r.batch).under_way, 2);
    }
    run_all(&r, q, 8);
    rig_finish(&r);
}

static void one_sequence_makes_one_plan(void **state)
{
    struct rig r;
    struct request q;
    struct mock_config c = small_mock();
    c.pipeline = 4;
    rig_init(&r, &c, 32);
    request_init(&q, 1, 3, 8);
    dispatch(&r, &q);
    assert_int_equal(rig_pump(&r), 1);
    take_step(&r, &q, 1);
    assert_int_equal(rig_pump(&r), 1);
    run_all(&r, &q, 1);
    rig_finish(&r);
}

static void chunks_of_a_prompt_follow_each_other(void **state)
{
    struct rig r;
    struct request q;
    struct mock_config c = small_mock();
    c.pipeline = 3;
    rig_init(&r, &c, 8);
    request_init(&q, 1, 30, 4);
    dispatch(&r, &q);
    assert_int_equal(rig_pump(&r), 3);
    run_all(&r, &q, 1);
    assert_int_equal(r.steps, 4 + 3); // 8+8+8+6 rows, then 3 more tokens
    rig_finish(&r);
}

// Decode rows first: a long prompt does not stop the others.
static void a_long_prompt_lets_others_decode(void **state)
{
    struct rig r;
    struct request q[2];
    struct mock_config c = small_mock();
    rig_init(&r, &c, 8);
    request_init(&q[0], 1, 3, 30);
    request_init(&q[1], 2, 80, 4);
    dispatch(&r, &q[0]);
    rig_pump(&r);
    take_step(&r, q, 2);
    dispatch(&r, &q[1]);
    rig_pump(&r);
    for (int i = 0; i < 10; i++) {
        struct batch_step out = rig_step(&r);
        assert_int_equal(out.tokens_n, i < 9 ? 1 : 2);
        for (uint32_t k = 0; k < out.tokens_n; k++)
            take_token(&r, by_id(q, 2, out.tokens[k].request), &out.tokens[k]);
        rig_pump(&r);
    }
    run_all(&r, q, 2);
    rig_finish(&r);
}

static void cancel_waits_for_the_step(void **state)
{
    struct rig r;
    struct request q[2];
    struct mock_config c = small_mock();
    c.max_seqs = 1;
    rig_init(&r, &c, 32);
    for (uint64_t i = 0; i < 2; i++) {
        request_init(&q[i], i + 1, 3, 40);
        dispatch(&r, &q[i]);
    }
    rig_pump(&r);
    assert_int_equal(batch_cancel(r.batch, 2), STATUS_OK); // waits for the slot
    q[1].done = true;
    q[0].cancelling = true;
    assert_int_equal(batch_cancel(r.batch, 1), STATUS_PENDING);
    take_step(&r, q, 2);
    assert_true(q[0].cancelled);
    assert_int_equal(q[0].emitted_n, 0);
    assert_int_equal(batch_cancel(r.batch, 1), STATUS_NOT_FOUND);
    run_all(&r, q, 2);
    rig_finish(&r);
}

// The chunks under way return, no further one is planned.
static void cancel_ends_a_long_prompt(void **state)
{
    struct rig r;
    struct request q;
    struct mock_config c = small_mock();
    c.pipeline = 2;
    rig_init(&r, &c, 8);
    request_init(&q, 1, 100, 4);
    dispatch(&r, &q);
    assert_int_equal(rig_pump(&r), 2);
    q.cancelling = true;
    assert_int_equal(batch_cancel(r.batch, 1), STATUS_PENDING);
    run_all(&r, &q, 1);
    assert_true(q.cancelled);
    assert_int_equal(r.steps, 2);
    rig_finish(&r);
}

static void a_higher_band_takes_the_slot(void **state)
{
    struct rig r;
    struct request q[3];
    struct mock_config c = small_mock();
    c.max_seqs = 2;
    rig_init(&r, &c, 32);
    for (uint64_t i = 0; i < 3; i++)
        request_init(&q[i], i + 1, 6, 30);
    q[2].band = 5;
    q[2].max_tokens = 10;
    dispatch(&r, &q[0]);
    dispatch(&r, &q[1]);
    rig_pump(&r);
    take_step(&r, q, 3);
    rig_pump(&r);
    dispatch(&r, &q[2]);
    while (!q[2].done) {
        take_step(&r, q, 3);
        rig_pump(&r);
    }
    assert_int_equal(batch_load(r.batch).preemptions, 1);
    assert_false(q[0].done || q[1].done);
    assert_true(q[1].emitted_n < q[0].emitted_n); // the younger one gave way
    run_all(&r, q, 3);
    assert_int_equal(q[1].emitted_n, 30); // and went on exactly
    rig_finish(&r);
}

static void preempted_sequences_go_on_exactly(void **state)
{
    struct rig r;
    struct request q[4];
    struct mock_config c = small_mock();
    c.kv_blocks = 20; // 80 positions for four that want 60 each
    rig_init(&r, &c, 32);
    for (uint64_t i = 0; i < 4; i++) {
        request_init(&q[i], i + 1, 10, 50);
        dispatch(&r, &q[i]);
    }
    run_all(&r, q, 4);
    assert_true(batch_load(r.batch).preemptions > 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(q[i].emitted_n, 50);
    rig_finish(&r);
}

static void wrong_results_are_noticed(void **state)
{
    struct mock_config c = small_mock();
    for (int kind = 0; kind < 5; kind++) {
        struct rig r;
        struct request q;
        struct batch_step out;
        struct errmsg e = {0};
        rig_init(&r, &c, 32);
        request_init(&q, 1, 3, 8);
        dispatch(&r, &q);
        rig_pump(&r);
        struct step_sample sample = {.slot = 0, .token = 1};
        struct step_result bad = {.step = 1, .samples = &sample, .samples_n = 1};
        if (kind == 0)
            bad.step = 2;
        else if (kind == 1)
            bad.samples_n = 0;
        else if (kind == 2)
            sample.slot = 1;
        else if (kind == 3)
            sample.token = 97;
        else
            sample.top_n = LIMIT_TOP_LOGPROBS + 1;
        assert_int_equal(batch_result(r.batch, &bad, &out, &e), STATUS_INTERNAL);
        assert_true(e.text[0] != 0);
        rig_finish(&r);
    }
}

static void senseless_engines_are_refused(void **state)
{
    struct batch_config good = {.epoch = 1,
                                .max_seqs = 1,
                                .max_rows = 1,
                                .pipeline = 1,
                                .max_context = 1,
                                .kv_blocks = 1,
                                .block_tokens = 1,
                                .prefill_chunk = 1};
    struct errmsg e = {0};
    uint32_t *fields[] = {&good.max_seqs,     &good.max_rows,  &good.pipeline,
                          &good.max_context,  &good.kv_blocks, &good.block_tokens,
                          &good.prefill_chunk};
    struct batch *b = batch_create(&good, &e);
    assert_non_null(b);
    batch_destroy(b);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        *fields[i] = 0;
        assert_null(batch_create(&good, &e));
        *fields[i] = UINT32_MAX;
        assert_null(batch_create(&good, &e));
        *fields[i] = 1;
    }
}

static void steps_allocate_nothing(void **state)
{
    struct rig r;
    struct request q[16];
    struct mock_config c = small_mock();
    c.kv_blocks = 60;
    c.pipeline = 2;
    rig_init(&r, &c, 16);
    for (uint64_t i = 0; i < 16; i++) {
        request_init(&q[i], i + 1, 20, 40);
        dispatch(&r, &q[i]);
    }
    run_all(&r, q, 16);
    assert_true(batch_load(r.batch).preemptions > 0);
    assert_int_equal(r.batch_allocations, 0);
    if (!COUNTS_ALLOCATIONS)
        print_message("allocations are not counted under a sanitizer\n");
    else
        assert_true(allocations > 0);
    rig_finish(&r);
}

// ---- everything at once ----

struct chaos {
    uint64_t seed;
    uint32_t requests, pipeline, kv_blocks, max_seqs, max_rows, prefill_chunk;
    bool cancels, failovers, bands;
};

static void chaos_request(struct request *q, uint64_t id, const struct chaos *c, struct prng *rng)
{
    uint32_t longest = c->kv_blocks * 4 - 2;
    uint32_t prompt_n = 1 + (uint32_t)prng_below(rng, longest < 120 ? longest : 120);
    request_init(q, id, prompt_n, 1 + (uint32_t)prng_below(rng, 50));
    uint64_t family = prng_below(rng, 3); // prompts that begin alike
    for (uint32_t i = 0; i < prompt_n; i++)
        q->prompt[i] = (int32_t)((family * 13 + i * 5) % 97);
    if (prng_below(rng, 2) == 0)
        q->prompt[prng_below(rng, prompt_n)] = (int32_t)prng_below(rng, 97);
    q->stop = prng_below(rng, 3) == 0 ? (int32_t)prng_below(rng, 97) : -1;
    q->band = c->bands ? (uint8_t)prng_below(rng, 10) : 0;
}

static void chaos_cancel(struct rig *r, struct request *q)
{
    if (!q->dispatched || q->done || q->cancelling)
        return;
    q->cancelling = true;
    if (batch_cancel(r->batch, q->id) == STATUS_OK)
        q->done = q->cancelled = true;
}

// The replica dies; another one goes on with the journals.
static void chaos_failover(struct rig *r, const struct chaos *c, struct request *v, uint32_t n)
{
    rig_break(r);
    rig_form(r, c->prefill_chunk);
    for (uint32_t i = 0; i < n; i++) {
        if (!v[i].dispatched || v[i].done)
            continue;
        if (v[i].cancelling)
            v[i].done = v[i].cancelled = true;
        else
            dispatch(r, &v[i]);
    }
}

static uint32_t open_requests(const struct request *v, uint32_t n)
{
    uint32_t open = 0;
    for (uint32_t i = 0; i < n; i++)
        open += v[i].dispatched && !v[i].done;
    return open;
}

static void chaos_run(const struct chaos *c)
{
    struct rig r;
    struct prng rng;
    struct mock_config mock = small_mock();
    mock.pipeline = c->pipeline;
    mock.kv_blocks = c->kv_blocks;
    mock.max_seqs = c->max_seqs;
    mock.max_rows = c->max_rows;
    prng_seed(&rng, c->seed);
    rig_init(&r, &mock, c->prefill_chunk);
    struct request *v = mem_zalloc(c->requests, sizeof *v);
    uint32_t born = 0;
    while (born < c->requests || open_requests(v, born) > 0) {
        if (r.steps > 20000)
            fail_msg("seed %llu: no end after %llu steps", (unsigned long long)c->seed,
                     (unsigned long long)r.steps);
        while (born < c->requests && open_requests(v, born) < batch_slots(r.batch) &&
               prng_below(&rng, 3) != 0) {
            chaos_request(&v[born], born + 1, c, &rng);
            dispatch(&r, &v[born++]);
        }
        if (c->cancels && born > 0 && prng_below(&rng, 12) == 0)
            chaos_cancel(&r, &v[prng_below(&rng, born)]);
        if (c->failovers && prng_below(&rng, 60) == 0)
            chaos_failover(&r, c, v, born);
        rig_pump(&r);
        if (batch_load(r.batch).under_way > 0)
            take_step(&r, v, born);
        else
            assert_int_equal(open_requests(v, born), 0); // idle only when there is nothing
    }
    assert_int_equal(batch_load(r.batch).kv_free, c->kv_blocks);
    free(v);
    rig_finish(&r);
}

static void any_mix_gives_the_expected_tokens(void **state)
{
    static const struct chaos kinds[] = {
        {.kv_blocks = 256, .max_seqs = 16, .max_rows = 32, .prefill_chunk = 16},
        {.kv_blocks = 256, .max_seqs = 16, .max_rows = 32, .prefill_chunk = 5, .cancels = true},
        {.kv_blocks = 40, .max_seqs = 16, .max_rows = 64, .prefill_chunk = 64, .bands = true},
        {.kv_blocks = 33,
         .max_seqs = 8,
         .max_rows = 12,
         .prefill_chunk = 3,
         .cancels = true,
         .bands = true,
         .failovers = true},
        {.kv_blocks = 12, .max_seqs = 4, .max_rows = 4, .prefill_chunk = 2, .failovers = true},
        {.kv_blocks = 80,
         .max_seqs = 16,
         .max_rows = 6,
         .prefill_chunk = 6,
         .failovers = true,
         .cancels = true,
         .bands = true},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        for (uint32_t i = 0; i < 24; i++) {
            struct chaos c = kinds[k];
            c.requests = 16;
            c.seed = 1000 * k + i;
            c.pipeline = 1 + i % 4;
            chaos_run(&c);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_request_alone),
        cmocka_unit_test(stops_at_a_stop_id),
        cmocka_unit_test(ends_where_the_pool_ends),
        cmocka_unit_test(refuses_bad_journals),
        cmocka_unit_test(refuses_more_than_it_can_hold),
        cmocka_unit_test(a_prefix_hit_leaves_a_row),
        cmocka_unit_test(no_hit_on_blocks_still_computed),
        cmocka_unit_test(decoding_is_dealt_over_the_pipeline),
        cmocka_unit_test(one_sequence_makes_one_plan),
        cmocka_unit_test(chunks_of_a_prompt_follow_each_other),
        cmocka_unit_test(a_long_prompt_lets_others_decode),
        cmocka_unit_test(cancel_waits_for_the_step),
        cmocka_unit_test(cancel_ends_a_long_prompt),
        cmocka_unit_test(a_higher_band_takes_the_slot),
        cmocka_unit_test(preempted_sequences_go_on_exactly),
        cmocka_unit_test(wrong_results_are_noticed),
        cmocka_unit_test(senseless_engines_are_refused),
        cmocka_unit_test(steps_allocate_nothing),
        cmocka_unit_test(any_mix_gives_the_expected_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
