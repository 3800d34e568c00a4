// The sampler of kernels/sample.h in the words of a step plan.
#include "node/sampler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/prng.h"

static_assert((int)LIMIT_VOCAB <= (int)KERN_SAMPLE_VOCAB_MAX, "vocabularies");
static_assert((int)KERN_SAMPLE_TOP_MAX == (int)LIMIT_TOP_LOGPROBS, "alternatives of a result");

struct sampler {
    struct sample_memory *memory;
};

struct sampler *sampler_create(uint32_t vocab)
{
    struct sampler *s = mem_zalloc(1, sizeof *s);
    s->memory = sample_memory_create(vocab);
    return s;
}

void sampler_destroy(struct sampler *s)
{
    if (!s)
        return;
    sample_memory_destroy(s->memory);
    free(s);
}

bool sampler_is_argmax(const struct sampling *p)
{
    return !(p->temperature >= KERN_SAMPLE_GREEDY_BELOW) && p->repetition_penalty == 1 &&
           p->presence_penalty == 0 && p->frequency_penalty == 0 && !p->logprobs &&
           !p->top_logprobs;
}

struct kern_sample_row sampler_row(const struct sampler_input *in)
{
    const struct sampling *p = in->sampling;
    assert(in->prompt_n <= in->tokens_n && p->top_logprobs <= LIMIT_TOP_LOGPROBS);
    return (struct kern_sample_row){.unit = philox_unit(p->seed, in->index),
                                    .temperature = p->temperature,
                                    .top_p = p->top_p,
                                    .min_p = p->min_p,
                                    .repetition = p->repetition_penalty,
                                    .frequency = p->frequency_penalty,
                                    .presence = p->presence_penalty,
                                    .top_k = p->top_k,
                                    .logprob = p->logprobs,
                                    .top_n = p->top_logprobs,
                                    .history_n = in->tokens_n,
                                    .history_prompt = in->prompt_n};
}

enum status sampler_result(const struct kern_sample_out *x, struct step_sample *out)
{
    if (x->token < 0)
        return STATUS_NODE_NAN;
    out->token = x->token;
    out->logprob = x->logprob;
    out->top_n = x->top_n;
    for (uint32_t i = 0; i < x->top_n; i++)
        out->top[i] = (struct logprob){x->top[i].token, x->top[i].logprob};
    return STATUS_OK;
}

enum status sampler_pick(struct sampler *s, const struct sampler_input *in, struct step_sample *out)
{
    struct kern_sample_out x;
    const struct kern_sample_row row = sampler_row(in);
    sample_row(s->memory, in->logits, &row, in->tokens, &x);
    return sampler_result(&x, out);
}
