// Between quantize.c (which tensors, and their numbers) and quantize_out.c (the folder).
#pragma once

#include <stdbool.h>

#include "node/model/quantize.h"
#include "node/model/tensor.h"

struct out_tensor {
    char *name; // owned
    enum st_dtype dtype;
    int dims_n;
    int64_t dims[ST_DIMS_MAX];
    int file;
    uint64_t at; // in the file's data
};

struct quantize_item {
    struct tensor t, t_scales; // what is read; t_scales when t is quantized
    struct out_tensor out;
    bool encoded;             // rows pass through float32
    struct out_tensor scales; // name NULL: none
};

struct out_folder {
    char *dir, *tmp;   // final name, and where it is written
    int *fds;          // of files
    uint64_t *data_at; // where their data begin
    uint64_t *data_n;  // bytes of their data
    int files_n;
};

static inline uint64_t out_tensor_bytes(const struct out_tensor *t)
{
    uint64_t n = st_dtype_size(t->dtype);
    for (int i = 0; i < t->dims_n; i++)
        n *= (uint64_t)t->dims[i];
    return n;
}

// Makes the folder, gives every tensor its place, opens the files and writes their headers.
STATUS_MUST_USE enum status out_folder_open(struct out_folder *f, const struct quantize_args *args,
                                            struct quantize_item *items, size_t n,
                                            struct errmsg *e);
// Any thread.
STATUS_MUST_USE enum status out_folder_write(const struct out_folder *f, const struct out_tensor *t,
                                             uint64_t offset, const void *data, size_t n,
                                             struct errmsg *e);
// index, config.json, the other files, and the rename.
STATUS_MUST_USE enum status out_folder_commit(struct out_folder *f,
                                              const struct quantize_args *args,
                                              const struct model_config *c,
                                              const struct quantize_item *items, size_t n,
                                              struct errmsg *e);
// Removes what was not committed.
void out_folder_close(struct out_folder *f);
