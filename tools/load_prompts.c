// Prompts of a load: questions that the sample model was trained to answer, drawn from a seed, or
// the lines of a file; each turned into the body of a chat request once.
#include "tools/load_plan.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/prng.h"
#include "base/strbuf.h"

static const char *const words[] = {"strawberry", "coordinator", "butterfly", "pipeline",
                                    "network",    "failover",    "elephant",  "keyboard",
                                    "mushroom",   "gradient",    "kitchen",   "mountain"};
enum { WORDS_N = sizeof words / sizeof *words };

static void draw_sum(struct strbuf *q, struct prng *r)
{
    strbuf_printf(q, "What is %" PRIu64 " + %" PRIu64 "?", 1000 + prng_below(r, 900000),
                  100 + prng_below(r, 90000));
}

static void draw_sort(struct strbuf *q, struct prng *r)
{
    uint64_t n = 3 + prng_below(r, 5);
    strbuf_puts(q, "Sort these numbers: ");
    for (uint64_t i = 0; i < n; i++)
        strbuf_printf(q, "%s%" PRIu64, i ? ", " : "", 1 + prng_below(r, 99));
    strbuf_puts(q, ".");
}

static void draw_letters(struct strbuf *q, struct prng *r)
{
    const char *word = words[prng_below(r, WORDS_N)];
    if (prng_below(r, 3) == 0)
        strbuf_printf(q, "Spell %s backwards.", word);
    else
        strbuf_printf(q, "How many %c are in %s?", word[prng_below(r, strlen(word))], word);
}

static void draw(struct strbuf *q, const char *mix, struct prng *r)
{
    uint64_t any = prng_below(r, 3);
    if (!strcmp(mix, "sums") || (!strcmp(mix, "all") && any == 0))
        draw_sum(q, r);
    else if (!strcmp(mix, "sort") || (!strcmp(mix, "all") && any == 1))
        draw_sort(q, r);
    else
        draw_letters(q, r);
}

static json_t *messages_of(const char *question, size_t n)
{
    return json_pack("[{s:s, s:s%}]", "role", "user", "content", question, n);
}

// Takes over `messages`.
static void add_body(struct load_prompts *p, const struct load_prompt_args *a, json_t *messages)
{
    json_t *body = json_pack("{s:s, s:o, s:b, s:{s:b}, s:i, s:f, s:I}", "model", a->model,
                             "messages", messages, "stream", 1, "stream_options", "include_usage",
                             1, "max_tokens", a->max_tokens, "temperature", a->temperature, "seed",
                             (json_int_t)((a->seed + (uint64_t)p->n) & INT64_MAX));
    p->bodies = mem_realloc(p->bodies, (size_t)p->n + 1, sizeof *p->bodies);
    p->bodies[p->n++] = json_dumps(body, JSON_COMPACT);
    json_decref(body);
}

static void draw_all(struct load_prompts *p, const struct load_prompt_args *a)
{
    struct prng r;
    prng_seed(&r, a->seed);
    for (int i = 0; i < a->distinct; i++) {
        struct strbuf q = {0};
        draw(&q, a->mix, &r);
        add_body(p, a, messages_of(q.v, q.n));
        strbuf_finish(&q);
    }
}

static enum status add_line(struct load_prompts *p, const struct load_prompt_args *a,
                            const char *line, size_t n, int number, struct errmsg *err)
{
    json_error_t e;
    json_t *json = json_loadb(line, n, JSON_DECODE_ANY, &e);
    if (!json)
        return errmsg_set(err, STATUS_BAD_FILE, "%s:%d: %s", a->file, number, e.text);
    json_t *prompt = json_is_string(json) ? json : json_object_get(json, "prompt");
    json_t *messages = json_object_get(json, "messages");
    enum status s = STATUS_OK;
    if (json_is_array(messages))
        add_body(p, a, json_incref(messages));
    else if (json_is_string(prompt))
        add_body(p, a, messages_of(json_string_value(prompt), json_string_length(prompt)));
    else
        s = errmsg_set(err, STATUS_BAD_FILE, "%s:%d: neither \"prompt\" nor \"messages\"", a->file,
                       number);
    json_decref(json);
    return s;
}

static enum status read_all(struct load_prompts *p, const struct load_prompt_args *a,
                            struct errmsg *err)
{
    FILE *f = fopen(a->file, "r");
    if (!f)
        return errmsg_set(err, STATUS_IO, "%s: %s", a->file, strerror(errno));
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    enum status s = STATUS_OK;
    for (int number = 1; s == STATUS_OK && (n = getline(&line, &cap, f)) >= 0; number++) {
        if (strspn(line, " \t\r\n") == (size_t)n)
            continue;
        if (p->n == LOAD_PROMPTS_MAX)
            s = errmsg_set(err, STATUS_TOO_LARGE, "%s: more than %d prompts", a->file,
                           LOAD_PROMPTS_MAX);
        else
            s = add_line(p, a, line, (size_t)n, number, err);
    }
    if (s == STATUS_OK && p->n == 0)
        s = errmsg_set(err, STATUS_BAD_FILE, "%s: no prompt in it", a->file);
    free(line);
    fclose(f);
    return s;
}

enum status load_prompts_make(struct load_prompts *out, const struct load_prompt_args *args,
                              struct errmsg *err)
{
    *out = (struct load_prompts){0};
    enum status s = STATUS_OK;
    if (args->file)
        s = read_all(out, args, err);
    else
        draw_all(out, args);
    if (s != STATUS_OK)
        load_prompts_finish(out);
    return s;
}

void load_prompts_finish(struct load_prompts *p)
{
    for (int i = 0; i < p->n; i++)
        free(p->bodies[i]);
    free(p->bodies);
    *p = (struct load_prompts){0};
}
