// The store seam: who leads. One coordinator of a cluster at a time, by a lease that ends with the
// process that holds it; the others know the leader's addresses and wait. Nothing per token or per
// request is ever in it.
//
//   file:PATH            all coordinators on one host: a lock that the kernel gives up with the
//                        process. A leader that is stopped (SIGSTOP) keeps it.
//   etcd:http://H:P[,..] a key with a lease of a few seconds, through etcd's JSON gateway. A leader
//                        that cannot reach etcd goes on until its lease is over, which it counts by
//                        its own clock from before the last call that renewed it; then it is told
//                        (`lapsed`) and has to judge whether another one may lead by now.
//
// A body may block: it runs on a thread of the store's own. `changed` comes from that thread.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

enum { STORE_ADDRESS = 300, STORE_MEMBERS = 16 };

struct store_member {
    char name[LIMIT_NAME];
    char http[STORE_ADDRESS]; // "http://host:port"
    char rpc[STORE_ADDRESS];  // "host:port"
};

struct store_view {
    bool leads;
    bool reachable;
    struct store_member leader; // name "" = nobody, or not known
    char error[200];            // why it is not reachable
    bool lapsed; // it leads as far as it knows, but its lease is over and cannot be renewed
    struct store_member members[STORE_MEMBERS]; // coordinators with a lease, when last asked; etcd
    uint32_t members_n;
};

struct store_args {
    const char *url;
    const char *cluster; // key of the lease
    struct store_member me;
    uint32_t lease_ms;
    void (*changed)(void *arg); // leads, lapsed or the leader changed
    void *arg;
};

struct store;

// BAD_CONFIG: the url; *err says why. The first answer comes by `changed`.
STATUS_MUST_USE enum status store_open(const struct store_args *args, struct store **out,
                                       struct errmsg *err);
void store_look(struct store *s, struct store_view *out); // any thread
// Gives the leadership up and does not try to get it back for a lease's time; any thread.
void store_yield(struct store *s);
// What the leader keeps for the next one (coord_config.state). store_save takes a copy; it is
// written by the store's thread, and tried again until it is there. store_saved: what was there when
// this one became the leader; the caller frees it; NULL = nothing.
void store_save(struct store *s, const char *text);
char *store_saved(struct store *s);
// Gives the leadership up. NULL is fine.
void store_close(struct store *s);
