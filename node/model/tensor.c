// Rows of a file, or rows that are made up.
#include "node/model/tensor.h"

#include <assert.h>

static void make_row(enum st_dtype dtype, const struct noise *s, size_t n, void *out)
{
    switch (dtype) {
    case ST_F32:
        noise_f32(s, n, out);
        return;
    case ST_BF16:
        noise_bf16(s, n, out);
        return;
    case ST_F8_E4M3:
        noise_e4m3(s, n, out);
        return;
    case ST_I8:
        noise_int8(s, n, out);
        return;
    default:
        assert(!"random tensors have no such dtype");
    }
}

enum status tensor_read(const struct tensor *t, int64_t first, int64_t n, void *out,
                        struct errmsg *e)
{
    const size_t row = (size_t)t->cols * st_dtype_size(t->dtype);
    assert(first >= 0 && n >= 0 && n <= t->rows - first);
    if (t->st)
        return st_tensor_read(t->st, (size_t)first * row, (size_t)n * row, out, e);
    struct noise s = t->noise;
    for (int64_t i = 0; i < n; i++) {
        s.row = (uint64_t)(first + i);
        make_row(t->dtype, &s, (size_t)t->cols, (char *)out + (size_t)i * row);
    }
    return STATUS_OK;
}
