// A rank of a stage of T without the others: its gathers return at once and leave their slices as
// they are. For measuring what one rank computes; the results mean nothing.
#pragma once

#include "node/comm.h"

struct comm *comm_create_alone(int size, int rank); // 0 <= rank < size
