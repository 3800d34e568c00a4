// The node's end of xport: one hub per worker owns the xport, keeps one link to each other rank of
// the replica, and hands what arrives to lanes (node/lane.h) and collectives (node/comm_xport.h).
//
// A hub lives as long as the process, so its address never changes. A replica's epoch is a group:
//   lane_hub_begin -> open lanes and comms -> lane_hub_connect -> work ... -> lane_hub_begin (next)
// Every region and link belongs to one epoch. A caller of another epoch is refused before it can
// write, and what an old, stopped peer still writes lands in memory that nobody looks at any more.
//
// One thread owns the hub and all that hangs on it, except lane_hub_wake and lane_hub_abort.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "rdma/xport.h"

struct lane_hub;

enum {
    LANE_CHANNELS = 60, // 0 .. 59 are the engine's
    LANE_CHANNEL_COMM = 60,
    LANE_CHANNEL_HUB = 63,
};

struct lane_hub_config {
    enum xport_kind kind;
    const char *bind_host; // as in xport_config
    uint32_t max_links;    // 0 = LIMIT_TENSOR + 64
    uint32_t spin_us;      // before a wait sleeps. Workers share cores: 0 .. 20
    struct xport_wire wire;
};
enum status lane_hub_open(const struct lane_hub_config *config, struct lane_hub **hub_out,
                          struct errmsg *e);
void lane_hub_close(struct lane_hub *h); // NULL is fine; comms must be destroyed before
const char *lane_hub_address(const struct lane_hub *h);

struct lane_group {
    uint64_t epoch; // >= 1, grows
    uint32_t rank, ranks;
};
// Ends the group before (links closed, lanes freed; its comms must be destroyed) and starts a new
// one.
enum status lane_hub_begin(struct lane_hub *h, const struct lane_group *group, struct errmsg *e);

// Links up with every rank whose address is not NULL (own rank: ignored). Two ranks must agree on
// whether they know each other. The lower rank connects, again and again until it is answered; done
// when every peer said that it is ready at the same epoch. Errors name the missing ranks and why:
// LINK_TIMEOUT; STALE_EPOCH: a peer is at a newer epoch; ABORTED.
enum status lane_hub_connect(struct lane_hub *h, const char *const *addresses, uint32_t timeout_ms,
                             struct errmsg *e);

// Takes what has arrived, never blocks. OK: something happened; AGAIN: nothing; ABORTED.
enum status lane_hub_poll(struct lane_hub *h);
// The same, sleeping until something happens, lane_hub_wake, or the timeout (AGAIN).
// -1 = no timeout. A wake-up returns AGAIN.
enum status lane_hub_wait(struct lane_hub *h, int timeout_ms);

// OK: the link is up. AGAIN: not connected (yet). Else why it was lost; final in this group.
enum status lane_hub_peer(const struct lane_hub *h, uint32_t rank);
// The first peer of this group that was lost, to this rank or to any other (ranks tell each other):
// its status and rank; OK when all stand. A group with a fault is over: begin the next.
enum status lane_hub_fault(const struct lane_hub *h, uint32_t *rank_out);
// Drops a peer that broke the protocol above xport.
void lane_hub_drop(struct lane_hub *h, uint32_t rank, enum status why);

// From any thread.
void lane_hub_wake(struct lane_hub *h);
// From any thread: every wait, lane and collective of `epoch` and older ones returns ABORTED.
void lane_hub_abort(struct lane_hub *h, uint64_t epoch);
bool lane_hub_aborted(const struct lane_hub *h);

uint32_t lane_hub_rank(const struct lane_hub *h);
uint32_t lane_hub_ranks(const struct lane_hub *h);

// --- for lanes and comms ---

// Region of a channel at the receiving rank, in this group. `sender`: 0 for channels that all
// share.
uint32_t lane_hub_region(const struct lane_hub *h, uint32_t channel, uint32_t sender);

// Called by poll for each notice in the region. A status < 0 drops the peer with it.
struct lane_receiver {
    enum status (*notice)(void *ctx, uint32_t from, const struct xport_event *event);
    void *ctx; // borrowed until the group ends or lane_hub_forget
};
// Creates the region and routes its notices. Before lane_hub_connect.
enum status lane_hub_receive(struct lane_hub *h, uint32_t region, size_t bytes,
                             const struct lane_receiver *receiver, void **base_out,
                             struct errmsg *e);
void lane_hub_forget(struct lane_hub *h, void *ctx); // its notices are dropped from now on

// xlink_write to a rank; the source must stay until the peer is known to have it or the group ends.
enum status lane_hub_write(struct lane_hub *h, uint32_t rank, const struct xwrite *w);

struct lane;
// Lanes are owned by the hub.
void lane_hub_adopt(struct lane_hub *h, struct lane *l);
