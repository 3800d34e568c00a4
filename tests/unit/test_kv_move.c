// KV blocks that really move: two replicas of small models in one process, each rank a control core
// over the model engine, cut differently; the test is the coordinator. What is shown: a prefix that
// came from another replica gives the same tokens and the same log-probabilities, bit for bit, as
// one that was computed, for every architecture, layout and transport; and no abort leaks anything.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/prng.h"
#include "node/engine_model.h"
#include "node/kv_layout.h"
#include "node/node.h"
#include "tests/unit/model_fixture.h"

enum {
    RANKS = 4,
    SENT = 512,
    BLOCK = 16,
    BLOCKS = 64,
    WAIT_MS = 30000,
    PROMPT = 150,
    ANSWER = 8,
};

struct rank {
    struct node *core;
    struct engine *engine;
    uint64_t timer_us;
    struct msg *sent[SENT]; // owned
    int sent_n;
};

struct replica {
    uint64_t id, epoch;
    uint32_t stages, tensor;
    struct rank ranks[RANKS];
    uint64_t fingerprint;
};

static bool on_verbs; // run where there is a device, for this alone
static char model[FIXTURE_PATH];
static uint64_t epochs;
static enum transport_choice transport;
static int32_t prompt[PROMPT];
static uint32_t prompt_n = PROMPT;

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void no_wake(void *arg)
{
}

static void do_action(struct rank *r, const struct node_action *a)
{
    struct engine *e = r->engine;
    switch (a->kind) {
    case NODE_ACT_SEND:
        assert_true(r->sent_n < SENT);
        r->sent[r->sent_n++] = msg_clone(&a->msg);
        break;
    case NODE_ACT_FORM:
        e->ops->form(e, a->form);
        break;
    case NODE_ACT_LINK:
        e->ops->link(e, a->link);
        break;
    case NODE_ACT_DISSOLVE:
        e->ops->dissolve(e, a->epoch);
        break;
    case NODE_ACT_SUBMIT:
        assert_int_equal(e->ops->submit(e, a->plan), STATUS_OK);
        break;
    case NODE_ACT_KV:
        e->ops->kv(e, &a->kv);
        break;
    case NODE_ACT_TIMER:
        r->timer_us = a->at_us;
        break;
    case NODE_ACT_TRACE:
        break;
    }
}

static void step(struct rank *r, struct node_event ev)
{
    struct node_actions actions;
    ev.now_us = now_us();
    node_step(r->core, &ev, &actions);
    node_check(r->core);
    for (size_t i = 0; i < actions.n; i++)
        do_action(r, &actions.v[i]);
}

static void tell(struct rank *r, struct msg m)
{
    step(r, (struct node_event){.kind = NODE_EV_MSG, .msg = &m});
}

static void forget_sent(struct rank *r)
{
    while (r->sent_n > 0)
        msg_free(r->sent[--r->sent_n]);
}

static const struct msg *last_of(const struct rank *r, enum msg_kind kind)
{
    for (int i = r->sent_n; i-- > 0;)
        if (r->sent[i]->kind == kind)
            return r->sent[i];
    return NULL;
}

static uint32_t ranks_of(const struct replica *p)
{
    return p->stages * p->tensor;
}

static bool turn(struct replica *p)
{
    bool did = false;
    for (uint32_t i = 0; i < ranks_of(p); i++) {
        struct rank *r = &p->ranks[i];
        struct engine_event ev;
        while (r->engine && r->engine->ops->poll(r->engine, &ev)) {
            step(r, (struct node_event){.kind = NODE_EV_ENGINE, .engine = &ev});
            did = true;
        }
        if (r->engine && r->timer_us <= now_us()) {
            r->timer_us = UINT64_MAX;
            step(r, (struct node_event){.kind = NODE_EV_TIMER});
        }
    }
    return did;
}

static void turn_both(struct replica *a, struct replica *b)
{
    if (!(turn(a) | (b ? turn(b) : false)))
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

// Until the lead of `of` said this.
static const struct msg *await(struct replica *a, struct replica *b, const struct replica *of,
                               enum msg_kind kind)
{
    for (uint64_t until = now_us() + WAIT_MS * 1000; now_us() < until; turn_both(a, b))
        if (last_of(&of->ranks[0], kind))
            return last_of(&of->ranks[0], kind);
    fail_msg("no %s came", msg_kind_name(kind));
    return NULL;
}

static void open_rank(struct rank *r)
{
    struct engine_model_config config = {.backend = KERN_CPU,
                                         .threads = 1,
                                         .max_seqs = 4,
                                         .max_rows = 64,
                                         .context = 256,
                                         .kv_tokens = BLOCKS * BLOCK,
                                         .block_tokens = BLOCK};
    struct errmsg e = {0};
    r->timer_us = UINT64_MAX;
    r->core = node_create(&(struct node_config){.prefill_chunk = 32});
    r->engine = engine_model_create(&config, no_wake, NULL, &e);
    if (!r->engine)
        fail_msg("%s", e.text);
    step(r, (struct node_event){.kind = NODE_EV_COORD_UP});
}

static void close_rank(struct rank *r)
{
    forget_sent(r);
    r->engine->ops->destroy(r->engine);
    node_destroy(r->core);
    *r = (struct rank){0};
}

static void form(struct replica *p)
{
    struct link_member members[RANKS];
    p->epoch = ++epochs;
    for (uint32_t i = 0; i < ranks_of(p); i++)
        forget_sent(&p->ranks[i]);
    for (uint32_t i = 0; i < ranks_of(p); i++)
        tell(&p->ranks[i], (struct msg){.kind = MSG_FORM,
                                        .form = {.replica = p->id,
                                                 .epoch = p->epoch,
                                                 .model_dir = model,
                                                 .stages = p->stages,
                                                 .tensor = p->tensor,
                                                 .my_stage = i / p->tensor,
                                                 .my_tensor = i % p->tensor,
                                                 .transport = transport}});
    for (uint32_t i = 0; i < ranks_of(p); i++) {
        uint64_t until = now_us() + WAIT_MS * 1000;
        while (!last_of(&p->ranks[i], MSG_PREPARED) && now_us() < until)
            turn_both(p, NULL);
        const struct msg *m = last_of(&p->ranks[i], MSG_PREPARED);
        if (!m)
            fail_msg("rank %u is not prepared", i);
        members[i] = (struct link_member){"n", "here", m->prepared.addresses};
    }
    for (uint32_t i = 0; i < ranks_of(p); i++)
        tell(&p->ranks[i],
             (struct msg){.kind = MSG_LINK, .link = {p->id, p->epoch, members, ranks_of(p)}});
    for (uint32_t i = 0; i < ranks_of(p); i++) {
        uint64_t until = now_us() + WAIT_MS * 1000;
        while (!last_of(&p->ranks[i], MSG_FORMED) && now_us() < until)
            turn_both(p, NULL);
        const struct msg *m = last_of(&p->ranks[i], MSG_FORMED);
        if (!m || m->formed.status != STATUS_OK)
            fail_msg("rank %u: %s", i, m ? m->formed.text : "hangs");
    }
    p->fingerprint = last_of(&p->ranks[0], MSG_FORMED)->formed.fingerprint;
}

static void start(struct replica *p, uint64_t id, uint32_t stages, uint32_t tensor)
{
    *p = (struct replica){.id = id, .stages = stages, .tensor = tensor};
    for (uint32_t i = 0; i < ranks_of(p); i++)
        open_rank(&p->ranks[i]);
    form(p);
}

static void stop(struct replica *p)
{
    for (uint32_t i = 0; i < ranks_of(p); i++)
        close_rank(&p->ranks[i]);
}

static uint32_t kv_free(struct replica *p)
{
    struct msg_heartbeat h;
    struct rank_progress none = {0};
    node_heartbeat(node_pulse(p->ranks[0].core), &none, now_us(), &h);
    return h.kv_free;
}

// ---- messages ----

static struct kv_peer peer(const struct replica *p, struct link_member *members)
{
    struct kv_peer k = {.replica = p->id,
                        .epoch = p->epoch,
                        .stages = p->stages,
                        .tensor = p->tensor,
                        .fingerprint = p->fingerprint,
                        .block_tokens = BLOCK};
    if (!members)
        return k;
    for (uint32_t i = 0; i < ranks_of(p); i++) {
        const struct msg *m = last_of(&p->ranks[i], MSG_PREPARED);
        members[i] = (struct link_member){"n", "here", m->prepared.mover};
    }
    k.members = members;
    k.members_n = ranks_of(p);
    return k;
}

static void receive(struct replica *from, struct replica *to, uint64_t id, uint32_t lease_ms)
{
    tell(&to->ranks[0], (struct msg){.kind = MSG_KV_RECEIVE,
                                     .kv_receive = {.replica = to->id,
                                                    .epoch = to->epoch,
                                                    .transfer = id,
                                                    .tokens = prompt,
                                                    .tokens_n = prompt_n,
                                                    .lease_ms = lease_ms,
                                                    .source = peer(from, NULL)}});
}

struct sending {
    uint64_t transfer, request;
    uint32_t first_block, lease_ms;
};

static void send(struct replica *from, struct replica *to, struct sending s)
{
    struct link_member members[RANKS];
    tell(&from->ranks[0], (struct msg){.kind = MSG_KV_SEND,
                                       .kv_send = {.replica = from->id,
                                                   .epoch = from->epoch,
                                                   .transfer = s.transfer,
                                                   .request = s.request,
                                                   .tokens = prompt,
                                                   .tokens_n = prompt_n,
                                                   .first_block = s.first_block,
                                                   .lease_ms = s.lease_ms,
                                                   .target = peer(to, members)}});
}

static void dispatch(struct replica *p, uint64_t request, bool prefill_only)
{
    tell(&p->ranks[0], (struct msg){.kind = MSG_DISPATCH,
                                    .dispatch = {.replica = p->id,
                                                 .epoch = p->epoch,
                                                 .journal = {.request = request,
                                                             .prompt = prompt,
                                                             .prompt_n = prompt_n,
                                                             .max_tokens = ANSWER,
                                                             .sampling = {.top_p = 1,
                                                                          .repetition_penalty = 1,
                                                                          .logprobs = true}},
                                                 .prefill_only = prefill_only}});
}

struct answer {
    int32_t tokens[ANSWER];
    float logprobs[ANSWER];
    uint32_t n, cached;
};

static struct answer answer_of(const struct rank *r, uint64_t request)
{
    struct answer a = {0};
    for (int i = 0; i < r->sent_n; i++) {
        const struct msg *m = r->sent[i];
        for (uint32_t k = 0; m->kind == MSG_TOKENS && k < m->tokens.tokens_n; k++) {
            const struct token_out *t = &m->tokens.tokens[k];
            if (t->request != request)
                continue;
            assert_true(t->index == a.n && a.n < ANSWER && t->finish != FINISH_ERROR);
            a.cached = a.n ? a.cached : t->cached_tokens;
            a.tokens[a.n] = t->token;
            a.logprobs[a.n++] = t->logprob;
        }
    }
    return a;
}

static struct answer await_answer(struct replica *p, struct replica *other, uint64_t request)
{
    uint64_t until = now_us() + WAIT_MS * 1000;
    while (answer_of(&p->ranks[0], request).n < ANSWER && now_us() < until)
        turn_both(p, other);
    struct answer a = answer_of(&p->ranks[0], request);
    assert_int_equal(a.n, ANSWER);
    return a;
}

static void expect_same(const struct answer *a, const struct answer *b)
{
    assert_memory_equal(a->tokens, b->tokens, sizeof a->tokens);
    assert_memory_equal(a->logprobs, b->logprobs, sizeof a->logprobs);
}

// ---- every architecture, layout and transport ----

struct shape {
    uint32_t stages, tensor;
};

static void move_once(struct shape from, struct shape to)
{
    struct replica a, b;
    const uint32_t whole = prompt_n / BLOCK * BLOCK;
    start(&a, 1, from.stages, from.tensor);
    start(&b, 2, to.stages, to.tensor);
    for (uint32_t i = 0; on_verbs && i < ranks_of(&b); i++) // else it would go over TCP
        assert_true(last_of(&b.ranks[i], MSG_PREPARED)->prepared.mover.verbs[0]);
    // The prompt is sent while it is computed.
    receive(&a, &b, 9, 60000);
    const struct msg *ready = await(&a, &b, &b, MSG_KV_READY);
    assert_int_equal(ready->kv_ready.have, 0);
    dispatch(&a, 1, false);
    send(&a, &b, (struct sending){9, 1, 0, 60000});
    const struct msg_kv_done *d = &await(&a, &b, &a, MSG_KV_DONE)->kv_done;
    if (d->status != STATUS_OK)
        fail_msg("source: %s: %s", status_name(d->status), d->text);
    assert_int_equal(d->tokens_n, whole);
    uint64_t sent = d->bytes;
    d = &await(&a, &b, &b, MSG_KV_DONE)->kv_done;
    if (d->status != STATUS_OK)
        fail_msg("target: %s: %s", status_name(d->status), d->text);
    assert_int_equal(d->tokens_n, whole);
    assert_true(d->bytes > 0 && d->bytes == sent);
    struct answer computed = await_answer(&a, &b, 1);
    dispatch(&b, 1, false);
    struct answer moved = await_answer(&b, &a, 1);
    assert_int_equal(computed.cached, 0);
    assert_int_equal(moved.cached, whole);
    expect_same(&computed, &moved);
    assert_int_equal(kv_free(&a), BLOCKS);
    assert_int_equal(kv_free(&b), BLOCKS);
    assert_int_equal(node_transfers(a.ranks[0].core) + node_transfers(b.ranks[0].core), 0);
    stop(&a);
    stop(&b);
}

static bool use_golden(const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "goldens/%s", name);
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (i * 37 + 11) % 500;
    return shared_path(model, path);
}

static void every_architecture(void **state)
{
    static const char *const names[] = {"deepseek-v2-lite", "deepseek-v3",      "deepseek-v3-fp8",
                                        "r1-0528-qwen3",    "r1-distill-llama", "r1-distill-qwen2"};
    transport = TRANSPORT_AUTO;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!use_golden(names[i]))
            skip();
        move_once((struct shape){2, 1}, (struct shape){1, 2});
    }
}

static void every_layout(void **state)
{
    static const struct shape shapes[] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {1, 4}};
    static const char *const names[] = {"deepseek-v2", "r1-distill-llama"};
    enum { N = sizeof shapes / sizeof *shapes };
    transport = TRANSPORT_AUTO;
    for (size_t m = 0; m < 2; m++) {
        if (!use_golden(names[m]))
            skip();
        for (size_t i = 0; i < N; i++) // each as source and as target
            move_once(shapes[i], shapes[(i + 2 + m) % N]);
    }
}

static void every_transport(void **state)
{
    if (!use_golden("r1-0528-qwen3"))
        skip();
    for (transport = TRANSPORT_SHM; transport <= TRANSPORT_TCP; transport++)
        move_once((struct shape){1, 2}, (struct shape){2, 1});
    transport = TRANSPORT_AUTO;
}

static void over_verbs(void **state)
{
    on_verbs = true;
    transport = TRANSPORT_VERBS;
    prompt_n = 45; // emulated arithmetic is slow
    assert_true(use_golden("r1-0528-qwen3"));
    move_once((struct shape){1, 2}, (struct shape){1, 1});
}

// ---- what goes wrong ----

static void replace(struct replica *p, uint32_t i)
{
    close_rank(&p->ranks[i]);
    open_rank(&p->ranks[i]);
}

static void mishap(struct replica *a, struct replica *b, struct prng *p, uint64_t id)
{
    struct replica *r = prng_below(p, 2) ? a : b;
    switch (prng_below(p, 10)) {
    case 0:
    case 1:
    case 2: // cancelled
        tell(&r->ranks[0], (struct msg){.kind = MSG_KV_CANCEL, .kv_cancel = {r->id, r->epoch, id}});
        break;
    case 3: // the request is
        tell(&a->ranks[0], (struct msg){.kind = MSG_CANCEL, .cancel = {a->id, a->epoch, id}});
        break;
    case 4: // a rank is killed
        replace(r, (uint32_t)prng_below(p, ranks_of(r)));
        form(r);
        break;
    case 5: // the epoch ends in good order
        for (uint32_t i = 0; i < ranks_of(r); i++)
            tell(&r->ranks[i], (struct msg){.kind = MSG_DISSOLVE, .dissolve = {r->id, r->epoch}});
        form(r);
        break;
    case 6: // the coordinator is lost
        step(&r->ranks[0], (struct node_event){.kind = NODE_EV_COORD_DOWN});
        step(&r->ranks[0], (struct node_event){.kind = NODE_EV_COORD_UP});
        form(r);
        break;
    default: // the leases are short enough
        break;
    }
}

// Until the lead of `of` said this, or the end, of transfer `id`; or its epoch is another one.
static void await_end(struct replica *a, struct replica *b, const struct replica *of, uint64_t id,
                      enum msg_kind kind)
{
    uint64_t epoch = of->epoch;
    for (uint64_t until = now_us() + WAIT_MS * 1000; now_us() < until; turn_both(a, b)) {
        const struct msg *m = last_of(&of->ranks[0], kind);
        const struct msg *d = last_of(&of->ranks[0], MSG_KV_DONE);
        if (m && kind == MSG_KV_READY && m->kv_ready.transfer == id)
            return;
        if ((d && d->kv_done.transfer == id) || node_transfers(of->ranks[0].core) == 0)
            return;
        assert_true(of->epoch == epoch);
    }
    fail_msg("transfer %llu has no end", (unsigned long long)id);
}

// Until nothing is held any more at either side.
static void settle(struct replica *a, struct replica *b)
{
    uint64_t until = now_us() + WAIT_MS * 1000;
    while (node_transfers(a->ranks[0].core) + node_transfers(b->ranks[0].core) +
                   node_sequences(a->ranks[0].core) + node_sequences(b->ranks[0].core) >
               0 &&
           now_us() < until)
        turn_both(a, b);
    assert_int_equal(node_transfers(a->ranks[0].core) + node_transfers(b->ranks[0].core), 0);
    assert_int_equal(node_sequences(a->ranks[0].core) + node_sequences(b->ranks[0].core), 0);
}

static void aborts_leak_nothing(void **state)
{
    struct replica a, b;
    struct prng p;
    uint32_t whole = 0, part = 0;
    if (!use_golden("r1-distill-llama"))
        skip();
    prng_seed(&p, 77);
    start(&a, 1, 2, 1);
    start(&b, 2, 1, 2);
    for (uint64_t id = 1; id <= 200; id++) {
        for (int i = 0; i < 4; i++)
            prompt[i] = (int32_t)(id + 7 * (uint64_t)i) % 500; // nothing is cached
        forget_sent(&a.ranks[0]);
        uint32_t lease_ms = prng_below(&p, 3) ? 250 : 1 + (uint32_t)prng_below(&p, 10);
        dispatch(&a, id, prng_below(&p, 2));
        receive(&a, &b, id, lease_ms);
        if (prng_below(&p, 4))
            await_end(&a, &b, &b, id, MSG_KV_READY);
        send(&a, &b, (struct sending){id, id, 0, lease_ms});
        for (uint64_t until = now_us() + prng_below(&p, 12000); now_us() < until;)
            turn_both(&a, &b);
        mishap(&a, &b, &p, id);
        if (prng_below(&p, 4))
            await_end(&a, &b, &b, id, MSG_KV_DONE);
        dispatch(&b, id + 1000, false);
        struct answer moved = await_answer(&b, &a, id + 1000);
        whole += moved.cached == PROMPT / BLOCK * BLOCK;
        part += moved.cached > 0 && moved.cached < PROMPT / BLOCK * BLOCK;
        tell(&a.ranks[0], (struct msg){.kind = MSG_KV_CANCEL, .kv_cancel = {a.id, a.epoch, id}});
        tell(&b.ranks[0], (struct msg){.kind = MSG_KV_CANCEL, .kv_cancel = {b.id, b.epoch, id}});
        settle(&a, &b);
        assert_int_equal(kv_free(&a), BLOCKS);
        assert_int_equal(kv_free(&b), BLOCKS);
        if (id % 4 == 0) { // and the answers are right
            dispatch(&a, id + 2000, false);
            struct answer again = await_answer(&a, &b, id + 2000);
            expect_same(&again, &moved);
        }
        for (int i = b.ranks[0].sent_n; i-- > 0;) // but what peer() looks up
            if (b.ranks[0].sent[i]->kind != MSG_PREPARED) {
                msg_free(b.ranks[0].sent[i]);
                b.ranks[0].sent[i] = b.ranks[0].sent[--b.ranks[0].sent_n];
            }
    }
    print_message("200 transfers: %u whole, %u in part\n", whole, part);
    assert_true(whole > 20);
    // The next one goes well.
    prompt[0] = 499;
    receive(&a, &b, 5000, 60000);
    dispatch(&a, 5000, true);
    await(&a, &b, &b, MSG_KV_READY);
    send(&a, &b, (struct sending){5000, 5000, 0, 60000});
    assert_int_equal(await(&a, &b, &b, MSG_KV_DONE)->kv_done.status, STATUS_OK);
    stop(&a);
    stop(&b);
}

// ---- the layout alone ----

static struct model_config gqa(int kv_heads)
{
    return (struct model_config){.arch = ARCH_LLAMA,
                                 .vocab = 512,
                                 .hidden = 256,
                                 .layers = 7,
                                 .intermediate = 512,
                                 .context = 256,
                                 .heads = 16,
                                 .kv_heads = kv_heads,
                                 .head_dim = 16,
                                 .v_dim = 16};
}

static void check_layout(const struct model_config *c, struct kv_shape from, struct kv_shape to)
{
    struct kv_layout l;
    struct errmsg e = {0};
    kv_layout_init(&l, c, BLOCK, 4);
    for (uint32_t t = 0; t < to.stages * to.tensor; t++) {
        struct kv_share mine;
        int got[16][16] = {0}, total = 0;
        assert_int_equal(kv_layout_share(&l, to, t, &mine, &e), STATUS_OK);
        for (uint32_t s = 0; s < from.stages * from.tensor; s++) {
            struct kv_piece *v;
            struct kv_share theirs;
            uint32_t n;
            assert_int_equal(kv_layout_share(&l, from, s, &theirs, &e), STATUS_OK);
            assert_int_equal(kv_layout_pieces(&l, from, s, to, t, &v, &n, &e), STATUS_OK);
            for (uint32_t i = 0; i < n; i++)
                for (int h = v[i].head_first; h < v[i].head_first + v[i].heads_n; h++) {
                    assert_in_range(v[i].layer, theirs.layer_first,
                                    theirs.layer_first + theirs.layers_n - 1);
                    assert_in_range(h, theirs.head_first, theirs.head_first + theirs.heads_n - 1);
                    got[v[i].layer][h]++;
                    total++;
                }
            free(v);
        }
        // Each (layer, head) of the target exactly once.
        assert_int_equal(total, mine.layers_n * mine.heads_n);
        for (int y = mine.layer_first; y < mine.layer_first + mine.layers_n; y++)
            for (int h = mine.head_first; h < mine.head_first + mine.heads_n; h++)
                assert_int_equal(got[y][h], 1);
    }
}

static void every_head_comes_once(void **state)
{
    static const struct kv_shape shapes[] = {{1, 1}, {2, 1}, {1, 2}, {3, 2},
                                             {2, 4}, {7, 1}, {1, 8}};
    enum { N = sizeof shapes / sizeof *shapes };
    for (int heads = 2; heads <= 8; heads *= 2)
        for (size_t i = 0; i < N; i++)
            for (size_t k = 0; k < N; k++) {
                struct model_config c = gqa(heads);
                check_layout(&c, shapes[i], shapes[k]);
                c.mla = true;
                c.kv_heads = c.heads;
                c.kv_lora = 64;
                c.rope_dim = 16;
                check_layout(&c, shapes[i], shapes[k]);
            }
}

// "verbs": only over verbs, for tests/rdma-vm.
int main(int argc, char **argv)
{
    const struct CMUnitTest verbs[] = {cmocka_unit_test(over_verbs)};
    if (argc > 1 && !strcmp(argv[1], "verbs"))
        return cmocka_run_group_tests(verbs, NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_head_comes_once), cmocka_unit_test(every_architecture),
        cmocka_unit_test(every_layout),          cmocka_unit_test(every_transport),
        cmocka_unit_test(aborts_leak_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
