// The worker's part in moving KV blocks: the lead's orders go to the mover of every rank, and what
// the ranks report becomes one report of the replica. Orders travel between steps, on lanes of the
// replica; the bytes themselves go from mover to mover and never wait for a step.
#pragma once

#include "node/mover.h"

struct worker;
struct worker_kv;

enum { WORKER_KV_RANKS = 64 }; // larger replicas move no KV

struct worker_kv *worker_kv_create(struct worker *w, const char *bind);
void worker_kv_destroy(struct worker_kv *k); // NULL is fine; the worker's thread has ended

// Owner's thread: copied.
void worker_kv_post(struct worker_kv *k, const struct kv_order *o);

// The rest is the worker's thread's.
struct rank_addresses worker_kv_addresses(const struct worker_kv *k);
bool worker_kv_moves(const struct worker *w); // of the formed replica
STATUS_MUST_USE enum status worker_kv_open(struct worker *w, struct errmsg *e); // lanes
STATUS_MUST_USE enum status worker_kv_join(struct worker *w, const char *host, struct errmsg *e);
void worker_kv_leave(struct worker *w);
// Orders, reports: did anything? *rc_out < 0: a lane failed.
bool worker_kv_turn(struct worker *w, enum status *rc_out);
bool worker_kv_waiting(const struct worker_kv *k); // under the worker's lock
