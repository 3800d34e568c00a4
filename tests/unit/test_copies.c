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
#include "coordinator/follower.h"
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

static void test_clients_wait_for_followers(void **state)
{
    struct copier c = {.mode = COPY_SYNC};
    struct coord_action a = tokens(1, 0);
    assert_false(copier_hold(&c, &a)); // no follower: nobody waits
    assert_int_equal(copier_syncing(&c, 7, false), 1);
    assert_true(copier_hold(&c, &a)); // it has not even SYNCED
    const struct coord_action done = {.kind = COORD_DONE, .done = {.request = 1, .text = "why"}};
    assert_int_equal(copier_stamp(&c), 2); // the next token
    assert_true(copier_hold(&c, &done));
    assert_false(copier_hold(&c, &(struct coord_action){.kind = COORD_SET_TIMER}));
    copier_ack(&c, 7, 1);
    assert_true(copier_peer(&c, 7)->synced);
    const struct coord_action *got = copier_next(&c);
    assert_int_equal(got->kind, COORD_TOKENS);
    assert_ptr_not_equal(got->tokens.tokens, a.tokens.tokens);
    assert_int_equal(got->tokens.tokens[0].top[1].token, 6);
    assert_null(copier_next(&c));
    copier_ack(&c, 7, 9); // never sent
    copier_ack(&c, 8, 2); // of nobody
    assert_null(copier_next(&c));
    copier_ack(&c, 7, 2);
    got = copier_next(&c);
    assert_string_equal(got->done.text, "why");
    assert_null(copier_next(&c));
    assert_false(copier_hold(&c, &a)); // all is acknowledged
    copier_stamp(&c);
    assert_true(copier_hold(&c, &a));
    copier_lost(&c, 7); // it died: what waited goes out
    assert_non_null(copier_next(&c));
    assert_null(copier_next(&c));
    copier_finish(&c);
}

static void test_clients_wait_for_all(void **state)
{
    struct copier c = {.mode = COPY_SYNC};
    struct coord_action a = tokens(1, 0);
    copier_syncing(&c, 1, false);
    copier_ack(&c, 1, 1);
    copier_syncing(&c, 2, false);
    assert_int_equal(copier_syncing(&c, 3, true), 1); // far away
    copier_ack(&c, 2, 1);
    copier_stamp(&c);
    assert_true(copier_hold(&c, &a));
    copier_ack(&c, 1, 2);
    assert_null(copier_next(&c)); // any of the two may lead next
    copier_ack(&c, 2, 2);
    assert_non_null(copier_next(&c));
    assert_null(copier_next(&c));
    for (uint64_t id = 4; c.peers_n < COPIER_PEERS; id++)
        copier_syncing(&c, id, true);
    assert_int_equal(copier_syncing(&c, 99, true), 0);
    copier_finish(&c);
}

static void test_a_silent_follower_is_stuck(void **state)
{
    struct copier c = {.mode = COPY_SYNC};
    copier_syncing(&c, 7, false);
    assert_int_equal(copier_stuck(&c, 1000000, 500), 0); // its time begins
    assert_int_equal(copier_stuck(&c, 1500000, 500), 0);
    assert_int_equal(copier_stuck(&c, 1500001, 500), 7);
    copier_ack(&c, 7, 1);
    assert_int_equal(copier_stuck(&c, 9000000, 500), 0); // it owes nothing, however long
    assert_int_equal(copier_stuck(&c, 99000000, 500), 0);
    copier_stamp(&c);
    copier_stamp(&c);
    assert_int_equal(copier_stuck(&c, 99400000, 500), 0);
    copier_ack(&c, 7, 2); // one of two: it moves
    assert_int_equal(copier_stuck(&c, 99600000, 500), 0);
    assert_int_equal(copier_stuck(&c, 100100000, 500), 0);
    assert_int_equal(copier_stuck(&c, 100100001, 500), 7);
    copier_lost(&c, 7);
    copier_syncing(&c, 8, false); // the next one is given its own time
    assert_int_equal(copier_stuck(&c, 200000000, 500), 0);
    copier_finish(&c);
}

static void test_async_never_waits(void **state)
{
    struct copier c = {.mode = COPY_ASYNC};
    struct coord_action a = tokens(1, 0);
    copier_syncing(&c, 1, false);
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

static struct copy_record synced(uint64_t seq)
{
    return (struct copy_record){.what = COPY_SYNCED, .seq = seq};
}

static void test_shadow(void **state)
{
    struct shadow s = {0};
    struct errmsg err = {0};
    struct copy_record drain = {.what = COPY_MARK, .node = "n7", .mark = COPY_MARK_DRAIN};
    struct copy_record kept = submit(0, 43); // finished: its prompt is gone
    kept.journal.prompt_n = 0;
    kept.prompt_n = 3;
    assert_int_equal(give(&s, drain, &err), STATUS_OK);
    assert_int_equal(give(&s, submit(0, 42), &err), STATUS_OK);
    assert_int_equal(give(&s, answer(0, 42, 0), &err), STATUS_OK);
    assert_int_equal(give(&s, kept, &err), STATUS_OK);
    assert_int_equal(give(&s, synced(4), &err), STATUS_OK);
    assert_int_equal(give(&s, answer(5, 42, 2), &err), STATUS_OK);
    struct shadow_request *q = s.requests;
    assert_true(s.synced && s.n == 2 && s.epoch == 1005);
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
    assert_null(shadow_find(&s, 43)->restore.submit.prompt);
    assert_int_equal(shadow_find(&s, 43)->restore.submit.prompt_n, 3);
    assert_int_equal(s.marks->mark, COPY_MARK_DRAIN);
    drain.mark = COPY_MARK_NONE;
    drain.seq = 6;
    assert_int_equal(give(&s, drain, &err), STATUS_OK);
    assert_null(s.marks);
    const struct copy_record end = {
        .what = COPY_DONE, .seq = 7, .request = 42, .finish = FINISH_STOP, .emitted_n = 3};
    assert_int_equal(give(&s, end, &err), STATUS_OK);
    assert_int_equal(q->restore.emitted_n, 3); // one was behind the stop string
    assert_int_equal(
        give(&s, (struct copy_record){.what = COPY_FORGET, .seq = 8, .request = 42}, &err),
        STATUS_OK);
    assert_int_equal(
        give(&s, (struct copy_record){.what = COPY_REFUSED, .seq = 9, .request = 43}, &err),
        STATUS_OK);
    assert_int_equal(s.n, 0);
    shadow_clear(&s);
}

static void test_shadow_refuses(void **state)
{
    const struct copy_record bad[] = {
        answer(4, 42, 2), // a record is missing
        answer(0, 42, 2), // it has no number
        answer(3, 42, 3), // a token is missing
        answer(3, 42, 0), // tokens twice
        submit(3, 42),    // a request twice
        synced(3),        // all was said before
        {.what = COPY_DONE, .seq = 3, .request = 42, .finish = 1, .emitted_n = 9},
        {.what = COPY_DONE, .seq = 3, .request = 42},                    // no reason
        {.what = COPY_TOKENS, .seq = 3, .request = 0},                   // of nobody
        {.what = COPY_SUBMIT, .seq = 3, .request = 7, .tenant = "\xff"}, // no text
        {.what = COPY_MARK, .seq = 3, .node = "a b"},                    // no name
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct shadow s = {0};
        struct errmsg err = {0};
        struct copy_record r = bad[i];
        assert_int_equal(give(&s, submit(0, 42), &err), STATUS_OK);
        assert_int_equal(give(&s, answer(0, 42, 0), &err), STATUS_OK);
        assert_int_equal(give(&s, synced(2), &err), STATUS_OK);
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

// ---- a follower with clients ----

struct said {
    struct {
        enum copy_kind kind;
        uint64_t request;
        uint32_t emitted_n, deadline_ms;
        enum copy_word_kind word;
    } v[16];
    int n;
};

static void say(void *arg, const struct copy *c)
{
    struct said *s = arg;
    assert_true(s->n < 16);
    s->v[s->n].kind = c->kind;
    if (c->kind == COPY_ASK) {
        s->v[s->n].request = c->record.request;
        s->v[s->n].emitted_n = c->record.journal.emitted_n;
        s->v[s->n].deadline_ms = c->record.deadline_ms;
    } else {
        s->v[s->n].request = c->word.request;
        s->v[s->n].word = c->word.word;
    }
    s->n++;
}

static struct coord_action take(struct follower *f, struct copy_record r)
{
    struct errmsg err = {0};
    struct coord_action a = {.kind = COORD_SET_TIMER};
    bool seen;
    if (!r.text)
        r.text = "";
    assert_int_equal(follower_take(f, &r, 1000000, &seen, &a, &err), STATUS_OK);
    return a;
}

static void test_asked_of_the_next_leader(void **state)
{
    struct said s = {0};
    struct follower f = {.say = say, .arg = &s};
    struct copy_record ask = submit(0, 42), other = submit(0, 43);
    follower_submit(&f, &ask, 3000000, 1000000); // nobody leads
    assert_int_equal(s.n, 0);
    follower_up(&f);
    assert_int_equal(s.n, 0); // not before it is known what that one has
    take(&f, synced(1));
    assert_true(s.n == 1 && s.v[0].kind == COPY_ASK && s.v[0].request == 42);
    assert_int_equal(s.v[0].deadline_ms, 2000);
    assert_int_equal(take(&f, submit(2, 42)).kind, COORD_TOKENS); // accepted
    assert_int_equal(take(&f, answer(3, 42, 0)).tokens.tokens_n, 2);
    follower_submit(&f, &other, 0, 1000000); // its record never comes
    follower_down(&f);
    s.n = 0;
    follower_up(&f); // the next one knows neither
    take(&f, synced(1));
    assert_int_equal(s.n, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(s.v[i].kind, COPY_ASK);
        assert_int_equal(s.v[i].emitted_n, s.v[i].request == 42 ? 2 : 0);
    }
    follower_finish(&f);
}

static void test_readers_are_told_once(void **state)
{
    struct said s = {0};
    struct follower f = {.say = say, .arg = &s};
    follower_up(&f);
    take(&f, submit(0, 42));
    take(&f, synced(1));
    follower_attach(&f, 42);
    follower_attach(&f, 42);
    assert_true(s.n == 1 && s.v[0].word == COPY_WORD_ATTACH);
    follower_detach(&f, 42);
    assert_int_equal(s.n, 1);
    follower_cancel(&f, 42);
    assert_true(s.n == 2 && s.v[1].word == COPY_WORD_CANCEL);
    follower_down(&f);
    s.n = 0;
    follower_up(&f);
    take(&f, submit(0, 42));
    take(&f, synced(1)); // the next one hears both
    assert_true(s.n == 2 && s.v[0].word == COPY_WORD_ATTACH && s.v[1].word == COPY_WORD_CANCEL);
    follower_detach(&f, 42);
    assert_true(s.n == 3 && s.v[2].word == COPY_WORD_DETACH);
    follower_finish(&f);
}

static void test_overdue_without_a_leader(void **state)
{
    struct follower f = {.say = say};
    struct copy_record ask = submit(0, 42);
    follower_submit(&f, &ask, 2000000, 1000000);
    assert_int_equal(follower_overdue(&f, 1999999), 0);
    assert_int_equal(follower_overdue(&f, 2000000), 42);
    assert_int_equal(follower_overdue(&f, 2000000), 0);
    assert_null(f.reads);
    follower_finish(&f);
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
        cmocka_unit_test(test_clients_wait_for_followers),
        cmocka_unit_test(test_clients_wait_for_all),
        cmocka_unit_test(test_a_silent_follower_is_stuck),
        cmocka_unit_test(test_async_never_waits),
        cmocka_unit_test(test_shadow),
        cmocka_unit_test(test_shadow_refuses),
        cmocka_unit_test(test_asked_of_the_next_leader),
        cmocka_unit_test(test_readers_are_told_once),
        cmocka_unit_test(test_overdue_without_a_leader),
        cmocka_unit_test(test_file_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
