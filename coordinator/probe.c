// Tokens first: a wrong one is wrong whatever its probability.
#include "coordinator/probe.h"

#include <math.h>

enum probe_verdict probe_judge(const struct probe_answer *known, const struct probe_answer *got,
                               float tolerance, uint32_t *at)
{
    for (*at = 0; *at < known->n; ++*at)
        if (*at >= got->n || got->tokens[*at] != known->tokens[*at])
            return PROBE_WRONG_TOKEN;
    for (*at = 0; tolerance > 0 && *at < known->n; ++*at)
        if (!(fabsf(got->logprobs[*at] - known->logprobs[*at]) <= tolerance)) // also when NaN
            return PROBE_DRIFTED;
    return PROBE_RIGHT;
}
