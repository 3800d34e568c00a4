// The coordinator's configuration: a YAML file (configs/coordinator.yaml tells every key), then the
// options of the command line over it.
#pragma once

#include <stdint.h>

#include "base/status.h"
#include "coordinator/copier.h"
#include "coordinator/coord.h"
#include "coordinator/identity.h"

struct config_datacenter {
    char *name, *rpc; // owned; rpc: "host:port[,host:port...]" of its coordinators
    uint32_t distance_ms;
};

// Another name of a model.
struct model_alias {
    const char *name, *model;
};

struct coordinator_config {
    char *http;       // owned; "host:port" to listen on; port 0 = any
    char *rpc;        // owned; the same, for nodes and clients of the RPC
    char *model;      // owned; model folder, for the tokenizer here and for the nodes to load
    char *model_name; // owned; what clients call it; NULL = the last part of `model`
    struct coord_config core;     // its model_dir borrows `model`, its tenants those here
    struct coord_tenant *tenants; // owned, and their names
    uint32_t tenants_n;
    struct coord_breaker *breakers; // owned
    struct coord_pool *pools;       // owned, and their strings; none: one of what core says
    uint32_t pools_n;
    struct model_alias *aliases; // owned
    uint32_t aliases_n;
    struct identity identity;
    char *probe_prompt;         // owned; text of the golden probe
    uint32_t probe_interval_ms; // 0 = no probes
    // Several coordinators (copy_shell.h).
    char *store;           // owned; store.h; NULL = this is the only one
    char *name, *cluster;  // owned; of this coordinator; of what is served together
    char *state;           // owned; file of what operators changed, without a store; NULL = none
    char *cluster_key;     // owned; file (proto/secure.h); NULL = nodes and coordinators show nothing
    char *client_key;      // owned; the same for clients of the RPC
    bool trust_network;    // no cluster_key, though other hosts reach the rpc port
    char *advertise;       // owned; host by which others reach this one; NULL = as in http and rpc
    enum copy_mode copies; // to a standby
    char *datacenter;      // owned; of this coordinator
    struct config_datacenter *datacenters; // owned; all, or the others (far.h)
    uint32_t datacenters_n;
    uint32_t lease_ms;     // of the leadership, in etcd
    char **hook;              // owned: a program and its first arguments (hook_shell.h); NULL = none
    unsigned hook_n;
    uint32_t hook_timeout_ms;
    uint32_t http_connections, rpc_connections; // open at once; more are closed at once
    uint32_t idle_ms;        // an HTTP connection without a request for longer is closed
    uint32_t write_stall_ms; // a client that takes nothing for longer is closed
    uint32_t keepalive_ms;   // silence after which peers are asked whether they are alive
    uint32_t stop_ms;        // at the end, how long running requests may go on
    int ready_fd;            // "ready ...\n" is written here once a replica serves; -1 = nowhere
};

void coordinator_config_default(struct coordinator_config *c);
// Reads `path` over the defaults. *c is untouched on failure; the caller finishes it otherwise.
STATUS_MUST_USE enum status coordinator_config_load(const char *path, struct coordinator_config *c,
                                                    struct errmsg *err);
void coordinator_config_finish(struct coordinator_config *c);
// After all changes: ranges, and what belongs together.
STATUS_MUST_USE enum status coordinator_config_check(struct coordinator_config *c,
                                                     struct errmsg *err);

// Serves until SIGINT or SIGTERM. Prints `http http://HOST:PORT` and `rpc HOST:PORT` once it
// listens, and `ready http://HOST:PORT` once a replica serves, each on its own line on stdout.
// Failures at the start are in *err; the status says which kind. (main_shell.c)
STATUS_MUST_USE enum status coordinator_run(const struct coordinator_config *c, struct errmsg *err);
