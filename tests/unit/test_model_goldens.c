// The forward pass against reference logits of eight small models of all architectures, and the
// sample model against its recorded answers: right, and the same bits in every layout and chunking.
#include <math.h>

#include "base/mem.h"
#include "node/model/json_file.h"
#include "node/model/safetensors.h"
#include "tests/unit/model_fixture.h"
#include "tools/local_replica.h"

enum { MAX_ERROR_PPM = 2000, PROMPT = 32, GREEDY = 32 };

static struct local_replica *open_replica(const char *dir, int stages, int tensors)
{
    struct local_replica_args a = {.source = {.dir = dir},
                                   .stages = stages,
                                   .tensors = tensors,
                                   .backend = KERN_CPU,
                                   .max_context = 512,
                                   .max_seqs = 2,
                                   .max_rows = 256,
                                   .max_logits = 256};
    struct local_replica *r = NULL;
    struct errmsg e = {0};
    if (local_replica_open(&a, &r, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    return r;
}

// Rows [from, from + n) of sequence `slot`, with the logits of all: out [n][vocab].
static void run_rows(struct local_replica *r, int32_t slot, const int32_t *ids, int from, int n,
                     float *out)
{
    int32_t seq[256], pos[256], rows[256];
    for (int i = 0; i < n; i++) {
        seq[i] = slot;
        pos[i] = from + i;
        rows[i] = i;
    }
    struct local_batch b = {(size_t)n, ids + from, seq, pos, rows, (size_t)n};
    struct errmsg e = {0};
    if (local_replica_run(r, &b, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    size_t vocab = (size_t)local_replica_config(r)->vocab;
    for (size_t i = 0; i < (size_t)n; i++)
        assert_int_equal(local_replica_logits(r, i, out + i * vocab), STATUS_OK);
}

static float *all_logits(struct local_replica *r, int32_t slot, const int32_t *ids, int n,
                         int chunk)
{
    size_t vocab = (size_t)local_replica_config(r)->vocab;
    float *out = mem_alloc((size_t)n * vocab * sizeof *out);
    for (int i = 0; i < n; i += chunk)
        run_rows(r, slot, ids, i, n - i < chunk ? n - i : chunk, out + (size_t)i * vocab);
    return out;
}

static int32_t argmax(const float *v, int n)
{
    int32_t best = 0;
    for (int i = 1; i < n; i++)
        best = v[i] > v[best] ? i : best;
    return best;
}

static double relative_error(const float *x, const float *ref, size_t n)
{
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)x[i] - ref[i]) * ((double)x[i] - ref[i]);
        norm += (double)ref[i] * ref[i];
    }
    return sqrt(d / norm);
}

struct golden {
    struct safetensors *st;
    const int32_t *ids, *greedy; // [2][n], [2][32]: continuations of the first 32 of each row
    const float *logits;         // [n][vocab] of row 0
    int n, vocab;
};

static void open_golden(const char *dir, struct golden *g)
{
    char path[FIXTURE_PATH + 32];
    struct errmsg e;
    snprintf(path, sizeof path, "%s/reference.safetensors", dir);
    if (safetensors_open_file(path, &g->st, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    const struct st_tensor *ids = safetensors_find(g->st, "input_ids");
    const struct st_tensor *logits = safetensors_find(g->st, "logits");
    const struct st_tensor *greedy = safetensors_find(g->st, "greedy_ids");
    assert_true(ids && logits && greedy && greedy->shape[1] == GREEDY);
    g->ids = mem_dup(ids->data, ids->bytes); // aligned
    g->logits = mem_dup(logits->data, logits->bytes);
    g->greedy = mem_dup(greedy->data, greedy->bytes);
    g->n = (int)logits->shape[1];
    g->vocab = (int)logits->shape[2];
}

static void close_golden(struct golden *g)
{
    free((void *)g->ids);
    free((void *)g->logits);
    free((void *)g->greedy);
    safetensors_close(g->st);
}

// Both rows' prompts prefilled, then decoded side by side.
static void check_greedy(struct local_replica *r, const struct golden *g)
{
    int32_t next[2], seq[2] = {0, 1}, pos[2], rows[2] = {0, 1};
    float *logits = mem_alloc((size_t)PROMPT * (size_t)g->vocab * sizeof *logits);
    for (int i = 0; i < 2; i++) {
        run_rows(r, i, g->ids + i * g->n, 0, PROMPT, logits);
        next[i] = argmax(logits + (PROMPT - 1) * g->vocab, g->vocab);
    }
    for (int t = 0; t < GREEDY; t++) {
        for (int i = 0; i < 2; i++) {
            assert_int_equal(next[i], g->greedy[i * GREEDY + t]);
            pos[i] = PROMPT + t;
        }
        struct local_batch b = {2, next, seq, pos, rows, 2};
        assert_int_equal(local_replica_run(r, &b, NULL), STATUS_OK);
        for (size_t i = 0; i < 2; i++) {
            assert_int_equal(local_replica_logits(r, i, logits), STATUS_OK);
            next[i] = argmax(logits, g->vocab);
        }
    }
    free(logits);
}

static void check_golden(const char *name)
{
    static const int layouts[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}};
    char dir[FIXTURE_PATH], folder[64];
    snprintf(folder, sizeof folder, "goldens/%s", name);
    if (!shared_path(dir, folder))
        skip();
    struct golden g;
    open_golden(dir, &g);
    const size_t n = (size_t)g.n * (size_t)g.vocab;
    float *first = NULL;
    for (int i = 0; i < 4; i++) {
        struct local_replica *r = open_replica(dir, layouts[i][0], layouts[i][1]);
        float *whole = all_logits(r, 0, g.ids, g.n, g.n);
        float *chunked = all_logits(r, 1, g.ids, g.n, 7);
        if (!first) {
            first = mem_dup(whole, n * sizeof *whole);
            double error = relative_error(whole, g.logits, n);
            printf("%s: relative error %.2e\n", name, error);
            assert_true(error <= MAX_ERROR_PPM * 1e-6);
        }
        assert_memory_equal(whole, first, n * sizeof *whole);
        assert_memory_equal(chunked, first, n * sizeof *whole);
        check_greedy(r, &g);
        free(whole);
        free(chunked);
        local_replica_close(r);
    }
    free(first);
    close_golden(&g);
}

#define GOLDEN(fn, name)                                                                           \
    static void fn(void **state)                                                                   \
    {                                                                                              \
        check_golden(name);                                                                        \
    }
GOLDEN(test_deepseek_v2, "deepseek-v2")
GOLDEN(test_deepseek_v2_lite, "deepseek-v2-lite")
GOLDEN(test_deepseek_v3, "deepseek-v3")
GOLDEN(test_deepseek_v3_fp8, "deepseek-v3-fp8")
GOLDEN(test_deepseek_v3_real_heads, "deepseek-v3-real-heads")
GOLDEN(test_qwen3, "r1-0528-qwen3")
GOLDEN(test_llama, "r1-distill-llama")
GOLDEN(test_qwen2, "r1-distill-qwen2")

static int read_ids(const json_t *list, int32_t *out, int max)
{
    int n = (int)json_array_size(list);
    assert_in_range(n, 1, max);
    for (int i = 0; i < n; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    return n;
}

// Prompt i of reference.json continues to greedy_ids; logits_i are those behind the prompt.
static void check_answer(struct local_replica *r, const json_t *v, const struct st_tensor *ref)
{
    enum { VOCAB = 4096 };
    static float logits[256 * VOCAB];
    static float want[VOCAB];
    int32_t ids[512], greedy[400];
    int n = read_ids(json_object_get(v, "prompt_ids"), ids, 100);
    int out_n = read_ids(json_object_get(v, "greedy_ids"), greedy, 400);
    assert_true(ref && ref->bytes == sizeof want);
    memcpy(want, ref->data, sizeof want);
    run_rows(r, 0, ids, 0, n, logits);
    const float *row = logits + (n - 1) * VOCAB;
    assert_true(relative_error(row, want, VOCAB) < 1e-4);
    for (int i = 0; i < out_n; i++) {
        ids[n + i] = argmax(row, VOCAB);
        assert_int_equal(ids[n + i], greedy[i]);
        run_rows(r, 0, ids, n + i, 1, logits);
        row = logits;
    }
}

static void test_sample_model(void **state)
{
    json_error_t je;
    json_t *root = json_load_file("models/sample/reference.json", 0, &je);
    struct safetensors *st = NULL;
    struct errmsg e;
    assert_non_null(root);
    assert_int_equal(safetensors_open_file("models/sample/reference.safetensors", &st, &e),
                     STATUS_OK);
    struct local_replica *r = open_replica("models/sample", 2, 2);
    for (size_t i = 0; i < json_array_size(root); i++) {
        char name[32];
        snprintf(name, sizeof name, "logits_%zu", i);
        check_answer(r, json_array_get(root, i), safetensors_find(st, name));
    }
    local_replica_close(r);
    safetensors_close(st);
    json_decref(root);
}

// A row's logits do not depend on what else is in the batch, nor on which rows' logits are asked.
static void test_batch_does_not_matter(void **state)
{
    enum { N = 40, VOCAB = 4096 };
    struct local_replica *r = open_replica("models/sample", 1, 1);
    int32_t a[N], tokens[2 * N], seq[2 * N], pos[2 * N];
    for (int i = 0; i < N; i++) {
        a[i] = (i * 37 + 5) % VOCAB;
        tokens[2 * i] = a[i];
        tokens[2 * i + 1] = (i * 91 + 2) % VOCAB;
        seq[2 * i] = 0;
        seq[2 * i + 1] = 1;
        pos[2 * i] = pos[2 * i + 1] = i;
    }
    float *alone = all_logits(r, 0, a, N, N), *mixed = mem_alloc(VOCAB * sizeof *mixed);
    const int32_t rows[] = {10, 2 * N - 2};
    struct local_batch b = {2 * N, tokens, seq, pos, rows, 2};
    assert_int_equal(local_replica_run(r, &b, NULL), STATUS_OK);
    assert_int_equal(local_replica_logits(r, 0, mixed), STATUS_OK);
    assert_memory_equal(mixed, alone + 5 * VOCAB, VOCAB * sizeof *mixed);
    assert_int_equal(local_replica_logits(r, 1, mixed), STATUS_OK);
    assert_memory_equal(mixed, alone + (N - 1) * VOCAB, VOCAB * sizeof *mixed);
    free(alone);
    free(mixed);
    local_replica_close(r);
}

static void test_bad_batches(void **state)
{
    struct local_replica *r = open_replica("models/sample", 1, 2);
    const int32_t zero[2] = {0, 0}, one[2] = {1, 0}, big[2] = {4096, 0}, two[2] = {2, 0};
    const int32_t far[2] = {512, 0}, negative[2] = {-1, 0};
    const struct {
        struct local_batch b;
        const char *what;
    } cases[] = {
        {{1, big, zero, zero, zero, 1}, "token 4096"},
        {{1, negative, zero, zero, zero, 1}, "token -1"},
        {{1, zero, two, zero, zero, 1}, "no sequence 2"},
        {{1, zero, zero, far, zero, 1}, "position 512"},
        {{1, zero, zero, negative, zero, 1}, "position -1"},
        {{1, zero, zero, zero, one, 1}, "logit_rows[0]"},
        {{2, zero, zero, zero, one, 2}, "logit_rows[1]"},
        {{0, zero, zero, zero, zero, 0}, "0 rows"},
        {{257, zero, zero, zero, zero, 0}, "257 rows"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct errmsg e = {0};
        assert_int_equal(local_replica_run(r, &cases[i].b, &e), STATUS_BAD_REQUEST);
        if (!strstr(e.text, cases[i].what))
            fail_msg("'%s' lacks '%s'", e.text, cases[i].what);
    }
    local_replica_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deepseek_v2),
        cmocka_unit_test(test_deepseek_v2_lite),
        cmocka_unit_test(test_deepseek_v3),
        cmocka_unit_test(test_deepseek_v3_fp8),
        cmocka_unit_test(test_deepseek_v3_real_heads),
        cmocka_unit_test(test_qwen3),
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_qwen2),
        cmocka_unit_test(test_sample_model),
        cmocka_unit_test(test_batch_does_not_matter),
        cmocka_unit_test(test_bad_batches),
    };
    return cmocka_run_group_tests_name("unit/model_goldens", tests, NULL, NULL);
}
