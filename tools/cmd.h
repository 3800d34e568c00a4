// The subcommands of the binary. Each gets its own argv (argv[0] is the subcommand's name), prints
// its own --help, and returns the exit code of the process.
#pragma once

enum {
    CMD_OK = 0,
    CMD_FAILED = 1, // the work failed; the cause was printed
    CMD_USAGE = 2,  // the command line was wrong
};

int cmd_tokenize(int argc, char **argv); // tokenize.c
int cmd_load(int argc, char **argv);     // load.c
int cmd_logits(int argc, char **argv);   // logits.c
int cmd_bench(int argc, char **argv);    // bench.c
int cmd_node(int argc, char **argv);     // node.c
int cmd_up(int argc, char **argv);       // up.c
int cmd_eval(int argc, char **argv);     // eval.c
int cmd_quantize(int argc, char **argv); // quantize.c
int cmd_chat(int argc, char **argv);     // chat.c
int cmd_ctl(int argc, char **argv);      // ctl.c
int cmd_coordinator(int argc, char **argv); // coordinator.c
