// Ranges are elastic_config_check's; here only what would not fit into its fields.
#include "coordinator/config_elastic.h"

#include <stddef.h>

#include "base/limits.h"
#include "base/mem.h"

enum { HOOK_WORDS = 32 };

#define NUMBER(key)                                                                                \
    CYAML_FIELD_INT_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_elastic, key)

static const cyaml_schema_field_t step_fields[] = {
    CYAML_FIELD_INT("wait_ms", CYAML_FLAG_DEFAULT, struct yaml_step, wait_ms),
    CYAML_FIELD_INT("add", CYAML_FLAG_DEFAULT, struct yaml_step, add),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t step_schema = {
    CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct yaml_step, step_fields),
};
static const cyaml_schema_value_t word_schema = {
    CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 1, LIMIT_PATH - 1),
};
const cyaml_schema_field_t config_elastic_fields[] = {
    NUMBER(min),
    NUMBER(max),
    NUMBER(up_window_ms),
    NUMBER(down_window_ms),
    NUMBER(down_percent),
    NUMBER(hold_ms),
    NUMBER(hook_timeout_ms),
    CYAML_FIELD_SEQUENCE("up", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_elastic, up,
                         &step_schema, 1, ELASTIC_STEPS),
    CYAML_FIELD_SEQUENCE("hook", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct yaml_elastic,
                         hook, &word_schema, 1, HOOK_WORDS),
    CYAML_FIELD_END,
};

static bool take(const int64_t *from, uint32_t *to)
{
    if (from && (*from < 0 || *from > INT32_MAX))
        return false;
    *to = from ? (uint32_t)*from : *to;
    return true;
}

enum status config_elastic_take(const char *path, const struct yaml_elastic *y,
                                struct coordinator_config *c, struct errmsg *err)
{
    struct elastic_config *e = &c->core.elastic;
    if (!y)
        return STATUS_OK;
    bool ok =
        take(y->min, &e->min) && take(y->max, &e->max) && take(y->up_window_ms, &e->up_window_ms) &&
        take(y->down_window_ms, &e->down_window_ms) && take(y->down_percent, &e->down_percent) &&
        take(y->hold_ms, &e->hold_ms) && take(y->hook_timeout_ms, &c->hook_timeout_ms);
    for (unsigned i = 0; ok && i < y->up_count; i++) {
        ok = take(&y->up[i].wait_ms, &e->up[i].wait_ms) && take(&y->up[i].add, &e->up[i].add);
        e->up_n = y->up_count;
    }
    if (!ok || !c->hook_timeout_ms)
        return errmsg_set(err, STATUS_BAD_CONFIG,
                          "%s: elastic: a number below 0 or too large, or hook_timeout_ms 0", path);
    if (y->hook_count) {
        c->hook = mem_zalloc(y->hook_count + 1, sizeof *c->hook);
        for (unsigned i = 0; i < y->hook_count; i++)
            c->hook[i] = mem_strdup(y->hook[i]);
        c->hook_n = y->hook_count;
        c->core.tell_nodes = true;
    }
    return STATUS_OK;
}
