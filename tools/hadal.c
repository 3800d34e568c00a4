// The one binary: finds the subcommand and hands it the rest of the command line.
#include <stdio.h>
#include <string.h>

#include "kernels/cuda_load.h"
#include "tools/cmd.h"

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
};

static const struct command commands[] = {
    {"tokenize", cmd_tokenize, "texts to token ids and back"},
    {"up", cmd_up, "a whole cluster on this host"},
    {"coordinator", cmd_coordinator, "the process that accepts clients"},
    {"node", cmd_node, "one node of a cluster"},
    {"chat", cmd_chat, "ask the model, watch the answer come"},
    {"ctl", cmd_ctl, "state of a cluster, and orders to it"},
    {"load", cmd_load, "load, faults and percentiles; checks every answer"},
    {"logits", cmd_logits, "logits of a row of token ids, in any layout"},
    {"eval", cmd_eval, "accuracy and perplexity on a suite of questions"},
    {"quantize", cmd_quantize, "a checkpoint in another precision"},
    {"bench", cmd_bench, "figures of this machine, each beside its limit"},
    {NULL, NULL, NULL},
};

static int usage(FILE *to, int rc)
{
    fputs("usage: hadal COMMAND [OPTION...]   (hadal COMMAND --help tells more)\n\n", to);
    for (const struct command *c = commands; c->name; c++)
        fprintf(to, "  %-12s %s\n", c->name, c->help);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return usage(stderr, CMD_USAGE);
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))
        return usage(stdout, CMD_OK);
    kern_cuda_environment();
    for (const struct command *c = commands; c->name; c++)
        if (!strcmp(c->name, argv[1]))
            return c->run(argc - 1, argv + 1);
    fprintf(stderr, "hadal: no command '%s'\n", argv[1]);
    return usage(stderr, CMD_USAGE);
}
