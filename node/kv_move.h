// What the core of a lead and its engine say to each other about KV blocks that move between
// replicas. The core owns the leases and the numbers of the blocks; the engine tells every rank of
// its replica, moves the bytes, and says when no rank touches the blocks any more.
//
//   core -> engine                                engine -> core
//   target  RECEIVE, all blocks of the chain      READY: every rank awaits writes
//   source  SEND, then FILLED, FILLED ... `last`
//   either                                        FAILED, at most once: the core says STOP
//   either  STOP                                  ENDED, exactly once: finished, or stopped
//
// Until ENDED the blocks are in use, whatever has happened: a target's may be written, a source's
// may be read. At ENDED every rank has forgotten the transfer, so that nothing late can land in a
// block that belongs to somebody else by then. An engine that is dissolved forgets all its
// transfers and reports nothing more.
#pragma once

#include "proto/msg.h"

enum kv_order_kind { KV_ORDER_RECEIVE, KV_ORDER_SEND, KV_ORDER_FILLED, KV_ORDER_STOP };

// Borrowed until the call returns.
struct kv_order {
    enum kv_order_kind kind;
    uint64_t transfer, epoch;   // epoch: of this replica
    const struct kv_peer *peer; // RECEIVE, SEND
    uint32_t first;             // RECEIVE, SEND: blocks of the chain before it do not move.
                                // FILLED: place in the chain of blocks[0]
    uint32_t total;             // RECEIVE, SEND: blocks of the chain
    const uint32_t *blocks;     // RECEIVE: of places first .. total - 1; FILLED
    uint32_t blocks_n;
    bool last; // FILLED: nothing follows; the chain ends here
};

enum kv_report_kind { KV_REPORT_READY, KV_REPORT_FAILED, KV_REPORT_ENDED };

struct kv_report {
    enum kv_report_kind kind;
    uint64_t transfer;
    enum status status; // FAILED
    uint32_t blocks;    // ENDED: places of the chain before this one are there, on every rank
                        // (target), or were taken by every rank of the target (source)
    bool whole;         // ENDED: all that the source had; else it was stopped before
    uint64_t bytes;     // ENDED: moved by all ranks of this side
    char text[160];     // FAILED
};
