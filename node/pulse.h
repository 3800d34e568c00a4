// The inside of node_pulse (node.h): written by the core's thread, read by the heartbeat thread. A
// sequence lock over relaxed atomics: odd while a write is under way, and a reader that saw a
// change reads again.
#pragma once

#include "node/node.h"

struct node_pulse {
    _Atomic uint32_t version;
    _Atomic uint64_t replica, epoch, steps;
    _Atomic uint64_t oldest_us; // when the oldest plan under way was submitted; 0 = none
    _Atomic uint32_t running, waiting, kv_blocks, kv_free;
    _Atomic uint64_t turned_us; // of the loop; on its own
};

struct pulse_values {
    uint64_t replica, epoch, steps, oldest_us;
    uint32_t running, waiting, kv_blocks, kv_free;
};
void pulse_write(struct node_pulse *p, const struct pulse_values *v);
