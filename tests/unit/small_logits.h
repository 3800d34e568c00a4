// Logits of a small model of SMALL_VOCAB tokens, as one replica in this process makes them.
// Included once per program, like model_fixture.h, which it brings.
#pragma once

#include "tests/unit/model_fixture.h"
#include "tools/local_replica.h"

enum { SMALL_TOKENS = 24, SMALL_VOCAB = 300 };

static inline void small_logits(const struct model_source *source, enum kern_backend backend,
                                int stages, int tensors, float out[SMALL_TOKENS * SMALL_VOCAB])
{
    struct local_replica_args a = {.source = *source,
                                   .stages = stages,
                                   .tensors = tensors,
                                   .backend = backend,
                                   .threads = 2,
                                   .max_seqs = 1,
                                   .max_rows = SMALL_TOKENS,
                                   .max_logits = SMALL_TOKENS};
    struct local_replica *r = NULL;
    struct errmsg e = {0};
    if (local_replica_open(&a, &r, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    int32_t ids[SMALL_TOKENS], seq[SMALL_TOKENS] = {0}, pos[SMALL_TOKENS];
    for (int i = 0; i < SMALL_TOKENS; i++) {
        ids[i] = i * 31 % SMALL_VOCAB;
        pos[i] = i;
    }
    struct local_batch b = {SMALL_TOKENS, ids, seq, pos, pos, SMALL_TOKENS};
    if (local_replica_run(r, &b, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    for (size_t i = 0; i < SMALL_TOKENS; i++)
        assert_int_equal(local_replica_logits(r, i, out + i * SMALL_VOCAB), STATUS_OK);
    local_replica_close(r);
}
