// Tables for people. Values come from another process: long ones are cut, control characters shown
// as '?', so that no node's name can write on the operator's terminal.
#include "tools/ctl_table.h"

#include <stdbool.h>
#include <string.h>

enum { CELL_MAX = 80, COLUMNS_MAX = 32 };

static const json_t *find(const json_t *object, const char *key)
{
    char part[64];
    while (object && *key) {
        size_t n = strcspn(key, ".");
        snprintf(part, sizeof part, "%.*s", (int)n, key);
        object = json_object_get(object, part);
        key += n + (key[n] == '.');
    }
    return object;
}

static void show_ms(double ms, char *buf, size_t n)
{
    if (ms < 1000)
        snprintf(buf, n, "%.0f ms", ms);
    else if (ms < 120e3)
        snprintf(buf, n, "%.1f s", ms / 1e3);
    else
        snprintf(buf, n, "%.0f min", ms / 60e3);
}

static void show_bytes(double bytes, char *buf, size_t n)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t u = 0;
    for (; bytes >= 1024 && u + 1 < sizeof units / sizeof *units; u++)
        bytes /= 1024;
    snprintf(buf, n, u ? "%.1f %s" : "%.0f %s", bytes, units[u]);
}

static void show(const json_t *v, enum ctl_format format, char *buf, size_t n);

static void show_array(const json_t *v, char *buf, size_t n)
{
    size_t used = 0;
    buf[0] = 0;
    for (size_t i = 0; i < json_array_size(v) && used + 1 < n; i++) {
        char one[CELL_MAX];
        show(json_array_get(v, i), CTL_PLAIN, one, sizeof one);
        int k = snprintf(buf + used, n - used, "%s%s", i ? "," : "", one);
        used += (size_t)k < n - used ? (size_t)k : n - used - 1;
    }
}

static void show(const json_t *v, enum ctl_format format, char *buf, size_t n)
{
    if (json_is_number(v) && format == CTL_MS)
        show_ms(json_number_value(v), buf, n);
    else if (json_is_number(v) && format == CTL_BYTES)
        show_bytes(json_number_value(v), buf, n);
    else if (json_is_integer(v))
        snprintf(buf, n, "%lld", (long long)json_integer_value(v));
    else if (json_is_real(v))
        snprintf(buf, n, "%.3g", json_real_value(v));
    else if (json_is_string(v) && json_string_length(v))
        snprintf(buf, n, "%s", json_string_value(v));
    else if (json_is_boolean(v))
        snprintf(buf, n, "%s", json_is_true(v) ? "yes" : "no");
    else if (json_is_array(v) && json_array_size(v))
        show_array(v, buf, n);
    else
        snprintf(buf, n, "-");
}

const char *ctl_value(const json_t *object, const struct ctl_column *column, char *buf, size_t n)
{
    show(find(object, column->key), column->format & ~CTL_OPTIONAL, buf, n);
    for (char *p = buf; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    return buf;
}

// -1: not shown.
static int width_of(const json_t *list, const struct ctl_column *c)
{
    char cell[CELL_MAX];
    size_t i, width = strlen(c->title);
    bool some = !(c->format & CTL_OPTIONAL);
    json_t *object;
    json_array_foreach(list, i, object)
    {
        size_t n = strlen(ctl_value(object, c, cell, sizeof cell));
        width = n > width ? n : width;
        some = some || find(object, c->key);
    }
    return some ? (int)width : -1;
}

static void row(struct strbuf *to, const struct ctl_column *columns, const int *width,
                const json_t *object)
{
    char cell[CELL_MAX];
    for (int k = 0; columns[k].title; k++) {
        if (width[k] < 0)
            continue;
        const char *text =
            object ? ctl_value(object, &columns[k], cell, sizeof cell) : columns[k].title;
        bool last = !columns[k + 1].title;
        strbuf_printf(to, "%s%-*s", k ? "  " : "", last ? 0 : width[k], text);
    }
    strbuf_puts(to, "\n");
}

void ctl_table_print(struct strbuf *to, const json_t *list, const struct ctl_column *columns)
{
    int width[COLUMNS_MAX];
    size_t i;
    json_t *object;
    for (int k = 0; columns[k].title && k < COLUMNS_MAX; k++)
        width[k] = width_of(list, &columns[k]);
    row(to, columns, width, NULL);
    json_array_foreach(list, i, object) row(to, columns, width, object);
}
