// What the fake NVML reports. The test loads the library itself to find fake_nvml_set.
#pragma once

#include <stdint.h>

enum fake_nvml_value {
    FAKE_NVML_RESULT, // of every query: 0 = fine, 15 = the GPU is lost
    FAKE_NVML_UTILIZATION,
    FAKE_NVML_CORRECTED,
    FAKE_NVML_UNCORRECTED,
    FAKE_NVML_XID, // reported once
    FAKE_NVML_NO_EVENTS,
    FAKE_NVML_HANG, // calls do not return while it is set
    FAKE_NVML_VALUES
};
void fake_nvml_set(enum fake_nvml_value which, uint64_t v);
