// A request's own data and its table of states. What happens to it is decided in dispatch.c and
// lifecycle.c.
#include "coordinator/request.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

static const struct sm_state request_states[] = {
    [COORD_REQ_QUEUED] = {"queued", SM_TO(COORD_REQ_RUNNING) | SM_TO(COORD_REQ_DONE)},
    [COORD_REQ_RUNNING] = {"running", SM_TO(COORD_REQ_QUEUED) | SM_TO(COORD_REQ_MOVING) |
                                          SM_TO(COORD_REQ_CLOSING) | SM_TO(COORD_REQ_DONE)},
    [COORD_REQ_MOVING] = {"moving", SM_TO(COORD_REQ_QUEUED) | SM_TO(COORD_REQ_CLOSING) |
                                        SM_TO(COORD_REQ_DONE)},
    [COORD_REQ_CLOSING] = {"closing", SM_TO(COORD_REQ_DONE)},
    [COORD_REQ_DONE] = {"done", 0},
};
const struct sm request_sm = {"request", request_states, COORD_REQ_DONE + 1};

const char *coord_request_state_name(enum coord_request_state s)
{
    return sm_name(&request_sm, s);
}

struct request *request_create(const struct coord_submit *s, uint64_t now_us)
{
    struct request *r = mem_zalloc(1, sizeof *r);
    r->id = s->request;
    r->state = COORD_REQ_QUEUED;
    r->key = request_key(s);
    r->session = s->session;
    r->band = s->band;
    r->class = QUEUE_FAIR;
    if (s->prompt) // absent: a restored one that is finished
        r->prompt = mem_dup(s->prompt, s->prompt_n * sizeof *s->prompt);
    r->prompt_n = s->prompt_n;
    r->max_tokens = s->max_tokens;
    memcpy(r->stop_ids, s->stop_ids, s->stop_ids_n * sizeof *s->stop_ids);
    r->stop_ids_n = s->stop_ids_n;
    r->sampling = s->sampling;
    r->attached = 1;
    r->submitted_us = now_us;
    return r;
}

void request_destroy(struct request *r)
{
    assert(!r->wait.slot && !r->life.slot && !r->replica);
    free(r->prompt);
    free(r->emitted);
    free(r->text);
    free(r);
}

void request_move(struct request *r, enum coord_request_state to)
{
    r->state = sm_move(&request_sm, r->state, to);
}

enum journal_verdict request_judge(const struct request *r, uint32_t index)
{
    if (index == r->emitted_n)
        return JOURNAL_OK;
    return index < r->emitted_n ? JOURNAL_DUPLICATE : JOURNAL_GAP;
}

void request_append(struct request *r, int32_t token)
{
    MEM_GROW(r->emitted, r->emitted_n, r->emitted_cap);
    r->emitted[r->emitted_n++] = token;
}

struct journal request_journal(const struct request *r)
{
    struct journal j = {
        .request = r->id,
        .prompt = r->prompt,
        .prompt_n = r->prompt_n,
        .emitted = r->emitted,
        .emitted_n = r->emitted_n,
        .max_tokens = r->max_tokens,
        .stop_ids_n = r->stop_ids_n,
        .band = r->band,
        .sampling = r->sampling,
    };
    memcpy(j.stop_ids, r->stop_ids, sizeof j.stop_ids);
    return j;
}

uint64_t request_key(const struct coord_submit *s)
{
    enum { KEY_BLOCK = 64, KEY_BLOCKS = 4, KEY_SALT = 0x5e5510 };
    if (s->session)
        return hash_pair(KEY_SALT, s->session);
    if (!s->prompt)
        return KEY_SALT;
    if (s->prompt_n < KEY_BLOCK)
        return hash_block(0, s->prompt, s->prompt_n);
    uint64_t key = 0;
    for (uint32_t b = 0; b < KEY_BLOCKS && (b + 1) * KEY_BLOCK <= s->prompt_n; b++)
        key = hash_block(key, s->prompt + b * KEY_BLOCK, KEY_BLOCK);
    return key;
}
