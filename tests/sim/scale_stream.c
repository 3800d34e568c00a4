// Streams: each asks, reads its answer to the end, and asks again at once, so that their number
// stays what was wanted. Every token must be the mock model's, in order, once; what was begun must
// end as it should, whatever fails. A stream whose datacenter is lost goes on in another one, from
// the copy of its journal there, which lags a little.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tests/sim/scale.h"

enum { VOCAB = 32000, PROMPT_LEAST = 16, PROMPT_MOST = 240, ANSWER_LEAST = 16, ANSWER_MOST = 400 };
enum { TENANTS = 40, LAG_TOKENS = 3, AGAIN_US = 1000000, SLOT_BITS = 20 };

// ---- who asks for what ----

static void make_prompt(const struct scale_stream *s, int32_t *prompt)
{
    struct prng p;
    prng_seed(&p, s->seed);
    for (uint32_t i = 0; i < s->prompt_n; i++)
        prompt[i] = (int32_t)(prng_u64(&p) % VOCAB);
}

static void draw(struct scale *w, uint32_t i)
{
    struct scale_stream *s = &w->streams[i];
    s->seed = prng_u64(&w->prng);
    s->prompt_n = PROMPT_LEAST + (uint32_t)prng_below(&w->prng, PROMPT_MOST - PROMPT_LEAST + 1);
    s->max = ANSWER_LEAST + (uint32_t)prng_below(&w->prng, ANSWER_MOST - ANSWER_LEAST + 1);
    s->band = (uint8_t)prng_below(&w->prng, 10);
    s->session = prng_below(&w->prng, 10) < 3 ? i + 1 : 0;
    s->turns++;
    s->request = (uint64_t)s->turns << SLOT_BITS | i;
    s->ask_us = 0;
}

// Its own datacenter, else any that is there.
static bool find_dc(struct scale *w, struct scale_stream *s)
{
    for (uint32_t k = 0, at = s->home; k < w->opt.dcs; k++) {
        if (w->dcs[at].core) {
            s->dc = (uint8_t)at;
            return true;
        }
        at = k ? (at + 1) % w->opt.dcs : (uint32_t)prng_below(&w->prng, w->opt.dcs);
    }
    return false;
}

static struct coord_submit submit_of(const struct scale_stream *s, const int32_t *prompt,
                                     char tenant[16])
{
    snprintf(tenant, 16, "t%u", (unsigned)(s->request % (1u << SLOT_BITS)) % TENANTS);
    return (struct coord_submit){
        .request = s->request,
        .prompt = prompt,
        .prompt_n = s->prompt_n,
        .max_tokens = s->max,
        .sampling = {.seed = 1, .top_p = 1, .repetition_penalty = 1},
        .tenant = tenant,
        .band = s->band,
        .session = s->session,
    };
}

static void ask(struct scale *w, struct scale_stream *s)
{
    int32_t prompt[PROMPT_MOST];
    char tenant[16];
    make_prompt(s, prompt);
    mock_stream_init(&s->expected, prompt, s->prompt_n, VOCAB);
    s->seen = 0;
    s->last_us = 0;
    if (!s->ask_us)
        s->ask_us = w->now_us;
    s->state = STREAM_OPEN;
    w->open_n++;
    scale_coord(
        w, s->dc,
        &(struct coord_event){.kind = COORD_SUBMIT, .submit = submit_of(s, prompt, tenant)});
}

// The journal as it was copied: the last few tokens may not have come. They are computed again, and
// the client, who has them, skips them.
static void go_on(struct scale *w, struct scale_stream *s)
{
    int32_t prompt[PROMPT_MOST], emitted[ANSWER_MOST];
    char tenant[16];
    struct mock_stream m;
    uint32_t lag = (uint32_t)prng_below(&w->prng, LAG_TOKENS + 1);
    uint32_t n = s->seen > lag ? s->seen - lag : 0;
    make_prompt(s, prompt);
    mock_stream_init(&m, prompt, s->prompt_n, VOCAB);
    for (uint32_t i = 0; i < n; i++)
        emitted[i] = mock_stream_next(&m);
    struct coord_restore r = {
        .submit = submit_of(s, prompt, tenant), .emitted = emitted, .emitted_n = n};
    s->state = STREAM_OPEN;
    w->open_n++;
    w->restored++;
    uint64_t id = s->request;
    scale_coord(w, s->dc, &(struct coord_event){.kind = COORD_RESTORE, .restore = r});
    scale_coord(w, s->dc, &(struct coord_event){.kind = COORD_ATTACH, .req = {id, 0}});
}

void scale_stream_run(struct scale *w, uint32_t i)
{
    struct scale_stream *s = &w->streams[i];
    if (s->state == STREAM_OPEN)
        return;
    if (!find_dc(w, s)) {
        scale_push(w, w->now_us + AGAIN_US, SCALE_STREAM, i, 0);
        return;
    }
    if (s->state == STREAM_AWAY && s->seen) {
        go_on(w, s);
        return;
    }
    if (s->state == STREAM_IDLE && !s->ask_us)
        draw(w, i);
    ask(w, s);
}

void scale_streams_start(struct scale *w)
{
    w->streams = mem_zalloc(w->opt.streams, sizeof *w->streams);
    // Nodes load first; then all streams come within half of the warm-up.
    uint64_t ramp_us = 500000ull * w->opt.warm_s;
    for (uint32_t i = 0; i < w->opt.streams; i++) {
        w->streams[i].home = (uint8_t)(i % w->opt.dcs);
        scale_push(w, 6000000 + prng_below(&w->prng, ramp_us), SCALE_STREAM, i, 0);
    }
}

// ---- what they are told ----

static struct scale_stream *stream_of(struct scale *w, uint32_t dc, uint64_t request, bool *current)
{
    uint32_t i = (uint32_t)(request & ((1u << SLOT_BITS) - 1));
    if (i >= w->opt.streams)
        scale_fail(w, "the coordinator speaks of request %" PRIx64 ", which nobody made", request);
    struct scale_stream *s = &w->streams[i];
    *current = s->request == request && s->dc == dc && s->state == STREAM_OPEN;
    return s;
}

static void note_first(struct scale *w, const struct scale_stream *s)
{
    if (s->ask_us < w->begin_us)
        return;
    samples_add(&w->ttft, w->now_us - s->ask_us);
    if (s->ask_us < w->begin_us + (w->end_us - w->begin_us) / 5)
        samples_add(&w->quiet_ttft, w->now_us - s->ask_us);
}

static void on_token(struct scale *w, struct scale_stream *s, const struct token_out *t)
{
    if (t->index < s->seen)
        return; // computed again after its datacenter was lost
    if (t->index != s->seen)
        scale_fail(w, "request %" PRIx64 ": token %u came where %u was due", s->request, t->index,
                   s->seen);
    int32_t due = mock_stream_next(&s->expected);
    if (t->token != due)
        scale_fail(w, "request %" PRIx64 ": token %u is %d, the unfailed run gives %d", s->request,
                   t->index, t->token, due);
    if (!s->seen)
        note_first(w, s);
    if (s->cause && s->last_us) {
        samples_add(&w->pauses[s->cause], w->now_us - s->last_us);
        w->moved++;
    }
    s->cause = CAUSE_NONE;
    s->seen++;
    s->last_us = w->now_us;
    w->second_tokens++;
    w->tokens += w->now_us >= w->begin_us;
}

static void close_stream(struct scale *w, struct scale_stream *s)
{
    s->state = STREAM_IDLE;
    s->cause = CAUSE_NONE;
    w->open_n--;
}

static void on_done(struct scale *w, struct scale_stream *s, const struct coord_action *a)
{
    if (a->done.finish != FINISH_LENGTH || s->seen != s->max)
        scale_fail(w, "request %" PRIx64 " is lost: it ended with %s (%s) at token %u of %u",
                   s->request, finish_reason_name(a->done.finish), a->done.text, s->seen, s->max);
    close_stream(w, s);
    w->finished += w->now_us >= w->begin_us;
    s->ask_us = 0;
    uint32_t i = (uint32_t)(s - w->streams);
    scale_push(w, w->now_us + 1000 + prng_below(&w->prng, 50000), SCALE_STREAM, i, 0);
}

static void on_refused(struct scale *w, struct scale_stream *s, const struct coord_action *a)
{
    if (s->seen)
        scale_fail(w, "request %" PRIx64 " is lost: refused at token %u", s->request, s->seen);
    close_stream(w, s);
    w->refused++;
    scale_push(w, w->now_us + 1000ull * a->refused.retry_after_ms + AGAIN_US, SCALE_STREAM,
               (uint32_t)(s - w->streams), 0);
}

void scale_stream_action(struct scale *w, uint32_t dc, const struct coord_action *a)
{
    bool current;
    struct scale_stream *s;
    switch (a->kind) {
    case COORD_TOKENS:
        s = stream_of(w, dc, a->tokens.request, &current);
        for (uint32_t i = 0; i < a->tokens.tokens_n && current; i++)
            on_token(w, s, &a->tokens.tokens[i]);
        break;
    case COORD_DONE:
        s = stream_of(w, dc, a->done.request, &current);
        if (current)
            on_done(w, s, a);
        break;
    case COORD_REFUSED:
        s = stream_of(w, dc, a->refused.request, &current);
        if (current)
            on_refused(w, s, a);
        break;
    default:
        break;
    }
}

void scale_stream_expect(const struct scale *w, uint64_t request)
{
    uint32_t i = (uint32_t)(request & ((1u << SLOT_BITS) - 1));
    __builtin_prefetch(&w->streams[i], 1);
    __builtin_prefetch((const char *)&w->streams[i] + 64, 1);
}

// ---- what happens to them ----

void scale_stream_hit(struct scale *w, uint64_t request, enum scale_cause cause)
{
    uint32_t i = (uint32_t)(request & ((1u << SLOT_BITS) - 1));
    if (i < w->opt.streams && w->streams[i].request == request)
        w->streams[i].cause = cause;
}

void scale_streams_of_dc(struct scale *w, uint32_t dc)
{
    for (uint32_t i = 0; i < w->opt.streams; i++) {
        struct scale_stream *s = &w->streams[i];
        if (s->state != STREAM_OPEN || s->dc != dc)
            continue;
        s->state = STREAM_AWAY;
        s->cause = s->seen ? CAUSE_DC : CAUSE_NONE;
        w->open_n--;
        w->asked_again += !s->seen;
        // The others find out after a while; then the clients come one by one.
        scale_push(w, w->now_us + 1000ull * w->opt.dc_notice_ms + prng_below(&w->prng, 1000000),
                   SCALE_STREAM, i, 0);
    }
}

void scale_streams_check(struct scale *w)
{
    // Longer than a stream of a low band waits while a rack and a datacenter are gone: in small
    // clusters some of them wait for more than 30 s.
    const uint64_t patience_us = 60000000;
    for (uint32_t i = 0; i < w->opt.streams; i++) {
        const struct scale_stream *s = &w->streams[i];
        struct coord_request_view v;
        if (s->state != STREAM_OPEN)
            continue;
        if (!coord_request_find(w->dcs[s->dc].core, s->request, &v) ||
            v.tokens_n + LAG_TOKENS < s->seen)
            scale_fail(w, "request %" PRIx64 " is lost at token %u", s->request, s->seen);
        if (s->last_us && w->now_us - s->last_us > patience_us)
            scale_fail(w, "request %" PRIx64 " stands still at token %u, it is %s", s->request,
                       s->seen, coord_request_state_name(v.state));
    }
}
