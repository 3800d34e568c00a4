// The text of coord_config.state in a file: read at the start, replaced as a whole when it changes.
// Blocks for the time of a small write.
#pragma once

#include "base/status.h"

// NULL: there is none (*err is empty then), or it cannot be read, or is larger than
// COORD_STATE_BYTES. The caller frees it.
char *state_file_read(const char *path, struct errmsg *err);
STATUS_MUST_USE enum status state_file_write(const char *path, const char *text,
                                             struct errmsg *err);
