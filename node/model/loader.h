// Reads tensors of a checkpoint into kern weights: checks name, shape and dtype, takes the rows
// that are asked for, expands fp8. Used by weights.c, which knows the names.
#pragma once

#include "node/model/weights.h"

struct loader {
    const struct model_config *config;
    const struct safetensors *files;
    struct kern *kern;
    struct model_progress progress;
    struct errmsg *e;
    // First pass: look at every tensor, count bytes, create and copy nothing.
    bool check_only;
    size_t done, total;
    float *scratch; // owned by the loader
    size_t scratch_n;
};

void loader_finish(struct loader *l);

// Rows [first, first + n) of tensor `name`, which must have the shape [rows][cols].
struct loader_rows {
    const char *name;
    int64_t rows, cols, first, n;
};

// The dtype in which the named matrices can share one weight without loss: their own if all have
// the same 16-bit type, else float32 (fp8 is expanded). names ends with NULL.
STATUS_MUST_USE enum status loader_dtype(struct loader *l, const char *const *names,
                                         enum kern_dtype *out);

STATUS_MUST_USE enum status loader_weight(struct loader *l, const struct kern_weight_args *args,
                                          struct kern_weight **out);
STATUS_MUST_USE enum status loader_buf(struct loader *l, size_t n, struct kern_buf **out);

// Where rows of a tensor go: rows [row0, ...) of matrix s of w. transposed: w's rows are the
// tensor's columns.
struct loader_dest {
    struct kern_weight *w; // NULL while check_only
    enum kern_dtype dtype; // of w
    size_t s, row0;
    bool transposed;
};
STATUS_MUST_USE enum status loader_fill(struct loader *l, const struct loader_rows *r,
                                        const struct loader_dest *d);
// Elements [first, first + n) of a vector of `total` into buf[at...], as float32.
struct loader_vector {
    const char *name;
    int64_t total, first, n;
};
STATUS_MUST_USE enum status loader_vector_fill(struct loader *l, const struct loader_vector *v,
                                               struct kern_buf *buf, size_t at);
