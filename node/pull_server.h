// Gives the files of this node's model to nodes that start (pull.h), over every transport that the
// host offers, on threads of its own with a lower priority than the steps of the replica that this
// node is part of, and with a bounded bandwidth.
#pragma once

#include <stdint.h>

#include "base/status.h"
#include "node/pull_files.h"
#include "proto/msg.h"
#include "rdma/xport.h"

struct pull_server;

struct pull_server_config {
    const char *bind;     // as of xport_config; copied
    uint32_t mib_per_s;   // to all targets together, at most; 0 = without a limit
    uint32_t patience_ms; // a target that takes nothing for so long is let go; 0 = 10 s
};

// Never fails: a transport that is not there is not offered.
struct pull_server *pull_server_open(const struct pull_server_config *config);
void pull_server_close(struct pull_server *s); // NULL is fine

// What is served from now on, owned; NULL = nothing. Links that read the old go on with it.
void pull_server_publish(struct pull_server *s, struct pull_files *files);
// "" where it is not served. Borrowed until close.
struct rank_addresses pull_server_addresses(const struct pull_server *s);
// Bytes of files that were sent. Any thread.
uint64_t pull_server_sent(const struct pull_server *s);
