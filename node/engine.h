// The engine seam: what computes. Bodies: the model engine (this worker's shard plus its links to
// the other ranks) and the mock (token = hash(prompt, position), settable time per token).
//
// One engine per node process. The node's control core never calls it: its actions say what to do,
// the shell (or the simulator) does it and turns the outcome into events. Nothing here blocks; the
// engine works on its own thread and wakes the owner through the `wake` callback.
#pragma once

#include "node/kv_move.h"
#include "node/plan.h"

struct engine;

struct engine_formed {
    uint64_t replica, epoch;
    enum status status;
    char text[512];
    uint64_t fingerprint;
    uint32_t max_context, kv_blocks, block_tokens;
    uint32_t max_rows;  // of one plan: the scheduler's token budget
    uint32_t max_seqs;  // slots
    uint32_t vocab;     // token ids are 0 .. vocab-1
    uint32_t transport; // enum transport_choice in use; AUTO: the replica is one rank
    uint32_t pipeline;  // plans that may be under way at once (the number of stages)
    struct rank_addresses weights; // as in msg_formed; borrowed until the next engine_poll
    struct weights_figures loaded;
    bool moves_kv;      // takes orders of kv_move.h
};

enum engine_event_kind {
    ENGINE_PREPARED, // `addresses`: the shard is loaded, peers can connect; answer to form
    ENGINE_FORMED,   // `formed`: answer to link, or to form when that failed
    ENGINE_STEP,     // `result`: lead only; in the order submitted
    ENGINE_KV,       // `kv`: lead only
    ENGINE_FAULT,    // `result.status`, suspect: the replica broke outside a step of ours
};

struct engine_event {
    enum engine_event_kind kind;
    uint64_t replica, epoch;
    struct rank_addresses addresses; // borrowed until the next engine_poll
    struct rank_addresses mover;     // PREPARED, the same; "" = takes no KV blocks that way
    struct engine_formed formed;
    struct step_result result; // samples are borrowed until the next engine_poll
    struct kv_report kv;
};

enum { ENGINE_UUID_BYTES = 48 };

struct engine_ops {
    const char *name; // "model", "mock"
    // Load this rank's shard (kept if it is loaded already) and open transports for this epoch.
    // Answered by ENGINE_PREPARED, or by ENGINE_FORMED with a status < 0. A form while another is
    // under way aborts that one.
    void (*form)(struct engine *e, const struct msg_form *form);
    // After ENGINE_PREPARED, same epoch: link up with the other ranks. Answered by ENGINE_FORMED.
    void (*link)(struct engine *e, const struct msg_link *link);
    // Leave the replica: aborts what is under way; no event of this epoch follows.
    void (*dissolve)(struct engine *e, uint64_t epoch);
    // Lead only. Copied. STATUS_FULL: `pipeline` plans are under way.
    enum status (*submit)(struct engine *e, const struct step_plan *plan);
    // Lead of a formed replica whose engine_formed says moves_kv. Copied.
    void (*kv)(struct engine *e, const struct kv_order *order);
    // false: nothing to report.
    bool (*poll)(struct engine *e, struct engine_event *ev);
    // From any thread: where this rank is.
    struct rank_progress (*progress)(struct engine *e, uint64_t now_us);
    // From any thread: NVML's name ("GPU-...") of the device it computes on. false: none, or not
    // open yet. NULL where there never is one.
    bool (*device)(struct engine *e, char uuid[ENGINE_UUID_BYTES]);
    void (*destroy)(struct engine *e);
};

// First member of every body's struct.
struct engine {
    const struct engine_ops *ops;
};
