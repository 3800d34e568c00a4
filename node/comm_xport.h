// All-gather over the links of a hub. Each rank writes its slice into every other's region and
// raises a notice; when all notices are there, the slices are copied out. Large gathers go in
// chunks of `area_bytes`, through two areas in turn: who sends chunk n + 1 has copied out chunk n,
// so chunk n + 2 may overwrite it, and no acknowledgement is needed.
#pragma once

#include "node/comm.h"
#include "node/lane_hub.h"

struct comm_xport_config {
    const uint32_t *ranks; // [n] hub ranks of the stage, in tensor order, own included; copied
    uint32_t n;
    size_t area_bytes; // 0 = 256 KiB
};
// After lane_hub_begin, before lane_hub_connect. Must be destroyed before the next begin.
enum status comm_create_xport(struct lane_hub *h, const struct comm_xport_config *config,
                              struct comm **comm_out, struct errmsg *e);
