// One request as the shell keeps it, from its submission until the core forgets it: the growing
// answer, what is known of its fate, and who reads it. Readers (an SSE stream, an RPC stream, a
// waiting response) hold a place in the answer, never a copy of it.
//
//   NEW ---> OPEN ---> DONE        OPEN -> REFUSED when its deadline passed before it started
//     \--> REFUSED
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <uthash.h>

#include "coordinator/coord.h"
#include "coordinator/openai.h"
#include "coordinator/text_pool.h"

struct live;

struct reader {
    struct live *live; // NULL: reads nothing
    struct reader *prev, *next;
    void (*wake)(struct reader *r); // there may be something new
};

enum live_state { LIVE_NEW, LIVE_OPEN, LIVE_DONE, LIVE_REFUSED };

struct live {
    UT_hash_handle hh; // by request
    uint64_t request;
    enum live_state state;
    bool forgotten; // by the core
    bool restored;  // of another coordinator: clients, and this, may have more of it than its core
    struct openai_head head;
    struct answer answer;
    struct coord_submit submit; // until it was given to the core
    char tenant[LIMIT_NAME];    // the same
    struct rpc_text *stop;      // owned; what the client gave
    uint32_t stop_n;
    int32_t *prompt; // owned; the same
    uint32_t prompt_n, cached_n;
    uint32_t position, eta_ms, notices; // place in the queue; notices counts the changes
    enum finish_reason finish;
    struct openai_error *error; // owned; REFUSED, or DONE with finish ERROR or CANCELLED; else NULL
    struct reader *readers;
    struct live *dirty_next;
    bool dirty;
};

// Takes the ids over from the job. NULL: the stop strings cannot be used, and job->error says so.
struct shadow_request;
// One of another coordinator, with what it has said so far. NULL: *err says why.
struct live *live_restore(const struct model_text *model, const struct shadow_request *q,
                          struct errmsg *err);
struct live *live_create(uint64_t request, int64_t created, struct text_job *job);
void live_destroy(struct live *l);

void live_attach(struct live *l, struct reader *r);
void live_detach(struct reader *r);

// The core's actions. live_tokens returns true when a stop string ended the answer just now; its
// tokens_n says how many tokens count.
bool live_tokens(struct live *l, const struct token_out *tokens, uint32_t n);
void live_queued(struct live *l, uint32_t position, uint32_t eta_ms);
void live_done(struct live *l, enum finish_reason finish, enum status status, const char *text,
               uint32_t prompt_n, uint32_t cached_n);
void live_refused(struct live *l, enum coord_refusal reason, uint32_t retry_after_ms,
                  const char *text);

struct openai_usage live_usage(const struct live *l);
