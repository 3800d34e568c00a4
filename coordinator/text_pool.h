// The model's text side, and the work of turning a client's bytes into a request for the core:
// parse, chat template, tokens. All of it is pure and may run on any thread; text_pool_shell.c runs
// the long ones on worker threads.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/coord.h"
#include "coordinator/openai.h"
#include "proto/wire.h"
#include "text/template.h"
#include "text/tokenizer.h"

// A model folder as the coordinator knows it. Never changes once open.
struct model_text {
    char name[LIMIT_NAME];          // as clients call it
    struct tokenizer *tokenizer;    // owned
    struct chat_template *template; // owned
    bool thinks, opens_think;
    struct sampling defaults; // of generation_config.json
    uint32_t context;         // tokens; max_position_embeddings of config.json, 0 = not said
    int32_t stop_ids[MSG_STOP_IDS];
    uint32_t stop_ids_n;
};

// name NULL or "": the last part of `dir`.
STATUS_MUST_USE enum status model_text_open(const char *dir, const char *name,
                                            struct model_text *out, struct errmsg *err);
void model_text_close(struct model_text *m);

// What the coordinator serves; names of models differ. The first is what a request without a name gets.
struct model_alias;
struct model_set {
    const struct model_text *v[COORD_MAX_POOLS]; // borrowed
    uint32_t n;
    const struct model_alias *aliases; // borrowed
    uint32_t aliases_n;
};
const struct model_text *model_set_find(const struct model_set *m, const char *name); // NULL

enum text_source { TEXT_CHAT, TEXT_COMPLETION, TEXT_RPC };

// One request on its way in. `bytes` is a JSON body, or the body of a GENERATE frame.
struct text_job {
    const struct model_set *models; // borrowed; NULL: `model` is the only one
    const struct model_text *model; // borrowed; becomes the one that the request names
    enum text_source source;
    const char *bytes; // borrowed until the job is finished
    size_t n;
    // results of text_job_run
    struct openai_error error; // http 0: good, and the rest is filled in
    struct openai_request request;
    struct token_vec ids;
    struct sampling sampling; // with the model's defaults; seed only if it was given
    struct wire_arena arena;  // of a GENERATE
    char tenant[LIMIT_NAME];  // the caller's, for live_create; "" = of nobody
};

void text_job_run(struct text_job *job);
// A good job again, for another model.
void text_job_rerun(struct text_job *job, const struct model_text *model);
void text_job_finish(struct text_job *job);
