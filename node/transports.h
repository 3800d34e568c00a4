// Which transport the ranks of a replica link up with, and whether RDMA is offered at all just now.
// Pure: every rank is given the same members and so chooses the same transport.
//
// A verbs endpoint that errs often is not offered for a while: the replica forms again over another
// rail, or over TCP, at its next epoch, in the same way as on hosts without RDMA, and over this one
// once the rest is over.
#pragma once

#include "proto/msg.h"
#include "rdma/xport.h"

enum { RDMA_RAILS_MAX = 8 };

struct transport {
    enum xport_kind kind;
    uint32_t rail; // of verbs: which endpoint (node/rails.h); else 0
};

struct transports_want {
    enum transport_choice choice;      // of the replica
    const struct link_member *members; // all ranks
    uint32_t members_n;
    uint64_t replica; // replicas are dealt out over the rails that all ranks offer
};

// AUTO: shared memory where all ranks are on one host, else verbs, else TCP, the first that every
// rank offers. VERBS: verbs, or TCP where a rank does not offer it: *fallback_out is the first such
// rank then, else -1. BAD_CONFIG: nothing in common, *e says which rank lacks what.
STATUS_MUST_USE enum status transports_choose(const struct transports_want *want,
                                              struct transport *out, int *fallback_out,
                                              struct errmsg *e);
enum transport_choice transports_in_use(enum xport_kind kind); // for reports
// Where a rank is reached over `t`: copied into buf, which is returned; "" = it does not offer it.
const char *transports_address(const struct rank_addresses *a, struct transport t,
                               char buf[LIMIT_ADDR]);

// Three faults within 10 s: not offered for 30 s, twice as long each time that the faults come back
// within 10 s of use, at most an hour. Zero-initialise.
enum { RDMA_FAULTS = 3, RDMA_FAULT_WINDOW_MS = 10000, RDMA_REST_MS = 30000 };
enum { RDMA_REST_MAX_MS = 3600000 };
struct rdma_rest {
    uint64_t faults_ms[RDMA_FAULTS]; // the last ones, oldest first; 0 = none
    uint64_t until_ms;               // resting until then; 0 = never rested
    uint32_t rest_ms;                // of the last rest
    uint64_t rests;                  // ever
};
// A link over verbs was lost, or (`unreachable`) would not come up at all, which is reason enough
// to rest at once. true: a rest begins.
bool rdma_rest_fault(struct rdma_rest *r, uint64_t now_ms, bool unreachable);
bool rdma_rest_offers(const struct rdma_rest *r, uint64_t now_ms);
