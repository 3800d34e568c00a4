// The protocol of peer.h, as the kernels of peer.cu run it on a GPU and tests/kern/test_peer.cu on
// threads of a CPU: templates over where they run. `where` tells which block and thread of how many
// this is, and joins the threads of a block.
#pragma once

#include <string.h>

#include "kernels/cuda/peer.h"

#ifndef __CUDA_ARCH__
#include <sched.h>
#include <time.h>
#endif

#define PEER_FN __host__ __device__ __forceinline__

namespace peer
{

constexpr uint32_t polls_local = 256, polls_host = 2048; // between looks at `failed`, at `abort`
// Marks of the words form are 31-bit numbers of collectives. A half is cleared every so often, so
// that no word can keep a mark until the number comes round again.
constexpr uint64_t clear_every = 1u << 22;

// ---- memory

PEER_FN uint64_t now_ns()
{
    uint64_t t;
#ifdef __CUDA_ARCH__
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
#else
    timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    t = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
#endif
    return t;
}

// 8 bytes of data, each half with its mark: a half never arrives without it.
PEER_FN void store_words(void *to, uint32_t a, uint32_t b, uint32_t mark)
{
#ifdef __CUDA_ARCH__
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(a), "r"(mark),
                 "r"(b), "r"(mark)
                 : "memory");
#else
    __atomic_store_n((uint64_t *)to, (uint64_t)mark << 32 | a, __ATOMIC_RELAXED);
    __atomic_store_n((uint64_t *)to + 1, (uint64_t)mark << 32 | b, __ATOMIC_RELAXED);
#endif
}

PEER_FN uint4 load_words(const void *from)
{
    uint4 v;
#ifdef __CUDA_ARCH__
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
#else
    uint64_t a = __atomic_load_n((const uint64_t *)from, __ATOMIC_RELAXED);
    uint64_t b = __atomic_load_n((const uint64_t *)from + 1, __ATOMIC_RELAXED);
    v = {(uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b, (uint32_t)(b >> 32)};
#endif
    return v;
}

PEER_FN void store_release(uint64_t *to, uint64_t v)
{
#ifdef __CUDA_ARCH__
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(v) : "memory");
#else
    __atomic_store_n(to, v, __ATOMIC_RELEASE);
#endif
}

PEER_FN uint64_t load_acquire(const uint64_t *from)
{
    uint64_t v;
#ifdef __CUDA_ARCH__
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(from) : "memory");
#else
    v = __atomic_load_n(from, __ATOMIC_ACQUIRE);
#endif
    return v;
}

template <class T> PEER_FN T look(const T *p)
{
#ifdef __CUDA_ARCH__
    return *(const volatile T *)p;
#else
    return __atomic_load_n(p, __ATOMIC_RELAXED);
#endif
}

template <class T> PEER_FN void tell(T *p, T v)
{
#ifdef __CUDA_ARCH__
    *(volatile T *)p = v;
#else
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
#endif
}

PEER_FN void fence_system()
{
#ifdef __CUDA_ARCH__
    __threadfence_system();
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

PEER_FN uint32_t add_one(uint32_t *p) // the value before
{
#ifdef __CUDA_ARCH__
    return atomicAdd(p, 1u);
#else
    return __atomic_fetch_add(p, 1u, __ATOMIC_ACQ_REL);
#endif
}

PEER_FN bool first_to_set(uint32_t *p, uint32_t v)
{
#ifdef __CUDA_ARCH__
    return atomicCAS(p, 0u, v) == 0;
#else
    uint32_t zero = 0;
    return __atomic_compare_exchange_n(p, &zero, v, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
#endif
}

// What a peer wrote lies in the second level cache, never in the first.
template <class T> PEER_FN T load_fresh(const T *p)
{
#ifdef __CUDA_ARCH__
    return __ldcg(p);
#else
    return *p;
#endif
}

// ---- the window

PEER_FN size_t window_bytes(int size, size_t pieces_bytes)
{
    return (size_t)2 * size * (2 * PEER_WORDS_BYTES + pieces_bytes) +
           (size_t)size * PEER_BLOCKS * PEER_FLAG_STRIDE * sizeof(uint64_t);
}

PEER_FN size_t words_at(const peer_group &g, uint64_t number, int from)
{
    return ((number & 1) * g.size + from) * (size_t)(2 * PEER_WORDS_BYTES);
}

PEER_FN size_t pieces_at(const peer_group &g, uint64_t number, int from)
{
    return (size_t)2 * g.size * (2 * PEER_WORDS_BYTES) +
           ((number & 1) * g.size + from) * g.pieces_bytes;
}

PEER_FN uint64_t *flag_of(const peer_group &g, int window, int from, int block)
{
    size_t at = (size_t)2 * g.size * (2 * PEER_WORDS_BYTES + g.pieces_bytes);
    return (uint64_t *)(g.windows[window] + at) + (from * PEER_BLOCKS + block) * PEER_FLAG_STRIDE;
}

PEER_FN uint32_t mark_of(uint64_t number)
{
    return (uint32_t)number << 1 | 1;
}

// The i-th rank after, and before, this one: not all ranks write to the same one at once.
PEER_FN int after(const peer_group &g, int i)
{
    return g.rank + i < g.size ? g.rank + i : g.rank + i - g.size;
}
PEER_FN int before(const peer_group &g, int i)
{
    return g.rank >= i ? g.rank - i : g.rank - i + g.size;
}

// ---- waiting

PEER_FN void give_up(const peer_group &g, uint64_t number, uint32_t why, int from)
{
    uint32_t code = why | (uint32_t)from << 8;
    if (!first_to_set(&g.state->failed, code))
        return;
    tell(&g.host->failed_number, number);
    fence_system();
    tell(&g.host->failed, code);
}

struct patience {
    uint32_t polls = 0;
    uint64_t since = 0;
};

// After a look that found nothing; false: stop waiting.
PEER_FN bool wait_on(const peer_group &g, patience &p, uint64_t number, int from)
{
#ifndef __CUDA_ARCH__
    sched_yield();
#endif
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
template <class where> PEER_FN uint64_t begin(const where &w, const peer_group &g)
{
    uint64_t number = look(&g.state->number) + 1;
    if (look(&g.state->failed))
        return 0;
    if (w.block() == 0 && w.thread() == 0)
        tell(&g.host->started, number);
    return number;
}

// All threads. The last block of the grid advances the number. No fence: it only matters that every
// block has read the number, and what they wrote is for kernels that come later.
template <class where> PEER_FN void end(const where &w, const peer_group &g, uint64_t number)
{
    w.sync();
    if (w.thread())
        return;
    if (w.blocks() > 1) {
        if (add_one(&g.state->arrived) + 1 != w.blocks())
            return;
        tell(&g.state->arrived, 0u);
    }
    tell(&g.state->number, number);
}

// Clears our own half of the next collective: its words were read in the collective before this
// one, and peers write there only after they have what every block of ours sends below.
template <class where>
PEER_FN void clear_words(const where &w, const peer_group &g, uint64_t number)
{
    size_t n = (size_t)g.size * (2 * PEER_WORDS_BYTES) / 16;
    char *half = g.windows[g.rank] + words_at(g, number + 1, 0);
    for (size_t i = w.block() * w.threads() + w.thread(); i < n; i += w.blocks() * w.threads())
        store_words(half + i * 16, 0, 0, 0);
    fence_system();
    w.sync();
}

// false: gave up.
PEER_FN bool receive_words(const peer_group &g, uint64_t number, int from, uint32_t packet,
                           uint2 *out)
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

// Rows of slices of `part` 4-byte words, taken two at a time. `pair`: a slice is whole pairs and
// 8-byte aligned.
template <bool pair> struct slice {
    char *buf;
    uint32_t part, packets; // words and packets of a row's slice
    size_t stride;          // bytes of a row

    PEER_FN char *address(int rank, uint32_t packet, uint32_t *word) const
    {
        uint32_t row = packet / packets;
        *word = (packet - row * packets) * 2;
        return buf + row * stride + ((size_t)rank * part + *word) * 4;
    }
    PEER_FN uint2 load(int rank, uint32_t packet) const
    {
        uint32_t word;
        const char *p = address(rank, packet, &word);
        if (pair)
            return *(const uint2 *)p;
        return make_uint2(((const uint32_t *)p)[0], word + 1 < part ? ((const uint32_t *)p)[1] : 0);
    }
    PEER_FN void store(int rank, uint32_t packet, uint2 v) const
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

template <class where, bool pair>
PEER_FN void gather_words(const where &w, const peer_group &g, const slice<pair> &s,
                          uint32_t packets)
{
    const uint64_t number = begin(w, g);
    if (!number)
        return;
    if (number % clear_every < 2)
        clear_words(w, g, number);
    const uint32_t first = w.block() * w.threads() + w.thread(), step = w.blocks() * w.threads();
    const size_t at = words_at(g, number, g.rank);
    for (uint32_t p = first; p < packets; p += step) {
        uint2 v = s.load(g.rank, p);
        for (int i = 1; i < g.size; i++)
            store_words(g.windows[after(g, i)] + at + (size_t)p * 16, v.x, v.y, mark_of(number));
    }
    bool fine = true;
    for (uint32_t p = first; p < packets && fine; p += step)
        for (int i = 1; i < g.size && fine; i++) {
            uint2 v;
            fine = receive_words(g, number, before(g, i), p, &v);
            if (fine)
                s.store(before(g, i), p, v);
        }
    end(w, g, number);
}

template <class where>
PEER_FN void reduce_words(const where &w, const peer_group &g, float2 *buf, uint32_t packets)
{
    const uint64_t number = begin(w, g);
    if (!number)
        return;
    if (number % clear_every < 2)
        clear_words(w, g, number);
    const uint32_t first = w.block() * w.threads() + w.thread(), step = w.blocks() * w.threads();
    const size_t at = words_at(g, number, g.rank);
    for (uint32_t p = first; p < packets; p += step) {
        float2 own = buf[p];
        uint2 v;
        memcpy(&v, &own, sizeof v);
        for (int i = 1; i < g.size; i++)
            store_words(g.windows[after(g, i)] + at + (size_t)p * 16, v.x, v.y, mark_of(number));
    }
    bool fine = true;
    for (uint32_t p = first; p < packets && fine; p += step) {
        float2 own = buf[p], sum = make_float2(0, 0);
        for (int from = 0; from < g.size && fine; from++) {
            float2 v = own;
            if (from != g.rank) {
                uint2 words = make_uint2(0, 0);
                fine = receive_words(g, number, from, p, &words);
                memcpy(&v, &words, sizeof v);
            }
            sum = from ? make_float2(sum.x + v.x, sum.y + v.y) : v;
        }
        if (fine)
            buf[p] = sum;
    }
    end(w, g, number);
}

// ---- pieces

struct pieces {
    char *buf;
    uint32_t row_vecs, vecs, piece; // vectors of a row's slice, of all, and of a piece
    int blocks;                     // that send; as many receive
};

// vec: 16 bytes where rows allow it, else 4. *go is shared by the threads of the block.
template <class vec, class where>
PEER_FN void gather_pieces(const where &w, const peer_group &g, const pieces &a, int *go)
{
    const uint64_t number = begin(w, g);
    if (!number)
        return;
    const bool sends = (int)w.block() < a.blocks;
    const int b = sends ? (int)w.block() : (int)w.block() - a.blocks;
    const uint32_t first = (uint32_t)((uint64_t)a.vecs * b / a.blocks);
    const uint32_t last = (uint32_t)((uint64_t)a.vecs * (b + 1) / a.blocks);
    const size_t stride = (size_t)a.row_vecs * g.size * sizeof(vec);
    bool fine = true;
    uint64_t flag = number << 16;
    for (uint32_t at = first; at < last && fine; at += a.piece) {
        const uint32_t stop = last - at < a.piece ? last : at + a.piece;
        flag++;
        for (int i = 1; i < g.size && fine; i++) {
            const int peer = sends ? after(g, i) : before(g, i);
            const int owner = sends ? g.rank : peer; // of the slice
            char *area = g.windows[sends ? peer : g.rank] + pieces_at(g, number, owner);
            if (!sends) {
                if (w.thread() == 0) {
                    patience p;
                    int come = 1;
                    while (come && load_acquire(flag_of(g, g.rank, peer, b)) < flag)
                        come = wait_on(g, p, number, peer);
                    *go = come;
                }
                w.sync();
                fine = *go;
                if (!fine)
                    break; // all threads of the block
            }
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
            for (uint32_t v = at + w.thread(); v < stop; v += w.threads()) {
                uint32_t row = v / a.row_vecs, col = v - row * a.row_vecs;
                vec *here = (vec *)(a.buf + row * stride) + (size_t)owner * a.row_vecs + col;
                vec *there = (vec *)area + v;
                if (sends)
                    *there = *here;
                else
                    *here = load_fresh(there);
            }
            w.sync();
            if (sends && w.thread() == 0)
                store_release(flag_of(g, peer, g.rank, b), flag);
        }
    }
    end(w, g, number);
}

} // namespace peer
