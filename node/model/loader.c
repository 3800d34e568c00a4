// Finds tensors and checks them, and turns what weights.c asks for into jobs.
#include "node/model/loader.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "node/model/dequant.h"

enum { PIECE_BYTES = 4 << 20 }; // of one job, in the kern's form

// The only way to ask a kern is to make a small matrix.
static bool computes(struct kern *k, enum kern_dtype dtype)
{
    struct kern_weight *w = NULL;
    const struct kern_weight_args a = {.dtype = dtype, .stack = 1, .rows = 1, .cols = 1};
    bool ok = kern_weight_create(k, &a, &w) == STATUS_OK;
    kern_weight_destroy(w);
    return ok;
}

void loader_start(struct loader *l)
{
    l->native[0] = computes(l->kern, KERN_FP8);
    l->native[1] = computes(l->kern, KERN_INT8);
}

void loader_finish(struct loader *l)
{
    free(l->jobs);
    l->jobs = NULL;
    l->jobs_n = l->jobs_cap = 0;
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
    if (t->dtype != ST_BF16 && t->dtype != ST_F16 && t->dtype != ST_F32 &&
        !loader_is_quantized(t->dtype))
        return errmsg_set(
            l->e, STATUS_BAD_MODEL,
            "%s: tensor '%s': dtype %s, weights must be BF16, F16, F32, F8_E4M3 or I8", t->file,
            name, st_dtype_name(t->dtype));
    *out = t;
    return STATUS_OK;
}

static enum status wrong_shape(struct loader *l, const struct st_tensor *t, int dims_n,
                               const int64_t *shape)
{
    char is[128] = "", want[128] = "";
    for (int i = 0, n = 0; i < t->dims_n; i++)
        n += snprintf(is + n, sizeof is - (size_t)n, "%s%" PRId64, i ? ", " : "",
                      t->shape[i] % 10000000000);
    for (int i = 0, n = 0; i < dims_n; i++)
        n += snprintf(want + n, sizeof want - (size_t)n, "%s%" PRId64, i ? ", " : "", shape[i]);
    return errmsg_set(l->e, STATUS_BAD_MODEL,
                      "%s: tensor '%s': shape [%s], config.json asks for [%s]", t->file, t->name,
                      is, want);
}

// A tensor of one or two dimensions; random weights have every tensor that is asked for. mean_cols:
// the columns that decide how large random numbers are.
static enum status find_shaped(struct loader *l, const char *name, int dims_n, const int64_t *shape,
                               int64_t mean_cols, struct tensor *out)
{
    *out = (struct tensor){.rows = dims_n == 2 ? shape[0] : 1, .cols = shape[dims_n - 1]};
    if (!l->files) {
        out->noise = model_random_tensor(l->source, l->config, name, mean_cols, &out->dtype);
        return STATUS_OK;
    }
    const struct st_tensor *t;
    enum status s = find(l, name, &t);
    if (s != STATUS_OK)
        return s;
    bool same = t->dims_n == dims_n;
    for (int i = 0; same && i < dims_n; i++)
        same = t->shape[i] == shape[i];
    if (!same)
        return wrong_shape(l, t, dims_n, shape);
    out->st = t;
    out->dtype = t->dtype;
    return STATUS_OK;
}

void loader_count(struct loader *l, size_t bytes)
{
    if (l->check_only) {
        l->total += bytes;
        return;
    }
    l->done += bytes;
    if (l->progress.report)
        l->progress.report(l->progress.arg, l->done, l->total);
}

static enum status dtype_of(struct loader *l, const char *name, enum st_dtype *out)
{
    if (!l->files) {
        model_random_tensor(l->source, l->config, name, 1, out);
        return STATUS_OK;
    }
    const struct st_tensor *t = NULL;
    enum status s = find(l, name, &t);
    if (s == STATUS_OK)
        *out = t->dtype;
    return s;
}

// True when 128x128 blocks of the checkpoint are those of the kern.
static bool blocks_native(const struct loader *l)
{
    const int *b = l->config->fp8_block;
    return l->native[0] && b[0] == KERN_SCALE_BLOCK && b[1] == KERN_SCALE_BLOCK;
}

enum status loader_dtype(struct loader *l, const char *const *names, enum loader_keep keep,
                         enum kern_dtype *out)
{
    enum st_dtype first = ST_F32, d = ST_F32;
    bool same = true, wide = false; // wide: what bf16 cannot hold
    for (int i = 0; names[i]; i++) {
        enum status s = dtype_of(l, names[i], &d);
        if (s != STATUS_OK)
            return s;
        first = i ? first : d;
        same &= d == first;
        wide |= d == ST_F32 || d == ST_F16;
    }
    const bool gpu = kern_backend(l->kern) == KERN_CUDA;
    if (same && first == ST_BF16)
        *out = KERN_BF16;
    else if (same && first == ST_F16)
        *out = KERN_F16;
    else if (same && first == ST_F8_E4M3 && keep == LOADER_KEEP_ALL && blocks_native(l))
        *out = KERN_FP8;
    else if (same && first == ST_I8 && keep != LOADER_KEEP_NONE && l->native[1])
        *out = KERN_INT8;
    else
        *out = gpu && !wide ? KERN_BF16 : KERN_F32;
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

static enum status check_scales_dtype(struct loader *l, const char *name,
                                      const struct tensor *scales)
{
    if (loader_is_quantized(scales->dtype))
        return errmsg_set(l->e, STATUS_BAD_MODEL, "%s: tensor '%s': scales cannot be %s",
                          scales->st->file, name, st_dtype_name(scales->dtype));
    return STATUS_OK;
}

enum status loader_find_scales(struct loader *l, const struct loader_rows *r, enum st_dtype dtype,
                               struct tensor *out)
{
    char name[320];
    const int *block = l->config->fp8_block;
    const bool fp8 = dtype == ST_F8_E4M3;
    if (fp8 ? !block[0] : !l->config->int8)
        return errmsg_set(l->e, STATUS_BAD_MODEL,
                          "config.json: quantization_config is missing or of another kind, but "
                          "tensor '%s' is %s",
                          r->name, st_dtype_name(dtype));
    snprintf(name, sizeof name, "%s_%s", r->name, fp8 ? "scale_inv" : "scale");
    int64_t shape[2] = {r->rows, 1};
    if (fp8) {
        shape[0] = (r->rows + block[0] - 1) / block[0];
        shape[1] = (r->cols + block[1] - 1) / block[1];
    }
    enum status s = find_shaped(l, name, 2, shape, r->cols, out);
    return s == STATUS_OK ? check_scales_dtype(l, name, out) : s;
}

// Rows of a job: some megabytes, whole blocks of scales. A transposed piece fills whole columns of
// w, so it is never cut (they are one head's).
static int64_t rows_at_once(const struct loader_rows *r, const struct loader_dest *d)
{
    if (d->transposed)
        return r->n;
    int64_t n = PIECE_BYTES / (r->cols * // whole rows are read
                               (int64_t)loader_element_bytes(d->dtype));
    n = n / KERN_SCALE_BLOCK * KERN_SCALE_BLOCK;
    return n ? n : KERN_SCALE_BLOCK;
}

static void add_job(struct loader *l, const struct loader_job *j)
{
    MEM_GROW(l->jobs, l->jobs_n, l->jobs_cap);
    l->jobs[l->jobs_n++] = *j;
}

// Random weights that need no conversion are made on the device, at once.
static enum status fill_noise(struct loader *l, const struct loader_rows *r,
                              const struct loader_job *j)
{
    kern_weight_fill_noise(j->d.w, &(struct kern_noise_args){.s = j->d.s,
                                                             .row0 = j->d.row0,
                                                             .rows = (size_t)r->n,
                                                             .key = j->t.noise.key,
                                                             .first = (uint64_t)r->first,
                                                             .mean = j->t.noise.mean,
                                                             .amplitude = j->t.noise.amplitude});
    if (!loader_is_quantized(j->t.dtype))
        return STATUS_OK;
    const struct loader_span s = loader_scale_rows(l, j->t.dtype, r->first, r->n);
    float *scales = mem_zalloc((size_t)(s.n * j->scales.cols), sizeof *scales);
    enum status st = tensor_read(&j->scales, s.first, s.n, scales, l->e); // float32 when random
    if (st == STATUS_OK)
        kern_weight_fill_scales(
            j->d.w, &(struct kern_scales_args){
                        .s = j->d.s, .row0 = j->d.row0, .rows = (size_t)r->n, .data = scales});
    free(scales);
    return st;
}

enum status loader_fill(struct loader *l, const struct loader_rows *r, const struct loader_dest *d)
{
    struct loader_job j = {
        .d = *d, .first_col = r->first_col, .cols = r->cols_n ? r->cols_n : r->cols};
    int64_t shape[2] = {r->rows, r->cols};
    enum status s = find_shaped(l, r->name, 2, shape, r->cols, &j.t);
    if (s == STATUS_OK && loader_is_quantized(j.t.dtype))
        s = loader_find_scales(l, r, j.t.dtype, &j.scales);
    if (s != STATUS_OK)
        return s;
    const size_t row = (size_t)j.cols * st_dtype_size(j.t.dtype);
    if (l->check_only) {
        loader_count(l, (size_t)r->n * row);
        if (l->seen)
            l->seen(l->seen_arg, r->name, &j.t, &j.scales);
        return STATUS_OK;
    }
    if (!l->files && kern_backend(l->kern) == KERN_CUDA && loader_is_direct(&j.t, d) &&
        j.cols == r->cols) {
        s = fill_noise(l, r, &j);
        loader_count(l, (size_t)r->n * row);
        return s;
    }
    const int64_t step = rows_at_once(r, d);
    for (int64_t i = 0; i < r->n; i += step) {
        j.first = r->first + i;
        j.n = r->n - i < step ? r->n - i : step;
        j.d.row0 = d->row0 + (size_t)i;
        j.bytes = (size_t)j.n * row;
        add_job(l, &j);
    }
    return STATUS_OK;
}

enum status loader_vector_fill(struct loader *l, const struct loader_vector *v,
                               struct kern_buf *buf, size_t at)
{
    struct tensor t;
    enum status s = find_shaped(l, v->name, 1, &v->total, 0, &t);
    if (s == STATUS_OK && loader_is_quantized(t.dtype))
        return errmsg_set(l->e, STATUS_BAD_MODEL, "%s: tensor '%s': a vector cannot be %s",
                          t.st->file, v->name, st_dtype_name(t.dtype));
    if (s != STATUS_OK)
        return s;
    const size_t size = st_dtype_size(t.dtype), n = (size_t)v->n;
    if (!l->check_only) {
        char *raw = mem_alloc((size_t)v->total * size);
        float *f = mem_alloc(n * sizeof *f);
        s = tensor_read(&t, 0, 1, raw, l->e);
        if (s == STATUS_OK) {
            dequant_row(t.dtype, raw + (size_t)v->first * size, n, f);
            kern_upload(buf, at, f, n);
        }
        free(raw);
        free(f);
    }
    if (s == STATUS_OK)
        loader_count(l, n * size);
    if (s == STATUS_OK && l->check_only && l->seen)
        l->seen(l->seen_arg, v->name, &t, &(struct tensor){0});
    return s;
}
