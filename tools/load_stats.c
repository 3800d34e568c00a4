// Collects durations and sums them up.
#include "tools/load_stats.h"

#include <stdlib.h>

#include "base/mem.h"

void load_samples_add(struct load_samples *s, int64_t us)
{
    MEM_GROW(s->us, s->n, s->cap);
    s->us[s->n++] = us < 0 ? 0 : us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

void load_samples_finish(struct load_samples *s)
{
    free(s->us);
    *s = (struct load_samples){0};
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double rank_ms(const struct load_samples *s, size_t percent)
{
    size_t rank = (s->n * percent + 99) / 100;
    return s->us[rank ? rank - 1 : 0] / 1e3;
}

struct load_summary load_samples_summary(struct load_samples *s)
{
    struct load_summary r = {.n = s->n};
    if (s->n == 0)
        return r;
    qsort(s->us, s->n, sizeof *s->us, by_value);
    double sum = 0;
    for (size_t i = 0; i < s->n; i++)
        sum += s->us[i];
    r.mean_ms = sum / (double)s->n / 1e3;
    r.p50_ms = rank_ms(s, 50);
    r.p90_ms = rank_ms(s, 90);
    r.p99_ms = rank_ms(s, 99);
    r.max_ms = rank_ms(s, 100);
    return r;
}
