// wgmma, one specialisation per width N and type: d[64 x N] (+)= a b, N / 2 registers a thread;
// weights (b) lie in shared memory, see wgmma_tile. `more` 0 starts from zero. Made by a script;
// the shapes differ in nothing but the number of registers.
#pragma once

#include "kernels/cuda/mm_ptx.cuh"

enum mm_kind { MM_BF16, MM_FP8, MM_INT8 };

template <int N, mm_kind KIND> struct mm_wgmma;      // activations (a) in shared memory too
template <int N, mm_kind KIND> struct mm_wgmma_rows; // activations in registers

template <> struct mm_wgmma<8, MM_BF16> {
    static __device__ __forceinline__ void go(float *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0; "
                     "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3}, "
                     "%4, %5, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<16, MM_BF16> {
    static __device__ __forceinline__ void go(float *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0; "
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                     "%8, %9, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7])
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<32, MM_BF16> {
    static __device__ __forceinline__ void go(float *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %18, 0; "
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "%16, %17, p, 1, 1, 0, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                       "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<64, MM_BF16> {
    static __device__ __forceinline__ void go(float *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %34, 0; "
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "%32, %33, p, 1, 1, 0, 0; }"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
              "+f"(d[31])
            : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<8, MM_FP8> {
    static __device__ __forceinline__ void go(float *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0; "
                     "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 "
                     "{%0, %1, %2, %3}, "
                     "%4, %5, p, 1, 1; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<16, MM_FP8> {
    static __device__ __forceinline__ void go(float *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0; "
                     "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                     "%8, %9, p, 1, 1; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7])
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<32, MM_FP8> {
    static __device__ __forceinline__ void go(float *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %18, 0; "
                     "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "%16, %17, p, 1, 1; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                       "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<64, MM_FP8> {
    static __device__ __forceinline__ void go(float *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %34, 0; "
            "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "%32, %33, p, 1, 1; }"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
              "+f"(d[31])
            : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<8, MM_INT8> {
    static __device__ __forceinline__ void go(int32_t *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0; "
                     "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 "
                     "{%0, %1, %2, %3}, "
                     "%4, %5, p; }"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<16, MM_INT8> {
    static __device__ __forceinline__ void go(int32_t *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %10, 0; "
                     "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                     "%8, %9, p; }"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
                       "+r"(d[6]), "+r"(d[7])
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<32, MM_INT8> {
    static __device__ __forceinline__ void go(int32_t *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %18, 0; "
                     "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "%16, %17, p; }"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
                       "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
                       "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15])
                     : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma<64, MM_INT8> {
    static __device__ __forceinline__ void go(int32_t *d, uint32_t a, uint32_t b, int more)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %34, 0; "
            "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "%32, %33, p; }"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
              "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]),
              "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]),
              "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]),
              "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]),
              "+r"(d[31])
            : "l"(wgmma_descriptor(a)), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma_rows<8, MM_BF16> {
    static __device__ __forceinline__ void go(float *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %9, 0; "
                     "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, %8, p, 1, 1, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)),
                       "r"(more));
    }
};

template <> struct mm_wgmma_rows<16, MM_BF16> {
    static __device__ __forceinline__ void go(float *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %13, 0; "
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                     "{%8, %9, %10, %11}, %12, p, 1, 1, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)),
                       "r"(more));
    }
};

template <> struct mm_wgmma_rows<32, MM_BF16> {
    static __device__ __forceinline__ void go(float *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %21, 0; "
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "{%16, %17, %18, %19}, %20, p, 1, 1, 0; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                       "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)),
                       "r"(more));
    }
};

template <> struct mm_wgmma_rows<64, MM_BF16> {
    static __device__ __forceinline__ void go(float *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %37, 0; "
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "{%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
              "+f"(d[31])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma_rows<8, MM_FP8> {
    static __device__ __forceinline__ void go(float *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %9, 0; "
                     "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 "
                     "{%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, %8, p, 1, 1; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)),
                       "r"(more));
    }
};

template <> struct mm_wgmma_rows<16, MM_FP8> {
    static __device__ __forceinline__ void go(float *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %13, 0; "
                     "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                     "{%8, %9, %10, %11}, %12, p, 1, 1; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)),
                       "r"(more));
    }
};

template <> struct mm_wgmma_rows<32, MM_FP8> {
    static __device__ __forceinline__ void go(float *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %21, 0; "
                     "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "{%16, %17, %18, %19}, %20, p, 1, 1; }"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                       "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                       "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)),
                       "r"(more));
    }
};

template <> struct mm_wgmma_rows<64, MM_FP8> {
    static __device__ __forceinline__ void go(float *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %37, 0; "
            "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "{%32, %33, %34, %35}, %36, p, 1, 1; }"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
              "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),
              "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
              "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
              "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
              "+f"(d[31])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)), "r"(more));
    }
};

template <> struct mm_wgmma_rows<8, MM_INT8> {
    static __device__ __forceinline__ void go(int32_t *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %9, 0; "
                     "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 "
                     "{%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, %8, p; }"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)),
                       "r"(more));
    }
};

template <> struct mm_wgmma_rows<16, MM_INT8> {
    static __device__ __forceinline__ void go(int32_t *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %13, 0; "
                     "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                     "{%8, %9, %10, %11}, %12, p; }"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
                       "+r"(d[6]), "+r"(d[7])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)),
                       "r"(more));
    }
};

template <> struct mm_wgmma_rows<32, MM_INT8> {
    static __device__ __forceinline__ void go(int32_t *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %21, 0; "
                     "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "{%16, %17, %18, %19}, %20, p; }"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
                       "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
                       "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)),
                       "r"(more));
    }
};

template <> struct mm_wgmma_rows<64, MM_INT8> {
    static __device__ __forceinline__ void go(int32_t *d, const uint32_t *a, uint32_t b, int more)
    {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %37, 0; "
            "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "{%32, %33, %34, %35}, %36, p; }"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
              "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]),
              "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]),
              "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]),
              "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]),
              "+r"(d[31])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(b)), "r"(more));
    }
};
