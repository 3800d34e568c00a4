// linear and linear_heads: items are (block of rows, head, run of tiles); runs vary fastest, so a
// block of x stays in the cache while the weights stream by.
#include "kernels/cpu/ops.h"

#include "kernels/cpu/tiles.h"

struct linear_job {
    const struct kern_weight *w;
    const struct kern_view *x, *out, *add;
    const float *bias;
    size_t n, heads, x_head_stride, out_head_stride;
    size_t runs; // runs of tiles per head
};

static void finish_row(const struct linear_job *j, size_t row, size_t col0, size_t cols,
                       size_t out_at, const float *sums)
{
    float *out = kern_row(j->out, row) + out_at + col0;
    float y[TILES_RUN * TILE];
    memcpy(y, sums, cols * sizeof *y);
    if (j->bias)
        for (size_t c = 0; c < cols; c++)
            y[c] += j->bias[col0 + c];
    if (j->add && j->add->buf) {
        const float *add = kern_row(j->add, row) + col0;
        for (size_t c = 0; c < cols; c++)
            y[c] += add[c];
    }
    memcpy(out, y, cols * sizeof *y);
}

static void linear_item(void *ctx, size_t item, int thread)
{
    const struct linear_job *j = ctx;
    size_t run = item % j->runs, head = item / j->runs % j->heads;
    size_t row0 = item / j->runs / j->heads * TILES_BLOCK;
    size_t m = j->n - row0 < TILES_BLOCK ? j->n - row0 : TILES_BLOCK;
    struct tiles w = tiles_of(j->w, head);
    size_t tile0 = run * TILES_RUN, tiles = w.n - tile0 < TILES_RUN ? w.n - tile0 : TILES_RUN;
    const float *x[TILES_BLOCK] = {NULL};
    float sums[TILES_BLOCK * TILES_RUN * TILE];
    for (size_t i = 0; i < m; i++)
        x[i] = kern_row(j->x, row0 + i) + head * j->x_head_stride;
    ISA(tiles_dot)(&w, tile0, tiles, x, m, sums);
    size_t col0 = tile0 * TILE, cols = tiles * TILE;
    if (cols > w.rows - col0)
        cols = w.rows - col0;
    for (size_t i = 0; i < m; i++)
        finish_row(j, row0 + i, col0, cols, head * j->out_head_stride, sums + i * TILES_RUN * TILE);
}

static void linear_run(struct kern *k, struct linear_job *j)
{
    const struct kern_weight_args *s = &j->w->shape;
    j->runs = (s->rows + TILE * TILES_RUN - 1) / (TILE * TILES_RUN);
    size_t blocks = (j->n + TILES_BLOCK - 1) / TILES_BLOCK;
    cpu_run(k, blocks * j->heads * j->runs, j->n * j->heads * s->rows * s->cols, linear_item, j);
}

void ISA(linear)(struct kern *k, const struct kern_linear_args *a)
{
    struct linear_job j = {.w = a->w,
                           .x = &a->x,
                           .out = &a->out,
                           .add = &a->add,
                           .bias = a->bias ? a->bias->p : NULL,
                           .n = a->n,
                           .heads = 1};
    linear_run(k, &j);
}

void ISA(linear_heads)(struct kern *k, const struct kern_linear_heads_args *a)
{
    struct linear_job j = {.w = a->w,
                           .x = &a->x,
                           .out = &a->out,
                           .n = a->n,
                           .heads = a->w->shape.stack,
                           .x_head_stride = a->x_head_stride,
                           .out_head_stride = a->out_head_stride};
    linear_run(k, &j);
}
