// Launching with programmatic stream serialization (mm.h).
#pragma once

#include <cuda_runtime_api.h>

struct mm_grid {
    dim3 blocks;
    int threads, smem;
};
template <typename... P, typename... A>
static cudaError_t mm_launch(cudaStream_t s, const mm_grid &g, void (*kernel)(P...),
                             const A &...args)
{
    cudaLaunchAttribute pdl = {};
    pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    pdl.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = g.blocks;
    c.blockDim = dim3((unsigned)g.threads);
    c.dynamicSmemBytes = (size_t)g.smem;
    c.stream = s;
    c.attrs = &pdl;
    c.numAttrs = 1;
    return cudaLaunchKernelEx(&c, kernel, args...);
}
