// Command lines of the subcommands as tables: one row per option gives its name, where its value
// goes, the range it must lie in and the line --help prints. Options may stand before, between or
// after the positional arguments; `--name=value` and `--name value` are the same; `--` ends the
// options. Everything that is wrong is told on stderr with the option's name and the value.
//
//   struct args { int64_t port; bool json; } a = {.port = 8000};
//   const struct cmdline_opt opts[] = {
//       {"--port", CMDLINE_INT, &a.port, "PORT", .max = 65535, .help = "port to listen on"},
//       {"--json", CMDLINE_FLAG, &a.json, .help = "machine-readable output"},
//       {0},
//   };
//   const struct cmdline c = {.usage = "hadal x [OPTION...] [FILE]", .opts = opts, .args_max = 1};
//   int rc = cmdline_parse(&c, argc, argv, args, &args_n);
//   if (rc != CMDLINE_GO) return rc;
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum cmdline_kind {
    CMDLINE_FLAG,   // bool *
    CMDLINE_STRING, // const char **: borrows argv
    CMDLINE_INT,    // int64_t *; min..max
    CMDLINE_REAL,   // double *; min..max
    CMDLINE_CHOICE, // const char **: one of the words in `choices`, separated by '|'
    CMDLINE_LIST,   // struct cmdline_list *: may be given several times
};

// "2..5", or "3" for both; false: it is neither, or the wrong way round.
bool cmdline_range(const char *text, int64_t *lo, int64_t *hi);

enum { CMDLINE_LIST_MAX = 64 };
struct cmdline_list {
    const char *v[CMDLINE_LIST_MAX]; // borrow argv
    int n;
};

struct cmdline_opt {
    const char *name; // with its dashes
    enum cmdline_kind kind;
    void *out;
    const char *arg;  // name of the value in --help; NULL for a flag
    const char *help; // what it does, and its default
    double min, max;  // INT, REAL; both 0: not negative
    const char *choices;
};

struct cmdline {
    const char *usage;              // "hadal up [OPTION...]"
    const char *about;              // a paragraph under it; may be NULL
    const struct cmdline_opt *opts; // ends with a row whose name is NULL
    const char *after;              // printed below the options; may be NULL
    int args_min, args_max;         // positional arguments
};

enum { CMDLINE_GO = -1 };

// Fills in the values. CMDLINE_GO: go on. Otherwise the exit code: 0 after --help, 2 after a
// mistake. `args` has room for args_max pointers (borrow argv) and may be NULL when that is 0.
int cmdline_parse(const struct cmdline *c, int argc, char **argv, const char **args, int *args_n)
    __attribute__((warn_unused_result));
void cmdline_help(const struct cmdline *c, FILE *to);

// An option over what a file said: *to (owned) becomes a copy of `from` unless that is NULL.
void cmdline_override(char **to, const char *from);

// "1500ms", "2s", "1.5s", "1m" or a bare number of seconds -> milliseconds; false when it is
// neither, negative, or beyond a day.
bool cmdline_duration_ms(const char *text, int64_t *ms_out);

// A line that is redrawn in place on stderr; nothing at all when stderr is not a terminal.
struct cmdline_progress {
    const char *what;
    bool on, drawn;
    int64_t last_ms;
};
void cmdline_progress_start(struct cmdline_progress *p, const char *what);
// At most ten redraws a second. `total` 0: unknown.
void cmdline_progress_show(struct cmdline_progress *p, uint64_t done, uint64_t total,
                           const char *note);
void cmdline_progress_stop(struct cmdline_progress *p);

// Escape sequences for `to`: the sequence when it is a terminal and NO_COLOR is not set, else "".
enum cmdline_style { STYLE_OFF, STYLE_BOLD, STYLE_DIM, STYLE_RED, STYLE_GREEN, STYLE_YELLOW };
const char *cmdline_style(FILE *to, enum cmdline_style s);

// Milliseconds of the monotonic clock.
int64_t cmdline_now_ms(void);
int64_t cmdline_now_us(void);
