#include "node/nvml.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"

// ---- of nvml.h: values and layouts that NVML keeps

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t, *nvmlEventSet_t;
enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_TEMPERATURE_GPU = 0,
    NVML_CLOCK_SM = 1,
    NVML_ECC_CORRECTED = 0,
    NVML_ECC_UNCORRECTED = 1,
    NVML_ECC_SINCE_DRIVER_LOAD = 0,
    NVML_EVENT_XID = 8,
};
struct nvml_utilization {
    unsigned gpu, memory;
};
struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_event {
    nvmlDevice_t device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
};

#define FUNCTIONS(X)                                                                               \
    X(nvmlReturn_t, nvmlInit_v2, (void))                                                           \
    X(nvmlReturn_t, nvmlShutdown, (void))                                                          \
    X(const char *, nvmlErrorString, (nvmlReturn_t))                                               \
    X(nvmlReturn_t, nvmlDeviceGetHandleByUUID, (const char *, nvmlDevice_t *))                     \
    X(nvmlReturn_t, nvmlDeviceGetName, (nvmlDevice_t, char *, unsigned))                           \
    X(nvmlReturn_t, nvmlDeviceGetUtilizationRates, (nvmlDevice_t, struct nvml_utilization *))      \
    X(nvmlReturn_t, nvmlDeviceGetMemoryInfo, (nvmlDevice_t, struct nvml_memory *))                 \
    X(nvmlReturn_t, nvmlDeviceGetTemperature, (nvmlDevice_t, int, unsigned *))                     \
    X(nvmlReturn_t, nvmlDeviceGetPowerUsage, (nvmlDevice_t, unsigned *))                           \
    X(nvmlReturn_t, nvmlDeviceGetClockInfo, (nvmlDevice_t, int, unsigned *))                       \
    X(nvmlReturn_t, nvmlDeviceGetTotalEccErrors, (nvmlDevice_t, int, int, unsigned long long *))   \
    X(nvmlReturn_t, nvmlEventSetCreate, (nvmlEventSet_t *))                                        \
    X(nvmlReturn_t, nvmlEventSetFree, (nvmlEventSet_t))                                            \
    X(nvmlReturn_t, nvmlDeviceRegisterEvents, (nvmlDevice_t, unsigned long long, nvmlEventSet_t))  \
    X(nvmlReturn_t, nvmlEventSetWait_v2, (nvmlEventSet_t, struct nvml_event *, unsigned))

struct nvml {
    void *library;
    nvmlDevice_t device;
    nvmlEventSet_t events; // NULL: none are reported
    bool started;
    char name[LIMIT_NAME];
#define POINTER(type, name, args) type(*name) args;
    FUNCTIONS(POINTER)
#undef POINTER
};

static enum status find_functions(struct nvml *n, struct errmsg *e)
{
#define FIND(type, f, args)                                                                        \
    memcpy(&n->f, &(void *){dlsym(n->library, #f)}, sizeof n->f);                                  \
    if (!n->f)                                                                                     \
        return errmsg_set(e, STATUS_NO_DEVICE, "NVML has no %s", #f);
    FUNCTIONS(FIND)
#undef FIND
    return STATUS_OK;
}

static enum status check(struct nvml *n, nvmlReturn_t r, const char *what, struct errmsg *e)
{
    return r == NVML_SUCCESS
               ? STATUS_OK
               : errmsg_set(e, STATUS_NO_DEVICE, "%s: %s", what, n->nvmlErrorString(r));
}

// Events are a help, not a need: virtual machines may have none.
static void listen(struct nvml *n)
{
    nvmlReturn_t r = n->nvmlEventSetCreate(&n->events);
    if (r != NVML_SUCCESS)
        n->events = NULL;
    else
        r = n->nvmlDeviceRegisterEvents(n->device, NVML_EVENT_XID, n->events);
    if (r == NVML_SUCCESS)
        return;
    log_info("NVML reports no XIDs here: %s", n->nvmlErrorString(r));
    if (n->events)
        n->nvmlEventSetFree(n->events);
    n->events = NULL;
}

enum status nvml_open(const char *library, const char *uuid, struct nvml **out, struct errmsg *e)
{
    struct nvml *n = mem_zalloc(1, sizeof *n);
    enum status s = STATUS_OK;
    n->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!n->library)
        s = errmsg_set(e, STATUS_NO_DEVICE, "%s", dlerror());
    if (s == STATUS_OK)
        s = find_functions(n, e);
    if (s == STATUS_OK)
        s = check(n, n->nvmlInit_v2(), "nvmlInit", e);
    n->started = s == STATUS_OK;
    if (s == STATUS_OK)
        s = check(n, n->nvmlDeviceGetHandleByUUID(uuid, &n->device), uuid, e);
    if (s == STATUS_OK)
        s = check(n, n->nvmlDeviceGetName(n->device, n->name, sizeof n->name), "name", e);
    if (s != STATUS_OK) {
        nvml_close(n);
        return s;
    }
    n->name[sizeof n->name - 1] = 0;
    listen(n);
    *out = n;
    return STATUS_OK;
}

void nvml_close(struct nvml *n)
{
    if (!n)
        return;
    if (n->events)
        n->nvmlEventSetFree(n->events);
    if (n->started)
        n->nvmlShutdown();
    if (n->library)
        dlclose(n->library);
    free(n);
}

bool nvml_sample(struct nvml *n, struct gpu_figures *out)
{
    struct nvml_utilization u = {0};
    struct nvml_memory m = {0};
    unsigned celsius = 0, mw = 0, mhz = 0;
    unsigned long long corrected = 0, uncorrected = 0;
    const nvmlReturn_t r[] = {
        n->nvmlDeviceGetUtilizationRates(n->device, &u),
        n->nvmlDeviceGetMemoryInfo(n->device, &m),
        n->nvmlDeviceGetTemperature(n->device, NVML_TEMPERATURE_GPU, &celsius),
        n->nvmlDeviceGetPowerUsage(n->device, &mw),
        n->nvmlDeviceGetClockInfo(n->device, NVML_CLOCK_SM, &mhz),
        n->nvmlDeviceGetTotalEccErrors(n->device, NVML_ECC_CORRECTED, NVML_ECC_SINCE_DRIVER_LOAD,
                                       &corrected),
        n->nvmlDeviceGetTotalEccErrors(n->device, NVML_ECC_UNCORRECTED, NVML_ECC_SINCE_DRIVER_LOAD,
                                       &uncorrected),
    };
    bool lost = false;
    for (size_t i = 0; i < sizeof r / sizeof *r; i++)
        lost = lost || r[i] == NVML_ERROR_GPU_IS_LOST;
    out->present = true;
    memcpy(out->name, n->name, sizeof out->name);
    out->utilization_percent = u.gpu <= 100 ? u.gpu : 100;
    out->memory_used_bytes = m.used;
    out->memory_total_bytes = m.total;
    out->temperature_c = celsius;
    out->power_mw = mw;
    out->sm_mhz = mhz;
    out->ecc_corrected = corrected;
    out->ecc_uncorrected = uncorrected;
    return !lost;
}

static void rest(uint32_t ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

bool nvml_wait_xid(struct nvml *n, uint32_t ms, uint32_t *xid_out)
{
    struct nvml_event ev = {0};
    if (!n->events) {
        rest(ms);
        return false;
    }
    nvmlReturn_t r = n->nvmlEventSetWait_v2(n->events, &ev, ms);
    if (r != NVML_SUCCESS && r != NVML_ERROR_TIMEOUT)
        rest(ms); // an error comes back at once: do not spin on it
    if (r != NVML_SUCCESS || ev.type != NVML_EVENT_XID)
        return false;
    *xid_out = (uint32_t)ev.data;
    return true;
}
