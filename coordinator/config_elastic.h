// The part `elastic` of the coordinator's YAML file. Private to the configuration.
#pragma once

#include "base/config.h"
#include "coordinator/config.h"

struct yaml_step {
    int64_t wait_ms, add;
};

struct yaml_elastic {
    int64_t *min, *max, *up_window_ms, *down_window_ms, *down_percent, *hold_ms, *hook_timeout_ms;
    struct yaml_step *up;
    unsigned up_count;
    char **hook;
    unsigned hook_count;
};

extern const cyaml_schema_field_t config_elastic_fields[];
STATUS_MUST_USE enum status config_elastic_take(const char *path, const struct yaml_elastic *y,
                                                struct coordinator_config *c, struct errmsg *err);
