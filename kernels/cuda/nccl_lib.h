// NCCL, loaded at run time: libnccl.so.2 is not needed to build or start. Communicators are
// non-blocking, so that an abort from another thread ends every call.
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { NCCL_ID_BYTES = 128 };

struct nccl; // one communicator

// The library can be loaded. The reason why not is logged once.
bool nccl_present(void);
// A new group's id; false: NCCL could not make one.
bool nccl_id(unsigned char id[NCCL_ID_BYTES]);

struct nccl_args {
    const unsigned char *id; // [NCCL_ID_BYTES], from rank 0
    int size, rank;
    cudaStream_t stream;
};
// Waits for all ranks; LINK_TIMEOUT after 30 s, ABORTED when *stop becomes true.
enum status nccl_create(const struct nccl_args *args, const volatile uint32_t *stop,
                        struct nccl **out, struct errmsg *e) STATUS_MUST_USE;
// In place: this rank's slice is at packed + rank * bytes.
enum status nccl_all_gather(struct nccl *n, void *packed, size_t bytes) STATUS_MUST_USE;
enum status nccl_all_reduce(struct nccl *n, float *buf, size_t count) STATUS_MUST_USE;
// From any thread, does not wait: a thread of the communicator ends what is enqueued.
void nccl_abort(struct nccl *n);
bool nccl_failed(struct nccl *n);  // an asynchronous error was reported
void nccl_destroy(struct nccl *n); // NULL is fine
