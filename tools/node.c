// hadal node: one node process of a cluster. The configuration file comes first, options override
// it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "node/engine_mock.h"
#include "node/engine_model.h"
#include "node/node_config.h"
#include "node/node_shell.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"

struct options {
    const char *config, *name, *coordinator, *host, *backend, *engine, *bind, *random_weights,
        *fault_file, *cluster_key, *rdma, *weights, *models_dir;
    int64_t device, threads, max_seqs, max_rows, context, kv_tokens, block_tokens, prefill_chunk,
        serve_weights_mib;
    int64_t mock_step_us, mock_row_us, mock_vocab;
};

static const char about[] = "Joins the coordinator, loads the part of the model that it is given, "
                            "and computes until it is\n"
                            "told to stop. It comes back by itself when the coordinator was away.";
static const char after[] = "examples:\n"
                            "  hadal node --config configs/node.yaml\n"
                            "  hadal node --name gpu7 --coordinator 10.0.0.1:7070 --bind 10.0.0.7";

static int parse(struct options *o, int argc, char **argv)
{
    const struct cmdline_opt opts[] = {
        {"--config", CMDLINE_STRING, &o->config, "FILE",
         .help = "configuration; see configs/node.yaml"},
        {"--name", CMDLINE_STRING, &o->name, "NAME",
         .help = "unique in the cluster; default HOST-PID"},
        {"--coordinator", CMDLINE_STRING, &o->coordinator, "HOST:PORT",
         .help = "the coordinator's control port; default 127.0.0.1:7070"},
        {"--host", CMDLINE_STRING, &o->host, "LABEL",
         .help = "ranks of equal labels use shared memory; default: this host's name"},
        {"--backend", CMDLINE_CHOICE, &o->backend, "B", .help = "what computes; default cpu",
         .choices = "cpu|cuda"},
        {"--device", CMDLINE_INT, &o->device, "N", .help = "which GPU, for cuda; default 0",
         .max = 1023},
        {"--engine", CMDLINE_CHOICE, &o->engine, "E",
         .help = "model, or mock: tokens from a hash in a set time; default model",
         .choices = "model|mock"},
        {"--random-weights", CMDLINE_CHOICE, &o->random_weights, "P",
         .help = "made from the folder's config.json in this precision; for measuring",
         .choices = "published|bf16|fp8|int8"},
        {"--weights", CMDLINE_CHOICE, &o->weights, "FROM",
         .help = "the model folder, other nodes, or whichever is there or faster; default auto",
         .choices = "auto|disk|peer"},
        {"--models-dir", CMDLINE_STRING, &o->models_dir, "DIR",
         .help = "where the models' folders are here; default: as the coordinator says"},
        {"--serve-weights-mib", CMDLINE_INT, &o->serve_weights_mib, "N",
         .help = "MiB/s of the model given to nodes that start; 0: none; default 1024",
         .max = 1 << 20},
        {"--bind", CMDLINE_STRING, &o->bind, "ADDRESS",
         .help = "where ranks of other hosts reach this one; default 127.0.0.1"},
        {"--rdma", CMDLINE_STRING, &o->rdma, "RAILS",
         .help =
             "addresses of RDMA devices, with commas; off; default auto: that of --bind, or all"},
        {"--cluster-key", CMDLINE_STRING, &o->cluster_key, "FILE",
         .help = "key that this cluster's processes share"},
        {"--threads", CMDLINE_INT, &o->threads, "N",
         .help = "threads that compute; default: all cores", .max = 1024},
        {"--max-seqs", CMDLINE_INT, &o->max_seqs, "N", .help = "sequences at once; default 32",
         .min = 1, .max = 4096},
        {"--max-rows", CMDLINE_INT, &o->max_rows, "N", .help = "token rows of a step; default 512",
         .min = 1, .max = 65536},
        {"--context", CMDLINE_INT, &o->context, "N",
         .help = "longest sequence; default: the model's", .max = LIMIT_CONTEXT},
        {"--kv-tokens", CMDLINE_INT, &o->kv_tokens, "N",
         .help = "tokens in the KV cache; default 4 contexts, at most 2 GiB", .max = 4294967296.0},
        {"--block-tokens", CMDLINE_INT, &o->block_tokens, "N",
         .help = "tokens of a KV block; default 32", .min = 1, .max = 1024},
        {"--prefill-chunk", CMDLINE_INT, &o->prefill_chunk, "N",
         .help = "prompt rows of a step while others decode; default 128", .min = 1, .max = 65536},
        {"--fault-file", CMDLINE_STRING, &o->fault_file, "FILE",
         .help = "for tests: while it holds `wrong`, `slow` or `hang`, so are the steps"},
        {"--mock-step-us", CMDLINE_INT, &o->mock_step_us, "US", .help = "mock: time of a step",
         .max = 60e6},
        {"--mock-row-us", CMDLINE_INT, &o->mock_row_us, "US",
         .help = "mock: and of each of its rows", .max = 1e6},
        {"--mock-vocab", CMDLINE_INT, &o->mock_vocab, "N",
         .help = "mock: token ids it knows; default 4096", .min = 2, .max = LIMIT_VOCAB},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal node [OPTION...]", .about = about, .opts = opts, .after = after};
    return cmdline_parse(&c, argc, argv, NULL, NULL);
}

static void override_number(int64_t *to, int64_t from)
{
    if (from >= 0)
        *to = from;
}

static void apply(const struct options *o, struct node_file *f)
{
    cmdline_override(&f->name, o->name);
    cmdline_override(&f->coordinator, o->coordinator);
    cmdline_override(&f->host, o->host);
    cmdline_override(&f->backend, o->backend);
    cmdline_override(&f->engine, o->engine);
    cmdline_override(&f->bind, o->bind);
    cmdline_override(&f->rdma, o->rdma);
    cmdline_override(&f->cluster_key, o->cluster_key);
    cmdline_override(&f->random_weights, o->random_weights);
    cmdline_override(&f->weights, o->weights);
    cmdline_override(&f->models_dir, o->models_dir);
    override_number(&f->device, o->device);
    cmdline_override(&f->fault_file, o->fault_file);
    override_number(&f->threads, o->threads);
    override_number(&f->max_seqs, o->max_seqs);
    override_number(&f->max_rows, o->max_rows);
    override_number(&f->context, o->context);
    override_number(&f->kv_tokens, o->kv_tokens);
    override_number(&f->block_tokens, o->block_tokens);
    override_number(&f->prefill_chunk, o->prefill_chunk);
    override_number(&f->serve_weights_mib, o->serve_weights_mib);
    override_number(&f->mock_step_us, o->mock_step_us);
    override_number(&f->mock_row_us, o->mock_row_us);
    override_number(&f->mock_vocab, o->mock_vocab);
}

static void fill_names(struct node_file *f)
{
    char host[LIMIT_NAME] = "localhost", name[LIMIT_NAME + 16];
    gethostname(host, sizeof host - 1);
    if (!f->host)
        f->host = mem_strdup(host);
    snprintf(name, sizeof name, "%.40s-%d", host, (int)getpid());
    if (!f->name)
        f->name = mem_strdup(name);
}

static struct engine *create_model(void *user, void (*wake)(void *), void *arg, struct errmsg *e)
{
    const struct node_file *f = user;
    struct engine_model_config config = {
        .backend = strcmp(f->backend, "cuda") ? KERN_CPU : KERN_CUDA,
        .threads = (int)f->threads,
        .device = (int)f->device,
        .bind = f->bind,
        .rdma = f->rdma,
        .wire = {.traffic_class = (uint8_t)f->rdma_traffic_class,
                 .ack_timeout = (uint8_t)f->rdma_ack_timeout,
                 .retries = (uint8_t)f->rdma_retries},
        .max_seqs = (uint32_t)f->max_seqs,
        .max_rows = (uint32_t)f->max_rows,
        .context = (uint32_t)f->context,
        .kv_tokens = (uint64_t)f->kv_tokens,
        .block_tokens = (uint32_t)f->block_tokens,
        .fault_file = f->fault_file,
        .weights = !strcmp(f->weights, "disk")   ? WEIGHTS_DISK
                   : !strcmp(f->weights, "peer") ? WEIGHTS_PEER
                                                 : WEIGHTS_AUTO,
        .models_dir = f->models_dir,
        .serve_weights_mib = (uint32_t)f->serve_weights_mib,
        .spin_us = 10,
        .random_weights = f->random_weights != NULL,
    };
    // "published" leaves it to config.json; the words were checked.
    if (f->random_weights && strcmp(f->random_weights, "published") &&
        model_precision_of(f->random_weights, &config.precision, e) != STATUS_OK)
        return NULL;
    return engine_model_create(&config, wake, arg, e);
}

static struct engine *create_mock(void *user, void (*wake)(void *), void *arg, struct errmsg *e)
{
    const struct node_file *f = user;
    struct mock_config config = mock_config_default();
    config.max_seqs = (uint32_t)f->max_seqs;
    config.max_rows = (uint32_t)f->max_rows;
    config.block_tokens = (uint32_t)f->block_tokens;
    config.step_us = (uint64_t)f->mock_step_us;
    config.row_us = (uint64_t)f->mock_row_us;
    config.vocab = (uint32_t)f->mock_vocab;
    if (f->context)
        config.max_context = (uint32_t)f->context;
    if (f->kv_tokens)
        config.kv_blocks = (uint32_t)(f->kv_tokens / config.block_tokens + 1);
    struct engine_mock_args args = {
        .config = &config, .wake = wake, .wake_ctx = arg, .fault_file = f->fault_file};
    return engine_mock_create_real(&args);
}

static int run(struct node_file *f)
{
    bool mock = !strcmp(f->engine, "mock");
    char who[LIMIT_NAME + 8];
    snprintf(who, sizeof who, "node %s", f->name);
    log_set_who(who);
    struct node_shell_config config = {
        .name = f->name,
        .host = f->host,
        .backend = mock ? "mock" : f->backend,
        .coordinator = f->coordinator,
        .cluster_key = f->cluster_key,
        .engine = {.create = mock ? create_mock : create_model, .user = f},
        .core = {.prefill_chunk = (uint32_t)f->prefill_chunk},
    };
    struct errmsg e = {0};
    enum status rc = node_shell_run(&config, &e);
    if (rc != STATUS_OK)
        log_error("cannot start: %s", e.text[0] ? e.text : status_text(rc));
    return rc == STATUS_OK ? CMD_OK : CMD_FAILED;
}

int cmd_node(int argc, char **argv)
{
    struct options o = {.device = -1,
                        .threads = -1,
                        .max_seqs = -1,
                        .max_rows = -1,
                        .context = -1,
                        .kv_tokens = -1,
                        .block_tokens = -1,
                        .prefill_chunk = -1,
                        .serve_weights_mib = -1,
                        .mock_step_us = -1,
                        .mock_row_us = -1,
                        .mock_vocab = -1};
    int rc = parse(&o, argc, argv);
    if (rc != CMDLINE_GO)
        return rc;
    struct node_file f;
    struct errmsg e = {0};
    node_file_default(&f);
    enum status st = o.config ? node_file_load(o.config, &f, &e) : STATUS_OK;
    if (st == STATUS_OK) {
        apply(&o, &f);
        fill_names(&f);
        st = node_file_check(&f, &e);
    }
    if (st == STATUS_OK) {
        rc = run(&f);
    } else {
        fprintf(stderr, "hadal node: %s\n", e.text);
        rc = CMD_FAILED;
    }
    node_file_finish(&f);
    return rc;
}
