// A whole replica in this process: every rank (stage, tensor) is a thread with its own shard, kern
// and comm. For tools and tests that want logits and no cluster. Each sequence has its own KV
// blocks, so there is nothing to allocate: slot i holds positions 0 .. max_context - 1.
#pragma once

#include "node/model/forward.h"

struct local_replica;

struct local_replica_args {
    struct model_source source;
    int stages, tensors;
    enum kern_backend backend;
    int threads;     // that compute, of all ranks of a stage together; 0 = all cores
    int max_context; // 0 = the model's
    int max_seqs, max_rows, max_logits;
};

// "cpu", "cpu-ref", "cuda"; UNSUPPORTED for other words.
STATUS_MUST_USE enum status local_replica_backend(const char *word, enum kern_backend *out,
                                                  struct errmsg *e);

STATUS_MUST_USE enum status local_replica_open(const struct local_replica_args *args,
                                               struct local_replica **out, struct errmsg *e);
void local_replica_close(struct local_replica *r); // NULL is fine

const struct model_config *local_replica_config(const struct local_replica *r);
int local_replica_context(const struct local_replica *r); // positions of a slot
uint64_t local_replica_fingerprint(const struct local_replica *r);
const char *local_replica_describe(const struct local_replica *r); // the kern's words

// As struct forward_batch; seq are slots.
struct local_batch {
    size_t rows;
    const int32_t *tokens, *seq, *pos; // [rows]
    const int32_t *logit_rows;         // [logits_n], rising
    size_t logits_n;
};
// Through all stages. The logits can be fetched until the next run.
STATUS_MUST_USE enum status local_replica_run(struct local_replica *r, const struct local_batch *b,
                                              struct errmsg *e);
// Of logit_rows[i]; out [vocab].
STATUS_MUST_USE enum status local_replica_logits(struct local_replica *r, size_t i, float *out);
