// The third pass of a load: reader threads take jobs in order, read the rows with pread into a
// stage and convert them there where the kern wants another form; the owner's thread hands full
// stages to the kern, which copies them on while the readers go on. Never more of the checkpoint is
// in memory than the stages hold.
//
//   jobs --readers--> stage: filled --owner--> kern, copying --owner, when IN_FLIGHT are--> free
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "node/model/dequant.h"
#include "node/model/loader.h"

enum { THREADS_MAX = 16, IN_FLIGHT = 4, STAGES_MAX = THREADS_MAX + IN_FLIGHT + 2 };

struct stage {
    struct kern_stage *memory;
    const struct loader_job *job;
    const float *scales; // in memory, behind the rows
};

struct run {
    struct loader *l;
    pthread_mutex_t mutex;
    pthread_cond_t freed, filled;
    size_t next; // job
    struct stage stages[STAGES_MAX];
    struct stage *free[STAGES_MAX], *full[STAGES_MAX]; // full: first in, first out
    int free_n, full_n;
    bool stop; // no more jobs are taken
    enum status status;
    struct errmsg error;
    pthread_t threads[THREADS_MAX];
    int threads_n, stages_n;
};

// ---- what a reader does with a job

// A reader's memory for rows as they are in the file, and one row as float32.
struct scratch {
    char *raw;
    size_t raw_n;
    float *row;
    size_t row_n;
};

static void *room(void *p, size_t *have, size_t want, size_t size)
{
    if (*have >= want)
        return p;
    free(p);
    *have = want;
    return mem_alloc(want * size);
}

static size_t scales_at(const struct loader_job *j)
{
    size_t rows = (size_t)j->n * (size_t)j->cols * loader_element_bytes(j->d.dtype);
    return (rows + sizeof(float) - 1) / sizeof(float) * sizeof(float);
}

// Bytes of a stage that the job asks for.
static size_t job_bytes(const struct loader *l, const struct loader_job *j)
{
    size_t n = scales_at(j);
    if (loader_is_quantized(j->t.dtype))
        n += (size_t)loader_scale_rows(l, j->t.dtype, j->first, j->n).n * (size_t)j->scales.cols *
             sizeof(float);
    return n;
}

// As float32 into `out`, behind the rows.
static enum status read_scales(const struct loader *l, const struct loader_job *j,
                               struct scratch *m, float *out, struct errmsg *e)
{
    const struct loader_span s = loader_scale_rows(l, j->t.dtype, j->first, j->n);
    const size_t n = (size_t)(s.n * j->scales.cols);
    m->raw = room(m->raw, &m->raw_n, n * st_dtype_size(j->scales.dtype), 1);
    enum status st = tensor_read(&j->scales, s.first, s.n, m->raw, e);
    if (st == STATUS_OK)
        dequant_row(j->scales.dtype, m->raw, n, out);
    return st;
}

// Row by row through float32.
static enum status convert(const struct loader *l, const struct loader_job *j, struct scratch *m,
                           const float *scales, char *out, struct errmsg *e)
{
    const size_t cols = (size_t)j->t.cols, n = (size_t)j->n, size = st_dtype_size(j->t.dtype);
    const size_t to = loader_element_bytes(j->d.dtype), own = (size_t)j->cols;
    const float *from = NULL;
    const bool fp8 = j->t.dtype == ST_F8_E4M3, quantized = loader_is_quantized(j->t.dtype);
    m->raw = room(m->raw, &m->raw_n, n * cols * size, 1);
    m->row = room(m->row, &m->row_n, cols, sizeof *m->row);
    enum status s = tensor_read(&j->t, j->first, j->n, m->raw, e);
    for (size_t i = 0; i < n && s == STATUS_OK; i++) {
        dequant_row(j->t.dtype, m->raw + i * cols * size, cols, m->row);
        from = m->row + j->first_col;
        if (quantized) {
            const int64_t block = fp8 ? l->config->fp8_block[0] : 1;
            const int64_t row = (j->first + (int64_t)i) / block - j->first / block;
            dequant_scale_row(m->row, cols, scales + row * j->scales.cols,
                              fp8 ? (size_t)l->config->fp8_block[1] : 0);
        }
        if (j->d.transposed)
            dequant_store(j->d.dtype, from, own, out + i * to, n);
        else
            dequant_store(j->d.dtype, from, own, out + i * own * to, 1);
    }
    return s;
}

// Some columns, as they are.
static enum status cut(const struct loader_job *j, struct scratch *m, char *out, struct errmsg *e)
{
    const size_t size = st_dtype_size(j->t.dtype), row = (size_t)j->t.cols * size;
    const size_t own = (size_t)j->cols * size, at = (size_t)j->first_col * size;
    m->raw = room(m->raw, &m->raw_n, (size_t)j->n * row, 1);
    enum status s = tensor_read(&j->t, j->first, j->n, m->raw, e);
    for (size_t i = 0; i < (size_t)j->n && s == STATUS_OK; i++)
        memcpy(out + i * own, m->raw + i * row + at, own);
    return s;
}

static enum status carry_out(const struct loader *l, struct stage *s, struct scratch *m,
                             struct errmsg *e)
{
    const struct loader_job *j = s->job;
    char *memory = kern_stage_memory(s->memory);
    float *scales = (float *)(memory + scales_at(j));
    enum status st = STATUS_OK;
    if (loader_is_quantized(j->t.dtype))
        st = read_scales(l, j, m, scales, e);
    if (st == STATUS_OK)
        st = !loader_is_direct(&j->t, &j->d) ? convert(l, j, m, scales, memory, e)
             : j->cols == j->t.cols          ? tensor_read(&j->t, j->first, j->n, memory, e)
                                             : cut(j, m, memory, e);
    s->scales = scales;
    return st;
}

// ---- readers

// The next job and a stage for it; NULL when there are no more.
static struct stage *take_job(struct run *r)
{
    struct stage *s = NULL;
    pthread_mutex_lock(&r->mutex);
    while (!r->stop && r->next < r->l->jobs_n && !r->free_n)
        pthread_cond_wait(&r->freed, &r->mutex);
    if (!r->stop && r->next < r->l->jobs_n) {
        s = r->free[--r->free_n];
        s->job = &r->l->jobs[r->next++];
    }
    pthread_mutex_unlock(&r->mutex);
    return s;
}

static void hand_over(struct run *r, struct stage *s, enum status st, const struct errmsg *e)
{
    pthread_mutex_lock(&r->mutex);
    if (st != STATUS_OK && r->status == STATUS_OK) {
        r->status = st;
        r->error = *e;
        r->stop = true;
    }
    r->full[r->full_n++] = s;
    pthread_cond_signal(&r->filled);
    pthread_mutex_unlock(&r->mutex);
}

static void *reader_main(void *arg)
{
    struct run *r = arg;
    struct scratch m = {0};
    for (struct stage *s; (s = take_job(r));) {
        struct errmsg e = {0};
        enum status st = carry_out(r->l, s, &m, &e);
        hand_over(r, s, st, &e);
    }
    free(m.raw);
    free(m.row);
    return NULL;
}

// ---- the owner

static struct stage *await_full(struct run *r)
{
    pthread_mutex_lock(&r->mutex);
    while (!r->full_n && r->status == STATUS_OK)
        pthread_cond_wait(&r->filled, &r->mutex);
    struct stage *s = NULL;
    if (r->status == STATUS_OK) {
        s = r->full[0];
        r->full_n--;
        for (int i = 0; i < r->full_n; i++)
            r->full[i] = r->full[i + 1];
    }
    pthread_mutex_unlock(&r->mutex);
    return s;
}

static void give_free(struct run *r, struct stage *s)
{
    kern_stage_wait(s->memory);
    pthread_mutex_lock(&r->mutex);
    r->free[r->free_n++] = s;
    pthread_cond_signal(&r->freed);
    pthread_mutex_unlock(&r->mutex);
}

static void fill(struct run *r, struct stage *s)
{
    const struct loader_job *j = s->job;
    const struct loader_dest *d = &j->d;
    struct kern_fill_args a = {.s = d->s, .row0 = d->row0, .rows = (size_t)j->n};
    if (d->transposed) {
        a.row0 = 0;
        a.rows = (size_t)j->t.cols;
    }
    kern_weight_fill_staged(d->w, &a, s->memory);
    struct kern_scales_args scales = {
        .s = d->s, .row0 = d->row0, .rows = (size_t)j->n, .data = s->scales};
    if (d->dtype == KERN_FP8) {
        scales.data += j->first_col / KERN_SCALE_BLOCK;
        scales.row_stride = (size_t)j->scales.cols;
    }
    if (d->dtype == KERN_FP8 || d->dtype == KERN_INT8)
        kern_weight_fill_scales(d->w, &scales);
    loader_count(r->l, j->bytes);
}

static enum status fill_all(struct run *r)
{
    struct stage *flying[IN_FLIGHT] = {NULL};
    for (size_t i = 0; i < r->l->jobs_n; i++) {
        struct stage **slot = &flying[i % IN_FLIGHT];
        if (*slot)
            give_free(r, *slot);
        *slot = await_full(r);
        if (!*slot)
            return r->status;
        fill(r, *slot);
        if (r->l->progress.cancelled && r->l->progress.cancelled(r->l->progress.arg))
            return errmsg_set(r->l->e, STATUS_CANCELLED, "loading the weights was cancelled");
    }
    return STATUS_OK; // destroying a stage waits for its copy
}

static int cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    int n = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return n < 1 ? 1 : n > THREADS_MAX ? THREADS_MAX : n;
}

static enum status make_stages(struct run *r)
{
    size_t bytes = 0;
    for (size_t i = 0; i < r->l->jobs_n; i++) {
        size_t n = job_bytes(r->l, &r->l->jobs[i]);
        bytes = n > bytes ? n : bytes;
    }
    size_t most = (size_t)cores() + IN_FLIGHT + 2;
    most = r->l->jobs_n < most ? r->l->jobs_n : most;
    for (; r->stages_n < (int)most; r->stages_n++) {
        struct stage *s = &r->stages[r->stages_n];
        enum status st = kern_stage_create(r->l->kern, bytes, &s->memory);
        if (st != STATUS_OK)
            return errmsg_set(r->l->e, st, "%s: no memory for %zu bytes of staging",
                              kern_describe(r->l->kern), bytes);
        r->free[r->free_n++] = s;
    }
    return STATUS_OK;
}

static enum status start_readers(struct run *r)
{
    int want = cores();
    for (; r->threads_n < want; r->threads_n++) {
        int err = pthread_create(&r->threads[r->threads_n], NULL, reader_main, r);
        if (err && !r->threads_n)
            return errmsg_set(r->l->e, status_from_errno(err), "cannot start a thread");
        if (err)
            break; // fewer do
    }
    return STATUS_OK;
}

static void stop_readers(struct run *r)
{
    pthread_mutex_lock(&r->mutex);
    r->stop = true;
    pthread_cond_broadcast(&r->freed);
    pthread_mutex_unlock(&r->mutex);
    for (int i = 0; i < r->threads_n; i++)
        pthread_join(r->threads[i], NULL);
}

enum status loader_run(struct loader *l)
{
    if (!l->jobs_n)
        return STATUS_OK;
    struct run *r = mem_zalloc(1, sizeof *r);
    r->l = l;
    pthread_mutex_init(&r->mutex, NULL);
    pthread_cond_init(&r->freed, NULL);
    pthread_cond_init(&r->filled, NULL);
    enum status s = make_stages(r);
    if (s == STATUS_OK)
        s = start_readers(r);
    if (s == STATUS_OK)
        s = fill_all(r);
    stop_readers(r);
    if (r->error.text[0])
        errmsg_set(l->e, s, "%s", r->error.text);
    for (int i = 0; i < r->stages_n; i++)
        kern_stage_destroy(r->stages[i].memory);
    pthread_cond_destroy(&r->filled);
    pthread_cond_destroy(&r->freed);
    pthread_mutex_destroy(&r->mutex);
    free(r);
    l->jobs_n = 0;
    return s;
}
