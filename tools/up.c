// hadal up: a whole cluster on this host. Nothing of the service goes through it: when a worker
// dies its clients are served on by the others while the process is started anew.
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "base/limits.h"
#include "base/log.h"
#include "kernels/cuda_comm.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"
#include "tools/sample_model.h"
#include "tools/up_cluster.h"

enum { UP_DEVICES_MAX = 64 };

// "vocab_size" of the model; 0 when config.json does not tell.
static int64_t vocab_of(const char *model)
{
    char path[PATH_MAX * 2 + 16];
    snprintf(path, sizeof path, "%s/config.json", model);
    json_t *config = json_load_file(path, 0, NULL);
    json_int_t n = json_integer_value(json_object_get(config, "vocab_size"));
    json_decref(config);
    return n > 1 && n <= LIMIT_VOCAB ? n : 0;
}

static int cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static int parse(struct up_options *o, int argc, char **argv)
{
    const struct cmdline_opt opts[] = {
        {"--model", CMDLINE_STRING, &o->model, "DIR", .help = "model folder (the sample model)"},
        {"--replicas", CMDLINE_INT, &o->replicas, "R", .min = 1, .max = UP_NODES_MAX,
         .help = "copies of the model (1)"},
        {"--prefill", CMDLINE_INT, &o->prefill, "P", .max = UP_NODES_MAX,
         .help = "copies that compute long prompts for the others (0)"},
        {"--decode", CMDLINE_INT, &o->decode, "D", .max = UP_NODES_MAX,
         .help = "copies that decode; with --prefill and no --replicas, R = P + D"},
        {"--elastic", CMDLINE_STRING, &o->elastic, "MIN..MAX",
         .help = "so many copies as the load asks for; nodes are started and stopped"},
        {"--stages", CMDLINE_INT, &o->stages, "S", .min = 1, .max = LIMIT_STAGES,
         .help = "pipeline stages of each (1)"},
        {"--tensor", CMDLINE_INT, &o->tensor, "T", .min = 1, .max = LIMIT_TENSOR,
         .help = "tensor ranks of each stage (1)"},
        {"--coordinators", CMDLINE_INT, &o->coordinators, "C", .min = 1, .max = UP_COORDINATORS_MAX,
         .help = "all serve, one leads; any may die (1)"},
        {"--http", CMDLINE_INT, &o->http, "PORT", .max = 65535,
         .help = "port of the HTTP API (8000; 0 = any free one)"},
        {"--rpc", CMDLINE_INT, &o->rpc, "PORT", .max = 65535,
         .help = "port of the RPC (any free one)"},
        {"--backend", CMDLINE_CHOICE, &o->backend, .choices = "cpu|cuda", .help = "(cpu)"},
        {"--transport", CMDLINE_CHOICE, &o->transport, .choices = "auto|shm|tcp|verbs",
         .help = "between the ranks (auto)"},
        {"--engine", CMDLINE_CHOICE, &o->engine, .choices = "model|mock",
         .help = "mock computes nothing: tokens from a hash (model)"},
        {"--mock-step-us", CMDLINE_INT, &o->mock_step_us, "US", .max = 60e6,
         .help = "time of a step of the mock engine"},
        {"--random-weights", CMDLINE_CHOICE, &o->random_weights,
         .choices = "published|bf16|fp8|int8",
         .help = "instead of the model's, made from its config.json; for measuring"},
        {"--max-seqs", CMDLINE_INT, &o->max_seqs, "N", .max = 4096,
         .help = "sequences at once of each node (32)"},
        {"--max-rows", CMDLINE_INT, &o->max_rows, "N", .max = 65536,
         .help = "token rows of a step (512)"},
        {"--context", CMDLINE_INT, &o->context, "N", .max = LIMIT_CONTEXT,
         .help = "longest sequence (the model's)"},
        {"--kv-tokens", CMDLINE_INT, &o->kv_tokens, "N", .max = 4294967295.0,
         .help = "tokens in the KV cache (4 contexts, at most 2 GiB)"},
        {"--threads", CMDLINE_INT, &o->threads, "N", .min = 1, .max = 1024,
         .help = "of each node (cores / nodes)"},
        {"--ready-timeout", CMDLINE_INT, &o->ready_timeout_s, "S", .min = 1, .max = 86400,
         .help = "give up when it does not serve by then (600)"},
        {"--config", CMDLINE_STRING, &o->config, "FILE",
         .help = "of the coordinator, as configs/coordinator.yaml; what is named here goes before it"},
        {"--log", CMDLINE_STRING, &o->log_dir, "DIR", .help = "a log file for each process"},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal up [OPTION...]",
        .about = "Runs a whole cluster on this host: coordinators and R x S x T nodes. Prints\n"
                 "`ready URL` once it serves; what dies is started again; ctrl-C stops all.",
        .opts = opts,
    };
    return cmdline_parse(&c, argc, argv, NULL, NULL);
}

// GPUs that the nodes are dealt out to; 0 when there are none, and then the nodes say why. A process
// of its own asks: the driver may start threads, which would take the signals that this one waits
// for.
static int64_t count_devices(const struct up_options *o)
{
    if (strcmp(o->backend, "cuda") || !strcmp(o->engine, "mock"))
        return 0;
    pid_t pid = fork();
    if (pid == 0) {
        struct errmsg e = {0};
        const struct cuda_comm_ops *cuda = kern_cuda_comm(&e);
        int n = cuda ? cuda->devices() : 0;
        _exit(n < UP_DEVICES_MAX ? n : UP_DEVICES_MAX);
    }
    int status = 0;
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

// Says what does not fit and returns false.
static bool check(struct up_options *o)
{
    int64_t nodes = o->replicas_max * o->stages * o->tensor;
    struct stat st;
    if (nodes > UP_NODES_MAX)
        fprintf(stderr, "hadal up: %lld nodes; at most %d on one host\n", (long long)nodes,
                UP_NODES_MAX);
    else if (o->prefill + o->decode > o->replicas)
        fprintf(stderr, "hadal up: --prefill %lld and --decode %lld of %lld replicas\n",
                (long long)o->prefill, (long long)o->decode, (long long)o->replicas);
    else if (!o->model)
        fputs("hadal up: the sample model was not found; name a model folder with --model\n",
              stderr);
    else if (!is_model_folder(o->model))
        fprintf(stderr, "hadal up: %s: no readable config.json in it; is it a model folder?\n",
                o->model);
    else if (!strcmp(o->engine, "mock") && !(o->vocab = vocab_of(o->model)))
        fprintf(stderr, "hadal up: %s/config.json: no vocab_size between 2 and %d\n", o->model,
                LIMIT_VOCAB);
    else if (o->log_dir && mkdir(o->log_dir, 0755) && errno != EEXIST)
        fprintf(stderr, "hadal up: --log %s: %s\n", o->log_dir, strerror(errno));
    else if (o->log_dir && (stat(o->log_dir, &st) || !S_ISDIR(st.st_mode)))
        fprintf(stderr, "hadal up: --log %s: not a folder\n", o->log_dir);
    else
        return true;
    return false;
}

int cmd_up(int argc, char **argv)
{
    struct up_options o = {.model = sample_model(),
                           .backend = "cpu",
                           .transport = "auto",
                           .engine = "model",
                           .stages = 1,
                           .tensor = 1,
                           .coordinators = 1,
                           .http = 8000,
                           .ready_timeout_s = 600};
    int rc = parse(&o, argc, argv);
    if (rc == CMDLINE_GO) {
        if (o.replicas == 0)
            o.replicas = o.prefill + o.decode > 1 ? o.prefill + o.decode : 1;
        if (!o.elastic) {
            o.replicas_max = o.replicas;
        } else if (!cmdline_range(o.elastic, &o.replicas, &o.replicas_max) || o.replicas < 1) {
            fprintf(stderr, "hadal up: --elastic '%.40s' is not MIN..MAX\n", o.elastic);
            return CMD_USAGE;
        }
        int64_t nodes = o.replicas_max * o.stages * o.tensor;
        o.devices = count_devices(&o);
        if (o.threads == 0)
            o.threads = cores() > nodes ? cores() / nodes : 1;
        log_set_who("up");
        if (!o.log_dir)
            setenv("HADAL_LOG", "warn", 0); // five processes on one terminal
        rc = check(&o) ? up_cluster_run(&o) : CMD_FAILED;
    }
    return rc;
}
