// Register tiles of the matrix core. M rows by T tiles of sums stay in registers while k runs; the
// shapes are chosen so that sums, weights and one broadcast fit the register file and the chains
// hide the FMA latency (8 or more independent sums).
#include "kernels/cpu/tiles.h"

struct span {
    const char *w; // first tile, at k0
    size_t tile_bytes, k0, k1;
    const float *const *x;
    float *sums;
};

enum { LD = TILES_RUN * TILE };

INLINE void dot(enum kern_dtype dtype, const int M, const int T, const struct span *s)
{
    vt sum[TILES_ROWS][TILES_RUN][TV];
    UNROLL_FOR (m, M)
        UNROLL_FOR (t, T)
            UNROLL_FOR (v, TV)
                sum[m][t][v] = vt_set(0);
    if (s->k0)
        UNROLL_FOR (m, M)
            UNROLL_FOR (t, T)
                tile_restore(dtype, s->sums + m * LD + t * TILE, sum[m][t]);
    const size_t step = TILE * (dtype == KERN_F32 ? 4 : 2);
    const char *w = s->w;
    const float *x[TILES_ROWS];
    UNROLL_FOR (m, M)
        x[m] = s->x[m];
    for (size_t k = s->k0; k < s->k1; k++, w += step) {
        vt weight[TILES_RUN][TV];
        UNROLL_FOR (t, T)
            tile_load(dtype, w + (size_t)t * s->tile_bytes, weight[t]);
        UNROLL_FOR (m, M) {
            vt b = vt_set(x[m][k]);
            UNROLL_FOR (t, T)
                UNROLL_FOR (v, TV)
                    sum[m][t][v] = vt_fma(weight[t][v], b, sum[m][t][v]);
        }
    }
    UNROLL_FOR (m, M)
        UNROLL_FOR (t, T)
            tile_store(dtype, s->sums + m * LD + t * TILE, sum[m][t]);
}

// Tiles taken at once for each number of rows: M * T * TV sums + T * TV weights + 1 broadcast.
#if defined(__AVX512F__)
enum { T1 = 4, T2 = 4, T3 = 4, T4 = 4, T5 = 4, T6 = 4 };
#else
enum { T1 = 4, T2 = 2, T3 = 2, T4 = 1, T5 = 1, T6 = 1 };
#endif

#define DOT_SHAPES(NAME, DTYPE)                                                                    \
    static __attribute__((noinline)) void NAME(int m, size_t t, const struct span *s)              \
    {                                                                                              \
        switch (m * 8 + (int)t) {                                                                  \
            DOT_CASE(DTYPE, 1, T1)                                                                 \
            DOT_CASE(DTYPE, 2, T2)                                                                 \
            DOT_CASE(DTYPE, 3, T3)                                                                 \
            DOT_CASE(DTYPE, 4, T4)                                                                 \
            DOT_CASE(DTYPE, 5, T5)                                                                 \
            DOT_CASE(DTYPE, 6, T6)                                                                 \
        }                                                                                          \
        switch (m) {                                                                               \
            DOT_ONE(DTYPE, 1)                                                                      \
            DOT_ONE(DTYPE, 2)                                                                      \
            DOT_ONE(DTYPE, 3)                                                                      \
            DOT_ONE(DTYPE, 4)                                                                      \
            DOT_ONE(DTYPE, 5)                                                                      \
            DOT_ONE(DTYPE, 6)                                                                      \
        }                                                                                          \
    }
#define DOT_CASE(DTYPE, M, T)                                                                      \
    case M * 8 + T:                                                                                \
        dot(DTYPE, M, T, s);                                                                       \
        return;
#define DOT_ONE(DTYPE, M)                                                                          \
    case M:                                                                                        \
        dot(DTYPE, M, 1, s);                                                                       \
        return;
DOT_SHAPES(dot_bf16, KERN_BF16)
DOT_SHAPES(dot_f16, KERN_F16)
DOT_SHAPES(dot_f32, KERN_F32)

static const unsigned char tiles_at_once[TILES_ROWS + 1] = {0, T1, T2, T3, T4, T5, T6};

void ISA(tiles_dot)(const struct tiles *w, size_t tile0, size_t run, const float *const *x,
                    size_t m, float *sums)
{
    void (*shapes)(int, size_t, const struct span *) = w->dtype == KERN_BF16  ? dot_bf16
                                                       : w->dtype == KERN_F16 ? dot_f16
                                                                              : dot_f32;
    size_t element = kern_dtype_bytes(w->dtype), tile_bytes = w->cols * TILE * element;
    const char *base = w->p + tile0 * tile_bytes;
    size_t piece = m > TILES_ROWS ? TILES_K : w->cols;
    for (size_t k0 = 0; k0 < w->cols; k0 += piece) {
        size_t k1 = k0 + piece < w->cols ? k0 + piece : w->cols;
        for (size_t r = 0; r < m; r += TILES_ROWS) {
            size_t rows = m - r < TILES_ROWS ? m - r : TILES_ROWS, most = tiles_at_once[rows];
            for (size_t t = 0, n; t < run; t += n) {
                n = run - t >= most ? most : 1;
                struct span s = {base + t * tile_bytes + k0 * TILE * element,
                                 tile_bytes,
                                 k0,
                                 k1,
                                 x + r,
                                 sums + r * LD + t * TILE};
                shapes((int)rows, n, &s);
            }
        }
    }
}
