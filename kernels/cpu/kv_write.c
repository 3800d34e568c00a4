// kv_write: scatters rows into the paged pool.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

static void kv_write_row(const void *args, size_t i)
{
    const struct kern_kv_write_args *a = args;
    const int32_t *table = cpu_row_table(a->batch, i);
    float *token = cpu_kv_row(&a->kv, table, (size_t)kern_i32(a->batch->pos)[i]);
    memcpy(token, kern_row(&a->a, i), a->a_dim * sizeof(float));
    memcpy(token + a->a_dim, kern_row(&a->b, i), a->b_dim * sizeof(float));
}

void ISA(kv_write)(struct kern *k, const struct kern_kv_write_args *a)
{
    rows_run(k, a->batch->n, a->kv.width, a, kv_write_row);
}
