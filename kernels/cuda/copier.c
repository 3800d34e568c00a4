// Copies on a stream of their own, for the thread that moves KV blocks: they neither wait for the
// kern's stream nor hold it up. A fence is an event that the one stream records and the other waits
// for, on the device.
#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "kernels/cuda/cuda.h"

struct copier {
    cudaStream_t stream;
    cudaEvent_t fence;
};

// The kern's own record of failures belongs to its owner thread.
static enum status check(cudaError_t e, const char *what)
{
    if (e == cudaSuccess)
        return STATUS_OK;
    log_error("cuda: %s: %s", what, cudaGetErrorString(e));
    return e == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY : STATUS_INTERNAL;
}

static enum status enter(struct kern_copier *c)
{
    return check(cudaSetDevice(cuda_of(c->k)->device), "cudaSetDevice");
}

void cuda_copier_close(struct kern_copier *c)
{
    struct copier *x = (struct copier *)c->device;
    if (x == NULL || enter(c) != STATUS_OK)
        return;
    if (x->stream != NULL)
        cudaStreamDestroy(x->stream);
    if (x->fence != NULL)
        cudaEventDestroy(x->fence);
    free(x);
    c->device = NULL;
}

enum status cuda_copier_open(struct kern_copier *c)
{
    struct copier *x = mem_zalloc(1, sizeof *x);
    c->device = x;
    enum status rc = enter(c);
    if (rc == STATUS_OK)
        rc = check(cudaStreamCreateWithFlags(&x->stream, cudaStreamNonBlocking), "stream");
    if (rc == STATUS_OK)
        rc = check(cudaEventCreateWithFlags(&x->fence, cudaEventDisableTiming), "event");
    if (rc != STATUS_OK)
        cuda_copier_close(c);
    return rc;
}

enum status cuda_copier_fence(struct kern_copier *c)
{
    struct copier *x = (struct copier *)c->device;
    enum status rc = enter(c);
    if (rc == STATUS_OK)
        rc = check(cudaEventRecord(x->fence, cuda_of(c->k)->stream), "recording a fence");
    if (rc == STATUS_OK)
        rc = check(cudaStreamWaitEvent(x->stream, x->fence, 0), "a fence");
    return rc;
}

enum status cuda_copier_read(struct kern_copier *c, void *host, const struct kern_strip *s)
{
    struct copier *x = (struct copier *)c->device;
    size_t e = kern_dtype_bytes(s->buf->dtype);
    enum status rc = enter(c);
    if (rc != STATUS_OK || s->rows == 0 || s->n == 0)
        return rc;
    return check(cudaMemcpy2DAsync(host, s->n * e, (const char *)s->buf->p + s->at * e,
                                   s->stride * e, s->n * e, s->rows, cudaMemcpyDeviceToHost,
                                   x->stream),
                 "reading a strip");
}

enum status cuda_copier_write(struct kern_copier *c, const struct kern_strip *s, const void *host)
{
    struct copier *x = (struct copier *)c->device;
    size_t e = kern_dtype_bytes(s->buf->dtype);
    enum status rc = enter(c);
    if (rc != STATUS_OK || s->rows == 0 || s->n == 0)
        return rc;
    return check(cudaMemcpy2DAsync((char *)s->buf->p + s->at * e, s->stride * e, host, s->n * e,
                                   s->n * e, s->rows, cudaMemcpyHostToDevice, x->stream),
                 "writing a strip");
}

enum status cuda_copier_wait(struct kern_copier *c)
{
    struct copier *x = (struct copier *)c->device;
    return check(cudaStreamSynchronize(x->stream), "waiting for copies");
}
