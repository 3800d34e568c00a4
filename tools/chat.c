// hadal chat: asks the model and shows the answer as it comes. When the connection breaks it goes
// on where it was, by Last-Event-ID; what is shown is never repeated and never cut silently.
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "base/utf8.h"
#include "tools/admin.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/http.h"
#include "tools/load_net.h"
#include "tools/load_stream.h"

enum { ATTACHES_MAX = 10, TURN_MS = 50, PROMPT_MAX = 1 << 20 };

struct options {
    const char *url, *model, *system;
    int64_t max_tokens, seed;
    double temperature;
    bool hide_reasoning, stats;
};

struct chat {
    const struct options *o;
    const char *model;
    json_t *messages;
    struct load_net *net;
    struct load_stream stream;
    size_t reasoning_shown, content_shown;
    bool dim, ended;
    int64_t attach_at_ms;
    char error[300];
};

static volatile sig_atomic_t interrupted;

static void interrupt(int sig)
{
    interrupted = 1;
}

// Text from a model may hold any character; on a terminal only newlines and tabs act.
static void put_text(const char *text, size_t n)
{
    bool terminal = isatty(STDOUT_FILENO);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (terminal && ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f))
            putchar('?');
        else
            putchar(c);
    }
}

static void set_dim(struct chat *c, bool dim)
{
    if (c->dim != dim)
        fputs(cmdline_style(stdout, dim ? STYLE_DIM : STYLE_OFF), stdout);
    c->dim = dim;
}

// Prints what arrived since the last time.
static void show(struct chat *c)
{
    const struct load_answer *a = &c->stream.answer;
    if (a->reasoning.n > c->reasoning_shown && !c->o->hide_reasoning) {
        set_dim(c, true);
        put_text(a->reasoning.v + c->reasoning_shown, a->reasoning.n - c->reasoning_shown);
        c->reasoning_shown = a->reasoning.n;
    }
    if (a->content.n > c->content_shown) {
        bool first = c->content_shown == 0 && c->reasoning_shown > 0;
        set_dim(c, false);
        if (first)
            fputs(a->reasoning.v[a->reasoning.n - 1] == '\n' ? "\n" : "\n\n", stdout);
        put_text(a->content.v + c->content_shown, a->content.n - c->content_shown);
        c->content_shown = a->content.n;
    }
    fflush(stdout);
}

static void on_heard(void *user, struct load_stream *s, int64_t gap_us)
{
    struct chat *c = user;
    s->attaches = 0;
    show(c);
}

static void on_closed(void *user, struct load_stream *s, const struct load_end *end)
{
    struct chat *c = user;
    bool may = *s->request && s->attaches < ATTACHES_MAX && !*s->error;
    if (s->done && !*s->error) {
        c->ended = true;
    } else if (may && (end->broken || end->code == 200 || end->code >= 500)) {
        c->attach_at_ms = cmdline_now_ms() + ((int64_t)50 << (s->attaches < 6 ? s->attaches : 6));
        s->attaches++;
    } else {
        const char *why = *s->error ? s->error : end->text;
        snprintf(c->error, sizeof c->error, "%s%s", *why ? why : "the answer was cut",
                 end->code == 429 || end->code == 503 ? " (busy, try again later)" : "");
        c->ended = true;
    }
}

static char *request_body(const struct chat *c)
{
    json_t *body = json_pack("{s:s, s:O, s:b, s:{s:b}}", "model", c->model, "messages", c->messages,
                             "stream", 1, "stream_options", "include_usage", 1);
    if (c->o->max_tokens)
        json_object_set_new(body, "max_tokens", json_integer(c->o->max_tokens));
    if (c->o->temperature >= 0)
        json_object_set_new(body, "temperature", json_real(c->o->temperature));
    if (c->o->seed >= 0)
        json_object_set_new(body, "seed", json_integer(c->o->seed));
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

static void add_message(struct chat *c, const char *role, const char *text, size_t n)
{
    json_array_append_new(c->messages,
                          json_pack("{s:s, s:s%}", "role", role, "content", text ? text : "", n));
}

static void print_stats(const struct load_stream *s)
{
    double seconds = (double)(s->last_us - s->first_us) / 1e6;
    uint32_t n = s->answer.tokens;
    fprintf(stderr, "%u tokens, first after %.0f ms, %.1f tokens/s\n", n,
            (double)(s->first_us - s->intended_us) / 1e3,
            n > 1 && seconds > 0 ? (n - 1) / seconds : 0.0);
}

// Asks with all messages so far; adds the answer to them. CMD_FAILED: the cause was printed.
static int ask(struct chat *c)
{
    char *body = request_body(c);
    load_stream_begin(&c->stream, 0, cmdline_now_us());
    c->reasoning_shown = c->content_shown = 0;
    c->ended = false;
    c->error[0] = 0;
    load_net_start(c->net, &c->stream, body);
    while (!c->ended && !interrupted) {
        load_net_turn(c->net, TURN_MS);
        if (c->attach_at_ms && cmdline_now_ms() >= c->attach_at_ms) {
            c->attach_at_ms = 0;
            load_net_attach(c->net, &c->stream);
        }
    }
    load_net_cut(c->net, &c->stream); // leaving is how a client cancels
    c->attach_at_ms = 0;
    set_dim(c, false);
    if (c->content_shown || c->reasoning_shown)
        putchar('\n');
    fflush(stdout);
    if (*c->error)
        fprintf(stderr, "hadal chat: %s\n", c->error);
    else if (!interrupted && c->o->stats)
        print_stats(&c->stream);
    add_message(c, "assistant", c->stream.answer.content.v, c->stream.answer.content.n);
    load_stream_finish(&c->stream);
    free(body);
    return *c->error || interrupted ? CMD_FAILED : CMD_OK;
}

static int ask_once(struct chat *c, const char *prompt, size_t n)
{
    while (n > 0 && prompt[n - 1] == '\n')
        n--;
    if (n == 0) {
        fputs("hadal chat: the prompt is empty\n", stderr);
        return CMD_USAGE;
    }
    if (!utf8_valid(prompt, n)) {
        fputs("hadal chat: the prompt is not valid UTF-8\n", stderr);
        return CMD_FAILED;
    }
    add_message(c, "user", prompt, n);
    return ask(c);
}

static int ask_stdin(struct chat *c)
{
    struct strbuf text = {0};
    char block[4096];
    size_t n;
    while ((n = fread(block, 1, sizeof block, stdin)) > 0 && text.n + n <= PROMPT_MAX)
        strbuf_add(&text, block, n);
    int rc = CMD_FAILED;
    if (ferror(stdin))
        fprintf(stderr, "hadal chat: standard input: %s\n", strerror(errno));
    else if (n > 0)
        fprintf(stderr, "hadal chat: the prompt is longer than %d bytes\n", PROMPT_MAX);
    else
        rc = ask_once(c, text.n ? text.v : "", text.n);
    strbuf_finish(&text);
    return rc;
}

// Turn by turn until the end of input. ctrl-C stops an answer; at the prompt it leaves.
static int converse(struct chat *c)
{
    char *line = NULL;
    size_t cap = 0;
    fprintf(stderr, "model %s; ctrl-D leaves, ctrl-C stops an answer\n", c->model);
    for (;;) {
        fprintf(stderr, "%s> %s", cmdline_style(stderr, STYLE_BOLD),
                cmdline_style(stderr, STYLE_OFF));
        ssize_t n = getline(&line, &cap, stdin);
        if (n < 0)
            break;
        size_t len = strcspn(line, "\n");
        if (len == 0)
            continue;
        if (!utf8_valid(line, len)) {
            fputs("that is not valid UTF-8\n", stderr);
            continue;
        }
        size_t before = json_array_size(c->messages);
        add_message(c, "user", line, len);
        if (ask(c) != CMD_OK && !interrupted) // as if it had not been asked
            while (json_array_size(c->messages) > before)
                json_array_remove(c->messages, before);
        interrupted = 0;
    }
    fputc('\n', stderr);
    free(line);
    return CMD_OK;
}

static int run(struct chat *c, const char *prompt)
{
    const struct load_net_handler h = {on_heard, on_closed, c};
    struct errmsg err = {0};
    c->net = load_net_open(c->o->url, &h, &err);
    if (!c->net) {
        fprintf(stderr, "hadal chat: %s\n", err.text);
        return CMD_FAILED;
    }
    c->messages = json_array();
    if (c->o->system)
        add_message(c, "system", c->o->system, strlen(c->o->system));
    bool talk = !prompt && isatty(STDIN_FILENO);
    int rc = talk ? converse(c) : prompt ? ask_once(c, prompt, strlen(prompt)) : ask_stdin(c);
    json_decref(c->messages);
    load_net_close(c->net);
    return rc;
}

int cmd_chat(int argc, char **argv)
{
    struct options o = {.url = http_default_url(), .temperature = -1, .seed = -1};
    const struct cmdline_opt opts[] = {
        {"--url", CMDLINE_STRING, &o.url, "URL", .help = "the coordinator (HADAL_URL)"},
        {"--model", CMDLINE_STRING, &o.model, "NAME", .help = "model asked for (the first)"},
        {"--system", CMDLINE_STRING, &o.system, "TEXT", .help = "system message"},
        {"--max-tokens", CMDLINE_INT, &o.max_tokens, "N", .min = 1, .max = 1 << 20,
         .help = "of each answer (the rest of the context)"},
        {"--temperature", CMDLINE_REAL, &o.temperature, "T", .max = 2,
         .help = "0 = greedy (the model's own)"},
        {"--seed", CMDLINE_INT, &o.seed, "N", .help = "of sampling (random)"},
        {"--no-reasoning", CMDLINE_FLAG, &o.hide_reasoning, .help = "do not show the thinking"},
        {"--stats", CMDLINE_FLAG, &o.stats, .help = "tokens and times after each answer"},
        {0},
    };
    const struct cmdline line = {
        .usage = "hadal chat [OPTION...] [PROMPT]",
        .about = "Streams an answer. Without PROMPT it talks turn by turn on a terminal, else it\n"
                 "reads the prompt from standard input.",
        .opts = opts,
        .args_max = 1,
    };
    const char *prompt = NULL;
    int rc = cmdline_parse(&line, argc, argv, &prompt, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    struct sigaction act = {.sa_handler = interrupt}; // without SA_RESTART: it ends a read, too
    sigaction(SIGINT, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
    struct errmsg err = {0};
    char *first = o.model ? NULL : admin_first_model(o.url, &err);
    struct chat c = {.o = &o, .model = o.model ? o.model : first};
    if (o.system && !utf8_valid(o.system, strlen(o.system))) {
        fputs("hadal chat: --system is not valid UTF-8\n", stderr);
        c.model = NULL;
    } else if (!c.model)
        fprintf(stderr, "hadal chat: %s\n", err.text);
    rc = c.model ? run(&c, prompt) : CMD_FAILED;
    free(first);
    return rc;
}
