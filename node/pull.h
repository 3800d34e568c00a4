// Reads a model folder from nodes that have it (pull_server.h), from several at once, with the
// node's own folder as one more source and the last resort.
//
//  * Chunks of at most PULL_CHUNK bytes wait in one queue, and each source takes the next ones
//    whenever it has room: a slow source gets few. A chunk that takes much longer than others is
//    asked of a second source as well, and the first good answer counts.
//  * Each answer carries XXH3 of its bytes. A bad one, or one that refuses, is asked elsewhere,
//  then
//    read from disk, and asked of the same source again only if that is not there; a source is
//    given up after a few of them, when its link dies, or when it answers nothing for `hang_ms`.
//    What it had been asked goes back into the queue.
//  * That the sources have the right model is for the caller to check: model_fingerprint over
//    pull_folder, before a weight is used. Sources must have equal listings; one that has another
//    is not used. A source that sends a wrong byte with its right checksum is not found out here
//    but, like any node that computes wrongly, by the golden probe.
#pragma once

#include "base/status.h"
#include "node/model/safetensors.h"
#include "proto/msg.h"

struct pull;

struct pull_args {
    const struct weight_source *sources; // sources_n of them, copied
    uint32_t sources_n;
    uint64_t fingerprint;
    const char *bind;               // as of xport_config
    const struct safetensors *disk; // the same model on this host, borrowed; NULL = not there
    bool disk_helps;                // read from it also while sources are good
    // From any thread: give up. May be NULL.
    bool (*cancelled)(void *arg);
    void *arg;
    uint32_t hang_ms; // 0 = 10 s
};

// Connects; returns when a source has given its listing. LINK_DOWN: none has, *e says why of each.
STATUS_MUST_USE enum status pull_open(const struct pull_args *args, struct pull **out,
                                      struct errmsg *e);
// No read may be under way. NULL is fine.
void pull_close(struct pull *p);
// More sources while reads are under way; copied. Those that are pulled from already are left out.
void pull_add(struct pull *p, const struct weight_source *sources, uint32_t n);

// Borrowed until pull_close. Its read may be called from any thread. CANCELLED, or LINK_DOWN: no
// source is left and the disk does not have it.
const struct st_folder *pull_folder(const struct pull *p);
// A whole small file, as a path to open on this host; valid until pull_close.
STATUS_MUST_USE enum status pull_file(struct pull *p, const char *name, char path_out[64],
                                      struct errmsg *e);

struct pull_stats {
    uint64_t peer_bytes, disk_bytes; // of what was read; duplicates are not counted
    uint64_t again;                  // chunks that were asked more than once
    uint64_t bad;                    // answers with a wrong checksum, size or place
    uint32_t lost;                   // sources given up
};
struct pull_stats pull_stats_get(struct pull *p);
// "node 3 (shm) 812 MiB, node 4 (tcp) 790 MiB, disk 12 MiB" into buf.
void pull_describe(struct pull *p, char *buf, size_t n);
