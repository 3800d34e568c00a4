// Private to the bodies of comm: what they share.
#pragma once

#include <stdbool.h>

#include "node/comm.h"

struct comm_body {
    enum status (*all_gather)(struct comm *c, float *buf, size_t rows, size_t part);
    void (*wake)(struct comm *c); // from any thread: `aborted` was set
    void (*destroy)(struct comm *c);
};

// First member of every body's struct.
struct comm {
    const struct comm_body *body;
    int size, rank;
    atomic_bool aborted;
    struct comm_progress progress;
};
