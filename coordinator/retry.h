// How much of a pool's time goes into computing again what broken replicas had computed. A bucket
// of tokens is filled in proportion to what is served, and by everything that is re-dispatched
// emptied; while it is empty, only one such request per replica is under way at a time. So a
// failure is repaired at once, and a storm of them cannot crowd out the survivors' work; nothing
// waits without end, and nothing is lost. Pure.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct retry {
    double level; // tokens; may go below 0
    bool begun;
};

struct retry_limits {
    uint32_t percent; // of the tokens served; 0 = no budget: everything goes at once
    uint32_t burst;   // tokens
};

void retry_earn(struct retry *r, const struct retry_limits *lim, uint32_t tokens);
void retry_spend(struct retry *r, const struct retry_limits *lim, uint32_t tokens);
// `under_way`: re-dispatched requests that have not answered; `replicas`: that serve.
bool retry_allows(const struct retry *r, const struct retry_limits *lim, uint32_t under_way,
                  uint32_t replicas);
double retry_left(const struct retry *r, const struct retry_limits *lim);
