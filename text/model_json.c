// Duplicate keys are refused: two readers could take different ones.
#include "text/model_json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_MAX = 256 << 20 };

static enum status open_checked(const char *path, FILE **out, struct errmsg *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return errno == ENOENT ? errmsg_set(err, STATUS_NOT_FOUND, "%s: no such file", path)
                               : errmsg_set(err, STATUS_BAD_FILE, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size > FILE_MAX) {
        close(fd);
        return errmsg_set(err, STATUS_BAD_FILE, "%s: not a regular file of at most %d bytes", path,
                          FILE_MAX);
    }
    *out = fdopen(fd, "r");
    if (!*out) {
        close(fd);
        return errmsg_set(err, STATUS_IO, "%s: %s", path, strerror(errno));
    }
    return STATUS_OK;
}

enum status model_json_load(const char *dir, const char *name, size_t flags, json_t **out,
                            struct errmsg *err)
{
    char path[1200];
    FILE *f = NULL;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return errmsg_set(err, STATUS_BAD_FILE, "%.200s...: path too long", dir);
    enum status s = open_checked(path, &f, err);
    if (s)
        return s;
    json_error_t e;
    json_t *j = json_loadf(f, flags | JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    fclose(f);
    if (!j)
        return errmsg_set(err, STATUS_BAD_FILE, "%s: line %d: %s", path, e.line, e.text);
    if (!json_is_object(j)) {
        json_decref(j);
        return errmsg_set(err, STATUS_BAD_FILE, "%s: expected an object", path);
    }
    *out = j;
    return STATUS_OK;
}

const char *model_json_token(const json_t *entry)
{
    if (json_is_object(entry))
        entry = json_object_get(entry, "content");
    return json_string_value(entry);
}
