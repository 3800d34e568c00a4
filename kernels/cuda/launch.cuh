// Launching with programmatic dependent launch: a kernel may start while the one before it in the
// stream still runs, and waits itself. The rule that all kernels of the module keep: before
// pdl_wait() only weights and other constants are read; everything else after it;
// pdl_launch_dependents() not before the own pdl_wait(). So a kernel that starts knows that all but
// its direct predecessor has finished.
#pragma once

#include "kernels/cuda/cuda.h"

static __device__ __forceinline__ void pdl_wait()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
static __device__ __forceinline__ void pdl_launch_dependents()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// What most small kernels do first.
static __device__ __forceinline__ void pdl_take_over()
{
    pdl_wait();
    pdl_launch_dependents();
}

template <class... P, class... A>
static void cuda_launch(struct cuda *c, const char *name, void (*kernel)(P...), dim3 grid,
                        unsigned threads, size_t smem, A... args)
{
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = smem;
    config.stream = c->stream;
    config.attrs = &attribute;
    config.numAttrs = c->pdl ? 1 : 0;
    cuda_check(c, cudaLaunchKernelEx(&config, kernel, (P)args...), name);
}
