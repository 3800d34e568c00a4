// The keys `pools` and `aliases` of the configuration file: several models, or several pools of
// one.
#pragma once

#include "base/config.h"
#include "coordinator/config.h"

struct yaml_pool {
    char *name, *model, *dir, *fallback;
    int64_t *replicas, *prefill, *decode, *stages, *tensor, *weight, *prompt_max;
};

struct yaml_alias {
    char *name, *model;
};

extern const cyaml_schema_value_t config_pool_schema, config_alias_schema;

// Into c->pools and c->aliases. Errors name file, field and value.
STATUS_MUST_USE enum status config_take_pools(const char *path, const struct yaml_pool *pools,
                                              unsigned pools_n, const struct yaml_alias *aliases,
                                              unsigned aliases_n, struct coordinator_config *c,
                                              struct errmsg *err);
void config_pools_finish(struct coordinator_config *c);
