// A verbs connection: one reliable queue pair and two completion queues. A write is an RDMA WRITE
// into the peer's region followed by a SEND of a 32-byte frame that tells of it; the queue pair
// keeps them in order, so the frame's completion is the notice. A write like an earlier one needs
// no frame, its immediate says all (struct verbs_shape). Up to VERBS_EAGER bytes travel in the
// frame itself: one packet, and the receiver copies them. Frames are counted by credits, given back
// in every frame and, when none goes that way, in a frame of their own.
//
// A source inside a region of this xport is read by the device itself, and its write is over when
// the device reports it. Any other source is copied through registered pieces: memory that we did
// not allocate cannot be kept registered, as nobody tells us when it is unmapped.
//
// Only every 16th send reports, and those that give memory back. A send that fails reports always.
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/mem.h"
#include "rdma/xport_verbs.h"

// Sends collected for one call.
struct batch {
    struct ibv_send_wr wr[VERBS_BATCH];
    struct ibv_sge sge[VERBS_BATCH];
    int n;
};

// --- making and freeing ---

static enum status buffers_make(struct verbs_conn *c, struct ibv_pd *pd)
{
    size_t bytes = sizeof *c->buf + c->frames_n * sizeof c->buf->in[0];
    c->buf_bytes = (bytes + 4095) & ~(size_t)4095;
    void *p = mmap(NULL, c->buf_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return STATUS_NO_MEMORY;
    c->buf = p;
    c->buf_mr = verbs_lib()->ibv.reg_mr(pd, p, c->buf_bytes, IBV_ACCESS_LOCAL_WRITE);
    if (!c->buf_mr) {
        char hint[160];
        verbs_memory_hint(hint, sizeof hint, errno);
        log_error("xport verbs: cannot register %zu bytes for a link: %s", c->buf_bytes, hint);
        return STATUS_NO_MEMORY;
    }
    return STATUS_OK;
}

static bool qp_make(struct verbs_conn *c, struct ibv_pd *pd, uint32_t inline_max)
{
    struct ibv_qp_init_attr a = {.send_cq = c->send_cq,
                                 .recv_cq = c->recv_cq,
                                 .cap = {.max_send_wr = VERBS_SENDS,
                                         .max_recv_wr = c->frames_n + 1,
                                         .max_send_sge = 1,
                                         .max_recv_sge = 1,
                                         .max_inline_data = inline_max},
                                 .qp_type = IBV_QPT_RC,
                                 .sq_sig_all = 0};
    if (verbs_lib()->rdma.create_qp(c->id, pd, &a) < 0)
        return false;
    c->has_qp = true;
    c->inline_max = a.cap.max_inline_data;
    return true;
}

static void post_receives(struct verbs_conn *c, uint32_t first, uint32_t n)
{
    struct ibv_recv_wr wr[VERBS_BATCH], *bad;
    struct ibv_sge sge[VERBS_BATCH];
    for (uint32_t i = 0; i < n;) {
        uint32_t k = 0;
        for (; k < VERBS_BATCH && i < n; k++, i++) {
            uint32_t slot = (first + i) % c->frames_n;
            sge[k] = (struct ibv_sge){.addr = (uintptr_t)&c->buf->in[slot],
                                      .length = sizeof c->buf->in[0],
                                      .lkey = c->buf_mr->lkey};
            wr[k] = (struct ibv_recv_wr){.wr_id = slot, .sg_list = &sge[k], .num_sge = 1};
            if (k > 0)
                wr[k - 1].next = &wr[k];
        }
        // Fails only on a queue pair in error, which its completions tell of.
        (void)ibv_post_recv(c->id->qp, wr, &bad);
    }
}

static void post_hello_receive(struct verbs_conn *c)
{
    struct ibv_sge sge = {.addr = (uintptr_t)&c->buf->hello_in,
                          .length = sizeof c->buf->hello_in,
                          .lkey = c->buf_mr->lkey};
    struct ibv_recv_wr wr = {.sg_list = &sge, .num_sge = 1}, *bad;
    (void)ibv_post_recv(c->id->qp, &wr, &bad);
}

enum status verbs_conn_prepare(struct verbs_conn *c)
{
    struct verbs_device *d = verbs_device_of(c->x);
    const struct verbs_lib *v = verbs_lib();
    uint32_t most = d->max_wr > 64 ? d->max_wr - VERBS_CONTROL - 1 : VERBS_CREDITS_MIN;
    c->credits = c->x->depth < VERBS_CREDITS_MIN ? VERBS_CREDITS_MIN : c->x->depth;
    c->credits = c->credits > VERBS_FRAMES_MAX ? VERBS_FRAMES_MAX : c->credits;
    c->credits = c->credits > most ? most : c->credits;
    c->frames_n = c->credits + VERBS_CONTROL;

    enum status s = buffers_make(c, d->pd);
    if (s != STATUS_OK)
        return s;
    c->send_cq = v->ibv.create_cq(d->ctx, VERBS_SENDS + 1, c, d->channel, 0);
    c->recv_cq = v->ibv.create_cq(d->ctx, (int)c->frames_n + 1, c, d->channel, 0);
    // Inline data is a matter of speed: do without where the device offers less.
    if (!c->send_cq || !c->recv_cq ||
        (!qp_make(c, d->pd, sizeof c->buf->out[0]) && !qp_make(c, d->pd, VERBS_FRAME_HEAD) &&
         !qp_make(c, d->pd, 0))) {
        log_warn("xport verbs: cannot create the queues of a link: %s", strerror(errno));
        return status_from_errno(errno);
    }
    post_hello_receive(c);
    post_receives(c, 0, c->frames_n);
    verbs_conn_arm(c);
    return STATUS_OK;
}

void verbs_conn_destroy(struct verbs_conn *c)
{
    const struct verbs_lib *v = verbs_lib();
    if (c->has_qp)
        v->rdma.destroy_qp(c->id);
    if (c->send_cq)
        v->ibv.destroy_cq(c->send_cq);
    if (c->recv_cq)
        v->ibv.destroy_cq(c->recv_cq);
    if (c->id)
        v->rdma.destroy_id(c->id); // tells the peer
    if (c->buf_mr)
        v->ibv.dereg_mr(c->buf_mr);
    if (c->buf)
        munmap(c->buf, c->buf_bytes);
    if (c->chunks_mr)
        v->ibv.dereg_mr(c->chunks_mr);
    if (c->chunks)
        munmap(c->chunks, VERBS_CHUNKS * VERBS_CHUNK);
    free(c);
}

void verbs_conn_break(struct verbs_conn *c)
{
    if (c->broken || !c->has_qp)
        return;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    verbs_lib()->ibv.modify_qp(c->id->qp, &attr, IBV_QP_STATE);
    c->broken = true;
}

static void conn_fail(struct verbs_conn *c, enum status why, bool drain)
{
    verbs_conn_break(c);
    if (c->link)
        xlink_fail(c->link, why, drain);
}

void verbs_conn_arm(struct verbs_conn *c)
{
    if (!c->send_armed)
        c->send_armed = ibv_req_notify_cq(c->send_cq, 0) == 0;
    if (!c->recv_armed)
        c->recv_armed = ibv_req_notify_cq(c->recv_cq, 0) == 0;
}

// --- posting ---

static uint32_t sends_free(const struct verbs_conn *c)
{
    return VERBS_SENDS - (uint32_t)(c->sent - c->done);
}

static bool batch_post(struct verbs_conn *c, struct batch *b)
{
    if (b->n == 0)
        return true;
    struct ibv_send_wr *bad = NULL;
    int err = ibv_post_send(c->id->qp, b->wr, &bad);
    int n = b->n;
    b->n = 0;
    if (!err)
        return true;
    if (bad >= b->wr && bad < b->wr + n)
        c->sent = bad->wr_id; // from here on nothing was posted
    c->held_until = c->held_until < c->sent ? c->held_until : c->sent;
    conn_fail(c, STATUS_LINK_DOWN, true);
    return false;
}

static struct ibv_send_wr *batch_add(struct verbs_conn *c, struct batch *b, bool report)
{
    struct ibv_send_wr *wr = &b->wr[b->n];
    *wr = (struct ibv_send_wr){.wr_id = c->sent, .sg_list = &b->sge[b->n], .num_sge = 1};
    if (b->n > 0)
        b->wr[b->n - 1].next = wr;
    b->n++;
    c->sent++;
    if (report || c->report_next || c->sent - c->signalled >= VERBS_SIGNAL_EVERY) {
        c->report_next = false;
        wr->send_flags = IBV_SEND_SIGNALED;
        c->signalled = c->sent;
    }
    return wr;
}

// The frame of the next send, its head filled.
static struct verbs_frame *batch_frame(struct verbs_conn *c, struct batch *b,
                                       const struct verbs_frame *head, size_t payload)
{
    struct verbs_frame *f = &c->buf->out[c->sent % VERBS_SENDS];
    memcpy(f, head, VERBS_FRAME_HEAD);
    f->granted = c->credits + c->taken;
    c->told = c->taken;
    uint32_t bytes = (uint32_t)(VERBS_FRAME_HEAD + payload);
    struct ibv_sge *sge = &b->sge[b->n];
    struct ibv_send_wr *wr = batch_add(c, b, false);
    *sge = (struct ibv_sge){.addr = (uintptr_t)f, .length = bytes, .lkey = c->buf_mr->lkey};
    wr->opcode = IBV_WR_SEND;
    if (bytes <= c->inline_max)
        wr->send_flags |= IBV_SEND_INLINE;
    return f;
}

// What the protocol itself has to say.
static void post_control(struct verbs_conn *c, const struct verbs_frame *head)
{
    struct batch b = {.n = 0};
    batch_frame(c, &b, head, 0);
    batch_post(c, &b);
}

static void post_empty_write(struct verbs_conn *c)
{
    struct batch b = {.n = 0};
    struct ibv_send_wr *wr = batch_add(c, &b, true);
    wr->opcode = IBV_WR_RDMA_WRITE;
    wr->num_sge = 0;
    batch_post(c, &b);
}

static void answer_ask(struct verbs_conn *c)
{
    struct xport *x = c->x;
    for (uint32_t i = 0; i < x->regions_n; i++) {
        const struct xregion *r = &x->regions[i];
        if (r->id != c->asked_region)
            continue;
        c->owes_region = false;
        post_control(c, &(struct verbs_frame){.kind = VERBS_REGION,
                                              .region = r->id,
                                              .notice = ((struct ibv_mr *)r->mr)->rkey,
                                              .offset = (uintptr_t)r->base,
                                              .bytes = r->bytes});
        return;
    }
    conn_fail(c, STATUS_LINK_PROTOCOL, false); // it writes to a region that is not
}

static void post_controls(struct verbs_conn *c)
{
    if (c->owes_region && sends_free(c) > 0)
        answer_ask(c);
    bool up = c->link && c->link->state == XLINK_UP;
    if (up && c->taken - c->told >= c->credits / 2 && sends_free(c) > 0)
        post_control(c, &(struct verbs_frame){.kind = VERBS_CREDIT});
}

// --- writes ---

static struct xwork *work_at(struct xlink *l, uint32_t i)
{
    return &l->wq[(l->wq_head + i) % l->x->depth];
}

static struct verbs_region *peer_region(struct verbs_conn *c, uint32_t id)
{
    for (uint32_t i = 0; i < c->peers_n; i++)
        if (c->peers[i].id == id)
            return &c->peers[i];
    return NULL;
}

// The key under which the device may read the source itself.
static const struct ibv_mr *registered(const struct xport *x, const uint8_t *p, size_t n)
{
    for (uint32_t i = 0; i < x->regions_n; i++) {
        const struct xregion *r = &x->regions[i];
        if (p >= r->base && n <= r->bytes && (size_t)(p - r->base) <= r->bytes - n)
            return r->mr;
    }
    return NULL;
}

static bool chunks_make(struct verbs_conn *c)
{
    size_t bytes = VERBS_CHUNKS * VERBS_CHUNK;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return false;
    c->chunks = p;
    c->chunks_mr = verbs_lib()->ibv.reg_mr(verbs_device_of(c->x)->pd, p, bytes, 0);
    if (c->chunks_mr)
        return true;
    char hint[160];
    verbs_memory_hint(hint, sizeof hint, errno);
    log_error("xport verbs: cannot register %zu bytes for copies: %s", bytes, hint);
    return false;
}

// Source of the next piece of a write: the caller's memory, or a copy. False: no room now.
static bool piece_source(struct verbs_conn *c, struct xwork *w, struct ibv_sge *sge)
{
    const uint8_t *src = w->src + w->sent;
    size_t left = w->frame.bytes - w->sent;
    const struct ibv_mr *mr = registered(c->x, w->src, w->frame.bytes);
    if (mr) {
        uint32_t n = left < VERBS_WRITE_MAX ? (uint32_t)left : VERBS_WRITE_MAX;
        *sge = (struct ibv_sge){.addr = (uintptr_t)src, .length = n, .lkey = mr->lkey};
        w->held_until = c->held_until = c->sent + 1;
        return true;
    }
    if (c->chunk_until[c->chunk_i] > c->done)
        return false;
    uint32_t n = left < VERBS_CHUNK ? (uint32_t)left : VERBS_CHUNK;
    uint8_t *copy = c->chunks + (size_t)c->chunk_i * VERBS_CHUNK;
    memcpy(copy, src, n);
    *sge = (struct ibv_sge){.addr = (uintptr_t)copy, .length = n, .lkey = c->chunks_mr->lkey};
    c->chunk_until[c->chunk_i] = c->sent + 1;
    c->chunk_i = (c->chunk_i + 1) % VERBS_CHUNKS;
    return true;
}

static uint32_t shape_number(const struct xframe *f)
{
    uint64_t h = (f->offset ^ (uint64_t)f->region << 40) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32) % VERBS_SHAPES;
}

// The immediate that tells of a write; false when it needs a frame.
static bool immediate_of(struct verbs_conn *c, const struct xframe *f, uint32_t *imm)
{
    uint32_t number = shape_number(f);
    struct verbs_shape *s = &c->out_shapes[number];
    int32_t step = (int32_t)(f->notice - s->notice), most = 1 << (VERBS_STEP_BITS - 1);
    if (s->bytes != f->bytes || s->offset != f->offset || s->region != f->region || step < -most ||
        step >= most)
        return false;
    s->notice = f->notice;
    *imm = number << VERBS_STEP_BITS | ((uint32_t)step & ((1u << VERBS_STEP_BITS) - 1));
    return true;
}

// Pieces of a write that does not fit a frame (*told: the last one tells of it, too); false when it
// has to wait.
static bool stage_pieces(struct verbs_conn *c, struct batch *b, struct xwork *w, bool *told)
{
    const struct verbs_region *r = peer_region(c, w->frame.region);
    if (!r) {
        if (!c->asked && sends_free(c) > 0) {
            c->asked = true;
            c->asks = w->frame.region;
            batch_frame(c, b, &(struct verbs_frame){.kind = VERBS_ASK, .region = w->frame.region},
                        0);
        }
        return false;
    }
    if (w->frame.bytes > r->bytes || w->frame.offset > r->bytes - w->frame.bytes) {
        w->sent = w->frame.bytes; // nothing is written; the peer judges the frame
        return true;
    }
    if (!c->chunks && !registered(c->x, w->src, w->frame.bytes) && !chunks_make(c)) {
        conn_fail(c, STATUS_NO_MEMORY, false);
        return false;
    }
    while (w->sent < w->frame.bytes) {
        if (sends_free(c) <= VERBS_SENDS_SPARE || !piece_source(c, w, &b->sge[b->n]))
            return false;
        struct ibv_send_wr *wr = batch_add(c, b, true);
        uint32_t imm;
        *told = wr->sg_list->length == w->frame.bytes && immediate_of(c, &w->frame, &imm);
        wr->opcode = *told ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE;
        if (*told)
            wr->imm_data = htonl(imm);
        wr->wr.rdma.remote_addr = r->addr + w->frame.offset + w->sent;
        wr->wr.rdma.rkey = r->rkey;
        w->sent += wr->sg_list->length;
        if (b->n == VERBS_BATCH && !batch_post(c, b))
            return false;
    }
    return true;
}

static bool stage(struct verbs_conn *c, struct batch *b, struct xwork *w)
{
    if ((int32_t)(c->granted - c->frames_sent) <= 0 || sends_free(c) <= VERBS_SENDS_SPARE)
        return false;
    bool eager = w->frame.bytes <= VERBS_EAGER, told = false;
    if (!eager && w->sent < w->frame.bytes && !stage_pieces(c, b, w, &told))
        return false;
    c->frames_sent += told; // it takes a receive over there
    if (told)
        return true;
    if (sends_free(c) <= VERBS_SENDS_SPARE)
        return false;
    struct verbs_frame head = {.kind = eager ? VERBS_INLINE : VERBS_DATA,
                               .region = w->frame.region,
                               .notice = w->frame.notice,
                               .offset = w->frame.offset,
                               .bytes = w->frame.bytes};
    if (!eager) {
        uint32_t number = shape_number(&w->frame);
        head.kind |= number << 8;
        c->out_shapes[number] = (struct verbs_shape){.region = w->frame.region,
                                                     .notice = w->frame.notice,
                                                     .offset = w->frame.offset,
                                                     .bytes = w->frame.bytes};
    }
    struct verbs_frame *f = batch_frame(c, b, &head, eager ? w->frame.bytes : 0);
    if (eager && w->frame.bytes)
        memcpy(f->payload, w->src, w->frame.bytes);
    c->frames_sent++;
    return true;
}

static void pump(struct verbs_conn *c)
{
    struct xlink *l = c->link;
    struct batch b = {.n = 0};
    while (l->state == XLINK_UP && l->wq_over + c->staged < l->wq_n &&
           stage(c, &b, work_at(l, l->wq_over + c->staged))) {
        c->staged++;
        if (b.n == VERBS_BATCH && !batch_post(c, &b))
            return;
    }
    if (l->state == XLINK_UP)
        batch_post(c, &b);
}

static void reap_sends(struct verbs_conn *c)
{
    struct ibv_wc wc[VERBS_BATCH];
    int n;
    do {
        n = ibv_poll_cq(c->send_cq, VERBS_BATCH, wc);
        for (int i = 0; i < n; i++) {
            c->done = wc[i].wr_id + 1 > c->done ? wc[i].wr_id + 1 : c->done;
            if (wc[i].status == IBV_WC_SUCCESS || c->broken)
                continue;
            log_warn("xport verbs: link lost: %s", verbs_lib()->ibv.wc_status_str(wc[i].status));
            conn_fail(c, STATUS_LINK_DOWN, true);
        }
    } while (n == VERBS_BATCH);
}

static void works_advance(struct verbs_conn *c)
{
    struct xlink *l = c->link;
    while (c->staged > 0 && work_at(l, l->wq_over)->held_until <= c->done) {
        l->wq_over++;
        c->staged--;
    }
}

void verbs_conn_progress(struct verbs_conn *c)
{
    reap_sends(c);
    if (!c->link || c->link->state != XLINK_UP)
        return;
    post_controls(c);
    pump(c);
    if (c->link->state == XLINK_UP)
        works_advance(c);
}

enum status verbs_write(struct xlink *l, const struct xwrite *w)
{
    struct verbs_conn *c = verbs_conn_of(l);
    struct xwork *work = xlink_work_add(l, w->user);
    work->frame = (struct xframe){
        .region = w->region, .notice = w->notice, .offset = w->offset, .bytes = w->bytes};
    work->src = w->src;
    work->sent = 0;
    work->held_until = 0;
    if (l->wq_over + c->staged + 1 == l->wq_n) // else others wait before it
        verbs_conn_progress(c);
    return STATUS_OK;
}

bool verbs_released(struct xlink *l)
{
    struct verbs_conn *c = verbs_conn_of(l);
    if (!c || !c->has_qp || c->gone)
        return true;
    reap_sends(c);
    if (c->held_until <= c->done)
        return true;
    verbs_conn_break(c); // the device lets go of it by a flush
    return false;
}

void verbs_conn_probe(struct verbs_conn *c)
{
    reap_sends(c);
    bool heard = c->done != c->last_done;
    c->last_done = c->done;
    if (!heard && !c->broken && c->signalled <= c->done && sends_free(c) > 0)
        post_empty_write(c);
}

void verbs_conn_part(struct verbs_conn *c)
{
    c->link = NULL;
    if (!c->broken && sends_free(c) > 0) {
        c->report_next = true; // and so for all before it
        post_control(c, &(struct verbs_frame){.kind = VERBS_BYE});
    }
    verbs_conn_arm(c);
}

bool verbs_conn_is_quiet(struct verbs_conn *c)
{
    reap_sends(c);
    return c->broken || c->gone || c->done == c->sent;
}

// --- greeting ---

enum status verbs_greet(struct xlink *l, struct xgreeting *g)
{
    struct verbs_conn *c = verbs_conn_of(l);
    struct xport *x = l->x;
    struct verbs_greeting *out = &c->buf->hello_out;
    out->g = *g;
    out->g.depth = c->credits;
    out->g.regions_n = g->code == XGREET_OK ? x->regions_n : 0;
    for (uint32_t i = 0; i < out->g.regions_n; i++) {
        const struct xregion *r = &x->regions[i];
        out->regions[i] = (struct verbs_region){.id = r->id,
                                                .rkey = ((struct ibv_mr *)r->mr)->rkey,
                                                .addr = (uintptr_t)r->base,
                                                .bytes = r->bytes};
    }
    struct batch b = {.n = 0};
    struct ibv_send_wr *wr = batch_add(c, &b, true);
    b.sge[0] = (struct ibv_sge){
        .addr = (uintptr_t)out,
        .length = (uint32_t)(sizeof out->g + out->g.regions_n * sizeof out->regions[0]),
        .lkey = c->buf_mr->lkey};
    wr->opcode = IBV_WR_SEND;
    struct ibv_send_wr *bad;
    return ibv_post_send(c->id->qp, b.wr, &bad) ? STATUS_LINK_DOWN : STATUS_OK;
}

enum status verbs_greeted(struct xlink *l)
{
    struct verbs_conn *c = verbs_conn_of(l);
    struct ibv_wc wc;
    if (ibv_poll_cq(c->recv_cq, 1, &wc) == 0)
        return STATUS_PENDING;
    if (wc.status != IBV_WC_SUCCESS)
        return STATUS_LINK_DOWN;
    const struct verbs_greeting *in = &c->buf->hello_in;
    if (wc.byte_len < sizeof in->g)
        return STATUS_LINK_PROTOCOL;
    c->hello_bytes = wc.byte_len;
    l->greeting = in->g;
    return STATUS_OK;
}

enum status verbs_start(struct xlink *l)
{
    struct verbs_conn *c = verbs_conn_of(l);
    const struct verbs_greeting *in = &c->buf->hello_in;
    const struct xgreeting *g = &l->greeting;
    if (g->regions_n > XPORT_REGIONS_MAX || g->depth == 0 || g->depth > VERBS_FRAMES_MAX ||
        c->hello_bytes != sizeof *g + g->regions_n * sizeof in->regions[0])
        return STATUS_LINK_PROTOCOL;
    c->granted = g->depth;
    memcpy(c->peers, in->regions, g->regions_n * sizeof c->peers[0]);
    c->peers_n = g->regions_n;
    return STATUS_OK;
}

// --- receiving ---

static bool take_region(struct verbs_conn *c, const struct verbs_frame *f)
{
    if (!c->asked || f->region != c->asks)
        return false;
    c->asked = false;
    // A full table forgets one of them: it will be asked for again.
    uint32_t at = c->peers_n < XPORT_REGIONS_MAX ? c->peers_n++ : c->learned++ % XPORT_REGIONS_MAX;
    c->peers[at] = (struct verbs_region){
        .id = f->region, .rkey = f->notice, .addr = f->offset, .bytes = f->bytes};
    return true;
}

static bool take_credits(struct verbs_conn *c, uint32_t granted)
{
    int32_t more = (int32_t)(granted - c->granted);
    if (more < 0 || granted - c->frames_sent > c->link->greeting.depth)
        return false;
    c->granted = granted;
    return true;
}

static bool take_immediate(struct verbs_conn *c, uint32_t imm, uint32_t got,
                           struct xport_event *event)
{
    struct verbs_shape *s = &c->in_shapes[imm >> VERBS_STEP_BITS];
    int32_t step = (int32_t)(imm << (32 - VERBS_STEP_BITS)) >> (32 - VERBS_STEP_BITS);
    s->notice += (uint32_t)step;
    struct xframe x = {
        .region = s->region, .notice = s->notice, .offset = s->offset, .bytes = s->bytes};
    if (s->bytes == 0 || got != s->bytes || !xport_target(c->x, &x))
        return false;
    c->unposted_taken++;
    xlink_notice(c->link, &x, event);
    return true;
}

static bool take_notice(struct verbs_conn *c, const struct verbs_frame *f, uint32_t got,
                        struct xport_event *event)
{
    struct xframe x = {
        .region = f->region, .notice = f->notice, .offset = f->offset, .bytes = f->bytes};
    uint8_t *dst = xport_target(c->x, &x);
    uint32_t number = f->kind >> 8;
    bool carries = f->kind == VERBS_INLINE;
    size_t payload = carries ? f->bytes : 0;
    if (!dst || number >= VERBS_SHAPES || payload > VERBS_EAGER ||
        got != VERBS_FRAME_HEAD + payload)
        return false;
    if (payload)
        memcpy(dst, f->payload, payload);
    if (!carries)
        c->in_shapes[number] = (struct verbs_shape){
            .region = f->region, .notice = f->notice, .offset = f->offset, .bytes = f->bytes};
    c->unposted_taken++;
    xlink_notice(c->link, &x, event);
    return true;
}

static void take_bye(struct verbs_conn *c)
{
    conn_fail(c, STATUS_LINK_DOWN, false);
    c->link->rx_over = true;
}

// Notices given (0 or 1), or -1: it broke the protocol.
static int take_frame(struct verbs_conn *c, const struct verbs_frame *f, uint32_t got,
                      struct xport_event *event)
{
    if (got < VERBS_FRAME_HEAD || !take_credits(c, f->granted))
        return -1;
    bool bare = got == VERBS_FRAME_HEAD;
    if ((f->kind & 0xff) == VERBS_DATA)
        return take_notice(c, f, got, event) ? 1 : -1;
    switch (f->kind) {
    case VERBS_INLINE:
        return take_notice(c, f, got, event) ? 1 : -1;
    case VERBS_CREDIT:
        return bare ? 0 : -1;
    case VERBS_REGION:
        return bare && take_region(c, f) ? 0 : -1;
    case VERBS_ASK:
        if (!bare || c->owes_region)
            return -1;
        c->owes_region = true;
        c->asked_region = f->region;
        return 0;
    case VERBS_BYE:
        if (bare)
            take_bye(c);
        return bare ? 0 : -1;
    default:
        return -1;
    }
}

static bool next_wc(struct verbs_conn *c, int max)
{
    if (c->wc_i < c->wc_n)
        return true;
    int n = ibv_poll_cq(c->recv_cq, max < VERBS_BATCH ? max : VERBS_BATCH, c->wc);
    c->wc_i = 0;
    c->wc_n = n > 0 ? n : 0;
    return n > 0;
}

static void receives_repost(struct verbs_conn *c)
{
    post_receives(c, (c->in_slot + c->frames_n - c->unposted) % c->frames_n, c->unposted);
    c->taken += c->unposted_taken;
    c->unposted = c->unposted_taken = 0;
}

// Receives end by a flush: after all that the peer sent. When it comes unasked, our device refused
// what the peer did with its keys.
static void receive_flushed(struct verbs_conn *c)
{
    reap_sends(c);
    conn_fail(c, STATUS_LINK_PROTOCOL, false);
    c->link->rx_over = true;
}

int verbs_receive(struct xlink *l, struct xport_event *events, int max)
{
    struct verbs_conn *c = verbs_conn_of(l);
    int n = 0;
    while (n < max && !l->rx_over && next_wc(c, max - n)) {
        const struct ibv_wc *wc = &c->wc[c->wc_i++];
        if (wc->status != IBV_WC_SUCCESS) {
            receive_flushed(c);
            break;
        }
        const struct verbs_frame *f = &c->buf->in[c->in_slot];
        c->in_slot = (c->in_slot + 1) % c->frames_n;
        c->unposted++;
        int took;
        if (wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM)
            took = take_immediate(c, ntohl(wc->imm_data), wc->byte_len, &events[n]) ? 1 : -1;
        else
            took = take_frame(c, f, wc->byte_len, &events[n]);
        n += took > 0;
        if (took < 0) {
            conn_fail(c, STATUS_LINK_PROTOCOL, false);
            l->rx_over = true;
        }
    }
    if (c->gone)
        l->rx_over = true;
    if (l->state == XLINK_UP && c->unposted >= VERBS_REPOST)
        receives_repost(c);
    verbs_conn_progress(c);
    return n;
}

bool verbs_ready(struct xlink *l)
{
    struct verbs_conn *c = verbs_conn_of(l);
    verbs_conn_progress(c);
    return l->wq_over > 0 || l->state != XLINK_UP || next_wc(c, VERBS_BATCH);
}
