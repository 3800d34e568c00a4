// Carries out a fault script beside a running load, on a thread of its own so that asking the
// coordinator for names and pids never delays the streams.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "tools/load_plan.h"

struct load_faults;

// A fault that happened, or could not.
struct load_fault_done {
    enum load_action action;
    int64_t at_us; // of cmdline_now_us
    int32_t pid;   // 0 = none
    char whom[64];
    char error[160]; // "" = done
};

// Times of the script count from now. `script` and `url` are borrowed until stop.
struct load_faults *load_faults_start(const struct load_script *script, const char *url,
                                      uint64_t seed);
// The next one that happened; false when there is none now. Never waits.
bool load_faults_next(struct load_faults *f, struct load_fault_done *out);
// Wakes the thread, waits for it; a process it had stopped for a time goes on. NULL is fine.
void load_faults_stop(struct load_faults *f);
