// Means, and their ratio to those of the pool.
#include "coordinator/latency.h"

enum { TRUSTED = 8, OLD_US = 10000000 };

static void mean(double *m, double v, double weight)
{
    *m = *m > 0 ? *m + weight * (v - *m) : v;
}

void latency_first(struct latency *l, uint64_t us, uint32_t tokens, double weight, uint64_t now_us)
{
    mean(&l->first_us, (double)us / ((double)tokens + LATENCY_BASE), weight);
    l->firsts += l->firsts < UINT32_MAX;
    l->last_us = now_us;
}

void latency_step(struct latency *l, uint64_t us, double weight, uint64_t now_us)
{
    mean(&l->step_us, (double)us, weight);
    l->steps += l->steps < UINT32_MAX;
    l->last_us = now_us;
}

static double ratio(double own, double all, uint32_t n)
{
    return n >= TRUSTED && own > 0 && all > 0 ? own / all : 1;
}

double latency_factor(const struct latency *l, const struct latency *all, uint64_t now_us)
{
    if (now_us - l->last_us > OLD_US)
        return 1;
    double f =
        (ratio(l->first_us, all->first_us, l->firsts) + ratio(l->step_us, all->step_us, l->steps)) /
        2;
    return f < 0.25 ? 0.25 : f > 4 ? 4 : f;
}
