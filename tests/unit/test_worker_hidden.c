// Hidden messages from another stage, as a peer might send them that means harm or is of another
// build: only what fits is taken.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "node/worker_state.h"

enum { HIDDEN = 8, ROWS = 4, BYTES = sizeof(struct hidden_header) + ROWS * HIDDEN * 4 };

struct rig {
    struct model_shard shard;
    struct worker_state state;
    struct worker worker;
    unsigned char bytes[BYTES];
};

static void rig_init(struct rig *r, struct hidden_header h)
{
    memset(r, 0, sizeof *r);
    r->shard.config.hidden = HIDDEN;
    r->state.shard = &r->shard;
    r->worker.state = &r->state;
    r->worker.config.max_rows = ROWS;
    memcpy(r->bytes, &h, sizeof h);
}

static enum status read_some(struct rig *r, size_t n, struct hidden_rows *out)
{
    // Exactly n bytes, so that a sanitizer sees a read beyond them.
    unsigned char *exact = malloc(n ? n : 1);
    memcpy(exact, r->bytes, n);
    enum status s = worker_hidden_read(&r->worker, exact, n, out);
    out->host = s == STATUS_OK && out->host ? (const float *)r->bytes : NULL;
    free(exact);
    return s;
}

static void test_rows_in_the_message(void **state)
{
    struct rig r;
    struct hidden_rows h;
    rig_init(&r, (struct hidden_header){.step = 9, .rows = 3});
    assert_int_equal(read_some(&r, BYTES - HIDDEN * 4, &h), STATUS_OK);
    assert_true(h.step == 9 && h.rows == 3 && h.place == 0 && h.host);
    for (size_t n = 0; n <= BYTES; n++)
        if (n != BYTES - HIDDEN * 4)
            assert_int_equal(read_some(&r, n, &h), STATUS_LINK_PROTOCOL);
}

static void test_too_many_rows(void **state)
{
    static const uint64_t rows[] = {ROWS + 1, UINT64_MAX, UINT64_MAX / (HIDDEN * 4) + 1,
                                    1ull << 63};
    struct rig r;
    struct hidden_rows h;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (uint64_t place = 0; place < 2; place++) {
            rig_init(&r, (struct hidden_header){.step = 1, .rows = rows[i], .place = place});
            r.state.pipe_in = (struct cuda_pipe *)&r; // only looked at for being there
            assert_int_equal(read_some(&r, sizeof(struct hidden_header), &h), STATUS_LINK_PROTOCOL);
            assert_int_equal(read_some(&r, BYTES, &h), STATUS_LINK_PROTOCOL);
        }
}

static void test_rows_in_the_pipe(void **state)
{
    struct rig r;
    struct hidden_rows h;
    const size_t n = sizeof(struct hidden_header);
    rig_init(&r, (struct hidden_header){.step = 2, .rows = 4, .place = 2});
    assert_int_equal(read_some(&r, n, &h), STATUS_LINK_PROTOCOL); // there is no pipe
    r.state.pipe_in = (struct cuda_pipe *)&r;
    assert_int_equal(read_some(&r, n, &h), STATUS_OK);
    assert_true(h.rows == 4 && h.place == 2 && !h.host);
    assert_int_equal(read_some(&r, BYTES, &h), STATUS_LINK_PROTOCOL); // rows here as well
    rig_init(&r, (struct hidden_header){.step = 2, .rows = 4, .place = HIDDEN_SLOTS + 1});
    r.state.pipe_in = (struct cuda_pipe *)&r;
    assert_int_equal(read_some(&r, n, &h), STATUS_LINK_PROTOCOL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_in_the_message),
        cmocka_unit_test(test_too_many_rows),
        cmocka_unit_test(test_rows_in_the_pipe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
