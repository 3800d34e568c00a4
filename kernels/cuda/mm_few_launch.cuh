// From a geometry to a kernel: seen by mm_few_<type>.cu only, one file per type of weights, so that
// they compile side by side.
#pragma once

#include "kernels/cuda/mm_few_kernel.cuh"
#include "kernels/cuda/mm_few.h"

enum { FEW_DEVICES = 64 }; // whose kernels' attributes are remembered

// Kernels take more shared memory than the default allows; said once per device.
template <mm_kind KIND, int R, few_op OP, few_form FORM>
static cudaError_t few_start(cudaStream_t s, const few &m, const few_geometry &g)
{
    static bool allowed[FEW_DEVICES];
    auto kernel = few_kernel<KIND, R, OP, FORM>;
    if (g.device >= FEW_DEVICES || !allowed[g.device]) {
        cudaError_t e =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, FEW_SMEM_MAX);
        if (e != cudaSuccess)
            return e;
        if (g.device < FEW_DEVICES)
            allowed[g.device] = true;
    }
    cudaLaunchAttribute pdl = {};
    pdl.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    pdl.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3((unsigned)g.blocks);
    c.blockDim = dim3((unsigned)few_threads(FORM));
    c.dynamicSmemBytes = (size_t)g.smem;
    c.stream = s;
    c.attrs = &pdl;
    c.numAttrs = 1;
    return cudaLaunchKernelEx(&c, kernel, m);
}

template <mm_kind KIND, int R, few_op OP>
static cudaError_t few_either(cudaStream_t s, const few &m, const few_geometry &g)
{
    return m.x_rows <= FEW_X_TILE ? few_start<KIND, R, OP, FEW_TILE>(s, m, g)
                                  : few_start<KIND, R, OP, FEW_ROWS>(s, m, g);
}

template <mm_kind KIND>
static cudaError_t few_launch(cudaStream_t s, const few &m, const few_geometry &g)
{
    switch (g.op) {
    case FEW_PLAIN:
        switch (g.r) {
        case 8:
            return few_either<KIND, 8, FEW_PLAIN>(s, m, g);
        case 16:
            return few_either<KIND, 16, FEW_PLAIN>(s, m, g);
        case 32:
            return few_either<KIND, 32, FEW_PLAIN>(s, m, g);
        case 64:
            return few_either<KIND, 64, FEW_PLAIN>(s, m, g);
        }
        break;
    case FEW_GATED:
        switch (g.r) {
        case 16:
            return few_either<KIND, 16, FEW_GATED>(s, m, g);
        case 32:
            return few_either<KIND, 32, FEW_GATED>(s, m, g);
        case 64:
            return few_either<KIND, 64, FEW_GATED>(s, m, g);
        }
        break;
    case FEW_DOWN:
        switch (g.r) {
        case 8:
            return few_either<KIND, 8, FEW_DOWN>(s, m, g);
        case 16:
            return few_either<KIND, 16, FEW_DOWN>(s, m, g);
        case 32:
            return few_either<KIND, 32, FEW_DOWN>(s, m, g);
        }
        break;
    }
    return cudaErrorInvalidValue;
}
