// Safetensors files of a model folder, memory-mapped: https://huggingface.co/docs/safetensors
//
// A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape,
// data_offsets}}, then the bytes of all tensors, without holes. Everything in the header is checked
// at open: after that, `data` and `bytes` of every tensor lie inside the mapping and agree with
// dtype and shape. The caller still has to compare the shape with what it expects.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define ST_DTYPE_MAP(X)                                                                            \
    X(BOOL, 1)                                                                                     \
    X(U8, 1)                                                                                       \
    X(I8, 1)                                                                                       \
    X(F8_E4M3, 1)                                                                                  \
    X(F8_E5M2, 1)                                                                                  \
    X(I16, 2)                                                                                      \
    X(U16, 2) X(F16, 2) X(BF16, 2) X(I32, 4) X(U32, 4) X(F32, 4) X(I64, 8) X(U64, 8) X(F64, 8)

#define ST_DTYPE_ENUM(name, size) ST_##name,
enum st_dtype { ST_DTYPE_MAP(ST_DTYPE_ENUM) };
#undef ST_DTYPE_ENUM

const char *st_dtype_name(enum st_dtype d);
size_t st_dtype_size(enum st_dtype d); // bytes of one element

enum { ST_DIMS_MAX = 8 };

// A model folder that is elsewhere (node/pull.h): names and sizes of its files, and how to read them.
struct st_range {
    size_t file; // index in the folder
    uint64_t at;
    size_t bytes;
    void *out;
    const struct st_tensor *tensor; // whose bytes from tensor_at on these are; NULL: of no tensor
    uint64_t tensor_at;
};
struct st_folder {
    const char *name; // for messages, where a path would stand
    size_t files_n;
    const struct st_folder_file {
        char *name; // plain: no '/'
        uint64_t bytes;
    } *files;
    // From any thread. The ranges lie inside their files; several cost little more than one.
    enum status (*read)(void *arg, const struct st_range *ranges, size_t n, struct errmsg *e);
    void *arg;
};

struct st_tensor {
    const char *name; // borrowed until safetensors_close, like all pointers here
    const char *file; // path of the file that holds it
    enum st_dtype dtype;
    int dims_n;
    int64_t shape[ST_DIMS_MAX];
    const void *data; // mapped; not necessarily aligned to the element. NULL: in `folder`
    size_t bytes;
    int fd; // of the file, and where in it the data begin: for pread
    uint64_t file_at;
    const struct st_folder *folder; // NULL: a file of this host
    size_t file_i;                  // in the folder
};

struct safetensors;

// One file.
STATUS_MUST_USE enum status safetensors_open_file(const char *path, struct safetensors **out,
                                                  struct errmsg *e);
// A model folder: the files named by model.safetensors.index.json; without an index
// model.safetensors; without that every *.safetensors. A tensor in two files, an index entry whose
// file or tensor is missing, are errors.
STATUS_MUST_USE enum status safetensors_open_dir(const char *dir, struct safetensors **out,
                                                 struct errmsg *e);
// The same of a folder that is elsewhere, borrowed until safetensors_close. Reads the headers.
STATUS_MUST_USE enum status safetensors_open_folder(const struct st_folder *folder,
                                                    struct safetensors **out, struct errmsg *e);
void safetensors_close(struct safetensors *st); // NULL is fine

// Bytes [at, at + n) of a tensor. From any thread.
STATUS_MUST_USE enum status st_tensor_read(const struct st_tensor *t, size_t at, size_t n,
                                           void *out, struct errmsg *e);
// Pieces of tensors of one folder, at once: `tensor`, `tensor_at`, `bytes` and `out` of each are set.
STATUS_MUST_USE enum status st_tensors_read(struct st_range *pieces, size_t n, struct errmsg *e);

const struct st_tensor *safetensors_find(const struct safetensors *st, const char *name);
size_t safetensors_count(const struct safetensors *st);
const struct st_tensor *safetensors_at(const struct safetensors *st, size_t i); // sorted by name
