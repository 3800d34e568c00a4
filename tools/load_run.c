// The loop of a load run: sends what is due, notes what arrives and when, re-attaches what broke,
// compares what ended. Times of an open loop count from the moment at which a request should have
// been sent, so that a slow server cannot hide by slowing down the sender.
#include "tools/load_run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/prng.h"
#include "tools/cmdline.h"
#include "tools/load_net.h"

volatile sig_atomic_t load_interrupted;

enum { ATTACHES_MAX = 12, ATTACH_FIRST_MS = 20, ATTACH_MAX_MS = 2000, SCAN_MS = 50 };

struct run {
    const struct load_phase *p;
    struct load_result *r;
    struct load_answer *answers;
    struct load_net *net;
    struct load_faults *faults;
    struct load_stream *streams; // p->concurrency of them
    int *free;                   // stack of indexes of idle ones
    int free_n, active;
    int64_t start_us, next_us; // next arrival of an open loop
    int64_t backoff_us;        // closed loop: do not send before this, after a refusal
    struct prng prng;
};

static void note_error(struct run *u, const struct load_stream *s, const char *text)
{
    struct load_result *r = u->r;
    if (r->errors_n == LOAD_ERRORS_KEPT)
        r->errors_more++;
    else
        snprintf(r->errors[r->errors_n++], sizeof r->errors[0], "prompt %d%s%.40s: %.150s",
                 s->prompt, *s->request ? " " : "", s->request, text);
}

// ---- faults -------------------------------------------------------------------------------------

// The last fault that hit this stream has all its effect: count its longest gap.
static void settle_fault(struct run *u, struct load_stream *s)
{
    if (s->fault < 0)
        return;
    struct load_fault_record *f = &u->r->faults[s->fault];
    f->streams++;
    load_samples_add(&f->gaps, s->fault_gap_us);
    if (s->fault_gap_us > u->p->pause_us) {
        f->paused++;
        load_samples_add(&u->r->pause, s->fault_gap_us);
    }
    s->fault = -1;
}

static void drop(struct run *u, const char *whom);

static void hear_faults(struct run *u)
{
    struct load_fault_done done;
    struct load_result *r = u->r;
    while (load_faults_next(u->faults, &done) && r->faults_n < LOAD_RECORDS_MAX) {
        int i = r->faults_n++;
        r->faults = mem_realloc(r->faults, (size_t)r->faults_n, sizeof *r->faults);
        r->faults[i] = (struct load_fault_record){.done = done,
                                                  .at_s = (double)(done.at_us - u->start_us) / 1e6};
        for (int k = 0; k < u->p->concurrency && !*done.error; k++) {
            struct load_stream *s = &u->streams[k];
            if (!s->active || !s->first_us)
                continue;
            settle_fault(u, s);
            load_stream_mark(s, i, done.at_us);
        }
        if (done.action == LOAD_DROP)
            drop(u, done.whom);
    }
}

// ---- the life of a stream -----------------------------------------------------------------------

static void compare(struct run *u, struct load_stream *s)
{
    if (!u->p->reference)
        return;
    u->r->verified++;
    if (load_answer_equal(&s->answer, &u->p->reference[s->prompt]))
        return;
    u->r->changed++;
    note_error(u, s, "the answer differs from the reference");
}

static void release(struct run *u, struct load_stream *s)
{
    settle_fault(u, s);
    u->r->repeated += s->repeated;
    u->r->tokens += s->answer.tokens;
    if (u->answers && s->done) {
        load_answer_finish(&u->answers[s->prompt]);
        u->answers[s->prompt] = s->answer;
        s->answer = (struct load_answer){0};
    }
    load_stream_finish(s);
    u->free[u->free_n++] = (int)(s - u->streams);
    u->active--;
}

static void finish(struct run *u, struct load_stream *s)
{
    u->r->finished++;
    load_samples_add(&u->r->total, s->heard_us - s->intended_us);
    if (s->first_us)
        load_samples_add(&u->r->ttft, s->first_us - s->intended_us);
    if (s->answer.tokens > 1 && s->first_us)
        load_samples_add(&u->r->tpot, (s->last_us - s->first_us) / (s->answer.tokens - 1));
    compare(u, s);
    release(u, s);
}

static void lose(struct run *u, struct load_stream *s, const char *why)
{
    u->r->lost++;
    note_error(u, s, why);
    release(u, s);
}

static void attach_later(struct load_stream *s)
{
    int64_t ms = (int64_t)ATTACH_FIRST_MS << s->attaches++;
    s->attach_at_us = cmdline_now_us() + 1000 * (ms < ATTACH_MAX_MS ? ms : ATTACH_MAX_MS);
}

static bool may_attach(const struct run *u, const struct load_stream *s)
{
    return u->p->attach && *s->request && s->attaches < ATTACHES_MAX && !*s->error;
}

static void on_heard(void *user, struct load_stream *s, int64_t gap_us)
{
    struct run *u = user;
    s->attaches = 0;
    if (gap_us >= 0)
        load_samples_add(&u->r->gap, gap_us);
}

static void on_closed(void *user, struct load_stream *s, const struct load_end *end)
{
    struct run *u = user;
    char text[LOAD_TEXT_MAX + 32];
    bool whole = s->done && !*s->error;
    if (whole && *s->answer.finish) {
        finish(u, s);
        return;
    }
    bool refused = (end->code == 429 || end->code == 503) && !*s->last_id;
    if (refused) {
        u->r->refused++;
        u->backoff_us =
            cmdline_now_us() + 1000000ll * (end->retry_after_s ? end->retry_after_s : 1);
        release(u, s);
        return;
    }
    u->r->broken += end->broken || end->code == 200;
    if (may_attach(u, s) && (end->broken || end->code == 200 || end->code >= 500)) {
        attach_later(s);
        return;
    }
    if (*s->error)
        snprintf(text, sizeof text, "%s", s->error);
    else if (end->code && end->code != 200)
        snprintf(text, sizeof text, "HTTP %d: %s", end->code, end->text);
    else
        snprintf(text, sizeof text, "cut after %" PRIu32 " tokens: %s", s->answer.tokens,
                 *end->text ? end->text : "the answer ended without [DONE]");
    lose(u, s, text);
}

// Goes on with s after its connection was broken from this side.
static void drop_one(struct run *u, struct load_stream *s, bool broken)
{
    if (s->attach_at_us || (s->done && !broken))
        return; // waits already; or everything of it has arrived
    if (s->done) {
        finish(u, s);
    } else if (*s->request) {
        load_net_cut(u->net, s);
        u->r->broken++;
        attach_later(s);
    } else if (broken) { // nobody had answered it yet: asked again
        load_net_start(u->net, s, u->p->prompts->bodies[s->prompt]);
    }
}

static void drop(struct run *u, const char *whom)
{
    bool broken = load_net_break(u->net), all = broken || !strcmp(whom, "all");
    uint64_t skip = all || !u->active ? 0 : prng_below(&u->prng, (uint64_t)u->active);
    for (int k = 0; k < u->p->concurrency; k++) {
        struct load_stream *s = &u->streams[k];
        if (!s->active || (!all && skip-- > 0))
            continue;
        drop_one(u, s, broken);
        if (!all)
            return;
    }
}

// ---- arrivals -----------------------------------------------------------------------------------

static void send_one(struct run *u, int64_t intended_us)
{
    struct load_stream *s = &u->streams[u->free[--u->free_n]];
    int prompt = (int)(u->r->started++ % u->p->prompts->n);
    u->active++;
    load_stream_begin(s, prompt, intended_us);
    load_net_start(u->net, s, u->p->prompts->bodies[prompt]);
}

static bool more_to_send(const struct run *u, int64_t now_us)
{
    const struct load_phase *p = u->p;
    bool due = !p->duration_ms || now_us - u->start_us < p->duration_ms * 1000;
    return !load_interrupted && due && (!p->requests || u->r->started < p->requests);
}

static void send_due(struct run *u)
{
    const struct load_phase *p = u->p;
    for (int64_t now = cmdline_now_us(); u->free_n > 0 && more_to_send(u, now);) {
        if (p->rate <= 0) {
            if (now < u->backoff_us)
                return;
            send_one(u, now);
            continue;
        }
        if (now < u->next_us)
            return;
        send_one(u, u->next_us);
        double mean_us = 1e6 / p->rate;
        u->next_us += (int64_t)(p->constant ? mean_us : prng_exp(&u->prng, mean_us));
    }
}

// Streams that wait to re-attach, and those that heard nothing for too long.
static void scan(struct run *u, int64_t now_us)
{
    for (int k = 0; k < u->p->concurrency; k++) {
        struct load_stream *s = &u->streams[k];
        if (!s->active)
            continue;
        if (s->attach_at_us && now_us >= s->attach_at_us) {
            s->attach_at_us = 0;
            u->r->attached++;
            load_net_attach(u->net, s);
        } else if (now_us - s->heard_us > u->p->timeout_ms * 1000) {
            load_net_cut(u->net, s);
            lose(u, s, "heard nothing until the time limit");
        }
    }
}

static int turn_ms(const struct run *u)
{
    if (u->p->rate <= 0)
        return SCAN_MS / 2;
    int64_t left = (u->next_us - cmdline_now_us()) / 1000;
    return left < 0 ? 1 : left < SCAN_MS / 2 ? (int)left : SCAN_MS / 2;
}

static void show(struct run *u, struct cmdline_progress *bar)
{
    char note[96];
    snprintf(note, sizeof note, "streams %d  lost %" PRId64 "  faults %d", u->active, u->r->lost,
             u->r->faults_n);
    cmdline_progress_show(bar, (uint64_t)u->r->finished,
                          u->p->requests ? (uint64_t)u->p->requests : 0, note);
}

static void loop(struct run *u)
{
    struct cmdline_progress bar;
    cmdline_progress_start(&bar, "finished");
    bar.on = bar.on && u->p->progress;
    int64_t scanned = 0;
    for (;;) {
        send_due(u);
        int64_t now = cmdline_now_us();
        if (u->active == 0 && !more_to_send(u, now))
            break;
        if (load_interrupted > 1)
            break;
        load_net_turn(u->net, turn_ms(u));
        hear_faults(u);
        if ((now = cmdline_now_us()) - scanned > SCAN_MS * 1000) {
            scan(u, now);
            scanned = now;
            show(u, &bar);
        }
    }
    cmdline_progress_stop(&bar);
}

static void abandon(struct run *u)
{
    for (int k = 0; k < u->p->concurrency; k++) {
        struct load_stream *s = &u->streams[k];
        if (!s->active)
            continue;
        load_net_cut(u->net, s);
        lose(u, s, "interrupted");
    }
}

enum status load_phase_run(const struct load_phase *p, struct load_result *out,
                           struct load_answer *answers, struct errmsg *err)
{
    *out = (struct load_result){0};
    struct run u = {.p = p, .r = out, .answers = answers};
    const struct load_net_handler h = {on_heard, on_closed, &u};
    u.net = load_net_open(p->url, &h, err);
    if (!u.net)
        return STATUS_BAD_CONFIG;
    u.streams = mem_zalloc((size_t)p->concurrency, sizeof *u.streams);
    u.free = mem_zalloc((size_t)p->concurrency, sizeof *u.free);
    for (int k = p->concurrency - 1; k >= 0; k--)
        u.free[u.free_n++] = k;
    prng_seed(&u.prng, p->seed);
    u.start_us = u.next_us = cmdline_now_us();
    if (p->script && p->script->n)
        u.faults = load_faults_start(p->script, p->admin, p->seed);
    loop(&u);
    out->seconds = (double)(cmdline_now_us() - u.start_us) / 1e6;
    abandon(&u);
    load_faults_stop(u.faults);
    load_net_close(u.net);
    free(u.streams);
    free(u.free);
    return STATUS_OK;
}

void load_result_finish(struct load_result *r)
{
    struct load_samples *all[] = {&r->ttft, &r->tpot, &r->gap, &r->pause, &r->total};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        load_samples_finish(all[i]);
    for (int i = 0; i < r->faults_n; i++)
        load_samples_finish(&r->faults[i].gaps);
    free(r->faults);
    *r = (struct load_result){0};
}
