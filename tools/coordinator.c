// hadal coordinator: the process that accepts clients. The configuration file comes first, options
// override it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "coordinator/config.h"
#include "tools/cmd.h"
#include "tools/cmdline.h"

struct options {
    const char *config, *http, *rpc, *model, *model_name, *transport, *name, *store, *elastic;
    int64_t replicas, prefill, decode, stages, tensor, grace_ms, retention_ms, ready_fd;
};

static const char about[] =
    "Accepts clients (OpenAI's HTTP API, and the RPC of client/hadal.h) and nodes, forms replicas\n"
    "of the nodes, and keeps every answer going whichever of them dies.\n"
    "Prints `http URL`, `rpc HOST:PORT` once it listens and `ready URL` once a replica serves.";
static const char after[] = "examples:\n"
                            "  hadal coordinator --config configs/coordinator.yaml\n"
                            "  hadal coordinator --model models/sample --replicas 2 --stages 2 "
                            "--http 127.0.0.1:8000";

static int parse(struct options *o, int argc, char **argv)
{
    const struct cmdline_opt opts[] = {
        {"--config", CMDLINE_STRING, &o->config, "FILE",
         .help = "configuration; see configs/coordinator.yaml"},
        {"--http", CMDLINE_STRING, &o->http, "HOST:PORT",
         .help = "where HTTP clients connect; port 0: any; default 127.0.0.1:8000"},
        {"--rpc", CMDLINE_STRING, &o->rpc, "HOST:PORT",
         .help = "where nodes and RPC clients connect; default 127.0.0.1:7070"},
        {"--model", CMDLINE_STRING, &o->model, "DIR",
         .help = "model folder; default models/sample"},
        {"--model-name", CMDLINE_STRING, &o->model_name, "NAME",
         .help = "what clients call it; default: the folder's name"},
        {"--replicas", CMDLINE_INT, &o->replicas, "R", .help = "replicas wanted; default 1",
         .min = 1, .max = COORD_MAX_REPLICAS},
        {"--prefill", CMDLINE_INT, &o->prefill, "P",
         .help = "of the replicas, for long prompts; default 0", .max = COORD_MAX_REPLICAS},
        {"--elastic", CMDLINE_STRING, &o->elastic, "MIN..MAX",
         .help = "replicas come and go with the load, within this"},
        {"--decode", CMDLINE_INT, &o->decode, "D", .help = "of the replicas, for decoding; default 0",
         .max = COORD_MAX_REPLICAS},
        {"--stages", CMDLINE_INT, &o->stages, "S", .help = "pipeline stages of each; default 1",
         .min = 1, .max = LIMIT_STAGES},
        {"--tensor", CMDLINE_INT, &o->tensor, "T", .help = "tensor ranks of a stage; default 1",
         .min = 1, .max = LIMIT_TENSOR},
        {"--transport", CMDLINE_CHOICE, &o->transport, "X", .help = "among the ranks; default auto",
         .choices = "auto|shm|tcp|verbs"},
        {"--name", CMDLINE_STRING, &o->name, "NAME",
         .help = "of this one, where there are several; default coordinator"},
        {"--store", CMDLINE_STRING, &o->store, "URL",
         .help = "who leads of several: file:PATH or etcd:URL[,URL...]; default: the only one"},
        {"--grace-ms", CMDLINE_INT, &o->grace_ms, "MS",
         .help = "how long a request goes on without a client", .max = 86400e3},
        {"--retention-ms", CMDLINE_INT, &o->retention_ms, "MS",
         .help = "how long a finished one may be taken up again", .max = 86400e3},
        {"--ready-fd", CMDLINE_INT, &o->ready_fd, "FD",
         .help = "the lines printed go to this descriptor too", .max = 1 << 20},
        {0},
    };
    const struct cmdline c = {
        .usage = "hadal coordinator [OPTION...]", .about = about, .opts = opts, .after = after};
    return cmdline_parse(&c, argc, argv, NULL, NULL);
}

// A bare port means this host only.
static void override_address(char **to, const char *from)
{
    struct strbuf full = {0};
    if (from && !strchr(from, ':'))
        strbuf_printf(&full, "127.0.0.1:%s", from);
    cmdline_override(to, full.v ? full.v : from);
    strbuf_finish(&full);
}

static void override_number(uint32_t *to, int64_t from)
{
    if (from >= 0)
        *to = (uint32_t)from;
}

static void override_all(struct coordinator_config *c, const struct options *o)
{
    static const char *const transports[] = {"auto", "shm", "tcp", "verbs"};
    override_address(&c->http, o->http);
    override_address(&c->rpc, o->rpc);
    cmdline_override(&c->model, o->model);
    cmdline_override(&c->model_name, o->model_name);
    cmdline_override(&c->name, o->name);
    cmdline_override(&c->store, o->store);
    override_number(&c->core.replicas, o->replicas);
    override_number(&c->core.prefill_replicas, o->prefill);
    override_number(&c->core.decode_replicas, o->decode);
    override_number(&c->core.stages, o->stages);
    override_number(&c->core.tensor, o->tensor);
    override_number(&c->core.grace_ms, o->grace_ms);
    override_number(&c->core.retention_ms, o->retention_ms);
    c->ready_fd = (int)o->ready_fd;
    for (int i = 0; i <= TRANSPORT_VERBS; i++)
        if (o->transport && !strcmp(o->transport, transports[i]))
            c->core.transport = (enum transport_choice)i;
}

static bool take_elastic(struct coordinator_config *c, const char *range)
{
    int64_t lo, hi;
    if (!range)
        return true;
    if (!cmdline_range(range, &lo, &hi) || lo < 1 || hi > COORD_MAX_REPLICAS) {
        fprintf(stderr, "hadal coordinator: --elastic '%.40s' is not MIN..MAX in 1..%d\n", range,
                COORD_MAX_REPLICAS);
        return false;
    }
    c->core.elastic.min = (uint32_t)lo;
    c->core.elastic.max = (uint32_t)hi;
    return true;
}

int cmd_coordinator(int argc, char **argv)
{
    struct options o = {.replicas = -1,
                        .prefill = -1,
                        .decode = -1,
                        .stages = -1,
                        .tensor = -1,
                        .grace_ms = -1,
                        .retention_ms = -1,
                        .ready_fd = -1};
    int rc = parse(&o, argc, argv);
    if (rc != CMDLINE_GO)
        return rc;
    log_set_who("coordinator");
    struct coordinator_config cfg;
    struct errmsg err = {0};
    enum status s = STATUS_OK;
    coordinator_config_default(&cfg);
    if (o.config) {
        struct coordinator_config file;
        s = coordinator_config_load(o.config, &file, &err);
        if (!s) {
            coordinator_config_finish(&cfg);
            cfg = file;
        }
    }
    override_all(&cfg, &o);
    if (!take_elastic(&cfg, o.elastic)) {
        coordinator_config_finish(&cfg);
        return CMD_USAGE;
    }
    if (!s)
        s = coordinator_config_check(&cfg, &err);
    if (!s)
        s = coordinator_run(&cfg, &err);
    if (s)
        fprintf(stderr, "hadal coordinator: %s\n", err.text);
    coordinator_config_finish(&cfg);
    return s ? CMD_FAILED : CMD_OK;
}
