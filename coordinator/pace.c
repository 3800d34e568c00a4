// The median of the others is found by counting: for each candidate, at least half of the others
// must be faster by the factor. No sorting, no memory; n is the number of replicas.
#include "coordinator/pace.h"

#include <stdbool.h>

void pace_step(struct pace *p, uint64_t step_us, uint32_t tokens, uint64_t now_us)
{
    double w = 1.0 / ++p->samples;
    if (w < 0.1)
        w = 0.1;
    if (p->samples > 1000000)
        p->samples = PACE_TRUSTED;
    double per_token = (double)step_us / (tokens ? tokens : 1);
    p->step_us += w * ((double)step_us - p->step_us);
    p->token_us += w * (per_token - p->token_us);
    p->last_us = now_us;
}

static bool counts(const struct pace *p, uint64_t now_us, uint64_t recent_us)
{
    return p->samples >= PACE_TRUSTED && now_us - p->last_us <= recent_us;
}

uint32_t pace_outlier(const struct pace *const *v, uint32_t n, double factor, uint64_t now_us,
                      uint64_t recent_us)
{
    uint32_t worst = n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t others = 0, faster = 0;
        if (!counts(v[i], now_us, recent_us))
            continue;
        for (uint32_t k = 0; k < n; k++) {
            if (k == i || !counts(v[k], now_us, recent_us))
                continue;
            others++;
            faster +=
                v[i]->step_us > factor * v[k]->step_us && v[i]->token_us > factor * v[k]->token_us;
        }
        if (others && 2 * faster > others && (worst == n || v[i]->step_us > v[worst]->step_us))
            worst = i;
    }
    return worst;
}
