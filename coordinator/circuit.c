// The three transitions.
#include "coordinator/circuit.h"

const char *circuit_state_name(enum circuit_state s)
{
    static const char *const names[] = {"closed", "open", "half-open"};
    return s <= CIRCUIT_HALF_OPEN ? names[s] : "unknown";
}

static void open_it(struct circuit *c, const struct circuit_limits *lim, uint64_t now_us)
{
    uint64_t us = lim->open_us;
    for (uint32_t i = 0; i < c->opens && us < lim->open_max_us; i++)
        us *= 2;
    c->state = CIRCUIT_OPEN;
    c->until_us = now_us + (us < lim->open_max_us ? us : lim->open_max_us);
    c->opens++;
    c->failures = c->successes = 0;
}

bool circuit_failed(struct circuit *c, const struct circuit_limits *lim, uint64_t now_us)
{
    if (!lim->failures || c->state == CIRCUIT_OPEN)
        return false;
    if (c->state == CIRCUIT_CLOSED) {
        if (!c->failures || now_us - c->since_us > lim->window_us) {
            c->failures = 0;
            c->since_us = now_us;
        }
        if (++c->failures < lim->failures)
            return false;
    }
    open_it(c, lim, now_us);
    return true;
}

bool circuit_succeeded(struct circuit *c, const struct circuit_limits *lim)
{
    if (c->state != CIRCUIT_HALF_OPEN || ++c->successes < lim->successes)
        return false;
    *c = (struct circuit){.state = CIRCUIT_CLOSED};
    return true;
}

bool circuit_tick(struct circuit *c, uint64_t now_us)
{
    if (c->state != CIRCUIT_OPEN || now_us < c->until_us)
        return false;
    c->state = CIRCUIT_HALF_OPEN;
    c->successes = 0;
    return true;
}
