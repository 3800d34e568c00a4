// The few-row kernels for BF16 weights.
#include "kernels/cuda/mm_few_launch.cuh"

cudaError_t few_launch_bf16(cudaStream_t s, const few *m, const few_geometry *g)
{
    return few_launch<MM_BF16>(s, *m, *g);
}
