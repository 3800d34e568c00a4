// The mean starts as the plain average of the first samples and turns into an exponential one.
#include "coordinator/eta.h"

enum { ETA_GUESS_US = 2000000, ETA_GUESS_TOKENS = 128 }; // before anything finished
static const double ETA_WEIGHT = 0.1;

void eta_init(struct eta *e)
{
    *e = (struct eta){.service_us = ETA_GUESS_US, .tokens = ETA_GUESS_TOKENS};
}

static double weight_of(uint32_t *samples)
{
    *samples += *samples < UINT32_MAX;
    double w = 1.0 / *samples;
    return w < ETA_WEIGHT ? ETA_WEIGHT : w;
}

void eta_observe(struct eta *e, uint64_t service_us, uint32_t tokens)
{
    double w = weight_of(&e->samples);
    e->service_us += w * ((double)service_us - e->service_us);
    e->tokens += w * (tokens - e->tokens);
}

void eta_observe_first(struct eta *e, uint64_t first_us)
{
    e->first_us += weight_of(&e->first_samples) * ((double)first_us - e->first_us);
}

uint64_t eta_first_us(const struct eta *e)
{
    return e->first_samples >= ETA_TRUSTED ? (uint64_t)e->first_us : 0;
}

uint64_t eta_wait_us(const struct eta *e, uint32_t position, uint32_t slots)
{
    return (uint64_t)(e->service_us * position / (slots ? slots : 1));
}

bool eta_trusted(const struct eta *e)
{
    return e->samples >= ETA_TRUSTED;
}
