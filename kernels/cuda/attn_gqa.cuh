// What the kernels of grouped-query attention share: their arguments, the plan of tiles, and the
// arithmetic that decode and prefill must do alike (the definition is in attn_gqa.h).
#pragma once

#include "kernels/cuda/attn_gqa.h"
#include "kernels/cuda/mma.cuh"

#include <cuda_runtime.h>

namespace gqa
{

enum { UNIT = CUDA_GQA_UNIT, FEW_ROWS = 16, WG_ROWS = 64, STATS = 8 };

// Neighbouring rows of one sequence that are computed together.
struct tile {
    int32_t row, tokens;
};

// A tile that one block of attn_gqa_few began and others finished.
struct cut_tile {
    int32_t row, rows;    // first row; (token, head) rows of the tile, 0 = there is none
    int32_t heads, head0; // query heads of a token in it, and the first of them
    int32_t next, units;  // place of the first unit that it left in the line, and how many they are
    int32_t per_cta;      // units of a block
};

// Made on the device from seq and pos: which rows are computed by which kernel.
struct plan {
    int32_t few_n, many_n;
    // then, each [n] (few_units [n + 1]): few tiles, sums of units before each, many tiles by
    // falling number of keys
};

struct args {
    const __nv_bfloat16 *q, *pool;
    __nv_bfloat16 *out;
    size_t q_stride, out_stride;
    const int32_t *seq, *pos, *tables;
    int n, table_stride, block_tokens, width; // width: elements of a token's row in the pool
    int heads, kv_heads, group;               // group: query heads of a kv head
    int few_heads;                            // of a few tile; group cut into few_groups
    int few_groups, few_tokens;               // tokens of a few tile: few_tokens * few_heads <= 16
    int many_tokens;                          // of one consumer group: many_tokens * group <= 64
    float c;                                  // scale * log2(e)
    // Few: a CTA's slots for what it could not finish: one folded start of a tile, then units.
    float *partial;
    cut_tile *cuts;       // [blocks]
    int slots, slot_rows; // slots per CTA; rows (token, head) per slot
    // NULL: every row is a few tile of its own.
    const plan *planned;
    const tile *few_tiles, *many_tiles;
    const int32_t *few_units;
};

static __device__ __forceinline__ float exp2_approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Of a row's scores in one unit: what is subtracted. A unit without a key for this row has t = -inf
// and must not make NaN.
static __device__ __forceinline__ float finite_top(float t)
{
    return t == -INFINITY ? 0 : t;
}

// State of a row after some units, and how the next is folded in.
struct fold {
    float old, now; // factors of the state and of the unit; one of them is 1
    __device__ __forceinline__ fold(float *top, float t)
    {
        float top_new = finite_top(fmaxf(*top, t));
        old = exp2_approx(*top - top_new);
        now = exp2_approx(t - top_new);
        *top = fmaxf(*top, t);
    }
    __device__ __forceinline__ float operator()(float state, float unit) const
    {
        return fmaf(unit, now, __fmul_rn(state, old));
    }
};

// The sum of the four lanes that share a row.
static __device__ __forceinline__ float quad_sum(float l)
{
    l += __shfl_xor_sync(~0u, l, 1);
    return l + __shfl_xor_sync(~0u, l, 2);
}
static __device__ __forceinline__ float quad_max(float m)
{
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    return fmaxf(m, __shfl_xor_sync(~0u, m, 2));
}

// -0 becomes 0: a state that was multiplied by 1 and added 0 must not differ from one that was not.
static __device__ __forceinline__ float finished(float o, float l_inverse)
{
    return __fadd_rn(__fmul_rn(o, l_inverse), 0.0f);
}

// ---- programmatic launch

// The rule of the module: not before the own wait. So a kernel that starts knows that all but its
// direct predecessor has finished.
static __device__ __forceinline__ void launch_dependents()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
static __device__ __forceinline__ void wait_for_predecessor()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- barriers in shared memory

static __device__ __forceinline__ uint32_t smem_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
static __device__ __forceinline__ void barrier_init(uint64_t *b, int count)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_at(b)), "r"(count) : "memory");
}
static __device__ __forceinline__ void barrier_arrive(uint64_t *b)
{
    asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(smem_at(b))
                 : "memory");
}
// When the copies that this thread has issued are done.
static __device__ __forceinline__ void barrier_arrive_copied(uint64_t *b)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(smem_at(b)) : "memory");
}
static __device__ __forceinline__ bool barrier_test(uint64_t *b, uint32_t parity)
{
    uint32_t done;
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2;"
                 " selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(smem_at(b)), "r"(parity)
                 : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2;"
                 " selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(smem_at(b)), "r"(parity)
                 : "memory");
#endif
    return done;
}
// A phase that never ends is a bug of the kernel: seconds later it traps rather than hang the
// device.
static __device__ __forceinline__ void barrier_wait(uint64_t *b, uint32_t parity)
{
    for (uint32_t spins = 0; !barrier_test(b, parity); spins++)
        if (spins > 1u << 22)
            __trap();
}

// ---- fragments

static __device__ __forceinline__ void load_matrices(uint32_t r[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
static __device__ __forceinline__ void load_matrices_transposed(uint32_t r[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// ---- launching

// What comes before in the stream may still be running when the kernel starts.
template <class... P, class... A>
static cudaError_t launch_kernel(cudaStream_t stream, void (*kernel)(P...), dim3 grid, int threads,
                                 size_t smem, const A &...a)
{
    if (smem > 48 << 10) {
        cudaError_t e =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
        if (e != cudaSuccess)
            return e;
    }
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = smem;
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, a...);
}

struct launch {
    cudaStream_t stream;
    int ctas; // of attn_gqa_few
    int sms, head_dim, block_tokens, blocks;
};
cudaError_t few(const launch &l, const args &a);
cudaError_t many(const launch &l, const args &a);

} // namespace gqa
