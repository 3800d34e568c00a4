// Models of odd sizes with random weights: nothing divides anything, biases everywhere, one kv
// head, no shared experts, every other layer dense, tied embeddings, mixed dtypes. Every layout
// must give the bits of the undivided model, and the fast kernels what the reference kernels give.
#include <math.h>

#include "base/mem.h"
#include "base/prng.h"
#include "tests/unit/model_fixture.h"
#include "tools/local_replica.h"

enum { TOKENS = 40 };

static char dir[64];

static int make_dir(void **state)
{
    snprintf(dir, sizeof dir, "/tmp/hadal-shape-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    remove_file(dir, "config.json");
    remove_file(dir, "model.safetensors");
    return rmdir(dir);
}

// A checkpoint being written: header and data grow together.
struct checkpoint {
    struct strbuf header, data;
    struct prng random;
    int layer;
};

static void add(struct checkpoint *c, const char *name, int rows, int cols)
{
    const bool is_norm = strstr(name, "norm"), f32 = strstr(name, "e_score") || strstr(name, "up_");
    size_t n = (size_t)rows * (size_t)(cols ? cols : 1), at = c->data.n;
    for (size_t i = 0; i < n; i++) {
        float v = (float)((prng_unit(&c->random) - 0.5) * (cols ? 1 : 0.3)) + (is_norm ? 1 : 0);
        uint32_t u;
        memcpy(&u, &v, sizeof u);
        uint16_t half = (uint16_t)(u >> 16);
        strbuf_add(&c->data, f32 ? (const void *)&v : &half, f32 ? 4 : 2);
    }
    strbuf_printf(&c->header, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%d", c->header.n ? ',' : '{',
                  name, f32 ? "F32" : "BF16", rows);
    if (cols)
        strbuf_printf(&c->header, ",%d", cols);
    strbuf_printf(&c->header, "],\"data_offsets\":[%zu,%zu]}", at, c->data.n);
}

static void add_layer(struct checkpoint *c, const char *part, int rows, int cols)
{
    char name[128];
    snprintf(name, sizeof name, "model.layers.%d.%s", c->layer, part);
    add(c, name, rows, cols);
}

// PREFIX.weight, and PREFIX.bias when asked for.
static void add_linear(struct checkpoint *c, const char *prefix, int rows, int cols, bool bias)
{
    char part[96];
    snprintf(part, sizeof part, "%s.weight", prefix);
    add_layer(c, part, rows, cols);
    snprintf(part, sizeof part, "%s.bias", prefix);
    if (bias)
        add_layer(c, part, rows, 0);
}

static void add_mlp(struct checkpoint *c, const char *prefix, int hidden, int inter, bool bias)
{
    char part[80];
    snprintf(part, sizeof part, "%s.gate_proj", prefix);
    add_linear(c, part, inter, hidden, bias);
    snprintf(part, sizeof part, "%s.up_proj", prefix);
    add_linear(c, part, inter, hidden, bias);
    snprintf(part, sizeof part, "%s.down_proj", prefix);
    add_linear(c, part, hidden, inter, bias);
}

static void add_gqa(struct checkpoint *c, const struct model_config *m)
{
    const int hd = m->head_dim, h = m->hidden;
    add_linear(c, "self_attn.q_proj", m->heads * hd, h, m->qkv_bias);
    add_linear(c, "self_attn.k_proj", m->kv_heads * hd, h, m->qkv_bias);
    add_linear(c, "self_attn.v_proj", m->kv_heads * hd, h, m->qkv_bias);
    if (m->qk_norm) {
        add_layer(c, "self_attn.q_norm.weight", hd, 0);
        add_layer(c, "self_attn.k_norm.weight", hd, 0);
    }
}

static void add_mla(struct checkpoint *c, const struct model_config *m)
{
    const int h = m->hidden, q = m->heads * m->head_dim, kv = m->kv_lora + m->rope_dim;
    if (m->q_lora) {
        add_linear(c, "self_attn.q_a_proj", m->q_lora, h, m->qkv_bias);
        add_layer(c, "self_attn.q_a_layernorm.weight", m->q_lora, 0);
        add_linear(c, "self_attn.q_b_proj", q, m->q_lora, false);
    } else {
        add_linear(c, "self_attn.q_proj", q, h, false);
    }
    add_linear(c, "self_attn.kv_a_proj_with_mqa", kv, h, m->qkv_bias);
    add_layer(c, "self_attn.kv_a_layernorm.weight", m->kv_lora, 0);
    add_linear(c, "self_attn.kv_b_proj", m->heads * (m->nope_dim + m->v_dim), m->kv_lora, false);
}

static void add_experts(struct checkpoint *c, const struct model_config *m)
{
    add_linear(c, "mlp.gate", m->moe.experts, m->hidden, false);
    if (m->arch == ARCH_DEEPSEEK_V3)
        add_layer(c, "mlp.gate.e_score_correction_bias", m->moe.experts, 0);
    for (int e = 0; e < m->moe.experts; e++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "mlp.experts.%d", e);
        add_mlp(c, prefix, m->hidden, m->moe.intermediate, false);
    }
    if (m->moe.shared)
        add_mlp(c, "mlp.shared_experts", m->hidden, m->moe.intermediate * m->moe.shared, false);
}

static void write_model(const char *config)
{
    struct model_config m;
    struct errmsg e = {0};
    struct checkpoint c = {0};
    write_file(dir, "config.json", config, strlen(config));
    if (model_config_load(dir, &m, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    prng_seed(&c.random, 11);
    add(&c, "model.embed_tokens.weight", m.vocab, m.hidden);
    add(&c, "model.norm.weight", m.hidden, 0);
    if (!m.tied)
        add(&c, "lm_head.weight", m.vocab, m.hidden);
    for (c.layer = 0; c.layer < m.layers; c.layer++) {
        add_layer(&c, "input_layernorm.weight", m.hidden, 0);
        if (m.mla)
            add_mla(&c, &m);
        else
            add_gqa(&c, &m);
        add_linear(&c, "self_attn.o_proj", m.hidden, m.heads * m.v_dim, m.o_bias);
        add_layer(&c, "post_attention_layernorm.weight", m.hidden, 0);
        if (model_layer_has_experts(&m, c.layer))
            add_experts(&c, &m);
        else
            add_mlp(&c, "mlp", m.hidden, m.intermediate, m.mlp_bias);
    }
    strbuf_puts(&c.header, "}");
    struct strbuf file = {0};
    uint64_t n = c.header.n; // little-endian, as all hosts of Hadal
    strbuf_add(&file, &n, sizeof n);
    strbuf_add(&file, c.header.v, c.header.n);
    strbuf_add(&file, c.data.v, c.data.n);
    write_file(dir, "model.safetensors", file.v, file.n);
    strbuf_finish(&file);
    strbuf_finish(&c.header);
    strbuf_finish(&c.data);
}

// [TOKENS][vocab], owned by the caller.
static float *compute(enum kern_backend backend, int stages, int tensors, int chunk, size_t *n_out)
{
    struct local_replica_args a = {.source = {.dir = dir},
                                   .stages = stages,
                                   .tensors = tensors,
                                   .backend = backend,
                                   .threads = 2,
                                   .max_seqs = 1,
                                   .max_rows = TOKENS,
                                   .max_logits = TOKENS};
    struct local_replica *r = NULL;
    struct errmsg e = {0};
    if (local_replica_open(&a, &r, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    const size_t vocab = (size_t)local_replica_config(r)->vocab;
    float *out = mem_alloc(TOKENS * vocab * sizeof *out);
    int32_t ids[TOKENS], seq[TOKENS] = {0}, pos[TOKENS], rows[TOKENS];
    for (int i = 0; i < TOKENS; i++) {
        ids[i] = i * 31 % (int)vocab;
        pos[i] = rows[i] = i;
    }
    for (int i = 0; i < TOKENS; i += chunk) {
        size_t n = (size_t)(TOKENS - i < chunk ? TOKENS - i : chunk);
        struct local_batch b = {n, ids + i, seq, pos + i, rows, n};
        if (local_replica_run(r, &b, &e) != STATUS_OK)
            fail_msg("%s", e.text);
        for (size_t j = 0; j < n; j++)
            assert_int_equal(local_replica_logits(r, j, out + ((size_t)i + j) * vocab), STATUS_OK);
    }
    local_replica_close(r);
    *n_out = TOKENS * vocab;
    return out;
}

static void check_model(const char *config, const int (*layouts)[2], int layouts_n)
{
    write_model(config);
    size_t n;
    float *whole = compute(KERN_CPU, 1, 1, TOKENS, &n), *ref = compute(KERN_CPU_REF, 1, 1, 9, &n);
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += pow((double)whole[i] - ref[i], 2);
        norm += (double)ref[i] * ref[i];
    }
    assert_true(norm > 0 && sqrt(d / norm) < 1e-4);
    for (int i = 0; i < layouts_n; i++) {
        float *split = compute(KERN_CPU, layouts[i][0], layouts[i][1], 7 + i, &n);
        assert_memory_equal(split, whole, n * sizeof *split);
        free(split);
    }
    free(whole);
    free(ref);
}

static void test_llama_biases(void **state)
{
    check_model("{\"model_type\":\"llama\",\"vocab_size\":517,\"hidden_size\":90,"
                "\"intermediate_size\":101,\"num_hidden_layers\":3,\"num_attention_heads\":6,"
                "\"num_key_value_heads\":3,\"head_dim\":26,\"attention_bias\":true,"
                "\"mlp_bias\":true,\"max_position_embeddings\":64}",
                (const int[][2]){{1, 2}, {3, 1}, {2, 3}, {1, 6}}, 4);
}

static void test_llama_tied_one_kv_head(void **state)
{
    check_model("{\"model_type\":\"llama\",\"vocab_size\":97,\"hidden_size\":60,"
                "\"intermediate_size\":77,\"num_hidden_layers\":2,\"num_attention_heads\":6,"
                "\"num_key_value_heads\":1,\"tie_word_embeddings\":true,"
                "\"max_position_embeddings\":64,"
                "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}",
                (const int[][2]){{2, 1}, {1, 2}, {1, 3}}, 3);
}

static void test_qwen3(void **state)
{
    check_model("{\"model_type\":\"qwen3\",\"vocab_size\":99,\"hidden_size\":50,"
                "\"intermediate_size\":71,\"num_hidden_layers\":3,\"num_attention_heads\":6,"
                "\"num_key_value_heads\":2,\"head_dim\":14,\"max_position_embeddings\":64}",
                (const int[][2]){{1, 2}, {2, 6}}, 2);
}

static void test_v2_without_q_lora(void **state)
{
    check_model("{\"model_type\":\"deepseek_v2\",\"vocab_size\":103,\"hidden_size\":50,"
                "\"intermediate_size\":41,\"moe_intermediate_size\":17,\"num_hidden_layers\":4,"
                "\"num_attention_heads\":3,\"q_lora_rank\":null,\"kv_lora_rank\":37,"
                "\"qk_nope_head_dim\":13,\"qk_rope_head_dim\":6,\"v_head_dim\":11,"
                "\"n_routed_experts\":6,\"n_shared_experts\":null,\"num_experts_per_tok\":2,"
                "\"n_group\":2,\"topk_group\":1,\"topk_method\":\"group_limited_greedy\","
                "\"first_k_dense_replace\":1,\"moe_layer_freq\":2,\"max_position_embeddings\":64}",
                (const int[][2]){{4, 1}, {1, 2}, {2, 3}}, 3);
}

static void test_v3_biases(void **state)
{
    check_model("{\"model_type\":\"deepseek_v3\",\"vocab_size\":131,\"hidden_size\":66,"
                "\"intermediate_size\":45,\"moe_intermediate_size\":19,\"num_hidden_layers\":3,"
                "\"num_attention_heads\":6,\"q_lora_rank\":29,\"kv_lora_rank\":45,"
                "\"qk_nope_head_dim\":20,\"qk_rope_head_dim\":10,\"v_head_dim\":22,"
                "\"n_routed_experts\":10,\"n_shared_experts\":2,\"num_experts_per_tok\":3,"
                "\"n_group\":2,\"topk_group\":1,\"first_k_dense_replace\":1,"
                "\"attention_bias\":true,\"max_position_embeddings\":64}",
                (const int[][2]){{1, 2}, {3, 3}}, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_biases), cmocka_unit_test(test_llama_tied_one_kv_head),
        cmocka_unit_test(test_qwen3),        cmocka_unit_test(test_v2_without_q_lora),
        cmocka_unit_test(test_v3_biases),
    };
    return cmocka_run_group_tests_name("unit/model_shapes", tests, make_dir, remove_dir);
}
