// A lane: messages in order from one rank to one other. The receiver's region holds `slots` slots
// of `slot_bytes`; the sender owns a credit per free slot, and gets it back when the receiver has
// released the message. Both sides open the lane with the same channel, slots and slot_bytes,
// before lane_hub_connect. Full is a status: memory never grows, and a slow receiver slows its
// sender.
//
// The sender writes its message in place: a slot's staging memory is free again with its credit.
#pragma once

#include "node/lane_hub.h"

struct lane;

struct lane_config {
    uint32_t channel;  // < LANE_CHANNELS; unique per pair and direction
    uint32_t peer;     // the other rank
    uint32_t slots;    // >= 1; 2 = one message travels or is read while the next is written
    size_t slot_bytes; // longest message
};
// Freed with the group (lane_hub_begin, lane_hub_close).
enum status lane_open_tx(struct lane_hub *h, const struct lane_config *config,
                         struct lane **lane_out, struct errmsg *e);
enum status lane_open_rx(struct lane_hub *h, const struct lane_config *config,
                         struct lane **lane_out, struct errmsg *e);

// --- sender ---
// Memory for the next message, slot_bytes long, 64-byte aligned; the same until lane_commit.
// FULL: no credit. Else < 0: peer lost, ABORTED.
enum status lane_reserve(struct lane *l, void **slot_out);
// Sends the first `bytes` of it. Needs a reserve that said OK. What the link cannot take now is
// sent by later polls.
enum status lane_commit(struct lane *l, size_t bytes);
// Reserve, copy, commit. TOO_LARGE: more than slot_bytes.
enum status lane_send(struct lane *l, const void *bytes, size_t n);
// Reserve, waiting for a credit up to timeout_ms (-1 = no limit): DEADLINE.
enum status lane_reserve_wait(struct lane *l, int timeout_ms, void **slot_out);

// --- receiver ---
// The oldest message that was not released: the same until lane_release. AGAIN: none. What came
// before a peer was lost is still given, then its status.
enum status lane_recv(struct lane *l, const void **bytes_out, size_t *n_out);
enum status lane_recv_wait(struct lane *l, int timeout_ms, const void **bytes_out, size_t *n_out);
// The message's slot goes back to the sender. Needs a recv that said OK.
void lane_release(struct lane *l);

// --- for the hub ---
void lane_flush(struct lane *l); // sends what the link could not take before
// A credit came from a peer; lanes that it does not concern say OK.
enum status lane_credit(struct lane *l, uint32_t from, uint32_t channel, uint32_t consumed);
enum { LANE_WORD_CREDIT = 64 }; // + channel: offset of a credit in the hub's control region
void lane_free(struct lane *l);
