// Brings tensors of a checkpoint into kern weights: checks name, shape and dtype, takes the rows
// that are asked for, expands what the kern does not compute with. Used by weights.c, which knows
// the names.
//
// Three passes, the first two by the same calls of weights.c: look at everything (check_only);
// create the weights and note what goes where (jobs); then loader_run reads all of it in parallel
// (loader_run.c).
#pragma once

#include "node/model/tensor.h"
#include "node/model/weights.h"

// Where rows of a tensor go: rows [row0, ...) of matrix s of w. transposed: w's rows are the
// tensor's columns.
struct loader_dest {
    struct kern_weight *w; // NULL while check_only
    enum kern_dtype dtype; // of w
    size_t s, row0;
    bool transposed;
};

// Rows [first, first + n) of a tensor, of them `cols` columns from first_col on, to be read,
// converted and filled in one go.
struct loader_job {
    struct tensor t, scales; // scales.dtype is meaningful when t is quantized
    struct loader_dest d;
    int64_t first, n, first_col, cols;
    size_t bytes; // of checkpoint, for progress
};

struct loader {
    const struct model_source *source;
    const struct model_config *config;
    const struct safetensors *files; // NULL: random weights
    struct kern *kern;
    struct model_progress progress;
    struct errmsg *e;
    // First pass: look at every tensor, count bytes, create and note nothing.
    bool check_only;
    model_seen_fn *seen; // told of each tensor then; may be NULL
    void *seen_arg;
    size_t done, total; // bytes
    struct loader_job *jobs;
    size_t jobs_n, jobs_cap;
    bool native[2]; // the kern computes with fp8, int8
};

void loader_start(struct loader *l); // sees what the kern can do
void loader_finish(struct loader *l);

// Rows [first, first + n) of tensor `name`, which must have the shape [rows][cols].
struct loader_rows {
    const char *name;
    int64_t rows, cols, first, n;
    int64_t first_col, cols_n; // of them only these columns; cols_n 0 = all
};

// The dtype in which the named matrices can share one weight: their own if all have the same 16-bit
// or quantized type and the kern computes with it; otherwise they are expanded, to float32 on CPUs
// (nothing is lost) and to bf16 on GPUs unless there is float32 among them. names ends with NULL.
// keep: which quantized dtypes the weight may have. Rows that do not begin at a multiple of 128, in
// their tensor or in the weight, are no whole 128x128 blocks of fp8.
enum loader_keep { LOADER_KEEP_NONE, LOADER_KEEP_INT8, LOADER_KEEP_ALL };
STATUS_MUST_USE enum status loader_dtype(struct loader *l, const char *const *names,
                                         enum loader_keep keep, enum kern_dtype *out);

STATUS_MUST_USE enum status loader_weight(struct loader *l, const struct kern_weight_args *args,
                                          struct kern_weight **out);
STATUS_MUST_USE enum status loader_buf(struct loader *l, size_t n, struct kern_buf **out);

// The scales of a quantized matrix, checked.
STATUS_MUST_USE enum status loader_find_scales(struct loader *l, const struct loader_rows *r,
                                               enum st_dtype dtype, struct tensor *out);

STATUS_MUST_USE enum status loader_fill(struct loader *l, const struct loader_rows *r,
                                        const struct loader_dest *d);
// Elements [first, first + n) of a vector of `total` into buf[at...], as float32. At once.
struct loader_vector {
    const char *name;
    int64_t total, first, n;
};
STATUS_MUST_USE enum status loader_vector_fill(struct loader *l, const struct loader_vector *v,
                                               struct kern_buf *buf, size_t at);

// Carries out the jobs.
STATUS_MUST_USE enum status loader_run(struct loader *l);

// For loader_run.c.
void loader_count(struct loader *l, size_t bytes);
static inline bool loader_is_quantized(enum st_dtype d)
{
    return d == ST_F8_E4M3 || d == ST_I8;
}
static inline size_t loader_element_bytes(enum kern_dtype d)
{
    return d == KERN_F32 ? 4 : d == KERN_FP8 || d == KERN_INT8 ? 1 : 2;
}
// The tensor's numbers are what the weight wants.
static inline bool loader_is_direct(const struct tensor *t, const struct loader_dest *d)
{
    static const enum st_dtype same[] = {
        [KERN_F32] = ST_F32, [KERN_BF16] = ST_BF16,   [KERN_F16] = ST_F16,
        [KERN_I32] = ST_I32, [KERN_FP8] = ST_F8_E4M3, [KERN_INT8] = ST_I8};
    return !d->transposed && t->dtype == same[d->dtype];
}
// Rows of the scales' tensor that rows [first, first + n) of a quantized tensor need.
struct loader_span {
    int64_t first, n;
};
static inline struct loader_span loader_scale_rows(const struct loader *l, enum st_dtype dtype,
                                                   int64_t first, int64_t n)
{
    const int64_t block = dtype == ST_F8_E4M3 ? l->config->fp8_block[0] : 1;
    return (struct loader_span){first / block, (first + n + block - 1) / block - first / block};
}
