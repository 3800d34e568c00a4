// What the worker's two files share: worker.c forms and links, worker_step.c computes.
#pragma once

#include "node/comm_xport.h"
#include "node/lane.h"
#include "node/model/forward.h"
#include "node/plan_wire.h"
#include "node/sampler.h"
#include "node/slots.h"
#include "node/transports.h"
#include "node/worker.h"

// Lanes of a replica. The lead's rank is 0, rank (stage, tensor) is stage * T + tensor.
enum {
    CHANNEL_AGREE,  // the lead's limits, to every rank, once
    CHANNEL_PLAN,   // lead -> every rank
    CHANNEL_HIDDEN, // rank (s, t) -> (s + 1, t)
    CHANNEL_RESULT, // (S - 1, 0) -> lead
};

// Before the rows of a hidden message.
struct hidden_header {
    uint64_t step, rows;
};

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
    struct msg_form form; // of the current epoch; model_dir is not kept

    // The group. NULL where this rank has no such lane; hub NULL when the replica is one rank.
    struct lane_hub *hub;
    enum xport_kind transport; // of hub
    struct rdma_rest rdma;
    struct comm *comm;
    struct slots *slots;
    struct lane *agree_tx[LIMIT_RANKS], *agree_rx;
    struct lane *plan_tx[LIMIT_RANKS], *plan_rx;
    size_t plan_bytes; // longest plan that fits the lanes
    struct lane *result_rx, *result_tx;
    struct lane *hidden_rx, *hidden_tx;

    // Scratch of a step, kept between steps.
    struct plan_decoder decoder;
    struct strbuf encoded;
    struct sampler *sampler;
    uint32_t sampler_vocab;
    float *logits;
    struct step_sample *samples;
    uint32_t samples_cap;
};

struct worker_event *worker_event_new(struct worker *w, enum engine_event_kind kind);
void worker_event_post(struct worker *w, struct worker_event *x);
// The group is over; rank: who is suspected, -1 = unknown.
void worker_report_fault(struct worker *w, enum status status, const char *text, int rank);
void worker_unlink(struct worker *w);
struct slots_config worker_limits(const struct worker *w);
size_t worker_hidden_bytes(const struct worker *w, size_t rows);

// After connecting: every rank checks that it has the lead's model and limits.
STATUS_MUST_USE enum status worker_agree(struct worker *w, struct errmsg *e);
// Does what can be done now; false when there is nothing to do.
bool worker_step(struct worker *w);
void worker_step_finish(struct worker_state *s);
