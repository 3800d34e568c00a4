// Hopper's instructions that the few-row products use, one inline function each: barriers in shared
// memory that count bytes, the bulk copy engine, wgmma's bookkeeping, dependent launches.
#pragma once

#include <cuda.h>
#include <stdint.h>

static __device__ __forceinline__ uint32_t smem_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

// ---- mbarrier

static __device__ __forceinline__ void mbar_init(uint32_t bar, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
static __device__ __forceinline__ void mbar_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
static __device__ __forceinline__ void mbar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
static __device__ __forceinline__ void mbar_arrive_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ bool mbar_try(uint32_t bar, uint32_t phase)
{
    uint32_t done;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                 "selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(bar), "r"(phase)
                 : "memory");
    return done;
}
// A lost copy would hang the device: laboratory builds define MBAR_SPINS and trap instead.
static __device__ __forceinline__ void mbar_wait(uint32_t bar, uint32_t phase)
{
#ifdef MBAR_SPINS
    for (int i = 0; !mbar_try(bar, phase); i++)
        if (i > MBAR_SPINS)
            __trap();
#else
    while (!mbar_try(bar, phase))
        ;
#endif
}

// ---- copies, global to shared, that end on a barrier

// 16-byte aligned, a multiple of 16 bytes.
static __device__ __forceinline__ void bulk_load(uint32_t to, const void *from, uint32_t bytes,
                                                 uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(bar)
                 : "memory");
}
// 16 bytes, `some` of them from memory and zeros behind; they end on the barrier at the thread's next
// async_arrive, which counts as one of the barrier's expected arrivals.
static __device__ __forceinline__ void async_load(uint32_t to, const void *from, int some)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(some)
                 : "memory");
}
static __device__ __forceinline__ void async_arrive(uint32_t bar)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}
static __device__ __forceinline__ void tensor_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
static __device__ __forceinline__ uint64_t policy_evict_first()
{
    uint64_t p;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
    return p;
}
static __device__ __forceinline__ uint64_t policy_evict_normal()
{
    uint64_t p;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(p));
    return p;
}
struct tensor_at {
    int32_t c0, c1, c2, c3;
};
static __device__ __forceinline__ void
tensor_load(uint32_t to, const CUtensorMap *map, const tensor_at &at, uint32_t bar, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
                 "l"(map), "r"(at.c0), "r"(at.c1), "r"(at.c2), "r"(at.c3), "r"(bar), "l"(policy)
                 : "memory");
}

// ---- shared memory to registers

// Four 8x8 matrices of 16 bits: operand A of 16 rows x 32 bytes.
static __device__ __forceinline__ void load_a(uint32_t a[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(from)
                 : "memory");
}

// ---- wgmma

static __device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT> static __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// A tile of rows of 128 bytes, swizzled by 128 bytes, groups of 8 rows 1024 bytes apart: the low half of
// an operand's descriptor. 32 bytes along the rows are 2 more.
static __device__ __forceinline__ uint32_t wgmma_tile(uint32_t at)
{
    return (at & 0x3ffff) >> 4 | 1u << 16;
}
static __device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t tile)
{
    return (uint64_t)(1u << 30 | 1024 >> 4) << 32 | tile;
}
// Shared memory that threads or plain asynchronous copies wrote, and that this thread knows complete, is
// seen by the wgmmas it starts next.
static __device__ __forceinline__ void wgmma_sees()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- dependent launches

static __device__ __forceinline__ void pdl_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
static __device__ __forceinline__ void pdl_launch()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
