// Steps as CUDA graphs. A key that is seen for the first time runs op by op, which also lets
// scratch memory grow and kernels set their attributes; the second time its ops are captured
// instead of run, and launched as a graph; from then on they are one launch. Graphs hold addresses,
// so all are forgotten when memory is freed. The least recently used one makes room.
#include "base/log.h"
#include "kernels/cuda/cuda.h"

static struct cuda_record *find(struct cuda *c, uint64_t key)
{
    for (int i = 0; i < CUDA_RECORDS; i++)
        if (c->records[i].key == key)
            return &c->records[i];
    return NULL;
}

static void forget(struct cuda_record *r)
{
    if (r->exec)
        cudaGraphExecDestroy(r->exec); // what is still running ends first
    *r = (struct cuda_record){0};
}

void cuda_replay_forget(struct cuda *c)
{
    for (int i = 0; i < CUDA_RECORDS; i++)
        forget(&c->records[i]);
}

static void remember(struct cuda *c, uint64_t key)
{
    struct cuda_record *oldest = &c->records[0];
    for (int i = 1; i < CUDA_RECORDS; i++)
        if (c->records[i].used < oldest->used)
            oldest = &c->records[i];
    forget(oldest);
    *oldest = (struct cuda_record){.key = key, .used = ++c->replays};
}

static void launch(struct cuda *c, struct cuda_record *r)
{
    r->used = ++c->replays;
    cuda_check(c, cudaGraphLaunch(r->exec, c->stream), "cudaGraphLaunch");
}

bool cuda_replay_begin(struct kern *k, uint64_t key)
{
    struct cuda *c = cuda_enter(k);
    assert(!c->capturing);
    if (!key)
        return false;
    struct cuda_record *r = find(c, key);
    if (!r) {
        remember(c, key);
        return false;
    }
    if (r->exec) {
        launch(c, r);
        return true;
    }
    if (cuda_check(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal),
                   "cudaStreamBeginCapture"))
        c->capturing = key;
    return false;
}

enum status cuda_replay_end(struct kern *k)
{
    struct cuda *c = cuda_of(k);
    uint64_t key = c->capturing;
    if (!key)
        return STATUS_OK;
    cudaGraph_t graph = NULL;
    struct cuda_record *r = find(c, key);
    c->capturing = 0;
    bool ok = cuda_check(c, cudaStreamEndCapture(c->stream, &graph), "cudaStreamEndCapture") &&
              c->failed == cudaSuccess &&
              cuda_check(c, cudaGraphInstantiate(&r->exec, graph, 0), "cudaGraphInstantiate");
    if (graph)
        cudaGraphDestroy(graph);
    if (ok)
        launch(c, r);
    else
        forget(r);
    return cuda_failure(c);
}
