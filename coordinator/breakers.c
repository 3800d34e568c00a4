// The rules of the configuration: figures of the whole cluster in, and what is done while one is
// open. Looked at four times a second, and only when there are rules.
#include <inttypes.h>
#include <stdlib.h>
#include <utlist.h>

#include "coordinator/core.h"

static double share(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static double gpu_utilization(const struct coord *c)
{
    const struct member *m;
    uint64_t sum = 0, n = 0;
    DL_FOREACH(c->members, m)
    {
        if (!m->conn || !m->replica || !m->heartbeat.gpu.present)
            continue;
        sum += m->heartbeat.gpu.utilization_percent;
        n++;
    }
    return n ? (double)sum / (double)n : 0;
}

// Percent of memory, or degrees, of the device where it is highest.
static double gpu_worst(const struct coord *c, bool memory)
{
    const struct member *m;
    double worst = 0;
    DL_FOREACH(c->members, m)
    {
        const struct gpu_figures *g = &m->heartbeat.gpu;
        if (!m->conn || !m->replica || !g->present)
            continue;
        double v = memory ? share(g->memory_used_bytes, g->memory_total_bytes) : g->temperature_c;
        worst = v > worst ? v : worst;
    }
    return worst;
}

static uint64_t refused(const struct coord *c)
{
    uint64_t n = 0;
    for (int i = COORD_REFUSE_NONE + 1; i <= COORD_REFUSE_BAD_REQUEST; i++)
        n += c->stats.refused[i];
    return n;
}

// What grows, as a rate over the last ten seconds or so.
static void measure_rates(struct coord *c, uint64_t period_us)
{
    const uint64_t now[BREAKER_RATES] = {
        [RATE_TOKENS] = c->stats.tokens,
        [RATE_REFUSED] = refused(c),
        [RATE_ERRORS] = c->stats.finished[FINISH_ERROR],
        [RATE_FENCES] = c->stats.fences,
        [RATE_PREFILL] = c->stats.prefill_tokens,
        [RATE_HITS] = c->stats.prefix_hit_tokens,
    };
    double s = (double)period_us / 1e6, weight = s / 10;
    for (int i = 0; i < BREAKER_RATES; i++) {
        double rate = (double)(now[i] - c->rates_before[i]) / s;
        c->rates[i] += weight * (rate - c->rates[i]);
        c->rates_before[i] = now[i];
    }
}

static double kv_used(const struct coord *c)
{
    uint64_t blocks = 0, free_n = 0;
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct replica *r = c->replicas[i];
        if (r->state != COORD_REPLICA_READY)
            continue;
        blocks += r->kv_blocks;
        free_n += r->kv_free < r->kv_blocks ? r->kv_free : r->kv_blocks;
    }
    return share(blocks - free_n, blocks);
}

static double step_ms(const struct coord *c)
{
    double sum = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->replicas_n; i++) {
        const struct replica *r = c->replicas[i];
        if (r->state != COORD_REPLICA_READY || !r->pace.samples)
            continue;
        sum += r->pace.step_us / 1e3;
        n++;
    }
    return n ? sum / n : 0;
}

// Of several pools sums, and the longest times.
static double measure(const struct coord *c, enum coord_breaker_metric m)
{
    struct coord_stats st;
    coord_stats(c, &st);
    uint32_t credits = 0, load = 0, waiting = 0, ready = 0;
    double wait_us = 0, first_us = 0;
    for (uint32_t i = 0; i < c->pools_n; i++) {
        const struct pool *p = c->pools[i];
        double wait = p->fair.n ? (double)notices_wait_us(p, 0, p->fair.n) : 0;
        double first = (double)eta_first_us(&p->eta);
        credits += p->credits;
        load += p->load;
        waiting += p->fair.n;
        ready += p->ready_n;
        wait_us = wait > wait_us ? wait : wait_us;
        first_us = first > first_us ? first : first_us;
    }
    switch (m) {
    case BREAKER_GPU_UTILIZATION:
        return gpu_utilization(c);
    case BREAKER_KV_USED:
        return kv_used(c);
    case BREAKER_CREDITS_USED:
        return share(load, credits);
    case BREAKER_QUEUE_LENGTH:
        return waiting;
    case BREAKER_QUEUE_ETA:
        return wait_us / 1e3;
    case BREAKER_TTFT:
        return first_us / 1e3;
    case BREAKER_STEP:
        return step_ms(c);
    case BREAKER_REPLICAS_READY:
        return ready;
    case BREAKER_GPU_MEMORY:
        return gpu_worst(c, true);
    case BREAKER_GPU_TEMPERATURE:
        return gpu_worst(c, false);
    case BREAKER_QUEUE_TOKENS:
        return (double)st.queued_tokens;
    case BREAKER_RUNNING:
        return st.running;
    case BREAKER_NODES:
        return st.nodes_usable;
    case BREAKER_CREDITS_FREE:
        return st.credits_free;
    case BREAKER_PREFIX_HITS:
        return c->rates[RATE_PREFILL] > 0 ? 100 * c->rates[RATE_HITS] / c->rates[RATE_PREFILL] : 0;
    case BREAKER_TOKENS_PER_S:
        return c->rates[RATE_TOKENS];
    case BREAKER_REFUSED_PER_S:
        return c->rates[RATE_REFUSED];
    case BREAKER_ERRORS_PER_S:
        return c->rates[RATE_ERRORS];
    case BREAKER_FENCES_PER_MIN:
        return 60 * c->rates[RATE_FENCES];
    case BREAKER_METRICS:
        break;
    }
    return 0;
}

static const char *describe(struct coord *c, const struct breaker *b)
{
    return arena_printf(&c->arena, "%s %s %g for %u ms -> %s",
                        coord_breaker_metric_name(b->rule.metric), b->rule.below ? "<" : ">",
                        b->rule.threshold, b->rule.for_ms,
                        coord_breaker_action_name(b->rule.action));
}

void breakers_timer(struct coord *c)
{
    enum { PERIOD_US = 250000 };
    core_arm(c, &c->breaker_timer, TIMER_BREAKERS, c->now_us + PERIOD_US);
    measure_rates(c, PERIOD_US);
    for (uint32_t i = 0; i < c->breakers_n; i++) {
        struct breaker *b = &c->breakers[i];
        if (breaker_feed(b, measure(c, b->rule.metric), c->now_us))
            core_trace(c, LOG_WARN, "breaker %s: %s (%g now)", b->open ? "opens" : "closes",
                       describe(c, b), b->value);
    }
}

const char *breakers_refuse(struct coord *c, uint8_t band, uint32_t *retry_ms)
{
    for (uint32_t i = 0; i < c->breakers_n; i++) {
        const struct breaker *b = &c->breakers[i];
        bool low = b->rule.action == BREAKER_REJECT_LOW && band < b->rule.value;
        if (!b->open || (!low && b->rule.action != BREAKER_STOP_ADMISSION))
            continue;
        *retry_ms = b->rule.for_ms < 1000 ? 1000 : b->rule.for_ms;
        return arena_printf(&c->arena, "a breaker is open: %s", describe(c, b));
    }
    return NULL;
}

uint32_t breakers_cap(const struct coord *c, uint32_t max_tokens)
{
    for (uint32_t i = 0; i < c->breakers_n; i++) {
        const struct breaker *b = &c->breakers[i];
        if (b->open && b->rule.action == BREAKER_CAP_TOKENS &&
            (!max_tokens || max_tokens > b->rule.value))
            max_tokens = b->rule.value;
    }
    return max_tokens;
}

bool breakers_fall_back(const struct coord *c)
{
    for (uint32_t i = 0; i < c->breakers_n; i++)
        if (c->breakers[i].open && c->breakers[i].rule.action == BREAKER_FALLBACK)
            return true;
    return false;
}

void coord_each_breaker(const struct coord *c,
                        bool (*fn)(void *arg, const struct coord_breaker_view *), void *arg)
{
    for (uint32_t i = 0; i < c->breakers_n; i++) {
        const struct breaker *b = &c->breakers[i];
        const struct coord_breaker_view v = {b->rule, b->open, b->value, b->opened};
        if (!fn(arg, &v))
            return;
    }
}
