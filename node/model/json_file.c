// Reads one JSON file. Owns nothing after it returns.
#include "node/model/json_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum status json_file_path(char out[JSON_FILE_PATH], const char *dir, const char *name,
                           struct errmsg *e)
{
    int n = snprintf(out, JSON_FILE_PATH, "%s/%s", dir, name);
    if (n < 0 || n >= JSON_FILE_PATH)
        return errmsg_set(e, STATUS_BAD_MODEL, "%.64s...: path is longer than %d bytes", dir,
                          JSON_FILE_PATH - 1);
    return STATUS_OK;
}

enum status json_file_load(const char *path, json_t **out, struct errmsg *e)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return errmsg_set(e, errno == ENOENT ? STATUS_NOT_FOUND : status_from_errno(errno),
                          "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return errmsg_set(e, STATUS_BAD_FILE, "%s: not a regular file", path);
    if (st.st_size > JSON_FILE_MAX)
        return errmsg_set(e, STATUS_TOO_LARGE, "%s: %lld bytes, at most %d are read", path,
                          (long long)st.st_size, JSON_FILE_MAX);
    json_error_t je;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &je);
    if (!root)
        return errmsg_set(e, STATUS_BAD_FILE, "%s: line %d: not valid JSON: %s", path, je.line,
                          je.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return errmsg_set(e, STATUS_BAD_FILE, "%s: not a JSON object", path);
    }
    *out = root;
    return STATUS_OK;
}
