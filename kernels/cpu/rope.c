// rope, in place: products and sums are rounded one by one, as the published code does.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

static void rope_pairs(float *x, const float *cos, const float *sin, size_t half)
{
    for (size_t p = 0; p < half; p++) {
        float u = x[2 * p], v = x[2 * p + 1];
        x[2 * p] = u * cos[p] - v * sin[p];
        x[2 * p + 1] = v * cos[p] + u * sin[p];
    }
}

static void rope_halves(float *x, const float *cos, const float *sin, size_t half)
{
    for (size_t p = 0; p < half; p++) {
        float u = x[p], v = x[p + half];
        x[p] = u * cos[p] - v * sin[p];
        x[p + half] = v * cos[p] + u * sin[p];
    }
}

static void rope_row(const void *args, size_t i)
{
    const struct kern_rope_args *a = args;
    int32_t pos = kern_i32(a->pos)[i];
    assert(pos >= 0 && (size_t)pos < a->positions);
    const float *cos = (const float *)a->table->p + (size_t)pos * a->dim;
    for (size_t h = 0; h < a->heads; h++) {
        float *x = kern_row(&a->x, i) + h * a->head_stride;
        if (a->style == KERN_ROPE_PAIRS)
            rope_pairs(x, cos, cos + a->dim / 2, a->dim / 2);
        else
            rope_halves(x, cos, cos + a->dim / 2, a->dim / 2);
    }
}

void ISA(rope)(struct kern *k, const struct kern_rope_args *a)
{
    rows_run(k, a->n, a->heads * a->dim, a, rope_row);
}
