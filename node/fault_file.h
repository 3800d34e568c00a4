// Faults for tests, switched on and off from outside while a node runs: a file whose first word is
// what goes wrong, "wrong" (false results), "slow" (five times as long) or "hang". Anything else,
// or no file, is no fault. Only where the node was started with --fault-file.
#pragma once

#include <stdint.h>

enum node_fault { NODE_FAULT_NONE, NODE_FAULT_WRONG, NODE_FAULT_SLOW, NODE_FAULT_HANG };

enum { NODE_FAULT_SLOW_FACTOR = 5 };

struct fault_file {
    const char *path; // borrowed; NULL or "" = never a fault
    uint64_t read_us; // when it was read last
    enum node_fault fault;
};

// Reads the file when it was not read in the last 20 ms.
enum node_fault fault_file_now(struct fault_file *f, uint64_t now_us);
