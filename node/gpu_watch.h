// Watches the GPU that a node computes on, by NVML, on a thread of its own: NVML calls can take
// long on a device that is in trouble, and neither the loop nor the heartbeats may wait for them.
// Without NVML, or without a GPU, there are no figures; that is no error.
//
// A device becomes suspect, and stays so while the process lives, by an XID of class XID_DEVICE, by
// a new uncorrected ECC error, or by NVML saying that the GPU is lost.
#pragma once

#include "base/status.h"
#include "node/engine.h"
#include "proto/msg.h"

struct gpu_watch;

struct gpu_watch_args {
    struct engine *engine; // outlives the watch; only ops->device is called
    const char *library;   // NULL = $HADAL_NVML, else libnvidia-ml.so.1; copied
    uint32_t period_ms;    // 0 = 1000
};

// NULL when the engine never has a device.
struct gpu_watch *gpu_watch_start(const struct gpu_watch_args *args);
// From any thread, never waits for the device: the latest figures.
void gpu_watch_read(struct gpu_watch *w, struct gpu_figures *out); // NULL gives none
// Joins the thread, except one that hangs in a call of NVML for over a second: that one is left to
// the process' end.
void gpu_watch_stop(struct gpu_watch *w); // NULL is fine
