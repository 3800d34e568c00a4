// Answers as OpenAI's JSON: server-sent events and whole documents. Written straight into a byte
// string, because a chunk is made for every token of every stream.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "coordinator/openai.h"

static void add_uint(struct strbuf *out, uint64_t v)
{
    char digits[20];
    size_t n = sizeof digits;
    do
        digits[--n] = (char)('0' + v % 10);
    while (v /= 10);
    strbuf_add(out, digits + n, sizeof digits - n);
}

#define ADD(out, literal) strbuf_add((out), "" literal, sizeof(literal) - 1)

// Opens an event: "id: k\ndata: ".
static void event(struct strbuf *out, uint64_t id)
{
    ADD(out, "id: ");
    add_uint(out, id);
    ADD(out, "\ndata: ");
}

// {"id":...,"object":...,"created":...,"model":...,
static void head(const struct openai_head *h, const char *object, struct strbuf *out)
{
    char id[OPENAI_ID_BYTES];
    openai_id(h, id);
    ADD(out, "{\"id\":\"");
    strbuf_puts(out, id);
    ADD(out, "\",\"object\":\"");
    strbuf_puts(out, object);
    ADD(out, "\",\"created\":");
    add_uint(out, (uint64_t)h->created);
    ADD(out, ",\"model\":");
    strbuf_json(out, h->model, strlen(h->model));
    ADD(out, ",");
}

static const char *chunk_object(const struct openai_head *h)
{
    return h->kind == OPENAI_CHAT ? "chat.completion.chunk" : "text_completion";
}

static void add_finish(struct strbuf *out, enum finish_reason f)
{
    ADD(out, ",\"finish_reason\":");
    if (f == FINISH_NONE)
        ADD(out, "null");
    else
        strbuf_json(out, finish_reason_name(f), strlen(finish_reason_name(f)));
}

// JSON knows no infinity; OpenAI writes -9999.0 for what cannot be.
static void add_logprob(struct strbuf *out, float v)
{
    strbuf_printf(out, "%.6g", isfinite(v) ? (double)v : -9999.0);
}

// ---- log-probabilities --------------------------------------------------------------------------

static void add_token_text(struct strbuf *out, const struct answer *a, int32_t token)
{
    struct strbuf text = {0};
    tokenizer_decode(a->tokenizer, &token, 1, false, &text);
    strbuf_json(out, text.v ? text.v : "", text.n);
    strbuf_finish(&text);
}

// "token":...,"logprob":...,"bytes":[...]
static void chat_token(struct strbuf *out, const struct answer *a, int32_t token, float logprob)
{
    ADD(out, "\"token\":");
    add_token_text(out, a, token);
    ADD(out, ",\"logprob\":");
    add_logprob(out, logprob);
    ADD(out, ",\"bytes\":[");
    const char *bytes;
    size_t n;
    tokenizer_token_bytes(a->tokenizer, token, &bytes, &n);
    for (size_t i = 0; i < n; i++) {
        if (i)
            ADD(out, ",");
        add_uint(out, (unsigned char)bytes[i]);
    }
    ADD(out, "]");
}

static void chat_logprobs(const struct answer *a, uint32_t from, uint32_t to, struct strbuf *out)
{
    ADD(out, ",\"logprobs\":{\"content\":[");
    for (uint32_t i = from; i < to; i++) {
        const struct answer_logprob *lp = &a->lp[i];
        strbuf_puts(out, i > from ? ",{" : "{");
        chat_token(out, a, a->marks[i + 1].token, lp->value);
        ADD(out, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < lp->top_n; k++) {
            const struct logprob *t = &a->top[lp->top_at + k];
            strbuf_puts(out, k ? ",{" : "{");
            chat_token(out, a, t->token, t->value);
            ADD(out, "}");
        }
        ADD(out, "]}");
    }
    ADD(out, "],\"refusal\":null}");
}

// {"text":logprob,...} of one token's alternatives.
static void completion_top(const struct answer *a, uint32_t i, struct strbuf *out)
{
    const struct answer_logprob *lp = &a->lp[i];
    ADD(out, "{");
    for (uint32_t k = 0; k < lp->top_n; k++) {
        if (k)
            ADD(out, ",");
        add_token_text(out, a, a->top[lp->top_at + k].token);
        ADD(out, ":");
        add_logprob(out, a->top[lp->top_at + k].value);
    }
    ADD(out, "}");
}

static void completion_logprobs(const struct answer *a, uint32_t from, uint32_t to,
                                struct strbuf *out)
{
    ADD(out, ",\"logprobs\":{\"tokens\":[");
    for (uint32_t i = from; i < to; i++) {
        if (i > from)
            ADD(out, ",");
        add_token_text(out, a, a->marks[i + 1].token);
    }
    ADD(out, "],\"token_logprobs\":[");
    for (uint32_t i = from; i < to; i++) {
        if (i > from)
            ADD(out, ",");
        add_logprob(out, a->lp[i].value);
    }
    ADD(out, "],\"top_logprobs\":[");
    for (uint32_t i = from; i < to; i++) {
        if (i > from)
            ADD(out, ",");
        completion_top(a, i, out);
    }
    ADD(out, "],\"text_offset\":[");
    for (uint32_t i = from; i < to; i++) {
        if (i > from)
            ADD(out, ",");
        add_uint(out, a->marks[i].content_n);
    }
    ADD(out, "]}");
}

static void logprobs(const struct openai_head *h, const struct answer *a, uint32_t from,
                     uint32_t to, struct strbuf *out)
{
    if (!a->logprobs || from == to)
        ADD(out, ",\"logprobs\":null");
    else if (h->kind == OPENAI_CHAT)
        chat_logprobs(a, from, to, out);
    else
        completion_logprobs(a, from, to, out);
}

// ---- events -------------------------------------------------------------------------------------

static void end_chunk(const struct openai_head *h, struct strbuf *out)
{
    if (h->include_usage)
        ADD(out, "}],\"usage\":null}\n\n");
    else
        ADD(out, "}]}\n\n");
}

void openai_sse_role(const struct openai_head *h, struct strbuf *out)
{
    if (h->kind != OPENAI_CHAT)
        return;
    event(out, 0);
    head(h, chunk_object(h), out);
    ADD(out, "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
             "\"logprobs\":null,\"finish_reason\":null");
    end_chunk(h, out);
}

// The text between two places of the answer: as a delta of a chat, or as text.
static void add_text(const struct openai_head *h, const struct answer *a, struct answer_mark from,
                     struct answer_mark to, struct strbuf *out)
{
    const char *content = a->content.v + from.content_n;
    size_t n = to.content_n - from.content_n;
    if (h->kind == OPENAI_COMPLETION) {
        ADD(out, "\"text\":");
        strbuf_json(out, content, n);
        return;
    }
    ADD(out, "\"delta\":{");
    if (to.thoughts_n > from.thoughts_n) {
        ADD(out, "\"reasoning_content\":");
        strbuf_json(out, a->thoughts.v + from.thoughts_n, to.thoughts_n - from.thoughts_n);
        if (n)
            ADD(out, ",");
    }
    if (n) {
        ADD(out, "\"content\":");
        strbuf_json(out, content, n);
    }
    ADD(out, "}");
}

bool openai_sse_delta(const struct openai_head *h, const struct answer *a, uint32_t from,
                      uint32_t to, struct strbuf *out)
{
    struct answer_mark f = answer_mark(a, from), t = answer_mark(a, to);
    if (f.content_n == t.content_n && f.thoughts_n == t.thoughts_n && !(a->logprobs && to > from))
        return false;
    event(out, to);
    head(h, chunk_object(h), out);
    ADD(out, "\"choices\":[{\"index\":0,");
    add_text(h, a, f, t, out);
    logprobs(h, a, from, to, out);
    ADD(out, ",\"finish_reason\":null");
    end_chunk(h, out);
    return true;
}

static struct answer_mark end_of(const struct answer *a)
{
    return (struct answer_mark){.content_n = (uint32_t)a->content.n,
                                .thoughts_n = (uint32_t)a->thoughts.n};
}

void openai_sse_finish(const struct openai_head *h, const struct answer *a,
                       enum finish_reason finish, struct strbuf *out)
{
    event(out, (uint64_t)a->tokens_n + 1);
    head(h, chunk_object(h), out);
    ADD(out, "\"choices\":[{\"index\":0,");
    add_text(h, a, answer_mark(a, a->tokens_n), end_of(a), out);
    ADD(out, ",\"logprobs\":null");
    add_finish(out, finish);
    end_chunk(h, out);
}

static void add_usage(const struct openai_usage *u, struct strbuf *out)
{
    ADD(out, "\"usage\":{\"prompt_tokens\":");
    add_uint(out, u->prompt);
    ADD(out, ",\"completion_tokens\":");
    add_uint(out, u->completion);
    ADD(out, ",\"total_tokens\":");
    add_uint(out, (uint64_t)u->prompt + u->completion);
    ADD(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    add_uint(out, u->cached);
    ADD(out, "},\"completion_tokens_details\":{\"reasoning_tokens\":");
    add_uint(out, u->reasoning);
    ADD(out, "}}");
}

void openai_sse_usage(const struct openai_head *h, uint32_t n, const struct openai_usage *u,
                      struct strbuf *out)
{
    event(out, (uint64_t)n + 2);
    head(h, chunk_object(h), out);
    ADD(out, "\"choices\":[],");
    add_usage(u, out);
    ADD(out, "}\n\n");
}

void openai_sse_error(uint32_t n, const struct openai_error *e, struct strbuf *out)
{
    event(out, (uint64_t)n + 1);
    openai_error_json(e, out);
    ADD(out, "\n\n");
}

void openai_sse_done(uint32_t n, struct strbuf *out)
{
    event(out, (uint64_t)n + 3);
    ADD(out, "[DONE]\n\n");
}

// ---- documents ----------------------------------------------------------------------------------

static void chat_message(const struct answer *a, struct strbuf *out)
{
    ADD(out, "\"message\":{\"role\":\"assistant\",\"content\":");
    strbuf_json(out, a->content.v ? a->content.v : "", a->content.n);
    if (a->splits) {
        ADD(out, ",\"reasoning_content\":");
        if (a->thoughts.n)
            strbuf_json(out, a->thoughts.v, a->thoughts.n);
        else
            ADD(out, "null");
    }
    ADD(out, ",\"refusal\":null}");
}

void openai_response(const struct openai_head *h, const struct answer *a, enum finish_reason finish,
                     const struct openai_usage *u, struct strbuf *out)
{
    head(h, h->kind == OPENAI_CHAT ? "chat.completion" : "text_completion", out);
    ADD(out, "\"choices\":[{\"index\":0,");
    if (h->kind == OPENAI_CHAT)
        chat_message(a, out);
    else
        add_text(h, a, (struct answer_mark){0}, end_of(a), out);
    logprobs(h, a, 0, a->tokens_n, out);
    add_finish(out, finish);
    ADD(out, "}],");
    add_usage(u, out);
    ADD(out, "}");
}

void openai_model(const char *model, int64_t created, uint32_t max_context, struct strbuf *out)
{
    ADD(out, "{\"id\":");
    strbuf_json(out, model, strlen(model));
    strbuf_printf(out, ",\"object\":\"model\",\"created\":%" PRId64 ",\"owned_by\":\"hadal\"",
                  created);
    if (max_context)
        strbuf_printf(out, ",\"max_model_len\":%" PRIu32, max_context);
    ADD(out, "}");
}
