// Shapes without weights: every published shape has the published number of parameters, and random
// weights give sane, equal logits in every layout, at every precision.
#include <math.h>

#include "base/mem.h"
#include "tests/unit/small_logits.h"

// ---- published shapes

static int64_t attention_size(const struct model_config *c)
{
    const int64_t h = c->hidden, heads = c->heads, hd = c->head_dim, kv = c->kv_heads;
    int64_t n = heads * c->v_dim * h + (c->o_bias ? h : 0);
    if (!c->mla)
        return n + hd * (heads + 2 * kv) * (h + c->qkv_bias) + (c->qk_norm ? 2 * hd : 0);
    n +=
        (c->kv_lora + c->rope_dim) * h + c->kv_lora + heads * (c->nope_dim + c->v_dim) * c->kv_lora;
    return n + (c->q_lora ? c->q_lora * (h + 1 + heads * hd) : heads * hd * h);
}

static int64_t parameters(const struct model_config *c)
{
    const int64_t h = c->hidden;
    int64_t n = c->vocab * h * (c->tied ? 1 : 2) + h;
    for (int i = 0; i < c->layers; i++) {
        const struct moe_config *m = &c->moe;
        n += 2 * h + attention_size(c);
        if (model_layer_has_experts(c, i))
            n += m->experts * h + (m->topk == MOE_GROUP_TOP2_BIASED ? m->experts : 0) +
                 3 * h * m->intermediate * (m->experts + m->shared);
        else
            n += 3 * h * c->intermediate;
    }
    return n;
}

static void test_published_shapes(void **state)
{
    static const struct {
        const char *name;
        int64_t parameters;
    } shapes[] = {
        {"deepseek-v2-lite", 15706484224},    {"deepseek-v3", 671026419200},
        {"r1-0528-qwen3-8b", 8190735360},     {"r1-distill-llama-70b", 70553706496},
        {"r1-distill-llama-8b", 8030261248},  {"r1-distill-qwen-1.5b", 1777088000},
        {"r1-distill-qwen-32b", 32763876352}, {"r1-distill-qwen-7b", 7615616512},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        char path[128];
        struct model_config c;
        struct errmsg e = {0};
        snprintf(path, sizeof path, "configs/models/%s.json", shapes[i].name);
        if (model_config_load_file(path, &c, &e) != STATUS_OK)
            fail_msg("%s", e.text);
        if (parameters(&c) != shapes[i].parameters)
            fail_msg("%s: %lld parameters, published are %lld", path, (long long)parameters(&c),
                     (long long)shapes[i].parameters);
        struct model_plan p; // splits as it is run
        assert_int_equal(model_plan_make(&c, &(struct model_rank){0, 1, 0, 1}, &p, &e), STATUS_OK);
    }
}

// ---- random weights

static char path[64];

static int write_shape(void **state)
{
    // Ragged on purpose: 200 rows of a tensor end inside a block of scales, as do the ranks' parts.
    static const char config[] =
        "{\"model_type\":\"deepseek_v3\",\"vocab_size\":300,\"hidden_size\":256,"
        "\"intermediate_size\":200,\"moe_intermediate_size\":128,\"num_hidden_layers\":3,"
        "\"num_attention_heads\":4,\"q_lora_rank\":96,\"kv_lora_rank\":64,\"qk_nope_head_dim\":32,"
        "\"qk_rope_head_dim\":16,\"v_head_dim\":32,\"n_routed_experts\":8,\"n_shared_experts\":2,"
        "\"num_experts_per_tok\":2,\"n_group\":4,\"topk_group\":2,\"first_k_dense_replace\":1,"
        "\"max_position_embeddings\":64}";
    snprintf(path, sizeof path, "/tmp/hadal-random-XXXXXX");
    int fd = mkstemp(path);
    ssize_t n = write(fd, config, sizeof config - 1);
    close(fd);
    return n == sizeof config - 1 ? 0 : -1;
}

static int remove_shape(void **state)
{
    return unlink(path);
}

static float whole[SMALL_TOKENS * SMALL_VOCAB], other[SMALL_TOKENS * SMALL_VOCAB];

static void test_random_weights(void **state)
{
    static const int layouts[][2] = {{3, 1}, {1, 2}, {1, 4}, {2, 2}};
    for (int p = MODEL_AS_PUBLISHED; p <= MODEL_INT8; p++) {
        struct model_source s = {
            .config = path, .random = true, .seed = 5, .precision = (enum model_precision)p};
        small_logits(&s, KERN_CPU, 1, 1, whole);
        double squares = 0;
        for (size_t i = 0; i < SMALL_TOKENS * SMALL_VOCAB; i++)
            squares += (double)whole[i] * whole[i];
        double deviation =
            sqrt(squares / (SMALL_TOKENS * SMALL_VOCAB)); // of logits: about 1 by construction
        if (!(deviation > 0.3 && deviation < 3))
            fail_msg("precision %d: logits have deviation %g", p, deviation);
        assert_true(memcmp(whole, whole + SMALL_VOCAB, SMALL_VOCAB * sizeof *whole) != 0);
        for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
            small_logits(&s, KERN_CPU, layouts[i][0], layouts[i][1], other);
            assert_memory_equal(other, whole, sizeof whole);
        }
        s.seed = 6;
        small_logits(&s, KERN_CPU, 1, 1, other);
        assert_true(memcmp(other, whole, sizeof whole) != 0);
    }
}

static void test_first_layers(void **state)
{
    struct model_source s = {.config = path, .random = true, .layers = 2};
    struct model_config c;
    struct errmsg e = {0};
    assert_int_equal(model_source_config(&s, &c, &e), STATUS_OK);
    assert_int_equal(c.layers, 2);
    small_logits(&s, KERN_CPU, 2, 1, whole);
    s.layers = 4;
    assert_int_equal(model_source_config(&s, &c, &e), STATUS_BAD_CONFIG);
    assert_non_null(strstr(e.text, "the model has 3"));
    enum model_precision p;
    assert_int_equal(model_precision_of("int4", &p, &e), STATUS_BAD_CONFIG);
    assert_int_equal(model_precision_of("fp8", &p, &e), STATUS_OK);
    assert_int_equal(p, MODEL_FP8);
}

static void test_fingerprints_differ(void **state)
{
    static const struct model_source sources[] = {
        {.config = path, .random = true},
        {.config = path, .random = true, .seed = 1},
        {.config = path, .random = true, .precision = MODEL_FP8},
        {.config = path, .random = true, .layers = 1},
    };
    uint64_t f[4];
    struct errmsg e = {0};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(model_fingerprint(&sources[i], NULL, &f[i], &e), STATUS_OK);
        for (int j = 0; j < i; j++)
            assert_true(f[i] != f[j]);
    }
}

static void test_what_is_quantized(void **state)
{
    static const char *const yes[] = {"self_attn.q_proj",
                                      "self_attn.q_a_proj",
                                      "self_attn.o_proj",
                                      "self_attn.kv_a_proj_with_mqa",
                                      "mlp.gate_proj",
                                      "mlp.experts.7.down_proj",
                                      "mlp.shared_experts.up_proj"};
    static const char *const no[] = {"self_attn.kv_b_proj", "mlp.gate", "input_layernorm",
                                     "self_attn.q_a_layernorm"};
    char name[128];
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        snprintf(name, sizeof name, "model.layers.3.%s.weight", yes[i]);
        assert_true(model_quantizes(name));
    }
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
        snprintf(name, sizeof name, "model.layers.3.%s.weight", no[i]);
        assert_false(model_quantizes(name));
    }
    assert_false(model_quantizes("lm_head.weight"));
    assert_false(model_quantizes("model.embed_tokens.weight"));
    assert_false(model_quantizes("model.layers.0.self_attn.q_proj.bias"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_shapes),  cmocka_unit_test(test_random_weights),
        cmocka_unit_test(test_first_layers),      cmocka_unit_test(test_fingerprints_differ),
        cmocka_unit_test(test_what_is_quantized),
    };
    return cmocka_run_group_tests_name("unit/model_random", tests, write_shape, remove_shape);
}
