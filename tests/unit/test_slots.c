// node/slots.c: what plans tell a worker, and every way in which a plan can contradict what was
// told.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "node/slots.h"

static const struct slots_config limits = {.max_seqs = 4,
                                           .max_rows = 8,
                                           .max_context = 32,
                                           .kv_blocks = 10,
                                           .block_tokens = 4,
                                           .vocab = 100};
static const int32_t prompt[6] = {1, 2, 3, 4, 5, 6};
static const uint32_t blocks[2] = {7, 3};
static const struct plan_open open2 = {
    .slot = 2, .index0 = 0, .tokens = prompt, .tokens_n = 6, .prompt_n = 6};

static enum status apply(struct slots *s, const struct step_plan *p, struct slots_batch *b)
{
    struct step_plan copy = *p;
    struct errmsg e = {0};
    for (uint32_t i = 0; i < p->entries_n && !p->rows; i++)
        copy.rows += p->entries[i].n;
    enum status rc = slots_apply(s, &copy, b, &e);
    assert_int_equal(rc != STATUS_OK, e.text[0] != '\0');
    return rc;
}

static void opened(struct slots *s)
{
    struct slots_batch b;
    struct plan_entry x = {.slot = 2,
                           .n = 6,
                           .sample = true,
                           .tokens = prompt,
                           .new_blocks = blocks,
                           .new_blocks_n = 2};
    struct step_plan p = {.opens = &open2, .opens_n = 1, .entries = &x, .entries_n = 1};
    assert_int_equal(apply(s, &p, &b), STATUS_OK);
}

static void test_prefill_then_decode(void **state)
{
    struct slots *s = slots_create(&limits);
    struct slots_batch b;
    struct plan_entry first = {
        .slot = 2, .n = 4, .tokens = prompt, .new_blocks = blocks, .new_blocks_n = 1};
    struct step_plan p = {.opens = &open2, .opens_n = 1, .entries = &first, .entries_n = 1};
    assert_int_equal(apply(s, &p, &b), STATUS_OK);
    assert_int_equal(b.batch.rows, 4);
    assert_int_equal(b.batch.logits_n, 0);
    assert_int_equal(b.batch.seqs[0].blocks_n, 1);

    struct plan_entry rest = {.slot = 2,
                              .pos = 4,
                              .n = 2,
                              .sample = true,
                              .tokens = prompt + 4,
                              .new_blocks = blocks + 1,
                              .new_blocks_n = 1};
    p = (struct step_plan){.entries = &rest, .entries_n = 1};
    assert_int_equal(apply(s, &p, &b), STATUS_OK);
    assert_int_equal(b.batch.pos[1], 5);
    assert_int_equal(b.batch.logits_n, 1);
    assert_int_equal(b.batch.logit_rows[0], 1);
    assert_int_equal(b.batch.seqs[0].blocks[1], 3);
    assert_int_equal(slots_history(s, 2).index, 0);

    int32_t sampled = 50;
    struct plan_entry decode = {.slot = 2, .pos = 6, .n = 1, .sample = true, .tokens = &sampled};
    p = (struct step_plan){.entries = &decode, .entries_n = 1};
    assert_int_equal(apply(s, &p, &b), STATUS_OK);
    struct slots_history h = slots_history(s, 2);
    assert_int_equal(h.index, 1);
    assert_int_equal(h.tokens_n, 7);
    assert_int_equal(h.tokens[6], 50);
    assert_int_equal(h.prompt_n, 6);
    slots_destroy(s);
}

// A journal that already has tokens: the first one sampled has the next index.
static void test_continued_journal_keeps_its_index(void **state)
{
    struct slots *s = slots_create(&limits);
    struct slots_batch b;
    struct plan_open o = open2;
    o.prompt_n = 4;
    o.index0 = 2;
    struct plan_entry x = {.slot = 2,
                           .n = 6,
                           .sample = true,
                           .tokens = prompt,
                           .new_blocks = blocks,
                           .new_blocks_n = 2};
    struct step_plan p = {.opens = &o, .opens_n = 1, .entries = &x, .entries_n = 1};
    assert_int_equal(apply(s, &p, &b), STATUS_OK);
    assert_int_equal(slots_history(s, 2).index, 2);
    assert_int_equal(slots_history(s, 2).prompt_n, 4);
    slots_destroy(s);
}

// A slot may be closed and opened again in one plan; the block table starts empty.
static void test_close_and_reopen(void **state)
{
    struct slots *s = slots_create(&limits);
    struct slots_batch b;
    opened(s);
    uint32_t close = 2, block = 9;
    struct plan_entry x = {
        .slot = 2, .n = 3, .tokens = prompt, .new_blocks = &block, .new_blocks_n = 1};
    struct step_plan p = {.closes = &close,
                          .closes_n = 1,
                          .opens = &open2,
                          .opens_n = 1,
                          .entries = &x,
                          .entries_n = 1};
    assert_int_equal(apply(s, &p, &b), STATUS_OK);
    assert_int_equal(b.batch.seqs[0].blocks_n, 1);
    assert_int_equal(b.batch.seqs[0].blocks[0], 9);
    slots_destroy(s);
}

// Each row: what is wrong in a plan that follows opened(); nothing may change.
static void test_contradictions_are_refused(void **state)
{
    static const int32_t good = 50, outside = 100, negative = -1, other[6] = {1, 2, 9, 4, 5, 6};
    static const uint32_t slot0 = 0, slot2 = 2, slot9 = 9, twice[2] = {2, 2};
    static const uint32_t bad_block = 10, many[8] = {0};
    const struct plan_entry ok = {.slot = 2, .pos = 6, .n = 1, .sample = true, .tokens = &good};
    struct plan_entry e[12];
    for (int i = 0; i < 12; i++)
        e[i] = ok;
    e[0].slot = 9;
    e[1].slot = 0; // not open
    e[2].tokens = &outside;
    e[3].tokens = &negative;
    e[4].pos = 7; // a gap
    e[5].pos = 31;
    e[6].n = 0;
    e[7] = (struct plan_entry){.slot = 2, .n = 6, .tokens = other}; // rewrites history
    e[8] = (struct plan_entry){.slot = 2, .n = 3, .sample = true, .tokens = prompt};
    e[9].new_blocks = &bad_block;
    e[9].new_blocks_n = 1;
    e[10].new_blocks = many; // more blocks than a context has
    e[10].new_blocks_n = 8;
    const struct plan_entry same_slot[2] = {ok, ok};
    const struct plan_open in_use = open2;
    struct plan_open far = open2, no_prompt = open2, long_prompt = open2, bad_id = open2;
    far.slot = 4;
    no_prompt.slot = long_prompt.slot = bad_id.slot = 0;
    no_prompt.prompt_n = 0;
    long_prompt.prompt_n = 7;
    bad_id.tokens = &outside;
    bad_id.tokens_n = bad_id.prompt_n = 1;
    const struct plan_open both[2] = {{.slot = 1, .tokens = prompt, .tokens_n = 1, .prompt_n = 1},
                                      {.slot = 1, .tokens = prompt, .tokens_n = 1, .prompt_n = 1}};

    struct step_plan bad[24] = {{0}};
    size_t n = 0;
    for (int i = 0; i < 11; i++)
        bad[n++] = (struct step_plan){.entries = &e[i], .entries_n = 1};
    bad[n++] = (struct step_plan){.entries = same_slot, .entries_n = 2};
    bad[n++] = (struct step_plan){.entries_n = 0};
    bad[n++] = (struct step_plan){.entries = &ok, .entries_n = 1, .rows = 2};
    bad[n++] = (struct step_plan){.entries = &ok, .entries_n = 1, .opens = &in_use, .opens_n = 1};
    bad[n++] = (struct step_plan){.entries = &ok, .entries_n = 1, .opens = &far, .opens_n = 1};
    bad[n++] =
        (struct step_plan){.entries = &ok, .entries_n = 1, .opens = &no_prompt, .opens_n = 1};
    bad[n++] =
        (struct step_plan){.entries = &ok, .entries_n = 1, .opens = &long_prompt, .opens_n = 1};
    bad[n++] = (struct step_plan){.entries = &ok, .entries_n = 1, .opens = &bad_id, .opens_n = 1};
    bad[n++] = (struct step_plan){.entries = &ok, .entries_n = 1, .opens = both, .opens_n = 2};
    bad[n++] = (struct step_plan){.entries = &ok, .entries_n = 1, .closes = &slot0, .closes_n = 1};
    bad[n++] = (struct step_plan){.entries = &ok, .entries_n = 1, .closes = &slot9, .closes_n = 1};
    bad[n++] = (struct step_plan){.entries = &ok, .entries_n = 1, .closes = twice, .closes_n = 2};
    bad[n++] = (struct step_plan){.entries = &ok, .entries_n = 1, .closes = &slot2, .closes_n = 1};
    assert_int_equal(n, sizeof bad / sizeof *bad);

    struct slots *s = slots_create(&limits);
    struct slots_batch b;
    opened(s);
    for (size_t i = 0; i < n; i++) {
        if (apply(s, &bad[i], &b) != STATUS_LINK_PROTOCOL)
            fail_msg("plan %zu was accepted", i);
        struct slots_history h = slots_history(s, 2);
        assert_int_equal(h.tokens_n, 6);
        assert_memory_equal(h.tokens, prompt, sizeof prompt);
    }
    struct step_plan fine = {.entries = &ok, .entries_n = 1};
    assert_int_equal(apply(s, &fine, &b), STATUS_OK);
    assert_int_equal(b.batch.seqs[0].blocks_n, 2);
    slots_destroy(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_then_decode),
        cmocka_unit_test(test_continued_journal_keeps_its_index),
        cmocka_unit_test(test_close_and_reopen),
        cmocka_unit_test(test_contradictions_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
