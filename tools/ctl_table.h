// Tables for people from lists of JSON objects.
#pragma once

#include <jansson.h>
#include <stdio.h>

#include "base/strbuf.h"

enum ctl_format {
    CTL_PLAIN,         // strings and numbers as they are; arrays joined with commas
    CTL_MS,            // milliseconds -> "1.2 s"
    CTL_BYTES,         // -> "34.1 MiB"
    CTL_OPTIONAL = 16, // added to one of the above: left out of a table where no row has it
};

struct ctl_column {
    const char *title;
    const char *key; // "a.b" looks into an object; what is not there or null shows as "-"
    enum ctl_format format;
};

// `columns` ends with a NULL title. Columns are as wide as what is in them.
void ctl_table_print(struct strbuf *to, const json_t *list, const struct ctl_column *columns);
// One value as a table would show it, into buf.
const char *ctl_value(const json_t *object, const struct ctl_column *column, char *buf, size_t n);
