// Loads libhadal_cuda.so: $HADAL_CUDA_MODULE when it is set, else beside the executable, in
// ../lib of it, or in the kernels/cuda folder of a build tree.
#include "kernels/cuda_load.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda_comm.h"
#include "kernels/kern_impl.h"

static const char *const places[] = {"libhadal_cuda.so", "../lib/libhadal_cuda.so",
                                     "kernels/cuda/libhadal_cuda.so"};

static struct {
    pthread_once_t once;
    kern_cuda_open_fn *open;
    kern_cuda_limits_fn *limits;
    kern_cuda_comm_fn *comm;
    kern_cuda_uuid_fn *uuid;
    struct errmsg why_not;
} module = {.once = PTHREAD_ONCE_INIT};

// Folder of the running program, with a slash; empty when it cannot be told.
static void program_folder(char out[PATH_MAX])
{
    ssize_t n = readlink("/proc/self/exe", out, PATH_MAX - 1);
    out[n > 0 ? n : 0] = 0;
    char *slash = strrchr(out, '/');
    out[slash ? slash + 1 - out : 0] = 0;
}

// The first place that has a file; the module's path in out.
static bool find_module(char out[2 * PATH_MAX])
{
    const char *forced = getenv("HADAL_CUDA_MODULE");
    if (forced && *forced) {
        snprintf(out, 2 * PATH_MAX, "%s", forced);
        return true;
    }
    char folder[PATH_MAX];
    program_folder(folder);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(out, 2 * PATH_MAX, "%s%s", folder, places[i]);
        if (access(out, R_OK) == 0)
            return true;
    }
    errmsg_set(&module.why_not, STATUS_NO_DEVICE,
               "backend cuda: no libhadal_cuda.so in %s or its ../lib; HADAL_CUDA_MODULE names "
               "another place",
               folder);
    return false;
}

static void load_module(void)
{
    char path[2 * PATH_MAX];
    if (!find_module(path))
        return;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        errmsg_set(&module.why_not, STATUS_NO_DEVICE, "backend cuda: %s", dlerror());
        return;
    }
    // POSIX lets a data pointer from dlsym be a function; ISO C has no cast for it.
    memcpy(&module.open, &(void *){dlsym(handle, KERN_CUDA_ENTRY)}, sizeof module.open);
    memcpy(&module.limits, &(void *){dlsym(handle, KERN_CUDA_LIMITS)}, sizeof module.limits);
    memcpy(&module.comm, &(void *){dlsym(handle, KERN_CUDA_COMM)}, sizeof module.comm);
    memcpy(&module.uuid, &(void *){dlsym(handle, KERN_CUDA_UUID)}, sizeof module.uuid);
    if (!module.open || !module.limits || !module.comm || !module.uuid) {
        module.open = NULL;
        errmsg_set(&module.why_not, STATUS_NO_DEVICE, "backend cuda: %s is no module of ours",
                   path);
    }
}

enum status kern_cuda_open(const struct kern_config *config, struct kern **kern_out,
                           struct errmsg *err)
{
    pthread_once(&module.once, load_module);
    if (!module.open)
        return errmsg_set(err, STATUS_NO_DEVICE, "%s", module.why_not.text);
    return module.open(KERN_CUDA_ABI, config, kern_out, err);
}

enum status kern_cuda_measure(struct kern *k, struct kern_cuda_limits *out, struct errmsg *err)
{
    assert(kern_backend(k) == KERN_CUDA && module.limits);
    return module.limits(k, out, err);
}

void kern_cuda_environment(void)
{
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    setenv("NCCL_NVLS_ENABLE", "0", 1);
}

bool kern_cuda_uuid(struct kern *k, char out[KERN_CUDA_UUID_BYTES])
{
    assert(kern_backend(k) == KERN_CUDA && module.uuid);
    return module.uuid(k, out);
}

const struct cuda_comm_ops *kern_cuda_comm(struct errmsg *err)
{
    pthread_once(&module.once, load_module);
    const struct cuda_comm_ops *ops = module.open ? module.comm() : NULL;
    if (!ops)
        (void)errmsg_set(err, STATUS_NO_DEVICE, "%s", module.why_not.text);
    else if (ops->abi != CUDA_COMM_ABI)
        (void)errmsg_set(
            err, STATUS_NO_DEVICE,
            "backend cuda: collectives of another build (interface %d, the program has "
            "%d)",
            ops->abi, CUDA_COMM_ABI);
    return ops && ops->abi == CUDA_COMM_ABI ? ops : NULL;
}
