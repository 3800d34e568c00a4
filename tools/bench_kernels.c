// hadal bench kernels: times each op alone at the shapes of the sample model and of
// DeepSeek-V2-Lite. A case states the bytes and flops that must move; it is held against whichever
// limit of this machine (memory bandwidth, multiply-add peak) allows less. Weights are cycled
// through copies that no cache holds, as in a real pass over a model's layers. On a GPU many runs
// are enqueued at once, so that a case's time holds no wait of the host.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "kernels/kern.h"
#include "tools/bench.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"

enum { COLD_BYTES = 128 << 20, BLOCK_TOKENS = 32, CUDA_RUNS = 50 };

struct bench {
    struct kern *k;
    struct bench_limits limits;
    const char *only; // substring of the case's name, or NULL
    double seconds;
    bool json;
};

struct shape {
    const char *name;
    size_t hidden, q_rows, heads, kv_lora, rope, nope, dv, inter, experts, topk, moe_inter, vocab;
    size_t kv_heads; // grouped-query attention with heads of dv elements, no experts
};
static const struct shape shapes[] = {
    {"sample", 256, 704, 4, 512, 64, 128, 128, 768, 16, 4, 128, 4096, 0},
    {"v2-lite", 2048, 3072, 16, 512, 64, 128, 128, 10944, 64, 6, 1408, 102400, 0},
    {"llama-8b", 4096, 6144, 32, 0, 0, 0, 128, 14336, 0, 0, 0, 128256, 8},
};

// ---- operands

static struct kern_buf *random_buf_of(struct kern *k, enum kern_dtype dtype, size_t n)
{
    float *v = mem_alloc(n * sizeof *v);
    uint16_t *h = (uint16_t *)v;
    for (size_t i = 0; i < n; i++) {
        float f = (float)(i * 2654435761u >> 8 & 0xffff) * 0x1p-15f - 1;
        uint32_t u;
        memcpy(&u, &f, 4);
        if (dtype == KERN_BF16)
            h[i] = (uint16_t)(u >> 16);
        else
            v[i] = f;
    }
    struct kern_buf *b;
    if (kern_buf_create(k, dtype, n, &b) != STATUS_OK)
        abort();
    kern_upload(b, 0, v, n);
    free(v);
    return b;
}
static struct kern_buf *random_buf(struct kern *k, size_t n)
{
    return random_buf_of(k, KERN_F32, n);
}
static struct kern_buf *act_buf(struct kern *k, size_t n)
{
    return random_buf_of(k, kern_act_dtype(k), n);
}
static double act_bytes(const struct kern *k)
{
    return kern_act_dtype(k) == KERN_F32 ? 4 : 2;
}

static struct kern_buf *i32_buf(struct kern *k, const int32_t *v, size_t n)
{
    struct kern_buf *b;
    if (kern_buf_create(k, KERN_I32, n, &b) != STATUS_OK)
        abort();
    kern_upload(b, 0, v, n);
    return b;
}

static struct kern_buf *index_buf(struct kern *k, size_t n, size_t modulus)
{
    int32_t *v = mem_zalloc(n, sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = (int32_t)(i % modulus);
    struct kern_buf *b = i32_buf(k, v, n);
    free(v);
    return b;
}

static struct kern_weight *random_weight(struct kern *k, size_t stack, size_t rows, size_t cols)
{
    struct kern_weight_args a = {KERN_WEIGHT_MATRIX, KERN_BF16, stack, rows, cols};
    struct kern_weight *w;
    if (kern_weight_create(k, &a, &w) != STATUS_OK)
        abort();
    uint16_t *v = mem_alloc(rows * cols * sizeof *v);
    for (size_t i = 0; i < rows * cols; i++) // +-[1, 2) / 64
        v[i] = (uint16_t)(0x3c80 | (i * 2654435761u >> 16 & 0x807f));
    for (size_t s = 0; s < stack; s++)
        kern_weight_fill(w, &(struct kern_fill_args){.s = s, .rows = rows, .data = v});
    free(v);
    return w;
}

// ---- a case: name, cost, and how to run it once

static void report(const struct bench *b, const char *name, double seconds, double bytes,
                   double flops)
{
    bool memory = bytes / (b->limits.read_gb_s * 1e9) > flops / (b->limits.gflop_s * 1e9);
    struct bench_figure f = {.name = name, .metric = "time", .unit = "us", .value = seconds * 1e6};
    bench_print(b->json, &f);
    f = memory ? (struct bench_figure){name,
                                       "bandwidth",
                                       "GB/s",
                                       bytes / seconds / 1e9,
                                       b->limits.memory,
                                       b->limits.read_gb_s}
               : (struct bench_figure){name,
                                       "compute",
                                       "GFLOP/s",
                                       flops / seconds / 1e9,
                                       b->limits.compute,
                                       b->limits.gflop_s};
    bench_print(b->json, &f);
}

struct many_runs {
    struct kern *k;
    void (*run)(void *ctx);
    void *ctx;
    int n;
};
static void run_many(void *ctx)
{
    const struct many_runs *m = ctx;
    for (int i = 0; i < m->n; i++)
        m->run(m->ctx);
    if (kern_sync(m->k) != STATUS_OK)
        abort();
}

// Seconds of one run, at best.
static double time_case(const struct bench *b, void (*run)(void *ctx), void *ctx)
{
    struct many_runs m = {b->k, run, ctx, kern_backend(b->k) == KERN_CUDA ? CUDA_RUNS : 1};
    return bench_best_s(b->seconds, run_many, &m) / m.n;
}

static bool wanted(const struct bench *b, const char *name)
{
    return !b->only || strstr(name, b->only);
}

// Copies that together exceed every cache, so that a weight comes from memory each time.
struct copies {
    struct kern_weight *w[4096];
    size_t n, at;
};
static void copies_make(struct copies *c, struct kern *k, size_t stack, size_t rows, size_t cols)
{
    size_t bytes = stack * rows * cols * 2;
    c->at = 0;
    c->n = COLD_BYTES / bytes + 1;
    c->n = c->n > 4096 ? 4096 : c->n;
    for (size_t i = 0; i < c->n; i++)
        c->w[i] = random_weight(k, stack, rows, cols);
}
static void copies_free(struct copies *c)
{
    for (size_t i = 0; i < c->n; i++)
        kern_weight_destroy(c->w[i]);
}
static struct kern_weight *copies_next(struct copies *c)
{
    return c->w[c->at++ % c->n];
}

struct linear_run {
    struct kern *k;
    struct copies weights;
    struct kern_linear_args args;
};
static void linear_once(void *ctx)
{
    struct linear_run *r = ctx;
    r->args.w = copies_next(&r->weights);
    kern_linear(r->k, &r->args);
}

static void bench_linear(const struct bench *b, const char *shape, const char *what, size_t rows,
                         size_t cols, size_t n)
{
    char name[96];
    snprintf(name, sizeof name, "%s linear %s %zux%zu rows=%zu", shape, what, rows, cols, n);
    if (!wanted(b, name))
        return;
    struct linear_run *r = mem_zalloc(1, sizeof *r);
    r->k = b->k;
    copies_make(&r->weights, b->k, 1, rows, cols);
    struct kern_buf *x = act_buf(b->k, n * cols), *y = random_buf(b->k, n * rows);
    r->args = (struct kern_linear_args){.n = n, .x = {x, 0, cols}, .out = {y, 0, rows}};
    double bytes = 2.0 * (double)(rows * cols) +
                   (double)n * (4.0 * (double)rows + act_bytes(b->k) * (double)cols);
    report(b, name, time_case(b, linear_once, r), bytes, 2.0 * (double)(n * rows * cols));
    copies_free(&r->weights);
    kern_buf_destroy(x);
    kern_buf_destroy(y);
    free(r);
}

struct moe_run {
    struct kern *k;
    struct copies gate, up, down;
    struct kern_moe_gate_up_args gate_up_args;
    struct kern_moe_down_args down_args;
};
static void moe_once(void *ctx)
{
    struct moe_run *r = ctx;
    r->gate_up_args.gate = copies_next(&r->gate);
    r->gate_up_args.up = copies_next(&r->up);
    r->down_args.down = copies_next(&r->down);
    kern_moe_gate_up(r->k, &r->gate_up_args);
    kern_moe_down(r->k, &r->down_args);
}

static void bench_moe(const struct bench *b, const struct shape *s, size_t n)
{
    char name[96];
    snprintf(name, sizeof name, "%s moe %zu of %zu experts rows=%zu", s->name, s->topk, s->experts,
             n);
    if (!wanted(b, name))
        return;
    struct moe_run *r = mem_zalloc(1, sizeof *r);
    size_t pairs = n * s->topk, used = pairs < s->experts ? pairs : s->experts;
    r->k = b->k;
    copies_make(&r->gate, b->k, s->experts, s->moe_inter, s->hidden);
    copies_make(&r->up, b->k, s->experts, s->moe_inter, s->hidden);
    copies_make(&r->down, b->k, s->experts, s->hidden, s->moe_inter);
    struct kern_buf *x = act_buf(b->k, n * s->hidden), *y = random_buf(b->k, n * s->hidden);
    struct kern_buf *h = act_buf(b->k, pairs * s->moe_inter), *w = random_buf(b->k, pairs);
    struct kern_buf *ids = index_buf(b->k, pairs, s->experts);
    r->gate_up_args = (struct kern_moe_gate_up_args){
        .n = n, .topk = s->topk, .x = {x, 0, s->hidden}, .ids = ids, .out = {h, 0, s->moe_inter}};
    r->down_args = (struct kern_moe_down_args){.n = n,
                                               .topk = s->topk,
                                               .h = {h, 0, s->moe_inter},
                                               .ids = ids,
                                               .weights = w,
                                               .out = {y, 0, s->hidden}};
    double expert = 3.0 * (double)(s->moe_inter * s->hidden);
    report(b, name, time_case(b, moe_once, r), 2 * expert * (double)used,
           2 * expert * (double)pairs);
    copies_free(&r->gate);
    copies_free(&r->up);
    copies_free(&r->down);
    kern_buf_destroy(x);
    kern_buf_destroy(y);
    kern_buf_destroy(h);
    kern_buf_destroy(w);
    kern_buf_destroy(ids);
    free(r);
}

struct attn_run {
    struct kern *k;
    struct kern_batch batch;
    struct kern_attn_mla_args mla;
    struct kern_attn_gqa_args gqa; // heads 0: MLA is what is run
};
static void attn_once(void *ctx)
{
    struct attn_run *r = ctx;
    if (r->gqa.heads)
        kern_attn_gqa(r->k, &r->gqa);
    else
        kern_attn_mla(r->k, &r->mla);
}

// `seqs` sequences of `context` tokens; `rows` new ones at the end of each.
static void make_batch(struct attn_run *r, size_t seqs, size_t context, size_t rows)
{
    size_t n = seqs * rows, stride = (context + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    int32_t *seq = mem_zalloc(n, sizeof *seq), *pos = mem_zalloc(n, sizeof *pos);
    for (size_t i = 0; i < n; i++) {
        seq[i] = (int32_t)(i / rows);
        pos[i] = (int32_t)(context - rows + i % rows);
    }
    r->batch = (struct kern_batch){.n = n,
                                   .keys_max = context,
                                   .seq = i32_buf(r->k, seq, n),
                                   .pos = i32_buf(r->k, pos, n),
                                   .tables = index_buf(r->k, seqs * stride, seqs * stride),
                                   .seqs = seqs,
                                   .table_stride = stride};
    free(seq);
    free(pos);
}

static void free_batch(struct attn_run *r)
{
    kern_buf_destroy(r->batch.seq);
    kern_buf_destroy(r->batch.pos);
    kern_buf_destroy(r->batch.tables);
}

static void bench_attn(const struct bench *b, const struct shape *s, size_t seqs, size_t context,
                       size_t rows)
{
    char name[96];
    bool gqa = s->kv_heads > 0;
    snprintf(name, sizeof name, "%s attn %s heads=%zu seqs=%zu context=%zu rows=%zu", s->name,
             gqa ? "gqa" : "mla", s->heads, seqs, context, rows);
    if (!wanted(b, name))
        return;
    size_t n = seqs * rows, width = gqa ? 2 * s->kv_heads * s->dv : s->kv_lora + s->rope;
    size_t head = gqa ? s->dv : s->kv_lora, q_width = s->heads * head;
    struct attn_run r = {.k = b->k};
    make_batch(&r, seqs, context, rows);
    size_t blocks = seqs * r.batch.table_stride;
    struct kern_buf *pool = act_buf(b->k, blocks * BLOCK_TOKENS * width);
    struct kern_buf *q = act_buf(b->k, n * q_width), *y = act_buf(b->k, n * q_width);
    struct kern_kv kv = {
        .buf = pool, .blocks = blocks, .block_tokens = BLOCK_TOKENS, .width = width};
    if (gqa)
        r.gqa = (struct kern_attn_gqa_args){.batch = &r.batch,
                                            .kv = kv,
                                            .heads = s->heads,
                                            .kv_heads = s->kv_heads,
                                            .head_dim = s->dv,
                                            .q = {q, 0, q_width},
                                            .out = {y, 0, q_width},
                                            .scale = 0.05f};
    else
        r.mla = (struct kern_attn_mla_args){.batch = &r.batch,
                                            .kv = kv,
                                            .heads = s->heads,
                                            .kv_lora = s->kv_lora,
                                            .rope_dim = s->rope,
                                            .q_latent = {q, 0, q_width},
                                            .q_latent_head_stride = s->kv_lora,
                                            .q_rope = {q, 0, q_width},
                                            .q_rope_head_stride = s->kv_lora,
                                            .out = {y, 0, q_width},
                                            .scale = 0.05f};
    double keys = (double)context - ((double)rows - 1) / 2; // seen by a row, on average
    report(b, name, time_case(b, attn_once, &r), act_bytes(b->k) * (double)(seqs * context * width),
           2.0 * (double)(n * s->heads) * keys * (double)(2 * head + s->rope));
    free_batch(&r);
    kern_buf_destroy(pool);
    kern_buf_destroy(q);
    kern_buf_destroy(y);
}

// ---- all cases

static void bench_shape(const struct bench *b, const struct shape *s)
{
    static const size_t batches[] = {1, 8, 64, 256, 1024};
    bool cuda = kern_backend(b->k) == KERN_CUDA;
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        size_t n = batches[i];
        if (!cuda && (n == 64 || n > 256)) // long on a CPU, and nothing new there
            continue;
        bench_linear(b, s->name, "q_a", s->q_rows, s->hidden, n);
        bench_linear(b, s->name, "o_proj", s->hidden, s->heads * s->dv, n);
        bench_linear(b, s->name, "gate_up", 2 * s->inter, s->hidden, n);
        bench_linear(b, s->name, "down", s->hidden, s->inter, n);
        if (n <= 64)
            bench_linear(b, s->name, "lm_head", s->vocab, s->hidden, n);
        if (s->experts)
            bench_moe(b, s, n);
    }
    bench_attn(b, s, 1, 1000, 1);
    bench_attn(b, s, 1, 32768, 1);
    bench_attn(b, s, 8, 1000, 1);
    bench_attn(b, s, 32, 2048, 1);
    bench_attn(b, s, 1, 900, 900 / (s->heads / 4));
}

struct kernels_args {
    const char *backend, *isa, *shape, *only;
    int64_t threads;
    double seconds;
    bool json;
};

static enum kern_isa isa_of(const char *word)
{
    return !strcmp(word, "portable") ? KERN_ISA_PORTABLE
           : !strcmp(word, "avx2")   ? KERN_ISA_AVX2
           : !strcmp(word, "avx512") ? KERN_ISA_AVX512
                                     : KERN_ISA_BEST;
}

static int run(const struct kernels_args *a)
{
    struct kern_config config = {.threads = (int)a->threads, .isa = isa_of(a->isa)};
    struct bench b = {.only = a->only, .seconds = a->seconds, .json = a->json};
    struct errmsg err;
    enum kern_backend backend = !strcmp(a->backend, "ref")    ? KERN_CPU_REF
                                : !strcmp(a->backend, "cuda") ? KERN_CUDA
                                                              : KERN_CPU;
    enum status st = kern_open(backend, &config, &b.k, &err);
    if (st == STATUS_OK)
        st = bench_limits_of(b.k, &b.limits, &err);
    if (st != STATUS_OK) {
        fprintf(stderr, "hadal bench kernels: %s\n", err.text);
        kern_close(b.k);
        return CMD_FAILED;
    }
    fprintf(stderr, "%s: %s %.1f GB/s, %s %.1f GFLOP/s\n", kern_describe(b.k), b.limits.memory,
            b.limits.read_gb_s, b.limits.compute, b.limits.gflop_s);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (!strcmp(a->shape, "all") || !strcmp(a->shape, shapes[i].name))
            bench_shape(&b, &shapes[i]);
    kern_close(b.k);
    return CMD_OK;
}

int bench_kernels(int argc, char **argv)
{
    struct kernels_args a = {
        .backend = "cpu", .isa = "best", .shape = "sample", .threads = 0, .seconds = 0.2};
    const struct cmdline_opt opts[] = {
        {"--backend", CMDLINE_CHOICE, &a.backend, "B", .choices = "cpu|ref|cuda",
         .help = "fast CPU, reference or CUDA body (cpu)"},
        {"--isa", CMDLINE_CHOICE, &a.isa, "SET", .choices = "best|portable|avx2|avx512",
         .help = "vector instructions of the fast body (best)"},
        {"--shape", CMDLINE_CHOICE, &a.shape, "NAME", .choices = "sample|v2-lite|llama-8b|all",
         .help = "whose sizes (sample); v2-lite takes 2 GB of memory"},
        {"--threads", CMDLINE_INT, &a.threads, "N", .max = 1024, .help = "threads (0 = all cores)"},
        {"--only", CMDLINE_STRING, &a.only, "TEXT", .help = "cases whose name contains TEXT"},
        {"--seconds", CMDLINE_REAL, &a.seconds, "S", .max = 60, .help = "time for each case (0.2)"},
        {"--json", CMDLINE_FLAG, &a.json, .help = "one JSON object per line"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal bench kernels [OPTION...]",
        .about =
            "Times each op and holds it against the memory bandwidth or the multiply-add peak\n"
            "of this machine or device, measured in the same run.",
        .opts = opts,
        .after = "Examples:\n"
                 "  hadal bench kernels                        the sample model's sizes\n"
                 "  hadal bench kernels --only attn --threads 1\n"
                 "  hadal bench kernels --shape v2-lite --json > kernels.jsonl\n",
    };
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    return rc == CMDLINE_GO ? run(&a) : rc;
}
