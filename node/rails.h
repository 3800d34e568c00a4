// The rails of a node: the RDMA ports that its ranks may link up over, each with an endpoint of its
// own. Rail i of one host reaches rail i of another, as on fabrics where a switch joins ports of
// the same number; a replica uses one rail, replicas are spread over them, and one that keeps
// failing rests alone (node/transports.h).
#pragma once

#include "base/status.h"
#include "node/transports.h"
#include "rdma/sysfs.h"

struct rails {
    uint32_t n;                     // 0: no RDMA
    char hosts[RDMA_RAILS_MAX][48]; // numeric addresses, of one RDMA device each; "" = whatever the
                                    // verbs body finds
};

struct rails_want {
    const char *rdma;  // "auto", "off", or addresses with commas between them
    const char *bind;  // where other ranks reach this node
    const char *sysfs; // "/sys"
    int numa_node;     // near which they should be; -1 = anywhere
};

// auto: the port that has `bind` as its address; without such a port all that are active and have a
// routable address, those of `numa_node` first, then by name. BAD_CONFIG names key and value.
STATUS_MUST_USE enum status rails_find(const struct rails_want *want, struct rails *out,
                                       struct errmsg *e);
int rails_numa_node(void); // of the core that this thread runs on; -1 = not known
