// Written beside and renamed, so that whoever dies on the way leaves the old one.
#include "coordinator/state_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/mem.h"
#include "coordinator/coord.h"

char *state_file_read(const char *path, struct errmsg *err)
{
    FILE *f = fopen(path, "re");
    if (!f) {
        if (errno != ENOENT)
            (void)errmsg_set(err, STATUS_IO, "state: %s: %s", path, strerror(errno));
        return NULL;
    }
    char *text = mem_zalloc(1, COORD_STATE_BYTES + 1);
    size_t n = fread(text, 1, COORD_STATE_BYTES + 1, f);
    bool bad = ferror(f) || n > COORD_STATE_BYTES;
    fclose(f);
    if (!bad) {
        text[n] = 0;
        return text;
    }
    free(text);
    (void)errmsg_set(err, STATUS_BAD_FILE, "state: %s: cannot be read, or is too large", path);
    return NULL;
}

static bool write_all(int fd, const char *text, size_t n)
{
    while (n) {
        ssize_t k = write(fd, text, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return false;
        text += k;
        n -= (size_t)k;
    }
    return fsync(fd) == 0;
}

enum status state_file_write(const char *path, const char *text, struct errmsg *err)
{
    char beside[LIMIT_PATH + 8];
    if ((size_t)snprintf(beside, sizeof beside, "%s.new", path) >= sizeof beside)
        return errmsg_set(err, STATUS_IO, "state: the path is too long");
    int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write_all(fd, text, strlen(text));
    if (fd >= 0 && close(fd))
        ok = false;
    if (ok && !rename(beside, path))
        return STATUS_OK;
    return errmsg_set(err, STATUS_IO, "state: %s: %s", path, strerror(errno));
}
