// What `hadal load` sends and what it breaks: prompts drawn from a seed or read from a file, and
// the fault script. Pure data; nothing here talks to anybody.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { LOAD_PROMPTS_MAX = 100000, LOAD_FAULTS_MAX = 256 };

// ---- prompts ------------------------------------------------------------------------------------

struct load_prompts {
    char **bodies; // owned; the JSON of one chat request each
    int n;
};

struct load_prompt_args {
    const char *model;  // name for the request
    const char *mix;    // "sums", "sort", "letters" or "all"
    const char *file;   // JSON lines {"prompt": TEXT} or {"messages": [...]}; NULL = use the mix
    int distinct;       // how many to draw from the mix
    int max_tokens;     // of each answer
    double temperature; // 0 = greedy
    uint64_t seed;      // of the mix, and of sampling: prompt i samples with seed + i
};

// BAD_FILE or IO names file and line in *err.
enum status load_prompts_make(struct load_prompts *out, const struct load_prompt_args *args,
                              struct errmsg *err) STATUS_MUST_USE;
void load_prompts_finish(struct load_prompts *p);

// ---- faults -------------------------------------------------------------------------------------

#define LOAD_ACTION_MAP(X)                                                                         \
    X(KILL, "kill")   /* SIGKILL to a node */                                                      \
    X(STOP, "stop")   /* SIGSTOP: it hangs */                                                      \
    X(CONT, "cont")   /* SIGCONT */                                                                \
    X(TERM, "term")   /* SIGTERM */                                                                \
    X(DRAIN, "drain") /* by the coordinator */                                                     \
    X(UNDRAIN, "undrain")                                                                          \
    X(EJECT, "eject")                                                                              \
    X(FAILOVER, "failover") /* of a replica */                                                     \
    X(DROP, "drop")         /* the connections of these streams, which then re-attach */

#define LOAD_ACTION_ENUM(name, text) LOAD_##name,
enum load_action { LOAD_ACTION_MAP(LOAD_ACTION_ENUM) };
#undef LOAD_ACTION_ENUM
const char *load_action_name(enum load_action a);

struct load_fault {
    enum load_action action;
    char target[64];  // a node's name, a replica's number; "random", "busy", "all"
    int64_t from_ms;  // first time, counted from the start of the load
    int64_t to_ms;    // = from_ms, or the end of the range to draw the time from
    int64_t every_ms; // 0 = once
    int64_t for_ms;   // STOP: continue after this time; 0 = never
};

struct load_script {
    struct load_fault v[LOAD_FAULTS_MAX];
    int n;
};

// One line, for example: `at 2s kill node 2`, `at 1s..4s stop busy`, `every 5s kill random`,
// `at 3s stop random for 500ms`, `at 2s failover replica 1`, `at 2s drop all`. An empty line or one
// that begins with # adds nothing. BAD_CONFIG tells what was not understood.
enum status load_script_add(struct load_script *s, const char *line,
                            struct errmsg *err) STATUS_MUST_USE;
enum status load_script_read(struct load_script *s, const char *path,
                             struct errmsg *err) STATUS_MUST_USE;
// "kill random" for people.
const char *load_fault_text(const struct load_fault *f, char *buf, size_t n);
