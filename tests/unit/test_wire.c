// proto/: every message survives the wire, hostile bytes do not get through, frames are cut right
// whatever the pieces they arrive in.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "base/prng.h"
#include "proto/wire.h"

static const int32_t prompt[] = {1, 2, 3, 100000, LIMIT_VOCAB - 1};
static const int32_t emitted[] = {7, 0};
static const struct logprob top[] = {{5, -0.25f}, {6, -INFINITY}};
static const struct token_out tokens[] = {
    {.request = UINT64_MAX, .index = 0, .token = 9, .logprob = -1.5f, .top_n = 2, .top = top},
    {.request = 3, .index = 77, .token = -1, .finish = FINISH_ERROR, .cached_tokens = 16},
};
static const struct link_member members[] = {
    {"1", "h", {"shm:a", "tcp:b", ""}},
    {"a.b-c_d", "h2", {"", "", "verbs"}},
};
static const struct sampling sampling = {.seed = UINT64_MAX,
                                         .temperature = 0.7f,
                                         .top_p = 1,
                                         .min_p = 0.05f,
                                         .top_k = 40,
                                         .repetition_penalty = 1.1f,
                                         .presence_penalty = -2,
                                         .frequency_penalty = 2,
                                         .logprobs = true,
                                         .top_logprobs = 20};

static const struct kv_peer kv_target = {7, 8, 2, 1, 9, 16, members, 2};
static const struct kv_peer kv_source = {7, 8, 2, 1, 9, 16, NULL, 0};
static const struct weight_source sources[] = {{"node-1", {"shm:a", "tcp:b", ""}},
                                               {"node-2", {"", "", "verbs:c"}}};
static const struct kv_change kv_changes[] = {{0, UINT64_MAX}, {70000, 0}};

static const struct msg messages[] = {
    {.kind = MSG_HELLO, .hello = {MSG_VERSION, "node-1", 42, 1234, "host", "cpu", true}},
    {.kind = MSG_HEARTBEAT, .heartbeat = {1, 2, 3, 4, 5, {6, 7, 8, 9}, 10, 11, 12, 12, 1ull << 40}},
    {.kind = MSG_FORMED, .formed = {1, 2, STATUS_BAD_MODEL, "no weights", 5, 16, 4096, 512, 16, 2}},
    {.kind = MSG_TOKENS, .tokens = {1, 2, 3, tokens, 2, 4, 5, 6}},
    {.kind = MSG_CANCELLED, .cancelled = {1, 2, 3}},
    {.kind = MSG_FAULT, .fault = {1, 2, STATUS_NODE_NAN, -1, 3, "NaN in layer 3"}},
    {.kind = MSG_WELCOME, .welcome = {100}},
    {.kind = MSG_FORM, .form = {1, 2, "/models/x", 2, 2, 1, 0, TRANSPORT_TCP}},
    {.kind = MSG_PREPARED, .prepared = {1, 2, {"shm:a", "", "verbs:b"}}},
    {.kind = MSG_PREPARED, .prepared = {1, 2, {"shm:a", "", ""}, {"shm:m", "tcp:m", ""}}},
    {.kind = MSG_LINK, .link = {1, 2, members, 2}},
    {.kind = MSG_KV_CACHED, .kv_cached = {1, 2, 3, true, true, kv_changes, 2}},
    {.kind = MSG_KV_CACHED, .kv_cached = {1, 2, UINT64_MAX, false, false, NULL, 0}},
    {.kind = MSG_KV_LIST, .kv_list = {1, 2, true}},
    {.kind = MSG_KV_READY, .kv_ready = {1, 2, UINT64_MAX, 4, 4}},
    {.kind = MSG_KV_DONE,
     .kv_done = {1, 2, 3, KV_ROLE_TARGET, STATUS_DEADLINE, "the lease ran out", 32, 1ull << 40,
                 123456}},
    {.kind = MSG_KV_DONE, .kv_done = {1, 2, 3, KV_ROLE_SOURCE, STATUS_FULL, "", 0, 0, 0}},
    {.kind = MSG_KV_RECEIVE, .kv_receive = {1, 2, 3, prompt, 5, 1000, kv_source}},
    {.kind = MSG_KV_SEND, .kv_send = {1, 2, 3, UINT64_MAX, prompt, 5, 1, 1000, kv_target}},
    {.kind = MSG_KV_SEND, .kv_send = {1, 2, 3, 0, emitted, 2, 0, 1, kv_target}},
    {.kind = MSG_KV_CANCEL, .kv_cancel = {1, 2, 3}},
    {.kind = MSG_DISSOLVE, .dissolve = {1, 2}},
    {.kind = MSG_DISPATCH,
     .dispatch = {1, 2, {42, prompt, 5, emitted, 2, 100, {2, 3}, 2, 9, sampling}}},
    {.kind = MSG_DISPATCH,
     .dispatch = {1, 2, {42, prompt, 5, NULL, 0, 100, {2}, 1, 9, sampling}, true}},
    {.kind = MSG_CANCEL, .cancel = {1, 2, 3}},
    {.kind = MSG_HEARTBEAT,
     .heartbeat = {.steps = 3,
                   .gpu = {true, "NVIDIA H100", 100, 1ull << 36, 1ull << 37, 55, 700123, 1980, 7, 1,
                           79, 2, true, "XID 79, fell off the bus"}}},
    {.kind = MSG_FORMED,
     .formed = {.replica = 1,
                .epoch = 2,
                .text = "",
                .fingerprint = 9,
                .weights = {"shm:a", "tcp:b", ""},
                .loaded = {1ull << 40, 1ull << 33, 5000, 3, 2, 1}}},
    {.kind = MSG_FORM, .form = {1, 2, "/models/x", 2, 2, 1, 0, TRANSPORT_TCP, sources, 2, 77}},
};
enum { MESSAGES_N = sizeof messages / sizeof *messages };

static const struct rpc_message chat[] = {{"user", {"h\0i", 3}}, {"assistant", {"", 0}}};
static const struct rpc_text stops[] = {{"\n\n", 2}, {"END", 3}};
static const struct rpc_token rpc_tokens[] = {{4, -1, 2, top}, {5, 0, 0, NULL}};

static const struct rpc rpcs[] = {
    {.kind = RPC_GENERATE,
     .generate = {"m",
                  chat,
                  2,
                  {"", 0},
                  NULL,
                  0,
                  sampling,
                  RPC_GIVEN_SEED,
                  10,
                  stops,
                  2,
                  9,
                  "s",
                  1000,
                  64}},
    {.kind = RPC_GENERATE,
     .generate = {.model = "", .ids = prompt, .ids_n = 5, .session = "", .window = 1}},
    {.kind = RPC_ATTACH, .attach = {7, 100, 64}},
    {.kind = RPC_CANCEL},
    {.kind = RPC_CREDIT, .credit = {RPC_WINDOW}},
    {.kind = RPC_PING, .ping = {UINT64_MAX}},
    {.kind = RPC_ACCEPTED, .accepted = {1, 18}},
    {.kind = RPC_QUEUED, .queued = {1, 2}},
    {.kind = RPC_TOKENS, .tokens = {5, rpc_tokens, 2, {"caf\xC3\xA9", 5}, {"thought\n", 8}}},
    {.kind = RPC_DONE, .done = {FINISH_STOP, 1, 2, 3, 4, {"x", 1}, {"y", 1}}},
    {.kind = RPC_ERROR, .error = {RPC_CODE_RESOURCE_EXHAUSTED, "queue_full", 1500, "busy"}},
    {.kind = RPC_PONG, .ping = {3}},
};
enum { RPCS_N = sizeof rpcs / sizeof *rpcs };

static struct strbuf encode_msg(const struct msg *m)
{
    struct wire_arena a = {0};
    struct strbuf out = {0};
    assert_int_equal(wire_encode_msg(&a, m, &out), STATUS_OK);
    wire_arena_finish(&a);
    return out;
}

// Decodes one frame and encodes it again.
static enum status recode(const struct wire_frame *f, struct strbuf *out, struct errmsg *err)
{
    struct wire_arena a = {0}, b = {0};
    enum status s;
    if (f->type < RPC_GENERATE) {
        struct msg m;
        s = wire_decode_msg(&a, f, &m, err);
        if (!s) {
            char line[256];
            msg_describe(&m, line, sizeof line);
            struct msg *copy = msg_clone(&m);
            assert_int_equal(wire_encode_msg(&b, copy, out), STATUS_OK);
            msg_free(copy);
        }
    } else {
        struct rpc r;
        s = wire_decode_rpc(&a, f, &r, err);
        if (!s)
            assert_int_equal(wire_encode_rpc(&b, f->stream, &r, out), STATUS_OK);
    }
    wire_arena_finish(&a);
    wire_arena_finish(&b);
    return s;
}

static enum status recode_bytes(const char *bytes, size_t n, struct strbuf *out, struct errmsg *err)
{
    struct wire_decoder d;
    wire_decoder_init(&d, 0);
    wire_decoder_feed(&d, bytes, n);
    struct wire_frame f;
    enum status s = wire_decoder_next(&d, &f, err);
    if (!s)
        s = recode(&f, out, err);
    wire_decoder_finish(&d);
    return s;
}

static struct strbuf every_frame(void)
{
    struct strbuf all = {0};
    struct wire_arena a = {0};
    for (int i = 0; i < MESSAGES_N; i++)
        assert_int_equal(wire_encode_msg(&a, &messages[i], &all), STATUS_OK);
    for (int i = 0; i < RPCS_N; i++)
        assert_int_equal(wire_encode_rpc(&a, (uint32_t)i * 3, &rpcs[i], &all), STATUS_OK);
    wire_arena_finish(&a);
    return all;
}

static void test_round_trip(void **state)
{
    struct strbuf all = every_frame(), again = {0};
    struct wire_decoder d;
    wire_decoder_init(&d, 0);
    wire_decoder_feed(&d, all.v, all.n);
    struct wire_frame f;
    struct errmsg err = {0};
    int n = 0;
    while (!wire_decoder_next(&d, &f, &err)) {
        assert_int_equal(recode(&f, &again, &err), STATUS_OK);
        n++;
    }
    assert_int_equal(n, MESSAGES_N + RPCS_N);
    assert_int_equal(all.n, again.n);
    assert_memory_equal(all.v, again.v, all.n);
    wire_decoder_finish(&d);
    strbuf_finish(&all);
    strbuf_finish(&again);
}

static void test_fields_arrive(void **state)
{
    size_t at = 0;
    while (messages[at].kind != MSG_DISPATCH)
        at++;
    struct strbuf b = encode_msg(&messages[at]);
    struct wire_decoder d;
    wire_decoder_init(&d, 0);
    wire_decoder_feed(&d, b.v, b.n);
    struct wire_frame f;
    struct wire_arena a = {0};
    struct msg m;
    assert_int_equal(wire_decoder_next(&d, &f, NULL), STATUS_OK);
    assert_int_equal(wire_decode_msg(&a, &f, &m, NULL), STATUS_OK);
    const struct journal *j = &m.dispatch.journal;
    assert_int_equal(j->prompt_n, 5);
    assert_memory_equal(j->prompt, prompt, sizeof prompt);
    assert_memory_equal(j->emitted, emitted, sizeof emitted);
    assert_int_equal(j->stop_ids_n, 2);
    assert_int_equal(j->stop_ids[1], 3);
    assert_true(j->sampling.seed == UINT64_MAX);
    assert_true(j->sampling.temperature == 0.7f && j->sampling.logprobs);
    char line[128];
    msg_describe(&m, line, sizeof line);
    assert_string_equal(line, "DISPATCH r1/e2 req 42 prompt 5 emitted 2");
    wire_arena_finish(&a);
    wire_decoder_finish(&d);
    strbuf_finish(&b);
}

static void test_transfers_arrive(void **state)
{
    size_t at = 0;
    while (messages[at].kind != MSG_KV_SEND)
        at++;
    struct strbuf b = encode_msg(&messages[at]);
    struct wire_decoder d;
    wire_decoder_init(&d, 0);
    wire_decoder_feed(&d, b.v, b.n);
    struct wire_frame f;
    struct wire_arena a = {0};
    struct msg m;
    assert_int_equal(wire_decoder_next(&d, &f, NULL), STATUS_OK);
    assert_int_equal(wire_decode_msg(&a, &f, &m, NULL), STATUS_OK);
    const struct msg_kv_send *k = &m.kv_send;
    assert_true(k->transfer == 3 && k->request == UINT64_MAX && k->first_block == 1);
    assert_int_equal(k->tokens_n, 5);
    assert_memory_equal(k->tokens, prompt, sizeof prompt);
    assert_int_equal(k->lease_ms, 1000);
    assert_true(k->target.replica == 7 && k->target.epoch == 8 && k->target.fingerprint == 9);
    assert_true(k->target.stages == 2 && k->target.tensor == 1 && k->target.block_tokens == 16);
    assert_int_equal(k->target.members_n, 2);
    assert_string_equal(k->target.members[1].addresses.verbs, "verbs");
    char line[128];
    msg_describe(&m, line, sizeof line);
    assert_string_equal(line, "KV_SEND r1/e2 transfer 3 tokens 5 from block 1 to r7/e8");
    wire_arena_finish(&a);
    wire_decoder_finish(&d);
    strbuf_finish(&b);
}

// Every cut of the stream gives the same frames.
static void test_pieces(void **state)
{
    struct strbuf all = every_frame();
    struct prng p;
    prng_seed(&p, 7);
    for (int round = 0; round < 50; round++) {
        struct wire_decoder d;
        wire_decoder_init(&d, 0);
        struct wire_frame f;
        int frames = 0;
        for (size_t at = 0; at < all.n;) {
            size_t n = 1 + prng_below(&p, round < 5 ? 1 : 200);
            if (n > all.n - at)
                n = all.n - at;
            wire_decoder_feed(&d, all.v + at, n);
            at += n;
            while (!wire_decoder_next(&d, &f, NULL))
                frames++;
        }
        assert_int_equal(frames, MESSAGES_N + RPCS_N);
        wire_decoder_finish(&d);
    }
    strbuf_finish(&all);
}

static void test_bad_headers(void **state)
{
    const struct {
        char h[WIRE_HEADER_BYTES + 4];
        size_t n;
        enum status want;
        const char *word;
    } cases[] = {
        {"GET / HTTP/1.1", 1, STATUS_LINK_PROTOCOL, "magic"},
        {"HTTP/1.1 200", 12, STATUS_LINK_PROTOCOL, "magic"},
        {"HD\x02", 3, STATUS_LINK_VERSION, "version 2"},
        {"HD\x01\x01\x01\x00\x00\x01\x00\x00\x00\x00", 12, STATUS_LINK_PROTOCOL, "16777217"},
        {"HD\x01\x01\xFF\xFF\xFF\xFF\x00\x00\x00\x00", 8, STATUS_LINK_PROTOCOL, "length"},
        {"HD\x01\x01\x00\x00\x00\x01\x00\x00\x00\x00", 12, STATUS_AGAIN, ""},
        {"HD\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00", 12, STATUS_LINK_PROTOCOL, "type"},
        {"HD\x01\x3F\x00\x00\x00\x00\x00\x00\x00\x00", 12, STATUS_LINK_PROTOCOL, "type"},
        {"HD\x01\xFF\x00\x00\x00\x00\x00\x00\x00\x00", 12, STATUS_LINK_PROTOCOL, "type"},
        {"HD", 2, STATUS_AGAIN, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct strbuf out = {0};
        struct errmsg err = {0};
        assert_int_equal(recode_bytes(cases[i].h, cases[i].n, &out, &err), cases[i].want);
        assert_non_null(strstr(err.text, cases[i].word));
        assert_int_equal(out.n, 0);
    }
}

// A broken stream stays broken, and a decoder with a smaller limit keeps to it.
static void test_broken_for_good(void **state)
{
    size_t at = 0;
    while (messages[at].kind != MSG_DISPATCH)
        at++;
    struct strbuf b = encode_msg(&messages[at]);
    struct wire_decoder d;
    struct wire_frame f;
    wire_decoder_init(&d, 16);
    wire_decoder_feed(&d, b.v, b.n);
    assert_int_equal(wire_decoder_next(&d, &f, NULL), STATUS_LINK_PROTOCOL);
    wire_decoder_feed(&d, b.v, b.n);
    assert_int_equal(wire_decoder_next(&d, &f, NULL), STATUS_LINK_PROTOCOL);
    wire_decoder_finish(&d);
    strbuf_finish(&b);
}

static void test_bad_messages(void **state)
{
    const struct weight_source many[MSG_WEIGHT_SOURCES + 1] = {{"a", {"", "", ""}}};
    const struct weight_source nameless[] = {{"", {"", "", ""}}};
    const struct {
        struct msg m;
        enum status want;
        const char *word;
    } cases[] = {
        {{.kind = MSG_HELLO, .hello = {.version = 2, .name = "a"}},
         STATUS_LINK_VERSION,
         "version: 2"},
        {{.kind = MSG_HELLO, .hello = {.version = 1, .name = ""}}, STATUS_LINK_PROTOCOL, "name"},
        {{.kind = MSG_HELLO, .hello = {.version = 1, .name = "a/b"}}, STATUS_LINK_PROTOCOL, "name"},
        {{.kind = MSG_HELLO, .hello = {.version = 1, .name = "a", .host = "\xC0\x80"}},
         STATUS_LINK_PROTOCOL,
         "host: not UTF-8"},
        {{.kind = MSG_HEARTBEAT, .heartbeat = {.kv_blocks = 1, .kv_free = 2}},
         STATUS_LINK_PROTOCOL,
         "kv_free"},
        {{.kind = MSG_HEARTBEAT,
          .heartbeat = {.gpu = {.present = true, .utilization_percent = 101}}},
         STATUS_LINK_PROTOCOL,
         "gpu.utilization_percent"},
        {{.kind = MSG_HEARTBEAT, .heartbeat = {.gpu = {.present = true, .reason = "\xff"}}},
         STATUS_LINK_PROTOCOL,
         "gpu.reason: not UTF-8"},
        {{.kind = MSG_FORMED, .formed = {.status = -7}}, STATUS_LINK_PROTOCOL, "status: -7"},
        {{.kind = MSG_FORMED, .formed = {.transport = 4}}, STATUS_LINK_PROTOCOL, "transport: 4"},
        {{.kind = MSG_FORMED, .formed = {.max_context = LIMIT_CONTEXT + 1}},
         STATUS_LINK_PROTOCOL,
         "max_context"},
        {{.kind = MSG_FAULT, .fault = {.stage = 64}}, STATUS_LINK_PROTOCOL, "rank"},
        {{.kind = MSG_WELCOME}, STATUS_LINK_PROTOCOL, "heartbeat_ms"},
        {{.kind = MSG_FORM, .form = {.stages = 0, .tensor = 1}}, STATUS_LINK_PROTOCOL, "stages"},
        {{.kind = MSG_FORM, .form = {.stages = 1, .tensor = 1, .sources = many, .sources_n = 9}},
         STATUS_LINK_PROTOCOL,
         "sources"},
        {{.kind = MSG_FORM,
          .form = {.stages = 1, .tensor = 1, .sources = nameless, .sources_n = 1}},
         STATUS_LINK_PROTOCOL,
         "sources.name"},
        {{.kind = MSG_FORM, .form = {.stages = 64, .tensor = 64}},
         STATUS_LINK_PROTOCOL,
         "64 x 64 ranks"},
        {{.kind = MSG_FORM, .form = {1, 1, "", 2, 2, 2, 0, 0}}, STATUS_LINK_PROTOCOL, "my_stage"},
        {{.kind = MSG_LINK}, STATUS_LINK_PROTOCOL, "members: 0"},
        {{.kind = MSG_PREPARED, .prepared = {1, 2, {"\xFF", "", ""}}},
         STATUS_LINK_PROTOCOL,
         "addresses.shm: not UTF-8"},
        {{.kind = MSG_DISPATCH, .dispatch = {1, 1, {.request = 1, .max_tokens = 1}}},
         STATUS_LINK_PROTOCOL,
         "journal.prompt"},
        {{.kind = MSG_DISPATCH,
          .dispatch = {1, 1, {1, prompt, 5, emitted, 2, 2, {0}, 0, 0, sampling}}},
         STATUS_LINK_PROTOCOL,
         "max_tokens: 2"},
        {{.kind = MSG_DISPATCH,
          .dispatch = {1, 1, {1, prompt, 5, NULL, 0, 2, {-1}, 1, 0, sampling}}},
         STATUS_LINK_PROTOCOL,
         "stop_ids[0]: -1"},
        {{.kind = MSG_DISPATCH,
          .dispatch = {1, 1, {1, prompt, 5, NULL, 0, 2, {0}, 0, 11, sampling}}},
         STATUS_LINK_PROTOCOL,
         "band"},
        {{.kind = MSG_DISPATCH,
          .dispatch = {1, 1, {1, prompt, 5, NULL, 0, 2, {0}, 0, 0, {.temperature = NAN}}}},
         STATUS_LINK_PROTOCOL,
         "temperature"},
        {{.kind = MSG_DISPATCH,
          .dispatch = {1, 1, {1, prompt, 5, NULL, 0, 2, {0}, 0, 0, {.top_logprobs = 21}}}},
         STATUS_LINK_PROTOCOL,
         "top_logprobs"},
        {{.kind = MSG_CANCEL}, STATUS_LINK_PROTOCOL, "request"},
        {{.kind = MSG_PREPARED, .prepared = {1, 2, {"", "", ""}, {"", "\xFF", ""}}},
         STATUS_LINK_PROTOCOL,
         "addresses.tcp: not UTF-8"},
        {{.kind = MSG_KV_CACHED, .kv_cached = {1, 2, 0}}, STATUS_LINK_PROTOCOL, "seq"},
        {{.kind = MSG_KV_READY, .kv_ready = {1, 2, 3, 4, 5}}, STATUS_LINK_PROTOCOL, "have: 5"},
        {{.kind = MSG_KV_READY, .kv_ready = {1, 2, 0, 4, 4}}, STATUS_LINK_PROTOCOL, "transfer"},
        {{.kind = MSG_KV_READY, .kv_ready = {1, 2, 3, 0, 0}}, STATUS_LINK_PROTOCOL, "blocks: 0"},
        {{.kind = MSG_KV_DONE, .kv_done = {1, 2, 3, 2, STATUS_OK, ""}},
         STATUS_LINK_PROTOCOL,
         "role: 2"},
        {{.kind = MSG_KV_DONE, .kv_done = {1, 2, 3, 0, -7, ""}},
         STATUS_LINK_PROTOCOL,
         "status: -7"},
        {{.kind = MSG_KV_RECEIVE, .kv_receive = {1, 2, 3, prompt, 0, 1, kv_source}},
         STATUS_LINK_PROTOCOL,
         "tokens: 0"},
        {{.kind = MSG_KV_RECEIVE, .kv_receive = {1, 2, 3, prompt, 5, 0, kv_source}},
         STATUS_LINK_PROTOCOL,
         "lease_ms: 0"},
        {{.kind = MSG_KV_RECEIVE, .kv_receive = {1, 2, 3, prompt, 5, 1, kv_target}},
         STATUS_LINK_PROTOCOL,
         "peer.members: 2"},
        {{.kind = MSG_KV_SEND, .kv_send = {1, 2, 3, 0, prompt, 5, 0, 1, kv_source}},
         STATUS_LINK_PROTOCOL,
         "peer.members: 0"},
        {{.kind = MSG_KV_SEND, .kv_send = {1, 2, 3, 0, prompt, 5, 0, 1, {.stages = 65}}},
         STATUS_LINK_PROTOCOL,
         "peer.stages: 65"},
        {{.kind = MSG_KV_SEND,
          .kv_send = {1, 2, 3, 0, (const int32_t[]){1, -1}, 2, 0, 1, kv_target}},
         STATUS_LINK_PROTOCOL,
         "tokens[1]: -1"},
        {{.kind = MSG_KV_CANCEL, .kv_cancel = {1, 2, 0}}, STATUS_LINK_PROTOCOL, "transfer"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct strbuf b = encode_msg(&cases[i].m), out = {0};
        struct errmsg err = {0};
        assert_int_equal(recode_bytes(b.v, b.n, &out, &err), cases[i].want);
        if (!strstr(err.text, cases[i].word))
            fail_msg("case %zu: '%s' does not name '%s'", i, err.text, cases[i].word);
        strbuf_finish(&b);
    }
}

static void test_bad_rpcs(void **state)
{
    const struct {
        struct rpc r;
        const char *word;
    } cases[] = {
        {{.kind = RPC_GENERATE, .generate = {.window = 1}}, "exactly one"},
        {{.kind = RPC_GENERATE, .generate = {.text = {"x", 1}, .ids = prompt, .ids_n = 1}},
         "exactly one"},
        {{.kind = RPC_GENERATE, .generate = {.text = {"x", 1}}}, "window: 0"},
        {{.kind = RPC_GENERATE, .generate = {.text = {"\xFF", 1}, .window = 1}}, "text: not UTF-8"},
        {{.kind = RPC_GENERATE, .generate = {.text = {"x", 1}, .window = 1, .given = 1 << 8}},
         "given"},
        {{.kind = RPC_GENERATE,
          .generate =
              {.text = {"x", 1}, .window = 1, .stop = (struct rpc_text[]){{"", 0}}, .stop_n = 1}},
         "stop"},
        {{.kind = RPC_GENERATE, .generate = {.text = {"x", 1}, .window = 1, .band = 10}}, "band"},
        {{.kind = RPC_ATTACH, .attach = {.window = 1}}, "request"},
        {{.kind = RPC_CREDIT}, "tokens"},
        {{.kind = RPC_DONE}, "finish"},
        {{.kind = RPC_ERROR, .error = {.code = 17}}, "code"},
        {{.kind = RPC_TOKENS, .tokens = {.text = {"\xC3", 1}}}, "UTF-8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct strbuf b = {0}, out = {0};
        struct wire_arena a = {0};
        struct errmsg err = {0};
        assert_int_equal(wire_encode_rpc(&a, 1, &cases[i].r, &b), STATUS_OK);
        assert_int_equal(recode_bytes(b.v, b.n, &out, &err), STATUS_LINK_PROTOCOL);
        if (!strstr(err.text, cases[i].word))
            fail_msg("case %zu: '%s' does not name '%s'", i, err.text, cases[i].word);
        wire_arena_finish(&a);
        strbuf_finish(&b);
    }
}

// Nothing that random damage does to a frame crashes or passes a value out of range (the sanitizers
// and the second encoding would tell).
static void test_damage(void **state)
{
    struct strbuf all = every_frame();
    struct prng p;
    prng_seed(&p, 2026);
    int survived = 0;
    for (int round = 0; round < 20000; round++) {
        char *bytes = mem_dup(all.v, all.n);
        for (uint64_t k = 1 + prng_below(&p, 4); k; k--)
            bytes[prng_below(&p, all.n)] = (char)prng_u64(&p);
        struct wire_decoder d;
        wire_decoder_init(&d, 1 << 16);
        wire_decoder_feed(&d, bytes, all.n);
        struct wire_frame f;
        struct strbuf out = {0};
        while (!wire_decoder_next(&d, &f, NULL))
            survived += !recode(&f, &out, NULL);
        strbuf_finish(&out);
        wire_decoder_finish(&d);
        free(bytes);
    }
    assert_true(survived > 1000);
    strbuf_finish(&all);
}

// A frame of two-byte entries would cost a hundred times its size: the arena's limit stops it.
static void test_amplification(void **state)
{
    size_t n = 4 << 20;
    uint8_t *body = mem_alloc(n);
    for (size_t i = 0; i < n; i += 2) {
        body[i] = 4 << 3 | 2; // Tokens.tokens, empty
        body[i + 1] = 0;
    }
    struct wire_arena a = {.limit = 8 << 20};
    struct wire_frame f = {.type = MSG_TOKENS, .body = body, .body_n = (uint32_t)n};
    struct msg m;
    struct errmsg err;
    assert_int_equal(wire_decode_msg(&a, &f, &m, &err), STATUS_LINK_PROTOCOL);
    assert_true(a.used <= 8 << 20);
    wire_arena_finish(&a);
    free(body);
}

static void test_too_large_to_send(void **state)
{
    char *text = mem_zalloc(LIMIT_FRAME_BYTES + 1, 1);
    memset(text, 'a', LIMIT_FRAME_BYTES);
    struct msg m = {.kind = MSG_FAULT, .fault = {.text = text}};
    struct wire_arena a = {0};
    struct strbuf out = {0};
    strbuf_puts(&out, "before");
    assert_int_equal(wire_encode_msg(&a, &m, &out), STATUS_TOO_LARGE);
    assert_string_equal(out.v, "before");
    wire_arena_finish(&a);
    strbuf_finish(&out);
    free(text);
}

static void test_codes(void **state)
{
    assert_string_equal(rpc_code_name(RPC_CODE_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_null(rpc_code_name((enum rpc_code)17));
    assert_int_equal(rpc_code_from_status(STATUS_FULL), RPC_CODE_RESOURCE_EXHAUSTED);
    assert_int_equal(rpc_code_from_status(STATUS_NODE_LOST), RPC_CODE_UNAVAILABLE);
    assert_int_equal(rpc_code_from_status(STATUS_INTERNAL), RPC_CODE_INTERNAL);
    assert_string_equal(finish_reason_name(FINISH_LENGTH), "length");
    for (int i = 0; i < MESSAGES_N; i++)
        assert_string_not_equal(msg_kind_name(messages[i].kind), "?");
    for (int i = 0; i < RPCS_N; i++)
        assert_string_not_equal(rpc_kind_name(rpcs[i].kind), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_fields_arrive),
        cmocka_unit_test(test_transfers_arrive),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_broken_for_good),
        cmocka_unit_test(test_bad_messages),
        cmocka_unit_test(test_bad_rpcs),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_amplification),
        cmocka_unit_test(test_too_large_to_send),
        cmocka_unit_test(test_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
