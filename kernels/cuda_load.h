// Finding and opening the CUDA module. The program itself has no CUDA dependency; the module is
// loaded once per process, on the first kern_open(KERN_CUDA), and stays.
#pragma once

#include "kernels/kern.h"

// The module's one entry.
#define KERN_CUDA_ENTRY "hadal_cuda_open"
// Changes whenever kern_impl.h's tables or structs do; the module refuses a program with another.
enum { KERN_CUDA_ABI = 5 };

typedef enum status kern_cuda_open_fn(int abi, const struct kern_config *config,
                                      struct kern **kern_out, struct errmsg *err);

// What a device reaches, measured now by other code than ours: figures are held against it.
struct kern_cuda_limits {
    double copy_gb_s; // device to device, bytes read + written
    double host_gb_s; // pinned host memory to the device
    double tflop_s;   // dense bf16 products with float32 sums, cuBLASLt, 8192 cubed; 0: no cuBLASLt
    double fp8_tflop_s, int8_top_s; // the same of e4m3 and int8; 0: it has none here
};
typedef enum status kern_cuda_limits_fn(struct kern *k, struct kern_cuda_limits *out,
                                        struct errmsg *err);
#define KERN_CUDA_LIMITS "hadal_cuda_limits"
// k: opened with KERN_CUDA. Takes a second and a gigabyte of device memory.
enum status kern_cuda_measure(struct kern *k, struct kern_cuda_limits *out,
                              struct errmsg *err) STATUS_MUST_USE;

// What CUDA and NCCL are to find in the environment. At a program's start, while it has one thread;
// the module sets what is missing, which is too late to be safe where others read the environment.
void kern_cuda_environment(void);

// NVML's name of the device, "GPU-...".
enum { KERN_CUDA_UUID_BYTES = 48 };
typedef bool kern_cuda_uuid_fn(struct kern *k, char out[KERN_CUDA_UUID_BYTES]);
#define KERN_CUDA_UUID "hadal_cuda_uuid"
// k: opened with KERN_CUDA. false: the device does not say.
bool kern_cuda_uuid(struct kern *k, char out[KERN_CUDA_UUID_BYTES]);

// NO_DEVICE, with the reason: no module, a module of another build, no driver or no such device.
enum status kern_cuda_open(const struct kern_config *config, struct kern **kern_out,
                           struct errmsg *err) STATUS_MUST_USE;
