// Which layers each pipeline stage holds.
#pragma once

#include "base/limits.h"
#include "node/model/config.h"

// Stage s of `stages` (at most LIMIT_STAGES, and not more than there are layers) gets layers
// [first[s], first[s + 1]): at least one each, in order, so that the stage with the most weights to
// read in a step, which sets the pace of all, has as few as can be. The head of the vocabulary
// counts for the last stage; all experts of a layer count, as at a full batch. Pure: every rank
// comes to the same.
void model_stages(const struct model_config *c, int stages, int first[LIMIT_STAGES + 1]);
