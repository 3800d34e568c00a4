// Reads a YAML configuration file into a struct by a libcyaml schema. Unknown keys, wrong types and
// values out of range are errors that name file, line, key and value; an empty file gives the
// schema's defaults. Callers use libcyaml's schema macros for the fields.
#pragma once

#include <cyaml/cyaml.h>

#include "base/status.h"

// The largest file accepted, bytes.
enum { CONFIG_FILE_BYTES = 1 << 20 };

// *out_data is a struct of `schema` (a CYAML_MAPPING pointer), owned by the caller: config_free.
// BAD_CONFIG with everything the parser said in *e; NOT_FOUND, IO: the file cannot be read.
STATUS_MUST_USE enum status config_load(const char *path, const cyaml_schema_value_t *schema,
                                        void **out_data, struct errmsg *e);
void config_free(const cyaml_schema_value_t *schema, void *data); // NULL is fine
