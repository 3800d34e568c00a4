// One tensor of a checkpoint, or of a model with random weights, as rows of bytes in its own dtype.
// Any thread may read it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "node/model/source.h"

struct tensor {
    enum st_dtype dtype;
    int64_t rows, cols;         // a vector is one row
    const struct st_tensor *st; // NULL: random
    struct noise noise;
};

// Rows [first, first + n) into `out` (n * cols elements).
STATUS_MUST_USE enum status tensor_read(const struct tensor *t, int64_t first, int64_t n, void *out,
                                        struct errmsg *e);
