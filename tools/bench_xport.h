// Private to `hadal bench xport`: ends of a link, and what is measured over one.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "rdma/xport.h"

enum {
    BENCH_XPORT_REGION = 1,
    BENCH_XPORT_BYTES = 32 << 20, // of the region of both ends
};

// One end of the link: counters of what xport_poll gave.
struct side {
    struct xport *x;
    struct xlink *link;
    uint8_t *mem; // [BENCH_XPORT_BYTES], its region
    uint64_t notices, dones;
    uint32_t last; // notice
    bool up, down;
    enum status why; // down
    uint8_t hello[64];
    size_t hello_n;
};

// These end the program when something is wrong.
struct side bench_side_open(const struct xport_config *c);
void bench_side_turn(struct side *s); // polls, and waits when there was nothing
void bench_side_write(struct side *s, const struct xwrite *w);

// The other end echoes each notice with as many bytes (round trip), or tells how many came in all.
double bench_write_gb_s(struct side *s, const uint8_t *src, size_t size);
double bench_round_trip_us(struct side *s, const uint8_t *src, uint32_t bytes, int rounds);

// Between hosts: serves one caller after the other, until a signal; or measures against an address
// that the former printed.
int bench_xport_listen(const struct xport_config *c);
int bench_xport_connect(const char *address, const char *bind, bool json);
