// Quantized checkpoints: the numbers within their bounds, and a folder that is whole, loads,
// computes nearly the same, and is not there at all when something failed.
#include <dirent.h>
#include <math.h>

#include "base/mem.h"
#include "base/minifloat.h"
#include "base/prng.h"
#include "node/model/encode.h"
#include "node/model/quantize.h"
#include "tests/unit/small_logits.h"

// ---- numbers

static void test_fp8_numbers(void **state)
{
    enum { ROWS = 100, COLS = 300, BLOCKS = 3 };
    static float x[ROWS * COLS];
    static uint8_t q[ROWS * COLS];
    float scales[BLOCKS];
    struct prng r;
    prng_seed(&r, 3);
    for (size_t i = 0; i < ROWS * COLS; i++) // the second block is a thousand times larger
        x[i] = (float)((prng_unit(&r) - 0.5) * (i % COLS / 128 == 1 ? 1000 : 1));
    for (size_t i = 0; i < ROWS; i++) // and the third is all zeros
        for (size_t j = 256; j < COLS; j++)
            x[i * COLS + j] = 0;
    assert_true(encode_fp8(x, ROWS, COLS, q, scales));
    assert_true(scales[1] > 300 * scales[0] && scales[2] == 1);
    float top[BLOCKS] = {0};
    for (size_t i = 0; i < ROWS * COLS; i++) {
        const float s = scales[i % COLS / 128], y = e4m3_to_f32(q[i]) * s;
        // Half a unit of 3 bits of mantissa, or of the least subnormal.
        assert_true(fabsf(y - x[i]) <= fmaxf(fabsf(x[i]) / 16, s * 0x1p-10f) * 1.0001f);
        top[i % COLS / 128] = fmaxf(top[i % COLS / 128], fabsf(e4m3_to_f32(q[i])));
    }
    assert_true(top[0] == 448 && top[1] == 448 && top[2] == 0); // the whole range is used
    x[7] = NAN;
    assert_false(encode_fp8(x, ROWS, COLS, q, scales));
    x[7] = -INFINITY;
    assert_false(encode_fp8(x, ROWS, COLS, q, scales));
}

static void test_int8_numbers(void **state)
{
    enum { COLS = 500 };
    float x[COLS], scale;
    int8_t q[COLS];
    struct prng r;
    prng_seed(&r, 4);
    for (size_t i = 0; i < COLS; i++)
        x[i] = (float)(prng_unit(&r) - 0.5);
    x[9] = -3;
    assert_true(encode_int8(x, COLS, q, &scale));
    assert_true(fabsf(scale - 3.0f / 127) < 1e-6f && q[9] == -127);
    for (size_t i = 0; i < COLS; i++)
        assert_true(fabsf((float)q[i] * scale - x[i]) <= scale * 0.5001f);
    memset(x, 0, sizeof x);
    assert_true(encode_int8(x, COLS, q, &scale) && scale == 1 && q[0] == 0);
    x[0] = 1e-45f; // the least subnormal: its scale is rounded to itself
    assert_true(encode_int8(x, COLS, q, &scale));
    x[0] = NAN;
    assert_false(encode_int8(x, COLS, q, &scale));
}

// ---- folders

static char root[64];

static const char *in_root(const char *name)
{
    static char paths[4][128];
    static int i;
    char *p = paths[i++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", root, name);
    return p;
}

static int remove_tree(const char *dir)
{
    DIR *d = opendir(dir);
    for (const struct dirent *x; d && (x = readdir(d));) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", dir, x->d_name);
        if (strcmp(x->d_name, ".") && strcmp(x->d_name, "..") && unlink(path) != 0)
            remove_tree(path);
    }
    if (d)
        closedir(d);
    return rmdir(dir);
}

static int count_entries(const char *dir)
{
    DIR *d = opendir(dir);
    int n = -2;
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static const char config[] =
    "{\"model_type\":\"deepseek_v3\",\"vocab_size\":300,\"hidden_size\":256,"
    "\"intermediate_size\":200,\"moe_intermediate_size\":128,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"q_lora_rank\":96,\"kv_lora_rank\":64,\"qk_nope_head_dim\":32,"
    "\"qk_rope_head_dim\":16,\"v_head_dim\":32,\"n_routed_experts\":8,\"n_shared_experts\":2,"
    "\"num_experts_per_tok\":2,\"n_group\":4,\"topk_group\":2,\"first_k_dense_replace\":1,"
    "\"max_position_embeddings\":64}";

static enum status quantize(const char *from, enum model_precision to, const char *out,
                            uint64_t file_bytes, struct errmsg *e)
{
    const struct quantize_args a = {.source = {.dir = in_root(from)},
                                    .to = to,
                                    .out = in_root(out),
                                    .file_bytes = file_bytes,
                                    .threads = 3};
    return model_quantize(&a, e);
}

// A bf16 checkpoint of random weights, in files of 100 KB, with a file beside them.
static int make_model(void **state)
{
    struct errmsg e = {0};
    snprintf(root, sizeof root, "/tmp/hadal-quantize-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    write_file(root, "shape.json", config, strlen(config));
    const struct quantize_args a = {
        .source = {.config = in_root("shape.json"), .random = true, .seed = 2},
        .to = MODEL_BF16,
        .out = in_root("bf16"),
        .file_bytes = 100000};
    if (model_quantize(&a, &e) != STATUS_OK) {
        fprintf(stderr, "%s\n", e.text);
        return -1;
    }
    write_file(in_root("bf16"), "tokenizer.json", "{\"a\":1}", 7);
    return 0;
}

static int remove_model(void **state)
{
    return remove_tree(root);
}

static void compute_folder(const char *name, float out[SMALL_TOKENS * SMALL_VOCAB])
{
    small_logits(&(struct model_source){.dir = in_root(name)}, KERN_CPU, 1, 1, out);
}

// Relative distance of logits. Experts near a tie may be chosen otherwise, so bounds are loose.
static double distance(const float *a, const float *b)
{
    double d = 0, n = 0;
    for (size_t i = 0; i < SMALL_TOKENS * SMALL_VOCAB; i++) {
        d += pow((double)a[i] - b[i], 2);
        n += (double)b[i] * b[i];
    }
    return sqrt(d / n);
}

static float plain[SMALL_TOKENS * SMALL_VOCAB], other[SMALL_TOKENS * SMALL_VOCAB],
    third[SMALL_TOKENS * SMALL_VOCAB];

// What a shape's random weights are does not depend on whether a file lies between.
static void test_shape_written(void **state)
{
    assert_true(count_entries(in_root("bf16")) > 5); // several files
    compute_folder("bf16", plain);
    const struct model_source s = {.config = in_root("shape.json"), .random = true, .seed = 2};
    small_logits(&s, KERN_CPU, 1, 1, other);
    assert_true(distance(other, plain) < 1e-2); // vectors are float32 there, bf16 nowhere
}

static void test_round_trip(void **state)
{
    static const struct {
        enum model_precision to;
        const char *name, *back;
        double bound;
    } cases[] = {{MODEL_FP8, "fp8", "fp8-bf16", 0.15}, {MODEL_INT8, "int8", "int8-bf16", 0.05}};
    struct errmsg e = {0};
    compute_folder("bf16", plain);
    for (int i = 0; i < 2; i++) {
        if (quantize("bf16", cases[i].to, cases[i].name, 0, &e) != STATUS_OK ||
            quantize(cases[i].name, MODEL_BF16, cases[i].back, 0, &e) != STATUS_OK)
            fail_msg("%s", e.text);
        compute_folder(cases[i].name, other);
        double d = distance(other, plain);
        if (!(d > 1e-4 && d < cases[i].bound))
            fail_msg("%s: logits differ by %g", cases[i].name, d);
        compute_folder(cases[i].back, third);
        assert_true(distance(third, other) < 0.02);
        char text[16] = {0};
        char path[160];
        snprintf(path, sizeof path, "%s/tokenizer.json", in_root(cases[i].name));
        FILE *f = fopen(path, "r");
        assert_non_null(f);
        assert_int_equal(fread(text, 1, sizeof text, f), 7);
        fclose(f);
        assert_string_equal(text, "{\"a\":1}");
    }
}

// The same bytes, however many files they are spread over and threads made them.
static void test_files_do_not_matter(void **state)
{
    struct errmsg e = {0};
    assert_int_equal(quantize("bf16", MODEL_FP8, "one", 0, &e), STATUS_OK);
    assert_int_equal(quantize("bf16", MODEL_FP8, "many", 50000, &e), STATUS_OK);
    struct safetensors *a = NULL, *b = NULL;
    assert_int_equal(safetensors_open_dir(in_root("one"), &a, &e), STATUS_OK);
    assert_int_equal(safetensors_open_dir(in_root("many"), &b, &e), STATUS_OK);
    assert_int_equal(safetensors_count(a), safetensors_count(b));
    for (size_t i = 0; i < safetensors_count(a); i++) {
        const struct st_tensor *x = safetensors_at(a, i), *y = safetensors_at(b, i);
        assert_string_equal(x->name, y->name);
        assert_true(x->dtype == y->dtype && x->bytes == y->bytes);
        assert_memory_equal(x->data, y->data, x->bytes);
    }
    safetensors_close(a);
    safetensors_close(b);
}

static void expect_failure(enum status got, enum status want, const struct errmsg *e,
                           const char *what)
{
    assert_int_equal(got, want);
    if (!strstr(e->text, what))
        fail_msg("error '%s' lacks '%s'", e->text, what);
}

static void test_failures_leave_nothing(void **state)
{
    struct errmsg e = {0};
    assert_int_equal(quantize("bf16", MODEL_INT8, "there", 0, &e), STATUS_OK);
    const int before = count_entries(root);
    expect_failure(quantize("bf16", MODEL_FP8, "there", 0, &e), STATUS_EXISTS, &e,
                   "is there already");
    expect_failure(quantize("there", MODEL_INT8, "new", 0, &e), STATUS_BAD_CONFIG, &e,
                   "is int8 already");
    expect_failure(quantize("nowhere", MODEL_INT8, "new", 0, &e), STATUS_NOT_FOUND, &e,
                   "config.json");
    // A NaN in the middle of a matrix.
    struct safetensors *st = NULL;
    assert_int_equal(safetensors_open_dir(in_root("there"), &st, &e), STATUS_OK);
    const struct st_tensor *t = safetensors_find(st, "model.layers.0.mlp.up_proj.weight_scale");
    const float nan = NAN;
    FILE *f = fopen(t->file, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)t->file_at + 40, SEEK_SET), 0);
    assert_int_equal(fwrite(&nan, sizeof nan, 1, f), 1);
    assert_int_equal(fclose(f), 0);
    safetensors_close(st);
    expect_failure(quantize("there", MODEL_FP8, "new", 0, &e), STATUS_BAD_MODEL, &e,
                   "'model.layers.0.mlp.up_proj.weight'");
    assert_int_equal(count_entries(root), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp8_numbers),         cmocka_unit_test(test_int8_numbers),
        cmocka_unit_test(test_shape_written),       cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_files_do_not_matter), cmocka_unit_test(test_failures_leave_nothing),
    };
    return cmocka_run_group_tests_name("unit/model_quantize", tests, make_model, remove_model);
}
