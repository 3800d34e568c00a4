// Which nodes become which ranks of a replica. Pure: candidates in, assignment out.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct placement_node {
    uint64_t host;          // hash of its host's name
    bool holds;             // has the weights of rank (stage, tensor) of this shape in memory
    uint64_t held_replica;  // for which replica it loaded them
    uint32_t stage, tensor; // valid when holds
    uint32_t faults;        // blamed for lately; others are taken first
};

struct placement_want {
    uint64_t replica;
    uint32_t stages, tensor;
};

// Fills ranks_out[stage * tensor_n + tensor] with indexes into nodes. Nodes without recent faults
// come first; among equals one that holds a rank's weights is preferred for it (first of the same
// replica, so that survivors stay where they are), then one on the host of the other tensor ranks
// of the stage, then one that holds nothing. false when there are fewer nodes than ranks; nothing
// is written.
bool placement_assign(const struct placement_want *want, const struct placement_node *nodes,
                      size_t nodes_n, uint32_t *ranks_out);
