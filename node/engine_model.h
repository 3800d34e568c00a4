// The model body of node/engine.h: this worker's shard of a model, its links to the other ranks of
// the replica, and a thread of its own that computes. The lead sends each plan to every rank,
// activations go from stage to stage, the last stage samples and sends the tokens back to the lead.
#pragma once

#include "kernels/kern.h"
#include "node/engine.h"
#include "node/model/source.h"
#include "rdma/xport.h"

enum weights_from { WEIGHTS_AUTO, WEIGHTS_DISK, WEIGHTS_PEER }; // see node/worker_weights.c

struct engine_model_config {
    enum kern_backend backend;
    int threads;            // CPU: 0 = all that this process may use
    int device;             // CUDA: which of the GPUs that this process sees
    const char *bind;       // address to listen on for ranks of other hosts; copied
    const char *rdma;       // node/rails.h; NULL = "auto"; read by create only
    struct xport_wire wire; // of its rails
    uint32_t max_seqs;      // slots; the four below must be equal on all ranks of a replica
    uint32_t max_rows;      // rows of one step
    uint32_t context;       // longest sequence, tokens; 0 = what the model allows
    uint64_t
        kv_tokens; // tokens that the KV cache holds; 0 = 4 contexts, at most 2 GiB over all stages
    uint32_t block_tokens;
    uint32_t spin_us;               // how long a waiting worker polls before it sleeps
    bool random_weights;            // made from the folder's config.json; no weights are read
    enum model_precision precision; // of random weights
    enum weights_from weights;
    const char *models_dir; // where this host has the models' folders; copied. NULL: as told
    uint32_t serve_weights_mib; // MiB/s that nodes which start may read of this one's; 0 = none
    const char *fault_file;         // see node/fault_file.h; borrowed; NULL = none
};

// `wake(arg)` comes from the engine's thread when poll has something. NO_DEVICE, NO_MEMORY...: NULL
// and the cause in *e.
struct engine *engine_model_create(const struct engine_model_config *config,
                                   void (*wake)(void *arg), void *arg, struct errmsg *e);
