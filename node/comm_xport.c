// All-gather over xport links. Chunks are numbered from 1 over the life of the comm; the notice of
// a write is its chunk's number, and a peer may be at most one chunk ahead of us (see the header).
#include "node/comm_xport.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/mem.h"
#include "node/comm_body.h"

struct comm_xport {
    struct comm base;
    struct lane_hub *hub;
    uint32_t region;
    uint32_t *ranks; // [size] owned
    uint32_t *got;   // [size] owned; last chunk that arrived from each
    size_t area_bytes;
    uint8_t *areas;  // [2][size][area_bytes], the region; owned by the hub
    uint8_t *staged; // [2][area_bytes], own slices under way; owned
    uint32_t chunk;  // last chunk that we sent
};

// Rows [row, row + rows) and columns [column, column + columns) of every slice.
struct chunk {
    size_t row, rows, column, columns;
};

static struct comm_xport *xcomm_of(struct comm *c)
{
    return (struct comm_xport *)c;
}

static uint64_t area_offset(const struct comm_xport *x, uint32_t chunk, uint32_t from)
{
    return ((uint64_t)(chunk & 1) * (uint64_t)x->base.size + from) * x->area_bytes;
}

static enum status on_slice(void *ctx, uint32_t from, const struct xport_event *ev)
{
    struct comm_xport *x = ctx;
    for (uint32_t i = 0; i < (uint32_t)x->base.size; i++) {
        if (x->ranks[i] != from)
            continue;
        uint32_t chunk = x->got[i] + 1;
        if (ev->notice != chunk || (int32_t)(chunk - x->chunk) > 1 || ev->bytes > x->area_bytes ||
            ev->offset != area_offset(x, chunk, i))
            return STATUS_LINK_PROTOCOL;
        x->got[i] = chunk;
        return STATUS_OK;
    }
    return STATUS_LINK_PROTOCOL;
}

// Copies between one rank's slice in buf [rows][T][part] and a packed area.
static void slice_copy(uint8_t *area, float *buf, const struct chunk *k, size_t stride, bool out)
{
    size_t bytes = k->columns * sizeof(float);
    for (size_t r = 0; r < k->rows; r++) {
        float *row = buf + (k->row + r) * stride + k->column;
        if (out)
            memcpy(row, area + r * bytes, bytes);
        else
            memcpy(area + r * bytes, row, bytes);
    }
}

static enum status send_slice(struct comm_xport *x, uint32_t to, const uint8_t *bytes, size_t n)
{
    const struct xwrite w = {.region = x->region,
                             .offset = area_offset(x, x->chunk, (uint32_t)x->base.rank),
                             .src = bytes,
                             .bytes = n,
                             .notice = x->chunk};
    enum status s;
    uint32_t lost;
    while ((s = lane_hub_write(x->hub, x->ranks[to], &w)) == STATUS_FULL) {
        s = lane_hub_wait(x->hub, -1);
        if (atomic_load_explicit(&x->base.aborted, memory_order_relaxed) || s == STATUS_ABORTED)
            return STATUS_ABORTED;
        if ((s = lane_hub_fault(x->hub, &lost)) != STATUS_OK)
            return s;
    }
    return s;
}

// A rank that cannot reach another sends no more slices to anybody, so the loss of any rank ends
// the wait for every other.
static enum status wait_slice(struct comm_xport *x, uint32_t from)
{
    // `got` is our chunk or, when the peer is ahead, the next.
    uint32_t lost;
    while ((int32_t)(x->got[from] - x->chunk) < 0) {
        enum status s = lane_hub_fault(x->hub, &lost);
        if (s == STATUS_OK)
            s = lane_hub_peer(x->hub, x->ranks[from]);
        if (s != STATUS_OK)
            return s;
        s = lane_hub_wait(x->hub, -1);
        if (atomic_load_explicit(&x->base.aborted, memory_order_relaxed) || s == STATUS_ABORTED)
            return STATUS_ABORTED;
    }
    return STATUS_OK;
}

static enum status gather_chunk(struct comm_xport *x, float *buf, size_t part,
                                const struct chunk *k)
{
    uint32_t n = (uint32_t)x->base.size, me = (uint32_t)x->base.rank;
    size_t stride = n * part;
    x->chunk++;
    uint8_t *own = x->staged + (x->chunk & 1) * x->area_bytes;
    slice_copy(own, buf + me * part, k, stride, false);
    enum status s = STATUS_OK;
    for (uint32_t i = 1; i < n && s == STATUS_OK; i++)
        s = send_slice(x, (me + i) % n, own, k->rows * k->columns * sizeof(float));
    for (uint32_t i = 1; i < n && s == STATUS_OK; i++) {
        uint32_t from = (me + n - i) % n;
        s = wait_slice(x, from);
        if (s == STATUS_OK)
            slice_copy(x->areas + area_offset(x, x->chunk, from), buf + from * part, k, stride,
                       true);
    }
    return s;
}

static enum status xcomm_all_gather(struct comm *c, float *buf, size_t rows, size_t part)
{
    struct comm_xport *x = xcomm_of(c);
    size_t room = x->area_bytes / sizeof(float);
    struct chunk k = {.columns = part < room ? part : room};
    size_t rows_max = room / k.columns;
    enum status s = STATUS_OK;
    for (k.row = 0; k.row < rows && s == STATUS_OK; k.row += k.rows) {
        k.rows = rows - k.row < rows_max ? rows - k.row : rows_max;
        for (k.column = 0; k.column < part && s == STATUS_OK; k.column += k.columns) {
            struct chunk now = k;
            if (part - k.column < k.columns)
                now.columns = part - k.column;
            s = gather_chunk(x, buf, part, &now);
        }
    }
    return s;
}

static void xcomm_wake(struct comm *c)
{
    lane_hub_wake(xcomm_of(c)->hub);
}

static void xcomm_destroy(struct comm *c)
{
    struct comm_xport *x = xcomm_of(c);
    lane_hub_forget(x->hub, x);
    free(x->ranks);
    free(x->got);
    free(x->staged);
    free(x);
}

static enum status xcomm_poll(struct comm *c)
{
    struct comm_xport *x = xcomm_of(c);
    enum status s = lane_hub_poll(x->hub);
    for (uint32_t i = 0; i < (uint32_t)c->size && s >= 0; i++)
        if (i != (uint32_t)c->rank)
            s = lane_hub_peer(x->hub, x->ranks[i]);
    uint32_t lost;
    if (s >= 0)
        s = lane_hub_fault(x->hub, &lost);
    return s >= 0 ? STATUS_OK : s;
}

static const struct comm_body xcomm_body = {.all_gather = xcomm_all_gather,
                                            .wake = xcomm_wake,
                                            .destroy = xcomm_destroy,
                                            .poll = xcomm_poll};

static int find_own(const struct lane_hub *h, const struct comm_xport_config *config)
{
    for (uint32_t i = 0; i < config->n && config->n <= LIMIT_TENSOR; i++)
        if (config->ranks[i] == lane_hub_rank(h))
            return (int)i;
    return -1;
}

enum status comm_create_xport(struct lane_hub *h, const struct comm_xport_config *config,
                              struct comm **comm_out, struct errmsg *e)
{
    int rank = find_own(h, config);
    if (rank < 0 || config->area_bytes % 64)
        return errmsg_set(e, STATUS_BAD_CONFIG,
                          "comm: rank %u is not among the %u of its stage, or a bad area of %zu",
                          lane_hub_rank(h), config->n, config->area_bytes);
    struct comm_xport *x = mem_zalloc(1, sizeof *x);
    x->base.body = &xcomm_body;
    x->base.size = (int)config->n;
    x->base.rank = rank;
    x->hub = h;
    x->region = lane_hub_region(h, LANE_CHANNEL_COMM, 0);
    x->area_bytes = config->area_bytes ? config->area_bytes : 256 * 1024;
    struct lane_receiver receiver = {on_slice, x};
    void *areas;
    enum status s =
        lane_hub_receive(h, x->region, 2 * config->n * x->area_bytes, &receiver, &areas, e);
    if (s != STATUS_OK) {
        free(x);
        return s;
    }
    x->areas = areas;
    x->staged = mem_alloc(2 * x->area_bytes);
    x->ranks = mem_dup(config->ranks, config->n * sizeof *x->ranks);
    x->got = mem_zalloc(config->n, sizeof *x->got);
    *comm_out = &x->base;
    return STATUS_OK;
}
