// The reading side of one stream: chunks of an OpenAI chat stream become text, token counts and
// times. Event ids are numbers that grow; one that does not grow is a repetition.
#include "tools/load_stream.h"

#include <jansson.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

enum { FAULT_WINDOW_US = 15000000 };

void load_answer_finish(struct load_answer *a)
{
    strbuf_finish(&a->reasoning);
    strbuf_finish(&a->content);
    *a = (struct load_answer){0};
}

static bool same(const struct strbuf *a, const struct strbuf *b)
{
    return a->n == b->n && (a->n == 0 || !memcmp(a->v, b->v, a->n));
}

bool load_answer_equal(const struct load_answer *a, const struct load_answer *b)
{
    return same(&a->reasoning, &b->reasoning) && same(&a->content, &b->content) &&
           a->tokens == b->tokens && a->ids_hash == b->ids_hash && !strcmp(a->finish, b->finish);
}

void load_stream_begin(struct load_stream *s, int prompt, int64_t intended_us)
{
    *s = (struct load_stream){.prompt = prompt,
                              .intended_us = intended_us,
                              .heard_us = intended_us,
                              .position = -1,
                              .active = true,
                              .fault = -1};
}

void load_stream_finish(struct load_stream *s)
{
    load_answer_finish(&s->answer);
    s->active = false;
}

int64_t load_stream_token(struct load_stream *s, int64_t now_us)
{
    int64_t gap = s->first_us ? now_us - s->last_us : -1;
    if (!s->first_us)
        s->first_us = now_us;
    s->last_us = now_us;
    if (gap >= 0 && s->fault >= 0 && now_us - s->fault_us < FAULT_WINDOW_US &&
        gap > s->fault_gap_us)
        s->fault_gap_us = gap;
    return gap;
}

static bool take_text(struct strbuf *to, const json_t *delta, const char *key)
{
    const json_t *text = json_object_get(delta, key);
    size_t n = json_string_length(text);
    if (n)
        strbuf_add(to, json_string_value(text), n);
    return n > 0;
}

static void copy_string(char *to, size_t n, const json_t *from)
{
    if (json_is_string(from) && json_string_length(from) < n)
        strcpy(to, json_string_value(from));
}

static void take_error(struct load_stream *s, const json_t *error)
{
    const char *text = json_string_value(json_object_get(error, "message"));
    snprintf(s->error, sizeof s->error, "%s", text ? text : "error event without a message");
}

static int64_t take_chunk(struct load_stream *s, int64_t now_us, const json_t *chunk)
{
    int64_t gap = -1;
    const json_t *choice = json_array_get(json_object_get(chunk, "choices"), 0);
    const json_t *delta = json_object_get(choice, "delta");
    bool more = take_text(&s->answer.reasoning, delta, "reasoning_content");
    more |= take_text(&s->answer.content, delta, "content");
    if (more) {
        s->answer.tokens++;
        gap = load_stream_token(s, now_us);
    }
    copy_string(s->answer.finish, sizeof s->answer.finish,
                json_object_get(choice, "finish_reason"));
    copy_string(s->request, sizeof s->request, json_object_get(chunk, "id"));
    const json_t *usage = json_object_get(chunk, "usage");
    if (json_is_object(usage))
        s->answer.tokens =
            (uint32_t)json_integer_value(json_object_get(usage, "completion_tokens"));
    if (json_is_object(json_object_get(chunk, "error")))
        take_error(s, json_object_get(chunk, "error"));
    return gap;
}

// Sees to the order of events by their numbers; true when this one is new.
static bool take_id(struct load_stream *s, const struct sse_event *e)
{
    if (!e->has_id)
        return true;
    strcpy(s->last_id, e->id);
    char *end;
    int64_t n = strtoll(e->id, &end, 10);
    if (*end || end == e->id)
        return true; // ids of another kind tell no order
    if (n <= s->position) {
        s->repeated++;
        return false;
    }
    s->position = n;
    return true;
}

int64_t load_stream_event(struct load_stream *s, int64_t now_us, const struct sse_event *e)
{
    s->heard_us = now_us;
    bool fresh = take_id(s, e);
    if (!strcmp(e->data, "[DONE]")) {
        s->done = true;
        return -1;
    }
    json_error_t why;
    json_t *chunk = json_loadb(e->data, e->data_n, JSON_ALLOW_NUL, &why);
    if (!chunk) {
        snprintf(s->error, sizeof s->error, "event is not JSON: %.100s", why.text);
        return -1;
    }
    // A repeated event is kept too: what a client would have shown is what is compared.
    int64_t gap = take_chunk(s, now_us, chunk);
    json_decref(chunk);
    return fresh ? gap : -1;
}

void load_stream_mark(struct load_stream *s, int fault, int64_t fault_us)
{
    s->fault = fault;
    s->fault_us = fault_us;
    s->fault_gap_us = 0;
}
