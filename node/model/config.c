// Turns config.json into struct model_config. Owns the defaults and ranges of every field and the
// list of what is refused; derived values (softmax scale, YaRN's attention factor) are made here so
// that nobody else has to know which architecture does what.
#include "node/model/config.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <math.h>
#include <string.h>

#include "base/limits.h"
#include "kernels/kern.h"
#include "node/model/json_file.h"

// The values of a config class for the keys that it does not find in the file.
struct arch_defaults {
    const char *model_type, *class_name;
    int vocab, hidden, intermediate, layers, heads, kv_heads, context, bos, eos;
    int head_dim; // 0: hidden / heads
};

static const struct arch_defaults defaults[] = {
    [ARCH_DEEPSEEK_V2] = {"deepseek_v2", "DeepseekV2ForCausalLM", 32000, 4096, 11008, 32, 32, 32,
                          2048, 1, 2, 0},
    [ARCH_DEEPSEEK_V3] = {"deepseek_v3", "DeepseekV3ForCausalLM", 129280, 7168, 18432, 61, 128, 128,
                          4096, 0, 1, 0},
    [ARCH_QWEN2] = {"qwen2", "Qwen2ForCausalLM", 151936, 4096, 22016, 32, 32, 32, 32768, -1, -1, 0},
    [ARCH_LLAMA] = {"llama", "LlamaForCausalLM", 32000, 4096, 11008, 32, 32, 0, 2048, 1, 2, 0},
    [ARCH_QWEN3] = {"qwen3", "Qwen3ForCausalLM", 151936, 4096, 22016, 32, 32, 32, 32768, -1, -1,
                    128},
};

enum { ARCHS_N = sizeof defaults / sizeof *defaults };

const char *model_arch_name(enum model_arch arch)
{
    return defaults[arch].model_type;
}

bool model_layer_has_experts(const struct model_config *c, int layer)
{
    const struct moe_config *m = &c->moe;
    return m->experts > 0 && layer >= m->first_dense && layer % m->frequency == 0;
}

// Reads fields of one object and remembers the first error; later reads then do nothing, so that
// the readers below stay straight.
struct reader {
    const char *file;
    const json_t *obj;
    const char *prefix; // "" or "rope_scaling."
    struct errmsg *e;
    enum status status;
};

static const json_t *field(const struct reader *r, const char *key)
{
    const json_t *v = json_object_get(r->obj, key);
    return json_is_null(v) ? NULL : v;
}

static void fail(struct reader *r, const char *key, const char *why)
{
    if (r->status != STATUS_OK)
        return;
    const json_t *v = json_object_get(r->obj, key);
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    r->status = errmsg_set(r->e, STATUS_BAD_MODEL, "%s: %s%s = %.80s: %s", r->file, r->prefix, key,
                           text ? text : "(missing)", why);
    free(text);
}

static int read_int(struct reader *r, const char *key, int fallback, int min, int max)
{
    const json_t *v = field(r, key);
    if (!v)
        return fallback;
    // Some tools write counts as 4.0.
    double d = json_number_value(v);
    char why[96];
    snprintf(why, sizeof why, "must be an integer from %d to %d", min, max);
    if (!json_is_number(v) || d != floor(d) || d < min || d > max) {
        fail(r, key, why);
        return fallback;
    }
    return (int)d;
}

static double read_real(struct reader *r, const char *key, double fallback, double min, double max)
{
    const json_t *v = field(r, key);
    if (!v)
        return fallback;
    double d = json_number_value(v);
    char why[96];
    snprintf(why, sizeof why, "must be a number from %g to %g", min, max);
    if (!json_is_number(v) || !(d >= min && d <= max)) {
        fail(r, key, why);
        return fallback;
    }
    return d;
}

static bool read_bool(struct reader *r, const char *key, bool fallback)
{
    const json_t *v = field(r, key);
    if (!v)
        return fallback;
    if (!json_is_boolean(v))
        fail(r, key, "must be true or false");
    return json_is_true(v);
}

static const char *read_string(struct reader *r, const char *key, const char *fallback)
{
    const json_t *v = field(r, key);
    if (!v)
        return fallback;
    if (!json_is_string(v)) {
        fail(r, key, "must be a string");
        return fallback;
    }
    return json_string_value(v);
}

static void read_arch(struct reader *r, struct model_config *c)
{
    const json_t *list = field(r, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    const char *type = read_string(r, "model_type", NULL);
    for (int i = 0; i < ARCHS_N && r->status == STATUS_OK; i++)
        if (name ? !strcmp(name, defaults[i].class_name)
                 : type && !strcmp(type, defaults[i].model_type)) {
            c->arch = (enum model_arch)i;
            return;
        }
    if (r->status == STATUS_OK)
        r->status = errmsg_set(r->e, STATUS_UNKNOWN_ARCH,
                               "%s: architectures = [\"%.80s\"] (model_type %.40s): not an "
                               "architecture that Hadal computes",
                               r->file, name ? name : "(missing)", type ? type : "(missing)");
}

static void read_sizes(struct reader *r, struct model_config *c)
{
    const struct arch_defaults *d = &defaults[c->arch];
    c->vocab = read_int(r, "vocab_size", d->vocab, 1, LIMIT_VOCAB);
    c->hidden = read_int(r, "hidden_size", d->hidden, 1, 1 << 16);
    c->intermediate = read_int(r, "intermediate_size", d->intermediate, 1, 1 << 18);
    c->layers = read_int(r, "num_hidden_layers", d->layers, 1, 1024);
    c->heads = read_int(r, "num_attention_heads", d->heads, 1, 1024);
    c->kv_heads = read_int(r, "num_key_value_heads", d->kv_heads ? d->kv_heads : c->heads, 1, 1024);
    c->context = read_int(r, "max_position_embeddings", d->context, 1, 1 << 26);
    if (c->context > LIMIT_CONTEXT) // more than any sequence here may have
        c->context = LIMIT_CONTEXT;
    c->eps = read_real(r, "rms_norm_eps", 1e-6, 0, 1);
    c->tied = read_bool(r, "tie_word_embeddings", false);
    const char *act = read_string(r, "hidden_act", "silu");
    if (strcmp(act, "silu") && strcmp(act, "swish"))
        fail(r, "hidden_act", "only silu is supported");
}

static void read_plain_attention(struct reader *r, struct model_config *c)
{
    int fallback = defaults[c->arch].head_dim ? defaults[c->arch].head_dim : c->hidden / c->heads;
    c->head_dim = read_int(r, "head_dim", fallback, 2, 1024);
    if (c->head_dim < 2 || c->head_dim % 2)
        fail(r, json_object_get(r->obj, "head_dim") ? "head_dim" : "hidden_size",
             "gives a head dimension that is not even and at least 2");
    if (!field(r, "head_dim") && fallback * c->heads != c->hidden && !defaults[c->arch].head_dim)
        fail(r, "hidden_size", "must be a multiple of num_attention_heads");
    if (c->heads % c->kv_heads)
        fail(r, "num_key_value_heads", "must divide num_attention_heads");
    c->v_dim = c->head_dim;
    c->rope.dim = c->head_dim;
    c->qk_norm = c->arch == ARCH_QWEN3;
    bool bias = read_bool(r, "attention_bias", false);
    c->qkv_bias = c->arch == ARCH_QWEN2 || bias;
    c->o_bias = c->arch != ARCH_QWEN2 && bias;
    c->mlp_bias = c->arch == ARCH_LLAMA && read_bool(r, "mlp_bias", false);
    c->softmax_scale = 1.0 / sqrt(c->head_dim);
}

static void read_mla(struct reader *r, struct model_config *c)
{
    c->mla = true;
    if (field(r, "q_lora_rank") || !json_object_get(r->obj, "q_lora_rank"))
        c->q_lora = read_int(r, "q_lora_rank", 1536, 1, 1 << 16);
    c->kv_lora = read_int(r, "kv_lora_rank", 512, 1, 1 << 14);
    c->nope_dim = read_int(r, "qk_nope_head_dim", 128, 1, 1024);
    c->rope_dim = read_int(r, "qk_rope_head_dim", 64, 2, 1024);
    c->v_dim = read_int(r, "v_head_dim", 128, 1, 1024);
    if (c->rope_dim % 2)
        fail(r, "qk_rope_head_dim", "must be even");
    c->kv_heads =
        c->heads; // kv_b_proj makes keys and values for every head, whatever the file says
    if (!read_bool(r, "rope_interleave", true))
        fail(r, "rope_interleave", "only the published, interleaved form is supported");
    c->head_dim = c->nope_dim + c->rope_dim;
    c->rope.dim = c->rope_dim;
    c->qkv_bias = c->o_bias = read_bool(r, "attention_bias", false);
    c->softmax_scale = 1.0 / sqrt(c->head_dim);
}

static void read_topk_method(struct reader *r, struct model_config *c)
{
    bool v3 = c->arch == ARCH_DEEPSEEK_V3;
    const char *scoring = read_string(r, "scoring_func", v3 ? "sigmoid" : "softmax");
    const char *method = read_string(r, "topk_method", v3 ? "noaux_tc" : "greedy");
    if (strcmp(scoring, v3 ? "sigmoid" : "softmax"))
        fail(r, "scoring_func", v3 ? "only sigmoid is supported" : "only softmax is supported");
    c->moe.scoring = v3 ? MOE_SIGMOID : MOE_SOFTMAX;
    if (v3 && !strcmp(method, "noaux_tc"))
        c->moe.topk = MOE_GROUP_TOP2_BIASED;
    else if (!v3 && !strcmp(method, "greedy"))
        c->moe.topk = MOE_GREEDY;
    else if (!v3 && !strcmp(method, "group_limited_greedy"))
        c->moe.topk = MOE_GROUP_MAX;
    else
        fail(r, "topk_method",
             v3 ? "only noaux_tc is supported"
                : "only greedy and group_limited_greedy are supported");
}

static void check_groups(struct reader *r, struct moe_config *m)
{
    if (m->per_token + m->shared > KERN_TOPK_MAX)
        fail(r, "n_shared_experts", "with num_experts_per_tok must be at most 64 experts a token");
    if (m->experts + m->shared > KERN_EXPERTS_MAX)
        fail(r, "n_shared_experts", "with n_routed_experts must be at most 1024 experts");
    if (m->topk == MOE_GREEDY)
        m->groups = m->groups_per_token = 1;
    if (m->experts % m->groups)
        fail(r, "n_group", "must divide n_routed_experts");
    else if (m->groups_per_token > m->groups)
        fail(r, "topk_group", "must be at most n_group");
    else if (m->per_token > m->groups_per_token * (m->experts / m->groups))
        fail(r, "num_experts_per_tok", "must be at most the experts of topk_group groups");
    else if (m->topk == MOE_GROUP_TOP2_BIASED && m->experts / m->groups < 2)
        fail(r, "n_group", "must leave at least two experts in a group");
}

static void read_moe(struct reader *r, struct model_config *c)
{
    struct moe_config *m = &c->moe;
    bool v3 = c->arch == ARCH_DEEPSEEK_V3;
    if (field(r, "n_routed_experts") || !json_object_get(r->obj, "n_routed_experts"))
        m->experts = read_int(r, "n_routed_experts", v3 ? 256 : 64, 1, 1024);
    if (field(r, "n_shared_experts") || !json_object_get(r->obj, "n_shared_experts"))
        m->shared = read_int(r, "n_shared_experts", v3 ? 1 : 2, 0, 64);
    m->per_token = read_int(r, "num_experts_per_tok", v3 ? 8 : 6, 1, 64);
    m->groups = read_int(r, "n_group", v3 ? 8 : 1, 1, 1024);
    m->groups_per_token = read_int(r, "topk_group", v3 ? 4 : 1, 1, 1024);
    m->intermediate = read_int(r, "moe_intermediate_size", v3 ? 2048 : 1407, 1, 1 << 18);
    m->first_dense = read_int(r, "first_k_dense_replace", v3 ? 3 : 0, 0, 1024);
    m->frequency = read_int(r, "moe_layer_freq", 1, 1, 1024);
    m->normalize = read_bool(r, "norm_topk_prob", v3);
    m->routed_scale = read_real(r, "routed_scaling_factor", v3 ? 2.5 : 1.0, 1e-6, 1e6);
    if (m->experts > 0) {
        read_topk_method(r, c);
        check_groups(r, m);
    }
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

// attention_factor of Hugging Face's YaRN, with DeepSeek's ratio of mscale and mscale_all_dim;
// attn_factor (published in R1-0528-Qwen3-8B) multiplies the default, as vLLM reads it.
static void read_yarn(struct reader *r, struct rope_config *rope)
{
    rope->beta_fast = read_real(r, "beta_fast", 32, 1e-3, 1e6);
    rope->beta_slow = read_real(r, "beta_slow", 1, 1e-3, 1e6);
    rope->truncate = read_bool(r, "truncate", true);
    rope->mscale = read_real(r, "mscale", 0, 0, 100);
    rope->mscale_all_dim = read_real(r, "mscale_all_dim", 0, 0, 100);
    double fallback = rope->mscale > 0 && rope->mscale_all_dim > 0
                          ? yarn_mscale(rope->factor, rope->mscale) /
                                yarn_mscale(rope->factor, rope->mscale_all_dim)
                          : yarn_mscale(rope->factor, 1);
    fallback *= read_real(r, "attn_factor", 1, 1e-3, 1e3);
    rope->attention_factor = read_real(r, "attention_factor", fallback, 1e-3, 1e3);
}

static void read_llama3(struct reader *r, struct rope_config *rope)
{
    rope->low_freq_factor = read_real(r, "low_freq_factor", 1, 1e-3, 1e6);
    rope->high_freq_factor = read_real(r, "high_freq_factor", 4, 1e-3, 1e6);
    if (rope->high_freq_factor <= rope->low_freq_factor)
        fail(r, "high_freq_factor", "must be greater than low_freq_factor");
}

static void read_rope_type(struct reader *r, struct rope_config *rope)
{
    const char *type = read_string(r, "rope_type", NULL);
    const char *key = type ? "rope_type" : "type";
    if (!type)
        type = read_string(r, "type", "default");
    if (!strcmp(type, "default"))
        rope->type = ROPE_DEFAULT;
    else if (!strcmp(type, "linear"))
        rope->type = ROPE_LINEAR;
    else if (!strcmp(type, "yarn"))
        rope->type = ROPE_YARN;
    else if (!strcmp(type, "llama3"))
        rope->type = ROPE_LLAMA3;
    else
        fail(r, key, "unknown rope type; default, linear, yarn and llama3 are supported");
}

static void read_rope_scaling(struct reader *r, struct model_config *c)
{
    struct rope_config *rope = &c->rope;
    read_rope_type(r, rope);
    rope->theta = read_real(r, "rope_theta", rope->theta, 2, 1e12);
    if (r->status != STATUS_OK || rope->type == ROPE_DEFAULT)
        return;
    rope->original_context =
        read_int(r, "original_max_position_embeddings", c->context, 1, LIMIT_CONTEXT);
    double ratio = (double)c->context / rope->original_context;
    rope->factor = read_real(r, "factor", ratio, 1, 1e6);
    if (rope->type == ROPE_YARN)
        read_yarn(r, rope);
    if (rope->type == ROPE_LLAMA3)
        read_llama3(r, rope);
}

// rope_scaling (and a rope_theta beside it) until transformers 4, rope_parameters since 5.
static void read_rope(struct reader *r, struct model_config *c)
{
    struct rope_config *rope = &c->rope;
    rope->factor = rope->attention_factor = 1;
    rope->theta = read_real(r, "rope_theta", 10000, 2, 1e12);
    if (read_real(r, "partial_rotary_factor", 1, 0, 1) != 1)
        fail(r, "partial_rotary_factor", "only 1 is supported");
    const char *key = field(r, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    const json_t *obj = field(r, key);
    if (!obj || r->status != STATUS_OK)
        return;
    if (!json_is_object(obj)) {
        fail(r, key, "must be an object");
        return;
    }
    char prefix[32];
    snprintf(prefix, sizeof prefix, "%s.", key);
    struct reader sub = {r->file, obj, prefix, r->e, STATUS_OK};
    read_rope_scaling(&sub, c);
    r->status = sub.status;
    if (c->mla && rope->type != ROPE_DEFAULT && rope->mscale_all_dim > 0) {
        double m = yarn_mscale(rope->factor, rope->mscale_all_dim);
        c->softmax_scale *= m * m;
    }
}

static void refuse_sliding_window(struct reader *r, const struct model_config *c)
{
    const json_t *types = field(r, "layer_types"), *t;
    size_t i;
    json_array_foreach((json_t *)types, i, t)
    {
        if (json_is_string(t) && strcmp(json_string_value(t), "full_attention"))
            fail(r, "layer_types", "only full_attention is supported");
    }
    int window = read_int(r, "sliding_window", 0, 0, INT_MAX);
    if (!types && window && read_bool(r, "use_sliding_window", false) &&
        read_int(r, "max_window_layers", 28, 0, INT_MAX) < c->layers)
        fail(r, "use_sliding_window", "sliding-window attention is not supported");
}

// DeepSeek's own: e4m3 with a scale (weight_scale_inv) per block of the matrix.
static void read_fp8(struct reader *r, struct model_config *c)
{
    const char *fmt = read_string(r, "fmt", "e4m3");
    if (strcmp(fmt, "e4m3"))
        fail(r, "fmt", "only e4m3 is supported");
    const json_t *block = field(r, "weight_block_size");
    for (size_t i = 0; i < 2; i++) {
        json_int_t n = json_integer_value(json_array_get(block, i));
        if (block && (json_array_size(block) != 2 || n < 1 || n > 1 << 16))
            fail(r, "weight_block_size", "must be two numbers from 1 to 65536");
        c->fp8_block[i] = block && r->status == STATUS_OK ? (int)n : 128;
    }
}

// One member of a group: 8-bit integers, symmetric, a scale per `strategy`.
static void read_int8_args(struct reader *r, const json_t *group, const char *name,
                           const char *strategy)
{
    char prefix[64];
    const json_t *args = json_object_get(group, name);
    snprintf(prefix, sizeof prefix, "quantization_config.%s.", name);
    struct reader sub = {r->file, args, prefix, r->e, r->status};
    if (!json_is_object(args))
        fail(&sub, "num_bits", "8 is needed");
    if (read_int(&sub, "num_bits", 0, 0, 64) != 8)
        fail(&sub, "num_bits", "only 8 is supported");
    if (strcmp(read_string(&sub, "type", ""), "int"))
        fail(&sub, "type", "only int is supported");
    if (strcmp(read_string(&sub, "strategy", ""), strategy))
        fail(&sub, "strategy",
             *strategy == 'c' ? "only channel is supported" : "only token is supported");
    if (!read_bool(&sub, "symmetric", true))
        fail(&sub, "symmetric", "only symmetric numbers are supported");
    r->status = sub.status;
}

// The layout of the compressed-tensors library for 8-bit weights and activations: I8 matrices with
// a scale (weight_scale) per row, activations quantized per token as they come.
static void read_int8(struct reader *r, struct model_config *c)
{
    const json_t *groups = field(r, "config_groups");
    const char *format = read_string(r, "format", "");
    if (strcmp(format, "int-quantized"))
        fail(r, "format", "only int-quantized is supported");
    if (json_object_size(groups) != 1) {
        fail(r, "config_groups", "must hold one group");
        return;
    }
    const json_t *group = json_object_iter_value(json_object_iter((json_t *)groups));
    read_int8_args(r, group, "weights", "channel");
    read_int8_args(r, group, "input_activations", "token");
    c->int8 = true;
}

static void read_quantization(struct reader *r, struct model_config *c)
{
    const json_t *q = field(r, "quantization_config");
    if (!q)
        return;
    struct reader sub = {r->file, q, "quantization_config.", r->e, r->status};
    const char *method = read_string(&sub, "quant_method", "");
    if (!strcmp(method, "fp8"))
        read_fp8(&sub, c);
    else if (!strcmp(method, "compressed-tensors"))
        read_int8(&sub, c);
    else
        fail(&sub, "quant_method", "only fp8 and compressed-tensors (int8) are supported");
    r->status = sub.status;
}

static void add_eos(struct reader *r, struct model_config *c, const json_t *v)
{
    // -1 was never a token, but some published files say it.
    if (!json_is_integer(v) || json_integer_value(v) < -1 || json_integer_value(v) >= LIMIT_VOCAB) {
        fail(r, "eos_token_id", "must be token ids");
        return;
    }
    int id = (int)json_integer_value(v);
    for (int i = 0; i < c->eos_n; i++)
        if (c->eos[i] == id)
            return;
    if (c->eos_n == CONFIG_EOS_MAX)
        fail(r, "eos_token_id", "has more than 16 ids");
    else if (id >= 0)
        c->eos[c->eos_n++] = id;
}

static void read_eos(struct reader *r, struct model_config *c)
{
    const json_t *v = field(r, "eos_token_id");
    if (json_is_array(v)) {
        const json_t *id;
        size_t i;
        json_array_foreach((json_t *)v, i, id)
        {
            add_eos(r, c, id);
        }
    } else if (v) {
        add_eos(r, c, v);
    }
}

static void read_config(struct reader *r, struct model_config *c)
{
    read_arch(r, c);
    if (r->status != STATUS_OK)
        return;
    read_sizes(r, c);
    if (r->status != STATUS_OK)
        return;
    if (c->arch == ARCH_DEEPSEEK_V2 || c->arch == ARCH_DEEPSEEK_V3) {
        read_mla(r, c);
        read_moe(r, c);
    } else {
        read_plain_attention(r, c);
    }
    read_rope(r, c);
    refuse_sliding_window(r, c);
    read_quantization(r, c);
    c->bos = read_int(r, "bos_token_id", defaults[c->arch].bos, -1, LIMIT_VOCAB);
    read_eos(r, c);
    if (!json_object_get(r->obj, "eos_token_id") && defaults[c->arch].eos >= 0)
        c->eos[c->eos_n++] = defaults[c->arch].eos;
}

// More end-of-sequence ids: chat models end an answer with a token that config.json does not name.
static enum status read_generation(const char *dir, struct model_config *c, struct errmsg *e)
{
    char path[JSON_FILE_PATH];
    json_t *root = NULL;
    enum status s = json_file_path(path, dir, "generation_config.json", e);
    if (s == STATUS_OK)
        s = json_file_load(path, &root, e);
    if (s == STATUS_NOT_FOUND)
        return STATUS_OK;
    if (s != STATUS_OK)
        return s;
    struct reader r = {path, root, "", e, STATUS_OK};
    read_eos(&r, c);
    json_decref(root);
    return r.status;
}

enum status model_config_load_file(const char *path, struct model_config *out, struct errmsg *e)
{
    json_t *root = NULL;
    enum status s = json_file_load(path, &root, e);
    if (s != STATUS_OK)
        return s;
    struct model_config c = {0};
    struct reader r = {path, root, "", e, STATUS_OK};
    read_config(&r, &c);
    json_decref(root);
    if (r.status == STATUS_OK)
        *out = c;
    return r.status;
}

enum status model_config_load(const char *dir, struct model_config *out, struct errmsg *e)
{
    char path[JSON_FILE_PATH];
    struct model_config c;
    enum status s = json_file_path(path, dir, "config.json", e);
    if (s == STATUS_OK)
        s = model_config_load_file(path, &c, e);
    if (s == STATUS_OK)
        s = read_generation(dir, &c, e);
    if (s == STATUS_OK)
        *out = c;
    return s;
}
