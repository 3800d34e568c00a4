// A bucket that is full at first.
#include "coordinator/retry.h"

double retry_left(const struct retry *r, const struct retry_limits *lim)
{
    return r->begun ? r->level : lim->burst;
}

static void set(struct retry *r, const struct retry_limits *lim, double level)
{
    r->level = level < lim->burst ? level : lim->burst;
    r->begun = true;
}

void retry_earn(struct retry *r, const struct retry_limits *lim, uint32_t tokens)
{
    set(r, lim, retry_left(r, lim) + tokens * (lim->percent / 100.0));
}

void retry_spend(struct retry *r, const struct retry_limits *lim, uint32_t tokens)
{
    set(r, lim, retry_left(r, lim) - tokens);
}

bool retry_allows(const struct retry *r, const struct retry_limits *lim, uint32_t under_way,
                  uint32_t replicas)
{
    return !lim->percent || retry_left(r, lim) > 0 || under_way < replicas;
}
