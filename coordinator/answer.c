// Runs tokens through detokenizer, reasoning splitter and stop matcher, and keeps what comes out.
#include "coordinator/answer.h"

#include <assert.h>
#include <stdlib.h>

#include "base/mem.h"

static enum status make_matcher(struct answer *a, const struct answer_args *args,
                                struct errmsg *err)
{
    if (!args->stop_n)
        return STATUS_OK;
    if (args->stop_n > LIMIT_STOP_STRINGS)
        return errmsg_set(err, STATUS_TOO_LARGE, "stop: %u strings, the limit is %d", args->stop_n,
                          LIMIT_STOP_STRINGS);
    const char *strings[LIMIT_STOP_STRINGS];
    size_t lengths[LIMIT_STOP_STRINGS];
    for (uint32_t i = 0; i < args->stop_n; i++) {
        strings[i] = args->stop[i].v;
        lengths[i] = args->stop[i].n;
    }
    return stop_matcher_create(strings, lengths, args->stop_n, &a->stop, err);
}

static void mark(struct answer *a, int32_t token)
{
    MEM_GROW(a->marks, a->marks_n, a->marks_cap);
    a->marks[a->marks_n++] = (struct answer_mark){
        .content_n = (uint32_t)a->content.n, .thoughts_n = (uint32_t)a->thoughts.n, .token = token};
}

enum status answer_init(struct answer *a, const struct answer_args *args, struct errmsg *err)
{
    *a = (struct answer){
        .tokenizer = args->tokenizer, .splits = args->reasoning, .logprobs = args->logprobs};
    enum status s = make_matcher(a, args, err);
    if (s)
        return s;
    detok_init(&a->detok, args->tokenizer, true);
    reasoning_init(&a->split, args->opens_think);
    strbuf_puts(&a->content, ""); // readers may point into both from the start
    strbuf_puts(&a->thoughts, "");
    mark(a, -1);
    return STATUS_OK;
}

void answer_finish(struct answer *a)
{
    stop_matcher_destroy(a->stop);
    strbuf_finish(&a->content);
    strbuf_finish(&a->thoughts);
    strbuf_finish(&a->raw);
    strbuf_finish(&a->plain);
    free(a->marks);
    free(a->lp);
    free(a->top);
    *a = (struct answer){0};
}

// New content passes the stop matcher on its way out.
static void add_content(struct answer *a, const char *v, size_t n)
{
    if (!a->stop)
        strbuf_add(&a->content, v, n);
    else if (!a->stopped)
        a->stopped = stop_matcher_push(a->stop, v, n, &a->content) >= 0;
}

static void take_raw(struct answer *a)
{
    if (!a->splits) {
        add_content(a, a->raw.v, a->raw.n);
        return;
    }
    strbuf_clear(&a->plain);
    reasoning_push(&a->split, a->raw.v, a->raw.n, &a->thoughts, &a->plain);
    add_content(a, a->plain.v, a->plain.n);
}

static void keep_logprob(struct answer *a, const struct token_out *t)
{
    MEM_GROW(a->lp, a->lp_n, a->lp_cap);
    a->lp[a->lp_n++] = (struct answer_logprob){
        .value = t->logprob, .top_at = (uint32_t)a->top_n, .top_n = t->top_n};
    for (uint32_t i = 0; i < t->top_n; i++) {
        MEM_GROW(a->top, a->top_n, a->top_cap);
        a->top[a->top_n++] = t->top[i];
    }
}

static bool in_thoughts(const struct answer *a)
{
    return a->splits && a->split.state != REASONING_CONTENT && a->split.state != REASONING_CLOSED;
}

bool answer_push(struct answer *a, const struct token_out *t)
{
    assert(!a->closed);
    if (a->stopped || t->token < 0)
        return false;
    bool thinking = in_thoughts(a);
    if (t->finish != FINISH_STOP) {
        strbuf_clear(&a->raw);
        detok_push(&a->detok, t->token, &a->raw);
        if (a->raw.n)
            take_raw(a);
    }
    // An answer without <think> was no thought, whatever it began with.
    if (thinking && (a->split.state != REASONING_CONTENT || a->thoughts.n))
        a->reasoning_tokens++;
    else if (a->splits && !a->thoughts.n)
        a->reasoning_tokens = 0;
    if (a->logprobs)
        keep_logprob(a, t);
    a->tokens_n++;
    mark(a, t->token);
    return a->stopped;
}

// A finished answer may be kept for a while: only what readers need.
static void trim(struct answer *a)
{
    strbuf_finish(&a->raw);
    strbuf_finish(&a->plain);
    stop_matcher_destroy(a->stop);
    a->stop = NULL;
    a->marks_cap = a->marks_n;
    a->marks = mem_realloc(a->marks, a->marks_n, sizeof *a->marks);
}

void answer_close(struct answer *a)
{
    if (a->closed)
        return;
    a->closed = true;
    strbuf_clear(&a->raw);
    detok_flush(&a->detok, &a->raw);
    if (a->raw.n)
        take_raw(a);
    if (a->splits) {
        strbuf_clear(&a->plain);
        reasoning_flush(&a->split, &a->thoughts, &a->plain);
        add_content(a, a->plain.v, a->plain.n);
    }
    if (a->stop && !a->stopped)
        stop_matcher_flush(a->stop, &a->content);
    trim(a);
}

struct answer_mark answer_mark(const struct answer *a, uint32_t tokens)
{
    assert(tokens < a->marks_n);
    return a->marks[tokens];
}
