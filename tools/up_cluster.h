// A cluster of processes on this host, from start to stop; the work of `hadal up`.
#pragma once

#include <stdint.h>

enum { UP_NODES_MAX = 512, UP_COORDINATORS_MAX = 9 };

struct up_options {
    const char *model, *backend, *transport, *engine;
    const char *elastic;        // "MIN..MAX"; NULL = a fixed number
    const char *config;         // of the coordinator; NULL = none
    const char *log_dir;        // NULL = the processes write to our stderr
    int64_t devices;            // GPUs; node i computes on device (i - 1) % devices. 0: not said
    const char *random_weights; // NULL, or their precision
    int64_t replicas, stages, tensor;
    int64_t prefill, decode; // replicas of these roles, among all
    int64_t replicas_max; // nodes come and go within `replicas` and this; equal: they do not
    int64_t coordinators;
    int64_t http, rpc;                              // ports of the first; 0 = any free one. The others get any
    int64_t threads;                                // of each node
    int64_t max_seqs, max_rows, context, kv_tokens; // of each node; 0 = its default
    int64_t ready_timeout_s;
    int64_t mock_step_us; // 0 = the mock's own
    int64_t vocab;        // of the model; the mock engine must not make other tokens
};

// Serves until SIGINT, SIGTERM or SIGHUP, then stops all; prints `ready URL` on stdout once it
// serves, and, where there are several coordinators, `coordinator NAME URL RPC` for each. Returns the
// exit code; causes of failure were printed. Fills in the ports.
int up_cluster_run(struct up_options *o);
