// One-sided transport between the workers of a replica: write into the peer's registered memory and
// raise a 32-bit notice there, as RDMA WRITE WITH IMMEDIATE does. Bodies: shared memory, TCP,
// verbs, simulated; all pass one conformance suite (tests/xport).
//
// Contract, the same for every body:
//  * A write is accepted (STATUS_OK) or refused with nothing done. STATUS_FULL is back-pressure:
//    too many are under way, poll, then try again. STATUS_LINK_DOWN: the link is dead for good.
//  * Every accepted write ends in exactly one XPORT_WRITE_DONE event with its `user` pointer, also
//    when the link dies or is closed (status < 0 then). Its source bytes are borrowed until then.
//  * Writes of one link arrive in order. When the peer sees the notice, the data of that write and
//    of all writes before it are visible.
//  * A dead link gives exactly one XPORT_LINK_DOWN, after the last event of its writes.
//    Reconnecting means a new link; the caller stamps epochs into what it sends.
//  * Nothing here blocks but xport_wait. One thread owns a `struct xport` and all its links, except
//    xport_wake, which any thread may call.
//  * Peers are hostile until checked: offset + length outside the registered region, an unknown
//    region or a bad frame closes the link with STATUS_LINK_PROTOCOL; nothing is written. (The
//    sender's xlink_write still says OK: only the receiver knows its regions.) An address carries a
//    random token that must be shown on connecting, as an rkey must.
//  * WRITE_DONE with STATUS_OK means that the source bytes are free again, not that the peer has
//    seen them. What a peer sent before it died or closed is still given, before the LINK_DOWN.
//  * Shared memory cannot be taken back: a closed peer that does not know it yet (a stopped
//    process) may still scribble in the regions it mapped. A new epoch takes new regions.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

struct xport; // one transport endpoint: a listener, its links, its regions
struct xlink; // one ordered, bidirectional connection to a peer

enum xport_kind {
    XPORT_SHM, // both processes on one host
    XPORT_TCP,
    XPORT_VERBS,
    XPORT_KINDS,
};

const char *xport_kind_name(enum xport_kind kind);
// Accepts "shm", "tcp", "verbs".
enum status xport_kind_parse(const char *name, enum xport_kind *kind_out);

// What a verbs xport asks of its queue pairs; shared memory and TCP ignore it. The path MTU is that
// of the network interface (rdma_cm agrees on the smaller of both ends'), the service level follows
// from the traffic class by the interface's map of priorities. 0 = as said there.
struct xport_wire {
    uint8_t traffic_class; // of the packets: DSCP << 2, by which switches choose a priority; 0 = 0
    uint8_t ack_timeout;   // an answer is awaited for 4.096 us x 2^this; 1 .. 31, 0 = 14, 67 ms
    uint8_t retries;       // sent again so often before the link is dead; 1 .. 6, 0 = 6
    uint8_t rnr_retries;   // the same for a peer without receives; 1 .. 6, 0 = 6
};
// BAD_CONFIG names the field.
STATUS_MUST_USE enum status xport_wire_check(const struct xport_wire *w, struct errmsg *e);

struct xport_config {
    enum xport_kind kind;
    const char *bind_host; // TCP, verbs: numeric address that peers reach. NULL: 127.0.0.1; verbs
                           // (and 127.0.0.1 there): of the first RDMA device that has one
    uint32_t max_links;    // 0 = 64; more are refused. Half-open ones are bounded apart
    uint32_t link_depth;   // writes under way per link; 0 = 256, at most 65536
    uint32_t spin_us;      // xport_wait polls this long before it sleeps; 0 = sleep at once
    uint32_t handshake_ms; // a connect not answered by then is LINK_TIMEOUT; 0 = 5000
    struct xport_wire wire;
};

// STATUS_NO_DEVICE when this host does not offer the kind (e.g. no verbs device); *e says why.
// A fork shares no verbs xport with its parent: a child that is to have one of its own calls exec.
enum status xport_open(const struct xport_config *config, struct xport **xport_out,
                       struct errmsg *e);
// Closes every link (their writes end, events are lost with the xport) and frees all. NULL is fine.
void xport_close(struct xport *x);

// Where peers reach this xport: printable, NUL-terminated, travels on the control link.
const char *xport_address(const struct xport *x);

// Memory that peers may write into. `base` is owned by the xport (shared memory must be mapped by
// both sides), zeroed, page aligned, valid until xport_close. `region` (small integer, chosen by
// the caller, unique per xport) is the name that peers use. Verbs: also the fastest source of
// writes, as any other must be copied.
enum { XPORT_REGIONS_MAX = 128 };
enum status xport_region_create(struct xport *x, uint32_t region, size_t bytes, void **base_out,
                                struct errmsg *e);

// No new write may reach it from here on: close the links whose peers know it before. A peer that
// names it later broke the protocol.
void xport_region_destroy(struct xport *x, uint32_t region);

// Connect to a peer's address. `hello` (<= 64 bytes, copied) is handed to the peer in its
// XPORT_LINK_UP event, so that it knows who came (rank, epoch). STATUS_OK means started;
// XPORT_LINK_UP or XPORT_LINK_DOWN (LINK_TIMEOUT, LINK_VERSION, LINK_DOWN, REFUSED: wrong token or
// no link free over there) follows for this link. STATUS_FULL: max_links reached here.
enum status xport_connect(struct xport *x, const char *address, const void *hello, size_t hello_n,
                          void *user, struct xlink **link_out, struct errmsg *e);
// Every write under way ends with STATUS_CANCELLED at the latest at the next poll (verbs: as soon
// as the device has let go of its source, microseconds later); no LINK_DOWN event follows. The
// pointer is dead after the events of its writes were polled.
void xlink_close(struct xlink *l);
void *xlink_user(const struct xlink *l);
void xlink_set_user(struct xlink *l, void *user);

struct xwrite {
    uint32_t region; // of the peer
    uint64_t offset; // in that region, bytes
    const void *src; // borrowed until the WRITE_DONE event
    size_t bytes;    // 0 = notice only
    uint32_t notice; // 32-bit value raised at the peer
    void *user;      // given back in WRITE_DONE
};
// Before XPORT_LINK_UP: STATUS_AGAIN. FULL, AGAIN and LINK_DOWN did nothing.
enum status xlink_write(struct xlink *l, const struct xwrite *w);

enum xport_event_kind {
    XPORT_LINK_UP,    // accepted (incoming: hello, user NULL) or established (ours)
    XPORT_LINK_DOWN,  // status says why; the link pointer is dead after this event
    XPORT_WRITE_DONE, // user, status
    XPORT_NOTICE,     // region, offset, bytes, notice of a write by the peer
};

struct xport_event {
    enum xport_event_kind kind;
    struct xlink *link;
    enum status status;
    void *user;             // WRITE_DONE: of the write
    uint32_t region;        // NOTICE
    uint32_t notice;        // NOTICE
    uint64_t offset, bytes; // NOTICE
    uint8_t hello[64];      // LINK_UP of an incoming link
    size_t hello_n;
};

// Up to `max` events, in order per link; returns how many. Never blocks.
int xport_poll(struct xport *x, struct xport_event *events, int max);

// Returns when an event may be ready, a link that said STATUS_FULL may take writes again,
// xport_wake was called, or `timeout_ms` passed (-1 = for ever). May also return for no reason.
void xport_wait(struct xport *x, int timeout_ms);
// From any thread: makes the current or next xport_wait return.
void xport_wake(struct xport *x);

// Counters for metrics and `hadal bench xport`.
struct xport_stats {
    uint64_t writes, write_bytes, notices, refused_full, links_up, links_down;
    uint64_t protocol_errors; // links and connection attempts dropped for what the peer sent
};
struct xport_stats xport_stats_get(const struct xport *x);
