// hadal logits: the raw logits of a row of token ids, for comparing Hadal with other
// implementations and its own layouts, backends and precisions with each other.
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/mem.h"
#include "node/model/quantize.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/local_replica.h"

struct logits_args {
    const char *model, *tokens, *out, *backend, *quant;
    int64_t stages, tensor, chunk, threads;
};

static int failed(const struct errmsg *e)
{
    fprintf(stderr, "hadal logits: %s\n", e->text);
    return CMD_FAILED;
}

static int32_t *read_ids(const char *path, size_t *n_out, struct errmsg *e)
{
    json_error_t je;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &je);
    size_t n = json_array_size(root);
    int32_t *ids = NULL;
    if (!root)
        errmsg_set(e, STATUS_BAD_FILE, "%s: line %d: %s", path, je.line, je.text);
    else if (n == 0 || n > LIMIT_CONTEXT)
        errmsg_set(e, STATUS_BAD_FILE, "%s: must be a JSON array of 1 to %d token ids", path,
                   LIMIT_CONTEXT);
    else
        ids = mem_zalloc(n, sizeof *ids);
    for (size_t i = 0; ids && i < n; i++) {
        const json_t *v = json_array_get(root, i);
        if (json_is_integer(v) && json_integer_value(v) >= 0 &&
            json_integer_value(v) < LIMIT_VOCAB) {
            ids[i] = (int32_t)json_integer_value(v);
            continue;
        }
        errmsg_set(e, STATUS_BAD_FILE, "%s: element %zu is no token id", path, i);
        free(ids);
        ids = NULL;
    }
    json_decref(root);
    *n_out = n;
    return ids;
}

// Positions [from, from + n) in one pass, their logits appended to the file.
static enum status write_chunk(struct local_replica *r, const int32_t *ids, size_t from, size_t n,
                               FILE *out, struct errmsg *e)
{
    int32_t *rows = mem_zalloc(3 * n, sizeof *rows);
    for (size_t i = 0; i < n; i++) {
        rows[i] = (int32_t)(from + i); // position
        rows[n + i] = 0;               // sequence
        rows[2 * n + i] = (int32_t)i;  // row whose logits are wanted
    }
    struct local_batch b = {n, ids + from, rows + n, rows, rows + 2 * n, n};
    enum status s = local_replica_run(r, &b, e);
    size_t vocab = (size_t)local_replica_config(r)->vocab;
    float *logits = mem_alloc(vocab * sizeof *logits);
    for (size_t i = 0; i < n && s == STATUS_OK; i++) {
        s = local_replica_logits(r, i, logits);
        if (s != STATUS_OK)
            errmsg_set(e, s, "logits of row %zu: %s", from + i, status_text(s));
        else if (fwrite(logits, sizeof *logits, vocab, out) != vocab)
            s = errmsg_set(e, status_from_errno(errno), "writing logits: %s", strerror(errno));
    }
    free(logits);
    free(rows);
    return s;
}

static enum status write_logits(const struct logits_args *a, struct local_replica *r,
                                const int32_t *ids, size_t n, struct errmsg *e)
{
    if (n > (size_t)local_replica_context(r))
        return errmsg_set(e, STATUS_TOO_LARGE, "%s: %zu tokens, the model's context is %d",
                          a->tokens, n, local_replica_context(r));
    FILE *out = fopen(a->out, "wb");
    if (!out)
        return errmsg_set(e, status_from_errno(errno), "%s: %s", a->out, strerror(errno));
    enum status s = STATUS_OK;
    size_t chunk = (size_t)a->chunk;
    for (size_t i = 0; i < n && s == STATUS_OK; i += chunk)
        s = write_chunk(r, ids, i, n - i < chunk ? n - i : chunk, out, e);
    if (fclose(out) != 0 && s == STATUS_OK)
        s = errmsg_set(e, status_from_errno(errno), "%s: %s", a->out, strerror(errno));
    return s;
}

// The logits of model folder `dir`.
static int run(const struct logits_args *a, const char *dir)
{
    struct errmsg e = {0};
    size_t n;
    int32_t *ids = read_ids(a->tokens, &n, &e);
    if (!ids)
        return failed(&e);
    struct local_replica_args args = {.source = {.dir = dir},
                                      .stages = (int)a->stages,
                                      .tensors = (int)a->tensor,
                                      .threads = (int)a->threads,
                                      .max_context = (int)n,
                                      .max_seqs = 1,
                                      .max_rows = (int)a->chunk,
                                      .max_logits = (int)a->chunk};
    struct local_replica *r = NULL;
    enum status s = local_replica_backend(a->backend, &args.backend, &e);
    if (s == STATUS_OK)
        s = local_replica_open(&args, &r, &e);
    if (s == STATUS_OK)
        s = write_logits(a, r, ids, n, &e);
    local_replica_close(r);
    free(ids);
    return s == STATUS_OK ? CMD_OK : failed(&e);
}

static void remove_folder(const char *dir)
{
    DIR *d = opendir(dir);
    for (const struct dirent *x; d && (x = readdir(d));)
        if (strcmp(x->d_name, ".") && strcmp(x->d_name, ".."))
            unlinkat(dirfd(d), x->d_name, 0);
    if (d)
        closedir(d);
    rmdir(dir);
}

// A quantized copy for the time of the run: the very weights that `hadal quantize` writes.
static int run_quantized(const struct logits_args *a)
{
    struct errmsg e = {0};
    char folder[4096], copy[4200];
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/hadal-logits-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    struct quantize_args q = {.source = {.dir = a->model}, .out = copy, .threads = (int)a->threads};
    enum status s = model_precision_of(a->quant, &q.to, &e);
    if (s == STATUS_OK && !mkdtemp(folder))
        s = errmsg_set(&e, status_from_errno(errno), "%s: %s", folder, strerror(errno));
    if (s != STATUS_OK)
        return failed(&e);
    snprintf(copy, sizeof copy, "%s/model", folder);
    s = model_quantize(&q, &e);
    int rc = s == STATUS_OK ? run(a, copy) : failed(&e);
    remove_folder(copy);
    rmdir(folder);
    return rc;
}

int cmd_logits(int argc, char **argv)
{
    struct logits_args a = {
        .backend = "cpu", .quant = "none", .stages = 1, .tensor = 1, .chunk = 256};
    const struct cmdline_opt opts[] = {
        {"--model", CMDLINE_STRING, &a.model, "DIR", .help = "model folder (Hugging Face layout)"},
        {"--tokens", CMDLINE_STRING, &a.tokens, "FILE", .help = "JSON array of token ids"},
        {"--out", CMDLINE_STRING, &a.out, "FILE",
         .help = "little-endian float32, a row of vocabulary size per token"},
        {"--stages", CMDLINE_INT, &a.stages, "S", .min = 1, .max = LIMIT_STAGES,
         .help = "pipeline stages (1)"},
        {"--tensor", CMDLINE_INT, &a.tensor, "T", .min = 1, .max = LIMIT_TENSOR,
         .help = "tensor ranks of a stage (1)"},
        {"--backend", CMDLINE_CHOICE, &a.backend, "B", .choices = "cpu|cpu-ref|cuda",
         .help = "cpu, cpu-ref or cuda (cpu)"},
        {"--quant", CMDLINE_CHOICE, &a.quant, "Q", .choices = "none|bf16|fp8|int8",
         .help = "precision of weights: of a copy made by `hadal quantize` and removed again; none "
                 "= as published (none)"},
        {"--chunk", CMDLINE_INT, &a.chunk, "N", .min = 1, .max = 8192,
         .help = "tokens of one pass (256)"},
        {"--threads", CMDLINE_INT, &a.threads, "N", .max = 1024,
         .help = "CPU threads; 0 = all cores (0)"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal logits --model DIR --tokens FILE --out FILE [OPTION...]",
        .about = "Computes the logits of every position of a sequence.",
        .opts = opts,
        .after = "example:\n  echo '[0, 3, 1647, 293]' > ids.json\n"
                 "  hadal logits --model models/sample --tokens ids.json --out logits.f32 "
                 "--stages 2 --tensor 2\n",
    };
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    if (!a.model || !a.tokens || !a.out) {
        fputs("hadal logits: --model, --tokens and --out are needed\n", stderr);
        return CMD_USAGE;
    }
    return strcmp(a.quant, "none") ? run_quantized(&a) : run(&a, a.model);
}
