// Device memory that another rank may write into: by CUDA IPC between processes of one host, as it
// is between threads of one process.
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum { SHARE_BOOT_ID_BYTES = 40 };

// What the other needs to know. Plain bytes; from outside, so share_map checks what it can.
struct share_note {
    uint64_t bytes;
    uint64_t process; // random, of the owner's process: equal = the same address space
    uint64_t address; // usable there
    char boot_id[SHARE_BOOT_ID_BYTES]; // of the host: handles mean nothing elsewhere
    cudaUUID_t device;
    cudaIpcMemHandle_t handle;
};

// Zeroed memory of the current device, of its own: no other allocation lies in what a handle opens.
cudaError_t share_alloc(size_t bytes, void **out);
// p: from share_alloc. Memory that cannot be exported can still be shared within the process.
enum status share_export(void *p, size_t bytes, int device, struct share_note *out,
                         struct errmsg *e) STATUS_MUST_USE;

struct share_mapping {
    void *p;
    bool opened; // to be closed
};
// For kernels and copies of `device`, which is current. cudaErrorPeerAccessUnsupported: another
// host, or no way between the GPUs.
cudaError_t share_map(const struct share_note *note, int device, struct share_mapping *out);
bool share_same_device(const struct share_note *note, int device);
cudaError_t share_unmap(struct share_mapping *m); // zeroed is fine
