// NVML, loaded at run time: what gpu_watch.c needs of it. Only prototypes of its stable interface
// are declared here; nothing of the CUDA toolkit is needed to build.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "proto/msg.h"

struct nvml; // the library and one device

// NO_DEVICE, with the reason: no library, no driver, or no such device.
enum status nvml_open(const char *library, const char *uuid, struct nvml **out,
                      struct errmsg *e) STATUS_MUST_USE;
void nvml_close(struct nvml *n); // NULL is fine

// Everything of `out` but xid, xids, suspect and reason; what a device does not report stays 0.
// false: the GPU is lost.
bool nvml_sample(struct nvml *n, struct gpu_figures *out);
// Waits up to `ms` for an XID; false: none came. On devices or drivers that report no events it
// only waits.
bool nvml_wait_xid(struct nvml *n, uint32_t ms, uint32_t *xid_out);
