// Thresholds are compared only once both versions have been seen often enough: a canary of few
// requests must not be judged by noise. What needs no statistics (it does not load, it breaks, its
// golden answer is another one) is judged at once.
#include "coordinator/rollout.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct sm_state states[] = {
    [ROLLOUT_IDLE] = {"idle", SM_TO(ROLLOUT_SHIFTING)},
    [ROLLOUT_SHIFTING] = {"shifting", SM_TO(ROLLOUT_WATCHING) | SM_TO(ROLLOUT_PAUSED) |
                                          SM_TO(ROLLOUT_REVERTING)},
    [ROLLOUT_WATCHING] = {"watching", SM_TO(ROLLOUT_SHIFTING) | SM_TO(ROLLOUT_PAUSED) |
                                          SM_TO(ROLLOUT_REVERTING) | SM_TO(ROLLOUT_IDLE)},
    [ROLLOUT_PAUSED] = {"paused", SM_TO(ROLLOUT_SHIFTING) | SM_TO(ROLLOUT_REVERTING)},
    [ROLLOUT_REVERTING] = {"reverting", SM_TO(ROLLOUT_IDLE)},
};
const struct sm rollout_sm = {"rollout", states, ROLLOUT_REVERTING + 1};

const char *rollout_state_name(enum rollout_state s)
{
    return sm_name(&rollout_sm, s);
}

void rollout_plan_default(struct rollout_plan *p)
{
    *p = (struct rollout_plan){
        .steps = {5, 25, 50, 100},
        .steps_n = 4,
        .dwell_ms = 60000,
        .min_requests = 20,
        .errors_percent = 5,
        .ttft_percent = 200,
        .tpot_percent = 150,
        .agree_percent = 50,
        .score_drop_milli = 20,
        .faults = 3,
    };
}

enum status rollout_steps_parse(const char *text, struct rollout_plan *out, struct errmsg *err)
{
    uint32_t steps[ROLLOUT_STEPS], n = 0;
    for (const char *at = text; *at;) {
        char *end;
        unsigned long v = strtoul(at, &end, 10);
        bool digit = *at >= '0' && *at <= '9';
        if (*end == '%')
            end++;
        if (!digit || v < 1 || v > 100 || (n && v <= steps[n - 1]) || (*end && *end != ',') ||
            (*end == ',' && !end[1]))
            return errmsg_set(err, STATUS_BAD_REQUEST,
                              "steps: '%.60s' is not a list of growing percents, as 5,25,50,100",
                              text);
        if (n == ROLLOUT_STEPS - 1 && v != 100)
            return errmsg_set(err, STATUS_BAD_REQUEST, "steps: more than %d", ROLLOUT_STEPS);
        steps[n++] = (uint32_t)v;
        at = *end ? end + 1 : end;
    }
    if (!n || steps[n - 1] != 100)
        steps[n++] = 100;
    memcpy(out->steps, steps, n * sizeof *steps);
    out->steps_n = n;
    return STATUS_OK;
}

enum status rollout_plan_check(const struct rollout_plan *p, struct errmsg *err)
{
    bool grows = p->steps_n >= 1 && p->steps_n <= ROLLOUT_STEPS;
    for (uint32_t i = 0; grows && i < p->steps_n; i++)
        grows = p->steps[i] >= 1 && p->steps[i] <= 100 && (!i || p->steps[i] > p->steps[i - 1]);
    if (!grows || p->steps[p->steps_n - 1] != 100)
        return errmsg_set(err, STATUS_BAD_REQUEST,
                          "steps: must grow from 1 to 100 in at most %d steps", ROLLOUT_STEPS);
    if (p->errors_percent > 100 || p->agree_percent > 100 || p->score_drop_milli > 1000 ||
        (p->ttft_percent && p->ttft_percent <= 100) || (p->tpot_percent && p->tpot_percent <= 100))
        return errmsg_set(err, STATUS_BAD_REQUEST,
                          "errors and agreement are 0 to 100 percent, ttft and tpot more than 100 "
                          "percent of the old version's, or 0");
    return STATUS_OK;
}

// ---- times ----

enum { FIRST_US = 64, PER_OCTAVE = 4 };

// Upper ends of the buckets of one octave, in 1/1024: 2^(1/4), 2^(2/4), 2^(3/4), 2.
static const uint32_t quarter[PER_OCTAVE] = {1218, 1448, 1722, 2048};

static uint64_t bucket_end_us(uint32_t i)
{
    return ((uint64_t)FIRST_US << (i / PER_OCTAVE)) * quarter[i % PER_OCTAVE] / 1024;
}

void rollout_times_add(struct rollout_times *t, uint64_t us)
{
    uint32_t i = 0;
    while (i < ROLLOUT_BUCKETS - 1 && us > bucket_end_us(i))
        i++;
    t->buckets[i]++;
    t->n++;
}

uint64_t rollout_times_median(const struct rollout_times *t)
{
    uint32_t seen = 0;
    for (uint32_t i = 0; i < ROLLOUT_BUCKETS && t->n; i++) {
        seen += t->buckets[i];
        if (2 * (uint64_t)seen >= t->n)
            return bucket_end_us(i);
    }
    return 0;
}

// ---- judgement ----

static bool times_bad(uint32_t percent, uint32_t enough, const struct rollout_times *to,
                      const struct rollout_times *from, const char *what, char *why, size_t n)
{
    if (!percent || to->n < enough || from->n < enough)
        return false;
    uint64_t mine = rollout_times_median(to), old = rollout_times_median(from);
    if (mine * 100 <= old * percent)
        return false;
    snprintf(why, n, "its median %s is %.1f ms, the old version's %.1f ms", what,
             (double)mine / 1e3, (double)old / 1e3);
    return true;
}

static bool errors_bad(const struct rollout_plan *p, const struct rollout_case *k, char *why,
                       size_t n)
{
    const struct rollout_figures *to = k->to, *from = k->from;
    if (!p->errors_percent || !to->finished || to->finished < p->min_requests)
        return false;
    double mine = 100.0 * to->errors / to->finished;
    double old = from->finished ? 100.0 * from->errors / from->finished : 0;
    if (mine <= old + p->errors_percent)
        return false;
    snprintf(why, n, "%u of its %u requests failed, %u of %u of the old version's", to->errors,
             to->finished, from->errors, from->finished);
    return true;
}

bool rollout_judge(const struct rollout_plan *p, const struct rollout_case *k, char *why, size_t n)
{
    const struct rollout_figures *to = k->to, *from = k->from;
    if (p->faults && to->faults >= p->faults) {
        snprintf(why, n, "%u times its replicas could not be formed, or broke", to->faults);
        return false;
    }
    if (k->agree_percent >= 0 && (uint32_t)k->agree_percent < p->agree_percent) {
        snprintf(why, n, "only %d%% of its golden answer is like the old version's",
                 k->agree_percent);
        return false;
    }
    if (k->score_to_milli >= 0 && k->score_from_milli >= 0 &&
        k->score_to_milli + (int)p->score_drop_milli < k->score_from_milli) {
        snprintf(why, n, "its score is %.3f, the old version's %.3f", k->score_to_milli / 1e3,
                 k->score_from_milli / 1e3);
        return false;
    }
    return !errors_bad(p, k, why, n) &&
           !times_bad(p->ttft_percent, p->min_requests, &to->ttft, &from->ttft,
                      "time to a first token", why, n) &&
           !times_bad(p->tpot_percent, p->min_requests, &to->tpot, &from->tpot, "time per token",
                      why, n);
}

uint32_t rollout_share(uint32_t percent, uint32_t replicas)
{
    assert(percent <= 100);
    if (percent == 100 || !percent)
        return percent ? replicas : 0;
    uint32_t n = (uint32_t)(((uint64_t)percent * replicas + 99) / 100);
    uint32_t most = replicas > 1 ? replicas - 1 : replicas;
    return n < most ? n : most;
}
