// Private to the verbs body: a connection, and what its two files give each other. xport_verbs.c
// owns device, regions and setting up by rdma_cm; xport_verbs_conn.c owns queues and the bytes.
#pragma once

#include "rdma/verbs_lib.h"
#include "rdma/xport_body.h"

// How a broken path is noticed, unless struct xport_wire says otherwise: an unanswered packet is
// sent again after 4.096 us x 2^14 = 67 ms (the device may take up to four times that), and after
// six times more the queue pair is broken: 0.5 .. 0.9 s measured with soft-RoCE. Seven would mean
// for ever on some devices. A link without traffic is probed by an empty write every KEEPALIVE_MS.
// "Receiver not ready" cannot happen among honest peers (credits), so it need not be waited for
// long.
enum {
    VERBS_ACK_TIMEOUT = 14,
    VERBS_RETRIES = 6,
    VERBS_RNR_RETRIES = 6,
    VERBS_KEEPALIVE_MS = 150,
};

enum {
    VERBS_EAGER = 224,      // payload that travels inside a frame
    VERBS_SENDS = 256,      // sends under way per connection, a power of two
    VERBS_SENDS_SPARE = 8,  // of them kept for what is not a caller's write
    VERBS_FRAMES_MAX = 512, // frames a peer may send ahead
    VERBS_CREDITS_MIN = 16,
    VERBS_CONTROL = 16,         // receives kept for frames outside of the credits
    VERBS_REPOST = 8,           // receives are posted again so many at a time
    VERBS_BATCH = 16,           // sends or receives handed over at once
    VERBS_SIGNAL_EVERY = 16,    // other sends report nothing
    VERBS_CHUNK = 32 << 10,     // unregistered sources are copied in pieces of this size
    VERBS_CHUNKS = 8,           // pieces under way per connection
    VERBS_WRITE_MAX = 64 << 20, // one piece from a registered source
    VERBS_SHAPES = 64,
    VERBS_STEP_BITS = 26, // of an immediate; the rest is the shape's number
};

// What both sides show in the private data of rdma_cm, before anything is set up.
struct verbs_card {
    uint32_t magic;
    uint8_t version, kind, code, zero;
    uint64_t token;
};
_Static_assert(sizeof(struct verbs_card) == 16, "wire format; rdma_cm takes 56 bytes");

struct verbs_region {
    uint32_t id, rkey;
    uint64_t addr, bytes;
};

// First message of both sides. greeting.depth: frames that its receiver may send ahead.
struct verbs_greeting {
    struct xgreeting g;
    struct verbs_region regions[XPORT_REGIONS_MAX];
};
_Static_assert(sizeof(struct verbs_greeting) == 88 + 24 * XPORT_REGIONS_MAX, "wire format");

// Every later message. DATA follows the one-sided write it tells of on the same queue pair, so the
// data is there when the frame is. CREDIT, ASK and REGION are outside of the credits: at most one
// ASK and its REGION, a BYE and two CREDITs can be unread by an honest peer.
enum verbs_frame_kind {
    VERBS_DATA = 1, // region, offset, bytes, notice; kind >> 8: the shape that this becomes
    VERBS_INLINE,   // the same, the bytes are behind
    VERBS_CREDIT,
    VERBS_ASK,    // region: where is it?
    VERBS_REGION, // region, notice = rkey, offset = address, bytes
    VERBS_BYE,    // nothing follows
};

// What is written again and again to one place (slots of lanes) needs no frame: the first time its
// frame gives region, offset and length a number, after that it is one write whose immediate is
// that number and by how much the notice differs from the last one: one packet and one completion
// less.
struct verbs_shape {
    uint32_t region, notice; // of the last write
    uint64_t offset, bytes;  // bytes 0: none yet
};
_Static_assert(VERBS_SHAPES == 1 << (32 - VERBS_STEP_BITS), "an immediate has 32 bits");

struct verbs_frame {
    uint32_t kind;
    uint32_t granted; // frames the receiver of this may have sent since the link began
    uint32_t region, notice;
    uint64_t offset, bytes;
    uint8_t payload[VERBS_EAGER];
};
enum { VERBS_FRAME_HEAD = 32 };
_Static_assert(sizeof(struct verbs_frame) == VERBS_FRAME_HEAD + VERBS_EAGER, "wire format");

// Registered with one call per connection.
struct verbs_buffers {
    struct verbs_greeting hello_out, hello_in;
    struct verbs_frame out[VERBS_SENDS];
    struct verbs_frame in[]; // frames_n
};

struct verbs_device {
    struct ibv_context *ctx; // librdmacm's
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct rdma_event_channel *events;
    struct rdma_cm_id *listener;
    struct sockaddr_storage own_addr;
    uint32_t max_wr;
    struct xport_wire wire;    // without zeros but for the traffic class
    struct verbs_conn *parted; // list by `next`
};

// Outlives its link while copies of writes are on their way (parted).
struct verbs_conn {
    struct xport *x;
    struct xlink *link; // NULL: parted
    struct verbs_conn *next;
    struct rdma_cm_id *id;
    struct ibv_cq *send_cq, *recv_cq;
    bool send_armed, recv_armed;
    bool has_qp, connected, broken; // broken: the queue pair is in error, all its work is flushed
    bool gone;                      // the device is: nothing more will be reported
    uint32_t inline_max;

    struct verbs_buffers *buf;
    size_t buf_bytes;
    struct ibv_mr *buf_mr;

    // Receiving. Slots are consumed and posted in ring order.
    uint32_t frames_n;       // receive slots: credits + VERBS_CONTROL
    uint32_t credits;        // given to the peer at the start
    uint32_t taken;          // frames under credits whose receives were posted again
    uint32_t told;           // `taken` as last told to the peer
    uint32_t unposted;       // slots consumed, not yet posted again
    uint32_t unposted_taken; // of them, with frames under credits
    uint32_t in_slot;        // next to be consumed
    struct ibv_wc wc[VERBS_BATCH];
    int wc_i, wc_n;
    uint32_t hello_bytes; // of the greeting received; 0 = not yet

    // Sending. Sends are numbered from 0; `done` of `sent` are complete.
    uint64_t sent, done, signalled; // signalled: all before it are certain to be reported
    bool report_next;               // the next send is to be reported
    uint32_t frames_sent, granted;
    uint32_t staged;     // writes posted whole, not yet over
    uint64_t held_until; // the device reads callers' memory until `done` reaches it
    uint64_t last_done;  // `done` at the last tick
    bool asked;          // an ASK is not answered yet
    uint32_t asks;       // the region of the last ASK
    uint32_t learned;    // regions told in answers
    bool owes_region;    // an ASK of the peer
    uint32_t asked_region;

    uint8_t *chunks; // VERBS_CHUNKS, made when first needed
    struct ibv_mr *chunks_mr;
    uint64_t chunk_until[VERBS_CHUNKS];
    uint32_t chunk_i;

    struct verbs_region peers[XPORT_REGIONS_MAX];
    uint32_t peers_n;
    struct verbs_shape out_shapes[VERBS_SHAPES], in_shapes[VERBS_SHAPES];
};

struct verbs_link {
    struct xlink base;
    struct verbs_conn *conn; // owned until stopped; NULL before dialled
};

static inline struct verbs_device *verbs_device_of(const struct xport *x)
{
    return x->own;
}

static inline struct verbs_conn *verbs_conn_of(const struct xlink *l)
{
    return ((const struct verbs_link *)l)->conn;
}

// Text for the errno of a failed registration: names the limit on locked memory when that is it.
void verbs_memory_hint(char *buf, size_t n, int err);

// --- xport_verbs_conn.c ---
// Queues and buffers for an id whose device is known; the first receives are posted.
enum status verbs_conn_prepare(struct verbs_conn *c);
void verbs_conn_destroy(struct verbs_conn *c);
// The queue pair into error: everything posted comes back flushed.
void verbs_conn_break(struct verbs_conn *c);
// Looks at finished sends, posts what can be posted.
void verbs_conn_progress(struct verbs_conn *c);
void verbs_conn_arm(struct verbs_conn *c);
// An empty write, if nothing was heard of the peer's device since the last call.
void verbs_conn_probe(struct verbs_conn *c);
// True when nothing is left to be sent.
bool verbs_conn_is_quiet(struct verbs_conn *c);
// Leaves its link: says BYE and goes on until that is sent.
void verbs_conn_part(struct verbs_conn *c);

enum status verbs_greet(struct xlink *l, struct xgreeting *g);
enum status verbs_greeted(struct xlink *l);
enum status verbs_start(struct xlink *l);
enum status verbs_write(struct xlink *l, const struct xwrite *w);
int verbs_receive(struct xlink *l, struct xport_event *events, int max);
bool verbs_ready(struct xlink *l);
bool verbs_released(struct xlink *l);
