// Looks where a build leaves the sample model and where an installation puts it.
#include "tools/sample_model.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char found[PATH_MAX];

bool is_model_folder(const char *dir)
{
    char config[PATH_MAX * 2 + 16];
    snprintf(config, sizeof config, "%s/config.json", dir);
    return access(config, R_OK) == 0;
}

static bool take(const char *dir)
{
    return is_model_folder(dir) && realpath(dir, found);
}

const char *sample_model(void)
{
    static const char *const places[] = {"../models/sample", "../share/hadal/models/sample"};
    if (found[0])
        return found;
    char exe[PATH_MAX], dir[PATH_MAX * 2];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n < 0 ? 0 : n] = 0;
    char *slash = strrchr(exe, '/');
    for (size_t i = 0; slash && i < sizeof places / sizeof *places; i++) {
        snprintf(dir, sizeof dir, "%.*s/%s", (int)(slash - exe), exe, places[i]);
        if (take(dir))
            return found;
    }
    return take("models/sample") ? found : NULL;
}
