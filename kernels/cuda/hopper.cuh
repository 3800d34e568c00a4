// Instructions of Hopper (sm_90a) that the tensor-core kernels are built of, each as one small
// function: mbarriers, bulk tensor copies (TMA), wgmma, clusters, griddepcontrol. No policy here.
// PTX ISA 8.0, sections "mbarrier", "cp.async.bulk.tensor", "wgmma", "griddepcontrol".
//
// Shared memory operands of wgmma are tiles of rows of 128 bytes along K ("K-major"), written by
// TMA with the 128-byte swizzle: byte b of row r lies at r * 128 + (b ^ ((r & 7) << 4)). Tiles
// start at multiples of 1024 bytes.
#pragma once

#include <cuda.h>
#include <stdint.h>

namespace hopper
{

enum kind { BF16, E4M3, S8 };

__device__ __forceinline__ uint32_t smem(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

// ---- programmatic dependent launch ------------------------------------------------------------

__device__ __forceinline__ void launch_dependents()
{
    asm volatile("griddepcontrol.launch_dependents;");
}
// Until all kernels that this one depends on are done and their writes are seen.
__device__ __forceinline__ void wait_predecessors()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// ---- mbarriers, by their address in shared memory
// --------------------------------------------------

__device__ __forceinline__ void bar_init(uint32_t bar, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals));
}
// After bar_init, before anyone else (the copy engine, other CTAs of the cluster) uses the barrier.
__device__ __forceinline__ void bar_init_fence()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void bar_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void bar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// The same barrier in the cluster's CTA `rank`.
__device__ __forceinline__ void bar_arrive_at(uint32_t bar, uint32_t rank)
{
    asm volatile("{ .reg .b32 a; mapa.shared::cluster.u32 a, %0, %1; "
                 "mbarrier.arrive.shared::cluster.b64 _, [a]; }" ::"r"(bar),
                 "r"(rank)
                 : "memory");
}
__device__ __forceinline__ bool bar_try(uint32_t bar, uint32_t parity)
{
    uint32_t ok;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                 "selp.u32 %0, 1, 0, p; }"
                 : "=r"(ok)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return ok;
}
// A wait that never ends would hang the device and everybody on it: after about half a minute it
// becomes an error of this kernel, by a store to address 0 (trap would do, but the compiler then
// spills around the wait).
__device__ __forceinline__ void bar_wait(uint32_t bar, uint32_t parity)
{
    for (uint32_t tries = 0; !bar_try(bar, parity); tries++)
        if (tries >= 1u << 26)
            asm volatile("st.global.u32 [%0], %1;" ::"l"(0ull), "r"(bar) : "memory");
}

// ---- bulk tensor copies -------------------------------------------------------------------------

__device__ __forceinline__ void tma_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map));
}
// A box at element x of row y to `dst`; completes on `bar` by bytes.
__device__ __forceinline__ void tma_load(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x,
                                         int y)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4}], [%2];" ::"r"(dst),
        "l"(map), "r"(bar), "r"(x), "r"(y)
        : "memory");
}
__device__ __forceinline__ void tma_load(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x,
                                         int y, int z, int w)
{
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst),
        "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}
// The same to every CTA of the cluster whose bit is set in `mask`, at the same place in each.
__device__ __forceinline__ void tma_multicast(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                              uint16_t mask, int x, int y)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes."
                 "multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(dst),
                 "l"(map), "r"(bar), "h"(mask), "r"(x), "r"(y)
                 : "memory");
}
__device__ __forceinline__ void tma_multicast(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                              uint16_t mask, int x, int y, int z, int w)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes."
                 "multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(dst),
                 "l"(map), "r"(bar), "h"(mask), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}

// ---- bulk copies from shared to global memory: addresses and sizes in multiples of 16 bytes
// ---------

__device__ __forceinline__ void bulk_store(void *dst, uint32_t src, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src),
                 "r"(bytes)
                 : "memory");
}
// dst[i] += src[i], float32.
__device__ __forceinline__ void bulk_add(void *dst, uint32_t src, uint32_t bytes)
{
    asm volatile(
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(dst),
        "r"(src), "r"(bytes)
        : "memory");
}
__device__ __forceinline__ void bulk_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until this thread's copies have read shared memory.
__device__ __forceinline__ void bulk_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void bulk_wait()
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// ---- clusters, warpgroups -----------------------------------------------------------------------

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t r;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}
// True in one lane; the whole warp calls it. The compiler then knows the rest to be uniform.
__device__ __forceinline__ bool elect()
{
    uint32_t one;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(one));
    return one;
}
// Named barriers 1 .. 15 among `threads`: wait for the others, or only be counted.
__device__ __forceinline__ void named_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
template <int N> __device__ __forceinline__ void registers_less()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void registers_more()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
// Shared memory that this thread wrote by ordinary stores (or cp.async) is seen by wgmma and TMA of
// whoever synchronises with it afterwards.
__device__ __forceinline__ void fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- wgmma --------------------------------------------------------------------------------------

__device__ __forceinline__ void mma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void mma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void mma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Descriptor of a K-major tile with the 128-byte swizzle: 8 rows every 1024 bytes. + 2 per 32 bytes
// along K.
__device__ __forceinline__ uint64_t mma_desc(uint32_t tile)
{
    return (uint64_t)((tile >> 4) & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

// mma<KIND, N>: d (+)= A B over 32 bytes of K (16 bf16, 32 e4m3 or s8), A 64 rows, B N rows; `keep`
// false: d = A B. Thread t of the warpgroup holds N / 2 values: of row 16 (t / 32) + (t % 32) / 4
// the columns 8 j + 2 (t % 4) + {0, 1} in d[4 j + {0, 1}], and of that row + 8 in d[4 j + {2, 3}].
template <int KIND, int N> struct mma;
#define HOPPER_O4(c, d, i) c((d)[i]), c((d)[i + 1]), c((d)[i + 2]), c((d)[i + 3])
#define HOPPER_O8(c, d, i)                                                                         \
    c((d)[i]), c((d)[i + 1]), c((d)[i + 2]), c((d)[i + 3]), c((d)[i + 4]), c((d)[i + 5]),          \
        c((d)[i + 6]), c((d)[i + 7])
#define HOPPER_O16(c, d, i) HOPPER_O8(c, d, i), HOPPER_O8(c, d, i + 8)
#define HOPPER_O32(c, d, i) HOPPER_O16(c, d, i), HOPPER_O16(c, d, i + 16)
#define HOPPER_O64(c, d, i) HOPPER_O32(c, d, i), HOPPER_O32(c, d, i + 32)
#define HOPPER_R4           "%0,%1,%2,%3"
#define HOPPER_R8           "%0,%1,%2,%3,%4,%5,%6,%7"
#define HOPPER_R16          "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define HOPPER_R32                                                                                 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                       \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define HOPPER_R64                                                                                 \
    HOPPER_R32 ","                                                                                 \
               "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                  \
               "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define HOPPER_R96                                                                                 \
    HOPPER_R64 ","                                                                                 \
               "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                  \
               "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define HOPPER_R128                                                                                \
    HOPPER_R96 ","                                                                                 \
               "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"      \
               "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// `a`, `b`, `p`: numbers of the operands behind the accumulators.
#define HOPPER_MMA(KIND, N, type, insn, tail, regs, a, b, p, ...)                                  \
    template <> struct mma<KIND, N> {                                                              \
        static __device__ __forceinline__ void run(type *d, uint64_t da, uint64_t db,              \
                                                   uint32_t keep)                                  \
        {                                                                                          \
            asm volatile("{ .reg .pred q; setp.ne.b32 q, %" #p                                     \
                         ", 0; wgmma.mma_async.sync.aligned." insn " {" regs "}, %" #a ", %" #b    \
                         ", q" tail "; }"                                                          \
                         : __VA_ARGS__                                                             \
                         : "l"(da), "l"(db), "r"(keep));                                           \
        }                                                                                          \
    }
HOPPER_MMA(BF16, 8, float, "m64n8k16.f32.bf16.bf16", ", 1, 1, 0, 0", HOPPER_R4, 4, 5, 6,
           HOPPER_O4("+f", d, 0));
HOPPER_MMA(BF16, 16, float, "m64n16k16.f32.bf16.bf16", ", 1, 1, 0, 0", HOPPER_R8, 8, 9, 10,
           HOPPER_O8("+f", d, 0));
HOPPER_MMA(E4M3, 8, float, "m64n8k32.f32.e4m3.e4m3", ", 1, 1", HOPPER_R4, 4, 5, 6,
           HOPPER_O4("+f", d, 0));
HOPPER_MMA(E4M3, 16, float, "m64n16k32.f32.e4m3.e4m3", ", 1, 1", HOPPER_R8, 8, 9, 10,
           HOPPER_O8("+f", d, 0));
HOPPER_MMA(BF16, 32, float, "m64n32k16.f32.bf16.bf16", ", 1, 1, 0, 0", HOPPER_R16, 16, 17, 18,
           HOPPER_O16("+f", d, 0));
HOPPER_MMA(BF16, 64, float, "m64n64k16.f32.bf16.bf16", ", 1, 1, 0, 0", HOPPER_R32, 32, 33, 34,
           HOPPER_O32("+f", d, 0));
HOPPER_MMA(BF16, 128, float, "m64n128k16.f32.bf16.bf16", ", 1, 1, 0, 0", HOPPER_R64, 64, 65, 66,
           HOPPER_O64("+f", d, 0));
HOPPER_MMA(BF16, 192, float, "m64n192k16.f32.bf16.bf16", ", 1, 1, 0, 0", HOPPER_R96, 96, 97, 98,
           HOPPER_O64("+f", d, 0), HOPPER_O32("+f", d, 64));
HOPPER_MMA(BF16, 256, float, "m64n256k16.f32.bf16.bf16", ", 1, 1, 0, 0", HOPPER_R128, 128, 129, 130,
           HOPPER_O64("+f", d, 0), HOPPER_O64("+f", d, 64));
HOPPER_MMA(E4M3, 32, float, "m64n32k32.f32.e4m3.e4m3", ", 1, 1", HOPPER_R16, 16, 17, 18,
           HOPPER_O16("+f", d, 0));
HOPPER_MMA(E4M3, 64, float, "m64n64k32.f32.e4m3.e4m3", ", 1, 1", HOPPER_R32, 32, 33, 34,
           HOPPER_O32("+f", d, 0));
HOPPER_MMA(E4M3, 128, float, "m64n128k32.f32.e4m3.e4m3", ", 1, 1", HOPPER_R64, 64, 65, 66,
           HOPPER_O64("+f", d, 0));
HOPPER_MMA(E4M3, 192, float, "m64n192k32.f32.e4m3.e4m3", ", 1, 1", HOPPER_R96, 96, 97, 98,
           HOPPER_O64("+f", d, 0), HOPPER_O32("+f", d, 64));
HOPPER_MMA(E4M3, 256, float, "m64n256k32.f32.e4m3.e4m3", ", 1, 1", HOPPER_R128, 128, 129, 130,
           HOPPER_O64("+f", d, 0), HOPPER_O64("+f", d, 64));
HOPPER_MMA(S8, 32, int, "m64n32k32.s32.s8.s8", "", HOPPER_R16, 16, 17, 18, HOPPER_O16("+r", d, 0));
HOPPER_MMA(S8, 64, int, "m64n64k32.s32.s8.s8", "", HOPPER_R32, 32, 33, 34, HOPPER_O32("+r", d, 0));
HOPPER_MMA(S8, 128, int, "m64n128k32.s32.s8.s8", "", HOPPER_R64, 64, 65, 66,
           HOPPER_O64("+r", d, 0));
HOPPER_MMA(S8, 192, int, "m64n192k32.s32.s8.s8", "", HOPPER_R96, 96, 97, 98, HOPPER_O64("+r", d, 0),
           HOPPER_O32("+r", d, 64));
HOPPER_MMA(S8, 256, int, "m64n256k32.s32.s8.s8", "", HOPPER_R128, 128, 129, 130,
           HOPPER_O64("+r", d, 0), HOPPER_O64("+r", d, 64));

} // namespace hopper
