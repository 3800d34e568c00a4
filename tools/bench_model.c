// hadal bench decode | prefill | load: the model engine alone, one shard in this thread. Each
// figure stands beside the time that the machine's limits leave for what must be moved and
// computed: reading every active weight and the KV of the contexts once, at the speed of a large
// copy, or the products at the speed of a large product of the library, whichever is longer.
// (Weights of a small model stay in the cache and may beat the limit of memory.)
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tools/bench_engine.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/local_replica.h"
#include "tools/sample_model.h"

enum { LIST_MAX = 16, STEPS_MAX = 4096, WARM_UP = 3, TENSOR_MAX = 8 };

struct list {
    int64_t v[LIST_MAX];
    int n;
};

struct model_options {
    const char *model, *config, *quant, *backend;
    bool random, json;
    int64_t seed, layers, threads;
    int64_t tensor;   // one rank of so many, alone
    int64_t together; // ranks that run together, in threads
    // decode, prefill
    const char *batch, *context, *tokens, *prompt;
    int64_t steps, chunk;
};

// The cases of one run: every batch at every context, then the prompts.
struct cases {
    struct list batches, contexts, prompts;
    int64_t steps, prompt_steps, chunk; // chunk: rows of a pass over a prompt
};

// "1,8,64"
static bool parse_list(const char *text, int64_t max, const char *option, struct list *out)
{
    out->n = 0;
    for (const char *p = text; out->n < LIST_MAX; p++) {
        char *end;
        long long v = strtoll(p, &end, 10);
        if (end == p || v < 1 || v > max || (*end && *end != ','))
            break;
        out->v[out->n++] = v;
        p = end;
        if (!*p)
            return true;
    }
    fprintf(stderr,
            "hadal bench: %s %s: up to %d numbers from 1 to %lld with commas between them\n",
            option, text, LIST_MAX, (long long)max);
    return false;
}

static int64_t largest(const struct list *l)
{
    int64_t n = 0;
    for (int i = 0; i < l->n; i++)
        n = l->v[i] > n ? l->v[i] : n;
    return n;
}

static enum status source_of(const struct model_options *o, struct model_source *out,
                             struct errmsg *e)
{
    *out = (struct model_source){.dir = o->random && o->config ? NULL : o->model,
                                 .config = o->config,
                                 .random = o->random,
                                 .seed = (uint64_t)o->seed,
                                 .layers = (int)o->layers};
    return o->quant ? model_precision_of(o->quant, &out->precision, e) : STATUS_OK;
}

// What the model is called in the name of a case: the last part of its path, and its precision.
static void model_name(const struct model_options *o, const struct model_config *c, char out[160])
{
    const char *path = o->random && o->config ? o->config : o->model, *slash = strrchr(path, '/');
    char rank[40] = "", layers[40] = "";
    if (o->together > 1)
        snprintf(rank, sizeof rank, " tensor %lld", (long long)o->together);
    else if (o->tensor > 1)
        snprintf(rank, sizeof rank, " rank of %lld", (long long)o->tensor);
    if (o->layers)
        snprintf(layers, sizeof layers, " %lld layers", (long long)o->layers);
    const char *name = slash && slash[1] ? slash + 1 : path;
    int n = (int)strlen(name);
    if (n > 5 && !strcmp(name + n - 5, ".json"))
        n -= 5;
    snprintf(out, 160, "%.*s %s%s%s", n > 40 ? 40 : n, name,
             c->fp8_block[0] ? "fp8"
             : c->int8       ? "int8"
                             : "bf16",
             layers, rank);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

// Median of `n` steps after a warm-up, each with its own time.
struct timed {
    struct bench_engine *b;
    int64_t context, chunk;
    enum status (*step)(struct timed *, struct errmsg *e);
};

static enum status median_s(struct timed *t, int64_t n, int warm_up, double *out, struct errmsg *e)
{
    double *v = mem_alloc((size_t)n * sizeof *v);
    enum status s = STATUS_OK;
    for (int i = 0; i < warm_up && s == STATUS_OK; i++)
        s = t->step(t, e);
    for (int64_t i = 0; i < n && s == STATUS_OK; i++) {
        double start = bench_now_s();
        s = t->step(t, e);
        v[i] = bench_now_s() - start;
    }
    if (s == STATUS_OK) {
        qsort(v, (size_t)n, sizeof *v, by_value);
        *out = v[n / 2];
    }
    free(v);
    return s;
}

// What a case came to: rate against its limit, and what it is made of.
static void report(const struct bench_engine *b, bool json, const char *name, double rows,
                   double seconds, const struct bench_cost *c)
{
    const char *limit;
    if (b->args.rank)
        return;
    double at_least = bench_engine_limit_s(b, c, &limit);
    const struct bench_figure figures[] = {
        {name, "throughput", "token/s", rows / seconds, limit, rows / at_least},
        {.name = name, .metric = "time", .unit = "ms", .value = seconds * 1e3},
        {.name = name, .metric = "must move", .unit = "GB", .value = c->bytes * 1e-9},
        {.name = name,
         .metric = "must do",
         .unit = "GFLOP",
         .value = (c->flop + c->quant_flop) * 1e-9},
    };
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        bench_print(json, &figures[i]);
}

// ---- decode

static enum status decode_step(struct timed *t, struct errmsg *e)
{
    return bench_engine_decode(t->b, t->context, e);
}

static enum status decode_case(struct bench_engine *b, bool json, const char *model, int64_t steps,
                               int64_t seqs, int64_t context, struct errmsg *e)
{
    char name[240];
    double seconds = 0, experts = 0;
    snprintf(name, sizeof name, "decode %s batch %lld context %lld", model, (long long)seqs,
             (long long)context);
    enum status s = bench_engine_contexts(b, seqs, context, e);
    if (s == STATUS_NO_MEMORY) {
        fprintf(stderr, "%s: skipped: %s\n", name, e->text);
        return STATUS_OK;
    }
    struct timed t = {.b = b, .context = context, .step = decode_step};
    if (s == STATUS_OK)
        s = median_s(&t, steps, WARM_UP, &seconds, e);
    if (s == STATUS_OK)
        s = bench_engine_experts(b, seqs, &experts, e);
    if (s != STATUS_OK)
        return s;
    const double rows = (double)seqs, keys = rows * (double)context;
    const struct bench_pass p = {
        .rows = rows, .logits = rows, .keys = keys, .kv_read = keys, .experts = experts};
    const struct bench_cost c = bench_engine_cost(b, &p);
    report(b, json, name, rows, seconds, &c);
    if (experts > 0 && !b->args.rank)
        bench_print(json, &(struct bench_figure){
                              .name = name, .metric = "experts", .unit = "", .value = experts});
    return STATUS_OK;
}

// ---- prefill

static enum status prefill_step(struct timed *t, struct errmsg *e)
{
    enum status s = STATUS_OK;
    for (int64_t i = 0; i < t->context && s == STATUS_OK; i += t->chunk)
        s = bench_engine_prefill(t->b, i, t->context - i < t->chunk ? t->context - i : t->chunk, e);
    return s;
}

static enum status prefill_case(struct bench_engine *b, bool json, const char *model,
                                const struct cases *cases, int64_t tokens, struct errmsg *e)
{
    char name[240];
    double seconds = 0;
    const int64_t chunk = cases->chunk < tokens ? cases->chunk : tokens;
    snprintf(name, sizeof name, "prefill %s tokens %lld chunk %lld", model, (long long)tokens,
             (long long)chunk);
    struct timed t = {.b = b, .context = tokens, .chunk = chunk, .step = prefill_step};
    enum status s = bench_engine_contexts(b, 1, tokens, e);
    if (s == STATUS_OK)
        s = median_s(&t, cases->prompt_steps, 2, &seconds, e);
    if (s != STATUS_OK)
        return s;
    const double n = (double)tokens, chunks = (double)((tokens + t.chunk - 1) / t.chunk);
    const struct bench_pass p = {.rows = n,
                                 .logits = chunks,
                                 .keys = n * (n + 1) / 2,
                                 .kv_read = n * (chunks + 1) / 2,
                                 .prefill = true};
    struct bench_cost c = bench_engine_cost(b, &p);
    report(b, json, name, n, seconds, &c);
    return STATUS_OK;
}

// ---- the commands

// One of the ranks that run together.
struct rank {
    const struct model_options *o;
    const struct cases *cases;
    struct comm_local *group; // NULL: this is the only one
    int i;
    pthread_t thread;
    enum status status;
    struct errmsg e;
};

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static enum status run_cases(const struct rank *r, struct errmsg *e)
{
    const struct model_options *o = r->o;
    const struct cases *c = r->cases;
    const int64_t prompt = largest(&c->prompts), batch = larger(largest(&c->batches), 1);
    struct bench_engine b = {0};
    struct bench_engine_args args = {.backend = o->backend,
                                     .threads = (int)o->threads,
                                     .tensors = (int)(r->group ? o->together : o->tensor),
                                     .rank = r->i,
                                     .group = r->group,
                                     .max_seqs = (int)batch,
                                     .max_rows =
                                         (int)larger(batch, prompt < c->chunk ? prompt : c->chunk),
                                     .max_context = (int)larger(largest(&c->contexts), prompt)};
    enum status s = source_of(o, &args.source, e);
    if (s == STATUS_OK)
        s = bench_engine_open(&args, &b, e);
    char model[160];
    if (s == STATUS_OK)
        model_name(o, &b.shard->config, model);
    if (s == STATUS_OK && !r->i) {
        fprintf(stderr,
                "%s: %s %.0f GB/s, %s %.2f TFLOP/s (fp8 %.0f, int8 %.0f); %s opened in "
                "%.2f s\n",
                kern_describe(b.kern), b.limits.memory, b.limits.read_gb_s, b.limits.compute,
                b.limits.gflop_s * 1e-3, b.limits.fp8_gflop_s * 1e-3, b.limits.int8_gflop_s * 1e-3,
                model, b.load_s);
    }
    for (int i = 0; i < c->batches.n && s == STATUS_OK; i++)
        for (int j = 0; j < c->contexts.n && s == STATUS_OK; j++)
            s = decode_case(&b, o->json, model, c->steps, c->batches.v[i], c->contexts.v[j], e);
    for (int i = 0; i < c->prompts.n && s == STATUS_OK; i++)
        s = prefill_case(&b, o->json, model, c, c->prompts.v[i], e);
    bench_engine_close(&b);
    return s;
}

static void *run_rank(void *arg)
{
    struct rank *r = arg;
    r->status = run_cases(r, &r->e);
    return NULL;
}

// The ranks in threads of their own; what the first says that failed by itself.
static enum status run_all(const struct model_options *o, const struct cases *cases,
                           struct errmsg *e)
{
    struct rank ranks[TENSOR_MAX] = {{.o = o, .cases = cases}};
    if (o->together == 1)
        return run_cases(&ranks[0], e);
    struct comm_local *group = comm_local_create((int)o->together);
    int started = 0;
    enum status s = STATUS_OK;
    for (; started < o->together && s == STATUS_OK; started++) {
        struct rank *r = &ranks[started];
        *r = (struct rank){.o = o, .cases = cases, .group = group, .i = started};
        int rc = pthread_create(&r->thread, NULL, run_rank, r);
        if (rc) {
            perror("hadal bench: thread");
            exit(CMD_FAILED); // the ranks that run wait for this one
        }
    }
    for (int i = 0; i < started; i++) {
        pthread_join(ranks[i].thread, NULL);
        if (ranks[i].status != STATUS_OK && (s == STATUS_OK || s == STATUS_ABORTED)) {
            s = ranks[i].status;
            *e = ranks[i].e;
        }
    }
    comm_local_destroy(group);
    return s;
}

static int finish(enum status s, const struct errmsg *e)
{
    if (s != STATUS_OK)
        fprintf(stderr, "hadal bench: %s\n", e->text[0] ? e->text : status_text(s));
    return s == STATUS_OK ? CMD_OK : CMD_FAILED;
}

static int parse(const struct model_options *o, const struct cmdline *c, int argc, char **argv)
{
    int rc = cmdline_parse(c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    if (!o->random && (o->config || o->quant)) {
        fputs("hadal bench: --config and --quant go with --random-weights\n", stderr);
        return CMD_USAGE;
    }
    if (!o->model && !(o->random && o->config)) {
        fputs("hadal bench: no sample model here: --model, or --random-weights and --config\n",
              stderr);
        return CMD_USAGE;
    }
    return rc;
}

#define MODEL_OPTIONS(o)                                                                           \
    {"--model", CMDLINE_STRING, &(o).model, "DIR", .help = "model folder (the sample model)"},     \
        {"--random-weights", CMDLINE_FLAG, &(o).random,                                            \
         .help = "made from --seed; no weights are read, only config.json"},                       \
        {"--config", CMDLINE_STRING, &(o).config, "FILE",                                          \
         .help = "with --random-weights: the shape, e.g. of configs/models"},                      \
        {"--quant",                                                                                \
         CMDLINE_CHOICE,                                                                           \
         &(o).quant,                                                                               \
         "P",                                                                                      \
         .choices = "bf16|fp8|int8",                                                               \
         .help = "with --random-weights: their precision (as the config says)"},                   \
        {"--seed", CMDLINE_INT, &(o).seed, "N", .help = "of random weights (0)"},                  \
        {"--layers", CMDLINE_INT, &(o).layers,                                                     \
         "N",        .max = 1024, .help = "only the first N layers (all)"},                        \
        {"--backend",                                                                              \
         CMDLINE_CHOICE,                                                                           \
         &(o).backend,                                                                             \
         "B",                                                                                      \
         .choices = "cpu|cpu-ref|cuda",                                                            \
         .help = "cpu, cpu-ref or cuda (cpu)"},                                                    \
        {"--threads", CMDLINE_INT, &(o).threads,                                                   \
         "N",         .max = 1024, .help = "CPU threads; 0 = all cores (0)"},                      \
    {                                                                                              \
        "--json", CMDLINE_FLAG, &(o).json, .help = "one JSON object per line"                      \
    }

#define TENSOR_OPTION(o)                                                                           \
    {                                                                                              \
        "--tensor-rank-of", CMDLINE_INT, &(o).tensor, "T", .min = 1, .max = 64,                    \
                                                           .help = "one tensor rank of T, without" \
                                                                   " its collectives (1)"          \
    }

#define TOGETHER_OPTION(o)                                                                         \
    {                                                                                              \
        "--tensor", CMDLINE_INT, &(o).together, "T", .min = 1, .max = TENSOR_MAX,                  \
                                                     .help = "T tensor ranks, one on each GPU (1)" \
    }

int bench_decode(int argc, char **argv)
{
    struct model_options o = {.model = sample_model(),
                              .backend = "cpu",
                              .tensor = 1,
                              .together = 1,
                              .batch = "1",
                              .context = "192",
                              .steps = 64};
    const struct cmdline_opt opts[] = {
        MODEL_OPTIONS(o),
        TENSOR_OPTION(o),
        TOGETHER_OPTION(o),
        {"--batch", CMDLINE_STRING, &o.batch, "N,...", .help = "sequences decoded together (1)"},
        {"--context", CMDLINE_STRING, &o.context, "N,...",
         .help = "tokens that each of them attends to (192)"},
        {"--steps", CMDLINE_INT, &o.steps, "N", .min = 1, .max = STEPS_MAX,
         .help = "steps, the median counts (64)"},
        {"--prompt", CMDLINE_STRING, &o.prompt, "N,...",
         .help = "then prefill of so many tokens in one pass, as of `bench prefill` (none)"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench decode [OPTION...]",
        .about =
            "Tokens per second of decoding, the engine alone, for each batch at each context.\n"
            "Contexts are filled with random keys and values; what does not fit is skipped.",
        .opts = opts,
        .after = "examples:\n  hadal bench decode --model models/sample --batch 1,8\n"
                 "  hadal bench decode --random-weights --config "
                 "configs/models/deepseek-v2-lite.json --quant fp8 \\\n"
                 "      --backend cuda --batch 1,8,64,256 --context 1024,8192,32768\n",
    };
    int rc = parse(&o, &c, argc, argv);
    struct cases cases = {.steps = o.steps, .prompt_steps = 5, .chunk = 1 << 16};
    if (rc != CMDLINE_GO)
        return rc;
    if (!parse_list(o.batch, 4096, "--batch", &cases.batches) ||
        !parse_list(o.context, 1 << 20, "--context", &cases.contexts) ||
        (o.prompt && !parse_list(o.prompt, 1 << 16, "--prompt", &cases.prompts)))
        return CMD_USAGE;
    struct errmsg e = {0};
    return finish(run_all(&o, &cases, &e), &e);
}

int bench_prefill(int argc, char **argv)
{
    struct model_options o = {.model = sample_model(),
                              .backend = "cpu",
                              .tensor = 1,
                              .together = 1,
                              .tokens = "900",
                              .steps = 5,
                              .chunk = 256};
    const struct cmdline_opt opts[] = {
        MODEL_OPTIONS(o),
        TENSOR_OPTION(o),
        TOGETHER_OPTION(o),
        {"--tokens", CMDLINE_STRING, &o.tokens, "N,...", .help = "length of the prompt (900)"},
        {"--chunk", CMDLINE_INT, &o.chunk, "N", .min = 1, .max = 1 << 16,
         .help = "rows of one pass (256)"},
        {"--steps", CMDLINE_INT, &o.steps, "N", .min = 1, .max = STEPS_MAX,
         .help = "prompts, the median counts (5)"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench prefill [OPTION...]",
        .about = "Tokens per second of a prompt, the engine alone.",
        .opts = opts,
        .after = "example:\n  hadal bench prefill --model models/sample --tokens 900\n",
    };
    int rc = parse(&o, &c, argc, argv);
    struct cases cases = {.prompt_steps = o.steps, .chunk = o.chunk};
    if (rc != CMDLINE_GO)
        return rc;
    if (!parse_list(o.tokens, 1 << 20, "--tokens", &cases.prompts))
        return CMD_USAGE;
    struct errmsg e = {0};
    return finish(run_all(&o, &cases, &e), &e);
}

// ---- load

// limits: measured by the first, known to the others.
static enum status load_once(const struct model_options *o, struct bench_limits *limits,
                             struct errmsg *e)
{
    struct bench_engine b = {0};
    struct bench_engine_args args = {.backend = o->backend,
                                     .limits = limits->memory ? limits : NULL,
                                     .threads = (int)o->threads,
                                     .tensors = (int)o->tensor,
                                     .max_seqs = 1,
                                     .max_rows = 1,
                                     .max_context = 64};
    enum status s = source_of(o, &args.source, e);
    if (s == STATUS_OK)
        s = bench_engine_open(&args, &b, e);
    if (s == STATUS_OK) {
        *limits = b.limits;
        char name[240], model[160];
        const double gb = (double)b.shard->weights.bytes * 1e-9;
        model_name(o, &b.shard->config, model);
        snprintf(name, sizeof name, "load %s", model);
        bench_print(o->json, &(struct bench_figure){
                                 name, "bandwidth", "GB/s", gb / b.load_s,
                                 b.limits.host_gb_s > 0 ? "pinned copy to the device" : NULL,
                                 b.limits.host_gb_s});
        bench_print(o->json, &(struct bench_figure){
                                 .name = name, .metric = "time", .unit = "s", .value = b.load_s});
        bench_print(o->json, &(struct bench_figure){
                                 .name = name, .metric = "size", .unit = "GB", .value = gb});
    }
    bench_engine_close(&b);
    return s;
}

int bench_load(int argc, char **argv)
{
    struct model_options o = {.model = sample_model(), .backend = "cpu", .tensor = 1, .steps = 3};
    const struct cmdline_opt opts[] = {
        MODEL_OPTIONS(o),
        TENSOR_OPTION(o),
        {"--steps", CMDLINE_INT, &o.steps, "N", .min = 1, .max = 100, .help = "loads (3)"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench load [OPTION...]",
        .about =
            "Time from an open device to a shard that is ready to run, and how fast its files\n"
            "came in; the second load finds them in the page cache.",
        .opts = opts,
        .after = "example:\n  hadal bench load --model models/sample\n",
    };
    int rc = parse(&o, &c, argc, argv);
    if (rc != CMDLINE_GO)
        return rc;
    struct errmsg e = {0};
    struct bench_limits limits = {0};
    enum status s = STATUS_OK;
    for (int64_t i = 0; i < o.steps && s == STATUS_OK; i++)
        s = load_once(&o, &limits, &e);
    return finish(s, &e);
}
