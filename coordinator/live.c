// Keeps requests for their readers; the shell decides when readers are woken.
#include "coordinator/live.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/hash.h"
#include "base/mem.h"
#include "coordinator/shadow.h"

static bool make_answer(struct live *l, struct text_job *job)
{
    bool chat = l->head.kind == OPENAI_CHAT;
    const struct answer_args args = {
        .tokenizer = job->model->tokenizer,
        .reasoning = chat && job->model->thinks,
        .opens_think = job->model->opens_think,
        .stop = job->request.gen.stop,
        .stop_n = job->request.gen.stop_n,
        .logprobs = job->sampling.logprobs,
    };
    struct errmsg err = {0};
    if (!answer_init(&l->answer, &args, &err))
        return true;
    return openai_fail(&job->error, 400, "stop", "invalid_value", "%s", err.text);
}

static void fill_submit(struct live *l, const struct text_job *job)
{
    const struct rpc_generate *g = &job->request.gen;
    l->submit = (struct coord_submit){
        .request = l->request,
        .prompt = l->prompt,
        .prompt_n = l->prompt_n,
        .max_tokens = g->max_tokens,
        .stop_ids_n = job->model->stop_ids_n,
        .sampling = job->sampling,
        .tenant = l->tenant,
        .model = job->model->name,
        .band = g->band,
        .session = *g->session ? hash_bytes(g->session, strlen(g->session), 1) | 1 : 0,
        .deadline_us = g->deadline_ms, // the shell adds the time
    };
    memcpy(l->submit.stop_ids, job->model->stop_ids, sizeof l->submit.stop_ids);
}

static void keep_stop(struct live *l, const struct rpc_text *stop, uint32_t n)
{
    if (!n)
        return;
    l->stop = mem_zalloc(n, sizeof *l->stop);
    l->stop_n = n;
    for (uint32_t i = 0; i < n; i++)
        l->stop[i] = (struct rpc_text){mem_dup(stop[i].v, stop[i].n), stop[i].n};
}

struct live *live_restore(const struct model_text *model, const struct shadow_request *q,
                          struct errmsg *err)
{
    const struct coord_submit *s = &q->restore.submit;
    bool chat = q->head.api == OPENAI_CHAT;
    const struct answer_args args = {
        .tokenizer = model->tokenizer,
        .reasoning = chat && model->thinks,
        .opens_think = model->opens_think,
        .stop = q->head.stop,
        .stop_n = q->head.stop_n,
        .logprobs = s->sampling.logprobs,
    };
    struct live *l = mem_zalloc(1, sizeof *l);
    if (answer_init(&l->answer, &args, err)) {
        free(l);
        return NULL;
    }
    l->request = s->request;
    l->state = LIVE_OPEN;
    l->restored = true;
    l->prompt_n = s->prompt_n;
    l->head = (struct openai_head){.kind = (enum openai_kind)q->head.api,
                                   .request = s->request,
                                   .created = q->head.created,
                                   .model = model->name,
                                   .include_usage = q->head.include_usage};
    keep_stop(l, q->head.stop, q->head.stop_n);
    for (uint32_t i = 0; i < q->restore.emitted_n && !l->answer.stopped; i++) {
        struct token_out t = q->tokens[i];
        for (uint32_t k = 0; k < s->stop_ids_n; k++) // it ended the sequence, and has no text
            if (t.token == s->stop_ids[k])
                t.finish = FINISH_STOP;
        answer_push(&l->answer, &t);
    }
    return l;
}

struct live *live_create(uint64_t request, int64_t created, struct text_job *job)
{
    struct live *l = mem_zalloc(1, sizeof *l);
    l->request = request;
    l->head = (struct openai_head){.kind = job->request.kind,
                                   .request = request,
                                   .created = created,
                                   .model = job->model->name,
                                   .include_usage = job->request.include_usage};
    if (!make_answer(l, job)) {
        free(l);
        return NULL;
    }
    l->prompt = job->ids.v;
    l->prompt_n = (uint32_t)job->ids.n;
    job->ids = (struct token_vec){0};
    memcpy(l->tenant, job->tenant, sizeof l->tenant);
    keep_stop(l, job->request.gen.stop, job->request.gen.stop_n);
    fill_submit(l, job);
    return l;
}

void live_destroy(struct live *l)
{
    assert(!l->readers && !l->dirty);
    answer_finish(&l->answer);
    for (uint32_t i = 0; i < l->stop_n; i++)
        free((void *)l->stop[i].v);
    free(l->stop);
    free(l->prompt);
    free(l->error);
    free(l);
}

void live_attach(struct live *l, struct reader *r)
{
    assert(!r->live);
    r->live = l;
    DL_APPEND(l->readers, r);
}

void live_detach(struct reader *r)
{
    DL_DELETE(r->live->readers, r);
    r->live = NULL;
}

bool live_tokens(struct live *l, const struct token_out *tokens, uint32_t n)
{
    for (uint32_t i = 0; i < n && !l->answer.stopped; i++) {
        if (tokens[i].token >= 0 && tokens[i].index < l->answer.tokens_n && l->restored)
            continue; // computed again, or told again by the next leader
        assert(tokens[i].token < 0 || tokens[i].index == l->answer.tokens_n);
        if (answer_push(&l->answer, &tokens[i]))
            return true;
    }
    return false;
}

void live_queued(struct live *l, uint32_t position, uint32_t eta_ms)
{
    l->position = position;
    l->eta_ms = eta_ms;
    l->notices++;
}

// Few requests fail: the others do not carry the room for the words.
static struct openai_error *make_error(struct live *l)
{
    if (!l->error)
        l->error = mem_zalloc(1, sizeof *l->error);
    return l->error;
}

void live_done(struct live *l, enum finish_reason finish, enum status status, const char *text,
               uint32_t prompt_n, uint32_t cached_n)
{
    answer_close(&l->answer);
    l->state = LIVE_DONE;
    l->finish = l->answer.stopped ? FINISH_STOP : finish; // a stop string may cross the core's end
    l->prompt_n = prompt_n;
    l->cached_n = cached_n;
    if (finish == FINISH_CANCELLED)
        openai_fail(make_error(l), 499, NULL, "cancelled", "The request was cancelled%s%s.",
                    *text ? ": " : "", text);
    else if (finish == FINISH_ERROR)
        openai_fail(make_error(l), status_group(status) == STATUS_GROUP_REQUEST ? 400 : 500, NULL,
                    status_name(status), "The request could not be finished: %s.",
                    *text ? text : status_text(status));
}

static const struct {
    int http;
    const char *param, *code;
} refusals[] = {
    [COORD_REFUSE_NONE] = {500, NULL, NULL},
    [COORD_REFUSE_QUEUE_FULL] = {429, NULL, "queue_full"},
    [COORD_REFUSE_NO_CAPACITY] = {503, NULL, "no_capacity"},
    [COORD_REFUSE_DEADLINE] = {429, NULL, "deadline"},
    [COORD_REFUSE_QUOTA] = {429, NULL, "quota"},
    [COORD_REFUSE_BREAKER] = {503, NULL, "breaker"},
    [COORD_REFUSE_DRAINING] = {503, NULL, "draining"},
    [COORD_REFUSE_PROMPT_TOO_LONG] = {400, "prompt", "context_length_exceeded"},
    [COORD_REFUSE_BAD_MAX_TOKENS] = {400, "max_tokens", "context_length_exceeded"},
    [COORD_REFUSE_BAD_REQUEST] = {400, NULL, "invalid_value"},
};

void live_refused(struct live *l, enum coord_refusal reason, uint32_t retry_after_ms,
                  const char *text)
{
    const char *param = refusals[reason].param;
    if (reason == COORD_REFUSE_PROMPT_TOO_LONG && l->head.kind == OPENAI_CHAT)
        param = "messages";
    answer_close(&l->answer);
    l->state = LIVE_REFUSED;
    l->forgotten = true;
    openai_fail(make_error(l), refusals[reason].http, param, refusals[reason].code, "%s", text);
    l->error->retry_after_ms = retry_after_ms;
}

struct openai_usage live_usage(const struct live *l)
{
    return (struct openai_usage){.prompt = l->prompt_n,
                                 .completion = l->answer.tokens_n,
                                 .cached = l->cached_n,
                                 .reasoning = l->answer.reasoning_tokens};
}
