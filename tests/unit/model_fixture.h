// Shared by the tests of the model: folders to test with, made and found. Included once per
// program.
#pragma once

#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/strbuf.h"

enum { FIXTURE_PATH = 600 };

// Tests run in the repository's root. false: the shared data is not beside the checkout.
static inline bool shared_path(char out[FIXTURE_PATH], const char *name)
{
    const char *root = getenv("HADAL_SHARED");
    snprintf(out, FIXTURE_PATH, "%s/%s", root ? root : "../shared", name);
    if (access(out, R_OK) == 0)
        return true;
    fprintf(stderr, "SKIPPED: %s is not there (set HADAL_SHARED)\n", out);
    return false;
}

static inline void write_file(const char *dir, const char *name, const void *data, size_t n)
{
    char path[FIXTURE_PATH];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void remove_file(const char *dir, const char *name)
{
    char path[FIXTURE_PATH];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}
