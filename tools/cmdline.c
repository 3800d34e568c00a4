// Reads command lines by table and prints their help; small things that every tool shows a person
// (a progress line, colours) or needs (durations, the clock).
#include "tools/cmdline.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"

enum { EXIT_HELP = 0, EXIT_USAGE = 2, HELP_COLUMN = 26 };

static const char *command_name(const struct cmdline *c, char *buf, size_t n)
{
    size_t len = strcspn(c->usage, "[");
    while (len > 0 && c->usage[len - 1] == ' ')
        len--;
    snprintf(buf, n, "%.*s", (int)len, c->usage);
    return buf;
}

__attribute__((format(printf, 2, 3))) static int mistake(const struct cmdline *c, const char *fmt,
                                                         ...)
{
    char name[64], text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    command_name(c, name, sizeof name);
    fprintf(stderr, "%s: %s (%s --help tells more)\n", name, text, name);
    return EXIT_USAGE;
}

static void help_option(const struct cmdline_opt *o, FILE *to)
{
    char left[128];
    snprintf(left, sizeof left, "  %s%s%s", o->name, o->arg || o->choices ? " " : "",
             o->choices ? o->choices
             : o->arg   ? o->arg
                        : "");
    if (strlen(left) + 2 > HELP_COLUMN)
        fprintf(to, "%s\n%*s%s\n", left, HELP_COLUMN, "", o->help);
    else
        fprintf(to, "%-*s%s\n", HELP_COLUMN, left, o->help);
}

void cmdline_help(const struct cmdline *c, FILE *to)
{
    fprintf(to, "usage: %s\n", c->usage);
    if (c->about)
        fprintf(to, "\n%s\n", c->about);
    fputs("\noptions:\n", to);
    for (const struct cmdline_opt *o = c->opts; o->name; o++)
        help_option(o, to);
    fprintf(to, "%-*s%s\n", HELP_COLUMN, "  --help", "print this");
    if (c->after)
        fprintf(to, "\n%s\n", c->after);
}

static const struct cmdline_opt *find(const struct cmdline *c, const char *arg, size_t n)
{
    for (const struct cmdline_opt *o = c->opts; o->name; o++)
        if (strlen(o->name) == n && !memcmp(o->name, arg, n))
            return o;
    return NULL;
}

static bool is_choice(const char *choices, const char *value)
{
    size_t n = strlen(value);
    for (const char *p = choices; *p;) {
        size_t len = strcspn(p, "|");
        if (len == n && !memcmp(p, value, n))
            return true;
        p += len + (p[len] == '|');
    }
    return false;
}

static bool in_range(const struct cmdline_opt *o, double v)
{
    bool unset = o->min == 0 && o->max == 0;
    return isfinite(v) && (unset ? v >= 0 : v >= o->min && v <= o->max);
}

static int set_number(const struct cmdline *c, const struct cmdline_opt *o, const char *value)
{
    char *end;
    errno = 0;
    long long whole = 0;
    double v;
    if (o->kind == CMDLINE_INT) {
        whole = strtoll(value, &end, 10);
        v = (double)whole;
    } else {
        v = strtod(value, &end);
    }
    if (end == value || *end || errno == ERANGE)
        return mistake(c, "%s wants a number, not '%s'", o->name, value);
    if (!in_range(o, v)) {
        if (o->min == 0 && o->max == 0)
            return mistake(c, "%s %s: must be a number, not negative", o->name, value);
        return mistake(c, "%s %s: must lie between %g and %g", o->name, value, o->min, o->max);
    }
    if (o->kind == CMDLINE_INT)
        *(int64_t *)o->out = whole;
    else
        *(double *)o->out = v;
    return CMDLINE_GO;
}

static int set(const struct cmdline *c, const struct cmdline_opt *o, const char *value)
{
    struct cmdline_list *list = o->out;
    switch (o->kind) {
    case CMDLINE_FLAG:
        *(bool *)o->out = true;
        return CMDLINE_GO;
    case CMDLINE_CHOICE:
        if (!is_choice(o->choices, value))
            return mistake(c, "%s '%s': must be one of %s", o->name, value, o->choices);
        *(const char **)o->out = value;
        return CMDLINE_GO;
    case CMDLINE_STRING:
        *(const char **)o->out = value;
        return CMDLINE_GO;
    case CMDLINE_LIST:
        if (list->n == CMDLINE_LIST_MAX)
            return mistake(c, "%s is given more than %d times", o->name, CMDLINE_LIST_MAX);
        list->v[list->n++] = value;
        return CMDLINE_GO;
    default:
        return set_number(c, o, value);
    }
}

// One option at argv[*i]; moves *i on to its value when that is a word of its own.
static int parse_option(const struct cmdline *c, int argc, char **argv, int *i)
{
    const char *arg = argv[*i], *eq = strchr(arg, '=');
    size_t n = eq ? (size_t)(eq - arg) : strlen(arg);
    const struct cmdline_opt *o = find(c, arg, n);
    if (!o)
        return mistake(c, "no option '%.*s'", (int)n, arg);
    if (o->kind == CMDLINE_FLAG)
        return eq ? mistake(c, "%s takes no value", o->name) : set(c, o, NULL);
    if (!eq && *i + 1 >= argc)
        return mistake(c, "%s wants a value", o->name);
    return set(c, o, eq ? eq + 1 : argv[++*i]);
}

int cmdline_parse(const struct cmdline *c, int argc, char **argv, const char **args, int *args_n)
{
    assert(c->args_max == 0 || args);
    int n = 0;
    bool only_args = false;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (!only_args && (!strcmp(arg, "--help") || !strcmp(arg, "-h"))) {
            cmdline_help(c, stdout);
            return EXIT_HELP;
        }
        if (!only_args && !strcmp(arg, "--")) {
            only_args = true;
        } else if (!only_args && arg[0] == '-' && arg[1]) {
            int rc = parse_option(c, argc, argv, &i);
            if (rc != CMDLINE_GO)
                return rc;
        } else if (n == c->args_max) {
            return mistake(c, "unexpected argument '%s'", arg);
        } else {
            args[n++] = arg;
        }
    }
    if (n < c->args_min)
        return mistake(c, "an argument is missing: %s", c->usage);
    if (args_n)
        *args_n = n;
    return CMDLINE_GO;
}

void cmdline_override(char **to, const char *from)
{
    if (!from)
        return;
    free(*to);
    *to = mem_strdup(from);
}

bool cmdline_duration_ms(const char *text, int64_t *ms_out)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end == text || errno || !isfinite(v) || v < 0)
        return false;
    double unit = !strcmp(end, "ms")               ? 1
                  : !strcmp(end, "s") || *end == 0 ? 1e3
                  : !strcmp(end, "m")              ? 60e3
                  : !strcmp(end, "h")              ? 3600e3
                                                   : 0;
    if (unit == 0 || v * unit > 86400e3)
        return false;
    *ms_out = (int64_t)llround(v * unit);
    return true;
}

int64_t cmdline_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t cmdline_now_ms(void)
{
    return cmdline_now_us() / 1000;
}

void cmdline_progress_start(struct cmdline_progress *p, const char *what)
{
    *p = (struct cmdline_progress){.what = what, .on = isatty(STDERR_FILENO)};
}

static int terminal_columns(void)
{
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80;
}

void cmdline_progress_show(struct cmdline_progress *p, uint64_t done, uint64_t total,
                           const char *note)
{
    enum { BAR = 24 };
    int64_t now = cmdline_now_ms();
    if (!p->on || (p->drawn && now - p->last_ms < 100))
        return;
    p->last_ms = now;
    p->drawn = true;
    char line[512];
    if (total) {
        int full = (int)((done > total ? total : done) * BAR / total);
        snprintf(line, sizeof line, "%s [%.*s%*s] %llu/%llu %s", p->what, full,
                 "########################", BAR - full, "", (unsigned long long)done,
                 (unsigned long long)total, note ? note : "");
    } else {
        snprintf(line, sizeof line, "%s %llu %s", p->what, (unsigned long long)done,
                 note ? note : "");
    }
    fprintf(stderr, "\r%.*s\033[K", terminal_columns() - 1, line);
    fflush(stderr);
}

void cmdline_progress_stop(struct cmdline_progress *p)
{
    if (p->drawn)
        fputs("\r\033[K", stderr);
    p->drawn = false;
}

const char *cmdline_style(FILE *to, enum cmdline_style s)
{
    static const char *const code[] = {
        [STYLE_OFF] = "\033[0m",  [STYLE_BOLD] = "\033[1m",   [STYLE_DIM] = "\033[2m",
        [STYLE_RED] = "\033[31m", [STYLE_GREEN] = "\033[32m", [STYLE_YELLOW] = "\033[33m",
    };
    const char *no = getenv("NO_COLOR");
    return isatty(fileno(to)) && (!no || !*no) ? code[s] : "";
}

bool cmdline_range(const char *text, int64_t *lo, int64_t *hi)
{
    char *end;
    errno = 0;
    long long a = strtoll(text, &end, 10), b = a;
    bool ok = end != text;
    if (ok && !strncmp(end, "..", 2)) {
        const char *second = end + 2;
        b = strtoll(second, &end, 10);
        ok = end != second;
    }
    if (!ok || *end || errno || a > b)
        return false;
    *lo = a;
    *hi = b;
    return true;
}
