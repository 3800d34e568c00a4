// Copies between coordinators: what clients may see when, what a standby takes, and what it
// refuses; the frames; leadership by a file.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "coordinator/copier.h"
#include "coordinator/shadow.h"
#include "coordinator/store.h"
#include "proto/wire.h"

static const int32_t prompt[] = {1, 2, 3};
static const struct logprob top[] = {{5, -0.5f}, {6, -1}};

static struct coord_action tokens(uint64_t request, uint32_t index)
{
    static struct token_out t;
    t = (struct token_out){.request = request, .index = index, .token = 7, .top_n = 2, .top = top};
    return (struct coord_action){.kind = COORD_TOKENS, .tokens = {request, index, &t, 1, 99}};
}

static void test_clients_wait_for_the_standby(void **state)
{
    struct copier c = {.mode = COPY_SYNC};
    struct coord_action a = tokens(1, 0);
    copier_stamp(&c);
    assert_false(copier_hold(&c, &a)); // no standby: nobody waits
    copier_syncing(&c, copier_stamp(&c));
    copier_stamp(&c); // record 3: the token
    assert_true(copier_hold(&c, &a));
    const struct coord_action done = {.kind = COORD_DONE, .done = {.request = 1, .text = "why"}};
    assert_true(copier_hold(&c, &done)); // behind it
    assert_false(copier_hold(&c, &(struct coord_action){.kind = COORD_SET_TIMER}));
    copier_ack(&c, 2);
    assert_true(c.synced);
    assert_null(copier_next(&c));
    copier_ack(&c, 9); // never sent
    assert_null(copier_next(&c));
    copier_ack(&c, 3);
    const struct coord_action *got = copier_next(&c);
    assert_int_equal(got->kind, COORD_TOKENS);
    assert_ptr_not_equal(got->tokens.tokens, a.tokens.tokens);
    assert_int_equal(got->tokens.tokens[0].top[1].token, 6);
    got = copier_next(&c);
    assert_string_equal(got->done.text, "why");
    assert_null(copier_next(&c));
    assert_false(copier_hold(&c, &a)); // all is acknowledged
    copier_stamp(&c);
    assert_true(copier_hold(&c, &a));
    copier_lost(&c); // the standby died: what waited goes out
    assert_non_null(copier_next(&c));
    assert_null(copier_next(&c));
    copier_finish(&c);
}

static void test_a_silent_standby_is_stuck(void **state)
{
    struct copier c = {.mode = COPY_SYNC};
    copier_syncing(&c, copier_stamp(&c));
    assert_false(copier_stuck(&c, 1000000, 500)); // its time begins
    assert_false(copier_stuck(&c, 1500000, 500));
    assert_true(copier_stuck(&c, 1500001, 500));
    copier_ack(&c, 1);
    assert_false(copier_stuck(&c, 9000000, 500)); // it owes nothing, however long
    assert_false(copier_stuck(&c, 99000000, 500));
    copier_stamp(&c);
    copier_stamp(&c);
    assert_false(copier_stuck(&c, 99400000, 500));
    copier_ack(&c, 2); // one of two: it moves
    assert_false(copier_stuck(&c, 99600000, 500));
    assert_false(copier_stuck(&c, 100100000, 500));
    assert_true(copier_stuck(&c, 100100001, 500));
    copier_lost(&c);
    copier_syncing(&c, copier_stamp(&c)); // the next one is given its own time
    assert_false(copier_stuck(&c, 200000000, 500));
    copier_finish(&c);
}

static void test_async_never_waits(void **state)
{
    struct copier c = {.mode = COPY_ASYNC};
    struct coord_action a = tokens(1, 0);
    copier_syncing(&c, copier_stamp(&c));
    copier_stamp(&c);
    assert_false(copier_hold(&c, &a));
    copier_finish(&c);
}

static struct copy_record submit(uint64_t seq, uint64_t request)
{
    static const struct rpc_text stop[] = {{"END", 3}};
    return (struct copy_record){.what = COPY_SUBMIT,
                                .seq = seq,
                                .request = request,
                                .tenant = "gold",
                                .model = "r1",
                                .pool = "r1-long",
                                .session = 5,
                                .journal = {.request = request,
                                            .prompt = prompt,
                                            .prompt_n = 3,
                                            .max_tokens = 10,
                                            .band = 4,
                                            .sampling = {.top_p = 1, .repetition_penalty = 1}},
                                .head = {.api = 1, .created = 77, .stop = stop, .stop_n = 1}};
}

static struct copy_record answer(uint64_t seq, uint64_t request, uint32_t first)
{
    static struct token_out t[2];
    for (uint32_t i = 0; i < 2; i++)
        t[i] = (struct token_out){.request = request,
                                  .index = first + i,
                                  .token = (int32_t)(10 + i),
                                  .logprob = -1,
                                  .top_n = 2,
                                  .top = top};
    return (struct copy_record){.what = COPY_TOKENS,
                                .seq = seq,
                                .request = request,
                                .first = first,
                                .tokens = t,
                                .tokens_n = 2,
                                .fingerprint = 99};
}

// Through a frame, as between processes.
static enum status give(struct shadow *s, struct copy_record r, struct errmsg *err)
{
    struct wire_arena a = {0};
    struct strbuf out = {0};
    struct wire_decoder d;
    struct wire_frame f;
    struct copy c;
    r.epoch = 1000 + r.seq;
    if (!r.text)
        r.text = "";
    assert_int_equal(wire_encode_copy(&a, &(struct copy){.kind = COPY_RECORD, .record = r}, &out),
                     STATUS_OK);
    wire_decoder_init(&d, 0);
    wire_decoder_feed(&d, out.v, out.n);
    assert_int_equal(wire_decoder_next(&d, &f, err), STATUS_OK);
    enum status st = wire_decode_copy(&a, &f, &c, err);
    if (!st)
        st = shadow_take(s, &c.record, err);
    wire_decoder_finish(&d);
    wire_arena_finish(&a);
    strbuf_finish(&out);
    return st;
}

static void test_shadow(void **state)
{
    struct shadow s = {0};
    struct errmsg err = {0};
    assert_int_equal(give(&s, submit(1, 42), &err), STATUS_OK);
    assert_int_equal(give(&s, answer(2, 42, 0), &err), STATUS_OK);
    assert_int_equal(give(&s, answer(3, 42, 2), &err), STATUS_OK);
    assert_int_equal(give(&s, (struct copy_record){.what = COPY_SYNCED, .seq = 4}, &err),
                     STATUS_OK);
    struct shadow_request *q = s.requests;
    assert_true(s.synced && s.n == 1 && s.epoch == 1004);
    assert_int_equal(q->restore.emitted_n, 4);
    assert_int_equal(q->restore.emitted[3], 11);
    assert_int_equal(q->tokens[3].top[0].token, 5);
    assert_int_equal(q->restore.fingerprint, 99);
    assert_string_equal(q->restore.submit.tenant, "gold");
    assert_string_equal(q->restore.submit.model, "r1");
    assert_string_equal(q->restore.submit.pool, "r1-long");
    assert_int_equal(q->restore.submit.band, 4);
    assert_memory_equal(q->head.stop[0].v, "END", 3);
    assert_int_equal(q->head.created, 77);
    const struct copy_record end = {
        .what = COPY_DONE, .seq = 5, .request = 42, .finish = FINISH_STOP, .emitted_n = 3};
    assert_int_equal(give(&s, end, &err), STATUS_OK);
    assert_int_equal(q->restore.emitted_n, 3); // one was behind the stop string
    assert_int_equal(
        give(&s, (struct copy_record){.what = COPY_FORGET, .seq = 6, .request = 42}, &err),
        STATUS_OK);
    assert_int_equal(s.n, 0);
    shadow_clear(&s);
}

static void test_shadow_refuses(void **state)
{
    const struct copy_record bad[] = {
        answer(4, 42, 2), // a record is missing
        answer(3, 42, 3), // a token is missing
        answer(3, 42, 0), // tokens twice
        submit(3, 42),    // a request twice
        {.what = COPY_DONE, .seq = 3, .request = 42, .finish = 1, .emitted_n = 9},
        {.what = COPY_DONE, .seq = 3, .request = 42},                    // no reason
        {.what = COPY_TOKENS, .seq = 3, .request = 0},                   // of nobody
        {.what = COPY_SUBMIT, .seq = 3, .request = 7, .tenant = "\xff"}, // no text
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct shadow s = {0};
        struct errmsg err = {0};
        struct copy_record r = bad[i];
        assert_int_equal(give(&s, submit(1, 42), &err), STATUS_OK);
        assert_int_equal(give(&s, answer(2, 42, 0), &err), STATUS_OK);
        if (r.what == COPY_TOKENS && r.request) // made before others of the same array
            r = answer(r.seq, r.request, r.first);
        if (r.what == COPY_SUBMIT && r.request == 7)
            r = (struct copy_record){.what = COPY_SUBMIT,
                                     .seq = 3,
                                     .request = 7,
                                     .tenant = "\xff",
                                     .journal = submit(3, 7).journal};
        if (give(&s, r, &err) != STATUS_LINK_PROTOCOL)
            fail_msg("case %zu was taken", i);
        shadow_clear(&s);
    }
}

static void nothing(void *arg)
{
}

static bool leads(struct store *s, bool want)
{
    struct store_view v;
    for (int i = 0; i < 200; i++) {
        store_look(s, &v);
        if (v.leads == want && v.leader.name[0])
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    return false;
}

static void test_file_store(void **state)
{
    char path[] = "/tmp/hadal-store-XXXXXX", url[64];
    struct errmsg err = {0};
    struct store *a, *b;
    struct store_view v;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    snprintf(url, sizeof url, "file:%s", path);
    struct store_args args = {.url = url,
                              .cluster = "c",
                              .me = {"a", "http://h:1", "h:2"},
                              .lease_ms = 1000,
                              .changed = nothing};
    assert_int_equal(store_open(&args, &a, &err), STATUS_OK);
    assert_true(leads(a, true));
    args.me = (struct store_member){"b", "http://h:3", "h:4"};
    assert_int_equal(store_open(&args, &b, &err), STATUS_OK);
    assert_true(leads(b, false));
    store_look(b, &v);
    assert_string_equal(v.leader.name, "a");
    assert_string_equal(v.leader.rpc, "h:2");
    store_close(a);
    assert_true(leads(b, true));
    store_close(b);
    unlink(path);
    args.url = "mist:x";
    assert_int_equal(store_open(&args, &a, &err), STATUS_BAD_CONFIG);
    args.url = "file:/nowhere/at/all";
    assert_int_equal(store_open(&args, &a, &err), STATUS_BAD_CONFIG);
    args.url = "etcd:ftp://x";
    assert_int_equal(store_open(&args, &a, &err), STATUS_BAD_CONFIG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clients_wait_for_the_standby),
        cmocka_unit_test(test_a_silent_standby_is_stuck),
        cmocka_unit_test(test_async_never_waits),
        cmocka_unit_test(test_shadow),
        cmocka_unit_test(test_shadow_refuses),
        cmocka_unit_test(test_file_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
