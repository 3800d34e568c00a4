// Which tensors become what, and the numbers: threads take runs of rows, whole rows of blocks at a
// time, so the order does not matter to the result, and each writes to its place in the file.
#include "node/model/quantize.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "node/model/dequant.h"
#include "node/model/encode.h"
#include "node/model/loader.h"
#include "node/model/quantize_int.h"

enum { THREADS_MAX = 64, PIECE_ELEMENTS = 1 << 20, BLOCK = KERN_SCALE_BLOCK };

struct piece {
    size_t item;
    int64_t first, n; // rows
};

struct quantizer {
    const struct quantize_args *args;
    struct model_config c;
    struct safetensors *files; // NULL: random
    struct kern *kern;         // for the loader's look-ups only
    struct loader l;
    struct quantize_item *items;
    size_t items_n, items_cap;
    struct piece *pieces;
    size_t pieces_n, pieces_cap;
    struct out_folder out;
    // shared by the threads
    _Atomic size_t next, running;
    _Atomic uint64_t done; // elements
    uint64_t total;
    pthread_mutex_t mutex;
    enum status status; // under mutex; first failure
    struct errmsg error;
};

// ---- what becomes what

static bool is_scale_of_another(const struct quantizer *q, const char *name)
{
    static const char *const ends[] = {"_scale_inv", "_scale"};
    const size_t n = strlen(name);
    for (int i = 0; i < 2; i++) {
        const size_t m = strlen(ends[i]);
        if (n <= m || strcmp(name + n - m, ends[i]))
            continue;
        char *base = mem_dup(name, n - m + 1);
        base[n - m] = 0;
        const struct st_tensor *t = safetensors_find(q->files, base);
        free(base);
        if (t && loader_is_quantized(t->dtype))
            return true;
    }
    return false;
}

static void name_scales(struct quantize_item *x, enum model_precision to)
{
    const char *end = to == MODEL_FP8 ? "_scale_inv" : "_scale";
    const size_t n = strlen(x->out.name), m = strlen(end);
    x->scales = (struct out_tensor){.name = mem_alloc(n + m + 1), .dtype = ST_F32, .dims_n = 2};
    memcpy(x->scales.name, x->out.name, n);
    memcpy(x->scales.name + n, end, m + 1);
    x->scales.dims[0] = x->t.rows;
    x->scales.dims[1] = 1;
    if (to == MODEL_FP8)
        for (int i = 0; i < 2; i++)
            x->scales.dims[i] = (x->out.dims[i] + BLOCK - 1) / BLOCK;
}

// x->t, x->t_scales and x->out.name, dims are set.
static void decide(struct quantizer *q, struct quantize_item *x)
{
    const enum model_precision to = q->args->to;
    const enum st_dtype d = x->t.dtype;
    const bool matrix = x->out.dims_n == 2 && x->t.rows > 0 && x->t.cols > 0;
    const bool number = d == ST_F32 || d == ST_F16 || d == ST_BF16 || loader_is_quantized(d);
    const bool chosen = matrix && number && model_quantizes(x->out.name);
    x->out.dtype = d;
    if (loader_is_quantized(d) || (chosen && d != ST_BF16 && to == MODEL_BF16))
        x->out.dtype = ST_BF16;
    if (chosen && to != MODEL_BF16) {
        x->out.dtype = to == MODEL_FP8 ? ST_F8_E4M3 : ST_I8;
        name_scales(x, to);
    }
    x->encoded = x->out.dtype != d;
    q->total += (uint64_t)(x->t.rows * x->t.cols);
}

static struct quantize_item *add_item(struct quantizer *q, const char *name)
{
    MEM_GROW(q->items, q->items_n, q->items_cap);
    struct quantize_item *x = &q->items[q->items_n++];
    *x = (struct quantize_item){.out = {.name = mem_strdup(name)}};
    return x;
}

static enum status list_files(struct quantizer *q, struct errmsg *e)
{
    for (size_t i = 0; i < safetensors_count(q->files); i++) {
        const struct st_tensor *t = safetensors_at(q->files, i);
        if (is_scale_of_another(q, t->name))
            continue;
        struct quantize_item *x = add_item(q, t->name);
        x->out.dims_n = t->dims_n;
        memcpy(x->out.dims, t->shape, sizeof t->shape);
        x->t = (struct tensor){.dtype = t->dtype, .rows = 1, .cols = 1, .st = t};
        for (int d = 0; d < t->dims_n; d++) // a vector is one row
            *(d == 0 && t->dims_n > 1 ? &x->t.rows : &x->t.cols) *= t->shape[d];
        if (loader_is_quantized(t->dtype) && t->dims_n != 2)
            return errmsg_set(e, STATUS_BAD_MODEL, "%s: tensor '%s': %s of %d dimensions", t->file,
                              t->name, st_dtype_name(t->dtype), t->dims_n);
        const struct loader_rows r = {
            .name = t->name, .rows = x->t.rows, .cols = x->t.cols, .n = x->t.rows};
        if (loader_is_quantized(t->dtype)) {
            enum status s = loader_find_scales(&q->l, &r, t->dtype, &x->t_scales);
            if (s != STATUS_OK)
                return s;
        }
        decide(q, x);
    }
    return STATUS_OK;
}

static void seen(void *arg, const char *name, const struct tensor *t, const struct tensor *scales)
{
    struct quantizer *q = arg;
    struct quantize_item *x = add_item(q, name);
    x->t = *t;
    x->t_scales = *scales;
    x->out.dims_n = t->rows == 1 ? 1 : 2;
    x->out.dims[0] = t->rows == 1 ? t->cols : t->rows;
    x->out.dims[1] = t->cols;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct quantize_item *)a)->out.name,
                  ((const struct quantize_item *)b)->out.name);
}

// Every tensor that a model of this shape has: those that its loader looks up.
static enum status list_shape(struct quantizer *q, struct errmsg *e)
{
    struct model_plan plan;
    enum status s = model_plan_make(&q->c, &(struct model_rank){0, 1, 0, 1}, &plan, e);
    const struct model_weights_args args = {
        .source = &q->args->source, .config = &q->c, .plan = &plan, .kern = q->kern};
    if (s == STATUS_OK)
        s = model_weights_list(&args, seen, q, e);
    if (s != STATUS_OK)
        return s;
    // Rows of one tensor that go to several places were seen as often.
    qsort(q->items, q->items_n, sizeof *q->items, by_name);
    size_t n = 0;
    for (size_t i = 0; i < q->items_n; i++) {
        if (n && !by_name(&q->items[n - 1], &q->items[i]))
            free(q->items[i].out.name);
        else
            q->items[n++] = q->items[i];
    }
    q->items_n = n;
    for (size_t i = 0; i < n; i++)
        decide(q, &q->items[i]);
    return STATUS_OK;
}

static void cut(struct quantizer *q)
{
    for (size_t i = 0; i < q->items_n; i++) {
        const struct tensor *t = &q->items[i].t;
        if (!t->rows || !t->cols)
            continue;
        int64_t step = PIECE_ELEMENTS / t->cols / BLOCK * BLOCK;
        step = step ? step : BLOCK;
        for (int64_t at = 0; at < t->rows; at += step) {
            MEM_GROW(q->pieces, q->pieces_n, q->pieces_cap);
            q->pieces[q->pieces_n++] =
                (struct piece){i, at, t->rows - at < step ? t->rows - at : step};
        }
    }
}

// ---- numbers

// Rows [first, first + n) of a quantized or plain tensor as float32.
static enum status read_f32(const struct quantizer *q, const struct quantize_item *x, int64_t first,
                            int64_t n, float *out, struct errmsg *e)
{
    const size_t cols = (size_t)x->t.cols, size = st_dtype_size(x->t.dtype);
    char *raw = mem_alloc((size_t)n * cols * size);
    enum status s = tensor_read(&x->t, first, n, raw, e);
    for (size_t i = 0; i < (size_t)n && s == STATUS_OK; i++)
        dequant_row(x->t.dtype, raw + i * cols * size, cols, out + i * cols);
    free(raw);
    if (s != STATUS_OK || !loader_is_quantized(x->t.dtype))
        return s;
    const bool fp8 = x->t.dtype == ST_F8_E4M3;
    const struct loader_span span = loader_scale_rows(&q->l, x->t.dtype, first, n);
    const size_t wide = (size_t)x->t_scales.cols, count = (size_t)span.n * wide;
    raw = mem_alloc(count * st_dtype_size(x->t_scales.dtype));
    float *scales = mem_alloc(count * sizeof *scales);
    s = tensor_read(&x->t_scales, span.first, span.n, raw, e);
    if (s == STATUS_OK) {
        dequant_row(x->t_scales.dtype, raw, count, scales);
        for (int64_t i = 0; i < n; i++) {
            int64_t row = fp8 ? (first + i) / q->c.fp8_block[0] - span.first : i;
            dequant_scale_row(out + (size_t)i * cols, cols, scales + (size_t)row * wide,
                              fp8 ? (size_t)q->c.fp8_block[1] : 0);
        }
    }
    free(raw);
    free(scales);
    return s;
}

static enum status write_rows(struct quantizer *q, const struct quantize_item *x,
                              const struct piece *p, const void *rows, struct errmsg *e)
{
    const size_t row = (size_t)x->t.cols * st_dtype_size(x->out.dtype);
    return out_folder_write(&q->out, &x->out, (uint64_t)p->first * row, rows, (size_t)p->n * row,
                            e);
}

// out: rows in the new dtype; scales: of these rows. false: not finite.
static bool encode(const struct quantize_item *x, const struct piece *p, const float *f, char *out,
                   float *scales)
{
    const size_t cols = (size_t)x->t.cols, n = (size_t)p->n;
    bool ok = true;
    if (x->out.dtype == ST_BF16)
        dequant_store(KERN_BF16, f, n * cols, out, 1);
    else if (x->out.dtype == ST_F8_E4M3)
        for (size_t i = 0; i < n && ok; i += BLOCK)
            ok = encode_fp8(f + i * cols, n - i < BLOCK ? n - i : BLOCK, cols,
                            (uint8_t *)out + i * cols,
                            scales + i / BLOCK * (size_t)x->scales.dims[1]);
    else
        for (size_t i = 0; i < n && ok; i++)
            ok = encode_int8(f + i * cols, cols, (int8_t *)out + i * cols, scales + i);
    return ok;
}

static enum status write_scales(struct quantizer *q, const struct quantize_item *x,
                                const struct piece *p, const float *scales, struct errmsg *e)
{
    const int64_t unit = x->out.dtype == ST_F8_E4M3 ? BLOCK : 1;
    const size_t row = (size_t)x->scales.dims[1] * sizeof *scales;
    const size_t rows = (size_t)((p->n + unit - 1) / unit);
    return out_folder_write(&q->out, &x->scales, (uint64_t)(p->first / unit) * row, scales,
                            rows * row, e);
}

static enum status carry_out(struct quantizer *q, const struct piece *p, struct errmsg *e)
{
    const struct quantize_item *x = &q->items[p->item];
    const size_t n = (size_t)p->n * (size_t)x->t.cols;
    char *out = mem_alloc(n * st_dtype_size(x->out.dtype));
    enum status s;
    if (!x->encoded) {
        s = tensor_read(&x->t, p->first, p->n, out, e);
    } else {
        float *f = mem_alloc(n * sizeof *f), *scales = mem_alloc((n + 1) * sizeof *scales);
        s = read_f32(q, x, p->first, p->n, f, e);
        if (s == STATUS_OK && !encode(x, p, f, out, scales))
            s = errmsg_set(e, STATUS_BAD_MODEL, "tensor '%s': rows %lld.. hold NaN or infinity",
                           x->out.name, (long long)p->first);
        if (s == STATUS_OK && x->scales.name)
            s = write_scales(q, x, p, scales, e);
        free(f);
        free(scales);
    }
    if (s == STATUS_OK)
        s = write_rows(q, x, p, out, e);
    free(out);
    atomic_fetch_add(&q->done, n);
    return s;
}

static void *work(void *arg)
{
    struct quantizer *q = arg;
    for (size_t i; (i = atomic_fetch_add(&q->next, 1)) < q->pieces_n;) {
        struct errmsg e = {0};
        enum status s = carry_out(q, &q->pieces[i], &e);
        if (s == STATUS_OK)
            continue;
        pthread_mutex_lock(&q->mutex);
        if (q->status == STATUS_OK) {
            q->status = s;
            q->error = e;
        }
        pthread_mutex_unlock(&q->mutex);
        atomic_store(&q->next, q->pieces_n); // the others stop
    }
    atomic_fetch_sub(&q->running, 1);
    return NULL;
}

static int threads_of(const struct quantize_args *a)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    int n = a->threads ? a->threads : sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : n;
}

static enum status run_threads(struct quantizer *q, struct errmsg *e)
{
    pthread_t threads[THREADS_MAX];
    int n = 0, want = threads_of(q->args);
    const struct model_progress *p = &q->args->progress;
    for (; n < want; n++) {
        atomic_fetch_add(&q->running, 1);
        int err = pthread_create(&threads[n], NULL, work, q);
        if (!err)
            continue;
        atomic_fetch_sub(&q->running, 1);
        if (!n)
            return errmsg_set(e, status_from_errno(err), "cannot start a thread");
        break; // fewer do
    }
    while (atomic_load(&q->running)) {
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        if (p->report)
            p->report(p->arg, (size_t)atomic_load(&q->done), (size_t)q->total);
    }
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    return q->status == STATUS_OK ? STATUS_OK : errmsg_set(e, q->status, "%s", q->error.text);
}

// ---- the whole

static enum status check_precision(const struct quantizer *q, struct errmsg *e)
{
    const bool fp8 = q->c.fp8_block[0] > 0, already = q->args->to == MODEL_FP8 ? fp8 : q->c.int8;
    if (!q->args->source.random && q->args->to != MODEL_BF16 && already)
        return errmsg_set(e, STATUS_BAD_CONFIG, "%s: is %s already (config.json)",
                          q->args->source.dir, fp8 ? "fp8" : "int8");
    return STATUS_OK;
}

static enum status open_all(struct quantizer *q, struct errmsg *e)
{
    const struct model_source *source = &q->args->source;
    enum status s = model_source_config(source, &q->c, e);
    if (s == STATUS_OK)
        s = check_precision(q, e);
    if (s == STATUS_OK)
        s = kern_open(KERN_CPU, &(struct kern_config){.threads = 1}, &q->kern, e);
    if (s == STATUS_OK && !source->random)
        s = safetensors_open_dir(source->dir, &q->files, e);
    q->l = (struct loader){
        .source = source, .config = &q->c, .files = q->files, .kern = q->kern, .e = e};
    if (s == STATUS_OK)
        s = source->random ? list_shape(q, e) : list_files(q, e);
    if (s == STATUS_OK)
        s = out_folder_open(&q->out, q->args, q->items, q->items_n, e);
    return s;
}

enum status model_quantize(const struct quantize_args *args, struct errmsg *e)
{
    struct quantizer *q = mem_zalloc(1, sizeof *q);
    q->args = args;
    pthread_mutex_init(&q->mutex, NULL);
    enum status s = open_all(q, e);
    if (s == STATUS_OK) {
        cut(q);
        s = run_threads(q, e);
    }
    if (s == STATUS_OK)
        s = out_folder_commit(&q->out, args, &q->c, q->items, q->items_n, e);
    out_folder_close(&q->out);
    for (size_t i = 0; i < q->items_n; i++) {
        free(q->items[i].out.name);
        free(q->items[i].scales.name);
    }
    free(q->items);
    free(q->pieces);
    safetensors_close(q->files);
    kern_close(q->kern);
    pthread_mutex_destroy(&q->mutex);
    free(q);
    return s;
}
