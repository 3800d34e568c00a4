// Two means and a comparison.
#include "coordinator/kvrate.h"

static void observe(double *mean, uint32_t tokens, uint64_t us)
{
    static const double weight = 0.2, fade_floor = 0.001;
    if (tokens < KVRATE_MIN_TOKENS)
        return;
    double each = (double)us / tokens;
    if (each < fade_floor)
        each = fade_floor; // 0 means unknown
    *mean = *mean > 0 ? *mean + weight * (each - *mean) : each;
}

void kvrate_computed(struct kvrate *k, uint32_t tokens, uint64_t us)
{
    observe(&k->compute_us, tokens, us);
}

void kvrate_moved(struct kvrate *k, uint32_t tokens, uint64_t us)
{
    observe(&k->move_us, tokens, us);
}

bool kvrate_move_pays(struct kvrate *k)
{
    static const double fade = 0.98;
    if (k->compute_us <= 0 || k->move_us <= k->compute_us)
        return true;
    k->move_us *= fade;
    return false;
}

uint64_t kvrate_compute_us(const struct kvrate *k, uint32_t tokens)
{
    return (uint64_t)(k->compute_us * tokens);
}
