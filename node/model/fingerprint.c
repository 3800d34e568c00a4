// Names a model version by content. Hashing 700 GB at every start would take minutes, so only the
// ends and the middle of some tensors are read; names, types and shapes of all of them count.
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/hash.h"
#include "base/mem.h"
#include "node/model/json_file.h"
#include "node/model/safetensors.h"
#include "node/model/weights.h"

enum { SAMPLE_TENSORS = 1024, SAMPLE_BYTES = 256 };

// Of one tensor: all of it when it is small, else its ends and its middle.
static size_t add_samples(const struct st_tensor *t, uint8_t *memory, struct st_range *out)
{
    const struct st_range whole = {.tensor = t, .bytes = t->bytes, .out = memory};
    if (t->bytes <= 3 * SAMPLE_BYTES) {
        out[0] = whole;
        return 1;
    }
    const size_t at[] = {0, t->bytes / 2, t->bytes - SAMPLE_BYTES};
    for (size_t i = 0; i < 3; i++)
        out[i] = (struct st_range){.tensor = t,
                                   .tensor_at = at[i],
                                   .bytes = SAMPLE_BYTES,
                                   .out = memory + i * SAMPLE_BYTES};
    return 3;
}

struct samples {
    uint8_t *memory;         // 3 * SAMPLE_BYTES of each tensor
    struct st_range *pieces; // in order
    size_t n;
};

// All at once: files may be on another host.
static enum status read_samples(const struct safetensors *files, size_t every, struct samples *out,
                                struct errmsg *e)
{
    const size_t n = safetensors_count(files);
    out->memory = mem_zalloc(n / every + 1, 3 * SAMPLE_BYTES);
    out->pieces = mem_zalloc(3 * (n / every + 1), sizeof *out->pieces);
    for (size_t i = 0; i < n; i += every)
        out->n += add_samples(safetensors_at(files, i), out->memory + i / every * 3 * SAMPLE_BYTES,
                              out->pieces + out->n);
    return st_tensors_read(out->pieces, out->n, e);
}

static uint64_t hash_tensor(const struct st_tensor *t, uint64_t h)
{
    h = hash_bytes(t->name, strlen(t->name), h);
    const char *dtype = st_dtype_name(t->dtype);
    h = hash_bytes(dtype, strlen(dtype), h);
    return hash_bytes(t->shape, sizeof *t->shape * (size_t)t->dims_n, h);
}

static enum status hash_config(const struct model_source *source, uint64_t *h, struct errmsg *e)
{
    char path[JSON_FILE_PATH];
    json_t *root = NULL;
    enum status s =
        source->config ? STATUS_OK : json_file_path(path, source->dir, "config.json", e);
    if (s == STATUS_OK)
        s = json_file_load(source->config ? source->config : path, &root, e);
    if (s != STATUS_OK)
        return s;
    // Sorted and compact: white space does not make another model.
    char *text = json_dumps(root, JSON_SORT_KEYS | JSON_COMPACT);
    json_decref(root);
    if (!text)
        return errmsg_set(e, STATUS_INTERNAL, "config.json cannot be written back as JSON");
    *h = hash_bytes(text, strlen(text), 0);
    free(text);
    const int64_t how[] = {source->random, (int64_t)source->seed, source->precision};
    if (source->random)
        *h = hash_bytes(how, sizeof how, *h);
    if (source->layers)
        *h = hash_pair(*h, (uint64_t)source->layers);
    return STATUS_OK;
}

enum status model_fingerprint(const struct model_source *source, const struct safetensors *files,
                              uint64_t *out, struct errmsg *e)
{
    uint64_t h;
    enum status s = hash_config(source, &h, e);
    if (s != STATUS_OK)
        return s;
    const size_t n = files ? safetensors_count(files) : 0, every = n / SAMPLE_TENSORS + 1;
    struct samples samples = {0};
    if (files)
        s = read_samples(files, every, &samples, e);
    const struct st_range *piece = samples.pieces;
    for (size_t i = 0; i < n && s == STATUS_OK; i++) {
        const struct st_tensor *t = safetensors_at(files, i);
        h = hash_tensor(t, h);
        for (; i % every == 0 && piece < samples.pieces + samples.n && piece->tensor == t; piece++)
            h = hash_bytes(piece->out, piece->bytes, h);
    }
    free(samples.memory);
    free(samples.pieces);
    if (s == STATUS_OK)
        *out = h ? h : 1;
    return s;
}

enum status model_source_fingerprint(const struct model_source *source, uint64_t *out,
                                     struct errmsg *e)
{
    struct safetensors *files = NULL;
    enum status s = model_source_open(source, &files, e);
    if (s == STATUS_OK)
        s = model_fingerprint(source, files, out, e);
    safetensors_close(files);
    return s;
}

static bool counts(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && (!strcmp(dot, ".safetensors") || !strcmp(name, "config.json") ||
                   !strcmp(name, "model.safetensors.index.json"));
}

uint64_t model_folder_stamp(const char *dir)
{
    DIR *d = opendir(dir);
    if (!d)
        return 0;
    uint64_t sum = 0; // in whatever order the names come
    for (const struct dirent *x; (x = readdir(d));) {
        struct stat st;
        if (!counts(x->d_name) || fstatat(dirfd(d), x->d_name, &st, 0))
            continue;
        const uint64_t facts[] = {(uint64_t)st.st_dev, (uint64_t)st.st_ino, (uint64_t)st.st_size,
                                  (uint64_t)st.st_mtim.tv_sec, (uint64_t)st.st_mtim.tv_nsec};
        sum += hash_bytes(facts, sizeof facts, hash_bytes(x->d_name, strlen(x->d_name), 0));
    }
    closedir(d);
    return sum;
}
