// Opens the text side of a model folder and prepares requests with it.
#include "coordinator/text_pool.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/mem.h"
#include "coordinator/config.h"

enum { CONFIG_BYTES = 1 << 20 };

// A small JSON file of the folder. *out is NULL when there is no such file.
static enum status load_json(const char *dir, const char *name, json_t **out, struct errmsg *err)
{
    char path[LIMIT_PATH];
    struct stat st;
    *out = NULL;
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return errmsg_set(err, STATUS_BAD_MODEL, "%s: the path is too long", dir);
    if (stat(path, &st))
        return STATUS_OK;
    if (!S_ISREG(st.st_mode)) // a pipe would never end
        return errmsg_set(err, STATUS_BAD_FILE, "%s: not a regular file", path);
    if (st.st_size > CONFIG_BYTES)
        return errmsg_set(err, STATUS_BAD_FILE, "%s: %lld bytes, the limit is %d", path,
                          (long long)st.st_size, CONFIG_BYTES);
    json_error_t je;
    *out = json_load_file(path, 0, &je);
    if (!*out)
        return errmsg_set(err, STATUS_BAD_FILE, "%s: line %d: %s", path, je.line, je.text);
    return STATUS_OK;
}

static enum status take_default(const json_t *o, const char *name, double lo, double hi, float *out,
                                struct errmsg *err)
{
    const json_t *v = json_object_get(o, name);
    if (!v || json_is_null(v))
        return STATUS_OK;
    double d = json_number_value(v);
    if (!json_is_number(v) || !(d >= lo && d <= hi))
        return errmsg_set(err, STATUS_BAD_MODEL,
                          "generation_config.json: %s is not a number in %g..%g", name, lo, hi);
    *out = (float)d;
    return STATUS_OK;
}

static enum status read_defaults(const char *dir, struct sampling *s, struct errmsg *err)
{
    *s = (struct sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    json_t *o;
    enum status st = load_json(dir, "generation_config.json", &o, err);
    float top_k = 0;
    if (!st)
        st = take_default(o, "temperature", 0, 2, &s->temperature, err);
    if (!st)
        st = take_default(o, "top_p", 0, 1, &s->top_p, err);
    if (!st)
        st = take_default(o, "min_p", 0, 1, &s->min_p, err);
    if (!st)
        st = take_default(o, "repetition_penalty", 0.01, 10, &s->repetition_penalty, err);
    if (!st)
        st = take_default(o, "top_k", 0, 1 << 20, &top_k, err);
    s->top_k = (int32_t)top_k;
    if (json_is_false(json_object_get(o, "do_sample")))
        s->temperature = 0;
    json_decref(o);
    return st;
}

static enum status read_context(const char *dir, uint32_t *out, struct errmsg *err)
{
    json_t *o;
    enum status s = load_json(dir, "config.json", &o, err);
    json_int_t n = json_integer_value(json_object_get(o, "max_position_embeddings"));
    json_decref(o);
    if (!s)
        *out = n > 0 && n <= LIMIT_CONTEXT ? (uint32_t)n : 0;
    return s;
}

// The last part of the path.
static void base_name(const char *dir, char name[LIMIT_NAME])
{
    size_t end = strlen(dir);
    while (end > 1 && dir[end - 1] == '/')
        end--;
    size_t at = end;
    while (at > 0 && dir[at - 1] != '/')
        at--;
    snprintf(name, LIMIT_NAME, "%.*s", (int)(end - at), dir + at);
}

static void take_stop_ids(struct model_text *m)
{
    size_t n;
    const int32_t *eos = tokenizer_eos(m->tokenizer, &n);
    m->stop_ids_n = (uint32_t)(n < MSG_STOP_IDS ? n : MSG_STOP_IDS);
    for (uint32_t i = 0; i < m->stop_ids_n; i++)
        m->stop_ids[i] = eos[i];
}

static enum status open_parts(const char *dir, struct model_text *m, struct errmsg *err)
{
    enum status s = tokenizer_open(dir, &m->tokenizer, err);
    if (!s)
        s = chat_template_open(dir, &m->template, err);
    if (!s)
        s = read_defaults(dir, &m->defaults, err);
    if (!s)
        s = read_context(dir, &m->context, err);
    return s;
}

enum status model_text_open(const char *dir, const char *name, struct model_text *out,
                            struct errmsg *err)
{
    struct model_text m = {0};
    enum status s = open_parts(dir, &m, err);
    if (s) {
        model_text_close(&m);
        return s;
    }
    if (name && *name)
        snprintf(m.name, sizeof m.name, "%s", name);
    else
        base_name(dir, m.name);
    m.thinks = chat_template_thinks(m.template);
    m.opens_think = chat_template_opens_think(m.template);
    take_stop_ids(&m);
    *out = m;
    return STATUS_OK;
}

void model_text_close(struct model_text *m)
{
    tokenizer_close(m->tokenizer);
    chat_template_close(m->template);
    *m = (struct model_text){0};
}

static bool encode_failed(struct openai_error *e, enum status s, const char *param,
                          const struct errmsg *err)
{
    return openai_fail(e, status_group(s) == STATUS_GROUP_REQUEST ? 400 : 500, param,
                       "invalid_value", "%s", err->text);
}

static bool encode_chat(struct text_job *j, const struct rpc_generate *g)
{
    struct chat_message *messages = mem_zalloc(g->messages_n, sizeof *messages);
    struct segment_vec segments = {0};
    struct errmsg err = {0};
    bool known = true;
    for (uint32_t i = 0; i < g->messages_n && known; i++) {
        known = chat_role_parse(g->messages[i].role, &messages[i].role);
        messages[i].content = g->messages[i].content.v;
        messages[i].n = g->messages[i].content.n;
    }
    enum status s = known ? STATUS_OK : errmsg_set(&err, STATUS_BAD_REQUEST, "unknown role");
    if (!s) {
        const struct chat_render_args args = {
            .messages = messages, .n = g->messages_n, .generation_prompt = true};
        s = chat_template_render(j->model->template, &args, &segments, &err);
    }
    if (!s)
        s = tokenizer_encode(j->model->tokenizer, segments.v, segments.n, &j->ids, &err);
    segment_vec_finish(&segments);
    free(messages);
    return !s || encode_failed(&j->error, s, "messages", &err);
}

static bool encode_text(struct text_job *j, const struct rpc_generate *g)
{
    const struct tokenizer *t = j->model->tokenizer;
    struct errmsg err = {0};
    if (tokenizer_add_bos(t) && tokenizer_bos(t) >= 0) {
        MEM_GROW(j->ids.v, j->ids.n, j->ids.cap);
        j->ids.v[j->ids.n++] = tokenizer_bos(t);
    }
    enum status s = tokenizer_encode_text(t, g->text.v, g->text.n, true, &j->ids, &err);
    if (s)
        return encode_failed(&j->error, s, "prompt", &err);
    if (!j->ids.n)
        return openai_fail(&j->error, 400, "prompt", "invalid_value", "The prompt is empty.");
    return true;
}

static bool copy_ids(struct text_job *j, const struct rpc_generate *g)
{
    uint32_t vocab = tokenizer_vocab_size(j->model->tokenizer);
    for (uint32_t i = 0; i < g->ids_n; i++)
        if ((uint32_t)g->ids[i] >= vocab)
            return openai_fail(&j->error, 400, "prompt", "invalid_value",
                               "Invalid 'prompt[%u]': the model has no token %d, the last is %u.",
                               i, g->ids[i], vocab - 1);
    j->ids.v = mem_dup(g->ids, g->ids_n * sizeof *g->ids);
    j->ids.n = j->ids.cap = g->ids_n;
    return true;
}

static void fill_sampling(struct text_job *j, const struct rpc_generate *g)
{
    struct sampling s = j->model->defaults;
    const struct sampling *from = &g->sampling;
    s.seed = from->seed;
    if (g->given & RPC_GIVEN_TEMPERATURE)
        s.temperature = from->temperature;
    if (g->given & RPC_GIVEN_TOP_P)
        s.top_p = from->top_p;
    if (g->given & RPC_GIVEN_MIN_P)
        s.min_p = from->min_p;
    if (g->given & RPC_GIVEN_TOP_K)
        s.top_k = from->top_k;
    if (g->given & RPC_GIVEN_REPETITION)
        s.repetition_penalty = from->repetition_penalty;
    if (g->given & RPC_GIVEN_PRESENCE)
        s.presence_penalty = from->presence_penalty;
    if (g->given & RPC_GIVEN_FREQUENCY)
        s.frequency_penalty = from->frequency_penalty;
    s.logprobs = from->logprobs;
    s.top_logprobs = from->top_logprobs;
    j->sampling = s;
}

const struct model_text *model_set_find(const struct model_set *m, const char *name)
{
    for (uint32_t i = 0; i < m->aliases_n; i++)
        if (!strcmp(m->aliases[i].name, name))
            name = m->aliases[i].model;
    for (uint32_t i = 0; i < m->n; i++)
        if (!strcmp(m->v[i]->name, name))
            return m->v[i];
    return NULL;
}

static bool find_model(struct text_job *j, const char *name)
{
    if (!*name || (!j->models && !strcmp(name, j->model->name)))
        return true;
    const struct model_text *m = j->models ? model_set_find(j->models, name) : NULL;
    if (m)
        j->model = m;
    return m != NULL;
}

static bool prepare(struct text_job *j)
{
    const struct rpc_generate *g = &j->request.gen;
    if (!find_model(j, g->model))
        return openai_fail(&j->error, 404, "model", "model_not_found",
                           "The model '%.100s' does not exist; this server has '%s'.", g->model,
                           j->model->name);
    bool ok = g->messages_n ? encode_chat(j, g) : g->ids_n ? copy_ids(j, g) : encode_text(j, g);
    if (!ok)
        return false;
    if (j->ids.n > LIMIT_CONTEXT)
        return openai_fail(
            &j->error, 400, g->messages_n ? "messages" : "prompt", "context_length_exceeded",
            "The prompt has %zu tokens; no context is longer than %d.", j->ids.n, LIMIT_CONTEXT);
    fill_sampling(j, g);
    return true;
}

static bool decode_generate(struct text_job *j)
{
    struct wire_frame f = {
        .type = RPC_GENERATE, .body = (const uint8_t *)j->bytes, .body_n = (uint32_t)j->n};
    struct errmsg err = {0};
    struct rpc r;
    if (wire_decode_rpc(&j->arena, &f, &r, &err))
        return openai_fail(&j->error, 400, NULL, "invalid_value", "%s", err.text);
    j->request.gen = r.generate;
    j->request.kind = r.generate.messages_n ? OPENAI_CHAT : OPENAI_COMPLETION;
    return true;
}

void text_job_rerun(struct text_job *j, const struct model_text *model)
{
    struct text_job again = *j;
    again.model = model;
    again.ids = (struct token_vec){0};
    const struct rpc_generate *g = &again.request.gen;
    bool ok = g->messages_n ? encode_chat(&again, g)
              : g->ids_n    ? copy_ids(&again, g)
                            : encode_text(&again, g);
    if (!ok || again.ids.n > LIMIT_CONTEXT) { // it stays with its own model
        token_vec_finish(&again.ids);
        return;
    }
    token_vec_finish(&j->ids);
    *j = again;
    fill_sampling(j, g);
}

void text_job_run(struct text_job *j)
{
    bool ok = j->source == TEXT_RPC
                  ? decode_generate(j)
                  : openai_parse(j->source == TEXT_CHAT ? OPENAI_CHAT : OPENAI_COMPLETION, j->bytes,
                                 j->n, &j->request, &j->error);
    if (ok)
        (void)prepare(j); // the error is in the job
}

void text_job_finish(struct text_job *j)
{
    openai_request_finish(&j->request);
    token_vec_finish(&j->ids);
    wire_arena_finish(&j->arena);
}
