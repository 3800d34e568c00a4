// client/: against a scripted coordinator in a thread: many streams, broken links at every place,
// flow control, refusals, nonsense.
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "client/hadal.h"
#include "proto/wire.h"

// The scripted coordinator: every request has the same answer, token i is 100 + i with the text
// "<i>", and the link breaks after each `cut` tokens written on it.
enum { ANSWER_N = 20 };

struct server {
    int listener, port;
    pthread_t thread;
    unsigned cut;         // 0 = never
    bool break_first;     // closes the first connection before ACCEPTED
    bool garbage;         // answers with bytes that are no frame
    enum rpc_code refuse; // answers GENERATE with this
    volatile bool stop;
    // seen
    volatile unsigned connections, generates, attaches, credits, cancels;
    volatile uint32_t max_in_flight;
};

struct peer {
    struct server *sv;
    int fd;
    struct wire_decoder in;
    struct wire_arena arena;
    struct strbuf out;
    unsigned written; // tokens, on this connection
    struct served {
        bool on;
        uint32_t next, credit, acked;
    } streams[8];
};

static void say(struct peer *p, uint32_t stream, const struct rpc *r)
{
    strbuf_clear(&p->out);
    assert_int_equal(wire_encode_rpc(&p->arena, stream, r, &p->out), STATUS_OK);
    if (send(p->fd, p->out.v, p->out.n, MSG_NOSIGNAL) < 0)
        p->written = UINT32_MAX;
}

// False: the connection is to be cut.
static bool serve_tokens(struct peer *p, uint32_t id)
{
    struct served *s = &p->streams[id];
    while (s->next < ANSWER_N && s->credit) {
        char text[16];
        int n = snprintf(text, sizeof text, "<%u>", s->next);
        const struct rpc_token token = {.id = (int32_t)(100 + s->next)};
        say(p, id,
            &(struct rpc){.kind = RPC_TOKENS,
                          .tokens = {s->next, &token, 1, {text, (size_t)n}, {"", 0}}});
        s->next++;
        s->credit--;
        if (p->sv->cut && ++p->written >= p->sv->cut)
            return false;
    }
    if (s->next == ANSWER_N && s->on) {
        s->on = false;
        say(p, id,
            &(struct rpc){.kind = RPC_DONE,
                          .done = {FINISH_LENGTH, 3, ANSWER_N, 1, 0, {"!", 1}, {"", 0}}});
    }
    return true;
}

static bool on_frame(struct peer *p, const struct wire_frame *f)
{
    struct rpc r;
    assert_int_equal(wire_decode_rpc(&p->arena, f, &r, NULL), STATUS_OK);
    struct served *s = &p->streams[f->stream];
    if (r.kind == RPC_GENERATE) {
        p->sv->generates++;
        if (p->sv->break_first && p->sv->connections == 1)
            return false;
        if (p->sv->refuse) {
            say(p, f->stream,
                &(struct rpc){.kind = RPC_ERROR,
                              .error = {p->sv->refuse, "queue_full", 1500, "busy"}});
            return true;
        }
        *s = (struct served){true, 0, r.generate.window, 0};
        if (r.generate.window > p->sv->max_in_flight)
            p->sv->max_in_flight = r.generate.window;
    } else if (r.kind == RPC_ATTACH) {
        p->sv->attaches++;
        assert_true(r.attach.request >= 70 && r.attach.from <= ANSWER_N);
        *s = (struct served){true, r.attach.from, r.attach.window, 0};
    } else if (r.kind == RPC_CREDIT) {
        p->sv->credits++;
        s->credit += r.credit.tokens;
    } else if (r.kind == RPC_CANCEL) {
        p->sv->cancels++;
        s->on = false;
        say(p, f->stream, &(struct rpc){.kind = RPC_DONE, .done = {FINISH_CANCELLED}});
        return true;
    }
    if (r.kind == RPC_GENERATE || r.kind == RPC_ATTACH) {
        if (p->sv->garbage)
            return send(p->fd, "HTTP/1.1 400 Bad Request\r\n\r\n", 28, MSG_NOSIGNAL) < 0;
        say(p, f->stream, &(struct rpc){.kind = RPC_ACCEPTED, .accepted = {70 + f->stream, 3}});
        say(p, f->stream, &(struct rpc){.kind = RPC_QUEUED, .queued = {1, 5}});
    }
    return serve_tokens(p, f->stream);
}

static void serve(struct server *sv, int fd)
{
    struct peer p = {.sv = sv, .fd = fd};
    char buf[4096];
    bool go = true;
    wire_decoder_init(&p.in, 0);
    while (go && !sv->stop) {
        struct pollfd pf = {.fd = fd, .events = POLLIN};
        if (poll(&pf, 1, 20) <= 0)
            continue;
        ssize_t n = read(fd, buf, sizeof buf);
        if (n <= 0)
            break;
        wire_decoder_feed(&p.in, buf, (size_t)n);
        struct wire_frame f;
        while (go && !wire_decoder_next(&p.in, &f, NULL))
            go = on_frame(&p, &f);
    }
    wire_decoder_finish(&p.in);
    wire_arena_finish(&p.arena);
    strbuf_finish(&p.out);
    close(fd);
}

static void *run_server(void *arg)
{
    struct server *sv = arg;
    while (!sv->stop) {
        struct pollfd pf = {.fd = sv->listener, .events = POLLIN};
        if (poll(&pf, 1, 20) <= 0)
            continue;
        int fd = accept(sv->listener, NULL, NULL);
        sv->connections++;
        serve(sv, fd);
    }
    return NULL;
}

static void server_start(struct server *sv)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    sv->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(sv->listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(sv->listener, 8), 0);
    assert_int_equal(getsockname(sv->listener, (struct sockaddr *)&a, &n), 0);
    sv->port = ntohs(a.sin_port);
    assert_int_equal(pthread_create(&sv->thread, NULL, run_server, sv), 0);
}

static void server_stop(struct server *sv)
{
    sv->stop = true;
    pthread_join(sv->thread, NULL);
    close(sv->listener);
}

static struct hadal_client *client_of(const struct server *sv, uint32_t window)
{
    char url[64];
    struct hadal_error err;
    const struct hadal_options o = {.window = window, .retry_ms = 3000};
    snprintf(url, sizeof url, "hadal://127.0.0.1:1,127.0.0.1:%d", sv->port); // one dead address
    struct hadal_client *c = hadal_open(url, &o, &err);
    assert_non_null(c);
    return c;
}

static struct hadal_stream *ask(struct hadal_client *c)
{
    struct hadal_error err = {0};
    struct hadal_request q = HADAL_REQUEST_INIT;
    q.text = "x";
    q.text_n = 1;
    struct hadal_stream *s = hadal_generate(c, &q, &err);
    if (!s)
        fail_msg("%s", err.text);
    return s;
}

// Reads the whole answer and checks every token.
static void check_answer(struct hadal_stream *s)
{
    struct hadal_event ev;
    struct hadal_error err = {0};
    struct strbuf text = {0}, want = {0};
    uint32_t next = 0, accepted = 0, done = 0;
    enum hadal_result r;
    while ((r = hadal_next(s, 5000, &ev, &err)) == HADAL_OK) {
        accepted += ev.kind == HADAL_ACCEPTED;
        done += ev.kind == HADAL_DONE;
        for (size_t i = 0; i < ev.tokens_n; i++) {
            assert_int_equal(ev.first + i, next);
            assert_int_equal(ev.tokens[i].id, 100 + next);
            next++;
        }
        strbuf_add(&text, ev.text, ev.text_n);
    }
    if (r != HADAL_END)
        fail_msg("%d: %s", r, err.text);
    assert_int_equal(next, ANSWER_N);
    assert_int_equal(accepted, 1);
    assert_int_equal(done, 1);
    for (int i = 0; i < ANSWER_N; i++)
        strbuf_printf(&want, "<%d>", i);
    strbuf_puts(&want, "!");
    assert_string_equal(text.v, want.v);
    assert_int_equal(hadal_next(s, 0, &ev, &err), HADAL_END);
    strbuf_finish(&text);
    strbuf_finish(&want);
    hadal_stream_close(s);
}

static void test_plain(void **state)
{
    struct server sv = {0};
    server_start(&sv);
    struct hadal_client *c = client_of(&sv, 0);
    check_answer(ask(c));
    hadal_close(c);
    server_stop(&sv);
    assert_int_equal(sv.generates, 1);
    assert_int_equal(sv.attaches, 0);
}

static void test_many_streams(void **state)
{
    struct server sv = {0};
    server_start(&sv);
    struct hadal_client *c = client_of(&sv, 4);
    struct hadal_stream *s[5];
    for (int i = 0; i < 5; i++)
        s[i] = ask(c);
    for (int i = 4; i >= 0; i--)
        check_answer(s[i]);
    hadal_close(c);
    server_stop(&sv);
    assert_int_equal(sv.connections, 1);
    assert_int_equal(sv.max_in_flight, 4);
    assert_true(sv.credits >= 5 * (ANSWER_N / 4 - 1));
}

// The link breaks after every k tokens: nothing is lost, nothing comes twice.
static void test_broken_links(void **state)
{
    for (unsigned cut = 1; cut <= 7; cut += 2) {
        struct server sv = {.cut = cut};
        server_start(&sv);
        struct hadal_client *c = client_of(&sv, 3);
        struct hadal_stream *a = ask(c), *b = ask(c);
        check_answer(a);
        check_answer(b);
        hadal_close(c);
        server_stop(&sv);
        assert_true(sv.attaches >= 2 * ANSWER_N / cut - 2);
    }
}

static void test_broken_before_accepted(void **state)
{
    struct server sv = {.break_first = true};
    server_start(&sv);
    struct hadal_client *c = client_of(&sv, 0);
    check_answer(ask(c));
    hadal_close(c);
    server_stop(&sv);
    assert_int_equal(sv.generates, 2);
}

static void test_refused(void **state)
{
    struct server sv = {.refuse = RPC_CODE_RESOURCE_EXHAUSTED};
    server_start(&sv);
    struct hadal_client *c = client_of(&sv, 0);
    struct hadal_stream *s = ask(c);
    struct hadal_event ev;
    struct hadal_error err;
    assert_int_equal(hadal_next(s, 5000, &ev, &err), HADAL_FAILED);
    assert_int_equal(err.code, 8);
    assert_string_equal(err.reason, "queue_full");
    assert_int_equal(err.retry_after_ms, 1500);
    assert_string_equal(hadal_code_name(err.code), "RESOURCE_EXHAUSTED");
    assert_int_equal(hadal_next(s, 0, &ev, &err), HADAL_FAILED);
    hadal_close(c);
    server_stop(&sv);
}

// A peer that talks nonsense is left; after retry_ms the stream fails.
static void expect_unavailable(struct server *sv)
{
    server_start(sv);
    struct hadal_client *c = client_of(sv, 0);
    struct hadal_stream *s = ask(c);
    struct hadal_event ev;
    struct hadal_error err = {0};
    enum hadal_result r;
    while ((r = hadal_next(s, 8000, &ev, &err)) == HADAL_OK)
        assert_true(ev.kind == HADAL_ACCEPTED || ev.kind == HADAL_QUEUED);
    assert_int_equal(r, HADAL_FAILED);
    assert_int_equal(err.code, RPC_CODE_UNAVAILABLE);
    hadal_close(c);
    server_stop(sv);
}

static void test_nonsense(void **state)
{
    expect_unavailable(&(struct server){.garbage = true});
}

static void test_cancel_and_timeout(void **state)
{
    struct server sv = {0};
    server_start(&sv);
    struct hadal_client *c = client_of(&sv, 2);
    struct hadal_stream *s = ask(c);
    struct hadal_event ev;
    struct hadal_error err;
    hadal_cancel(s);
    enum hadal_result r;
    const char *finish = "";
    while ((r = hadal_next(s, 5000, &ev, &err)) == HADAL_OK)
        finish = ev.kind == HADAL_DONE ? ev.finish : finish;
    assert_int_equal(r, HADAL_END);
    assert_string_equal(finish, "cancelled");
    hadal_close(c);
    server_stop(&sv);
}

// Closing a stream cancels its request; closing the client leaves it.
static void test_close(void **state)
{
    struct server sv = {0};
    server_start(&sv);
    struct hadal_client *c = client_of(&sv, 2);
    struct hadal_event ev;
    struct hadal_error err;
    struct hadal_stream *a = ask(c), *b = ask(c);
    assert_int_equal(hadal_next(a, 5000, &ev, &err), HADAL_OK);
    hadal_stream_close(a);
    check_answer(b); // by then the cancellation has arrived: one link, in order
    assert_int_equal(sv.cancels, 1);
    assert_int_equal(hadal_next(ask(c), 5000, &ev, &err), HADAL_OK);
    hadal_close(c);
    server_stop(&sv);
    assert_int_equal(sv.cancels, 1);
}

static void test_nobody_there(void **state)
{
    struct hadal_error err = {0};
    struct hadal_event ev;
    const struct hadal_options o = {.retry_ms = 300};
    struct hadal_client *c = hadal_open("127.0.0.1:1", &o, &err);
    struct hadal_stream *s = ask(c);
    assert_int_equal(hadal_next(s, 50, &ev, &err), HADAL_TIMEOUT);
    assert_int_equal(hadal_next(s, 5000, &ev, &err), HADAL_FAILED);
    assert_int_equal(err.code, RPC_CODE_UNAVAILABLE);
    hadal_close(c);
}

static void test_bad_arguments(void **state)
{
    const char *urls[] = {"",           "host",    "host:", ":1",      "host:0",
                          "host:65536", "host:1x", "a:1,",  "hadal://"};
    struct hadal_error err;
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++)
        assert_null(hadal_open(urls[i], NULL, &err));
    struct hadal_client *c = hadal_open("hadal://[::1]:1,localhost:2", NULL, &err);
    assert_non_null(c);
    struct hadal_request q = HADAL_REQUEST_INIT;
    assert_null(hadal_generate(c, &q, &err)); // no prompt
    q.text = "\xFF";
    q.text_n = 1;
    assert_null(hadal_generate(c, &q, &err));
    assert_non_null(strstr(err.text, "UTF-8"));
    q.text = "x";
    q.top_logprobs = 21;
    assert_null(hadal_generate(c, &q, &err));
    assert_null(hadal_attach(c, 0, 0, &err));
    hadal_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_many_streams),
        cmocka_unit_test(test_broken_links),
        cmocka_unit_test(test_broken_before_accepted),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_cancel_and_timeout),
        cmocka_unit_test(test_close),
        cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
