// Private to rdma/: what the bodies of xport share. xport.c owns links' life cycle, write queues
// and the order of events; xport_sock.c owns listening, connecting and the greeting for the bodies
// that sit on stream or packet sockets; a body moves the bytes.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <time.h>

#include "rdma/xport.h"

enum {
    XPORT_MAGIC = 0x504c4448, // "HDLP", little endian
    XPORT_VERSION = 2,
    XPORT_HELLO_MAX = 64,
    XPORT_DEPTH_MAX = 65536,
    XPORT_READY_MAX = 64,
};

// First message of both sides. The connector's carries its hello; the acceptor's answer the code.
enum xgreet_code { XGREET_OK, XGREET_VERSION, XGREET_TOKEN, XGREET_BUSY, XGREET_BAD };

struct xgreeting {
    uint32_t magic;
    uint8_t version, kind, code, hello_n;
    uint64_t token;     // of the address connected to
    uint32_t depth;     // shm: entries of each ring
    uint32_t regions_n; // shm: regions listed behind, one file descriptor each
    uint8_t hello[XPORT_HELLO_MAX];
};
_Static_assert(sizeof(struct xgreeting) == 88, "wire format");

// A frame header, and the part of a ring entry that travels.
struct xframe {
    uint32_t magic, region, notice, zero;
    uint64_t offset, bytes;
};
_Static_assert(sizeof(struct xframe) == 32, "wire format");

struct xregion {
    uint32_t id;
    int fd;   // shm: the memfd; -1 otherwise
    void *mr; // verbs: its registration
    uint8_t *base;
    size_t bytes;
};

// One accepted write, from xlink_write until its WRITE_DONE was polled.
struct xwork {
    void *user;
    enum status status;
    struct xframe frame; // tcp: as sent; verbs: what the peer is told
    const uint8_t *src;  // tcp, verbs
    size_t sent;         // tcp: bytes of frame + payload already in the kernel; verbs: of payload
    uint64_t held_until; // verbs: the device reads src until this send of the link is complete
};

// DIALING --> GREETING --> UP --> FAILED --> DEAD      FAILED: events left to give, then LINK_DOWN
//    |           ^ |        |        |        ^        CLOSED: by the owner; only WRITE_DONEs left
//    |  accepted-+ |        |        |        |        DEAD: freed by the next poll
//    +-------------+--------+--------+-> CLOSED
enum xlink_state {
    XLINK_DIALING,
    XLINK_GREETING,
    XLINK_UP,
    XLINK_FAILED,
    XLINK_CLOSED,
    XLINK_DEAD
};

struct xlink {
    struct xport *x;
    enum xlink_state state;
    enum status fail; // why FAILED
    bool incoming;
    bool up_due;   // LINK_UP not yet given
    bool rx_over;  // nothing more will be received
    bool readable; // the socket has bytes that were not read yet
    void *user;
    int fd;
    uint32_t epoll_mask;
    uint64_t deadline_us; // of the greeting
    struct xgreeting greeting;
    size_t greeting_n; // bytes of it received

    // Ring of `depth` works. The first `wq_over` of the `wq_n` are finished, in order.
    struct xwork *wq;
    uint32_t wq_head, wq_n, wq_over;
};

struct xport_body {
    const char *name;
    size_t link_bytes;  // of the body's link struct, whose first member is struct xlink
    bool memory_polled; // data arrives without system calls: look at sockets now and then only

    // Fills listen_fd and address.
    enum status (*open)(struct xport *x, const struct xport_config *config, struct errmsg *e);
    // Frees what open made, after all links and regions; open may have failed half-way. May be
    // NULL.
    void (*close)(struct xport *x);
    void (*arrive)(struct xport *x); // listen_fd is readable
    // Called at next_tick_us or later; returns when to be called again. NULL: never.
    uint64_t (*tick)(struct xport *x, uint64_t now_us);
    enum status (*region_create)(struct xport *x, struct xregion *r, struct errmsg *e);
    void (*region_free)(struct xregion *r);
    // Non-blocking connect: sets fd; state DIALING. A dead address may also be told here
    // (LINK_DOWN).
    enum status (*dial)(struct xlink *l, const char *address, struct errmsg *e);
    // Sends l's greeting (fields filled but for what the body adds).
    enum status (*greet)(struct xlink *l, struct xgreeting *g);
    // Receives (more of) the peer's greeting into l->greeting: PENDING until whole.
    enum status (*greeted)(struct xlink *l);
    // The peer's greeting is checked: take what the body needs from it.
    enum status (*start)(struct xlink *l);
    // Room in the queue was checked; appends the work. FULL, LINK_DOWN: nothing done.
    enum status (*write)(struct xlink *l, const struct xwrite *w);
    // Socket events of an UP link.
    void (*service)(struct xlink *l, uint32_t events);
    // Up to max NOTICE events. Sets rx_over of a FAILED link once it has nothing more.
    int (*receive)(struct xlink *l, struct xport_event *events, int max);
    bool (*ready)(struct xlink *l); // receive would find something
    // A lost or closed link: true once no device reads the sources of its writes any more (they
    // are not given back before). NULL: always.
    bool (*released)(struct xlink *l);
    void (*sleeping)(struct xlink *l, bool sleep); // may be NULL
    // The owner closed the link and its works are given back: tell the peer, without waiting for a
    // poll. NULL: closing fd does.
    void (*hang_up)(struct xlink *l);
    void (*stop)(struct xlink *l); // frees what the body holds; fd is closed after it
};

extern const struct xport_body xport_shm_body, xport_tcp_body, xport_verbs_body;

struct xport {
    const struct xport_body *body;
    enum xport_kind kind;
    char address[LIMIT_ADDR];
    uint64_t token;
    uint32_t max_links, depth, spin_us, handshake_ms;
    int epoll_fd, listen_fd, wake_fd, spare_fd;
    atomic_bool woken;

    struct xregion regions[XPORT_REGIONS_MAX];
    uint32_t regions_n;

    struct xlink **links; // owned; in no order
    size_t links_n, links_cap;
    size_t turn;       // link that comes first in the next poll
    uint32_t slots_n;  // links that count against max_links: all but half-open incoming and DEAD
    uint32_t half_n;   // half-open incoming links
    uint32_t greets_n; // links in DIALING or GREETING
    uint32_t dead_n;

    struct epoll_event ready[XPORT_READY_MAX]; // fetched by xport_wait, served by xport_poll
    int ready_n;
    uint64_t served_us; // when the sockets were last looked at
    uint64_t next_tick_us;
    void *own; // of the body

    struct xport_stats stats;
};

static inline uint64_t xport_now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

// --- xport.c ---
// A link in DIALING or GREETING; added to x.
struct xlink *xlink_create(struct xport *x, bool incoming);
void xlink_move(struct xlink *l, enum xlink_state to);
// The link is lost. `drain`: what the peer sent before may still be received.
void xlink_fail(struct xlink *l, enum status why, bool drain);
void xlink_established(struct xlink *l);
// Where a peer's write goes; NULL when region, offset or length are not ours.
uint8_t *xport_target(struct xport *x, const struct xframe *f);
void xlink_notice(struct xlink *l, const struct xframe *f, struct xport_event *event);
struct xwork *xlink_work_add(struct xlink *l, void *user);

// --- xport_sock.c ---
void xsock_watch(struct xlink *l, uint32_t mask); // sets the epoll interest of l->fd
void xsock_close(struct xlink *l);
void xsock_accept(struct xport *x);
// Socket events of a link that is DIALING or GREETING.
void xsock_greet(struct xlink *l, uint32_t events);
void xsock_expire(struct xport *x);
// Connector: the way to the peer is open, say who we are. DIALING -> GREETING.
void xsock_introduce(struct xlink *l);
// How many half-open callers are kept; the oldest makes room for the next.
uint32_t xsock_half_open_max(const struct xport *x);
void xsock_evict_oldest(struct xport *x);
