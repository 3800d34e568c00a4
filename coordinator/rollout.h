// Moving a model from one version to another: the states of a rollout, how many replicas a share of
// the requests needs, and the judgement of the new version against the old one. Pure: figures in,
// verdict out. Who has which replica is decided in versions.c.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/sm.h"
#include "base/status.h"

//          start          the step's replicas serve       dwell over, and good
//   IDLE ---------> SHIFTING ----------------> WATCHING ----------------------> SHIFTING (next
//   step)
//     ^              ^    |                     |    |
//     |       resume |    | pause         pause |    | after the last step: the old version is kept
//     |              |    v                     |    +---------------------------------------> IDLE
//     |             PAUSED <--------------------+
//     |                |
//     +--- REVERTING <-+-- also from SHIFTING and WATCHING: an operator, or a verdict
//        the old version has all replicas again
enum rollout_state {
    ROLLOUT_IDLE,
    ROLLOUT_SHIFTING,
    ROLLOUT_WATCHING,
    ROLLOUT_PAUSED,
    ROLLOUT_REVERTING,
};
extern const struct sm rollout_sm;
const char *rollout_state_name(enum rollout_state s); // "idle", ...

enum { ROLLOUT_STEPS = 16 };

struct rollout_plan {
    uint32_t steps[ROLLOUT_STEPS]; // percent of the new requests; growing, the last one is 100
    uint32_t steps_n;
    uint32_t dwell_ms; // each step is watched for so long
    // The new version is taken back when ...
    uint32_t min_requests;     // (its figures are trusted from so many on)
    uint32_t errors_percent;   // so much more of its requests fail than of the old one's; 0 = never
    uint32_t ttft_percent;     // its median time to a first token is more than this of the old's
    uint32_t tpot_percent;     // the same for the time per token after it; 0 = never
    uint32_t agree_percent;    // less of its golden answer is like the old one's; 0 = never
    uint32_t score_drop_milli; // its eval score is lower by more than so many thousandths
    uint32_t faults;           // so many of its replicas could not be formed or broke; 0 = never
};
void rollout_plan_default(struct rollout_plan *p);
// "5,25,50,100"; 100 is added when the last one is less. BAD_REQUEST: *err says why.
STATUS_MUST_USE enum status rollout_steps_parse(const char *text, struct rollout_plan *out,
                                                struct errmsg *err);
STATUS_MUST_USE enum status rollout_plan_check(const struct rollout_plan *p, struct errmsg *err);

// Times in geometric buckets, four to a factor of two: the median is off by less than a fifth, and
// a few wild ones do not move it.
enum { ROLLOUT_BUCKETS = 96 };
struct rollout_times {
    uint32_t n, buckets[ROLLOUT_BUCKETS];
};
void rollout_times_add(struct rollout_times *t, uint64_t us);
uint64_t rollout_times_median(const struct rollout_times *t); // us; 0 = none

// What is known of a version since the rollout began.
struct rollout_figures {
    uint32_t finished, errors; // requests; errors are counted in `finished`
    struct rollout_times ttft; // from the dispatch, so that the queue does not count
    struct rollout_times tpot;
    uint32_t faults; // replicas that could not be formed, failed their probe, or reported a fault
};
struct rollout_case {
    const struct rollout_figures *to, *from;
    int agree_percent;                    // of the golden answers; -1 = not known
    int score_to_milli, score_from_milli; // -1 = not known
};

// False: it is to be taken back, and *why_out says for what.
bool rollout_judge(const struct rollout_plan *p, const struct rollout_case *k, char *why_out,
                   size_t n);

// How many of `replicas` the new version gets for its percent: at least one, and the old one keeps
// one until 100.
uint32_t rollout_share(uint32_t percent, uint32_t replicas);
