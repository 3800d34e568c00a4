#include "base/sm.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

const char *sm_name(const struct sm *sm, int state)
{
    assert(state >= 0 && state < sm->states_n);
    return sm->states[state].name;
}

int sm_move(const struct sm *sm, int from, int to)
{
    assert(from >= 0 && from < sm->states_n && to >= 0 && to < sm->states_n);
    if (!(sm->states[from].allowed & SM_TO(to))) {
        fprintf(stderr, "%s: move %s -> %s is not allowed\n", sm->name, sm_name(sm, from),
                sm_name(sm, to));
        abort();
    }
    return to;
}
