// One shard of a model in this thread, with contexts that nobody computed, for `hadal bench decode`
// and `prefill`: the same forward pass and sampling as in serving, without scheduler and HTTP.
//
// KV pools are filled with random numbers (kern_buf_fill_noise), so a context of 32k costs nothing;
// a step's work does not depend on what keys and values say. Every step computes the last position
// of its context again, so that all steps of a case are the same case.
#pragma once

#include "node/comm_local.h"
#include "node/model/forward.h"
#include "tools/bench.h"

struct bench_engine_args {
    struct model_source source;
    const char *backend; // "cpu", "cpu-ref", "cuda"
    int threads;
    int tensors; // > 1 and no group: rank 0 of so many, alone; collectives do nothing
    int rank;    // of the group; on GPUs it computes on device rank modulo their number
    struct comm_local *group; // the ranks are threads, each with an engine of its own. Borrowed
    int max_rows, max_seqs, max_context;
    const struct bench_limits *limits; // known already; NULL: they are measured
};

struct bench_engine {
    struct bench_engine_args args;
    struct kern *kern;
    struct comm *comm;
    struct model_shard *shard;
    struct bench_limits limits;
    double load_s;                      // opening the shard
    struct kern_buf *picked;            // i32 [max_seqs] sampled tokens
    int32_t *tokens, *seq, *pos, *rows; // [max_rows]
    struct forward_seq *seqs;           // [max_seqs]
    uint32_t *blocks;
    size_t seqs_n;
    uint64_t step;
};

STATUS_MUST_USE enum status bench_engine_open(const struct bench_engine_args *args,
                                              struct bench_engine *b, struct errmsg *e);
void bench_engine_close(struct bench_engine *b); // also of a zeroed or partly opened one

// Room for `seqs` sequences of `context` tokens, filled. NO_MEMORY: the device has not that much.
STATUS_MUST_USE enum status bench_engine_contexts(struct bench_engine *b, int64_t seqs,
                                                  int64_t context, struct errmsg *e);
// One token of every sequence at the last position of its context, greedily sampled.
STATUS_MUST_USE enum status bench_engine_decode(struct bench_engine *b, int64_t context,
                                                struct errmsg *e);
// Positions [from, from + n) of sequence 0; logits of the last.
STATUS_MUST_USE enum status bench_engine_prefill(struct bench_engine *b, int64_t from, int64_t n,
                                                 struct errmsg *e);
// Different experts, shared ones among them, of the last layer with experts that the last step's
// rows went to; 0: no experts.
STATUS_MUST_USE enum status bench_engine_experts(struct bench_engine *b, int64_t rows, double *out,
                                                 struct errmsg *e);

// What a pass must move and compute on this rank, at least.
struct bench_cost {
    double bytes;      // weights in the form they are held in, and KV read and written
    double flop;       // with 16-bit or wider numbers
    double quant_flop; // with fp8 or int8 weights
};
struct bench_pass {
    double rows, logits; // rows computed; of them with logits
    double keys;         // of all rows together: what attention looks at
    double kv_read;      // tokens of KV cache that are read, each once
    double experts;      // different ones chosen in a layer; <= 0: as many as there are
    bool prefill;        // attention is counted with expanded heads, which is less work there
};
struct bench_cost bench_engine_cost(const struct bench_engine *b, const struct bench_pass *p);
// Seconds that the limits of the machine leave for it; *name_out says which of them.
double bench_engine_limit_s(const struct bench_engine *b, const struct bench_cost *c,
                            const char **name_out);
