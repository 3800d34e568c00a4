// embed and gather_rows: looking rows up.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

static void embed_row(const void *args, size_t i)
{
    const struct kern_embed_args *a = args;
    const struct kern_weight_args *s = &a->table->shape;
    int32_t id = kern_i32(a->ids)[a->ids_at + i];
    assert(id >= 0 && (size_t)id < s->rows);
    size_t e = kern_dtype_bytes(s->dtype);
    const char *src = (const char *)a->table->p + (size_t)id * s->cols * e;
    float *out = kern_row(&a->out, i);
    for (size_t c = 0; c < s->cols; c++)
        out[c] = cpu_to_f32(s->dtype, src + c * e);
}

void ISA(embed)(struct kern *k, const struct kern_embed_args *a)
{
    rows_run(k, a->n, a->table->shape.cols, a, embed_row);
}

static void gather_row(const void *args, size_t i)
{
    const struct kern_gather_args *a = args;
    int32_t row = kern_i32(a->rows)[i];
    assert(row >= 0 && (size_t)row < a->x_rows);
    memcpy(kern_row(&a->out, i), kern_row(&a->x, (size_t)row), a->dim * sizeof(float));
}

void ISA(gather_rows)(struct kern *k, const struct kern_gather_args *a)
{
    rows_run(k, a->n, a->dim, a, gather_row);
}
