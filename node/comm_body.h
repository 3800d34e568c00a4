// Private to the bodies of comm: what they share.
#pragma once

#include <stdbool.h>

#include "node/comm.h"

struct comm_body {
    enum status (*all_gather)(struct comm *c, float *buf, size_t rows, size_t part);
    void (*wake)(struct comm *c); // from any thread: `aborted` was set
    void (*destroy)(struct comm *c);
    // OK while all ranks are there, else why not. Owner thread; NULL: a rank cannot get lost.
    enum status (*poll)(struct comm *c);
    // Only of bodies that work on device memory, else NULL.
    enum status (*gather)(struct comm *c, struct kern_buf *buf, size_t rows, size_t part);
    enum status (*sync)(struct comm *c, struct kern *k);
    void (*refresh)(struct comm *c, uint64_t now_us);
};

// First member of every body's struct.
struct comm {
    const struct comm_body *body;
    int size, rank;
    atomic_bool aborted;
    struct comm_progress progress;
    int blamed;   // comm_suspect + 1
    void *staged; // for rows of a device's buffer that go through host memory; owned
    size_t staged_bytes;
};
