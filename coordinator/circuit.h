// The circuit breaker of one replica, as in Nygard's "Release It!": closed, it takes requests; so
// many failures within a time open it, and requests go elsewhere; after a pause it is half open, a
// few requests at a time try it; so many first tokens close it, another failure opens it again for
// twice as long. Pure.
//
//            failures              pause is over            successes
//   CLOSED ------------> OPEN ------------------> HALF_OPEN ------------> CLOSED
//                          ^                          |
//                          +--------------------------+ failure
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum circuit_state { CIRCUIT_CLOSED, CIRCUIT_OPEN, CIRCUIT_HALF_OPEN };
const char *circuit_state_name(enum circuit_state s); // "closed", "open", "half-open"

struct circuit_limits {
    uint32_t failures; // within window_us; 0 = it never opens
    uint64_t window_us, open_us, open_max_us;
    uint32_t successes; // that close it
};

struct circuit {
    enum circuit_state state;
    uint32_t failures, successes, opens; // opens: since it was last closed
    uint64_t since_us;                   // of the first failure counted
    uint64_t until_us;                   // OPEN
};

// Each returns true when the state changed.
bool circuit_failed(struct circuit *c, const struct circuit_limits *lim, uint64_t now_us);
bool circuit_succeeded(struct circuit *c, const struct circuit_limits *lim);
bool circuit_tick(struct circuit *c, uint64_t now_us); // the pause may be over
