// One rank's end of a group of GPUs: its window, the peers' windows mapped, NCCL where it is
// wanted. Which of them carries a message is a matter of size only, so all ranks choose alike.
#include "kernels/cuda/comm.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/nccl_lib.h"
#include "kernels/cuda/share.h"

enum {
    NOTE_MAGIC = 0x48434d31, // "HCM1"
    WINDOW_BYTES = 4 << 20,
    TIMEOUT_MS = 10000,
    PACK_BYTES = 32 << 20, // of all slices in one go by NCCL
};

// Round 1: what peers need to map our window.
struct window_note {
    uint32_t magic, rank, size, can_nccl;
    struct share_note window;
};
// Rounds 2 and 3.
struct can_note {
    uint32_t magic, rank, can;
};
struct id_note {
    uint32_t magic, rank, valid;
    unsigned char id[NCCL_ID_BYTES];
};
static_assert(sizeof(struct window_note) <= CUDA_COMM_NOTE_BYTES, "note");
static_assert(sizeof(struct id_note) <= CUDA_COMM_NOTE_BYTES, "note");

struct cuda_comm {
    struct cuda *c; // borrowed
    struct cuda_comm_config config;
    unsigned can, via; // before and after agreement
    struct peer_group group;
    struct peer_host *host; // pinned; group.host is its device address
    struct share_mapping peers[PEER_RANKS];
    struct nccl *_Atomic nccl; // NULL = not in use
    char *packed;              // [PACK_BYTES], for NCCL
};

static enum status cuda_status(cudaError_t e, const char *what, struct errmsg *err)
{
    if (e == cudaSuccess)
        return STATUS_OK;
    cudaGetLastError();
    return errmsg_set(err, e == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY : STATUS_INTERNAL,
                      "%s: %s", what, cudaGetErrorString(e));
}

// ---- create

static enum status make_window(struct cuda_comm *m, struct errmsg *err)
{
    struct peer_group *g = &m->group;
    size_t bytes = peer_window_bytes(g->size, g->pieces_bytes);
    void *window = NULL, *state = NULL, *host = NULL, *host_device = NULL;
    enum status s = cuda_status(share_alloc(bytes, &window), "peer window", err);
    g->windows[g->rank] = window;
    if (s == STATUS_OK)
        s = cuda_status(share_alloc(sizeof *g->state, &state), "peer state", err);
    g->state = state;
    if (s == STATUS_OK)
        s = cuda_status(cudaHostAlloc(&host, sizeof *m->host, cudaHostAllocMapped), "peer host",
                        err);
    m->host = host;
    if (s == STATUS_OK) {
        memset(host, 0, sizeof *m->host);
        s = cuda_status(cudaHostGetDevicePointer(&host_device, host, 0), "peer host", err);
        g->host = host_device;
    }
    return s;
}

static void comm_destroy(struct cuda_comm *m);

static enum status comm_create(struct kern *k, const struct cuda_comm_config *config,
                               struct cuda_comm **out, struct errmsg *err)
{
    if (config->size < 1 || config->rank < 0 || config->rank >= config->size)
        return errmsg_set(err, STATUS_BAD_CONFIG, "no rank %d of %d", config->rank, config->size);
    struct cuda_comm *m = mem_zalloc(1, sizeof *m);
    m->c = cuda_of(k);
    m->config = *config;
    struct peer_group *g = &m->group;
    g->size = config->size;
    g->rank = config->rank;
    g->pieces_bytes =
        ((config->window_bytes ? config->window_bytes : WINDOW_BYTES) + 255) / 256 * 256;
    g->timeout_ns = (uint64_t)(config->timeout_ms ? config->timeout_ms : TIMEOUT_MS) * 1000000;
    enum status s = cuda_status(cudaSetDevice(m->c->device), "cudaSetDevice", err);
    // More ranks than PEER_RANKS still have an abort word and go by NCCL.
    if (s == STATUS_OK && config->size > PEER_RANKS) {
        g->size = 1;
        g->rank = 0;
    }
    if (s == STATUS_OK)
        s = make_window(m, err);
    if (s == STATUS_OK)
        *out = m;
    else
        comm_destroy(m);
    return s;
}

static bool offers_peer(const struct cuda_comm *m)
{
    return m->config.size <= PEER_RANKS && (!m->config.want || m->config.want & CUDA_COMM_PEER);
}

// ---- round 0: our window

static enum status tell_window(struct cuda_comm *m, struct cuda_comm_note *own, struct errmsg *err)
{
    struct window_note n = {.magic = NOTE_MAGIC,
                            .rank = (uint32_t)m->config.rank,
                            .size = (uint32_t)m->config.size,
                            .can_nccl = nccl_present()};
    enum status s = share_export(m->group.windows[m->group.rank], m->group.pieces_bytes,
                                 m->c->device, &n.window, err);
    memcpy(own->v, &n, sizeof n);
    return s;
}

// ---- round 1: the peers' windows

static enum status map_peers(struct cuda_comm *m, const struct cuda_comm_note *all,
                             struct errmsg *err)
{
    bool peers = offers_peer(m), nccl = true;
    for (int i = 0; i < m->config.size; i++) {
        struct window_note n;
        memcpy(&n, all[i].v, sizeof n);
        if (n.magic != NOTE_MAGIC || n.rank != (uint32_t)i || n.size != (uint32_t)m->config.size ||
            n.window.bytes != m->group.pieces_bytes)
            return errmsg_set(err, STATUS_LINK_PROTOCOL, "rank %d: not a note of this group", i);
        nccl = nccl && n.can_nccl;
        if (i == m->config.rank || !peers)
            continue;
        m->group.crowded = m->group.crowded || share_same_device(&n.window, m->c->device);
        cudaError_t e = share_map(&n.window, m->c->device, &m->peers[i]);
        m->group.windows[i] = m->peers[i].p;
        if (e != cudaSuccess) {
            log_info("no peer memory with rank %d: %s", i, cudaGetErrorString(e));
            peers = false;
        }
    }
    m->can = (peers ? CUDA_COMM_PEER : 0u) | (nccl ? CUDA_COMM_NCCL : 0u);
    return STATUS_OK;
}

// ---- rounds 2 and 3: what all can

static enum status choose(struct cuda_comm *m, const struct cuda_comm_note *all, struct errmsg *err)
{
    unsigned can = ~0u, want = m->config.want;
    for (int i = 0; i < m->config.size; i++) {
        struct can_note n;
        memcpy(&n, all[i].v, sizeof n);
        if (n.magic != NOTE_MAGIC || n.rank != (uint32_t)i)
            return errmsg_set(err, STATUS_LINK_PROTOCOL, "rank %d: not a note of this group", i);
        can &= n.can;
    }
    if (!want)
        want = can & CUDA_COMM_PEER ? CUDA_COMM_PEER : CUDA_COMM_NCCL;
    m->via = can & want;
    return m->via ? STATUS_OK
                  : errmsg_set(err, STATUS_UNSUPPORTED,
                               "the %d GPUs have neither peer access to each other nor NCCL",
                               m->config.size);
}

static void tell_id(struct cuda_comm *m, struct cuda_comm_note *own)
{
    struct id_note n = {.magic = NOTE_MAGIC, .rank = (uint32_t)m->config.rank};
    if (m->config.rank == 0 && m->via & CUDA_COMM_NCCL)
        n.valid = nccl_id(n.id);
    memcpy(own->v, &n, sizeof n);
}

static enum status join_nccl(struct cuda_comm *m, const struct cuda_comm_note *all,
                             struct errmsg *err)
{
    struct id_note n;
    memcpy(&n, all[0].v, sizeof n);
    if (!(m->via & CUDA_COMM_NCCL))
        return STATUS_OK;
    if (n.magic != NOTE_MAGIC || n.rank || !n.valid)
        return errmsg_set(err, STATUS_LINK_PROTOCOL, "rank 0 has no id for NCCL");
    enum status s = cuda_status(cudaMalloc((void **)&m->packed, PACK_BYTES), "room for NCCL", err);
    struct nccl_args a = {
        .id = n.id, .size = m->config.size, .rank = m->config.rank, .stream = m->c->stream};
    struct nccl *nccl = NULL;
    if (s == STATUS_OK)
        s = nccl_create(&a, &m->host->abort, &nccl, err);
    if (s != STATUS_OK)
        return s;
    atomic_store(&m->nccl, nccl);
    // The first call connects the ranks; a graph could not.
    s = nccl_all_gather(nccl, m->packed, 16);
    return s == STATUS_OK ? s : errmsg_set(err, s, "NCCL: the first all-gather failed");
}

static enum status comm_round(struct cuda_comm *m, int round, const struct cuda_comm_note *all,
                              struct cuda_comm_note *own, struct errmsg *err)
{
    enum status s = cuda_status(cudaSetDevice(m->c->device), "cudaSetDevice", err);
    if (s != STATUS_OK)
        return s;
    if (own)
        memset(own, 0, sizeof *own);
    if (round == 0)
        return tell_window(m, own, err);
    if (round == 1) {
        s = map_peers(m, all, err);
        struct can_note n = {.magic = NOTE_MAGIC, .rank = (uint32_t)m->config.rank, .can = m->can};
        memcpy(own->v, &n, sizeof n);
        return s;
    }
    if (round == 2) {
        s = choose(m, all, err);
        if (s == STATUS_OK)
            tell_id(m, own);
        return s;
    }
    return join_nccl(m, all, err);
}

static unsigned comm_via(const struct cuda_comm *m)
{
    return m->via;
}

// ---- operations

// Chosen by size alone, so that every rank chooses alike.
static unsigned via_of(const struct cuda_comm *m, enum cuda_comm_via asked)
{
    unsigned v = asked == CUDA_COMM_ANY ? m->via : (unsigned)asked & m->via;
    return v & CUDA_COMM_PEER ? CUDA_COMM_PEER : v;
}

static enum status enqueued(struct cuda_comm *m, cudaError_t e)
{
    return cuda_check(m->c, e, "all-gather") ? STATUS_OK : STATUS_INTERNAL;
}

// In as many goes as the window makes necessary.
static enum status gather_peer(struct cuda_comm *m, char *buf, size_t rows, size_t part)
{
    const struct peer_group *g = &m->group;
    size_t words = (part / 4 + 1) / 2 * 8; // bytes of a row in the words form
    if (rows * words <= PEER_WORDS_BYTES)
        return enqueued(m,
                        peer_gather_words(m->c->stream, g, &(struct peer_gather){buf, rows, part}));
    if (part > g->pieces_bytes)
        return STATUS_TOO_LARGE;
    size_t most = g->pieces_bytes / part;
    enum status s = STATUS_OK;
    for (size_t n; rows && s == STATUS_OK; rows -= n, buf += n * part * (size_t)g->size) {
        n = rows < most ? rows : most;
        s = enqueued(m, peer_gather_pieces(m->c->stream, g, &(struct peer_gather){buf, n, part}));
    }
    return s;
}

static enum status gather_nccl(struct cuda_comm *m, char *buf, size_t rows, size_t part)
{
    struct nccl *nccl = atomic_load(&m->nccl);
    size_t row = part * (size_t)m->config.size, most = PACK_BYTES / row;
    if (rows == 1)
        return nccl_all_gather(nccl, buf, part);
    if (!most)
        return STATUS_TOO_LARGE;
    enum status s = STATUS_OK;
    for (size_t n; rows && s == STATUS_OK; rows -= n, buf += n * row) {
        n = rows < most ? rows : most;
        struct peer_repack r = {.packed = m->packed,
                                .buf = buf,
                                .rows = n,
                                .part = part,
                                .size = m->config.size,
                                .rank = m->config.rank,
                                .own = true};
        s = enqueued(m, peer_pack(m->c->stream, &r));
        if (s == STATUS_OK)
            s = nccl_all_gather(nccl, m->packed, n * part);
        r.own = false;
        if (s == STATUS_OK)
            s = enqueued(m, peer_unpack(m->c->stream, &r));
    }
    return s;
}

static enum status comm_all_gather(struct cuda_comm *m, const struct cuda_comm_gather *a)
{
    size_t part = a->part * a->elem_bytes;
    char *buf = (char *)a->buf->p + a->at * a->elem_bytes;
    if (m->config.size == 1 || !a->rows || !a->part)
        return STATUS_OK;
    unsigned via = via_of(m, a->via);
    if (part % 4 || !via)
        return STATUS_UNSUPPORTED;
    return via == CUDA_COMM_PEER ? gather_peer(m, buf, a->rows, part)
                                 : gather_nccl(m, buf, a->rows, part);
}

static enum status comm_all_reduce(struct cuda_comm *m, const struct cuda_comm_reduce *a)
{
    float *buf = (float *)a->buf->p + a->at;
    unsigned via = via_of(m, a->via);
    if (m->config.size == 1 || !a->n)
        return STATUS_OK;
    if (!via)
        return STATUS_UNSUPPORTED;
    if (via == CUDA_COMM_NCCL)
        return nccl_all_reduce(atomic_load(&m->nccl), buf, a->n);
    if (a->n % 2 || a->n > PEER_WORDS_BYTES / sizeof(float))
        return STATUS_TOO_LARGE;
    return enqueued(m,
                    peer_reduce_words(m->c->stream, &m->group, &(struct peer_reduce){buf, a->n}));
}

// ---- control

static int comm_devices(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess)
        return n;
    cudaGetLastError();
    return 0;
}

static bool comm_idle(struct cuda_comm *m)
{
    return cudaStreamQuery(m->c->stream) != cudaErrorNotReady; // other errors: kern_sync tells
}

static void comm_abort(struct cuda_comm *m)
{
    *(volatile uint32_t *)&m->host->abort = 1;
    struct nccl *n = atomic_load(&m->nccl);
    if (n)
        nccl_abort(n);
}

static struct cuda_comm_state comm_state(const struct cuda_comm *m)
{
    const volatile struct peer_host *h = m->host;
    uint32_t failed = h->failed;
    struct cuda_comm_state s = {.waited_for = -1, .started = h->started};
    if (failed) {
        s.failure = (failed & 255) == PEER_TIMEOUT ? CUDA_COMM_TIMEOUT : CUDA_COMM_ABORTED;
        s.waited_for = (int)(failed >> 8);
        s.number = h->failed_number;
    } else if (h->abort) {
        s.failure = CUDA_COMM_ABORTED;
    } else if (atomic_load(&m->nccl) && nccl_failed(atomic_load(&m->nccl))) {
        s.failure = CUDA_COMM_BROKEN;
    }
    return s;
}

static void comm_destroy(struct cuda_comm *m)
{
    if (!m)
        return;
    cudaSetDevice(m->c->device);
    if (m->host)
        *(volatile uint32_t *)&m->host->abort = 1; // peers may be gone: wait for none
    nccl_destroy(atomic_load(&m->nccl));
    cuda_check(m->c, cudaStreamSynchronize(m->c->stream), "waiting for the last collective");
    for (int i = 0; i < PEER_RANKS; i++)
        cuda_check(m->c, share_unmap(&m->peers[i]), "unmapping a peer's window");
    cudaFree(m->packed);
    cudaFree(m->group.windows[m->group.rank]);
    cudaFree(m->group.state);
    cudaFreeHost(m->host);
    free(m);
}

const struct peer_group *cuda_comm_group(const struct cuda_comm *m)
{
    return m->via & CUDA_COMM_PEER ? &m->group : NULL;
}

cudaStream_t cuda_comm_stream(const struct cuda_comm *m)
{
    return m->c->stream;
}

static const struct cuda_comm_ops ops = {
    .abi = CUDA_COMM_ABI,
    .devices = comm_devices,
    .create = comm_create,
    .round = comm_round,
    .via = comm_via,
    .all_gather = comm_all_gather,
    .all_reduce = comm_all_reduce,
    .idle = comm_idle,
    .abort = comm_abort,
    .state = comm_state,
    .measure = cuda_comm_measure,
    .destroy = comm_destroy,
    .pipe = &cuda_pipe_ops,
};

__attribute__((visibility("default"))) const struct cuda_comm_ops *hadal_cuda_comm(void)
{
    return &ops;
}
