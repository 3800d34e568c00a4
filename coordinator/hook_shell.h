// The program that is called when more or fewer nodes are wanted (coord.h, COORD_NODES): it may
// start and stop them wherever nodes come from. It is told what should be, not what to change, so
// that calling it twice does no harm.
#pragma once

#include "coordinator/main_shell.h"

struct hook;

// NULL: the configuration names none.
struct hook *hook_open(struct shell *s);
// Calls it as: HOOK... WANTED CONNECTED [FREE NODE]..., the last ones when there are too many
// nodes. One call at a time, each ended after hook_timeout_ms; what changed meanwhile is told in
// one more. Never waits.
void hook_call(struct hook *h);
// The call under way is ended.
void hook_close(struct hook *h); // NULL is fine
