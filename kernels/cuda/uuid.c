// The name by which NVML and CUDA agree on a device, whatever CUDA_VISIBLE_DEVICES says.
#include <stdio.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda_load.h"

kern_cuda_uuid_fn hadal_cuda_uuid;
__attribute__((visibility("default"))) bool hadal_cuda_uuid(struct kern *k,
                                                            char out[KERN_CUDA_UUID_BYTES])
{
    struct cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, cuda_of(k)->device) != cudaSuccess)
        return false;
    const unsigned char *u = (const unsigned char *)p.uuid.bytes;
    snprintf(out, KERN_CUDA_UUID_BYTES,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
    return true;
}
