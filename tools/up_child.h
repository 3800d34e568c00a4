// The processes that `hadal up` keeps running: starts them, notices their end, starts them again.
// None outlives the process that started it, however that one ends.
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/limits.h"
#include "base/status.h"

enum { CHILD_ARGS_MAX = 48 };

struct child {
    char name[LIMIT_NAME];      // "coordinator", or the node's name
    char *argv[CHILD_ARGS_MAX]; // owned; NULL at the end
    int argv_n;
    const char *log_dir; // borrowed; NULL = its stderr is ours
    pid_t pid;           // 0 = not running
    int64_t started_ms;
    int64_t restart_at_ms; // while not running; 0 = stays down
    bool leaves;           // was told to end: not started again
    int quick_ends;        // ends in a row soon after the start
    int restarts;
    int64_t ill_since_ms; // the coordinator calls it lost or stuck since; 0 = it does not
};

// How a process ended.
struct child_end {
    bool by_signal;
    int code; // exit code or signal
};

void child_init(struct child *c, const char *name);
void child_finish(struct child *c);
// Adds "--name", "value" to its command line (copied).
void child_arg(struct child *c, const char *arg);
void child_option(struct child *c, const char *name, const char *value);
void child_option_int(struct child *c, const char *name, int64_t value);

// fork and exec of this very program. IO when it could not.
enum status child_start(struct child *c) STATUS_MUST_USE;
// True when it ended since it was last asked; then it is planned to start again: at once, or after
// a pause that doubles up to 5 s when it ends soon after each start.
bool child_reap(struct child *c, struct child_end *end);
void child_signal(const struct child *c, int sig); // nothing when it is not running
