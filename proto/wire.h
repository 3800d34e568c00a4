// Frames on a byte stream, and what is in them. Every frame:
//
//   0  'H' 'D'     magic
//   2  u8          version of the protocol, MSG_VERSION
//   3  u8          type: enum msg_kind, enum rpc_kind or enum copy_kind
//   4  u32 LE      length of the body in bytes
//   8  u32 LE      stream (client RPC), 0 otherwise
//  12  body        one protobuf message of proto/hadal.proto
//
// Everything read is checked: magic, version, length, counts, enumerations, UTF-8, ranges, NaN. A
// failure is final for its connection. Not thread-safe; each connection has its own decoder.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"
#include "base/strbuf.h"
#include "proto/copy.h"
#include "proto/msg.h"
#include "proto/rpc.h"

enum { WIRE_HEADER_BYTES = 12 };

// Memory for what one frame decodes to (or needs while it is encoded). Zero-initialise. Bounded:
// what does not fit in `limit` bytes fails, so that a small frame cannot claim much memory.
struct wire_arena {
    struct wire_block *blocks; // owned
    size_t used;               // bytes handed out since the last reset
    size_t limit;              // 0 = WIRE_ARENA_BYTES
};

enum { WIRE_ARENA_BYTES = 4 * LIMIT_FRAME_BYTES };

void *wire_arena_alloc(struct wire_arena *a, size_t bytes); // 16-byte aligned; NULL: over the limit
void wire_arena_reset(struct wire_arena *a);                // frees all but a first small block
void wire_arena_finish(struct wire_arena *a);

struct wire_frame {
    uint8_t type;
    uint32_t stream;
    const uint8_t *body; // borrowed until the decoder is used again
    uint32_t body_n;
};

// Cuts a byte stream into frames. Holds at most one frame beyond what was fed at once.
struct wire_decoder {
    uint8_t *buf; // owned
    size_t n, cap;
    size_t at;         // start of what was not handed out yet
    uint32_t max_body; // longer frames are LINK_PROTOCOL
    enum status broken;
};

// max_body 0 = LIMIT_FRAME_BYTES.
void wire_decoder_init(struct wire_decoder *d, uint32_t max_body);
void wire_decoder_finish(struct wire_decoder *d);
// Copies the bytes in.
void wire_decoder_feed(struct wire_decoder *d, const void *bytes, size_t n);
// OK: *out is the next frame. AGAIN: feed more. LINK_VERSION, LINK_PROTOCOL: the stream is broken
// for good; *err says how.
enum status STATUS_MUST_USE wire_decoder_next(struct wire_decoder *d, struct wire_frame *out,
                                              struct errmsg *err);

// Appends one whole frame to `out`. `a` is scratch memory, reset here. TOO_LARGE, with nothing
// appended, when the message is over LIMIT_FRAME_BYTES. What the caller passes is trusted.
enum status STATUS_MUST_USE wire_encode_msg(struct wire_arena *a, const struct msg *m,
                                            struct strbuf *out);
enum status STATUS_MUST_USE wire_encode_rpc(struct wire_arena *a, uint32_t stream,
                                            const struct rpc *r, struct strbuf *out);
enum status STATUS_MUST_USE wire_encode_copy(struct wire_arena *a, const struct copy *c,
                                             struct strbuf *out);

// Reads and checks a frame. *out borrows from `a` (which is reset first). LINK_PROTOCOL with the
// field named in *err, LINK_VERSION for a HELLO of another version.
enum status STATUS_MUST_USE wire_decode_msg(struct wire_arena *a, const struct wire_frame *f,
                                            struct msg *out, struct errmsg *err);
enum status STATUS_MUST_USE wire_decode_rpc(struct wire_arena *a, const struct wire_frame *f,
                                            struct rpc *out, struct errmsg *err);
enum status STATUS_MUST_USE wire_decode_copy(struct wire_arena *a, const struct wire_frame *f,
                                             struct copy *out, struct errmsg *err);
