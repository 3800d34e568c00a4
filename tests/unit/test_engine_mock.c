// The mock engine: it answers what the plain function tells, refuses nonsense, and in real time its
// thread wakes the owner when something is due.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "node/engine_mock.h"

enum { VOCAB = 50 };

static uint64_t test_clock(void *ctx)
{
    return *(uint64_t *)ctx;
}

static void no_wake(void *ctx)
{
}

static struct mock_config config(void)
{
    struct mock_config c = mock_config_default();
    c.vocab = VOCAB;
    c.max_context = 64;
    c.kv_blocks = 8;
    c.block_tokens = 4;
    c.max_rows = 16;
    c.max_seqs = 4;
    return c;
}

static struct engine_event poll_due(struct engine *e, uint64_t *now)
{
    struct engine_event ev;
    assert_true(engine_mock_next_due(e) != UINT64_MAX);
    if (engine_mock_next_due(e) > *now)
        *now = engine_mock_next_due(e);
    assert_true(e->ops->poll(e, &ev));
    return ev;
}

static void form_alone(struct engine *e, uint64_t *now)
{
    struct msg_form form = {.replica = 1, .epoch = 1, .stages = 1, .tensor = 1, .model_dir = ""};
    struct msg_link link = {.replica = 1, .epoch = 1, .members_n = 1};
    e->ops->form(e, &form);
    assert_int_equal(poll_due(e, now).kind, ENGINE_PREPARED);
    e->ops->link(e, &link);
    struct engine_event ev = poll_due(e, now);
    assert_int_equal(ev.kind, ENGINE_FORMED);
    assert_int_equal(ev.formed.status, STATUS_OK);
    assert_int_equal(ev.formed.pipeline, 1);
}

static const int32_t prompt[] = {3, 1, 4, 1, 5, 9};
static const uint32_t blocks[] = {0, 1, 2, 0, 8};

struct plan_parts {
    struct step_plan plan;
    struct plan_open open[2];
    struct plan_entry entry[2];
    uint32_t close[1];
};

// One prompt, whole, in slot 0: right in every way.
static void good_plan(struct plan_parts *p)
{
    memset(p, 0, sizeof *p);
    p->open[0] = (struct plan_open){.slot = 0, .tokens = prompt, .tokens_n = 6, .prompt_n = 6};
    p->entry[0] = (struct plan_entry){.slot = 0,
                                      .n = 6,
                                      .sample = true,
                                      .tokens = prompt,
                                      .new_blocks = blocks,
                                      .new_blocks_n = 2};
    p->open[1] = (struct plan_open){.slot = 1, .tokens = prompt, .tokens_n = 6, .prompt_n = 6};
    p->entry[1] = (struct plan_entry){.slot = 1,
                                      .n = 6,
                                      .sample = true,
                                      .tokens = prompt,
                                      .new_blocks = blocks + 2,
                                      .new_blocks_n = 2};
    p->plan = (struct step_plan){.step = 1,
                                 .epoch = 1,
                                 .opens = p->open,
                                 .opens_n = 1,
                                 .entries = p->entry,
                                 .entries_n = 1,
                                 .closes = p->close,
                                 .rows = 6};
}

static void break_plan(struct plan_parts *p, int kind)
{
    switch (kind) {
    case 0:
        p->plan.step = 2;
        break;
    case 1:
        p->plan.rows = 5;
        break;
    case 2:
        p->plan.entries_n = 0;
        break;
    case 3:
        p->open[0].slot = 4;
        break;
    case 4:
        p->entry[0].slot = 1; // not open
        break;
    case 5:
        p->entry[0].sample = false;
        break;
    case 6:
        p->entry[0].new_blocks_n = 1; // too short a table
        break;
    case 7:
        p->entry[0].new_blocks = blocks + 3; // 0 and 8: no such block
        break;
    case 8:
        p->plan.closes_n = 1; // closes what is not open
        break;
    case 9:
        p->entry[0].tokens = prompt + 1;
        p->entry[0].n = 5;
        p->plan.rows = 5; // not its history
        break;
    case 10:
        p->entry[0].pos = 4; // a prefix that nobody computed
        p->entry[0].n = 2;
        p->entry[0].tokens = prompt + 4;
        p->plan.rows = 2;
        break;
    case 11:
        p->plan.opens_n = p->plan.entries_n = 2; // both write block 0 or share it
        p->entry[1].new_blocks = blocks;
        p->plan.rows = 12;
        break;
    case 12:
        p->plan.entries_n = 2;
        p->entry[1].slot = 0; // twice
        p->plan.rows = 12;
        break;
    case 13:
        p->open[0].index0 = 1;
        break;
    case 14:
        p->plan.epoch = 2;
        break;
    default:
        fail();
    }
}

static void nonsense_is_refused(void **state)
{
    log_set_level(LOG_OFF);
    for (int kind = -1; kind < 15; kind++) {
        uint64_t now = 0;
        struct mock_config c = config();
        struct mock_fabric *f = mock_fabric_create(test_clock, &now);
        struct engine *e = engine_mock_create(
            &(struct engine_mock_args){.config = &c, .fabric = f, .wake = no_wake});
        struct plan_parts p;
        form_alone(e, &now);
        good_plan(&p);
        if (kind >= 0)
            break_plan(&p, kind);
        assert_int_equal(e->ops->submit(e, &p.plan), STATUS_OK);
        struct engine_event ev = poll_due(e, &now);
        assert_int_equal(ev.kind, ENGINE_STEP);
        if (kind < 0)
            assert_int_equal(ev.result.status, STATUS_OK);
        else if (ev.result.status >= 0)
            fail_msg("kind %d went through", kind);
        e->ops->destroy(e);
        mock_fabric_destroy(f);
    }
    log_set_level(LOG_INFO);
}

static void answers_what_the_function_tells(void **state)
{
    uint64_t now = 0;
    struct mock_config c = config();
    struct mock_fabric *f = mock_fabric_create(test_clock, &now);
    struct engine *e =
        engine_mock_create(&(struct engine_mock_args){.config = &c, .fabric = f, .wake = no_wake});
    struct plan_parts p;
    struct mock_stream s;
    form_alone(e, &now);
    good_plan(&p);
    mock_stream_init(&s, prompt, 6, VOCAB);
    uint64_t before = now;
    assert_int_equal(e->ops->submit(e, &p.plan), STATUS_OK);
    assert_int_equal(e->ops->submit(e, &p.plan), STATUS_FULL);
    struct engine_event ev = poll_due(e, &now);
    assert_int_equal(now - before, c.step_us + 6 * c.row_us);
    assert_int_equal(ev.result.samples_n, 1);
    assert_int_equal(ev.result.samples[0].token, mock_stream_next(&s));
    int32_t token = ev.result.samples[0].token;
    p.entry[0] = (struct plan_entry){.slot = 0, .pos = 6, .n = 1, .sample = true, .tokens = &token};
    p.plan.opens_n = 0;
    p.plan.step = 2;
    p.plan.rows = 1;
    assert_int_equal(e->ops->submit(e, &p.plan), STATUS_OK);
    ev = poll_due(e, &now);
    assert_int_equal(ev.result.samples[0].token, mock_stream_next(&s));
    assert_int_equal(ev.result.samples[0].token,
                     engine_mock_expected(&(struct mock_expected_args){prompt, 6, 1, VOCAB}));
    e->ops->destroy(e);
    mock_fabric_destroy(f);
}

// Any change of the history shows in what follows.
static void every_token_of_the_history_counts(void **state)
{
    int32_t other[6];
    int differ = 0;
    for (uint32_t i = 0; i < 6; i++) {
        memcpy(other, prompt, sizeof other);
        other[i]++;
        for (uint32_t at = 0; at < 8; at++)
            differ += engine_mock_expected(&(struct mock_expected_args){other, 6, at, 1 << 20}) !=
                      engine_mock_expected(&(struct mock_expected_args){prompt, 6, at, 1 << 20});
    }
    assert_true(differ >= 47); // of 48; two of a million may meet
}

static void slow_stages_take_longer(void **state)
{
    uint64_t now = 0, start;
    struct mock_config c = config();
    struct mock_fabric *f = mock_fabric_create(test_clock, &now);
    struct engine *e =
        engine_mock_create(&(struct engine_mock_args){.config = &c, .fabric = f, .wake = no_wake});
    struct plan_parts p;
    form_alone(e, &now);
    good_plan(&p);
    engine_mock_slow(e, 3);
    start = now;
    assert_int_equal(e->ops->submit(e, &p.plan), STATUS_OK);
    assert_int_equal(engine_mock_next_due(e) - start, 3 * (c.step_us + 6 * c.row_us));
    e->ops->destroy(e);
    mock_fabric_destroy(f);
}

// ---- real time ----

static void ring(void *ctx)
{
    uint64_t one = 1;
    ssize_t n = write(*(int *)ctx, &one, sizeof one);
    (void)n; // full means that it was rung already
}

static struct engine_event wait_event(struct engine *e, int fd)
{
    struct engine_event ev;
    uint64_t count;
    for (int i = 0; i < 100; i++) {
        if (e->ops->poll(e, &ev))
            return ev;
        struct pollfd p = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&p, 1, 2000), 1);
        assert_int_equal(read(fd, &count, sizeof count), sizeof count);
    }
    fail_msg("the engine rings but has nothing");
    return ev;
}

static void real_time_rings_when_due(void **state)
{
    int fd = eventfd(0, EFD_CLOEXEC);
    struct mock_config c = config();
    c.form_us = 3000;
    struct engine *e = engine_mock_create_real(
        &(struct engine_mock_args){.config = &c, .wake = ring, .wake_ctx = &fd});
    // Two ranks, of which this process is one: it does not wait for the other.
    struct msg_form form = {.replica = 1, .epoch = 1, .stages = 2, .tensor = 1, .model_dir = ""};
    struct msg_link link = {.replica = 1, .epoch = 1, .members_n = 2};
    e->ops->form(e, &form);
    assert_int_equal(wait_event(e, fd).kind, ENGINE_PREPARED);
    e->ops->link(e, &link);
    assert_int_equal(wait_event(e, fd).kind, ENGINE_FORMED);
    struct plan_parts p;
    good_plan(&p);
    assert_int_equal(e->ops->submit(e, &p.plan), STATUS_OK);
    struct engine_event ev = wait_event(e, fd);
    assert_int_equal(ev.kind, ENGINE_STEP);
    assert_int_equal(ev.result.samples[0].token,
                     engine_mock_expected(&(struct mock_expected_args){prompt, 6, 0, VOCAB}));
    p.plan.step = 2;
    p.plan.opens_n = 0;
    p.entry[0] = (struct plan_entry){
        .slot = 0, .pos = 6, .n = 1, .sample = true, .tokens = &ev.result.samples[0].token};
    p.plan.rows = 1;
    assert_int_equal(e->ops->submit(e, &p.plan), STATUS_OK);
    e->ops->destroy(e); // with a step under way
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(answers_what_the_function_tells),
        cmocka_unit_test(every_token_of_the_history_counts),
        cmocka_unit_test(slow_stages_take_longer),
        cmocka_unit_test(real_time_rings_when_due),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
