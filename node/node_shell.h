// The libuv shell of a node: turns sockets, timers and the engine's wake-ups into events of the
// control core (node/node.h) and its actions into writes and engine calls. Heartbeats leave from
// a thread and a connection of their own, so that a busy or stuck loop cannot be mistaken for a
// dead process, nor a stuck process for a busy one.
#pragma once

#include <stdint.h>

#include "base/status.h"
#include "node/engine.h"
#include "node/node.h"

// Makes the engine of this node. `wake(arg)` may be called from any thread, any number of times:
// the shell then polls the engine.
struct node_engine_factory {
    struct engine *(*create)(void *user, void (*wake)(void *arg), void *arg, struct errmsg *e);
    void *user;
};

struct node_shell_config {
    const char *name;        // unique in the cluster
    const char *host;        // label: ranks with equal labels may use shared memory
    const char *backend;     // "cpu", "cuda", "mock"; told to the coordinator
    const char *coordinator; // "host:port" of its control listener; of several, with commas
                             // between them: one that does not lead refuses, the next is tried
    const char *cluster_key; // file (proto/secure.h); NULL: the coordinator asks for none
    struct node_engine_factory engine;
    struct node_config core;
};

// Runs until SIGINT or SIGTERM, then stops the engine and returns STATUS_OK. A coordinator that
// cannot be reached is tried again for ever (50 ms to 1 s apart). Other statuses: could not start;
// *e says why.
enum status node_shell_run(const struct node_shell_config *config, struct errmsg *e);
