// The tokens of a step: rows of logits that lie on the device become samples by kern_sample. What a
// token costs the link to the host is its result, not its row of logits.
#pragma once

#include "kernels/kern.h"
#include "node/model/forward.h"
#include "node/sampler.h"

// Memory of one worker, zeroed at first, grown as steps need it.
struct step_sampler {
    struct kern *kern; // whose the buffers are; it outlives step_sampler_finish
    struct kern_buf *rows, *history, *out;
    struct kern_sample_row *host_rows;
    struct kern_sample_out *host_out;
    size_t cap; // rows
};

// in[i].logits is not looked at: row i of the last forward_run's logits is. Sets what sampler_pick
// sets of out[0 .. n). NODE_NAN: a logit of some row is NaN or infinite.
STATUS_MUST_USE enum status step_sampler_run(struct step_sampler *s, struct model_shard *shard,
                                             const struct sampler_input *in, size_t n,
                                             struct step_sample *out);
void step_sampler_finish(struct step_sampler *s); // zeroed is fine
