// The CPU bodies' common part: state of an open kern, scratch memory, packing of weights.
#pragma once

#include "kernels/cpu/pool.h"
#include "kernels/kern_impl.h"

// Scratch arenas, by who uses them during one op; contents last until the next op.
enum cpu_arena { CPU_ARENA_THREADS, CPU_ARENA_SHARED, CPU_ARENA_PLAN, CPU_ARENAS };

struct cpu {
    struct kern base;
    struct cpu_pool *pool;
    struct {
        void *p;
        size_t bytes;
    } arenas[CPU_ARENAS];
    struct sample_memory *sampling; // of the vocabulary sampled from last
    size_t sampling_vocab;
};

static inline struct cpu *cpu_of(struct kern *k)
{
    return (struct cpu *)k;
}

// At least `bytes`, 64-byte aligned, contents undefined. Grows to the high-water mark, then stays.
// Called by the owner thread before it hands out items.
void *cpu_scratch(struct kern *k, enum cpu_arena arena, size_t bytes);

// Runs fn over items, on the pool when the op is worth waking helpers: cost = fused multiply-adds
// (or memory elements touched) of the whole op.
void cpu_run(struct kern *k, size_t items, size_t cost, cpu_item_fn *fn, void *ctx);

// Packed matrix of the fast body: tiles of 16 rows, [tiles][cols][16] in the weight's dtype, rows
// beyond the last are zero. Where row `lane` of a tile lies among the 16: bf16 interleaves the two
// halves, so that a 32-bit shift (or mask) turns 16 packed values into lanes 0-7 (or 8-15).
enum { TILE = 16 };
static inline size_t cpu_tile_slot(enum kern_dtype dtype, size_t lane)
{
    return dtype != KERN_BF16 ? lane : lane < 8 ? 2 * lane : 2 * (lane - 8) + 1;
}

// One element of any weight dtype as float32.
float cpu_to_f32(enum kern_dtype dtype, const void *element);

// Where the token at batch row i lies: its row of the pool.
static inline float *cpu_kv_row(const struct kern_kv *kv, const int32_t *table, size_t pos)
{
    size_t block = (size_t)table[pos / kv->block_tokens];
    assert(block < kv->blocks);
    return (float *)kv->buf->p + kv->at +
           (block * kv->block_tokens + pos % kv->block_tokens) * kv->width;
}
// The block table of batch row i, after checking the row's indices.
static inline const int32_t *cpu_row_table(const struct kern_batch *b, size_t i)
{
    int32_t seq = kern_i32(b->seq)[i], pos = kern_i32(b->pos)[i];
    assert(seq >= 0 && (size_t)seq < b->seqs && pos >= 0 && (size_t)pos < b->keys_max);
    return kern_i32(b->tables) + (size_t)seq * b->table_stride;
}

// One body for all: what takes time are comparisons, row by row.
void cpu_sample(struct kern *k, const struct kern_sample_args *a);

extern const struct kern_compute cpu_compute_ref;
extern const struct kern_compute cpu_compute_portable;
#if defined(__x86_64__)
extern const struct kern_compute cpu_compute_avx2;
extern const struct kern_compute cpu_compute_avx512;
#endif
