// JSON files of a model folder: read whole, with a size limit; errors name file, line, cause.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum { JSON_FILE_MAX = 256 << 20 }; // bytes; indexes of the largest published models have 10 MB

// The whole file as a JSON object: *out is owned (json_decref). Duplicate keys, bad UTF-8, trailing
// text and anything but an object are errors. NOT_FOUND when the file does not exist.
STATUS_MUST_USE enum status json_file_load(const char *path, json_t **out, struct errmsg *e);

// "DIR/NAME" into a static-size buffer; BAD_MODEL when it would not fit.
enum { JSON_FILE_PATH = 4096 };
STATUS_MUST_USE enum status json_file_path(char out[JSON_FILE_PATH], const char *dir,
                                           const char *name, struct errmsg *e);
