// The few-row kernels for FP8 weights.
#include "kernels/cuda/mm_few_launch.cuh"

cudaError_t few_launch_fp8(cudaStream_t s, const few *m, const few_geometry *g)
{
    return few_launch<MM_FP8>(s, *m, *g);
}
