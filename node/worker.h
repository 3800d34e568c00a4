// The thread side of the model engine: owns the kern, the shard, the links of the current epoch and
// the slot tables. engine_model.c is its only caller: it runs worker_main on a thread of its own
// and talks to it through the mailbox below.
#pragma once

#include <pthread.h>

#include "base/spsc.h"
#include "base/strbuf.h"
#include "node/comm.h"
#include "node/engine_model.h"
#include "node/lane_hub.h"
#include "node/rails.h"

// One hub of each kind, but of verbs one a rail.
enum { WORKER_HUBS = XPORT_VERBS + RDMA_RAILS_MAX };
static inline int worker_hub_of(struct transport t)
{
    return (int)t.kind + (int)t.rail;
}

enum { WORKER_PLANS = 2 * LIMIT_STAGES, WORKER_EVENTS = WORKER_PLANS + 32 };

// Memory of one event on its way from the worker to the owner.
struct worker_event {
    struct engine_event ev;
    struct step_sample *samples; // owned, `samples_cap` of them; ev.result.samples points here
    uint32_t samples_cap;
    char shm[LIMIT_ADDR], tcp[LIMIT_ADDR], verbs[LIMIT_RAIL_ADDRS]; // ev.addresses points here
};

struct worker_kv;

// A plan on its way from the owner to the worker, in the form that is sent to the other ranks.
struct worker_plan {
    uint64_t epoch;
    struct strbuf bytes;
};

struct worker {
    struct engine_model_config config;
    void (*wake)(void *arg);
    void *wake_arg;
    struct lane_hub *hubs[WORKER_HUBS]; // NULL = not offered. Set before the thread starts

    // Mailbox. What is to be done next, not a queue: a newer order replaces an older one.
    pthread_mutex_t lock;
    pthread_cond_t posted;
    struct msg *form, *link; // owned by the mailbox until taken
    uint64_t dissolve;       // leave this epoch and older ones
    bool quit;
    char uuid[ENGINE_UUID_BYTES]; // of the GPU; "" = none, or not open yet
    struct comm *comm;   // of the linked replica, else NULL: its progress, for the heartbeat thread
    uint64_t comm_epoch; // that `comm` belongs to
    struct lane_hub *hub; // in which a linked rank of several waits, else NULL

    struct spsc plans, plans_free;   // struct worker_plan
    struct spsc events, events_free; // struct worker_event

    struct worker_kv *kv; // moves KV blocks; set before the thread starts

    struct worker_state *state; // the thread's own, see worker.c
};

void *worker_main(void *worker);
