// The matrix core of the fast body: m rows of x times a run of weight tiles. Every output element
// is one fused-multiply-add chain over rising k, whatever shape of register tile computes it.
#pragma once

#include "kernels/cpu/simd.h"

enum {
    TILES_ROWS = 6,   // rows of x per call
    TILES_RUN = 4,    // tiles per call and item: the width that hides FMA latency for one row
    TILES_K = 1024,   // k is walked in pieces of this when several row groups reuse a run of tiles
    TILES_BLOCK = 48, // rows of x per item: they stay in the cache while tiles stream by
};

// One matrix of a stack.
struct tiles {
    enum kern_dtype dtype;
    const char *p;
    size_t rows, cols, n; // n tiles
};
INLINE struct tiles tiles_of(const struct kern_weight *w, size_t s)
{
    return (struct tiles){w->held, (const char *)w->p + s * w->stack_bytes, w->shape.rows,
                          w->shape.cols, (w->shape.rows + TILE - 1) / TILE};
}

// sums[r][16 * j + lane] for rows r < m of x (pointers) and tiles tile0 + j, j < run <= TILES_RUN.
// m may be anything: rows are taken TILES_ROWS at a time. sums rows are TILES_RUN * 16 apart.
void ISA(tiles_dot)(const struct tiles *w, size_t tile0, size_t run, const float *const *x,
                    size_t m, float *sums);
