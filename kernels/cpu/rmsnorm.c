// rmsnorm: the sum of squares runs in 8 lanes (f_dot), the rest element by element.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

static void rmsnorm_row(const void *args, size_t i)
{
    const struct kern_rmsnorm_args *a = args;
    const float *restrict gamma = a->gamma->p;
    for (size_t h = 0; h < a->heads; h++) {
        const float *x = kern_row(&a->x, i) + h * a->x_head_stride;
        float *out = kern_row(&a->out, i) + h * a->out_head_stride;
        float r = 1 / sqrtf(f_dot(x, x, a->dim) / (float)a->dim + a->eps);
        for (size_t c = 0; c < a->dim; c++)
            out[c] = x[c] * r * gamma[c];
    }
}

void ISA(rmsnorm)(struct kern *k, const struct kern_rmsnorm_args *a)
{
    rows_run(k, a->n, a->heads * a->dim, a, rmsnorm_row);
}
