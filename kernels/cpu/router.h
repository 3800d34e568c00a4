// The choice of experts once scores are known: shared by both CPU bodies, since it is comparisons
// and a handful of additions in the order of choice.
#pragma once

#include "kernels/kern.h"

// score[experts] of one row -> ids[topk], weights[topk]. a->groups >= 1.
void router_select(const struct kern_router_args *a, const float *score, int32_t *ids,
                   float *weights);
