// The kernels of peer.h: the protocol (peer.cuh) on the GPU. Each waits for its predecessor: the
// slices must be there, and the predecessor's reads of the buffer be over. Then it lets its
// successor start, by the rule of launch.cuh, and waits for the peers.
#include "kernels/cuda/peer.cuh"

namespace {

__device__ __forceinline__ void pdl_begin(bool early)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (early)
        asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct on_gpu {
    __device__ uint32_t block() const
    {
        return blockIdx.x;
    }
    __device__ uint32_t blocks() const
    {
        return gridDim.x;
    }
    __device__ uint32_t thread() const
    {
        return threadIdx.x;
    }
    __device__ uint32_t threads() const
    {
        return blockDim.x;
    }
    __device__ void sync() const
    {
        __syncthreads();
    }
};

template <bool pair>
__global__ void __launch_bounds__(1024)
    gather_words(const __grid_constant__ peer_group g, peer::slice<pair> s, uint32_t packets)
{
    pdl_begin(!g.crowded);
    peer::gather_words(on_gpu(), g, s, packets);
}

__global__ void __launch_bounds__(1024)
    reduce_words(const __grid_constant__ peer_group g, float2 *buf, uint32_t packets)
{
    pdl_begin(!g.crowded);
    peer::reduce_words(on_gpu(), g, buf, packets);
}

template <class vec>
__global__ void __launch_bounds__(512)
    gather_pieces(const __grid_constant__ peer_group g, peer::pieces a)
{
    __shared__ int go;
    pdl_begin(!g.crowded);
    peer::gather_pieces<vec>(on_gpu(), g, a, &go);
}

template <class vec, bool pack>
__global__ void __launch_bounds__(512)
    repack(char *packed, char *buf, uint32_t row_vecs, uint32_t vecs, int size, int rank, bool own)
{
    pdl_begin(true);
    for (int r = 0; r < size; r++) {
        if ((r == rank) != own)
            continue;
        for (uint32_t v = blockIdx.x * blockDim.x + threadIdx.x; v < vecs;
             v += gridDim.x * blockDim.x) {
            uint32_t row = v / row_vecs, col = v - row * row_vecs;
            vec *here = (vec *)buf + ((size_t)row * size + r) * row_vecs + col;
            vec *there = (vec *)packed + (size_t)r * vecs + v;
            if (pack)
                *there = *here;
            else
                *here = *there;
        }
    }
}

// ---- launching

template <class... P, class... A>
cudaError_t launch(cudaStream_t s, int blocks, int threads, void (*kernel)(P...), A... args)
{
    cudaLaunchAttribute serial;
    serial.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    serial.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3((unsigned)blocks);
    c.blockDim = dim3((unsigned)threads);
    c.stream = s;
    c.attrs = &serial;
    c.numAttrs = 1;
    return cudaLaunchKernelEx(&c, kernel, P(args)...);
}

int blocks_for(uint32_t items, int threads, int most)
{
    uint32_t n = (items + (uint32_t)threads - 1) / (uint32_t)threads;
    return n < 1 ? 1 : n > (uint32_t)most ? most : (int)n;
}

bool aligned(const peer_gather *a, size_t n)
{
    return a->part % n == 0 && (uintptr_t)a->buf % n == 0;
}

enum { WORDS_THREADS = 512, WORDS_BLOCKS = 16, PIECES_THREADS = 512, PIECES_VECS = 2048 };

} // namespace

size_t peer_window_bytes(int size, size_t pieces_bytes)
{
    return peer::window_bytes(size, pieces_bytes);
}

cudaError_t peer_gather_words_tuned(cudaStream_t s, const peer_group *g, const peer_gather *a,
                                    int blocks, int threads)
{
    if (a->part % 4 || a->rows * a->part > PEER_WORDS_BYTES || !a->rows || !a->part)
        return cudaErrorInvalidValue;
    uint32_t part = (uint32_t)(a->part / 4), row = (part + 1) / 2;
    uint32_t packets = (uint32_t)a->rows * row;
    if ((size_t)packets * 8 > PEER_WORDS_BYTES) // rows of an odd number of words
        return cudaErrorInvalidValue;
    threads = threads ? threads : WORDS_THREADS;
    blocks = blocks ? blocks : blocks_for(packets, threads, WORDS_BLOCKS);
    size_t stride = a->part * (size_t)g->size;
    if (aligned(a, 8))
        return launch(s, blocks, threads, gather_words<true>, *g,
                      peer::slice<true>{(char *)a->buf, part, row, stride}, packets);
    return launch(s, blocks, threads, gather_words<false>, *g,
                  peer::slice<false>{(char *)a->buf, part, row, stride}, packets);
}

cudaError_t peer_gather_words(cudaStream_t s, const peer_group *g, const peer_gather *a)
{
    return peer_gather_words_tuned(s, g, a, 0, 0);
}

cudaError_t peer_gather_pieces_tuned(cudaStream_t s, const peer_group *g, const peer_gather *a,
                                     int blocks, int piece_vectors)
{
    if (a->part % 4 || a->rows * a->part > g->pieces_bytes || !a->rows || !a->part)
        return cudaErrorInvalidValue;
    uint32_t piece = (uint32_t)(piece_vectors ? piece_vectors : PIECES_VECS);
    bool wide = aligned(a, 16);
    uint32_t row = (uint32_t)(a->part / (wide ? 16 : 4)), vecs = (uint32_t)a->rows * row;
    if (!blocks)
        blocks = blocks_for(vecs, PIECES_THREADS * 2, PEER_BLOCKS);
    if (blocks < 1 || blocks > PEER_BLOCKS || vecs / (uint32_t)blocks / piece > 60000)
        return cudaErrorInvalidValue; // a piece's number has 16 bits of the flag
    peer::pieces p = {(char *)a->buf, row, vecs, wide ? piece : piece * 4, blocks};
    if (wide)
        return launch(s, 2 * blocks, PIECES_THREADS, gather_pieces<uint4>, *g, p);
    return launch(s, 2 * blocks, PIECES_THREADS, gather_pieces<uint32_t>, *g, p);
}

cudaError_t peer_gather_pieces(cudaStream_t s, const peer_group *g, const peer_gather *a)
{
    return peer_gather_pieces_tuned(s, g, a, 0, 0);
}

cudaError_t peer_reduce_words(cudaStream_t s, const peer_group *g, const peer_reduce *a)
{
    if (a->n % 2 || a->n * 4 > PEER_WORDS_BYTES || !a->n)
        return cudaErrorInvalidValue;
    uint32_t packets = (uint32_t)(a->n / 2);
    return launch(s, blocks_for(packets, WORDS_THREADS, WORDS_BLOCKS), WORDS_THREADS, reduce_words,
                  *g, (float2 *)a->buf, packets);
}

template <bool pack> static cudaError_t repack_any(cudaStream_t s, const peer_repack *a)
{
    bool wide = a->part % 16 == 0 && (uintptr_t)a->buf % 16 == 0;
    size_t e = wide ? 16 : 4;
    uint32_t row = (uint32_t)(a->part / e), vecs = (uint32_t)(a->rows * row);
    int blocks = blocks_for(vecs, 512, 264);
    if (a->part % 4)
        return cudaErrorInvalidValue;
    return wide ? launch(s, blocks, 512, repack<uint4, pack>, (char *)a->packed, (char *)a->buf,
                         row, vecs, a->size, a->rank, a->own)
                : launch(s, blocks, 512, repack<uint32_t, pack>, (char *)a->packed, (char *)a->buf,
                         row, vecs, a->size, a->rank, a->own);
}

cudaError_t peer_pack(cudaStream_t s, const peer_repack *a)
{
    return repack_any<true>(s, a);
}

cudaError_t peer_unpack(cudaStream_t s, const peer_repack *a)
{
    return repack_any<false>(s, a);
}
