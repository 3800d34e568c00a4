// What the transport tests share: an end of a link that records its events, and time-bounded
// pumping of several ends in one thread.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "rdma/xport.h"

enum { REGION = 7, REGION_BYTES = 4 << 20, HISTORY = 8192 };

struct end {
    struct xport *x;
    uint8_t *mem;
    struct xlink *link; // the last that came up
    int ups, downs, dones, done_bad, notices;
    enum status down, done; // last status
    uint8_t hello[64];
    size_t hello_n;
    struct xport_event history[HISTORY]; // notices, in order
    void *done_users[HISTORY];
};

// Kind under test: argv[1] of the program.
extern enum xport_kind world_kind;
// Verbs: a link outlives 4 s without an answer, as an emulated machine may stand still for longer
// than the 0.5 s after which a link is dead otherwise. Tests that break the wire leave this.
extern struct xport_wire world_wire;
// How late what a process notices at once may be noticed here: other processes have the cores.
enum { NOTICED_US = 8000000 };
// Where the next end binds; NULL: the body's default. Verbs: HADAL_VERBS_HOSTS names one or two
// addresses of RDMA devices; the first end of a test (of all its processes) takes the first of
// them, all others the second, so that links cross the wire.
const char *world_host(void);
// So many ends more (or less) are open in other processes.
void world_ends_elsewhere(int n);
// Parses argv, so that `main` only lists the tests.
void world_init(int argc, char **argv);

// How often to do what is done n times: in the emulated machine of tests/rdma-vm a tenth of it.
int world_rounds(int n);

struct end *end_open(const struct xport_config *more); // NULL: defaults
void end_close(struct end *e);
int end_poll(struct end *e);
// Polls all until *n (a counter of one of them) reaches `want`; fails after 30 s.
void pump(struct end *const *ends, int ends_n, const int *n, int want);
void pump_ms(struct end *const *ends, int ends_n, int ms);
struct xlink *end_connect(struct end *from, struct end *to);
// Two ends with a link up both ways.
void pair_open(struct end **a, struct end **b, const struct xport_config *more);
enum status end_write(struct end *e, const struct xwrite *w);

uint64_t now_us(void);
void sleep_ms(int ms);
int fds_open(void);
// cmocka set-up and tear-down: no descriptor leaks from a test.
int fds_before(void **state);
int fds_after(void **state);
// Deterministic bytes for a check of what arrived.
void fill(uint8_t *p, size_t n, uint64_t seed);
bool filled(const uint8_t *p, size_t n, uint64_t seed);
