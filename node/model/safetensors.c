// Opens safetensors files and checks every number of their headers before anybody uses one. Owns
// the mappings and the table of tensors; knows nothing of what the tensors mean.
//
// Tensors of a file must tile its data section: sorted by offset, each begins where the one before
// it ended, the last ends at the end of the file. This finds overlaps, holes, truncated files and
// trailing bytes with one rule.
#include "node/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "node/model/json_file.h"

enum {
    HEADER_MAX = 100000000, // bytes; the limit of the reference implementation
    FILES_MAX = 4096,
    TENSORS_MAX = 4 << 20,
};

struct mapping {
    char *path;
    uint8_t *base;
    size_t bytes;
    int fd;
};

struct safetensors {
    struct mapping *files;
    size_t files_n, files_cap;
    struct st_tensor *tensors; // sorted by name once open
    size_t tensors_n, tensors_cap;
};

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
#define ST_DTYPE_ROW(name, size) {#name, size},
    ST_DTYPE_MAP(ST_DTYPE_ROW)
#undef ST_DTYPE_ROW
};

enum { DTYPES_N = sizeof dtypes / sizeof *dtypes };

const char *st_dtype_name(enum st_dtype d)
{
    return dtypes[d].name;
}

size_t st_dtype_size(enum st_dtype d)
{
    return dtypes[d].size;
}

static enum status map_file(const char *path, struct mapping *out, struct errmsg *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // not to wait for a pipe's writer
    if (fd < 0)
        return errmsg_set(e, errno == ENOENT ? STATUS_NOT_FOUND : status_from_errno(errno),
                          "%s: %s", path, strerror(errno));
    struct stat sb;
    enum status s = STATUS_OK;
    if (fstat(fd, &sb) != 0)
        s = errmsg_set(e, status_from_errno(errno), "%s: %s", path, strerror(errno));
    else if (!S_ISREG(sb.st_mode))
        s = errmsg_set(e, STATUS_BAD_FILE, "%s: not a regular file", path);
    else if (sb.st_size < 8)
        s = errmsg_set(e, STATUS_BAD_FILE, "%s: %lld bytes, too short for a safetensors header",
                       path, (long long)sb.st_size);
    if (s == STATUS_OK) {
        void *base = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (base == MAP_FAILED)
            s = errmsg_set(e, status_from_errno(errno), "%s: mmap: %s", path, strerror(errno));
        else
            *out = (struct mapping){mem_strdup(path), base, (size_t)sb.st_size, fd};
    }
    if (s != STATUS_OK)
        close(fd);
    return s;
}

static enum status read_dtype(const json_t *v, struct st_tensor *t, struct errmsg *e)
{
    const char *s = json_string_value(v);
    if (!s)
        return errmsg_set(e, STATUS_BAD_FILE, "%s: tensor '%s': dtype is missing or no string",
                          t->file, t->name);
    for (int d = 0; d < DTYPES_N; d++)
        if (!strcmp(s, dtypes[d].name)) {
            t->dtype = (enum st_dtype)d;
            return STATUS_OK;
        }
    return errmsg_set(e, STATUS_BAD_FILE, "%s: tensor '%s': unknown dtype '%.32s'", t->file,
                      t->name, s);
}

// Shape, and the number of bytes it asks for.
static enum status read_shape(const json_t *v, struct st_tensor *t, uint64_t *bytes_out,
                              struct errmsg *e)
{
    if (!json_is_array(v) || json_array_size(v) > ST_DIMS_MAX)
        return errmsg_set(e, STATUS_BAD_FILE,
                          "%s: tensor '%s': shape is no array of at most %d numbers", t->file,
                          t->name, ST_DIMS_MAX);
    uint64_t bytes = st_dtype_size(t->dtype);
    t->dims_n = (int)json_array_size(v);
    for (int i = 0; i < t->dims_n; i++) {
        const json_t *d = json_array_get(v, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return errmsg_set(e, STATUS_BAD_FILE,
                              "%s: tensor '%s': shape[%d] is no non-negative integer", t->file,
                              t->name, i);
        t->shape[i] = json_integer_value(d);
        if (__builtin_mul_overflow(bytes, (uint64_t)t->shape[i], &bytes))
            return errmsg_set(e, STATUS_BAD_FILE, "%s: tensor '%s': shape overflows at shape[%d]",
                              t->file, t->name, i);
    }
    *bytes_out = bytes;
    return STATUS_OK;
}

static enum status read_offsets(const json_t *v, const struct mapping *m, uint64_t data_at,
                                uint64_t bytes, struct st_tensor *t, struct errmsg *e)
{
    const json_t *b = json_array_get(v, 0), *n = json_array_get(v, 1);
    if (json_array_size(v) != 2 || !json_is_integer(b) || !json_is_integer(n))
        return errmsg_set(e, STATUS_BAD_FILE, "%s: tensor '%s': data_offsets is no [begin, end]",
                          t->file, t->name);
    int64_t begin = json_integer_value(b), end = json_integer_value(n);
    if (begin < 0 || end < begin || (uint64_t)end > m->bytes - data_at)
        return errmsg_set(e, STATUS_BAD_FILE,
                          "%s: tensor '%s': data_offsets [%" PRId64 ", %" PRId64
                          "] outside the %" PRIu64 " data bytes of the file (truncated?)",
                          t->file, t->name, begin, end, m->bytes - data_at);
    if ((uint64_t)(end - begin) != bytes)
        return errmsg_set(e, STATUS_BAD_FILE,
                          "%s: tensor '%s': data_offsets span %" PRId64
                          " bytes, dtype and shape need %" PRIu64,
                          t->file, t->name, end - begin, bytes);
    t->data = m->base + data_at + begin;
    t->bytes = (size_t)bytes;
    t->fd = m->fd;
    t->file_at = data_at + (uint64_t)begin;
    return STATUS_OK;
}

static enum status read_entry(const char *name, const json_t *v, const struct mapping *m,
                              uint64_t data_at, struct st_tensor *t, struct errmsg *e)
{
    *t = (struct st_tensor){.name = name, .file = m->path};
    if (!json_is_object(v))
        return errmsg_set(e, STATUS_BAD_FILE, "%s: tensor '%s': not an object", m->path, name);
    uint64_t bytes = 0;
    enum status s = read_dtype(json_object_get(v, "dtype"), t, e);
    if (s == STATUS_OK)
        s = read_shape(json_object_get(v, "shape"), t, &bytes, e);
    if (s == STATUS_OK)
        s = read_offsets(json_object_get(v, "data_offsets"), m, data_at, bytes, t, e);
    return s;
}

static int by_place(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->data != y->data)
        return (const uint8_t *)x->data < (const uint8_t *)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; // empty tensors first
}

static enum status check_tiling(const struct mapping *m, uint64_t data_at, struct st_tensor *t,
                                size_t n, struct errmsg *e)
{
    qsort(t, n, sizeof *t, by_place);
    const uint8_t *at = m->base + data_at;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *begin = t[i].data;
        if (begin != at)
            return errmsg_set(e, STATUS_BAD_FILE,
                              "%s: tensor '%s': data_offsets %s at %" PRIu64 ": %s", m->path,
                              t[i].name, begin < at ? "overlap" : "leave a hole",
                              (uint64_t)((begin < at ? begin : at) - (m->base + data_at)),
                              i ? t[i - 1].name : "start of the data");
        at = begin + t[i].bytes;
    }
    if (at != m->base + m->bytes)
        return errmsg_set(e, STATUS_BAD_FILE,
                          "%s: %" PRIu64 " bytes behind the last tensor belong to none", m->path,
                          (uint64_t)(m->base + m->bytes - at));
    return STATUS_OK;
}

static enum status read_entries(struct safetensors *st, const json_t *root, const struct mapping *m,
                                uint64_t data_at, struct errmsg *e)
{
    size_t first = st->tensors_n;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)root, key, v)
    {
        if (!strcmp(key, "__metadata__"))
            continue;
        if (st->tensors_n >= TENSORS_MAX)
            return errmsg_set(e, STATUS_TOO_LARGE, "%s: more than %d tensors", m->path,
                              TENSORS_MAX);
        struct st_tensor t;
        enum status s = read_entry(key, v, m, data_at, &t, e);
        if (s != STATUS_OK)
            return s;
        t.name = mem_strdup(key);
        MEM_GROW(st->tensors, st->tensors_n, st->tensors_cap);
        st->tensors[st->tensors_n++] = t;
    }
    return check_tiling(m, data_at, st->tensors + first, st->tensors_n - first, e);
}

static enum status add_file(struct safetensors *st, const char *path, struct errmsg *e)
{
    struct mapping m;
    if (st->files_n >= FILES_MAX)
        return errmsg_set(e, STATUS_TOO_LARGE, "%s: more than %d files", path, FILES_MAX);
    enum status s = map_file(path, &m, e);
    if (s != STATUS_OK)
        return s;
    MEM_GROW(st->files, st->files_n, st->files_cap);
    st->files[st->files_n++] = m;
    uint64_t header = 0;
    for (int i = 0; i < 8; i++)
        header |= (uint64_t)m.base[i] << (8 * i);
    if (header > HEADER_MAX || header > m.bytes - 8)
        return errmsg_set(e, STATUS_BAD_FILE,
                          "%s: header length %" PRIu64 " of a file of %zu bytes (truncated, or no "
                          "safetensors file)",
                          path, header, m.bytes);
    json_error_t je;
    json_t *root = json_loadb((const char *)m.base + 8, header, JSON_REJECT_DUPLICATES, &je);
    if (!root)
        return errmsg_set(e, STATUS_BAD_FILE, "%s: header is not valid JSON: byte %d: %s", path,
                          je.position, je.text);
    if (json_is_object(root))
        s = read_entries(st, root, &m, 8 + header, e);
    else
        s = errmsg_set(e, STATUS_BAD_FILE, "%s: header is no JSON object", path);
    json_decref(root);
    return s;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

static enum status sort_names(struct safetensors *st, struct errmsg *e)
{
    struct st_tensor *t = st->tensors;
    if (st->tensors_n)
        qsort(t, st->tensors_n, sizeof *t, by_name);
    for (size_t i = 1; i < st->tensors_n; i++)
        if (!strcmp(t[i - 1].name, t[i].name))
            return errmsg_set(e, STATUS_BAD_FILE, "tensor '%s' is in two files: %s and %s",
                              t[i].name, t[i - 1].file, t[i].file);
    return STATUS_OK;
}

static bool has_file(const struct safetensors *st, const char *path)
{
    for (size_t i = 0; i < st->files_n; i++)
        if (!strcmp(st->files[i].path, path))
            return true;
    return false;
}

static enum status add_indexed_file(struct safetensors *st, const char *dir, const char *index,
                                    const char *tensor, const char *name, struct errmsg *e)
{
    char path[JSON_FILE_PATH];
    if (!name || !*name || strchr(name, '/'))
        return errmsg_set(e, STATUS_BAD_FILE, "%s: weight_map['%s'] is no plain file name", index,
                          tensor);
    enum status s = json_file_path(path, dir, name, e);
    if (s != STATUS_OK || has_file(st, path))
        return s;
    s = add_file(st, path, e);
    if (s == STATUS_NOT_FOUND)
        return errmsg_set(e, STATUS_BAD_MODEL, "%s: weight_map['%s'] names %s, which is missing",
                          index, tensor, name);
    return s;
}

static enum status check_index(const struct safetensors *st, const char *dir, const char *index,
                               const json_t *map, struct errmsg *e)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)map, key, v)
    {
        char path[JSON_FILE_PATH];
        enum status s = json_file_path(path, dir, json_string_value(v), e);
        if (s != STATUS_OK)
            return s;
        const struct st_tensor *t = safetensors_find(st, key);
        if (!t || strcmp(t->file, path))
            return errmsg_set(e, STATUS_BAD_MODEL, "%s: weight_map['%s']: %s holds no such tensor",
                              index, key, path);
    }
    return STATUS_OK;
}

static enum status add_indexed(struct safetensors *st, const char *dir, const char *index,
                               const json_t *root, struct errmsg *e)
{
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map))
        return errmsg_set(e, STATUS_BAD_FILE, "%s: weight_map is missing or no object", index);
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)map, key, v)
    {
        enum status s = add_indexed_file(st, dir, index, key, json_string_value(v), e);
        if (s != STATUS_OK)
            return s;
    }
    enum status s = sort_names(st, e);
    return s == STATUS_OK ? check_index(st, dir, index, map, e) : s;
}

static enum status add_globbed(struct safetensors *st, const char *dir, struct errmsg *e)
{
    char path[JSON_FILE_PATH];
    enum status s = json_file_path(path, dir, "model.safetensors", e);
    if (s != STATUS_OK)
        return s;
    if (access(path, F_OK) == 0) {
        s = add_file(st, path, e);
        return s == STATUS_OK ? sort_names(st, e) : s;
    }
    s = json_file_path(path, dir, "*.safetensors", e);
    if (s != STATUS_OK)
        return s;
    glob_t g;
    if (glob(path, 0, NULL, &g) != 0)
        return errmsg_set(e, STATUS_BAD_MODEL,
                          "%s: holds neither model.safetensors.index.json nor *.safetensors", dir);
    for (size_t i = 0; i < g.gl_pathc && s == STATUS_OK; i++)
        s = add_file(st, g.gl_pathv[i], e);
    globfree(&g);
    return s == STATUS_OK ? sort_names(st, e) : s;
}

static enum status finish_open(struct safetensors *st, enum status s, struct safetensors **out)
{
    if (s == STATUS_OK)
        *out = st;
    else
        safetensors_close(st);
    return s;
}

enum status safetensors_open_file(const char *path, struct safetensors **out, struct errmsg *e)
{
    struct safetensors *st = mem_zalloc(1, sizeof *st);
    enum status s = add_file(st, path, e);
    return finish_open(st, s == STATUS_OK ? sort_names(st, e) : s, out);
}

enum status safetensors_open_dir(const char *dir, struct safetensors **out, struct errmsg *e)
{
    char index[JSON_FILE_PATH];
    enum status s = json_file_path(index, dir, "model.safetensors.index.json", e);
    if (s != STATUS_OK)
        return s;
    json_t *root = NULL;
    s = json_file_load(index, &root, e);
    if (s != STATUS_OK && s != STATUS_NOT_FOUND)
        return s;
    struct safetensors *st = mem_zalloc(1, sizeof *st);
    if (root)
        s = add_indexed(st, dir, index, root, e);
    else
        s = add_globbed(st, dir, e);
    json_decref(root);
    return finish_open(st, s, out);
}

void safetensors_close(struct safetensors *st)
{
    if (!st)
        return;
    for (size_t i = 0; i < st->tensors_n; i++)
        free((char *)st->tensors[i].name);
    for (size_t i = 0; i < st->files_n; i++) {
        munmap(st->files[i].base, st->files[i].bytes);
        close(st->files[i].fd);
        free(st->files[i].path);
    }
    free(st->tensors);
    free(st->files);
    free(st);
}

const struct st_tensor *safetensors_find(const struct safetensors *st, const char *name)
{
    struct st_tensor key = {.name = name};
    if (!st->tensors_n)
        return NULL;
    return bsearch(&key, st->tensors, st->tensors_n, sizeof key, by_name);
}

size_t safetensors_count(const struct safetensors *st)
{
    return st->tensors_n;
}

const struct st_tensor *safetensors_at(const struct safetensors *st, size_t i)
{
    return i < st->tensors_n ? &st->tensors[i] : NULL;
}
