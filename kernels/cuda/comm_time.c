// Times a collective as a step runs it: many in a row in one CUDA graph.
#include <stdlib.h>

#include "kernels/cuda/comm.h"

enum { LAUNCHES = 7 };

static enum status failed(cudaError_t e, const char *what, struct errmsg *err)
{
    return e == cudaSuccess
               ? STATUS_OK
               : errmsg_set(err, STATUS_INTERNAL, "%s: %s", what, cudaGetErrorString(e));
}

// Into the part of the window that holds pieces; no collective is under way.
static enum status copy_to_next(struct cuda_comm *m, size_t bytes)
{
    const struct peer_group *g = cuda_comm_group(m);
    if (!g || bytes > g->pieces_bytes)
        return STATUS_UNSUPPORTED;
    size_t at = (size_t)4 * (size_t)g->size * PEER_WORDS_BYTES;
    cudaError_t e =
        cudaMemcpyAsync(g->windows[(g->rank + 1) % g->size] + at, g->windows[g->rank] + at, bytes,
                        cudaMemcpyDeviceToDevice, cuda_comm_stream(m));
    return e == cudaSuccess ? STATUS_OK : STATUS_INTERNAL;
}

static enum status enqueue(struct cuda_comm *m, const struct cuda_comm_timing *t)
{
    enum status s = STATUS_OK;
    for (int i = 0; i < t->repeats && s == STATUS_OK; i++)
        s = t->gather   ? hadal_cuda_comm()->all_gather(m, t->gather)
            : t->reduce ? hadal_cuda_comm()->all_reduce(m, t->reduce)
                        : copy_to_next(m, t->copy_bytes);
    return s;
}

static enum status capture(struct cuda_comm *m, const struct cuda_comm_timing *t,
                           cudaGraphExec_t *out, struct errmsg *err)
{
    cudaStream_t stream = cuda_comm_stream(m);
    cudaGraph_t graph = NULL;
    enum status s =
        failed(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture", err);
    if (s != STATUS_OK)
        return s;
    s = enqueue(m, t);
    enum status ended = failed(cudaStreamEndCapture(stream, &graph), "capture", err);
    s = s == STATUS_OK ? ended : s;
    if (s == STATUS_OK)
        s = failed(cudaGraphInstantiate(out, graph, 0), "graph", err);
    if (graph)
        cudaGraphDestroy(graph);
    return s;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// Two launches to warm up, then the median.
static enum status replay(cudaStream_t stream, cudaGraphExec_t graph, cudaEvent_t at[2],
                          float *ms_out, struct errmsg *err)
{
    float ms[LAUNCHES];
    for (int i = -2; i < LAUNCHES; i++) {
        cudaEventRecord(at[0], stream);
        enum status s = failed(cudaGraphLaunch(graph, stream), "graph", err);
        cudaEventRecord(at[1], stream);
        if (s == STATUS_OK)
            s = failed(cudaStreamSynchronize(stream), "graph", err);
        if (s == STATUS_OK && i >= 0)
            s = failed(cudaEventElapsedTime(&ms[i], at[0], at[1]), "event", err);
        if (s != STATUS_OK)
            return s;
    }
    qsort(ms, LAUNCHES, sizeof *ms, by_value);
    *ms_out = ms[LAUNCHES / 2];
    return STATUS_OK;
}

enum status cuda_comm_measure(struct cuda_comm *m, const struct cuda_comm_timing *t, double *us_out,
                              struct errmsg *e)
{
    cudaGraphExec_t graph = NULL;
    cudaEvent_t at[2] = {0};
    float ms = 0;
    enum status s = failed(cudaEventCreate(&at[0]), "event", e);
    if (s == STATUS_OK)
        s = failed(cudaEventCreate(&at[1]), "event", e);
    if (s == STATUS_OK)
        s = capture(m, t, &graph, e);
    if (s == STATUS_OK)
        s = replay(cuda_comm_stream(m), graph, at, &ms, e);
    if (graph)
        cudaGraphExecDestroy(graph);
    for (int i = 0; i < 2; i++)
        if (at[i])
            cudaEventDestroy(at[i]);
    if (s == STATUS_OK)
        *us_out = (double)ms * 1e3 / t->repeats;
    return s;
}
