// Names of rules, and the one transition: a figure that disagrees for long enough.
#include "coordinator/breaker.h"

#include <stddef.h>

static const char *const metrics[] = {
    [BREAKER_GPU_UTILIZATION] = "gpu_utilization",
    [BREAKER_KV_USED] = "kv_used",
    [BREAKER_CREDITS_USED] = "credits_used",
    [BREAKER_QUEUE_LENGTH] = "queue_length",
    [BREAKER_QUEUE_ETA] = "queue_eta_ms",
    [BREAKER_TTFT] = "ttft_ms",
    [BREAKER_STEP] = "step_ms",
    [BREAKER_REPLICAS_READY] = "replicas_ready",
    [BREAKER_GPU_MEMORY] = "gpu_memory_used",
    [BREAKER_GPU_TEMPERATURE] = "gpu_temperature",
    [BREAKER_QUEUE_TOKENS] = "queue_tokens",
    [BREAKER_RUNNING] = "running",
    [BREAKER_NODES] = "nodes_usable",
    [BREAKER_CREDITS_FREE] = "credits_free",
    [BREAKER_PREFIX_HITS] = "prefix_hit_percent",
    [BREAKER_TOKENS_PER_S] = "tokens_per_s",
    [BREAKER_REFUSED_PER_S] = "refused_per_s",
    [BREAKER_ERRORS_PER_S] = "errors_per_s",
    [BREAKER_FENCES_PER_MIN] = "fences_per_min",
};
static const char *const actions[] = {
    [BREAKER_REJECT_LOW] = "reject_low_priority",
    [BREAKER_CAP_TOKENS] = "cap_max_tokens",
    [BREAKER_STOP_ADMISSION] = "stop_admission",
    [BREAKER_FALLBACK] = "fallback_model",
};

const char *coord_breaker_metric_name(enum coord_breaker_metric m)
{
    return m < BREAKER_METRICS ? metrics[m] : NULL;
}

const char *coord_breaker_action_name(enum coord_breaker_action a)
{
    return a < BREAKER_ACTIONS ? actions[a] : NULL;
}

bool breaker_feed(struct breaker *b, double value, uint64_t now_us)
{
    const struct coord_breaker *r = &b->rule;
    bool bad = r->below ? value < r->threshold : value > r->threshold;
    b->value = value;
    if (bad == b->open) {
        b->since_us = 0;
        return false;
    }
    if (!b->since_us)
        b->since_us = now_us;
    if (now_us - b->since_us < 1000ull * r->for_ms)
        return false;
    b->open = bad;
    b->opened += bad;
    b->since_us = 0;
    return true;
}
