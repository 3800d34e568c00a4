// hadal quantize: a checkpoint in another precision, or of a shape that has none.
#include <stdio.h>

#include "node/model/quantize.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"

static void show(void *arg, size_t done, size_t total)
{
    cmdline_progress_show(arg, done >> 20, total >> 20, "M weights");
}

struct quantize_options {
    const char *model, *to, *out, *config;
    bool random;
    int64_t seed, threads, layers;
};

static int run(const struct quantize_options *o)
{
    struct errmsg e = {0};
    struct cmdline_progress bar;
    struct quantize_args a = {.source = {.dir = o->model,
                                         .config = o->config,
                                         .random = o->random,
                                         .seed = (uint64_t)o->seed,
                                         .layers = (int)o->layers,
                                         .precision = MODEL_BF16},
                              .out = o->out,
                              .threads = (int)o->threads,
                              .progress = {.report = show, .arg = &bar}};
    enum status s = model_precision_of(o->to, &a.to, &e);
    cmdline_progress_start(&bar, "quantizing");
    if (s == STATUS_OK)
        s = model_quantize(&a, &e);
    cmdline_progress_stop(&bar);
    if (s != STATUS_OK)
        fprintf(stderr, "hadal quantize: %s\n", e.text);
    return s == STATUS_OK ? CMD_OK : CMD_FAILED;
}

int cmd_quantize(int argc, char **argv)
{
    struct quantize_options o = {0};
    const struct cmdline_opt opts[] = {
        {"--model", CMDLINE_STRING, &o.model, "DIR", .help = "model folder (Hugging Face layout)"},
        {"--to", CMDLINE_CHOICE, &o.to, "P", .choices = "fp8|int8|bf16",
         .help = "fp8 (blocks of 128x128), int8 (a scale per row) or bf16"},
        {"--out", CMDLINE_STRING, &o.out, "DIR", .help = "the new folder; must not exist"},
        {"--threads", CMDLINE_INT, &o.threads, "N", .max = 64, .help = "0 = all cores (0)"},
        {"--random-weights", CMDLINE_FLAG, &o.random,
         .help = "instead of a model's weights, numbers made from --seed"},
        {"--config", CMDLINE_STRING, &o.config, "FILE",
         .help = "with --random-weights: the shape, e.g. of configs/models"},
        {"--seed", CMDLINE_INT, &o.seed, "N", .help = "of random weights (0)"},
        {"--layers", CMDLINE_INT, &o.layers, "N", .max = 1024,
         .help = "with --random-weights: only the first N layers"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal quantize --model DIR --to P --out DIR",
        .about = "Writes a checkpoint in another precision. The matrices of attention, MLPs and\n"
                 "experts change; embeddings, norms, router, kv_b_proj and lm_head stay. The\n"
                 "output appears whole or not at all; files beside the weights are copied.",
        .opts = opts,
        .after = "examples:\n"
                 "  hadal quantize --model models/sample --to fp8 --out /tmp/sample-fp8\n"
                 "  hadal quantize --random-weights --config configs/models/deepseek-v2-lite.json "
                 "--to bf16 --out v2-lite\n",
    };
    int rc = cmdline_parse(&c, argc, argv, NULL, NULL);
    if (rc != CMDLINE_GO)
        return rc;
    if (!o.to || !o.out || (o.random ? !o.model && !o.config : !o.model || o.config || o.layers)) {
        fputs("hadal quantize: --to, --out and --model are needed, or instead of --model both\n"
              "--random-weights and --config\n",
              stderr);
        return CMD_USAGE;
    }
    return run(&o);
}
