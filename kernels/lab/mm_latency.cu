// How long the steps of a dependent chain take: what a few-row product over K columns costs at
// least once its operands are there. One block; clocks per step.
#include "kernels/cuda/mm_ptx.cuh"
#include "kernels/cuda/mm_wgmma.cuh"
#include "kernels/lab/lab.cuh"

enum { STEPS = 512 };
extern __shared__ __align__(1024) char smem[];

template <mm_kind KIND> struct sum_of {
    using type = float;
};
template <> struct sum_of<MM_INT8> {
    using type = int32_t;
};

// GROUP wgmmas between commit and wait<1>, CHAINS independent accumulators.
template <int N, mm_kind KIND, int GROUP, int CHAINS>
static __global__ void rs(long long *clocks, float *out)
{
    typename sum_of<KIND>::type d[CHAINS][N / 2] = {};
    uint32_t a[4] = {threadIdx.x, 1, 2, 3};
    uint32_t b = wgmma_tile(smem_at(smem));
    __syncthreads();
    long long t = clock64();
    for (int i = 0; i < STEPS; i += GROUP) {
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < GROUP; k++)
#pragma unroll
            for (int c = 0; c < CHAINS; c++)
                mm_wgmma_rows<N, KIND>::go(d[c], a, b + 2 * k, 1);
        wgmma_commit();
        wgmma_wait<1>();
    }
    wgmma_wait<0>();
    t = clock64() - t;
    float s = 0;
    for (int c = 0; c < CHAINS; c++)
        for (int i = 0; i < N / 2; i++)
            s += (float)d[c][i];
    out[threadIdx.x] = s;
    if (threadIdx.x == 0)
        *clocks = t;
}

static __global__ void ss8(long long *clocks, float *out)
{
    float d[4] = {};
        uint64_t a = wgmma_descriptor(wgmma_tile(smem_at(smem) + 8192)), b = wgmma_descriptor(wgmma_tile(smem_at(smem)));
    __syncthreads();
    long long t = clock64();
    for (int i = 0; i < STEPS; i += 4) {
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, "
                         "%5, 1, 1, 1, 0, 0;"
                         : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                         : "l"(a + 2 * k), "l"(b + 2 * k));
        wgmma_commit();
        wgmma_wait<1>();
    }
    wgmma_wait<0>();
    t = clock64() - t;
    out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
    if (threadIdx.x == 0)
        *clocks = t;
}

template <int CHAINS> static __global__ void sync16(long long *clocks, float *out)
{
    float c[CHAINS][4] = {};
    uint32_t a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {4, 5};
    __syncthreads();
    long long t = clock64();
    for (int i = 0; i < STEPS; i += 8)
#pragma unroll
        for (int k = 0; k < 8; k++)
#pragma unroll
            for (int j = 0; j < CHAINS; j++)
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                             "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                             : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
                             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    t = clock64() - t;
    float s = 0;
    for (int j = 0; j < CHAINS; j++)
        s += c[j][0] + c[j][1] + c[j][2] + c[j][3];
    out[threadIdx.x] = s;
    if (threadIdx.x == 0)
        *clocks = t;
}

// Bulk copies of 512 bytes, one per lane, issued by one warp.
static __global__ void bulk_issue(long long *clocks, const char *from, int lanes, int bytes)
{
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        mbar_init(smem_at(&bar), 1);
        mbar_init_done();
    }
    __syncthreads();
    long long t = clock64();
    for (int i = 0; i < 16; i++) {
        if (threadIdx.x == 0)
            mbar_arrive_expect(smem_at(&bar), lanes * bytes);
        __syncwarp();
        if (threadIdx.x < lanes)
            bulk_load(smem_at(smem) + threadIdx.x * 528, from + threadIdx.x * 4096, bytes,
                      smem_at(&bar));
        __syncwarp();
        mbar_wait(smem_at(&bar), i & 1);
    }
    t = clock64() - t;
    if (threadIdx.x == 0)
        *clocks = t / 16;
}

static long long *clocks;
static float *out;
template <typename F> static void say(const char *what, F go, double steps)
{
    long long t;
    for (int i = 0; i < 2; i++) {
        go();
        LAB(cudaDeviceSynchronize());
    }
    LAB(cudaMemcpy(&t, clocks, 8, cudaMemcpyDeviceToHost));
    printf("%-44s %7.1f clocks\n", what, t / steps);
}

int main()
{
    clocks = (long long *)lab_alloc(8);
    out = (float *)lab_alloc(4096);
    char *mem = (char *)lab_alloc(1 << 20);
    LAB(cudaMemset(mem, 0, 1 << 20));
#define RS(N, KIND, G, C)                                                                          \
    say(                                                                                           \
        "wgmma rs n" #N " " #KIND " group " #G " chains " #C,                                      \
        [] { rs<N, KIND, G, C><<<1, 128, 65536>>>(clocks, out); }, STEPS)
#define ALLOW(...)                                                                                 \
    LAB(cudaFuncSetAttribute(__VA_ARGS__, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536))
    ALLOW(rs<8, MM_BF16, 4, 1>);
    ALLOW(rs<16, MM_BF16, 4, 1>);
    ALLOW(rs<32, MM_BF16, 4, 1>);
    ALLOW(rs<64, MM_BF16, 4, 1>);
    ALLOW(rs<16, MM_BF16, 16, 1>);
    ALLOW(rs<8, MM_BF16, 4, 2>);
    ALLOW(rs<16, MM_BF16, 4, 2>);
    ALLOW(rs<8, MM_FP8, 4, 1>);
    ALLOW(rs<16, MM_FP8, 4, 1>);
    ALLOW(rs<32, MM_FP8, 4, 1>);
    ALLOW(rs<8, MM_INT8, 4, 1>);
    ALLOW(ss8);
    ALLOW(bulk_issue);
    ALLOW(rs<16, MM_BF16, 1, 1>);
    RS(8, MM_BF16, 4, 1);
    RS(16, MM_BF16, 4, 1);
    RS(32, MM_BF16, 4, 1);
    RS(64, MM_BF16, 4, 1);
    RS(16, MM_BF16, 16, 1);
    RS(16, MM_BF16, 1, 1);
    RS(8, MM_BF16, 4, 2);
    RS(16, MM_BF16, 4, 2);
    RS(8, MM_FP8, 4, 1);
    RS(16, MM_FP8, 4, 1);
    RS(32, MM_FP8, 4, 1);
    RS(8, MM_INT8, 4, 1);
    say(
        "wgmma ss n8 bf16", [] { ss8<<<1, 128, 65536>>>(clocks, out); }, STEPS);
    say(
        "mma.sync m16n8k16, 1 chain", [] { sync16<1><<<1, 32>>>(clocks, out); }, STEPS);
    say(
        "mma.sync m16n8k16, 2 chains, both", [] { sync16<2><<<1, 32>>>(clocks, out); }, STEPS);
    say(
        "mma.sync m16n8k16, 4 chains, all", [] { sync16<4><<<1, 32>>>(clocks, out); }, STEPS);
    for (int lanes : {1, 2, 4, 8, 16, 32}) {
        char what[64];
        snprintf(what, sizeof what, "bulk copies of 512 bytes, %d lanes", lanes);
        say(
            what, [=] { bulk_issue<<<1, 32, 65536>>>(clocks, mem, lanes, 512); }, 1);
    }
    return 0;
}
