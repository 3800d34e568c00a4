// One TCP connection of a client to whichever of its coordinators answers: connects, cuts what
// comes into frames, writes. Blocking calls with time limits, no thread of its own.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/strbuf.h"
#include "proto/secure.h"
#include "proto/wire.h"

enum { LINK_ADDRESSES = 16 };

struct link_address {
    char host[256], port[8];
};

struct link {
    struct link_address addresses[LINK_ADDRESSES];
    int addresses_n, next; // next: the one to try next
    int fd;                // -1: down
    struct wire_decoder in;
    struct secure_domain *domain; // owned; NULL: in the clear
    struct secure *secure;        // owned; of this connection
    struct strbuf wire, plain;    // of `secure`: to be sent; of one read
    uint64_t heard_ms, asked_ms; // last bytes from the peer; last PING since then, 0 = none
};

uint64_t link_now_ms(void);

// Parses the url. BAD_CONFIG with the cause.
STATUS_MUST_USE enum status link_init(struct link *l, const char *url, struct errmsg *err);
void link_finish(struct link *l);

// Tries the next address. LINK_DOWN, LINK_TIMEOUT: try again later.
STATUS_MUST_USE enum status link_connect(struct link *l, uint32_t timeout_ms, struct errmsg *err);
void link_down(struct link *l);
// Writes all of it. LINK_DOWN: the connection broke (link_down was called).
STATUS_MUST_USE enum status link_write(struct link *l, const void *bytes, size_t n);
// Waits at most timeout_ms for a frame. OK, AGAIN (none came), or LINK_* after link_down.
STATUS_MUST_USE enum status link_read(struct link *l, uint32_t timeout_ms, struct wire_frame *f,
                                      struct errmsg *err);
