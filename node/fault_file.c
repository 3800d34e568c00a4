// One small read of a local file, and only in tests: it may block the engine's thread.
#include "node/fault_file.h"

#include <stdio.h>
#include <string.h>

enum node_fault fault_file_now(struct fault_file *f, uint64_t now_us)
{
    static const char *const words[] = {"", "wrong", "slow", "hang"};
    enum { EVERY_US = 20000 };
    char word[16] = "";
    if (!f->path || !*f->path || (f->read_us && now_us - f->read_us < EVERY_US))
        return f->fault;
    f->read_us = now_us;
    f->fault = NODE_FAULT_NONE;
    FILE *in = fopen(f->path, "r");
    if (!in)
        return f->fault;
    if (fscanf(in, "%15s", word) == 1)
        for (int i = NODE_FAULT_WRONG; i <= NODE_FAULT_HANG; i++)
            if (!strcmp(word, words[i]))
                f->fault = (enum node_fault)i;
    fclose(in);
    return f->fault;
}
