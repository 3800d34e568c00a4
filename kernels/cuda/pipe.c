// Hidden states from one stage's GPU to the next one's, without a stop in host memory: peer copies
// into the receiver's slots. Who may write when is settled by the lane that carries the headers.
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/cuda/comm.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/share.h"

enum { PIPE_MAGIC = 0x48435031 }; // "HCP1"

struct pipe_note {
    uint32_t magic, slots;
    uint64_t slot_bytes;
    struct share_note memory;
};
static_assert(sizeof(struct pipe_note) <= CUDA_COMM_NOTE_BYTES, "note");

struct cuda_pipe {
    struct cuda *c; // borrowed
    size_t slots, slot_bytes;
    char *memory; // [slots][slot_bytes], of the receiver
    bool own;     // receiver
    struct share_mapping mapping;
};

static void pipe_destroy(struct cuda_pipe *p)
{
    if (!p)
        return;
    cuda_check(p->c, cudaSetDevice(p->c->device), "cudaSetDevice");
    cuda_check(p->c, cudaStreamSynchronize(p->c->stream), "waiting for the last copy");
    cuda_check(p->c, share_unmap(&p->mapping), "unmapping a pipe");
    if (p->own)
        cuda_check(p->c, cudaFree(p->memory), "cudaFree");
    free(p);
}

static enum status pipe_create_rx(struct kern *k, size_t slots, size_t slot_bytes,
                                  struct cuda_pipe **out, struct cuda_comm_note *note,
                                  struct errmsg *e)
{
    struct pipe_note n = {.magic = PIPE_MAGIC, .slots = (uint32_t)slots, .slot_bytes = slot_bytes};
    struct cuda_pipe *p = mem_zalloc(1, sizeof *p);
    *p = (struct cuda_pipe){.c = cuda_of(k), .slots = slots, .slot_bytes = slot_bytes, .own = true};
    void *memory = NULL;
    cudaError_t rc = cudaSetDevice(p->c->device);
    if (rc == cudaSuccess)
        rc = share_alloc(slots * slot_bytes, &memory);
    p->memory = memory;
    enum status s = STATUS_OK;
    if (rc != cudaSuccess)
        s = errmsg_set(e, rc == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY : STATUS_INTERNAL,
                       "pipe between stages: %s", cudaGetErrorString(rc));
    if (s == STATUS_OK)
        s = share_export(memory, slots * slot_bytes, p->c->device, &n.memory, e);
    if (s != STATUS_OK) {
        cudaGetLastError();
        pipe_destroy(p);
        return s;
    }
    memset(note, 0, sizeof *note);
    memcpy(note->v, &n, sizeof n);
    *out = p;
    return STATUS_OK;
}

static enum status pipe_create_tx(struct kern *k, const struct cuda_comm_note *note,
                                  struct cuda_pipe **out, struct errmsg *e)
{
    struct pipe_note n;
    memcpy(&n, note->v, sizeof n);
    if (n.magic != PIPE_MAGIC || !n.slots || !n.slot_bytes ||
        n.memory.bytes / n.slots != n.slot_bytes)
        return errmsg_set(e, STATUS_LINK_PROTOCOL, "pipe between stages: not a note of ours");
    struct cuda_pipe *p = mem_zalloc(1, sizeof *p);
    *p = (struct cuda_pipe){.c = cuda_of(k), .slots = n.slots, .slot_bytes = n.slot_bytes};
    cudaError_t rc = cudaSetDevice(p->c->device);
    if (rc == cudaSuccess)
        rc = share_map(&n.memory, p->c->device, &p->mapping);
    p->memory = p->mapping.p;
    if (rc != cudaSuccess) {
        free(p);
        return errmsg_set(e, STATUS_UNSUPPORTED, "pipe between stages: %s", cudaGetErrorString(rc));
    }
    *out = p;
    return STATUS_OK;
}

static enum status copy(struct cuda_pipe *p, size_t slot, const struct cuda_pipe_rows *r, bool put)
{
    if (slot >= p->slots || r->row_bytes > r->stride ||
        (r->row_bytes && r->rows > p->slot_bytes / r->row_bytes))
        return STATUS_TOO_LARGE;
    char *there = p->memory + slot * p->slot_bytes, *here = (char *)r->buf->p + r->at;
    cudaError_t e = put ? cudaMemcpy2DAsync(there, r->row_bytes, here, r->stride, r->row_bytes,
                                            r->rows, cudaMemcpyDefault, p->c->stream)
                        : cudaMemcpy2DAsync(here, r->stride, there, r->row_bytes, r->row_bytes,
                                            r->rows, cudaMemcpyDefault, p->c->stream);
    return cuda_check(p->c, e, "copy between stages") ? STATUS_OK : STATUS_INTERNAL;
}

static enum status pipe_put(struct cuda_pipe *p, size_t slot, const struct cuda_pipe_rows *from)
{
    return copy(p, slot, from, true);
}

static enum status pipe_get(struct cuda_pipe *p, size_t slot, const struct cuda_pipe_rows *to)
{
    return copy(p, slot, to, false);
}

const struct cuda_pipe_ops cuda_pipe_ops = {.create_rx = pipe_create_rx,
                                            .create_tx = pipe_create_tx,
                                            .put = pipe_put,
                                            .get = pipe_get,
                                            .destroy = pipe_destroy};
