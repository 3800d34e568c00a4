// argmax: the largest value first, eight lanes at a time, then the lowest index that holds it.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

static void argmax_row(const void *args, size_t i)
{
    const struct kern_argmax_args *a = args;
    const float *x = kern_row(&a->x, i);
    v8 best = v8_set(x[0]);
    v8i sane = ~(v8i){0};
    size_t c = 0;
    for (; c + 8 <= a->dim; c += 8) {
        v8 v = v8_load(x + c);
        sane &= v - v == (v8){0};
        best = v8_pick(v > best, v, best);
    }
    float max = v8_max(best);
    int32_t found = 0;
    for (; c < a->dim; c++) {
        found = isfinite(x[c]) ? found : -1;
        max = x[c] > max ? x[c] : max;
    }
    for (int lane = 0; lane < 8; lane++)
        found = sane[lane] ? found : -1;
    for (c = 0; found == 0 && c < a->dim && x[c] != max;)
        c++;
    ((int32_t *)a->out->p)[i] = found ? found : (int32_t)c;
}

void ISA(argmax)(struct kern *k, const struct kern_argmax_args *a)
{
    rows_run(k, a->n, a->dim, a, argmax_row);
}
