// For bodies of comm only: the table of a body and what all of them share. A body's struct begins
// with struct comm; its create function fills ops, size and rank.
#pragma once

#include "node/comm.h"

struct comm_ops {
    // Called with size > 1, rows > 0 and part > 0 only.
    enum status (*all_gather)(struct comm *c, float *buf, size_t rows, size_t part);
    void (*abort)(struct comm *c);
    void (*destroy)(struct comm *c);
};

struct comm {
    const struct comm_ops *ops;
    int size, rank;
};
