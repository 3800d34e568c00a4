// Hosts of four devices, a process each, as the coordinator sees them. One replica has four tensor
// ranks; its lead keeps the batch.
#include "tests/sim/scale.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { DELAY_US = 200, FORM_US = 2000000, LINK_US = 50000, VOCAB = 32000, CONTEXT = 8192 };

static struct scale_rank *rank_of(struct scale *w, uint32_t rank)
{
    return &w->hosts[rank / SCALE_DEVICES].ranks[rank % SCALE_DEVICES];
}

static uint32_t dc_of(const struct scale *w, uint32_t rank)
{
    return w->hosts[rank / SCALE_DEVICES].dc;
}

static void say(struct scale *w, uint32_t rank, const struct msg *m)
{
    const struct scale_rank *r = rank_of(w, rank);
    if (r->conn)
        scale_coord(
            w, dc_of(w, rank),
            &(struct coord_event){.kind = m->kind == MSG_HELLO ? COORD_NODE_UP : COORD_NODE_MSG,
                                  .node = {r->conn, m}});
}

// ---- coming and going ----

void scale_rank_connect(struct scale *w, uint32_t rank)
{
    struct scale_rank *r = rank_of(w, rank);
    struct scale_dc *d = &w->dcs[dc_of(w, rank)];
    char name[24], host[24];
    if (!r->alive || r->conn)
        return;
    if (!d->core) {
        scale_push(w, w->now_us + 1000000, SCALE_CONNECT, rank, 0);
        return;
    }
    while (d->conns_cap <= d->conns_n) {
        d->conns_cap = d->conns_cap ? 2 * d->conns_cap : 1024;
        d->conns = mem_realloc(d->conns, d->conns_cap, sizeof *d->conns);
    }
    d->conns[d->conns_n] = rank;
    r->conn = ++d->conns_n;
    snprintf(name, sizeof name, "n%u-%u", rank / SCALE_DEVICES, rank % SCALE_DEVICES);
    snprintf(host, sizeof host, "host%u", rank / SCALE_DEVICES);
    say(w, rank,
        &(struct msg){.kind = MSG_HELLO,
                      .hello = {.version = MSG_VERSION,
                                .name = name,
                                .incarnation = r->incarnation,
                                .host = host,
                                .backend = "mock"}});
}

static void leave(struct scale_rank *r)
{
    r->replica = r->epoch = 0;
    r->seqs_n = 0;
    r->step_us = 0;
    r->step_gen++;
}

void scale_host_start(struct scale *w, uint32_t host)
{
    struct scale_host *h = &w->hosts[host];
    h->alive = true;
    h->hung = false;
    h->gen++;
    for (uint32_t i = 0; i < SCALE_DEVICES; i++) {
        struct scale_rank *r = &h->ranks[i];
        r->alive = true;
        r->loaded = false;
        r->incarnation++;
        scale_push(w, w->now_us + prng_below(&w->prng, 1000000), SCALE_CONNECT,
                   host * SCALE_DEVICES + i, 0);
    }
    scale_push(w, w->now_us + prng_below(&w->prng, 100000), SCALE_PULSE, host, h->gen);
}

void scale_host_stop(struct scale *w, uint32_t host, bool silent)
{
    struct scale_host *h = &w->hosts[host];
    h->alive = false;
    h->gen++;
    for (uint32_t i = 0; i < SCALE_DEVICES; i++) {
        struct scale_rank *r = &h->ranks[i];
        r->alive = false;
        leave(r);
        if (r->conn && !silent)
            scale_push(w, w->now_us + DELAY_US, SCALE_DOWN, h->dc, r->conn);
        r->conn = 0;
    }
}

void scale_host_free(struct scale *w, uint32_t host)
{
    for (uint32_t i = 0; i < SCALE_DEVICES; i++)
        free(w->hosts[host].ranks[i].seqs);
}

void scale_rank_closed(struct scale *w, uint32_t dc, uint64_t conn)
{
    uint32_t rank = w->dcs[dc].conns[conn - 1];
    struct scale_rank *r = rank_of(w, rank);
    if (r->conn != conn)
        return;
    r->conn = 0;
    leave(r);
    if (r->alive)
        scale_push(w, w->now_us + 200000, SCALE_CONNECT, rank, 0);
}

static void beat(struct scale *w, uint32_t rank)
{
    const struct scale_host *h = &w->hosts[rank / SCALE_DEVICES];
    const struct scale_rank *r = rank_of(w, rank);
    struct msg m = {.kind = MSG_HEARTBEAT,
                    .heartbeat = {.replica = r->replica, .epoch = r->epoch, .steps = r->steps}};
    if (h->hung) {
        uint32_t age_ms = (uint32_t)((w->now_us - h->hung_us) / 1000);
        m.heartbeat.step_age_ms = r->replica ? age_ms : 0;
        m.heartbeat.progress =
            (struct rank_progress){.step = 1, .layer = rank % SCALE_DEVICES != 1, .age_ms = age_ms};
    }
    m.heartbeat.running = r->seqs_n;
    m.heartbeat.kv_blocks = m.heartbeat.kv_free = 1000;
    say(w, rank, &m);
}

void scale_host_pulse(struct scale *w, uint32_t host, uint64_t gen)
{
    struct scale_host *h = &w->hosts[host];
    if (!h->alive || h->gen != gen)
        return;
    for (uint32_t i = 0; i < SCALE_DEVICES; i++)
        beat(w, host * SCALE_DEVICES + i);
    scale_push(w, w->now_us + 100000, SCALE_PULSE, host, gen);
}

// ---- forming ----

void scale_rank_prepared(struct scale *w, uint32_t rank, uint64_t epoch)
{
    const struct scale_rank *r = rank_of(w, rank);
    if (r->alive && r->epoch == epoch)
        say(w, rank,
            &(struct msg){
                .kind = MSG_PREPARED,
                .prepared = {r->replica, r->epoch, {.shm = "s", .tcp = "t", .verbs = ""}}});
}

void scale_rank_linked(struct scale *w, uint32_t rank, uint64_t epoch)
{
    const struct scale_rank *r = rank_of(w, rank);
    if (r->alive && r->epoch == epoch)
        say(w, rank,
            &(struct msg){.kind = MSG_FORMED,
                          .formed = {.replica = r->replica,
                                     .epoch = r->epoch,
                                     .fingerprint = 0xfeed,
                                     .max_seqs = w->opt.seqs,
                                     .max_context = CONTEXT,
                                     .kv_blocks = 1000,
                                     .block_tokens = 64}});
}

// ---- the batch of a lead ----

// What the next step reads: prompts in order as far as the budget goes, and one row of each
// sequence that is past its own.
static uint32_t fill_step(struct scale *w, struct scale_rank *r)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < r->seqs_n; i++) {
        struct scale_seq *q = &r->seqs[i];
        q->in_step = !q->cancelled;
        rows += q->in_step && q->left == 1;
    }
    uint32_t budget = w->opt.rows > rows ? w->opt.rows - rows : 1;
    for (uint32_t i = 0; i < r->seqs_n; i++) {
        struct scale_seq *q = &r->seqs[i];
        if (!q->in_step || q->left == 1)
            continue;
        uint32_t n = q->left < budget ? q->left : budget;
        q->left -= n;
        q->in_step = q->left == 0;
        budget -= n;
        rows += n;
    }
    return rows;
}

static void start_step(struct scale *w, uint32_t rank)
{
    struct scale_rank *r = rank_of(w, rank);
    r->step_us = 0;
    if (!r->seqs_n)
        return;
    uint64_t took_us = 1000ull * w->opt.step_ms + (uint64_t)fill_step(w, r) * w->opt.row_us;
    r->step_us = w->now_us;
    scale_push(w, w->now_us + DELAY_US + took_us, SCALE_STEP, rank, r->step_gen);
}

static uint32_t take_tokens(struct scale_rank *r, struct token_out *out, uint64_t *gone,
                            uint32_t *gone_n)
{
    uint32_t n = 0, kept = 0;
    for (uint32_t i = 0; i < r->seqs_n; i++) {
        struct scale_seq q = r->seqs[i];
        if (q.cancelled) {
            gone[(*gone_n)++] = q.request;
            continue;
        }
        if (q.in_step) {
            out[n++] = (struct token_out){.request = q.request,
                                          .index = q.index++,
                                          .token = mock_stream_next(&q.stream),
                                          .finish = q.index >= q.max ? FINISH_LENGTH : FINISH_NONE};
            q.left = 1;
        }
        if (q.index < q.max)
            r->seqs[kept++] = q;
    }
    r->seqs_n = kept;
    return n;
}

void scale_rank_step(struct scale *w, uint32_t rank, uint64_t gen)
{
    struct scale_host *h = &w->hosts[rank / SCALE_DEVICES];
    struct scale_rank *r = rank_of(w, rank);
    if (r->step_gen != gen || !r->alive || h->hung)
        return;
    struct token_out *tokens = mem_alloc((r->seqs_n + 1) * sizeof *tokens);
    uint64_t *gone = mem_alloc((r->seqs_n + 1) * sizeof *gone);
    uint32_t gone_n = 0, n = take_tokens(r, tokens, gone, &gone_n);
    struct msg m = {.kind = MSG_TOKENS,
                    .tokens = {.replica = r->replica,
                               .epoch = r->epoch,
                               .step = ++r->steps,
                               .tokens = tokens,
                               .tokens_n = n,
                               .running = r->seqs_n,
                               .kv_free = 1000}};
    say(w, rank, &m);
    for (uint32_t i = 0; i < gone_n && r->step_gen == gen; i++)
        say(w, rank,
            &(struct msg){.kind = MSG_CANCELLED, .cancelled = {r->replica, r->epoch, gone[i]}});
    free(tokens);
    free(gone);
    if (r->step_gen == gen)
        start_step(w, rank);
}

static void dispatch(struct scale *w, uint32_t rank, const struct journal *j)
{
    struct scale_rank *r = rank_of(w, rank);
    MEM_GROW(r->seqs, r->seqs_n, r->seqs_cap);
    struct scale_seq *q = &r->seqs[r->seqs_n++];
    *q = (struct scale_seq){.request = j->request,
                            .index = j->emitted_n,
                            .max = j->max_tokens,
                            .left = j->prompt_n + j->emitted_n};
    mock_stream_init(&q->stream, j->prompt, j->prompt_n, VOCAB);
    for (uint32_t i = 0; i < j->emitted_n; i++)
        mock_stream_take(&q->stream, j->emitted[i]);
    if (q->left == 1)
        q->left = 2; // 1 means: the row of a sequence that decodes
    if (!r->step_us)
        start_step(w, rank);
}

static void cancel(struct scale *w, uint32_t rank, uint64_t request)
{
    struct scale_rank *r = rank_of(w, rank);
    for (uint32_t i = 0; i < r->seqs_n; i++)
        r->seqs[i].cancelled |= r->seqs[i].request == request;
}

void scale_rank_msg(struct scale *w, uint32_t dc, uint64_t conn, const struct msg *m)
{
    uint32_t rank = w->dcs[dc].conns[conn - 1];
    struct scale_rank *r = rank_of(w, rank);
    if (r->conn != conn)
        return;
    switch (m->kind) {
    case MSG_FORM:
        leave(r);
        r->replica = m->form.replica;
        r->epoch = m->form.epoch;
        r->index = m->form.my_tensor;
        scale_push(w, w->now_us + (r->loaded ? LINK_US : FORM_US), SCALE_PREPARED, rank, r->epoch);
        r->loaded = true;
        break;
    case MSG_LINK:
        scale_push(w, w->now_us + LINK_US, SCALE_LINKED, rank, r->epoch);
        break;
    case MSG_DISSOLVE:
        if (m->dissolve.epoch >= r->epoch)
            leave(r);
        break;
    case MSG_DISPATCH:
        if (m->dispatch.epoch == r->epoch)
            dispatch(w, rank, &m->dispatch.journal);
        break;
    case MSG_CANCEL:
        if (m->cancel.epoch == r->epoch)
            cancel(w, rank, m->cancel.request);
        break;
    default:
        break;
    }
}
