// The folder of a new checkpoint: safetensors files of a few gigabytes, their index, config.json
// and copies of the rest, under a temporary name until all of it is on the disk.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "node/model/json_file.h"
#include "node/model/quantize_int.h"

static const uint64_t FILE_BYTES = 4000000000; // of data, unless asked otherwise

static enum status fail(struct errmsg *e, const char *path)
{
    int err = errno;
    return errmsg_set(e, status_from_errno(err), "%s: %s", path, strerror(err));
}

static void file_name(char out[64], int i, int n)
{
    if (n == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", i + 1, n);
}

static enum status write_all(int fd, const void *data, size_t n, uint64_t at, const char *path,
                             struct errmsg *e)
{
    for (const char *p = data; n > 0;) {
        ssize_t got = pwrite(fd, p, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return fail(e, path);
        p += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return STATUS_OK;
}

// ---- places and headers

static void place_one(struct out_tensor *t, uint64_t most, int *file, uint64_t *used)
{
    uint64_t n = out_tensor_bytes(t);
    if (*used && *used + n > most) {
        ++*file;
        *used = 0;
    }
    t->file = *file;
    t->at = *used;
    *used += n;
}

static void place(struct out_folder *f, uint64_t most, struct quantize_item *items, size_t n)
{
    int file = 0;
    uint64_t used = 0;
    for (size_t i = 0; i < n; i++) {
        place_one(&items[i].out, most, &file, &used);
        if (items[i].scales.name)
            place_one(&items[i].scales, most, &file, &used);
    }
    f->files_n = file + 1;
    f->fds = mem_zalloc((size_t)f->files_n, sizeof *f->fds);
    f->data_at = mem_zalloc((size_t)f->files_n, sizeof *f->data_at);
    f->data_n = mem_zalloc((size_t)f->files_n, sizeof *f->data_n);
    for (int i = 0; i < f->files_n; i++)
        f->fds[i] = -1;
}

static void header_entry(struct strbuf *h, const struct out_tensor *t)
{
    strbuf_puts(h, h->n ? "," : "{\"__metadata__\":{\"format\":\"pt\"},");
    strbuf_json(h, t->name, strlen(t->name));
    strbuf_printf(h, ":{\"dtype\":\"%s\",\"shape\":[", st_dtype_name(t->dtype));
    for (int i = 0; i < t->dims_n; i++)
        strbuf_printf(h, i ? ",%lld" : "%lld", (long long)t->dims[i]);
    strbuf_printf(h, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->at,
                  (unsigned long long)(t->at + out_tensor_bytes(t)));
}

static enum status open_file(struct out_folder *f, int i, const struct quantize_item *items,
                             size_t n, struct errmsg *e)
{
    char name[64], path[JSON_FILE_PATH];
    struct strbuf h = {0};
    for (size_t j = 0; j < n; j++) {
        const struct out_tensor *both[] = {&items[j].out, &items[j].scales};
        for (int k = 0; k < 2; k++)
            if (both[k]->name && both[k]->file == i) {
                header_entry(&h, both[k]);
                f->data_n[i] += out_tensor_bytes(both[k]);
            }
    }
    strbuf_puts(&h, h.n ? "}" : "{}");
    while (h.n % 8)
        strbuf_puts(&h, " ");
    file_name(name, i, f->files_n);
    enum status s = json_file_path(path, f->tmp, name, e);
    if (s == STATUS_OK) {
        f->fds[i] = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (f->fds[i] < 0)
            s = fail(e, path);
    }
    const uint64_t length = h.n; // little-endian, as all hosts of Hadal
    f->data_at[i] = sizeof length + length;
    if (s == STATUS_OK)
        s = write_all(f->fds[i], &length, sizeof length, 0, path, e);
    if (s == STATUS_OK)
        s = write_all(f->fds[i], h.v, h.n, sizeof length, path, e);
    strbuf_finish(&h);
    return s;
}

// A disk that is too small shows here, not after an hour.
static enum status check_room(const struct out_folder *f, struct errmsg *e)
{
    uint64_t need = 0;
    for (int i = 0; i < f->files_n; i++)
        need += f->data_n[i];
    struct statvfs v;
    if (statvfs(f->tmp, &v) != 0)
        return fail(e, f->tmp);
    const uint64_t have = (uint64_t)v.f_bavail * v.f_frsize;
    if (need > have)
        return errmsg_set(e, STATUS_IO, "%s: %.1f GB are needed, %.1f GB are free", f->tmp,
                          (double)need * 1e-9, (double)have * 1e-9);
    return STATUS_OK;
}

enum status out_folder_open(struct out_folder *f, const struct quantize_args *args,
                            struct quantize_item *items, size_t n, struct errmsg *e)
{
    const char *dir = args->out;
    struct stat sb;
    if (lstat(dir, &sb) == 0)
        return errmsg_set(e, STATUS_EXISTS, "%s: is there already; nothing was written", dir);
    size_t length = strlen(dir);
    while (length > 1 && dir[length - 1] == '/')
        length--;
    f->dir = mem_dup(dir, length + 1);
    f->dir[length] = 0;
    char *tmp = mem_alloc(length + 32);
    snprintf(tmp, length + 32, "%s.%ld.tmp", f->dir, (long)getpid());
    if (mkdir(tmp, 0777) != 0) {
        enum status s = fail(e, tmp);
        free(tmp);
        return s;
    }
    f->tmp = tmp;
    place(f, args->file_bytes ? args->file_bytes : FILE_BYTES, items, n);
    enum status s = STATUS_OK;
    for (int i = 0; i < f->files_n && s == STATUS_OK; i++)
        s = open_file(f, i, items, n, e);
    return s == STATUS_OK ? check_room(f, e) : s;
}

enum status out_folder_write(const struct out_folder *f, const struct out_tensor *t,
                             uint64_t offset, const void *data, size_t n, struct errmsg *e)
{
    return write_all(f->fds[t->file], data, n, f->data_at[t->file] + t->at + offset, t->name, e);
}

// ---- the other files

static enum status write_json(const struct out_folder *f, const char *name, const json_t *v,
                              struct errmsg *e)
{
    char path[JSON_FILE_PATH];
    enum status s = json_file_path(path, f->tmp, name, e);
    if (s == STATUS_OK && json_dump_file(v, path, JSON_INDENT(2)) != 0)
        s = fail(e, path);
    return s;
}

static enum status write_index(const struct out_folder *f, const struct quantize_item *items,
                               size_t n, struct errmsg *e)
{
    if (f->files_n == 1)
        return STATUS_OK;
    char name[64];
    json_int_t total = 0;
    json_t *map = json_object();
    for (size_t i = 0; i < n; i++) {
        const struct out_tensor *both[] = {&items[i].out, &items[i].scales};
        for (int k = 0; k < 2; k++) {
            if (!both[k]->name)
                continue;
            file_name(name, both[k]->file, f->files_n);
            json_object_set_new(map, both[k]->name, json_string(name));
            total += (json_int_t)out_tensor_bytes(both[k]);
        }
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", total, "weight_map", map);
    enum status s = root ? write_json(f, "model.safetensors.index.json", root, e)
                         : errmsg_set(e, STATUS_INTERNAL, "the index cannot be made");
    json_decref(root);
    return s;
}

// What is not quantized, in the words of both layouts.
static json_t *not_quantized(void)
{
    return json_pack("[s, s, s]", "lm_head", "re:.*mlp\\.gate$", "re:.*kv_b_proj$");
}

static json_t *quantization(enum model_precision to)
{
    if (to == MODEL_FP8)
        return json_pack("{s:s, s:s, s:s, s:[i,i], s:[s,s,s]}", "quant_method", "fp8", "fmt",
                         "e4m3", "activation_scheme", "dynamic", "weight_block_size", 128, 128,
                         "modules_to_not_convert", "lm_head", "gate", "kv_b_proj");
    if (to == MODEL_INT8)
        return json_pack(
            "{s:s, s:s, s:s, s:{s:{s:[s], s:{s:i,s:s,s:b,s:s,s:b}, s:{s:i,s:s,s:b,s:s,s:b}}}, s:o}",
            "quant_method", "compressed-tensors", "format", "int-quantized", "quantization_status",
            "compressed", "config_groups", "group_0", "targets", "Linear", "weights", "num_bits", 8,
            "type", "int", "symmetric", 1, "strategy", "channel", "dynamic", 0, "input_activations",
            "num_bits", 8, "type", "int", "symmetric", 1, "strategy", "token", "dynamic", 1,
            "ignore", not_quantized());
    return NULL;
}

static enum status write_config(const struct out_folder *f, const struct quantize_args *a,
                                const struct model_config *c, struct errmsg *e)
{
    char path[JSON_FILE_PATH];
    json_t *root = NULL;
    enum status s = STATUS_OK;
    if (!a->source.config)
        s = json_file_path(path, a->source.dir, "config.json", e);
    if (s == STATUS_OK)
        s = json_file_load(a->source.config ? a->source.config : path, &root, e);
    if (s != STATUS_OK)
        return s;
    json_object_del(root, "quantization_config");
    json_t *q = quantization(a->to);
    if (q)
        json_object_set_new(root, "quantization_config", q);
    if (a->source.layers)
        json_object_set_new(root, "num_hidden_layers", json_integer(c->layers));
    s = write_json(f, "config.json", root, e);
    json_decref(root);
    return s;
}

static enum status copy_file(const char *from, const char *to, struct errmsg *e)
{
    int in = open(from, O_RDONLY | O_CLOEXEC), out = -1;
    enum status s = in < 0 ? fail(e, from) : STATUS_OK;
    if (s == STATUS_OK && (out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)) < 0)
        s = fail(e, to);
    char *buf = mem_alloc(1 << 20);
    uint64_t at = 0;
    for (ssize_t n = 1; s == STATUS_OK && n > 0; at += n > 0 ? (uint64_t)n : 0) {
        n = read(in, buf, 1 << 20);
        if (n < 0)
            s = fail(e, from);
        else if (n > 0)
            s = write_all(out, buf, (size_t)n, at, to, e);
    }
    free(buf);
    if (in >= 0)
        close(in);
    if (out >= 0 && close(out) != 0 && s == STATUS_OK)
        s = fail(e, to);
    return s;
}

// Weights in whatever form, and what was written anew.
static bool is_replaced(const char *name)
{
    static const char *const ends[] = {".safetensors",   ".bin",  ".pt",
                                       ".pth",           ".gguf", ".safetensors.index.json",
                                       ".bin.index.json"};
    const size_t n = strlen(name);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (n >= strlen(ends[i]) && !strcmp(name + n - strlen(ends[i]), ends[i]))
            return true;
    return !strcmp(name, "config.json");
}

static enum status copy_others(const struct out_folder *f, const char *dir, struct errmsg *e)
{
    DIR *d = opendir(dir);
    if (!d)
        return fail(e, dir);
    enum status s = STATUS_OK;
    for (const struct dirent *x; s == STATUS_OK && (x = readdir(d));) {
        char from[JSON_FILE_PATH], to[JSON_FILE_PATH];
        struct stat sb;
        if (*x->d_name == '.' || is_replaced(x->d_name))
            continue;
        s = json_file_path(from, dir, x->d_name, e);
        if (s == STATUS_OK)
            s = json_file_path(to, f->tmp, x->d_name, e);
        if (s == STATUS_OK && stat(from, &sb) == 0 && S_ISREG(sb.st_mode))
            s = copy_file(from, to, e);
    }
    closedir(d);
    return s;
}

static enum status sync_files(struct out_folder *f, struct errmsg *e)
{
    for (int i = 0; i < f->files_n; i++) {
        int fd = f->fds[i];
        f->fds[i] = -1;
        bool synced = fsync(fd) == 0;
        if (close(fd) != 0 || !synced)
            return fail(e, f->tmp);
    }
    return STATUS_OK;
}

enum status out_folder_commit(struct out_folder *f, const struct quantize_args *args,
                              const struct model_config *c, const struct quantize_item *items,
                              size_t n, struct errmsg *e)
{
    enum status s = write_index(f, items, n, e);
    if (s == STATUS_OK)
        s = write_config(f, args, c, e);
    if (s == STATUS_OK && args->source.dir)
        s = copy_others(f, args->source.dir, e);
    if (s == STATUS_OK)
        s = sync_files(f, e);
    if (s == STATUS_OK && rename(f->tmp, f->dir) != 0)
        s = fail(e, f->dir);
    if (s == STATUS_OK) {
        free(f->tmp);
        f->tmp = NULL;
    }
    return s;
}

static void remove_folder(const char *dir)
{
    DIR *d = opendir(dir);
    for (const struct dirent *x; d && (x = readdir(d));)
        if (strcmp(x->d_name, ".") && strcmp(x->d_name, ".."))
            unlinkat(dirfd(d), x->d_name, 0);
    if (d)
        closedir(d);
    rmdir(dir);
}

void out_folder_close(struct out_folder *f)
{
    for (int i = 0; f->fds && i < f->files_n; i++)
        if (f->fds[i] >= 0)
            close(f->fds[i]);
    if (f->tmp)
        remove_folder(f->tmp);
    free(f->tmp);
    free(f->dir);
    free(f->fds);
    free(f->data_at);
    free(f->data_n);
}
