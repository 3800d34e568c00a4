// What the worker's files share: worker.c forms and links, worker_weights.c loads the shard,
// worker_step.c computes, worker_hidden.c passes hidden states on.
#pragma once

#include "kernels/cuda_comm.h"
#include "node/comm_cuda.h"
#include "node/fault_file.h"
#include "node/comm_xport.h"
#include "node/lane.h"
#include "node/model/forward.h"
#include "node/plan_wire.h"
#include "node/slots.h"
#include "node/step_sampler.h"
#include "node/transports.h"
#include "node/worker.h"
#include "node/worker_kv.h"

// Lanes of a replica. The lead's rank is 0, rank (stage, tensor) is stage * T + tensor.
enum {
    CHANNEL_AGREE,  // the lead's limits, to every rank, once
    CHANNEL_PLAN,   // lead -> every rank
    CHANNEL_HIDDEN, // rank (s, t) -> (s + 1, t)
    CHANNEL_RESULT, // (S - 1, 0) -> lead
    CHANNEL_KV_ORDER,  // lead -> every rank: worker_kv.h
    CHANNEL_KV_REPORT, // every rank -> lead
    CHANNEL_PIPE,   // rank (s + 1, t) -> (s, t): where on its GPU hidden states may be put, once
};

// A hidden message: this, then the rows; or this alone, and the rows are in a slot of the pipe
// between the two GPUs.
struct hidden_header {
    uint64_t step, rows;
    uint64_t place; // 0: the rows follow; else 1 + slot
};
enum { HIDDEN_SLOTS = 2 }; // of the lane, and of the pipe: message i uses slot i % 2

//  IDLE --FORM--> PREPARED --LINK--> LINKED --fault--> BROKEN
//   ^                |                  |                |
//   +----------------+---- dissolve, newer FORM, failure-+
enum worker_phase { WORKER_IDLE, WORKER_PREPARED, WORKER_LINKED, WORKER_BROKEN };

struct worker_state {
    enum worker_phase phase;
    struct kern *kern;
    struct model_shard *shard; // kept between epochs
    char *shard_dir;
    uint64_t shard_stamp; // of the folder when the shard was last known to be what is in it
    int load_tenth;
    struct weights_figures loaded; // of the shard
    struct pull_server *server;    // gives the folder's files to other nodes; NULL: never had any
    bool serves;                   // them now
    struct msg_form form; // of the current epoch; model_dir is not kept

    // The group. NULL where this rank has no such lane; hub NULL when the replica is one rank.
    struct lane_hub *hub;
    struct transport transport; // of hub
    struct rdma_rest rdma[RDMA_RAILS_MAX];
    struct comm *comm;
    struct slots *slots;
    struct lane *agree_tx[LIMIT_RANKS], *agree_rx;
    struct lane *plan_tx[LIMIT_RANKS], *plan_rx;
    size_t plan_bytes; // longest plan that fits the lanes
    struct lane *result_rx, *result_tx;
    struct lane *hidden_rx, *hidden_tx;
    struct lane *pipe_rx, *pipe_tx;       // notes of cuda_pipe
    struct cuda_pipe *pipe_in, *pipe_out; // NULL: hidden states go through host memory
    uint64_t hidden_sent;                 // messages

    struct fault_file faults; // for tests
    bool wrong;

    // Scratch of a step, kept between steps.
    struct plan_decoder decoder;
    struct strbuf encoded;
    struct step_sampler sampler;
    struct sampler_input *sampler_in; // [samples_cap]
    struct step_sample *samples;
    uint32_t samples_cap;
};

struct worker_event *worker_event_new(struct worker *w, enum engine_event_kind kind);
void worker_event_post(struct worker *w, struct worker_event *x);
// The group is over; rank: who is suspected, -1 = unknown.
void worker_report_fault(struct worker *w, enum status status, const char *text, int rank);
void worker_unlink(struct worker *w);
struct slots_config worker_limits(const struct worker *w);

// worker_weights.c: the shard of a form, kept when it is in memory already.
STATUS_MUST_USE enum status worker_weights_load(struct worker *w, const struct msg_form *f,
                                                struct errmsg *e);
struct rank_addresses worker_weights_addresses(const struct worker *w);
void worker_weights_finish(struct worker *w);

// worker_hidden.c: what goes from stage to stage.
enum status worker_hidden_open(struct worker *w, struct errmsg *e); // lanes; before connecting
enum status worker_hidden_join(struct worker *w, struct errmsg *e); // pipes; after agreeing
void worker_hidden_close(struct worker *w);
// A message that was taken from the lane, checked: points into it.
struct hidden_rows {
    uint64_t step, rows;
    uint64_t place;
    const float *host; // NULL: in the pipe
};
enum status worker_hidden_read(const struct worker *w, const void *bytes, size_t n,
                               struct hidden_rows *out);
// The rows are where the next forward_run finds them: sets b's fields.
enum status worker_hidden_take(struct worker *w, const struct hidden_rows *h,
                               struct forward_batch *b);
enum status worker_hidden_pass_on(struct worker *w, const struct forward_batch *b);

// After connecting: every rank checks that it has the lead's model and limits.
STATUS_MUST_USE enum status worker_agree(struct worker *w, struct errmsg *e);
// Does what can be done now; false when there is nothing to do.
bool worker_step(struct worker *w);
void worker_step_finish(struct worker_state *s);
