// The mean starts as the plain average of the first samples and turns into an exponential one.
#include "coordinator/eta.h"

enum { ETA_GUESS_US = 2000000 }; // before anything finished
static const double ETA_WEIGHT = 0.1;

void eta_init(struct eta *e)
{
    *e = (struct eta){.service_us = ETA_GUESS_US};
}

void eta_observe(struct eta *e, uint64_t service_us)
{
    e->samples += e->samples < UINT32_MAX;
    double w = 1.0 / e->samples;
    if (w < ETA_WEIGHT)
        w = ETA_WEIGHT;
    e->service_us += w * ((double)service_us - e->service_us);
}

uint64_t eta_wait_us(const struct eta *e, uint32_t position, uint32_t slots)
{
    return (uint64_t)(e->service_us * position / (slots ? slots : 1));
}

bool eta_trusted(const struct eta *e)
{
    return e->samples >= ETA_TRUSTED;
}
