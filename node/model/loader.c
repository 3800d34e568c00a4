// Copies checkpoint tensors into the kern's form. Owns the float32 scratch of conversions; works in
// pieces of a few MB and lets the kernel drop pages of the mapping behind it.
#include "node/model/loader.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "node/model/dequant.h"

enum { PIECE = 4 << 20 }; // elements converted or copied at once

void loader_finish(struct loader *l)
{
    free(l->scratch);
    l->scratch = NULL;
    l->scratch_n = 0;
}

static float *scratch(struct loader *l, size_t n)
{
    if (l->scratch_n < n) {
        free(l->scratch);
        l->scratch = mem_alloc(n * sizeof *l->scratch);
        l->scratch_n = n;
    }
    return l->scratch;
}

static enum status find(struct loader *l, const char *name, const struct st_tensor **out)
{
    const struct st_tensor *t = safetensors_find(l->files, name);
    size_t n = safetensors_count(l->files);
    if (!t) {
        const char *a = n ? safetensors_at(l->files, 0)->file : "model";
        const char *b = n ? safetensors_at(l->files, n - 1)->file : a;
        return errmsg_set(l->e, STATUS_BAD_MODEL, "%s%s: tensor '%s' is missing", a,
                          strcmp(a, b) ? " and the files beside it" : "", name);
    }
    if (t->dtype != ST_BF16 && t->dtype != ST_F16 && t->dtype != ST_F32 && t->dtype != ST_F8_E4M3)
        return errmsg_set(l->e, STATUS_BAD_MODEL,
                          "%s: tensor '%s': dtype %s, weights must be BF16, F16, F32 or F8_E4M3",
                          t->file, name, st_dtype_name(t->dtype));
    *out = t;
    return STATUS_OK;
}

static enum status find_shaped(struct loader *l, const char *name, int dims_n, const int64_t *shape,
                               const struct st_tensor **out)
{
    enum status s = find(l, name, out);
    if (s != STATUS_OK)
        return s;
    const struct st_tensor *t = *out;
    bool same = t->dims_n == dims_n;
    for (int i = 0; same && i < dims_n; i++)
        same = t->shape[i] == shape[i];
    if (same)
        return STATUS_OK;
    char is[128] = "", want[128] = "";
    for (int i = 0, n = 0; i < t->dims_n; i++)
        n += snprintf(is + n, sizeof is - (size_t)n, "%s%" PRId64, i ? ", " : "",
                      t->shape[i] % 10000000000);
    for (int i = 0, n = 0; i < dims_n; i++)
        n += snprintf(want + n, sizeof want - (size_t)n, "%s%" PRId64, i ? ", " : "", shape[i]);
    return errmsg_set(l->e, STATUS_BAD_MODEL,
                      "%s: tensor '%s': shape [%s], config.json asks for [%s]", t->file, name, is,
                      want);
}

static void count(struct loader *l, const struct st_tensor *t, size_t elements)
{
    size_t bytes = elements * st_dtype_size(t->dtype);
    if (l->check_only) {
        l->total += bytes;
        return;
    }
    l->done += bytes;
    if (l->progress.report)
        l->progress.report(l->progress.arg, l->done, l->total);
}

static bool is_16bit(enum st_dtype d)
{
    return d == ST_BF16 || d == ST_F16;
}

enum status loader_dtype(struct loader *l, const char *const *names, enum kern_dtype *out)
{
    const struct st_tensor *first = NULL, *t = NULL;
    bool same = true;
    for (int i = 0; names[i]; i++) {
        enum status s = find(l, names[i], &t);
        if (s != STATUS_OK)
            return s;
        first = first ? first : t;
        same &= t->dtype == first->dtype;
    }
    *out = !same || !is_16bit(first->dtype) ? KERN_F32
           : first->dtype == ST_BF16        ? KERN_BF16
                                            : KERN_F16;
    return STATUS_OK;
}

static enum status out_of_memory(struct loader *l, enum status s, size_t n)
{
    return errmsg_set(l->e, s, "%s: no memory for %zu weights", kern_describe(l->kern), n);
}

enum status loader_weight(struct loader *l, const struct kern_weight_args *args,
                          struct kern_weight **out)
{
    if (l->check_only)
        return STATUS_OK;
    enum status s = kern_weight_create(l->kern, args, out);
    return s == STATUS_OK ? s : out_of_memory(l, s, args->stack * args->rows * args->cols);
}

enum status loader_buf(struct loader *l, size_t n, struct kern_buf **out)
{
    if (l->check_only)
        return STATUS_OK;
    enum status s = kern_buf_create(l->kern, KERN_F32, n, out);
    return s == STATUS_OK ? s : out_of_memory(l, s, n);
}

static enum status find_scales(struct loader *l, const struct loader_rows *r,
                               const struct st_tensor **out)
{
    char name[320];
    const int *block = l->config->fp8_block;
    if (!block[0])
        return errmsg_set(l->e, STATUS_BAD_MODEL,
                          "config.json: quantization_config is missing, but tensor '%s' is F8_E4M3",
                          r->name);
    snprintf(name, sizeof name, "%s_scale_inv", r->name);
    int64_t shape[2] = {(r->rows + block[0] - 1) / block[0], (r->cols + block[1] - 1) / block[1]};
    enum status s = find_shaped(l, name, 2, shape, out);
    if (s == STATUS_OK && (*out)->dtype == ST_F8_E4M3)
        return errmsg_set(l->e, STATUS_BAD_MODEL, "%s: tensor '%s': scales cannot be F8_E4M3",
                          (*out)->file, name);
    return s;
}

// Expands rows [first, first + n) of t into scratch as float32.
static const float *to_f32(struct loader *l, const struct st_tensor *t,
                           const struct st_tensor *scales, int64_t first, int64_t n)
{
    size_t cols = (size_t)t->shape[1], size = st_dtype_size(t->dtype);
    size_t scales_n = scales ? (size_t)scales->shape[1] : 0;
    float *out = scratch(l, (size_t)n * cols + scales_n), *row_scales = out + (size_t)n * cols;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *src = (const uint8_t *)t->data + (size_t)(first + i) * cols * size;
        if (!scales) {
            dequant_row(t->dtype, src, cols, out + (size_t)i * cols);
            continue;
        }
        size_t scale_row = (size_t)((first + i) / l->config->fp8_block[0]);
        dequant_row(scales->dtype,
                    (const uint8_t *)scales->data +
                        scale_row * scales_n * st_dtype_size(scales->dtype),
                    scales_n, row_scales);
        dequant_fp8_row(src, cols, row_scales, (size_t)l->config->fp8_block[1],
                        out + (size_t)i * cols);
    }
    return out;
}

static bool same_dtype(enum st_dtype a, enum kern_dtype b)
{
    return (a == ST_F32 && b == KERN_F32) || (a == ST_BF16 && b == KERN_BF16) ||
           (a == ST_F16 && b == KERN_F16);
}

static void fill_piece(struct loader *l, const struct st_tensor *t, const struct st_tensor *scales,
                       const struct loader_dest *d, struct loader_rows piece, size_t row0)
{
    size_t cols = (size_t)piece.cols, at = (size_t)piece.first * cols * st_dtype_size(t->dtype);
    const void *data = (const uint8_t *)t->data + at;
    if (!same_dtype(t->dtype, d->dtype))
        data = to_f32(l, t, scales, piece.first, piece.n);
    struct kern_fill_args f = {.s = d->s, .row0 = row0, .rows = (size_t)piece.n, .data = data};
    if (d->transposed)
        f = (struct kern_fill_args){
            .s = d->s, .rows = cols, .data = data, .row_stride = 1, .col_stride = cols};
    kern_weight_fill(d->w, &f);
    safetensors_release(t, at, (size_t)piece.n * cols * st_dtype_size(t->dtype));
    count(l, t, (size_t)piece.n * cols);
}

enum status loader_fill(struct loader *l, const struct loader_rows *r, const struct loader_dest *d)
{
    const struct st_tensor *t, *scales = NULL;
    int64_t shape[2] = {r->rows, r->cols};
    enum status s = find_shaped(l, r->name, 2, shape, &t);
    if (s == STATUS_OK && t->dtype == ST_F8_E4M3)
        s = find_scales(l, r, &scales);
    if (s != STATUS_OK)
        return s;
    if (l->check_only) {
        count(l, t, (size_t)(r->n * r->cols));
        return STATUS_OK;
    }
    // A transposed piece fills whole columns of w, so it is never cut (they are one head's).
    int64_t step = d->transposed ? r->n : PIECE / r->cols + 1;
    for (int64_t i = 0; i < r->n; i += step) {
        struct loader_rows piece = *r;
        piece.first = r->first + i;
        piece.n = r->n - i < step ? r->n - i : step;
        fill_piece(l, t, scales, d, piece, d->row0 + (size_t)i);
    }
    return STATUS_OK;
}

enum status loader_vector_fill(struct loader *l, const struct loader_vector *v,
                               struct kern_buf *buf, size_t at)
{
    const struct st_tensor *t;
    enum status s = find_shaped(l, v->name, 1, &v->total, &t);
    if (s == STATUS_OK && t->dtype == ST_F8_E4M3)
        return errmsg_set(l->e, STATUS_BAD_MODEL, "%s: tensor '%s': a vector cannot be F8_E4M3",
                          t->file, v->name);
    if (s != STATUS_OK)
        return s;
    if (!l->check_only) {
        size_t size = st_dtype_size(t->dtype);
        float *f = scratch(l, (size_t)v->n);
        dequant_row(t->dtype, (const uint8_t *)t->data + (size_t)v->first * size, (size_t)v->n, f);
        kern_upload(buf, at, f, (size_t)v->n);
    }
    count(l, t, (size_t)v->n);
    return STATUS_OK;
}
