// State machines as tables: states with a name and the set of states they may move to. A move that
// the table does not allow is a bug and asserts with both names. Keep the diagram above the enum
// of the machine that uses it.
#pragma once

#include <stdint.h>

struct sm_state {
    const char *name;
    uint32_t allowed; // bit i: may move to state i
};

struct sm {
    const char *name;
    const struct sm_state *states;
    int states_n; // <= 32
};

#define SM_TO(s) (1u << (s))

// Checks the move and returns `to`. Use: x->state = sm_move(&request_sm, x->state, REQ_DONE);
int sm_move(const struct sm *sm, int from, int to);
const char *sm_name(const struct sm *sm, int state);
