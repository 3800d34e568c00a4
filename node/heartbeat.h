// The heartbeat thread of a node: a blocking connection of its own to the coordinator over which a
// HEARTBEAT goes out every interval, whatever the node's loop and engine are doing. It reconnects
// by itself and shares only atomics with the rest of the process.
#pragma once

#include <stdint.h>

#include "base/status.h"
#include "node/engine.h"
#include "node/gpu_watch.h"
#include "node/node.h"

struct heartbeat;

struct heartbeat_args {
    struct msg_hello hello;         // strings copied; sent with heartbeat_channel set
    const struct node_pulse *pulse; // outlives the thread
    struct engine *engine;          // outlives the thread; only ops->progress is called
    struct gpu_watch *gpu;          // outlives the thread; NULL = none
    struct secure_domain *domain;   // outlives the thread; NULL = in the clear
};

enum status heartbeat_start(const struct heartbeat_args *args, struct heartbeat **heartbeat_out,
                            struct errmsg *e);
// From any thread. The WELCOME of the coordinator at this address (copied): beat this often from
// now on. Before it, and after heartbeat_pause, nothing is sent: the coordinator does not know this
// process.
void heartbeat_go(struct heartbeat *h, const char *host, const char *port, uint32_t interval_ms);
void heartbeat_pause(struct heartbeat *h);
void heartbeat_stop(struct heartbeat *h); // joins the thread; NULL is fine
