// Loading of libibverbs.so.1 and librdmacm.so.1. Their ABI is versioned and kept; the symbols taken
// are the default ones.
#include "rdma/verbs_lib.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>

static struct verbs_lib table;
static struct errmsg why_not;
static enum status outcome;
static pthread_once_t once = PTHREAD_ONCE_INIT;

struct symbol {
    const char *name;
    size_t offset;
};

static const struct symbol symbols[] = {
#define VERBS_SYMBOL(type, name, args, prefix)                                                     \
    {#prefix "_" #name, offsetof(struct verbs_lib, prefix.name)},
    VERBS_SYMBOLS(VERBS_SYMBOL)
#undef VERBS_SYMBOL
};

static void load(void)
{
    static const char *const files[2] = {"libibverbs.so.1", "librdmacm.so.1"};
    void *libs[2];
    for (int i = 0; i < 2; i++) {
        libs[i] = dlopen(files[i], RTLD_NOW | RTLD_LOCAL);
        if (!libs[i]) {
            outcome = errmsg_set(&why_not, STATUS_NO_DEVICE, "xport verbs: %s", dlerror());
            return;
        }
    }
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        int from = strncmp(symbols[i].name, "ibv_", 4) != 0;
        void *p = dlsym(libs[from], symbols[i].name);
        if (!p) {
            outcome = errmsg_set(&why_not, STATUS_NO_DEVICE, "xport verbs: %s has no %s",
                                 files[from], symbols[i].name);
            return;
        }
        memcpy((char *)&table + symbols[i].offset, &p, sizeof p);
    }
}

enum status verbs_lib_load(struct errmsg *e)
{
    pthread_once(&once, load);
    if (outcome != STATUS_OK && e)
        *e = why_not;
    return outcome;
}

const struct verbs_lib *verbs_lib(void)
{
    return &table;
}
