// hadal eval: accuracy per task and perplexity of a model on a suite in the form of models/sample/
// eval.json, whose `protocol` says how: greedy decoding of every question, then the perplexity of
// the held-out texts. Questions are decoded SLOTS at a time; a slot that is done takes the next
// question, so the batch stays full.
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/mem.h"
#include "node/sampler.h"
#include "text/tokenizer.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/local_replica.h"
#include "tools/sample_model.h"

enum {
    NEW_TOKENS = 260,   // of an answer, at most
    TEXT_TOKENS = 1023, // of a held-out text, after bos
    TEXT_MIN = 64,      // shorter texts are left out
    CHUNK = 128,        // rows of one pass over a text
    PROMPT_MAX = 512,
    TASKS_MAX = 64,
};

struct eval_args {
    const char *model, *suite, *backend;
    int64_t batch, threads;
    bool json;
};

struct eval_case {
    const char *task, *answer; // borrowed from the suite
    const json_t *greedy_ids;
    struct token_vec prompt;
    int32_t out[NEW_TOKENS];
    size_t out_n;
    bool correct, identical;
};

struct task {
    const char *name;
    size_t cases, correct;
};

struct eval {
    const struct eval_args *args;
    json_t *suite;
    struct tokenizer *tokenizer;
    struct local_replica *replica;
    struct sampler *sampler;
    float *logits; // [vocab]
    struct eval_case *cases;
    size_t cases_n, done_n;
    struct task tasks[TASKS_MAX];
    size_t tasks_n, identical;
    double log_sum; // of the held-out tokens' negative log-probabilities
    size_t log_n;
    struct cmdline_progress bar;
    struct errmsg *e;
};

static const char *string_field(const json_t *obj, const char *key)
{
    return json_string_value(json_object_get(obj, key));
}

// bos, <｜User｜>, question, <｜Assistant｜>, "<think>\n": the marks as control tokens, the
// question as text. The sample model's words for them are DeepSeek's.
static enum status make_prompt(struct eval *ev, const char *question, struct token_vec *out)
{
    const struct text_segment parts[] = {
        {"<｜begin▁of▁sentence｜><｜User｜>", strlen("<｜begin▁of▁sentence｜><｜User｜>"), true},
        {question, strlen(question), false},
        {"<｜Assistant｜><think>\n", strlen("<｜Assistant｜><think>\n"), true},
    };
    enum status s = tokenizer_encode(ev->tokenizer, parts, 3, out, ev->e);
    if (s == STATUS_OK && (out->n == 0 || out->n > PROMPT_MAX))
        return errmsg_set(ev->e, STATUS_TOO_LARGE, "question of %zu tokens, at most %d", out->n,
                          PROMPT_MAX);
    return s;
}

static struct task *task_of(struct eval *ev, const char *name)
{
    for (size_t i = 0; i < ev->tasks_n; i++)
        if (!strcmp(ev->tasks[i].name, name))
            return &ev->tasks[i];
    if (ev->tasks_n == TASKS_MAX)
        return NULL;
    ev->tasks[ev->tasks_n].name = name;
    return &ev->tasks[ev->tasks_n++];
}

static enum status read_case(struct eval *ev, size_t i, const json_t *v, struct eval_case *c)
{
    const char *question = string_field(v, "question");
    c->task = string_field(v, "task");
    c->answer = string_field(v, "answer");
    c->greedy_ids = json_object_get(v, "greedy_ids");
    if (!question || !c->task || !c->answer || !json_is_array(c->greedy_ids))
        return errmsg_set(ev->e, STATUS_BAD_FILE,
                          "%s: cases[%zu] lacks task, question, answer or greedy_ids",
                          ev->args->suite, i);
    if (!task_of(ev, c->task))
        return errmsg_set(ev->e, STATUS_TOO_LARGE, "%s: cases[%zu]: more than %d tasks",
                          ev->args->suite, i, TASKS_MAX);
    return make_prompt(ev, question, &c->prompt);
}

static enum status read_cases(struct eval *ev)
{
    const json_t *list = json_object_get(ev->suite, "cases");
    if (!json_is_array(list))
        return errmsg_set(ev->e, STATUS_BAD_FILE, "%s: cases is missing or no array",
                          ev->args->suite);
    ev->cases_n = json_array_size(list);
    ev->cases = mem_zalloc(ev->cases_n + 1, sizeof *ev->cases);
    enum status s = STATUS_OK;
    for (size_t i = 0; i < ev->cases_n && s == STATUS_OK; i++)
        s = read_case(ev, i, json_array_get(list, i), &ev->cases[i]);
    return s;
}

// The batch being decoded: slot i holds case `of[i]` (-1: free), whose next `n` tokens from `pos`
// on are not computed yet.
struct slots {
    size_t n;
    long *of;
    size_t *pos;
    int32_t *tokens, *seq, *positions, *logit_rows;
    long *asked; // slot of each logit row
    size_t rows, logits_n;
};

static void add_slot(struct eval *ev, struct slots *b, size_t slot, size_t room)
{
    const struct eval_case *c = &ev->cases[b->of[slot]];
    size_t known = c->prompt.n + c->out_n;
    size_t n = known - b->pos[slot] < room ? known - b->pos[slot] : room;
    for (size_t i = 0; i < n; i++) {
        size_t at = b->pos[slot] + i;
        b->tokens[b->rows] = at < c->prompt.n ? c->prompt.v[at] : c->out[at - c->prompt.n];
        b->seq[b->rows] = (int32_t)slot;
        b->positions[b->rows++] = (int32_t)at;
    }
    b->pos[slot] += n;
    if (n && b->pos[slot] == known) {
        b->logit_rows[b->logits_n] = (int32_t)b->rows - 1;
        b->asked[b->logits_n++] = (long)slot;
    }
}

static void judge(struct eval *ev, struct eval_case *c);

static enum status take_token(struct eval *ev, struct slots *b, size_t i)
{
    struct eval_case *c = &ev->cases[b->of[b->asked[i]]];
    static const struct sampling greedy = {.repetition_penalty = 1, .top_p = 1};
    const struct sampler_input in = {.logits = ev->logits, .sampling = &greedy};
    struct step_sample sample;
    enum status s = local_replica_logits(ev->replica, i, ev->logits);
    if (s == STATUS_OK)
        s = sampler_pick(ev->sampler, &in, &sample);
    if (s != STATUS_OK)
        return errmsg_set(ev->e, s, "sampling: %s", status_text(s));
    c->out[c->out_n++] = sample.token;
    const struct model_config *mc = local_replica_config(ev->replica);
    bool end = c->out_n == NEW_TOKENS;
    for (int k = 0; k < mc->eos_n; k++)
        end |= sample.token == mc->eos[k];
    if (end) {
        judge(ev, c);
        b->of[b->asked[i]] = -1;
    }
    return STATUS_OK;
}

static enum status decode_step(struct eval *ev, struct slots *b, size_t *next)
{
    b->rows = b->logits_n = 0;
    for (size_t i = 0; i < b->n; i++) {
        if (b->of[i] < 0 && *next < ev->cases_n) {
            b->of[i] = (long)(*next)++;
            b->pos[i] = 0;
        }
        if (b->of[i] >= 0)
            add_slot(ev, b, i, PROMPT_MAX);
    }
    struct local_batch batch = {b->rows,      b->tokens,     b->seq,
                                b->positions, b->logit_rows, b->logits_n};
    enum status s = local_replica_run(ev->replica, &batch, ev->e);
    for (size_t i = 0; i < b->logits_n && s == STATUS_OK; i++)
        s = take_token(ev, b, i);
    return s;
}

static enum status decode_all(struct eval *ev)
{
    const size_t n = (size_t)ev->args->batch, rows = n * PROMPT_MAX;
    struct slots b = {.n = n,
                      .of = mem_zalloc(n, sizeof *b.of),
                      .pos = mem_zalloc(n, sizeof *b.pos),
                      .tokens = mem_zalloc(rows, sizeof *b.tokens),
                      .seq = mem_zalloc(rows, sizeof *b.seq),
                      .positions = mem_zalloc(rows, sizeof *b.positions),
                      .logit_rows = mem_zalloc(n, sizeof *b.logit_rows),
                      .asked = mem_zalloc(n, sizeof *b.asked)};
    for (size_t i = 0; i < n; i++)
        b.of[i] = -1;
    enum status s = STATUS_OK;
    for (size_t next = 0; ev->done_n < ev->cases_n && s == STATUS_OK;) {
        s = decode_step(ev, &b, &next);
        cmdline_progress_show(&ev->bar, ev->done_n, ev->cases_n, "cases");
    }
    free(b.of);
    free(b.pos);
    free(b.tokens);
    free(b.seq);
    free(b.positions);
    free(b.logit_rows);
    free(b.asked);
    return s;
}

// What follows </think>, without blanks around it, must be the answer.
static bool is_answer(const char *text, const char *answer)
{
    const char *close = strstr(text, "</think>");
    if (!close)
        return false;
    const char *from = close + strlen("</think>");
    from += strspn(from, " \t\r\n");
    size_t n = strlen(from);
    while (n && strchr(" \t\r\n", from[n - 1]))
        n--;
    return n == strlen(answer) && !memcmp(from, answer, n);
}

static bool same_ids(const struct eval_case *c)
{
    size_t n = json_array_size(c->greedy_ids);
    for (size_t i = 0; i < n && i < c->out_n; i++)
        if (json_integer_value(json_array_get(c->greedy_ids, i)) != c->out[i])
            return false;
    return n == c->out_n;
}

static void judge(struct eval *ev, struct eval_case *c)
{
    const struct model_config *mc = local_replica_config(ev->replica);
    struct strbuf text = {0};
    size_t n = c->out_n;
    for (int k = 0; k < mc->eos_n && n == c->out_n; k++)
        n -= c->out[n - 1] == mc->eos[k];
    tokenizer_decode(ev->tokenizer, c->out, n, false, &text);
    c->correct = text.v && is_answer(text.v, c->answer);
    c->identical = same_ids(c);
    strbuf_finish(&text);
    struct task *t = task_of(ev, c->task);
    t->cases++;
    t->correct += c->correct;
    ev->identical += c->identical;
    ev->done_n++;
}

static double log_prob(const float *logits, size_t vocab, int32_t token)
{
    double max = logits[0], sum = 0;
    for (size_t i = 1; i < vocab; i++)
        max = logits[i] > max ? logits[i] : max;
    for (size_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - max);
    return logits[token] - max - log(sum);
}

// Rows [from, from + n) predict ids[from + 1 ...].
static enum status add_chunk(struct eval *ev, const int32_t *ids, size_t from, size_t n)
{
    int32_t seq[CHUNK] = {0}, pos[CHUNK], rows[CHUNK];
    for (size_t i = 0; i < n; i++) {
        pos[i] = (int32_t)(from + i);
        rows[i] = (int32_t)i;
    }
    struct local_batch b = {n, ids + from, seq, pos, rows, n};
    enum status s = local_replica_run(ev->replica, &b, ev->e);
    size_t vocab = (size_t)local_replica_config(ev->replica)->vocab;
    for (size_t i = 0; i < n && s == STATUS_OK; i++) {
        s = local_replica_logits(ev->replica, i, ev->logits);
        if (s != STATUS_OK)
            return errmsg_set(ev->e, s, "logits: %s", status_text(s));
        ev->log_sum -= log_prob(ev->logits, vocab, ids[from + i + 1]);
        ev->log_n++;
    }
    return s;
}

static enum status add_text(struct eval *ev, const char *text)
{
    struct token_vec ids = {0};
    const int32_t bos = tokenizer_bos(ev->tokenizer);
    enum status s = tokenizer_encode_text(ev->tokenizer, text, strlen(text), false, &ids, ev->e);
    size_t n = ids.n < TEXT_TOKENS ? ids.n : TEXT_TOKENS;
    if (s == STATUS_OK && ids.n >= TEXT_MIN) {
        int32_t with_bos[TEXT_TOKENS + 1] = {bos};
        memcpy(with_bos + 1, ids.v, n * sizeof *with_bos);
        for (size_t i = 0; i < n && s == STATUS_OK; i += CHUNK)
            s = add_chunk(ev, with_bos, i, n - i < CHUNK ? n - i : CHUNK);
    }
    token_vec_finish(&ids);
    return s;
}

static enum status read_texts(struct eval *ev)
{
    const json_t *list = json_object_get(ev->suite, "heldout_text"), *v;
    size_t i;
    if (list && tokenizer_bos(ev->tokenizer) < 0)
        return errmsg_set(ev->e, STATUS_BAD_MODEL, "%s: the tokenizer has no bos token",
                          ev->args->model);
    json_array_foreach((json_t *)list, i, v)
    {
        if (!json_is_string(v))
            return errmsg_set(ev->e, STATUS_BAD_FILE, "%s: heldout_text[%zu] is no string",
                              ev->args->suite, i);
        enum status s = add_text(ev, json_string_value(v));
        if (s != STATUS_OK)
            return s;
        cmdline_progress_show(&ev->bar, i + 1, json_array_size(list), "texts");
    }
    return STATUS_OK;
}

static void print_json(const struct eval *ev)
{
    json_t *tasks = json_object();
    for (size_t i = 0; i < ev->tasks_n; i++)
        json_object_set_new(tasks, ev->tasks[i].name,
                            json_real((double)ev->tasks[i].correct / (double)ev->tasks[i].cases));
    json_t *root =
        json_pack("{s:o, s:o, s:I, s:I}", "tasks", tasks, "perplexity",
                  ev->log_n ? json_real(exp(ev->log_sum / (double)ev->log_n)) : json_null(),
                  "identical", (json_int_t)ev->identical, "cases", (json_int_t)ev->cases_n);
    json_dumpf(root, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(root);
}

static void print_text(const struct eval *ev)
{
    for (size_t i = 0; i < ev->tasks_n; i++)
        printf("%-10s %5.1f%%  (%zu of %zu)\n", ev->tasks[i].name,
               100.0 * (double)ev->tasks[i].correct / (double)ev->tasks[i].cases,
               ev->tasks[i].correct, ev->tasks[i].cases);
    printf("identical  %zu of %zu answers have the reference's tokens\n", ev->identical,
           ev->cases_n);
    if (ev->log_n)
        printf("perplexity %.4f over %zu tokens\n", exp(ev->log_sum / (double)ev->log_n),
               ev->log_n);
}

static enum status open_all(struct eval *ev)
{
    const struct eval_args *a = ev->args;
    json_error_t je;
    ev->suite = json_load_file(a->suite, JSON_REJECT_DUPLICATES, &je);
    if (!ev->suite)
        return errmsg_set(ev->e, STATUS_BAD_FILE, "%s: line %d: %s", a->suite, je.line, je.text);
    enum status s = tokenizer_open(a->model, &ev->tokenizer, ev->e);
    if (s == STATUS_OK)
        s = read_cases(ev);
    struct local_replica_args args = {.source = {.dir = a->model},
                                      .stages = 1,
                                      .tensors = 1,
                                      .threads = (int)a->threads,
                                      .max_context = PROMPT_MAX + NEW_TOKENS > TEXT_TOKENS + 1
                                                         ? PROMPT_MAX + NEW_TOKENS
                                                         : TEXT_TOKENS + 1,
                                      .max_seqs = (int)a->batch,
                                      .max_rows = (int)a->batch * PROMPT_MAX,
                                      .max_logits = a->batch > CHUNK ? (int)a->batch : CHUNK};
    if (s == STATUS_OK)
        s = local_replica_backend(a->backend, &args.backend, ev->e);
    if (s == STATUS_OK)
        s = local_replica_open(&args, &ev->replica, ev->e);
    if (s != STATUS_OK)
        return s;
    uint32_t vocab = (uint32_t)local_replica_config(ev->replica)->vocab;
    if (tokenizer_vocab_size(ev->tokenizer) > vocab)
        return errmsg_set(ev->e, STATUS_BAD_MODEL,
                          "%s: the tokenizer has %u tokens, config.json's vocab_size is %u",
                          a->model, tokenizer_vocab_size(ev->tokenizer), vocab);
    ev->sampler = sampler_create(vocab);
    ev->logits = mem_zalloc(vocab, sizeof *ev->logits);
    return STATUS_OK;
}

static void close_all(struct eval *ev)
{
    cmdline_progress_stop(&ev->bar);
    for (size_t i = 0; ev->cases && i < ev->cases_n; i++)
        token_vec_finish(&ev->cases[i].prompt);
    free(ev->cases);
    free(ev->logits);
    sampler_destroy(ev->sampler);
    local_replica_close(ev->replica);
    tokenizer_close(ev->tokenizer);
    json_decref(ev->suite);
}

static int run(const struct eval_args *a)
{
    struct errmsg e = {0};
    struct eval ev = {.args = a, .e = &e};
    enum status s = open_all(&ev);
    if (s == STATUS_OK) {
        cmdline_progress_start(&ev.bar, "evaluating");
        s = decode_all(&ev);
    }
    if (s == STATUS_OK)
        s = read_texts(&ev);
    cmdline_progress_stop(&ev.bar);
    if (s != STATUS_OK)
        fprintf(stderr, "hadal eval: %s\n", e.text);
    else if (a->json)
        print_json(&ev);
    else
        print_text(&ev);
    close_all(&ev);
    return s == STATUS_OK ? CMD_OK : CMD_FAILED;
}

int cmd_eval(int argc, char **argv)
{
    struct eval_args a = {.model = sample_model(), .backend = "cpu", .batch = 16};
    const struct cmdline_opt opts[] = {
        {"--model", CMDLINE_STRING, &a.model, "DIR", .help = "model folder (the sample model)"},
        {"--suite", CMDLINE_STRING, &a.suite, "FILE", .help = "questions (DIR/eval.json)"},
        {"--json", CMDLINE_FLAG, &a.json, .help = "machine-readable output"},
        {"--batch", CMDLINE_INT, &a.batch, "N", .min = 1, .max = 64,
         .help = "questions decoded together (16)"},
        {"--backend", CMDLINE_CHOICE, &a.backend, "B", .choices = "cpu|cpu-ref|cuda",
         .help = "cpu, cpu-ref or cuda (cpu)"},
        {"--threads", CMDLINE_INT, &a.threads, "N", .max = 1024,
         .help = "CPU threads; 0 = all cores (0)"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal eval [--model DIR] [OPTION...]",
        .about = "Answers the questions of a suite (greedy) and takes the perplexity of its texts. "
                 "Answers do not depend on --batch.",
        .opts = opts,
        .after = "example:\n  hadal eval --model models/sample --json\n",
    };
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    if (!a.model) {
        fputs("hadal eval: no sample model here, --model is needed\n", stderr);
        return CMD_USAGE;
    }
    char suite[4096];
    snprintf(suite, sizeof suite, "%s/eval.json", a.model);
    a.suite = a.suite ? a.suite : suite;
    return run(&a);
}
