// hadal ctl rollout, hadal ctl scale: versions of a model, and how many replicas serve it.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct ctl_rollout_options {
    const char *url;
    bool json;
    const char *to, *canary, *steps; // NULL = not given
    // As struct rollout_plan's; below 0 = not given. dwell_s in seconds.
    double dwell_s;
    int64_t min_requests, errors, ttft, tpot, agree;
    double score, score_drop;
};
void ctl_rollout_options_default(struct ctl_rollout_options *o);

// args: "rollout", verb, model (NULL = the first one that is served) [, version]. The exit code.
int ctl_rollout(const struct ctl_rollout_options *o, const char *const args[4]);
// args: "scale", model or pool, number.
int ctl_scale(const struct ctl_rollout_options *o, const char *const args[4]);
