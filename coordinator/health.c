// Reads the ranks' progress as a race: collectives and stage hand-overs keep all ranks within one
// step of each other, so whoever is last is what the others wait for.
#include "coordinator/health.h"

static bool behind(const struct rank_progress *a, const struct rank_progress *b)
{
    if (a->step != b->step)
        return a->step < b->step;
    if (a->layer != b->layer)
        return a->layer < b->layer;
    if (a->collective != b->collective)
        return a->collective < b->collective;
    return a->age_ms > b->age_ms;
}

static bool silent(const struct health_limits *lim, const struct health_rank *r)
{
    return r->silent_us > 3000ull * lim->heartbeat_ms;
}

// The silent rank, else the one that is last; ranks_n when none computes.
static uint32_t last_rank(const struct health_limits *lim, const struct health_rank *ranks,
                          uint32_t ranks_n)
{
    uint32_t last = ranks_n;
    for (uint32_t i = 0; i < ranks_n; i++) {
        if (silent(lim, &ranks[i]))
            return i;
        if (ranks[i].progress.step == 0)
            continue;
        if (last == ranks_n || behind(&ranks[i].progress, &ranks[last].progress))
            last = i;
    }
    return last;
}

struct health_verdict health_judge(const struct health_limits *lim, const struct health_rank *ranks,
                                   uint32_t ranks_n)
{
    bool old_step = false;
    for (uint32_t i = 0; i < ranks_n; i++) {
        if (ranks[i].loop_age_ms > lim->hang_ms)
            return (struct health_verdict){true, i, "its loop stopped turning"};
        old_step |= ranks[i].step_age_ms > lim->hang_ms;
    }
    if (!old_step)
        return (struct health_verdict){0};
    uint32_t last = last_rank(lim, ranks, ranks_n);
    if (last == ranks_n)
        return (struct health_verdict){true, 0, "a step got lost"};
    if (silent(lim, &ranks[last]))
        return (struct health_verdict){true, last, "it fell silent in a step"};
    if (ranks[last].progress.age_ms <= lim->hang_ms)
        return (struct health_verdict){0};
    return (struct health_verdict){true, last, "it is stuck in a step"};
}
