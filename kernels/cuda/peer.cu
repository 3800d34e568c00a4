// The kernels of peer.h. Each lets its successor start at once (it only prefetches what no kernel
// of the stream writes), then waits for its predecessor: the slices must be there, and the
// predecessor's reads of the buffer be over.
#include "kernels/cuda/peer.h"

namespace
{

constexpr uint32_t polls_local = 256, polls_host = 2048; // between looks at `failed`, at `abort`
// Marks of the words form are 31-bit numbers of collectives. A half is cleared every so often, so
// that no word can keep a mark until the number comes round again.
constexpr uint64_t clear_every = 1u << 22;

__device__ __forceinline__ void pdl_begin()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ uint64_t now_ns()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

__device__ __forceinline__ void store_words(void *to, uint32_t a, uint32_t b, uint32_t mark)
{
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(mark),
                 "r"(b), "r"(mark)
                 : "memory");
}

__device__ __forceinline__ uint4 load_words(const void *from)
{
    uint4 v;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

__device__ __forceinline__ void store_release(uint64_t *to, uint64_t v)
{
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(v) : "memory");
}

__device__ __forceinline__ uint64_t load_acquire(const uint64_t *from)
{
    uint64_t v;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(from) : "memory");
    return v;
}

template <class T> __device__ __forceinline__ T look(const T *p)
{
    return *(const volatile T *)p;
}

// ---- the window

__host__ __device__ __forceinline__ size_t words_at(const peer_group &g, uint64_t number, int from)
{
    return ((number & 1) * g.size + from) * (size_t)(2 * PEER_WORDS_BYTES);
}

__host__ __device__ __forceinline__ size_t pieces_at(const peer_group &g, uint64_t number, int from)
{
    return (size_t)2 * g.size * (2 * PEER_WORDS_BYTES) +
           ((number & 1) * g.size + from) * g.pieces_bytes;
}

__device__ __forceinline__ uint64_t *flag_of(const peer_group &g, int window, int from, int block)
{
    size_t at = (size_t)2 * g.size * (2 * PEER_WORDS_BYTES + g.pieces_bytes);
    return (uint64_t *)(g.windows[window] + at) + (from * PEER_BLOCKS + block) * PEER_FLAG_STRIDE;
}

// ---- waiting

__device__ void give_up(const peer_group &g, uint64_t number, uint32_t why, int from)
{
    uint32_t code = why | (uint32_t)from << 8;
    if (atomicCAS(&g.state->failed, 0u, code) != 0)
        return;
    *(volatile uint64_t *)&g.host->failed_number = number;
    __threadfence_system();
    *(volatile uint32_t *)&g.host->failed = code;
}

struct patience {
    uint32_t polls = 0;
    uint64_t since = 0;
};

// After a look that found nothing; false: stop waiting.
__device__ __forceinline__ bool wait_on(const peer_group &g, patience &p, uint64_t number, int from)
{
    if (++p.polls % polls_local)
        return true;
    if (look(&g.state->failed))
        return false;
    if (p.polls % polls_host)
        return true;
    uint64_t now = now_ns();
    p.since = p.since ? p.since : now;
    if (look(&g.host->abort)) {
        give_up(g, number, PEER_ABORTED, from);
        return false;
    }
    if (now - p.since > g.timeout_ns) {
        give_up(g, number, PEER_TIMEOUT, from);
        return false;
    }
    return true;
}

// The number of this collective, 0 when the group has failed.
__device__ __forceinline__ uint64_t begin(const peer_group &g)
{
    pdl_begin();
    uint64_t number = look(&g.state->number) + 1;
    if (look(&g.state->failed))
        return 0;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        *(volatile uint64_t *)&g.host->started = number;
    return number;
}

// All threads. The last block of the grid advances the number.
__device__ __forceinline__ void end(const peer_group &g, uint64_t number)
{
    __syncthreads();
    if (threadIdx.x)
        return;
    if (gridDim.x > 1) {
        // No fence: it only matters that every block has read the number, and what they wrote is
        // for kernels that come later.
        if (atomicAdd(&g.state->arrived, 1u) + 1 != gridDim.x)
            return;
        g.state->arrived = 0;
    }
    g.state->number = number;
}

// Clears our own half of the next collective: its words were read in the collective before this
// one, and peers write there only after they have what every block of ours sends below.
__device__ void clear_words(const peer_group &g, uint64_t number)
{
    size_t n = (size_t)g.size * (2 * PEER_WORDS_BYTES) / 16;
    uint4 *half = (uint4 *)(g.windows[g.rank] + words_at(g, number + 1, 0));
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        half[i] = make_uint4(0, 0, 0, 0);
    __threadfence_system();
    __syncthreads();
}

__device__ __forceinline__ uint32_t mark_of(uint64_t number)
{
    return (uint32_t)number << 1 | 1;
}

// false: gave up.
__device__ __forceinline__ bool receive_words(const peer_group &g, uint64_t number, int from,
                                              uint32_t packet, uint2 *out)
{
    const char *at = g.windows[g.rank] + words_at(g, number, from) + (size_t)packet * 16;
    const uint32_t mark = mark_of(number);
    patience p;
    uint4 v = load_words(at);
    while (v.y != mark || v.w != mark) {
        if (!wait_on(g, p, number, from))
            return false;
        v = load_words(at);
    }
    *out = make_uint2(v.x, v.z);
    return true;
}

// ---- words

// Two 4-byte words of a row of `part` words. `pair`: rows are whole pairs and 8-byte aligned.
template <bool pair> struct slice {
    char *buf;
    uint32_t part, packets; // words and packets of a row's slice
    size_t stride;          // bytes of a row

    __device__ char *address(int rank, uint32_t packet, uint32_t *word) const
    {
        uint32_t row = packet / packets;
        *word = (packet - row * packets) * 2;
        return buf + row * stride + ((size_t)rank * part + *word) * 4;
    }
    __device__ uint2 load(int rank, uint32_t packet) const
    {
        uint32_t word;
        const char *p = address(rank, packet, &word);
        if (pair)
            return *(const uint2 *)p;
        return make_uint2(((const uint32_t *)p)[0], word + 1 < part ? ((const uint32_t *)p)[1] : 0);
    }
    __device__ void store(int rank, uint32_t packet, uint2 v) const
    {
        uint32_t word;
        char *p = address(rank, packet, &word);
        if (pair) {
            *(uint2 *)p = v;
            return;
        }
        ((uint32_t *)p)[0] = v.x;
        if (word + 1 < part)
            ((uint32_t *)p)[1] = v.y;
    }
};

template <bool pair>
__global__ void __launch_bounds__(1024)
    gather_words(const __grid_constant__ peer_group g, slice<pair> s, uint32_t packets)
{
    const uint64_t number = begin(g);
    if (!number)
        return;
    if (number % clear_every < 2)
        clear_words(g, number);
    const uint32_t first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    const size_t at = words_at(g, number, g.rank);
    for (uint32_t p = first; p < packets; p += step) {
        uint2 v = s.load(g.rank, p);
        for (int i = 1; i < g.size; i++) {
            int to = g.rank + i < g.size ? g.rank + i : g.rank + i - g.size;
            store_words(g.windows[to] + at + (size_t)p * 16, v.x, v.y, mark_of(number));
        }
    }
    bool fine = true;
    for (uint32_t p = first; p < packets && fine; p += step)
        for (int i = 1; i < g.size && fine; i++) {
            int from = g.rank >= i ? g.rank - i : g.rank - i + g.size;
            uint2 v;
            fine = receive_words(g, number, from, p, &v);
            if (fine)
                s.store(from, p, v);
        }
    end(g, number);
}

__global__ void __launch_bounds__(1024)
    reduce_words(const __grid_constant__ peer_group g, float2 *buf, uint32_t packets)
{
    const uint64_t number = begin(g);
    if (!number)
        return;
    if (number % clear_every < 2)
        clear_words(g, number);
    const uint32_t first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    const size_t at = words_at(g, number, g.rank);
    for (uint32_t p = first; p < packets; p += step) {
        float2 v = buf[p];
        for (int i = 1; i < g.size; i++) {
            int to = g.rank + i < g.size ? g.rank + i : g.rank + i - g.size;
            store_words(g.windows[to] + at + (size_t)p * 16, __float_as_uint(v.x),
                        __float_as_uint(v.y), mark_of(number));
        }
    }
    bool fine = true;
    for (uint32_t p = first; p < packets && fine; p += step) {
        float2 own = buf[p], sum = make_float2(0, 0);
        for (int from = 0; from < g.size && fine; from++) {
            float2 v = own;
            if (from != g.rank) {
                uint2 w = make_uint2(0, 0);
                fine = receive_words(g, number, from, p, &w);
                v = make_float2(__uint_as_float(w.x), __uint_as_float(w.y));
            }
            sum = from ? make_float2(sum.x + v.x, sum.y + v.y) : v;
        }
        if (fine)
            buf[p] = sum;
    }
    end(g, number);
}

// ---- pieces

// vec: 16 bytes where rows allow it, else 4.
template <class vec>
__global__ void __launch_bounds__(512)
    gather_pieces(const __grid_constant__ peer_group g, char *buf, uint32_t row_vecs, uint32_t vecs,
                  uint32_t piece, int blocks)
{
    __shared__ int go;
    const uint64_t number = begin(g);
    if (!number)
        return;
    const bool sends = (int)blockIdx.x < blocks;
    const int b = sends ? (int)blockIdx.x : (int)blockIdx.x - blocks;
    const uint32_t first = (uint32_t)((uint64_t)vecs * b / blocks);
    const uint32_t last = (uint32_t)((uint64_t)vecs * (b + 1) / blocks);
    const size_t stride = (size_t)row_vecs * g.size * sizeof(vec);
    uint64_t flag = number << 16;
    for (uint32_t at = first; at < last; at += piece) {
        const uint32_t stop = last - at < piece ? last : at + piece;
        flag++;
        for (int i = 1; i < g.size; i++) {
            int peer = sends ? (g.rank + i) % g.size : (g.rank + g.size - i) % g.size;
            int owner = sends ? g.rank : peer; // of the slice
            char *area = g.windows[sends ? peer : g.rank] + pieces_at(g, number, owner);
            if (!sends) {
                if (threadIdx.x == 0) {
                    patience p;
                    go = 1;
                    while (go && load_acquire(flag_of(g, g.rank, peer, b)) < flag)
                        go = wait_on(g, p, number, peer);
                }
                __syncthreads();
                if (!go)
                    goto out; // uniform over the block
            }
#pragma unroll 4
            for (uint32_t v = at + threadIdx.x; v < stop; v += blockDim.x) {
                uint32_t row = v / row_vecs, col = v - row * row_vecs;
                vec *here = (vec *)(buf + row * stride) + (size_t)owner * row_vecs + col;
                vec *there = (vec *)area + v;
                if (sends)
                    *there = *here;
                else
                    *here = __ldcg(there);
            }
            __syncthreads();
            if (sends && threadIdx.x == 0)
                store_release(flag_of(g, peer, g.rank, b), flag);
        }
    }
out:
    end(g, number);
}

template <class vec, bool pack>
__global__ void __launch_bounds__(512)
    repack(char *packed, char *buf, uint32_t row_vecs, uint32_t vecs, int size, int rank, bool own)
{
    pdl_begin();
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
    return (size_t)2 * size * (2 * PEER_WORDS_BYTES + pieces_bytes) +
           (size_t)size * PEER_BLOCKS * PEER_FLAG_STRIDE * sizeof(uint64_t);
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
                      slice<true>{(char *)a->buf, part, row, stride}, packets);
    return launch(s, blocks, threads, gather_words<false>, *g,
                  slice<false>{(char *)a->buf, part, row, stride}, packets);
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
    if (wide)
        return launch(s, 2 * blocks, PIECES_THREADS, gather_pieces<uint4>, *g, (char *)a->buf, row,
                      vecs, piece, blocks);
    return launch(s, 2 * blocks, PIECES_THREADS, gather_pieces<uint32_t>, *g, (char *)a->buf, row,
                  vecs, piece * 4, blocks);
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
