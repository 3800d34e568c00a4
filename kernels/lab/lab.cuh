// What laboratory programs share: checked calls, random device data, poisoned outputs, timing of a
// captured chain of launches, and the copy bandwidth that figures are held against.
#pragma once

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <vector>

#define LAB(call) lab_check((call), #call, __LINE__)
static inline void lab_check(cudaError_t e, const char *what, int line)
{
    if (e == cudaSuccess)
        return;
    fprintf(stdout, "line %d: %s: %s\n", line, what, cudaGetErrorString(e));
    exit(1);
}

static inline void *lab_alloc(size_t bytes)
{
    void *p;
    LAB(cudaMalloc(&p, bytes));
    return p;
}

static __device__ __forceinline__ float lab_random(uint64_t seed, uint64_t i) // -1 .. 1
{
    uint64_t z = (seed + i * 0x9e3779b97f4a7c15ull) ^ seed << 32;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return (float)(int32_t)(uint32_t)z / 2147483648.0f;
}

// Median time of a graph in microseconds, over `repeats` launches after two.
static inline double lab_time(cudaGraphExec_t g, cudaStream_t s, int repeats)
{
    cudaEvent_t a, b;
    LAB(cudaEventCreate(&a));
    LAB(cudaEventCreate(&b));
    std::vector<float> ms;
    for (int i = 0; i < repeats + 2; i++) {
        LAB(cudaEventRecord(a, s));
        LAB(cudaGraphLaunch(g, s));
        LAB(cudaEventRecord(b, s));
        LAB(cudaEventSynchronize(b));
        float t;
        LAB(cudaEventElapsedTime(&t, a, b));
        if (i >= 2)
            ms.push_back(t);
    }
    LAB(cudaEventDestroy(a));
    LAB(cudaEventDestroy(b));
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2] * 1e3;
}

// What `record` launches on the stream, as a graph.
template <typename F> static inline cudaGraphExec_t lab_capture(cudaStream_t s, F record)
{
    cudaGraph_t g;
    cudaGraphExec_t x;
    LAB(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    record();
    LAB(cudaStreamEndCapture(s, &g));
    LAB(cudaGraphInstantiate(&x, g, 0));
    LAB(cudaGraphDestroy(g));
    return x;
}

static __global__ void lab_copy(uint4 *to, const uint4 *from, size_t n)
{
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (i + k * step < n)
                v[k] = __ldcs(from + i + k * step);
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (i + k * step < n)
                __stcs(to + i + k * step, v[k]);
    }
}

// Device to device copy, bytes read plus bytes written, GB/s: the better of the driver's and ours.
static inline double lab_copy_rate(cudaStream_t s)
{
    const size_t bytes = (size_t)1 << 30;
    char *p = (char *)lab_alloc(2 * bytes);
    LAB(cudaMemset(p, 1, 2 * bytes));
    cudaGraphExec_t g = lab_capture(
        s, [&] { LAB(cudaMemcpyAsync(p, p + bytes, bytes, cudaMemcpyDeviceToDevice, s)); });
    double us = lab_time(g, s, 10);
    LAB(cudaGraphExecDestroy(g));
    g = lab_capture(s, [&] {
        lab_copy<<<132 * 16, 512, 0, s>>>((uint4 *)p, (uint4 *)(p + bytes), bytes / 16);
    });
    double own = lab_time(g, s, 10);
    LAB(cudaGraphExecDestroy(g));
    LAB(cudaFree(p));
    printf("copy: driver %.0f GB/s, kernel %.0f GB/s\n", 2.0 * bytes / us / 1e3,
           2.0 * bytes / own / 1e3);
    return 2.0 * bytes / (us < own ? us : own) / 1e3;
}
