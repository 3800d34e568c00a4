// Hidden states between stages. Each message takes a slot of a lane; its rows follow the header,
// or, when both ranks are on GPUs of one host that reach each other, are put into a slot of the
// receiver's device memory before the header is sent. The lane's credits are the pipe's: a slot is
// free when the receiver has released the message two before.
#include <assert.h>
#include <string.h>

#include "base/log.h"
#include "node/worker_state.h"

enum { JOIN_TIMEOUT_MS = 10000 };

static size_t row_bytes(const struct worker *w)
{
    return (size_t)w->state->shard->config.hidden * sizeof(float);
}

static uint32_t rank_of(const struct worker_state *s, int stage_step)
{
    return (uint32_t)((int)s->form.my_stage + stage_step) * s->form.tensor + s->form.my_tensor;
}

static bool has_before(const struct worker_state *s)
{
    return s->form.my_stage > 0;
}

static bool has_after(const struct worker_state *s)
{
    return s->form.my_stage + 1 < s->form.stages;
}

enum status worker_hidden_open(struct worker *w, struct errmsg *e)
{
    struct worker_state *s = w->state;
    struct lane_config hidden = {.channel = CHANNEL_HIDDEN, .slots = HIDDEN_SLOTS};
    struct lane_config pipe = {
        .channel = CHANNEL_PIPE, .slots = 1, .slot_bytes = sizeof(struct cuda_comm_note)};
    hidden.slot_bytes = sizeof(struct hidden_header) + w->config.max_rows * row_bytes(w);
    enum status rc = STATUS_OK;
    if (has_before(s)) {
        hidden.peer = pipe.peer = rank_of(s, -1);
        rc = lane_open_rx(s->hub, &hidden, &s->hidden_rx, e);
        if (rc == STATUS_OK)
            rc = lane_open_tx(s->hub, &pipe, &s->pipe_tx, e);
    }
    if (rc == STATUS_OK && has_after(s)) {
        hidden.peer = pipe.peer = rank_of(s, 1);
        rc = lane_open_tx(s->hub, &hidden, &s->hidden_tx, e);
        if (rc == STATUS_OK)
            rc = lane_open_rx(s->hub, &pipe, &s->pipe_rx, e);
    }
    return rc;
}

static const struct cuda_pipe_ops *pipe_ops(void)
{
    return kern_cuda_comm(NULL)->pipe; // the module is loaded: a kern of it is open
}

static enum status offer_pipe(struct worker *w, struct errmsg *e)
{
    struct worker_state *s = w->state;
    struct cuda_comm_note note;
    enum status rc = pipe_ops()->create_rx(s->kern, HIDDEN_SLOTS, w->config.max_rows * row_bytes(w),
                                           &s->pipe_in, &note, e);
    if (rc != STATUS_OK)
        return rc;
    rc = lane_send(s->pipe_tx, &note, sizeof note);
    return rc == STATUS_OK ? rc : errmsg_set(e, rc, "the stage before was lost");
}

static enum status join_pipe(struct worker *w, struct errmsg *e)
{
    struct worker_state *s = w->state;
    const void *bytes;
    size_t n;
    struct cuda_comm_note note;
    enum status rc = lane_recv_wait(s->pipe_rx, JOIN_TIMEOUT_MS, &bytes, &n);
    if (rc != STATUS_OK || n != sizeof note)
        return errmsg_set(e, rc < 0 ? rc : STATUS_LINK_TIMEOUT, "the next stage offers no pipe");
    memcpy(&note, bytes, sizeof note);
    lane_release(s->pipe_rx);
    rc = pipe_ops()->create_tx(s->kern, &note, &s->pipe_out, e);
    if (rc == STATUS_UNSUPPORTED) {
        log_info("%s: hidden states go through host memory", e->text);
        e->text[0] = 0;
        return STATUS_OK;
    }
    return rc;
}

enum status worker_hidden_join(struct worker *w, struct errmsg *e)
{
    struct worker_state *s = w->state;
    s->hidden_sent = 0;
    if (kern_backend(s->kern) != KERN_CUDA)
        return STATUS_OK;
    enum status rc = has_before(s) ? offer_pipe(w, e) : STATUS_OK;
    return rc == STATUS_OK && has_after(s) ? join_pipe(w, e) : rc;
}

void worker_hidden_close(struct worker *w)
{
    struct worker_state *s = w->state;
    if (s->pipe_in)
        pipe_ops()->destroy(s->pipe_in);
    if (s->pipe_out)
        pipe_ops()->destroy(s->pipe_out);
    s->pipe_in = s->pipe_out = NULL;
    s->hidden_rx = s->hidden_tx = s->pipe_rx = s->pipe_tx = NULL;
}

enum status worker_hidden_read(const struct worker *w, const void *bytes, size_t n,
                               struct hidden_rows *out)
{
    struct hidden_header h;
    if (n < sizeof h)
        return STATUS_LINK_PROTOCOL;
    memcpy(&h, bytes, sizeof h);
    bool piped = h.place > 0;
    if (h.rows > w->config.max_rows || h.place > HIDDEN_SLOTS || (piped && !w->state->pipe_in) ||
        n != sizeof h + (piped ? 0 : h.rows * row_bytes(w)))
        return STATUS_LINK_PROTOCOL;
    *out = (struct hidden_rows){
        .step = h.step,
        .rows = h.rows,
        .place = h.place,
        .host = piped ? NULL : (const float *)(const void *)((const char *)bytes + sizeof h)};
    return STATUS_OK;
}

// The rows of the residual stream.
static struct cuda_pipe_rows x_rows(const struct worker *w, size_t rows)
{
    const struct model_shard *m = w->state->shard;
    return (struct cuda_pipe_rows){.buf = m->b.x,
                                   .rows = rows,
                                   .row_bytes = row_bytes(w),
                                   .stride = (size_t)m->rank.tensors * (size_t)m->plan.hidden.part *
                                             sizeof(float)};
}

enum status worker_hidden_take(struct worker *w, const struct hidden_rows *h,
                               struct forward_batch *b)
{
    b->hidden = h->host;
    b->hidden_there = !h->host;
    if (h->host)
        return STATUS_OK;
    struct cuda_pipe_rows to = x_rows(w, h->rows);
    return pipe_ops()->get(w->state->pipe_in, h->place - 1, &to);
}

static enum status put_piped(struct worker *w, const struct forward_batch *b, uint64_t slot)
{
    struct worker_state *s = w->state;
    struct cuda_pipe_rows from = x_rows(w, b->rows);
    enum status rc = pipe_ops()->put(s->pipe_out, slot, &from);
    return rc == STATUS_OK ? kern_sync(s->kern) : rc;
}

enum status worker_hidden_pass_on(struct worker *w, const struct forward_batch *b)
{
    struct worker_state *s = w->state;
    void *message;
    enum status rc = lane_reserve_wait(s->hidden_tx, -1, &message);
    if (rc != STATUS_OK)
        return rc;
    uint64_t slot = s->hidden_sent++ % HIDDEN_SLOTS;
    struct hidden_header h = {
        .step = b->step, .rows = b->rows, .place = s->pipe_out ? 1 + slot : 0};
    memcpy(message, &h, sizeof h);
    if (s->pipe_out)
        rc = put_piped(w, b, slot);
    else
        rc = forward_hidden(s->shard, b->rows, (float *)(void *)((char *)message + sizeof h));
    if (rc != STATUS_OK)
        return rc;
    return lane_commit(s->hidden_tx, sizeof h + (s->pipe_out ? 0 : b->rows * row_bytes(w)));
}
