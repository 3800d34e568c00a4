// argmax: several blocks per row, of which the one that finishes last compares what all found.
#include "kernels/cuda/launch.cuh"

enum { THREADS = 256, EACH = 8, PARTS_MAX = 64, BLOCK_ELEMENTS = THREADS * EACH };

struct best {
    float v;
    int32_t i; // INT32_MAX: none; -1: a NaN or an infinity was seen
};
static __device__ __forceinline__ best better(best a, best b)
{
    if (a.i < 0 || b.i < 0)
        return {0, -1};
    return b.v > a.v || (b.v == a.v && b.i < a.i) ? b : a;
}

struct argmax {
    const float *x;
    size_t stride;
    int dim, part; // part: elements of a block
    best *found;   // [rows][parts]
    int *done;     // [rows], zero before and after
    int32_t *out;
};

static __device__ __forceinline__ best block_best(best b, best *shared)
{
#pragma unroll
    for (int d = 16; d; d /= 2)
        b = better(b, {__shfl_xor_sync(~0u, b.v, d), __shfl_xor_sync(~0u, b.i, d)});
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = b;
    __syncthreads();
    b = shared[0];
    for (int w = 1; w < THREADS / 32; w++)
        b = better(b, shared[w]);
    return b;
}

static __global__ void __launch_bounds__(THREADS) argmax_part(const __grid_constant__ argmax a)
{
    __shared__ best shared[THREADS / 32];
    __shared__ bool last;
    size_t row = blockIdx.y;
    int parts = gridDim.x, from = blockIdx.x * a.part, to = min(a.dim, from + a.part);
    const float *x = a.x + row * a.stride;
    pdl_take_over();
    best b = {-INFINITY, INT32_MAX};
#pragma unroll 4
    for (int c = from + threadIdx.x; c < to; c += THREADS) {
        float v = x[c];
        b = better(b, {isfinite(v) ? v : 0, isfinite(v) ? c : -1});
    }
    b = block_best(b, shared);
    if (threadIdx.x == 0) {
        a.found[row * parts + blockIdx.x] = b;
        __threadfence();
        last = atomicAdd(&a.done[row], 1) == parts - 1;
    }
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    b = {-INFINITY, INT32_MAX};
    if (threadIdx.x < parts) {
        const volatile best *f = a.found + row * parts + threadIdx.x;
        b = {f->v, f->i};
    }
    b = block_best(b, shared);
    if (threadIdx.x == 0) {
        a.done[row] = 0;
        a.out[row] = b.i;
    }
}

extern "C" void cuda_argmax(struct kern *k, const struct kern_argmax_args *a)
{
    struct cuda *c = cuda_of(k);
    struct cuda_rows x = cuda_rows(&a->x);
    size_t parts = (a->dim + BLOCK_ELEMENTS - 1) / BLOCK_ELEMENTS;
    parts = parts < PARTS_MAX ? parts : PARTS_MAX;
    argmax s = {};
    s.x = (const float *)x.p;
    s.stride = x.stride;
    s.dim = (int)a->dim;
    s.part = (int)((a->dim + parts - 1) / parts);
    s.done = c->zeros;
    s.out = (int32_t *)a->out->p;
    size_t most = a->n < CUDA_ZEROS ? a->n : CUDA_ZEROS;
    s.found = (best *)cuda_scratch(c, CUDA_ARENA_PARTIAL, most * parts * sizeof(best));
    for (size_t done = 0, n; done < a->n; done += n) {
        n = a->n - done < most ? a->n - done : most;
        cuda_launch(c, "argmax", argmax_part, dim3((unsigned)parts, (unsigned)n), THREADS, 0, s);
        s.x += n * s.stride;
        s.out += n;
    }
}
