// What a model is: config.json (and generation_config.json) of a Hugging Face folder, as published
// by DeepSeek-V2, V3, R1 and R1's Qwen2, Qwen3 and Llama distillations, with the old and the new
// names of fields. Missing keys take the defaults of the Hugging Face config class of the
// architecture. Every number is checked against a range; what cannot be computed here is refused by
// name.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum model_arch { ARCH_DEEPSEEK_V2, ARCH_DEEPSEEK_V3, ARCH_QWEN2, ARCH_LLAMA, ARCH_QWEN3 };

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_YARN, ROPE_LLAMA3 };

struct rope_config {
    enum rope_type type;
    double theta;
    int dim;                                  // rotated dimensions of a head, even
    double factor;                            // 1 when the type is default
    int original_context;                     // yarn, llama3
    double beta_fast, beta_slow;              // yarn
    bool truncate;                            // yarn: correction range rounded to integers
    double mscale, mscale_all_dim;            // yarn, 0 = absent
    double attention_factor;                  // yarn: multiplies cos and sin; always set
    double low_freq_factor, high_freq_factor; // llama3
};

enum moe_scoring { MOE_SOFTMAX, MOE_SIGMOID };
enum moe_topk { MOE_GREEDY, MOE_GROUP_MAX, MOE_GROUP_TOP2_BIASED };

struct moe_config {
    int experts; // 0: no layer has experts
    int shared;  // experts that every token passes; 0 = none
    int per_token;
    int groups, groups_per_token; // 1, 1 when experts are not grouped
    int intermediate;             // of one expert
    int first_dense;              // layers before this one have a dense MLP
    int frequency;                // of the others every frequency-th (by layer number) has experts
    enum moe_scoring scoring;
    enum moe_topk topk;
    bool normalize; // weights of the chosen experts sum to 1 before scaling
    double routed_scale;
};

enum { CONFIG_EOS_MAX = 16 };

struct model_config {
    enum model_arch arch;
    int vocab, hidden, layers, intermediate, context;
    int heads, kv_heads; // MLA: kv_heads == heads
    int head_dim;        // of queries and keys; MLA: nope + rope
    int v_dim;           // of values
    bool mla;
    int q_lora; // 0: queries are projected in one step
    int kv_lora, nope_dim, rope_dim;
    bool qk_norm;  // qwen3
    bool qkv_bias; // MLA: of q_a_proj and kv_a_proj
    bool o_bias, mlp_bias;
    bool tied; // lm_head is the embedding
    double eps;
    double softmax_scale; // with YaRN's mscale squared where the architecture asks for it
    struct rope_config rope;
    struct moe_config moe;
    int fp8_block[2]; // rows, columns of a scale of fp8 weights; {0, 0}: none are fp8
    bool int8;        // some weights are int8 with a scale per row
    int bos;          // -1 = none
    int eos[CONFIG_EOS_MAX];
    int eos_n;
};

// Reads DIR/config.json and, when it exists, DIR/generation_config.json. Errors name file, field,
// value. UNKNOWN_ARCH: an architecture that Hadal does not compute.
STATUS_MUST_USE enum status model_config_load(const char *dir, struct model_config *out,
                                              struct errmsg *e);
// One config.json by its path, wherever it lies.
STATUS_MUST_USE enum status model_config_load_file(const char *path, struct model_config *out,
                                                   struct errmsg *e);

const char *model_arch_name(enum model_arch arch); // "deepseek_v3", ...
bool model_layer_has_experts(const struct model_config *c, int layer);
