// One table per concern: the YAML schema below, the ranges in node_file_check.
#include "node/node_config.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/config.h"
#include "base/limits.h"
#include "base/mem.h"

// Pointers, so that an absent key can be told from a zero.
struct node_numbers {
    int64_t *device, *threads, *max_seqs, *max_rows, *context, *kv_tokens, *block_tokens,
        *prefill_chunk, *serve_weights_mib;
    int64_t *rdma_traffic_class, *rdma_ack_timeout, *rdma_retries;
    int64_t *mock_step_us, *mock_row_us, *mock_vocab;
};
struct node_yaml {
    struct node_file text;
    struct node_numbers number;
};

#define TEXT(key)                                                                                  \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct node_yaml,       \
                           text.key, 1, LIMIT_ADDR - 1)
#define NUMBER(key)                                                                                \
    CYAML_FIELD_INT_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct node_yaml,          \
                        number.key)

static const cyaml_schema_field_t fields[] = {
    TEXT(name),
    TEXT(coordinator),
    TEXT(host),
    TEXT(backend),
    TEXT(engine),
    TEXT(random_weights),
    TEXT(bind),
    TEXT(cluster_key),
    TEXT(rdma),
    NUMBER(device),
    NUMBER(threads),
    NUMBER(max_seqs),
    NUMBER(max_rows),
    NUMBER(context),
    NUMBER(kv_tokens),
    NUMBER(block_tokens),
    NUMBER(prefill_chunk),
    NUMBER(mock_step_us),
    NUMBER(mock_row_us),
    NUMBER(mock_vocab),
    TEXT(weights),
    TEXT(models_dir),
    NUMBER(serve_weights_mib),
    NUMBER(rdma_traffic_class),
    NUMBER(rdma_ack_timeout),
    NUMBER(rdma_retries),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct node_yaml, fields),
};

void node_file_default(struct node_file *f)
{
    *f = (struct node_file){
        .coordinator = mem_strdup("127.0.0.1:7070"),
        .backend = mem_strdup("cpu"),
        .engine = mem_strdup("model"),
        .weights = mem_strdup("auto"),
        .bind = mem_strdup("127.0.0.1"),
        .max_seqs = 32,
        .max_rows = 512,
        .block_tokens = 32,
        .prefill_chunk = 128,
        .serve_weights_mib = 1024,
        .mock_step_us = 1000,
        .mock_row_us = 10,
        .mock_vocab = 4096,
    };
}

static void take_text(char **to, char **from)
{
    if (!*from)
        return;
    free(*to);
    *to = mem_strdup(*from);
}

static void take_number(int64_t *to, const int64_t *from)
{
    if (from)
        *to = *from;
}

enum status node_file_load(const char *path, struct node_file *f, struct errmsg *e)
{
    void *data = NULL;
    enum status rc = config_load(path, &schema, &data, e);
    if (rc != STATUS_OK)
        return rc;
    struct node_yaml *y = data;
    take_text(&f->name, &y->text.name);
    take_text(&f->coordinator, &y->text.coordinator);
    take_text(&f->host, &y->text.host);
    take_text(&f->backend, &y->text.backend);
    take_text(&f->engine, &y->text.engine);
    take_text(&f->random_weights, &y->text.random_weights);
    take_text(&f->bind, &y->text.bind);
    take_text(&f->rdma, &y->text.rdma);
    take_text(&f->cluster_key, &y->text.cluster_key);
    take_text(&f->weights, &y->text.weights);
    take_text(&f->models_dir, &y->text.models_dir);
    take_number(&f->device, y->number.device);
    take_number(&f->threads, y->number.threads);
    take_number(&f->max_seqs, y->number.max_seqs);
    take_number(&f->max_rows, y->number.max_rows);
    take_number(&f->context, y->number.context);
    take_number(&f->kv_tokens, y->number.kv_tokens);
    take_number(&f->block_tokens, y->number.block_tokens);
    take_number(&f->prefill_chunk, y->number.prefill_chunk);
    take_number(&f->serve_weights_mib, y->number.serve_weights_mib);
    take_number(&f->rdma_traffic_class, y->number.rdma_traffic_class);
    take_number(&f->rdma_ack_timeout, y->number.rdma_ack_timeout);
    take_number(&f->rdma_retries, y->number.rdma_retries);
    take_number(&f->mock_step_us, y->number.mock_step_us);
    take_number(&f->mock_row_us, y->number.mock_row_us);
    take_number(&f->mock_vocab, y->number.mock_vocab);
    config_free(&schema, data);
    return STATUS_OK;
}

static bool one_of(const char *value, const char *const *words)
{
    for (; *words; words++)
        if (!strcmp(value, *words))
            return true;
    return false;
}

enum status node_file_check(const struct node_file *f, struct errmsg *e)
{
    const struct {
        const char *key;
        int64_t value, min, max;
    } ranges[] = {
        {"device", f->device, 0, 1023},
        {"threads", f->threads, 0, 1024},
        {"max_seqs", f->max_seqs, 1, 4096},
        {"max_rows", f->max_rows, 1, 65536},
        {"context", f->context, 0, LIMIT_CONTEXT},
        {"kv_tokens", f->kv_tokens, 0, INT64_C(1) << 32},
        {"block_tokens", f->block_tokens, 1, 1024},
        {"prefill_chunk", f->prefill_chunk, 1, 65536},
        {"serve_weights_mib", f->serve_weights_mib, 0, 1 << 20},
        {"rdma_traffic_class", f->rdma_traffic_class, 0, 255},
        {"rdma_ack_timeout", f->rdma_ack_timeout, 0, 31},
        {"rdma_retries", f->rdma_retries, 0, 6},
        {"mock_step_us", f->mock_step_us, 0, 60 * 1000000},
        {"mock_row_us", f->mock_row_us, 0, 1000000},
        {"mock_vocab", f->mock_vocab, 2, LIMIT_VOCAB},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max)
            return errmsg_set(e, STATUS_BAD_CONFIG, "%s: %lld is not in %lld..%lld", ranges[i].key,
                              (long long)ranges[i].value, (long long)ranges[i].min,
                              (long long)ranges[i].max);
    if (!one_of(f->backend, (const char *const[]){"cpu", "cuda", NULL}))
        return errmsg_set(e, STATUS_BAD_CONFIG, "backend: '%s' is neither cpu nor cuda",
                          f->backend);
    if (!one_of(f->engine, (const char *const[]){"model", "mock", NULL}))
        return errmsg_set(e, STATUS_BAD_CONFIG, "engine: '%s' is neither model nor mock",
                          f->engine);
    if (!one_of(f->weights, (const char *const[]){"auto", "disk", "peer", NULL}))
        return errmsg_set(e, STATUS_BAD_CONFIG, "weights: '%s' is none of auto, disk, peer",
                          f->weights);
    if (f->random_weights &&
        !one_of(f->random_weights, (const char *const[]){"published", "bf16", "fp8", "int8", NULL}))
        return errmsg_set(e, STATUS_BAD_CONFIG,
                          "random_weights: '%s' is none of published, bf16, fp8, int8",
                          f->random_weights);
    return STATUS_OK;
}

void node_file_finish(struct node_file *f)
{
    free(f->name);
    free(f->coordinator);
    free(f->host);
    free(f->backend);
    free(f->engine);
    free(f->random_weights);
    free(f->bind);
    free(f->rdma);
    free(f->cluster_key);
    free(f->weights);
    free(f->models_dir);
    free(f->fault_file);
    *f = (struct node_file){0};
}
