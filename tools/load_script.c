// The fault script of a load: one line per fault, in words.
#include "tools/load_plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cmdline.h"

#define LOAD_ACTION_NAME(name, text) text,
static const char *const action_names[] = {LOAD_ACTION_MAP(LOAD_ACTION_NAME)};
#undef LOAD_ACTION_NAME
enum { ACTIONS_N = sizeof action_names / sizeof *action_names, WORDS_MAX = 8, WORD_MAX = 64 };

const char *load_action_name(enum load_action a)
{
    return action_names[a];
}

struct words {
    char v[WORDS_MAX][WORD_MAX];
    int n, i;
};

static bool split(struct words *w, const char *line)
{
    w->n = w->i = 0;
    for (line += strspn(line, " \t\r\n"); *line; line += strspn(line, " \t\r\n")) {
        size_t len = strcspn(line, " \t\r\n");
        if (w->n == WORDS_MAX || len >= WORD_MAX)
            return false;
        memcpy(w->v[w->n], line, len);
        w->v[w->n++][len] = 0;
        line += len;
    }
    return true;
}

static const char *next(struct words *w)
{
    return w->i < w->n ? w->v[w->i++] : "";
}

static bool take(struct words *w, const char *word)
{
    bool same = w->i < w->n && !strcmp(w->v[w->i], word);
    w->i += same;
    return same;
}

// `A` or `A..B`.
static bool parse_range(char *text, struct load_fault *f)
{
    char *dots = strstr(text, "..");
    if (dots)
        *dots = 0;
    if (!cmdline_duration_ms(text, &f->from_ms))
        return false;
    f->to_ms = f->from_ms;
    return !dots || (cmdline_duration_ms(dots + 2, &f->to_ms) && f->to_ms >= f->from_ms);
}

static bool parse_when(struct words *w, struct load_fault *f)
{
    char text[WORD_MAX];
    bool every = take(w, "every");
    if (!every && !take(w, "at"))
        return false;
    snprintf(text, sizeof text, "%s", next(w));
    if (!parse_range(text, f))
        return false;
    if (every)
        f->every_ms = f->to_ms;
    return !every || f->every_ms > 0;
}

static bool parse_action(struct words *w, struct load_fault *f)
{
    const char *name = next(w);
    int a = 0;
    while (a < ACTIONS_N && strcmp(name, action_names[a]))
        a++;
    f->action = (enum load_action)a;
    return a < ACTIONS_N;
}

static bool parse_target(struct words *w, struct load_fault *f)
{
    bool replica = f->action == LOAD_FAILOVER;
    if (f->action != LOAD_DROP)
        (void)take(w, replica ? "replica" : "node");
    snprintf(f->target, sizeof f->target, "%s", next(w));
    if (f->action == LOAD_DROP)
        return !strcmp(f->target, "all") || !strcmp(f->target, "random");
    if (replica && strcmp(f->target, "random"))
        return strspn(f->target, "0123456789") == strlen(f->target) && *f->target;
    return *f->target;
}

static bool parse_for(struct words *w, struct load_fault *f)
{
    if (!take(w, "for"))
        return true;
    return f->action == LOAD_STOP && cmdline_duration_ms(next(w), &f->for_ms) && f->for_ms > 0;
}

enum status load_script_add(struct load_script *s, const char *line, struct errmsg *err)
{
    struct words w;
    struct load_fault f = {0};
    const char *wrong = NULL;
    if (!split(&w, line))
        wrong = "too many or too long words";
    else if (w.n == 0 || w.v[0][0] == '#')
        return STATUS_OK;
    else if (s->n == LOAD_FAULTS_MAX)
        wrong = "too many faults";
    else if (!parse_when(&w, &f))
        wrong = "wants `at TIME`, `at TIME..TIME` or `every TIME` first";
    else if (!parse_action(&w, &f))
        wrong = "wants kill, stop, cont, term, drain, undrain, eject, failover or drop";
    else if (!parse_target(&w, &f))
        wrong = "wants whom: a node's name, a replica's number, random, busy; drop: all, random";
    else if (!parse_for(&w, &f))
        wrong = "`for TIME` goes with stop only";
    else if (w.i < w.n)
        wrong = "has words too many at its end";
    if (wrong)
        return errmsg_set(err, STATUS_BAD_CONFIG, "fault '%.*s' %s", (int)strcspn(line, "\r\n"),
                          line, wrong);
    s->v[s->n++] = f;
    return STATUS_OK;
}

enum status load_script_read(struct load_script *s, const char *path, struct errmsg *err)
{
    FILE *f = fopen(path, "r");
    if (!f)
        return errmsg_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    char *line = NULL;
    size_t cap = 0;
    enum status st = STATUS_OK;
    while (st == STATUS_OK && getline(&line, &cap, f) >= 0)
        st = load_script_add(s, line, err);
    free(line);
    fclose(f);
    return st;
}

const char *load_fault_text(const struct load_fault *f, char *buf, size_t n)
{
    snprintf(buf, n, "%s %s", action_names[f->action], f->target);
    return buf;
}
