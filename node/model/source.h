// Where a model comes from: a folder as published, or a shape (a config.json) whose weights are
// random numbers, made from a seed and each tensor's name. The second is for measuring: speed does
// not depend on what the weights say.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/noise.h"
#include "base/status.h"
#include "node/model/config.h"
#include "node/model/safetensors.h"

// In what the matrices of attention, MLPs and experts are kept. Embeddings, norms, router, kv_b
// (needed in bf16 for absorbed MLA) and lm_head are never quantized.
enum model_precision {
    MODEL_AS_PUBLISHED, // random weights: fp8 when config.json says so, else bf16
    MODEL_BF16,
    MODEL_FP8,
    MODEL_INT8
};

struct model_source {
    const char *dir;    // model folder; may be NULL when `config` is set and weights are random
    const char *config; // a config.json elsewhere; NULL: the folder's
    const struct st_folder *folder; // not NULL: the files are there, not in dir; needs `config`
    bool random;        // no safetensors file is read
    uint64_t seed;
    enum model_precision precision; // of random weights
    int layers;                     // only the first ones; 0 = all
};

// "bf16", "fp8", "int8"; BAD_CONFIG for other words.
STATUS_MUST_USE enum status model_precision_of(const char *word, enum model_precision *out,
                                               struct errmsg *e);

// The config of a source, with its number of layers and, for random weights, its precision.
STATUS_MUST_USE enum status model_source_config(const struct model_source *s,
                                                struct model_config *out, struct errmsg *e);

// The files of a source; *out is NULL when its weights are random.
STATUS_MUST_USE enum status model_source_open(const struct model_source *s,
                                              struct safetensors **out, struct errmsg *e);

// Names a model version: config.json, the name, type and shape of every tensor, and samples of
// their bytes (random weights: config, seed and precision). Equal on every rank and host that has
// the same source. Never 0. files: NULL when weights are random.
STATUS_MUST_USE enum status model_fingerprint(const struct model_source *s,
                                              const struct safetensors *files, uint64_t *out,
                                              struct errmsg *e);

// The same; opens the files itself.
STATUS_MUST_USE enum status model_source_fingerprint(const struct model_source *s, uint64_t *out,
                                                     struct errmsg *e);

// Whether a tensor of this name is among those that are quantized.
bool model_quantizes(const char *name);

// How tensor `name` of `cols` columns (0: a vector) is made, scaled so that activations keep their
// size from layer to layer; *dtype_out is what it is made in. c is the source's config.
struct noise model_random_tensor(const struct model_source *s, const struct model_config *c,
                                 const char *name, int64_t cols, enum st_dtype *dtype_out);
