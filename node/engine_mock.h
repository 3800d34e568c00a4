// The mock body of engine.h: no weights, but a KV cache that counts. Row p of a sequence reads the
// hash that its block table names for position p-1, mixes in its token and writes position p; the
// token sampled from it is that hash mod vocab. So a wrong, missing or repeated token of the
// history, a block given away too early or a wrong prefix hit changes every later token, and what
// is right can be told by a plain function (mock_stream).
//
// It checks each plan as hostile (slots, contiguous positions, block tables, writers of blocks,
// prefix content, budgets); nonsense is logged and ends the step with STATUS_INTERNAL.
//
// Two worlds:
//  * virtual time: all engines of a simulation share one mock_fabric with its clock. The fabric
//    knows which ranks formed which epoch; a step is done only when every rank of it is there and
//    none hangs. The simulator polls when engine_mock_next_due has come; `wake` tells it that the
//    due time of an engine changed because of another one.
//  * real time: engine_mock_create_real. Ranks are separate processes that do not see each other
//    (the coordinator notices a dead one), and move no KV; a thread calls `wake` when poll has
//    something.
#pragma once

#include "node/engine.h"

// What a model folder of this name gives, where several versions are played. A bad one: wrong is
// another `salt`, slow a `slow` above 1, and `form_status` < 0 is what loading it ends with.
struct mock_version {
    const char *dir;
    uint64_t fingerprint, salt;
    double slow; // 0 = 1
    enum status form_status;
};

struct mock_config {
    uint32_t vocab, max_context, kv_blocks, block_tokens, max_rows, max_seqs;
    uint32_t pipeline;        // plans under way; 0 = the number of stages
    uint32_t layers;          // reported as progress
    uint64_t fingerprint;     // of the "model"
    uint64_t form_us;         // loading, until ENGINE_PREPARED
    uint64_t link_timeout_us; // ranks that have not called link by then: LINK_TIMEOUT
    uint64_t step_us, row_us; // time of one stage for a plan: step_us + rows * row_us
    uint64_t kv_setup_us;     // until a transfer's ranks are ready, or connected
    uint64_t kv_block_us;     // time of one block between replicas
    uint64_t kv_stop_us;      // a stopped transfer still moves blocks for so long
    uint64_t detect_us;       // until a dead peer or cut link is noticed
    uint64_t salt;            // of the tokens: another one, another model
    const struct mock_version *versions; // borrowed until destroy; folders not listed: as above
    uint32_t versions_n;
};
struct mock_config mock_config_default(void);

struct mock_fabric;
// The clock is called with `ctx`; it never goes back.
struct mock_fabric *mock_fabric_create(uint64_t (*now_us)(void *ctx), void *ctx);
void mock_fabric_destroy(struct mock_fabric *f); // after its engines; NULL is fine

struct engine_mock_args {
    const struct mock_config *config; // copied
    struct mock_fabric *fabric;       // borrowed until destroy; unused by create_real
    void (*wake)(void *ctx);          // see above; must only take note
    void *wake_ctx;
    const char *fault_file; // real time: see node/fault_file.h; NULL = none
};
// Virtual time. engine_ops.destroy is the crash of this rank: its peers notice after detect_us.
struct engine *engine_mock_create(const struct engine_mock_args *args);
// Real time. `wake` comes from a thread of the engine's own.
struct engine *engine_mock_create_real(const struct engine_mock_args *args);

// When poll can give something, if nothing else happens: UINT64_MAX = never. Virtual time.
uint64_t engine_mock_next_due(const struct engine *e);

// Faults, virtual time. A hung rank reports nothing and no step of its replica is done until it
// goes on. A slow one takes `factor` times as long for steps submitted from now on. A cut link
// breaks every replica that holds both, now and when formed later, until it is mended. A rank that
// lies makes every token that its replica samples from now on a wrong one (the next in the
// vocabulary).
void engine_mock_hang(struct engine *e, bool hung);
void engine_mock_slow(struct engine *e, double factor);
void engine_mock_lie(struct engine *e, bool lies);
void engine_mock_cut(struct engine *a, struct engine *b, bool cut);
// The step with this id (0 = the next submitted) ends with `status` (e.g. NODE_NAN), this rank
// suspected. On the rank that holds the lead.
void engine_mock_fail_step(struct engine *e, uint64_t step, enum status status);

// What the mock answers to a prompt: index 0, 1, 2 ... without end.
struct mock_stream {
    uint64_t hash;
    uint32_t vocab;
};
void mock_stream_init(struct mock_stream *s, const int32_t *prompt, uint32_t prompt_n,
                      uint32_t vocab);
// The same of a version with this salt.
void mock_stream_salted(struct mock_stream *s, uint64_t salt, const int32_t *prompt,
                        uint32_t prompt_n, uint32_t vocab);
int32_t mock_stream_next(struct mock_stream *s);
// The same, but the answer went on with another token.
void mock_stream_take(struct mock_stream *s, int32_t token);
// The same for one index; O(prompt_n + index).
struct mock_expected_args {
    const int32_t *prompt;
    uint32_t prompt_n, index, vocab;
};
int32_t engine_mock_expected(const struct mock_expected_args *a);
