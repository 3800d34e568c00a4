// Gathers what libcyaml logs while it reads a file into one message. Line numbers come from its
// backtrace, whose innermost line is reported first.
#include "base/config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static void gather(cyaml_log_t level, void *ctx, const char *fmt, va_list args)
{
    struct errmsg *said = ctx;
    size_t at = strlen(said->text);
    char line[256];
    int n = vsnprintf(line, sizeof line, fmt, args);
    if (n <= 0)
        return;
    size_t len = strcspn(line, "\n");
    const char *text = line;
    if (len > 6 && !strncmp(line, "Load: ", 6)) {
        text += 6;
        len -= 6;
    }
    while (len && *text == ' ') {
        text++;
        len--;
    }
    snprintf(said->text + at, sizeof said->text - at, "%s%.*s", at ? "; " : "", (int)len, text);
}

static void *plain_realloc(void *ctx, void *p, size_t n)
{
    if (n)
        return realloc(p, n);
    free(p);
    return NULL;
}

static const cyaml_config_t quiet = {.mem_fn = plain_realloc};

static enum status read_file(const char *path, char **text_out, size_t *n_out, struct errmsg *e)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return errmsg_set(e, status_from_errno(errno), "%s: %s", path, strerror(errno));
    char *text = mem_alloc(CONFIG_FILE_BYTES + 1);
    size_t n = fread(text, 1, CONFIG_FILE_BYTES + 1, f);
    bool failed = ferror(f);
    fclose(f);
    if (failed || n > CONFIG_FILE_BYTES) {
        free(text);
        return errmsg_set(e, failed ? STATUS_IO : STATUS_BAD_CONFIG, "%s: %s", path,
                          failed ? "cannot be read" : "larger than 1 MiB");
    }
    *text_out = text;
    *n_out = n;
    return STATUS_OK;
}

// Nothing but blanks and comments: libcyaml calls that "no document", for an operator it means
// "all defaults".
static bool is_blank(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '#')
            while (i < n && text[i] != '\n')
                i++;
        else if (!strchr(" \t\r\n", text[i]))
            return false;
    }
    return true;
}

enum status config_load(const char *path, const cyaml_schema_value_t *schema, void **out_data,
                        struct errmsg *e)
{
    char *text = NULL;
    size_t n = 0;
    enum status rc = read_file(path, &text, &n, e);
    if (rc != STATUS_OK)
        return rc;

    struct errmsg said = {0};
    cyaml_config_t config = quiet;
    config.log_fn = gather;
    config.log_ctx = &said;
    config.log_level = CYAML_LOG_ERROR;
    bool blank = is_blank(text, n);
    const char *doc = blank ? "{}" : text;
    void *data = NULL;
    cyaml_err_t err =
        cyaml_load_data((const uint8_t *)doc, blank ? 2 : n, &config, schema, &data, NULL);
    free(text);
    if (err != CYAML_OK)
        return errmsg_set(e, STATUS_BAD_CONFIG, "%s: %s%s%s", path, cyaml_strerror(err),
                          said.text[0] ? ": " : "", said.text);
    *out_data = data;
    return STATUS_OK;
}

void config_free(const cyaml_schema_value_t *schema, void *data)
{
    if (data)
        cyaml_free(&quiet, schema, data, 0);
}
