// What fills weights besides kern_weight_fill: numbers made on the device, and stages, whose pinned
// memory the copy engine reads while the loader's threads fill others.
#include "kernels/cuda/cuda.h"

// Bytes from row to row of a matrix.
static size_t row_bytes(const struct kern_weight *w)
{
    return w->ld * kern_dtype_bytes(w->shape.dtype);
}

static char *matrix_of(struct kern_weight *w, size_t s)
{
    return (char *)w->p + s * w->stack_bytes;
}

// ---- noise

void cuda_weight_noise(struct kern_weight *w, const struct kern_noise_args *a)
{
    struct cuda *c = cuda_enter(w->k);
    struct cuda_noise n = {.dtype = w->shape.dtype,
                           .rows = a->rows,
                           .cols = w->shape.cols,
                           .row_bytes = row_bytes(w),
                           .key = a->key,
                           .first = a->first,
                           .mean = a->mean,
                           .amplitude = a->amplitude};
    n.p = matrix_of(w, a->s) + a->row0 * n.row_bytes;
    cuda_noise(c, &n);
}

void cuda_buf_noise(struct kern_buf *b, const struct kern_buf_noise_args *a)
{
    size_t e = kern_dtype_bytes(b->dtype);
    cuda_noise(cuda_enter(b->k), &(struct cuda_noise){.dtype = b->dtype,
                                                      .p = (char *)b->p + a->at * e,
                                                      .rows = 1,
                                                      .cols = a->n,
                                                      .row_bytes = a->n * e,
                                                      .key = a->key,
                                                      .first = a->row,
                                                      .mean = a->mean,
                                                      .amplitude = a->amplitude});
}

// ---- stages

enum status cuda_stage_alloc(struct kern_stage *s)
{
    struct cuda *c = cuda_enter(s->k);
    cudaEvent_t read;
    cudaError_t e = cudaEventCreateWithFlags(&read, cudaEventDisableTiming | cudaEventBlockingSync);
    if (!cuda_check(c, e, "event"))
        return STATUS_INTERNAL;
    s->device = read;
    e = cudaMallocHost(&s->p, s->bytes ? s->bytes : 1);
    if (e == cudaSuccess)
        return STATUS_OK;
    cudaGetLastError(); // not sticky
    cudaEventDestroy(read);
    return STATUS_NO_MEMORY;
}

void cuda_stage_wait(struct kern_stage *s)
{
    cuda_check(cuda_enter(s->k), cudaEventSynchronize(s->device), "waiting for a copy");
}

void cuda_stage_free(struct kern_stage *s)
{
    cuda_stage_wait(s);
    cudaEventDestroy(s->device);
    cudaFreeHost(s->p);
}

void cuda_stage_fill(struct kern_weight *w, const struct kern_fill_args *a, struct kern_stage *s)
{
    struct cuda *c = cuda_enter(w->k);
    size_t row = w->shape.cols * kern_dtype_bytes(w->shape.dtype), pitch = row_bytes(w);
    char *matrix = matrix_of(w, a->s);
    cudaError_t e;
    if (pitch == row) {
        e = cudaMemcpyAsync(matrix + a->row0 * row, s->p, a->rows * row, cudaMemcpyHostToDevice,
                            c->stream);
    } else {
        e = cudaMemcpy2DAsync(matrix + a->row0 * pitch, pitch, s->p, row, row, a->rows,
                              cudaMemcpyHostToDevice, c->stream);
    }
    cuda_check(c, e, "fill");
    cuda_check(c, cudaEventRecord(s->device, c->stream), "event");
}
