// Orders of kv_move.h as flat bytes, for the mailbox of the engine and the lanes between ranks.
// Decoding believes nothing: every count is checked against the bytes that are there.
#pragma once

#include "base/strbuf.h"
#include "node/kv_move.h"

void kv_order_encode(const struct kv_order *o, struct strbuf *out);

// What a decoded order points into, besides `bytes`. Zero-initialise, finish frees.
struct kv_order_memory {
    struct kv_peer peer;
    struct link_member *members;
    uint32_t *blocks;
};
void kv_order_memory_finish(struct kv_order_memory *m);
// LINK_CORRUPT: the bytes are no order. Borrows from `bytes` and `m`.
STATUS_MUST_USE enum status kv_order_decode(const void *bytes, size_t n, struct kv_order_memory *m,
                                            struct kv_order *out);
