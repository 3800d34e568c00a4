// configs/node.yaml: what a node process is told by its operator. Defaults are in node_config.c and
// in the commented file.
#pragma once

#include <stdint.h>

#include "base/status.h"

// Strings are owned by the config (node_file_finish) unless the caller replaced them.
struct node_file {
    char *name;           // NULL = host name and pid
    char *coordinator;    // "127.0.0.1:7070"
    char *host;           // label; NULL = the host's name
    char *backend;        // "cpu", "cuda"
    char *engine;         // "model", "mock"
    char *random_weights; // NULL = those of the model folder; "published", "bf16", "fp8", "int8"
    char *cluster_key;    // file that this cluster's processes know; NULL = none is asked for
    char *rdma;           // "auto", "off" or addresses (node/rails.h); NULL = auto
    char *weights;        // "auto", "disk", "peer": where they are read
    char *models_dir;     // where this host has the models' folders; NULL = as the coordinator says
    int64_t rdma_traffic_class, rdma_ack_timeout, rdma_retries; // struct xport_wire
    char *bind;                // address that other ranks reach us at over TCP; "127.0.0.1"
    int64_t device;            // which GPU; for backend cuda
    int64_t threads;           // 0 = all cores this process may use
    int64_t max_seqs;          // sequences computed at once
    int64_t max_rows;          // token rows of one step
    int64_t context;           // longest sequence served; 0 = what the model allows
    int64_t kv_tokens;         // tokens that the KV cache holds; 0 = 4 full contexts, at most 2 GiB
    int64_t block_tokens;      // tokens of a KV block
    int64_t serve_weights_mib; // MiB/s that starting nodes may read of this one's model; 0 = none
    int64_t prefill_chunk;     // prompt rows of a step while others decode
    int64_t mock_step_us, mock_row_us; // time of the mock's steps
    char *
        fault_file; // owned; for tests, only from the command line (node/fault_file.h); NULL = none
    int64_t mock_vocab; // token ids that the mock knows: those of the model's tokenizer
};

void node_file_default(struct node_file *f);
// Reads over the defaults. BAD_CONFIG names file, line, key and value.
STATUS_MUST_USE enum status node_file_load(const char *path, struct node_file *f, struct errmsg *e);
// Ranges of all values, wherever they came from. BAD_CONFIG names key and value.
STATUS_MUST_USE enum status node_file_check(const struct node_file *f, struct errmsg *e);
void node_file_finish(struct node_file *f);
