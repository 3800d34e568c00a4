// hadal bench decode | prefill: tokens per second of the model engine alone: no HTTP, no scheduler,
// one replica of one rank. Each figure stands beside a limit measured in the same run: a step of
// decoding reads every active weight once (those of a small model stay in the cache and may beat
// the limit of memory), prefill multiplies each of them with every row.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "node/sampler.h"
#include "tools/bench.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/local_replica.h"
#include "tools/sample_model.h"

struct bench_args {
    const char *model, *backend;
    int64_t seqs, tokens, context, threads, repeats;
    bool json;
};

struct bench {
    const struct bench_args *a;
    struct local_replica *r;
    struct sampler *sampler;
    float *logits;
    int32_t *tokens, *seq, *pos, *rows; // [max rows]
    struct errmsg e;
};

static enum status bench_open(struct bench *b, int max_rows)
{
    const struct bench_args *a = b->a;
    struct local_replica_args args = {.source = {.dir = a->model},
                                      .stages = 1,
                                      .tensors = 1,
                                      .threads = (int)a->threads,
                                      .max_seqs = (int)a->seqs,
                                      .max_rows = max_rows,
                                      .max_logits = (int)a->seqs,
                                      .max_context = (int)(a->context + a->tokens)};
    enum status s = local_replica_backend(a->backend, &args.backend, &b->e);
    if (s == STATUS_OK)
        s = local_replica_open(&args, &b->r, &b->e);
    if (s != STATUS_OK)
        return s;
    if (local_replica_context(b->r) < a->context + a->tokens)
        return errmsg_set(&b->e, STATUS_TOO_LARGE, "%lld tokens, the model's context is %d",
                          (long long)(a->context + a->tokens), local_replica_context(b->r));
    uint32_t vocab = (uint32_t)local_replica_config(b->r)->vocab;
    b->sampler = sampler_create(vocab);
    b->logits = mem_zalloc(vocab, sizeof *b->logits);
    b->tokens = mem_zalloc((size_t)max_rows, sizeof *b->tokens);
    b->seq = mem_zalloc((size_t)max_rows, sizeof *b->seq);
    b->pos = mem_zalloc((size_t)max_rows, sizeof *b->pos);
    b->rows = mem_zalloc((size_t)max_rows, sizeof *b->rows);
    return STATUS_OK;
}

static void bench_close(struct bench *b)
{
    local_replica_close(b->r);
    sampler_destroy(b->sampler);
    free(b->logits);
    free(b->tokens);
    free(b->seq);
    free(b->pos);
    free(b->rows);
}

// Any ids do: the work does not depend on them, but for the experts that they choose.
static int32_t some_token(const struct bench *b, int64_t i)
{
    return (int32_t)(i * 7919 % local_replica_config(b->r)->vocab);
}

// One pass over positions [from, from + n) of one sequence, logits of the last.
static enum status prefill(struct bench *b, int32_t seq, int64_t from, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        b->tokens[i] = some_token(b, from + i + seq);
        b->seq[i] = seq;
        b->pos[i] = (int32_t)(from + i);
    }
    b->rows[0] = (int32_t)n - 1;
    struct local_batch batch = {(size_t)n, b->tokens, b->seq, b->pos, b->rows, 1};
    return local_replica_run(b->r, &batch, &b->e);
}

static enum status decode_step(struct bench *b, int64_t pos)
{
    static const struct sampling greedy = {.repetition_penalty = 1, .top_p = 1};
    const struct sampler_input in = {.logits = b->logits, .sampling = &greedy};
    const size_t n = (size_t)b->a->seqs;
    for (size_t i = 0; i < n; i++) {
        b->seq[i] = b->rows[i] = (int32_t)i;
        b->pos[i] = (int32_t)pos;
    }
    struct local_batch batch = {n, b->tokens, b->seq, b->pos, b->rows, n};
    enum status s = local_replica_run(b->r, &batch, &b->e);
    for (size_t i = 0; i < n && s == STATUS_OK; i++) {
        struct step_sample sample;
        s = local_replica_logits(b->r, i, b->logits);
        if (s == STATUS_OK)
            s = sampler_pick(b->sampler, &in, &sample);
        if (s == STATUS_OK)
            b->tokens[i] = sample.token;
    }
    return s;
}

// Seconds of `tokens` steps after a context was filled.
static enum status time_decode(struct bench *b, double *seconds_out)
{
    enum status s = STATUS_OK;
    const int64_t context = b->a->context;
    for (int32_t i = 0; i < b->a->seqs && s == STATUS_OK; i++)
        s = prefill(b, i, 0, context);
    for (int64_t i = 0; i < b->a->seqs; i++)
        b->tokens[i] = some_token(b, i);
    int64_t start = cmdline_now_us();
    for (int64_t i = 0; i < b->a->tokens && s == STATUS_OK; i++)
        s = decode_step(b, context + i);
    *seconds_out = (double)(cmdline_now_us() - start) * 1e-6;
    return s;
}

static enum status time_prefill(struct bench *b, double *seconds_out)
{
    int64_t start = cmdline_now_us();
    enum status s = STATUS_OK;
    for (int64_t i = 0; i < b->a->tokens && s == STATUS_OK; i += 256) {
        int64_t n = b->a->tokens - i < 256 ? b->a->tokens - i : 256;
        s = prefill(b, 0, i, n);
    }
    *seconds_out = (double)(cmdline_now_us() - start) * 1e-6;
    return s;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static enum status median(struct bench *b, enum status (*run)(struct bench *, double *),
                          double *out)
{
    double v[32], ignored;
    enum status s = run(b, &ignored); // warm-up
    for (int64_t i = 0; i < b->a->repeats && s == STATUS_OK; i++)
        s = run(b, &v[i]);
    if (s != STATUS_OK)
        return s;
    qsort(v, (size_t)b->a->repeats, sizeof *v, by_value);
    *out = v[b->a->repeats / 2];
    return s;
}

// ---- limits ----

// Elements of the weights that one row multiplies with, and of those that a step of `rows` rows
// touches at most (experts differ from row to row).
struct work {
    double row_elements, step_elements;
};

static struct work count_work(const struct model_config *c, int64_t rows)
{
    const double h = c->hidden, heads = c->heads, hd = c->head_dim;
    double attention = c->mla ? h * (c->kv_lora + c->rope_dim) +
                                    heads * c->kv_lora * (c->nope_dim + c->v_dim) +
                                    (c->q_lora ? c->q_lora * (h + heads * hd) : h * heads * hd)
                              : h * hd * (heads + 2.0 * c->kv_heads);
    attention += h * heads * c->v_dim;
    double row = 0, step = 0;
    for (int i = 0; i < c->layers; i++) {
        const struct moe_config *m = &c->moe;
        double expert = 3.0 * h * m->intermediate, touched = (double)rows * m->per_token;
        row += attention;
        step += attention;
        if (!model_layer_has_experts(c, i)) {
            row += 3.0 * h * c->intermediate;
            step += 3.0 * h * c->intermediate;
            continue;
        }
        row += expert * (m->per_token + m->shared) + h * m->experts;
        step +=
            expert * ((touched < m->experts ? touched : m->experts) + m->shared) + h * m->experts;
    }
    return (struct work){row + h * c->vocab, step + h * c->vocab};
}

static enum status limits_of(struct bench *b, struct bench_limits *out)
{
    enum kern_backend backend;
    struct kern *k = NULL;
    struct kern_config config = {.threads = (int)b->a->threads};
    enum status s = local_replica_backend(b->a->backend, &backend, &b->e);
    if (s == STATUS_OK)
        s = kern_open(backend, &config, &k, &b->e);
    if (s == STATUS_OK)
        s = bench_limits_of(k, out, &b->e);
    kern_close(k);
    return s;
}

static enum status report_decode(struct bench *b)
{
    double seconds;
    enum status s = median(b, time_decode, &seconds);
    if (s != STATUS_OK)
        return s;
    const struct bench_args *a = b->a;
    double bytes = 2 * count_work(local_replica_config(b->r), a->seqs).step_elements;
    struct bench_limits limits;
    s = limits_of(b, &limits);
    if (s != STATUS_OK)
        return s;
    char name[128];
    snprintf(name, sizeof name, "decode %lld seq, context %lld, %s", (long long)a->seqs,
             (long long)a->context, local_replica_describe(b->r));
    bench_print(a->json, &(struct bench_figure){.name = name,
                                                .metric = "throughput",
                                                .unit = "token/s",
                                                .value = (double)(a->seqs * a->tokens) / seconds,
                                                .limit = "reading the active weights from memory",
                                                .limit_value = limits.read_gb_s * 1e9 / bytes *
                                                               (double)a->seqs});
    return s;
}

static enum status report_prefill(struct bench *b)
{
    double seconds;
    enum status s = median(b, time_prefill, &seconds);
    if (s != STATUS_OK)
        return s;
    const struct model_config *c = local_replica_config(b->r);
    double row = count_work(c, 1).row_elements - (double)c->hidden * c->vocab;
    struct bench_limits limits;
    s = limits_of(b, &limits);
    if (s != STATUS_OK)
        return s;
    char name[128];
    snprintf(name, sizeof name, "prefill %lld tokens, %s", (long long)b->a->tokens,
             local_replica_describe(b->r));
    bench_print(b->a->json, &(struct bench_figure){.name = name,
                                                   .metric = "throughput",
                                                   .unit = "token/s",
                                                   .value = (double)b->a->tokens / seconds,
                                                   .limit = "multiply-adds of the weights",
                                                   .limit_value = limits.gflop_s * 1e9 / 2 / row});
    return s;
}

static int run(const struct bench_args *a, int max_rows, enum status (*report)(struct bench *))
{
    struct bench b = {.a = a};
    enum status s = bench_open(&b, max_rows);
    if (s == STATUS_OK)
        s = report(&b);
    if (s != STATUS_OK)
        fprintf(stderr, "hadal bench: %s\n", b.e.text[0] ? b.e.text : status_text(s));
    bench_close(&b);
    return s == STATUS_OK ? CMD_OK : CMD_FAILED;
}

static int parse(struct bench_args *a, const struct cmdline *c, int argc, char **argv)
{
    int rc = cmdline_parse(c, argc, argv, NULL, NULL);
    if (rc == CMDLINE_GO && !a->model) {
        fputs("hadal bench: no sample model here, --model is needed\n", stderr);
        return CMD_USAGE;
    }
    return rc;
}

#define COMMON_OPTIONS(a)                                                                          \
    {"--model", CMDLINE_STRING, &(a).model, "DIR", .help = "model folder (the sample model)"},     \
        {"--backend",                                                                              \
         CMDLINE_CHOICE,                                                                           \
         &(a).backend,                                                                             \
         "B",                                                                                      \
         .choices = "cpu|cpu-ref|cuda",                                                            \
         .help = "cpu, cpu-ref or cuda (cpu)"},                                                    \
        {"--json", CMDLINE_FLAG, &(a).json, .help = "one JSON object per line"},                   \
        {"--threads", CMDLINE_INT, &(a).threads,                                                   \
         "N",         .max = 1024, .help = "CPU threads; 0 = all cores (0)"},                      \
    {                                                                                              \
        "--repeats", CMDLINE_INT, &(a).repeats, "N", .min = 1, .max = 32,                          \
                                                     .help = "runs, the median counts (5)"         \
    }

int bench_decode(int argc, char **argv)
{
    struct bench_args a = {.model = sample_model(),
                           .backend = "cpu",
                           .seqs = 1,
                           .tokens = 256,
                           .context = 64,
                           .repeats = 5};
    const struct cmdline_opt opts[] = {
        COMMON_OPTIONS(a),
        {"--seqs", CMDLINE_INT, &a.seqs, "N", .min = 1, .max = 256,
         .help = "sequences decoded together (1)"},
        {"--tokens", CMDLINE_INT, &a.tokens, "N", .min = 1, .max = 65536,
         .help = "tokens of each sequence (256)"},
        {"--context", CMDLINE_INT, &a.context, "N", .min = 1, .max = 65536,
         .help = "tokens before them (64)"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench decode [OPTION...]",
        .about = "Tokens per second of decoding, the engine alone.",
        .opts = opts,
        .after = "example:\n  hadal bench decode --model models/sample --seqs 8\n",
    };
    int rc = parse(&a, &c, argc, argv);
    int rows = (int)(a.context > a.seqs ? a.context : a.seqs);
    return rc == CMDLINE_GO ? run(&a, rows, report_decode) : rc;
}

int bench_prefill(int argc, char **argv)
{
    struct bench_args a = {
        .model = sample_model(), .backend = "cpu", .seqs = 1, .tokens = 900, .repeats = 5};
    const struct cmdline_opt opts[] = {
        COMMON_OPTIONS(a),
        {"--tokens", CMDLINE_INT, &a.tokens, "N", .min = 1, .max = 65536,
         .help = "length of the prompt (900)"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench prefill [OPTION...]",
        .about = "Tokens per second of a prompt, in chunks of 256, the engine alone.",
        .opts = opts,
        .after = "example:\n  hadal bench prefill --model models/sample --tokens 900\n",
    };
    int rc = parse(&a, &c, argc, argv);
    return rc == CMDLINE_GO ? run(&a, 256, report_prefill) : rc;
}
