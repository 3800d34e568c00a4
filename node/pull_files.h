// What a source has: the files of one model folder, held open, and their listing. Shared by the
// threads that serve them.
//
// Files and not what lies in the device's memory: a device holds one rank's rows, in the form that
// its kern computes with (stacked, padded, perhaps expanded), which other layouts and backends
// cannot be made of without loss. From files every rank takes just the rows that it would read from
// its own disk, by the same code. A running node's files are mostly in its page cache, and several
// nodes' disks together are faster than one.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct pull_files;

// The safetensors files and the small JSON files of a folder. BAD_MODEL: its fingerprint is
// another.
STATUS_MUST_USE enum status pull_files_open(const char *dir, uint64_t fingerprint,
                                            struct pull_files **out, struct errmsg *e);
struct pull_files *pull_files_ref(struct pull_files *f);
void pull_files_unref(struct pull_files *f); // NULL is fine

uint64_t pull_files_fingerprint(const struct pull_files *f);
const uint8_t *pull_files_listing(const struct pull_files *f, size_t *bytes_out);
// Any thread. BAD_REQUEST: no such bytes. BAD_FILE: written to since it was opened.
STATUS_MUST_USE enum status pull_files_read(const struct pull_files *f, uint32_t file, uint64_t at,
                                            uint32_t bytes, void *out);
