// The JSON files of a model folder that text/ reads.
#pragma once

#include <jansson.h>

#include "base/status.h"

// Reads dir/name, an object of at most 256 MiB. `flags` is 0, or JSON_DECODE_INT_AS_REAL where no
// integer matters: published tokenizer_config.json files say model_max_length 10^30. NOT_FOUND when
// there is no such file, BAD_FILE with file, line and cause otherwise. *out is the caller's, to be
// json_decref'ed.
STATUS_MUST_USE enum status model_json_load(const char *dir, const char *name, size_t flags,
                                            json_t **out, struct errmsg *err);
// The text of a token entry of tokenizer_config.json: a string, or an object with `content`; NULL
// when it is neither. Borrowed from the entry.
const char *model_json_token(const json_t *entry);
