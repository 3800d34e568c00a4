// Reading of model folders: safetensors and config.json that are right in all their published
// forms, and a table of wrong ones, each with the one error it must give.
#include <math.h>

#include "base/mem.h"
#include "node/comm.h"
#include "node/model/config.h"
#include "node/model/rope.h"
#include "node/model/safetensors.h"
#include "node/model/shard.h"
#include "node/model/stages.h"
#include "node/model/tensor.h"
#include "tests/unit/model_fixture.h"

static char dir[64];

static int make_dir(void **state)
{
    snprintf(dir, sizeof dir, "/tmp/hadal-model-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    static const char *const names[] = {"config.json",       "generation_config.json",
                                        "model.safetensors", "a.safetensors",
                                        "b.safetensors",     "model.safetensors.index.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        remove_file(dir, names[i]);
    return rmdir(dir);
}

// ---- safetensors ----

static void write_st(const char *name, uint64_t header_n, const char *header, size_t data_n)
{
    size_t n = strlen(header);
    uint8_t *file = mem_zalloc(8 + n + data_n, 1);
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)(header_n >> (8 * i));
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < data_n; i++)
        file[8 + n + i] = (uint8_t)i;
    write_file(dir, name, file, 8 + n + data_n);
    free(file);
}

static void expect_error(enum status got, const struct errmsg *e, const char *file,
                         const char *what)
{
    assert_true(got < 0);
    if (!strstr(e->text, file) || !strstr(e->text, what))
        fail_msg("error '%s' lacks '%s' or '%s'", e->text, file, what);
}

#define T(name, dtype, shape, begin, end)                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end   \
    "]}"

static void test_good_files(void **state)
{
    const char *header =
        "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "F32", "[2]", "4", "12") "," T(
            "a", "BF16", "[1,2]", "0", "4") "," T("e", "I64", "[0,7]", "12", "12") "}  ";
    write_st("model.safetensors", strlen(header), header, 12);
    struct safetensors *st = NULL;
    struct errmsg e = {0};
    assert_int_equal(safetensors_open_dir(dir, &st, &e), STATUS_OK);
    assert_int_equal(safetensors_count(st), 3);
    const struct st_tensor *b = safetensors_find(st, "b");
    assert_true(b && b->dtype == ST_F32 && b->dims_n == 1 && b->shape[0] == 2);
    assert_int_equal(((const uint8_t *)b->data)[0], 4);
    assert_null(safetensors_find(st, "c"));
    safetensors_close(st);
}

static void test_bad_files(void **state)
{
    static const struct {
        const char *header;
        uint64_t header_n; // 0 = its length
        size_t data_n;
        const char *what;
    } cases[] = {
        {"{" T("t", "F32", "[2]", "0", "8") "}", 0, 7, "'t': data_offsets [0, 8] outside"},
        {"{" T("t", "F32", "[2]", "0", "8") "}", 0, 9, "1 bytes behind the last tensor"},
        {"{" T("t", "F32", "[2]", "0", "4") "}", 0, 8, "'t': data_offsets span 4 bytes"},
        {"{" T("t", "F32", "[2]", "8", "0") "}", 0, 8, "'t': data_offsets [8, 0]"},
        {"{" T("t", "F32", "[2]", "-8", "0") "}", 0, 8, "'t': data_offsets"},
        {"{" T("t", "F32", "[2]", "0", "9223372036854775807") "}", 0, 8, "'t': data_offsets"},
        {"{" T("t", "F32", "[2]", "0", "99999999999999999999") "}", 0, 8, "header is not valid"},
        {"{" T("t", "F32", "[4294967296,4294967296]", "0", "8") "}", 0, 8, "'t': shape overflows"},
        {"{" T("t", "F32", "[-2]", "0", "8") "}", 0, 8, "'t': shape[0]"},
        {"{" T("t", "F32", "[2.5]", "0", "8") "}", 0, 8, "'t': shape[0]"},
        {"{" T("t", "F32", "[1,1,1,1,1,1,1,1,2]", "0", "8") "}", 0, 8, "'t': shape"},
        {"{" T("t", "F31", "[2]", "0", "8") "}", 0, 8, "'t': unknown dtype 'F31'"},
        {"{\"t\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 0, 8, "'t': dtype"},
        {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 0, 8, "'t': shape"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2]}}", 0, 8, "'t': data_offsets"},
        {"{\"t\":7}", 0, 0, "'t': not an object"},
        {"{" T("t", "F32", "[2]", "0", "8") "," T("u", "F32", "[2]", "4", "12") "}", 0, 12,
         "'u': data_offsets overlap"},
        {"{" T("t", "F32", "[2]", "0", "8") "," T("u", "F32", "[2]", "12", "20") "}", 0, 20,
         "'u': data_offsets leave a hole"},
        {"{" T("t", "F32", "[2]", "0", "8") "," T("t", "F32", "[2]", "8", "16") "}", 0, 16,
         "header is not valid JSON"},
        {"{\"t\":", 0, 0, "header is not valid JSON"},
        {"[]", 0, 0, "no JSON object"},
        {"{}", 1000, 0, "header length 1000"},
        {"{}", UINT64_MAX, 0, "header length 18446744073709551615"},
        {"{}", UINT64_MAX - 7, 0, "header length"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t n = cases[i].header_n ? cases[i].header_n : strlen(cases[i].header);
        write_st("model.safetensors", n, cases[i].header, cases[i].data_n);
        struct safetensors *st = NULL;
        struct errmsg e = {0};
        expect_error(safetensors_open_dir(dir, &st, &e), &e, "model.safetensors", cases[i].what);
        assert_null(st);
    }
    struct safetensors *st = NULL;
    struct errmsg e = {0};
    write_file(dir, "model.safetensors", "1234567", 7);
    expect_error(safetensors_open_dir(dir, &st, &e), &e, "model.safetensors", "7 bytes, too short");
}

static void test_sharded(void **state)
{
    static const struct {
        const char *index, *what;
    } cases[] = {
        {"{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"b.safetensors\"}}", NULL},
        {"{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"c.safetensors\"}}",
         "names c.safetensors"},
        {"{\"weight_map\":{\"x\":\"a.safetensors\",\"z\":\"b.safetensors\"}}", "'z'"},
        {"{\"weight_map\":{\"x\":\"b.safetensors\",\"y\":\"a.safetensors\"}}", "'x'"},
        {"{\"weight_map\":{\"x\":\"../a.safetensors\"}}", "'x'"},
        {"{\"weight_map\":{\"x\":3}}", "'x'"},
        {"{\"weight_map\":7}", "weight_map"},
        {"{}", "weight_map"},
        {"{\"weight_map\":", "not valid JSON"},
        {"[]", "not a JSON object"},
    };
    const char *x = "{" T("x", "U8", "[3]", "0", "3") "}",
               *y = "{" T("y", "U8", "[2]", "0", "2") "}";
    remove_file(dir, "model.safetensors");
    write_st("a.safetensors", strlen(x), x, 3);
    write_st("b.safetensors", strlen(y), y, 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(dir, "model.safetensors.index.json", cases[i].index, strlen(cases[i].index));
        struct safetensors *st = NULL;
        struct errmsg e = {0};
        enum status s = safetensors_open_dir(dir, &st, &e);
        if (cases[i].what)
            expect_error(s, &e, "model.safetensors.index.json", cases[i].what);
        else
            assert_int_equal(s, STATUS_OK);
        safetensors_close(st);
    }
    remove_file(dir, "model.safetensors.index.json");
    struct safetensors *st = NULL;
    struct errmsg e = {0};
    assert_int_equal(safetensors_open_dir(dir, &st, &e), STATUS_OK); // every *.safetensors
    assert_int_equal(safetensors_count(st), 2);
    safetensors_close(st);
    write_st("b.safetensors", strlen(x), x, 3);
    st = NULL;
    expect_error(safetensors_open_dir(dir, &st, &e), &e, "b.safetensors", "'x' is in two files");
    remove_file(dir, "a.safetensors");
    remove_file(dir, "b.safetensors");
    expect_error(safetensors_open_dir(dir, &st, &e), &e, dir, "holds neither");
}

// ---- config.json ----

static enum status load_config(const char *json, struct model_config *c, struct errmsg *e)
{
    write_file(dir, "config.json", json, strlen(json));
    return model_config_load(dir, c, e);
}

static struct model_config good_config(const char *json)
{
    struct model_config c = {0};
    struct errmsg e = {0};
    if (load_config(json, &c, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    return c;
}

#define ARCH(name) "\"architectures\":[\"" name "\"]"

static void test_defaults(void **state)
{
    struct model_config c = good_config("{" ARCH("DeepseekV3ForCausalLM") "}");
    assert_true(c.arch == ARCH_DEEPSEEK_V3 && c.mla && c.q_lora == 1536 && c.layers == 61);
    assert_true(c.moe.experts == 256 && c.moe.normalize && c.moe.shared == 1);
    assert_true(c.moe.topk == MOE_GROUP_TOP2_BIASED && c.eos_n == 1 && c.eos[0] == 1);
    assert_false(model_layer_has_experts(&c, 2));
    assert_true(model_layer_has_experts(&c, 3));
    c = good_config("{\"model_type\":\"deepseek_v2\",\"q_lora_rank\":null,"
                    "\"n_shared_experts\":null,\"moe_layer_freq\":2,\"first_k_dense_replace\":1}");
    assert_true(c.arch == ARCH_DEEPSEEK_V2 && c.q_lora == 0 && c.moe.shared == 0);
    assert_true(model_layer_has_experts(&c, 2) && !model_layer_has_experts(&c, 3));
    c = good_config("{" ARCH("Qwen2ForCausalLM") ",\"num_key_value_heads\":4}");
    assert_true(c.qkv_bias && !c.o_bias && c.head_dim == 128 && c.kv_heads == 4 && c.eos_n == 0);
    c = good_config(
        "{" ARCH("LlamaForCausalLM") ",\"attention_bias\":true,\"mlp_bias\":true,"
                                     "\"eos_token_id\":[7,8,7],\"tie_word_embeddings\":true}");
    assert_true(c.qkv_bias && c.o_bias && c.mlp_bias && c.kv_heads == 32 && c.tied);
    assert_true(c.eos_n == 2 && c.eos[1] == 8);
    c = good_config("{" ARCH("Qwen3ForCausalLM") ",\"quantization_config\":null}");
    assert_true(c.qk_norm && c.head_dim == 128 && !c.qkv_bias && c.fp8_block[0] == 0);
    write_file(dir, "generation_config.json", "{\"eos_token_id\":[9,7]}", 22);
    c = good_config("{" ARCH("LlamaForCausalLM") ",\"eos_token_id\":7}");
    assert_true(c.eos_n == 2 && c.eos[0] == 7 && c.eos[1] == 9);
    remove_file(dir, "generation_config.json");
}

static void test_rope_names(void **state)
{
    static const char *const same[] = {
        "\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,"
        "\"original_max_position_embeddings\":64,\"low_freq_factor\":1,\"high_freq_factor\":4}",
        "\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
        "\"original_max_position_embeddings\":64,\"low_freq_factor\":1,\"high_freq_factor\":4}",
        "\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"llama3\",\"factor\":8,"
        "\"original_max_position_embeddings\":64,\"low_freq_factor\":1,\"high_freq_factor\":4}",
    };
    for (int i = 0; i < 3; i++) {
        char json[600];
        snprintf(json, sizeof json, "{%s,%s}", ARCH("LlamaForCausalLM"), same[i]);
        struct model_config c = good_config(json);
        assert_true(c.rope.type == ROPE_LLAMA3 && c.rope.theta == 5e5 && c.rope.factor == 8);
        assert_int_equal(c.rope.original_context, 64);
    }
    struct model_config c = good_config("{" ARCH("Qwen3ForCausalLM") ",\"rope_scaling\":null}");
    assert_true(c.rope.type == ROPE_DEFAULT && c.rope.theta == 10000);
    c = good_config(
        "{" ARCH("Qwen3ForCausalLM") ",\"rope_scaling\":{\"rope_type\":\"yarn\","
                                     "\"factor\":4,\"original_max_position_embeddings\":8192}}");
    assert_float_equal(c.rope.attention_factor, 0.1 * log(4) + 1, 1e-9);
    c = good_config("{" ARCH("DeepseekV3ForCausalLM") ",\"rope_scaling\":{\"type\":\"yarn\","
                                                      "\"factor\":40,\"original_max_position_"
                                                      "embeddings\":4096,\"mscale\":1.0,"
                                                      "\"mscale_all_dim\":1.0}}");
    double m = 0.1 * log(40) + 1;
    assert_float_equal(c.rope.attention_factor, 1, 1e-9);
    assert_float_equal(c.softmax_scale, m * m / sqrt(192), 1e-9);
}

// Frequencies of each kind at the ends, where they are known in closed form.
static void test_rope_tables(void **state)
{
    struct rope_config r = {.theta = 10000,
                            .dim = 64,
                            .factor = 4,
                            .attention_factor = 2,
                            .original_context = 4096,
                            .beta_fast = 32,
                            .beta_slow = 1,
                            .truncate = true,
                            .low_freq_factor = 1,
                            .high_freq_factor = 4};
    float f[32], table[3 * 64];
    const double last = pow(10000, -62.0 / 64);
    r.type = ROPE_LINEAR;
    rope_inv_freq(&r, f);
    assert_float_equal(f[0], 0.25, 1e-7);
    r.type = ROPE_YARN;
    rope_inv_freq(&r, f);
    assert_float_equal(f[0], 1, 1e-7);
    assert_float_equal(f[31], last / 4, 1e-10);
    r.type = ROPE_LLAMA3;
    rope_inv_freq(&r, f);
    assert_float_equal(f[0], 1, 1e-7);
    assert_float_equal(f[31], last / 4, 1e-10);
    r.type = ROPE_DEFAULT;
    r.factor = 1;
    rope_table(&r, 3, table);
    assert_float_equal(table[2 * 64], 2 * cos(2), 1e-6);
    assert_float_equal(table[2 * 64 + 32], 2 * sin(2), 1e-6);
    assert_float_equal(table[0], 2, 0);
}

static void test_bad_configs(void **state)
{
    static const struct {
        const char *json, *what;
    } cases[] = {
        {"{\"architectures\":[\"GPT2LMHeadModel\"]}", "GPT2LMHeadModel"},
        {"{}", "architectures"},
        {"{\"architectures\":7,\"model_type\":\"mamba\"}", "mamba"},
        {"{\"model_type\":5}", "model_type"},
        {"not json", "line 1"},
        {"{" ARCH("LlamaForCausalLM") ",\"hidden_size\":-1}", "hidden_size = -1"},
        {"{" ARCH("LlamaForCausalLM") ",\"hidden_size\":1e300}", "hidden_size = 1"},
        {"{" ARCH("LlamaForCausalLM") ",\"hidden_size\":\"big\"}", "hidden_size = \"big\""},
        {"{" ARCH("LlamaForCausalLM") ",\"vocab_size\":2000000000}", "vocab_size"},
        {"{" ARCH("LlamaForCausalLM") ",\"num_hidden_layers\":0}", "num_hidden_layers = 0"},
        {"{" ARCH("LlamaForCausalLM") ",\"num_key_value_heads\":5}", "num_key_value_heads = 5"},
        {"{" ARCH("LlamaForCausalLM") ",\"num_attention_heads\":33}", "hidden_size"},
        {"{" ARCH("LlamaForCausalLM") ",\"head_dim\":63}", "head_dim = 63"},
        {"{" ARCH("LlamaForCausalLM") ",\"rms_norm_eps\":-1}", "rms_norm_eps = -1"},
        {"{" ARCH("LlamaForCausalLM") ",\"hidden_act\":\"gelu\"}", "hidden_act = \"gelu\""},
        {"{" ARCH("LlamaForCausalLM") ",\"tie_word_embeddings\":1}", "tie_word_embeddings = 1"},
        {"{" ARCH("LlamaForCausalLM") ",\"eos_token_id\":[1,\"x\"]}", "eos_token_id"},
        {"{" ARCH("LlamaForCausalLM") ",\"rope_theta\":0}", "rope_theta = 0"},
        {"{" ARCH("LlamaForCausalLM") ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}",
         "rope_scaling.type = \"dynamic\""},
        {"{" ARCH("LlamaForCausalLM") ",\"rope_parameters\":{\"rope_type\":\"longrope\"}}",
         "rope_parameters.rope_type = \"longrope\""},
        {"{" ARCH("LlamaForCausalLM") ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}",
         "rope_scaling.factor = 0"},
        {"{" ARCH("LlamaForCausalLM") ",\"rope_scaling\":[]}", "rope_scaling = []"},
        {"{" ARCH("Qwen2ForCausalLM") ",\"use_sliding_window\":true,\"sliding_window\":64,"
                                      "\"max_window_layers\":2}",
         "use_sliding_window"},
        {"{" ARCH("Qwen3ForCausalLM") ",\"layer_types\":[\"sliding_attention\"]}", "layer_types"},
        {"{" ARCH("Qwen3ForCausalLM") ",\"quantization_config\":{\"quant_method\":\"awq\"}}",
         "quantization_config.quant_method = \"awq\""},
        {"{" ARCH("DeepseekV3ForCausalLM") ",\"quantization_config\":{\"quant_method\":\"fp8\","
                                           "\"weight_block_size\":[0,128]}}",
         "weight_block_size"},
#define INT8(format, weights, activations)                                                         \
    "{" ARCH("Qwen3ForCausalLM") ",\"quantization_config\":{\"quant_method\":"                     \
                                 "\"compressed-tensors\",\"format\":\"" format                     \
                                 "\",\"config_groups\":{\"group_0\":{\"weights\":{" weights        \
                                 "},\"input_activations\":{" activations "}}}}}"
#define EIGHT "\"num_bits\":8,\"type\":\"int\","
        {INT8("pack-quantized", "", ""), "quantization_config.format = \"pack-quantized\""},
        {INT8("int-quantized", "", ""), "quantization_config.weights.num_bits = (missing)"},
        {INT8("int-quantized", "\"num_bits\":4", ""), "weights.num_bits = 4"},
        {INT8("int-quantized", "\"num_bits\":8,\"type\":\"float\"", ""),
         "weights.type = \"float\""},
        {INT8("int-quantized", EIGHT "\"strategy\":\"group\"", ""), "weights.strategy = \"group\""},
        {INT8("int-quantized", EIGHT "\"strategy\":\"channel\",\"symmetric\":false", ""),
         "weights.symmetric = false"},
        {INT8("int-quantized", EIGHT "\"strategy\":\"channel\"", EIGHT "\"strategy\":\"tensor\""),
         "input_activations.strategy = \"tensor\""},
        {"{" ARCH("Qwen3ForCausalLM") ",\"quantization_config\":{\"quant_method\":"
                                      "\"compressed-tensors\",\"format\":\"int-quantized\"}}",
         "config_groups = (missing)"},
#undef EIGHT
#undef INT8
        {"{" ARCH("DeepseekV3ForCausalLM") ",\"n_group\":7}", "n_group = 7"},
        {"{" ARCH("DeepseekV3ForCausalLM") ",\"topk_group\":9}", "topk_group = 9"},
        {"{" ARCH("DeepseekV3ForCausalLM") ",\"n_routed_experts\":8,\"num_experts_per_tok\":9}",
         "num_experts_per_tok = 9"},
        {"{" ARCH("DeepseekV3ForCausalLM") ",\"topk_method\":\"greedy\"}", "topk_method"},
        {"{" ARCH("DeepseekV2ForCausalLM") ",\"scoring_func\":\"sigmoid\"}", "scoring_func"},
        {"{" ARCH("DeepseekV2ForCausalLM") ",\"moe_layer_freq\":0}", "moe_layer_freq = 0"},
        {"{" ARCH("DeepseekV2ForCausalLM") ",\"qk_rope_head_dim\":17}", "qk_rope_head_dim = 17"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_config c;
        struct errmsg e = {0};
        expect_error(load_config(cases[i].json, &c, &e), &e, "config.json", cases[i].what);
    }
}

// ---- splitting and loading ----

static void test_plans(void **state)
{
    struct model_config c =
        good_config("{" ARCH("Qwen2ForCausalLM") ",\"vocab_size\":513,\"hidden_size\":96,"
                                                 "\"intermediate_size\":100,\"num_hidden_layers\":"
                                                 "7,\"num_attention_heads\":8,"
                                                 "\"num_key_value_heads\":2}");
    struct model_plan p;
    struct errmsg e = {0};
    int next = 0;
    for (int s = 0; s < 3; s++) { // layers are dealt out completely and in order
        assert_int_equal(model_plan_make(&c, &(struct model_rank){s, 3, 0, 1}, &p, &e), STATUS_OK);
        assert_int_equal(p.layer_first, next);
        next += p.layers_n;
    }
    assert_int_equal(next, 7);
    assert_int_equal(model_plan_make(&c, &(struct model_rank){0, 1, 1, 2}, &p, &e), STATUS_OK);
    assert_true(p.vocab.part == 257 && p.vocab.first == 257 && p.vocab.n == 256);
    assert_true(p.heads.n == 4 && p.kv_heads.n == 1 && p.kv_heads.first == 1);
    // More ranks than kv heads: two ranks share one.
    assert_int_equal(model_plan_make(&c, &(struct model_rank){0, 1, 1, 4}, &p, &e), STATUS_OK);
    assert_true(p.heads.n == 2 && p.heads.first == 2 && p.kv_heads.first == 0);
    expect_error(model_plan_make(&c, &(struct model_rank){0, 1, 0, 3}, &p, &e), &e, "",
                 "num_key_value_heads = 2");
    // Rows of an fp8 model in whole blocks: 1408 = 11 blocks over two ranks; where a rank would get
    // none, as of 100, evenly.
    struct model_config f = c;
    f.fp8_block[0] = f.fp8_block[1] = 128;
    f.hidden = 1408;
    assert_int_equal(model_plan_make(&f, &(struct model_rank){0, 1, 1, 2}, &p, &e), STATUS_OK);
    assert_true(p.hidden.part == 768 && p.hidden.first == 768 && p.hidden.n == 640);
    assert_true(p.inter.part == 50 && p.inter.first == 50 && p.inter.n == 50);
    expect_error(model_plan_make(&c, &(struct model_rank){0, 8, 0, 1}, &p, &e), &e, "",
                 "num_hidden_layers = 7");
    expect_error(model_plan_make(&c, &(struct model_rank){0, 1, 2, 2}, &p, &e), &e, "",
                 "no rank (0, 2)");
}

// Layers of each stage.
static void expect_stages(const struct model_config *c, int stages, const int *layers)
{
    int first[LIMIT_STAGES + 1];
    model_stages(c, stages, first);
    assert_int_equal(first[0], 0);
    assert_int_equal(first[stages], c->layers);
    for (int s = 0; s < stages; s++)
        assert_int_equal(first[s + 1] - first[s], layers[s]);
}

static void test_stages(void **state)
{
    struct model_config c;
    struct errmsg e = {0};
    // The head weighs as much as 2.4 of Llama-8B's layers: 9 of four stages is the least.
    assert_int_equal(model_config_load_file("configs/models/r1-distill-llama-8b.json", &c, &e),
                     STATUS_OK);
    expect_stages(&c, 1, (const int[]){32});
    expect_stages(&c, 2, (const int[]){17, 15});
    expect_stages(&c, 4, (const int[]){9, 8, 9, 6});
    expect_stages(&c, 32, (const int[]){1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
    // Three of V3's layers are dense and light.
    assert_int_equal(model_config_load_file("configs/models/deepseek-v3.json", &c, &e), STATUS_OK);
    expect_stages(&c, 2, (const int[]){32, 29});
    expect_stages(&c, 4, (const int[]){17, 15, 15, 14});
}

// However it is asked: every stage has a layer, none more than the least that the heaviest needs.
static void test_stages_of_any_shape(void **state)
{
    struct model_config c =
        good_config("{" ARCH("Qwen2ForCausalLM") ",\"vocab_size\":513,\"hidden_size\":96,"
                                                 "\"intermediate_size\":100,\"num_hidden_layers\":"
                                                 "7,\"num_attention_heads\":8,"
                                                 "\"num_key_value_heads\":2}");
    for (c.vocab = 2; c.vocab < 1 << 20; c.vocab *= 3)
        for (c.layers = 1; c.layers < 70; c.layers++)
            for (int stages = 1; stages <= c.layers && stages <= LIMIT_STAGES; stages++) {
                int first[LIMIT_STAGES + 1];
                model_stages(&c, stages, first);
                assert_true(first[0] == 0 && first[stages] == c.layers);
                for (int s = 0; s < stages; s++)
                    assert_true(first[s] < first[s + 1]);
            }
}

static enum status open_shard(struct errmsg *e)
{
    struct kern *k = NULL;
    struct model_shard *s = NULL;
    assert_int_equal(kern_open(KERN_CPU, &(struct kern_config){.threads = 1}, &k, NULL), STATUS_OK);
    struct model_shard_args a = {.source = {.dir = dir},
                                 .rank = {0, 1, 0, 1},
                                 .kern = k,
                                 .max_rows = 4,
                                 .max_seqs = 1,
                                 .max_context = 16,
                                 .kv_blocks = 1};
    enum status st = model_shard_open(&a, &s, e);
    model_shard_close(s);
    kern_close(k);
    return st;
}

// A whole model of one layer, hidden 4; `from` (may be NULL) is replaced by `to` in the header.
static void write_tiny(const char *from, const char *to)
{
    static const struct {
        const char *name, *shape;
        int n;
    } tensors[] = {
        {"lm_head.weight", "[8,4]", 32},
        {"model.embed_tokens.weight", "[8,4]", 32},
        {"model.layers.0.input_layernorm.weight", "[4]", 4},
        {"model.layers.0.mlp.down_proj.weight", "[4,6]", 24},
        {"model.layers.0.mlp.gate_proj.weight", "[6,4]", 24},
        {"model.layers.0.mlp.up_proj.weight", "[6,4]", 24},
        {"model.layers.0.post_attention_layernorm.weight", "[4]", 4},
        {"model.layers.0.self_attn.k_proj.weight", "[2,4]", 8},
        {"model.layers.0.self_attn.o_proj.weight", "[4,4]", 16},
        {"model.layers.0.self_attn.q_proj.weight", "[4,4]", 16},
        {"model.layers.0.self_attn.v_proj.weight", "[2,4]", 8},
        {"model.norm.weight", "[4]", 4},
    };
    struct strbuf h = {0};
    size_t at = 0;
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        size_t end = at + (size_t)tensors[i].n * 2;
        strbuf_printf(&h, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                      i ? "," : "{", tensors[i].name, tensors[i].shape, at, end);
        at = end;
    }
    strbuf_puts(&h, "}");
    const char *hit = from ? strstr(h.v, from) : NULL;
    assert_true(!from || hit);
    struct strbuf out = {0};
    strbuf_add(&out, h.v, hit ? (size_t)(hit - h.v) : h.n);
    if (hit) {
        strbuf_puts(&out, to);
        strbuf_puts(&out, hit + strlen(from));
    }
    write_st("model.safetensors", out.n, out.v, at);
    strbuf_finish(&h);
    strbuf_finish(&out);
}

static void test_wrong_tensors(void **state)
{
    static const char config[] =
        "{" ARCH("LlamaForCausalLM") ",\"vocab_size\":8,\"hidden_size\":4,"
                                     "\"intermediate_size\":6,\"num_hidden_layers\":1,\"num_"
                                     "attention_heads\":2,"
                                     "\"num_key_value_heads\":1}";
    static const struct {
        const char *from, *to, *what;
    } cases[] = {
        {"self_attn.k_proj", "self_attn.kk_proj",
         "'model.layers.0.self_attn.k_proj.weight' is missing"},
        {"model.norm.weight", "model.morn.weight", "'model.norm.weight' is missing"},
        {"lm_head.weight", "lm_heap.weight", "'lm_head.weight' is missing"},
        {"up_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[6,4]",
         "up_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[4,6]",
         "up_proj.weight': shape [4, 6], config.json asks for [6, 4]"},
        {"\"shape\":[4]", "\"shape\":[4,1]", "shape [4, 1], config.json asks for [4]"},
        {"q_proj.weight\":{\"dtype\":\"BF16\"", "q_proj.weight\":{\"dtype\":\"I16\"",
         "q_proj.weight': dtype I16"},
        {"o_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[4,4]",
         "o_proj.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[4,8]", "o_proj.weight': shape [4, 8]"},
        {"down_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[4,6]",
         "down_proj.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[8,6]", "down_proj.weight': shape"},
    };
    struct errmsg e = {0};
    write_file(dir, "config.json", config, strlen(config));
    write_tiny(NULL, NULL);
    if (open_shard(&e) != STATUS_OK)
        fail_msg("%s", e.text);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_tiny(cases[i].from, cases[i].to);
        expect_error(open_shard(&e), &e, "model.safetensors", cases[i].what);
    }
    remove_file(dir, "config.json");
    expect_error(open_shard(&e), &e, "config.json", "No such file");
}

// A file that is cut short between being checked and being read.
static void test_cut_short(void **state)
{
    struct errmsg e = {0};
    struct safetensors *st = NULL;
    write_tiny(NULL, NULL);
    assert_int_equal(safetensors_open_dir(dir, &st, &e), STATUS_OK);
    const struct st_tensor *t = safetensors_find(st, "model.norm.weight");
    struct tensor tensor = {.dtype = t->dtype, .rows = 1, .cols = 4, .st = t};
    uint16_t v[4];
    assert_int_equal(tensor_read(&tensor, 0, 1, v, &e), STATUS_OK);
    assert_memory_equal(v, t->data, sizeof v);
    assert_int_equal(truncate(t->file, (off_t)t->file_at + 2), 0);
    expect_error(tensor_read(&tensor, 0, 1, v, &e), &e, "model.safetensors",
                 "'model.norm.weight': the file was cut short");
    safetensors_close(st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_files),    cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_sharded),       cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_rope_names),    cmocka_unit_test(test_rope_tables),
        cmocka_unit_test(test_bad_configs),   cmocka_unit_test(test_plans),
        cmocka_unit_test(test_stages),        cmocka_unit_test(test_stages_of_any_shape),
        cmocka_unit_test(test_wrong_tensors), cmocka_unit_test(test_cut_short),
    };
    return cmocka_run_group_tests_name("unit/model_files", tests, make_dir, remove_dir);
}
