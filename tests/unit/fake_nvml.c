// A libnvidia-ml.so.1 for tests: one device, whose figures and events are what the test says
// through fake_nvml_set.
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tests/unit/fake_nvml.h"

#define PUBLIC __attribute__((visibility("default")))

static _Atomic uint64_t values[FAKE_NVML_VALUES];
static int device, set;

PUBLIC void fake_nvml_set(enum fake_nvml_value which, uint64_t v)
{
    atomic_store(&values[which], v);
}

static uint64_t get(enum fake_nvml_value which)
{
    return atomic_load(&values[which]);
}

static int result(void)
{
    return (int)get(FAKE_NVML_RESULT);
}

PUBLIC int nvmlInit_v2(void);
PUBLIC int nvmlInit_v2(void)
{
    return 0;
}
PUBLIC int nvmlShutdown(void);
PUBLIC int nvmlShutdown(void)
{
    return 0;
}
PUBLIC const char *nvmlErrorString(int r);
PUBLIC const char *nvmlErrorString(int r)
{
    return r == 6 ? "not found" : "some error";
}
PUBLIC int nvmlDeviceGetHandleByUUID(const char *uuid, void **out);
PUBLIC int nvmlDeviceGetHandleByUUID(const char *uuid, void **out)
{
    *out = &device;
    return strcmp(uuid, "GPU-fake") ? 6 : 0;
}
PUBLIC int nvmlDeviceGetName(void *d, char *name, unsigned n);
PUBLIC int nvmlDeviceGetName(void *d, char *name, unsigned n)
{
    snprintf(name, n, "Fake 100");
    return d != &device;
}
PUBLIC int nvmlDeviceGetUtilizationRates(void *d, unsigned out[2]);
PUBLIC int nvmlDeviceGetUtilizationRates(void *d, unsigned out[2])
{
    out[0] = (unsigned)get(FAKE_NVML_UTILIZATION);
    return result();
}
PUBLIC int nvmlDeviceGetMemoryInfo(void *d, unsigned long long out[3]);
PUBLIC int nvmlDeviceGetMemoryInfo(void *d, unsigned long long out[3])
{
    out[0] = 80ull << 30;
    out[1] = 60ull << 30;
    out[2] = 20ull << 30;
    return result();
}
PUBLIC int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *out);
PUBLIC int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *out)
{
    *out = 55;
    return sensor ? 2 : result();
}
PUBLIC int nvmlDeviceGetPowerUsage(void *d, unsigned *out);
PUBLIC int nvmlDeviceGetPowerUsage(void *d, unsigned *out)
{
    *out = 312345;
    return result();
}
PUBLIC int nvmlDeviceGetClockInfo(void *d, int clock, unsigned *out);
PUBLIC int nvmlDeviceGetClockInfo(void *d, int clock, unsigned *out)
{
    *out = clock == 1 ? 1755 : 1;
    return result();
}
PUBLIC int nvmlDeviceGetTotalEccErrors(void *d, int kind, int counter, unsigned long long *out);
PUBLIC int nvmlDeviceGetTotalEccErrors(void *d, int kind, int counter, unsigned long long *out)
{
    *out = get(kind == 1 ? FAKE_NVML_UNCORRECTED : FAKE_NVML_CORRECTED);
    return counter ? 2 : result();
}
PUBLIC int nvmlEventSetCreate(void **out);
PUBLIC int nvmlEventSetCreate(void **out)
{
    *out = &set;
    return (int)get(FAKE_NVML_NO_EVENTS);
}
PUBLIC int nvmlEventSetFree(void *s);
PUBLIC int nvmlEventSetFree(void *s)
{
    return s != &set;
}
PUBLIC int nvmlDeviceRegisterEvents(void *d, unsigned long long types, void *s);
PUBLIC int nvmlDeviceRegisterEvents(void *d, unsigned long long types, void *s)
{
    return types != 8;
}

struct event {
    void *device;
    unsigned long long type, data;
    unsigned gpu, compute;
};
PUBLIC int nvmlEventSetWait_v2(void *s, struct event *out, unsigned ms);
PUBLIC int nvmlEventSetWait_v2(void *s, struct event *out, unsigned ms)
{
    struct timespec t = {.tv_nsec = 1000000};
    for (unsigned i = 0; i <= ms; i++) {
        uint64_t xid = atomic_exchange(&values[FAKE_NVML_XID], 0);
        if (xid) {
            *out = (struct event){.device = &device, .type = 8, .data = xid};
            return 0;
        }
        while (get(FAKE_NVML_HANG))
            nanosleep(&t, NULL);
        nanosleep(&t, NULL);
    }
    return 10;
}
