// Opens safetensors files and checks every number of their headers before anybody uses one. Owns
// the mappings and the table of tensors; knows nothing of what the tensors mean.
//
// Tensors of a file must tile its data section: sorted by offset, each begins where the one before
// it ended, the last ends at the end of the file. This finds overlaps, holes, truncated files and
// trailing bytes with one rule.
#include "node/model/safetensors.h"

#include <assert.h>
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
    uint8_t *base; // NULL: elsewhere
    size_t bytes;
    int fd;
    const struct st_folder *folder;
    size_t file_i;
};

// Where files are looked for: a folder of this host, or one elsewhere.
struct place {
    const char *dir;
    const struct st_folder *folder; // NULL: dir
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
            *out = (struct mapping){
                .path = mem_strdup(path), .base = base, .bytes = (size_t)sb.st_size, .fd = fd};
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
    t->data = m->base ? m->base + data_at + begin : NULL;
    t->bytes = (size_t)bytes;
    t->fd = m->fd;
    t->file_at = data_at + (uint64_t)begin;
    t->folder = m->folder;
    t->file_i = m->file_i;
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
    if (x->file_at != y->file_at)
        return x->file_at < y->file_at ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; // empty tensors first
}

static enum status check_tiling(const struct mapping *m, uint64_t data_at, struct st_tensor *t,
                                size_t n, struct errmsg *e)
{
    qsort(t, n, sizeof *t, by_place);
    uint64_t at = data_at;
    for (size_t i = 0; i < n; i++) {
        const uint64_t begin = t[i].file_at;
        if (begin != at)
            return errmsg_set(e, STATUS_BAD_FILE,
                              "%s: tensor '%s': data_offsets %s at %" PRIu64 ": %s", m->path,
                              t[i].name, begin < at ? "overlap" : "leave a hole",
                              (begin < at ? begin : at) - data_at,
                              i ? t[i - 1].name : "start of the data");
        at = begin + t[i].bytes;
    }
    if (at != m->bytes)
        return errmsg_set(e, STATUS_BAD_FILE,
                          "%s: %" PRIu64 " bytes behind the last tensor belong to none", m->path,
                          m->bytes - at);
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

static enum status find_file(const char *path, const struct st_folder *f, struct mapping *out,
                             struct errmsg *e)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    for (size_t i = 0; i < f->files_n; i++) {
        if (strcmp(f->files[i].name, name))
            continue;
        if (f->files[i].bytes < 8 || f->files[i].bytes > INT64_MAX)
            return errmsg_set(e, STATUS_BAD_FILE,
                              "%s: %" PRIu64 " bytes, too short for a safetensors header", path,
                              f->files[i].bytes);
        *out = (struct mapping){.path = mem_strdup(path),
                                .bytes = (size_t)f->files[i].bytes,
                                .fd = -1,
                                .folder = f,
                                .file_i = i};
        return STATUS_OK;
    }
    return errmsg_set(e, STATUS_NOT_FOUND, "%s: no such file", path);
}

// Bytes of a file that belong to no tensor.
static enum status read_head(const struct mapping *m, uint64_t at, size_t n, void *out,
                             struct errmsg *e)
{
    if (m->folder)
        return m->folder->read(
            m->folder->arg, &(struct st_range){.file = m->file_i, .at = at, .bytes = n, .out = out},
            1, e);
    memcpy(out, m->base + at, n);
    return STATUS_OK;
}

static enum status read_header(const struct mapping *m, uint64_t *bytes_out, json_t **root_out,
                               struct errmsg *e)
{
    uint8_t length[8];
    uint64_t header = 0;
    enum status s = read_head(m, 0, sizeof length, length, e);
    if (s != STATUS_OK)
        return s;
    for (int i = 0; i < 8; i++)
        header |= (uint64_t)length[i] << (8 * i);
    if (header > HEADER_MAX || header > m->bytes - 8)
        return errmsg_set(e, STATUS_BAD_FILE,
                          "%s: header length %" PRIu64 " of a file of %zu bytes (truncated, or no "
                          "safetensors file)",
                          m->path, header, m->bytes);
    char *text = mem_alloc(header ? header : 1);
    s = read_head(m, 8, header, text, e);
    json_error_t je;
    json_t *root = s == STATUS_OK ? json_loadb(text, header, JSON_REJECT_DUPLICATES, &je) : NULL;
    free(text);
    if (s != STATUS_OK)
        return s;
    if (!root)
        return errmsg_set(e, STATUS_BAD_FILE, "%s: header is not valid JSON: byte %d: %s", m->path,
                          je.position, je.text);
    *bytes_out = header;
    *root_out = root;
    return STATUS_OK;
}

static enum status add_file(struct safetensors *st, const char *path,
                            const struct st_folder *folder, struct errmsg *e)
{
    struct mapping m = {0};
    if (st->files_n >= FILES_MAX)
        return errmsg_set(e, STATUS_TOO_LARGE, "%s: more than %d files", path, FILES_MAX);
    enum status s = folder ? find_file(path, folder, &m, e) : map_file(path, &m, e);
    if (s != STATUS_OK)
        return s;
    MEM_GROW(st->files, st->files_n, st->files_cap);
    st->files[st->files_n++] = m;
    uint64_t header = 0;
    json_t *root = NULL;
    s = read_header(&m, &header, &root, e);
    if (s != STATUS_OK)
        return s;
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

static enum status add_indexed_file(struct safetensors *st, const struct place *at, const char *index,
                                    const char *tensor, const char *name, struct errmsg *e)
{
    char path[JSON_FILE_PATH];
    if (!name || !*name || strchr(name, '/'))
        return errmsg_set(e, STATUS_BAD_FILE, "%s: weight_map['%s'] is no plain file name", index,
                          tensor);
    enum status s = json_file_path(path, at->dir, name, e);
    if (s != STATUS_OK || has_file(st, path))
        return s;
    s = add_file(st, path, at->folder, e);
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

static enum status add_indexed(struct safetensors *st, const struct place *at, const char *index,
                               const json_t *root, struct errmsg *e)
{
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map))
        return errmsg_set(e, STATUS_BAD_FILE, "%s: weight_map is missing or no object", index);
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)map, key, v)
    {
        enum status s = add_indexed_file(st, at, index, key, json_string_value(v), e);
        if (s != STATUS_OK)
            return s;
    }
    enum status s = sort_names(st, e);
    return s == STATUS_OK ? check_index(st, at->dir, index, map, e) : s;
}

static enum status add_globbed(struct safetensors *st, const char *dir, struct errmsg *e)
{
    char path[JSON_FILE_PATH];
    enum status s = json_file_path(path, dir, "model.safetensors", e);
    if (s != STATUS_OK)
        return s;
    if (access(path, F_OK) == 0) {
        s = add_file(st, path, NULL, e);
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
        s = add_file(st, g.gl_pathv[i], NULL, e);
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
    enum status s = add_file(st, path, NULL, e);
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
        s = add_indexed(st, &(struct place){dir, NULL}, index, root, e);
    else
        s = add_globbed(st, dir, e);
    json_decref(root);
    return finish_open(st, s, out);
}

static const struct st_folder_file *file_named(const struct st_folder *f, const char *name)
{
    for (size_t i = 0; i < f->files_n; i++)
        if (!strcmp(f->files[i].name, name))
            return &f->files[i];
    return NULL;
}

static enum status load_index(const struct st_folder *f, const struct st_folder_file *file,
                              json_t **out, struct errmsg *e)
{
    if (file->bytes > JSON_FILE_MAX)
        return errmsg_set(e, STATUS_TOO_LARGE, "%s/%s: %" PRIu64 " bytes, at most %d are read",
                          f->name, file->name, file->bytes, JSON_FILE_MAX);
    char *text = mem_alloc(file->bytes ? (size_t)file->bytes : 1);
    const struct st_range all = {
        .file = (size_t)(file - f->files), .bytes = (size_t)file->bytes, .out = text};
    enum status s = f->read(f->arg, &all, 1, e);
    json_error_t je;
    if (s == STATUS_OK) {
        *out = json_loadb(text, (size_t)file->bytes, JSON_REJECT_DUPLICATES, &je);
        if (!*out)
            s = errmsg_set(e, STATUS_BAD_FILE, "%s/%s: line %d: not valid JSON: %s", f->name,
                           file->name, je.line, je.text);
    }
    free(text);
    return s;
}

static bool is_safetensors(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && !strcmp(dot, ".safetensors");
}

// model.safetensors, or every *.safetensors.
static enum status add_listed(struct safetensors *st, const struct st_folder *f, struct errmsg *e)
{
    const struct st_folder_file *one = file_named(f, "model.safetensors");
    enum status s = STATUS_OK;
    for (size_t i = 0; i < f->files_n && s == STATUS_OK; i++) {
        char path[JSON_FILE_PATH];
        if (one ? &f->files[i] != one : !is_safetensors(f->files[i].name))
            continue;
        s = json_file_path(path, f->name, f->files[i].name, e);
        if (s == STATUS_OK)
            s = add_file(st, path, f, e);
    }
    if (s == STATUS_OK && !st->files_n)
        return errmsg_set(e, STATUS_BAD_MODEL,
                          "%s: holds neither model.safetensors.index.json nor *.safetensors",
                          f->name);
    return s == STATUS_OK ? sort_names(st, e) : s;
}

enum status safetensors_open_folder(const struct st_folder *folder, struct safetensors **out,
                                    struct errmsg *e)
{
    static const char index[] = "model.safetensors.index.json";
    const struct st_folder_file *file = file_named(folder, index);
    json_t *root = NULL;
    enum status s = file ? load_index(folder, file, &root, e) : STATUS_OK;
    if (s != STATUS_OK)
        return s;
    struct safetensors *st = mem_zalloc(1, sizeof *st);
    if (root)
        s = add_indexed(st, &(struct place){folder->name, folder}, index, root, e);
    else
        s = add_listed(st, folder, e);
    json_decref(root);
    return finish_open(st, s, out);
}

// Files are read with pread, not through their mapping: it copies without a page fault per 4 KiB,
// and a file that was cut short since it was opened is an error, not a signal.
enum status st_tensor_read(const struct st_tensor *t, size_t at, size_t n, void *out,
                           struct errmsg *e)
{
    assert(at <= t->bytes && n <= t->bytes - at);
    if (t->folder)
        return st_tensors_read(
            &(struct st_range){.tensor = t, .tensor_at = at, .bytes = n, .out = out}, 1, e);
    for (char *to = out; n > 0;) {
        ssize_t got = pread(t->fd, to, n, (off_t)(t->file_at + at));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errmsg_set(e, status_from_errno(errno), "%s: tensor '%s': %s", t->file, t->name,
                              strerror(errno));
        if (got == 0)
            return errmsg_set(e, STATUS_BAD_FILE, "%s: tensor '%s': the file was cut short",
                              t->file, t->name);
        at += (size_t)got;
        to += got;
        n -= (size_t)got;
    }
    return STATUS_OK;
}

enum status st_tensors_read(struct st_range *pieces, size_t n, struct errmsg *e)
{
    const struct st_folder *folder = n ? pieces[0].tensor->folder : NULL;
    enum status s = STATUS_OK;
    for (size_t i = 0; i < n && s == STATUS_OK; i++) {
        struct st_range *r = &pieces[i];
        const struct st_tensor *t = r->tensor;
        assert(t->folder == folder && r->tensor_at <= t->bytes &&
               r->bytes <= t->bytes - r->tensor_at);
        r->file = t->file_i;
        r->at = t->file_at + r->tensor_at;
        if (!folder)
            s = st_tensor_read(t, (size_t)r->tensor_at, r->bytes, r->out, e);
    }
    return folder ? folder->read(folder->arg, pieces, n, e) : s;
}

void safetensors_close(struct safetensors *st)
{
    if (!st)
        return;
    for (size_t i = 0; i < st->tensors_n; i++)
        free((char *)st->tensors[i].name);
    for (size_t i = 0; i < st->files_n; i++) {
        if (st->files[i].base) {
            munmap(st->files[i].base, st->files[i].bytes);
            close(st->files[i].fd);
        }
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
