// add and silu_mul. An output may be one of the inputs.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

static void add_row(const void *args, size_t i)
{
    const struct kern_add_args *a = args;
    const float *x = kern_row(&a->a, i), *y = kern_row(&a->b, i);
    float *out = kern_row(&a->out, i);
    for (size_t c = 0; c < a->dim; c++)
        out[c] = x[c] + y[c];
}

void ISA(add)(struct kern *k, const struct kern_add_args *a)
{
    rows_run(k, a->n, a->dim, a, add_row);
}

static void silu_mul_row(const void *args, size_t i)
{
    const struct kern_silu_mul_args *a = args;
    const float *gate = kern_row(&a->gate, i), *up = kern_row(&a->up, i);
    float *out = kern_row(&a->out, i);
    size_t c = 0;
    for (; c + 8 <= a->dim; c += 8)
        v8_store(out + c, v8_silu(v8_load(gate + c)) * v8_load(up + c));
    if (c < a->dim) {
        size_t n = a->dim - c;
        v8_store_n(out + c, v8_silu(v8_load_n(gate + c, n)) * v8_load_n(up + c, n), n);
    }
}

void ISA(silu_mul)(struct kern *k, const struct kern_silu_mul_args *a)
{
    rows_run(k, a->n, 4 * a->dim, a, silu_mul_row);
}
