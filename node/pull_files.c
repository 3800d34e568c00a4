// Opens a model folder for others to read from.
#include "node/pull_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "node/model/json_file.h"
#include "node/model/source.h"
#include "node/pull_wire.h"

struct served_file {
    char *name;
    int fd;
    struct stat at_open;
};

struct pull_files {
    atomic_int refs;
    uint64_t fingerprint;
    struct served_file *files;
    size_t files_n, files_cap;
    struct strbuf listing;
};

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

static enum status add(struct pull_files *f, int dir, const char *name, struct errmsg *e)
{
    struct served_file s = {.fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (s.fd < 0 || fstat(s.fd, &s.at_open)) {
        int err = errno;
        if (s.fd >= 0)
            close(s.fd);
        return errmsg_set(e, status_from_errno(err), "%s: %s", name, strerror(err));
    }
    bool small = ends_with(name, ".json");
    if (!S_ISREG(s.at_open.st_mode) || (small && s.at_open.st_size > JSON_FILE_MAX)) {
        close(s.fd);
        return STATUS_OK; // nobody needs it
    }
    s.name = mem_strdup(name);
    MEM_GROW(f->files, f->files_n, f->files_cap);
    f->files[f->files_n++] = s;
    return STATUS_OK;
}

static enum status add_all(struct pull_files *f, const char *path, struct errmsg *e)
{
    DIR *d = opendir(path);
    if (!d)
        return errmsg_set(e, status_from_errno(errno), "%s: %s", path, strerror(errno));
    enum status s = STATUS_OK;
    for (const struct dirent *x; s == STATUS_OK && (x = readdir(d));) {
        if (!ends_with(x->d_name, ".safetensors") && !ends_with(x->d_name, ".json"))
            continue;
        s = f->files_n < PULL_FILES_MAX
                ? add(f, dirfd(d), x->d_name, e)
                : errmsg_set(e, STATUS_TOO_LARGE, "%s: more than %d files", path, PULL_FILES_MAX);
    }
    closedir(d);
    return s;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct served_file *)a)->name, ((const struct served_file *)b)->name);
}

// In order of names, so that equal folders have equal listings.
static enum status list(struct pull_files *f, struct errmsg *e)
{
    if (f->files_n)
        qsort(f->files, f->files_n, sizeof *f->files, by_name);
    for (size_t i = 0; i < f->files_n; i++) {
        const struct pull_entry entry = {.bytes = (uint64_t)f->files[i].at_open.st_size,
                                         .name_n = (uint32_t)strlen(f->files[i].name) + 1};
        strbuf_add(&f->listing, &entry.bytes, sizeof entry.bytes);
        strbuf_add(&f->listing, &entry.name_n, sizeof entry.name_n);
        strbuf_add(&f->listing, f->files[i].name, entry.name_n);
    }
    if (!f->files_n || f->listing.n > PULL_LISTING_MAX)
        return errmsg_set(e, STATUS_TOO_LARGE, "no files, or a listing of %zu bytes", f->listing.n);
    return STATUS_OK;
}

static enum status read_own(void *arg, const struct st_range *ranges, size_t n, struct errmsg *e)
{
    const struct pull_files *f = arg;
    for (size_t k = 0; k < n; k++) {
        const struct st_range *r = &ranges[k];
        for (size_t i = 0; i < r->bytes; i += PULL_CHUNK) {
            size_t m = r->bytes - i < PULL_CHUNK ? r->bytes - i : PULL_CHUNK;
            enum status s =
                pull_files_read(f, (uint32_t)r->file, r->at + i, (uint32_t)m, (char *)r->out + i);
            if (s != STATUS_OK)
                return errmsg_set(e, s, "%s: %s", f->files[r->file].name, status_text(s));
        }
    }
    return STATUS_OK;
}

// Of the very files that are held open, whatever the folder holds by now.
static enum status check_fingerprint(const struct pull_files *f, struct errmsg *e)
{
    struct st_folder_file *files = mem_zalloc(f->files_n, sizeof *files);
    char config[64] = "";
    for (size_t i = 0; i < f->files_n; i++) {
        files[i] = (struct st_folder_file){f->files[i].name, (uint64_t)f->files[i].at_open.st_size};
        if (!strcmp(f->files[i].name, "config.json"))
            snprintf(config, sizeof config, "/proc/self/fd/%d", f->files[i].fd);
    }
    const struct st_folder folder = {"the model folder", f->files_n, files, read_own, (void *)f};
    const struct model_source source = {.config = config, .folder = &folder};
    uint64_t fingerprint = 0;
    enum status s = config[0] ? model_source_fingerprint(&source, &fingerprint, e)
                              : errmsg_set(e, STATUS_BAD_MODEL, "there is no config.json");
    if (s == STATUS_OK && fingerprint != f->fingerprint)
        s = errmsg_set(e, STATUS_BAD_MODEL, "another model than the one in memory");
    free(files);
    return s;
}

enum status pull_files_open(const char *dir, uint64_t fingerprint, struct pull_files **out,
                            struct errmsg *e)
{
    struct pull_files *f = mem_zalloc(1, sizeof *f);
    atomic_init(&f->refs, 1);
    f->fingerprint = fingerprint;
    enum status s = add_all(f, dir, e);
    if (s == STATUS_OK)
        s = list(f, e);
    if (s == STATUS_OK)
        s = check_fingerprint(f, e);
    if (s == STATUS_OK)
        *out = f;
    else
        pull_files_unref(f);
    return s;
}

struct pull_files *pull_files_ref(struct pull_files *f)
{
    atomic_fetch_add(&f->refs, 1);
    return f;
}

void pull_files_unref(struct pull_files *f)
{
    if (!f || atomic_fetch_sub(&f->refs, 1) != 1)
        return;
    for (size_t i = 0; i < f->files_n; i++) {
        close(f->files[i].fd);
        free(f->files[i].name);
    }
    free(f->files);
    strbuf_finish(&f->listing);
    free(f);
}

uint64_t pull_files_fingerprint(const struct pull_files *f)
{
    return f->fingerprint;
}

const uint8_t *pull_files_listing(const struct pull_files *f, size_t *bytes_out)
{
    *bytes_out = f->listing.n;
    return (const uint8_t *)f->listing.v;
}

static bool changed(const struct served_file *s)
{
    struct stat now;
    return fstat(s->fd, &now) || now.st_size != s->at_open.st_size ||
           now.st_mtim.tv_sec != s->at_open.st_mtim.tv_sec ||
           now.st_mtim.tv_nsec != s->at_open.st_mtim.tv_nsec;
}

static enum status read_all(const struct served_file *s, uint64_t at, size_t n, char *out)
{
    while (n > 0) {
        ssize_t got = pread(s->fd, out, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got ? status_from_errno(errno) : STATUS_BAD_FILE;
        at += (uint64_t)got;
        out += got;
        n -= (size_t)got;
    }
    return STATUS_OK;
}

enum status pull_files_read(const struct pull_files *f, uint32_t file, uint64_t at, uint32_t bytes,
                            void *out)
{
    if (file == PULL_LISTING) {
        if (at > f->listing.n || bytes > f->listing.n - at)
            return STATUS_BAD_REQUEST;
        memcpy(out, f->listing.v + at, bytes);
        return STATUS_OK;
    }
    if (file >= f->files_n)
        return STATUS_BAD_REQUEST;
    const struct served_file *s = &f->files[file];
    const uint64_t size = (uint64_t)s->at_open.st_size;
    if (at > size || bytes > size - at)
        return STATUS_BAD_REQUEST;
    enum status st = read_all(s, at, bytes, out);
    // After the read: what was read before the change is what was hashed at publishing.
    return st == STATUS_OK && changed(s) ? STATUS_BAD_FILE : st;
}
